"""How much each noise level counts: functions of log-SNR, stated for the squared error of x0.

A network that predicts something else has another error: output - target = -(det / sigma) (x0_hat - x0) in the terms of
`predictions.py`. `weight_for` divides by the square of that, which turns any weight below into the one for its
prediction. A constant weight of the network's own error is `weight=None`; for "eps" that is `snr_weight` here.

    |x0 error|^2:  SNR |.|^2 = |eps error|^2,   (1 + SNR) |.|^2 = |v error|^2 (variance preserving),
    velocity: |flow error|^2,   EDM: |F error|^2,   with SNR = alpha^2 / sigma^2
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .predictions import Prediction

Weight = Callable[[Float[Array, " batch"]], Float[Array, " batch"]]


def snr_weight(logsnr: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """SNR: the loss of eps, DDPM's choice (Ho et al. 2020, eq. 14). Without bound towards the data.

    >>> snr_weight(jnp.array([0.0])).tolist()
    [1.0]
    """
    return jnp.exp(logsnr)


def min_snr_weight(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma) (Hang et al. 2023): the loss of eps, without its pull to the least noise.

    >>> min_snr_weight()(jnp.array([0.0, 10.0])).tolist()
    [1.0, 5.0]
    """
    return lambda logsnr: jnp.minimum(jnp.exp(logsnr), gamma)


def edm_weight(sigma_data: float = 0.5) -> Weight:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 at alpha = 1, which is 1 / c_out^2 (Karras et al. 2022, table 1).

    >>> edm_weight()(jnp.array([0.0])).tolist()
    [5.0]
    """
    return lambda logsnr: jnp.exp(logsnr) + sigma_data**-2


def sigmoid_weight(bias: float = 0.0) -> Weight:
    """SNR sigmoid(bias - logsnr), a monotonic weighting of the ELBO (Kingma & Gao 2023).

    That is sigmoid(bias - logsnr) for the squared error of eps, under times drawn uniformly in log-SNR. Bounded.

    >>> sigmoid_weight()(jnp.array([0.0])).tolist()
    [0.5]
    """
    return lambda logsnr: jnp.exp(bias) * jax.nn.sigmoid(logsnr - bias)


def velocity_weight(logsnr: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """Turns the squared error of x0 into that of the velocity (x - x0_hat) / s that samplers integrate: 1 / s^2.

    s = sigma / (alpha + sigma) is held above 0.05, as by Li & He (2025) for x0 prediction.

    >>> velocity_weight(jnp.array([0.0, 20.0])).tolist()
    [4.0, 400.0]
    """
    return jnp.minimum((1 + jnp.exp(logsnr / 2)) ** 2, 400.0)


def weight_for(prediction: Prediction, weight: Weight, sigma_data: float = 0.5) -> Weight:
    """The weight of a network's own squared error that amounts to `weight` of its x0 error.

    For "v" on a variance-preserving, for "flow" on a straight schedule. Log-SNR is held within 40 of 0, so that a
    weight and a factor which are infinite and 0 at an end still multiply.

    >>> round(weight_for("eps", snr_weight)(jnp.array([-jnp.inf])).item(), 4)
    1.0
    """

    def converted(logsnr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        logsnr = jnp.clip(logsnr, -40, 40)
        factor = {
            "x0": lambda: jnp.ones_like(logsnr),
            "eps": lambda: jnp.exp(-logsnr),
            "v": lambda: jax.nn.sigmoid(-logsnr),
            "flow": lambda: (1 + jnp.exp(logsnr / 2)) ** -2,
            "edm": lambda: 1 / (jnp.exp(logsnr) + sigma_data**-2),
        }[prediction]()
        return weight(logsnr) * factor

    return converted
