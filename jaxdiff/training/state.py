"""What training carries from step to step: arrays only, one NamedTuple."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray


class TrainState(NamedTuple):
    """The whole state of a run; with (seed, step) for the data it determines every later step."""

    step: Int[Array, ""]  # steps done
    params: Any  # nested dict of float32 arrays
    ema_params: Any  # the same tree, averaged: what sampling uses
    opt_state: Any
    key: PRNGKeyArray  # constant; step k uses fold_in(key, k)


def init_state(params: Any, optimizer: optax.GradientTransformation, key: PRNGKeyArray) -> TrainState:
    """Step 0. The average starts as a copy, not an alias: the train step donates its input."""
    return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params), key)
