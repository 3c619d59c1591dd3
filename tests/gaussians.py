"""Gaussian data N(mean, covariance) on rows of d values, whose posteriors and flows are all known in closed form.

x0 | x_t      ~ N(mean + alpha C M (x_t - alpha mean), C - alpha^2 C M C),  M = (alpha^2 C + sigma^2)^-1
x0 | x_t, y   by the same rule with [alpha I; A] and diag(sigma^2, noise_std^2) in place of alpha I and sigma^2
"""

import dataclasses

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Exploding:
    """A variance-exploding schedule: alpha = 1, sigma = 30 t^2."""

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return 30 * t**2


def covariance_of(seed: int, d: int) -> np.ndarray:
    """A random covariance with standard deviations of about 0.3 to 2 along its axes."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return rotation @ np.diag(np.geomspace(0.3, 2.0, d) ** 2) @ rotation.T


def correlated_denoiser(schedule, mean, covariance):
    """The exact denoiser of N(mean [d], covariance [d, d]) data in rows [batch, d], for a scalar `t`."""
    values, vectors = np.linalg.eigh(covariance)

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        m, c, axes = (jnp.asarray(v, x_t.dtype) for v in (mean, values, vectors))
        return m + ((x_t - alpha * m) @ axes * (alpha * c / (alpha**2 * c + sigma**2))) @ axes.T

    return denoise


def posterior(mean, covariance, matrix, measured, noise_covariance):
    """Mean [batch, d] and covariance of x0 given rows `measured` = matrix x0 + noise, in float64 by NumPy."""
    gain = covariance @ matrix.T @ np.linalg.pinv(matrix @ covariance @ matrix.T + noise_covariance, rcond=1e-13)
    return mean + (measured - matrix @ mean) @ gain.T, covariance - gain @ matrix @ covariance


def posterior_mean(schedule, t, x_t, mean, covariance, matrix, y, noise_std):
    """E[x0 | x_t, y] for y = matrix x0 + noise_std eps."""
    d, (alpha, sigma) = len(covariance), (float(f(jnp.asarray(t))) for f in (schedule.alpha, schedule.sigma))
    both = np.concatenate([alpha * np.eye(d), matrix])
    noise = np.diag(np.concatenate([np.full(d, sigma**2), np.full(len(matrix), noise_std**2)]))
    return posterior(mean, covariance, both, np.concatenate([x_t, y], axis=1), noise)[0]
