"""Discriminators against two-dimensional convolutions in NumPy float64 loops; gradients; batch neighbours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import max_relative
from test_networks import FAST_COMPILE

from jaxdiff.networks.discriminators import (
    PERIODS,
    Convolution,
    Discriminators,
    PeriodDiscriminator,
    SpectrogramDiscriminator,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def drawn(make, seed=7):
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, shapes))


def convolve(layer: Convolution, x):
    """[rows, positions, channels], tap by tap, zero outside."""
    kernel, gain, bias = (np.asarray(p[...], np.float64) for p in (layer.kernel, layer.gain, layer.bias))
    kernel = kernel * gain / np.sqrt((kernel**2).sum((0, 1)))
    channels = x.shape[-1]
    count = -(-x.shape[1] // layer.stride)
    out = np.zeros((x.shape[0], count, kernel.shape[-1])) + bias
    for r in range(x.shape[0]):
        for n in range(count):
            for i in range(layer.rows):
                for k in range(layer.taps):
                    row, at = r + i - layer.rows // 2, n * layer.stride + k - layer.taps // 2
                    if 0 <= row < x.shape[0] and 0 <= at < x.shape[1]:
                        out[r, n] += x[row, at] @ kernel[k * channels : (k + 1) * channels, i]
    return out


def judged(network, x, slope):
    x, maps = np.asarray(x, np.float64)[..., None], []
    for layer in network.layers:
        x = convolve(layer, x)
        x = np.where(x > 0, x, slope * x)
        maps.append(x)
    return convolve(network.output, x), maps


def test_a_period_is_a_column():
    network, wave = drawn(lambda: PeriodDiscriminator(1, rngs=nnx.Rngs(0))), normal(1, 2, 100)
    found = jax.jit(lambda wave: network(wave, 3))(wave)
    for i, y in enumerate(np.asarray(wave)):
        folded = np.concatenate([y, y[-2:-4:-1]])  # reflected to 102
        columns = np.stack([folded[k::3] for k in range(3)])
        logits, maps = judged(network, columns, 0.1)
        assert max_relative(found.logits[i].reshape(3, -1), logits[..., 0]) <= 1e-5
        assert all(max_relative(a[i], b) <= 1e-5 for a, b in zip(found.maps, maps, strict=True))


def test_spectrograms_are_convolved_over_frames_and_bins():
    network, magnitude = drawn(lambda: SpectrogramDiscriminator(2, rngs=nnx.Rngs(0))), normal(2, 2, 5, 33)
    found = jax.jit(network)(magnitude)
    for i, x in enumerate(np.asarray(magnitude)):
        logits, maps = judged(network, x, 0.2)
        assert [m.shape for m in maps] == [(5, 33, 2), (5, 17, 2), (5, 9, 2), (5, 5, 2), (5, 5, 2)]
        assert max_relative(found.logits[i].reshape(5, -1), logits[..., 0]) <= 1e-5
        assert all(max_relative(a[i], b) <= 1e-5 for a, b in zip(found.maps, maps, strict=True))


def test_the_papers_sizes():
    network = nnx.eval_shape(lambda: Discriminators(3, rngs=nnx.Rngs(0)))
    count = lambda part: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.split(part)[1]))  # noqa: E731
    channels = [1, 32, 128, 512, 1024, 1024]
    kernels = sum(5 * a * b for a, b in zip(channels, channels[1:], strict=False)) + 3 * 1024
    per_period = kernels + 2 * (sum(channels[1:]) + 1)  # a gain and a bias for each output channel
    assert count(network.periods) == 5 * per_period
    assert 41.0e6 < 5 * kernels < 41.2e6
    assert count(network.spectra) / 3 == 27 * 32 + 3 * 27 * 32 * 32 + 9 * 32 * 32 + 9 * 32 + 2 * (5 * 32 + 1)


@pytest.mark.slow
def test_each_has_weights_of_its_own():
    network, wave = (
        drawn(lambda: Discriminators(1, period_width=1, spectral_width=2, rngs=nnx.Rngs(0))),
        normal(1, 1, 66),
    )
    said = jax.jit(network, compiler_options=FAST_COMPILE)(wave, [normal(2, 1, 5, 33)])
    assert len(said) == len(PERIODS) + 1
    graphdef, params = nnx.split(network.periods)
    for i, period in enumerate(PERIODS):
        alone = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], params))
        expected = jax.jit(lambda wave, one=alone, p=period: one(wave, p), compiler_options=FAST_COMPILE)(wave)
        assert max_relative(said[i].logits, expected.logits) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_finite_also_at_silence_and_items_are_apart(dtype):
    make = (lambda: PeriodDiscriminator(1, rngs=nnx.Rngs(0)), lambda: SpectrogramDiscriminator(2, rngs=nnx.Rngs(0)))
    both: nnx.List[Any] = nnx.List([drawn(m) for m in make])
    graphdef, params = nnx.split(both)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    wave = jnp.concatenate([normal(3, 1, 64), jnp.zeros((1, 64))]).astype(dtype)

    def total(params, wave):
        period, spectral = nnx.merge(graphdef, params)
        said = [period(wave, 2), spectral(wave.reshape(len(wave), 4, 16))]
        return sum((j.logits.astype(jnp.float32) ** 2).sum() for j in said), said[0].logits

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), compiler_options=FAST_COMPILE)
    (_, first), gradient = run(params, wave)
    assert all(jnp.isfinite(leaf).all() and leaf.dtype == dtype for leaf in jax.tree.leaves(gradient))
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))
    (_, other), _ = run(params, wave.at[1].set(normal(4, 64).astype(dtype)))
    assert (first[0] == other[0]).all() and (dtype == jnp.bfloat16 or (first[1] != other[1]).any())
