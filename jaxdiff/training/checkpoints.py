"""Checkpoints that know what they are and notice when they were damaged: the only file that touches Orbax.

A step directory holds `model` (averaged weights, normalisation), `train` (the rest of the TrainState) and `meta` (a
format number, the whole configuration and class names), and last a manifest with the sha256 of every file. It is
written beside its place, in the background and by every process its own part, and takes its place once it is whole, so
that an interrupted save costs nothing that was there. A step without a manifest, or whose files do not match it, is
passed over in favour of the one before. A state is restored onto whatever devices there are.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import sys
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from .ema import SIGMA_RELS, Snapshot
from .state import TrainState

MANIFEST = "manifest.json"
_MARGIN = 2**20  # bytes that a save may take beside its arrays
_UNFINISHED = re.compile(r"\.\d+\.saving.*|\d+\.orbax-checkpoint-tmp.*")  # what an interrupted save leaves
_PROBE = ".probe"

# Orbax logs what it does, and with tracebacks what it raises too; and when a write fails, others fail after it
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
_unraisable = sys.unraisablehook
sys.unraisablehook = lambda found: None if "loop is closed" in str(found.exc_value) else _unraisable(found)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names it and says why."""


class Saver:
    """Saves the steps of a training under `directory` while it goes on, one after the other.

    The last `keep` steps stay (None: all), and `best`, a step that may be set. A save that fails costs nothing that was
    there and is warned of: the next one may succeed. As a context, it waits for the last save and raises
    CheckpointError where that one failed and was `needed`. Several processes save together, each its part of a state;
    in a folder that not all of them see, as the mirror of a run of a cloud is, the first one saves all of it.
    """

    def __init__(self, directory: str | Path, *, keep: int | None = None, needed: bool = True):
        self.directory, self.keep, self.needed = Path(directory).absolute(), keep, needed
        self.best: int | None = None
        self._thread, self._last = ThreadPoolExecutor(1), False
        self._pending: Future | None = None
        self._problem: CheckpointError | None = None
        self._together = _seen_by_all(self.directory)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._last = self.needed and error is None
        problem = self.wait()
        self._thread.shutdown()
        if not self._last:
            return
        if jax.process_count() > 1 and multihost_utils.process_allgather(np.array(problem is not None)).any():
            problem = problem or CheckpointError(f"{self.directory}: another process could not save its part")
        if problem is not None:
            raise problem

    def wait(self) -> CheckpointError | None:
        """Wait until nothing is being written; why the last save failed, if it did."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
        return self._problem

    def save(self, step: int, trees: dict[str, Any], meta: dict[str, Any] | None = None) -> None:
        """Begin to write the folder of a step: its arrays may be changed as soon as this returns."""
        self.wait()
        folder = self.directory / str(step)
        if not self._together:
            trees = jax.tree.map(_whole, trees)
            if jax.process_index() > 0:
                return
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items |= {} if meta is None else {"meta": ocp.args.JsonSave(meta)}
        try:
            if jax.process_count() == 1 or not self._together:  # several might see different disks
                _check_room(self.directory, trees)
            writer = _writer(self._together)
            writer.save(_draft(folder), args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError) as error:
            self._failed(folder, error)
        else:
            self._pending = self._thread.submit(self._finish, writer, folder)

    def _finish(self, writer: ocp.AsyncCheckpointer, folder: Path) -> None:
        """Wait until all is written; then the folder is sealed, takes its place, and older ones go."""
        try:
            try:
                writer.wait_until_finished()
            finally:
                writer.close()
            if jax.process_index() == 0:
                _seal(folder)
                for step in [] if self.keep is None else _steps(self.directory)[: -self.keep]:
                    if step != self.best:
                        shutil.rmtree(self.directory / str(step), ignore_errors=True)
            self._problem = None
        except Exception as error:  # whatever it is, training does not need this save
            self._failed(folder, error)

    def _failed(self, folder: Path, error: Exception) -> None:
        """Note and say why a step could not be saved, and remove what there is of it."""
        time.sleep(1)  # until Orbax's other writes have failed too
        if jax.process_index() == 0:
            for left in self.directory.glob(f".{folder.name}.saving*"):
                shutil.rmtree(left, ignore_errors=True)
        reason = _reason(error)
        self._problem = CheckpointError(
            f"{folder}: cannot be saved ({reason}); what was saved before is intact, run again to go on from there"
        )
        self._problem.__cause__ = error
        if not self._last:
            warnings.warn(
                f"{folder}: cannot be saved ({reason}); training goes on, the next save tries again", stacklevel=2
            )


def _writer(together: bool) -> ocp.AsyncCheckpointer:
    """A writer of arrays, for all processes or for the first alone."""
    if together:
        return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    alone = ocp.options.MultiprocessingOptions(0, {0}, barrier_sync_key_prefix="alone")
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    return ocp.AsyncCheckpointer(handler, multiprocessing_options=alone)


def _whole(leaf: Any) -> Any:
    """All of an array in the memory of this process, which may have a part of it; of a random key its numbers."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _seen_by_all(directory: Path) -> bool:
    """Whether what the first process writes in a folder is there for all of them."""
    if jax.process_count() == 1:
        return True
    number = multihost_utils.broadcast_one_to_all(np.int32(secrets.randbits(31)))
    probe = directory.parent / f"{_PROBE}{int(number)}"
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):  # which the first save tells of
            directory.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
    multihost_utils.sync_global_devices(f"{probe.name} is written")
    seen = multihost_utils.process_allgather(np.array(probe.exists()))
    if jax.process_index() == 0:
        probe.unlink(missing_ok=True)
    return bool(seen.all() or not seen[0])


def save(directory: Path, state: TrainState, normalization: Any, meta: dict[str, Any], *, keep: int = 2) -> Path:
    """Write the checkpoint of `state.step` under `directory` and return its folder; the last `keep` stay."""
    with Saver(directory, keep=keep) as saver:
        saver.save(int(state.step), parts(state, normalization), meta)
    return saver.directory / str(int(state.step))


def check_room(directory: Path, trees: Any) -> None:
    """Raise CheckpointError where a folder cannot be written to, or its disk has no room for a save of `trees`."""
    try:
        _check_room(Path(directory), trees)
    except OSError as error:
        megabytes = _size(trees) / 1e6
        raise CheckpointError(
            f"{directory}: cannot be written to ({_reason(error)}), and a checkpoint takes {megabytes:.1f} MB; give a "
            f"folder that has room, or make room"
        ) from None


def _check_room(directory: Path, trees: Any) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / _PROBE
    try:
        probe.write_bytes(b"\0" * 4096)
    finally:
        probe.unlink(missing_ok=True)
    if shutil.disk_usage(directory).free < _MARGIN + _size(trees):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _size(trees: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))


def read_averages(directory: Path, like: Any) -> list[Snapshot]:
    """All undamaged snapshots, averages shaped as `like`. Raises CheckpointError when there is none."""
    steps = [step for step in _steps(directory) if _problem(Path(directory) / str(step)) is None]
    if not steps:
        raise CheckpointError(f"{directory}: no snapshots of averages; train with train.posthoc_ema true")
    args = ocp.args.StandardRestore(_abstract(_named((like,) * len(SIGMA_RELS))))
    found = []
    for step in steps:
        averages = _restore(directory, step, averages=args)["averages"]
        found += [Snapshot(step, width, averages[str(width)]) for width in SIGMA_RELS]
    return found


def discard_after(directory: Path, step: int) -> None:
    """Remove the steps after `step`, which a training that goes on from there does again, and unfinished saves."""
    for folder in Path(directory).glob("*"):
        if _UNFINISHED.fullmatch(folder.name) or (folder.name.isdigit() and int(folder.name) > step):
            shutil.rmtree(folder)


def parts(state: TrainState, normalization: Any) -> dict[str, Any]:
    """A checkpoint's arrays: what makes sound, and what only training needs."""
    train = {name: value for name, value in state._asdict().items() if name != "average"}
    return {"model": {"ema_params": state.average, "normalization": normalization}, "train": train}


def averages(state: TrainState) -> dict[str, Any]:
    """A snapshot's arrays: the power-function averages."""
    return {"averages": _named(state.profiles)}


def _named(averages: tuple[Any, ...]) -> dict[str, Any]:
    return {str(width): average for width, average in zip(SIGMA_RELS, averages, strict=True)}


def _steps(directory: Path) -> list[int]:
    """The steps that have a folder, in order."""
    return sorted(int(p.name) for p in Path(directory).glob("*") if p.name.isdigit())


def _draft(folder: Path) -> Path:
    """Where a step is written before it takes its place."""
    return folder.with_name(f".{folder.name}.saving")


def _seal(folder: Path) -> None:
    """A draft that is whole gets its manifest and takes its place, whatever an earlier attempt left there."""
    draft = _draft(folder)
    digests = {str(p.relative_to(draft)): _digest(p) for p in sorted(draft.rglob("*")) if p.is_file()}
    (draft / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def _reason(error: Exception) -> str:
    """The system's words for why something could not be written."""
    code = re.search(r"os_error_code='(\d+)'", str(error))  # how tensorstore says it
    return os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or str(error).splitlines()[0]


def _problem(folder: Path) -> str | None:
    """What is wrong with a step's folder, if anything; files that its manifest does not name do not count."""
    try:
        promised = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        promised = None
    if not promised or not isinstance(promised, dict):
        return f"{folder}: incomplete, it has no readable manifest"
    for name, digest in sorted(promised.items()):
        try:
            same = _digest(folder / name) == digest
        except (OSError, ValueError):
            same = False
        if not same:
            return f"{folder}: damaged, {name} is not what was saved"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def latest(directory: Path) -> tuple[int, list[str]]:
    """The newest step whose files match their manifest, and a sentence for each newer one that was passed over.

    Raises CheckpointError when there is none.
    """
    directory, problems = Path(directory), []
    for step in reversed(_steps(directory)):
        problem = _problem(directory / str(step))
        if problem is None:
            return step, problems
        problems.append(problem)
    detail = problems[0] if problems else "no training has saved anything there yet"
    raise CheckpointError(f"{directory}: no usable checkpoint ({detail})")


def check(directory: Path, step: int) -> None:
    """Raise CheckpointError where a step is not whole."""
    problem = _problem(Path(directory) / str(step))
    if problem is not None:
        raise CheckpointError(problem)


def fingerprint(directory: Path, step: int) -> str:
    """The sha256 of a step's manifest: one name for all its bytes."""
    return hashlib.sha256((Path(directory) / str(step) / MANIFEST).read_bytes()).hexdigest()


def read_meta(directory: Path, step: int) -> dict[str, Any]:
    """The configuration and class names that a step was saved with."""
    file = Path(directory) / str(step) / "meta" / "metadata"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def restore_model(directory: Path, step: int, like: dict[str, Any]) -> dict[str, Any]:
    """`ema_params` and `normalization`, shaped as `like` (arrays or ShapeDtypeStructs)."""
    return _restore(directory, step, model=ocp.args.StandardRestore(_abstract(like)))["model"]


def restore_state(directory: Path, step: int, like: TrainState, normalization: Any) -> tuple[TrainState, Any]:
    """The whole TrainState and the normalisation, shaped and sharded as given.

    Raises CheckpointError for a state of other shapes or types, or of an older format, which makes sound but cannot be
    trained on.
    """
    wanted = _abstract(parts(like, normalization)).items()
    found = _restore(directory, step, **{name: ocp.args.StandardRestore(tree) for name, tree in wanted})
    state = TrainState(average=found["model"]["ema_params"], **found["train"])
    key = lambda wanted, got: jax.random.wrap_key_data(got) if _is_key(wanted) and not _is_key(got) else got  # noqa: E731
    return jax.tree.map(key, like, state), found["model"]["normalization"]


def _abstract(tree: Any) -> Any:
    def describe(leaf):
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        leaf = _stored(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def _restore(directory: Path, step: int, **items: Any) -> Any:
    folder = Path(directory).absolute() / str(step)
    for name, args in items.items():
        if isinstance(args, ocp.args.StandardRestore):
            _check_fit(folder / name, args.item, wider=name == "model" and len(items) == 1)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(folder, args=ocp.args.Composite(**items))
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{folder}: does not fit this model ({str(error).splitlines()[0]})") from error


def _check_fit(folder: Path, like: Any, *, wider: bool) -> None:
    """Raise CheckpointError unless the arrays of a folder have the names, shapes and types of `like`: Orbax would cast
    another type silently. With `wider` they may become types that hold all their values, as float64 does for float32.
    """
    try:
        there = ocp.StandardCheckpointHandler().metadata(epath.Path(folder))
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({str(error).splitlines()[0]})") from error
    found, wanted = _described(there), _described(like)
    for name in [*wanted, *found]:
        has, needs = found.get(name), wanted.get(name)
        if wider and has and needs and jnp.promote_types(has[0], needs[0]) == needs[0]:
            has = (needs[0], has[1])
        if has != needs:
            has, needs = (f"{t[0]} {t[1]}" if (t := of.get(name)) else "nothing" for of in (found, wanted))
            raise CheckpointError(
                f"{folder.parent}: does not fit this model, whose {name} is {needs}; the checkpoint has {has}"
            )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> Any:
    """The type and shape that an array is stored with: a random key's are those of its numbers."""
    like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.eval_shape(jax.random.key_data, like) if _is_key(leaf) else like


def _described(tree: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type and shape of every array of a tree by its name."""

    def describe(leaf: Any) -> tuple[str, tuple[int, ...]]:
        leaf = _stored(leaf)
        return str(jnp.dtype(leaf.dtype)), tuple(leaf.shape)

    leaves = jax.tree_util.tree_flatten_with_path(getattr(tree, "tree", tree))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): describe(leaf) for path, leaf in leaves}
