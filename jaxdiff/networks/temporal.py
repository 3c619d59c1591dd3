"""A small network over curves: when something happens that several of them tell together.

    h = W x + b,   h <- h + W_2 gelu(conv_d(norm(h)))   for dilations d = 1, 2, 4 ...,   logits = w . norm(h)

Frames before the first and after the last are zeros.
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float


class Temporal(nnx.Module):
    """Curves [batch, frames, features] to a logit per frame: residual blocks of a dilated convolution of three taps."""

    def __init__(
        self, features: int, width: int = 40, dilations: Sequence[int] = (1, 2, 4, 8, 16, 32, 1), *, rngs: nnx.Rngs
    ):
        self.embed = nnx.Linear(features, width, rngs=rngs)
        make = lambda d: nnx.Conv(width, width, (3,), kernel_dilation=(d,), padding="SAME", rngs=rngs)  # noqa: E731
        self.convolutions = nnx.List([make(d) for d in dilations])
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in (*dilations, 1)])
        self.outs = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in dilations])
        self.logit = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "batch frames features"]) -> Float[Array, "batch frames"]:
        h = self.embed(x)
        *norms, last = self.norms
        for norm, convolution, out in zip(norms, self.convolutions, self.outs, strict=True):
            h = h + out(jax.nn.gelu(convolution(norm(h))))
        return self.logit(last(h))[..., 0]
