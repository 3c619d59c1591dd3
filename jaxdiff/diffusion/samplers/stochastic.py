"""Samplers that draw fresh noise at every step: DDPM, DDIM, predictor-corrector, and the flow of few-step models.

From time t to u the posterior of x_u given x_t and x0 has the variance (Song et al. 2021a, eq. 7, for any schedule)

    (sigma_u / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_u)^2 sigma_u^2)

and DDIM multiplies it by eta^2.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..denoisers import Denoiser
from ..predictions import to_eps
from ..schedules import Schedule
from .stepping import Keys, Sampler, draw, levels, noise_ratio, scan


def _posterior_step(
    eta: float, denoiser: Denoiser, schedule: Schedule, x: Array, t: Array, t_next: Array, z: Array | None
) -> Array:
    x0_hat, here, there = denoiser(x, t), levels(schedule, t), levels(schedule, t_next)
    eps_hat, ratio = to_eps(schedule, t, x, x0_hat), here.alpha / there.alpha
    variance = (eta * there.sigma / here.sigma) ** 2 * jnp.maximum(here.sigma**2 - (ratio * there.sigma) ** 2, 0)
    x = there.alpha * x0_hat + jnp.sqrt(jnp.maximum(there.sigma**2 - variance, 0)) * eps_hat
    return x if z is None else x + jnp.sqrt(variance) * z


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021a, eq. 12 and 16): eta 0 is deterministic, eta 1 draws from DDPM's posterior. Order 1."""

    def sample(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
        step, z = functools.partial(_posterior_step, eta, denoiser, schedule), functools.partial(draw, key)
        return scan(lambda x, t, t_next, i: step(x, t, t_next, z(i, x) if eta else None), x_T, times)

    return sample


def ancestral(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
    """DDPM's ancestral sampling with the posterior variance (Ho et al. 2020, eq. 6-7): `ddim(eta=1)`. Order 1."""
    return ddim(eta=1.0)(denoiser, schedule, x_T, times, key)


def euler_ancestral(eta: float = 1.0) -> Sampler:
    """k-diffusion's: an Euler step to sigma_down, then noise sigma_up, sigma_down^2 + sigma_up^2 = sigma'^2. Order 1.

    With its sigma_up = eta sigma' sqrt(1 - (sigma' / sigma)^2), sigma over alpha, this is `ddim(eta)`.
    """
    return ddim(eta)


def predictor_corrector(langevin: float = 0.5, corrections: int = 1) -> Sampler:
    """Ancestral steps, each followed by `corrections` Langevin steps at its level (Song et al. 2021b, algorithms 1-5).

    A correction moves x by epsilon score(x) + sqrt(2 epsilon) z with epsilon = `langevin` sigma'^2 (1 - e^(-2 h)), h
    the step of log(alpha / sigma). So it shrinks with the step and the whole converges with order 1; the paper's fixed
    epsilon = 2 r^2 sigma^2 leaves a bias of r^2. 1 + `corrections` evaluations per step, one in the last to t = 0.
    """
    if not 0 <= langevin < 2:
        raise ValueError(f"langevin must be at least 0 and below 2, where Langevin steps diverge, got {langevin}")

    def sample(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
        def step(x, t, t_next, i):
            here, there = levels(schedule, t), levels(schedule, t_next)
            first = i * (1 + corrections)
            x = _posterior_step(1.0, denoiser, schedule, x, t, t_next, draw(key, first, x))
            length = langevin * (1 - noise_ratio(here, there) ** 2)  # epsilon / sigma'^2

            def correct(j, x):
                drift = length * (there.alpha * denoiser(x, t_next) - x)
                return x + drift + jnp.sqrt(2 * length) * there.sigma * draw(key, first + 1 + j, x)

            corrected = lambda: jax.lax.fori_loop(0, corrections, correct, x)  # noqa: E731
            return jax.lax.cond(there.sigma > 0, corrected, lambda: x)

        return scan(step, x_T, times)

    return sample


def stochastic_flow(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
    """Predict x0, noise it anew to the next time, and again: for few-step models (Song et al. 2023, algorithm 1).

    Exact with any number of steps where the denoiser is a consistency function, one that maps x_t to the end of its
    path; with a posterior mean it loses variance. One evaluation per step.
    """

    def step(x, t, t_next, i):
        there = levels(schedule, t_next)
        return there.alpha * denoiser(x, t) + there.sigma * draw(key, i, x)

    return scan(step, x_T, times)
