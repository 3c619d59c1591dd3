"""A run on disk: build everything a configuration names, train in a work directory, resume what is there.

WORKDIR/config.yaml      the resolved configuration      WORKDIR/log.jsonl     metrics, one line per interval
WORKDIR/checkpoints/N    Orbax, with a manifest           WORKDIR/samples/N     sounds and pictures on the way
WORKDIR/snapshots/N      averages for post-hoc EMA         WORKDIR/grids         time grids found for a checkpoint
WORKDIR/rejected.txt     files of the corpus that cannot be used, and why
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import build, methods
from . import config as configuration
from .config import Config, ConfigError, to_dict, to_yaml
from .data import Corpus, batches, open_corpus, write_report
from .data.files import atomic
from .data.pictures import write_sounds
from .features import Normalization, fit_normalization
from .networks import count_params
from .pipeline import Pipeline, abstract_normalization, abstract_params, build_model, init_params, load
from .training import Hooks, TrainState, checkpoints, sharding, train

SNAPSHOTS = 32  # of the averages over a whole training, for post-hoc EMA


def run(config: Config, workdir: Path, *, report: Callable[[str], None] = print) -> int | None:
    """Train up to `config.train.steps` in `workdir`, from its newest checkpoint if it has one.

    Returns the signal that ended training early, or None. Raises AudioError, ConfigError or CheckpointError before any
    step when something does not fit.
    """
    corpus = open_corpus(config.data.path, config.data.labels)
    classes = corpus.classes if isinstance(config.task, configuration.Generation) else ()
    devices = jax.device_count()
    if config.train.batch % devices:
        raise ConfigError(
            f"train.batch {config.train.batch} does not divide over {devices} devices; use a multiple of {devices}"
        )
    crop = build.crop(config)
    workdir.mkdir(parents=True, exist_ok=True)
    with atomic(workdir / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")
    _report_corpus(corpus, workdir, report)

    directory, mesh = workdir / "checkpoints", sharding.data_mesh()
    features = build_model(config, len(classes), None).features
    key = jax.random.key(config.train.seed)

    def fresh() -> TrainState:
        return methods.init_state(config, init_params(config, features, len(classes), key), key)

    try:
        step, problems = checkpoints.latest(directory)
    except checkpoints.CheckpointError as nothing:
        if any(directory.glob("*")):
            raise checkpoints.CheckpointError(f"{nothing}; move {directory} away to begin again") from None
        if config.train.init is None:
            normalization, state = _measure(config, corpus), jax.jit(fresh)()
        else:
            params, normalization = _begin_with(config, features, classes)
            state = methods.init_state(config, params, key)
    else:
        for problem in problems:
            report(f"warning: passed over {problem}")
        meta = checkpoints.read_meta(directory, step)
        if tuple(meta["classes"]) != classes:
            raise ConfigError(f"{config.data.path}: has classes {classes}, the run began with {tuple(meta['classes'])}")
        like = jax.eval_shape(fresh)
        state, normalization = checkpoints.restore_state(
            directory, step, like, abstract_normalization(config, features)
        )
        report(f"resuming from step {step}")
    where = f"{devices} x {jax.devices()[0].platform}"
    report(f"{config.network.kind}: {count_params(state.ema_params):,} parameters on {where}")
    if int(state.step) >= config.train.steps:
        report(f"already at step {int(state.step)} of {config.train.steps}")
        return None

    model = build_model(config, len(classes), normalization)
    train_step = methods.train_step(config, model)
    meta = {"config": to_dict(config), "classes": list(classes), "features": features}
    hooks = Hooks(
        save=lambda state: checkpoints.save(directory, state, normalization, meta),
        sample=lambda state: _sample(config, classes, state, normalization, workdir / "samples" / str(int(state.step))),
        snapshot=lambda state: checkpoints.save_averages(workdir / "snapshots", state),
    )
    share = (jax.process_index(), jax.process_count())
    options = dict(start=int(state.step), process=share, memory=config.data.memory_mb * 2**20)
    raw = batches(corpus, crop, config.train.batch // share[1], config.train.seed, **options)
    _, stopped = train(
        train_step,
        sharding.replicate(state, mesh),
        (sharding.split_batch(batch, mesh) for batch in raw),
        hooks,
        steps=config.train.steps,
        seconds_per_step=config.train.batch * config.data.seconds,
        log_path=workdir / "log.jsonl",
        log_every=config.train.log_every,
        sample_every=config.train.sample_every,
        save_every=config.train.save_every,
        snapshot_every=max(1, config.train.steps // SNAPSHOTS) if config.train.posthoc_ema else 0,
    )
    return stopped


def _begin_with(config: Config, features: int, classes: tuple[str, ...]) -> tuple[Any, Normalization | None]:
    """Weights and normalisation of the run `train.init`; raises ConfigError unless it makes sound of the same kind."""
    there = load(config.train.init)
    for name in ("task", "representation", "normalize", "network"):
        theirs, ours = getattr(there.config, name), getattr(config, name)
        if theirs != ours:
            raise ConfigError(f"train.init {config.train.init}: was trained with {name} {theirs}, here it is {ours}")
    if (there.sample_rate, there.classes) != (config.data.sample_rate, classes):
        raise ConfigError(
            f"train.init {config.train.init}: was trained at {there.sample_rate} Hz on classes {there.classes}, here "
            f"are {config.data.sample_rate} Hz and {classes}"
        )
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(config, features, len(classes)))
    if jax.tree.map(lambda leaf: leaf.shape, there.params) != shapes:
        raise ConfigError(
            f"train.init {config.train.init}: method {there.config.method.kind} has other weights than method "
            f"{config.method.kind}; jumps are learned by method shortcut (method.jumps)"
        )
    return there.params, there.normalization


def _report_corpus(corpus: Corpus, workdir: Path, report: Callable[[str], None]) -> None:
    minutes = corpus.seconds / 60
    report(f"{corpus.root}: {len(corpus.recordings)} recordings, {minutes:.1f} minutes, {len(corpus.classes)} classes")
    if corpus.rejected:
        write_report(workdir / "rejected.txt", corpus.rejected)
        report(f"{len(corpus.rejected)} files cannot be used, listed in {workdir / 'rejected.txt'}")


def _measure(config: Config, corpus: Corpus) -> Normalization | None:
    """Mean and scale of the features over the corpus's first crops."""
    if not config.normalize.enabled:
        return None
    encode, size = build.representation(config).encode, 16
    raw = batches(corpus, build.crop(config), size, config.train.seed)
    count = max(1, config.normalize.crops // size)
    waves = (next(raw)["wave"] for _ in range(count))
    return fit_normalization(encode, waves, evenness=config.normalize.evenness)


def _sample(
    config: Config, classes: tuple[str, ...], state: TrainState, normalization: Normalization | None, folder: Path
) -> None:
    """A few sounds of the averaged weights, with pictures."""
    params = jax.tree.map(jnp.asarray, jax.device_get(state.ema_params))
    pipeline = Pipeline(config, classes, params, normalization, step=int(state.step), fingerprint="")
    count = max(4, min(8, len(classes)))
    waves = pipeline.generate(count=count)
    names = [f"{i:04d}" + (f"-{classes[i % len(classes)]}" if classes else "") for i in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    write_sounds(folder, np.asarray(waves), names, pipeline.sample_rate)
