"""One compiled program from raw waveform to updated weights: a method's update, then the average of its weights."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from .ema import update_averages
from .state import TrainState
from .transfer import evaluated, held

Metrics = dict[str, Array]
Update = Callable[[TrainState, Mapping[str, Any], PRNGKeyArray], tuple[TrainState, Metrics]]
TrainStep = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]


def make_train_step(
    update: Update, weights: Callable[[Any], Any], *, ema_decay: float = 0.999, shardings: Any = None
) -> TrainStep:
    """`train_step(state, batch) -> (state, metrics)`, jitted; the state passed in is donated.

    `update(state, batch, key)` changes params, optimiser state and extra; `weights(params)` is the part that makes
    sound. What the optimiser means to be used of it is averaged, and frozen weights stay as they are; the average
    follows faster at first, with decay min(ema_decay, (1 + step) / (10 + step)). A step of whose
    metrics one is not finite is "skipped" (1, else 0, in the metrics): nothing changes but the number of the step.
    `shardings` is where the state's arrays stay, one for each (None: where they are).
    """

    def train_step(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
        after, metrics = update(state, batch, jax.random.fold_in(state.key, state.step))
        latest = evaluated(after.opt_state, weights(after.params))
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        average = held(after.opt_state, latest, optax.incremental_update(latest, state.average, 1 - decay))
        profiles = update_averages(state.profiles, latest, state.step + 1) if state.profiles else ()
        after = after._replace(step=state.step + 1, average=average, profiles=profiles)
        finite = jnp.stack([jnp.isfinite(value).all() for value in metrics.values()]).all()
        before = state._replace(step=after.step)
        choose = lambda new, old: new if new is old else jnp.where(finite, new, old)  # noqa: E731
        return jax.tree.map(choose, after, before), {**metrics, "skipped": 1.0 - finite}

    if shardings is None:
        return jax.jit(train_step, donate_argnums=0)
    everywhere = jax.sharding.NamedSharding(jax.tree.leaves(shardings)[0].mesh, jax.sharding.PartitionSpec())
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, everywhere))


def make_validate(update: Update) -> Callable[[TrainState, Mapping[str, Any], int], Array]:
    """`validate(state, batch, number) -> loss`, jitted: that of an update which is not made, by the averaged weights
    where a method trains nothing else. Its chance is that of the batch's number, the same at every step."""

    def validate(state: TrainState, batch: Mapping[str, Any], number: Array) -> Array:
        alike = jax.tree.structure(state.params) == jax.tree.structure(state.average)
        state = state._replace(params=state.average) if alike else state
        return update(state, batch, jax.random.fold_in(jax.random.key(0), number))[1]["loss"]

    return jax.jit(validate)
