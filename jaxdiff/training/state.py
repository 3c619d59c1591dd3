"""What training carries from step to step: arrays only, one NamedTuple."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from jaxdiff.diffusion import LossHistogram, init_histogram

from .ema import init_averages


class TrainState(NamedTuple):
    """The whole state of a run; with (seed, step) for the data it determines every later step."""

    step: Int[Array, ""]  # steps done
    params: Any  # nested dict of float32 arrays
    ema_params: Any  # the same tree, averaged: what sampling uses
    opt_state: Any
    key: PRNGKeyArray  # constant; step k uses fold_in(key, k)
    histogram: LossHistogram  # of the loss over diffusion time, for times drawn by importance
    averages: tuple[Any, ...]  # power-function averages for post-hoc EMA, () when none are kept


def init_state(
    params: Any, optimizer: optax.GradientTransformation, key: PRNGKeyArray, *, posthoc_ema: bool = False
) -> TrainState:
    """Step 0. Averages start as copies, not aliases: the train step donates its input."""
    averages = init_averages(params) if posthoc_ema else ()
    ema_params, opt_state = jax.tree.map(jnp.copy, params), optimizer.init(params)
    return TrainState(jnp.int32(0), params, ema_params, opt_state, key, init_histogram(), averages)
