"""What a network predicts, as one conversion table between x0, eps, v, flow and EDM's preconditioned output.

    x_t = alpha x0 + sigma eps,      output = b eps - a x0,      det = alpha b + sigma a

    (a, b) is (-1, 0) for x0, (0, 1) for eps, (1, 1) for flow, (sigma, alpha) for v (Salimans & Ho 2022, appendix D) and
    -(sigma / sigma_data, alpha sigma_data) / n with n^2 = sigma^2 + alpha^2 sigma_data^2 for edm

so that x0 = (b x_t - sigma output) / det and eps = (alpha output + a x_t) / det. The last row is Karras et al. 2022,
table 1, for x_t / alpha. Where an answer is undetermined (eps at sigma = 0, x0 from eps at alpha = 0) it is 0, its mean
for centred data, never NaN.
"""

import math
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array

from .schedules import PerItem, Schedule, logsnr
from .weights import Weight

Prediction = Literal["x0", "eps", "v", "flow", "edm"]


def spread(level: Array, x: Array) -> Array:
    """A level per item (or one for all) with trailing axes added so that it broadcasts over `x`."""
    level = jnp.asarray(level, x.dtype)
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim)) if level.ndim else level


def levels_at(schedule: Schedule, t: Array, x: Array) -> tuple[Array, Array]:
    """alpha and sigma at `t`, spread over `x`."""
    return spread(schedule.alpha(t), x), spread(schedule.sigma(t), x)


def noised(schedule: Schedule, t: Array, x0: Array, eps: Array) -> Array:
    """x_t."""
    alpha, sigma = levels_at(schedule, t, x0)
    return alpha * x0 + sigma * eps


def _row(prediction: Prediction, alpha: Array, sigma: Array, sigma_data: float) -> tuple:
    """a, b and the determinant, of the table above."""
    match prediction:
        case "x0":
            return -1, 0, -sigma
        case "eps":
            return 0, 1, alpha
        case "v":
            return sigma, alpha, alpha**2 + sigma**2
        case "flow":
            return 1, 1, alpha + sigma
        case "edm":
            n = jnp.hypot(alpha * sigma_data, sigma)
            return -sigma / (n * sigma_data), -alpha * sigma_data / n, -n / sigma_data
    raise ValueError(f"prediction {prediction!r} is unknown; use one of {', '.join(get_args(Prediction))}")


def target(
    prediction: Prediction, schedule: Schedule, t: Array, x0: Array, eps: Array, sigma_data: float = 0.5
) -> Array:
    """What the network should output at time t (a scalar, or one per item) for this x0 and eps."""
    if prediction in ("x0", "eps"):
        return x0 if prediction == "x0" else eps
    a, b, _ = _row(prediction, *levels_at(schedule, t, x0), sigma_data)
    return b * eps - a * x0


def to_x0(
    prediction: Prediction, schedule: Schedule, t: Array, x_t: Array, output: Array, sigma_data: float = 0.5
) -> Array:
    """The clean sample that a network's `output` at `x_t` stands for."""
    alpha, sigma = levels_at(schedule, t, x_t)
    _, b, det = _row(prediction, alpha, sigma, sigma_data)
    if prediction == "x0":
        return output
    numerator = b * x_t - sigma * output
    return _ratio(numerator, det) if prediction == "eps" else numerator / det


def to_eps(schedule: Schedule, t: Array, x_t: Array, x0: Array) -> Array:
    """The noise that makes `x_t` out of `x0`."""
    alpha, sigma = levels_at(schedule, t, x_t)
    return _ratio(x_t - alpha * x0, sigma)


def convert(
    source: Prediction,
    destination: Prediction,
    schedule: Schedule,
    t: Array,
    x_t: Array,
    output: Array,
    sigma_data: float = 0.5,
) -> Array:
    """What a `destination` network would output at `x_t` where a `source` network outputs `output`.

    >>> from jaxdiff.diffusion import Cosine
    >>> x_t, v = jnp.array([3.0]), jnp.array([1.0])
    >>> [float(convert("v", name, Cosine(), jnp.array(0.0), x_t, v)[0]) for name in ("x0", "eps", "flow")]
    [3.0, 1.0, -2.0]
    """
    if source == destination:
        return output
    alpha, sigma = levels_at(schedule, t, x_t)
    a, _, det = _row(source, alpha, sigma, sigma_data)
    x0 = to_x0(source, schedule, t, x_t, output, sigma_data)
    eps = output if source == "eps" else _ratio(alpha * output + a * x_t, det)
    return target(destination, schedule, t, x0, eps, sigma_data)


class EDMCoefficients(NamedTuple):
    """x0_hat = c_skip x_t + c_out F(c_in x_t), and c_noise, the paper's name for the time."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


def edm_coefficients(schedule: Schedule, t: Array, sigma_data: float = 0.5) -> EDMCoefficients:
    """Karras et al. 2022, table 1 (network and preconditioning), for any schedule; finite but for c_noise at the ends.

    Networks here are given t in place of c_noise = log(sigma / alpha) / 4, which is infinite at the data.

    >>> from jaxdiff.diffusion import RectifiedFlow
    >>> edm_coefficients(RectifiedFlow(), jnp.array(0.0)).c_in.item()
    2.0
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    n = jnp.hypot(alpha * sigma_data, sigma)
    c_noise = 0.25 * (jnp.log(sigma) - jnp.log(alpha))
    return EDMCoefficients(alpha * (sigma_data / n) ** 2, sigma * sigma_data / n, 1 / n, c_noise)


def network_input(prediction: Prediction, schedule: Schedule, t: Array, x_t: Array, sigma_data: float = 0.5) -> Array:
    """What the network sees: c_in x_t, of unit variance, for "edm", else x_t."""
    return spread(edm_coefficients(schedule, t, sigma_data).c_in, x_t) * x_t if prediction == "edm" else x_t


def output_weight(
    weight: Weight | None, prediction: Prediction, schedule: Schedule, t: PerItem, sigma_data: float = 0.5
) -> PerItem | float:
    """The factor of the squared error of a network's output: `weight(logsnr) (sigma / det)^2`, or 1 for None.

    Neither level counts as less than e^-20 of the other, which holds log-SNR within 40 of 0, so that a weight and a
    factor which are infinite and 0 at an end still multiply.

    >>> from jaxdiff.diffusion import Cosine, snr_weight
    >>> output_weight(snr_weight, "eps", Cosine(), jnp.array([0.0, 1.0])).round(4).tolist()
    [1.0, 1.0]
    """
    if weight is None:
        return 1.0
    alpha, sigma, least = schedule.alpha(t), schedule.sigma(t), math.exp(-20)
    alpha, sigma = jnp.maximum(alpha, least * sigma), jnp.maximum(sigma, least * alpha)
    _, _, det = _row(prediction, alpha, sigma, sigma_data)
    return weight(jnp.clip(logsnr(schedule, t), -40, 40)) * (sigma / det) ** 2


def _ratio(numerator: Array, denominator: Array) -> Array:
    return jnp.where(denominator == 0, 0, numerator / jnp.where(denominator == 0, 1, denominator))
