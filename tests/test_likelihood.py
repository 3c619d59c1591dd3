"""Exact log density against Gaussians in closed form, the order of the solver, and Hutchinson's estimate."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussians import Exploding, correlated_denoiser, covariance_of
from oracles import finite_denoiser, slope
from scipy.stats import multivariate_normal

from jaxdiff.diffusion import Cosine, LinearBeta, RectifiedFlow, bits_per_dimension, log_likelihood, spaced_times

D = 3
MEAN, COVARIANCE = np.array([0.5, -1.0, 0.2]), covariance_of(1, D)
X0 = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 16)
SCHEDULES = [Cosine(), RectifiedFlow(), RectifiedFlow(3.0), LinearBeta(), Exploding()]
each_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=["cosine", "flow", "shifted", "diffwave", "exploding"]
)


def levels(schedule, t):
    with jax.ensure_compile_time_eval():
        return [float(f(jnp.asarray(t, float))) for f in (schedule.alpha, schedule.sigma)]


def marginal(schedule) -> Callable[[jax.Array], jax.Array]:
    """The true log density of x_T, where alpha is not 0 it still knows the data."""
    alpha, sigma = levels(schedule, 1.0)
    covariance = alpha**2 * COVARIANCE + sigma**2 * np.eye(D)
    return lambda x: jnp.asarray(jax.scipy.stats.multivariate_normal.logpdf(x, alpha * MEAN, covariance))


def log_density(x, mean, covariance):
    return multivariate_normal.logpdf(x, mean, covariance)


@functools.partial(jax.jit, static_argnames=("schedule", "steps", "true_prior", "probes"))
def ours(schedule, steps, x0, true_prior=True, probes=None, key=None):
    exact = correlated_denoiser(schedule, MEAN, COVARIANCE)
    log_prior = marginal(schedule) if true_prior else None
    return log_likelihood(
        exact, schedule, x0, spaced_times(schedule, steps, "quadratic"), probes=probes, key=key, log_prior=log_prior
    )


@pytest.mark.slow
@each_schedule
def test_gaussian_is_exact_to_a_ten_thousandth_of_a_bit(schedule):
    """In float32, with 128 steps that are even in sqrt(t), from t = 1 to t = 0."""
    bits = bits_per_dimension(ours(schedule, 128, jnp.asarray(X0, jnp.float32)), D)
    reference = -log_density(X0, MEAN, COVARIANCE) / (D * np.log(2))
    assert np.abs(bits - reference).max() <= 1e-4
    wrong = -log_density(X0, MEAN, 1.01 * COVARIANCE) / (D * np.log(2))
    assert np.abs(bits - wrong).max() >= 1e-3  # the bound tells variances 1 % apart


@each_schedule
def test_default_prior_is_the_pure_noise_that_sampling_starts_from(schedule):
    """Along an axis of the covariance the ODE keeps the quantile, so it is a linear map of N(0, scale^2).

    Flow of N(m, c): (x_T - alpha m) / sqrt(alpha^2 c + sigma^2) = (x0 - m) / sqrt(c).
    """
    alpha, sigma = levels(schedule, 1.0)
    values, vectors = np.linalg.eigh(COVARIANCE)
    gain, scale = np.sqrt((alpha**2 * values + sigma**2) / values), np.hypot(alpha, sigma)
    end = (X0 - MEAN) @ vectors * gain + alpha * MEAN @ vectors
    log_p = (-0.5 * (end / scale) ** 2 - 0.5 * np.log(2 * np.pi) + np.log(gain / scale)).sum(1)
    error = np.asarray(ours(schedule, 128, jnp.asarray(X0, jnp.float32), true_prior=False)) - log_p
    assert np.abs(error).max() / (D * np.log(2)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [RectifiedFlow(3.0), Exploding()], ids=["shifted", "exploding"])
def test_error_falls_with_the_fourth_power_of_steps(schedule):
    with jax.enable_x64(True):
        reference = log_density(X0, MEAN, COVARIANCE)
        steps = [16, 32, 64]
        prior, exact = marginal(schedule), correlated_denoiser(schedule, MEAN, COVARIANCE)
        errors = [
            np.abs(
                jax.jit(
                    lambda x, n=n: log_likelihood(
                        exact, schedule, x, spaced_times(schedule, n, "quadratic"), log_prior=prior
                    )
                )(X0)
                - reference
            ).max()
            for n in steps
        ]
    assert slope(steps, errors) == pytest.approx(4, abs=0.35)


def test_density_at_a_time_above_zero_is_that_of_x_t():
    schedule, times = RectifiedFlow(), jnp.linspace(1, 0.2, 65)
    alpha, sigma = levels(schedule, 0.2)
    covariance = alpha**2 * COVARIANCE + sigma**2 * np.eye(D)
    x = np.random.default_rng(1).multivariate_normal(alpha * MEAN, covariance, 8)
    exact = correlated_denoiser(schedule, MEAN, COVARIANCE)
    prior = marginal(schedule)
    log_p = jax.jit(lambda x: log_likelihood(exact, schedule, x, times, log_prior=prior))(jnp.asarray(x, jnp.float32))
    assert np.abs(log_p - log_density(x, alpha * MEAN, covariance)).max() <= 3e-4


def test_density_of_a_noised_finite_set_is_its_mixture():
    """Not only Gaussians: points blurred by the noise at t = 0.3 are a Gaussian mixture."""
    points, schedule, t = jnp.array([[-1.5, 0.5], [0.0, 1.0], [1.0, -0.5]]), Cosine(), 0.3
    alpha, sigma = levels(schedule, t)
    x = np.random.default_rng(2).normal(alpha * np.repeat(points, 4, axis=0), sigma)
    density = sum(np.exp(log_density(x, alpha * np.asarray(p), sigma**2)) for p in points) / 3
    log_p = jax.jit(lambda x: log_likelihood(finite_denoiser(schedule, points), schedule, x, jnp.linspace(1, t, 129)))(
        jnp.asarray(x, jnp.float32)
    )
    assert np.abs(log_p - np.log(density)).max() <= 5e-4


def test_hutchinson_is_unbiased():
    """The mean of 4,096 one-probe estimates is the exact divergence's within 4 standard errors; one is not."""
    x = jnp.asarray(X0[:1], jnp.float32)
    exact = float(ours(Cosine(), 32, x)[0])
    keys = jax.random.split(jax.random.key(3), 4096)
    many = np.asarray(ours(Cosine(), 32, jnp.tile(x, (4096, 1)), probes=1, key=keys), np.float64)
    assert many.std() > 0.05
    assert abs(many.mean() - exact) <= 4 * many.std() / 64


def test_more_probes_vary_less():
    x = jnp.tile(jnp.asarray(X0[:1], jnp.float32), (512, 1))
    keys = jax.random.split(jax.random.key(4), 512)
    one, sixteen = (np.asarray(ours(Cosine(), 16, x, probes=n, key=keys)).std() for n in (1, 16))
    assert one / sixteen == pytest.approx(4, rel=0.25)


def test_hutchinson_is_exact_without_cross_terms():
    """Random signs give the trace of a diagonal Jacobian exactly, as (+-1)^2 = 1; normal probes would not."""
    exact = correlated_denoiser(Cosine(), np.zeros(2), np.diag([0.25, 4.0]))
    x, times = jnp.array([[0.3, -1.0]]), spaced_times(Cosine(), 32)
    both = lambda x: [  # noqa: E731
        log_likelihood(exact, Cosine(), x, times, probes=probes, key=key)
        for probes, key in ((None, None), (1, jax.random.key(0)))
    ]
    full, estimate = jax.jit(both)(x)
    assert np.abs(estimate - full) <= 1e-5


def test_an_item_with_its_own_key_ignores_the_batch():
    x, keys = jnp.asarray(X0, jnp.float32), jax.random.split(jax.random.key(5), 16)
    whole = ours(Cosine(), 16, x, probes=1, key=keys)
    np.testing.assert_allclose(ours(Cosine(), 16, x[4:6], probes=1, key=keys[4:6]), whole[4:6], rtol=1e-5)


def test_bits_count_a_uniform_code():
    """Values spread evenly over 256 steps of the bin width cost 8 bits each."""
    log_p = jnp.log(jnp.array([1 / (256 * 0.5)])) * 10
    assert float(bits_per_dimension(log_p, 10, bin_width=0.5)[0]) == pytest.approx(8, abs=1e-6)


def test_probes_without_key_are_refused():
    with pytest.raises(ValueError, match="probes and key belong together"):
        log_likelihood(lambda x, t: x, Cosine(), jnp.zeros((1, 2)), spaced_times(Cosine(), 2), probes=1)
