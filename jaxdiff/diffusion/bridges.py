"""Bridges between paired data: x0 clean at t = 0, y degraded at t = 1, both ends exact.

    x_t = w_x(t) x0 + w_y(t) y + std(t) z,      z ~ N(0, I)

A Schroedinger bridge is a diffusion dx = f x dt + g dw pinned at x0 and y. Its scale a = exp(int_0^t f), its clock
V(t) = int_0^t g^2 / a^2 and the clock's share p = V(t) / V(1) give

    w_x = a (1 - p),      w_y = a / a(1) p,      std^2 = a^2 V(1) p (1 - p)

(Chen et al. 2023, "Schrodinger bridges beat diffusion models on text-to-speech synthesis"; for speech enhancement Jukic
et al. 2024). Flow matching from a data-dependent start has straight weights. The network predicts x0.

A bridge is a schedule too: alpha = w_x, and sigma^2 = w_y^2 + std^2 is what of x_t is not x0, for y of unit variance.
(sigma / alpha)^2 = q^2 / a(1)^2 + V(1) q rises with q = p / (1 - p) from 0 to infinity, so log-SNR falls all the way.

Every sampler here takes the first-order step from t to an earlier u in which x0_hat is held constant,

    x_u = r x_t + (w_x(u) - r w_x(t)) x0_hat + (w_y(u) - r w_y(t)) y + fresh z,      r^2 std(t)^2 + fresh^2 = std(u)^2

and they differ in how much of the noise is fresh (Zheng et al. 2024, "Diffusion bridge implicit models").
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff import ranges

from .denoisers import Denoiser
from .objectives import Loss, SampleTimes, uniform_times
from .predictions import spread
from .samplers import NamedSampler
from .samplers.stepping import Keys, draw, scan
from .schedules import Frames, Schedule

Weights = tuple[Float[Array, "*time"], Float[Array, "*time"], Float[Array, "*time"]]


@runtime_checkable
class Bridge(Schedule, Protocol):
    """`marginal(t) -> (w_x, w_y, std)` for any array of times; (1, 0, 0) at t = 0, and (0, 1, std(1)) at t = 1."""

    @abc.abstractmethod
    def marginal(self, t: Array) -> Weights: ...

    def alpha(self, t: Array) -> Array:
        return self.marginal(t)[0]

    def sigma(self, t: Array) -> Array:
        _, w_y, std = self.marginal(t)
        return jnp.hypot(w_y, std)


def _share(growth: float, progress: Array) -> tuple[Array, Array]:
    """p and 1 - p for a clock V = constant (exp(growth progress) - 1): without cancellation, exact at both ends."""
    left = growth * (1 - progress)
    gone, ahead = -jnp.exp(-left) * jnp.expm1(-growth * progress), -jnp.expm1(-left)
    return gone / (gone + ahead), ahead / (gone + ahead)


@dataclass(frozen=True)
class VEBridge(Bridge):
    """f = 0, g^2 = c k^(2t): variance exploding; the defaults are those of Jukic et al. 2024.

    >>> [float(w) for w in VEBridge().marginal(jnp.array(1.0))]
    [0.0, 1.0, 0.0]
    """

    k: ranges.Positive = 2.6
    c: ranges.Positive = 0.4

    def marginal(self, t: Float[Array, "*time"]) -> Weights:
        growth = 2 * math.log(self.k)
        p, q = _share(growth, t)
        return q, p, math.sqrt(self.c * math.expm1(growth) / growth) * jnp.sqrt(p * q)


@dataclass(frozen=True)
class VPBridge(Bridge):
    """f = -beta / 2, g^2 = c beta, beta linear from `beta_min` to `beta_max`; the defaults of Jukic et al. 2024.

    >>> [float(w) for w in VPBridge().marginal(jnp.array(0.0))]
    [1.0, 0.0, 0.0]
    """

    beta_min: ranges.Positive = 0.01
    beta_max: ranges.Positive = 20.0
    c: ranges.Positive = 0.3

    def marginal(self, t: Float[Array, "*time"]) -> Weights:
        growth = (self.beta_min + self.beta_max) / 2  # the integral of beta
        bend = (self.beta_max - self.beta_min) / (2 * growth)
        progress = t * (1 - bend * (1 - t))
        p, q = _share(growth, progress)
        scale = jnp.exp(-growth / 2 * progress)
        std = math.sqrt(self.c * math.expm1(growth)) * scale * jnp.sqrt(p * q)
        return scale * q, jnp.exp(growth / 2 * (1 - progress)) * p, std


@dataclass(frozen=True)
class FlowBridge(Bridge):
    """w_x = 1 - t, w_y = t, std = noise_std t: flow matching from y + noise_std z to x0 (Liu et al. 2022 at 0).

    Noise shrinks as the mean slides from y to x0 where `noise_std` is above 0 (Lee et al. 2025, FlowSE).

    >>> float(FlowBridge(0.75).sigma(jnp.array(0.5)))
    0.625
    """

    noise_std: ranges.Weight = 0.0

    def marginal(self, t: Float[Array, "*time"]) -> Weights:
        return 1 - t, t, self.noise_std * t


BRIDGES: dict[str, type[Bridge]] = {"ve": VEBridge, "vp": VPBridge, "flow": FlowBridge}


def bridge_denoiser(network: Callable, cond) -> Denoiser:
    """The denoiser of `network(x_t, t, cond)` that was trained by `bridge_loss`."""
    return lambda x_t, t: network(x_t, jnp.broadcast_to(t, x_t.shape[:1]), cond)


def bridge_loss(
    network: Callable,
    bridge: Bridge,
    x0: Frames,
    y: Frames,
    cond,
    key: PRNGKeyArray,
    *,
    sample_t: SampleTimes = uniform_times,
    auxiliary: Callable | None = None,
    auxiliary_weight: float = 1.0,
) -> Loss:
    """Mean of |network(x_t, t, cond) - x0|^2 (Jukic et al. 2024, data prediction), averaged over elements; and metrics.

    The network sees y only through `cond`. `auxiliary(x0_hat, x0, cond) -> [batch]`, for example a distance of the
    decoded sounds, is added with `auxiliary_weight`.

    >>> zeros, key = jnp.zeros((2, 3, 1)), jax.random.key(0)
    >>> float(bridge_loss(lambda x_t, t, cond: zeros, VEBridge(), zeros + 3, zeros, None, key)[0])
    9.0
    """
    time_key, noise_key = jax.random.split(key)
    t = sample_t(time_key, len(x0))
    w_x, w_y, std = (spread(w, x0) for w in bridge.marginal(t))
    x_t = w_x * x0 + w_y * y + std * jax.random.normal(noise_key, x0.shape, x0.dtype)
    x0_hat = network(x_t, t, cond)
    loss, metrics = ((x0_hat - x0) ** 2).mean(), {}
    if auxiliary is not None:
        metrics["auxiliary"] = auxiliary(x0_hat, x0, cond).mean()
        loss = loss + auxiliary_weight * metrics["auxiliary"]
    return loss, {"loss": loss, **metrics}


BridgeSampler = Callable[[Denoiser, Bridge, Array, Array, Keys], Array]


def _implicit(eta: float, first: float) -> BridgeSampler:
    """Take the share `eta` of the pinned diffusion's own fresh noise; `first` of it where x_t = y has no noise yet."""

    def sample(denoiser: Denoiser, bridge: Bridge, y: Array, times: Array, key: Keys) -> Array:
        def step(x, t, u, i):
            (x_t, y_t, std_t), (x_u, y_u, std_u) = bridge.marginal(t), bridge.marginal(u)
            markov = y_u / y_t  # the diffusion forgets y once x_t is known
            share = jnp.where(std_t > 0, eta, first)
            fresh = share * jnp.sqrt(jnp.maximum(std_u**2 - (markov * std_t) ** 2, 0))
            kept = jnp.sqrt(jnp.maximum(std_u**2 - fresh**2, 0)) / jnp.where(std_t > 0, std_t, 1)
            r = jnp.where(std_t > 0, kept, markov)
            x = r * x + (x_u - r * x_t) * denoiser(x, t) + (y_u - r * y_t) * y
            return x + fresh * draw(key, i, y) if eta or first else x

        return scan(step, y + bridge.marginal(times[0])[2] * draw(key, len(times), y), times)

    return sample


def dbim(eta: float = 0.0) -> BridgeSampler:
    """Implicit bridge sampler (Zheng et al. 2024): the first step from y draws noise, the later ones a share `eta`.

    eta 0 is the probability-flow ODE with a random start, whose samples spread as x0 given y does; eta 1 `bridge_sde`.
    """
    return _implicit(eta, 1.0)


def bridge_sde(denoiser: Denoiser, bridge: Bridge, y: Array, times: Array, key: Keys) -> Array:
    """The reverse bridge SDE of Chen et al. 2023: x_u from its exact posterior given x_t and x0_hat.

    `times` decrease from 1 to 0; `y` [batch, ...] is the start; `key` as for the samplers from noise. A `FlowBridge`
    has no noise to draw on the way: there this is `bridge_ode`.
    """
    return _implicit(1.0, 1.0)(denoiser, bridge, y, times, key)


def bridge_ode(denoiser: Denoiser, bridge: Bridge, y: Array, times: Array, key: Keys) -> Array:
    """The bridge's probability-flow ODE of Chen et al. 2023; on a `FlowBridge`, Euler.

    Deterministic: without noise at t = 1 every y has one answer, which for a Gaussian x0 given y is its mean.
    """
    return _implicit(0.0, 0.0)(denoiser, bridge, y, times, key)


BRIDGE_SAMPLERS: dict[str, NamedSampler] = {
    "bridge_sde": NamedSampler(bridge_sde, 1, 1, False),
    "bridge_ode": NamedSampler(bridge_ode, 1, 1, True),
    "dbim": NamedSampler(dbim(), 1, 1, False),
}
