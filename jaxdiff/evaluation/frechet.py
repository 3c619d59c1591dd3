"""How far one set of sounds is from another: the Frechet distance between Gaussians fitted to embeddings.

    d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))          (Dowson & Landau 1982, eq. 4)

The embedding here is plain log-mel statistics: power in 32 triangular mel bands (16 kHz, n_fft 1024, hop 256) in dB
relative to a full-scale sine, floored at -60 dB; their mean and their standard deviation over time: 64 numbers a sound.
It needs no trained network and is the same everywhere; it hears spectrum, level and movement, not melody.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.features import melspectrogram, power_to_db

EMBEDDING_RATE = 16_000


@functools.partial(jax.jit, static_argnames="sr")
def log_mel_statistics(y: Float[Array, "batch samples"], sr: int = EMBEDDING_RATE) -> Float[Array, "batch 64"]:
    """Mean and standard deviation over time of 32 log-mel bands, in dB."""
    S = melspectrogram(y, sr=sr, n_fft=1024, hop_length=256, n_mels=32, norm=None) / 256**2  # a full-scale sine is 1
    db = power_to_db(S, amin=1e-6, top_db=None)
    return jnp.concatenate([db.mean(-1), db.std(-1)], axis=-1)


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """Squared Frechet distance between two sets of embeddings, in the embedding's unit squared (here dB^2).

    Raises ValueError when a set has fewer than two sounds: it has no covariance.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Frechet distance needs at least 2 sounds on each side, got {len(a)} and {len(b)}")
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
