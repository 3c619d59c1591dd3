"""How much each noise level counts: functions of log-SNR that weight the squared error of x0.

In the terms of `predictions.py` x0_hat - x0 is -(sigma / det) (output - target), so that the square of a network's own
error is multiplied by `weight(logsnr) (sigma / det)^2`. The weight None trains with that error alone, which is with
SNR = alpha^2 / sigma^2

    |eps error|^2 = SNR |x0 error|^2,                   |v error|^2 = (1 + SNR) (alpha^2 + sigma^2) |x0 error|^2,
    |flow error|^2 = (1 + sqrt(SNR))^2 |x0 error|^2,    |edm error|^2 = (SNR + sigma_data^-2) |x0 error|^2
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .schedules import PerItem

Weight = Callable[[PerItem], PerItem]


def snr_weight(logsnr: PerItem) -> PerItem:
    """SNR: the loss of eps, DDPM's choice (Ho et al. 2020, eq. 14). It grows without bound towards the data.

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


def velocity_weight(logsnr: PerItem) -> PerItem:
    """Turns the squared error of x0 into that of the velocity (x - x0_hat) / s that samplers integrate: 1 / s^2.

    s = sigma / (alpha + sigma) is held above 0.05, as by Li & He (2025) for x0 prediction.

    >>> velocity_weight(jnp.array([0.0, 20.0])).tolist()
    [4.0, 400.0]
    """
    return jnp.minimum((1 + jnp.exp(logsnr / 2)) ** 2, 400.0)
