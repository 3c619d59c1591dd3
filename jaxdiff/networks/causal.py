"""WaveNet as it was first: a causal model of samples, each given those before (van den Oord et al. 2016, section 2).

A residual layer of dilation d gates what it saw d samples ago and now, the class and the condition frame:

    z_n = W h_{n-d} + W' h_n + V c,    g = tanh(z_1) sigmoid(z_2),    h <- h + U g,    out = MLP(sum over layers S g)

with the first h_n made of sample n - 1, so that output n has seen the samples before n only. Called on whole sounds it
is one `lax.scan` over layers. For generation `incremental` does one sample at a time (Fast WaveNet, Le Paine et al.
2016): one ring buffer holds the h of all layers, read once before the chain of layers begins and written once after it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from jaxdiff import ranges

from .layers import ComputeDtype, Condition, LabelEmbedding, product, scan_layers, stack
from .wavenet import Projection


class CausalLayer(nnx.Module):
    """The weights of one layer; He normal kernels, zero biases."""

    def __init__(self, channels: int, skip_channels: int, condition: int, **options):
        self.past = Projection(channels, 2 * channels, **options)
        self.present = Projection(channels, 2 * channels, **options)
        self.condition = Projection(condition, 2 * channels, **options) if condition else None
        self.residual = Projection(channels, channels, **options)
        self.skip = Projection(channels, skip_channels, **options)


class CausalWaveNet(nnx.Module):
    """`network(x [batch, samples], cond) -> [batch, samples, outputs]`: parameters of the distribution of each sample.

    With `input_classes` > 0, x are that many classes and silence is the middle one; otherwise numbers in [-1, 1].
    Condition frames are `condition_hop` samples long and held constant within. Zero-initialised output: every sound
    begins equally likely. Other options: see `layers`.
    """

    def __init__(
        self,
        outputs: int,
        *,
        input_classes: int = 0,
        channels: ranges.Count = 64,
        skip_channels: ranges.Count | None = None,
        layers: ranges.Count = 30,
        dilation_cycle: ranges.Count = 10,
        condition_features: int = 0,
        condition_hop: int = 1,
        num_classes: int = 0,
        label_dropout: ranges.Share = 0.1,
        compute_dtype: ComputeDtype = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.compute_dtype: ComputeDtype = compute_dtype
        self.input_classes, self.channels, self.remat = input_classes, channels, remat
        self.condition_hop, self.takes_frames = condition_hop, condition_features > 0
        self.dilations = tuple(2 ** (i % dilation_cycle) for i in range(layers))
        skip_channels = channels if skip_channels is None else skip_channels
        table = jax.random.normal(rngs.params(), (input_classes or 1, channels))
        self.embedding = nnx.Param(table)  # a row per class, or one row times the sample
        self.label = LabelEmbedding(num_classes, channels, label_dropout, rngs=rngs) if num_classes else None
        condition = condition_features + (channels if num_classes else 0)
        make = functools.partial(CausalLayer, channels, skip_channels, condition, compute_dtype=compute_dtype)
        self.layers = stack(lambda rngs: make(rngs=rngs), layers, rngs)
        self.hidden = Projection(skip_channels, skip_channels, compute_dtype=compute_dtype, rngs=rngs)
        self.output = nnx.Linear(skip_channels, outputs, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    @property
    def receptive_field(self) -> int:
        """Samples before n that output n depends on."""
        return 1 + sum(self.dilations)

    @property
    def silence(self) -> int | float:
        """The input before the first sample."""
        return self.input_classes // 2 if self.input_classes else 0.0

    def __call__(
        self, x: Num[Array, "batch samples"], cond: Condition = Condition(), *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch samples outputs"]:
        batch, samples = x.shape
        before = jnp.concatenate([jnp.full((batch, 1), self.silence, x.dtype), x[:, :-1]], axis=1)
        frames, reach = self._frames(cond, batch, samples, rngs), max(self.dilations)

        def apply(layer: CausalLayer, carry: tuple[Array, Array], dilation: Array):
            h, total = carry
            old = jax.lax.dynamic_slice_in_dim(jnp.pad(h, ((0, 0), (reach, 0), (0, 0))), reach - dilation, samples, 1)
            z = layer.past(old) + layer.present(h)
            if layer.condition is not None and frames is not None:
                c = layer.condition(frames)
                z = z + (c if c.shape[1] == 1 else jnp.repeat(c, self.condition_hop, axis=1)[:, :samples])
            g = _gate(z)
            return (h + layer.residual(g), total + layer.skip(g)), None

        h = self._embed(before)
        start = (h, jnp.zeros((batch, samples, self.hidden.kernel.shape[0]), h.dtype))
        (_, total), _ = scan_layers(self.layers, apply, start, jnp.asarray(self.dilations), remat=self.remat)
        return self._head(total)

    def incremental(self, cond: Condition, batch: int, samples: int) -> tuple[Callable, Array]:
        """`step, cache`, where `step(cache, before [batch], n) -> cache, outputs [batch, outputs]` for n < `samples`.

        `before` is sample n - 1, and `silence` for n = 0.
        """
        layers, count = self.layers, len(self.dilations)
        times = lambda x, kernel: product(x, kernel, self.compute_dtype)  # noqa: E731
        offset = np.concatenate([[0], np.cumsum(self.dilations)[:-1]]).astype(np.int32)
        bias = layers.past.bias[...] + layers.present.bias[...]
        frames = self._frames(cond, batch, samples, None)
        constant = bias[:, None]
        if layers.condition is not None and frames is not None:
            c = jax.vmap(lambda kernel: times(frames, kernel))(layers.condition.kernel[...])
            constant = jnp.transpose(c, (2, 0, 1, 3)) + (bias + layers.condition.bias[...])[:, None]
        kernels = [list(p.kernel[...]) for p in (layers.past, layers.present, layers.residual)]
        skip, residual_bias = layers.skip.kernel[...].reshape(count * self.channels, -1), layers.residual.bias[...]
        (past, present, residual), skip = jax.lax.optimization_barrier((kernels, skip))  # sliced before the loop
        skip_bias = layers.skip.bias[...].sum(0)

        def step(cache: Array, before: Array, n: Array) -> tuple[Array, Array]:
            at = offset + n % np.asarray(self.dilations, np.int32)
            old, frame = cache[at], n // self.condition_hop if self.takes_frames else 0
            given = constant if constant.ndim == 3 else constant[frame]
            h, inputs, gated = self._embed(before), [], []
            for i in range(count):
                inputs.append(h)
                g = _gate(times(old[i], past[i]) + times(h, present[i]) + given[i])
                gated.append(g)
                h = h + (times(g, residual[i]) + residual_bias[i])
            total = times(jnp.concatenate(gated, axis=-1), skip) + skip_bias
            return cache.at[at].set(jnp.stack(inputs), unique_indices=True), self._head(total)

        return step, jnp.zeros((sum(self.dilations), batch, self.channels))

    def _embed(self, x: Array) -> Array:
        table = self.embedding[...]
        return table[x] if self.input_classes else x[..., None] * table[0]

    def _frames(self, cond: Condition, batch: int, samples: int, rngs: nnx.Rngs | None) -> Array | None:
        """Condition frames and class side by side, [batch, frames, channels]; one frame where there is only a class."""
        frames = 0 if cond.frames is None else cond.frames.shape[1]
        if self.takes_frames and frames * self.condition_hop < samples:
            raise ValueError(
                f"{samples} samples need {-(-samples // self.condition_hop)} condition frames of {self.condition_hop} "
                f"samples, got {frames}; give the condition of the whole sound"
            )
        if self.label is None:
            return cond.frames
        label = self.label(cond.label, batch, rngs=rngs)[:, None]
        if cond.frames is None:
            return label
        return jnp.concatenate([cond.frames, jnp.broadcast_to(label, (*cond.frames.shape[:2], label.shape[-1]))], -1)

    def _head(self, total: Array) -> Array:
        return self.output(jax.nn.relu(self.hidden(jax.nn.relu(total))))


def _gate(z: Array) -> Array:
    signal, gate = jnp.split(z, 2, axis=-1)
    return jnp.tanh(signal) * jax.nn.sigmoid(gate)
