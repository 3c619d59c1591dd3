"""Samplers that remember: one evaluation per step, and a polynomial through the last few of them.

A step integrates the polynomial exactly, however the times are spaced. Adams-Bashforth (LMS) does so for the slope in
the noise share s; the exponential ones for x0_hat in u = log(alpha / sigma), whose step h has the exact solution

    x' = (sigma' / sigma) e^(-eta h) x + alpha' (1 + eta) int_0^h e^(-(1 + eta)(h - u)) x0_hat(u) du + noise

(DPM-Solver++, Lu et al. 2022, eq. 8, and with eta = 1 its SDE form, eq. 18). History is only counted where it exists:
the first steps, and those from alpha = 0 or to sigma = 0, where h is infinite, have a lower order. They do not spoil
order p if they are small, of the size steps^(-p / 2), as at cosine times.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..denoisers import Denoiser
from ..schedules import Schedule
from .stepping import Keys, Levels, Sampler, draw, levels, noise_ratio, scan

_History = tuple[Array, Array]  # offsets of the evaluations from the present (infinite: none), newest first; values


def _history(order: int, x: Array, dtype) -> _History:
    return jnp.full(order, jnp.inf, dtype), jnp.zeros((order, *x.shape), x.dtype)


def _remember(history: _History, value: Array) -> _History:
    nodes, values = history
    return jnp.roll(nodes, 1).at[0].set(0), jnp.roll(values, 1, axis=0).at[0].set(value)


def _mean(moments: list, nodes: Array, values: Array) -> Array:
    """The mean over a step of Newton's polynomial through `values` at `nodes`.

    `moments[k]` is the step's mean of u^k. The first node is 0; infinite nodes, which come last, do not count.
    """
    known = jnp.isfinite(nodes)
    u = jnp.where(known, nodes, 0)
    basis, table, total = [1.0], list(values), values[0]
    for k in range(1, len(values)):
        basis = [a - u[k - 1] * b for a, b in zip([0.0, *basis], [*basis, 0.0], strict=True)]
        spans = [jnp.where(known[j + k], u[j + k] - u[j], 1) for j in range(len(table) - 1)]
        table = [(b - a) / span for (a, b), span in zip(pairwise(table), spans, strict=True)]
        weight = sum(b * m for b, m in zip(basis, moments, strict=False))
        total = total + jnp.where(known[k], weight, 0) * table[0]
    return total


def adams_bashforth(order: int = 4) -> Sampler:
    """Adams-Bashforth of `order` 1 to 4, LMS to k-diffusion: one evaluation per step, deterministic."""
    _check_order("adams_bashforth", order, 4)

    def sample(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
        def step(carry, t, t_next, i):
            x, history = carry
            here, there = levels(schedule, t), levels(schedule, t_next)
            y, h = x / here.scale, there.share - here.share
            nodes, slopes = _remember(history, (y - denoiser(x, t)) / here.share)
            y = y + h * _mean([h**k / (k + 1) for k in range(order)], nodes, slopes)
            return there.scale * y, (nodes - h, slopes)

        return scan(step, (x_T, _history(order, x_T, times.dtype)), times)[0]

    return sample


def _exponential_mean(h: Array, eta: float, nodes: Array, values: Array) -> Array:
    """The mean of x0_hat over a step with the weight e^((1 + eta) u); the newest value where the step is infinite.

    Two values are weighted as at h / 2, which makes them DPM-Solver++ 2M and UniPC's B2, more exactly.
    """
    infinite = ~jnp.isfinite(h)
    h = jnp.where(infinite, 1, h)
    rate = 1 + eta
    moments = [jnp.ones_like(h)]
    for k in range(1, len(values)):
        moments.append(h**k / -jnp.expm1(-rate * h) - k / rate * moments[-1])
    if len(values) > 1:
        two = ~jnp.isfinite(nodes[2]) if len(values) > 2 else True
        moments[1] = jnp.where(two, h / 2, moments[1])
    return jnp.where(infinite, values[0], _mean(moments, nodes, values))


def _exponential_step(x: Array, mean: Array, here: Levels, there: Levels, eta: float) -> Array:
    ratio = noise_ratio(here, there)
    return there.sigma / here.sigma * ratio**eta * x + there.alpha * (1 - ratio ** (1 + eta)) * mean


def dpmpp(order: int = 2, eta: float = 0.0) -> Sampler:
    """DPM-Solver++ of `order` 1 (1S), 2 (2M) or 3 (3M), one evaluation per step (Lu et al. 2022, algorithm 2).

    `eta` 0 is deterministic; `eta` 1 is SDE-DPM-Solver++ (eq. 18, and 19 for 2M), `eta` between has less noise. Order 1
    is DDIM, with the noise that DDIM has at eta 0 and 1.
    """
    _check_order("dpmpp", order, 3)

    def sample(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
        def step(carry, t, t_next, i):
            x, history = carry
            here, there = levels(schedule, t), levels(schedule, t_next)
            ratio = noise_ratio(here, there)
            h = -jnp.log(ratio)
            nodes, values = _remember(history, denoiser(x, t))
            x = _exponential_step(x, _exponential_mean(h, eta, nodes, values), here, there, eta)
            if eta:
                x = x + there.sigma * jnp.sqrt(1 - ratio ** (2 * eta)) * draw(key, i, x)
            return x, (nodes - h, values)

        return scan(step, (x_T, _history(order, x_T, times.dtype)), times)[0]

    return sample


def unipc(order: int = 2) -> Sampler:
    """UniPC-`order`, 1 to 3, with B2(h) (Zhao et al. 2023, algorithm 1): convergence `order` + 1, deterministic.

    Each evaluation corrects the step that led to it (UniC) before it predicts the next (UniP), so that there is one per
    step. The last step, whose end has no evaluation, is not corrected.
    """
    _check_order("unipc", order, 3)

    def sample(denoiser: Denoiser, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
        def step(carry, t, t_next, i):
            predicted, x, (nodes, values) = carry
            before, here, there = (levels(schedule, t) for t in (times[jnp.maximum(i - 1, 0)], t, t_next))
            x0_hat = denoiser(predicted, t)

            def correct():
                h = -jnp.log(noise_ratio(before, here))
                seen = jnp.insert(nodes + h, 1, h), jnp.insert(values, 1, x0_hat, axis=0)
                return _exponential_step(x, _exponential_mean(h, 0.0, *seen), before, here, 0.0)

            x = jax.lax.cond(i > 0, correct, lambda: predicted)
            nodes, values = _remember((nodes, values), x0_hat)
            h = -jnp.log(noise_ratio(here, there))
            predicted = _exponential_step(x, _exponential_mean(h, 0.0, nodes, values), here, there, 0.0)
            return predicted, x, (nodes - h, values)

        return scan(step, (x_T, x_T, _history(order, x_T, times.dtype)), times)[0]

    return sample


def _check_order(name: str, order: int, highest: int) -> None:
    if not 1 <= order <= highest:
        raise ValueError(f"{name} has order 1 to {highest}, got {order}")
