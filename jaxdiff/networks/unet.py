"""U-Net over audio frames (Ronneberger et al. 2015; as a denoiser, Ho et al. 2020, appendix B), in one dimension.

Each level halves the frames and doubles the channels; on the way back every level sees what it made on the way down.
Its blocks are residual, with two convolutions of three frames, time and class modulating between them, and attention
at the low levels:

    y = W_1 * silu(LN(h)),      h <- h + W_2 * silu(LN(y) (1 + s(c)) + b(c)),      h <- h + Attention(LN(h))

Layer norm acts on each frame alone, where Ho et al. normalise over time: frames beyond the end, which fill up to a
multiple of 2**(levels - 1) and are zero for every convolution, then change nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxdiff import ranges

from . import layers
from .attention import self_attention

_HE = nnx.initializers.he_normal()  # He et al. 2015
_ZEROS = nnx.initializers.zeros_init()


def _masked(h: Array, valid: Array | None) -> Array:
    return h if valid is None else h * valid[..., None]


class ResidualBlock(nnx.Module):
    """Module docstring; `heads` 0 is without attention. He normal kernels and zero biases; zero at first are the last
    layer of each branch and the modulation."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        embedding: int,
        heads: int,
        *,
        compute_dtype: layers.ComputeDtype = "float32",
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.compute_dtype: layers.ComputeDtype = compute_dtype
        options: dict[str, Any] = dict(rngs=rngs, **layers.linear_options(compute_dtype))
        self.modulation = nnx.Linear(embedding, 2 * channels, kernel_init=_ZEROS, rngs=rngs)
        self.conv_1 = nnx.Linear(3 * channels_in, channels, kernel_init=_HE, **options)
        self.conv_2 = nnx.Linear(3 * channels, channels, kernel_init=_ZEROS, **options)
        self.shortcut = nnx.Linear(channels_in, channels, **options) if channels_in != channels else None
        xavier = nnx.initializers.xavier_uniform()
        self.qkv = nnx.Linear(channels, 3 * channels, kernel_init=xavier, **options) if heads else None
        self.attention_output = nnx.Linear(channels, channels, kernel_init=_ZEROS, **options) if heads else None

    def __call__(
        self, h: Float[Array, "batch frames channels_in"], c: Array, valid: Bool[Array, "batch frames"] | None = None
    ) -> Float[Array, "batch frames channels"]:
        shift, scale = jnp.split(self.modulation(c), 2, axis=-1)
        y = self.conv_1(layers.taps(_masked(jax.nn.silu(layers.layer_norm(h)), valid)))
        y = self.conv_2(layers.taps(_masked(jax.nn.silu(layers.modulate(y, shift, scale)), valid)))
        h = y + (h if self.shortcut is None else self.shortcut(h))
        if self.qkv is None or self.attention_output is None:
            return h
        qkv = self.qkv(layers.layer_norm(h))
        return h + self.attention_output(self_attention(qkv, self.heads, valid=valid, compute_dtype=self.compute_dtype))


class UNet(layers.FrameNetwork):
    """U-Net on `[batch, frames, features]`, any number of frames.

    Level i of `levels` has `width` 2**i channels and frames 2**i times as long; `blocks` per level, on the way down and
    on the way up, which begin as the identity; attention of `heads` heads at the lowest `attention_levels`. The kernels
    outside of blocks are LeCun normal. Other options: see `layers`.
    """

    def __init__(
        self,
        features: int,
        *,
        width: ranges.Count = 128,
        levels: ranges.Count = 3,
        blocks: ranges.Count = 2,
        attention_levels: ranges.Index = 1,
        heads: ranges.Count = 4,
        condition_features: int = 0,
        num_classes: int = 0,
        label_dropout: ranges.Share = 0.1,
        self_conditioning: bool = False,
        second_time: bool = False,
        zero_output: bool = True,
        remat: bool = False,
        compute_dtype: layers.ComputeDtype = "float32",
        rngs: nnx.Rngs,
    ):
        if levels < 1 or not 0 <= attention_levels <= levels:
            got = f"{attention_levels} of {levels}; levels is 1 or more"
            raise ValueError(f"attention_levels: expected 0 to levels, got {got}")
        lowest = width * 2 ** (levels - attention_levels)
        if attention_levels and lowest % (2 * heads):
            raise ValueError(f"{lowest} channels at the first level with attention must be a multiple of 2 * heads; "
                             f"use a width of {2 * heads} * n")  # fmt: skip
        self.levels, self.blocks, self.attention_levels = levels, blocks, attention_levels
        self.remat, self.self_conditioning = remat, self_conditioning
        embedding = 4 * width
        self.conditioner = layers.Conditioner(embedding, num_classes, label_dropout, second_time, rngs=rngs)
        self.input = nnx.Linear(2 * features if self_conditioning else features, width, rngs=rngs)
        self.condition = nnx.Linear(condition_features, width, rngs=rngs) if condition_features else None
        options: dict[str, Any] = dict(rngs=rngs, **layers.linear_options(compute_dtype))

        def level(index: int, channels_in: int):
            channels, own = width * 2**index, heads if index >= levels - attention_levels else 0
            block = lambda size: ResidualBlock(size, channels, embedding, own, compute_dtype=compute_dtype, rngs=rngs)  # noqa: E731
            return nnx.List([block(size) for size in (channels_in, *[channels] * (blocks - 1))])

        upper = range(levels - 1)
        self.down = nnx.List([level(i, width * 2**i) for i in upper])
        self.halve = nnx.List([nnx.Linear(2 * width * 2**i, width * 2 ** (i + 1), **options) for i in upper])
        self.bottom = level(levels - 1, width * 2 ** (levels - 1))
        self.double = nnx.List([nnx.Linear(width * 2 ** (i + 1), 2 * width * 2**i, **options) for i in upper])
        self.up = nnx.List([level(i, 2 * width * 2**i) for i in upper])
        self.output = nnx.Linear(width, features, kernel_init=layers.output_init(zero_output), rngs=rngs)

    @property
    def receptive_field(self) -> int | None:
        """Network frames that one output frame depends on, where that is most; None with attention: the whole input."""
        return None if self.attention_levels else max(self._reach(n) for n in range(2 ** (self.levels - 1)))

    def _reach(self, frame: int) -> int:
        """How many frames output `frame` depends on: its interval followed down to the bottom and back."""
        low, high = frame, frame
        for level in range(self.levels):
            low, high = low - 2 * self.blocks, high + 2 * self.blocks  # two convolutions per block
            low, high = (low // 2, high // 2) if level < self.levels - 1 else (low, high)
        for _ in range(self.levels - 1):
            low, high = 2 * low - 2 * self.blocks, 2 * high + 1 + 2 * self.blocks
        return high - low + 1

    def hidden(self, x_t: Array, c: Array, cond: layers.Condition, rngs: nnx.Rngs | None) -> Array:
        h = self.projected(x_t, cond)
        batch, frames, _ = h.shape
        extra, valid = -frames % 2 ** (self.levels - 1), cond.valid(frames)
        if extra:
            h = jnp.pad(h, ((0, 0), (0, extra), (0, 0)))
            valid = jnp.pad(jnp.ones((batch, frames), bool) if valid is None else valid, ((0, 0), (0, extra)))

        def through(blocks, h: Array, valid: Array | None) -> Array:
            for block in blocks:
                h = layers.apply_layer(block, h, c, valid, remat=self.remat)
            return h

        kept = []
        for blocks, halve in zip(self.down, self.halve, strict=True):
            h = through(blocks, h, valid)
            kept.append((h, valid))
            h = halve(_masked(h, valid).reshape(batch, h.shape[1] // 2, -1))
            valid = None if valid is None else valid.reshape(batch, -1, 2).any(-1)
        h = through(self.bottom, h, valid)
        for blocks, double, (skip, valid) in reversed(list(zip(self.up, self.double, kept, strict=True))):
            h = jnp.concatenate([double(h).reshape(skip.shape), skip], axis=-1)
            h = through(blocks, h, valid)
        return h
