"""How signal and noise mix over diffusion time: x_t = alpha(t) x0 + sigma(t) eps, t = 0 data, t = 1 noise.

A schedule is a frozen dataclass of numbers with `alpha` and `sigma`, any array of times in [0, 1] to an array of the
same shape. Everything else about it (log-SNR, time grids) is a free function.
"""

import functools
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@runtime_checkable
class Schedule(Protocol):
    """Signal and noise level over time; at t = 0 alpha is 1 and sigma is 0."""

    def alpha(self, t: Array) -> Array: ...

    def sigma(self, t: Array) -> Array: ...


@dataclass(frozen=True)
class Cosine:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): variance preserving (Nichol & Dhariwal 2021, eq. 17, s = 0)."""

    def alpha(self, t: Array) -> Array:
        return jnp.sin(0.5 * np.pi * (1 - t))  # exactly 0 at t = 1, which cos(pi / 2) is not in float32

    def sigma(self, t: Array) -> Array:
        return jnp.sin(0.5 * np.pi * t)


@dataclass(frozen=True)
class RectifiedFlow:
    """alpha = 1 - u, sigma = u: straight paths (Liu et al. 2022, eq. 1; Lipman et al. 2022).

    u = shift t / (1 + (shift - 1) t), so a `shift` above 1 spends more of training and of the sampling steps at high
    noise, where data of many correlated values (long or redundant features) decides on its coarse shape (Esser et al.
    2024, eq. 23).
    """

    shift: float = 1.0

    def alpha(self, t: Array) -> Array:
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Array) -> Array:
        return self.shift * t / (1 + (self.shift - 1) * t)


@dataclass(frozen=True)
class LinearBeta:
    """DDPM's chain of `steps` betas from `beta_min` to `beta_max` (Ho et al. 2020), DiffWave's by default.

    alpha(n / steps)^2 is the product of the first n factors 1 - beta (DDPM eq. 4); between the steps it follows the
    polynomial through the logarithms of those products, which float32 cannot tell from them. DiffWave BASE has 50 betas
    to 0.05 (Kong et al. 2021, section 5): alpha(1) is 0.53, yet sampling starts from pure noise, as in the paper.
    """

    steps: int = 50
    beta_min: float = 1e-4
    beta_max: float = 0.05

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self._log_alpha(t))

    def sigma(self, t: Array) -> Array:
        return jnp.sqrt(-jnp.expm1(2 * self._log_alpha(t)))

    def _log_alpha(self, t: Array) -> Array:
        t = jnp.asarray(t)
        # Before the first step a straight line: there the polynomial may rise above 0, which is alpha > 1.
        return t * jnp.polyval(jnp.asarray(_log_alpha_over_t(self), t.dtype), jnp.maximum(t, 1 / self.steps))


@functools.cache
def _log_alpha_over_t(schedule: LinearBeta) -> np.ndarray:
    """Coefficients of log(alpha(t)) / t, fitted to the discrete products in float64."""
    betas = np.linspace(schedule.beta_min, schedule.beta_max, schedule.steps)
    n = np.arange(1, schedule.steps + 1)
    times = n / schedule.steps
    return np.polyfit(times, 0.5 * np.cumsum(np.log1p(-betas)) / times, min(7, schedule.steps - 1))


def logsnr(schedule: Schedule, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(alpha^2 / sigma^2): +inf at the data, -inf where alpha is 0.

    >>> float(logsnr(Cosine(), jnp.array(0.5)))
    0.0
    """
    return 2 * (jnp.log(schedule.alpha(t)) - jnp.log(schedule.sigma(t)))


def time_grid(
    schedule: Schedule, steps: int, spacing: Literal["uniform", "quadratic"] = "uniform"
) -> Float[Array, " steps_plus_1"]:
    """`steps + 1` decreasing times from 1 (noise) to 0 (data): evenly spaced, or denser near the data as (i / steps)^2.

    >>> time_grid(RectifiedFlow(), 4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if spacing not in ("uniform", "quadratic"):
        raise ValueError(f"spacing {spacing!r} is unknown; use 'uniform' or 'quadratic'")
    times = np.arange(steps, -1, -1) / steps
    return jnp.asarray(times**2 if spacing == "quadratic" else times, jnp.float32)
