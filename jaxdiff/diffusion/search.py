"""The best N times for a given model and sampler, found by gradient descent through the sampler itself.

Times are written as softmax-distributed decrements from 1 to 0, which stay positive and sum to 1. Their error is the
mean squared difference between what the sampler makes on them and what many steps make of the same noise, so only
deterministic samplers can be searched for. (Watson et al. 2022 and Sabour et al. 2024 minimise bounds instead.)
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .denoisers import Denoiser
from .samplers import Sampler
from .schedules import Schedule

Items = Float[Array, "batch ..."]
Times = Float[Array, " times"]


def times_error(
    sampler: Sampler, denoiser: Denoiser, schedule: Schedule, x_T: Items, reference: Items, times: Times
) -> Float[Array, ""]:
    """Mean squared difference between the sampler's result on `times` and `reference`, from the same `x_T`."""
    return ((sampler(denoiser, schedule, x_T, times, jax.random.key(0)) - reference) ** 2).mean()


def search_times(
    sampler: Sampler,
    denoiser: Denoiser,
    schedule: Schedule,
    x_T: Items,
    reference: Items,
    times: Times,
    *,
    iterations: int = 60,
    learning_rate: float = 0.1,
) -> tuple[Times, Float[Array, " iterations"]]:
    """The times, as many as in `times` to begin with, whose error is least; and the errors on the way.

    Adam, its rate falling as a cosine, moves the logarithms of the decrements; the best times on the way are returned,
    so the result is never worse than `times`.
    """
    if len(times) < 3:
        raise ValueError(f"{len(times)} times have none between their ends to move; search for 2 steps or more")
    denoiser = jax.checkpoint(denoiser)  # type: ignore[assignment]
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, iterations))

    def of_logits(logits: Array) -> Array:
        inner = 1 - jnp.cumsum(jax.nn.softmax(logits))[:-1]
        return jnp.concatenate([jnp.ones(1), inner, jnp.zeros(1)]).astype(times.dtype)

    def error(logits: Array) -> Array:
        return times_error(sampler, denoiser, schedule, x_T, reference, of_logits(logits))

    def descend(carry, _):
        logits, state, best, least = carry
        value, gradient = jax.value_and_grad(error)(logits)
        best, least = jax.tree.map(lambda a, b: jnp.where(value < least, a, b), (logits, value), (best, least))
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(logits, updates), state, best, least), value

    logits = jnp.log(times[:-1] - times[1:])
    start = (logits, optimizer.init(logits), logits, jnp.asarray(jnp.inf, x_T.dtype))
    (_, _, best, _), errors = jax.lax.scan(descend, start, length=iterations)
    return of_logits(best), errors
