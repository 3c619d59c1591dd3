"""Chroma: the energy of each pitch class, over all octaves, as librosa's.

    chroma = G |X|^2  from an STFT, G a Gaussian around each pitch class
    chroma = B |C|    from a constant-Q transform, B the bins of each pitch class

The filter banks are computed in double precision on the host. Each frame is divided by its norm; a frame without
energy stays as it is, with a finite gradient. Nothing estimates the tuning: it is a number that the caller gives.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from .arguments import checked
from .constantq import C1, cqt
from .spectral import Method, each_spectrum, magnitude_power
from .transform import transform
from .windows import Window


@checked
@functools.lru_cache(maxsize=16)
def chroma_filterbank(
    sr: float,
    n_fft: int,
    n_chroma: int = 12,
    tuning: float = 0.0,
    ctroct: float = 5.0,
    octwidth: float | None = 2.0,
    norm: float | None = 2.0,
    base_c: bool = True,
) -> np.ndarray:
    """Weights `[n_chroma, 1 + n_fft // 2]` of each FFT bin in each pitch class (float64), as `librosa.filters.chroma`.

    A bin is spread over the pitch classes by a Gaussian of its own width (at least one class), given unit `norm`, and
    weighted by a Gaussian around `ctroct` octaves above A0 (27.5 Hz) of width `octwidth` octaves (None: all alike).
    `tuning` is the deviation from A440 in pitch classes; the first class is C, or A without `base_c`.

    >>> chroma_filterbank(22050, 2048).shape
    (12, 1025)
    """
    if n_fft < 2:
        raise ValueError(f"n_fft must be at least 2, got {n_fft}")
    a0 = 27.5 * 2 ** (tuning / n_chroma)
    octaves = np.log2(np.arange(1, n_fft) * (sr / n_fft) / a0)
    octaves = np.concatenate([octaves[:1] - 1.5, octaves])  # 0 Hz: 1.5 octaves below bin 1
    widths = np.append(np.maximum(n_chroma * np.diff(octaves), 1.0), 1.0)
    classes = np.arange(n_chroma)[:, None]
    half = np.round(n_chroma / 2)
    distance = (n_chroma * octaves - classes + half) % n_chroma - half
    filters = np.exp(-2 * (distance / widths) ** 2)
    if norm is not None:
        filters /= np.linalg.norm(filters, ord=norm, axis=0)
    if octwidth is not None:
        filters = filters * np.exp(-0.5 * ((octaves - ctroct) / octwidth) ** 2)
    filters = np.roll(filters, -3 * (n_chroma // 12) if base_c else 0, axis=0)[:, : 1 + n_fft // 2]
    filters.flags.writeable = False
    return filters


@checked
@functools.lru_cache(maxsize=16)
def cq_to_chroma(
    n_input: int, bins_per_octave: int = 12, n_chroma: int = 12, fmin: float = C1, base_c: bool = True
) -> np.ndarray:
    """Ones `[n_chroma, n_input]` where a constant-Q bin belongs to a pitch class, as `librosa.filters.cq_to_chroma`.

    The first bin is at `fmin` Hz; the bins nearest to a pitch class are summed (of an even number the lower half's).
    """
    if bins_per_octave % n_chroma:
        raise ValueError(f"bins_per_octave {bins_per_octave} must be a multiple of n_chroma {n_chroma}")
    merged = bins_per_octave // n_chroma
    semitones = (12 * np.log2(fmin / 440) + 69) % 12 - (0 if base_c else 9)
    first = int(np.round(semitones * n_chroma / 12))
    classes = (first + (np.arange(n_input) + merged // 2) // merged) % n_chroma
    return (np.arange(n_chroma)[:, None] == classes).astype(np.float64)


@transform
def chroma_stft(
    y: Float[Array, "... samples"] | None = None,
    S: Float[Array, "... bins frames"] | None = None,
    *,
    sr: float = 22050,
    norm: float | None = np.inf,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    pad_mode: str = "constant",
    tuning: float = 0.0,
    n_chroma: int = 12,
    ctroct: float = 5.0,
    octwidth: float | None = 2.0,
    base_c: bool = True,
    method: Method = "auto",
) -> Float[Array, "... chroma frames"]:
    """Chroma of a waveform or of its power spectrogram `S`, as `librosa.feature.chroma_stft` (Ellis 2007).

    Each frame is given unit `norm`: infinity (its largest value becomes 1), a positive p, or None to leave it. The
    other options are those of `stft` and `chroma_filterbank`.

    >>> tone = jnp.sin(2 * jnp.pi * 440 / 22050 * jnp.arange(8192))
    >>> int(chroma_stft(tone)[:, 8].argmax())  # A, nine semitones above C
    9
    """
    if S is not None and S.shape[-2] != 1 + n_fft // 2:
        n_fft = 2 * (S.shape[-2] - 1)
    filters = chroma_filterbank(sr, n_fft, n_chroma, tuning, ctroct, octwidth, base_c=base_c)
    if S is not None:
        return _normalise(_fold(filters, S), norm)
    assert y is not None

    def one(X: Array) -> Array:
        return _normalise(_fold(filters, magnitude_power(X.T, 2)), norm)

    return each_spectrum(one, y, n_fft, hop_length, win_length, window, center, pad_mode, method)


@transform
def chroma_cqt(
    y: Float[Array, "... samples"] | None = None,
    C: Inexact[Array, "... bins frames"] | None = None,
    *,
    sr: float = 22050,
    hop_length: int = 512,
    fmin: float | None = None,
    norm: float | None = np.inf,
    threshold: float | None = 0.0,
    tuning: float = 0.0,
    n_chroma: int = 12,
    n_octaves: int = 7,
    bins_per_octave: int | None = 36,
) -> Float[Array, "... chroma frames"]:
    """Chroma of a waveform or of its constant-Q transform `C`, as `librosa.feature.chroma_cqt`.

    `fmin` in Hz (default C1), `tuning` in CQT bins, `bins_per_octave` a multiple of `n_chroma` (None: equal to it).
    Values below `threshold` become 0 before each frame is given unit `norm`, as in `chroma_stft`.

    >>> tone = jnp.sin(2 * jnp.pi * 440 / 22050 * jnp.arange(22050))
    >>> int(chroma_cqt(tone)[:, 20].argmax())  # A, nine semitones above C
    9
    """
    bins_per_octave = n_chroma if bins_per_octave is None else bins_per_octave
    n_bins = n_octaves * bins_per_octave if C is None else C.shape[-2]
    filters = cq_to_chroma(n_bins, bins_per_octave, n_chroma, C1 if fmin is None else fmin)
    if C is None:
        assert y is not None
        pitch: dict[str, Any] = dict(fmin=fmin, n_bins=n_bins, bins_per_octave=bins_per_octave, tuning=tuning)
        C = cqt(y, sr=sr, hop_length=hop_length, **pitch)
    chroma = _fold(filters, jnp.abs(C))
    if threshold is not None:
        chroma = jnp.where(chroma < threshold, 0, chroma)
    return _normalise(chroma, norm)


def _fold(filters: np.ndarray, S: Float[Array, "... bins frames"]) -> Float[Array, "... chroma frames"]:
    return jnp.einsum("cb,...bm->...cm", jnp.asarray(filters, S.dtype), S, precision="highest")


def _normalise(S: Float[Array, "... chroma frames"], norm: float | None) -> Float[Array, "... chroma frames"]:
    """Each frame of the non-negative `S` divided by its p-norm; a frame below 1e-35 stays as it is."""
    if norm is None:
        return S
    # A constant factor per frame first, so that no square or power of a tiny norm appears in the gradient.
    largest = jax.lax.stop_gradient(S.max(axis=-2, keepdims=True))
    silent = largest < 1e-35
    x = jnp.where(silent, 1, S / jnp.where(silent, 1, largest))
    size = x.max(axis=-2, keepdims=True) if norm == np.inf else (x**norm).sum(axis=-2, keepdims=True) ** (1 / norm)
    return jnp.where(silent, S, x / size)
