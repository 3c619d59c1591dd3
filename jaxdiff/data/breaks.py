"""Where a waveform breaks off or is cut: drop-outs, repeated packets and clipped peaks of one channel.

A drop-out is a run of one value, of almost nothing or of a repeated packet that begins or ends without a fade. Clipped
peaks are flat tops of one level with sharp corners, above which almost nothing is. Levels are of full scale 1; `step`
is the sound's quantisation step, for all but 8 bits that of 16 bits.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

STEP, STEP_8_BITS = 2.0**-15, 2.0**-7
_LEAST_GAP = 0.002  # seconds
_LONGEST_REPEAT = 0.04  # seconds, of a packet
_MARKS = 16  # one of so many places is compared with earlier ones
_SUDDEN = 0.36  # level in the last of three milliseconds to that of all; a fade of 5 ms has a third, one of 1 ms 0.6
_LOUD_DB = -30.0  # of the active frames: beside a pause it is less loud


class Run(NamedTuple):
    """Samples `start` to `stop`, and the level at which a peak was cut."""

    start: int
    stop: int
    value: float = 0.0


def quantisation(x: Float[np.ndarray, " samples"]) -> float:
    """The step of a sound's samples: that of 8 bits, or of 16 for all that is finer.

    >>> quantisation(np.array([0.5, 0.25 + 1 / 128])) == 2**-7, quantisation(np.array([0.3])) == 2**-15
    (True, True)
    """
    return STEP if np.any(x * 128 % 1) else STEP_8_BITS


def runs_of(mask: Bool[np.ndarray, " samples"]) -> tuple[Int[np.ndarray, " runs"], Int[np.ndarray, " runs"]]:
    """Where runs of True start and stop."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return edges[::2], edges[1::2]


def clipped(x: Float[np.ndarray, " samples"], sr: int, step: float) -> list[Run]:
    """Runs at the levels, one of each polarity, at which the piece was cut."""
    return sorted(run for sign in (1, -1) for run in _cut_at_top(sign * x, sr, step))


def _cut_at_top(y: Float[np.ndarray, " samples"], sr: int, step: float) -> list[Run]:
    """Runs at the level where flat tops with sharp corners pile up and above which almost nothing is.

    A smooth peak whose top is flat to one step for n samples falls by at most 4 (n + 1) / n^2 steps beside it; a cut
    one falls as steeply as the sound was.
    """
    start, stop = runs_of(np.abs(np.diff(y)) <= 1.01 * step)
    stop = stop + 1  # from differences to samples
    inside = (start > 0) & (stop < len(y))
    start, stop = start[inside], stop[inside]
    length, level = stop - start, np.maximum(y[start], y[stop - 1])
    fall = np.minimum(y[start] - y[start - 1], y[stop - 1] - y[np.minimum(stop, len(y) - 1)]) / step
    sharp = (level > 8 * step) & (fall > np.maximum(12.0 * (length + 1) / length**2, 2.0))
    start, stop, length, level = start[sharp], stop[sharp], length[sharp], level[sharp]
    if not len(level):
        return []
    places = np.rint(level / step).astype(np.int64)
    for place in np.unique(places)[::-1][:64]:
        here = np.abs(places - place) <= 1
        top = float(np.max(level[here]))
        above = np.count_nonzero(y > top + 1.01 * step)
        if above * 3 > length[here].sum():
            continue
        if here.sum() >= 2 or np.any((length[here] >= 3) & (length[here] < _LEAST_GAP * sr)):
            near = np.abs(y - top) <= 1.01 * step
            exact = y == top
            begins, ends = runs_of(exact if exact.sum() > 0.9 * near.sum() else near)
            return [Run(int(a), int(b), top) for a, b in zip(begins, ends, strict=True)]
    return []


def gaps(x: Float[np.ndarray, " samples"], sr: int, step: float, cut: Collection[float]) -> list[Run]:
    """Runs of one value, of almost nothing and of repeated packets that break a sound off without fading.

    A pause is no drop-out: before it the sound has died away. Runs that reach the ends of the piece are silence.
    """
    least, frame = max(2, round(_LEAST_GAP * sr)), max(1, round(0.02 * sr))
    count = len(x) // frame
    if not count:
        return []
    active = np.quantile(np.sqrt(np.mean(x[: count * frame].reshape(count, frame) ** 2, axis=1)), 0.95)
    loud = max(10 * step, 10 ** (_LOUD_DB / 20) * active)

    def broken(start: int, stop: int) -> bool:
        if start == 0 or stop == len(x):
            return False
        value = x[start] if x[start] == x[stop - 1] else 0.0

        def levels(seconds: float) -> tuple[float, float]:
            size = max(2, round(seconds * sr))
            sides = x[max(0, start - size) : start], x[stop : stop + size]
            before, after = (float(np.sqrt(np.mean((side - value) ** 2))) for side in sides)
            return before, after

        before, after = levels(0.002)
        sudden = [near > _SUDDEN * far for near, far in zip(levels(0.001), levels(0.003), strict=True)]
        if (before > loud and sudden[0]) or (after > loud and sudden[1] and before > 10 * step):
            return True
        return all(near > max(30 * step, 0.35 * far) for near, far in zip(levels(0.0005), levels(0.02), strict=True))

    found = []
    start, stop = runs_of(np.diff(x) == 0)
    stop = stop + 1
    long = stop - start >= least
    for a, b in zip(start[long], stop[long], strict=True):
        if x[a] not in cut and broken(a, b):
            found.append(Run(int(a), int(b)))
    start, stop = runs_of(np.abs(x) <= 2.01 * step)
    long = stop - start >= least
    for a, b in zip(start[long], stop[long], strict=True):
        covered = sum(min(b, run.stop) - max(a, run.start) for run in found if run.start < b and run.stop > a)
        if covered < 0.9 * (b - a) and broken(a, b):
            found = [run for run in found if run.stop <= a or run.start >= b] + [Run(int(a), int(b))]
    found += [
        run
        for run in _repeats(x, sr, step)
        if all(run.stop <= other.start or run.start >= other.stop for other in found)
    ]
    return sorted(found)


def _repeats(x: Float[np.ndarray, " samples"], sr: int, step: float) -> list[Run]:
    """Runs that repeat the samples just before them exactly, once or a few times, as decoders hide lost packets.

    Places whose four samples have a rare fingerprint are compared with the last place of the same fingerprint.
    """
    least, longest = max(8, round(_LEAST_GAP * sr)), round(_LONGEST_REPEAT * sr)
    if len(x) < 2 * least:
        return []
    bits = x.view(np.uint32).astype(np.uint64)
    prints = bits[:-3].copy()
    for k in (1, 2, 3):
        prints = prints * np.uint64(0x9E3779B97F4A7C15) + bits[k : len(bits) - 3 + k]
    prints ^= prints >> np.uint64(29)
    prints *= np.uint64(0xBF58476D1CE4E5B9)
    marks = np.flatnonzero((prints >> np.uint64(32)) % np.uint64(_MARKS) == 0)
    order = marks[np.argsort(prints[marks], kind="stable")]
    lags = np.diff(order)
    same = (prints[order[1:]] == prints[order[:-1]]) & (lags >= least) & (lags <= longest)
    found: list[Run] = []
    for at, lag in sorted(zip(order[1:][same].tolist(), lags[same].tolist(), strict=True)):
        if found and at < found[-1].stop:
            continue
        reach = 8 * lag
        low = max(lag, at - reach)
        high = min(len(x), at + reach)
        equal = x[low:high] == x[low - lag : high - lag]
        differs = np.flatnonzero(~equal)
        here = at - low
        before, after = differs[differs < here], differs[differs > here]
        if not len(before) or not len(after):
            continue  # it repeats for long: a tone
        start, stop = low + int(before[-1]) + 1, low + int(after[0])
        if stop - start >= lag and np.ptp(x[start:stop]) > 16 * step:
            found.append(Run(start, stop))
    return found
