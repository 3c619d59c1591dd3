"""Constant-Q and variable-Q transforms as librosa's.

    C[k, m] = sum_n y[n + m hop] h_k[n],      h_k = windowed exp(-2 pi i f_k n / sr),      f_k = fmin 2^(k / bins)

One octave at a time is analysed, each at half the rate of the octave above (Schoerkhuber & Klapuri 2010). They look at
few frames, so they cannot be inverted; `invertible_cqt` can. Filters are designed on the host in double precision.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Complex, Float

from .arguments import checked
from .transform import each_item, transform
from .windows import MAX_COPIES, Window, fft_window, frame, pad

C1 = 440 * 2**-3.75  # Hz, librosa's lowest bin


@checked
def cqt_frequencies(n_bins: int, fmin: float = C1, bins_per_octave: int = 12, tuning: float = 0.0) -> np.ndarray:
    """Centre frequencies in Hz of `n_bins` bins from `fmin` upwards; `tuning` is in bins (float64).

    >>> cqt_frequencies(3, fmin=100.0, bins_per_octave=1).tolist()
    [100.0, 200.0, 400.0]
    """
    if fmin <= 0:
        raise ValueError(f"fmin must be positive, got {fmin} Hz")
    return fmin * 2.0 ** ((np.arange(n_bins) + tuning) / bins_per_octave)


@transform
def vqt(
    y: Float[Array, "... samples"],
    *,
    sr: float = 22050,
    hop_length: int = 512,
    fmin: float | None = None,
    n_bins: int = 84,
    gamma: float | None = None,
    bins_per_octave: int = 12,
    tuning: float = 0.0,
    filter_scale: float = 1.0,
    norm: float | None = 1.0,
    sparsity: float = 0.01,
    window: Window = "hann",
    scale: bool = True,
    pad_mode: str = "constant",
) -> Complex[Array, "... bins frames"]:
    """Variable-Q transform: bin k has bandwidth `alpha f_k + gamma` Hz, as `librosa.vqt`.

    `fmin` in Hz (default C1, 32.7 Hz), `tuning` in bins, `hop_length` in samples; frame m is centred on sample
    `m * hop_length`, and there are `1 + samples // hop_length` of them. `gamma` in Hz; None follows the ear's
    rectangular bandwidth (Glasberg & Moore 1990). `filter_scale` lengthens all filters, `norm` is the p-norm that each
    is given, `sparsity` the share of each filter's spectrum (by magnitude, smallest first) that is dropped. With
    `scale`, a sine of amplitude A at f_k has magnitude `A / 2 sqrt(length of filter k in samples)`. A hop with few
    factors of 2 is slow, because an octave runs at half the rate of the one above only if its hop stays whole (and its
    highest bin is at most a fifth of that rate, as in librosa 1.0; before 1.0 librosa halves regardless).

    Agrees with librosa to 2e-6 of the maximum at the full rate and to 3e-4 at lower ones, but only to 5e-3 where a
    filter comes near half of its octave's rate (there soxr, which lowers the rate in librosa, rolls off a little
    differently) and in the outermost frames if the top octave already runs at a lower rate.

    >>> vqt(jnp.ones(22050), n_bins=60).shape
    (60, 44)
    """
    fmin = C1 if fmin is None else fmin
    octaves = _octaves(
        sr, hop_length, fmin, n_bins, gamma, bins_per_octave, tuning, filter_scale, norm, sparsity, window, scale
    )
    frames = 1 + y.shape[-1] // hop_length

    def one(y: Array) -> Array:
        bins, reached = [], 1
        for factor, filters in octaves:
            y, reached = _decimate(y, factor // reached), factor
            padded = pad(y, len(filters) // 2, len(filters) // 2, pad_mode)
            real, imag = jnp.split(_correlate(padded, filters, hop_length // factor, frames), 2, axis=-1)
            bins.append(jax.lax.complex(real, imag).T)
        return jnp.concatenate(bins[::-1])

    return each_item(one, y)


@transform
def cqt(
    y: Float[Array, "... samples"],
    *,
    sr: float = 22050,
    hop_length: int = 512,
    fmin: float | None = None,
    n_bins: int = 84,
    bins_per_octave: int = 12,
    tuning: float = 0.0,
    filter_scale: float = 1.0,
    norm: float | None = 1.0,
    sparsity: float = 0.01,
    window: Window = "hann",
    scale: bool = True,
    pad_mode: str = "constant",
) -> Complex[Array, "... bins frames"]:
    """Constant-Q transform (Brown 1991), as `librosa.cqt`: `vqt` with gamma 0. For an inverse, see `invertible_cqt`.

    >>> tone = jnp.sin(2 * jnp.pi * 440 / 22050 * jnp.arange(22050))
    >>> int(jnp.abs(cqt(tone))[:, 20].argmax())  # 45 semitones above C1
    45
    """
    pitch: dict[str, Any] = dict(
        sr=sr, fmin=fmin, n_bins=n_bins, gamma=0.0, bins_per_octave=bins_per_octave, tuning=tuning
    )
    shape: dict[str, Any] = dict(filter_scale=filter_scale, norm=norm, sparsity=sparsity, window=window, scale=scale)
    return vqt(y, hop_length=hop_length, **pitch, **shape, pad_mode=pad_mode)


def _correlate(
    y: Float[Array, " samples"], filters: np.ndarray, hop_length: int, frames: int
) -> Float[Array, "frames filters"]:
    """Inner products of `filters` [length, filters] with the wave at 0, hop_length, 2 hop_length ... (zero beyond it).

    Shifted copies of the filters stand side by side, so that one wide matrix product serves several frames at once:
    enough of them for 64 columns and for at most 16 slices in `frame`, none where frames do not overlap. Where that
    would be more than `MAX_COPIES`, products of spectra give all positions.
    """
    length, outputs = filters.shape
    if length > 16 * hop_length * MAX_COPIES:
        span = (frames - 1) * hop_length + length
        size = scipy.fft.next_fast_len(span, real=True)
        spectra = (
            jnp.fft.rfft(y[:span], size)[:, None] * jnp.fft.rfft(jnp.asarray(filters, y.dtype), size, axis=0).conj()
        )
        return jnp.fft.irfft(spectra, size, axis=0)[: span - length + 1 : hop_length]
    copies = min(-(-length // hop_length), max(-(-64 // outputs), -(-length // (16 * hop_length))))
    stride, width = copies * hop_length, length + (copies - 1) * hop_length
    wide = np.zeros((width, copies, outputs))
    for i in range(copies):
        wide[i * hop_length : i * hop_length + length, i] = filters
    need = (-(-frames // copies) - 1) * stride + width
    y = jnp.pad(y, (0, max(0, need - len(y))))[:need]
    matrix = jnp.asarray(wide.reshape(width, -1), y.dtype)
    return jnp.matmul(frame(y, width, stride), matrix, precision="highest").reshape(-1, outputs)[:frames]


def _decimate(y: Float[Array, " samples"], factor: int) -> Float[Array, " fewer"]:
    """Every `factor`-th sample of the low-passed wave, which is zero beyond its ends.

    As in librosa, a last sample nearer to the one after the end than to the end is silent.
    """
    if factor == 1:
        return y
    taps, length = _lowpass(factor), len(y)
    kept = (2 * length + factor) // (2 * factor)  # length / factor, rounded
    y = _correlate(jnp.pad(y, len(taps) // 2), taps, factor, kept)[:, 0]
    return jnp.pad(y, (0, -(-length // factor) - kept))


@functools.cache
def _lowpass(factor: int) -> np.ndarray:
    """Kaiser-windowed sinc `[taps, 1]`: within 3e-6 of 1 up to 0.913 of half the new rate and under 3e-6 from 1.003 on.

    It crosses 1/2 at 0.9565, like the filter of soxr's "HQ" that librosa takes; in between they differ by 0.013.
    """
    n = np.arange(-90 * factor, 90 * factor + 1)
    taps = np.sinc(0.9565 / factor * n) * np.kaiser(len(n), 0.1102 * (110 - 8.7))  # Kaiser's beta for 110 dB
    return (taps / taps.sum())[:, None]


@functools.lru_cache(maxsize=16)
def _octaves(
    sr: float,
    hop_length: int,
    fmin: float,
    n_bins: int,
    gamma: float | None,
    bins_per_octave: int,
    tuning: float,
    filter_scale: float,
    norm: float | None,
    sparsity: float,
    window: Window,
    scale: bool,
) -> list[tuple[int, np.ndarray]]:
    """For each octave from the top: the factor by which its rate is lower, and its filters `[length, 2 * bins]`.

    The first half of the columns gives the real part and the second half the imaginary part.
    """
    frequencies = cqt_frequencies(n_bins, fmin, bins_per_octave, tuning)
    ratio: float = 4.0 ** (1 / bins_per_octave)
    alpha = (ratio - 1) / (ratio + 1)  # half the distance of a bin's neighbours, over its frequency
    gamma = alpha * 24.7 / 0.108 if gamma is None else gamma
    seconds = filter_scale / (alpha * frequencies + gamma)
    taper = fft_window(window, 1000, 1000)
    bandwidth = len(taper) * (taper**2).sum() / taper.sum() ** 2  # in units of one over the length
    highest = frequencies[-1] * (1 + alpha * bandwidth / (2 * filter_scale)) + gamma / 2
    if highest > sr / 2:
        raise ValueError(
            f"the highest of {n_bins} bins from fmin {fmin:.1f} Hz reaches {highest:.0f} Hz, above half of sr "
            f"({sr / 2:.0f} Hz); use fewer bins or a lower fmin"
        )
    count = -(-n_bins // bins_per_octave)
    available = (hop_length & -hop_length).bit_length() - 1  # how often the hop can be halved
    spare = max(0, int(np.ceil(np.log2(sr / 2 / highest))) - 2)  # how often the rate can be, for all bins
    first = min(spare, max(0, available + 1 - count))
    octaves, factor = [], 2**first
    for stop in range(n_bins, 0, -bins_per_octave):
        octave = slice(max(0, stop - bins_per_octave), stop)
        if octaves and factor < 2**available and frequencies[stop - 1] <= sr / factor / 5:
            factor *= 2  # its filters stay clear of the roll-off
        filters = _filters(frequencies[octave], seconds[octave], sr / factor, norm, sparsity, window)
        filters *= (sr * seconds[octave]) ** (0.5 if scale else 1.0)
        octaves.append((factor, np.concatenate([np.real(filters), np.imag(filters)], axis=1)))
    return octaves


def _filters(
    frequencies: np.ndarray, seconds: np.ndarray, rate: float, norm: float | None, sparsity: float, window: Window
) -> np.ndarray:
    """Filters `[length, bins]` of one octave with time 0 in row `length // 2` and without negative frequencies."""
    lengths = seconds * rate
    size = 2 ** max(1, int(np.ceil(np.log2(lengths.max()))))
    wavelets = np.zeros((len(frequencies), size), complex)
    for wavelet, f, length in zip(wavelets, frequencies, lengths, strict=True):
        n = np.arange(-int(np.ceil(length / 2)), int(length / 2))
        values = fft_window(window, len(n), len(n)) * np.exp(2j * np.pi * f / rate * n)
        wavelet[size // 2 + n] = values if norm is None else values / np.linalg.norm(values, ord=norm)
    spectra = np.fft.fft(wavelets)[:, : size // 2 + 1]
    magnitude = np.abs(spectra)
    rising = np.sort(magnitude, axis=1)
    share = np.cumsum(rising, axis=1) / magnitude.sum(axis=1, keepdims=True)
    least = np.take_along_axis(rising, np.argmax(share >= sparsity, axis=1)[:, None], axis=1)
    # Parseval: the sum over bins of wavelet spectrum times signal spectrum is the sum over n of this times the signal.
    return np.fft.fft(np.where(magnitude >= least, spectra, 0), n=size).T / size
