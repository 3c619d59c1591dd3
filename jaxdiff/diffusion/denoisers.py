"""A denoiser maps (x_t, t) to x0_hat, the mean of x0 given x_t; it is all that a sampler knows.

`denoiser` makes one of a network. Guidance and inverse problems are functions from denoisers to a denoiser.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from .predictions import Prediction, network_input, to_x0
from .schedules import Schedule

Denoiser = Callable[[Array, Array], Array]  # x_t [batch, ...] and a scalar time to x0_hat, shaped like x_t


def denoiser(
    network: Callable,
    schedule: Schedule,
    prediction: Prediction,
    cond,
    *,
    sigma_data: float = 0.5,
    with_estimate: Callable | None = None,
) -> Denoiser:
    """The denoiser of `network(x_t, t, cond)`, whose output is read as `prediction`.

    `sigma_data` matters to "edm" alone: the network then sees c_in x_t. A network trained with self-conditioning
    (`diffusion_loss`) is run twice, the second time `with_estimate(cond, x0_hat)`.
    """

    def denoise(x_t: Array, t: Array) -> Array:
        t = jnp.broadcast_to(t, x_t.shape[:1])

        def estimate(cond) -> Array:
            output = network(network_input(prediction, schedule, t, x_t, sigma_data), t, cond)
            return to_x0(prediction, schedule, t, x_t, output, sigma_data)

        if with_estimate is None:
            return estimate(cond)
        return estimate(with_estimate(cond, estimate(with_estimate(cond, jnp.zeros_like(x_t)))))

    return denoise
