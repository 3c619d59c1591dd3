"""What training carries from step to step: arrays only, one NamedTuple."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from .ema import init_averages


class TrainState(NamedTuple):
    """The whole state of a run; with (seed, step) for the data it determines every later step."""

    step: Int[Array, ""]  # steps done
    params: Any  # nested dict of float32 arrays
    average: Any  # the weights that make sound, averaged; for most methods shaped as params
    opt_state: Any
    key: PRNGKeyArray  # constant; step k uses fold_in(key, k)
    extra: Any = ()  # what else a method keeps
    profiles: tuple[Any, ...] = ()  # power-function averages for post-hoc EMA, () when none are kept


def init_state(
    params: Any, weights: Any, opt_state: Any, key: PRNGKeyArray, *, extra: Any = (), posthoc_ema: bool = False
) -> TrainState:
    """Step 0; `weights` are the part of `params` that makes sound.

    Averages start as copies, not aliases: the train step donates its input.
    """
    profiles = init_averages(weights) if posthoc_ema else ()
    return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, weights), opt_state, key, extra, profiles)
