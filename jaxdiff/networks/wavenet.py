"""WaveNet as a diffusion denoiser: DiffWave (Kong et al. 2021, figure 2), on samples or on frames.

Each residual layer adds the embedded diffusion step, convolves with a dilation that doubles from layer to layer, adds
the conditioner and gates:

    z = W *_d (h + e_t) + V c,      o = W' (tanh(z_1) sigmoid(z_2)),      h <- (h + o_1) / sqrt 2,      skip += o_2

The layers are one `lax.scan` with the dilation as data: the three taps are slices of a zero-padded buffer and the
convolution is one matrix product. On the CPU `dilated_stack` does the same in chunks of time.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxdiff import ranges

from . import layers as parts
from .dilated_stack import dilated_stack
from .layers import ComputeDtype, Condition, Frames, PerItem

UPSAMPLER_STRIDES = {16: (4, 4), 64: (8, 8), 128: (16, 8), 256: (16, 16), 512: (32, 16)}


class Projection(nnx.Module):
    """A pointwise (or, on `taps`, a dilated) convolution: He normal as in DiffWave (He et al. 2015), zero bias; weight
    normalisation (Salimans & Kingma 2016, eq. 2) gives each output channel a trained gain."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        weight_norm: bool = False,
        compute_dtype: ComputeDtype = "float32",
        rngs: nnx.Rngs,
    ):
        parts.linear_options(compute_dtype)  # raises for an unknown one
        self.compute_dtype: ComputeDtype = compute_dtype
        std = np.sqrt(2 / features_in).astype(np.float32)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (features_in, features_out)) * std)
        self.bias = nnx.Param(jnp.zeros(features_out))
        self.gain = nnx.Param(jnp.linalg.norm(self.kernel[...], axis=0)) if weight_norm else None

    def weights(self) -> Array:
        """The kernel with its gain; also of a `stack`."""
        kernel = self.kernel[...]
        if self.gain is not None:
            kernel = kernel * (self.gain[...] / jnp.linalg.norm(kernel, axis=-2))[..., None, :]
        return kernel

    def __call__(self, x: Array) -> Array:
        return parts.product(x, self.weights(), self.compute_dtype) + self.bias[...]


def _within(x: Array, lengths: Array | None) -> Array:
    """Zero beyond the lengths, for [batch, frames, channels]."""
    return x if lengths is None else jnp.where((jnp.arange(x.shape[1]) < lengths[:, None])[..., None], x, 0)


class Upsampler(nnx.Module):
    """Condition frames to samples: two transposed convolutions over (time, channel), leaky ReLU 0.4 after each.

    The kernel is two strides long in time and 3 wide across channels, so that an output sample sees two input frames,
    and the convolution is two scaled copies overlap-added. Weight norm here is one gain per kernel.
    """

    def __init__(self, hop: int, *, weight_norm: bool = False, compute_dtype: ComputeDtype = "float32", rngs: nnx.Rngs):
        self.compute_dtype: ComputeDtype = compute_dtype
        if hop not in UPSAMPLER_STRIDES:
            known = list(UPSAMPLER_STRIDES)
            raise ValueError(f"condition_hop {hop} has no upsampler; use 1 (frames line up) or one of {known}")
        self.strides = UPSAMPLER_STRIDES[hop]
        shapes = [(3, 2 * stride) for stride in self.strides]
        bound = lambda shape: 1 / np.sqrt(np.prod(shape))  # noqa: E731, PyTorch's default for transposed convolutions
        draw = lambda s: jax.random.uniform(rngs.params(), s, minval=-bound(s), maxval=bound(s))  # noqa: E731
        self.kernels = nnx.List([nnx.Param(draw(shape)) for shape in shapes])
        self.biases = nnx.Param(jnp.zeros(2))
        norms = [jnp.linalg.norm(k[...]) for k in self.kernels]
        self.gains = nnx.Param(jnp.stack(norms)) if weight_norm else None

    def __call__(
        self, c: Float[Array, "batch frames channels"], lengths: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch samples channels"]:
        """`lengths` are the frames that count; what follows them is as what follows the last."""
        for i, stride in enumerate(self.strides):
            c, lengths = _within(c, lengths), None if lengths is None else lengths * stride
            kernel = self.kernels[i][...]
            if self.gains is not None:
                kernel = kernel * (self.gains[...][i] / jnp.linalg.norm(kernel))
            batch, frames, channels = c.shape
            wide = jnp.pad(c, ((0, 0), (0, 0), (1, 1)))
            # Across channels: a transposed convolution with padding 1 reads its kernel backwards.
            near = jnp.stack([wide[:, :, 2 - k : 2 - k + channels] for k in range(3)], axis=-1)
            z = parts.product(near, kernel, self.compute_dtype).mT
            late = lambda x, by: jnp.pad(x, ((0, 0), (by, 1 - by), (0, 0), (0, 0)))  # noqa: E731
            z, half = late(z[:, :, :stride], 0) + late(z[:, :, stride:], 1), stride // 2
            z = z.reshape(batch, (frames + 1) * stride, channels)[:, half : half + frames * stride]
            c = jax.nn.leaky_relu(z + self.biases[...][i], 0.4)
        return c


class ResidualLayer(nnx.Module):
    """One gated dilated convolution (module docstring)."""

    def __init__(self, channels: int, embedding: int, condition: int, hop: int, own_upsampler: bool, **options):
        rngs = options["rngs"]
        self.step = nnx.Linear(embedding, channels, kernel_init=_torch_uniform, rngs=rngs)
        self.dilated = Projection(3 * channels, 2 * channels, **options)
        self.condition = Projection(condition, 2 * channels, **options) if condition else None
        self.upsample = Upsampler(hop, **options) if own_upsampler else None
        self.output = Projection(channels, 2 * channels, **options)
        self.hop = hop

    def __call__(
        self, h: Array, embedded: Array, c: Array | None, dilation: Array, reach: int, lengths: Array | None = None
    ) -> tuple[Array, Array]:
        z = self.dilated(parts.taps(_within(h + self.step(embedded)[:, None], lengths), dilation, reach))
        if self.condition is not None and c is not None:
            z = z + self.condition(c if self.upsample is None else self.upsample(c, _in_condition(lengths, self.hop)))
        gate, signal = jnp.split(z, 2, axis=-1)
        residual, skip = jnp.split(self.output(jax.nn.sigmoid(gate) * jnp.tanh(signal)), 2, axis=-1)
        return (h + residual) / np.sqrt(2).astype(np.float32), skip


def _in_condition(lengths: Array | None, hop: int) -> Array | None:
    """Lengths in condition frames of `hop` network frames."""
    return None if lengths is None else -(-lengths // hop)


def _torch_uniform(key, shape, dtype=jnp.float32, **_):
    """Uniform in +-1/sqrt(fan in): what DiffWave's linear layers start from."""
    bound = float(1 / np.sqrt(shape[0]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class WaveNet(nnx.Module):
    """DiffWave's denoiser. The defaults with `features=1, condition_features=80, condition_hop=256` are its BASE.

    `features` channels in and out; `channels` inside; dilations 1, 2, 4 ... 2**(dilation_cycle - 1), repeated.
    `diffusion_steps` scales t to the step numbers 0 ... steps - 1 that the embedding sees. The conditioner's frames are
    `condition_hop` network frames long and added in every layer. Other options: see `layers`.

    `authors_form` counts as the paper does, 2.64 M parameters: weight normalisation on every convolution and an
    upsampler per layer. Without it (one upsampler, plain weights) BASE is the same function class with 2.62 M.
    """

    def __init__(
        self,
        features: int,
        *,
        channels: ranges.Count = 64,
        layers: ranges.Count = 30,
        dilation_cycle: ranges.Count = 10,
        embedding: ranges.Count = 512,
        diffusion_steps: ranges.Count = 50,
        condition_features: int = 0,
        condition_hop: int = 1,
        num_classes: int = 0,
        label_dropout: ranges.Share = 0.1,
        authors_form: bool = False,
        self_conditioning: bool = False,
        zero_output: bool = True,
        compute_dtype: ComputeDtype = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.self_conditioning, self.compute_dtype, self.condition_hop = self_conditioning, compute_dtype, condition_hop
        self.diffusion_steps, self.remat, self.layer_count = diffusion_steps, remat, layers
        self.dilations = tuple(2 ** (i % dilation_cycle) for i in range(layers))
        upsampled = condition_features > 0 and condition_hop > 1
        options: dict[str, Any] = dict(weight_norm=authors_form, compute_dtype=compute_dtype, rngs=rngs)
        self.input = Projection(2 * features if self_conditioning else features, channels, **options)
        self.step_1 = nnx.Linear(128, embedding, kernel_init=_torch_uniform, rngs=rngs)
        self.step_2 = nnx.Linear(embedding, embedding, kernel_init=_torch_uniform, rngs=rngs)
        self.label = parts.LabelEmbedding(num_classes, embedding, label_dropout, rngs=rngs) if num_classes else None
        self.upsample = Upsampler(condition_hop, **options) if upsampled and not authors_form else None
        sizes = (channels, embedding, condition_features, condition_hop, upsampled and authors_form)
        self.layers = parts.stack(lambda rngs: ResidualLayer(*sizes, **{**options, "rngs": rngs}), layers, rngs)
        self.skip = Projection(channels, channels, **options)
        self.output = nnx.Linear(channels, features, kernel_init=parts.output_init(zero_output), rngs=rngs)

    @property
    def receptive_field(self) -> int:
        """Network frames that one output frame depends on."""
        return 1 + 2 * sum(self.dilations)

    def __call__(
        self, x_t: Frames, t: PerItem, cond: Condition = Condition(), *, rngs: nnx.Rngs | None = None
    ) -> Frames:
        exponents = np.arange(64, dtype=np.float32) * np.float32(4) / np.float32(63)
        frequencies = (10.0 ** exponents.astype(np.float64)).astype(np.float32)  # rounded where DiffWave's are
        position = t * self.diffusion_steps - 1
        whole = jnp.round(position)  # the float32 of step / steps is off by up to 0.04 rad at the highest frequency
        on_step = jnp.abs(position - whole) < 2.4e-7 * self.diffusion_steps
        e = parts.sinusoids(position + jax.lax.stop_gradient(jnp.where(on_step, whole - position, 0)), frequencies)
        e = jax.nn.silu(self.step_2(jax.nn.silu(self.step_1(e))))
        if self.label is not None:
            e = e + self.label(cond.label, len(x_t), rngs=rngs)
        c, lengths = cond.frames, cond.lengths
        if self.upsample is not None and c is not None:
            c = self.upsample(c, _in_condition(lengths, self.condition_hop))
        h = jax.nn.relu(self.input(cond.beside(x_t) if self.self_conditioning else x_t))
        plain = self.layers.upsample is not None or self.compute_dtype != "float32"
        chunked = jax.default_backend() == "cpu" and not plain
        total = (self._skips_chunked if chunked else self._skips)(h, e, c, lengths)
        return self.output(jax.nn.relu(self.skip(total / np.sqrt(self.layer_count).astype(np.float32))))

    def _skips(self, h: Array, e: Array, c: Array | None, lengths: Array | None) -> Array:
        """The sum of the layers' skips: the definition."""
        reach = max(self.dilations)

        def apply(layer, carry, dilation):
            h, total = carry
            h, skip = layer(h, e, c, dilation, reach, lengths)
            return (h, total + skip), None

        start = (h, jnp.zeros_like(h))
        return parts.scan_layers(self.layers, apply, start, jnp.asarray(self.dilations), remat=self.remat)[0][1]

    def _skips_chunked(self, h: Array, e: Array, c: Array | None, lengths: Array | None) -> Array:
        """The same in chunks of time, which the CPU does about twice as fast; `remat` is not asked for."""
        layers = self.layers
        kernel, bias = layers.dilated.weights(), layers.dilated.bias[...]
        c = None if layers.condition is None else c
        if layers.condition is not None and c is not None:
            kernel = jnp.concatenate([kernel, layers.condition.weights()], axis=1)
            bias = bias + layers.condition.bias[...]
        assert layers.step.bias is not None
        steps = jnp.einsum("be,lec->lbc", e, layers.step.kernel[...]) + layers.step.bias[...][:, None]
        weights = (kernel, bias, layers.output.weights(), layers.output.bias[...])
        return dilated_stack(h, steps, c, weights, self.dilations, lengths)
