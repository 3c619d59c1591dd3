"""Distributions of one sample of sound: what the outputs of an autoregressive network mean.

A network gives parameters for every sample (`networks/causal.py`); an `Output` encodes sound for it, gives the
probability of a sample under those parameters, and draws one from uniform numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Output(NamedTuple):
    """A distribution of one sample.

    `encode` and `decode` map sound in [-1, 1] to what the network sees and back; `log_prob(params [..., size], x)` is
    in nats; `sample(params, u [..., 2], temperature)` turns uniform numbers into a draw.
    """

    size: int
    levels: int  # classes of the network's input, 0 for numbers
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]
    log_prob: Callable[[Array, Array], Array]
    sample: Callable[[Array, Array, Array | float], Array]


def mu_law_encode(y: Float[Array, "..."], levels: int = 256) -> Int[Array, "..."]:
    """Classes 0 ... levels - 1 of sound in [-1, 1], finer near silence.

    `sign(y) log(1 + mu |y|) / log(1 + mu)` in equal steps, mu = levels - 1 (van den Oord et al. 2016, section 2.2).

    >>> mu_law_encode(jnp.array([-1.0, 0.0, 1.0])).tolist()
    [0, 128, 255]
    """
    mu = levels - 1
    compressed = jnp.sign(y) * jnp.log1p(mu * jnp.abs(jnp.clip(y, -1, 1))) / np.log1p(mu).astype(np.float32)
    return jnp.floor((compressed + 1) / 2 * mu + 0.5).astype(jnp.int32)


def mu_law_decode(x: Int[Array, "..."], levels: int = 256) -> Float[Array, "..."]:
    """The sound in [-1, 1] in the middle of each class: `mu_law_encode` of it is `x` again.

    >>> mu_law_decode(jnp.array([0, 255])).tolist()
    [-1.0, 1.0]
    """
    mu = levels - 1
    compressed = 2 * x.astype(jnp.float32) / mu - 1
    return jnp.sign(compressed) * jnp.expm1(jnp.abs(compressed) * np.log1p(mu).astype(np.float32)) / mu


def mu_law_categorical(levels: int = 256) -> Output:
    """A class of `levels`, each as likely as it likes (van den Oord et al. 2016, section 2.2)."""
    upto = np.triu(np.ones((levels, levels), np.float32))

    def log_prob(params: Array, x: Array) -> Array:
        return jnp.take_along_axis(jax.nn.log_softmax(params), x[..., None], axis=-1)[..., 0]

    def sample(params: Array, u: Array, temperature: Array | float) -> Array:
        cumulative = jnp.matmul(jax.nn.softmax(params / temperature), upto, precision="highest")
        return jnp.minimum((cumulative <= u[..., :1] * cumulative[..., -1:]).sum(-1), levels - 1).astype(jnp.int32)

    encode, decode = (lambda y: mu_law_encode(y, levels)), (lambda x: mu_law_decode(x, levels))
    return Output(levels, levels, encode, decode, log_prob, sample)


def gaussian(min_log_std: float = -7.0) -> Output:
    """One Gaussian; log-density, its log-deviation at least `min_log_std` (Ping et al. 2019, section 3.1)."""

    def parts(params: Array) -> tuple[Array, Array]:
        return params[..., 0], jnp.maximum(params[..., 1], min_log_std)

    def log_prob(params: Array, x: Array) -> Array:
        mean, log_std = parts(params)
        return -0.5 * ((x - mean) * jnp.exp(-log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi).astype(np.float32)

    def sample(params: Array, u: Array, temperature: Array | float) -> Array:
        mean, log_std = parts(params)
        return jnp.clip(mean + temperature * jnp.exp(log_std) * jax.scipy.special.ndtri(u[..., 0]), -1, 1)

    return Output(2, 0, lambda y: y, lambda x: x, log_prob, sample)


def mixture_of_logistics(count: int = 10, min_log_scale: float = -9.0, bits: int = 16) -> Output:
    """A mixture of `count` logistics over the integers of `bits` (Salimans et al. 2017, section 2.1).

    Probability is that of the quantisation step around x; the first and last step reach to infinity.
    """
    half = 1 / (2**bits - 1)

    def parts(params: Array) -> tuple[Array, Array, Array]:
        logits, mean, log_scale = jnp.split(params, 3, axis=-1)
        return logits, mean, jnp.maximum(log_scale, min_log_scale)

    def log_prob(params: Array, x: Array) -> Array:
        logits, mean, log_scale = parts(params)
        x = x[..., None]
        below, above = ((x + edge - mean) * jnp.exp(-log_scale) for edge in (-half, half))
        width = 2 * half * jnp.exp(-log_scale)
        # log(sigmoid(above) - sigmoid(below)), without cancellation
        inside = jax.nn.log_sigmoid(above) + jax.nn.log_sigmoid(-below) + jnp.log(-jnp.expm1(-width))
        log_p = jnp.where(x <= half - 1, jax.nn.log_sigmoid(above), inside)
        log_p = jnp.where(x >= 1 - half, jax.nn.log_sigmoid(-below), log_p)
        return jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_p, axis=-1)

    def sample(params: Array, u: Array, temperature: Array | float) -> Array:
        logits, mean, log_scale = parts(params)
        upto = np.triu(np.ones((count, count), np.float32))
        cumulative = jnp.matmul(jax.nn.softmax(logits / temperature), upto, precision="highest")
        k = jnp.minimum((cumulative <= u[..., :1] * cumulative[..., -1:]).sum(-1), count - 1)[..., None]
        mean, log_scale = (jnp.take_along_axis(a, k, axis=-1)[..., 0] for a in (mean, log_scale))
        y = mean + temperature * jnp.exp(log_scale) * (jnp.log(u[..., 1]) - jnp.log1p(-u[..., 1]))
        return encode(y)

    def encode(y: Array) -> Array:
        return (jnp.round((jnp.clip(y, -1, 1) + 1) / (2 * half)) * (2 * half) - 1).astype(y.dtype)

    return Output(3 * count, 0, encode, lambda x: x, log_prob, sample)
