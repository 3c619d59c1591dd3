"""What the tests compare with: denoisers known in closed form, an error measure and an order of convergence.

For data x0 ~ N(mean, std^2) and x_t = alpha x0 + sigma eps the mean of x0 given x_t is

    D(x_t, t) = mean + alpha std^2 (x_t - alpha mean) / (alpha^2 std^2 + sigma^2)

and for data that is one of finitely many points it is their softmax average. Both hold for any schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Exploding:
    """alpha = 1, sigma = sigma_max t^rho, as EDM's."""

    sigma_max: float = 80.0
    rho: float = 7.0

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return self.sigma_max * jnp.asarray(t) ** self.rho


def gaussian_denoiser(schedule, mean: float, std: float) -> Callable:
    """The exact denoiser of independent N(mean, std^2) data, `t` a scalar or one per item."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        shape = jnp.shape(alpha) + (1,) * (x_t.ndim - jnp.ndim(alpha))
        alpha, sigma = jnp.reshape(alpha, shape), jnp.reshape(sigma, shape)
        return mean + alpha * std**2 * (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return denoise


def finite_denoiser(schedule, points) -> Callable:
    """The exact denoiser of data drawn evenly from `points` [count, ...], for a scalar `t` below 1."""
    flat = points.reshape(len(points), -1)

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        rows = x_t.reshape(len(x_t), -1)
        distance = ((rows[:, None] - alpha * flat) ** 2).sum(-1)
        weight = jax.nn.softmax(-distance / (2 * sigma**2), axis=-1)
        return (weight @ flat).reshape(x_t.shape)

    return denoise


def drawn(network, size: float = 0.3, seed: int = 0):
    """Parameters of a network, all N(0, size^2): none is zero or one, and nothing is compiled to make them."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(network.init, jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(size * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves])


def slope(steps, errors) -> float:
    """The order of convergence: minus the slope of log error over log steps, by least squares."""
    return -float(np.polyfit(np.log(np.asarray(steps, float)), np.log(np.asarray(errors, float)), 1)[0])


def max_relative(a, b) -> float:
    """The largest |a - b| over the largest |b|; b is the reference, of equal shape. NaN is infinitely wrong."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} against the reference's {b.shape}")
    error = float(np.abs(a - b).max() / np.abs(b).max())
    return error if np.isfinite(error) else float("inf")
