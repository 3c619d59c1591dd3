"""Autoregression: cached equals naive, likelihood is the sum of conditionals, distributions against closed forms."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from oracles import max_relative

from jaxdiff.methods import autoregression as ar
from jaxdiff.methods import distributions
from jaxdiff.networks import CausalWaveNet, Condition

OUTPUTS = {
    "mu_law": distributions.mu_law_categorical(16),
    "logistics": distributions.mixture_of_logistics(3),
    "gaussian": distributions.gaussian(),
}
SAMPLES = 24
DTYPES = ("float32", "bfloat16")


def normal(seed, *shape, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


@functools.cache
def parts(name, condition=False, dtype="float32"):
    """A small network with no weight zero, its output, and a condition of frames and labels."""
    output = OUTPUTS[name]
    given: dict[str, Any] = dict(condition_features=3, condition_hop=5, num_classes=2) if condition else {}
    sizes: dict[str, Any] = dict(channels=4, layers=4, dilation_cycle=3, compute_dtype=dtype)
    make = lambda: CausalWaveNet(output.size, input_classes=output.levels, rngs=nnx.Rngs(0), **sizes, **given)  # noqa: E731
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(0.4 * rng.standard_normal(a.shape), a.dtype), shapes)
    cond = Condition(jnp.array([0, 1]), normal(2, 2, 5, 3)) if condition else Condition()
    return graphdef, params, output, cond


FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these programs run once: compiling them is the cost


@functools.partial(jax.jit, static_argnums=(0,), compiler_options=FAST_COMPILE)
def outputs_of(graphdef, params, x, cond):
    return nnx.merge(graphdef, params)(x, cond)


def naive(graphdef, params, output, keys, cond):
    """The whole network again for every sample."""
    network, u = nnx.merge(graphdef, params), ar.uniforms(keys, SAMPLES)
    x = jnp.full((len(keys), SAMPLES), network.silence, jnp.int32 if output.levels else jnp.float32)
    sample = jax.jit(lambda params, u: output.sample(params, u, 0.8), compiler_options=FAST_COMPILE)
    for n in range(SAMPLES):
        x = x.at[:, n].set(sample(outputs_of(graphdef, params, x, cond)[:, n], u[n]))
    return output.decode(x)


@pytest.mark.slow
@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("name", OUTPUTS)
def test_cached_generation_equals_the_naive_way_and_does_not_depend_on_the_batch(name, condition):
    graphdef, params, output, cond = parts(name, condition)
    keys = jax.random.split(jax.random.key(5), 2)
    run = jax.jit(
        lambda params, keys, cond: ar.generate(
            nnx.merge(graphdef, params), output, keys, cond, SAMPLES, temperature=0.8
        ),
        compiler_options=FAST_COMPILE,
    )
    made, expected = run(params, keys, cond), naive(graphdef, params, output, keys, cond)
    assert output.levels == 0 or (output.encode(made) == output.encode(expected)).all()  # class for class
    np.testing.assert_allclose(made, expected, atol=1e-5)
    assert np.abs(np.diff(made)).max() > 0.05
    alone = run(params, keys[1:], jax.tree.map(lambda a: a[1:], cond))
    np.testing.assert_allclose(alone[0], made[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_likelihood_is_the_sum_of_conditionals_that_each_see_the_past_alone(name):
    graphdef, params, output, cond = parts(name)
    wave = jnp.tanh(normal(3, 2, SAMPLES, scale=0.3))
    x, each = output.encode(wave), []
    for n in range(SAMPLES):
        unknown = x.at[:, n:].set(0)  # a conditional may not need them
        each.append(outputs_of(graphdef, params, unknown, cond)[:, n])
    log_prob = jax.jit(output.log_prob, compiler_options=FAST_COMPILE)
    total = sum(log_prob(params, x[:, n]) for n, params in enumerate(each))
    ours = ar.log_likelihood(lambda x, cond: outputs_of(graphdef, params, x, cond), output, wave, cond)
    assert max_relative(ours, total) <= 1e-6


def test_too_few_condition_frames_are_refused():
    graphdef, params, output, cond = parts("gaussian", True)
    network, x = nnx.merge(graphdef, params), jnp.zeros((2, 26))
    for call in (lambda: network(x, cond), lambda: network.incremental(cond, 2, 26)):
        with pytest.raises(ValueError, match="26 samples need 6 condition frames of 5 samples, got 5"):
            call()


@pytest.mark.parametrize(("name", "condition"), [("gaussian", False), ("mu_law", True)])
def test_output_n_sees_exactly_the_receptive_field_before_n(name, condition):
    graphdef, params, output, cond = parts(name, condition)
    reach = nnx.merge(graphdef, params).receptive_field
    assert reach == 1 + 1 + 2 + 4 + 1

    def touched(x, cond):
        moved = np.abs(outputs_of(graphdef, params, x, cond) - still).max((0, 2))
        return np.flatnonzero(moved)[[0, -1]].tolist()

    x, at = output.encode(normal(4, 2, SAMPLES, scale=0.3)), 6
    still = outputs_of(graphdef, params, x, cond)
    assert touched(x.at[:, at].add(3), cond) == [at + 1, at + reach]
    if condition:  # frame 2 holds samples 10 to 14; the first layer adds it to what it hands on
        assert cond.frames is not None
        assert touched(x, cond._replace(frames=cond.frames.at[:, 2].add(1.0))) == [10, 14 + 2 + 4 + 1]


@pytest.mark.slow
def test_gradients_are_finite_in_float32_and_bfloat16():
    _, params, output, cond = parts("mu_law", True)
    x = output.encode(normal(6, 2, SAMPLES, scale=0.3))

    @functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
    def gradient(graphdef, params):
        loss = lambda params: -output.log_prob(nnx.merge(graphdef, params)(x, cond), x).mean()  # noqa: E731
        return jax.grad(loss)(params)

    exact, rough = (jax.tree.leaves(gradient(parts("mu_law", True, dtype)[0], params)) for dtype in DTYPES)
    for a, b in zip(exact, rough, strict=True):
        assert a.dtype == b.dtype == jnp.float32
        assert np.isfinite(a).all()
        assert np.abs(b - a).max() <= 0.1 * max(np.abs(a).max(), 0.01)
    assert any(np.abs(b - a).max() > 1e-3 * np.abs(a).max() for a, b in zip(exact, rough, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_sample_at_a_time_gives_the_outputs_of_the_whole(dtype):
    graphdef, params, output, cond = parts("mu_law", True, dtype)
    x = output.encode(normal(6, 2, SAMPLES, scale=0.3))

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def one_by_one(params):
        network = nnx.merge(graphdef, params)
        step, cache = network.incremental(cond, 2, SAMPLES)
        before = jnp.concatenate([jnp.full((2, 1), network.silence), x[:, :-1]], axis=1)
        return jax.lax.scan(lambda cache, given: step(cache, *given), cache, (before.T, jnp.arange(SAMPLES)))[1]

    outputs = one_by_one(params).swapaxes(0, 1)
    assert max_relative(outputs, outputs_of(graphdef, params, x, cond)) <= (1e-5 if dtype == "float32" else 2e-2)


# --- mu-law and distributions ---


@pytest.mark.slow
@pytest.mark.parametrize("levels", [16, 256, 1024])
def test_every_mu_law_class_comes_back(levels):
    classes = jnp.arange(levels)
    y = distributions.mu_law_decode(classes, levels)
    np.testing.assert_array_equal(distributions.mu_law_encode(y, levels), classes)
    mu, z = levels - 1, 2 * np.arange(levels) / (levels - 1) - 1
    np.testing.assert_allclose(y, np.sign(z) * ((1 + mu) ** np.abs(z) - 1) / mu, atol=1e-6)
    assert distributions.mu_law_encode(jnp.array([-3.0, 3.0]), levels).tolist() == [0, levels - 1]


def test_a_mixture_of_logistics_has_the_probabilities_of_its_bins():
    output = distributions.mixture_of_logistics(2, bits=8)
    logits, mean, log_scale = np.array([0.3, -0.5]), np.array([-0.9, 0.2]), np.array([-2.0, -4.5])
    params = jnp.asarray(np.concatenate([logits, mean, log_scale]), jnp.float32)
    grid = np.linspace(-1, 1, 256)
    ours = jnp.exp(output.log_prob(jnp.broadcast_to(params, (256, 6)), jnp.asarray(grid, jnp.float32)))
    share = np.exp(logits) / np.exp(logits).sum()
    edges = np.concatenate([[-np.inf], (grid[:-1] + grid[1:]) / 2, [np.inf]])
    cumulative = (share * scipy.stats.logistic.cdf(edges[:, None], mean, np.exp(log_scale))).sum(-1)
    np.testing.assert_allclose(ours, np.diff(cumulative), atol=2e-6)
    assert ours.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(output.encode(jnp.asarray(grid, jnp.float32)), grid, atol=1e-6)


def test_a_gaussian_has_its_density_and_floor():
    output, x = distributions.gaussian(-3.0), np.linspace(-1, 1, 9)
    for log_std, std in ((-1.0, np.exp(-1)), (-8.0, np.exp(-3))):
        ours = output.log_prob(jnp.array([0.1, log_std]), jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(ours, scipy.stats.norm.logpdf(x, 0.1, std), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_their_distribution(temperature):
    u = jax.random.uniform(jax.random.key(0), (20_000, 2), minval=1e-6, maxval=1 - 1e-6)
    logits = np.array([0.0, 1.0, -1.0, 0.5])
    classes = distributions.mu_law_categorical(4).sample(
        jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (20_000, 4)), u, temperature
    )
    share = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    np.testing.assert_allclose(np.bincount(classes, minlength=4) / 20_000, share, atol=0.012)
    one = distributions.gaussian().sample(jnp.broadcast_to(jnp.array([0.1, -2.0]), (20_000, 2)), u, temperature)
    assert scipy.stats.kstest(one, scipy.stats.norm(0.1, temperature * np.exp(-2)).cdf).statistic < 0.012
    params = jnp.broadcast_to(jnp.array([9.0, -9.0, 0.1, 0.9, -3.0, 0.0]), (20_000, 6))
    output = distributions.mixture_of_logistics(2)
    mixed = output.sample(params, u, temperature)
    np.testing.assert_allclose(output.encode(mixed), mixed, atol=1e-6)  # what is drawn is what is scored
    assert scipy.stats.kstest(mixed, "logistic", (0.1, temperature * np.exp(-3))).statistic < 0.012


@pytest.mark.slow
def test_learning_a_pattern_goes_below_the_frequencies_of_its_classes():
    output = distributions.mu_law_categorical(8)
    pattern = np.array([0, 3, 7, 3, 5, 1])
    x = jnp.asarray(np.tile(pattern, 8)[None])
    counts = np.bincount(pattern, minlength=8) / len(pattern)
    entropy = -(counts[counts > 0] * np.log(counts[counts > 0])).sum()
    make = lambda: CausalWaveNet(8, input_classes=8, channels=8, layers=2, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, params = nnx.split(make())

    def step(params, _):
        loss = lambda p: -output.log_prob(nnx.merge(graphdef, p)(x), x).mean()  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, gradient), value

    run = jax.jit(lambda params: jax.lax.scan(step, params, length=150)[1], compiler_options=FAST_COMPILE)
    losses = run(params)
    assert losses[0] == pytest.approx(np.log(8), rel=1e-5)  # equally likely at first
    assert losses[-1] < 0.3 * entropy
