"""From a trained model to sounds: `pipeline(...)` generates, or works on the sounds that it is given.

One program goes from what is known and noise through the sampler to decoded sound; it is compiled once for windows of
one length, and sounds of any length, rate and number of channels are made of those (`chunks.py`). Item i draws from
`fold_in(key(seed), i)` alone, so that it is the same sound in any batch. Where this process has several devices, the
items of a batch are split over them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxdiff.config import Config, ConfigError
from jaxdiff.diffusion import noise, spaced_times
from jaxdiff.methods import Autoregression, Method, Model, Sampling
from jaxdiff.methods.method import SpacingName
from jaxdiff.networks import Params, Summary, summarize
from jaxdiff.tasks import Batch, Known, Vocode

from . import chunks, sounds
from .mels import Mel, MelScale, read_mel
from .outputs import Output
from .sounds import Sound
from .streaming import SoundStream, sound_stream
from .times import read_times

MAX_BATCH = 16
MAX_SECONDS = 4 * 3600.0
WINDOW_SECONDS = 12.8
OVERLAP_SECONDS = 2.56  # of two windows of a sound that is worked on, and at least ...
OVERLAP_FRAMES = 128  # ... that many frames: Griffin-Lim is heard over 28 and a network of eight layers over 24


class _Asked(NamedTuple):
    """What a call asks for, with what it leaves open filled in."""

    request: Any
    sampling: Sampling
    times: tuple[float, ...]


class Pipeline:
    """A trained model, ready for use.

    Attributes: `model`, `method`, `params` (averaged weights), `sampling` (how sounds are made when a call does not
    say), `seconds` (of a training crop), `window_seconds` (of the windows in which a sound is worked on: a shorter one
    costs as much), `classes`, `sample_rate` (Hz); for a run also `config`, `step` (training steps of the checkpoint),
    `fingerprint` (sha256 that names its bytes), `directory`, `warnings` (newer checkpoints passed over as damaged).
    """

    def __init__(
        self,
        model: Model,
        method: Method,
        params: Params,
        *,
        seconds: float = 1.0,
        window_seconds: float = WINDOW_SECONDS,
        sampling: Sampling = Sampling(),
        config: Config | None = None,
        step: int = 0,
        fingerprint: str = "",
        directory: Path | None = None,
        warnings: tuple[str, ...] = (),
    ):
        self.model, self.method, self.params, self.sampling, self.seconds = model, method, params, sampling, seconds
        self.window_seconds, self.config, self.step, self.fingerprint = window_seconds, config, step, fingerprint
        self.directory, self.warnings = directory, warnings
        self.classes, self.sample_rate = model.task.classes, model.representation.sample_rate
        self._program = functools.lru_cache(maxsize=16)(self._compile)
        devices, axis_types = jax.local_devices(), (jax.sharding.AxisType.Auto,)
        self._devices = jax.make_mesh((len(devices),), ("items",), axis_types=axis_types, devices=devices)
        self._spread_params: Params = None
        self._stream = functools.lru_cache(maxsize=4)(lambda request: sound_stream(self, request))

    def __repr__(self) -> str:
        names = [type(part).__name__ for part in (self.model.task, self.method, self.model.representation.inner)]
        classes = f", classes {', '.join(self.classes)}" if self.classes else ""
        return f"<Pipeline {', '.join(names)} at {self.sample_rate} Hz, step {self.step}{classes}>"

    def using(self, model: Model, method: Method) -> "Pipeline":
        """The same weights and settings with another task or method around them."""
        names = ("seconds", "window_seconds", "sampling", "config", "step", "fingerprint", "directory", "warnings")
        return Pipeline(model, method, self.params, **{name: getattr(self, name) for name in names})

    # What is asked for ----------------------------------------------------------------------------------------------

    def __call__(
        self,
        sound: Sound | Sequence[Sound] | None = None,
        *,
        sr: float | None = None,
        count: int | None = None,
        seconds: float | None = None,
        labels: str | int | Sequence[str | int | None] | None = None,
        seed: int = 0,
        request: Any = None,
        also: sounds.Also | None = None,
        **knobs: Any,
    ) -> Output:
        """Sounds of a model that generates, or of a task that begins with a sound.

        `sound` is an array [samples] or [channels, samples] at `sr` Hz, a path, or a list of them; the output has its
        length, rate and channels. Without it `count` sounds (1) of `seconds` (the training crop's) are made; `labels`
        names the class of all or of each in turn, and None takes the classes in turn. `request` are options of the
        task, `also` gives for each window, by its start and length in samples at the model's rate, what a task wants to
        know beside the sound, and `knobs` are those fields of `Sampling` that the method has a use for, or `times`, an
        array that falls from 1 to 0. Raises ConfigError for what cannot be met and AudioError for a file that cannot be
        used.
        """
        asked, facts = self._asked(sound is not None, seed, request, knobs)
        if sound is None:
            count, seconds = 1 if count is None else count, self.seconds if seconds is None else seconds
            return self._generate(count, seconds, labels, seed, asked, facts)
        several = [sound] if isinstance(sound, np.ndarray | Array | str | Path) else sound
        made, rates, about = [], [], []
        for i, one in enumerate(several):
            source = sounds.read(one, sr, self.sample_rate)
            whole = np.concatenate([piece for _, piece in self._process(source, seed, i, asked, also=also)], axis=-1)
            made.append(whole if len(source.shape) == 2 else whole[0])
            rates.append(source.rate)
            about.append({**facts, "item": i, "source": str(one) if isinstance(one, str | Path) else None})
        return Output(made, rates, about)

    def in_pieces(
        self,
        file: str | Path,
        *,
        seed: int = 0,
        request: Any = None,
        also: sounds.Also | None = None,
        streaming: bool = False,
        **knobs: Any,
    ) -> tuple[dict[str, Any], Iterator[tuple[np.ndarray, np.ndarray]]]:
        """What a sidecar says, and a sound file with what `self(file)`, or with `streaming` what `self.stream()` makes
        of it, both [channels, samples], piece by piece: memory does not grow with the length of the file, which is read
        twice."""
        asked, facts = self._asked(True, seed, request, knobs)
        stream = self.stream(request) if streaming else None
        facts |= {} if stream is None else {"streaming": True, "latency_seconds": stream.latency_seconds}
        pieces = self._process(sounds.read(file, None, self.sample_rate), seed, 0, asked, stream, also)
        return {**facts, "item": 0, "source": str(file)}, pieces

    def features(
        self, sound: Sound, *, sr: float | None = None, seed: int = 0, request: Any = None, **knobs: Any
    ) -> Iterator[np.ndarray]:
        """The features that the model makes of a sound, channels mixed, before they become sound again: pieces
        [frames, channels] of `1 + samples // hop_length` frames at the model's rate.

        Raises as a call does.
        """
        asked, _ = self._asked(True, seed, request, knobs)
        take, length = sounds.mixed(sounds.read(sound, sr, self.sample_rate), self.model.task, self.sample_rate)
        for piece in self._windows(take, length, 1, seed, 0, asked, features=True):
            yield piece[0].T

    def of_batch(self, batch: Batch, *, seed: int = 0, request: Any = None, **knobs: Any) -> np.ndarray:
        """What the model makes of windows of one length, with all that the task wants to know of them, as one program:
        [items, samples] at the model's rate and the level of the windows. Item i draws from `fold_in(key(seed), i)`.
        """
        asked, _ = self._asked(self.model.task.needs_sound, seed, request, knobs)
        count = len(batch["wave"])
        keys, zeros = _item_keys(jax.random.key(seed), np.arange(count)), np.zeros(count, np.int32)
        batch = {"label": np.full(count, -1, np.int32), **batch}
        return np.asarray(self._program(asked, False, False)(self.params, batch, keys, zeros, zeros, ())[0])

    def stream(self, request: Any = None) -> SoundStream:
        """Enhancement of sound that arrives in chunks, by a network that sees no later frames: see `SoundStream`.

        Equal to the whole sound in one window, but for the level: a stream cannot know a sound's peak, so that
        `task.peak_db` is passed over and the sound keeps its own level. Raises ConfigError for a model that cannot
        stream.
        """
        return self._stream(request)

    def from_mel(
        self,
        mel: np.ndarray | str | Path,
        *,
        scale: MelScale = "auto",
        seed: int = 0,
        request: Any = None,
        **knobs: Any,
    ) -> Output:
        """The sound of a vocoder for a mel spectrogram [bands, frames] or [frames, bands] of the sizes that the model
        was trained on, an array or a NPY or NPZ file.

        `scale` says what its numbers are (`mels.py`); "auto" goes by their range. The sound is mono, at the model's
        rate and at the level that the mel has. Raises ConfigError for an array and AudioError for a file that cannot be
        used.
        """
        _, facts, pieces = self.mel_in_pieces(mel, scale=scale, seed=seed, request=request, **knobs)
        return Output([np.concatenate(list(pieces), axis=-1)[0]], [self.sample_rate], [facts])

    def of_magnitudes(self, M: Float[Array, "batch mels frames"]) -> Float[Array, "batch samples"]:
        """The sound of mel magnitudes by a vocoder, with its own settings: a pure function for other programs."""
        model, asked = self.model, self._asked(True, 0, None, {})[0]
        frames = M.shape[-1]
        wave = jnp.zeros((len(M), (frames - 1) * model.representation.hop_length), M.dtype)
        given = model.task.given(model.representation, {"wave": wave, "mel": M}, asked.request)
        keys = jax.random.split(jax.random.key(0), len(M))
        sample = self.method.make_sample(model, asked.sampling, jnp.asarray(asked.times, jnp.float32))
        start = noise(keys, (len(M), frames, model.representation.channels))
        return model.task.finish(model.representation, sample(self.params, given, start, keys), given)

    def mel_in_pieces(
        self,
        mel: np.ndarray | str | Path,
        *,
        scale: MelScale = "auto",
        seed: int = 0,
        request: Any = None,
        **knobs: Any,
    ) -> tuple[Mel, dict[str, Any], Iterator[np.ndarray]]:
        """The mel spectrogram as it was read, what a sidecar says, and what `from_mel` makes of it, [1, samples], piece
        by piece."""
        task, r = self.model.task, self.model.representation
        if not isinstance(task, Vocode):
            raise ConfigError(f"a mel spectrogram is for a model of task vocode, this one has {type(task).__name__}")
        asked, facts = self._asked(True, seed, request, knobs)
        known = read_mel(mel, task, self.sample_rate, scale)

        def take(start: int, window: int) -> Batch:
            frames = known.part(start // task.hop_length, task.frames(r, window))
            return {"wave": np.zeros((1, window), np.float32), "mel": frames[None]}

        source = str(mel) if isinstance(mel, str | Path) else None
        about = {**facts, "item": 0, "source": source, "mel": known.about}
        return known, about, self._windows(take, known.samples, 1, seed, 0, asked)

    def _asked(self, sound: bool, seed: int, request: Any, knobs: dict[str, Any]) -> tuple[_Asked, dict[str, Any]]:
        """What is asked for, checked, and what a sidecar says of it."""
        sampling, times = self._resolve(knobs)
        task = self.model.task
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed {seed}: expected 0 to {2**32 - 1}")
        if task.needs_sound != sound:
            needs = "works on a sound: give an array and its sr, a path, or a list of them"
            raise ConfigError(
                f"this model {needs}"
                if task.needs_sound
                else "this model generates from noise and a class alone; leave the sound away"
            )
        request = task.Request() if request is None else request
        return _Asked(request, sampling, times), {"seed": seed, **self.facts(sampling)}

    def _resolve(self, knobs: dict[str, Any]) -> tuple[Sampling, tuple[float, ...]]:
        """The wanted values, the pipeline's own where they are None, and the times."""
        own = {name: value for name, value in knobs.items() if value is not None}
        times = own.pop("times", None)
        for name in [*own, *([] if times is None else ["steps"])]:
            if name not in self.method.knobs:
                has = f"it has {', '.join(sorted(self.method.knobs))}" if self.method.knobs else "it has none"
                raise ConfigError(f"{name}: method {type(self.method).__name__} has no such option; {has}")
        try:
            sampling = dataclasses.replace(self.sampling, **own)
            if "sampler" in self.method.knobs:
                self.method.sampler(sampling)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if "steps" not in self.method.knobs or self.method.schedule is None:
            return sampling, ()
        if sampling.spacing not in get_args(SpacingName):
            known = ", ".join(get_args(SpacingName))
            raise ConfigError(f"spacing {sampling.spacing!r} is unknown; use one of {known}")
        if times is not None:
            times = np.asarray(times, np.float64)
            if times.ndim != 1 or len(times) < 2 or times[0] != 1 or times[-1] != 0 or not (np.diff(times) < 0).all():
                raise ConfigError("times: expected at least two numbers that fall from 1 to 0")
            return dataclasses.replace(sampling, steps=len(times) - 1, spacing="own"), tuple(times.tolist())
        if sampling.spacing == "searched":
            if callable(sampling.sampler) or not self.method.samplers:
                raise ConfigError("spacing searched: is for the named samplers of a method; use another, or times=...")
            found = read_times(self.directory, self._sampler(sampling), sampling.steps, self.fingerprint)
            return sampling, found.times
        return sampling, tuple(
            np.asarray(spaced_times(self.method.schedule, sampling.steps, sampling.spacing)).tolist()
        )

    def _sampler(self, sampling: Sampling) -> str:
        return sampling.sampler or next(iter(self.method.samplers))

    def facts(self, sampling: Sampling) -> dict[str, Any]:
        """What a sidecar says of how a sound was made."""
        knobs = {k: getattr(sampling, k) for k in sorted(self.method.knobs)}
        if "sampler" in knobs:
            knobs["sampler"] = self._sampler(sampling) if not callable(sampling.sampler) else "own"
        knobs = {k: v for k, v in knobs.items() if not (isinstance(v, float) and math.isinf(v))}
        return {"checkpoint": {"step": self.step, "sha256": self.fingerprint}, **knobs}

    # What is made ---------------------------------------------------------------------------------------------------

    def _compile(self, asked: _Asked, long: bool, continued: bool) -> Callable:
        """`(params, batch, keys, window, first, kept) -> wave, x0` as one program; `first` is the frame at which number
        `window` of a long sound begins."""
        representation, task = self.model.representation, self.model.task
        sample = self.method.make_sample(self.model, asked.sampling, jnp.asarray(asked.times, jnp.float32))

        def program(params: Params, batch: Batch, keys: Array, window: Array, first: Array, kept: Any):
            given = task.given(representation, batch, asked.request)
            given = given._replace(kept=kept) if continued else given
            size = (len(keys), representation.frames(batch["wave"].shape[-1]), representation.channels)
            start = chunks.windowed_noise(keys, first, *size[1:]) if long else noise(keys, size)
            x0 = sample(params, given, start, jax.vmap(chunks.later_key)(keys, window) if long else keys)
            return task.finish(representation, x0, given), x0

        return self._spread(jax.jit(program))

    def _spread(self, program: Callable) -> Callable:
        """The program with the items of a batch on all devices, if they divide, and the weights on each."""
        count = self._devices.size
        if count == 1:
            return program
        items, everywhere = (NamedSharding(self._devices, PartitionSpec(*axes)) for axes in (("items",), ()))

        def spread(params: Params, batch: Batch, keys: Array, window: Array, first: Array, kept: Any):
            if len(keys) % count:
                return program(params, batch, keys, window, first, kept)
            if self._spread_params is None:
                self._spread_params = jax.device_put(self.params, everywhere)
            batch, keys, window, first = jax.device_put((batch, keys, window, first), items)
            return program(self._spread_params, batch, keys, window, first, kept)

        return spread

    def _batch(self, count: int, least: int = 1) -> int:
        """The size of batches for so many items: a power of two, so that few programs are compiled, or where there are
        several devices the next multiple of their number."""
        devices = self._devices.size
        size = min(MAX_BATCH * devices, max(least, 1 << (count - 1).bit_length()))
        return -(-size // devices) * devices if count >= devices else size

    def _generate(self, count, seconds, labels, seed, asked, facts) -> Output:
        if count < 1:
            raise ConfigError(f"count {count}: make at least 1")
        if not 0 < seconds <= MAX_SECONDS:
            raise ConfigError(f"seconds {seconds}: expected more than 0 and at most {MAX_SECONDS:g}")
        wanted = max(1, round(seconds * self.sample_rate))
        label = np.array([self.label(labels, i) for i in range(count)], np.int32)
        hop = self._hop
        crop = max(hop, round(self.seconds * self.sample_rate) // hop * hop)
        long = self.method.windows and wanted > crop
        window = crop if long else -(-wanted // hop) * hop
        overlap = self._overlap(window, window / 2) if long else 0
        batch_size = self._batch(count, 2)  # a batch of one rounds otherwise
        made = []
        for group in chunks.groups(list(range(count)), batch_size):
            index = np.array(group + group[-1:] * (batch_size - len(group)))  # the last group is filled up with copies
            keys = _item_keys(jax.random.key(seed), index)
            shape = self.model.representation.sound_shape
            batch = {"wave": np.zeros((batch_size, *shape(window)), np.float32), "label": label[index]}
            waves = np.zeros((batch_size, *shape(wanted)), np.float32)
            program, x0 = self._program(asked, long, long), None
            for number, start in enumerate(chunks.starts(wanted, window, window - overlap)):
                first = start // self.model.representation.hop_length
                where = [np.full(batch_size, n, np.int32) for n in (number, first)]
                kept = self._kept(x0, batch_size, window, overlap) if long else ()
                wave, x0 = program(self.params, batch, keys, *where, kept)
                chunks.join(waves, np.asarray(wave), start, overlap)
            made += list(waves[: len(group)])
        names = [self.classes[k] if k >= 0 else None for k in label]
        about = [{**facts, "item": i, "label": name, "source": None} for i, name in enumerate(names)]
        return Output(made, [self.sample_rate] * count, about)

    def _kept(self, x0: Array | None, batch: int, window: int, overlap: int) -> Known:
        """The features with which a window begins, those of the end of the one before (None: nothing), but for the
        frames that see where a window ends."""
        r = self.model.representation
        frames, shared = r.frames(window), r.frames(overlap)
        known, place = jnp.zeros((batch, frames, r.channels)), np.arange(frames)[:, None]
        if x0 is None:
            return Known(known, place < 0)
        return Known(known.at[:, :shared].set(x0[:, frames - shared :]), (place >= r.edge) & (place < shared - r.edge))

    def _process(self, source, seed, item, asked, stream=None, also=None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A sound and what the task, or a stream, makes of it, in pieces; all channels draw the same noise."""
        windows = functools.partial(self._windows, seed=seed, item=item, asked=asked)
        return sounds.processed(source, self.model.task, asked.request, self.sample_rate, windows, stream, also)

    def _windows(self, take, length, channels, seed, item, asked, features=False) -> Iterator[np.ndarray]:
        """The result [channels, samples] at the model's rate, `length` in all, window by window, or with `features`
        [channels, features, frames]; `take(start, window)` gives a window's batch, with an item per channel, and is
        called in order."""
        hop, r = self._hop, self.model.representation
        window, overlap = -(-length // hop) * hop, 0
        usual = max(1, round(self.window_seconds * self.sample_rate / self._unit)) * self._unit
        long = self.method.windows and (r.phase_period is not None or length > usual)
        if long:
            least = max(OVERLAP_SECONDS * self.sample_rate, OVERLAP_FRAMES * r.hop_length)
            window, overlap = usual, self._overlap(usual, least)
        advance = window - overlap
        program = self._program(asked, long, False)
        jobs = [
            (n, start, c) for n, start in enumerate(chunks.starts(length, window, advance)) for c in range(channels)
        ]
        size = 1 if jax.default_backend() == "cpu" else self._batch(len(jobs))
        keys = _item_keys(jax.random.key(seed), np.full(size, item))

        def calls() -> Iterator[Callable[[], tuple[list, np.ndarray]]]:
            for group in chunks.groups(jobs, size):
                full = group + group[-1:] * (size - len(group))
                taken = {start: take(start, window) for start in dict.fromkeys(start for _, start, _ in group)}
                names = taken[group[0][1]]
                batch = {name: np.stack([taken[start][name][c] for _, start, c in full]) for name in names}
                batch["label"] = np.full(size, -1, np.int32)
                number = np.array([n for n, *_ in full], np.int32)
                first = np.array([start for _, start, _ in full], np.int32) // r.hop_length
                inputs = (batch, keys, number, first, ())
                yield lambda group=group, inputs=inputs: (group, np.asarray(program(self.params, *inputs)[features]))

        per, lead = (r.hop_length, (channels, r.channels)) if features else (1, (channels,))
        places, step = (length // per + 1 if features else length), advance // per
        begin, open_ = 0, np.zeros((*lead, (advance + window) // per + features), np.float32)  # what may still change
        for group, results in chunks.ahead(calls()):
            results = results.swapaxes(1, 2) if features else results
            for (_, start, channel), made in zip(group, results, strict=False):
                if start // per > begin + step:
                    yield open_[..., :step]
                    open_ = np.concatenate([open_[..., step:], np.zeros_like(open_[..., :step])], axis=-1)
                    begin += step
                chunks.join(open_[channel], made, start // per - begin, overlap // per)
        yield open_[..., : places - begin]

    # What follows from the model ------------------------------------------------------------------------------------

    @property
    def _hop(self) -> int:
        """Samples that divide a window: whole frames of the features and of the condition."""
        r = self.model.representation
        return math.lcm(r.hop_length, self.model.task.needs(r).condition_hop or 1)

    @property
    def _unit(self) -> int:
        """Samples at multiples of which windows begin: where Griffin-Lim's first phases repeat."""
        r = self.model.representation
        return math.lcm(self._hop, r.hop_length * (r.phase_period or 1))

    def _overlap(self, window: int, least: float) -> int:
        """An overlap of at least so many samples after which the next window begins at a multiple of the unit."""
        unit = self._unit if window > self._unit + least else self._hop
        return window - max(1, int((window - least) // unit)) * unit

    def label(self, labels: Any, item: int) -> int:
        """The class index of an item; -1 when the model has no classes."""
        wanted = labels
        if not (labels is None or isinstance(labels, str | int | np.integer)):
            wanted = labels[item % len(labels)] if len(labels) else None
        if wanted is None:
            return item % len(self.classes) if self.classes else -1
        if isinstance(wanted, int | np.integer) and 0 <= wanted < len(self.classes):
            return int(wanted)
        if wanted not in self.classes:
            known = f"one of {', '.join(self.classes)}" if self.classes else "none, this model has no classes"
            raise ConfigError(f"label {wanted!r} is unknown; use {known}")
        return self.classes.index(wanted)

    def items(self, seed: int, index: np.ndarray, waves: np.ndarray | None = None) -> tuple[Array, Batch]:
        """Keys and batch of the items `index` of a seed at the training crop's length: classes in turn, or `waves`."""
        samples = round(self.seconds * self.sample_rate) // self._hop * self._hop
        shape = (len(index), *self.model.representation.sound_shape(samples))
        waves = np.zeros(shape, np.float32) if waves is None else waves
        labels = np.array([self.label(None, i) for i in index], np.int32)
        return _item_keys(jax.random.key(seed), index), {"wave": waves, "label": labels}

    def summary(self) -> Summary:
        """Layers, parameters, receptive field and operations of the network, on one training crop."""
        _, batch = self.items(0, np.zeros(1, int))
        task, representation = self.model.task, self.model.representation
        given = jax.eval_shape(lambda batch: task.given(representation, batch, task.Request()), batch)
        samples = batch["wave"].shape[-1]
        frames = representation.frames(samples)
        inputs = None
        if isinstance(self.method, Autoregression):
            inputs = (jax.eval_shape(self.method.distribution().encode, batch["wave"]), given.cond)
        rate, network = frames / samples * self.sample_rate, self.model.network.module(self.params)
        return summarize(network, representation.channels, frames, rate, given.cond, inputs=inputs)


@jax.jit
def _item_keys(key: Array, index: Array) -> Array:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
