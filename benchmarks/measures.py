"""What the quality benchmarks share: clips of held-out voices, measures of speech, bootstrap intervals and tables.

Every sound is mono at 16 kHz. PESQ is wide-band (P.862.2), ESTOI the extended STOI (Jensen & Taal 2016), SI-SDR that of
Le Roux et al. 2019 in dB, DNSMOS the P.835 model of the speechmos package (overall, speech, background), which knows no
reference. Means have 95 % intervals by the bootstrap over clips: a clip's items are drawn together.
"""

import dataclasses
import functools
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff import load
from jaxdiff.data import read_audio
from jaxdiff.methods.method import Sampling

RATE = 16_000
LEVEL_DB = -26.0  # of the active frames, relative to full scale
ACTIVE_FRAME, ACTIVE_RANGE_DB = RATE // 10, 40.0
LEAST_SECONDS, MOST_SECONDS = 4, 8
SILENCE = 1e-4

# From the network's numbers to opinion scores, as the DNS challenge fits them; the highest power first.
_DNSMOS_POLYNOMIALS = {
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
}

Process = Callable[[np.ndarray], np.ndarray]  # sound [samples] to sound [samples]


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


# Measures -----------------------------------------------------------------------------------------------------------


def wide_band_pesq(reference: np.ndarray, made: np.ndarray) -> float:
    """1 for an output in which PESQ finds no speech."""
    from pesq import NoUtterancesError, pesq

    try:
        return float(pesq(RATE, reference, made, "wb"))
    except NoUtterancesError:
        return 1.0


def extended_stoi(reference: np.ndarray, made: np.ndarray) -> float:
    from pystoi import stoi

    return float(stoi(reference, made, RATE, extended=True))


def si_sdr(reference: np.ndarray, made: np.ndarray) -> float:
    """Within -50 and 100 dB, for an output of zeros and for a perfect one."""
    reference, made = reference.astype(np.float64), made.astype(np.float64)
    target = (made @ reference) / (reference @ reference) * reference
    ratio = (target @ target + 1e-20) / (((made - target) ** 2).sum() + 1e-20)
    return float(np.clip(10 * np.log10(ratio), -50, 100))


def dnsmos(made: np.ndarray) -> dict[str, float]:
    """Overall, speech and background scores, 1 to 5, of one window of 9.01 s, for which a shorter sound is repeated."""
    window = np.resize(np.clip(made, -1, 1), round(9.01 * RATE)).astype(np.float32)
    raw = dict(zip(("sig", "bak", "ovrl"), _dnsmos_network().run(None, {"input_1": window[None]})[0][0], strict=True))
    return {name: float(np.polyval(_DNSMOS_POLYNOMIALS[name], raw[name])) for name in ("ovrl", "sig", "bak")}


@functools.cache
def _dnsmos_network() -> Any:
    """The package's network on one thread; the package's own call runs a second network and overlapping windows."""
    import onnxruntime

    name = "speechmos/dnsmos_models/sig_bak_ovr.onnx"
    path = next(file.locate() for file in files("speechmos") or [] if str(file) == name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options)


def processes() -> ProcessPoolExecutor:
    """Two workers for `score_all`."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def score_all(
    pool: ProcessPoolExecutor, score: Callable[..., dict[str, float]], pairs: list[tuple[np.ndarray, np.ndarray]]
) -> dict[str, np.ndarray]:
    """`score(reference, made)` of every pair: each measure [pairs]."""
    found = list(pool.map(score, *zip(*pairs, strict=True), chunksize=4))
    return {name: np.array([one[name] for one in found]) for name in found[0]}


# Figures ------------------------------------------------------------------------------------------------------------


def interval(values: np.ndarray, rounds: int = 2000) -> dict[str, float]:
    """Mean of values [clips] or [clips, items], with the 95 % interval of the bootstrap over clips."""
    per_clip = values.reshape(len(values), -1).mean(1)
    drawn = np.random.default_rng(0).integers(len(per_clip), size=(rounds, len(per_clip)))
    low, high = np.percentile(per_clip[drawn].mean(1), [2.5, 97.5])
    return {"mean": float(per_clip.mean()), "low": float(low), "high": float(high)}


def shown(figure: dict[str, float], digits: int = 2) -> str:
    return f"{figure['mean']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


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
