"""The training loss: the squared error of the network's prediction at a random time (Ho et al. 2020, eq. 14).

Times come from a function `(key, batch) -> t [batch]` and each item's error may be weighted by its log-SNR.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .predictions import Prediction, spread, target
from .schedules import Schedule, logsnr

SampleTimes = Callable[[PRNGKeyArray, int], Float[Array, " batch"]]


def uniform_times(key: PRNGKeyArray, batch: int) -> Float[Array, " batch"]:
    """Uniform in [0, 1), one per equal slice of it: the low-discrepancy sampler of VDM (Kingma et al. 2021, I.1)."""
    return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1


def logit_normal_times(mean: float = 0.0, std: float = 1.0) -> SampleTimes:
    """t = sigmoid(N(mean, std^2)): more of the middle (Esser et al. 2024, eq. 19). Low-discrepancy, as `uniform_times`.

    A positive mean looks more often at noisy times.
    """

    def sample(key: PRNGKeyArray, batch: int) -> Float[Array, " batch"]:
        u = jnp.clip(uniform_times(key, batch), 1e-6, 1 - 1e-6)
        return jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(u))

    return sample


def velocity_weight(logsnr: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """Turns the squared error of x0 into that of the velocity (x - x0_hat) / s that samplers integrate: 1 / s^2.

    s = sigma / (alpha + sigma) is held above 0.05, as by Li & He (2025) for x0 prediction.
    """
    return jnp.minimum((1 + jnp.exp(logsnr / 2)) ** 2, 400.0)


def diffusion_loss(
    network: Callable,
    schedule: Schedule,
    x0: Float[Array, "batch frames features"],
    cond,
    key: PRNGKeyArray,
    *,
    prediction: Prediction = "flow",
    sample_t: SampleTimes = uniform_times,
    weight: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean over the batch of `weight(logsnr(t)) * |prediction - target|^2`, averaged over elements; and metrics.

    `network(x_t, t, cond)` is a training network (its dropout keys bound). `weight` None means 1.
    """
    time_key, noise_key = jax.random.split(key)
    t = sample_t(time_key, len(x0))
    eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x_t = spread(schedule.alpha(t), x0) * x0 + spread(schedule.sigma(t), x0) * eps
    error = (network(x_t, t, cond) - target(prediction, schedule, t, x0, eps)) ** 2
    item = error.mean(axis=tuple(range(1, x0.ndim)))
    loss = (item if weight is None else item * weight(logsnr(schedule, t))).mean()
    return loss, {"loss": loss}
