"""The subband network against its description in NumPy float64 loops; what a frame sees; chunks with carried state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import max_relative

from jaxdiff.networks import Condition, Subband, count_params, subband

FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these programs run once: compiling them is the cost
SIZES = dict(channels=5, subbands=3, width=4, depth=2, heads=2)
BINS = 14  # four bands, the last of them half empty


def small(seed=7, scale=0.4, **options) -> Subband:
    """Every parameter N(0, scale^2): none is zero or one, so none is hidden."""
    make = lambda: Subband(2 * BINS, **{**SIZES, **options}, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, shapes))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def _apply(graphdef, params, *inputs):
    return nnx.merge(graphdef, params).carry(*inputs)


def carry(network, *inputs):
    """The output and the state, compiled once per structure and shape."""
    return _apply(*nnx.split(network), *inputs)


def call(network, *inputs):
    return carry(network, *inputs)[0]


TIME = jnp.array([0.25, 0.75])
X, Y = normal(1, 2, 9, 2 * BINS), normal(2, 2, 9, 2 * BINS)  # the same shape in most tests, which is compiled once
BOTH = Condition(estimate=Y)


# --- The equations ---


def f64(param):
    return np.asarray(param[...], np.float64)


def affine(layer, x):
    return x @ f64(layer.kernel) + f64(layer.bias)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def normed(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * f64(scale)


def triangles(bands, subbands):
    """Shares [bands, subbands]; the subbands' centres divide log(1 + 8 f / bands) evenly."""
    shares = np.zeros((bands, subbands))
    for band in range(bands):
        place = (subbands - 1) * np.log(1 + 8 * band / bands) / np.log(1 + 8 * (bands - 1) / bands)
        for k in range(subbands):
            if abs(place - k) < 1:
                shares[band, k] = 1 - abs(place - k)
    return shares / shares.sum(0)


def conditioning(network, t):
    angle = 1000 * np.float64(t) * 1e4 ** (-np.arange(128) / 128)
    c = affine(network.conditioner.time_1, np.concatenate([np.sin(angle), np.cos(angle)]))
    return silu(affine(network.conditioner.time_2, silu(c)))


def mixed(mix, h):
    """h [bands, channels] of one frame."""
    x, K = normed(h, mix.norm), f64(mix.linear.kernel)
    channels, out = h.shape[1], np.tile(f64(mix.linear.bias), (len(h), 1))
    for band in range(len(h)):
        for tap in range(3):
            if 0 <= band + tap - 1 < len(h):
                out[band] += x[band + tap - 1] @ K[tap * channels : (tap + 1) * channels]
    return h + silu(out)


def one_way(x, U, bias, kept=1.0):
    """The states [frames, width] of one subband; `x` holds what the gates see of the input."""
    width, out = len(U), []
    h = np.zeros(width)
    for x_n in x:
        r = sigmoid(x_n[:width] + h @ U[:, :width])
        z = kept * sigmoid(x_n[width : 2 * width] + h @ U[:, width : 2 * width])
        n = np.tanh(x_n[2 * width :] + r * (h @ U[:, 2 * width :] + bias))
        h = (1 - z) * n + z * h
        out.append(h)
    return np.array(out)


def recurrent(block, g, c):
    """g [frames, subbands, width] plus what the GRUs make of it."""
    width = g.shape[-1]
    shift, scale = affine(block.modulation, c)[:width], affine(block.modulation, c)[width:]
    x = affine(block.gru_input, normed(g, block.gru_norm) * (1 + scale) + shift)
    out = []
    for k in range(g.shape[1]):
        ways = []
        for way, (U, bias) in enumerate(zip(f64(block.gru_state), f64(block.gru_bias), strict=True)):
            turn = slice(None, None, -1 if way else 1)
            ways.append(one_way(x[turn, k, 3 * width * way : 3 * width * (way + 1)], U, bias, block.kept)[turn])
        out.append(affine(block.gru_output, np.concatenate(ways, -1)))
    return g + np.stack(out, 1)


def attended(block, g):
    """g [subbands, width] of one frame plus attention among them."""
    width, size = g.shape[1], g.shape[1] // block.heads
    x = affine(block.query_key_value, normed(g, block.attention_norm) + f64(block.place))
    out = np.zeros_like(g)
    for head in range(block.heads):
        q, k, v = (x[:, part * width + head * size :][:, :size] for part in range(3))
        for i in range(len(g)):
            weight = np.exp(k @ q[i] / np.sqrt(size))
            out[i, head * size : (head + 1) * size] = weight @ v / weight.sum()
    return g + affine(block.attention_output, out)


def reference(network, x, t, y=None):
    """One item [frames, features], frame by frame and band by band."""
    split = lambda x: x[:, :BINS] + 1j * x[:, BINS:]  # noqa: E731
    X = split(x)
    Y = X if y is None else split(y)
    planes = np.stack([p for Z in (X, Y) for p in (Z.real, Z.imag, np.sqrt(np.abs(Z) ** 2 + 1e-12))], -1)
    bands, c = -(-BINS // 4), conditioning(network, t)
    shares = triangles(bands, SIZES["subbands"])
    K = f64(network.input.kernel)
    kept = []
    for frame in planes:
        h = np.tile(f64(network.input.bias), (bands, 1))
        for band in range(bands):
            for tap in range(8):
                bin_ = 4 * band - 2 + tap
                if 0 <= bin_ < BINS:
                    h[band] += frame[bin_] @ K[6 * tap : 6 * tap + 6]
        first = silu(h)
        second = mixed(network.encoder[0], first)
        kept.append([first, second, mixed(network.encoder[1], second)])
    g = affine(network.narrow, np.stack([shares.T @ levels[2] for levels in kept]))
    for block in network.blocks:
        g = np.stack([attended(block, frame) for frame in recurrent(block, g, c)])
    back = shares / shares.sum(1, keepdims=True)
    out = []
    for n, (first, second, third) in enumerate(kept):
        h = affine(network.widen, back @ g[n])
        h = mixed(network.decoder[0], affine(network.joins[0], np.concatenate([h, third], -1)))
        h = mixed(network.decoder[1], affine(network.joins[1], np.concatenate([h, second], -1)))
        h = silu(affine(network.joins[2], np.concatenate([h, first], -1)))
        masks = np.zeros((BINS, 4))
        for band, taps in enumerate(affine(network.output, h).reshape(bands, 8, 4)):
            for tap in range(8):
                if 0 <= 4 * band - 2 + tap < BINS:
                    masks[4 * band - 2 + tap] += taps[tap]
        made = (masks[:, 0] + 1j * masks[:, 1]) * X[n] + (masks[:, 2] + 1j * masks[:, 3]) * Y[n]
        out.append(np.concatenate([made.real, made.imag]))
    return np.array(out)


@pytest.mark.parametrize(("bidirectional", "memory"), [(False, None), (True, None), (True, 0.7)])
def test_subband_equals_its_equations(bidirectional, memory):
    network = small(bidirectional=bidirectional, memory=memory)
    assert network.blocks[0].kept == (1.0 if memory is None else pytest.approx(np.exp(-1 / 0.7)))
    both = call(network, X, TIME, BOTH)
    for i in range(2):
        x, y = np.asarray(X[i], np.float64), np.asarray(Y[i], np.float64)
        assert max_relative(both[i], reference(network, x, TIME[i], y)) <= 1e-5
    if not bidirectional:
        alone = call(network, X, TIME)
        assert max_relative(both, alone) > 1e-2
        assert max_relative(alone[0], reference(network, np.asarray(X[0], np.float64), TIME[0])) <= 1e-5


@pytest.mark.parametrize(("bands", "subbands"), [(65, 24), (4, 3), (4, 4), (65, 65), (7, 1), (1, 1)])
def test_triangles_narrow_at_low_bands_lose_nothing(bands, subbands):
    make = lambda: Subband(8 * bands, **{**SIZES, "subbands": subbands}, rngs=nnx.Rngs(0))  # noqa: E731
    shares = nnx.eval_shape(make).triangles
    np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-6)
    assert (shares >= 0).all() and (shares.sum(1) > 0).all()
    if bands > subbands > 1:
        assert ((shares > 0).sum(1) <= 2).all() and shares[0, 0] > 0 and shares[-1, -1] > 0
    if subbands == 24:
        centres = np.arange(bands) @ shares
        assert (np.diff(centres) > 0).all() and centres[-1] - centres[-2] > 3 * (centres[1] - centres[0])


# --- What a frame sees ---


def test_one_way_sees_the_past_alone_and_both_ways_everything():
    k = 4
    for bidirectional in (False, True):
        network = small(bidirectional=bidirectional)
        before, after = call(network, X, TIME, BOTH), call(network, X.at[:, k].add(1.0), TIME, BOTH)
        moved = (before != after)[0].any(-1)
        assert moved[k:].all()
        assert moved[:k].any() == bidirectional and moved[:k].all() == bidirectional


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_with_carried_state_are_the_whole(chunk):
    network = small(bidirectional=False)
    whole, end = carry(network, X, TIME, BOTH)
    state, made = jnp.zeros_like(end), []
    for n in range(0, 9, chunk):
        cond = Condition(estimate=Y[:, n : n + chunk])
        out, state = carry(network, X[:, n : n + chunk], TIME, cond, state)
        made.append(out)
    assert max_relative(jnp.concatenate(made, 1), whole) <= 1e-5
    assert max_relative(state, end) <= 1e-5
    forgetful = call(network, X[:, -chunk:], TIME, Condition(estimate=Y[:, -chunk:]), jnp.zeros_like(end))
    assert max_relative(forgetful, whole[:, -chunk:]) > 1e-3  # so that the state was needed


def test_many_frames_in_blocks_are_the_whole():
    network, frames = small(bidirectional=False), 8 * subband._BLOCK + 5
    x = normal(3, 2, frames, 2 * BINS)
    made, state = carry(network, x, TIME)
    parts = []
    before = jnp.zeros_like(state)
    for n in range(0, frames, 100):  # fewer than are cut into blocks
        out, before = carry(network, x[:, n : n + 100], TIME, Condition(), before)
        parts.append(out)
    assert made.shape == x.shape
    assert max_relative(made, jnp.concatenate(parts, 1)) <= 1e-5


@pytest.mark.slow
def test_with_a_memory_the_past_is_forgotten():
    """A state that only the update gate holds is an e-th of itself after `memory` frames, whatever the gate says."""
    block = subband._Block(1, 4, 1, False, 5.0, nnx.Rngs(0))
    block.gru_state[...] = jnp.zeros_like(block.gru_state[...])
    x = jnp.zeros((1, 20, 1, 12)).at[..., 4:8].set(30.0)  # an update gate that would keep everything
    states, _ = block._gru(x, jnp.ones((1, 1, 4)))
    np.testing.assert_allclose(states[0, :, 0, 0], np.exp(-np.arange(1, 21) / 5), rtol=1e-5)


@pytest.mark.slow
def test_batch_items_do_not_meet():
    network, x = small(), normal(1, 3, 5, 2 * BINS)
    t = jnp.array([0.1, 0.5, 0.9])
    whole, other = call(network, x, t), call(network, x.at[2].set(50.0), t.at[2].set(0.3))
    assert (whole[:2] == other[:2]).all() and (whole[2] != other[2]).any()
    for i in range(3):
        assert max_relative(call(network, x[i : i + 1], t[i : i + 1])[0], whole[i]) <= 1e-5


def test_every_bin_sees_every_bin():
    """Through the attention, in the same frame."""
    network = small(bidirectional=False)
    for bin_ in (0, BINS - 1):
        before, after = call(network, X, TIME, BOTH), call(network, X.at[:, 4, bin_].add(1.0), TIME, BOTH)
        assert (before != after)[:, 4].all()


@pytest.mark.slow
def test_time_and_class_are_seen_and_dropped_in_training():
    network = small(num_classes=2, label_dropout=0.5, second_time=True)
    x = normal(1, 2, 3, 2 * BINS)
    known = call(network, x, TIME, Condition(label=jnp.array([0, 1])))
    for other in (
        call(network, x, TIME[::-1], Condition(label=jnp.array([0, 1]))),
        call(network, x, TIME, Condition(label=jnp.array([1, 0]))),
        call(network, x, TIME),
    ):
        assert (np.abs(other - known).max((1, 2)) > 1e-4).all()
    graphdef, params = nnx.split(network)

    @jax.jit
    def jumped(r, key):
        return nnx.merge(graphdef, params)(x, TIME, Condition(label=jnp.array([0, 1])), r=r, rngs=nnx.Rngs(label=key))

    made = [jumped(TIME, jax.random.key(i)) for i in range(8)]
    assert {bool((a[0] == made[0][0]).all()) for a in made} == {True, False}  # with the class and without
    assert (np.abs(jumped(0 * TIME, jax.random.key(0)) - made[0]).max((1, 2)) > 1e-4).all()


# --- Masks ---


def test_masks_are_complex_factors_of_both_spectra():
    """The output layer's bias alone: each band's own four bins are taps 2 to 5 of its eight, their neighbours' the
    others, which add up where two bands meet."""
    network = small(bidirectional=False)
    network.output.kernel[...] = jnp.zeros_like(network.output.kernel[...])
    network.output.bias[...] = jnp.zeros(32)
    assert not call(network, X, TIME, BOTH).any()
    turned = lambda z: jnp.concatenate([-z[..., BINS:], z[..., :BINS]], -1)  # noqa: E731 - times i
    for plane, expected in enumerate((X, turned(X), Y, turned(Y))):
        network.output.bias[...] = jnp.zeros((8, 4)).at[2:6, plane].set(1.0).reshape(-1)
        assert (call(network, X, TIME, BOTH) == expected).all()
    network.output.bias[...] = jnp.zeros((8, 4)).at[:, 0].set(1.0).reshape(-1)
    bands_of_bin = np.array([1, 1] + [2] * 11 + [2])[:BINS]
    np.testing.assert_allclose(call(network, X, TIME, BOTH), X * np.tile(bands_of_bin, 2), rtol=1e-6)


@pytest.mark.slow
def test_gradients_are_finite_at_silence():
    network = small(depth=1)
    graphdef, params = nnx.split(network)
    silence = jnp.zeros((1, 3, 2 * BINS))

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def gradients(params, x):
        run = lambda params, x: nnx.merge(graphdef, params)(x, TIME[:1])  # noqa: E731
        return jax.grad(lambda params, x: ((run(params, x) - 1) ** 2).sum(), argnums=(0, 1))(params, x)

    for x in (silence, silence.at[0, 1, 0].set(1e-30), normal(1, 1, 3, 2 * BINS)):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients(params, x)))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients(params, normal(1, 1, 3, 2 * BINS))))
    assert np.abs(gradients(params, silence)[1]).max() > 0  # the masks are not deaf at silence
    assert not call(network, silence, TIME[:1]).any()


# --- Sizes ---


@pytest.mark.parametrize(("bidirectional", "most"), [(False, 150_000), (True, 200_000)])
def test_the_default_size_is_small(bidirectional, most):
    network = nnx.eval_shape(lambda: Subband(514, bidirectional=bidirectional, rngs=nnx.Rngs(0)))
    assert 20_000 < count_params(nnx.split(network)[1]) < most
    assert (network.bands, network.subbands) == (65, 24)


@pytest.mark.parametrize(
    ("features", "options", "sentence"),
    [
        (27, {}, "subband sees real and imaginary parts, an even number of features, got 27"),
        (28, {"width": 5}, "width 5 must be a multiple of heads 2; use width 4"),
        (28, {"width": 1}, "width 1 must be a multiple of heads 2; use width 2"),
        (28, {"subbands": 5}, "subbands 5 are more than the 4 bands of 14 bins; use fewer"),
    ],
)
def test_sizes_that_do_not_fit_get_one_sentence(features, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Subband(features, **{**SIZES, **options}, rngs=nnx.Rngs(0))
