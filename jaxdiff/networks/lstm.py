"""LSTM over audio frames, a baseline (Hochreiter & Schmidhuber 1997; with forget gate, Gers et al. 2000).

Without peepholes, and with z = W x_n + U h_{n-1} + b cut into four:

    c_n = sigmoid(z_f) c_{n-1} + sigmoid(z_i) tanh(z_g),      h_n = sigmoid(z_o) tanh(c_n)

W x is one matrix product over all frames; only U h is inside the scan over time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxdiff import ranges

from .layers import ComputeDtype, Condition, Conditioner, FrameNetwork, apply_layer, linear_options, output_init


class Layer(nnx.Module):
    """`width` cells, in one direction or both, whose outputs lie side by side. Input kernels Glorot uniform (Glorot &
    Bengio 2010), recurrent ones orthogonal (Saxe et al. 2014), biases zero but the forget gate's, 1 (Jozefowicz et al.
    2015)."""

    def __init__(
        self, width: int, *, bidirectional: bool = False, compute_dtype: ComputeDtype = "float32", rngs: nnx.Rngs
    ):
        self.bidirectional, self.compute_dtype = bidirectional, compute_dtype
        streams = 2 if bidirectional else 1
        options: dict[str, Any] = dict(kernel_init=nnx.initializers.glorot_uniform(), **linear_options(compute_dtype))
        forget = jnp.zeros((streams, 4, width)).at[:, 1].set(1.0).ravel()
        self.input = nnx.Linear(streams * width, streams * 4 * width, bias_init=lambda *_: forget, rngs=rngs, **options)
        square = nnx.initializers.orthogonal()
        draw = lambda: [square(rngs.params(), (width, width)) for _ in range(4)]  # noqa: E731
        self.recurrent = nnx.Param(jnp.stack([jnp.concatenate(draw(), axis=1) for _ in range(streams)]))

    def __call__(
        self, x: Float[Array, "batch frames width"], valid: Bool[Array, "batch frames"] | None = None
    ) -> Float[Array, "batch frames width"]:
        streams, width, _ = self.recurrent.shape
        batch, frames, _ = x.shape
        z = self.input(x).reshape(batch, frames, streams, 4 * width).transpose(2, 1, 0, 3)
        U = self.recurrent[...].astype(self.compute_dtype)
        valid = jnp.ones((1, frames, 1, 1), bool) if valid is None else valid.T[None, :, :, None]
        valid = jnp.broadcast_to(valid, (streams, *valid.shape[1:]))
        if self.bidirectional:  # the second stream runs backwards
            z, valid = (jnp.stack([a[0], a[1, ::-1]]) for a in (z, valid))

        def step(state, inputs):
            (h, c), (z, valid) = state, inputs
            z = z + jnp.matmul(h.astype(U.dtype), U, preferred_element_type=jnp.float32)
            i, f, g, o = jnp.split(z, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h, c = (jnp.where(valid, a, 0) for a in (jax.nn.sigmoid(o) * jnp.tanh(c), c))
            return (h, c), h

        start = jnp.zeros((streams, batch, width))
        _, h = jax.lax.scan(step, (start, start), (z.swapaxes(0, 1), valid.swapaxes(0, 1)))
        h = jnp.concatenate([h[:, 0], h[::-1, 1]], axis=-1) if self.bidirectional else h[:, 0]
        return h.swapaxes(0, 1)


class LSTM(FrameNetwork):
    """`depth` layers of `width` cells on `[batch, frames, features]`; one-way, a frame sees itself and the past alone.
    Time and class are added to the input. Other options: see `layers`."""

    def __init__(
        self,
        features: int,
        *,
        width: ranges.Count = 256,
        depth: ranges.Count = 2,
        bidirectional: bool = False,
        condition_features: int = 0,
        num_classes: int = 0,
        label_dropout: ranges.Share = 0.1,
        self_conditioning: bool = False,
        second_time: bool = False,
        zero_output: bool = True,
        remat: bool = False,
        compute_dtype: ComputeDtype = "float32",
        rngs: nnx.Rngs,
    ):
        self.self_conditioning, self.remat = self_conditioning, remat
        streams = (1 + bidirectional) * width
        self.conditioner = Conditioner(streams, num_classes, label_dropout, second_time, rngs=rngs)
        self.input = nnx.Linear(2 * features if self_conditioning else features, streams, rngs=rngs)
        self.condition = nnx.Linear(condition_features, streams, rngs=rngs) if condition_features else None
        options: dict[str, Any] = dict(bidirectional=bidirectional, compute_dtype=compute_dtype, rngs=rngs)
        self.layers = nnx.List([Layer(width, **options) for _ in range(depth)])
        self.output = nnx.Linear(streams, features, kernel_init=output_init(zero_output), rngs=rngs)

    receptive_field = None  # the whole input, or the whole past

    def hidden(self, x_t: Array, c: Array, cond: Condition, rngs: nnx.Rngs | None) -> Array:
        h = self.projected(x_t, cond, c[:, None])
        for layer in self.layers:
            h = apply_layer(layer, h, cond.valid(h.shape[1]), remat=self.remat)
        return h
