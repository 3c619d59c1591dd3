"""A constant-Q transform with an exact inverse: `invertible_cqt` and `icqt`.

Smooth bands whose squares add up to 1 at every frequency are cut out of the spectrum of the whole sound and each is
sampled fast enough to lose nothing: a painless non-stationary Gabor frame (Velasco, Holighaus, Doerfler & Grill 2011),
tight, so that its adjoint is its inverse. One frame rate for all bands makes one array of them, at the price of a short
hop.
"""

import functools
from typing import cast

import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Complex, Float

from .constantq import C1
from .transform import each_item, transform


@transform
def invertible_cqt(
    y: Float[Array, "... samples"],
    *,
    sr: float = 22050,
    hop_length: int | None = None,
    fmin: float | None = None,
    bins_per_octave: int = 12,
) -> Complex[Array, "... bins frames"]:
    """Constant-Q transform that `icqt` inverts exactly, from `fmin` (Hz, default C1) up to half of `sr`.

    Bin k is centred on `fmin 2^((k - 1) / bins_per_octave)` and reaches to its neighbours' centres; bin 0 holds what
    lies below and the last bin what lies above. A sine of amplitude A at a centre has magnitude A. Frame m is at sample
    `m * hop_length`; the hop defaults to about the longest that the widest bin allows (18 samples for the other
    defaults), so the array holds about 2 * bins / hop numbers for each sample. The waveform is padded with zeros to a
    number of frames whose FFT is fast, and taken as periodic: the first frames hear the end of an unpadded waveform.

    >>> y = jnp.sin(jnp.arange(3000.0) ** 1.1)
    >>> C = invertible_cqt(y, bins_per_octave=24)
    >>> C.shape
    (203, 84)
    >>> bool(jnp.allclose(icqt(C, length=3000, bins_per_octave=24), y, atol=1e-5))
    True
    """
    hop, frames, lower, rising, falling, edges = _bands(y.shape[-1], sr, hop_length, fmin, bins_per_octave)
    start, middle, end = jnp.asarray(edges)[..., None]
    position = start + (jnp.arange(frames) - start) % frames  # of each frequency after folding to `frames` values
    size = len(lower)
    source = jnp.where(position < middle, position, jnp.where(position < end, position + size, 2 * size))

    def one(y: Array) -> Array:
        X = jnp.fft.rfft(y, n=hop * frames) * (2 / hop)
        halves = jnp.concatenate(
            [X * jnp.asarray(rising, y.dtype), X * jnp.asarray(falling, y.dtype), jnp.zeros_like(X[:1])]
        )
        return jnp.fft.ifft(halves[source])

    return each_item(one, y)


@transform
def icqt(
    C: Complex[Array, "... bins frames"],
    *,
    length: int,
    sr: float = 22050,
    hop_length: int | None = None,
    fmin: float | None = None,
    bins_per_octave: int = 12,
) -> Float[Array, "... samples"]:
    """The waveform of `length` samples whose `invertible_cqt` with the same options is `C`.

    The bands' squares add up to 1 at each frequency, so the frame is tight and its adjoint is its inverse (Velasco et
    al. 2011). It does not invert `cqt`, which keeps too few frames.

    >>> y = jnp.ones(500)
    >>> bool(jnp.allclose(icqt(invertible_cqt(y), length=500), y, atol=1e-5))
    True
    """
    hop, frames, lower, rising, falling, edges = _bands(length, sr, hop_length, fmin, bins_per_octave)
    if C.shape[-2:] != (edges.shape[1], frames):
        raise ValueError(
            f"C has {C.shape[-2]} bins and {C.shape[-1]} frames, these options and length {length} give "
            f"{edges.shape[1]} and {frames}; pass what invertible_cqt (not cqt) returned, and its options"
        )
    column = np.arange(len(lower)) % frames
    upper = np.minimum(lower + 1, edges.shape[1] - 1)

    def one(C: Array) -> Array:
        bands = jnp.fft.fft(C) * (hop / 2)
        X = bands[lower, column] * jnp.asarray(falling, C.real.dtype)
        X += bands[upper, column] * jnp.asarray(rising, C.real.dtype)
        return jnp.fft.irfft(X, n=hop * frames)[:length]

    return each_item(one, C, axes=2)


@functools.lru_cache(maxsize=4)
def _bands(length: int, sr: float, hop_length: int | None, fmin: float | None, bins_per_octave: int) -> tuple:
    """Bands of `invertible_cqt` on the frequencies of an FFT of `hop * frames` samples.

    Returns (hop, frames, lower, rising, falling, edges). Frequency f lies between the centres of the bands `lower[f]`,
    with weight `falling[f]`, and `lower[f] + 1`, with weight `rising[f]`; the squares of the two add up to 1. Band k
    rises over `edges[0, k] <= f < edges[1, k]` and falls over `edges[1, k] <= f < edges[2, k]`.
    """
    fmin, nyquist = C1 if fmin is None else fmin, sr / 2
    if length < 1 or not 0 < fmin < nyquist:
        raise ValueError(
            f"length {length} must be at least 1 and fmin {fmin} Hz between 0 and {nyquist} Hz (half of sr)"
        )
    count = int(bins_per_octave * np.log2(nyquist / fmin) + 1e-9)
    centres = fmin * 2.0 ** (np.arange(-1, count + 1) / bins_per_octave)  # of all bands; the outermost are flat beyond
    widest = np.max(np.append(centres[1:], nyquist) - np.append(0.0, centres[:-1]))
    longest = int(sr / widest)
    # SciPy's two functions are inferred to return None.
    hop = cast(int, scipy.fft.prev_fast_len(longest)) if hop_length is None else hop_length
    if not 1 <= hop <= longest:
        raise ValueError(
            f"hop_length {hop} must be from 1 to {longest} samples: the widest of {bins_per_octave} bins per octave "
            f"spans {widest:.0f} Hz; use more bins per octave for a longer hop"
        )
    frames = cast(int, scipy.fft.next_fast_len(-(-length // hop)))  # a prime number of frames is ten times slower
    frequencies = np.arange(hop * frames // 2 + 1) * (sr / (hop * frames))
    place = 1 + bins_per_octave * np.log2(np.maximum(frequencies, fmin / 4) / fmin)
    place = np.clip(place, 0, count + 1)
    lower = place.astype(np.int32)
    angle = np.pi / 2 * np.sin(np.pi / 2 * (place - lower)) ** 2
    bands = np.arange(count + 2)
    edges = [
        np.searchsorted(place, bands - 1, "right"),
        np.searchsorted(place, bands),
        np.searchsorted(place, bands + 1),
    ]
    return hop, frames, lower, np.sin(angle), np.cos(angle), np.array(edges, np.int32)
