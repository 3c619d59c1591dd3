"""One compiled program from raw waveform to updated weights.

wave -> features -> noise -> network -> loss -> gradient -> optax -> average of the weights
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray

from jaxdiff.data import Batch
from jaxdiff.diffusion import LossHistogram
from jaxdiff.tasks import Example, Task

from .ema import update_averages
from .state import TrainState


class Context(NamedTuple):
    """What an objective may know beside the network and the example."""

    key: PRNGKeyArray
    step: Int[Array, ""]
    teacher: Callable  # the network with averaged weights and without dropout
    histogram: LossHistogram


# (network, example, context) -> loss, (metrics, histogram)
Objective = Callable[[Callable, Example, Context], tuple[Array, tuple[dict[str, Array], LossHistogram]]]


def make_optimizer(
    learning_rate: float,
    steps: int,
    *,
    warmup: int = 500,
    weight_decay: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """AdamW, norm of the gradient clipped to 1, linear warm-up and cosine decay to zero over `steps`."""
    warmup = min(warmup, steps // 2)
    rate = optax.warmup_cosine_decay_schedule(learning_rate / max(1, warmup), learning_rate, warmup, max(1, steps))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay))


def make_train_step(
    graphdef: nnx.GraphDef,
    task: Task,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.999,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """`train_step(state, batch) -> (state, metrics)`, jitted; the state passed in is donated.

    The average of the weights follows faster at first, with decay min(ema_decay, (1 + step) / (10 + step)).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        example_key, loss_key, network_key = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        example = task.example(batch, example_key)
        context = Context(loss_key, state.step, nnx.merge(graphdef, state.ema_params), state.histogram)

        def loss(params):
            def network(*args, **options):  # the same dropout at every call, in whatever loop or branch
                return nnx.merge(graphdef, params)(*args, rngs=nnx.Rngs(network_key), **options)

            return objective(network, example, context)

        (_, (metrics, histogram)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
        averages = update_averages(state.averages, params, state.step + 1) if state.averages else ()
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        return TrainState(state.step + 1, params, ema_params, opt_state, state.key, histogram, averages), metrics

    return jax.jit(train_step, donate_argnums=0)
