"""Schedules, predictions, loss and samplers against closed forms: exact denoisers, moments, orders of convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import gaussian_denoiser, max_relative
from scipy.stats import norm

from jaxdiff.diffusion import (
    Cosine,
    LinearBeta,
    Prediction,
    RectifiedFlow,
    ancestral,
    classifier_free_guidance,
    denoiser,
    diffusion_loss,
    logit_normal_times,
    logsnr,
    noise,
    spaced_times,
    target,
    to_eps,
    to_x0,
    uniform_times,
)

SCHEDULES = [Cosine(), RectifiedFlow(), LinearBeta(), LinearBeta(1000, 1e-4, 0.02), RectifiedFlow(3.0)]
PREDICTIONS = ["x0", "eps", "v", "flow"]
MEAN, STD = 0.7, 0.5
KEY = jax.random.key(0)

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=["cosine", "flow", "diffwave", "ddpm", "shifted"])
each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


# --- schedules ---


@pytest.mark.parametrize(("steps", "beta_max"), [(50, 0.05), (1000, 0.02)])
def test_linear_beta_is_the_product_of_the_chain(steps, beta_max):
    exact = np.cumprod(1 - np.linspace(1e-4, beta_max, steps))
    schedule, t = LinearBeta(steps, 1e-4, beta_max), np.arange(1, steps + 1) / steps
    alpha, sigma = (np.asarray(f(jnp.asarray(t, jnp.float32)), np.float64) for f in (schedule.alpha, schedule.sigma))
    # float32 rounds log(alpha^2) = -10 of DDPM's last step by up to 5e-7.
    assert np.abs(alpha**2 / exact - 1).max() <= (3e-6 if steps == 1000 else 4e-7)
    assert np.abs(sigma**2 / (1 - exact) - 1).max() <= 5e-6


@each_schedule
def test_schedule_endpoints_are_exact(schedule):
    ends = jnp.array([0.0, 1.0])
    assert (float(schedule.alpha(ends)[0]), float(schedule.sigma(ends)[0])) == (1, 0)
    assert logsnr(schedule, ends)[0] == np.inf
    if isinstance(schedule, LinearBeta):
        last = np.prod(1 - np.linspace(schedule.beta_min, schedule.beta_max, schedule.steps))
        assert float(schedule.alpha(ends)[1]) == pytest.approx(np.sqrt(last), rel=2e-6)
    else:
        assert (float(schedule.alpha(ends)[1]), float(schedule.sigma(ends)[1])) == (0, 1)
        assert logsnr(schedule, ends)[1] == -np.inf


@each_schedule
def test_schedule_loses_signal_and_gains_noise(schedule):
    t = jnp.linspace(0, 1, 257)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert (np.diff(alpha) < 0).all()
    assert (np.diff(sigma) > 0).all()
    assert (np.diff(logsnr(schedule, t)) < 0).all()
    total = alpha + sigma if isinstance(schedule, RectifiedFlow) else alpha**2 + sigma**2
    assert np.abs(total - 1).max() <= 3e-7


def test_logsnr_in_closed_form():
    t = np.linspace(0.05, 0.95, 19)
    assert np.abs(logsnr(Cosine(), jnp.asarray(t)) + 2 * np.log(np.tan(np.pi * t / 2))).max() <= 2e-6
    assert np.abs(logsnr(RectifiedFlow(), jnp.asarray(t)) - 2 * np.log((1 - t) / t)).max() <= 2e-6
    shifted = logsnr(RectifiedFlow(3.0), jnp.asarray(t)) - 2 * np.log((1 - t) / t)  # Esser et al. 2024, eq. 23
    assert np.abs(shifted + 2 * np.log(3)).max() <= 2e-6


@each_schedule
def test_schedule_is_finite_with_finite_gradients_near_the_data(schedule):
    """Also between 0 and the first step of a chain, where training draws times too."""
    t = jnp.geomspace(1e-6, 0.05, 200)
    assert ((schedule.alpha(t) <= 1) & (schedule.sigma(t) > 0)).all()
    for level in (schedule.alpha, schedule.sigma):
        assert np.isfinite(jax.jit(jax.vmap(jax.grad(level)))(t)).all()


def test_schedules_compare_by_value():
    assert LinearBeta() == LinearBeta(50, 1e-4, 0.05)
    assert hash(LinearBeta()) == hash(LinearBeta(50, 1e-4, 0.05))
    assert LinearBeta() != LinearBeta(50, 1e-4, 0.02)
    assert Cosine() != RectifiedFlow()


def test_spaced_times():
    assert spaced_times(Cosine(), 4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert spaced_times(Cosine(), 4, "quadratic").tolist() == [1, 0.5625, 0.25, 0.0625, 0]
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        spaced_times(Cosine(), 0)


# --- predictions ---


@each_schedule
@each_prediction
def test_prediction_round_trip(schedule, prediction):
    t = jnp.array([0.0, 1e-3, 0.3, 0.5, 0.9, 1.0])
    x0, eps = (jax.random.normal(k, (6, 40, 2)) for k in jax.random.split(KEY))
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    x_t = alpha * x0 + sigma * eps
    output = target(prediction, schedule, t, x0, eps)
    x0_hat = to_x0(prediction, schedule, t, x_t, output)
    eps_hat = to_eps(schedule, t, x_t, x0)
    assert np.isfinite(output).all()
    assert np.isfinite(x0_hat).all()
    assert np.isfinite(eps_hat).all()
    # eps says nothing of x0 where alpha is 0, and x_t nothing of eps where sigma is 0: there the answer is 0.
    known = np.asarray(alpha > 0) | (prediction != "eps")
    assert np.abs(x0_hat - np.where(known, x0, 0)).max() <= 3e-5 / (0.15 if prediction == "eps" else 1)
    assert np.abs((eps_hat - np.where(sigma > 0, eps, 0)) * np.minimum(1, sigma + (sigma == 0))).max() <= 2e-6
    i = 2  # one time for all is the same as that time for each
    one = to_x0(prediction, schedule, t[i], x_t[i : i + 1], output[i : i + 1])
    assert max_relative(one + 1, x0_hat[i : i + 1] + 1) <= 1e-5


def test_targets_are_what_they_are_called():
    t, (x0, eps) = jnp.array([0.3]), (jnp.full((1, 2, 1), 2.0), jnp.full((1, 2, 1), 5.0))
    alpha, sigma = np.cos(0.15 * np.pi), np.sin(0.15 * np.pi)
    expected: dict[Prediction, float] = {"x0": 2, "eps": 5, "v": 5 * alpha - 2 * sigma, "flow": 3}
    for prediction, value in expected.items():
        assert np.allclose(target(prediction, Cosine(), t, x0, eps), value, rtol=1e-6)


@pytest.mark.parametrize("schedule", [Cosine(), LinearBeta()], ids=["cosine", "diffwave"])
@each_prediction
def test_denoiser_of_a_perfect_network(schedule, prediction):
    exact = gaussian_denoiser(schedule, MEAN, STD)

    def network(x_t, t, cond):
        x0_hat = exact(x_t, t) + cond
        return target(prediction, schedule, t, x0_hat, to_eps(schedule, t, x_t, x0_hat))

    x_t = jax.random.normal(KEY, (3, 4, 2))
    ours = denoiser(network, schedule, prediction, 0.25)(x_t, jnp.array(0.4))
    assert max_relative(ours, exact(x_t, jnp.array(0.4)) + 0.25) <= 1e-5


# --- objective ---


@each_prediction
@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=["cosine", "flow", "diffwave"])
def test_loss_of_the_exact_denoiser_is_the_minimum(schedule, prediction):
    """The least squared error is the conditional variance of the target (with a weight: of x0), closed here."""
    exact, n = gaussian_denoiser(schedule, MEAN, STD), 256
    x0 = MEAN + STD * jax.random.normal(jax.random.key(1), (n, 256, 1))

    def network(x_t, t, cond):
        x0_hat = exact(x_t, t)
        return target(prediction, schedule, t, x0_hat, to_eps(schedule, t, x_t, x0_hat))

    times = lambda key, batch: 0.02 + 0.96 * uniform_times(key, batch)  # noqa: E731
    weight = lambda logsnr: jax.nn.sigmoid(-logsnr)  # noqa: E731
    t = np.asarray(times(jax.random.split(KEY)[0], n), np.float64)
    alpha, sigma = (np.asarray(f(jnp.asarray(t, jnp.float32)), np.float64) for f in (schedule.alpha, schedule.sigma))
    variance = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # of x0 given x_t; eps = (x_t - alpha x0) / sigma
    factor = {"x0": 1, "eps": alpha / sigma, "v": alpha**2 / sigma + sigma, "flow": alpha / sigma + 1}[prediction]
    for w, weights in ((None, factor**2), (weight, sigma**2 / (alpha**2 + sigma**2))):
        loss, metrics = diffusion_loss(
            network, schedule, x0, None, KEY, prediction=prediction, sample_t=times, weight=w
        )
        assert float(loss) == pytest.approx((weights * variance).mean(), rel=0.03)
        assert metrics["loss"] == loss


def test_loss_of_a_wrong_network_is_larger():
    x0, exact = STD * jax.random.normal(jax.random.key(1), (64, 256, 1)), gaussian_denoiser(Cosine(), 0.0, STD)
    loss = lambda gain: diffusion_loss(  # noqa: E731
        lambda x_t, t, cond: gain * exact(x_t, t), Cosine(), x0, None, KEY, prediction="x0"
    )[0]
    assert loss(0.9) > loss(1.0) < loss(1.1)


def test_loss_gives_the_network_its_condition():
    seen = []
    diffusion_loss(
        lambda x, t, cond: seen.append((x.shape, t.shape, cond)) or x, Cosine(), jnp.ones((3, 4, 2)), "c", KEY
    )
    assert seen == [((3, 4, 2), (3,), "c")]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_uniform_times_fall_one_in_each_slice(batch):
    for seed in range(5):
        t = np.sort(uniform_times(jax.random.key(seed), batch))
        assert (t >= 0).all()
        assert (t < 1).all()
        offset = t * batch - np.arange(batch)
        assert np.ptp(offset) <= 1e-4 * batch
        assert offset.min() >= 0
        assert offset.max() <= 1


def test_uniform_times_are_uniform():
    t = np.concatenate([uniform_times(jax.random.key(seed), 3) for seed in range(400)])
    assert np.abs(np.histogram(t, 8, (0, 1))[0] / len(t) - 1 / 8).max() <= 0.03


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5), (-1.2, 1.7)])
def test_logit_normal_quantiles(mean, std):
    t = np.asarray(logit_normal_times(mean, std)(KEY, 4096), np.float64)
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.quantile(t, q) == pytest.approx(1 / (1 + np.exp(-(mean + std * norm.ppf(q)))), abs=2e-3)


# --- samplers ---
#
def test_steps_draw_fresh_noise():
    """With x0_hat = 0 the samples at two last-but-one steps differ by independent noise, not by the same draw again."""
    zero = lambda x, t: 0 * x  # noqa: E731
    x_T, times = jnp.zeros((1, 20_000, 1)), jnp.array([1.0, 0.9, 0.8])
    one = np.asarray(ancestral(zero, Cosine(), x_T, times[:2], KEY)).ravel()
    two = np.asarray(ancestral(zero, Cosine(), x_T, times, KEY)).ravel()
    alphas, sigmas = (np.asarray(f(times), np.float64) for f in (Cosine().alpha, Cosine().sigma))
    posterior = (sigmas[2] / sigmas[1]) ** 2 * (sigmas[1] ** 2 - (alphas[1] / alphas[2] * sigmas[2]) ** 2)
    carried = np.sqrt(sigmas[2] ** 2 - posterior) / sigmas[1]
    fresh = two - carried * one
    assert abs(np.corrcoef(fresh, one)[0, 1]) <= 0.03
    assert fresh.var() == pytest.approx(posterior, rel=0.05)


def test_noise_is_standard_normal():
    for key in (KEY, jax.random.split(KEY, 40)):
        x = np.asarray(noise(key, (40, 1000)))
        assert abs(x.mean()) <= 0.02
        assert x.std() == pytest.approx(1, abs=0.02)


# --- guidance ---


@each_prediction
def test_guidance_of_x0_is_guidance_of_any_prediction(prediction):
    schedule, t = Cosine(), jnp.full(3, 0.6)
    outputs = jax.random.normal(KEY, (2, 3, 4, 2))
    x = jax.random.normal(jax.random.key(1), (3, 4, 2))
    positive, negative = (lambda x, t, o=o: to_x0(prediction, schedule, t, x, o) for o in outputs)
    guided = to_x0(prediction, schedule, t, x, outputs[1] + 2.5 * (outputs[0] - outputs[1]))
    assert max_relative(classifier_free_guidance(positive, negative, 2.5)(x, t), guided) <= 1e-5
