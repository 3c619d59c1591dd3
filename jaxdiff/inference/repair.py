"""Repair of sounds of any length: only windows around faults are computed, and nothing else is changed.

    clicks            linear prediction from both sides, at the sound's own rate
    clipped samples   sparse spectra, at the sound's own rate, or the model; never below the level of the cut
    gaps              the model, from a guess by linear prediction; what lies above its band is the guess's
    lost bands        the model, over the whole sound, which keeps the rest of its spectrum; coded sounds alike

Each channel is repaired on its own. The model is one that was trained on damaged sounds, or a prior of whole ones.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxdiff.config import ConfigError
from jaxdiff.data import read_audio
from jaxdiff.data.files import audio_info, resample
from jaxdiff.methods.edit import Edit
from jaxdiff.tasks import Repair, ZeroShot
from jaxdiff.tasks.damage import gap_weight, guess_gap

from .chunks import cut
from .declipping import declip
from .faults import Fault, Kind, find_in
from .interpolation import interpolate
from .load import load
from .patches import Patch, Patched, write_patched
from .pipeline import Pipeline

MethodName = Literal["trained", "zero-shot", "classical"]

TRAINED, PRIOR = "repair-16k", "prior-16k"
BEST: dict[Kind, MethodName] = {
    "gap": "trained",
    "clip": "classical",
    "click": "classical",
    "band": "trained",
    "codec": "trained",
}
WINDOW_SECONDS = 2.048
INNER_SECONDS = 1.024  # of a window whose faults are repaired; the rest is what the model sees beside them
LONGEST_GAP = 1.0  # seconds
HIGHEST_CUTOFF = 7200.0  # Hz, above which little is left of the band of models at 16 kHz
START, STEPS = 0.25, 8  # of zero-shot repair: the time up to which the guess is noised, and the steps back from there
_PLACES: tuple[Kind, ...] = ("click", "clip", "gap")  # in this order; the others concern a whole sound
_SHORTEST_GUESS = 1024  # samples: gaps share a program up to the next power of two


class Repaired(NamedTuple):
    """The result for a file: what was written, the faults that were repaired and those that were left, and for a
    sidecar the models by kind of fault."""

    patched: Patched
    repaired: tuple[Fault, ...]
    left: tuple[Fault, ...]
    models: dict[str, Any]


class Repairer:
    """Repairs sounds by models that are loaded when they are first needed.

    `method` None takes for each kind of fault the one that measures better (`BEST`): a model, or the signal processing
    that clicks always have. `trained` and `prior` are pipelines, or what `load` takes. Raises ConfigError for a model
    of another task.
    """

    def __init__(
        self,
        method: Literal["trained", "zero-shot"] | None = None,
        *,
        trained: Pipeline | str | Path = TRAINED,
        prior: Pipeline | str | Path = PRIOR,
        seed: int = 0,
        steps: int | None = None,
    ):
        self.seed, self.steps = seed, steps
        self.method: MethodName | None = method
        self._sources: dict[MethodName, Pipeline | str | Path] = {"trained": trained, "zero-shot": prior}
        self._pipeline = functools.cache(self._load)

    def pipeline(self, kind: Kind) -> Pipeline:
        """The model for a kind of fault."""
        return self._pipeline(self._method(kind))

    def _method(self, kind: Kind) -> MethodName:
        if self.method is None or kind == "click":
            return BEST[kind]
        return self.method

    def models(self, kinds: Collection[Kind]) -> dict[str, Any]:
        """The entries of a sidecar on the models for some kinds of faults."""
        found: dict[str, Any] = {}
        for kind in kinds:
            method = self._method(kind)
            facts = {} if method == "classical" else self.pipeline(kind).facts(self._sampling(kind))
            found[kind] = {"method": method, **facts}
        return found

    def __call__(
        self, wave: Float[np.ndarray, "*channels samples"], sr: float, faults: Sequence[Fault] | None = None
    ) -> Float[np.ndarray, "*channels samples"]:
        """A sound at `sr` Hz with its faults, by default those that are found, repaired; float32."""
        sound = np.atleast_2d(np.asarray(wave, np.float32)).copy()
        faults = find_in(sound, int(sr)).faults if faults is None else faults
        todo, _ = repairable(faults, sr)
        source = sound.copy()
        for patch in self._patches(lambda start, stop: cut(source, start, stop - start), sound.shape[-1], sr, todo):
            place = sound[:, patch.start : patch.stop]
            place[patch.changed] = patch.made[patch.changed]
        whole = [fault for fault in todo if fault.kind in ("band", "codec")]
        if whole:
            also = _as_whole(whole, sr)
            made = self.pipeline(whole[0].kind)(sound, sr=sr, seed=self.seed, also=also, **self._knobs(whole[0].kind))
            channels = sorted({fault.channel for fault in whole})
            sound[channels] = np.atleast_2d(made.waves[0])[channels]
        return sound.reshape(np.shape(wave))

    def file(
        self,
        file: Path,
        target: Path,
        faults: Sequence[Fault],
        *,
        tell: Callable[[float], None] = lambda share: None,
    ) -> Repaired:
        """Write a file with its faults repaired as WAV `target`; every sample that is in none is the file's.

        Raises as `write_patched` does. Memory does not grow with the length of the file.
        """
        info = audio_info(file)
        rate = info.sample_rate
        todo, left = repairable(faults, rate)
        whole = [fault for fault in todo if fault.kind in ("band", "codec")]

        def read(start: int, stop: int) -> np.ndarray:
            y = read_audio(file, channels="all", offset=start / rate, seconds=(stop - start) / rate)
            return np.pad(y, ((0, 0), (0, stop - start - y.shape[-1])))

        places = self._patches(read, info.samples, rate, todo)
        models = self.models(dict.fromkeys(fault.kind for fault in todo))
        if not whole:
            return Repaired(write_patched(file, target, places, tell=tell), todo, left, models)
        with tempfile.TemporaryDirectory(dir=_made(target.parent), prefix=".repair-") as folder:
            between = Path(folder) / "between.wav"
            write_patched(file, between, places, tell=lambda share: tell(share / 2))
            kind, also = whole[0].kind, _as_whole(whole, rate)
            _, pieces = self.pipeline(kind).in_pieces(between, seed=self.seed, also=also, **self._knobs(kind))
            channels = {fault.channel for fault in whole}
            patches = _pieces(pieces, channels, lambda share: tell(0.5 + share / 2), info.samples)
            return Repaired(write_patched(file, target, patches), todo, left, models)

    # Windows ----------------------------------------------------------------------------------------------------------

    def _patches(
        self, read: Callable[[int, int], np.ndarray], samples: int, rate: float, faults: Sequence[Fault]
    ) -> Iterator[Patch]:
        """The repaired places of a sound, of which `read(start, stop)` gives [channels, samples]."""
        window = round(WINDOW_SECONDS * rate)
        places = sorted((fault for fault in faults if fault.kind in _PLACES), key=lambda fault: fault.start)
        near: list[Fault] = []  # what reaches into the window, from the first that does on
        first = 0
        for low, high in inner_parts(places, round(INNER_SECONDS * rate)):
            start = max(0, min((low + high - window) // 2, samples - window))
            while first < len(places) and places[first].start < start - LONGEST_GAP * rate:
                first += 1
            near = []
            for fault in places[first:]:
                if fault.start >= start + window:
                    break
                if fault.stop > start:
                    near.append(fault._replace(start=fault.start - start, stop=fault.stop - start))
            heard = read(start, start + window)
            made, changed = heard.copy(), np.zeros(heard.shape, bool)
            inside = slice(low - start, high - start)
            for channel in range(len(heard)):
                own = [fault for fault in near if fault.channel == channel]
                mask = _mask(own, window)
                mask[: inside.start] = mask[inside.stop :] = False
                if mask.any():
                    made[channel] = self._mended(heard[channel], rate, own, start)
                    changed[channel] = mask
            yield Patch(low, made[:, inside], changed[:, inside])

    def _mended(self, y: Float[np.ndarray, " samples"], rate: float, faults: list[Fault], start: int) -> np.ndarray:
        """A window with its faults repaired."""
        of = lambda kind: [fault for fault in faults if fault.kind == kind]  # noqa: E731
        if of("click"):
            y = interpolate(y, _mask(of("click"), len(y)))
        if of("clip") and self._method("clip") == "classical":
            y = declip(y, _mask(of("clip"), len(y)), rate)
        elif of("clip"):
            y = self._declipped(y, rate, _mask(of("clip"), len(y)))
        if of("gap"):
            y = self._filled(y, rate, of("gap"), start)
        return y

    def _declipped(self, y: Float[np.ndarray, " samples"], rate: float, clipped: Bool[np.ndarray, " samples"]) -> Any:
        sr = self.pipeline("clip").sample_rate
        near = _at(clipped, rate, sr)
        x = _resampled(y, rate, sr, len(near))
        made = self._made("clip", x, x, np.zeros_like(x), near)
        better = y + _resampled(made - x, sr, rate, len(y)) if rate != sr else made
        sign = np.sign(y)
        return np.where(clipped, sign * np.maximum(sign * better, np.abs(y)), y)

    def _filled(self, y: Float[np.ndarray, " samples"], rate: float, gaps: list[Fault], start: int) -> np.ndarray:
        sr = self.pipeline("gap").sample_rate
        places = [(max(0, gap.start), min(len(y), gap.stop)) for gap in gaps]
        guess, _, weight = _guessed(y, places, self.seed + start)
        if rate == sr:
            x, scaled = y, places
        else:
            x = _resampled(guess, rate, sr, round(len(y) * sr / rate))
            scaled = [(int(low * sr / rate), -int(-high * sr // rate)) for low, high in places]
        expected, drawn, lost = _guessed(x, scaled, self.seed + start)
        made = self._made("gap", expected, drawn, lost, np.zeros(len(x), bool))
        if rate == sr:
            return np.where(weight > 0, made, y)
        difference = _resampled(made - x, sr, rate, len(y))
        return np.where(weight > 0, guess + weight * difference, y)

    def _made(self, kind: Kind, expected: np.ndarray, drawn: np.ndarray, lost: np.ndarray, clipped: np.ndarray) -> Any:
        """The window that the model for a kind of fault makes, at its own rate."""
        pipeline = self.pipeline(kind)
        hop = pipeline.model.representation.hop_length
        samples = len(expected)
        padded = lambda y: np.pad(y, (0, -samples % hop))[None]  # noqa: E731
        peak = np.abs(np.where(lost > 0, 0, expected)).max(initial=0.0)
        gain = np.float32(pipeline.model.task.gain(peak))
        batch = {
            "wave": padded(gain * expected),
            "drawn": padded(gain * drawn),
            "lost": padded(lost.astype(np.float32)),
            "clipped": padded(clipped),
            "cutoff": np.full(1, pipeline.sample_rate / 2, np.float32),
            "coded": np.zeros(1, bool),
        }
        return pipeline.of_batch(batch, seed=self.seed, **self._knobs(kind))[0, :samples] / gain

    # Models -----------------------------------------------------------------------------------------------------------

    def _load(self, method: MethodName) -> Pipeline:
        source = self._sources[method]
        pipeline = source if isinstance(source, Pipeline) else load(source)
        task = pipeline.model.task
        if method == "trained":
            if not isinstance(task, Repair):
                raise ConfigError(
                    f"{source}: has the task {type(task).__name__.lower()}; give a model of task repair, or method "
                    f"zero-shot and a prior"
                )
            return pipeline
        if isinstance(task, ZeroShot):
            return pipeline
        if task.needs_sound or not pipeline.model.representation.exact:
            raise ConfigError(
                f"{source}: is no prior of sound; give a model of task generate whose features decode exactly"
            )
        with_faults = ZeroShot(classes=pipeline.classes, peak_db=task.peak_db)
        begun = Edit(pipeline.method, START)  # type: ignore[arg-type]
        prior = pipeline.using(pipeline.model._replace(task=with_faults), begun)
        prior.sampling = dataclasses.replace(prior.sampling, steps=STEPS)
        return prior

    def _knobs(self, kind: Kind) -> dict[str, Any]:
        return {} if self.steps is None else {"steps": self.steps}

    def _sampling(self, kind: Kind) -> Any:
        sampling = self.pipeline(kind).sampling
        return sampling if self.steps is None else dataclasses.replace(sampling, steps=self.steps)


def repairable(faults: Sequence[Fault], rate: float) -> tuple[tuple[Fault, ...], tuple[Fault, ...]]:
    """The faults that can be repaired, and those that are left: gaps longer than a second, and bands that lie above all
    that the models make."""

    def can(fault: Fault) -> bool:
        if fault.kind == "band":
            return fault.value <= HIGHEST_CUTOFF
        return fault.kind != "gap" or fault.stop - fault.start <= LONGEST_GAP * rate

    return tuple(filter(can, faults)), tuple(fault for fault in faults if not can(fault))


def inner_parts(faults: Sequence[Fault], most: int) -> Iterator[tuple[int, int]]:
    """Stretches [start, stop) that hold all faults, which are sorted by their start: none is longer than `most` samples
    unless a fault is. A fault is cut only where those of several channels overlap for longer than that.

    >>> faults = [Fault("gap", 0, a, b, 0.0) for a, b in [(5, 9), (12, 14), (30, 38), (36, 37)]]
    >>> list(inner_parts(faults, 10))
    [(5, 14), (30, 38)]
    """
    low = high = -1
    for fault in faults:
        if high < 0:
            low, high = fault.start, fault.stop
        elif fault.stop <= high or fault.stop - low <= most:
            high = max(high, fault.stop)
        else:
            yield low, high
            low, high = max(fault.start, high), fault.stop
    if high >= 0:
        yield low, high


def _mask(faults: Sequence[Fault], samples: int) -> Bool[np.ndarray, " samples"]:
    mask = np.zeros(samples, bool)
    for fault in faults:
        mask[max(0, fault.start) : max(0, fault.stop)] = True
    return mask


def _at(mask: Bool[np.ndarray, " samples"], rate: float, sr: float) -> np.ndarray:
    """A mask at another rate: a sample is marked where one beside it was."""
    if rate == sr:
        return mask
    out = np.zeros(round(len(mask) * sr / rate), bool)
    place = np.minimum((np.flatnonzero(mask) * sr / rate).astype(int), len(out) - 1)
    for at in (place, np.minimum(place + 1, len(out) - 1)):
        out[at] = True
    return out


def _resampled(y: np.ndarray, rate: float, sr: float, samples: int) -> np.ndarray:
    y = resample(y, rate, sr)[:samples]
    return np.pad(y, (0, samples - len(y)))


_fill = jax.jit(guess_gap, static_argnames="longest")


def _guessed(y: np.ndarray, places: list[tuple[int, int]], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sound whose gaps are guessed: as expected, as drawn, and the weight of what a model makes."""
    expected, drawn, weight = y.copy(), y.copy(), np.zeros_like(y)
    for low, high in places:
        expected[low:high] = 0
    for i, (low, high) in enumerate(places):
        length = int(high - low)
        if length <= 0:
            continue
        longest = max(_SHORTEST_GUESS, 1 << (length - 1).bit_length())
        key = jax.random.fold_in(jax.random.key(seed % 2**32), i)
        at = jnp.array([low]), jnp.array([length])
        guess = _fill(jnp.asarray(expected[None]), *at, key, longest=longest)
        expected, inner = np.array(guess.expected[0]), slice(low, high)
        drawn[inner] = np.asarray(guess.drawn[0])[inner]
        weight += np.asarray(gap_weight(len(y), *at)[0])
    outside = weight == 0
    return np.where(outside, y, expected), np.where(outside, y, drawn), weight


def _as_whole(faults: Sequence[Fault], rate: float) -> Callable[[int, int], dict[str, np.ndarray]]:
    """The facts that a window is told of faults that concern a whole sound."""
    coding = any(fault.kind == "codec" for fault in faults)
    cutoffs = [fault.value for fault in faults if fault.kind == "band" and not coding]
    cutoff = np.asarray(max(cutoffs, default=1e6), np.float32)
    coded = np.asarray(coding)
    return lambda start, window: {"cutoff": cutoff, "coded": coded}


def _pieces(
    pieces: Iterator[tuple[np.ndarray, np.ndarray]],
    channels: Collection[int],
    tell: Callable[[float], None],
    samples: int,
) -> Iterator[Patch]:
    """Patches of what a model made of a whole sound; other channels than these have what the sound was."""
    at = 0
    for sound, made in pieces:
        chosen = np.isin(np.arange(len(made)), list(channels))[:, None]
        yield Patch(at, np.where(chosen, made, sound), np.ones(made.shape, bool))
        at += made.shape[-1]
        tell(at / samples)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
