"""Discriminators of waveforms: HiFi-GAN's multi-period one and a multi-resolution one of spectrograms.

The period discriminator (Kong et al. 2020, section 2.3) folds the wave into p columns, so that samples p apart are
neighbours, and convolves along each column: 5 taps, stride 3, four times, then stride 1. The spectrogram discriminator
(Jang et al. 2021, UnivNet, section 2.2) convolves magnitudes over 3 frames and 9 bins, halving the bins three times.
Both have weight normalisation and leaky ReLU, 0.1 and 0.2 as in the papers, and return logits and feature maps.

Every convolution is a matrix product of overlapping blocks of positions: forward and backward run at the speed of
products on a CPU, where XLA's strided convolutions have a slow gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .layers import flat_product

PERIODS = (2, 3, 5, 7, 11)


class Judgement(NamedTuple):
    """What one discriminator says: `logits` [batch, ...], large for real sound, and its feature maps, first to last."""

    logits: Array
    maps: tuple[Array, ...]


class Convolution(nnx.Module):
    """Over the second last axis, `taps` wide and of every `stride`-th position; with `rows` also over that many
    neighbours of the axis before it. Zero beyond the ends.

    Weight normalisation (Salimans & Kingma 2016, eq. 2): one gain per output channel. LeCun normal, zero bias.
    """

    def __init__(self, channels: int, features: int, taps: int, *, stride: int = 1, rows: int = 1, rngs: nnx.Rngs):
        self.taps, self.stride, self.rows = taps, stride, rows
        shape = (taps * channels, rows, features)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape) / (taps * channels * rows) ** 0.5)
        self.gain = nnx.Param(jnp.linalg.norm(self.kernel[...], axis=(0, 1)))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Float[Array, "*batch positions channels"]) -> Float[Array, "*batch kept features"]:
        kernel, channels = self.kernel[...], x.shape[-1]
        kernel = kernel * (self.gain[...] / jnp.linalg.norm(kernel, axis=(0, 1)))
        group = min(16, max(1, 128 // (self.stride * channels)))  # outputs of one product, so that few channels fill it
        count, reach = -(-x.shape[-2] // self.stride), (group - 1) * self.stride
        seen = blocks_of(x, group * self.stride, reach + self.taps, self.taps // 2, -(-count // group))
        z = flat_product(seen, places_of(kernel, group, self.stride * channels))
        if self.rows > 1:  # every row's product is shifted to where the row belongs
            half, height = self.rows // 2, z.shape[-3]
            z = jnp.pad(z, [(0, 0)] * (z.ndim - 3) + [(half, half), (0, 0), (0, 0)])
            parts = jnp.split(z, self.rows, axis=-1)
            z = sum(jax.lax.slice_in_dim(part, k, k + height, axis=-3) for k, part in enumerate(parts))
        z = z.reshape(*z.shape[:-2], -1, kernel.shape[-1])
        return jax.lax.slice_in_dim(z, 0, count, axis=-2) + self.bias[...]


def places_of(kernel: Float[Array, "inputs rows features"], group: int, shift: int) -> Float[Array, "seen columns"]:
    """The kernel for `group` outputs, each `shift` inputs after the one before; columns are rows, outputs, features.

    Copies that end `shift` later than a row of the result, cut into such rows, begin `shift` later from row to row.
    """
    inputs, rows, features = kernel.shape
    seen = inputs + (group - 1) * shift
    copy = jnp.pad(kernel.reshape(inputs, -1), ((0, group * shift), (0, 0)))
    wide = jnp.broadcast_to(copy, (group, *copy.shape)).reshape(group * len(copy), -1)[: group * seen]
    return wide.reshape(group, seen, rows, features).transpose(1, 2, 0, 3).reshape(seen, -1)


def blocks_of(x: Array, size: int, span: int, before: int, count: int) -> Array:
    """`count` runs of `span` positions side by side as channels, one every `size`, the first from position -`before`
    on, zero beyond the ends: [..., positions, channels] to [..., count, span * channels]."""
    more = -(-span // size)  # blocks of `size` that a run touches
    after = max(0, (count + more) * size - before - x.shape[-2])
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(before, after), (0, 0)])
    padded = jax.lax.slice_in_dim(padded, 0, (count + more) * size, axis=-2)
    folded = padded.reshape(*x.shape[:-2], count + more, size * x.shape[-1])
    pieces = []
    for i in range(more):
        width = min(size, span - i * size) * x.shape[-1]
        pieces.append(jax.lax.slice_in_dim(folded, i, i + count, axis=-2)[..., :width])
    return jnp.concatenate(pieces, axis=-1)


class PeriodDiscriminator(nnx.Module):
    """One period; `width` channels in the first layer, then 4, 16, 32 and 32 times as many (HiFi-GAN: 32)."""

    def __init__(self, period: int, width: int, *, rngs: nnx.Rngs):
        self.period = period
        channels = [1, width, 4 * width, 16 * width, 32 * width, 32 * width]
        strides = (3, 3, 3, 3, 1)
        self.layers = nnx.List(
            [Convolution(channels[i], channels[i + 1], 5, stride=stride, rngs=rngs) for i, stride in enumerate(strides)]
        )
        self.output = Convolution(channels[-1], 1, 3, rngs=rngs)

    def __call__(self, wave: Float[Array, "batch samples"]) -> Judgement:
        wave = jnp.pad(wave, ((0, 0), (0, -wave.shape[1] % self.period)), mode="reflect")
        x, maps = wave.reshape(len(wave), -1, self.period).mT[..., None], []
        for layer in self.layers:
            x = jax.nn.leaky_relu(layer(x), 0.1)
            maps.append(x)
        return Judgement(self.output(x).reshape(len(x), -1), tuple(maps))


class SpectrogramDiscriminator(nnx.Module):
    """One resolution; `width` channels in every layer (UnivNet: 32)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        shapes = ((1, 9, 1), (width, 9, 2), (width, 9, 2), (width, 9, 2), (width, 3, 1))
        self.layers = nnx.List([Convolution(c, width, taps, stride=s, rows=3, rngs=rngs) for c, taps, s in shapes])
        self.output = Convolution(width, 1, 3, rows=3, rngs=rngs)

    def __call__(self, magnitude: Float[Array, "batch frames bins"]) -> Judgement:
        x, maps = magnitude[..., None], []
        for layer in self.layers:
            x = jax.nn.leaky_relu(layer(x), 0.2)
            maps.append(x)
        return Judgement(self.output(x).reshape(len(x), -1), tuple(maps))


class Discriminators(nnx.Module):
    """All of them: one per period of `PERIODS`, of `period_width`, and one per spectrogram, of `spectral_width`."""

    def __init__(self, resolutions: int, *, period_width: int = 32, spectral_width: int = 32, rngs: nnx.Rngs):
        self.periods = nnx.List([PeriodDiscriminator(p, period_width, rngs=rngs) for p in PERIODS])
        self.spectra = nnx.List([SpectrogramDiscriminator(spectral_width, rngs=rngs) for _ in range(resolutions)])

    def __call__(
        self, wave: Float[Array, "batch samples"], magnitudes: list[Float[Array, "batch _ _"]]
    ) -> list[Judgement]:
        """`magnitudes` are spectrograms of `wave`, one per resolution."""
        spectra = zip(self.spectra, magnitudes, strict=True)
        return [judge(wave) for judge in self.periods] + [judge(magnitude) for judge, magnitude in spectra]
