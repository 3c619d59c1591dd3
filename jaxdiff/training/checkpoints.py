"""Checkpoints that know what they are and notice when they were damaged: the only file that touches Orbax.

A step directory holds `model` (averaged weights, normalisation), `train` (the rest of the TrainState) and `meta` (a
format number, the whole configuration and class names), and last a manifest with the sha256 of every file. It is
written beside its place and takes it once it is whole, so that an interrupted save costs nothing that was there. A step
without a manifest, or whose files do not match it, is passed over in favour of the one before.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from .ema import SIGMA_RELS, Snapshot
from .state import TrainState

MANIFEST = "manifest.json"
_KEPT = 2  # checkpoints of a run
_MARGIN = 2**20  # bytes that a save may take beside its arrays
_UNFINISHED = re.compile(r"\.\d+\.saving.*|\d+\.orbax-checkpoint-tmp.*")  # what an interrupted save leaves


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names it and says why."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax's messages off while it works: errors are raised, their tracebacks need not be printed too."""
    logger = logging.getLogger("absl")
    before, hook = logger.level, sys.unraisablehook
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None  # of writes that end after another one has failed
    try:
        yield
    finally:
        logger.setLevel(before)
        sys.unraisablehook = hook


def save(directory: Path, state: TrainState, normalization: Any, meta: dict[str, Any]) -> Path:
    """Write the checkpoint of `state.step` under `directory` and return its folder; the last two are kept."""
    folder = _write(Path(directory) / str(int(state.step)), _parts(state, normalization), meta)
    for step in _steps(directory)[:-_KEPT]:
        shutil.rmtree(folder.with_name(str(step)), ignore_errors=True)
    return folder


def save_averages(directory: Path, state: TrainState) -> Path:
    """Write the power-function averages of `state.step` under `directory`, where all steps are kept."""
    return _write(Path(directory) / str(int(state.step)), {"averages": _named(state.profiles)})


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


def _parts(state: TrainState, normalization: Any) -> dict[str, Any]:
    """What makes sound, and what only training needs."""
    train = {name: value for name, value in state._asdict().items() if name != "average"}
    return {"model": {"ema_params": state.average, "normalization": normalization}, "train": train}


def _named(averages: tuple[Any, ...]) -> dict[str, Any]:
    return {str(width): average for width, average in zip(SIGMA_RELS, averages, strict=True)}


def _steps(directory: Path) -> list[int]:
    """The steps that have a folder, in order."""
    return sorted(int(p.name) for p in Path(directory).glob("*") if p.name.isdigit())


@_quiet()
def _write(folder: Path, trees: dict[str, Any], meta: dict[str, Any] | None = None) -> Path:
    """Write the folder of a step, whole or not at all, in place of what an earlier attempt left there.

    Raises CheckpointError with the system's reason (a full disk, a folder that is not writable).
    """
    folder = folder.absolute()
    draft = folder.with_name(f".{folder.name}.saving")
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    items |= {} if meta is None else {"meta": ocp.args.JsonSave(meta)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < _MARGIN + sum(x.nbytes for x in jax.tree.leaves(trees)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            writer.save(draft, args=ocp.args.Composite(**items), force=True)
        digests = {str(p.relative_to(draft)): _digest(p) for p in sorted(draft.rglob("*")) if p.is_file()}
        (draft / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        return draft.rename(folder)
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))  # how tensorstore says it
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or str(error).splitlines()[0]
        time.sleep(1)  # until its other writes have failed too
        with contextlib.suppress(OSError):
            discard_after(folder.parent, int(folder.name))
        raise CheckpointError(
            f"{folder}: cannot be saved ({reason}); what was saved before is intact, run again to go on from there"
        ) from error


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
    return hashlib.sha256(file.read_bytes()).hexdigest()


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


def fingerprint(directory: Path, step: int) -> str:
    """The sha256 of a step's manifest: one name for all its bytes."""
    return hashlib.sha256((Path(directory) / str(step) / MANIFEST).read_bytes()).hexdigest()


def read_meta(directory: Path, step: int) -> dict[str, Any]:
    """The configuration and class names that a step was saved with."""
    return _restore(directory, step, meta=ocp.args.JsonRestore())["meta"]


def restore_model(directory: Path, step: int, like: dict[str, Any]) -> dict[str, Any]:
    """`ema_params` and `normalization`, shaped as `like` (arrays or ShapeDtypeStructs)."""
    return _restore(directory, step, model=ocp.args.StandardRestore(_abstract(like)))["model"]


def restore_state(directory: Path, step: int, like: TrainState, normalization: Any) -> tuple[TrainState, Any]:
    """The whole TrainState and the normalisation, shaped and sharded as given.

    Raises CheckpointError for a state of an older format, which makes sound but cannot be trained on.
    """
    parts = _abstract(_parts(like, normalization)).items()
    found = _restore(directory, step, **{name: ocp.args.StandardRestore(tree) for name, tree in parts})
    return TrainState(average=found["model"]["ema_params"], **found["train"]), found["model"]["normalization"]


def _abstract(tree: Any) -> Any:
    def describe(leaf):
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


@_quiet()
def _restore(directory: Path, step: int, **items: Any) -> Any:
    folder = Path(directory).absolute() / str(step)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(folder, args=ocp.args.Composite(**items))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: does not fit this model ({str(error).splitlines()[0]})") from error
