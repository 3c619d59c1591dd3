"""Ways to condition a denoiser on a measurement against the exact posterior of Gaussian data.

All in float64 but where float precision is the question.
"""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussians import Exploding, correlated_denoiser, covariance_of, posterior, posterior_mean
from measurements import LINEAR, MASK, D, rows
from oracles import max_relative

import jaxdiff
from jaxdiff import diffusion
from jaxdiff.diffusion import (
    Cosine,
    LinearBeta,
    Operator,
    ancestral,
    clipping,
    data_consistency,
    ddim,
    euler,
    heun,
    masking,
    moment_matching_guidance,
    pseudo_inverse_guidance,
    reconstruction_guidance,
    repaint,
    spaced_times,
)
from jaxdiff.diffusion.operators import minimal_residual
from jaxdiff.diffusion.samplers import stochastic
from jaxdiff.features import melspectrogram

KEY = jax.random.key(0)
RBG = jax.random.key(0, impl="rbg")  # draws many numbers faster than the default generator
OLD = Path(__file__).parent / "old_runs"
each_linear = pytest.mark.parametrize("name", LINEAR)
METHODS = {
    "data consistency": data_consistency,
    "pseudo-inverse": pseudo_inverse_guidance,
    "moment matching": lambda *a, **k: moment_matching_guidance(*a, **k, iterations=D),
}


@pytest.fixture(autouse=True)
def x64(request):
    with jax.enable_x64("float32" not in request.node.name):
        yield


CASES = [
    ("masking", Cosine()),
    ("decimation", Cosine()),
    ("filterbank", Exploding()),
    ("convolution", LinearBeta()),
]
each_case = pytest.mark.parametrize(("name", "schedule"), CASES, ids=[name for name, _ in CASES])


def estimates(method, name, schedule, times, mean, covariance, noise_std, **options):
    """The guided estimate and E[x0 | x_t, y], each [times, 6, D], at x_t and y that belong together."""
    operator, matrix = LINEAR[name]
    x0 = mean + rows(1, 6, D) @ np.linalg.cholesky(covariance).T
    y = x0 @ matrix.T + noise_std * rows(2, 6, len(matrix)) @ matrix @ np.linalg.pinv(matrix)  # noise in A's range
    levels = [tuple(float(f(jnp.asarray(t))) for f in (schedule.alpha, schedule.sigma)) for t in times]
    x_t = np.stack([alpha * x0 + sigma * rows(3, 6, D) for alpha, sigma in levels])
    denoiser = correlated_denoiser(schedule, mean, covariance)
    guided = METHODS[method](denoiser, schedule, operator, jnp.asarray(y), noise_std=noise_std, **options)
    ours = jax.jit(jax.vmap(guided))(jnp.asarray(x_t), jnp.asarray(times))
    exact = [
        posterior_mean(schedule, t, x, mean, covariance, matrix, y, noise_std) for t, x in zip(times, x_t, strict=True)
    ]
    return ours, np.stack(exact)


@pytest.mark.slow
@each_case
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_isotropic_prior_gives_the_exact_posterior_mean(method, noise_std, name, schedule):
    """All three are exact for N(m, s^2 I), at every noise level, pure noise too."""
    times, s = (0.02, 0.5, 1.0), 0.6
    ours, exact = estimates(method, name, schedule, times, rows(7, D), s**2 * np.eye(D), noise_std, data_std=s)
    for one, reference in zip(ours, exact, strict=True):
        assert max_relative(one, reference) <= 1e-6


@pytest.mark.parametrize("method", ["data consistency", "pseudo-inverse"])
def test_a_wrong_variance_or_correlated_data_is_noticed(method):
    """So the bound above can fail; and these two claim isotropic data only."""
    mean, s = rows(7, D), 0.6
    for covariance, data_std in ((s**2 * np.eye(D), 0.8 * s), (covariance_of(3, D), 1.0)):
        ours, exact = estimates(method, "filterbank", Cosine(), (0.5,), mean, covariance, 0.3, data_std=data_std)
        assert max_relative(ours, exact) > 1e-3


@pytest.mark.slow
@each_case
@pytest.mark.parametrize("noise_std", [0.0, 0.2])
def test_moment_matching_is_exact_for_any_gaussian(name, schedule, noise_std):
    times, covariance = (0.1, 0.4, 0.95), covariance_of(3, D)
    ours, exact = estimates("moment matching", name, schedule, times, rows(7, D), covariance, noise_std)
    for one, reference in zip(ours, exact, strict=True):
        assert max_relative(one, reference) <= 1e-5


def reconstruct(name, covariance, noise_std, schedule=Cosine(), t=0.5, **options):
    operator, matrix = LINEAR[name]
    x_t, y = jnp.asarray(rows(1, 6, D)), jnp.asarray(rows(2, 6, D) @ matrix.T)
    denoiser = correlated_denoiser(schedule, np.zeros(D), covariance)
    guided = reconstruction_guidance(denoiser, schedule, operator, y, noise_std=noise_std, **options)
    ours, plain = jax.jit(lambda x: [d(x, jnp.asarray(t)) for d in (guided, denoiser)])(x_t)
    return ours, np.asarray(plain), np.asarray(x_t), np.asarray(y)


@pytest.mark.parametrize("name", ["masking", "lowpass"])  # where A A' = I on the range of A
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_reconstruction_guidance_is_exact_for_a_flat_prior(name, noise_std):
    covariance = 1e6 * np.eye(D)
    ours, _, x_t, y = reconstruct(name, covariance, noise_std)
    exact = posterior_mean(Cosine(), 0.5, x_t, np.zeros(D), covariance, LINEAR[name][1], y, noise_std)
    assert max_relative(ours, exact) <= 1e-5


@each_linear
def test_reconstruction_guidance_is_the_gradient_of_ho(name):
    """x0_hat + scale alpha J' A' (y - A x0_hat), with the Gaussian's Jacobian J = alpha C (alpha^2 C + sigma^2)^-1."""
    covariance, matrix, level = covariance_of(3, D), LINEAR[name][1], np.sqrt(0.5)
    ours, x0_hat, _, y = reconstruct(name, covariance, 0.0, scale=1.7)
    jacobian = level * covariance @ np.linalg.inv((covariance + np.eye(D)) / 2)
    assert max_relative(ours, x0_hat + 1.7 * level * (y - x0_hat @ matrix.T) @ matrix @ jacobian) <= 1e-10


def test_normalised_reconstruction_guidance_steps_as_far_as_it_says():
    ours, x0_hat, _, _ = reconstruct("filterbank", np.eye(D), 0.0, scale=0.3, normalize=True, data_std=1.0)
    plain, *_ = reconstruct("filterbank", np.eye(D), 0.0)
    step = np.asarray(ours) - x0_hat
    np.testing.assert_allclose(np.sqrt((step**2).mean(1)), 0.3 * np.sqrt(0.5), rtol=1e-9)  # r = sigma if alpha, s = 1
    direction = np.asarray(plain) - x0_hat
    assert np.allclose((step * direction).sum(1), np.linalg.norm(step, axis=1) * np.linalg.norm(direction, axis=1))


@pytest.mark.slow
def test_guidance_without_gradient_or_prox():
    """A mel spectrogram of the wave has no prox: only what needs none takes it, and its steps lower the misfit."""
    mel = Operator(lambda x: jnp.sqrt(melspectrogram(x, sr=16000, n_fft=32, hop_length=8, n_mels=6) + 1e-6))
    x_t, y = jnp.asarray(rows(1, 2, 128)), mel.apply(jnp.asarray(rows(2, 2, 128)))
    plain = correlated_denoiser(Cosine(), np.zeros(128), np.eye(128))
    misfit = lambda x: np.linalg.norm(mel.apply(x) - y)  # noqa: E731
    guided = jax.jit(reconstruction_guidance(plain, Cosine(), mel, y, normalize=True, scale=0.2))
    assert misfit(guided(x_t, jnp.array(0.5))) < 0.95 * misfit(plain(x_t, jnp.array(0.5)))
    for method in (data_consistency, pseudo_inverse_guidance):
        with pytest.raises(
            ValueError, match="needs an operator with prox, this one has none; use reconstruction_guida"
        ):
            method(plain, Cosine(), mel, y)
    with pytest.raises(ValueError, match="repaint needs an operator with prox"):
        repaint(mel, y)


# --- samples ---

SMALL = 4
PRIOR_MEAN, PRIOR = np.array([0.5, -1.0, 0.0, 0.3]), covariance_of(5, SMALL)
KNOWN = np.array([True, True, False, False])
OBSERVED = np.array([1.0, -0.4, 0, 0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "steps"), [(heun, 40), (ddim(0.0), 300), (ancestral, 300)], ids=["heun", "ddim", "ancestral"]
)
def test_moment_matched_samples_have_the_posterior_mean_and_covariance(sampler, steps, monkeypatch):
    """y = the first two values + noise of 0.3, correlated prior. Samples are an affine function of all that is drawn,
    so those for nothing and for a unit of each number have both exactly, but for the steps: 2 %, 4 % of variances."""
    matrix, noise_std, numbers = np.diag(KNOWN.astype(float)), 0.3, SMALL * (1 + steps * (sampler is ancestral))
    units = np.eye(1 + numbers)[:, 1:].reshape(1 + numbers, -1, SMALL)  # [row, draw, number]: none in row 0
    monkeypatch.setattr(stochastic, "draw", lambda key, i, x: jnp.asarray(units)[:, 1 + i])
    plain = correlated_denoiser(Cosine(), PRIOR_MEAN, PRIOR)
    guided = moment_matching_guidance(
        plain, Cosine(), masking(KNOWN), jnp.asarray(OBSERVED)[None], noise_std=noise_std, iterations=3, data_std=1.0
    )
    run = jax.jit(lambda x: sampler(guided, Cosine(), x, spaced_times(Cosine(), steps), KEY))
    x = np.asarray(run(units[:, 0]))
    mean, covariance = posterior(PRIOR_MEAN, PRIOR, matrix[:2], OBSERVED[None, :2], noise_std**2 * np.eye(2))
    deviation = np.sqrt(np.diag(covariance))
    ours = (x[1:] - x[0]).T @ (x[1:] - x[0])
    assert (np.abs(x[0] - mean[0]) / deviation).max() <= 0.02
    assert np.abs((ours - covariance) / np.outer(deviation, deviation)).max() <= 0.04
    assert (np.abs(PRIOR_MEAN - mean[0]) / deviation).max() > 0.5  # the unconditional mean would not do


@pytest.mark.slow
def test_repaint_keeps_the_known_exactly_and_approaches_the_posterior():
    mean, covariance = posterior(PRIOR_MEAN, PRIOR, np.eye(SMALL)[:2], OBSERVED[None, :2], 0 * np.eye(2))
    plain = correlated_denoiser(Cosine(), PRIOR_MEAN, PRIOR)
    deviation, errors, spreads = np.sqrt(np.diag(covariance)[2:]), [], []
    for resamples in (1, 16):
        sampler = repaint(masking(KNOWN), jnp.asarray(OBSERVED)[None], resamples=resamples)
        run = jax.jit(lambda x, s=sampler: s(plain, Cosine(), x, spaced_times(Cosine(), 100), RBG))
        x = np.asarray(run(rows(1, 4000, SMALL)))
        assert (x[:, KNOWN] == OBSERVED[KNOWN]).all()
        errors.append(float((np.abs(x.mean(0) - mean[0])[2:] / deviation).max()))
        spreads.append(float(np.abs(x.std(0)[2:] / deviation - 1).max()))
    assert errors[1] <= 0.06
    assert spreads[1] <= 0.12
    assert errors[0] > 0.12  # without resampling the rest does not fit the known
    assert spreads[0] > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masking", "lowpass", "filterbank", "convolution"])
def test_data_consistent_samples_explain_y_to_float32_precision(name):
    operator, _ = LINEAR[name]
    x0 = jnp.asarray(rows(1, 3, D), jnp.float32)
    y = operator.apply(x0)
    plain = correlated_denoiser(Cosine(), np.zeros(D, np.float32), np.eye(D))
    times = spaced_times(Cosine(), 6)
    consistent = data_consistency(plain, Cosine(), operator, y)
    samplers = [(euler, consistent), (repaint(operator, y, resamples=2), plain)]
    run = jax.jit(lambda x_T: [sampler(denoiser, Cosine(), x_T, times, KEY) for sampler, denoiser in samplers])
    for x in run(x0[::-1]):
        assert x.dtype == jnp.float32
        assert max_relative(operator.apply(x), y) <= 3e-6
        assert np.abs(x - x0).max() > 0.1  # which is not all of x0


def test_declipped_samples_are_consistent():
    operator, truth = clipping(0.8), jnp.asarray(rows(1, 3, D))
    y = operator.apply(truth)
    plain = correlated_denoiser(Cosine(), np.zeros(D), np.eye(D))
    guided = data_consistency(plain, Cosine(), operator, y)
    x = euler(guided, Cosine(), jnp.asarray(rows(2, 3, D)), spaced_times(Cosine(), 10), KEY)
    assert (operator.apply(x) == y).all()
    assert (np.abs(x) > 0.8).any()


def test_repaint_with_noise_in_y_does_not_copy_it():
    """From where x has less noise than y the prior decides: the known parts end closer to the truth than y is."""
    noise_std, s, count = 0.5, 0.5, 4000
    truth = s * rows(1, count, 2)
    y = jnp.asarray(truth + noise_std * rows(2, count, 2))
    plain = correlated_denoiser(Cosine(), np.zeros(2), s**2 * np.eye(2))
    sampler = repaint(masking(np.array([True, True])), y, noise_std=noise_std, resamples=1)
    run = jax.jit(lambda x_T: sampler(plain, Cosine(), x_T, spaced_times(Cosine(), 200), KEY))
    x = np.asarray(run(jnp.asarray(rows(3, count, 2))))
    assert x.std() == pytest.approx(s, rel=0.04)
    assert np.asarray(y).std() > 1.35 * s
    # As much of y as the posterior has: a copy would have a covariance of 0.5 with y, a sample without y of 0.
    assert (x * y).mean() == pytest.approx(s**2, rel=0.1)


def test_items_with_their_own_keys_ignore_the_batch():
    keys = jax.random.split(KEY, 4)
    plain, y = correlated_denoiser(Cosine(), PRIOR_MEAN, PRIOR), jnp.asarray(OBSERVED)[None]
    x_T, times = jnp.asarray(rows(1, 4, SMALL)), spaced_times(Cosine(), 5)
    run = jax.jit(lambda x, key: repaint(masking(KNOWN), y, resamples=3)(plain, Cosine(), x, times, key))
    assert max_relative(run(x_T[1:3], keys[1:3]), run(x_T, keys)[1:3]) <= 1e-10


def test_no_resamples_are_refused():
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        repaint(masking(MASK), jnp.zeros((1, D)), resamples=0)


@pytest.mark.slow
def test_moment_matching_holds_on_a_trained_network():
    """Whose Jacobian is not symmetric: what is known is met at least as well as without guidance, the better the more
    iterations, and the sound stays of its size."""
    pipeline = jaxdiff.load(OLD / "generation")
    method: Any = pipeline.method
    model, key = pipeline.model, jax.random.key(0)
    _, batch = pipeline.items(0, np.arange(2))
    network, cond = model.network.bound(pipeline.params), model.task.given(model.representation, batch, None).cond
    denoise = diffusion.denoiser(network, method.schedule, method.prediction, cond)
    x0 = model.representation.encode(jnp.asarray(np.stack(pipeline(count=2, seed=5).waves)))
    known = jnp.asarray(np.arange(x0.shape[1])[:, None] < x0.shape[1] // 2)
    operator, keys = masking(known), jax.random.split(key, 2)
    times, x_T = spaced_times(method.schedule, 8, "cosine"), diffusion.noise(keys, x0.shape)

    def error(count):
        guided = denoise
        if count:
            options = dict(iterations=count)
            guided = moment_matching_guidance(denoise, method.schedule, operator, x0 * known, **options)
        x = diffusion.SAMPLERS["dpmpp_2m"].sampler(guided, method.schedule, x_T, times, keys)
        return jnp.sqrt((known * (x - x0) ** 2).mean()), jnp.abs(x).max()

    errors, largest = zip(*(jax.jit(error, static_argnums=0)(count) for count in (0, 1, 2, 3, 5)), strict=True)
    assert max(errors[1:]) < 0.5 * errors[0]
    assert all(more <= 1.02 * fewer for fewer, more in itertools.pairwise(errors))
    assert max(largest[1:]) < 2 * np.abs(x0).max()


@pytest.mark.slow
def test_minimal_residual_solves_what_is_not_symmetric():
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((3, 6, 6)) + 3 * np.eye(6)
    b = rng.standard_normal((3, 6))
    apply = lambda v: jnp.einsum("bij,bj->bi", matrices, v)  # noqa: E731
    residuals = [np.linalg.norm(apply(minimal_residual(apply, jnp.asarray(b), n)) - b, axis=1) for n in range(1, 7)]
    assert (np.diff(residuals, axis=0) <= 1e-12).all()
    krylov = lambda i, n: np.stack([np.linalg.matrix_power(matrices[i], k) @ b[i] for k in range(1, n + 1)], 1)  # noqa: E731
    for n in (1, 2, 4):  # least squares over the same space
        best = [np.linalg.norm(krylov(i, n) @ np.linalg.lstsq(krylov(i, n), b[i])[0] - b[i]) for i in range(3)]
        np.testing.assert_allclose(residuals[n - 1], best, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(residuals[-1], 0, atol=1e-9)
