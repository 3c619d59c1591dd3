"""What the quality benchmarks share: clips of held-out voices, scores of many pairs, intervals and tables.

Every sound is mono at 16 kHz. Measures are those of `jaxdiff.evaluation`, by name: of `MEASURES`, and of `EXTERNAL`,
whose packages come with `pip install -e '.[eval]'`. Means have 95 % intervals by the bootstrap over clips
(`bootstrap_interval`): a clip's items are drawn together.
"""

import dataclasses
import functools
import itertools
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import evaluation, load
from jaxdiff.data import read_audio
from jaxdiff.evaluation.compare import bootstrap_interval
from jaxdiff.evaluation.external import EXTERNAL
from jaxdiff.evaluation.measures import MEASURES
from jaxdiff.methods.method import Sampling

RATE = 16_000
LEVEL_DB = -26.0  # of the active frames, relative to full scale
ACTIVE_FRAME, ACTIVE_RANGE_DB = RATE // 10, 40.0
LEAST_SECONDS, MOST_SECONDS = 4, 8
SILENCE = 1e-4

Process = Callable[[np.ndarray], np.ndarray]  # sound [samples] to sound [samples]
Pair = tuple[np.ndarray, np.ndarray]  # a sound and what was made of it


# Sounds -------------------------------------------------------------------------------------------------------------


class Clip(NamedTuple):
    voice: str
    wave: np.ndarray


def recordings(folder: Path) -> dict[str, list[Path]]:
    """The FLAC files below each sub-folder; none when the folder does not exist."""
    if not folder.is_dir():
        return {}
    found = {sub.name: sorted(sub.rglob("*.flac")) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    return {name: paths for name, paths in found.items() if paths}


def active_rms(y: np.ndarray) -> float:
    """RMS over the frames of 100 ms that are less than 40 dB below the loudest."""
    power = (y[: len(y) // ACTIVE_FRAME * ACTIVE_FRAME].reshape(-1, ACTIVE_FRAME) ** 2).mean(1) if len(y) else y
    if len(power) == 0:
        return float(np.sqrt((y**2).mean())) if len(y) else 0.0
    return float(np.sqrt(power[power >= power.max() * 10 ** (-ACTIVE_RANGE_DB / 10)].mean()))


def floor_db(y: np.ndarray) -> float:
    """How far the quietest twentieth of the frames of 20 ms is below the active level: the noise of a recording."""
    frame = RATE // 50
    power = (y[: len(y) // frame * frame].reshape(-1, frame) ** 2).mean(1)
    return float(10 * np.log10(np.percentile(power, 5) + 1e-12) - 20 * np.log10(active_rms(y)))


def leveled(y: np.ndarray) -> np.ndarray:
    """At -26 dB, or as near to it as keeps the peak below full scale."""
    return (y * min(10 ** (LEVEL_DB / 20) / active_rms(y), 0.99 / np.abs(y).max())).astype(np.float32)


class Supply:
    """Stretches of sound made of the recordings of one folder, which are taken in a random order, each once a round."""

    def __init__(self, paths: Sequence[Path], rng: np.random.Generator):
        self._rng, self._paths = rng, itertools.cycle([paths[i] for i in rng.permutation(len(paths))])

    def take(self, least: int, most: int) -> np.ndarray:
        """`least` to `most` samples: recordings of equal active level one after another, of a longer one a part.

        Raises ValueError for a silent recording.
        """
        pieces, samples = [], 0
        while samples < least:
            path = next(self._paths)
            y = read_audio(path, RATE)
            if len(y) > most:
                first = self._rng.integers(len(y) - most + 1)
                part = y[first : first + most]
                y = part if active_rms(part) > SILENCE else y
            if active_rms(y) < SILENCE:
                raise ValueError(f"{path} is silent; take it out of its folder")
            pieces.append(y / active_rms(y))
            samples += len(y)
        return np.concatenate(pieces)[:most]


def speech_clips(voices: dict[str, list[Path]], count: int, seed: int) -> list[Clip]:
    """`count` clips of 4 to 8 s, at -26 dB, of the voices in turn."""
    rng = np.random.default_rng(seed)
    supplies = {voice: Supply(paths, rng) for voice, paths in voices.items()}
    names: Iterator[str] = itertools.islice(itertools.cycle(voices), count)
    return [Clip(name, leveled(supplies[name].take(LEAST_SECONDS * RATE, MOST_SECONDS * RATE))) for name in names]


# Models -------------------------------------------------------------------------------------------------------------


def model(text: str) -> Process:
    """A jaxdiff model from NAME or NAME@option=value,...: options of sampling, such as steps, or of the task."""
    name, _, options = text.partition("@")
    values = {key: _value(value) for key, _, value in (pair.partition("=") for pair in options.split(",") if pair)}
    knobs = {key: values.pop(key) for key in [field.name for field in dataclasses.fields(Sampling)] if key in values}
    pipeline = load(name)
    known = [field.name for field in dataclasses.fields(pipeline.model.task.Request)]
    if set(values) - set(known):
        unknown = ", ".join(sorted(set(values) - set(known)))
        raise SystemExit(f"{text}: this model has no option {unknown}; its task has {', '.join(known) or 'none'}")
    request = pipeline.model.task.Request(**values)
    return lambda y: np.asarray(pipeline(y, sr=RATE, request=request, **knobs).waves[0], np.float32)


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def pyworld() -> Any:
    """The package, which warns about its own use of setuptools."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyworld
    return pyworld


# Measures -----------------------------------------------------------------------------------------------------------


@functools.cache
def _program(name: str) -> Any:
    return jax.jit(MEASURES[name].function, static_argnums=2)


def in_jax(name: str, pairs: Sequence[Pair], rows: int = 8) -> np.ndarray:
    """A measure of `MEASURES` of every pair, [pairs], by one program for all lengths."""
    found = []
    longest = max(len(y) for pair in pairs for y in pair)
    for first in range(0, len(pairs), rows):
        part = pairs[first : first + rows]
        waves, lengths = np.zeros((2, rows, longest), np.float32), np.ones((rows, 2), np.int32)
        for i, pair in enumerate(part):
            lengths[i] = [len(y) for y in pair]
            for side, y in enumerate(pair):
                waves[side, i, : len(y)] = y
        found.append(np.asarray(_program(name)(*waves, RATE, lengths))[: len(part)])
    return np.concatenate(found)


def _by_packages(names: Sequence[str], reference: np.ndarray, made: np.ndarray) -> list[float]:
    return [EXTERNAL[name].function(reference, made, RATE) for name in names]


def processes() -> ProcessPoolExecutor:
    """Two workers for `scores_of_pairs`."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def scores_of_pairs(pool: ProcessPoolExecutor, names: Sequence[str], pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Each measure [pairs] of sounds and what was made of them: those of other packages by the workers."""
    others = [name for name in names if name in EXTERNAL]
    rows = pool.map(functools.partial(_by_packages, others), *zip(*pairs, strict=True), chunksize=4)
    found = {name: in_jax(name, pairs) for name in names if name in MEASURES}
    found |= dict(zip(others, np.reshape(list(rows), (len(pairs), len(others))).T, strict=True))
    return {name: found[name] for name in names}


def fingerprint_of_measures() -> bytes:
    """Changes with the code of the measures."""
    folder = Path(evaluation.__file__).parent
    return b"".join(path.read_bytes() for path in (Path(__file__), *sorted(folder.glob("*.py"))))


# Figures ------------------------------------------------------------------------------------------------------------


def interval(values: np.ndarray) -> dict[str, float]:
    """The mean of values [clips] or [clips, items], as `estimate`, and the ends of its interval, `low` and `high`."""
    return bootstrap_interval(values.reshape(len(values), -1).mean(1))._asdict()


def shown(figure: dict[str, float], digits: int = 2) -> str:
    return f"{figure['estimate']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in [header, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |", flush=True)


# Speed --------------------------------------------------------------------------------------------------------------


def real_time_factors(
    make: Callable[[str], Process], names: Sequence[str], wave: np.ndarray, cores: int
) -> dict[str, float]:
    """Seconds of work per second of sound of each `make(name)`, the median of 3 interleaved calls on `cores` cores.

    A process of its own is bound to the cores before any library starts its threads; a first call, which may compile,
    is not counted.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_bind, initargs=(cores,)) as pool:
        return pool.submit(_timed, make, list(names), wave).result()


def _bind(cores: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def _timed(make: Callable[[str], Process], names: list[str], wave: np.ndarray) -> dict[str, float]:
    methods = {name: make(name) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(4):
        for name, process in methods.items():
            begin = time.perf_counter()
            process(wave)
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(spent)) / (len(wave) / RATE) for name, spent in seconds.items()}
