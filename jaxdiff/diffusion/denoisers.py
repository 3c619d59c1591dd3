"""A denoiser maps (x_t, t) to x0_hat, the mean of x0 given x_t; it is all that a sampler knows.

`denoiser` makes one of a network. Guidance is a function from denoisers to a denoiser: classifier-free guidance
(Ho & Salimans 2022, eq. 6) written for x0_hat, where the same linear combination holds as for eps, v and flow.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array

from .predictions import Prediction, to_x0
from .schedules import Schedule


@runtime_checkable
class Denoiser(Protocol):
    """`x_t` [batch, ...] and a scalar time `t` to the estimate of x0, shaped like `x_t`."""

    def __call__(self, x_t: Array, t: Array) -> Array: ...


def denoiser(network: Callable, schedule: Schedule, prediction: Prediction, cond) -> Denoiser:
    """The denoiser of `network(x_t, t, cond)`, whose output is read as `prediction`."""

    def denoise(x_t: Array, t: Array) -> Array:
        t = jnp.broadcast_to(t, x_t.shape[:1])
        return to_x0(prediction, schedule, t, x_t, network(x_t, t, cond))

    return denoise


def classifier_free_guidance(conditional: Denoiser, unconditional: Denoiser, scale: float | Array) -> Denoiser:
    """`uncond + scale (cond - uncond)`: scale 0 ignores the condition, 1 is the plain model, more sharpens it."""

    def denoise(x_t: Array, t: Array) -> Array:
        uncond = unconditional(x_t, t)
        return uncond + scale * (conditional(x_t, t) - uncond)

    return denoise
