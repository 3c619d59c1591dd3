"""The layers of WaveNet as one function for the CPU, equal in value and gradient to `ResidualLayer` in a scan.

    X = [y shifted by -d, 0, d; c],  y = h + s,    z = X W + b,    o = tanh(z_2) sigmoid(z_1) W' + b'

Time is worked through in chunks whose temporaries stay in the cache; taps and conditioner are one matrix product. Every
layer's y lies zero-padded in one buffer, a slot per layer, into which the layer before writes chunk by chunk. The
backward pass reads y again and adds the gradient of X to where its columns came from. Fresh memory costs a CPU as much
as arithmetic does, so the gates are kept only where computing them again would cost more. Where no gradient is asked
for, wide layers convolve by `winograd`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import winograd

_ROWS = 512  # of a chunk, all items of a device together
_DEAR = 512  # inputs of a gate from which on it is kept
_WIDE = 128  # channels from which on sums cost less than the products that they save
_ROOT = 1 / float(np.float32(np.sqrt(2)))  # the layer divides by the float32


class _Chunks:
    """`count` chunks of `size` frames between margins of `reach` zeros; frames beyond `lengths` do not count, nor those
    that fill the last chunk."""

    def __init__(self, batch: int, frames: int, dilations: tuple[int, ...], lengths: Array | None):
        self.devices = jax.device_count() if batch % jax.device_count() == 0 else 1
        items = batch // self.devices
        self.frames, self.reach, self.lengths = frames, max(dilations), lengths
        self.size = min(frames, max(64, _ROWS // items))
        self.tiled = all(self.size % (4 * d) == 0 for d in dilations)
        self.count = -(-frames // self.size)
        self.starts = jnp.arange(self.count) * self.size

    def fill(self, x: Array, margin: int = 0) -> Array:
        return jnp.pad(x, ((0, 0), (margin, margin + self.count * self.size - self.frames), (0, 0)))

    def take(self, x: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, start, self.size, axis=1)

    def add(self, x: Array, start: Array, chunk: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(x, self.take(x, start) + chunk, start, axis=1)

    def mask(self, chunk: Array, start: Array | int) -> Array:
        """Zero where the frames do not count: the next layer must not see them."""
        if self.lengths is None and self.count * self.size == self.frames:
            return chunk
        ends = jnp.array([self.frames]) if self.lengths is None else self.lengths
        return jnp.where((start + jnp.arange(chunk.shape[1]) < ends[:, None])[..., None], chunk, 0)

    def within(self, x: Array) -> Array:
        """Zero beyond the lengths, for [batch, frames, channels]."""
        return x if self.lengths is None else self.mask(x, 0)

    def slot(self, slots: Array, index: Array, at: Array, beyond: int = 0) -> Array:
        """A chunk of one of [slots, batch, frames, channels], and frames `beyond` it."""
        sizes = (1, slots.shape[1], self.size + beyond, slots.shape[3])
        return jax.lax.dynamic_slice(slots, (index, 0, at, 0), sizes)[0]

    def seen(self, y: Array, index: Array, c: Array | None, start: Array, dilation: Array) -> Array:
        """What the product of a chunk sees: taps and condition."""
        taps = [self.slot(y, index, start + self.reach + shift) for shift in (-dilation, 0, dilation)]
        return jnp.concatenate(taps + ([] if c is None else [self.take(c, start)]), axis=-1)

    def total(self, x: Array) -> Array:
        """Sums over frames and items, a row per device, so that devices need not meet before the end."""
        return x.reshape(self.devices, -1, x.shape[-1]).sum(1)

    def outer(self, x: Array, z: Array) -> Array:
        """The gradient of W in x W = z, per device."""
        x, z = (a.reshape(self.devices, -1, a.shape[-1]) for a in (x, z))
        return jnp.einsum("dnk,dnm->dkm", x, z)


def _gates(z: Array) -> tuple[Array, Array]:
    gate, signal = jnp.split(z, 2, axis=-1)
    return jax.nn.sigmoid(gate), jnp.tanh(signal)


def _forward(h, steps, c, weights, dilations, lengths, backward):
    """The sum of skips and, for a `backward` pass, y and perhaps the gates of all layers."""
    batch, frames, channels = h.shape
    chunks, layers, kernels = _Chunks(batch, frames, dilations, lengths), len(dilations), weights[0]
    reach, tiled = chunks.reach, chunks.tiled and channels >= _WIDE and not backward
    slots = layers + 1 if backward else 2
    c = None if c is None else chunks.fill(c)
    first = chunks.fill(chunks.within(h + steps[0][:, None]), reach)
    y = jnp.zeros((slots, *first.shape), h.dtype).at[0].set(first)
    keep = backward and kernels.shape[1] >= _DEAR
    gates = jnp.zeros((layers, batch, chunks.count * chunks.size, 2 * channels), h.dtype) if keep else None
    nexts = jnp.concatenate([steps[1:], jnp.zeros_like(steps[:1])])

    def layer(carry, inputs):
        index, step, next_step, (kernel, bias, out_kernel, out_bias), dilation = inputs
        tiles = winograd.Tiles(chunks.size, dilation)
        transformed = winograd.transform(kernel[: 3 * channels]) if tiled else None

        def chunk(carry, start):
            y, total, gates = carry
            if transformed is not None:  # what the gates see is in the order of tiles
                near = chunks.slot(y, index % slots, start, beyond=2 * reach)
                z = winograd.convolve(near[:, reach + tiles.inputs], transformed) + bias
                z = z if c is None else z + chunks.take(c, start)[:, tiles.order] @ kernel[3 * channels :]
                a, b = _gates(z)
                gated, here = tiles.in_time(a * b), chunks.slot(y, index % slots, start + reach)
            else:
                x = chunks.seen(y, index % slots, c, start, dilation)
                a, b = _gates(x @ kernel + bias)
                gated, here = a * b, x[..., channels : 2 * channels]
            residual, skip = jnp.split(gated @ out_kernel + out_bias, 2, axis=-1)
            h = here - step[:, None]
            new = chunks.mask((h + residual) * _ROOT + next_step[:, None], start)
            y = jax.lax.dynamic_update_slice(y, new[None], ((index + 1) % slots, 0, start + reach, 0))
            if gates is not None:
                both = jnp.concatenate([a, b], axis=-1)
                gates = jax.lax.dynamic_update_slice(gates, both[None], (index, 0, start, 0))
            return (y, chunks.add(total, start, skip), gates), None

        return jax.lax.scan(chunk, carry, chunks.starts)[0], None

    inputs = (jnp.arange(layers), steps, nexts, weights, jnp.asarray(dilations))
    (y, total, gates), _ = jax.lax.scan(layer, (y, chunks.fill(jnp.zeros_like(h)), gates), inputs)
    return total[:, :frames], (y, gates)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def dilated_stack(
    h: Float[Array, "batch frames channels"],
    steps: Float[Array, "layers batch channels"],
    c: Float[Array, "batch frames condition"] | None,
    weights: tuple[Array, Array, Array, Array],
    dilations: tuple[int, ...],
    lengths: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch frames channels"]:
    """Sum of the skips of all layers. `weights` are stacked kernels and biases: of taps (-d, 0, d) and then condition
    [layers, 3 channels + condition, 2 channels], and of the output; frames beyond `lengths` are seen by no other."""
    return _forward(h, steps, c, weights, dilations, lengths, False)[0]


def _with_gradient(h, steps, c, weights, dilations, lengths):
    total, kept = _forward(h, steps, c, weights, dilations, lengths, True)
    return total, (kept, c, weights, lengths)


def _gradient(dilations, saved, d_total):
    (y, gates), c, weights, lengths = saved
    batch, frames, channels = d_total.shape
    chunks, layers = _Chunks(batch, frames, dilations, lengths), len(dilations)
    reach = chunks.reach
    c_filled, d_total = None if c is None else chunks.fill(c), chunks.fill(d_total)
    nothing = jnp.zeros_like(y[0])
    own = lambda d_y: chunks.within(d_y[:, reach : reach + frames])  # noqa: E731

    def layer(carry, inputs):
        d_next, d_c = carry
        index, (kernel, bias, out_kernel, out_bias), dilation = inputs

        def chunk(carry, start):
            d_y, d_c, sums = carry
            x = chunks.seen(y, index, c_filled, start, dilation)
            known = None if gates is None else chunks.slot(gates, index, start)
            a, b = _gates(x @ kernel + bias) if known is None else jnp.split(known, 2, axis=-1)
            d_h = chunks.mask(chunks.take(d_next, start + reach), start) * _ROOT
            d_o = jnp.concatenate([d_h, chunks.take(d_total, start)], axis=-1)
            d_g = d_o @ out_kernel.T
            d_z = jnp.concatenate([d_g * b * a * (1 - a), d_g * a * (1 - b * b)], axis=-1)
            news = (chunks.outer(x, d_z), chunks.total(d_z), chunks.outer(a * b, d_o), chunks.total(d_o))
            before, here, after, *of_c = jnp.split(d_z @ kernel.T, [channels, 2 * channels, 3 * channels], axis=-1)
            for part, shift in ((before, -dilation), (here + d_h, 0), (after, dilation)):
                d_y = chunks.add(d_y, start + reach + shift, part)
            d_c = None if d_c is None else chunks.add(d_c, start, of_c[0])
            return (d_y, d_c, jax.tree.map(jnp.add, sums, (*news, d_h.sum(1)))), None

        zeros = [jnp.zeros((chunks.devices, *w.shape), w.dtype) for w in (kernel, bias, out_kernel, out_bias)]
        begin = (nothing, d_c, (*zeros, jnp.zeros((batch, channels), d_total.dtype)))
        (d_y, d_c, (*d_weights, d_h)), _ = jax.lax.scan(chunk, begin, chunks.starts)
        d_step = own(d_y).sum(1) - d_h  # of what reached y beside the layer's h itself
        return (d_y, d_c), (d_step, tuple(d_weights))

    begin = (nothing, None if c_filled is None else jnp.zeros_like(c_filled))
    inputs = (jnp.arange(layers), weights, jnp.asarray(dilations))
    (d_y, d_c), (d_steps, d_weights) = jax.lax.scan(layer, begin, inputs, reverse=True)
    d_c = None if d_c is None else d_c[:, :frames]
    return own(d_y), d_steps, d_c, jax.tree.map(lambda d: d.sum(1), d_weights), None


dilated_stack.defvjp(_with_gradient, _gradient)
