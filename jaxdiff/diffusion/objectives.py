"""The training loss: the squared error of the network's prediction at a random time (Ho et al. 2020, eq. 14).

Times come from a function `(key, batch) -> t [batch]`. Each item's squared error of x0 may be given a weight by its
log-SNR (`weights.py`), whatever the network predicts. Importance sampling keeps a histogram of the loss over time and
draws times in proportion to it; its state is arrays in, arrays out:

    drawn = sample_histogram(histogram, time_key, len(x0))
    losses, metrics = item_losses(network, schedule, x0, cond, drawn.t, noise_key)
    loss, histogram = (drawn.weight * losses).mean(), update_histogram(histogram, drawn.t, losses)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .predictions import Prediction, network_input, noised, output_weight, spread, target, to_x0
from .schedules import Frames, PerItem, Schedule, logsnr
from .times import time_at_logsnr
from .weights import Weight

SampleTimes = Callable[[PRNGKeyArray, int], PerItem]
Loss = tuple[Float[Array, ""], dict[str, Array]]  # and metrics


def uniform_times(key: PRNGKeyArray, batch: int) -> PerItem:
    """Uniform in [0, 1), one per equal slice of it: the low-discrepancy sampler of VDM (Kingma et al. 2021, I.1).

    >>> bool((jnp.diff(jnp.sort(uniform_times(jax.random.key(0), 4))) > 0.2).all())
    True
    """
    return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1


def _normal_quantiles(key: PRNGKeyArray, batch: int) -> PerItem:
    return jax.scipy.special.ndtri(jnp.clip(uniform_times(key, batch), 1e-6, 1 - 1e-6))


def logit_normal_times(mean: float = 0.0, std: float = 1.0) -> SampleTimes:
    """t = sigmoid(N(mean, std^2)): more of the middle (Esser et al. 2024, eq. 19). Low-discrepancy, as `uniform_times`.

    A positive mean looks more often at noisy times.
    """
    return lambda key, batch: jax.nn.sigmoid(mean + std * _normal_quantiles(key, batch))


def lognormal_times(schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> SampleTimes:
    """log(sigma / alpha) ~ N(mean, std^2), which are EDM's training noise levels (Karras et al. 2022, table 1).

    Levels above the schedule's last one become t = 1. Low-discrepancy, as `uniform_times`.
    """
    return lambda key, batch: time_at_logsnr(schedule, -2 * (mean + std * _normal_quantiles(key, batch)))


class LossHistogram(NamedTuple):
    """Running sums over equal bins of time, from which the mean squared loss of a bin is `square / mass`."""

    square: Float[Array, " bins"]
    mass: Float[Array, " bins"]  # 0 where no loss was seen yet


class DrawnTimes(NamedTuple):
    """Times, and the factors 1 / p(t) that keep the mean of weighted losses what it is under uniform times."""

    t: PerItem
    weight: PerItem


def init_histogram(bins: int = 32) -> LossHistogram:
    """No loss seen: times are uniform."""
    return LossHistogram(jnp.zeros(bins), jnp.zeros(bins))


def update_histogram(histogram: LossHistogram, t: PerItem, losses: PerItem, decay: float = 0.99) -> LossHistogram:
    """Add a batch of unweighted losses; in the bins that it touches, older batches fade by `decay`."""
    bins = len(histogram.mass)
    index = jnp.clip((t * bins).astype(int), 0, bins - 1)
    count = jnp.zeros_like(histogram.mass).at[index].add(1)
    square = jnp.zeros_like(histogram.square).at[index].add(jax.lax.stop_gradient(losses) ** 2)
    fade = jnp.where(count > 0, decay, 1.0)
    return LossHistogram(fade * histogram.square + square, fade * histogram.mass + count)


def sample_histogram(histogram: LossHistogram, key: PRNGKeyArray, batch: int, uniform: float = 0.1) -> DrawnTimes:
    """Times with density proportional to the root mean squared loss of their bin (Nichol & Dhariwal 2021, eq. 18).

    A share `uniform` of them is uniform, so that no weight exceeds 1 / uniform; a bin without losses counts as the mean
    of the others. Low-discrepancy, as `uniform_times`.

    >>> drawn = sample_histogram(init_histogram(), jax.random.key(0), 4)
    >>> bool((jnp.abs(drawn.weight - 1) < 1e-5).all())
    True
    """
    bins, seen = len(histogram.mass), histogram.mass > 0
    size = jnp.sqrt(jnp.where(seen, histogram.square / jnp.where(seen, histogram.mass, 1), 0))
    size = jnp.where(seen, size, size.sum() / jnp.maximum(seen.sum(), 1))
    total = size.sum()
    share = (1 - uniform) * jnp.where(total > 0, size / jnp.where(total > 0, total, 1), 1 / bins) + uniform / bins
    last = jnp.cumsum(share)
    u = uniform_times(key, batch) * last[-1]
    index = jnp.clip(jnp.searchsorted(last, u, side="right"), 0, bins - 1)
    within = jnp.clip((u - (last[index] - share[index])) / share[index], 0, 1)
    return DrawnTimes((index + within) / bins, 1 / (bins * share[index]))


def item_losses(
    network: Callable,
    schedule: Schedule,
    x0: Frames,
    cond,
    t: PerItem,
    key: PRNGKeyArray,
    *,
    prediction: Prediction = "flow",
    weight: Weight | None = None,
    sigma_data: float = 0.5,
    auxiliary: Callable | None = None,
    auxiliary_weight: Weight | None = None,
    with_estimate: Callable | None = None,
    eps: Frames | None = None,
) -> tuple[PerItem, dict[str, Array]]:
    """Each item's loss at its time t, with the noise `eps` if it is given; other options as in `diffusion_loss`."""
    eps = jax.random.normal(key, x0.shape, x0.dtype) if eps is None else eps
    x_t = noised(schedule, t, x0, eps)
    seen = network_input(prediction, schedule, t, x_t, sigma_data)
    if with_estimate is not None:
        output = network(seen, t, with_estimate(cond, jnp.zeros_like(x_t)))
        guess = jax.lax.stop_gradient(to_x0(prediction, schedule, t, x_t, output, sigma_data))
        coin = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, t.shape)
        cond = with_estimate(cond, jnp.where(spread(coin, x_t) > 0, guess, 0))
    output = network(seen, t, cond)
    error = (output - target(prediction, schedule, t, x0, eps, sigma_data)) ** 2
    losses = error.mean(axis=tuple(range(1, x0.ndim))) * output_weight(weight, prediction, schedule, t, sigma_data)
    metrics = {}
    if auxiliary is not None:
        extra = auxiliary(to_x0(prediction, schedule, t, x_t, output, sigma_data), x0, cond)
        extra = extra if auxiliary_weight is None else extra * auxiliary_weight(logsnr(schedule, t))
        losses, metrics = losses + extra, {"auxiliary": extra.mean()}
    return losses, metrics


def diffusion_loss(
    network: Callable,
    schedule: Schedule,
    x0: Frames,
    cond,
    key: PRNGKeyArray,
    *,
    prediction: Prediction = "flow",
    sample_t: SampleTimes = uniform_times,
    weight: Weight | None = None,
    sigma_data: float = 0.5,
    auxiliary: Callable | None = None,
    auxiliary_weight: Weight | None = None,
    with_estimate: Callable | None = None,
) -> Loss:
    """Mean over the batch of `weight(logsnr(t)) * |x0_hat - x0|^2`, averaged over elements; and metrics.

    `network(x_t, t, cond)` is a training network (its dropout keys bound). `weight` belongs to the error of x0 for
    every prediction; None means the network's own squared error, |output - target|^2. `sigma_data` belongs to
    prediction "edm". `auxiliary(x0_hat, x0, cond) -> [batch]` is added, times `auxiliary_weight(logsnr(t))` if any.
    `with_estimate(cond, x0_hat) -> cond` turns on self-conditioning (Chen et al. 2022, algorithm 1), at the price of
    one more forward pass: half of the items are given the network's first estimate, the others 0.

    >>> from jaxdiff.diffusion import Cosine
    >>> zero = lambda x_t, t, cond: 0 * x_t
    >>> float(diffusion_loss(zero, Cosine(), jnp.full((2, 3, 1), 3.0), None, jax.random.key(0), prediction="x0")[0])
    9.0
    """
    time_key, noise_key = jax.random.split(key)
    options: dict[str, Any] = dict(prediction=prediction, weight=weight, sigma_data=sigma_data)
    options |= dict(auxiliary=auxiliary, auxiliary_weight=auxiliary_weight, with_estimate=with_estimate)
    t = sample_t(time_key, len(x0))
    losses, metrics = item_losses(network, schedule, x0, cond, t, noise_key, **options)
    loss = losses.mean()
    return loss, {"loss": loss, **metrics}
