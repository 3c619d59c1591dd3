"""How well a sound keeps to events: a sound is heard in pieces, and its onsets are held against times.

Beside the scores of `onsets.py`: by how much the sound is late, found as the place of the highest cross-correlation of
both onset envelopes, within 2 s. Envelopes are impulses smoothed over 20 ms, so that the correlation at a lag is a sum
over pairs of events and needs no grid:

    c(lag) = sum_ij exp(-(t_j - u_i - lag)^2 / (2 * 0.02^2))

Whether the score would notice is tried: the sound is moved by 100, 500 and 1000 ms and the shift is looked for again.
A regular rhythm cannot tell a shift by its period from none.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import soxr

from .onsets import Onsets, loudest_band, onsets, synchrony

RATE = 16_000  # Hz at which sounds are heard
SHIFTS = (0.1, 0.5, 1.0)  # seconds by which a sound is moved to see whether it is noticed
_PIECE, _MARGIN = 30 * RATE, RATE // 2  # samples of a piece, and beside it that its onsets need
_LAG, _STEP, _WIDTH = 2.0, 0.001, 0.02  # seconds: the largest shift, the grid of shifts, the smoothing
_LEVEL = RATE // 100  # samples of a level of the loudness contour
_QUIETEST = -60.0  # dB of full scale, below which the contour is not followed

Blocks = Callable[[], Iterator[np.ndarray]]


class Heard(NamedTuple):
    """A sound's onsets, how strong each is in dB of full scale, its loudness contour in dB by 10 ms, its seconds."""

    onsets: Onsets
    strength: np.ndarray
    levels: np.ndarray
    seconds: float


class Events(NamedTuple):
    """Times in seconds that a sound is to keep to, and where they come from a sound its loudness contour in dB."""

    seconds: np.ndarray
    levels: np.ndarray | None = None


class Kept(NamedTuple):
    """Scores: shares of 0 to 1 and seconds; nan for what there is none of. `shift` is how late the sound is by
    cross-correlation, `recovered` the same for each of `SHIFTS` by which it was moved."""

    cues: int
    onsets: int
    hit_rate: float
    average_precision: float
    offset: float
    delay: float
    loudness: float
    shift: float
    recovered: tuple[float, ...]


def hear(blocks: Blocks, rate: int) -> Heard:
    """A sound of any length at `rate` Hz, which `blocks` gives twice, [channels, samples]; it is held by pieces."""
    loudest, samples, levels, rest = -np.inf, 0, [], np.zeros(0, np.float32)
    for piece, _, new in _pieces(blocks(), rate):
        loudest, samples = max(loudest, loudest_band(piece, RATE)), samples + len(new)
        rest = np.concatenate([rest, new])
        whole = len(rest) // _LEVEL * _LEVEL
        power = np.square(rest[:whole].astype(np.float64)).reshape(-1, _LEVEL).mean(1)
        levels.append(np.maximum(10 * np.log10(power + 1e-12), _QUIETEST))
        rest = rest[whole:]
    seconds, rise, strength = [], [], []
    for piece, begin, new in _pieces(blocks(), rate):
        found = onsets(piece, RATE, loudest=loudest)
        first = 0.0 if not begin else _MARGIN / RATE
        last = np.inf if len(new) < _PIECE else first + _PIECE / RATE
        inside = (found.seconds >= first if begin else found.seconds > -np.inf) & (found.seconds < last)
        seconds.append(found.seconds[inside] + begin / RATE - first)
        rise.append(found.rise[inside])
        strength.append(_energy(piece, found.seconds[inside]))
    none = [np.zeros(0)]
    at = np.maximum(np.concatenate(seconds or none), 0)
    heard = Onsets(at, np.concatenate(rise or none))
    return Heard(heard, np.concatenate(strength or none), np.concatenate(levels or none), samples / RATE)


def _pieces(blocks: Iterator[np.ndarray], rate: int) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Pieces of one length of a sound, mixed to mono at `RATE`, each with what is beside it; where it begins without
    that, in samples; and the part that is its own."""
    stream = None if rate == RATE else soxr.ResampleStream(rate, RATE, 1, "float32", "HQ")
    held, begin, more = np.zeros(0, np.float32), 0, True
    before = np.zeros(0, np.float32)
    while more or len(held):
        while more and len(held) < _PIECE + _MARGIN:
            block = next(blocks, None)
            more = block is not None
            mono = np.zeros(0, np.float32) if block is None else block.mean(0, dtype=np.float32)
            held = np.concatenate([held, mono if stream is None else stream.resample_chunk(mono, last=not more)])
        new = held[:_PIECE]
        if len(new) or not begin:
            yield np.concatenate([before, held[: _PIECE + _MARGIN]]), begin, new
        before, held, begin = new[-_MARGIN:], held[_PIECE:], begin + len(new)


def _energy(y: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The level in dB of the loudest 10 ms within 50 ms of each onset."""
    made = []
    for at in seconds:
        part = y[max(0, round((at - 0.005) * RATE)) : round((at + 0.05) * RATE)].astype(np.float64)
        power = np.convolve(np.square(part), np.full(_LEVEL, 1 / _LEVEL), "same" if len(part) < _LEVEL else "valid")
        made.append(10 * np.log10(max(power.max(initial=0.0), 1e-12)))
    return np.array(made)


def kept(events: Events, heard: Heard) -> Kept:
    """How well a sound keeps to events."""
    scores = synchrony([events.seconds], [heard.onsets])
    moved = tuple(shift_of(events.seconds, heard.onsets.seconds + by) for by in SHIFTS)
    return Kept(
        len(events.seconds),
        len(heard.onsets.seconds),
        *scores,
        loudness=_alike(events.levels, heard.levels),
        shift=shift_of(events.seconds, heard.onsets.seconds),
        recovered=moved,
    )


def shift_of(events: np.ndarray, found: np.ndarray) -> float:
    """How many seconds `found` is later than `events`, where their envelopes correlate best; nan where one is empty.

    >>> round(shift_of(np.array([0.5, 1.3, 1.7]), np.array([1.0, 1.8, 2.2])), 6)
    0.5
    """
    reach = _LAG + 3 * _WIDTH
    apart = [found[np.searchsorted(found, at - reach) : np.searchsorted(found, at + reach)] - at for at in events]
    apart = np.concatenate([np.zeros(0), *apart])
    if not len(apart):
        return float("nan")
    cells = round(reach / _STEP)
    counts = np.bincount(np.round(apart / _STEP).astype(int) + cells, minlength=2 * cells + 1)[: 2 * cells + 1]
    near = np.arange(-round(4 * _WIDTH / _STEP), round(4 * _WIDTH / _STEP) + 1) * _STEP
    curve = np.convolve(counts, np.exp(-((near / _WIDTH) ** 2) / 2), "same")
    lags = (np.arange(len(curve)) - cells) * _STEP
    best = curve > curve.max() * (1 - 1e-9)
    lag = lags[best][np.argmin(np.abs(lags[best]))]
    for _ in range(3):  # between the cells: the mean of the pairs around it
        weight = np.exp(-(((apart - lag) / _WIDTH) ** 2) / 2)
        lag = float((weight * apart).sum() / weight.sum())
    return lag


def _alike(a: np.ndarray | None, b: np.ndarray) -> float:
    """The correlation of two contours over what both last; nan where one is flat."""
    if a is None:
        return float("nan")
    a, b = a[: len(b)], b[: len(a)]
    if len(a) < 2 or a.std() < 1e-6 or b.std() < 1e-6:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
