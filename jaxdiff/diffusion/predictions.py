"""What a network predicts, as one conversion table between x0, eps, v and flow.

    x_t = alpha x0 + sigma eps,      v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D),      flow = eps - x0

Two of the three x_t, prediction and the rest follow linearly. Where the noise level makes the answer undetermined
(eps at sigma = 0, x0 from eps at alpha = 0) the result is 0, its mean for centred data, never NaN.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array

from .schedules import Schedule

Prediction = Literal["x0", "eps", "v", "flow"]


def spread(level: Array, x: Array) -> Array:
    """A level per item (or one for all) with trailing axes added so that it broadcasts over `x`."""
    level = jnp.asarray(level, x.dtype)
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim)) if level.ndim else level


def target(prediction: Prediction, schedule: Schedule, t: Array, x0: Array, eps: Array) -> Array:
    """What the network should output at time t (a scalar, or one per item) for this x0 and eps."""
    alpha, sigma = spread(schedule.alpha(t), x0), spread(schedule.sigma(t), x0)
    match prediction:
        case "x0":
            return x0
        case "eps":
            return eps
        case "v":
            return alpha * eps - sigma * x0
        case "flow":
            return eps - x0
    raise ValueError(f"prediction {prediction!r} is unknown; use one of {', '.join(get_args(Prediction))}")


def to_x0(prediction: Prediction, schedule: Schedule, t: Array, x_t: Array, output: Array) -> Array:
    """The clean sample that a network's `output` at `x_t` stands for."""
    alpha, sigma = spread(schedule.alpha(t), x_t), spread(schedule.sigma(t), x_t)
    match prediction:
        case "x0":
            return output
        case "eps":
            return _ratio(x_t - sigma * output, alpha)
        case "v":
            return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
        case "flow":
            return (x_t - sigma * output) / (alpha + sigma)
    raise ValueError(f"prediction {prediction!r} is unknown; use one of {', '.join(get_args(Prediction))}")


def to_eps(schedule: Schedule, t: Array, x_t: Array, x0: Array) -> Array:
    """The noise that makes `x_t` out of `x0`."""
    alpha, sigma = spread(schedule.alpha(t), x_t), spread(schedule.sigma(t), x_t)
    return _ratio(x_t - alpha * x0, sigma)


def _ratio(numerator: Array, denominator: Array) -> Array:
    return jnp.where(denominator == 0, 0, numerator / jnp.where(denominator == 0, 1, denominator))
