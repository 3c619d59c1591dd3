"""Few steps without distillation: a network of two times that jumps along the probability-flow ODE, and reflow.

The jump from t to r <= t is, in the noise share s = sigma / (alpha + sigma) and z = x_t / (alpha + sigma) (samplers),

    z_r = X + (s_r / s_t) (z_t - X),      X = network(x_t, t, cond, r=r)

so that X is the x0 at which the straight line from x_t through x_r ends, and at r = t the ordinary denoiser. A shortcut
model (Frans et al. 2024, eq. 4-5; with two times the progressive self-distillation of Boffi et al. 2025) learns it from
data alone: most items are ordinary ones with r = t, the others must match two jumps by way of the middle m, which is

    X(x_t, t, r) = (s_t (s_m - s_r) X(x_m, m, r) + s_r (s_t - s_m) X(x_t, t, m)) / (s_m (s_t - s_r))

an average with positive weights. Reflow (Liu et al. 2022, section 2.2) trains an ordinary network on a teacher's pairs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .denoisers import Denoiser
from .objectives import Loss, SampleTimes, item_losses, uniform_times
from .predictions import Prediction, noised, output_weight, spread
from .samplers import Sampler, noise
from .samplers.stepping import Keys, levels, scan
from .schedules import Frames, PerItem, Schedule
from .weights import Weight

FlowMap = Callable[[Array, Array, Array], Array]  # x_t [batch, ...], times t >= r, scalars or [batch], to X above
SampleIntervals = Callable[[PRNGKeyArray, int], tuple[PerItem, PerItem]]


def flow_map(network: Callable, cond, resolution: float | Array = 1 / 64) -> FlowMap:
    """The flow map of `network(x_t, t, cond, r=r)`; jumps no longer than `resolution` are Euler steps, with r = t."""

    def estimate(x_t: Array, t: Array, r: Array) -> Array:
        t, r = jnp.broadcast_to(t, x_t.shape[:1]), jnp.broadcast_to(r, x_t.shape[:1])
        return network(x_t, t, cond, r=jnp.where(t - r <= resolution, t, r))

    return estimate


def _jump(schedule: Schedule, x_t: Array, t: Array, r: Array, X: Array) -> Array:
    """x_r on the straight line from x_t towards X."""
    here, there = (levels(schedule, time) for time in (t, r))
    ratio = spread(there.share / here.share, x_t)
    return spread(there.scale, x_t) * (X + ratio * (x_t / spread(here.scale, x_t) - X))


def flow_map_sampler(flow_map: FlowMap, schedule: Schedule, x_T: Array, times: Array, key: Keys) -> Array:
    """One jump of the flow map per step, deterministic: as many evaluations as steps, and one step is enough.

    >>> from jaxdiff.diffusion import RectifiedFlow
    >>> halfway = lambda x_t, t, r: 0.5 * x_t
    >>> flow_map_sampler(halfway, RectifiedFlow(), jnp.array([4.0]), jnp.array([1.0, 0.0]), jax.random.key(0)).tolist()
    [2.0]
    """
    return scan(lambda x, t, r, i: _jump(schedule, x, t, r, flow_map(x, t, r)), x_T, times)


def dyadic_intervals(levels: int = 6) -> SampleIntervals:
    """Intervals (t, r) of length 1, 1/2, ... 2^(1 - levels), all lengths equally often, at multiples of their length.

    These are the steps of `spaced_times(schedule, steps)` with 1, 2, 4 ... steps (Frans et al. 2024, section 3.2).
    """

    def sample(key: PRNGKeyArray, batch: int) -> tuple[PerItem, PerItem]:
        level_key, place_key = jax.random.split(key)
        count = 2.0 ** jnp.floor(levels * uniform_times(level_key, batch))
        place = jnp.floor(count * jax.random.uniform(place_key, (batch,)))
        return (place + 1) / count, place / count

    return sample


def shortcut_loss(
    network: Callable,
    schedule: Schedule,
    x0: Frames,
    cond,
    key: PRNGKeyArray,
    *,
    teacher: Callable | None = None,
    every: int = 4,
    sample_t: SampleTimes = uniform_times,
    sample_intervals: SampleIntervals = dyadic_intervals(),
    resolution: float | Array = 1 / 64,
    weight: Weight | None = None,
) -> Loss:
    """Mean of `weight(logsnr(t)) * |X - target|^2`: x0 at r = t, for `every`-th item two jumps of `teacher`; metrics.

    `network(x_t, t, cond, r=r)` predicts x0 and is a training network. `teacher` is the same without dropout and better
    with averaged weights (None: the network itself); no gradient reaches it. `cond` is a tree of arrays [batch, ...].
    The exact flow map has no error on the jumps with `resolution` 0; above, the composition of Euler steps of that
    length has none. `velocity_weight` makes the error that of the average velocity.
    """
    time_key, interval_key, noise_key = jax.random.split(key, 3)
    jumps = np.arange(len(x0)) % every == 0
    t_jump, r_jump = sample_intervals(interval_key, int(jumps.sum()))
    t = jnp.zeros(len(x0)).at[~jumps].set(sample_t(time_key, int((~jumps).sum()))).at[jumps].set(t_jump)
    eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x_t, own = noised(schedule, t, x0, eps), jax.tree.map(lambda leaf: leaf[jumps], cond)
    goal = _two_jumps(flow_map(teacher or network, own, resolution), schedule, x_t[jumps], t_jump, r_jump)
    goal = jax.lax.stop_gradient(x0.at[jumps].set(goal.astype(x0.dtype)))
    error = (network(x_t, t, cond, r=t.at[jumps].set(r_jump)) - goal) ** 2
    item = error.mean(axis=tuple(range(1, x0.ndim))) * output_weight(weight, "x0", schedule, t)
    return item.mean(), {"loss": item.mean(), "jump_loss": item[jumps].mean()}


def _two_jumps(flow_map: FlowMap, schedule: Schedule, x_t: Array, t: PerItem, r: PerItem) -> Array:
    """X of the jump from t to r that lands where two jumps by way of the middle do."""
    m = (t + r) / 2
    first = flow_map(x_t, t, m)
    second = flow_map(_jump(schedule, x_t, t, m, first), m, r)
    s_t, s_m, s_r = (spread(levels(schedule, time).share, x_t) for time in (t, m, r))
    return (s_t * (s_m - s_r) * second + s_r * (s_t - s_m) * first) / (s_m * (s_t - s_r))


def reflow_pairs(
    sampler: Sampler, denoiser: Denoiser, schedule: Schedule, shape: tuple[int, ...], times: Array, key: Keys
) -> tuple[Array, Array]:
    """Noise and the sample that a deterministic teacher makes of it: `(eps, x0)`, both of `shape` (Liu et al. 2022).

    A pair depends on its own key alone if there are keys [batch].
    """
    eps = noise(key, shape)
    return eps, sampler(denoiser, schedule, eps, times, key)


def reflow_loss(
    network: Callable,
    schedule: Schedule,
    x0: Frames,
    eps: Frames,
    cond,
    key: PRNGKeyArray,
    *,
    prediction: Prediction = "flow",
    sample_t: SampleTimes = uniform_times,
    weight: Weight | None = None,
    sigma_data: float = 0.5,
) -> Loss:
    """`diffusion_loss` on given pairs of sample and noise, whose straight paths do not cross (Liu et al. 2022, eq. 1).

    The trained network has straight paths itself, so that one Euler step suffices.
    """
    options: dict[str, Any] = dict(prediction=prediction, weight=weight, sigma_data=sigma_data, eps=eps)
    loss = item_losses(network, schedule, x0, cond, sample_t(key, len(x0)), key, **options)[0].mean()
    return loss, {"loss": loss}
