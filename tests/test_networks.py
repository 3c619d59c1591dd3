"""Networks against an independent re-implementation, exact sizes and reach, and the independence of batch items."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from oracles import max_relative
from scipy.signal import convolve2d

from jaxdiff.networks import LSTM, Condition, ConvNeXt, Transformer, UNet, WaveNet, count_params
from jaxdiff.networks.attention import rope
from jaxdiff.networks.layers import LabelEmbedding, linear_options, scan_layers, streams
from jaxdiff.networks.wavenet import Upsampler

FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these programs run once: compiling them is the cost
RBG = jax.random.key(0, impl="rbg")  # compiles faster than the default generator


def normal(seed: int, *shape: int):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def randomised(make, seed: int = 7, scale: float = 0.3) -> Any:
    """The network that `make` describes, every parameter N(0, scale^2): none is zero or one, so none is hidden."""
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, shapes))


def as_initialised(make) -> Any:
    """What `make` makes, under jit: one program instead of hundreds of small ones."""
    graphdef = nnx.split(nnx.eval_shape(make))[0]
    return nnx.merge(graphdef, jax.jit(lambda: nnx.split(make())[1], compiler_options=FAST_COMPILE)())


def small_wavenet(**options) -> WaveNet:
    sizes = dict(channels=6, layers=4, dilation_cycle=2, embedding=8)
    return randomised(lambda: WaveNet(2, **{**sizes, **options}, rngs=nnx.Rngs(0)))


def small_transformer(**options) -> Transformer:
    return randomised(lambda: Transformer(2, **{**dict(width=16, depth=2, heads=2), **options}, rngs=nnx.Rngs(0)))


def small_hybrid(**options) -> Transformer:
    return small_transformer(**{**dict(window=2, dilation_cycle=2), **options})


def small_unet(**options) -> UNet:
    sizes = dict(width=8, levels=2, blocks=1, heads=2)
    return randomised(lambda: UNet(2, **{**sizes, **options}, rngs=nnx.Rngs(0)))


def small_lstm(**options) -> LSTM:
    sizes = dict(width=8, depth=2, bidirectional=True)
    return randomised(lambda: LSTM(2, **{**sizes, **options}, rngs=nnx.Rngs(0)))


def small_convnext(**options) -> ConvNeXt:
    sizes = dict(width=6, depth=2, kernel=5, expansion=2)
    return randomised(lambda: ConvNeXt(2, **{**sizes, **options}, rngs=nnx.Rngs(0)))


NETWORKS = {
    "wavenet": small_wavenet,
    "hybrid": small_hybrid,
    "unet": small_unet,
    "convnext": small_convnext,
    "lstm": small_lstm,
}
each_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def _apply(graphdef, params, args, keys):
    rngs = None if keys is None else nnx.Rngs(**{name: jax.random.key(seed) for name, seed in keys.items()})
    return nnx.merge(graphdef, params)(*args, **({} if keys is None else {"rngs": rngs}))


def call(network, *args, keys=None):
    """The network's output, compiled once per structure and shape; `keys` are named seeds for its dropout."""
    return _apply(*nnx.split(network), args, keys)


# --- WaveNet ---


@pytest.mark.parametrize(("authors_form", "count"), [(False, 2_619_971), (True, 2_637_305)])
def test_wavenet_base_has_the_papers_size(authors_form, count):
    make = lambda: WaveNet(  # noqa: E731
        1, condition_features=80, condition_hop=256, authors_form=authors_form, rngs=nnx.Rngs(0)
    )
    params = nnx.eval_shape(make)
    assert count_params(nnx.split(params)[1]) == count
    assert params.receptive_field == 6139  # 1 + 2 * 3 * (1 + 2 + ... + 512)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def leaky(x):
    return np.where(x > 0, x, 0.4 * x)


def transposed(x, kernel, stride):
    """Transposed 2-D convolution [frames, channels] with padding (stride / 2, 1): zeros between frames, full kernel."""
    stuffed = np.zeros(((len(x) - 1) * stride + 1, x.shape[1]))
    stuffed[::stride] = x
    full = convolve2d(stuffed, kernel.T)  # kernel is [channel taps, time taps]
    return full[stride // 2 : stride // 2 + len(x) * stride, 1:-1]


def upsampled(upsampler, frames, layer: Any = ...):
    get = lambda p: np.asarray(p[...], np.float64)[layer]  # noqa: E731
    for i, stride in enumerate(upsampler.strides):
        kernel = get(upsampler.kernels[i])
        if upsampler.gains is not None:
            kernel = kernel * get(upsampler.gains)[i] / np.sqrt((kernel**2).sum())
        frames = leaky(transposed(frames, kernel, stride) + get(upsampler.biases)[i])
    return frames


def diffwave(network, x, t, frames=None, label=None):
    """DiffWave's figure 2 for one item [frames, features], in float64 numpy loops over layers, time and taps."""

    def weights(p, layer: Any = ...):
        kernel = np.asarray(p.kernel[...], np.float64)[layer]
        gain = getattr(p, "gain", None)
        if gain is not None:
            kernel = kernel / np.sqrt((kernel**2).sum(0)) * np.asarray(gain[...], np.float64)[layer]
        return kernel, np.asarray(p.bias[...], np.float64)[layer]

    def affine(p, x, layer: Any = ...):
        kernel, bias = weights(p, layer)
        return x @ kernel + bias

    silu = lambda x: x * sigmoid(x)  # noqa: E731
    exponents = (np.arange(64, dtype=np.float32) * np.float32(4) / np.float32(63)).astype(np.float64)
    table = (10.0**exponents).astype(np.float32).astype(np.float64)  # rounded to float32 twice, as DiffWave's
    angle = (np.float64(t) * network.diffusion_steps - 1) * table
    e = np.concatenate([np.sin(angle), np.cos(angle)])
    e = silu(affine(network.step_2, silu(affine(network.step_1, e))))
    if network.label is not None:
        e = e + np.asarray(network.label.table[...])[network.label.num_classes if label is None else label]
    h, total = np.maximum(affine(network.input, x), 0), 0
    channels = h.shape[1]
    for i, dilation in enumerate(network.dilations):
        y = h + affine(network.layers.step, e, i)
        kernel, bias = weights(network.layers.dilated, i)
        z = np.tile(bias, (len(h), 1))
        for n in range(len(h)):
            for tap in range(3):
                m = n + (tap - 1) * dilation
                if 0 <= m < len(h):
                    z[n] += y[m] @ kernel[tap * channels : (tap + 1) * channels]
        if frames is not None:
            own = network.layers.upsample
            c = upsampled(own, frames, i) if own is not None else frames
            c = upsampled(network.upsample, frames) if network.upsample is not None else c
            z = z + affine(network.layers.condition, c, i)
        o = affine(network.layers.output, sigmoid(z[:, :channels]) * np.tanh(z[:, channels:]), i)
        h, total = (h + o[:, :channels]) / np.sqrt(2), total + o[:, channels:]
    skip = np.maximum(affine(network.skip, total / np.sqrt(len(network.dilations))), 0)
    return affine(network.output, skip)


@pytest.mark.slow
@pytest.mark.parametrize("condition_hop", [0, 1, 16])
@pytest.mark.parametrize("authors_form", [False, True])
def test_wavenet_equals_diffwaves_equations(condition_hop, authors_form):
    condition = dict(condition_features=3, condition_hop=condition_hop) if condition_hop else {}
    options = dict(dilation_cycle=3, authors_form=authors_form, num_classes=2, diffusion_steps=64)
    network = small_wavenet(**options, **condition)
    x, t, label = normal(1, 2, 32, 2), jnp.array([2 / 64, 5 / 64]), jnp.array([1, 0])  # steps 1 and 4, without rounding
    frames = normal(2, 2, 32 // condition_hop, 3) if condition_hop else None
    ours, unknown = (call(network, x, t, Condition(y, frames, lengths=jnp.array([32, 16]))) for y in (label, None))
    for i, count in enumerate((32, 16)):
        item = None if frames is None else np.asarray(frames[i], np.float64)[: count // condition_hop]
        given = (network, np.asarray(x[i], np.float64)[:count], t[i], item)
        assert max_relative(ours[i, :count], diffwave(*given, int(label[i]))) <= 1e-5
        assert max_relative(unknown[i, :count], diffwave(*given)) <= 1e-5
        assert max_relative(unknown[i], ours[i]) > 1e-3


def test_wavenet_starts_at_zero():
    make = lambda: WaveNet(2, channels=4, layers=2, dilation_cycle=2, embedding=8, rngs=nnx.Rngs(RBG))  # noqa: E731
    network, x, t = as_initialised(make), normal(1, 1, 9, 2), jnp.array([0.3])
    assert not call(network, x, t).any()
    assert call(randomised(make), x, t).any()
    assert not (network.layers.dilated.kernel[...][0] == network.layers.dilated.kernel[...][1]).any()
    scale = np.std(network.layers.dilated.kernel[...]) / np.sqrt(2 / 12)  # He: variance 2 over 3 taps of 4 channels
    assert scale == pytest.approx(1, abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "cycle", "expected"), [(3, 3, 15), (4, 2, 13), (1, 1, 3)])
def test_receptive_field_is_exact(layers, cycle, expected):
    network = small_wavenet(layers=layers, dilation_cycle=cycle)
    x, t, middle = normal(1, 16, 41, 2), jnp.full(16, 0.5), 20
    gradient = jax.jit(jax.grad(lambda x: (network(x, t)[:, middle] ** 2).sum()))(x)
    moved = call(network, x.at[:, middle].add(3.0), t) - call(network, x, t)
    assert network.receptive_field == expected
    for change in (gradient, moved):
        touched = np.flatnonzero(np.abs(change).max((0, 2)))
        assert (touched[0], touched[-1]) == (middle - expected // 2, middle + expected // 2)


@pytest.mark.parametrize("run", [lambda f: f, jax.jit, lambda f: lambda key: jax.vmap(f)(jax.random.split(key, 3))])
def test_streams_give_the_keys_of_nnx(run):
    def drawn(rngs):
        keys = [rngs.params(), rngs.params(), rngs.label(), rngs.fork().dropout(), rngs.dropout()]
        return [jax.random.key_data(key) for key in keys]

    found, expected = (run(lambda key, of=of: drawn(of(key)))(jax.random.key(7)) for of in (streams, nnx.Rngs))
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


def test_scan_equals_unrolled_layers():
    network = small_wavenet(layers=3)
    graphdef, params = nnx.split(network.layers)
    h, e, reach = normal(1, 2, 20, 6), normal(2, 2, 8), 2
    carried, skips = jax.jit(
        lambda params, h: scan_layers(
            nnx.merge(graphdef, params),
            lambda layer, h, d: layer(h, e, None, d, reach),
            h,
            jnp.asarray(network.dilations),
        )
    )(params, h)
    for i, dilation in enumerate(network.dilations):
        layer = nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], params))
        h, skip = jax.jit(layer.__call__, static_argnums=4)(h, e, None, jnp.asarray(dilation), reach)
        assert max_relative(skips[i], skip) <= 1e-5
    assert max_relative(carried, h) <= 1e-5


@pytest.mark.parametrize("hop", [16, 64, 256, 512])
@pytest.mark.parametrize("weight_norm", [False, True])
def test_upsampler_is_two_transposed_convolutions(hop, weight_norm):
    upsampler = randomised(lambda: Upsampler(hop, weight_norm=weight_norm, rngs=nnx.Rngs(0)))
    frames = normal(1, 2, 5, 4)
    ours = call(upsampler, frames)
    assert np.prod(upsampler.strides) == hop
    for i in range(2):
        assert max_relative(ours[i], upsampled(upsampler, np.asarray(frames[i], np.float64))) <= 1e-5


def test_unknown_hop_is_refused():
    with pytest.raises(ValueError, match=r"condition_hop 100 has no upsampler; use 1 .* or one of .*256"):
        WaveNet(1, condition_features=4, condition_hop=100, rngs=nnx.Rngs(0))


# --- transformer ---


@pytest.mark.slow
def test_blocks_begin_as_the_identity():
    make = lambda: Transformer(2, width=16, depth=2, heads=2, rngs=nnx.Rngs(RBG))  # noqa: E731
    h, c, network = normal(1, 2, 9, 16), normal(2, 2, 16), as_initialised(make)

    @jax.jit
    def through(params):
        blocks = nnx.merge(nnx.split(network.blocks)[0], params)
        return scan_layers(blocks, lambda b, h, _: (b(h, b.modulation(c)), None), h)[0]

    assert (through(nnx.split(network.blocks)[1]) == h).all()
    assert max_relative(through(nnx.split(randomised(make).blocks)[1]), h) > 0.1
    x, t = normal(3, 2, 9, 2), jnp.array([0.1, 0.7])
    assert not call(network, x, t).any()
    assert call(network, x, t).shape == x.shape


def dit(network, x, t, label, frames, tokens=None):
    """DiT's figure 3 (adaLN-Zero) with rotary attention for one item, in float64 numpy loops over blocks and heads;
    with its options: a window, a gated dilated convolution before, attention to tokens after."""
    get = lambda p, layer: np.asarray(p[...], np.float64)[layer]  # noqa: E731
    affine = lambda p, x, layer=...: x @ get(p.kernel, layer) + get(p.bias, layer)  # noqa: E731
    normed = lambda h: (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)  # noqa: E731
    silu = lambda x: x * sigmoid(x)  # noqa: E731
    gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # noqa: E731

    def turned(x):
        half = x.shape[1] // 2
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(
            1j * np.outer(np.arange(len(x)), 1e4 ** (-np.arange(half) / half))
        )
        return np.concatenate([z.real, z.imag], axis=1)

    angle = 1000 * np.float64(t) * 1e4 ** (-np.arange(128) / 128)
    c = affine(network.time_2, silu(affine(network.time_1, np.concatenate([np.sin(angle), np.cos(angle)]))))
    c = silu(c + get(network.label.table, label))
    h = affine(network.input, x) + affine(network.condition, frames)
    width, heads, blocks = h.shape[1], network.blocks.heads, network.blocks
    lag = np.abs(np.arange(len(h)) - np.arange(len(h))[:, None])
    near = lag <= (len(h) if network.window is None else network.window)

    def attended(q, k, v, seen):
        out = np.zeros_like(q)
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            turn = turned if k is not tokens_k else (lambda x: x)
            scores = np.exp(turn(q[:, part]) @ turn(k[:, part]).T / np.sqrt(width // heads)) * seen
            out[:, part] = scores / scores.sum(1, keepdims=True) @ v[:, part]
        return out

    def convolved(x, i):
        kernel, z = get(blocks.gated.kernel, i), np.tile(get(blocks.gated.bias, i), (len(x), 1))
        for n in range(len(x)):
            for tap in range(3):
                m = n + (tap - 1) * network.dilations[i]
                if 0 <= m < len(x):
                    z[n] += x[m] @ kernel[tap * width : (tap + 1) * width]
        return affine(blocks.convolved, sigmoid(z[:, :width]) * np.tanh(z[:, width:]), i)

    tokens_k = None
    for i in range(network.depth):
        modulations = iter(np.split(affine(blocks.modulation, c, i), 3 * blocks.branches))

        def step(h, branch, modulations=modulations):
            shift, scale, gate = (next(modulations) for _ in range(3))
            return h + gate * branch(normed(h) * (1 + scale) + shift)

        def attend(x, i=i):
            q, k, v = np.split(affine(blocks.qkv, x, i), 3, axis=1)
            return affine(blocks.attention_output, attended(q, k, v, near), i)

        if blocks.gated is not None:
            h = step(h, lambda x, i=i: convolved(x, i))
        h = step(h, attend)
        if tokens is not None:
            tokens_k, tokens_v = np.split(affine(blocks.key_value, tokens, i), 2, axis=1)
            q = lambda x, i=i: affine(blocks.query, x, i)  # noqa: E731
            seen = np.ones((len(h), len(tokens)))
            given = lambda x, k=tokens_k, v=tokens_v, q=q, seen=seen: attended(q(x), k, v, seen)  # noqa: E731
            h = step(h, lambda x, i=i, given=given: affine(blocks.token_output, given(x), i))
        h = step(h, lambda x, i=i: affine(blocks.mlp_output, gelu(affine(blocks.mlp_input, x, i)), i))
    shift, scale = np.split(affine(network.modulation, c), 2)
    return affine(network.output, normed(h) * (1 + scale) + shift)


def test_transformer_equals_dits_equations():
    network = small_transformer(condition_features=3, num_classes=4)
    x, t, frames, label = normal(1, 2, 10, 2), jnp.array([0.125, 0.75]), normal(2, 2, 10, 3), jnp.array([3, 0])
    ours, unknown = call(network, x, t, Condition(label, frames)), call(network, x, t, Condition(None, frames))
    for i in range(2):
        item = [np.asarray(a[i], np.float64) for a in (x, t, frames)]
        assert max_relative(ours[i], dit(network, item[0], item[1], int(label[i]), item[2])) <= 1e-4
        assert max_relative(unknown[i], dit(network, item[0], item[1], 4, item[2])) <= 1e-4


def test_hybrid_equals_its_equations_with_tokens_and_padding():
    network = small_hybrid(depth=3, condition_features=3, num_classes=4, token_features=5)
    x, t, frames, label = normal(1, 2, 10, 2), jnp.array([0.125, 0.75]), normal(2, 2, 10, 3), jnp.array([3, 0])
    tokens, mask, lengths = normal(3, 2, 4, 5), np.arange(4) < np.array([[4], [2]]), jnp.array([10, 7])
    cond = Condition(label, frames, tokens=tokens, token_mask=jnp.asarray(mask), lengths=lengths)
    ours = call(network, x, t, cond)
    for i, (frame_count, token_count) in enumerate([(10, 4), (7, 2)]):
        item = [np.asarray(a[i], np.float64)[:frame_count] for a in (x, frames)]
        expected = dit(network, item[0], t[i], int(label[i]), item[1], np.asarray(tokens[i], np.float64)[:token_count])
        assert max_relative(ours[i, :frame_count], expected) <= 1e-4
    moved = call(network, x.at[1, 7:].add(9.0), t, cond._replace(tokens=tokens.at[1, 2:].add(9.0)))
    assert (moved[1, :7] == ours[1, :7]).all()
    assert max_relative(call(network, x, t, cond._replace(tokens=-tokens)), ours) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("window", "cycle"), [(1, 0), (2, 2)])
def test_reach_of_windows_and_convolutions_is_exact(window, cycle):
    network = small_transformer(depth=3, window=window, dilation_cycle=cycle)
    x, t, middle = normal(1, 4, 41, 2), jnp.full(4, 0.5), 20
    out = lambda x: (network(x, t)[:, middle] ** 2).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(out), compiler_options=FAST_COMPILE)(x)
    touched, reach = np.flatnonzero(np.abs(gradient).max((0, 2))), network.receptive_field
    assert reach is not None
    assert reach == {0: 7, 2: 21}[cycle]  # 1 + 2 (3 window + 1 + 2 + 1)
    assert (touched[0], touched[-1]) == (middle - reach // 2, middle + reach // 2)


def test_rope_sees_relative_positions_only():
    """One query and one key at all frames: the rotated product depends on the difference of the frames alone."""
    q, k = (jnp.broadcast_to(normal(s, 8), (1, 12, 1, 8)) for s in (1, 2))
    products = np.einsum("mc,nc->mn", rope(q)[0, :, 0], rope(k)[0, :, 0])
    for lag in range(-11, 12):
        diagonal = np.diagonal(products, lag)
        assert np.abs(diagonal - diagonal[0]).max() <= 2e-5
    assert np.ptp(products[0]) > 0.1
    assert max_relative(jnp.linalg.norm(rope(q), axis=-1), jnp.linalg.norm(q, axis=-1)) <= 1e-6


def test_rope_in_complex_numbers():
    x = normal(1, 2, 7, 3, 8)
    turn = np.exp(1j * np.arange(7)[:, None] * 10000.0 ** (-2 * np.arange(4) / 8))[:, None]
    z = (np.asarray(x[..., :4]) + 1j * np.asarray(x[..., 4:])) * turn
    assert max_relative(rope(x), np.concatenate([z.real, z.imag], axis=-1)) <= 1e-6


def test_transformer_sees_order_and_the_whole_input():
    network, t = small_transformer(), jnp.array([0.4])
    x = normal(1, 1, 12, 2)
    out = call(network, x, t)
    moved = np.abs(call(network, x.at[0, 11].add(1.0), t) - out)[0].max(-1)
    assert (moved > 0).all()
    assert network.receptive_field is None
    assert max_relative(call(network, x[:, ::-1], t)[:, ::-1], out) > 1e-3


def test_odd_head_width_is_refused():
    with pytest.raises(ValueError, match=r"width 30 must be a multiple of 2 \* heads = 8"):
        Transformer(2, width=30, heads=4, rngs=nnx.Rngs(0))


def test_transformer_dropout_only_in_training():
    network, x, t = small_transformer(dropout=0.5), normal(1, 2, 9, 2), jnp.array([0.1, 0.7])
    train = lambda seed: call(network, x, t, keys={"dropout": seed})  # noqa: E731
    still = call(network, x, t)
    assert (still == call(small_transformer(), x, t)).all()
    assert (train(0) == train(0)).all()
    assert max_relative(train(0), still) > 1e-2
    assert max_relative(train(0), train(1)) > 1e-2


# --- ConvNeXt ---


def convnext(network, x, t, label, frames):
    """Blocks of depthwise convolution and modulated MLP for one item, in float64 numpy loops over frames and taps."""
    get = lambda p, layer=...: np.asarray(p[...], np.float64)[layer]  # noqa: E731
    affine = lambda p, x, layer=...: x @ get(p.kernel, layer) + get(p.bias, layer)  # noqa: E731
    normed = lambda h: (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)  # noqa: E731
    silu = lambda x: x * sigmoid(x)  # noqa: E731
    gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # noqa: E731
    angle = 1000 * np.float64(t) * 1e4 ** (-np.arange(128) / 128)
    parts, blocks = network.conditioner, network.blocks
    c = affine(parts.time_2, silu(affine(parts.time_1, np.concatenate([np.sin(angle), np.cos(angle)]))))
    c = silu(c + get(parts.label.table, label))
    h = affine(network.input, x) + affine(network.condition, frames)
    for i, dilation in enumerate(network.dilations):
        kernel, mixed = get(blocks.depthwise, i), np.zeros_like(h)
        for n in range(len(h)):
            for k in range(len(kernel)):
                m = n + (k - len(kernel) // 2) * dilation
                if 0 <= m < len(h):
                    mixed[n] += h[m] * kernel[k]
        shift, scale, gate = np.split(affine(blocks.modulation, c, i), 3)
        mixed = affine(blocks.mlp_input, normed(mixed) * (1 + scale) + shift, i)
        h = h + (get(blocks.scale, i) + gate) * affine(blocks.mlp_output, gelu(mixed), i)
    shift, scale = np.split(affine(network.modulation, c), 2)
    return affine(network.output, normed(h) * (1 + scale) + shift)


@pytest.mark.parametrize("cycle", [1, 2])
def test_convnext_equals_its_equations_with_and_without_padding(cycle):
    network = small_convnext(condition_features=3, num_classes=4, dilation_cycle=cycle)
    x, t, frames, label = normal(1, 2, 10, 2), jnp.array([0.125, 0.75]), normal(2, 2, 10, 3), jnp.array([3, 0])
    ours = call(network, x, t, Condition(label, frames, lengths=jnp.array([10, 7])))
    for i, count in enumerate((10, 7)):
        item = [np.asarray(a[i], np.float64)[:count] for a in (x, frames)]
        assert max_relative(ours[i, :count], convnext(network, item[0], t[i], int(label[i]), item[1])) <= 1e-4


@pytest.mark.parametrize(("cycle", "expected"), [(1, 9), (2, 13)])
def test_reach_of_convnext_is_exact(cycle, expected):
    network = small_convnext(dilation_cycle=cycle)
    x, t, middle = normal(1, 4, 41, 2), jnp.full(4, 0.5), 20
    moved = call(network, x.at[:, middle].add(3.0), t) - call(network, x, t)
    touched = np.flatnonzero(np.abs(moved).max((0, 2)))
    assert network.receptive_field == expected  # 1 + 4 (1 + 1) and 1 + 4 (1 + 2)
    assert (touched[0], touched[-1]) == (middle - expected // 2, middle + expected // 2)


@pytest.mark.slow
def test_a_convnext_without_time_is_one_at_a_fixed_time():
    x, t = normal(0, 2, 9, 2), jnp.array([0.3, 0.3])
    timed, timeless = small_convnext(), small_convnext(timed=False)
    params = nnx.to_pure_dict(nnx.state(timed))
    graphdef, state = nnx.split(timed)
    c = np.asarray(jax.jit(lambda s: nnx.merge(graphdef, s).conditioner(t, None, None, None)[0])(state))
    for modulation in (params["modulation"], params["blocks"]["modulation"]):
        kernel = modulation.pop("kernel")
        modulation["bias"] = jnp.asarray(modulation["bias"] + np.einsum("c,...cm->...m", c, kernel))
    nnx.update(timeless, {name: value for name, value in params.items() if name != "conditioner"})
    np.testing.assert_allclose(call(timeless, x, t), call(timed, x, t), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(call(timeless, x, t), call(timeless, x, 1 - t))
    with pytest.raises(ValueError, match="timed no: the network would see no class"):
        small_convnext(timed=False, num_classes=3)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="kernel: expected an odd number of taps, got 4; use 5"):
        ConvNeXt(2, kernel=4, rngs=nnx.Rngs(0))


# --- all ---


@pytest.mark.slow
@each_network
def test_batch_items_do_not_meet(make):
    network = make(condition_features=3, num_classes=4)
    x, t, frames = normal(1, 3, 10, 2), jnp.array([0.1, 0.5, 0.9]), normal(2, 3, 10, 3)
    label = jnp.array([0, 3, 1])
    cond = Condition(label, frames)
    out = call(network, x, t, cond)
    other = call(network, x.at[1].add(5.0), t.at[1].set(0.2), Condition(jnp.array([0, 2, 1]), frames.at[1].add(1.0)))
    assert max_relative(other[::2], out[::2]) <= 1e-6
    assert max_relative(other[1], out[1]) > 1e-2
    alone = call(network, x[1:2], t[1:2], Condition(label[1:2], frames[1:2]))
    assert max_relative(alone, out[1:2]) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options"),
    [(small_convnext, dict(dilation_cycle=2)), (small_hybrid, dict(token_features=3, window=None))],
    ids=["convnext", "hybrid"],
)
def test_a_few_items_at_a_time_are_as_all_at_once(make, options):
    batch, frames = 6, 150  # two items of 150 frames at a time
    x, t = normal(1, batch, frames, 2), jnp.linspace(0.1, 0.9, batch)
    lengths = jnp.array([150, 90, 150, 3, 150, 149])
    tokens = dict(tokens=normal(2, batch, 4, 3), token_mask=jnp.arange(4) < jnp.arange(batch)[:, None])
    cond = Condition(lengths=lengths, **tokens)
    graphdef, params = nnx.split(make(**options))
    run = lambda params, x: nnx.merge(graphdef, params)(x, t, cond)  # noqa: E731
    by_turns = jax.jit(run)(params, x)
    at_once, slope = jax.jit(lambda p, x: jax.jvp(lambda x: run(p, x), (x,), (x,)))(params, x)  # differentiated
    pulled = jax.jit(lambda p, x: jax.vjp(lambda x: run(p, x), x)[1](jnp.cos(x))[0])(params, x)
    assert str(jax.make_jaxpr(run)(params, x)).count("scan[") == 2  # layers, and turns within them
    assert max_relative(by_turns, at_once) < 1e-5
    assert max_relative(jnp.vdot(slope, jnp.cos(x)), jnp.vdot(x, pulled)) < 1e-4


@pytest.mark.slow
@each_network
def test_time_label_and_condition_matter(make):
    network = make(condition_features=3, num_classes=4)
    x, t, frames = normal(1, 1, 10, 2), jnp.array([0.1]), normal(2, 1, 10, 3)
    cond = Condition(jnp.array([0]), frames)
    out = call(network, x, t, cond)
    assert max_relative(call(network, x, t + 0.1, cond), out) > 1e-3
    assert max_relative(call(network, x, t, cond._replace(label=jnp.array([1]))), out) > 1e-3
    assert max_relative(call(network, x, t, cond._replace(frames=-frames)), out) > 1e-3
    assert max_relative(call(network, x, t, cond.without_label()), out) > 1e-3


@pytest.mark.slow
@each_network
def test_gradients_are_finite_float32_with_remat_and_in_bfloat16(make):
    """Recomputed in bfloat16 the output is within 3 % and the gradient within 5 % of float32's."""
    x, t, cond = normal(1, 4, 10, 2), jnp.linspace(0, 1, 4), Condition(jnp.array([0, 3, 1, 2]), normal(2, 4, 10, 3))

    def output_and_gradient(**options):
        graphdef, params = nnx.split(make(condition_features=3, num_classes=4, **options))

        def loss(params):
            out = nnx.merge(graphdef, params)(x, t, cond)
            return (out**2).mean(), out

        (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST_COMPILE)(params)
        return out, gradient

    exact, kept = output_and_gradient()
    out, again = output_and_gradient(remat=True, compute_dtype="bfloat16")
    assert out.dtype == jnp.float32
    assert 1e-5 < max_relative(out, exact) <= 3e-2
    for (path, leaf), other in zip(jax.tree.leaves_with_path(kept), jax.tree.leaves(again), strict=True):
        assert leaf.dtype == other.dtype == jnp.float32, path
        assert np.isfinite(leaf).all() and np.isfinite(other).all(), path
        assert np.abs(leaf).max() > 0, path
    assert optax.tree.norm(optax.tree.sub(again, kept)) <= 5e-2 * optax.tree.norm(kept)


def test_unknown_compute_dtype_is_refused():
    with pytest.raises(ValueError, match="compute_dtype: expected one of float32, bfloat16, got 'float16'"):
        linear_options("float16")


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_label_dropout_rate(rate):
    table = randomised(lambda: LabelEmbedding(3, 4, rate, rngs=nnx.Rngs(0)))
    known, rows = np.arange(20_000) % 3, np.asarray(table.table[...])
    label = jnp.asarray(known)
    dropped = lambda out: (out == rows[3]).all(-1)  # noqa: E731
    trained = np.asarray(table(label, len(label), rngs=nnx.Rngs(label=1)))
    assert dropped(trained).mean() == pytest.approx(rate, abs=0.015)  # five standard deviations
    assert (trained[~dropped(trained)] == rows[known][~dropped(trained)]).all()
    assert (np.asarray(table(label, len(label))) == rows[known]).all()
    assert dropped(np.asarray(table(None, 5))).all()


@pytest.mark.slow
@each_network
def test_label_dropout_reaches_the_network(make):
    network = make(num_classes=2, label_dropout=0.5)
    x, t, cond = jnp.tile(normal(1, 1, 6, 2), (16, 1, 1)), jnp.full(16, 0.3), Condition(jnp.ones(16, jnp.int32))
    known, unknown = call(network, x, t, cond), call(network, x, t)
    trained = call(network, x, t, cond, keys={"label": 0})
    near = lambda a: np.abs(trained - a).max((1, 2)) <= 1e-5 * np.abs(a).max()  # noqa: E731
    assert (near(known) ^ near(unknown)).all()
    assert 0 < near(unknown).sum() < 16


@pytest.mark.slow
def test_absolute_positions_tell_the_first_frame_from_the_last():
    """Equal frames stay equal under rotary positions alone, whatever the parameters."""
    x, t = jnp.ones((1, 9, 2)), jnp.full(1, 0.4)
    relative, absolute = (np.asarray(call(small_transformer(absolute_positions=a), x, t)[0]) for a in (False, True))
    assert np.abs(relative - relative[0]).max() <= 1e-4 * np.abs(relative).max()
    assert np.abs(absolute[0] - absolute[-1]).max() > 0.01 * np.abs(absolute).max()
