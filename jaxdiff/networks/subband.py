"""Networks whose weights are shared over frequency: small, causal when asked for, and at home on unseen voices.

A spectrum [frames, bins] is seen as an image whose weights do not know where on the frequency axis they stand, as in
GTCRN (Rong et al. 2024) and FastEnhancer (Ahn et al. 2025):

    convolutions along frequency       8 bins wide, a band every 4 bins, `channels` each; their outputs are kept
    fixed triangles                    bands to `subbands`, narrow at low and wide at high frequencies
    `depth` times                      a GRU over time, the same for all subbands; then attention among the subbands of
                                       a frame, whose place is a learned vector
    the way back                       triangles, convolutions that also see what was kept, 8 bins of masks per band

The masks m, n are complex: x0_hat = m x_t + n y, with y the degraded spectrum of a bridge, or x_t where there is none.
Time is seen by the GRU alone, so that without `bidirectional` a frame depends on no later frame, and a sound in chunks
with the carried state gives what the whole gives.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxdiff import ranges

from . import layers

_STRIDE, _TAPS = 4, 2  # bins per band, and bands that an outermost convolution spans
_BLOCK = 32  # frames that pass a layer together where there are many, so that they stay in a processor's cache

State = Float[Array, "depth batch subbands width"]  # of the GRUs after the last frame


class Subband(nnx.Module):
    """Complex masks on `[batch, frames, features]`, real parts of the bins and then imaginary ones.

    `channels` on bands of four bins, `width` and `heads` on `subbands`, `depth` pairs of a GRU and attention. With
    `bidirectional` the GRUs also run backwards. With `memory` a state keeps at most 1/e of itself over that many
    frames, so that windows of a long sound, which overlap by some times as much, agree. The condition's `lengths` are
    not heeded: without `bidirectional` no earlier frame sees padding, with it items must be of one length.
    """

    def __init__(
        self,
        features: int,
        *,
        channels: ranges.Count = 48,
        subbands: ranges.Count = 24,
        width: ranges.Count = 36,
        depth: ranges.Count = 3,
        heads: ranges.Count = 4,
        bidirectional: bool = True,
        memory: ranges.Positive | None = None,
        num_classes: int = 0,
        label_dropout: ranges.Share = 0.1,
        self_conditioning: bool = False,
        second_time: bool = False,
        rngs: nnx.Rngs,
    ):
        if features % 2:
            raise ValueError(f"subband sees real and imaginary parts, an even number of features, got {features}")
        if width % heads:
            fits = max(1, width // heads) * heads
            raise ValueError(f"width {width} must be a multiple of heads {heads}; use width {fits}")
        self.bins, self.self_conditioning, self.bidirectional = features // 2, self_conditioning, bidirectional
        self.bands = -(-self.bins // _STRIDE)
        if subbands > self.bands:
            raise ValueError(f"subbands {subbands} are more than the {self.bands} bands of {self.bins} bins; use fewer")
        self.conditioner = layers.Conditioner(width, num_classes, label_dropout, second_time, rngs=rngs)
        linear: Any = functools.partial(nnx.Linear, dot_general=layers.flat_product, rngs=rngs)
        self.input = linear(6 * _STRIDE * _TAPS, channels)
        self.encoder = nnx.List([_Mix(channels, rngs) for _ in range(2)])
        self.narrow, self.widen = linear(channels, width), linear(width, channels)
        self.blocks = nnx.List([_Block(subbands, width, heads, bidirectional, memory, rngs) for _ in range(depth)])
        self.joins = nnx.List([linear(2 * channels, channels) for _ in range(3)])
        self.decoder = nnx.List([_Mix(channels, rngs) for _ in range(2)])
        self.output = linear(channels, 4 * _STRIDE * _TAPS, kernel_init=nnx.initializers.normal(1e-3))

    @property
    def triangles(self) -> Float[np.ndarray, "bands subbands"]:
        """What share of each band every subband takes; the shares of a subband add up to 1."""
        return _triangles(self.bands, self.subbands)

    @property
    def subbands(self) -> int:
        return self.blocks[0].place.shape[0]

    def __call__(
        self,
        x_t: layers.Frames,
        t: layers.PerItem,
        cond: layers.Condition = layers.Condition(),
        *,
        r: layers.PerItem | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> layers.Frames:
        return self.carry(x_t, t, cond, None, r=r, rngs=rngs)[0]

    def carry(
        self,
        x_t: layers.Frames,
        t: layers.PerItem,
        cond: layers.Condition = layers.Condition(),
        state: State | None = None,
        *,
        r: layers.PerItem | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[layers.Frames, State]:
        """The output and the state after these frames; `state` is that after the frames before (None: there were none).

        Only for a network that is not `bidirectional` do chunks with a carried state give what the whole gives.
        """
        y = x_t if cond.estimate is None else cond.estimate
        c = self.conditioner(t, cond.label, r, rngs)
        g, *kept = _in_blocks(self._encoded, x_t, y)
        states = []
        for i, block in enumerate(self.blocks):
            g, after = block(g, c, None if state is None else state[i])
            states.append(after)
        return _in_blocks(self._decoded, x_t, y, g, *kept), jnp.stack(states)

    def _encoded(self, x_t: layers.Frames, y: layers.Frames) -> list[Array]:
        """Subbands, and then what the way back sees of the way here."""
        h = jax.nn.silu(self.input(self._neighbours(jnp.concatenate([_planes(x_t), _planes(y)], -1))))
        kept = [h]
        for mix in self.encoder:
            kept.append(h := mix(h))
        return [self.narrow(jnp.einsum("btfc,fk->btkc", h, jnp.asarray(self.triangles, h.dtype))), *kept]

    def _decoded(self, x_t: layers.Frames, y: layers.Frames, g: Array, *kept: Array) -> layers.Frames:
        weights = jnp.asarray(self.triangles, g.dtype)
        back = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)
        h = self.widen(jnp.einsum("btkc,fk->btfc", g, back))
        for i, (join, other) in enumerate(zip(self.joins, reversed(kept), strict=True)):
            h = _joined(join, h, other)
            h = self.decoder[i](h) if i < len(self.decoder) else jax.nn.silu(h)
        m, n = (mask.mT.reshape(x_t.shape) for mask in jnp.split(self._bins(self.output(h)), 2, axis=-1))
        return layers.complex_product(m, x_t) + layers.complex_product(n, y)

    def _neighbours(self, x: Float[Array, "batch frames bins planes"]) -> Float[Array, "batch frames bands taps"]:
        """The bins that each band sees: its own and half a band on both sides."""
        before = _STRIDE * (_TAPS - 1) // 2
        x = jnp.pad(x, ((0, 0), (0, 0), (before, _STRIDE * (self.bands + _TAPS - 1) - before - self.bins), (0, 0)))
        x = x.reshape(*x.shape[:2], self.bands + _TAPS - 1, -1)
        return jnp.concatenate([x[:, :, k : self.bands + k] for k in range(_TAPS)], -1)

    def _bins(self, x: Float[Array, "batch frames bands taps"]) -> Float[Array, "batch frames bins planes"]:
        """The adjoint of `_neighbours`: what all bands say of every bin, added."""
        parts = jnp.split(x, _TAPS, axis=-1)
        pads = [((0, 0), (0, 0), (k, _TAPS - 1 - k), (0, 0)) for k in range(_TAPS)]
        total = sum(jnp.pad(part, pad) for part, pad in zip(parts, pads, strict=True))
        before = _STRIDE * (_TAPS - 1) // 2
        return jnp.asarray(total).reshape(*x.shape[:2], -1, 4)[:, :, before : before + self.bins]


class _Mix(nnx.Module):
    """h + SiLU of a convolution of three bands, after a normalisation of each position."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.norm = nnx.Param(jnp.ones(channels))
        self.linear = nnx.Linear(3 * channels, channels, rngs=rngs)

    def __call__(self, h: Float[Array, "batch frames bands channels"]) -> Float[Array, "batch frames bands channels"]:
        kernel = jnp.concatenate(jnp.split(self.linear.kernel[...], 3), -1)  # the taps side by side: one product
        lower, own, upper = jnp.split(layers.flat_product(_rms_norm(h, self.norm[...]), kernel), 3, axis=-1)
        none = ((0, 0), (0, 0))
        lower = jnp.pad(lower[:, :, :-1], (*none, (1, 0), (0, 0)))  # what the band below says, and the one above
        upper = jnp.pad(upper[:, :, 1:], (*none, (0, 1), (0, 0)))
        return h + jax.nn.silu(lower + own + upper + _bias(self.linear))


class _Block(nnx.Module):
    """A GRU over time and attention among subbands, each added to what it saw; the GRU's input is modulated by `c`."""

    def __init__(
        self, subbands: int, width: int, heads: int, bidirectional: bool, memory: float | None, rngs: nnx.Rngs
    ):
        linear: Any = functools.partial(nnx.Linear, dot_general=layers.flat_product, rngs=rngs)
        directions = 2 if bidirectional else 1
        self.heads, self.kept = heads, 1.0 if memory is None else float(np.exp(-1 / memory))
        self.modulation = linear(width, 2 * width, kernel_init=nnx.initializers.zeros_init())
        self.gru_norm, self.attention_norm = nnx.Param(jnp.ones(width)), nnx.Param(jnp.ones(width))
        self.gru_input = linear(width, directions * 3 * width)
        orthogonal = nnx.initializers.orthogonal()
        own = [orthogonal(rngs.params(), (width, 3 * width)) for _ in range(directions)]
        self.gru_state = nnx.Param(jnp.stack(own))
        self.gru_bias = nnx.Param(jnp.zeros((directions, width)))
        self.gru_output = linear(directions * width, width)
        self.place = nnx.Param(0.5 * jax.random.normal(rngs.params(), (subbands, width)))
        self.query_key_value, self.attention_output = linear(width, 3 * width), linear(width, width)

    def __call__(
        self, g: Float[Array, "batch frames subbands width"], c: Array, before: Array | None
    ) -> tuple[Array, Array]:
        shift, scale = jnp.split(self.modulation(c)[:, None, None], 2, axis=-1)

        def seen(g: Array) -> Array:
            return self.gru_input(_rms_norm(g, self.gru_norm[...]) * (1 + scale) + shift)

        def added(g: Array, h: Array) -> Array:
            g = g + self.gru_output(h)
            return g + self._attention(_rms_norm(g, self.attention_norm[...]) + self.place[...])

        h, after = self._gru(_in_blocks(seen, g), before)
        return _in_blocks(added, g, h), after

    def _gru(self, x: Array, before: Array | None) -> tuple[Array, Array]:
        """The states of all frames, of both directions side by side, and the last one of the first (Cho et al. 2014;
        the reset gate is applied after the product with the state)."""
        batch, frames, subbands, _ = x.shape
        weights, bias = self.gru_state[...], self.gru_bias[...]
        width, inputs = weights.shape[1], jnp.split(x.swapaxes(0, 1), len(weights), axis=-1)
        zero = jnp.zeros((batch, subbands, width), x.dtype)

        def cell(h: Array, x: Array, weight: Array, bias: Array) -> Array:
            of_x, of_h = jnp.split(x, 3, axis=-1), jnp.split(layers.flat_product(h, weight), 3, axis=-1)
            reset, update = _sigmoid(of_x[0] + of_h[0]), self.kept * _sigmoid(of_x[1] + of_h[1])
            new = jnp.tanh(of_x[2] + reset * (of_h[2] + bias))
            return new + update * (h - new)

        def step(states, xs):
            states = [cell(*parts) for parts in zip(states, xs, weights, bias, strict=True)]
            return states, states

        turned = [inputs[0], *(x[::-1] for x in inputs[1:])]
        begin = [zero if before is None else before, *(zero for _ in inputs[1:])]
        last, states = jax.lax.scan(step, begin, turned)
        out = jnp.concatenate([states[0], *(h[::-1] for h in states[1:])], -1)
        return out.swapaxes(0, 1), last[0]

    def _attention(self, g: Float[Array, "batch frames subbands width"]) -> Array:
        """Multi-head attention among the subbands of a frame (Vaswani et al. 2017, eq. 1)."""
        size = g.shape[-1] // self.heads
        q, k, v = (
            part.reshape(-1, g.shape[2], self.heads, size) for part in jnp.split(self.query_key_value(g), 3, axis=-1)
        )
        share = jax.nn.softmax(jnp.einsum("nqhs,nkhs->nhqk", q, k) / size**0.5, axis=-1)
        return self.attention_output(jnp.einsum("nhqk,nkhs->nqhs", share, v).reshape(g.shape))


def _in_blocks(layer: Callable[..., Any], *x: Float[Array, "batch frames ..."]) -> Any:
    """`layer(*x)`, which treats each frame alone: of many frames a CPU takes one block after the other."""
    frames = x[0].shape[1]
    if jax.default_backend() != "cpu" or frames < 8 * _BLOCK:
        return layer(*x)
    count = -(-frames // _BLOCK)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, count * _BLOCK - frames), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(len(x), count, _BLOCK, *x.shape[2:]).swapaxes(0, 1)

    def joined(x: Array) -> Array:
        x = x.swapaxes(0, 1)
        return x.reshape(len(x), count * _BLOCK, *x.shape[3:])[:, :frames]

    return jax.tree.map(joined, jax.lax.map(lambda x: layer(*x), jax.tree.map(cut, x)))


def _sigmoid(x: Array) -> Array:
    """The logistic function by tanh, which takes half the time of its division and exponential on a CPU."""
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)


def _joined(linear: nnx.Linear, h: Array, other: Array) -> Array:
    """The layer's output for both side by side, which need not be put there."""
    own, others = jnp.split(linear.kernel[...], 2)
    return layers.flat_product(h, own) + layers.flat_product(other, others) + _bias(linear)


def _bias(linear: nnx.Linear) -> Array:
    assert linear.bias is not None
    return linear.bias[...]


def _planes(x: Float[Array, "batch frames features"]) -> Float[Array, "batch frames bins planes"]:
    """Real part, imaginary part and magnitude of every bin."""
    real, imag = jnp.split(x, 2, axis=-1)
    return jnp.stack([real, imag, jnp.sqrt(real**2 + imag**2 + 1e-12)], -1)


def _rms_norm(h: Array, scale: Array) -> Array:
    """Unit mean square over channels (Zhang & Sennrich 2019), with a trained scale."""
    return h * jax.lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-6) * scale


@functools.cache
def _triangles(bands: int, subbands: int) -> np.ndarray:
    """Overlapping triangles whose centres are evenly spaced at low bands and in ratio at high ones.

    >>> _triangles(4, 2).shape
    (4, 2)
    """
    warp = lambda f: np.log1p(f * 8 / bands)  # noqa: E731
    place = warp(np.arange(bands)) / warp(bands - 1) * (subbands - 1) if bands > 1 else np.zeros(bands)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(subbands)))
    low = np.arange(subbands)  # where triangles are narrower than a band they would be empty
    for k in low[weights.sum(0) == 0]:
        weights[np.abs(place - k).argmin(), k] = 1
    return (weights / weights.sum(0)).astype(np.float32)
