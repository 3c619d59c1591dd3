"""Weights against hand formulas, times against quantiles, importance sampling unbiased, and the loss's hooks."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import max_relative
from scipy.stats import norm

from jaxdiff.diffusion import (
    EDM,
    SCHEDULES,
    Cosine,
    LossHistogram,
    Prediction,
    RectifiedFlow,
    denoiser,
    diffusion_loss,
    edm_weight,
    init_histogram,
    item_losses,
    lognormal_times,
    logsnr,
    min_snr_weight,
    sample_histogram,
    sigmoid_weight,
    snr_weight,
    target,
    uniform_times,
    update_histogram,
    velocity_weight,
)

KEY = jax.random.key(0)
LEVELS = np.geomspace(0.01, 50, 41)  # sigma / alpha
WEIGHTS = {  # for the squared error of x0, in terms of n = sigma / alpha
    "snr": (snr_weight, lambda n: n**-2),
    "min_snr": (min_snr_weight(3.0), lambda n: np.where(n**-2 > 3, 3, n**-2)),
    "edm": (edm_weight(0.4), lambda n: (n**2 + 0.16) / (n * 0.4) ** 2),
    "sigmoid": (sigmoid_weight(-1.5), lambda n: n**-2 / (1 + np.exp(1.5 - 2 * np.log(n)))),
    "velocity": (velocity_weight, lambda n: 1 / np.maximum(n / (1 + n), 0.05) ** 2),
}


# --- weights ---


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_their_formulas(name):
    ours, formula = WEIGHTS[name]
    with jax.enable_x64(True):
        assert np.abs(ours(jnp.asarray(-2 * np.log(LEVELS))) / formula(LEVELS) - 1).max() <= 1e-12


def clean_estimate(prediction, alpha, sigma, sigma_data, x_t, network):
    """x0_hat of the network in NumPy, from the definition of each prediction."""
    seen = network(x_t)
    match prediction:
        case "x0":
            return seen
        case "eps":  # eps
            return (x_t - sigma * seen) / alpha
        case "v":  # alpha eps - sigma x0
            return (alpha * x_t - sigma * seen) / (alpha**2 + sigma**2)
        case "flow":  # eps - x0
            return (x_t - sigma * seen) / (alpha + sigma)
        case "edm":  # c_skip x + c_out F(c_in x) of x = x0 + n eps
            x, n, size = x_t / alpha, sigma / alpha, np.hypot(sigma / alpha, sigma_data)
            return (sigma_data / size) ** 2 * x + n * sigma_data / size * network(x / size)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [1.0, 2.0])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_weights_are_those_of_the_error_of_x0(prediction, kind, shift):
    """What is trained is weight(log-SNR) |x0_hat - x0|^2 whatever the network predicts, on every schedule."""
    shifted: dict[str, Any] = dict(shift=shift)
    schedule, times, sigma_data = SCHEDULES[kind](**shifted), np.array([0.1, 0.2, 0.5, 0.8, 0.95]), 0.4
    with jax.enable_x64(True):
        t, x0 = jnp.asarray(times), jax.random.normal(jax.random.key(1), (5, 3, 2), jnp.float64)
        options: dict[str, Any] = dict(prediction=prediction, sigma_data=sigma_data)
        run = lambda weight: item_losses(  # noqa: E731
            lambda x, t, c: jnp.sin(x), schedule, x0, None, t, KEY, weight=weight, **options
        )[0]
        losses = {name: np.asarray(run(weight)) for name, (weight, _) in WEIGHTS.items()}
        alpha, sigma = (np.asarray(f(t))[:, None, None] for f in (schedule.alpha, schedule.sigma))
        x_t = alpha * np.asarray(x0) + sigma * np.asarray(jax.random.normal(KEY, x0.shape, jnp.float64))
    estimate = clean_estimate(prediction, alpha, sigma, sigma_data, x_t, np.sin)
    error = ((estimate - np.asarray(x0)) ** 2).mean((1, 2))
    for name, (_, formula) in WEIGHTS.items():
        assert np.abs(losses[name] / (formula((sigma / alpha).ravel()) * error) - 1).max() <= 1e-8, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_weighted_losses_are_finite_at_the_ends(prediction, kind):
    x0, t = jax.random.normal(KEY, (2, 3, 1)), jnp.array([0.0, 1.0])
    run = lambda gain, weight: item_losses(  # noqa: E731
        lambda x, t, c: gain * x, SCHEDULES[kind](), x0, None, t, KEY, prediction=prediction, weight=weight
    )[0]
    for weight, _ in WEIGHTS.values():
        assert np.isfinite(run(0.5, weight)).all()
        assert np.isfinite(jax.jacobian(run)(0.5, weight)).all()


@pytest.mark.parametrize(
    ("prediction", "weight", "ends"),
    [("eps", snr_weight, (1, 1)), ("v", min_snr_weight(), (0, 0)), ("edm", edm_weight(), (1, 1))],
    ids=["eps", "v", "edm"],
)
def test_infinite_weights_cancel_at_the_ends(prediction, weight, ends):
    """A weight that undoes the factor of the prediction does so where one is infinite and the other 0."""
    x0, t = jax.random.normal(KEY, (2, 3, 1)), jnp.array([0.0, 1.0])
    run = lambda weight: item_losses(  # noqa: E731
        lambda x, t, c: 0.5 * x, Cosine(), x0, None, t, KEY, prediction=prediction, weight=weight
    )[0]
    assert np.abs(run(weight) / run(None) - np.array(ends)).max() <= 1e-5


def test_weights_of_x0_prediction_are_bit_for_bit_those_of_log_snr():
    schedule, x0, t = Cosine(), jax.random.normal(KEY, (5, 3, 2)), jnp.array([1e-3, 0.1, 0.5, 0.9, 1.0])
    run = lambda weight: item_losses(  # noqa: E731
        lambda x, t, c: jnp.sin(x), schedule, x0, None, t, KEY, prediction="x0", weight=weight
    )[0]
    assert (run(velocity_weight) == run(None) * velocity_weight(logsnr(schedule, t))).all()


# --- times ---


@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow(), Cosine()], ids=["edm", "flow", "cosine"])
def test_lognormal_times_have_their_quantiles(schedule):
    t = jax.jit(lognormal_times(schedule, -1.2, 1.2), static_argnums=1)(KEY, 4096)
    level = np.asarray(-0.5 * logsnr(schedule, t), np.float64)
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.quantile(level, q) == pytest.approx(-1.2 + 1.2 * norm.ppf(q), abs=3e-3)


SIZES = jnp.array([9.0, 3.0, 0.5, 0.5, 1.0, 2.0, 0.1, 0.2])
SEEN = LossHistogram(4 * SIZES**2, jnp.full(8, 4.0))


draw = jax.jit(sample_histogram, static_argnums=(2, 3))


def estimates(f, uniform, batch, keys=2000):
    """Weighted and unweighted means of f over drawn times, one for each key."""
    t, weight = jax.vmap(lambda key: draw(SEEN, key, batch, uniform))(jax.random.split(KEY, keys))
    return np.asarray((f(t) * weight).mean(1), float), np.asarray(f(t).mean(1), float)


def test_importance_sampling_is_unbiased():
    f = lambda t: jnp.sin(5 * t) + 4 * jnp.exp(-6 * t)  # noqa: E731
    exact = (1 - np.cos(5)) / 5 + 4 * (1 - np.exp(-6)) / 6
    weighted, unweighted = estimates(f, 0.1, 16)
    bound = 4 * weighted.std() / np.sqrt(len(weighted))
    assert abs(weighted.mean() - exact) <= bound <= 0.025
    assert abs(unweighted.mean() - exact) > 20 * bound  # what forgetting the weights would give


def test_times_have_the_density_that_their_weights_say():
    drawn = draw(SEEN, KEY, 80_000, 0.2)
    density = 0.8 * np.asarray(SIZES / SIZES.mean(), float) + 0.2
    index = np.minimum((np.asarray(drawn.t) * 8).astype(int), 7)
    assert np.abs(np.bincount(index, minlength=8) / 10_000 - density).max() <= 2e-3
    inside = np.abs(np.asarray(drawn.t) * 8 % 1 - 0.5) < 0.499
    assert np.abs(drawn.weight * density[index] - 1)[inside].max() <= 1e-5
    assert float(drawn.weight.max()) <= 5
    parts = np.asarray(drawn.t)[index == 0] * 8
    assert np.abs(np.histogram(parts, 4, (0, 1))[0] / len(parts) - 0.25).max() <= 2e-3  # uniform within a bin


def test_importance_sampling_of_its_own_losses_has_no_variance():
    steps = lambda t: SIZES[jnp.clip((t * 8).astype(int), 0, 7)]  # noqa: E731
    weighted, _ = estimates(steps, 0.0, 5)
    assert np.median(np.abs(weighted / float(SIZES.mean()) - 1)) <= 1e-5
    uniform = np.asarray(jax.vmap(lambda k: steps(uniform_times(k, 5)).mean())(jax.random.split(KEY, 300)))
    assert uniform.std() > 100 * np.median(np.abs(weighted - float(SIZES.mean())))


def test_histogram_follows_the_losses():
    state, square, mass = init_histogram(4), np.zeros(4), np.zeros(4)
    rng = np.random.default_rng(0)
    update = jax.jit(update_histogram)
    for _ in range(30):
        t, losses = 0.7 * rng.random(6), rng.random(6) + 1
        state = update(state, jnp.asarray(t, jnp.float32), jnp.asarray(losses, jnp.float32))
        index = (t * 4).astype(int)
        for i in set(index):
            square[i] = 0.99 * square[i] + (losses[index == i] ** 2).sum()
            mass[i] = 0.99 * mass[i] + (index == i).sum()
    assert max_relative(state.square, square) <= 1e-5
    assert max_relative(state.mass, mass) <= 1e-5
    assert float(state.mass[3]) == 0
    last = draw(state, KEY, 1000, 0.0)  # the bin that nobody saw counts as the mean of the others
    assert np.mean(np.asarray(last.t) > 0.75) == pytest.approx(0.25, abs=2e-3)


def test_importance_loss_of_a_new_histogram_is_the_plain_loss():
    x0, schedule = jax.random.normal(KEY, (6, 4, 2)), Cosine()
    network = lambda x_t, t, cond: 0.3 * x_t  # noqa: E731
    time_key, noise_key = jax.random.split(KEY)
    drawn = draw(init_histogram(), time_key, 6, 0.1)
    losses, _ = jax.jit(lambda t: item_losses(network, schedule, x0, None, t, noise_key))(drawn.t)
    plain, _ = jax.jit(lambda key: diffusion_loss(network, schedule, x0, None, key))(KEY)
    assert float((drawn.weight * losses).mean()) == pytest.approx(float(plain), rel=1e-5)


# --- the loss ---


def test_edm_loss_is_the_papers():
    """lambda |D - x0|^2 with D = c_skip x + c_out F(c_in x) (Karras et al. 2022, eq. 2 and 7), written out in NumPy."""
    sd, schedule = 0.5, EDM()
    with jax.enable_x64(True):
        x0, t = 0.5 * jax.random.normal(KEY, (5, 3, 2)), jnp.array([0.3, 0.4, 0.5, 0.7, 1.0])
        sigma = np.asarray(schedule.sigma(t))[:, None, None]
        losses, _ = item_losses(lambda x, t, cond: jnp.tanh(x), schedule, x0, None, t, KEY, prediction="edm")
        x = np.asarray(x0) + sigma * np.asarray(jax.random.normal(KEY, x0.shape))
    D = sd**2 / (sigma**2 + sd**2) * x + sigma * sd / np.sqrt(sigma**2 + sd**2) * np.tanh(x / np.sqrt(sigma**2 + sd**2))
    expected = ((sigma**2 + sd**2) / (sigma * sd) ** 2 * (D - np.asarray(x0)) ** 2).mean((1, 2))
    assert max_relative(np.asarray(losses) / expected, np.ones(5)) <= 1e-9


def test_auxiliary_loss_sees_the_clean_estimate():
    schedule, x0 = Cosine(), jax.random.normal(KEY, (4, 3, 2))
    network = lambda x_t, t, cond: 0.2 * x_t  # noqa: E731
    distance = lambda x0_hat, x0, cond: jnp.abs(x0_hat - x0).max((1, 2))  # noqa: E731
    fade = lambda logsnr: 0.5 * jax.nn.sigmoid(logsnr)  # noqa: E731
    plain, _ = diffusion_loss(network, schedule, x0, None, KEY, prediction="v")
    time_key, noise_key = jax.random.split(KEY)
    t, eps = uniform_times(time_key, 4), jax.random.normal(noise_key, x0.shape)
    alpha, sigma = (np.asarray(f(t))[:, None, None] for f in (schedule.alpha, schedule.sigma))
    x_t = alpha * x0 + sigma * eps
    extra = np.abs(alpha * x_t - sigma * 0.2 * x_t - x0).max((1, 2))
    for weight, factor in ((None, 1.0), (fade, 0.5 * alpha[:, 0, 0] ** 2)):
        loss, metrics = diffusion_loss(
            network, schedule, x0, None, KEY, prediction="v", auxiliary=distance, auxiliary_weight=weight
        )
        assert float(metrics["auxiliary"]) == pytest.approx((factor * extra).mean(), rel=1e-5)
        assert float(loss) == pytest.approx(float(plain) + (factor * extra).mean(), rel=1e-5)
        assert metrics["loss"] == loss


def test_self_conditioning():
    """Half of the items get the network's own estimate, the others 0; the estimate passes no gradient."""
    schedule, n = Cosine(), 400
    x0, t = jax.random.normal(KEY, (n, 3, 2)), jnp.full(n, 0.4)
    network = lambda gain: lambda x_t, t, cond: gain * x_t + 0.3 * cond[1]  # noqa: E731
    losses = lambda gain: item_losses(  # noqa: E731
        network(gain), schedule, x0, ("c",), t, KEY, prediction="x0", with_estimate=lambda c, x: (*c, x)
    )[0]
    x_t = schedule.alpha(t[0]) * x0 + schedule.sigma(t[0]) * jax.random.normal(KEY, x0.shape)
    without = np.asarray(((0.5 * x_t - x0) ** 2).mean((1, 2)))
    told = np.asarray(((0.5 * x_t + 0.3 * 0.5 * x_t - x0) ** 2).mean((1, 2)))
    ours = np.asarray(losses(0.5))
    is_told, is_not = np.abs(ours - told) <= 1e-5, np.abs(ours - without) <= 1e-5
    assert (is_told | is_not).all()
    assert abs(is_told.mean() - 0.5) <= 0.1
    slope = jax.jvp(losses, (0.5,), (1.0,))[1]
    seen = np.where(is_told[:, None, None], 0.65, 0.5) * np.asarray(x_t)
    expected = (2 * (seen - np.asarray(x0)) * np.asarray(x_t)).mean((1, 2))  # not through the estimate, 0.3 gain x_t
    assert np.abs(slope - expected)[is_told != is_not].max() <= 1e-4
    twice = denoiser(network(0.5), schedule, "x0", ("c",), with_estimate=lambda c, x: (*c, x))
    assert max_relative(twice(x_t, jnp.array(0.4)), 0.65 * x_t) <= 1e-6


def test_options_left_out_change_no_bit():
    """The loss with every hook at its default is the formula of the module, with the same random numbers."""
    schedule, x0 = RectifiedFlow(3.0), jax.random.normal(KEY, (8, 3, 2))
    time_key, noise_key = jax.random.split(KEY)
    t, eps = uniform_times(time_key, 8), jax.random.normal(noise_key, x0.shape)
    x_t = schedule.alpha(t)[:, None, None] * x0 + schedule.sigma(t)[:, None, None] * eps
    for prediction in ("x0", "eps", "v", "flow"):
        expected = ((jnp.sin(x_t) - target(prediction, schedule, t, x0, eps)) ** 2).mean((1, 2)).mean()
        ours, _ = diffusion_loss(lambda x, t, cond: jnp.sin(x), schedule, x0, None, KEY, prediction=prediction)
        assert ours == expected
