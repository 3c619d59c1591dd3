"""Peers of repair, in NumPy and SciPy: what gaps, clipped samples and clicks are mended with where nothing is learned.

A sound is [samples], a gap (start, stop) in samples. Every peer leaves the samples outside the faulty places as they
are, but for the median filter. Autoregressive models have their coefficients from Burg's method (Burg 1975), which
gives stable models of high orders from short stretches. `interpolate` finds the missing samples that make the energy of
the prediction errors least (Janssen, Veldhuis & Vries 1986; Godsill & Rayner 1998, chapter 5): with b the
autocorrelation of the prediction-error filter, sum_j b[i - j] x[j] = 0 at every missing i, a banded system.
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import solveh_banded
from scipy.signal import lfilter, lfiltic, medfilt

RATE = 16_000
GAP_ORDER, GAP_CONTEXT = 200, RATE // 4  # of the models beside a gap
NEAR_CONTEXT = RATE // 25  # 40 ms: of speech, little more than that is one sound
DECLIP_ORDER, DECLIP_FRAME, DECLIP_ROUNDS = 200, 1024, 6
CLICK_ORDER, CLICK_FRAME, CLICK_ROUNDS = 64, 512, 3
CLICK_FACTOR = 5.0  # prediction errors of a click, in typical errors
CLICK_APART = RATE // 1000  # nearer marks are one click

Gap = tuple[int, int]


# Autoregressive models ----------------------------------------------------------------------------------------------


def burg(stretches: Sequence[np.ndarray], order: int) -> np.ndarray:
    """The prediction-error filter [order + 1], which begins with 1, of one process seen in several stretches.

    A stretch that is no longer than the order helps as far as it goes. The rest of the filter is 0 from where nothing
    is left to predict.
    """
    known = [np.asarray(y, np.float64) for y in stretches]
    forward, backward = [y[1:] for y in known], [y[:-1] for y in known]
    least = 1e-20 * sum(float(y @ y) for y in known)
    found = np.ones(1)
    for _ in range(order):
        energy = sum(float(f @ f + b @ b) for f, b in zip(forward, backward, strict=True))
        if energy <= least:
            break
        reflection = -2 * sum(float(f @ b) for f, b in zip(forward, backward, strict=True)) / energy
        longer = np.append(found, 0)
        found = longer + reflection * longer[::-1]
        pairs = [(f + reflection * b, b + reflection * f) for f, b in zip(forward, backward, strict=True)]
        forward, backward = [f[1:] for f, _ in pairs], [b[:-1] for _, b in pairs]
    return np.pad(found, (0, order + 1 - len(found)))


def extrapolate(past: np.ndarray, model: np.ndarray, samples: int) -> np.ndarray:
    """The next samples after `past` without prediction errors."""
    state = lfiltic([1.0], model, past[::-1])
    return lfilter([1.0], model, np.zeros(samples), zi=state)[0]


def interpolate(y: np.ndarray, missing: np.ndarray, model: np.ndarray) -> np.ndarray:
    """y with the samples at the rising indices `missing` that make the prediction errors least; float64.

    What y holds there does not matter. The samples before and after y count as 0, so that as many known samples as the
    order should stand at both ends.
    """
    order = len(model) - 1
    correlation = np.correlate(model, model, "full")  # of the lags -order to order
    made = np.array(y, np.float64)
    made[missing] = 0
    right = -np.convolve(made, correlation)[missing + order]
    reach = np.searchsorted(missing, missing + order, "right") - np.arange(len(missing)) - 1
    width = int(reach.max())
    upper = np.zeros((width + 1, len(missing)))
    for apart in range(width + 1):
        lags = missing[apart:] - missing[: len(missing) - apart]
        upper[width - apart, apart:] = np.where(lags <= order, correlation[order + np.minimum(lags, order)], 0)
    upper[width] *= 1 + 1e-14  # a model of pure tones has a singular system
    made[missing] = solveh_banded(upper, right, check_finite=False)
    return made


def interpolate_in_frames(
    y: np.ndarray, places: np.ndarray, order: int, frame: int, rounds: int, level: float | None = None
) -> np.ndarray:
    """y with the samples at `places` from models of every `frame` samples and half as many on both sides; float64.

    Each round estimates the models from the samples found so far. With a level the found samples keep the sign that y
    has there and are not below it: where least squares falls short the level is taken, and the others are solved for
    again, up to four times.
    """
    made, signs = y.astype(np.float64), np.sign(y)
    for _ in range(rounds):
        before = made.copy()
        for start in range(0, len(y), frame):
            inside = places[(places >= start) & (places < start + frame)]
            if len(inside) == 0:
                continue
            first, last = max(0, start - frame // 2), min(len(y), start + frame + frame // 2)
            around, free = before[first:last].copy(), places[(places >= first) & (places < last)] - first
            model, sign = burg([around], order), signs[first:last]
            for _ in range(4):
                around = interpolate(around, free, model)
                low = np.zeros(len(free), bool) if level is None else sign[free] * around[free] < level
                if not low.any():
                    break
                around[free[low]] = sign[free[low]] * level
                free = free[~low]
                if len(free) == 0:
                    break
            made[inside] = around[inside - first]
    return made


# Gaps ---------------------------------------------------------------------------------------------------------------


def contexts(y: np.ndarray, gaps: Sequence[Gap], index: int, most: int) -> Gap:
    """Where the known samples around a gap begin and end: at the next gaps, or `most` samples from it."""
    start, stop = gaps[index]
    first = gaps[index - 1][1] if index else 0
    last = gaps[index + 1][0] if index + 1 < len(gaps) else len(y)
    return max(first, start - most), min(last, stop + most)


def zeros(y: np.ndarray, gaps: Sequence[Gap]) -> np.ndarray:
    made = y.copy()
    for start, stop in gaps:
        made[start:stop] = 0
    return made


def linear(y: np.ndarray, gaps: Sequence[Gap]) -> np.ndarray:
    """A straight line from the sample before a gap to the one after it."""
    made = y.copy()
    for start, stop in gaps:
        made[start:stop] = np.interp(np.arange(start, stop), [start - 1, stop], y[[start - 1, stop]])
    return made


def ar_extrapolation(
    y: np.ndarray, gaps: Sequence[Gap], order: int = GAP_ORDER, context: int = GAP_CONTEXT
) -> np.ndarray:
    """Each side is continued by a model of its own, and the two are cross-faded (Kauppinen & Roth 2002)."""
    made = y.copy()
    for index, (start, stop) in enumerate(gaps):
        first, last = contexts(y, gaps, index, context)
        before, after = y[first:start].astype(np.float64), y[stop:last][::-1].astype(np.float64)
        samples = stop - start
        fade = np.cos(np.pi / 2 * (np.arange(samples) + 0.5) / samples) ** 2
        onward = extrapolate(before, burg([before], order), samples)
        backward = extrapolate(after, burg([after], order), samples)[::-1]
        made[start:stop] = fade * onward + (1 - fade) * backward
    return made


def ar_extrapolation_near(y: np.ndarray, gaps: Sequence[Gap]) -> np.ndarray:
    """The same from 40 ms on each side: models of so little data hardly fade."""
    return ar_extrapolation(y, gaps, context=NEAR_CONTEXT)


def ar_interpolation(
    y: np.ndarray, gaps: Sequence[Gap], order: int = GAP_ORDER, context: int = GAP_CONTEXT, rounds: int = 1
) -> np.ndarray:
    """Least squares under one model of both sides; in further rounds the model is one of the filled gap as well."""
    made = y.copy()
    for index, (start, stop) in enumerate(gaps):
        first, last = contexts(y, gaps, index, context)
        around = y[first:last].astype(np.float64)
        missing = np.arange(start, stop) - first
        model = burg([around[: missing[0]], around[missing[-1] + 1 :]], order)
        for turn in range(rounds):
            model = burg([around], order) if turn else model
            around = interpolate(around, missing, model)
        made[start:stop] = around[missing]
    return made


# Clipping -----------------------------------------------------------------------------------------------------------


def clipped_places(y: np.ndarray, level: float) -> np.ndarray:
    """The rising indices of the samples at the level."""
    return np.flatnonzero(np.abs(y) >= level * (1 - 1e-6))


def consistent(made: np.ndarray, y: np.ndarray, level: float) -> np.ndarray:
    """`made` at the clipped samples, nowhere nearer to 0 than y, and y elsewhere."""
    kept, places = y.copy(), clipped_places(y, level)
    sign = np.sign(y[places])
    kept[places] = sign * np.maximum(sign * made[places], np.abs(y[places]))
    return kept


def ar_declip(
    y: np.ndarray, level: float, order: int = DECLIP_ORDER, frame: int = DECLIP_FRAME, rounds: int = DECLIP_ROUNDS
) -> np.ndarray:
    """Least squares under models of frames, the clipped samples not below the level."""
    return consistent(interpolate_in_frames(y, clipped_places(y, level), order, frame, rounds, level), y, level)


def a_spade(y: np.ndarray, level: float) -> np.ndarray:
    """The package's own, beside which its models are seen."""
    from jaxdiff.inference.declipping import declip

    mask = np.zeros(len(y), bool)
    mask[clipped_places(y, level)] = True
    return declip(y, mask, RATE)


# Clicks -------------------------------------------------------------------------------------------------------------


def median(y: np.ndarray, samples: int = 9) -> np.ndarray:
    """The median of `samples` samples around each; 9 gave the best SDR of 3 to 65 for clicks of 1 to 4 ms."""
    return medfilt(y, samples)


def indices(gaps: Sequence[Gap]) -> np.ndarray:
    return np.concatenate([np.arange(start, stop) for start, stop in gaps]) if gaps else np.zeros(0, int)


def ar_declick(
    y: np.ndarray,
    clicks: Sequence[Gap],
    order: int = CLICK_ORDER,
    frame: int = CLICK_FRAME,
    rounds: int = CLICK_ROUNDS,
) -> np.ndarray:
    """Least squares at the clicks under models of frames, at first of the sound with straight lines there."""
    made = interpolate_in_frames(linear(y, clicks), indices(clicks), order, frame, rounds)
    return made.astype(y.dtype)


def find_clicks(y: np.ndarray, order: int = 32, frame: int = 1024, factor: float = CLICK_FACTOR) -> list[Gap]:
    """Where the errors of a prediction from both sides stand out (Godsill & Rayner 1998, chapter 5).

    After a click the forward errors stay large for `order` samples, before it the backward ones, so that a click is
    where both exceed `factor` times the typical error of the frame, that of a normal distribution with its median.
    """
    marked = np.zeros(len(y), bool)
    for start in range(0, len(y), frame):
        first, last = max(0, start - frame // 2), min(len(y), start + frame + frame // 2)
        around = y[first:last].astype(np.float64)
        model = burg([around], order)
        forward = np.abs(lfilter(model, [1.0], around))
        backward = np.abs(lfilter(model, [1.0], around[::-1])[::-1])
        error = np.minimum(forward, backward)
        high = error > factor * max(float(np.median(error)), 1e-6) / 0.6745
        marked[start : start + frame] = high[start - first : start - first + frame]
    places = np.flatnonzero(marked)
    if len(places) == 0:
        return []
    breaks = np.flatnonzero(np.diff(places) > CLICK_APART) + 1
    # A line on both sides of a click needs one known sample there.
    return [
        (max(1, int(part[0]) - 1), min(len(y) - 1, int(part[-1]) + 2))
        for part in np.split(places, breaks)
        if part[-1] < len(y) - 2
    ]


def ar_find_and_declick(y: np.ndarray, rounds: int = 3) -> np.ndarray:
    """`ar_declick` of the clicks found; each round looks for more in the sound repaired so far."""
    made = y
    for _ in range(rounds):
        made = ar_declick(made, find_clicks(made))
    return made
