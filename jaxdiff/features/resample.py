"""Change the sampling rate: band-limited interpolation as one matrix product per block of samples.

    y'(t) = sum_n y[n] h(t - n),      h(t) = c sinc(c t) kaiser(t / half),      t = m orig / target

With target / orig = up / down in lowest terms, `up` outputs advance by `down` inputs and see the same weights in every
block: each block of inputs and its neighbours times one constant matrix. The cost grows with the filter's length like
that of a polyphase filter, reads each sample once or twice, and runs as matrix products (J. O. Smith, Digital Audio
Resampling, CCRMA; Kaiser's design formulae: Oppenheim & Schafer, Discrete-Time Signal Processing, section 7.5).
A ratio that is known only at run time (`change_speed`) replaces the `up` phases by a polynomial in the phase, whose
coefficients are fixed filters (Farrow 1988).
"""

import functools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .transform import each_item, transform
from .windows import frame

_DEGREE = 7  # of the polynomial in the phase: Chebyshev's bound for a full-band signal is -103 dB
_LARGEST_BANK = 2**24  # weights
LARGEST_TERM = 46340  # of a ratio: the product of two fits in 32 bits


@transform
def resample(
    y: Float[Array, "... samples"],
    *,
    orig_sr: float,
    target_sr: float,
    rolloff: float = 0.913,
    stopband_db: float = 120.0,
) -> Float[Array, "... resampled"]:
    """`y` at another sampling rate: `ceil(samples * target_sr / orig_sr)` samples, the first at the same time.

    Rates in Hz, of which only the ratio matters. Frequencies up to `rolloff` of the lower Nyquist frequency pass, those
    above it are attenuated by `stopband_db`; beyond its ends the waveform counts as silent. The defaults are those of
    soxr's high quality. Refuses rates and options out of range, and ratios of huge terms such as 44100 / 44101
    (`ValueError`).

    >>> resample(jnp.ones(441), orig_sr=44100, target_sr=16000).shape
    (160,)
    """
    ratio = Fraction(target_sr) / Fraction(orig_sr)
    if ratio == 1:
        return y
    half, cutoff, beta = kaiser_lowpass(min(1.0, float(ratio)), rolloff, stopband_db)
    return each_item(lambda item: polyphase(item, ratio.numerator, ratio.denominator, half, cutoff, beta), y)


@transform
def change_speed(
    y: Float[Array, "... samples"],
    factor: Float[Array, "..."],
    *,
    fastest: float = 1.5,
    rolloff: float = 0.913,
    stopband_db: float = 100.0,
) -> Float[Array, "... samples"]:
    """`y` played `factor` times as fast, hence higher by 12 log2(factor) semitones: out[n] = y(n factor).

    `factor` holds one number in (0, 2) for each leading axis of `y`, or one for all, known at run time; it is rounded
    to multiples of 2^-16 (0.03 cent), which keeps the times exact, and has no gradient. The length stays: what comes
    too late is cut, what is missing is zero. Only frequencies that every factor up to `fastest` keeps are passed:
    those below `rolloff / fastest` of the Nyquist frequency. Refuses a `fastest` outside [1, 2) and waveforms of 2^23
    samples or more (`ValueError`).

    >>> change_speed(jnp.sin(jnp.arange(500) / 9), jnp.array(1.25)).shape
    (500,)
    """
    length = y.shape[-1]
    if length >= 2**23:
        raise ValueError(f"the waveform has {length} samples, change_speed takes fewer than {2**23}; cut it in pieces")
    if jnp.ndim(factor) > y.ndim - 1:
        raise ValueError(f"factor has {jnp.ndim(factor)} axes, at most the {y.ndim - 1} leading ones of y are needed")
    half, cutoff, beta = kaiser_lowpass(1 / fastest, rolloff, stopband_db)
    bank, block = _farrow_bank(half, cutoff, beta)
    n = jnp.arange(length)

    def item(y, factor):
        # n * factor in fixed point with 16 fractional bits, as 32-bit integers: the excess over n in two parts.
        excess = jnp.round((jnp.clip(factor, 0, 2 - 2**-16) - 1) * 2**16).astype(jnp.int32)
        coarse, fine = (n >> 8) * excess, (n & 255) * excess
        part = ((coarse & 255) << 8) + fine + 2**15
        nearest = n + (coarse >> 8) + (part >> 16)
        phase = ((part & 0xFFFF) - 2**15).astype(y.dtype) / 2**16
        return _between(y, bank, block, nearest, phase)

    return each_item(item, y, jnp.broadcast_to(jnp.asarray(factor, y.dtype), y.shape[:-1]))


def kaiser_lowpass(nyquist: float, rolloff: float, stopband_db: float) -> tuple[float, float, float]:
    """Half length in samples, cut-off and beta of a Kaiser low-pass that falls from `rolloff * nyquist` to `nyquist`.

    Frequencies are relative to the Nyquist frequency of the waveform.
    """
    taps = (stopband_db - 7.95) / (2.285 * np.pi * (1 - rolloff) * nyquist)
    beta = 0.1102 * (stopband_db - 8.7) if stopband_db > 50 else 0.5842 * (stopband_db - 21) ** 0.4
    return taps / 2, (1 + rolloff) / 2 * nyquist, beta


def polyphase(
    y: Float[Array, " samples"], up: int, down: int, half: float, cutoff: float, beta: float
) -> Float[Array, " resampled"]:
    """One waveform at `up / down` times its rate, through the interpolator of `kaiser_lowpass`."""
    repeat = math.ceil(half / down)
    length = int(resampled_length(y.shape[-1], up, down))
    outputs = _by_blocks(y, _bank(up * repeat, down * repeat, half, cutoff, beta), down * repeat, up * repeat, length)
    return outputs.reshape(-1)[:length]


def resampled_length(samples: Int[Array, ""] | int, up: int, down: int) -> Int[Array, ""] | int:
    """How many samples `polyphase` makes of so many, `ceil(samples up / down)`."""
    return samples // down * up - (-(samples % down) * up // down)  # no product leaves 32 bits


def interpolate(y: Float[Array, " samples"], up: int, down: int) -> Float[Array, " resampled"]:
    """One waveform at `up / down` times its rate, of which both are at most `LARGEST_TERM`, at the same cost for all.

    Output m is at sample `m down / up`, whose whole part and remainder are exact in 32-bit integers.
    """
    bank, block = _farrow_bank(*kaiser_lowpass(min(1.0, up / down), rolloff=0.913, stopband_db=100.0))
    m = jnp.arange(-(-y.shape[-1] * up // down))
    ticks = m % up * down + up // 2
    phase = (ticks % up - up // 2).astype(y.dtype) / up
    return _between(y, bank, block, m // up * down + ticks // up, phase)


def _between(y: Array, bank: np.ndarray, block: int, nearest: Array, phase: Array) -> Array:
    """The polynomial around each `nearest` sample at `phase` samples from it; 0 beyond the ends."""
    polynomials = _by_blocks(y, bank, block, block, len(y)).reshape(-1, _DEGREE + 1)[: len(y)]
    polynomials = jnp.take(polynomials, nearest, axis=0, mode="fill", fill_value=0)
    out = polynomials[:, _DEGREE]
    for power in reversed(range(_DEGREE)):
        out = out * phase + polynomials[:, power]
    return out


def _by_blocks(y: Array, bank: np.ndarray, advance: int, outputs: int, length: int) -> Array:
    """Every `advance` samples and the neighbours that the bank spans, times the bank: `outputs` of `length` a block."""
    blocks = -(-length // outputs)
    wing = (len(bank) - advance) // 2
    y = jnp.pad(y, (wing, wing + blocks * advance - len(y)))
    return jnp.matmul(frame(y, len(bank), advance), jnp.asarray(bank, y.dtype), precision="highest")


def _kernel(t: np.ndarray, half: float, cutoff: float, beta: float) -> np.ndarray:
    window = np.i0(beta * np.sqrt(np.maximum(1 - (t / half) ** 2, 0))) / np.i0(beta)
    return np.where(np.abs(t) <= half, cutoff * np.sinc(cutoff * t) * window, 0.0)


@functools.lru_cache(maxsize=16)
def _bank(up: int, down: int, half: float, cutoff: float, beta: float) -> np.ndarray:
    """Weights `[inputs, up]` of the outputs at 0, down / up, ... < down among the inputs -wing ... down + wing - 1."""
    wing = math.ceil(half)
    if (down + 2 * wing) * up > _LARGEST_BANK:
        raise ValueError(
            f"the ratio {up}:{down} needs {(down + 2 * wing) * up} filter weights, more than {_LARGEST_BANK}; "
            f"choose rates with a larger common divisor"
        )
    inputs = np.arange(-wing, down + wing)[:, None]
    return _kernel(inputs - np.arange(up) * (down / up), half, cutoff, beta)


@functools.lru_cache(maxsize=16)
def _farrow_bank(half: float, cutoff: float, beta: float) -> tuple[np.ndarray, int]:
    """Weights `[inputs, block * (degree + 1)]` of the coefficients of the polynomial around each sample of a block."""
    wing = math.ceil(half) + 1
    block = min(wing, 256)
    nodes = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1)) / 2  # phases in (-1/2, 1/2)
    inputs, samples = np.arange(-wing, block + wing)[:, None, None], np.arange(block)[:, None]
    values = _kernel(inputs - samples - nodes, half, cutoff, beta)
    coefficients = values @ np.linalg.inv(np.vander(nodes, increasing=True)).T
    return coefficients.reshape(len(inputs), -1), block
