"""How signal and noise mix over diffusion time: x_t = alpha(t) x0 + sigma(t) eps, t = 0 data, t = 1 noise.

A schedule is a frozen dataclass of numbers with `alpha` and `sigma`, any array of times in [0, 1] to an array of the
same shape, exactly 1 and 0 at t = 0. Three families: variance preserving (alpha^2 + sigma^2 = 1), variance exploding
(alpha = 1) and straight (alpha + sigma = 1). `shift` multiplies sigma / alpha in each, so that it moves the log-SNR by
-2 log(shift) (Hoogeboom et al. 2023; Esser et al. 2024, eq. 23): above 1, more time is spent at high noise, where data
of many correlated values (long or redundant features) decides on its coarse shape.
"""

import abc
import functools
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff import ranges

Frames = Float[Array, "batch frames features"]
PerItem = Float[Array, " batch"]  # of a batch: times, log-SNRs, losses


@runtime_checkable
class Schedule(Protocol):
    """Signal and noise level over time; at t = 0 alpha is 1 and sigma is 0."""

    def alpha(self, t: Array) -> Array: ...

    def sigma(self, t: Array) -> Array: ...


class _Levels(abc.ABC):
    """A schedule that has one formula for both levels."""

    @abc.abstractmethod
    def levels(self, t: Array) -> tuple[Array, Array]:
        """alpha and sigma."""

    def alpha(self, t: Array) -> Array:
        return self.levels(t)[0]

    def sigma(self, t: Array) -> Array:
        return self.levels(t)[1]


def _preserving(alpha: Array, sigma: Array, shift: float) -> tuple[Array, Array]:
    """Levels with sigma / alpha multiplied by `shift`, on the unit circle again."""
    if shift == 1:
        return alpha, sigma
    radius = jnp.hypot(alpha, shift * sigma)
    return alpha / radius, shift * sigma / radius


def _preserving_of_log(log_alpha: Array, shift: float) -> tuple[Array, Array]:
    return _preserving(jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2 * log_alpha)), shift)


@dataclass(frozen=True)
class Cosine(_Levels):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): variance preserving (Nichol & Dhariwal 2021, eq. 17, s = 0)."""

    shift: ranges.Positive = 1.0

    def levels(self, t: Array) -> tuple[Array, Array]:
        alpha = jnp.sin(0.5 * np.pi * (1 - t))  # exactly 0 at t = 1, which cos(pi / 2) is not in float32
        return _preserving(alpha, jnp.sin(0.5 * np.pi * t), self.shift)


@dataclass(frozen=True)
class Sigmoid(_Levels):
    """alpha^2 falls as a piece of the logistic curve: variance preserving (Jabri et al. 2022; Chen 2023).

    alpha^2 = (s(end) - s(x)) / (s(end) - s(start)), s(x) = sigmoid(x / tau), x from `start` to `end`. Computed as
    a / (a + b) with a = sinh((end - x) / 2 tau) cosh(start / 2 tau) and b its mirror image, which cancels nowhere.
    """

    start: float = -3.0
    end: float = 3.0
    tau: ranges.Positive = 1.0
    shift: ranges.Positive = 1.0

    def levels(self, t: Array) -> tuple[Array, Array]:
        half, length = 0.5 / self.tau, 0.5 * (self.end - self.start) / self.tau
        falling = jnp.sinh(length * (1 - t)) * np.cosh(half * self.start).item()
        rising = jnp.sinh(length * t) * np.cosh(half * self.end).item()
        total = falling + rising
        return _preserving(jnp.sqrt(falling / total), jnp.sqrt(rising / total), self.shift)


@dataclass(frozen=True)
class LinearBeta(_Levels):
    """DDPM's chain of `steps` betas from `beta_min` to `beta_max` (Ho et al. 2020): variance preserving.

    alpha(n / steps)^2 is the product of the first n factors 1 - beta (DDPM eq. 4); between the steps it follows the
    polynomial through the logarithms of those products, which float32 cannot tell from them. `scaled` spaces the square
    roots of the betas evenly (Rombach et al. 2022). The default is DiffWave BASE (Kong et al. 2021, section 5), whose
    alpha(1) is 0.53, yet sampling starts from pure noise, as in the paper. DiffWave LARGE is `LinearBeta(200, 1e-4,
    0.02)`, DDPM `LinearBeta(1000, 1e-4, 0.02)`, latent diffusion `LinearBeta(1000, 8.5e-4, 0.012, scaled=True)`.

    >>> round(float(LinearBeta(200, 1e-4, 0.02).alpha(jnp.array(1.0)) ** 2), 4)
    0.1322
    """

    steps: ranges.Count = 50
    beta_min: ranges.Positive = 1e-4
    beta_max: ranges.Positive = 0.05
    scaled: bool = False
    shift: ranges.Positive = 1.0

    def levels(self, t: Array) -> tuple[Array, Array]:
        t = jnp.asarray(t)
        # Before the first step a straight line: there the polynomial may rise above 0, which is alpha > 1.
        slope = jnp.polyval(jnp.asarray(_log_alpha_over_t(self), t.dtype), jnp.maximum(t, 1 / self.steps))
        return _preserving_of_log(t * slope, self.shift)


@functools.cache
def _log_alpha_over_t(schedule: LinearBeta) -> np.ndarray:
    """Coefficients of log(alpha(t)) / t, fitted to the discrete products in float64."""
    power = 0.5 if schedule.scaled else 1.0
    betas = np.linspace(schedule.beta_min**power, schedule.beta_max**power, schedule.steps) ** (1 / power)
    n = np.arange(1, schedule.steps + 1)
    times = n / schedule.steps
    return np.polyfit(times, 0.5 * np.cumsum(np.log1p(-betas)) / times, min(7, schedule.steps - 1))


@dataclass(frozen=True)
class VP(_Levels):
    """DDPM's chain in the limit of many steps (Song et al. 2021, appendix C): variance preserving.

    beta(t) rises evenly: log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2.
    """

    beta_min: ranges.Positive = 0.1
    beta_max: ranges.Positive = 20.0
    shift: ranges.Positive = 1.0

    def levels(self, t: Array) -> tuple[Array, Array]:
        log_alpha = -t * (0.25 * (self.beta_max - self.beta_min) * t + 0.5 * self.beta_min)
        return _preserving_of_log(log_alpha, self.shift)


@dataclass(frozen=True)
class VE(_Levels):
    """Noise that grows geometrically from `sigma_min` to `sigma_max` (Song et al. 2021): variance exploding.

    Its exact kernel from t = 0 (their appendix C): sigma^2 = sigma_min^2 ((sigma_max / sigma_min)^(2 t) - 1).
    """

    sigma_min: ranges.Positive = 0.01
    sigma_max: ranges.Positive = 50.0
    shift: ranges.Positive = 1.0

    def levels(self, t: Array) -> tuple[Array, Array]:
        growth = 2 * np.log(self.sigma_max / self.sigma_min).item()
        return jnp.ones_like(t), self.shift * self.sigma_min * jnp.sqrt(jnp.expm1(growth * t))


@dataclass(frozen=True)
class EDM(_Levels):
    """alpha = 1, sigma = sigma_max t^rho: variance exploding, with the times of Karras et al. 2022.

    Uniform times are theirs (eq. 5 with sigma_min = 0), and tell noise levels apart about as well as their c_noise.
    """

    sigma_max: ranges.Positive = 80.0
    rho: ranges.Positive = 7.0
    shift: ranges.Positive = 1.0

    def levels(self, t: Array) -> tuple[Array, Array]:
        t = jnp.asarray(t)
        return jnp.ones_like(t), self.shift * self.sigma_max * t**self.rho


@dataclass(frozen=True)
class RectifiedFlow(_Levels):
    """alpha = 1 - u, sigma = u, u = shift t / (1 + (shift - 1) t): straight (Liu et al. 2022; Lipman et al. 2022)."""

    shift: ranges.Positive = 1.0

    def levels(self, t: Array) -> tuple[Array, Array]:
        scale = 1 + (self.shift - 1) * t
        return (1 - t) / scale, self.shift * t / scale


SCHEDULES: dict[str, type[Schedule]] = dict(
    cosine=Cosine, sigmoid=Sigmoid, linear_beta=LinearBeta, vp=VP, ve=VE, edm=EDM, rectified_flow=RectifiedFlow
)


def logsnr(schedule: Schedule, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(alpha^2 / sigma^2): +inf at the data, -inf where alpha is 0.

    >>> float(logsnr(RectifiedFlow(), jnp.array(0.5)))
    0.0
    """
    return 2 * (jnp.log(schedule.alpha(t)) - jnp.log(schedule.sigma(t)))


def prior_scale(schedule: Schedule) -> Float[Array, ""]:
    """The standard deviation of x_T for data of unit variance, sqrt(alpha(1)^2 + sigma(1)^2): multiplies the noise.

    >>> float(prior_scale(RectifiedFlow()))
    1.0
    """
    end = jnp.ones(())
    return jnp.hypot(schedule.alpha(end), schedule.sigma(end))
