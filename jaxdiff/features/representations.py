"""What a network sees in place of a waveform: pairs of pure functions, `encode` and `decode`.

    encode: wave [..., samples] -> features [..., frames, channels]        decode: the way back

`patches` and `compressed_stft` are exactly invertible; `log_mel` loses phase and detail, so its decode is a
reconstruction. `chain` composes pairs and `normalize` is the affine pair whose numbers `fit_normalization` measures on
a corpus. Shapes follow from `jax.eval_shape`.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .mel import melspectrogram
from .reconstruct import griffinlim, mel_to_stft
from .spectral import istft, stft


class Representation(NamedTuple):
    """`decode(encode(x))` is x, or as near to it as the representation allows; `hop_length` divides the samples."""

    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]
    hop_length: int = 1


def chain(*representations: Representation) -> Representation:
    """Encode with each in turn, decode in reverse order.

    >>> chain(patches(2), patches(3)).hop_length
    6
    """

    def encode(x: Array) -> Array:
        for r in representations:
            x = r.encode(x)
        return x

    def decode(x: Array) -> Array:
        for r in reversed(representations):
            x = r.decode(x)
        return x

    return Representation(encode, decode, int(np.prod([r.hop_length for r in representations])))


def patches(size: int) -> Representation:
    """Raw samples, `size` of them to a frame; `size` 1 is the waveform itself with one channel.

    >>> patches(4).encode(jnp.arange(8.0)).tolist()
    [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    """

    def encode(y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        return y.reshape(*y.shape[:-1], -1, size)

    def decode(x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        return x.reshape(*x.shape[:-2], -1)

    return Representation(encode, decode, size)


def compressed_stft(n_fft: int = 512, hop_length: int = 128, exponent: float = 0.5) -> Representation:
    """Complex STFT with magnitudes raised to `exponent`, real parts then imaginary parts as channels.

    Power-law compression as in SGMSE (Richter et al. 2023, eq. 13; its constant factor is left to `normalize`): quiet
    partials weigh more in a squared error. m frames stand for `(m - 1) * hop_length` samples. Exact inverse.

    >>> compressed_stft(64, 16).encode(jnp.ones((2, 160))).shape
    (2, 11, 66)
    """
    if n_fft % 2 or not 1 <= hop_length <= n_fft // 2:
        raise ValueError(f"n_fft {n_fft} must be even and hop_length {hop_length} at most half of it, to be invertible")

    def encode(y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        X = stft(y, n_fft=n_fft, hop_length=hop_length).mT
        X = X * jnp.maximum(jnp.abs(X), 1e-12) ** (exponent - 1)
        return jnp.concatenate([X.real, X.imag], axis=-1)

    def decode(x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        real, imag = jnp.split(x, 2, axis=-1)
        gain = (real**2 + imag**2 + 1e-24) ** (0.5 / exponent - 0.5)
        return istft(jax.lax.complex(real * gain, imag * gain).mT, hop_length=hop_length)

    return Representation(encode, decode, hop_length)


def magnitude(n_fft: int = 1024, hop_length: int = 256, exponent: float = 0.5, n_iter: int = 32) -> Representation:
    """STFT magnitudes raised to `exponent`; decoded by Griffin-Lim, whose phases are constants to a gradient.

    Below 0 counts as 0. m frames stand for `(m - 1) * hop_length` samples.

    >>> magnitude(64, 16).encode(jnp.ones((2, 160))).shape
    (2, 11, 33)
    """

    def encode(y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        return jnp.maximum(jnp.abs(stft(y, n_fft=n_fft, hop_length=hop_length)), 1e-12).mT ** exponent

    def decode(x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        S = jnp.maximum(x.mT, 0) ** (1 / exponent)
        sizes = dict(hop_length=hop_length, n_fft=n_fft)
        X = stft(griffinlim(jax.lax.stop_gradient(S), n_iter=n_iter, **sizes), **sizes)
        phase = X / jnp.maximum(jnp.abs(X), 1e-12)
        return istft(S * jax.lax.stop_gradient(phase), hop_length=hop_length)

    return Representation(encode, decode, hop_length)


def log_mel(
    sr: float,
    n_fft: int = 1024,
    hop_length: int = 256,
    n_mels: int = 80,
    fmin: float = 0.0,
    fmax: float | None = None,
    floor_db: float = -100.0,
    n_iter: int = 32,
) -> Representation:
    """Log-mel magnitudes, 0 dB mapped to 1 and `floor_db` to -1; decoded by mel inversion and Griffin-Lim.

    >>> log_mel(8000, 256, 64, n_mels=20).encode(jnp.ones(640)).shape
    (11, 20)
    """
    mel = dict(sr=sr, n_fft=n_fft, fmin=fmin, fmax=fmax, power=1.0)

    def encode(y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        M = melspectrogram(y, hop_length=hop_length, n_mels=n_mels, **mel)
        db = 20 * jnp.log10(jnp.maximum(M, 10 ** (floor_db / 20)))
        return (1 - 2 * db / floor_db).mT

    def decode(x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        M = 10 ** ((1 - x.mT) * floor_db / 40)
        return griffinlim(mel_to_stft(M, **mel), n_iter=n_iter, hop_length=hop_length, n_fft=n_fft)

    return Representation(encode, decode, hop_length)


class Normalization(NamedTuple):
    """Mean and scale per channel, measured on a corpus and kept in the checkpoint."""

    mean: Float[Array, " channels"]
    scale: Float[Array, " channels"]


def normalize(normalization: Normalization) -> Representation:
    """`(x - mean) / scale` per channel.

    >>> normalize(Normalization(jnp.ones(2), jnp.full(2, 4.0))).encode(jnp.full((1, 2), 9.0)).tolist()
    [[2.0, 2.0]]
    """
    mean, scale = normalization
    return Representation(lambda x: (x - mean) / scale, lambda x: x * scale + mean)


def fit_normalization(
    encode: Callable[[Array], Array], waves: Iterable[np.ndarray], *, evenness: float = 1.0
) -> Normalization:
    """Mean and standard deviation of every channel of `encode` over batches of waveforms, summed in float64.

    The scale is never below a hundredth of its root-mean-square over channels, so a channel that is always silent
    (the imaginary part of DC) is not blown up. `evenness` below 1 moves it, on a log scale, towards that common value:
    at 0 all channels are divided by one number and keep their proportions.

    >>> fit_normalization(patches(1).encode, [np.array([[1.0, 3.0]])]).scale.tolist()
    [1.0]
    """
    encode = jax.jit(encode)
    count, total, squares = 0, np.float64(0), np.float64(0)
    for wave in waves:
        x = np.asarray(encode(wave), np.float64)
        x = x.reshape(-1, x.shape[-1])
        count, total, squares = count + len(x), total + x.sum(0), squares + (x**2).sum(0)
    if count == 0:
        raise ValueError("a normalisation needs at least one waveform to measure; the corpus gave none")
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0)
    common = np.sqrt(variance.mean() + 1e-20)
    scale = np.maximum(np.sqrt(variance), 0.01 * common) ** evenness * common ** (1 - evenness)
    return Normalization(jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32))
