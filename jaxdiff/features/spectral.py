"""Short-time Fourier transform, mel spectrogram and decibels: librosa's names, defaults and orientation.

    X[k, m] = sum_n w[n] y[n + m hop] exp(-2 pi i k n / n_fft),      mel = M |X|^power,      dB = 10 log10(S / ref)

Every function takes any leading axes, is pure `jax.numpy` and works under jit, vmap and grad. Gradients stay finite at
silence. Frames, window and filter bank are computed in double precision on the host and cast to the signal's dtype.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from .windows import frame, hann, overlap_add


def _lengths(n_fft: int, hop_length: int | None, win_length: int | None) -> tuple[int, int]:
    """Resolve librosa's defaults (window as long as the frame, a quarter of it as hop) and refuse impossible sizes."""
    win_length = n_fft if win_length is None else win_length
    hop_length = win_length // 4 if hop_length is None else hop_length
    if n_fft < 1 or hop_length < 1 or not 1 <= win_length <= n_fft:
        raise ValueError(
            f"n_fft {n_fft}, hop_length {hop_length} and win_length {win_length} must be positive, "
            f"and win_length at most n_fft"
        )
    return hop_length, win_length


def _check_wave(y: Array) -> None:
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"the waveform must be floating point in [-1, 1], got {y.dtype}; divide by full scale first")


def stft(
    y: Float[Array, "... samples"],
    *,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    center: bool = True,
    pad_mode: str = "constant",
) -> Complex[Array, "... bins frames"]:
    """Short-time Fourier transform with a periodic Hann window, as `librosa.stft`.

    `n_fft`, `hop_length` and `win_length` are in samples. With `center`, `n_fft // 2` samples of padding on each side
    put frame m around sample `m * hop_length`; `pad_mode` is any mode of `jax.numpy.pad`.

    >>> stft(jnp.ones(1024), n_fft=256, hop_length=64).shape
    (129, 17)
    """
    _check_wave(y)
    hop_length, win_length = _lengths(n_fft, hop_length, win_length)
    if center:
        y = jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(n_fft // 2, n_fft // 2)], mode=pad_mode)
    if y.shape[-1] < n_fft:
        raise ValueError(f"the waveform has {y.shape[-1]} samples, n_fft {n_fft} needs at least as many; use center")
    frames = frame(y, n_fft, hop_length) * jnp.asarray(hann(win_length, n_fft), y.dtype)
    return jnp.fft.rfft(frames).mT


def istft(
    stft_matrix: Complex[Array, "... bins frames"],
    *,
    hop_length: int | None = None,
    win_length: int | None = None,
    n_fft: int | None = None,
    center: bool = True,
    length: int | None = None,
) -> Float[Array, "... samples"]:
    """Inverse STFT by weighted overlap-add, the least-squares inverse (Griffin & Lim 1984, eq. 6), as `librosa.istft`.

    `length` in samples trims or zero-pads the result; without it a centred transform of m frames gives
    `(m - 1) * hop_length` samples (for even `n_fft`).

    >>> y = jnp.sin(jnp.arange(1024.0))
    >>> bool(jnp.allclose(istft(stft(y, n_fft=256), length=1024), y, atol=1e-5))
    True
    """
    n_fft = 2 * (stft_matrix.shape[-2] - 1) if n_fft is None else n_fft
    hop_length, win_length = _lengths(n_fft, hop_length, win_length)
    count = stft_matrix.shape[-1]
    window = hann(win_length, n_fft)
    frames = jnp.fft.irfft(stft_matrix.mT, n=n_fft)
    y = overlap_add(frames * jnp.asarray(window, frames.dtype), hop_length)
    y = y * jnp.asarray(_inverse_envelope(n_fft, hop_length, win_length, count), y.dtype)
    start = n_fft // 2 if center else 0
    stop = start + length if length is not None else y.shape[-1] - start
    y = y[..., start:stop]
    missing = 0 if length is None else length - y.shape[-1]
    return jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, missing)]) if missing > 0 else y


@functools.lru_cache(maxsize=32)
def _inverse_envelope(n_fft: int, hop_length: int, win_length: int, count: int) -> np.ndarray:
    """1 / sum of the squared, shifted windows where that exceeds the smallest float32, else 1."""
    squared = hann(win_length, n_fft) ** 2
    total = np.zeros((count - 1) * hop_length + n_fft)
    for m in range(count):
        total[m * hop_length : m * hop_length + n_fft] += squared
    return 1 / np.where(total > np.finfo(np.float32).tiny, total, 1.0)


def hz_to_mel(frequencies: np.ndarray | float, htk: bool = False) -> np.ndarray | np.floating:
    """Frequencies in Hz to mels: Slaney's Auditory Toolbox scale (linear below 1 kHz) or the HTK formula."""
    frequencies = np.asarray(frequencies, np.float64)
    if htk:
        return 2595.0 * np.log10(1.0 + frequencies / 700.0)
    logarithmic = 15.0 + 27.0 * np.log(np.maximum(frequencies, 1e-10) / 1000.0) / np.log(6.4)
    return np.where(frequencies >= 1000.0, logarithmic, frequencies * 3.0 / 200.0)


def mel_to_hz(mels: np.ndarray | float, htk: bool = False) -> np.ndarray | np.floating:
    """The inverse of `hz_to_mel`."""
    mels = np.asarray(mels, np.float64)
    if htk:
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    return np.where(mels >= 15.0, 1000.0 * 6.4 ** ((mels - 15.0) / 27.0), mels * 200.0 / 3.0)


@functools.cache
def mel_filterbank(
    sr: float,
    n_fft: int,
    n_mels: int = 128,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: str | None = "slaney",
) -> np.ndarray:
    """Triangular mel filters `[n_mels, 1 + n_fft // 2]` in float64, as `librosa.filters.mel`.

    `fmin` and `fmax` in Hz (`fmax` defaults to half of `sr`); `norm="slaney"` gives each triangle unit area.
    """
    fmax = sr / 2 if fmax is None else fmax
    if not 0 <= fmin < fmax <= sr / 2:
        raise ValueError(f"fmin {fmin} Hz and fmax {fmax} Hz must satisfy 0 <= fmin < fmax <= {sr / 2} Hz (half of sr)")
    if norm not in ("slaney", None):
        raise ValueError(f"norm {norm!r} is unknown; use 'slaney' or None")
    bins = np.linspace(0, sr / 2, 1 + n_fft // 2) if n_fft % 2 == 0 else np.fft.rfftfreq(n_fft, 1 / sr)
    edges = mel_to_hz(np.linspace(hz_to_mel(fmin, htk), hz_to_mel(fmax, htk), n_mels + 2), htk)
    slopes = (edges[:, None] - bins) / np.diff(edges, append=np.nan)[:, None]
    rising, falling = -slopes[:-2], (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= (2 / (edges[2:] - edges[:-2]))[:, None]
    filters.flags.writeable = False
    return filters


def melspectrogram(
    y: Float[Array, "... samples"],
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    center: bool = True,
    pad_mode: str = "constant",
    power: float = 2.0,
    n_mels: int = 128,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: str | None = "slaney",
) -> Float[Array, "... mels frames"]:
    """Mel-scaled spectrogram of a waveform, as `librosa.feature.melspectrogram` (there `hop_length` defaults to 512).

    `sr`, `fmin` and `fmax` in Hz, lengths in samples; `power` 2 is energy, 1 is magnitude.

    >>> melspectrogram(jnp.ones(4096), sr=16000, n_fft=512, hop_length=128, n_mels=40).shape
    (40, 33)
    """
    hop_length = 512 if hop_length is None else hop_length
    X = stft(y, n_fft=n_fft, hop_length=hop_length, win_length=win_length, center=center, pad_mode=pad_mode)
    S = X.real**2 + X.imag**2 if power == 2.0 else jnp.abs(X) ** power
    filters = jnp.asarray(mel_filterbank(sr, n_fft, n_mels, fmin, fmax, htk, norm), S.dtype)
    return jnp.einsum("...fm,nf->...nm", S, filters, precision="highest")


def power_to_db(
    S: Float[Array, "... bins frames"],
    *,
    ref: float | Callable[..., Array] = 1.0,
    amin: float = 1e-10,
    top_db: float | None = 80.0,
) -> Float[Array, "... bins frames"]:
    """A power spectrogram in decibels, `10 log10(max(S, amin) / ref)`, as `librosa.power_to_db` 1.0.

    `ref` is a power or a reduction such as `jnp.max`; `top_db` limits the range below the loudest bin. Both look at
    each `[bins, frames]` item alone, so a batch gives what its items give.

    >>> power_to_db(jnp.array([[1.0, 0.1, 1e-20]])).tolist()
    [[0.0, -10.0, -80.0]]
    """
    if amin <= 0:
        raise ValueError(f"amin must be positive, got {amin}")
    if top_db is not None and top_db < 0:
        raise ValueError(f"top_db must not be negative, got {top_db}")
    ref_value = jnp.abs(ref(S, axis=(-2, -1), keepdims=True)) if callable(ref) else jnp.asarray(abs(ref), S.dtype)
    db = 10.0 * (jnp.log10(jnp.maximum(S, amin)) - jnp.log10(jnp.maximum(ref_value, amin)))
    return db if top_db is None else jnp.maximum(db, db.max(axis=(-2, -1), keepdims=True) - top_db)
