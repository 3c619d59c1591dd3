"""Clipped samples by sparsity: of all sounds that agree with what is known, one whose spectra have few large bins.

A-SPADE (Kitic, Bertin & Gribonval 2015; as in Zaviska et al. 2019). Of each windowed frame x, with the DFT A of twice
its length and the scaled dual u of ADMM,

    z = the k largest bins of A x + u        x = the sound nearest to A* (z - u) that agrees        u = u + A x - z

and k grows by one until A x and z are close. A sound agrees if it has the known samples and is nowhere, where samples
were cut, below them.
"""

import numpy as np
from jaxtyping import Bool, Float

_FRAME_SECONDS = 0.064
_OVERLAP = 4  # frames that see a sample
_CLOSE = 0.1  # of the largest sample: the distance of A x and z at which a frame is done
_TOGETHER = 32  # frames, which fit into a processor's cache


def declip(
    y: Float[np.ndarray, " samples"], clipped: Bool[np.ndarray, " samples"], sr: float
) -> Float[np.ndarray, " samples"]:
    """`y` with its `clipped` samples, which hold the level at which they were cut, moved beyond it."""
    level = float(np.abs(y[clipped]).max(initial=0.0))
    if not level > 0:
        return y
    hop = 1 << max(3, round(np.log2(_FRAME_SECONDS * sr / _OVERLAP)))
    frame = _OVERLAP * hop
    margin = ((frame, frame + -len(y) % hop),)
    sound, mask = np.pad((y / level).astype(np.float32), margin), np.pad(clipped, margin)
    window = np.hanning(frame + 1)[:-1].astype(np.float32)
    starts = np.arange(0, len(sound) - frame + 1, hop)
    starts = np.array([start for start in starts if mask[start : start + frame].any()], int)
    total = np.zeros(len(sound), np.float64)
    weight = np.zeros(len(sound), np.float64)
    for part in np.array_split(starts, -(-len(starts) // _TOGETHER)):
        places = part[:, None] + np.arange(frame)
        for start, made in zip(part, _sparse(sound[places] * window, mask[places]), strict=True):
            total[start : start + frame] += made
            weight[start : start + frame] += window
    made = (level * total / np.maximum(weight, 1e-9))[frame : frame + len(y)]
    sign, size = np.sign(y), np.abs(y)
    return np.where(clipped, sign * np.maximum(sign * made, size), y).astype(y.dtype)


def _sparse(x: Float[np.ndarray, "frames samples"], clipped: Bool[np.ndarray, "frames samples"]) -> np.ndarray:
    """The frames that agree with `x` and are sparse."""
    out = x.copy()
    samples = x.shape[-1]
    size = 2 * samples
    left = np.arange(len(x))
    sign, least = np.sign(x), np.abs(x)
    A = lambda x: np.fft.rfft(x, size, norm="ortho")  # noqa: E731
    now, bins = x, A(x)
    dual = np.zeros_like(bins)
    for k in range(1, bins.shape[-1]):
        z = bins + dual
        strength = z.real**2 + z.imag**2
        threshold = np.partition(strength, -k, axis=-1)[:, -k, None]
        z *= strength >= threshold
        near = np.fft.irfft(z - dual, size, norm="ortho")[:, :samples]
        now = np.where(clipped[left], sign[left] * np.maximum(sign[left] * near, least[left]), x[left])
        bins = A(now)
        apart = bins - z
        dual = dual + apart
        energy = 2 * (apart.real**2 + apart.imag**2).sum(-1)
        out[left] = now
        open_ = energy > _CLOSE**2
        if not open_.any():
            break
        if not open_.all():
            left, bins, dual = left[open_], bins[open_], dual[open_]
    return out
