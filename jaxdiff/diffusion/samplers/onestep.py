"""Samplers that use nothing of the step before: Runge-Kutta in the noise share, and the second-order DPM-Solvers.

A Runge-Kutta step over h = s' - s takes slopes k_j = (x - x0_hat) / s at stages between the two times and adds
h sum_j b_j k_j. That slope is 0 / 0 at s = 0, so a stage at the data repeats the one before and costs nothing: the last
step of Heun is Euler's.

DPM-Solver (Lu et al. 2022a, algorithm 4), DPM-Solver++ 2S (Lu et al. 2022b, algorithm 1) and EDM (Karras et al. 2022)
are two-stage steps in log(alpha / sigma) that extrapolate eps or x0_hat; where that is infinite, at either end, they
take the first stage's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..denoisers import Denoiser
from ..predictions import to_eps
from ..schedules import Schedule
from .stepping import Keys, Sampler, draw, levels, noise_ratio, scan, time_at, toward

# Butcher tableaus: where the stages are in the step, what each takes of the slopes before, and the final weights.
_HEUN = (0, 1), ((0, 0), (1, 0)), (1 / 2, 1 / 2)
_MIDPOINT = (0, 1 / 2), ((0, 0), (1 / 2, 0)), (0, 1)
_RK4 = (0, 1 / 2, 1 / 2, 1), ((0,) * 4, (1 / 2, 0, 0, 0), (0, 1 / 2, 0, 0), (0, 0, 1, 0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def euler(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
    """Euler steps along the probability-flow ODE: order 1, one evaluation per step, deterministic."""
    at = functools.partial(levels, schedule)
    return scan(lambda x, t, t_next, i: toward(x, denoiser(x, t), at(t), at(t_next)), x_T, times)


def heun(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
    """Heun's trapezoidal steps: order 2, two evaluations per step (one in the last, to t = 0), deterministic."""
    return scan(lambda x, t, t_next, i: _runge_kutta(_HEUN, denoiser, schedule, x, t, t, t_next), x_T, times)


def midpoint(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
    """Midpoint steps: order 2, two evaluations per step, none of them at t = 0, deterministic."""
    return _with_middles(_MIDPOINT, denoiser, schedule, x_T, times)


def rk4(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
    """The classical Runge-Kutta steps: order 4, four evaluations per step (three in the last), deterministic."""
    return _with_middles(_RK4, denoiser, schedule, x_T, times)


def _with_middles(tableau: tuple, denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array) -> Array:
    share = levels(schedule, times).share
    middles = time_at(schedule, (share[:-1] + share[1:]) / 2, times[1:], times[:-1])
    return scan(lambda x, t, t_next, i: _runge_kutta(tableau, denoiser, schedule, x, t, middles[i], t_next), x_T, times)


def _runge_kutta(
    tableau: tuple, denoiser: Denoiser, schedule: Schedule, x: Array, t: Array, middle: Array, t_next: Array
) -> Array:
    """One step from t to `t_next` with stages at t, `middle` (half the way in s) and `t_next`.

    The stages are a scan, so that the network is compiled once however many there are.
    """
    nodes, rows, weights = tableau
    here, there = levels(schedule, t), levels(schedule, t_next)
    y, h = x / here.scale, there.share - here.share

    combine = lambda row, slopes: jnp.einsum("j,j...->...", jnp.asarray(row, y.dtype), slopes, precision="highest")  # noqa: E731

    def stage(slopes, inputs):
        j, row, t_j = inputs
        at = levels(schedule, t_j)
        y_j = y + h * combine(row, slopes)
        slope = lambda: (y_j - denoiser(at.scale * y_j, t_j)) / at.share  # noqa: E731
        return slopes.at[j].set(jax.lax.cond(at.sigma > 0, slope, lambda: slopes[j - 1])), None

    stages = jnp.arange(len(nodes)), np.asarray(rows), jnp.stack([{0: t, 1: t_next}.get(c, middle) for c in nodes])
    slopes, _ = jax.lax.scan(stage, jnp.zeros((len(nodes), *y.shape), y.dtype), stages)
    return there.scale * (y + h * combine(weights, slopes))


def edm(s_churn: float = 40.0, s_noise: float = 1.003, s_min: float = 0.05, s_max: float = 50.0) -> Sampler:
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2): raise the noise level by 1 + gamma, then Heun.

    gamma = min(s_churn / steps, sqrt(2) - 1) where sigma / alpha is within [`s_min`, `s_max`], else 0; never beyond the
    level of the first time. The added noise is multiplied by `s_noise`. Defaults as for ImageNet (their table 5). Order
    2 with `s_noise` 1, two evaluations per step (one in the last, to t = 0). `s_churn` 0 is their algorithm 1.
    """

    def sample(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
        here = levels(schedule, times[:-1])
        inside = (here.sigma >= s_min * here.alpha) & (here.sigma <= s_max * here.alpha)
        gamma = jnp.where(inside, min(s_churn / (len(times) - 1), 2**0.5 - 1), 0)
        share = jnp.minimum((1 + gamma) * here.share / (1 + gamma * here.share), here.share[0])
        raised = time_at(schedule, share, times[:-1], jnp.full_like(times[:-1], times[0]))
        raised = jnp.where((gamma > 0) & (share > here.share), raised, times[:-1])

        def step(x, t, t_next, i):
            here, there = levels(schedule, t), levels(schedule, raised[i])
            gain = jnp.where(raised[i] > t, there.alpha / jnp.where(here.alpha > 0, here.alpha, 1), 1)
            kept = gain * here.sigma
            added = jnp.sqrt(jnp.maximum((there.sigma - kept) * (there.sigma + kept), 0))
            x = gain * x + s_noise * added * draw(key, i, x)
            return _two_stages("eps", denoiser, schedule, x, raised[i], t_next, t_next)

        return scan(step, x_T, times)

    return sample


def dpm2(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 4), a stage half-way in time: order 2, two evaluations per step.

    It extrapolates eps, for which steps that start with next to no signal are long: prefer times that are dense there.
    """
    step = functools.partial(_two_stages, "eps", denoiser, schedule)
    return scan(lambda x, t, t_next, i: step(x, t, (t + t_next) / 2, t_next), x_T, times)


def dpmpp_2s(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
    """DPM-Solver++ 2S (Lu et al. 2022b, algorithm 1), a stage half-way in time: order 2, two evaluations per step."""
    step = functools.partial(_two_stages, "x0", denoiser, schedule)
    return scan(lambda x, t, t_next, i: step(x, t, (t + t_next) / 2, t_next), x_T, times)


def _two_stages(
    extrapolate: str, denoiser: Denoiser, schedule: Schedule, x: Array, t: Array, t_middle: Array, t_next: Array
) -> Array:
    """A first-order step and the change of "x0" or "eps" from t to `t_middle`, over twice its place r in the step.

    r is measured in log(alpha / sigma); with `t_middle` at the end (r = 1) and eps it is Heun's step in sigma / alpha.
    """
    here, middle, there = levels(schedule, t), levels(schedule, t_middle), levels(schedule, t_next)
    x0_hat, ratio = denoiser(x, t), noise_ratio(here, there)
    first = toward(x, x0_hat, here, there)

    def correct():
        x_middle = toward(x, x0_hat, here, middle)
        x0_middle = denoiser(x_middle, t_middle)
        if extrapolate == "x0":
            change = (there.alpha - here.alpha * there.sigma / here.sigma) * (x0_middle - x0_hat)
        else:
            change = to_eps(schedule, t_middle, x_middle, x0_middle) - to_eps(schedule, t, x, x0_hat)
            change = (there.sigma - here.sigma * there.alpha / here.alpha) * change
        return first + change * (jnp.log(ratio) / (2 * jnp.log(noise_ratio(here, middle))))

    return jax.lax.cond(ratio > 0, correct, lambda: first)
