"""Networks learn to denoise the built-in orchestra: on unheard sounds they beat the best predictor that is a line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdiff import features
from jaxdiff.data.orchestra import INSTRUMENTS, synthesize
from jaxdiff.networks import LSTM, Condition, Transformer, UNet, WaveNet

MAKE = {
    "wavenet": lambda rngs: WaveNet(16, channels=32, layers=4, embedding=32, num_classes=8, rngs=rngs),
    "transformer": lambda rngs: Transformer(16, width=32, depth=2, num_classes=8, rngs=rngs),
    "hybrid": lambda rngs: Transformer(16, width=32, depth=2, window=4, dilation_cycle=2, num_classes=8, rngs=rngs),
    "unet": lambda rngs: UNet(16, width=24, levels=2, blocks=1, heads=2, num_classes=8, rngs=rngs),
    "lstm": lambda rngs: LSTM(16, width=32, depth=1, bidirectional=True, num_classes=8, rngs=rngs),
}


@functools.cache
def corpus():
    """Log-mel frames of 6 + 2 sounds per class, each bin with zero mean and unit variance, and the classes."""
    encode = features.log_mel(16_000, 1024, 512, 16, 0.0, None).encode
    split = lambda s, n: np.stack([synthesize(name, s, i) for i in range(n) for name in INSTRUMENTS])  # noqa: E731
    train, test = (np.asarray(encode(jnp.asarray(split(s, n), jnp.float32))) for s, n in (("train", 6), ("test", 2)))
    mean, scale = train.mean((0, 1)), train.std((0, 1))
    return *((a - mean) / scale for a in (train, test)), np.tile(np.arange(8), 6), np.tile(np.arange(8), 2)


def noisy(x0, key):
    return 0.5 * x0 + 0.5 * jax.random.normal(key, x0.shape)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_networks_beat_the_best_line(make):
    train, test, train_label, test_label = map(jnp.asarray, corpus())
    optimizer = optax.adam(3e-3)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def error(params, x0, label, key):
        estimate = nnx.merge(graphdef, params)(noisy(x0, key), jnp.full(len(x0), 0.5), Condition(label))
        return ((estimate - x0) ** 2).mean()

    @jax.jit
    def learn(key):
        params = nnx.split(make(nnx.Rngs(key)))[1]

        def step(state, key):
            gradient = jax.grad(error)(state[0], train, train_label, key)
            updates, opt_state = optimizer.update(gradient, state[1], state[0])
            return (optax.apply_updates(state[0], updates), opt_state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 80))
        return error(params, test, test_label, jax.random.key(1))

    x_t = noisy(test, jax.random.key(1))
    slope = ((x_t - x_t.mean()) * (test - test.mean())).mean() / x_t.var()  # least squares on the test set itself
    trivial = ((slope * (x_t - x_t.mean()) + test.mean() - test) ** 2).mean()
    assert learn(jax.random.key(0, impl="rbg")) < 0.7 * trivial
