"""Training, from Python with one's own parts (`train`) or from a configuration (`run`), by one process or several.

Several processes (`jax.distributed`) run the same program. Each is given, or reads, its rows of the same batches; what
becomes of the folder on disk is in `workdir.py`.
"""

import contextlib
import functools
import itertools
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from jaxdiff import config as configuration
from jaxdiff import ranges
from jaxdiff.config import FORMAT, Config, ConfigError, to_dict, to_yaml
from jaxdiff.data import AudioError, Corpus, Further, Recording, batches, heard, open_corpus
from jaxdiff.data.cloud import url_of
from jaxdiff.data.files import atomic
from jaxdiff.features import Augmentation, Normalization, Normalized, fit_normalization
from jaxdiff.inference import Output, Pipeline
from jaxdiff.inference.begin import begin_with
from jaxdiff.inference.load import pipeline_of, shapes
from jaxdiff.methods import Method, Model
from jaxdiff.networks import Params, count_params, in_parts
from jaxdiff.training import (
    Every,
    TrainState,
    Update,
    checkpoints,
    history,
    init_state,
    loop,
    make_train_step,
    make_validate,
    tensorboard,
    transfer,
)
from jaxdiff.training import sharding as shardings
from jaxdiff.workdir import Keeper, Report, agreed, alone, check_changes, check_empty, describe, listing, newest

PREVIEWS = 4  # sounds, at least, of a preview
VALIDATION = 32  # batches, at most, of sounds that are not trained on
LOSS = "validation"  # in the log: the loss of these
SHOWN = 8  # names of recordings that a message gives

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
    augmentation: Augmentation | None = None,
    validation: Sequence[Mapping[str, Any]] | None = None,
    workdir: str | Path | None = None,
    callbacks: Sequence[Every] = (),
    ema_decay: float = 0.999,
    accumulate: int = 1,
    fsdp: int = 1,
    log_every: int = 20,
    save_every: int = 1000,
    keep: int = 2,
    best: str | None = None,
    patience: int = 0,
    validate_every: int = 1000,
    tensorboard: bool = False,
) -> TrainState:
    """Train a model; `Pipeline(model, method, state.average)` then makes sound with it.

    `batches` yields dicts of numpy arrays: "wave" [batch, samples] float32 at the representation's rate, "label"
    [batch] int32 where the task has classes, and the task's `inputs`. Given as a function of the step it begins at, a
    training that resumes sees the batches that it would have seen. `optimizer` None is AdamW at 1e-3 with cosine decay;
    `params` None are fresh ones of `seed`. `augmentation` changes each "wave" inside the training step. The loss of
    `validation`, batches that are not trained on, is logged under that name. With `workdir` the state is saved there
    every `save_every` steps and at the end, the last `keep` and the `best` by a metric stay, and a training that was
    interrupted goes on from the last save; it ends where `patience` saves in a row were not the best. Each of
    `callbacks` is called at its interval with the state and the metrics. The other options are those of the
    configuration's `train`.

    In several processes, once `jax.distributed` is initialised, each calls this with the same arguments and the same
    batches, of which it takes its rows, and each calls the callbacks. Raises TrainingError when the loss or the weights
    are not finite, CheckpointError when the last save fails, and ConfigError when another process trains in `workdir`.
    """
    settings = configuration.Train(steps, warmup=500, seed=seed, ema_decay=ema_decay)
    settings = replace(settings, log_every=log_every, save_every=save_every, accumulate=accumulate, fsdp=fsdp)
    settings = replace(settings, keep=keep, best=best, patience=patience, validate_every=validate_every)
    settings = replace(settings, tensorboard=tensorboard)
    ranges.check_fields(settings)
    folder = None if workdir is None else Path(workdir)
    _check_devices(settings, 0)
    with alone(folder) as folder:
        found = None if folder is None else agreed(lambda: newest(folder / "checkpoints"))
        changes = None if augmentation is None else (augmentation, ("wave",))
        own, held_out = _own_rows(batches, fsdp), None
        if validation is not None:
            held_out = functools.partial(_own_rows(validation, fsdp), 0)
        with _board(settings, folder, found) as board:
            parts = (optimizer, params, folder, found, held_out, callbacks, board, changes)
            return _train(model, method, own, settings, *parts)[0]


def _train(
    model: Model,
    method: Method,
    batches: Batches,
    t: configuration.Train,
    optimizer: optax.GradientTransformation | None,
    params: Params | None,
    workdir: Path | None,
    found: int | None,
    held_out: Callable[[], Iterable[Mapping[str, Any]]] | None,
    events: Sequence[Every],
    board: tensorboard.Board | None,
    changes: tuple[Augmentation, Sequence[str]] | None = None,
    about: Mapping[str, Any] | None = None,
    report: Report = lambda text: None,
    heard: Callable[[Sequence[int]], str] = lambda steps: "",
) -> tuple[TrainState, int | None]:
    """The last state, and the signal that ended training early (or None).

    Training goes on from step `found`, if any. `batches` are this process's rows, as are those that are `held_out` for
    validation; `changes` is a random change of crops and of which sounds; `about` joins what a checkpoint says of
    itself; `heard` names the recordings of steps.
    """
    model.task.check(model.representation)
    method.check(model)
    mesh, key, steps, rate = shardings.data_mesh(t.fsdp), jax.random.key(t.seed), t.steps, None
    if optimizer is None:
        rate, optimizer = jax.jit(configuration.learning_rate(t)), configuration.optimizer(t)

    def fresh(params: Params | None) -> TrainState:
        made = model.network.init(key) if params is None else params
        everything, opt_state, extra = method.init(model, made, optimizer, steps, key)
        weights = method.weights(everything)
        state = init_state(everything, weights, opt_state, key, extra=extra, posthoc_ema=t.posthoc_ema)
        return jax.tree.map(lambda x: jnp.array(x, x.dtype), state)  # own copies; a weak type would be compiled again

    shapes = jax.eval_shape(fresh, params)
    places = shardings.shardings(shapes, mesh)
    normalization = model.representation.normalization if isinstance(model.representation, Normalized) else None
    normalization = shardings.replicate(normalization, mesh)
    if workdir is None or found is None:
        state = jax.jit(fresh, out_shardings=places)(jax.device_get(params))  # from the host to any device
    else:
        like = shardings.placed(shapes, places)
        state, _ = checkpoints.restore_state(workdir / "checkpoints", found, like, normalization)
        report(f"resuming from step {found}")
    count, begin = jax.process_count(), int(state.step)
    where = f"{jax.device_count()} x {jax.devices()[0].platform}" + (f" in {count} processes" if count > 1 else "")
    report(f"{count_params(state.average):,} parameters on {where}")
    trained = transfer.trained_numbers(state.opt_state, method.weights(state.params))
    if trained is not None:
        report(f"{trained:,} numbers are trained, the other parameters stay as they are")
    model = model._replace(network=in_parts(transfer.stopped(model.network, state.opt_state), t.accumulate))
    with Keeper(workdir, t, begin, normalization, report) as keeper:
        if begin:
            keeper.snapshot(state)  # training may have ended between the checkpoint of this step and its snapshot
        if begin >= steps:
            report(f"already at step {begin} of {steps}")
            return state, None
        first, raw = _ahead(iter(batches(begin) if callable(batches) else batches))
        size, seconds = len(first["wave"]) * count, first["wave"].shape[-1] / model.representation.sample_rate
        _check_devices(t, size)
        keeper.check_room(state)
        meta = {"format": FORMAT, "classes": list(model.task.classes), "seconds": seconds}
        meta |= about or {"config": None}
        facts: dict[str, Any] = dict(steps=steps, seed=t.seed, batch=size, seconds=seconds)
        facts |= dict(parameters=count_params(state.average), trained=trained)
        facts |= dict(task=model.task, representation=model.representation.inner, method=method)
        facts |= {name: type(facts[name]).__name__ for name in ("task", "representation", "method")}
        update = method.make_step(model, optimizer, steps)
        update = _augmented(update, *changes) if changes else update
        step = make_train_step(update, method.weights, ema_decay=t.ema_decay, shardings=places)
        data = (shardings.split_batch(batch, mesh) for batch in _labeled(raw))
        events = [Every(keeper.every, keeper.snapshot), *events]
        if held_out is not None:
            measure = _validation(method, model, optimizer, steps, held_out, mesh)
            events.append(Every(t.validate_every, measure, (LOSS,)))
        if t.best is not None:
            first, data = _ahead(data)
            numbers = [name for name, of in jax.eval_shape(step, state, first)[1].items() if not of.shape]
            keeper.check_best([*numbers, *(name for event in events for name in event.measures)])
        here = workdir if jax.process_index() == 0 else None
        started = history.start(begin, **facts)
        with history.recorded(None if here is None else here / "history.jsonl", started) as end:
            state, stopped = loop(
                step,
                state,
                data,
                lambda state: keeper.save(state, meta),
                steps=steps,
                seconds_per_step=seconds * size,
                learning_rate=rate,
                weights=method.weights,
                log_path=None if here is None else here / "log.jsonl",
                also=(lambda row: None) if board is None else board.row,
                log_every=t.log_every,
                save_every=t.save_every if workdir is not None else 0,
                events=events,
                skips=t.skips,
                heard=heard,
                enough=keeper.judge,
            )
            end |= {"step": int(state.step), "how": _how(stopped)}
        return state, stopped


def _how(stopped: int | None) -> str:
    """How a training ended that no error did: by itself, or by a signal."""
    return "finished" if stopped is None else f"interrupted by {signal.Signals(stopped).name}"


@contextlib.contextmanager
def _board(t: configuration.Train, workdir: Path | None, found: int | None) -> Iterator[tensorboard.Board | None]:
    """What writes for TensorBoard in the first process, where that is asked for and a folder is there."""
    if not t.tensorboard or workdir is None or jax.process_index() > 0:
        yield None
        return
    with tensorboard.Board(workdir / "tensorboard", found or 0) as board:
        yield board


def _validation(
    method: Method,
    model: Model,
    optimizer: optax.GradientTransformation,
    steps: int,
    batches: Callable[[], Iterable[Mapping[str, Any]]],
    mesh: Any,
) -> Callable[[TrainState, Any], dict[str, float]]:
    """The mean loss of some batches, without dropout."""
    apply = model.network.apply
    still = model.network._replace(apply=lambda *inputs, key=None, **options: apply(*inputs, **options))
    loss = make_validate(method.judge().make_step(model._replace(network=still), optimizer, steps))

    def measure(state: TrainState, _metrics: Any) -> dict[str, float]:
        rows = enumerate(shardings.split_batch(batch, mesh) for batch in _labeled(iter(batches())))
        return {LOSS: float(np.mean(jax.device_get([loss(state, batch, number) for number, batch in rows])))}

    return measure


def _ahead(batches: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
    """The first of the batches, and all of them."""
    first = next(batches)
    return first, itertools.chain([first], batches)


def _check_devices(t: configuration.Train, batch: int) -> None:
    """Raise ConfigError where a batch of so many items, or a copy of the state, does not divide over the devices."""
    devices = jax.device_count()
    if devices % t.fsdp:
        raise ConfigError(f"train.fsdp {t.fsdp} does not divide {devices} devices; use a divisor of that")
    if batch % (devices * t.accumulate):
        parts = f" in {t.accumulate} parts (train.accumulate)" if t.accumulate > 1 else ""
        raise ConfigError(
            f"train.batch {batch} does not divide over {devices} devices{parts}; use a multiple of "
            f"{devices * t.accumulate}"
        )


def _own_rows(batches: Batches, fsdp: int) -> Callable[[int], Iterator[dict[str, Any]]]:
    """The rows of this process of whole batches."""

    def own(start: int) -> Iterator[dict[str, Any]]:
        index, count = shardings.share(shardings.data_mesh(fsdp))
        for batch in batches(start) if callable(batches) else batches:
            size = len(batch["wave"])
            yield {name: x[size * index // count : size * (index + 1) // count] for name, x in batch.items()}

    return own


def _augmented(update: Update, augmentation: Augmentation, names: Sequence[str]) -> Update:
    """The update on crops that are changed at random first: the sounds of `names`, each item of them alike.

    The channels of a sound share one draw too.
    """
    change = lambda y, key: augmentation(y, key) if y.ndim == 2 else jax.vmap(augmentation, (1, None), 1)(y, key)  # noqa: E731

    def changed(state: TrainState, batch: Mapping[str, Any], key: jax.Array) -> Any:
        own, key = jax.random.split(key)
        return update(state, {**batch, **{name: change(batch[name], own) for name in names}}, key)

    return changed


def _labeled(batches: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Batches whose items have no class where none is given."""
    for batch in batches:
        yield {"label": np.full(len(batch["wave"]), -1, np.int32), **batch}


# From a configuration -----------------------------------------------------------------------------------------------


def run(config: Config, workdir: Path, *, accept_changes: bool = False, report: Report = print) -> int | None:
    """Train up to `config.train.steps` in `workdir`, from its newest checkpoint if it has one.

    Returns the signal that ended training early, or None. Raises AudioError, ConfigError or CheckpointError before any
    step when something does not fit. A run goes on with another learning rate, batch or corpus than it was trained with
    only where `accept_changes` says that this is meant. In several processes, once `jax.distributed` is initialised,
    each calls this with the same arguments and reads its rows of the batches; the first one reports.
    """
    report = report if jax.process_index() == 0 else lambda text: None
    t, method = config.train, config.method
    crop = configuration.crop(config)
    if "sampler" in method.knobs:
        try:
            method.sampler(config.sampling)
        except ValueError as error:
            raise ConfigError(f"sampling.{error}") from None
    _check_devices(t, t.batch)
    if t.tensorboard:
        tensorboard.check()
    agreed(lambda: check_empty(workdir))
    with alone(workdir) as place:
        if place is not None and place != workdir:
            report(f"{url_of(workdir)} is trained in {place}, which is copied there every minute")
            workdir = place
        directory = workdir / "checkpoints"
        corpus, further = config.data.open()
        classes = configuration.model(config, corpus.classes, None).task.classes
        _check_inputs(config, further)
        step, params, sounds = agreed(lambda: newest(directory)), None, describe(corpus, further)
        if step is not None:
            meta = checkpoints.read_meta(directory, step)
            if tuple(meta["classes"]) != classes:
                raise ConfigError(f"{corpus.root}: has classes {classes}, the run began with {tuple(meta['classes'])}")
            check_changes(config, sounds, classes, meta, workdir, accept_changes, report)
        if jax.process_index() == 0:
            with atomic(workdir / "config.yaml") as temporary:
                temporary.write_text(to_yaml(config), encoding="utf-8")
        _report_corpus(corpus, report)
        list_rejected = listing(corpus, further, workdir, report)
        list_rejected()
        if step is not None:
            like = shapes(configuration.model(config, classes, None))
            normalization = checkpoints.restore_model(directory, step, like)["normalization"]
        else:
            params, normalization = (None, None) if t.init is None else begin_with(config, classes, report)
            normalization = _measure(config, corpus) if normalization is None else normalization
        normalization = multihost_utils.broadcast_one_to_all(normalization)  # one program in all processes, to the bit
        augmentation = configuration.augmentation(config)
        share, memory = shardings.share(shardings.data_mesh(t.fsdp)), config.data.memory_mb * 2**20
        read = functools.partial(batches, crop=crop, batch=t.batch, process=share, memory=memory, further=further)
        evenness = config.data.evenness
        with contextlib.ExitStack() as stack:
            stack.callback(list_rejected)
            board = stack.enter_context(_board(t, workdir, step))
            preview = _previews(config, corpus, classes, normalization, workdir, board)
            return _train(
                configuration.model(config, classes, normalization),
                method,
                lambda start: _between(
                    read(corpus, seed=t.seed, start=start, evenness=evenness), t.log_every or 1, list_rejected
                ),
                t,
                None,
                params,
                workdir,
                step,
                _held_out(t.validation, corpus, t.batch, read),
                [Every(t.sample_every, preview)],
                board,
                None if augmentation is None else (augmentation, ("wave", *further.paired)),
                {"config": to_dict(config), "corpus": sounds},
                report,
                functools.partial(_heard, corpus, t.batch, t.seed, evenness),
            )[1]


def _check_inputs(config: Config, further: Further) -> None:
    """Raise ConfigError where the task hears sounds that the data lack."""
    missing = set(config.task.inputs) - further.names
    if missing:
        name = min(missing)
        own = {"notes": "data.notes, a folder of MIDI files", "reference": "data.reference yes"}
        add = own.get(name, f"data.drawn.{name} or data.paired.{name}, a folder")
        raise ConfigError(f"data: the task needs {name}; add {add}")


def _report_corpus(corpus: Corpus, report: Report) -> None:
    minutes = corpus.seconds / 60
    apart = "" if corpus.held_out is None else f"; {len(corpus.held_out.recordings)} more are held out"
    counted = f"{len(corpus.recordings)} recordings, {minutes:.1f} minutes, {len(corpus.classes)} classes"
    report(f"{corpus.root}: {counted}{apart}")


def _heard(corpus: Corpus, batch: int, seed: int, evenness: float, steps: Sequence[int]) -> str:
    """The names of the recordings of some steps, the first ones of many."""
    names = dict.fromkeys(r.name for step in steps for r in heard(corpus, batch, seed, step, evenness=evenness))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join([*names][:SHOWN]) + more


def _between(batches: Iterator[Any], every: int, call: Callable[[], None]) -> Iterator[Any]:
    """The batches, and a call after every so many."""
    for count, batch in enumerate(batches, 1):
        yield batch
        if count % every == 0:
            call()


def _held_out(
    path: str | None, corpus: Corpus, batch: int, read: Callable[..., Iterator[Any]]
) -> Callable[[], Iterator[Any]] | None:
    """Batches of sounds that are not trained on, the same at every call: of a folder, or those held out, if any."""
    if path is not None and corpus.held_out is not None:
        raise ConfigError(f"train.validation {path} and data.held_out both name sounds for validation; set one of them")
    others = corpus.held_out if path is None else _others(path, corpus)
    if others is None:
        return None
    count = min(VALIDATION, -(-len(others.recordings) // batch))
    return lambda: itertools.islice(read(others, seed=0), count)


def _others(path: str, corpus: Corpus) -> Corpus:
    """The sounds of a folder for validation; raises ConfigError where some are trained on."""
    others = open_corpus(path)
    if others.classes != corpus.classes:
        there, here = (", ".join(c.classes) or "none" for c in (others, corpus))
        raise ConfigError(f"train.validation {path}: has the classes {there}, data.path has {here}; give the same")
    trained, held = ({_place(r): r.name for r in c.recordings} for c in (corpus, others))
    both = [name for place, name in held.items() if place in trained]
    if both:
        named = ", ".join(both[:SHOWN]) + f" and {len(both) - SHOWN} more" * (len(both) > SHOWN)
        raise ConfigError(
            f"train.validation {path}: {len(both)} of its {len(held)} recordings are trained on ({named}); give sounds "
            f"that data.path does not hold"
        )
    return others


def _place(recording: Recording) -> tuple[str, float]:
    """Where a recording lies: its file and the second at which it begins there."""
    path = recording.path
    return (os.path.abspath(path) if isinstance(path, Path) else str(path)), recording.offset


def _measure(config: Config, corpus: Corpus) -> Normalization | None:
    """Mean and scale of the features, as the task makes them, over the corpus's first crops."""
    if not config.normalize.enabled:
        return None
    size, representation = 16, configuration.representation(config)
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


def _previews(
    config: Config,
    corpus: Corpus,
    classes: tuple[str, ...],
    normalization: Normalization | None,
    workdir: Path,
    board: tensorboard.Board | None,
) -> Callable[[TrainState, Any], None]:
    """Makes a few sounds in WORKDIR/samples, for TensorBoard too; whatever goes wrong is warned of once."""
    failed: set[type] = set()
    if config.train.sample_every and config.sampling.spacing == "searched":
        warnings.warn("previews use sampling.spacing uniform, as times are searched for one checkpoint", stacklevel=2)
        config = replace(config, sampling=replace(config.sampling, spacing="uniform"))

    def preview(state: TrainState, _metrics: Any) -> None:
        step, folder = int(state.step), workdir / "samples" / str(int(state.step))
        params = multihost_utils.process_allgather(state.average, tiled=True)  # from all devices of all processes
        if jax.process_index() > 0:
            return
        try:
            params = jax.tree.map(jnp.asarray, params)
            pipeline = pipeline_of(config, classes, params, normalization, step=step, directory=workdir)
            _preview(pipeline, config, corpus).save(folder)
            if board is not None:
                board.sounds(step, folder)
        except Exception as error:  # whatever it is, training does not need it
            if type(error) not in failed:
                what = f"no preview in {folder} ({type(error).__name__}: {error}); training goes on"
                warnings.warn(what, stacklevel=2)
            failed.add(type(error))

    return preview


def _preview(pipeline: Pipeline, config: Config, corpus: Corpus) -> Output:
    """A few sounds of the averaged weights: every class, or the first recordings of the corpus."""
    if not pipeline.model.task.needs_sound:
        return pipeline(count=max(PREVIEWS, min(2 * PREVIEWS, len(pipeline.classes))))
    pipeline.window_seconds = config.data.seconds
    crop, rng = configuration.crop(config)._replace(position="start", speed=0.0), np.random.default_rng(0)
    waves = []
    for recording in corpus.recordings:
        with contextlib.suppress(AudioError):  # which training leaves out too
            waves.append(crop.read(recording, rng)["wave"])
        if len(waves) == PREVIEWS:
            break
    return pipeline(waves, sr=pipeline.sample_rate)
