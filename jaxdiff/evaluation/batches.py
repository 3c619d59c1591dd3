"""How many files are scored: in a few lengths, batch by batch, so that programs are few and memory is bounded.

Sounds are filled up with zeros to the power of two above their length, but never beyond the longest of the run, and
each measure compiles once for each such length and rate. A measure is told the true lengths, so a score is that of the
sounds alone. Measures of other packages run beside, in processes of their own if asked for.
"""

import collections
import contextlib
import functools
import itertools
import math
import multiprocessing
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.fft import next_fast_len

from jaxdiff.data.files import printable

from .external import EXTERNAL
from .folders import Pair, Problem, read_pair
from .metrics import IN_JAX, WHOLE, Metric
from .scores import Row

LONGEST = 2**24  # samples of a sound that is compared: 17 minutes at 16 kHz, 6 at 48 kHz
LONGEST_TEXT = 100_000  # bytes
SHORTEST = 2**12  # to which shorter sounds are filled up
BATCH = 16
BATCH_SAMPLES = 2**20  # in one array
LAG_SECONDS = 0.5  # within which a delay is looked for
LAG_PART = 20.0  # seconds of a sound in which it is

Scored = tuple[dict[str, float], dict[str, str]]  # scores by measure, and why there is none


class _Sounds(NamedTuple):
    """The samples of a pair."""

    pair: Pair
    reference: np.ndarray | None
    estimate: np.ndarray

    @property
    def lengths(self) -> tuple[int, int]:
        return 0 if self.reference is None else len(self.reference), len(self.estimate)


def score(pairs: Sequence[Pair], metrics: Sequence[Metric], workers: int = 1) -> Iterator[tuple[Pair, Row | Problem]]:
    """A row of scores for each pair, or the problem for which it has none; pairs of one length follow each other.

    With several `workers` measures of other packages run in as many processes.
    """
    short = []
    for pair in pairs:
        if pair.samples > LONGEST:
            told = f"is {pair.samples / pair.rate:.0f} s long, at most {LONGEST / pair.rate:.0f} s are compared; cut it"
            yield pair, Problem(pair.name, pair.system, told)
        else:
            short.append(pair)
    longest = collections.defaultdict(int)
    for pair in short:
        longest[pair.rate] = max(longest[pair.rate], pair.samples)

    def kind(pair: Pair) -> tuple[int, int]:
        return pair.rate, bucket(pair.samples, longest[pair.rate])

    short.sort(key=kind)
    inside = [metric.name for metric in metrics if metric.kind == "sound"]
    outside = [metric.name for metric in metrics if metric.kind == "external"]
    with _beside(short, outside, workers) as others:
        for (rate, size), group in itertools.groupby(short, kind):
            alike = list(group)
            rows = min(len(alike), max(1, min(BATCH, BATCH_SAMPLES // size)))
            for start in range(0, len(alike), rows):
                read = [_read(pair) for pair in alike[start : start + rows]]
                measured = iter(_measured([one for one in read if isinstance(one, _Sounds)], inside, rate, size, rows))
                for pair, one in zip(alike[start : start + rows], read, strict=True):
                    theirs = next(others)
                    if isinstance(one, _Sounds):
                        ours = next(measured)
                        one = _row(one, {**ours[0], **theirs[0]}, {**ours[1], **theirs[1]})
                    yield pair, one


def bucket(samples: int, longest: int) -> int:
    """The length to which a sound is filled up where the longest one has `longest` samples."""
    return max(samples, min(max(SHORTEST, 1 << (samples - 1).bit_length()), longest))


def _read(pair: Pair) -> _Sounds | Problem:
    waves = read_pair(pair)
    return waves if isinstance(waves, Problem) else _Sounds(pair, *waves)


def _row(sounds: _Sounds, scores: Mapping[str, float], failed: Mapping[str, str]) -> Row:
    reference, estimate = sounds.reference, sounds.estimate
    silent = reference is not None and not reference.any(), not estimate.any()
    late = 0 if reference is None or any(silent) else lag(reference, estimate, sounds.pair.rate)
    return Row(sounds.pair, sounds.lengths, silent, late, scores, failed)


# In JAX -------------------------------------------------------------------------------------------------------------


@functools.cache
def _program(name: str):
    return jax.jit(IN_JAX[name].function, static_argnums=2)


def _measured(batch: Sequence[_Sounds], names: Sequence[str], rate: int, size: int, rows: int) -> list[Scored]:
    """The scores of sounds in `rows` rows that are filled up to `size` samples, or more where a header told too few."""
    if not batch or not names:
        return [({}, {}) for _ in batch]
    size = max(size, *(length for sounds in batch for length in sounds.lengths))
    waves, lengths = np.zeros((2, rows, size), np.float32), np.ones((rows, 2), np.int32)
    for i, sounds in enumerate(batch):
        ours, theirs = sounds.estimate if sounds.reference is None else sounds.reference, sounds.estimate
        waves[0, i, : len(ours)], waves[1, i, : len(theirs)], lengths[i] = ours, theirs, (len(ours), len(theirs))
    arrays = jnp.asarray(waves[0]), jnp.asarray(waves[1]), jnp.asarray(lengths)
    scores, failed = {}, {}
    for name in names:
        try:
            scores[name] = np.asarray(_program(name)(*arrays[:2], rate, arrays[2]), np.float64)
        except ValueError as error:  # a rate at which the measure is not defined
            failed[name] = str(error)
    return [({name: float(values[i]) for name, values in scores.items()}, failed) for i in range(len(batch))]


# Of other packages --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _beside(pairs: Sequence[Pair], names: Sequence[str], workers: int) -> Iterator[Iterator[Scored]]:
    """The scores of other packages for each pair in this order, computed when asked for or before, in processes."""
    if not names:
        yield itertools.repeat(({}, {}))
    elif workers < 2 or len(pairs) < 2:
        yield map(functools.partial(_outside, names), pairs)
    else:
        pool = ProcessPoolExecutor(
            min(workers, len(pairs)), multiprocessing.get_context("spawn"), _hear_no_interruption
        )
        try:
            yield pool.map(functools.partial(_outside, names), pairs)
        finally:
            pool.shutdown(cancel_futures=True)


def _hear_no_interruption() -> None:
    """Ctrl-C goes to all processes of a terminal; the one that waits for the others decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _outside(names: Sequence[str], pair: Pair) -> Scored:
    scores, failed = {}, {}
    with warnings.catch_warnings(action="ignore"):  # the process that waits reads the same files and warns itself
        sounds = _read(pair)
    if isinstance(sounds, Problem):
        return scores, failed
    _, reference, estimate = sounds
    common = len(estimate) if reference is None else min(len(reference), len(estimate))
    for name in names:
        measure = EXTERNAL[name]
        whole = name in WHOLE or not measure.needs_reference
        ours, theirs = (y if whole or y is None else y[:common] for y in (reference, estimate))
        try:
            said = {"transcript": _text(pair.transcript)} if pair.transcript and measure.takes_transcript else {}
            scores[name] = float(measure.function(ours, theirs, pair.rate, **said))
        except Exception as error:  # whatever another package raises costs this score and no other
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            failed[name] = printable(f"{kind}{error}")
    return scores, failed


def _text(path: Path) -> str:
    """A transcript; raises ValueError where it is not there, or no text."""
    try:
        if path.stat().st_size > LONGEST_TEXT:
            raise ValueError(f"the transcript {path} is longer than {LONGEST_TEXT} bytes")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"the transcript {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"the transcript {path} is no text in UTF-8") from None


# Delays -------------------------------------------------------------------------------------------------------------


def lag(reference: np.ndarray, estimate: np.ndarray, rate: int) -> int:
    """By how many samples an estimate is late, or early if negative; 0 unless it fits much better there.

    It is the largest correlation of both sounds, of whatever sign, over lags of at most half a second. It counts where
    it exceeds 0.5 and that without a lag by 0.1.
    """
    length = min(len(reference), len(estimate), round(LAG_PART * rate))
    reach = min(round(LAG_SECONDS * rate), length - 1)
    x, y = reference[:length].astype(np.float32), estimate[:length].astype(np.float32)
    scale = float(np.sqrt(np.vdot(x, x)) * np.sqrt(np.vdot(y, y)))
    if not scale > 0 or not math.isfinite(scale):
        return 0
    size = next_fast_len(length + reach, real=True) or length + reach
    products = np.fft.irfft(np.fft.rfft(y, size) * np.conj(np.fft.rfft(x, size)), size)
    products = np.abs(np.concatenate([products[size - reach :], products[: reach + 1]])) / scale
    best = int(products.argmax())
    return best - reach if products[best] > max(0.5, products[reach] + 0.1) else 0
