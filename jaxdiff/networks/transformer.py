"""Diffusion transformer (DiT, Peebles & Xie 2023) over audio frames: self-attention with adaLN-Zero and RoPE.

Diffusion time and class make one vector c; each block modulates, attends, modulates and mixes channels:

    h <- h + g_1(c) Attention(LN(h) (1 + s_1(c)) + b_1(c)),      h <- h + g_2(c) MLP(LN(h) (1 + s_2(c)) + b_2(c))

with the gates g zero at the start (adaLN-Zero, section 3.2), so that every block begins as the identity. Positions are
rotary (Su et al. 2021, eq. 34): a relative encoding, so other lengths than the trained one can be generated. It cannot
tell the first frame from the last; where sounds begin with the crop, `absolute_positions` can.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from .layers import Condition, LabelEmbedding, scan_layers, sinusoids, stack


def rope(x: Float[Array, "batch frames heads channels"]) -> Float[Array, "batch frames heads channels"]:
    """Rotate channel pairs (k, k + channels / 2) of frame m by the angle m 10000^(-2k / channels)."""
    frames, channels = x.shape[1], x.shape[-1]
    angle = np.arange(frames)[:, None] * 1e4 ** (-np.arange(0, channels, 2) / channels)
    cos, sin = (jnp.asarray(f(angle), x.dtype)[:, None] for f in (np.cos, np.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _layer_norm(h: Array) -> Array:
    """Zero mean and unit variance over channels, without trained scale or bias (adaLN supplies both)."""
    h = h - h.mean(-1, keepdims=True)
    return h * jax.lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-6)


def _modulate(h: Array, shift: Array, scale: Array) -> Array:
    return _layer_norm(h) * (1 + scale[:, None]) + shift[:, None]


class Block(nnx.Module):
    """Attention and MLP, both modulated; Xavier uniform kernels, zero biases, zero modulation."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float, *, rngs: nnx.Rngs):
        self.heads, self.dropout = heads, dropout
        xavier = dict(kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        self.modulation = nnx.Linear(width, 6 * width, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, **xavier)
        self.attention_output = nnx.Linear(width, width, **xavier)
        self.mlp_input = nnx.Linear(width, mlp_ratio * width, **xavier)
        self.mlp_output = nnx.Linear(mlp_ratio * width, width, **xavier)

    def __call__(self, h: Array, c: Array, key: Array | None) -> Array:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(self.modulation(c), 6, axis=-1)
        batch, frames, width = h.shape
        qkv = self.qkv(_modulate(h, shift_1, scale_1)).reshape(batch, frames, 3, self.heads, -1)
        attended = jax.nn.dot_product_attention(rope(qkv[:, :, 0]), rope(qkv[:, :, 1]), qkv[:, :, 2])
        attended = self.attention_output(attended.reshape(batch, frames, width))
        h = h + gate_1[:, None] * self._drop(attended, key, 0)
        mixed = self.mlp_output(jax.nn.gelu(self.mlp_input(_modulate(h, shift_2, scale_2))))
        return h + gate_2[:, None] * self._drop(mixed, key, 1)

    def _drop(self, x: Array, key: Array | None, index: int) -> Array:
        if key is None or self.dropout == 0:
            return x
        keep = jax.random.bernoulli(jax.random.fold_in(key, index), 1 - self.dropout, x.shape)
        return jnp.where(keep, x / (1 - self.dropout), 0)


class Transformer(nnx.Module):
    """DiT on `[batch, frames, features]`.

    `width` channels in `depth` blocks of `heads` heads; `width / heads` must be even (RoPE). `condition_features` > 0
    adds conditioner frames (as many as network frames), projected and summed to the input. `num_classes` > 0 adds a
    label embedding that is dropped with `label_dropout` in training. `dropout` acts on both branches of every block.
    `absolute_positions` adds the sinusoids of Vaswani et al. 2017 (section 3.5) to the input; with `self_conditioning`
    the condition's estimate of x0 is part of it. `second_time` lets the
    network jump to a time r <= t: an embedding of t - r is added to that of t, zero at first, so that an ordinary
    network's weights can be continued; without r it is r = t.
    """

    def __init__(
        self,
        features: int,
        *,
        width: int = 256,
        depth: int = 8,
        heads: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        condition_features: int = 0,
        num_classes: int = 0,
        label_dropout: float = 0.1,
        absolute_positions: bool = False,
        self_conditioning: bool = False,
        second_time: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of 2 * heads = {2 * heads}; use {2 * heads} * n")
        self.depth, self.remat, self.dropout = depth, remat, dropout
        self.absolute_positions, self.self_conditioning = absolute_positions, self_conditioning
        channels = 2 * features if self_conditioning else features
        self.input = nnx.Linear(channels, width, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        self.condition = nnx.Linear(condition_features, width, rngs=rngs) if condition_features else None
        self.time_1, self.time_2 = nnx.Linear(256, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.label = LabelEmbedding(num_classes, width, label_dropout, rngs=rngs) if num_classes else None
        self.blocks = stack(lambda rngs: Block(width, heads, mlp_ratio, dropout, rngs=rngs), depth, rngs)
        zeros = dict(kernel_init=nnx.initializers.zeros_init(), rngs=rngs)
        self.modulation = nnx.Linear(width, 2 * width, **zeros)
        self.output = nnx.Linear(width, features, **zeros)
        self.jump_1 = nnx.Linear(256, width, rngs=rngs) if second_time else None
        self.jump_2 = nnx.Linear(width, width, **zeros) if second_time else None

    receptive_field = None  # the whole input

    def __call__(
        self,
        x_t: Float[Array, "batch frames features"],
        t: Float[Array, " batch"],
        cond: Condition = Condition(),
        *,
        r: Float[Array, " batch"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch frames features"]:
        if r is not None and self.jump_1 is None:
            raise ValueError("the network was given a second time r but built without; build it with second_time=True")
        frequencies = 1e4 ** (-np.arange(128) / 128)
        c = self.time_2(jax.nn.silu(self.time_1(sinusoids(1000 * t, frequencies))))
        if self.jump_1 is not None:
            c = c + self.jump_2(jax.nn.silu(self.jump_1(sinusoids(1000 * (t - (t if r is None else r)), frequencies))))
        if self.label is not None:
            c = c + self.label(cond.label, len(x_t), rngs=rngs)
        c = jax.nn.silu(c)
        h = self.input(cond.beside(x_t) if self.self_conditioning else x_t)
        if self.absolute_positions:
            frames, width = h.shape[1:]
            h = h + sinusoids(jnp.arange(frames, dtype=jnp.float32), 1e4 ** (-np.arange(width // 2) / (width // 2)))
        if self.condition is not None and cond.frames is not None:
            h = h + self.condition(cond.frames)
        drops = rngs is not None and self.dropout > 0
        keys = jax.random.split(rngs.dropout(), self.depth) if drops else None
        h, _ = scan_layers(self.blocks, lambda b, h, k: (b(h, c, k), None), h, keys, remat=self.remat)
        shift, scale = jnp.split(self.modulation(c), 2, axis=-1)
        return self.output(_modulate(h, shift, scale))
