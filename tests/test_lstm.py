"""The LSTM against its equations in NumPy float64 loops; what a frame sees; what is padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import max_relative

from jaxdiff.networks import LSTM, Condition
from jaxdiff.networks.lstm import Layer


def drawn(make, seed=7, scale=0.5):
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(draw, shapes))


def small(**options):
    return drawn(lambda: LSTM(2, width=3, depth=2, **options, rngs=nnx.Rngs(0)))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def f64(param):
    return np.asarray(param[...], np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def one_way(W, U, b, x):
    """The equations of the module's docstring for one item, frame by frame and gate by gate."""
    width = len(U)
    h, c, out = np.zeros(width), np.zeros(width), []
    for x_n in x:
        i, f, g, o = (x_n @ W[:, s] + h @ U[:, s] + b[s] for s in (slice(k * width, (k + 1) * width) for k in range(4)))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.array(out)


def reference(network, x, t, frames):
    affine = lambda p, x: x @ f64(p.kernel) + f64(p.bias)  # noqa: E731
    silu = lambda x: x * sigmoid(x)  # noqa: E731
    angle = 1000 * np.float64(t) * 1e4 ** (-np.arange(128) / 128)
    c = affine(network.conditioner.time_1, np.concatenate([np.sin(angle), np.cos(angle)]))
    h = affine(network.input, x) + silu(affine(network.conditioner.time_2, silu(c))) + affine(network.condition, frames)
    for layer in network.layers:
        W, b, U = f64(layer.input.kernel), f64(layer.input.bias), f64(layer.recurrent)
        size = W.shape[1] // len(U)
        parts = [(W[:, s], U[k], b[s]) for k, s in enumerate(slice(k * size, (k + 1) * size) for k in range(len(U)))]
        ways = [one_way(*parts[0], h)] + [one_way(*part, h[::-1])[::-1] for part in parts[1:]]
        h = np.concatenate(ways, axis=1)
    return affine(network.output, h)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_equals_its_equations_with_and_without_padding(bidirectional):
    network = small(bidirectional=bidirectional, condition_features=2)
    x, t, frames, lengths = normal(1, 2, 9, 2), jnp.array([0.125, 0.75]), normal(2, 2, 9, 2), [9, 6]
    run = jax.jit(lambda x, lengths: network(x, t, Condition(frames=frames, lengths=lengths)))
    padded, whole = run(x, jnp.array(lengths)), run(x, jnp.array([9, 9]))
    assert max_relative(whole, jax.jit(lambda x: network(x, t, Condition(frames=frames)))(x)) <= 1e-6
    for i, length in enumerate(lengths):
        item = [np.asarray(a[i], np.float64) for a in (x, t, frames)]
        assert max_relative(whole[i], reference(network, *item)) <= 1e-5
        short = reference(network, item[0][:length], item[1], item[2][:length])
        assert max_relative(padded[i, :length], short) <= 1e-5
    again = run(x.at[1, 6:].set(50.0), jnp.array(lengths))
    assert (again[1, :6] == padded[1, :6]).all()


def test_one_way_sees_the_past_alone_and_both_ways_everything():
    x, t, k = normal(1, 1, 9, 2), jnp.array([0.4]), 4
    for bidirectional in (False, True):
        network = small(bidirectional=bidirectional)
        run = jax.jit(lambda x, network=network: network(x, t))
        moved = np.abs(run(x.at[:, k].add(1.0)) - run(x))[0].max(-1) > 0
        assert moved[k:].all()
        assert moved[:k].any() == bidirectional and moved[:k].all() == bidirectional


def test_a_cell_begins_by_remembering():
    layer = Layer(8, bidirectional=True, rngs=nnx.Rngs(0))
    assert layer.input.bias is not None
    bias = np.asarray(layer.input.bias[...]).reshape(2, 4, 8)
    assert (bias[:, 1] == 1).all() and not bias[:, [0, 2, 3]].any()
    for U in np.asarray(layer.recurrent[...], np.float64):
        for gate in np.split(U, 4, axis=1):
            assert np.abs(gate @ gate.T - np.eye(8)).max() <= 1e-5
    bound = np.sqrt(6 / (16 + 64))
    kernel = np.abs(np.asarray(layer.input.kernel[...]))
    assert 0.9 * bound < kernel.max() <= bound
