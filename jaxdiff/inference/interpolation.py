"""Short runs of missing samples, by the prediction that the sound around them fits best: for clicks.

Given a prediction filter a, the missing samples are those that make the energy of its error least, which is a linear
system in them (Janssen, Veldhuis & Vries 1986; Godsill & Rayner 1998, section 5.2). The filter is found from the sound
as it is filled in so far, and both are repeated.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import solve, solve_toeplitz

_ORDER = 160  # of the prediction at 16 kHz and at any other rate
_BLOCK = 1024  # samples that are filled in together, with as many beside them
_TIMES = 3


def interpolate(
    y: Float[np.ndarray, " samples"], missing: Bool[np.ndarray, " samples"]
) -> Float[np.ndarray, " samples"]:
    """`y` with its missing samples filled in; what they hold does not matter. Best for runs of a few milliseconds."""
    known = np.flatnonzero(~missing)
    if not missing.any() or len(known) < 2:
        return y
    filled = y.astype(np.float64)
    filled[missing] = np.interp(np.flatnonzero(missing), known, filled[known])
    for _ in range(_TIMES):
        before = filled.copy()
        for start in range(0, len(y), _BLOCK):
            stop, low, high = start + _BLOCK, max(0, start - _BLOCK // 2), min(len(y), start + 3 * _BLOCK // 2)
            if missing[start:stop].any():  # what is missing around it is found with it, and not kept
                around = before[low:high].copy()
                around[missing[low:high]] = _least_error(around, missing[low:high])
                filled[start:stop] = around[start - low : stop - low]
    return filled.astype(y.dtype)


def _least_error(y: Float[np.ndarray, " samples"], wanted: Bool[np.ndarray, " samples"]) -> np.ndarray:
    """The values at the wanted places that the rest predicts best."""
    order, windowed = min(_ORDER, len(y) // 4), y * np.hanning(len(y))
    size = 1 << (2 * len(y) - 1).bit_length()
    power = np.fft.irfft(np.abs(np.fft.rfft(windowed, size)) ** 2, size)[: order + 1]
    if order == 0 or power[0] <= 0:
        return y[wanted]
    power[0] *= 1 + 1e-7
    a = np.concatenate([[1.0], solve_toeplitz(power[:-1], -power[1:])])
    weights = np.correlate(a, a, "full")[order:]  # of the error's energy, by distance of two samples
    places = np.flatnonzero(wanted)
    apart = np.abs(places[:, None] - places)
    matrix = np.where(apart <= order, weights[np.minimum(apart, order)], 0.0)
    rest = np.where(wanted, 0.0, y)
    given = np.convolve(rest, np.concatenate([weights[:0:-1], weights]), "same")[wanted]
    return solve(matrix, -given, assume_a="pos")
