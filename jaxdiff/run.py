"""Training, from Python with one's own parts (`train`) or from a configuration (`run`), and its folder on disk.

WORKDIR/config.yaml      the resolved configuration      WORKDIR/log.jsonl     metrics, one line per interval
WORKDIR/checkpoints/N    Orbax, with a manifest           WORKDIR/samples/N     sounds and pictures on the way
WORKDIR/snapshots/N      averages for post-hoc EMA         WORKDIR/grids         times found for a checkpoint
WORKDIR/rejected.txt     files of the corpus that cannot be used, and why
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff import config as configuration
from jaxdiff.config import FORMAT, Config, ConfigError, to_dict, to_yaml
from jaxdiff.data import Corpus, batches, write_report
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
)
from jaxdiff.training import sharding as shardings

SNAPSHOTS = 32  # of the averages over a whole training, for post-hoc EMA
PREVIEWS = 4  # sounds, at least, of a preview

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
    with the state and the metrics. Raises TrainingError when the loss is not finite.
    """
    return _train(
        model,
        method,
        batches,
        make_optimizer(1e-3, steps) if optimizer is None else optimizer,
        steps=steps,
        key=jax.random.key(seed),
        params=params,
        workdir=None if workdir is None else Path(workdir),
        events=callbacks,
        ema_decay=ema_decay,
        log_every=log_every,
        save_every=save_every,
    )[0]


def _train(
    model: Model,
    method: Method,
    batches: Batches,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    key: jax.Array,
    params: Params | None,
    workdir: Path | None,
    events: Sequence[Every],
    ema_decay: float,
    log_every: int,
    save_every: int,
    posthoc_ema: bool = False,
    meta: dict[str, Any] | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[TrainState, int | None]:
    """The last state, and the signal that ended training early (or None)."""
    model.task.check(model.representation)
    method.check(model)
    mesh = shardings.data_mesh()

    def fresh(params: Params | None = params) -> TrainState:
        made = model.network.init(key) if params is None else params
        everything, opt_state, extra = method.init(model, made, optimizer, steps, key)
        weights = method.weights(everything)
        state = init_state(everything, weights, opt_state, key, extra=extra, posthoc_ema=posthoc_ema)
        return jax.tree.map(lambda x: jnp.array(x, x.dtype), state)  # own copies; a weak type would be compiled again

    normalization = model.representation.normalization if isinstance(model.representation, Normalized) else None
    directory = None if workdir is None else workdir / "checkpoints"
    found = None if directory is None else _newest(directory, report)
    if directory is None or found is None:
        state = jax.jit(fresh)() if params is None else fresh()
    else:
        if checkpoints.read_meta(directory, found).get("format") != FORMAT:
            raise checkpoints.CheckpointError(
                f"{workdir}: was trained by an older jaxdiff, whose training cannot go on; its sounds can be made, and "
                f"a new run can begin with its weights: --train.init {workdir}"
            )
        like = jax.eval_shape(fresh)
        state, _ = checkpoints.restore_state(directory, found, like, _shapes_of(normalization))
        report(f"resuming from step {found}")
    where = f"{jax.device_count()} x {jax.devices()[0].platform}"
    report(f"{count_params(state.average):,} parameters on {where}")
    if int(state.step) >= steps:
        report(f"already at step {int(state.step)} of {steps}")
        return state, None

    raw = iter(batches(int(state.step)) if callable(batches) else batches)
    first = next(raw)
    seconds = first["wave"].shape[-1] / model.representation.sample_rate
    meta = {"format": FORMAT, "config": None, "classes": list(model.task.classes), "seconds": seconds, **(meta or {})}

    def save(state: TrainState) -> None:
        if directory is not None:
            checkpoints.save(directory, state, normalization, meta)

    snapshot = Every(0, lambda state, metrics: None)
    if posthoc_ema and workdir is not None:
        folder = workdir / "snapshots"
        snapshot = Every(max(1, steps // SNAPSHOTS), lambda state, metrics: checkpoints.save_averages(folder, state))
    state, stopped = loop(
        make_train_step(method.make_step(model, optimizer, steps), method.weights, ema_decay=ema_decay),
        shardings.replicate(state, mesh),
        (shardings.split_batch(batch, mesh) for batch in _labeled(itertools.chain([first], raw))),
        save,
        steps=steps,
        seconds_per_step=seconds * len(first["wave"]) * jax.process_count(),
        log_path=None if workdir is None else _folder(workdir) / "log.jsonl",
        log_every=log_every,
        save_every=save_every if workdir is not None else 0,
        events=(snapshot, *events),
    )
    if snapshot.steps and int(state.step) == steps and steps % snapshot.steps:
        snapshot.call(state, {})
    return state, stopped


def _labeled(batches: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Batches whose items have no class where none is given."""
    for batch in batches:
        yield {"label": np.full(len(batch["wave"]), -1, np.int32), **batch}


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _shapes_of(normalization: Normalization | None) -> Normalization | None:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), normalization)


def _newest(directory: Path, report: Callable[[str], None]) -> int | None:
    """The newest usable step in a folder of checkpoints, None where nothing was saved."""
    try:
        step, problems = checkpoints.latest(directory)
    except checkpoints.CheckpointError as nothing:
        if any(directory.glob("*")):
            raise checkpoints.CheckpointError(f"{nothing}; move {directory} away to begin again") from None
        return None
    for problem in problems:
        report(f"warning: passed over {problem}")
    return step


# From a configuration -----------------------------------------------------------------------------------------------


def run(config: Config, workdir: Path, *, report: Callable[[str], None] = print) -> int | None:
    """Train up to `config.train.steps` in `workdir`, from its newest checkpoint if it has one.

    Returns the signal that ended training early, or None. Raises AudioError, ConfigError or CheckpointError before any
    step when something does not fit.
    """
    t, directory = config.train, workdir / "checkpoints"
    crop = configuration.crop(config)
    corpus, further = config.data.open()
    classes = configuration.model(config, corpus.classes, None).task.classes
    missing = set(config.task.inputs) - set(further.drawn) - set(further.paired)
    if missing:
        name = min(missing)
        raise ConfigError(f"data.drawn: the task needs {name}; add data.drawn.{name} or data.paired.{name}, a folder")
    if t.batch % jax.device_count():
        devices = jax.device_count()
        raise ConfigError(f"train.batch {t.batch} does not divide over {devices} devices; use a multiple of {devices}")
    workdir.mkdir(parents=True, exist_ok=True)
    with atomic(workdir / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")
    _report_corpus(corpus, workdir, report)

    step, params = _newest(directory, lambda text: None), None
    if step is not None:
        meta = checkpoints.read_meta(directory, step)
        if tuple(meta["classes"]) != classes:
            raise ConfigError(f"{config.data.path}: has classes {classes}, the run began with {tuple(meta['classes'])}")
        like = shapes(configuration.model(config, classes, None))
        normalization = checkpoints.restore_model(directory, step, like)["normalization"]
    elif t.init is None:
        normalization = _measure(config, corpus)
    else:
        params, normalization = _begin_with(config, t.init, classes)
    model = configuration.model(config, classes, normalization)

    def read(start: int) -> Iterator[Any]:
        share = (jax.process_index(), jax.process_count())
        memory = config.data.memory_mb * 2**20
        own = t.batch // share[1]
        return batches(corpus, crop, own, t.seed, start=start, process=share, memory=memory, further=further)

    def preview(state: TrainState, metrics: dict[str, float]) -> None:
        params = jax.tree.map(jnp.asarray, jax.device_get(state.average))
        pipeline = pipeline_of(config, classes, params, normalization, step=int(state.step), directory=workdir)
        _preview(pipeline, config, corpus).save(workdir / "samples" / str(int(state.step)))

    _, stopped = _train(
        model,
        config.method,
        read,
        make_optimizer(t.learning_rate, t.steps, warmup=t.warmup, weight_decay=t.weight_decay, b1=t.b1),
        steps=t.steps,
        key=jax.random.key(t.seed),
        params=params,
        workdir=workdir,
        events=[Every(t.sample_every, preview)],
        ema_decay=t.ema_decay,
        log_every=t.log_every,
        save_every=t.save_every,
        posthoc_ema=t.posthoc_ema,
        meta={"config": to_dict(config)},
        report=report,
    )
    return stopped


def _begin_with(config: Config, init: str, classes: tuple[str, ...]) -> tuple[Params, Normalization | None]:
    """Weights and normalisation of the model `init`; raises ConfigError unless it makes the same kind of sound."""
    there = load(init)
    where = f"train.init {init}: was trained"
    if there.config is None:
        raise ConfigError(
            f"{where} in Python with parts of its own; begin with such weights by jaxdiff.train(params=...)"
        )
    theirs, ours = to_dict(there.config), to_dict(config)
    for name in ("task", "representation", "normalize", "network"):
        if theirs[name] != ours[name]:
            raise ConfigError(f"{where} with {name} {theirs[name]}, here it is {ours[name]}")
    if (there.sample_rate, there.classes) != (config.data.sample_rate, classes):
        raise ConfigError(
            f"{where} at {there.sample_rate} Hz on classes {there.classes}, here are {config.data.sample_rate} Hz and "
            f"{classes}"
        )
    expected = configuration.model(config, classes, None).network.shapes()
    if jax.tree.map(jnp.shape, there.params) != jax.tree.map(jnp.shape, expected):
        kinds = (tree["method"]["kind"] for tree in (theirs, ours))
        raise ConfigError(
            "train.init {}: method {} has other weights than method {}; jumps are learned by method shortcut "
            "(method.jumps)".format(init, *kinds)
        )
    r = there.model.representation
    return there.params, r.normalization if isinstance(r, Normalized) else None


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
    raw = batches(corpus, configuration.crop(config), size, config.train.seed)
    count = max(1, config.normalize.crops // size)
    waves = (next(raw)["wave"] for _ in range(count))
    encode = lambda wave: representation.encode(config.task.leveled(wave))  # noqa: E731
    return fit_normalization(encode, waves, evenness=config.normalize.evenness)


def _preview(pipeline: Pipeline, config: Config, corpus: Corpus) -> Output:
    """A few sounds of the averaged weights: every class, or the first recordings of the corpus."""
    if not pipeline.model.task.needs_sound:
        return pipeline(count=max(PREVIEWS, min(2 * PREVIEWS, len(pipeline.classes))))
    pipeline.window_seconds = config.data.seconds
    crop, rng = configuration.crop(config)._replace(position="start", speed=0.0), np.random.default_rng(0)
    return pipeline([crop.read(r, rng)["wave"] for r in corpus.recordings[:PREVIEWS]], sr=pipeline.sample_rate)
