"""From noise to data: every sampler is `(denoiser, schedule, x_T, times, key) -> x0`, one `lax.scan` over `times`.

Dividing x_t by alpha + sigma turns any schedule into straight paths with noise share s = sigma / (alpha + sigma):

    x_t / (alpha + sigma) = (1 - s) x0 + s eps,      dx/ds = eps - x0 = (x - x0_hat) / s

so one deterministic step rule serves all schedules, and needs no derivative of them. Euler in s is exactly DDIM with
eta = 0 (Song et al. 2021, eq. 12); Heun is its second-order form (Karras et al. 2022, algorithm 1). `key` is one key,
or one per item [batch]: then an item does not depend on its neighbours.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from .denoisers import Denoiser
from .predictions import to_eps
from .schedules import Schedule

Sampler = Callable[[Denoiser, Schedule, Array, Array, Key[Array, "*batch"]], Array]


def noise(key: Key[Array, "*batch"], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal noise; with keys [batch] item i depends on `key[i]` alone."""
    if key.ndim == 0:
        return jax.random.normal(key, shape)
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(key)


def _fold_in(key: Key[Array, "*batch"], data: Array) -> Key[Array, "*batch"]:
    return jax.random.fold_in(key, data) if key.ndim == 0 else jax.vmap(lambda k: jax.random.fold_in(k, data))(key)


def _scan(step: Callable, x_T: Array, times: Array) -> Array:
    """Apply `step(x, t, t_next, i)` over neighbouring times."""
    grid = (times[:-1], times[1:], jnp.arange(len(times) - 1))
    return jax.lax.scan(lambda x, g: (step(x, *g), None), x_T, grid)[0]


def _levels(schedule: Schedule, t: Array) -> tuple[Array, Array]:
    """The scale alpha + sigma and the noise share s at time t."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return alpha + sigma, sigma / (alpha + sigma)


def euler(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Key[Array, "*batch"]) -> Array:
    """Euler steps along the probability-flow ODE: order 1, one evaluation per step, deterministic."""

    def step(x, t, t_next, i):
        (scale, s), (scale_next, s_next) = _levels(schedule, t), _levels(schedule, t_next)
        x, x0_hat = x / scale, denoiser(x, t)
        return scale_next * (x0_hat + (s_next / s) * (x - x0_hat))

    return _scan(step, x_T, times)


def heun(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Key[Array, "*batch"]) -> Array:
    """Heun's trapezoidal steps: order 2, two evaluations per step (one in the last, to t = 0), deterministic."""

    def step(x, t, t_next, i):
        (scale, s), (scale_next, s_next) = _levels(schedule, t), _levels(schedule, t_next)
        x = x / scale
        slope = (x - denoiser(scale * x, t)) / s
        x_next = x + (s_next - s) * slope

        def correct(x_next):
            slope_next = (x_next - denoiser(scale_next * x_next, t_next)) / s_next
            return x + (s_next - s) * 0.5 * (slope + slope_next)

        return scale_next * jax.lax.cond(s_next > 0, correct, lambda x_next: x_next, x_next)

    return _scan(step, x_T, times)


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, eq. 12 and 16): eta 0 is deterministic, eta 1 draws from DDPM's posterior.

    Written for any schedule: from time t to u the posterior variance is
    `(sigma_u / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_u)^2 sigma_u^2)`, scaled by eta^2. Order 1.
    """

    def sample(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Key[Array, "*batch"]) -> Array:
        def step(x, t, t_next, i):
            x0_hat = denoiser(x, t)
            eps_hat = to_eps(schedule, t, x, x0_hat)
            ratio = schedule.alpha(t) / schedule.alpha(t_next)
            sigma, sigma_next = schedule.sigma(t), schedule.sigma(t_next)
            variance = eta**2 * (sigma_next / sigma) ** 2 * jnp.maximum(sigma**2 - (ratio * sigma_next) ** 2, 0)
            x = schedule.alpha(t_next) * x0_hat + jnp.sqrt(jnp.maximum(sigma_next**2 - variance, 0)) * eps_hat
            return x + jnp.sqrt(variance) * noise(_fold_in(key, i), x.shape) if eta else x

        return _scan(step, x_T, times)

    return sample


def ancestral(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Key[Array, "*batch"]) -> Array:
    """DDPM's ancestral sampling with the posterior variance (Ho et al. 2020, eq. 6-7): `ddim(eta=1)`. Order 1."""
    return ddim(eta=1.0)(denoiser, schedule, x_T, times, key)
