"""Change a sound through its STFT: split it into harmonic and percussive parts, stretch its time, shift its pitch.

librosa's names and defaults. Sources: Fitzgerald 2010 and Driedger et al. 2014 (median filtering, margins); Flanagan &
Golden 1966, Laroche & Dolson 1999 (phase vocoder).
"""

import functools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from .resample import LARGEST_TERM, interpolate, resample
from .spectral import frame_sizes, istft, magphase, stft, unit_phase
from .transform import each_item, transform
from .windows import MAX_COPIES, Window, frame, pad


def _median(x: Float[Array, "bins frames"], size: int, axis: int) -> Float[Array, "bins frames"]:
    """Running median of an odd number of values, the ends mirrored."""
    half = size // 2
    wide = pad(jnp.moveaxis(x, axis, -1), half, half, "symmetric")
    if size > 2 * MAX_COPIES:
        return jnp.moveaxis(jax.lax.map(lambda run: _median_of(frame(run, size, 1).T), wide), -1, axis)
    wide = jnp.moveaxis(wide, -1, axis)
    return _median_of([jax.lax.slice_in_dim(wide, k, k + x.shape[axis], axis=axis) for k in range(size)])


@functools.lru_cache(maxsize=16)
def _exchanges(size: int) -> list[np.ndarray]:
    """The stages of Batcher's network for `size` values: pairs `[2, count]` that are put in order at the same time."""
    stages, p = [], 1
    while p < size:
        k = p
        while k >= 1:
            lower = [i + j for j in range(k % p, size - k, 2 * k) for i in range(min(k, size - j - k))]
            lower = [i for i in lower if i // (2 * p) == (i + k) // (2 * p)]
            stages.append(np.array([lower, [i + k for i in lower]], int))
            k //= 2
        p *= 2
    return stages


@jax.custom_jvp
def _median_of(rows: list[Array] | Array) -> Array:
    """Median of an odd number of rows: of a few in a list pair by pair, of many in an array stage by stage."""
    if isinstance(rows, list):
        rows = list(rows)
        for i, j in np.concatenate([np.empty((2, 0), int), *_exchanges(len(rows))], axis=1).T:
            rows[i], rows[j] = jnp.minimum(rows[i], rows[j]), jnp.maximum(rows[i], rows[j])
        return rows[len(rows) // 2]
    for lower, upper in _exchanges(len(rows)):
        partner, smaller = np.arange(len(rows)), np.zeros((len(rows), 1), bool)
        partner[lower], partner[upper], smaller[lower] = upper, lower, True
        rows = jnp.where(smaller, jnp.minimum(rows, rows[partner]), jnp.maximum(rows, rows[partner]))
    return rows[len(rows) // 2]


@_median_of.defjvp
def _median_tangent(primals, tangents):
    """The change of the first row that equals the median."""
    (rows,), (changes,) = primals, tangents
    median = _median_of(rows)
    if not isinstance(rows, list):
        return median, jnp.take_along_axis(changes, jnp.argmax(rows == median, axis=0)[None], axis=0)[0]
    change = changes[-1]
    for row, candidate in zip(rows[-2::-1], changes[-2::-1], strict=True):
        change = jnp.where(row == median, candidate, change)
    return median, change


def _softmask(x: Array, other: Array, power: float, at_silence: float) -> Array:
    """`x^power / (x^power + other^power)`, scaled first so that nothing over- or underflows."""
    top = jax.lax.stop_gradient(jnp.maximum(x, other))  # it cancels
    silent = top < 1e-30
    top = jnp.where(silent, 1, top)
    if np.isinf(power):
        return (x > other).astype(x.dtype)
    a, b = (jnp.where(silent, 1, v / top) for v in (x, other))
    a, b = (a**2, b**2) if power == 2 else (jnp.maximum(a, 1e-30) ** power, jnp.maximum(b, 1e-30) ** power)
    return jnp.where(silent, at_silence, a / (a + b))


@transform
def hpss_masks(
    S: Float[Array, "... bins frames"], *, kernel_size: int = 31, power: float = 2.0, margin: float = 1.0
) -> tuple[Float[Array, "... bins frames"], Float[Array, "... bins frames"]]:
    """Soft masks of the harmonic and the percussive part of a magnitude spectrogram.

    Medians over `kernel_size` frames keep what lasts, over bins what is broad; a mask compares the `power`-th power of
    one with that of `margin` times the other. With `margin` 1 both masks sum to 1; above, a residual is left out.

    >>> steady = jnp.zeros((65, 40)).at[20].set(1.0)
    >>> [float(m[20, 20]) for m in hpss_masks(steady, kernel_size=5)]
    [1.0, 0.0]
    """
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd number, got {kernel_size}")
    if half := max(0, kernel_size // 2 - min(S.shape[-2:])):
        raise ValueError(f"kernel_size {kernel_size} needs {kernel_size // 2} bins and frames, {half} more than S has")

    def one(S: Array) -> tuple[Array, Array]:
        harmonic, percussive = _median(S, kernel_size, 1), _median(S, kernel_size, 0)
        rest = 0.5 if margin == 1 else 0.0
        return (
            _softmask(harmonic, margin * percussive, power, rest),
            _softmask(percussive, margin * harmonic, power, rest),
        )

    return each_item(one, S, axes=2)


@transform
def hpss(
    y: Float[Array, "... samples"],
    *,
    kernel_size: int = 31,
    power: float = 2.0,
    margin: float = 1.0,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Window = "hann",
) -> tuple[Float[Array, "... samples"], Float[Array, "... samples"]]:
    """The harmonic and the percussive part of a waveform, as `librosa.effects.hpss`; see `hpss_masks`.

    >>> y = jnp.sin(jnp.arange(8192.0))
    >>> harmonic, percussive = hpss(y)
    >>> bool(jnp.abs(harmonic + percussive - y).max() < 1e-4)
    True
    """
    options: dict[str, Any] = dict(hop_length=hop_length, win_length=win_length, window=window)
    D = stft(y, n_fft=n_fft, **options)
    masks = hpss_masks(jnp.abs(D), kernel_size=kernel_size, power=power, margin=margin)
    harmonic, percussive = (istft(D * m, n_fft=n_fft, **options, length=y.shape[-1]) for m in masks)
    return harmonic, percussive


@transform
def phase_vocoder(D: Complex[Array, "... bins frames"], *, rate: float) -> Complex[Array, "... bins stretched"]:
    """An STFT played `rate` times as fast, `ceil(frames / rate)` frames long.

    Magnitudes are interpolated; a bin's phase turns from frame to frame as it does in `D` at that time. Only turns are
    multiplied, as unit complex numbers, so no angle is ever unwrapped and rate 1 returns `D`.

    >>> phase_vocoder(jnp.ones((5, 10), jnp.complex64), rate=2.0).shape
    (5, 5)
    """
    frames = D.shape[-1]
    times = np.arange(0, frames, rate)
    index = times.astype(int)
    share = jnp.asarray(times - index, D.real.dtype)
    D = jnp.pad(D, [(0, 0)] * (D.ndim - 1) + [(0, 2)])
    magnitude, phase = magphase(D)
    turn = phase[..., 1:] * phase[..., :-1].conj()
    steps = jnp.concatenate([phase[..., :1], turn[..., index[:-1]]], axis=-1)
    spun = unit_phase(jax.lax.associative_scan(jnp.multiply, steps, axis=-1))
    return ((1 - share) * magnitude[..., index] + share * magnitude[..., index + 1]) * spun


@transform
def time_stretch(
    y: Float[Array, "... samples"],
    *,
    rate: float,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Window = "hann",
) -> Float[Array, "... stretched"]:
    """`y` at `rate` times the speed with its pitch kept: `round(samples / rate)` samples.

    >>> time_stretch(jnp.ones(8000), rate=2.0).shape
    (4000,)
    """
    hop_length, win_length = frame_sizes(n_fft, hop_length, win_length)
    options: dict[str, Any] = dict(hop_length=hop_length, win_length=win_length, n_fft=n_fft, window=window)
    return istft(phase_vocoder(stft(y, **options), rate=rate), **options, length=round(y.shape[-1] / rate))


def _near(rate: float) -> tuple[Fraction, bool]:
    """A fraction within 0.03 cents of `rate`, and whether its terms are small enough for a filter of each phase."""
    near = Fraction(rate).limit_denominator(256)
    few = abs(1200 * math.log2(near / rate)) <= 0.03
    return near if few else Fraction(rate).limit_denominator(int(LARGEST_TERM / max(1, rate))), few


@transform
def pitch_shift(
    y: Float[Array, "... samples"],
    *,
    n_steps: float,
    bins_per_octave: int = 12,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Window = "hann",
) -> Float[Array, "... samples"]:
    """`y` shifted by `n_steps` steps of `1 / bins_per_octave` octave, its length kept: stretched, then resampled.

    Steps are rounded to a ratio of whole numbers, within 0.03 cents; no sample rate is needed. Refuses shifts of more
    than four octaves (`ValueError`).

    >>> pitch_shift(jnp.ones(8000), n_steps=3.0).shape
    (8000,)
    """
    octaves = n_steps / bins_per_octave
    if abs(octaves) > 4:
        raise ValueError(f"n_steps {n_steps} of {bins_per_octave} per octave is {octaves:.3g} octaves; use at most 4")
    rate, few = _near(2.0**-octaves)
    options: dict[str, Any] = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length, window=window)
    slow = time_stretch(y, rate=float(rate), **options)
    if few:
        shifted = resample(slow, orig_sr=rate.denominator, target_sr=rate.numerator)[..., : y.shape[-1]]
    else:
        shifted = each_item(lambda y: interpolate(y, rate.numerator, rate.denominator), slow)[..., : y.shape[-1]]
    return jnp.pad(shifted, [(0, 0)] * (y.ndim - 1) + [(0, y.shape[-1] - shifted.shape[-1])])
