"""One compiled program from raw waveform to updated weights: a method's update, then the average of its weights."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from .ema import update_averages
from .state import TrainState

Metrics = dict[str, Array]
Update = Callable[[TrainState, Mapping[str, Any], PRNGKeyArray], tuple[TrainState, Metrics]]
TrainStep = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]


def warmup_cosine(peak: float, steps: int, warmup: int) -> optax.Schedule:
    """The learning rate after so many updates: linear warm-up to `peak` and cosine decay to zero over `steps`."""
    warmup = min(warmup, steps // 2)
    return optax.warmup_cosine_decay_schedule(peak / max(1, warmup), peak, warmup, max(1, steps))


def make_optimizer(
    learning_rate: float,
    steps: int,
    *,
    warmup: int = 500,
    weight_decay: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """AdamW, norm of the gradient clipped to 1, the learning rate of `warmup_cosine`."""
    rate = warmup_cosine(learning_rate, steps, warmup)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay))


def make_train_step(update: Update, weights: Callable[[Any], Any], *, ema_decay: float = 0.999) -> TrainStep:
    """`train_step(state, batch) -> (state, metrics)`, jitted; the state passed in is donated.

    `update(state, batch, key)` changes params, optimiser state and extra; `weights(params)` is the part that makes
    sound. Its average follows faster at first, with decay min(ema_decay, (1 + step) / (10 + step)).
    """

    def train_step(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
        after, metrics = update(state, batch, jax.random.fold_in(state.key, state.step))
        latest = weights(after.params)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(latest, state.average, 1 - decay)
        profiles = update_averages(state.profiles, latest, state.step + 1) if state.profiles else ()
        return after._replace(step=state.step + 1, average=average, profiles=profiles), metrics

    return jax.jit(train_step, donate_argnums=0)
