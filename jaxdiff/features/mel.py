"""Mel spectrogram and cepstrum: librosa's names, defaults and orientation.

    mel = M |X|^power,      mfcc = DCT(10 log10(mel)),      delta = slope of a local polynomial fit

Filter banks and cosine bases are computed in double precision on the host. The waveform form of each transform runs
item by item in one program, so that the complex STFT never leaves the cache.
"""

import functools
import warnings
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Complex, Float

from .arguments import checked
from .spectral import Method, each_spectrum, magnitude_power, power_to_db
from .transform import transform
from .windows import MAX_COPIES, Window, frame, pad

Norm = Literal["slaney"] | float | None


@checked
def hz_to_mel(frequencies: np.ndarray | np.floating | float, htk: bool = False) -> np.ndarray | np.floating:
    """Frequencies in Hz to mels: Slaney's Auditory Toolbox scale (linear below 1 kHz) or the HTK formula.

    >>> hz_to_mel(1000.0).item(), hz_to_mel(500.0).item()
    (15.0, 7.5)
    """
    frequencies = np.asarray(frequencies, np.float64)
    if htk:
        return 2595.0 * np.log10(1.0 + frequencies / 700.0)
    logarithmic = 15.0 + 27.0 * np.log(np.maximum(frequencies, 1e-10) / 1000.0) / np.log(6.4)
    return np.where(frequencies >= 1000.0, logarithmic, frequencies * 3.0 / 200.0)


@checked
def mel_to_hz(mels: np.ndarray | np.floating | float, htk: bool = False) -> np.ndarray | np.floating:
    """The inverse of `hz_to_mel`.

    >>> mel_to_hz(7.5).item()
    500.0
    """
    mels = np.asarray(mels, np.float64)
    if htk:
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    return np.where(mels >= 15.0, 1000.0 * 6.4 ** ((mels - 15.0) / 27.0), mels * 200.0 / 3.0)


@checked
@functools.lru_cache(maxsize=16)
def mel_filterbank(
    sr: float,
    n_fft: int,
    n_mels: int = 128,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: Norm = "slaney",
) -> np.ndarray:
    """Triangular mel filters `[n_mels, 1 + n_fft // 2]` in float64, as `librosa.filters.mel`.

    `fmin` and `fmax` in Hz (`fmax` defaults to half of `sr`). `norm` "slaney" gives each triangle unit
    area, a number p unit p-norm.

    >>> mel_filterbank(16000, 512, 40).shape
    (40, 257)
    """
    fmax = sr / 2 if fmax is None else fmax
    if not 0 <= fmin < fmax <= sr / 2:
        raise ValueError(f"fmin {fmin} Hz and fmax {fmax} Hz must satisfy 0 <= fmin < fmax <= {sr / 2} Hz (half of sr)")
    bins = np.linspace(0, sr / 2, 1 + n_fft // 2) if n_fft % 2 == 0 else np.fft.rfftfreq(n_fft, 1 / sr)
    edges = np.asarray(mel_to_hz(np.linspace(hz_to_mel(fmin, htk), hz_to_mel(fmax, htk), n_mels + 2), htk))
    slopes = (edges[:, None] - bins) / np.diff(edges, append=np.nan)[:, None]
    rising, falling = -slopes[:-2], (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= (2 / (edges[2:] - edges[:-2]))[:, None]
    elif norm is not None:
        size = np.linalg.norm(filters, ord=norm, axis=1, keepdims=True)
        filters /= np.where(size > 0, size, 1)
    if empty := int((filters == 0).all(1).sum()):
        warnings.warn(
            f"{empty} of {n_mels} mel bands hold no bin of n_fft {n_fft} and stay 0; use fewer bands or more n_fft",
            stacklevel=3,
        )
    filters.flags.writeable = False
    return filters


@transform
def melspectrogram(
    y: Float[Array, "... samples"] | None = None,
    S: Float[Array, "... bins frames"] | None = None,
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    pad_mode: str = "constant",
    power: float = 2.0,
    n_mels: int = 128,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: Norm = "slaney",
    method: Method = "auto",
) -> Float[Array, "... mels frames"]:
    """Mel-scaled spectrogram of a waveform, or of a spectrogram `S` that is already raised to its power, as librosa's.

    `sr`, `fmin` and `fmax` in Hz, lengths in samples; `power` 2 is energy, 1 is magnitude. The other options are those
    of `stft` and `mel_filterbank`.

    >>> melspectrogram(jnp.ones(4096), sr=16000, n_fft=512, hop_length=128, n_mels=40).shape
    (40, 33)
    """
    n_fft = n_fft if S is None else 2 * (S.shape[-2] - 1)
    filters = mel_filterbank(sr, n_fft, n_mels, fmin, fmax, htk, norm)
    if S is not None:
        return jnp.einsum("...fm,nf->...nm", S, jnp.asarray(filters, S.dtype), precision="highest")
    assert y is not None

    return each_spectrum(
        lambda X: mel_energy(X, filters, power), y, n_fft, hop_length, win_length, window, center, pad_mode, method
    )


def mel_energy(
    X: Complex[Array, "... frames bins"], filters: np.ndarray, power: float
) -> Float[Array, "... mels frames"]:
    """The energies of spectra in the bands of `mel_filterbank`."""
    energy = magnitude_power(X, power)
    return jnp.matmul(jnp.asarray(filters, energy.dtype), energy.mT, precision="highest")


@functools.lru_cache(maxsize=16)
def cosine_basis(count: int, size: int, dct_type: int, norm: str | None) -> np.ndarray:
    """The first `count` rows of the discrete cosine transform of `size` values (float64), as `scipy.fft.dct`."""
    if not 1 <= count <= size:
        raise ValueError(f"n_mfcc must be from 1 to the {size} mel bands, got {count}")
    return np.asarray(scipy.fft.dct(np.eye(size), type=dct_type, norm=norm, axis=0))[:count]


def lifter_weights(count: int, lifter: float) -> np.ndarray:
    """Sinusoidal cepstral lifter, `1 + lifter / 2 sin(pi n / lifter)` for n = 1 ... count; 1 without lifter."""
    return 1 + lifter / 2 * np.sin(np.pi * np.arange(1, count + 1) / lifter) if lifter else np.ones(count)


@transform
def mfcc(
    y: Float[Array, "... samples"] | None = None,
    S: Float[Array, "... mels frames"] | None = None,
    *,
    sr: float = 22050,
    n_mfcc: int = 20,
    dct_type: Literal[1, 2, 3] = 2,
    norm: Literal["ortho"] | None = "ortho",
    lifter: float = 0.0,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    pad_mode: str = "constant",
    power: float = 2.0,
    n_mels: int = 128,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    mel_norm: Norm = "slaney",
    method: Method = "auto",
) -> Float[Array, "... mfcc frames"]:
    """Mel-frequency cepstral coefficients (Davis & Mermelstein 1980), of a waveform or of log-mel energies `S` in dB.

    The discrete cosine transform of type 1, 2 or 3 over mel bands, its first `n_mfcc` rows, times the lifter. The other
    options are those of `melspectrogram`; as in `librosa.feature.mfcc` each item is limited to 80 dB.

    >>> mfcc(jnp.ones(4096), sr=16000, n_mfcc=13, n_mels=40).shape
    (13, 9)
    """
    if S is None:
        mel: dict[str, Any] = dict(
            sr=sr, n_fft=n_fft, hop_length=hop_length, win_length=win_length, window=window, center=center
        )
        mel |= dict(pad_mode=pad_mode, power=power, n_mels=n_mels, fmin=fmin, fmax=fmax, htk=htk, norm=mel_norm)
        S = power_to_db(melspectrogram(y, **mel, method=method))
    basis = lifter_weights(n_mfcc, lifter)[:, None] * cosine_basis(n_mfcc, S.shape[-2], dct_type, norm)
    return jnp.einsum("cn,...nm->...cm", jnp.asarray(basis, S.dtype), S, precision="highest")


_PADS = {"nearest": "edge", "mirror": "reflect", "constant": "constant", "wrap": "wrap"}


@transform
def delta(
    data: Float[Array, "..."],
    *,
    width: int = 9,
    order: int = 1,
    axis: int = -1,
    mode: Literal["interp", "nearest", "mirror", "constant", "wrap"] = "interp",
) -> Float[Array, "..."]:
    """The `order`-th derivative per frame of the polynomial of degree `order` fitted to `width` frames around it.

    A Savitzky-Golay filter (1964), as `librosa.feature.delta`. With mode "interp" the first and last `width // 2`
    frames are taken from the fit to the outermost `width` frames; the other modes extend the data.

    >>> delta(jnp.arange(20.0) * 3).round(4)[:3].tolist()
    [3.0, 3.0, 3.0]
    """
    if width < 3 or width % 2 == 0:
        raise ValueError(f"width must be an odd number of at least 3 frames, got {width}")
    if not 1 <= order < width:
        raise ValueError(f"order must be from 1 to width - 1 = {width - 1}, got {order}")
    if not -data.ndim <= axis < data.ndim:
        raise ValueError(f"axis {axis} is none of the {data.ndim} axes of data; use -1 for the last")
    x = jnp.moveaxis(data, axis, -1)
    frames, half = x.shape[-1], width // 2
    if mode == "interp" and frames < width:
        raise ValueError(f"{frames} frames are fewer than width {width}; use mode='nearest' or a smaller width")
    # Row p of the pseudo-inverse gives the coefficient of offset^p; its order-th derivative is needed at each offset.
    offsets = np.arange(-half, half + 1)
    fit = np.linalg.pinv(np.vander(offsets, order + 1, increasing=True).astype(np.float64))
    factorial = float(np.prod(np.arange(1, order + 1)))
    kernel = factorial * fit[order]  # constant in the offset: the degree is the order
    if mode != "interp":
        x = pad(x, half, half, _PADS[mode])
    inner = x.shape[-1] - width + 1
    if width > MAX_COPIES:
        out = jnp.matmul(frame(x, width, 1), jnp.asarray(kernel, x.dtype), precision="highest")
    else:
        out = jnp.asarray(sum(float(kernel[k]) * x[..., k : k + inner] for k in range(width)))
    if mode == "interp":
        out = pad(out, half, half, "edge")
    return jnp.moveaxis(out, -1, axis)
