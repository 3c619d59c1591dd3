"""The U-Net against its equations in NumPy float64 loops over frames; its reach; its padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import max_relative

from jaxdiff.networks import Condition, UNet
from jaxdiff.networks.unet import ResidualBlock

FAST_COMPILE = {"xla_backend_optimization_level": 0}


def small(scale=0.3, **options):
    sizes = dict(width=4, levels=3, blocks=1, heads=2)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: UNet(2, **{**sizes, **options}, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(7)
    draw = lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, shapes))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def affine(p, x):
    return x @ np.asarray(p.kernel[...], np.float64) + np.asarray(p.bias[...], np.float64)


def silu(x):
    return x / (1 + np.exp(-x))


def normed(h):
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)


def convolved(p, x):
    """Three frames to one, frame by frame; there is nothing beyond either end."""
    kernel, size = np.asarray(p.kernel[...], np.float64), x.shape[1]
    out = np.tile(np.asarray(p.bias[...], np.float64), (len(x), 1))
    for n in range(len(x)):
        for tap in range(3):
            if 0 <= n + tap - 1 < len(x):
                out[n] += x[n + tap - 1] @ kernel[tap * size : (tap + 1) * size]
    return out


def attended(block, h):
    q, k, v = np.split(affine(block.qkv, normed(h)), 3, axis=1)
    size, out = h.shape[1] // block.heads, np.zeros_like(h)
    turn = np.exp(1j * np.outer(np.arange(len(h)), 1e4 ** (-np.arange(size // 2) / (size // 2))))
    for part in (slice(s, s + size) for s in range(0, h.shape[1], size)):
        turned = [(a[:, part][:, : size // 2] + 1j * a[:, part][:, size // 2 :]) * turn for a in (q, k)]
        weights = np.exp((turned[0] @ turned[1].conj().T).real / np.sqrt(size))
        out[:, part] = weights / weights.sum(1, keepdims=True) @ v[:, part]
    return affine(block.attention_output, out)


def residual(block, h, c):
    shift, scale = np.split(affine(block.modulation, c), 2)
    y = convolved(block.conv_1, silu(normed(h)))
    y = convolved(block.conv_2, silu(normed(y) * (1 + scale) + shift))
    h = y + (h if block.shortcut is None else affine(block.shortcut, h))
    return h if block.qkv is None else h + attended(block, h)


def reference(network, x, t, label):
    """One item of any number of frames: a lone last frame meets zeros when frames are halved."""
    parts = network.conditioner
    angle = 1000 * np.float64(t) * 1e4 ** (-np.arange(128) / 128)
    c = affine(parts.time_2, silu(affine(parts.time_1, np.concatenate([np.sin(angle), np.cos(angle)]))))
    c = silu(c + np.asarray(parts.label.table[...], np.float64)[label])

    def through(level, h):
        if level == network.levels - 1:
            for block in network.bottom:
                h = residual(block, h, c)
            return h
        for block in network.down[level]:
            h = residual(block, h, c)
        pairs = np.concatenate([h, np.zeros((len(h) % 2, h.shape[1]))]).reshape(-1, 2 * h.shape[1])
        below = through(level + 1, affine(network.halve[level], pairs))
        above = affine(network.double[level], below).reshape(-1, h.shape[1])[: len(h)]
        h = np.concatenate([above, h], axis=1)
        for block in network.up[level]:
            h = residual(block, h, c)
        return h

    return affine(network.output, through(0, affine(network.input, x)))


@pytest.mark.slow
@pytest.mark.parametrize(("attention_levels", "blocks"), [(0, 2), (2, 1)])
def test_unet_equals_its_equations_with_and_without_padding(attention_levels, blocks):
    network = small(attention_levels=attention_levels, blocks=blocks, num_classes=3)
    x, t, label, lengths = normal(1, 2, 13, 2), jnp.array([0.125, 0.75]), jnp.array([2, 0]), [13, 6]
    graphdef, params = nnx.split(network)
    run = jax.jit(
        lambda params, x, lengths: nnx.merge(graphdef, params)(x, t, Condition(label, lengths=lengths)),
        compiler_options=FAST_COMPILE,
    )
    padded = run(params, x, jnp.array(lengths))
    for i, length in enumerate(lengths):
        expected = reference(network, np.asarray(x[i, :length], np.float64), t[i], int(label[i]))
        assert max_relative(padded[i, :length], expected) <= 1e-5
    assert (run(params, x.at[1, 6:].set(50.0), jnp.array(lengths))[1, :6] == padded[1, :6]).all()
    plain = jax.jit(lambda params: nnx.merge(graphdef, params)(x, t, Condition(label)), compiler_options=FAST_COMPILE)
    assert max_relative(plain(params)[0], padded[0]) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "blocks"), [(1, 1), (2, 1), (3, 2)])
def test_receptive_field_is_exact(levels, blocks):
    """The most frames that any of four neighbouring outputs depends on, each in an item of its own."""
    network = small(scale=0.6, levels=levels, blocks=blocks, attention_levels=0)
    field = network.receptive_field
    assert field is not None
    frames, outputs = field + 40, np.arange(4)
    outputs = outputs + frames // 2
    x = jnp.broadcast_to(normal(1, 1, frames, 2), (4, frames, 2))
    picked = lambda x: network(x, jnp.full(4, 0.5))[np.arange(4), outputs]  # noqa: E731
    gradient = jax.jit(jax.grad(lambda x: (picked(x) ** 2).sum()), compiler_options=FAST_COMPILE)(x)
    reach = [np.ptp(np.flatnonzero(row)) + 1 for row in np.abs(gradient).max(-1)]
    assert max(reach) == field


@pytest.mark.slow
def test_blocks_begin_as_the_identity():
    rngs = nnx.Rngs(params=jax.random.key(0, impl="rbg"))
    block = ResidualBlock(16, 16, 8, heads=2, rngs=rngs)
    h, c = normal(1, 1, 6, 16), normal(2, 1, 8)
    assert (block(h, c) == h).all()
    assert np.std(block.conv_1.kernel[...]) == pytest.approx(np.sqrt(2 / 48), rel=0.1)
    network = nnx.eval_shape(lambda: UNet(2, width=8, levels=2, blocks=1, rngs=nnx.Rngs(0)))
    assert (
        network.output.kernel.shape == (8, 2) and network.bottom[0].qkv is not None and network.down[0][0].qkv is None
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(levels=2, attention_levels=3), "attention_levels: expected 0 to levels, got 3 of 2"),
        (dict(width=6, heads=4, levels=1), "6 channels at the first level .* use a width of 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(2, **options, rngs=nnx.Rngs(0))
