"""Training, from Python with one's own parts (`train`) or from a configuration (`run`), and its folder on disk.

WORKDIR/config.yaml      the resolved configuration      WORKDIR/log.jsonl     metrics, one line per interval
WORKDIR/checkpoints/N    Orbax, with a manifest           WORKDIR/samples/N     sounds and pictures on the way
WORKDIR/snapshots/N      averages for post-hoc EMA         WORKDIR/grids         times found for a checkpoint
WORKDIR/rejected.txt     files of the corpus that cannot be used, and why
WORKDIR/.lock            held by the process that trains there
"""

import contextlib
import hashlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import config as configuration
from jaxdiff import ranges
from jaxdiff.config import FORMAT, Config, ConfigError, flatten, from_dict, to_dict, to_yaml
from jaxdiff.data import AudioError, Corpus, Further, batches, write_report
from jaxdiff.data.files import atomic
from jaxdiff.features import Normalization, Normalized, fit_normalization
from jaxdiff.inference import Output, Pipeline, load
from jaxdiff.inference.load import pipeline_of, shapes
from jaxdiff.methods import Method, Model
from jaxdiff.networks import Params, count_params
from jaxdiff.training import (
    Every,
    TrainState,
    checkpoints,
    init_state,
    loop,
    make_optimizer,
    make_train_step,
    warmup_cosine,
)
from jaxdiff.training import sharding as shardings

SNAPSHOTS = 32  # of the averages over a whole training, for post-hoc EMA
PREVIEWS = 4  # sounds, at least, of a preview
LOCK = ".lock"

Batches = Iterable[Mapping[str, Any]] | Callable[[int], Iterable[Mapping[str, Any]]]


def train(
    model: Model,
    method: Method,
    batches: Batches,
    optimizer: optax.GradientTransformation | None = None,
    *,
    steps: int,
    seed: int = 0,
    params: Params | None = None,
    workdir: str | Path | None = None,
    callbacks: Sequence[Every] = (),
    ema_decay: float = 0.999,
    log_every: int = 20,
    save_every: int = 1000,
) -> TrainState:
    """Train a model; `Pipeline(model, method, state.average)` then makes sound with it.

    `batches` yields dicts of numpy arrays: "wave" [batch, samples] float32 at the representation's rate, "label"
    [batch] int32 where the task has classes, and the task's `inputs`. Given as a function of the step it begins at, a
    training that resumes sees the batches that it would have seen. `optimizer` None is AdamW at 1e-3 with cosine decay;
    `params` None are fresh ones of `seed`. With `workdir` the state is saved there every `save_every` steps and at the
    end, and a training that was interrupted goes on from the last save. Each of `callbacks` is called at its interval
    with the state and the metrics. Raises TrainingError when the loss or the weights are not finite, and ConfigError
    when another process trains in `workdir`.
    """
    settings = configuration.Train(steps, warmup=500, seed=seed, ema_decay=ema_decay)
    settings = replace(settings, log_every=log_every, save_every=save_every)
    ranges.check_fields(settings)
    folder = None if workdir is None else Path(workdir)
    with _alone(folder):
        return _train(model, method, batches, settings, optimizer, params, folder, callbacks)[0]


def _train(
    model: Model,
    method: Method,
    batches: Batches,
    t: configuration.Train,
    optimizer: optax.GradientTransformation | None,
    params: Params | None,
    workdir: Path | None,
    events: Sequence[Every],
    about: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[TrainState, int | None]:
    """The last state, and the signal that ended training early (or None)."""
    model.task.check(model.representation)
    method.check(model)
    mesh, key, steps, rate = shardings.data_mesh(), jax.random.key(t.seed), t.steps, None
    if optimizer is None:
        rate = jax.jit(warmup_cosine(t.learning_rate, steps, t.warmup))
        optimizer = make_optimizer(t.learning_rate, steps, warmup=t.warmup, weight_decay=t.weight_decay, b1=t.b1)

    def fresh(params: Params | None = params) -> TrainState:
        made = model.network.init(key) if params is None else params
        everything, opt_state, extra = method.init(model, made, optimizer, steps, key)
        weights = method.weights(everything)
        state = init_state(everything, weights, opt_state, key, extra=extra, posthoc_ema=t.posthoc_ema)
        return jax.tree.map(lambda x: jnp.array(x, x.dtype), state)  # own copies; a weak type would be compiled again

    normalization = model.representation.normalization if isinstance(model.representation, Normalized) else None
    directory = None if workdir is None else workdir / "checkpoints"
    found = None if directory is None else _newest(directory, report)
    if directory is None or found is None:
        state = jax.jit(fresh)() if params is None else fresh()
    else:
        state, _ = checkpoints.restore_state(directory, found, jax.eval_shape(fresh), normalization)
        report(f"resuming from step {found}")
    report(f"{count_params(state.average):,} parameters on {jax.device_count()} x {jax.devices()[0].platform}")
    begin, every = int(state.step), max(1, steps // SNAPSHOTS) if t.posthoc_ema and workdir is not None else 0

    def snapshot(state: TrainState, _metrics: Any = None) -> None:
        step = int(state.step)
        due = every and (step % every == 0 or step == steps)
        if due and workdir is not None and not (workdir / "snapshots" / str(step)).exists():
            checkpoints.save_averages(workdir / "snapshots", state)

    def save(state: TrainState) -> None:
        if directory is not None:
            checkpoints.save(directory, state, normalization, meta)

    if begin:
        snapshot(state)  # training may have ended between the checkpoint of this step and its snapshot
    if begin >= steps:
        report(f"already at step {begin} of {steps}")
        return state, None
    raw = iter(batches(begin) if callable(batches) else batches)
    first = next(raw)
    seconds = first["wave"].shape[-1] / model.representation.sample_rate
    meta = {"format": FORMAT, "classes": list(model.task.classes), "seconds": seconds, **(about or {"config": None})}
    if workdir is not None:
        checkpoints.discard_after(workdir / "checkpoints", begin)
        checkpoints.discard_after(workdir / "snapshots", begin)
    state, stopped = loop(
        make_train_step(method.make_step(model, optimizer, steps), method.weights, ema_decay=t.ema_decay),
        shardings.replicate(state, mesh),
        (shardings.split_batch(batch, mesh) for batch in _labeled(itertools.chain([first], raw))),
        save,
        steps=steps,
        seconds_per_step=seconds * len(first["wave"]),
        learning_rate=rate,
        log_path=None if workdir is None else workdir / "log.jsonl",
        log_every=t.log_every,
        save_every=t.save_every if workdir is not None else 0,
        events=(Every(every, snapshot), *events),
    )
    snapshot(state)
    return state, stopped


@contextlib.contextmanager
def _alone(workdir: Path | None) -> Iterator[None]:
    """Make the folder of a run, in which no other process may train meanwhile: a lock that ends with its process.

    Raises ConfigError where another has it. A folder that was made and not used is removed again.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"training in several processes is not supported yet, this is one of {jax.process_count()}; start a single "
            f"one, which uses all devices that it sees"
        )
    if workdir is None:
        yield
        return
    new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with (workdir / LOCK).open("w") as file:
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


def _labeled(batches: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Batches whose items have no class where none is given."""
    for batch in batches:
        yield {"label": np.full(len(batch["wave"]), -1, np.int32), **batch}


def _newest(directory: Path, report: Callable[[str], None]) -> int | None:
    """The newest usable step in a folder of checkpoints, None where none was ever saved whole."""
    try:
        step, problems = checkpoints.latest(directory)
    except checkpoints.CheckpointError as nothing:
        steps = [p for p in directory.glob("*") if p.name.isdigit()]
        if len(steps) > 1 or any((p / checkpoints.MANIFEST).exists() for p in steps):
            raise checkpoints.CheckpointError(f"{nothing}; move {directory} away to begin again") from None
        return None
    for problem in problems:
        report(f"warning: passed over {problem}")
    if checkpoints.read_meta(directory, step).get("format") != FORMAT:
        raise checkpoints.CheckpointError(
            f"{directory.parent}: was trained by an older jaxdiff, whose training cannot go on; its sounds can be made "
            f"and a new run can begin with its weights: --train.init {directory.parent}"
        )
    return step


# From a configuration -----------------------------------------------------------------------------------------------

# What may differ from the run that is resumed: these at any time, and those when the user says so.
_MAY_CHANGE = re.compile(
    r"train\.(steps|log_every|sample_every|save_every)|sampling\..*|data\.memory_mb|representation\.vocoder|"
    r"task\.pitch_.*"
)
_ON_PURPOSE = re.compile(r"train\.(learning_rate|batch|warmup)|data\.(path|labels|drawn|paired)|corpus")


def run(
    config: Config, workdir: Path, *, accept_changes: bool = False, report: Callable[[str], None] = print
) -> int | None:
    """Train up to `config.train.steps` in `workdir`, from its newest checkpoint if it has one.

    Returns the signal that ended training early, or None. Raises AudioError, ConfigError or CheckpointError before any
    step when something does not fit. A run goes on with another learning rate, batch or corpus than it was trained with
    only where `accept_changes` says that this is meant.
    """
    t, directory, method = config.train, workdir / "checkpoints", config.method
    crop = configuration.crop(config)
    if "sampler" in method.knobs:
        try:
            method.sampler(config.sampling)
        except ValueError as error:
            raise ConfigError(f"sampling.{error}") from None
    begun = directory.exists() or (workdir / "config.yaml").exists()
    if not begun and workdir.is_dir() and any(not p.name.startswith(".") for p in workdir.iterdir()):
        raise ConfigError(f"--workdir {workdir}: holds other files and no run; give a new or empty folder")
    with _alone(workdir):
        corpus, further = config.data.open()
        classes = configuration.model(config, corpus.classes, None).task.classes
        missing = set(config.task.inputs) - further.names
        if missing:
            name = min(missing)
            own = {"notes": "data.notes, a folder of MIDI files", "reference": "data.reference yes"}
            add = own.get(name, f"data.drawn.{name} or data.paired.{name}, a folder")
            raise ConfigError(f"data: the task needs {name}; add {add}")
        if t.batch % jax.device_count():
            raise ConfigError(
                f"train.batch {t.batch} does not divide over {jax.device_count()} devices; use a multiple of that"
            )
        step, params, sounds = _newest(directory, lambda text: None), None, _describe(corpus, further)
        if step is not None:
            meta = checkpoints.read_meta(directory, step)
            if tuple(meta["classes"]) != classes:
                raise ConfigError(
                    f"{config.data.path}: has classes {classes}, the run began with {tuple(meta['classes'])}"
                )
            _check_changes(config, sounds, meta, workdir, accept_changes, report)
        with atomic(workdir / "config.yaml") as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
        _report_corpus(corpus, workdir, report)
        if step is not None:
            like = shapes(configuration.model(config, classes, None))
            normalization = checkpoints.restore_model(directory, step, like)["normalization"]
        elif t.init is None:
            normalization = _measure(config, corpus)
        else:
            params, normalization = _begin_with(config, t.init, classes, report)
        shown, failed, memory = config, set(), config.data.memory_mb * 2**20
        evenness = config.data.evenness
        if t.sample_every and config.sampling.spacing == "searched":
            report("warning: previews use sampling.spacing uniform, since times are searched for one checkpoint")
            shown = replace(config, sampling=replace(config.sampling, spacing="uniform"))

        def preview(state: TrainState, metrics: dict[str, float]) -> None:
            folder = workdir / "samples" / str(int(state.step))
            try:
                params = jax.tree.map(jnp.asarray, jax.device_get(state.average))
                pipeline = pipeline_of(shown, classes, params, normalization, step=int(state.step), directory=workdir)
                _preview(pipeline, shown, corpus).save(folder)
            except Exception as error:  # whatever it is, training does not need it
                if type(error) not in failed:
                    report(f"warning: no preview in {folder} ({type(error).__name__}: {error}); training goes on")
                failed.add(type(error))

        left_out = len(corpus.rejected)
        try:
            return _train(
                configuration.model(config, classes, normalization),
                method,
                lambda start: batches(
                    corpus, crop, t.batch, t.seed, start=start, memory=memory, further=further, evenness=evenness
                ),
                t,
                None,
                params,
                workdir,
                [Every(t.sample_every, preview)],
                {"config": to_dict(config), "corpus": sounds},
                report,
            )[1]
        finally:
            if len(corpus.rejected) > left_out:  # recordings went bad on the way
                _report_corpus(corpus, workdir, report)


def _describe(corpus: Corpus, further: Further) -> str:
    """The number of recordings and a few digits of a hash of their names, in whatever folder, and lengths."""
    corpora = [corpus, *further.drawn.values(), *further.paired.values()]
    names = [f"{r.path.relative_to(c.root)} {r.seconds:.3f}" for c in corpora for r in c.recordings]
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    return f"{len(names)} recordings ({digest[:8]})"


def _check_changes(config: Config, sounds: str, meta: Any, workdir: Path, accept: bool, report: Callable) -> None:
    """Report how a configuration and its sounds differ from what a run was trained with; raises ConfigError for what
    may not change, and for what may unless it is accepted."""
    if meta["config"] is None:
        raise ConfigError(f"--workdir {workdir}: was trained in Python with parts of its own; use another --workdir")
    there = dict(flatten(from_dict(meta["config"]))) | {"corpus": meta.get("corpus", sounds)}
    here = dict(flatten(config)) | {"corpus": sounds}
    changed = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    lines = {key: f"{key}: {there.get(key)} -> {here.get(key)}" for key in changed}
    fixed = [key for key in changed if not _MAY_CHANGE.fullmatch(key) and not _ON_PURPOSE.fullmatch(key)]
    if fixed:
        raise ConfigError(
            f"--workdir {workdir}: holds a run with {fixed[0]} = {there.get(fixed[0])}, this configuration says "
            f"{here.get(fixed[0])}; use another --workdir, or set it back to resume"
        )
    meant = [line for key, line in lines.items() if _ON_PURPOSE.fullmatch(key)]
    if meant and not accept:
        raise ConfigError(
            f"--workdir {workdir}: the run was trained with other settings ({'; '.join(meant)}); add --accept-changes "
            f"to go on with the new ones, or set them back"
        )
    for line in lines.values():
        report(line)
    if "train.steps" in lines:
        report(f"the cosine decay of the learning rate stretches with train.steps and now ends at {config.train.steps}")


def _begin_with(
    config: Config, init: str, classes: tuple[str, ...], report: Callable[[str], None]
) -> tuple[Params, Normalization | None]:
    """Weights and normalisation of the model `init`; raises ConfigError unless it makes the same kind of sound, and
    reports which options of its task and network differ. Classes that it does not know begin as none told."""
    there = load(init)
    where = f"train.init {init}: was trained"
    if there.config is None:
        raise ConfigError(
            f"{where} in Python with parts of its own; begin with such weights by jaxdiff.train(params=...)"
        )
    theirs, ours = to_dict(there.config), to_dict(config)
    for tree in (theirs, ours):
        tree["representation"].pop("vocoder", None)  # which no training hears
    differ = [name for name in ("task", "representation", "normalize", "network") if theirs[name] != ours[name]]
    other = {name: f"{where} with {name} {theirs[name]}, here it is {ours[name]}" for name in differ}
    for name in differ:
        if name in ("representation", "normalize") or theirs[name]["kind"] != ours[name]["kind"]:
            raise ConfigError(other[name])
    if there.sample_rate != config.data.sample_rate:
        raise ConfigError(f"{where} at {there.sample_rate} Hz, here are {config.data.sample_rate} Hz")
    if bool(there.classes) != bool(classes):
        had, has = (", ".join(names) or "none" for names in (there.classes, classes))
        raise ConfigError(f"{where} on classes {had}, here are {has}; give the corpus a folder for each class, or none")
    params = there.params
    if there.classes != classes:
        known = {name: row for row, name in enumerate(there.classes)}
        rows = np.array([known.get(name, len(known)) for name in classes] + [len(known)])
        params = jax.tree_util.tree_map_with_path(lambda path, x: x[rows] if _is_table(path) else x, params)
        new = [name for name in classes if name not in known]
        report(
            f"{init} was trained on other classes; new ones begin as none told: {', '.join(new) or 'there are none'}"
        )
    expected = configuration.model(config, classes, None).network.shapes()
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        if other:
            raise ConfigError(other.get("network") or other["task"])
        kinds = (tree["method"]["kind"] for tree in (theirs, ours))
        raise ConfigError(
            "train.init {}: method {} has other weights than method {}; jumps are learned by method shortcut "
            "(method.jumps)".format(init, *kinds)
        )
    before = dict(flatten(there.config))
    for key, value in flatten(config):
        if key.partition(".")[0] in other and before.get(key) != value:
            report(f"{init} was trained with {key} {before.get(key)}, here it is {value}")
    r = there.model.representation
    return params, r.normalization if isinstance(r, Normalized) else None


def _is_table(path: tuple[Any, ...]) -> bool:
    """Whether weights are those of a `LabelEmbedding`, a row for each class and a last one for none."""
    return [getattr(part, "key", None) for part in path[-2:]] == ["label", "table"]


def _report_corpus(corpus: Corpus, workdir: Path, report: Callable[[str], None]) -> None:
    minutes = corpus.seconds / 60
    report(f"{corpus.root}: {len(corpus.recordings)} recordings, {minutes:.1f} minutes, {len(corpus.classes)} classes")
    if corpus.rejected:
        write_report(workdir / "rejected.txt", corpus.rejected)
        report(f"{len(corpus.rejected)} files cannot be used, listed in {workdir / 'rejected.txt'}")


def _measure(config: Config, corpus: Corpus) -> Normalization | None:
    """Mean and scale of the features, as the task makes them, over the corpus's first crops."""
    if not config.normalize.enabled:
        return None
    size, representation = 16, config.representation
    raw = batches(corpus, configuration.crop(config), size, config.train.seed, evenness=config.data.evenness)
    count = max(1, config.normalize.crops // size)
    waves = (next(raw)["wave"] for _ in range(count))
    encode = lambda wave: representation.encode(config.task.leveled(wave))  # noqa: E731
    found = fit_normalization(encode, waves, evenness=config.normalize.evenness)
    if float(found.scale.max()) < 1e-6:
        raise AudioError(
            f"{corpus.root}: its crops all have the same features, as silence has; look for the sound in its recordings"
        )
    return found


def _preview(pipeline: Pipeline, config: Config, corpus: Corpus) -> Output:
    """A few sounds of the averaged weights: every class, or the first recordings of the corpus."""
    if not pipeline.model.task.needs_sound:
        return pipeline(count=max(PREVIEWS, min(2 * PREVIEWS, len(pipeline.classes))))
    pipeline.window_seconds = config.data.seconds
    crop, rng = configuration.crop(config)._replace(position="start", speed=0.0), np.random.default_rng(0)
    return pipeline([crop.read(r, rng)["wave"] for r in corpus.recordings[:PREVIEWS]], sr=pipeline.sample_rate)
