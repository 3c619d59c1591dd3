"""The parts networks share: condition, embeddings of diffusion time and class, stacks of equal layers.

A network is called as `network(x_t, t, cond, rngs=None)` with `x_t` [batch, frames, features], `t` [batch] in [0, 1]
and a `Condition`; it returns an array shaped like `x_t`. `rngs` is given in training only: label dropout draws from it.
A network built with a second time also takes `r` [batch] <= t, the time that its estimate is to jump to.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int


class Condition(NamedTuple):
    """What is known while x0 is made: a class index per item, features per condition frame, and for networks built
    with self-conditioning an earlier estimate of x0, 0 where there is none."""

    label: Int[Array, " batch"] | None = None
    frames: Float[Array, "batch frames channels"] | None = None
    estimate: Float[Array, "batch network_frames features"] | None = None

    def without_label(self) -> "Condition":
        """The same condition with the class unknown, for classifier-free guidance."""
        return self._replace(label=None)

    def with_estimate(self, x0_hat: Float[Array, "batch network_frames features"]) -> "Condition":
        """The same condition and an estimate of x0 (Chen et al. 2022)."""
        return self._replace(estimate=x0_hat)

    def beside(self, x_t: Float[Array, "batch network_frames features"]) -> Float[Array, "batch network_frames both"]:
        """`x_t` and the estimate side by side: the input of a network with self-conditioning."""
        estimate = jnp.zeros_like(x_t) if self.estimate is None else self.estimate
        return jnp.concatenate([x_t, estimate], axis=-1)


class LabelEmbedding(nnx.Module):
    """One vector per class and one for "unknown", which replaces a class with `dropout_rate` while training.

    Classifier-free guidance (Ho & Salimans 2022, algorithm 1) needs both vectors trained. Standard normal, so that the
    classes are far apart from the first step on: with DiT's 0.02 a short training hardly uses them.
    """

    def __init__(self, num_classes: int, width: int, dropout_rate: float, *, rngs: nnx.Rngs):
        self.num_classes, self.dropout_rate = num_classes, dropout_rate
        self.table = nnx.Param(jax.random.normal(rngs.params(), (num_classes + 1, width)))

    def __call__(self, label: Array | None, batch: int, *, rngs: nnx.Rngs | None = None) -> Array:
        if label is None:
            label = jnp.full(batch, self.num_classes)
        elif rngs is not None and self.dropout_rate > 0:
            drop = jax.random.bernoulli(rngs.label(), self.dropout_rate, label.shape)
            label = jnp.where(drop, self.num_classes, label)
        return self.table[...][label]


def sinusoids(position: Float[Array, " batch"], frequencies: np.ndarray) -> Float[Array, "batch channels"]:
    """Sines, then cosines, of `position * frequencies` (angular)."""
    angle = position[:, None] * jnp.asarray(frequencies, jnp.float32)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def stack(make_layer: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` layers made alike, their parameters stacked on a new first axis, for `scan_layers`."""
    graphdef, _ = nnx.split(make_layer(nnx.Rngs(0)))
    params = jax.vmap(lambda key: nnx.split(make_layer(nnx.Rngs(key)))[1])(jax.random.split(rngs.params(), count))
    return nnx.merge(graphdef, params)


def scan_layers(layers: nnx.Module, apply: Callable, carry, xs=None, *, remat: bool = False):
    """`carry, ys` after `apply(layer, carry, x) -> (carry, y)` with each layer of a `stack`, as one `lax.scan`.

    One layer is compiled whatever the depth. With `remat` the backward pass recomputes a layer's inside instead of
    keeping it.
    """
    graphdef, params = nnx.split(layers)

    def body(carry, inputs):
        layer_params, x = inputs
        return apply(nnx.merge(graphdef, layer_params), carry, x)

    return jax.lax.scan(jax.checkpoint(body, prevent_cse=False) if remat else body, carry, (params, xs))


def count_params(params) -> int:
    """Number of scalars in a tree of parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
