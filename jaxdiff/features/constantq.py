"""Constant-Q and variable-Q transforms as librosa's, and a constant-Q transform that has an exact inverse.

    C[k, m] = sum_n y[n + m hop] h_k[n],      h_k = windowed exp(-2 pi i f_k n / sr),      f_k = fmin 2^(k / bins)

`cqt` and `vqt` analyse: one octave at a time, each at half the rate of the octave above (Schoerkhuber & Klapuri 2010).
They look at few frames, so they cannot be inverted. `invertible_cqt` pairs with `icqt`: smooth bands that add up to the
whole spectrum, sampled fast enough to lose nothing (a painless non-stationary Gabor frame: Velasco, Holighaus, Doerfler
& Grill 2011), at the price of a short hop. Filters are designed on the host in double precision.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Complex, Float

from .spectral import check_wave
from .transform import each_item, transform
from .windows import Window, fft_window, frame

C1 = 440 * 2**-3.75  # Hz, librosa's lowest bin


def cqt_frequencies(n_bins: int, fmin: float = C1, bins_per_octave: int = 12, tuning: float = 0.0) -> np.ndarray:
    """Centre frequencies in Hz of `n_bins` bins from `fmin` upwards; `tuning` is in bins (float64).

    >>> cqt_frequencies(3, fmin=100.0, bins_per_octave=1).tolist()
    [100.0, 200.0, 400.0]
    """
    if not (n_bins >= 1 and bins_per_octave >= 1 and fmin > 0):
        raise ValueError(
            f"n_bins {n_bins} and bins_per_octave {bins_per_octave} must be at least 1 and fmin {fmin} Hz positive"
        )
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
    factors of 2 is slow, because an octave runs at half the rate of the one above only if its hop stays whole.

    Agrees with librosa to 2e-6 of the maximum at the full rate and to 3e-4 at lower ones, but only to 5e-3 where a
    filter comes near half of its octave's rate (there soxr, which lowers the rate in librosa, rolls off a little
    differently) and in the outermost frames if the top octave already runs at a lower rate.

    >>> vqt(jnp.ones(22050), n_bins=60).shape
    (60, 44)
    """
    _check_samples(y)
    fmin = C1 if fmin is None else fmin
    octaves = _octaves(
        sr, hop_length, fmin, n_bins, gamma, bins_per_octave, tuning, filter_scale, norm, sparsity, window, scale
    )
    frames = 1 + y.shape[-1] // hop_length

    def one(y: Array) -> Array:
        bins, reached = [], 1
        for factor, filters in octaves:
            y, reached = _decimate(y, factor // reached), factor
            padded = jnp.pad(y, len(filters) // 2, mode=pad_mode)
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
    pitch = dict(sr=sr, fmin=fmin, n_bins=n_bins, gamma=0.0, bins_per_octave=bins_per_octave, tuning=tuning)
    shape = dict(filter_scale=filter_scale, norm=norm, sparsity=sparsity, window=window, scale=scale)
    return vqt(y, hop_length=hop_length, **pitch, **shape, pad_mode=pad_mode)


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
    _check_samples(y)
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


def _check_samples(y: Array) -> None:
    check_wave(y)
    if y.shape[-1] == 0:
        raise ValueError("the waveform has 0 samples, a constant-Q transform needs at least 1")


def _correlate(
    y: Float[Array, " samples"], filters: np.ndarray, hop_length: int, frames: int
) -> Float[Array, "frames filters"]:
    """Inner products of `filters` [length, filters] with the wave at 0, hop_length, 2 hop_length ... (zero beyond it).

    Shifted copies of the filters stand side by side, so that one wide matrix product serves several frames at once:
    enough of them for 64 columns and for at most 16 slices in `frame`, none where frames do not overlap.
    """
    length, outputs = filters.shape
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
    if hop_length < 1:
        raise ValueError(f"hop_length must be at least 1 sample, got {hop_length}")
    if filter_scale <= 0 or (gamma is not None and gamma < 0) or not 0 <= sparsity < 1:
        raise ValueError(
            f"filter_scale {filter_scale} must be positive, gamma {gamma} None or not negative, "
            f"and sparsity {sparsity} at least 0 and below 1"
        )
    frequencies = cqt_frequencies(n_bins, fmin, bins_per_octave, tuning)
    ratio = 4.0 ** (1 / bins_per_octave)
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
    octaves = []
    for i in range(count):
        factor = 2 ** min(first + i, available)
        stop = n_bins - i * bins_per_octave
        octave = slice(max(0, stop - bins_per_octave), stop)
        filters = _filters(frequencies[octave], seconds[octave], sr / factor, norm, sparsity, window)
        filters *= (sr * seconds[octave]) ** (0.5 if scale else 1.0)
        octaves.append((factor, np.concatenate([filters.real, filters.imag], axis=1)))
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


@functools.lru_cache(maxsize=4)
def _bands(length: int, sr: float, hop_length: int | None, fmin: float | None, bins_per_octave: int) -> tuple:
    """Bands of `invertible_cqt` on the frequencies of an FFT of `hop * frames` samples.

    Returns (hop, frames, lower, rising, falling, edges). Frequency f lies between the centres of the bands `lower[f]`,
    with weight `falling[f]`, and `lower[f] + 1`, with weight `rising[f]`; the squares of the two add up to 1. Band k
    rises over `edges[0, k] <= f < edges[1, k]` and falls over `edges[1, k] <= f < edges[2, k]`.
    """
    fmin, nyquist = C1 if fmin is None else fmin, sr / 2
    if length < 1 or bins_per_octave < 1 or not 0 < fmin < nyquist:
        raise ValueError(
            f"length {length} and bins_per_octave {bins_per_octave} must be at least 1, "
            f"and fmin {fmin} Hz between 0 and {nyquist} Hz (half of sr)"
        )
    count = int(bins_per_octave * np.log2(nyquist / fmin) + 1e-9)
    centres = fmin * 2.0 ** (np.arange(-1, count + 1) / bins_per_octave)  # of all bands; the outermost are flat beyond
    widest = np.max(np.append(centres[1:], nyquist) - np.append(0.0, centres[:-1]))
    longest = int(sr / widest)
    hop = scipy.fft.prev_fast_len(longest) if hop_length is None else hop_length
    if not 1 <= hop <= longest:
        raise ValueError(
            f"hop_length {hop} must be from 1 to {longest} samples: the widest of {bins_per_octave} bins per octave "
            f"spans {widest:.0f} Hz; use more bins per octave for a longer hop"
        )
    frames = scipy.fft.next_fast_len(-(-length // hop))  # a prime number of frames is ten times slower
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
