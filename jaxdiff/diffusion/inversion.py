"""Inversion takes data to noise along the probability-flow ODE: to the noise of which a sampler would make these data.

With one model's noise and another model's sampler a sound passes from the first style to the second (dual diffusion
implicit bridges, Su et al. 2023). The ODE is solved for z as `likelihood.py` says, which is smooth at the data.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .denoisers import Denoiser
from .schedules import Schedule


class Rate(NamedTuple):
    """The terms of the ODE at t = root^2: dz / droot = rate (alpha / scale z - x0_hat) and x_t = scale z. At the data
    `rate` is zero and `root` moved aside."""

    root: Array
    alpha: Array
    scale: Array
    rate: Array


def ode_rate(schedule: Schedule, root: Array) -> Rate:
    """The rate of the ODE of z = x_t / sqrt(alpha^2 + sigma^2) in root = sqrt(t)."""
    inside = root > 0
    levels = lambda root: (schedule.alpha(root**2), schedule.sigma(root**2))  # noqa: E731
    root = jnp.where(inside, root, 0.5)
    (alpha, sigma), (d_alpha, d_sigma) = jax.jvp(levels, (root,), (jnp.ones_like(root),))
    scale = jnp.sqrt(alpha**2 + sigma**2)
    return Rate(root, alpha, scale, jnp.where(inside, (alpha * d_sigma - sigma * d_alpha) / (scale * sigma), 0))


def invert(
    denoiser: Denoiser, schedule: Schedule, x0: Float[Array, "batch ..."], times: Float[Array, " steps_plus_1"]
) -> Float[Array, "batch ..."]:
    """x_t at `times[0]` of the path that ends in x0 at `times[-1]`; `times` falls, as a sampler's. Of second order, by
    the midpoint rule in sqrt(t), with two evaluations a step.

    >>> from jaxdiff.diffusion import Cosine, spaced_times
    >>> exact = lambda x_t, t: Cosine().alpha(t) * x_t  # standard normal data: z stays what it is
    >>> float(invert(exact, Cosine(), jnp.ones((1, 1)), spaced_times(Cosine(), 4))[0, 0])
    1.0
    """

    def slope(root: Array, z: Array) -> Array:
        root, alpha, scale, rate = ode_rate(schedule, root)
        return rate * (alpha / scale * z - denoiser(scale * z, root**2))

    def step(z: Array, roots: tuple[Array, Array]) -> tuple[Array, None]:
        start, end = roots
        middle = z + (end - start) / 2 * slope(start, z)
        return z + (end - start) * slope((start + end) / 2, middle), None

    roots = jnp.sqrt(times[::-1].astype(x0.dtype))
    scales = jnp.sqrt(schedule.alpha(roots**2) ** 2 + schedule.sigma(roots**2) ** 2)
    z, _ = jax.lax.scan(step, x0 / scales[0], (roots[:-1], roots[1:]))
    return scales[-1] * z
