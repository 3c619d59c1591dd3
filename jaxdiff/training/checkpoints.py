"""Checkpoints that know what they are and notice when they were damaged: the only file that touches Orbax.

A step directory holds `model` (averaged weights, normalisation), `train` (the rest of the TrainState) and `meta` (a
format number, the whole configuration and class names), and last a manifest with the sha256 of every file. A step
without a manifest, or whose files do not match it, is passed over in favour of the one before.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxdiff.data.files import atomic

from .ema import SIGMA_RELS, Snapshot
from .state import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)

_MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A directory without a usable checkpoint; the message names it and says why."""


def _manager(directory: Path, keep: int | None = 2) -> ocp.CheckpointManager:
    """`keep` None keeps all steps."""
    policy = ocp.checkpoint_managers.LatestN(keep) if keep else None
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, preservation_policy=policy)
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def save(directory: Path, state: TrainState, normalization: Any, meta: dict[str, Any]) -> Path:
    """Write the checkpoint of `state.step` under `directory` and return its folder; the last two are kept."""
    step = int(state.step)
    train = {name: value for name, value in state._asdict().items() if name != "average"}
    model = {"ema_params": state.average, "normalization": normalization}
    with _manager(directory) as manager:
        manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(model), train=ocp.args.StandardSave(train), meta=ocp.args.JsonSave(meta)
            ),
            force=True,
        )
    return _seal(Path(directory) / str(step))


def save_averages(directory: Path, state: TrainState) -> Path:
    """Write the power-function averages of `state.step` under `directory`, where all steps are kept."""
    step = int(state.step)
    with _manager(directory, keep=None) as manager:
        manager.save(step, args=ocp.args.Composite(averages=ocp.args.StandardSave(_named(state.profiles))), force=True)
    return _seal(Path(directory) / str(step))


def read_averages(directory: Path, like: Any) -> list[Snapshot]:
    """All undamaged snapshots, averages shaped as `like`. Raises CheckpointError when there is none."""
    folders = [p for p in Path(directory).glob("*") if p.name.isdigit() and _problem(p) is None]
    if not folders:
        raise CheckpointError(f"{directory}: no snapshots of averages; train with train.posthoc_ema true")
    args = ocp.args.StandardRestore(_abstract(_named((like,) * len(SIGMA_RELS))))
    found = []
    with _manager(directory, keep=None) as manager:
        for step in sorted(int(p.name) for p in folders):
            averages = _read(manager, step, averages=args)["averages"]
            found += [Snapshot(step, width, averages[str(width)]) for width in SIGMA_RELS]
    return found


def _named(averages: tuple[Any, ...]) -> dict[str, Any]:
    return {str(width): average for width, average in zip(SIGMA_RELS, averages, strict=True)}


def _seal(folder: Path) -> Path:
    manifest = json.dumps(_digests(folder), indent=1)
    with atomic(folder / _MANIFEST) as temporary:
        temporary.write_text(manifest, encoding="utf-8")
    return folder


def _problem(folder: Path) -> str | None:
    """What is wrong with a step's folder, if anything."""
    try:
        promised = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{folder}: incomplete, it has no readable manifest"
    found = _digests(folder)
    wrong = sorted(name for name in promised.keys() | found.keys() if promised.get(name) != found.get(name))
    return f"{folder}: damaged, {wrong[0]} is not what was saved" if wrong else None


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _MANIFEST)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def latest(directory: Path) -> tuple[int, list[str]]:
    """The newest step whose files match their manifest, and a sentence for each newer one that was passed over.

    Raises CheckpointError when there is none.
    """
    directory, problems = Path(directory), []
    steps = sorted((int(p.name) for p in directory.glob("*") if p.name.isdigit()), reverse=True)
    for step in steps:
        problem = _problem(directory / str(step))
        if problem is None:
            return step, problems
        problems.append(problem)
    detail = problems[0] if problems else "no training has saved anything there yet"
    raise CheckpointError(f"{directory}: no usable checkpoint ({detail})")


def fingerprint(directory: Path, step: int) -> str:
    """The sha256 of a step's manifest: one name for all its bytes."""
    return hashlib.sha256((Path(directory) / str(step) / _MANIFEST).read_bytes()).hexdigest()


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
    train = {name: value for name, value in like._asdict().items() if name != "average"}
    model = {"ema_params": like.average, "normalization": normalization}
    found = _restore(
        directory,
        step,
        train=ocp.args.StandardRestore(_abstract(train)),
        model=ocp.args.StandardRestore(_abstract(model)),
    )
    return TrainState(average=found["model"]["ema_params"], **found["train"]), found["model"]["normalization"]


def _abstract(tree: Any) -> Any:
    def describe(leaf):
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def _restore(directory: Path, step: int, **items: Any) -> Any:
    with _manager(directory) as manager:
        return _read(manager, step, **items)


def _read(manager: ocp.CheckpointManager, step: int, **items: Any) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except (ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{manager.directory}/{step}: does not fit this model ({reason})") from error
