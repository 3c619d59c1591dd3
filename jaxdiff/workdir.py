"""A run's folder: who may train in it, where a training in it goes on, and what may have changed until then.

WORKDIR/config.yaml      the resolved configuration      WORKDIR/log.jsonl     metrics, one line per interval
WORKDIR/checkpoints/N    Orbax, with a manifest           WORKDIR/samples/N     sounds and pictures on the way
WORKDIR/snapshots/N      averages for post-hoc EMA         WORKDIR/grids         times found for a checkpoint
WORKDIR/rejected.txt     files of the corpus that cannot be used, and why
WORKDIR/best.json        the best checkpoint so far        WORKDIR/.lock         held by the process that trains there
WORKDIR/history.jsonl    starts, ends, versions            WORKDIR/tensorboard   event files (train.tensorboard)

Of several processes the first alone decides and writes here, and all do as it says; checkpoints they write together.
A run of a cloud is trained in a folder of this machine, which `training/remote.py` copies up and down.
"""

import contextlib
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxdiff import config as configuration
from jaxdiff.config import FORMAT, Config, ConfigError, flatten, from_dict
from jaxdiff.data import AudioError, Corpus, Further, write_report
from jaxdiff.data.cloud import url_of
from jaxdiff.training import CheckpointError, TrainState, checkpoints, remote
from jaxdiff.training.best import Best

LOCK = ".lock"
SNAPSHOTS = 32  # of the averages over a whole training, for post-hoc EMA
_T = TypeVar("_T")
Report = Callable[[str], None]

# What may differ from the run that is resumed: these at any time, and those when the user says so.
_MAY_CHANGE = re.compile(
    r"train\.(steps|accumulate|fsdp|skips|keep|best|patience|validation|validate_every|tensorboard|(log|sample|save)_every)|sampling\..*|data\.memory_mb|"
    r"network\.remat|representation\.vocoder|task\.pitch_.*"
)
_ON_PURPOSE = re.compile(r"train\.(learning_rate|batch|warmup)|data\.(path|labels|drawn|paired)|corpus")


def agreed(decide: Callable[[], _T]) -> _T:
    """What `decide` returns in process 0, a value for JSON; in all processes it is that value or error."""
    if jax.process_count() == 1:
        return decide()
    kinds, error, said = (ConfigError, CheckpointError, AudioError), None, {}
    if jax.process_index() == 0:
        try:
            said = {"value": decide()}
        except kinds as found:
            error, said = found, {"error": str(found), "kind": type(found).__name__}
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, length))
    if error is not None:
        raise error
    said = json.loads(bytes(np.asarray(text, np.uint8)))
    if "error" in said:
        raise next(kind for kind in kinds if kind.__name__ == said["kind"])(said["error"])
    return said["value"]


@contextlib.contextmanager
def alone(workdir: Path | None) -> Iterator[Path | None]:
    """Make the folder of a run, in which no other training may go on meanwhile: a lock that ends with its process.

    It is `workdir`, or where a run of a cloud is trained: of several processes the first has its mirror, others have a
    copy of its checkpoints. Raises ConfigError where another has it, or it cannot be written to. A folder that was made
    and not used is removed again.
    """
    with contextlib.ExitStack() as stack:
        url = None if workdir is None else url_of(workdir)
        if workdir is not None and url is None:
            agreed(lambda: stack.enter_context(_locked(workdir)))
        elif workdir is not None and url is not None:
            mirror = remote.mirror(url)
            agreed(lambda: stack.enter_context(_held(url, mirror)))
            first = jax.process_index() == 0
            workdir = mirror if first else remote.fetched(workdir, ["checkpoints"], needed=False)
        yield workdir


@contextlib.contextmanager
def _held(url: str, mirror: Path) -> Iterator[None]:
    with _locked(mirror), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(remote.held(url, mirror))
        except BlockingIOError as error:
            raise ConfigError(f"--workdir {error}; wait for its end, or use another --workdir") from None
        yield


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    new = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK).open("w")
    except OSError as error:
        raise ConfigError(
            f"--workdir {workdir}: cannot be written to ({error.strerror}); give a folder that can"
        ) from None
    try:
        with file:
            try:
                import fcntl  # which Windows lacks

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"--workdir {workdir}: another process trains there; wait for its end, or use another --workdir"
                ) from None
            except (ImportError, OSError):  # a file system without locks
                pass
            yield
    finally:
        if new and [p.name for p in workdir.glob("*")] == [LOCK]:
            shutil.rmtree(workdir)


def check_empty(workdir: Path) -> None:
    """Raise ConfigError for a folder that holds other things than a run."""
    begun = (workdir / "checkpoints").exists() or (workdir / "config.yaml").exists()
    if not begun and workdir.is_dir() and any(not p.name.startswith(".") for p in workdir.iterdir()):
        raise ConfigError(f"--workdir {workdir}: holds other files and no run; give a new or empty folder")


def newest(directory: Path) -> int | None:
    """The newest usable step in a folder of checkpoints, None where none was saved whole; it warns of damaged ones."""
    try:
        step, problems = checkpoints.latest(directory)
    except CheckpointError as nothing:
        steps = [p for p in directory.glob("*") if p.name.isdigit()]
        if len(steps) > 1 or any((p / checkpoints.MANIFEST).exists() for p in steps):
            raise CheckpointError(f"{nothing}; move {directory} away to begin again") from None
        return None
    for problem in problems:
        warnings.warn(f"passed over {problem}", stacklevel=2)
    if checkpoints.read_meta(directory, step).get("format") != FORMAT:
        raise CheckpointError(
            f"{directory.parent}: was trained by an older jaxdiff, whose training cannot go on; its sounds can be made "
            f"and a new run can begin with its weights: --train.init {directory.parent}"
        )
    return step


def describe(corpus: Corpus, further: Further) -> str:
    """The number of recordings and a few digits of a hash of their names, in whatever folder, and lengths."""
    corpora = [corpus, *further.drawn.values(), *further.paired.values()]
    names = [f"{r.name} {r.seconds:.3f}{f' {r.offset:.3f}' * bool(r.offset)}" for c in corpora for r in c.recordings]
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    return f"{len(names)} recordings ({digest[:8]})"


def check_changes(
    config: Config, sounds: str, classes: tuple[str, ...], meta: Any, workdir: Path, accept: bool, report: Report
) -> None:
    """Report how a configuration and its sounds differ from what a run was trained with; raises ConfigError for what
    may not change, and for what may unless it is accepted."""
    if meta["config"] is None:
        raise ConfigError(f"--workdir {workdir}: was trained in Python with parts of its own; use another --workdir")
    before = from_dict(meta["config"])
    there = dict(flatten(before)) | {"corpus": meta.get("corpus", sounds)}
    here = dict(flatten(config)) | {"corpus": sounds}
    changed = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    lines = {key: f"{key}: {there.get(key)} -> {here.get(key)}" for key in changed}
    fixed = [key for key in changed if not _MAY_CHANGE.fullmatch(key) and not _ON_PURPOSE.fullmatch(key)]
    if fixed:
        raise ConfigError(
            f"--workdir {workdir}: holds a run with {fixed[0]} = {there.get(fixed[0])}, this configuration says "
            f"{here.get(fixed[0])}{_of_weights(before, config, classes)}; use another --workdir, or set it back to "
            f"resume"
        )
    meant = [line for key, line in lines.items() if _ON_PURPOSE.fullmatch(key)]
    if meant and not accept:
        raise ConfigError(
            f"--workdir {workdir}: the run was trained with other settings ({'; '.join(meant)}); add --accept-changes "
            f"to go on with the new ones, or set them back"
        )
    for line in lines.values():
        report(line)
    if "train.steps" in lines and config.train.schedule != "constant":
        t = config.train
        report(f"the {t.schedule} decay of the learning rate stretches with train.steps and now ends at {t.steps}")


def _of_weights(before: Config, now: Config, classes: tuple[str, ...]) -> str:
    """The first parameter whose shape two configurations differ in, if any."""
    shapes = []
    for config in (before, now):
        leaves, _ = jax.tree_util.tree_flatten_with_path(configuration.model(config, classes, None).network.shapes())
        shapes.append({jax.tree_util.keystr(k, simple=True, separator="/"): leaf.shape for k, leaf in leaves})
    there, here = shapes
    for name in [*there, *here]:
        if there.get(name) != here.get(name):
            had, has = (of.get(name, "absent") for of in (there, here))
            return f" (its parameter {name} is {had}, here it would be {has})"
    return ""


class Keeper:
    """What a training that goes on from step `begin` keeps in its folder: checkpoints, averages and which is the best.

    As a context it waits for the last save. Without a folder it keeps nothing.
    """

    def __init__(self, workdir: Path | None, t: configuration.Train, begin: int, normalization: Any, report: Report):
        self.workdir, self.t, self.normalization, self.report = workdir, t, normalization, report
        self.every = max(1, t.steps // SNAPSHOTS) if t.posthoc_ema and workdir is not None else 0
        self.best = None
        if workdir is None:
            return
        agreed(lambda: [checkpoints.discard_after(workdir / name, begin) for name in ("checkpoints", "snapshots")])
        self.saver = checkpoints.Saver(workdir / "checkpoints", keep=t.keep)
        self.averages = checkpoints.Saver(workdir / "snapshots", needed=False)
        if t.best is not None:
            self.best = Best(workdir / "best.json", t.best, t.patience, begin)
            self.saver.best = self.best.step

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.workdir is not None:
            self.averages.__exit__(*error)
            self.saver.__exit__(*error)

    def check_room(self, state: TrainState) -> None:
        """Raise CheckpointError where a state like this could not be saved."""
        if self.workdir is not None:
            directory, parts = self.workdir / "checkpoints", checkpoints.parts(state, self.normalization)
            agreed(lambda: checkpoints.check_room(directory, parts))

    def check_best(self, names: Sequence[str]) -> None:
        """Raise ConfigError where the metric of the best is none of these."""
        if self.t.best not in names:
            raise ConfigError(f"train.best {self.t.best}: is not measured; use one of {', '.join(names)}")

    def save(self, state: TrainState, meta: Any) -> None:
        """Begin to save a checkpoint."""
        if self.workdir is not None:
            self.saver.save(int(state.step), checkpoints.parts(state, self.normalization), meta)

    def snapshot(self, state: TrainState, _metrics: Any = None) -> None:
        """Begin to save the averages where they are due and not there."""
        step = int(state.step)
        due = self.every and (step % self.every == 0 or step == self.t.steps)
        if not due or self.workdir is None:
            return
        folder = self.workdir / "snapshots" / str(step)
        if not agreed(folder.exists):
            self.averages.save(step, checkpoints.averages(state))

    def judge(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether training is to end with this checkpoint, since the best one was too long ago."""
        if self.best is None or self.best.metric not in metrics:
            return False
        self.best.judge(step, metrics[self.best.metric])
        self.saver.best = self.best.step
        if jax.process_index() == 0:
            try:
                self.best.write()
            except OSError as error:  # whatever the disk says, training does not need it
                warnings.warn(f"{self.best.path}: cannot be written ({error.strerror})", stacklevel=2)
        if self.best.in_vain:
            self.report(
                f"ended at step {step}: {self.best.metric} was least, {self.best.value:.4g}, at step {self.best.step}, "
                f"{self.t.patience} checkpoints ago"
            )
        return self.best.in_vain


def listing(corpus: Corpus, further: Further, workdir: Path, report: Report) -> Callable[[], None]:
    """Lists what cannot be used in WORKDIR/rejected.txt and reports their number, where there are more than before."""
    corpora, told = [corpus, *further.drawn.values(), *further.paired.values()], 0

    def list_rejected() -> None:
        nonlocal told
        lines = [line for c in corpora for line in c.rejected]
        if len(lines) > told and jax.process_index() == 0:
            told = len(lines)
            try:
                write_report(workdir / "rejected.txt", lines)
            except OSError as error:  # whatever the disk says, training does not need it
                warnings.warn(f"{workdir / 'rejected.txt'}: cannot be written ({error.strerror})", stacklevel=2)
            report(f"{told} files cannot be used, listed in {workdir / 'rejected.txt'}")

    return list_rejected
