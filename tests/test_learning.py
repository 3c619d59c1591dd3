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
from jaxdiff.methods.autoregression import log_likelihood
from jaxdiff.methods.distributions import mu_law_categorical
from jaxdiff.networks import LSTM, CausalWaveNet, Condition, ConvNeXt, Transformer, UNet, WaveNet

pytestmark = pytest.mark.usefixtures("optimised")

FAST_COMPILE = {"xla_backend_optimization_level": 0}
MAKE = {
    "wavenet": lambda rngs: WaveNet(16, channels=24, layers=2, embedding=16, num_classes=8, rngs=rngs),
    "hybrid": lambda rngs: Transformer(16, width=24, depth=1, window=4, dilation_cycle=2, num_classes=8, rngs=rngs),
    "unet": lambda rngs: UNet(16, width=16, levels=2, blocks=1, heads=2, num_classes=8, rngs=rngs),
    "convnext": lambda rngs: ConvNeXt(16, width=24, depth=2, num_classes=8, rngs=rngs),
    "lstm": lambda rngs: LSTM(16, width=24, depth=1, bidirectional=True, num_classes=8, rngs=rngs),
}


@functools.cache
def corpus():
    """Log-mel frames of 6 + 2 sounds per class, each bin with zero mean and unit variance, and the classes."""
    encode = features.LogMel(n_fft=2048, hop_length=1024, n_mels=16).encode
    split = lambda s, n: np.stack([synthesize(name, s, i) for i in range(n) for name in INSTRUMENTS])  # noqa: E731
    train, test = (np.asarray(encode(jnp.asarray(split(s, n), jnp.float32))) for s, n in (("train", 6), ("test", 2)))
    mean, scale = train.mean((0, 1)), train.std((0, 1))
    return *((a - mean) / scale for a in (train, test)), np.tile(np.arange(8), 6), np.tile(np.arange(8), 2)


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_networks_beat_the_best_line(make):
    """The sounds that are learned and those that are tested share a batch, whose items do not meet."""
    train, test, *labels = corpus()
    x0, label = jnp.concatenate([train, test]), jnp.concatenate(labels)
    optimizer = optax.adam(1e-2)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32), shapes)

    def error(params, eps):
        estimate = nnx.merge(graphdef, params)(0.5 * (x0 + eps), jnp.full(len(x0), 0.5), Condition(label))
        per_item = ((estimate - x0) ** 2).mean((1, 2))
        return per_item[: len(train)].mean(), per_item[len(train) :].mean()

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def learn(params, key):
        def step(state, key):
            gradient, tested = jax.grad(error, has_aux=True)(state[0], jax.random.normal(key, x0.shape))
            updates, opt_state = optimizer.update(gradient, state[1], state[0])
            return (optax.apply_updates(state[0], updates), opt_state), tested

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, 80))[1]

    x_t = 0.5 * (test + rng.standard_normal(test.shape))
    slope = ((x_t - x_t.mean()) * (test - test.mean())).mean() / x_t.var()  # least squares on the test set itself
    line = ((slope * (x_t - x_t.mean()) + test.mean() - test) ** 2).mean()
    errors = learn(params, jax.random.key(0, impl="rbg"))
    assert errors[-8:].mean() < 0.7 * line < errors[0]


@pytest.mark.slow
def test_causal_wavenet_beats_the_frequencies_of_the_samples():
    """Bits a sample of the middle of unheard sounds, against the entropy of those very sounds' 64 mu-law classes."""
    output = mu_law_categorical(64)
    cut = lambda s, n: np.stack([synthesize(i, s, n)[4000:4256] for i in INSTRUMENTS])  # noqa: E731
    train, test = jnp.asarray(np.concatenate([cut("train", n) for n in range(4)])), jnp.asarray(cut("test", 0))
    make = lambda: CausalWaveNet(64, input_classes=64, channels=16, layers=6, num_classes=8, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef = nnx.split(nnx.eval_shape(make))[0]
    optimizer = optax.adam(1e-2)

    def bits(params, wave):
        cond = Condition(jnp.arange(len(wave)) % 8)
        log_prob = log_likelihood(nnx.merge(graphdef, params), output, wave, cond)
        return -log_prob.mean() / wave.shape[1] / np.log(2)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def learn():
        def step(state, _):
            updates, opt_state = optimizer.update(jax.grad(bits)(state[0], train), state[1], state[0])
            return (optax.apply_updates(state[0], updates), opt_state), None

        params = nnx.to_pure_dict(nnx.split(make())[1])
        (trained, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=60)
        return bits(params, test), bits(trained, test)

    share = np.bincount(np.asarray(output.encode(test)).ravel(), minlength=64) / test.size
    frequencies = -(share[share > 0] * np.log2(share[share > 0])).sum()
    first, trained = learn()
    assert first == pytest.approx(6, abs=1e-3)  # every class equally likely
    assert trained < 0.8 * frequencies
