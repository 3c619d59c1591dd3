"""Sound from magnitudes: invert the cepstrum and the mel filter bank, then find the phase that fits.

Mel inversion is non-negative least squares, `min_x |M x - S|^2, x >= 0`, by accelerated projected gradients (Nesterov
1983). Fast Griffin-Lim (Griffin & Lim 1984; Perraudin, Balazs & Sondergaard 2013) alternates between "is the STFT of
some sound" and "has these magnitudes", with momentum. All iterations run inside one `lax.scan`.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .mel import Norm, cosine_basis, lifter_weights, mel_filterbank
from .spectral import check_invertible, db_to_power, frame_sizes, irfft, istft, rfft, unit_phase
from .transform import each_item, transform
from .windows import Window, cut_blocks, fft_window, join_blocks, overlap_add, squared_envelope


@transform
def mel_to_stft(
    M: Float[Array, "... mels frames"],
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    power: float = 2.0,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: Norm = "slaney",
    n_iter: int = 50,
) -> Float[Array, "... bins frames"]:
    """Magnitudes whose mel spectrogram is nearest to `M`: non-negative least squares, as `librosa`'s `mel_to_stft`.

    Each mel band is weighted by the inverse norm of its filter, so that narrow bands converge as fast as wide ones.
    Starts from the clipped pseudo-inverse and takes `n_iter` steps.

    >>> mel_to_stft(jnp.ones((40, 5)), sr=16000, n_fft=512).shape
    (257, 5)
    """
    filters = mel_filterbank(sr, n_fft, M.shape[-2], fmin, fmax, htk, norm)
    size = np.linalg.norm(filters, axis=1, keepdims=True)
    weights = np.where(size > 0, 1 / np.where(size > 0, size, 1), 0)
    filters = weights * filters
    rate = float(1 / np.linalg.norm(filters, 2) ** 2)
    inverse = np.linalg.pinv(filters, rcond=1e-6)  # two narrow bands may see one bin: their rows are multiples
    inverse, matrix = (jnp.asarray(m, M.dtype) for m in (inverse, filters))
    weights = jnp.asarray(weights, M.dtype)

    def one(M: Array) -> Array:
        target = weights * M

        def descend(carry, i):
            x, before = carry
            z = x + (i / (i + 3)) * (x - before)
            return (jnp.maximum(z - rate * (matrix.T @ (matrix @ z - target)), 0), x), None

        start = jnp.maximum(inverse @ target, 0)
        (x, _), _ = jax.lax.scan(descend, (start, start), jnp.arange(n_iter, dtype=M.dtype))
        return jnp.maximum(x, 1e-20) ** (1 / power)

    return each_item(one, M, axes=2)


@transform
def griffinlim(
    S: Float[Array, "... bins frames"],
    *,
    n_iter: int = 32,
    hop_length: int | None = None,
    win_length: int | None = None,
    n_fft: int | None = None,
    window: Window = "hann",
    length: int | None = None,
    momentum: float = 0.99,
    phase_period: int | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "... samples"]:
    """A waveform whose STFT magnitudes approach `S`, by fast Griffin-Lim with random initial phase.

    `S` are magnitudes (power 1). `key` draws the initial phase (the same phase for all leading axes, so that a batch
    gives what its items give); None means `jax.random.key(0)`. With a `phase_period` it is drawn for that many frames
    and repeated, so that a part of `S` which begins at a multiple of the period starts from the same phases as the
    whole. `length` in samples, as in `istft`.

    >>> griffinlim(jnp.ones((129, 9)), n_iter=2).shape
    (512,)
    """
    n_fft = 2 * (S.shape[-2] - 1) if n_fft is None else n_fft
    hop_length, win_length = frame_sizes(n_fft, hop_length, win_length)
    check_invertible(S.shape[-2], window, win_length, n_fft, hop_length)
    bins, count = S.shape[-2:]
    period = count if phase_period is None else phase_period
    key = jax.random.key(0) if key is None else key
    turn = jax.random.uniform(key, (bins, period), S.dtype, 0, 2 * np.pi).T
    if period != count:
        turn = turn[np.arange(count) % period]
    start = jax.lax.complex(jnp.cos(turn), jnp.sin(turn))
    weight = jnp.asarray(fft_window(window, win_length, n_fft), S.dtype)
    envelope = squared_envelope(window, win_length, n_fft, hop_length, count)
    half, span = n_fft // 2, (count - 1) * hop_length + n_fft
    inverse = np.where(envelope > np.finfo(np.float32).tiny, 1 / np.maximum(envelope, 1e-37), 1.0)
    inverse[:half] = 0  # what a centred transform pads with zeros
    inverse[span - half :] = 0
    inverse = jnp.asarray(inverse, S.dtype)

    def one(S: Array) -> Array:
        S = S.T

        def iterate(carry, _):
            spectra, before, frames = carry
            y = overlap_add(irfft(spectra, n_fft) * weight, hop_length) * inverse
            blocks = cut_blocks(y, n_fft, hop_length)
            frames = join_blocks(blocks, n_fft, weight, jax.lax.stop_gradient(frames))
            rebuilt = rfft(frames)
            spectra = rebuilt - momentum / (1 + momentum) * before
            return (S * unit_phase(spectra), rebuilt, frames), None

        spectra = S * start
        first = (spectra, jnp.zeros_like(spectra), jnp.zeros((count, n_fft), S.dtype))
        (spectra, *_), _ = jax.lax.scan(iterate, first, length=n_iter, unroll=2)  # saves copying the carry
        return istft(spectra.T, hop_length=hop_length, win_length=win_length, n_fft=n_fft, window=window, length=length)

    return each_item(one, S, axes=2)


@transform
def mel_to_audio(
    M: Float[Array, "... mels frames"],
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Window = "hann",
    power: float = 2.0,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: Norm = "slaney",
    n_iter: int = 32,
    length: int | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "... samples"]:
    """A waveform from a mel spectrogram: `mel_to_stft`, then `n_iter` iterations of `griffinlim`.

    >>> mel_to_audio(jnp.ones((40, 9)), sr=16000, n_fft=512, n_iter=2).shape
    (1024,)
    """
    S = mel_to_stft(M, sr=sr, n_fft=n_fft, power=power, fmin=fmin, fmax=fmax, htk=htk, norm=norm)
    sizes: dict[str, Any] = dict(
        hop_length=hop_length, win_length=win_length, n_fft=n_fft, window=window, length=length
    )
    return griffinlim(S, n_iter=n_iter, **sizes, key=key)


@transform
def mfcc_to_mel(
    mfcc: Float[Array, "... mfcc frames"],
    *,
    n_mels: int = 128,
    dct_type: Literal[1, 2, 3] = 2,
    norm: Literal["ortho"] | None = "ortho",
    ref: float = 1.0,
    lifter: float = 0.0,
) -> Float[Array, "... mels frames"]:
    """Mel power spectrogram of `n_mels` bands from cepstral coefficients, missing ones taken as 0; undoes `mfcc`.

    >>> from jaxdiff.features import mfcc
    >>> S = jnp.full((40, 3), 2.0)
    >>> bool(jnp.allclose(mfcc_to_mel(mfcc(S=10 * jnp.log10(S), n_mfcc=40), n_mels=40), S, rtol=1e-4))
    True
    """
    count = mfcc.shape[-2]
    weights = lifter_weights(count, lifter)
    if np.abs(weights).min() < 1e-12:
        raise ValueError(f"lifter {lifter} has a zero among {count} coefficients and cannot be undone; use another")
    inverse = np.linalg.inv(cosine_basis(n_mels, n_mels, dct_type, norm))[:, :count] / weights
    inverse = jnp.asarray(inverse, mfcc.dtype)
    return each_item(lambda c: db_to_power(jnp.matmul(inverse, c, precision="highest"), ref=ref), mfcc, axes=2)


@transform
def mfcc_to_audio(
    mfcc: Float[Array, "... mfcc frames"],
    *,
    n_mels: int = 128,
    dct_type: Literal[1, 2, 3] = 2,
    norm: Literal["ortho"] | None = "ortho",
    ref: float = 1.0,
    lifter: float = 0.0,
    sr: float = 22050,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Window = "hann",
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    mel_norm: Norm = "slaney",
    n_iter: int = 32,
    length: int | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "... samples"]:
    """A waveform from cepstral coefficients: `mfcc_to_mel`, then `mel_to_audio`.

    >>> mfcc_to_audio(jnp.ones((13, 9)), n_mels=40, sr=16000, n_fft=512, n_iter=2).shape
    (1024,)
    """
    M = mfcc_to_mel(mfcc, n_mels=n_mels, dct_type=dct_type, norm=norm, ref=ref, lifter=lifter)
    band: dict[str, Any] = dict(sr=sr, fmin=fmin, fmax=fmax, htk=htk, norm=mel_norm)
    sizes: dict[str, Any] = dict(
        hop_length=hop_length, win_length=win_length, n_fft=n_fft, window=window, length=length
    )
    return mel_to_audio(M, **band, **sizes, n_iter=n_iter, key=key)
