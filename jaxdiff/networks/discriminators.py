"""Discriminators of waveforms: HiFi-GAN's multi-period one and a multi-resolution one of spectrograms.

The period discriminator (Kong et al. 2020, section 2.3) folds the wave into p columns, so that samples p apart are
neighbours, and convolves along each column: 5 taps, stride 3, four times, then stride 1. The spectrogram discriminator
(Jang et al. 2021, UnivNet, section 2.2) convolves magnitudes over 3 frames and 9 bins, halving the bins three times.
Both have weight normalisation and leaky ReLU, 0.1 and 0.2 as in the papers, and return logits and feature maps.

Every convolution is a matrix product of overlapping blocks of positions: XLA's strided convolutions have a
slow gradient on a CPU.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .layers import flat_product, stack

PERIODS = (2, 3, 5, 7, 11)


class Judgement(NamedTuple):
    """What one discriminator says: `logits` [batch, ...], large for real sound, and its feature maps, first to last."""

    logits: Array
    maps: tuple[Array, ...]


Weights = tuple[Array, Array]  # of one convolution: the kernel of its product, and its bias


class Convolution(nnx.Module):
    """Over the second last axis, `taps` wide and of every `stride`-th position; with `rows` also over that many
    neighbours of the axis before it. Zero beyond the ends. LeCun normal, zero bias; weight normalisation (Salimans &
    Kingma 2016, eq. 2) with one gain per output channel."""

    def __init__(self, channels: int, features: int, taps: int, *, stride: int = 1, rows: int = 1, rngs: nnx.Rngs):
        self.taps, self.stride, self.rows = taps, stride, rows
        self.group = min(16, max(1, 128 // (stride * channels)))  # outputs of one product, so that few channels fill it
        self.shift = stride * channels
        shape = (taps * channels, rows, features)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape) / (taps * channels * rows) ** 0.5)
        self.gain = nnx.Param(jnp.linalg.norm(self.kernel[...], axis=(0, 1)))
        self.bias = nnx.Param(jnp.zeros(features))

    def weights(self) -> Weights:
        """Normalised; also of a `stack`, each of its layers on its own."""
        kernel = self.kernel[...]
        kernel = kernel * (self.gain[...] / jnp.linalg.norm(kernel, axis=(-3, -2)))[..., None, None, :]
        return places_of(kernel, self.group, self.shift), self.bias[...]

    def __call__(
        self, x: Float[Array, "*batch positions channels"], weights: Weights
    ) -> Float[Array, "*batch kept features"]:
        (kernel, bias), group = weights, self.group
        count, reach = -(-x.shape[-2] // self.stride), (group - 1) * self.stride
        seen = blocks_of(x, group * self.stride, reach + self.taps, self.taps // 2, -(-count // group))
        z = flat_product(seen, kernel)
        if self.rows > 1:  # every row's product is shifted to where the row belongs
            half, height = self.rows // 2, z.shape[-3]
            z = jnp.pad(z, [(0, 0)] * (z.ndim - 3) + [(half, half), (0, 0), (0, 0)])
            parts = jnp.split(z, self.rows, axis=-1)
            z = jnp.asarray(sum(jax.lax.slice_in_dim(part, k, k + height, axis=-3) for k, part in enumerate(parts)))
        z = z.reshape(*z.shape[:-2], -1, len(bias))
        return jax.lax.slice_in_dim(z, 0, count, axis=-2) + bias


def places_of(
    kernel: Float[Array, "*stack inputs rows features"], group: int, shift: int
) -> Float[Array, "*stack seen columns"]:
    """The kernel for `group` outputs, each `shift` inputs after the one before; columns are rows, outputs, features.

    Copies that end `shift` later than a row of the result, cut into such rows, begin `shift` later from row to row.
    """
    *stack, inputs, rows, features = kernel.shape
    seen = inputs + (group - 1) * shift
    copy = jnp.pad(kernel, [(0, 0)] * len(stack) + [(0, group * shift), (0, 0), (0, 0)])
    copies = jnp.broadcast_to(copy[..., None, :, :, :], (*stack, group, seen + shift, rows, features))
    wide = copies.reshape(*stack, -1, rows, features)[..., : group * seen, :, :]
    return jnp.moveaxis(wide.reshape(*stack, group, seen, rows, features), -4, -2).reshape(*stack, seen, -1)


def blocks_of(x: Array, size: int, span: int, before: int, count: int) -> Array:
    """`count` runs of `span` positions side by side as channels, one every `size`, the first from position -`before`
    on, zero beyond the ends: [..., positions, channels] to [..., count, span * channels]."""
    more = -(-span // size)  # blocks of `size` that a run touches
    after = max(0, (count + more) * size - before - x.shape[-2])
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(before, after), (0, 0)])
    padded = jax.lax.slice_in_dim(padded, 0, (count + more) * size, axis=-2)
    folded = padded.reshape(*x.shape[:-2], count + more, size * x.shape[-1])
    pieces = [jax.lax.slice_in_dim(folded, i, i + count, axis=-2) for i in range(more)]
    return jnp.concatenate(pieces, axis=-1)[..., : span * x.shape[-1]]


class _Discriminator(nnx.Module):
    """Convolutions with leaky ReLU and one that gives the logits."""

    def __init__(self, layers: list[Convolution], output: Convolution, slope: float):
        self.layers, self.output, self.slope = nnx.List(layers), output, slope

    def weights(self) -> list[Weights]:
        """Of the layers and of the output; also of a `stack`."""
        return [layer.weights() for layer in (*self.layers, self.output)]

    def judge(self, x: Array, weights: list[Weights] | None) -> Judgement:
        """Of [batch, rows, positions]; `weights` None: its own."""
        weights = self.weights() if weights is None else weights
        x, maps = x[..., None], []
        for layer, w in zip(self.layers, weights[:-1], strict=True):
            x = jax.nn.leaky_relu(layer(x, w), self.slope)
            maps.append(x)
        return Judgement(self.output(x, weights[-1]).reshape(len(x), -1), tuple(maps))


class PeriodDiscriminator(_Discriminator):
    """Of any period; `width` channels in the first layer, then 4, 16, 32 and 32 times as many (HiFi-GAN: 32)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        channels = [1, width, 4 * width, 16 * width, 32 * width, 32 * width]
        shapes = zip(channels, channels[1:], (3, 3, 3, 3, 1), strict=False)
        layers = [Convolution(c, features, 5, stride=stride, rngs=rngs) for c, features, stride in shapes]
        super().__init__(layers, Convolution(channels[-1], 1, 3, rngs=rngs), 0.1)

    def __call__(
        self, wave: Float[Array, "batch samples"], period: int, weights: list[Weights] | None = None
    ) -> Judgement:
        wave = jnp.pad(wave, ((0, 0), (0, -wave.shape[1] % period)), mode="reflect")
        return self.judge(wave.reshape(len(wave), -1, period).mT, weights)


class SpectrogramDiscriminator(_Discriminator):
    """One resolution; `width` channels in every layer (UnivNet: 32)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        shapes = ((1, 9, 1), (width, 9, 2), (width, 9, 2), (width, 9, 2), (width, 3, 1))
        layers = [Convolution(c, width, taps, stride=s, rows=3, rngs=rngs) for c, taps, s in shapes]
        super().__init__(layers, Convolution(width, 1, 3, rows=3, rngs=rngs), 0.2)

    def __call__(self, magnitude: Float[Array, "batch frames bins"], weights: list[Weights] | None = None) -> Judgement:
        return self.judge(magnitude, weights)


class Discriminators(nnx.Module):
    """One per period of `PERIODS`, of `period_width`, and one per spectrogram, of `spectral_width`. Those of a kind are
    a `stack`, so that what concerns their weights alone is compiled once for all."""

    def __init__(self, resolutions: int, *, period_width: int = 32, spectral_width: int = 32, rngs: nnx.Rngs):
        self.periods = stack(lambda rngs: PeriodDiscriminator(period_width, rngs=rngs), len(PERIODS), rngs)
        self.spectra = stack(lambda rngs: SpectrogramDiscriminator(spectral_width, rngs=rngs), resolutions, rngs)

    def __call__(
        self, wave: Float[Array, "batch samples"], magnitudes: list[Float[Array, "batch _ _"]]
    ) -> list[Judgement]:
        """`magnitudes` are spectrograms of `wave`, one per resolution."""
        periods = zip(PERIODS, _apart(self.periods.weights(), len(PERIODS)), strict=True)
        spectra = zip(magnitudes, _apart(self.spectra.weights(), len(magnitudes)), strict=True)
        return [self.periods(wave, *one) for one in periods] + [self.spectra(*one) for one in spectra]


def _apart(weights: list[Weights], count: int) -> list[list[Weights]]:
    """Each discriminator's weights of those of a stack."""
    parts = [[jnp.split(leaf, count) for leaf in pair] for pair in weights]
    return [[(kernels[i][0], biases[i][0]) for kernels, biases in parts] for i in range(count)]
