"""Diffusion transformer (DiT, Peebles & Xie 2023) over audio frames: self-attention with adaLN-Zero and RoPE.

Diffusion time and class make one vector c; each block modulates, attends, modulates and mixes channels:

    h <- h + g_1(c) Attention(LN(h) (1 + s_1(c)) + b_1(c)),      h <- h + g_2(c) MLP(LN(h) (1 + s_2(c)) + b_2(c))

with the gates g zero at the start (adaLN-Zero, section 3.2), so that every block begins as the identity. Two further
branches are options: a gated dilated convolution before the attention (WaveNet's, van den Oord et al. 2016, eq. 2:
local structure by convolution, distant by attention) and attention to condition tokens after it. Rotary positions
cannot tell the first frame from the last; where sounds begin with the crop, `absolute_positions` can.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxdiff import ranges

from . import layers
from .attention import cross_attention, self_attention


class Block(nnx.Module):
    """Optional gated convolution, attention, optional attention to tokens, and MLP, all modulated. Xavier uniform
    kernels, zero biases, zero modulation."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
        *,
        window: int | None = None,
        token_features: int = 0,
        convolution: bool = False,
        compute_dtype: layers.ComputeDtype = "float32",
        rngs: nnx.Rngs,
    ):
        self.heads, self.dropout, self.window = heads, dropout, window
        self.compute_dtype: layers.ComputeDtype = compute_dtype
        self.branches = 2 + convolution + (token_features > 0)
        xavier: dict[str, Any] = dict(kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        xavier |= layers.linear_options(compute_dtype)
        zeros = nnx.initializers.zeros_init()
        self.modulation = nnx.Linear(width, 3 * self.branches * width, kernel_init=zeros, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, **xavier)
        self.attention_output = nnx.Linear(width, width, **xavier)
        self.mlp_input = nnx.Linear(width, mlp_ratio * width, **xavier)
        self.mlp_output = nnx.Linear(mlp_ratio * width, width, **xavier)
        self.query = nnx.Linear(width, width, **xavier) if token_features else None
        self.key_value = nnx.Linear(token_features, 2 * width, **xavier) if token_features else None
        self.token_output = nnx.Linear(width, width, **xavier) if token_features else None
        self.gated = nnx.Linear(3 * width, 2 * width, **xavier) if convolution else None
        self.convolved = nnx.Linear(width, width, **xavier) if convolution else None

    def __call__(
        self,
        h: Array,
        modulation: Array,
        cond: layers.Condition = layers.Condition(),
        key: Array | None = None,
        dilation: int | Array = 0,
        reach: int | None = None,
    ) -> Array:
        modulations = iter(jnp.split(modulation, 3 * self.branches, axis=-1))
        valid, dtype = cond.valid(h.shape[1]), self.compute_dtype

        def convolve(x: Array) -> Array:
            x = x if valid is None else x * valid[..., None]
            assert self.gated is not None and self.convolved is not None
            gate, signal = jnp.split(self.gated(layers.taps(x, dilation, reach)), 2, axis=-1)
            return self.convolved(jax.nn.sigmoid(gate) * jnp.tanh(signal))

        def attend(x: Array) -> Array:
            out = self_attention(self.qkv(x), self.heads, valid=valid, window=self.window, compute_dtype=dtype)
            return self.attention_output(out)

        def attend_to_tokens(x: Array) -> Array:
            assert self.query is not None and self.key_value is not None and self.token_output is not None
            assert cond.tokens is not None
            q, kv = self.query(x), self.key_value(cond.tokens)
            return self.token_output(cross_attention(q, kv, self.heads, mask=cond.token_mask, compute_dtype=dtype))

        mix = lambda x: self.mlp_output(jax.nn.gelu(self.mlp_input(x)))  # noqa: E731
        convolutions = [] if self.gated is None else [convolve]
        tokens = [] if self.query is None else [attend_to_tokens if cond.tokens is not None else jnp.zeros_like]
        for index, branch in enumerate([*convolutions, attend, *tokens, mix]):
            shift, scale, gate = next(modulations), next(modulations), next(modulations)
            h = h + gate[:, None] * self._drop(branch(layers.modulate(h, shift, scale)), key, index)
        return h

    def _drop(self, x: Array, key: Array | None, index: int) -> Array:
        if key is None or self.dropout == 0:
            return x
        keep = jax.random.bernoulli(jax.random.fold_in(key, index), 1 - self.dropout, x.shape)
        return jnp.where(keep, x / (1 - self.dropout), 0)


class Transformer(layers.FrameNetwork):
    """DiT on `[batch, frames, features]`, and with convolutions the hybrid of both.

    `width` channels in `depth` blocks of `heads` heads; `width / heads` must be even (RoPE). `window` lets a frame
    attend to that many frames on either side, for long audio. `dilation_cycle` > 0 begins every block with a gated
    convolution as WaveNet's, of dilations 1, 2, 4 ... 2**(dilation_cycle - 1), repeated. `token_features` > 0 lets
    every block attend to condition tokens. `dropout` acts on all branches of every block. `absolute_positions` adds the
    sinusoids of Vaswani et al. 2017 (section 3.5) to the input. Other options: see `layers`.
    """

    def __init__(
        self,
        features: int,
        *,
        width: ranges.Count = 256,
        depth: ranges.Count = 8,
        heads: ranges.Count = 4,
        mlp_ratio: ranges.Count = 4,
        dropout: ranges.Decay = 0.0,
        window: int | None = None,
        dilation_cycle: ranges.Index = 0,
        condition_features: int = 0,
        token_features: int = 0,
        num_classes: int = 0,
        label_dropout: ranges.Share = 0.1,
        absolute_positions: bool = False,
        self_conditioning: bool = False,
        second_time: bool = False,
        zero_output: bool = True,
        remat: bool = False,
        compute_dtype: layers.ComputeDtype = "float32",
        rngs: nnx.Rngs,
    ):
        if width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of 2 * heads = {2 * heads}; use {2 * heads} * n")
        if window is not None and window < 1:
            raise ValueError(f"window: expected at least 1 frame on either side, got {window}; use None for all")
        self.depth, self.remat, self.dropout, self.window = depth, remat, dropout, window
        self.absolute_positions, self.self_conditioning = absolute_positions, self_conditioning
        self.dilations = tuple(2 ** (i % dilation_cycle) if dilation_cycle else 0 for i in range(depth))
        channels = 2 * features if self_conditioning else features
        self.input = nnx.Linear(channels, width, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        self.condition = nnx.Linear(condition_features, width, rngs=rngs) if condition_features else None
        self.time_1, self.time_2 = nnx.Linear(256, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.label = layers.LabelEmbedding(num_classes, width, label_dropout, rngs=rngs) if num_classes else None
        options: dict[str, Any] = dict(window=window, token_features=token_features, compute_dtype=compute_dtype)
        options["convolution"] = dilation_cycle > 0
        make = lambda rngs: Block(width, heads, mlp_ratio, dropout, **options, rngs=rngs)  # noqa: E731
        self.blocks = layers.stack(make, depth, rngs)
        zeros: dict[str, Any] = dict(kernel_init=nnx.initializers.zeros_init(), rngs=rngs)
        self.modulation = nnx.Linear(width, 2 * width, **zeros)
        self.output = nnx.Linear(width, features, kernel_init=layers.output_init(zero_output), rngs=rngs)
        self.jump_1 = nnx.Linear(256, width, rngs=rngs) if second_time else None
        self.jump_2 = nnx.Linear(width, width, **zeros) if second_time else None

    @property
    def receptive_field(self) -> int | None:
        """Network frames that one output frame depends on; None: the whole input."""
        return None if self.window is None else 1 + 2 * (self.depth * self.window + sum(self.dilations))

    conditioner = layers.conditioning  # the layers of a `Conditioner` are its own

    def hidden(self, x_t: Array, c: Array, cond: layers.Condition, rngs: nnx.Rngs | None) -> Array:
        positions, half = jnp.arange(x_t.shape[1], dtype=jnp.float32), c.shape[1] // 2
        waves = layers.sinusoids(positions, 1e4 ** (-np.arange(half) / half)) if self.absolute_positions else None
        h = self.projected(x_t, cond, waves)
        keys = jax.random.split(rngs.dropout(), self.depth) if rngs is not None and self.dropout > 0 else None
        apply = lambda block, h, items, x: block(h, *items, *x, max(self.dilations))  # noqa: E731
        xs = keys, jnp.asarray(self.dilations)
        items = lambda block: (block.modulation(c), cond)  # noqa: E731
        h = layers.scan_blocks(self.blocks, apply, h, items, xs, remat=self.remat)
        return layers.modulate(h, *jnp.split(self.modulation(c), 2, axis=-1))
