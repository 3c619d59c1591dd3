"""Sound from magnitudes: invert the mel filter bank, then find the phase that fits (Griffin & Lim 1984).

Fast Griffin-Lim (Perraudin, Balazs & Sondergaard 2013) alternates between "is the STFT of some sound" and "has these
magnitudes", with momentum. All iterations run inside one `lax.scan`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .spectral import istft, mel_filterbank, stft


def mel_to_stft(
    M: Float[Array, "... mels frames"],
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    power: float = 2.0,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: str | None = "slaney",
    n_iter: int = 50,
) -> Float[Array, "... bins frames"]:
    """Magnitudes whose mel spectrogram is nearest to `M`: non-negative least squares, as `librosa`'s `mel_to_stft`.

    Starts from the clipped pseudo-inverse and takes `n_iter` accelerated projected-gradient steps (Nesterov 1983,
    step 1 / largest eigenvalue).

    >>> mel_to_stft(jnp.ones((40, 5)), sr=16000, n_fft=512).shape
    (257, 5)
    """
    filters = mel_filterbank(sr, n_fft, M.shape[-2], fmin, fmax, htk, norm)
    step = 1 / np.linalg.norm(filters @ filters.T, 2)
    inverse = jnp.asarray(np.linalg.pinv(filters), M.dtype)
    gram = jnp.asarray(step * filters.T @ filters, M.dtype)
    back = jnp.asarray(step * filters.T, M.dtype)
    target = jnp.einsum("fn,...nm->...fm", back, M)
    start = jnp.maximum(jnp.einsum("fn,...nm->...fm", inverse, M), 0)

    def descend(carry, i):
        x, x_before = carry
        z = x + (i / (i + 3)) * (x - x_before)
        return (jnp.maximum(z - jnp.einsum("fg,...gm->...fm", gram, z) + target, 0), x), None

    (x, _), _ = jax.lax.scan(descend, (start, start), jnp.arange(n_iter, dtype=M.dtype))
    return jnp.maximum(x, 1e-20) ** (1 / power)


def griffinlim(
    S: Float[Array, "... bins frames"],
    *,
    n_iter: int = 32,
    hop_length: int | None = None,
    win_length: int | None = None,
    n_fft: int | None = None,
    length: int | None = None,
    momentum: float = 0.99,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "... samples"]:
    """A waveform whose STFT magnitudes approach `S`, by fast Griffin-Lim with random initial phase.

    `S` are magnitudes (power 1). `key` draws the initial phase (the same phase for all leading axes, so that a batch
    gives what its items give); None means `jax.random.key(0)`.

    >>> griffinlim(jnp.ones((129, 9)), n_iter=2).shape
    (512,)
    """
    n_fft = 2 * (S.shape[-2] - 1) if n_fft is None else n_fft
    key = jax.random.key(0) if key is None else key
    phase = jax.random.uniform(key, S.shape[-2:], S.dtype, 0, 2 * np.pi)
    sizes = dict(hop_length=hop_length, win_length=win_length, n_fft=n_fft)
    samples = jax.eval_shape(lambda s: istft(s + 0j, **sizes), S).shape[-1]

    def iterate(carry, _):
        angles, before = carry
        rebuilt = stft(istft(S * angles, **sizes, length=samples), **sizes)
        angles = rebuilt - momentum / (1 + momentum) * before
        return (angles / (jnp.abs(angles) + jnp.finfo(S.dtype).tiny), rebuilt), None

    start = jnp.broadcast_to(jnp.exp(1j * phase), S.shape)
    (angles, _), _ = jax.lax.scan(iterate, (start, jnp.zeros_like(start)), length=n_iter)
    return istft(S * angles, **sizes, length=length)
