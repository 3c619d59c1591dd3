"""ConvNeXt over audio frames (Liu et al. 2022; on frames as in Vocos, Siuzdak 2023), modulated by time and class.

Each block mixes time by a depthwise convolution and channels by an inverted bottleneck, both in one residual branch:

    h <- h + (g + g'(c)) MLP(LN(W *_depthwise h) (1 + s(c)) + b(c))

with the layer scale g (Touvron et al. 2021), 1 / depth at first as in Vocos, and s, b and g' zero at first. On every
machine the depthwise convolution is a sum of shifted frames: a grouped convolution is slow on a CPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxdiff import ranges

from . import layers


class Block(nnx.Module):
    """Depthwise convolution and MLP (module docstring). Kernels LeCun normal over their taps, Xavier uniform for the
    MLP, biases zero."""

    def __init__(self, width: int, kernel: int, expansion: int, scale: float, dtype: str, timed: bool, rngs: nnx.Rngs):
        xavier: dict[str, Any] = dict(kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        xavier |= layers.linear_options(dtype)
        self.depthwise = nnx.Param(jax.random.normal(rngs.params(), (kernel, width)) / kernel**0.5)
        self.modulation = _modulation(3 * width, width, timed, rngs)
        self.mlp_input = nnx.Linear(width, expansion * width, **xavier)
        self.mlp_output = nnx.Linear(expansion * width, width, **xavier)
        self.scale = nnx.Param(jnp.full(width, scale, jnp.float32))

    def __call__(
        self, h: Array, modulation: Array, valid: Array | None, dilation: int | Array, reach: int | None
    ) -> Array:
        shift, scale, gate = jnp.split(modulation, 3, axis=-1)
        kernel, seen = self.depthwise[...], h if valid is None else h * valid[..., None]
        x = sum(s * w for s, w in zip(layers.shifted(seen, len(kernel), dilation, reach), kernel, strict=True))
        x = self.mlp_output(jax.nn.gelu(self.mlp_input(layers.modulate(jnp.asarray(x), shift, scale))))
        return h + (self.scale[...] + gate)[:, None] * x


class Constant(nnx.Module):
    """Modulation that is the same at all times."""

    def __init__(self, size: int):
        self.bias = nnx.Param(jnp.zeros(size))

    def __call__(self, c: Array) -> Array:
        return jnp.broadcast_to(self.bias[...], (len(c), self.bias.shape[0]))


class TokenPool(nnx.Module):
    """One vector for a set of tokens: the mean and the deviation of an MLP of each, zero without tokens. Kernels LeCun
    normal, but the last, which is zero at first."""

    def __init__(self, features: int, width: int, rngs: nnx.Rngs):
        self.first, self.second = nnx.Linear(features, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.last = nnx.Linear(2 * width, width, kernel_init=zeros, use_bias=False, rngs=rngs)

    def __call__(self, tokens: Array, mask: Array | None) -> Array:
        h = self.second(jax.nn.gelu(self.first(tokens)))
        weight = jnp.ones(h.shape[:2], h.dtype) if mask is None else mask.astype(h.dtype)
        weight = (weight / jnp.maximum(weight.sum(1, keepdims=True), 1))[..., None]
        mean = (weight * h).sum(1)
        variance = (weight * (h - mean[:, None]) ** 2).sum(1)
        return self.last(jnp.concatenate([mean, jnp.sqrt(variance + 1e-6) * weight.sum(1)], axis=-1))


def _modulation(size: int, width: int, timed: bool, rngs: nnx.Rngs) -> nnx.Module:
    zeros = nnx.initializers.zeros_init()
    return nnx.Linear(width, size, kernel_init=zeros, rngs=rngs) if timed else Constant(size)


def _none(t: Array, label: Array | None, r: Array | None, rngs: nnx.Rngs | None) -> Array:
    """The conditioner of a network that sees neither time nor class."""
    return t


class ConvNeXt(layers.FrameNetwork):
    """`depth` blocks of `width` channels on `[batch, frames, features]`; the MLPs are `expansion` times as wide.

    `kernel` taps (odd), with dilations 1, 2, 4 ... 2**(dilation_cycle - 1), repeated. Not `timed`, it sees neither time
    nor class, for methods of one pass: a quarter of the weights are not there. A condition's tokens, of
    `token_features`, are pooled to one vector that modulates as time and class do (a set of frames of a voice tells
    whose it is). With `masks` features are real parts and then imaginary ones, and the output is m x_t + n y + a of the
    estimate y, with complex masks m and n; at first it is y. Other options: see `layers`.
    """

    def __init__(
        self,
        features: int,
        *,
        width: ranges.Count = 256,
        depth: ranges.Count = 8,
        kernel: ranges.Count = 7,
        expansion: ranges.Count = 3,
        dilation_cycle: ranges.Count = 1,
        timed: bool = True,
        masks: bool = False,
        condition_features: int = 0,
        num_classes: int = 0,
        token_features: int = 0,
        label_dropout: ranges.Share = 0.1,
        self_conditioning: bool = False,
        second_time: bool = False,
        zero_output: bool = True,
        remat: bool = False,
        compute_dtype: layers.ComputeDtype = "float32",
        rngs: nnx.Rngs,
    ):
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd number of taps, got {kernel}; use {kernel + 1}")
        if masks and (features % 2 or not self_conditioning):
            raise ValueError("masks: are for real and imaginary parts and a method with an estimate; use masks no")
        self.kernel, self.remat, self.self_conditioning, self.masks = kernel, remat, self_conditioning, masks
        self.dilations = tuple(2 ** (i % dilation_cycle) for i in range(depth))
        if not timed and (num_classes or second_time or token_features):
            raise ValueError("timed no: the network would see no class, tokens or second time, as is needed; use yes")
        conditioner = functools.partial(layers.Conditioner, width, num_classes, label_dropout, second_time, rngs=rngs)
        self.conditioner = conditioner() if timed else _none
        self.pool = TokenPool(token_features, width, rngs) if token_features else None
        self.input = nnx.Linear(2 * features if self_conditioning else features, width, rngs=rngs)
        self.condition = nnx.Linear(condition_features, width, rngs=rngs) if condition_features else None
        make = functools.partial(Block, width, kernel, expansion, 1 / depth, compute_dtype, timed)
        self.blocks = layers.stack(make, depth, rngs)
        self.modulation = _modulation(2 * width, width, timed, rngs)
        outputs = 3 * features if masks else features
        self.output = nnx.Linear(width, outputs, kernel_init=layers.output_init(zero_output), rngs=rngs)

    def __call__(
        self,
        x_t: layers.Frames,
        t: layers.PerItem,
        cond: layers.Condition = layers.Condition(),
        *,
        r: layers.PerItem | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> layers.Frames:
        if not self.masks:
            return super().__call__(x_t, t, cond, r=r, rngs=rngs)
        h = self.hidden(x_t, self.conditioner(t, cond.label, r, rngs), cond, rngs)
        m, n, added = jnp.split(self.output(h), 3, axis=-1)
        y = jnp.zeros_like(x_t) if cond.estimate is None else cond.estimate
        return layers.complex_product(m, x_t) + layers.complex_product(n, y) + y + added

    @property
    def receptive_field(self) -> int:
        """Network frames that one output frame depends on."""
        return 1 + (self.kernel - 1) * sum(self.dilations)

    def hidden(self, x_t: Array, c: Array, cond: layers.Condition, rngs: nnx.Rngs | None) -> Array:
        if self.pool is not None and cond.tokens is not None:
            c = c + self.pool(cond.tokens, cond.token_mask)
        h, valid, largest = self.projected(x_t, cond), cond.valid(x_t.shape[1]), max(self.dilations)
        fixed = largest == 1  # then the slices are known to the compiler

        def apply(block, h, items, dilation):
            return block(h, *items, 1 if fixed else dilation, None if fixed else largest)

        items = lambda block: (block.modulation(c), valid)  # noqa: E731
        h = layers.scan_blocks(self.blocks, apply, h, items, jnp.asarray(self.dilations), remat=self.remat)
        return layers.modulate(h, *jnp.split(self.modulation(c), 2, axis=-1))
