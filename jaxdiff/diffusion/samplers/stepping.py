"""What all samplers share: the scan over times, noise per item, and the coordinates they step in.

Dividing x_t by alpha + sigma turns any schedule into straight paths with noise share s = sigma / (alpha + sigma):

    x_t / (alpha + sigma) = (1 - s) x0 + s eps,      dx/ds = eps - x0 = (x - x0_hat) / s

so one deterministic step rule serves all schedules, and needs no derivative of them. `toward` is the exact solution
for a constant x0_hat: Euler in s, DDIM with eta = 0 and the first-order DPM-Solver++ alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ..denoisers import Denoiser
from ..schedules import Schedule

Keys = Key[Array, "*batch"]
Sampler = Callable[[Denoiser, Schedule, Array, Array, Keys], Array]


class Levels(NamedTuple):
    """Signal and noise level at a time, with what follows from them."""

    alpha: Array
    sigma: Array

    @property
    def scale(self) -> Array:
        return self.alpha + self.sigma

    @property
    def share(self) -> Array:
        """Noise share, 0 at the data to 1 where no signal is left."""
        return self.sigma / self.scale


def levels(schedule: Schedule, t: Array) -> Levels:
    return Levels(schedule.alpha(t), schedule.sigma(t))


def toward(x: Array, x0_hat: Array, here: Levels, there: Levels) -> Array:
    """Keep x0_hat and its noise, and change their levels: alpha' x0_hat + sigma' (x - alpha x0_hat) / sigma."""
    gain = there.sigma / here.sigma
    return gain * x + (there.alpha - gain * here.alpha) * x0_hat


def noise_ratio(here: Levels, there: Levels) -> Array:
    """exp(-h) for the step h of log(alpha / sigma): 1 for no step, 0 to the data or from where alpha is 0."""
    return (here.alpha * there.sigma) / (there.alpha * here.sigma)


def noise(key: Keys, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal noise; with keys [batch] item i depends on `key[i]` alone.

    >>> noise(jax.random.split(jax.random.key(0), 3), (3, 4)).shape
    (3, 4)
    """
    if key.ndim == 0:
        return jax.random.normal(key, shape)
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(key)


def fold_in(key: Keys, count: Array | int) -> Keys:
    """The `count`-th of the keys that follow from each."""
    return jax.random.fold_in(key, count) if key.ndim == 0 else jax.vmap(jax.random.fold_in, (0, None))(key, count)


def draw(key: Keys, count: Array | int, x: Array) -> Array:
    """A sampler's noise number `count`, like x; every stochastic step takes its noise from here."""
    return noise(fold_in(key, count), x.shape).astype(x.dtype)


def scan(step: Callable, start, times: Array):
    """The last x of `x <- step(x, t, t_next, i)` over neighbouring times; x may be a tree of arrays."""
    intervals = (times[:-1], times[1:], jnp.arange(len(times) - 1))
    return jax.lax.scan(lambda x, interval: (step(x, *interval), None), start, intervals)[0]


def time_at(schedule: Schedule, share: Array, low: Array, high: Array) -> Array:
    """The time between `low` and `high` with this noise share, by bisection to the last bit."""

    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        above = levels(schedule, middle).share > share
        return jnp.where(above, ends[0], middle), jnp.where(above, middle, ends[1])

    low, high = jax.lax.fori_loop(0, jnp.finfo(share.dtype).nmant + 2, halve, (low, high))
    return (low + high) / 2
