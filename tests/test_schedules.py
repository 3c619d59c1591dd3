"""Every schedule against its closed form in float64, shifts, times, log-SNR inverted; every pair of predictions."""

import dataclasses
import itertools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import gaussian_denoiser, max_relative

from jaxdiff import diffusion
from jaxdiff.diffusion import (
    EDM,
    VE,
    VP,
    Cosine,
    LinearBeta,
    Prediction,
    RectifiedFlow,
    Sigmoid,
    convert,
    denoiser,
    edm_coefficients,
    logsnr,
    network_input,
    prior_scale,
    spaced_times,
    target,
    time_at_logsnr,
    to_eps,
    to_x0,
)

DDPM, LATENT = LinearBeta(1000, 1e-4, 0.02), LinearBeta(1000, 8.5e-4, 0.012, scaled=True)
SCHEDULES = {
    "cosine": Cosine(), "sigmoid": Sigmoid(), "steep": Sigmoid(-2, 4, 0.7), "diffwave": LinearBeta(),
    "large": LinearBeta(200, 1e-4, 0.02), "ddpm": DDPM, "latent": LATENT, "vp": VP(), "ve": VE(), "edm": EDM(),
    "linear": EDM(rho=1.0), "flow": RectifiedFlow(),
}  # fmt: skip
EXPLODING = {"ve": 50.0, "edm": 80.0, "linear": 80.0}  # sigma at t = 1
PREDICTIONS = get_args(Prediction)
each_schedule = pytest.mark.parametrize("name", SCHEDULES)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def chain(betas):
    """alpha^2 after each step of the chain, and the times of the steps."""
    return np.cumprod(1 - betas), np.arange(1, len(betas) + 1) / len(betas)


def alpha_squared_of_sigmoid(t, start, end, tau):
    value = logistic((start + t * (end - start)) / tau)
    return (logistic(end / tau) - value) / (logistic(end / tau) - logistic(start / tau))


T = np.linspace(0.05, 0.95, 19)
CLOSED = {  # alpha^2 and sigma^2 as the papers have them, at which times
    "cosine": (T, np.cos(np.pi * T / 2) ** 2, np.sin(np.pi * T / 2) ** 2),
    "sigmoid": (T, alpha_squared_of_sigmoid(T, -3, 3, 1), 1 - alpha_squared_of_sigmoid(T, -3, 3, 1)),
    "steep": (T, alpha_squared_of_sigmoid(T, -2, 4, 0.7), 1 - alpha_squared_of_sigmoid(T, -2, 4, 0.7)),
    "vp": (T, np.exp(-(0.1 * T + 0.5 * 19.9 * T**2)), 1 - np.exp(-(0.1 * T + 0.5 * 19.9 * T**2))),
    "ve": (T, 1 + 0 * T, (0.01 * 5000**T) ** 2 - 0.01**2),
    "edm": (T, 1 + 0 * T, (80 ** (1 / 7) * T) ** 14),
    "linear": (T, 1 + 0 * T, (80 * T) ** 2),
    "flow": (T, (1 - T) ** 2, T**2),
}
for _name, _betas in {
    "diffwave": np.linspace(1e-4, 0.05, 50),
    "large": np.linspace(1e-4, 0.02, 200),
    "ddpm": np.linspace(1e-4, 0.02, 1000),
    "latent": np.linspace(8.5e-4**0.5, 0.012**0.5, 1000) ** 2,
}.items():
    CLOSED[_name] = (chain(_betas)[1], chain(_betas)[0], 1 - chain(_betas)[0])


# --- schedules ---


@pytest.mark.slow
@each_schedule
def test_levels_in_closed_form(name):
    t, alpha, sigma = CLOSED[name]
    with jax.enable_x64(True):
        ours = [np.asarray(f(jnp.asarray(t))) ** 2 for f in (SCHEDULES[name].alpha, SCHEDULES[name].sigma)]
    exact = not isinstance(SCHEDULES[name], LinearBeta)  # whose polynomial is as good as float32
    assert max(abs(ours[0] / alpha - 1).max(), abs(ours[1] / sigma - 1).max()) <= (1e-11 if exact else 3e-6)


@pytest.mark.slow
@each_schedule
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_ends_are_exact_and_finite_between(name, shift):
    schedule, t = dataclasses.replace(SCHEDULES[name], shift=shift), jnp.linspace(0, 1, 513)
    for levels in (lambda t: (schedule.alpha(t), schedule.sigma(t)), jax.jit(schedule.levels)):
        alpha, sigma = (np.asarray(x) for x in levels(t))
        assert (alpha[0], sigma[0]) == (1, 0)
        assert (np.diff(alpha) <= 0).all()
        assert (np.diff(sigma) >= 0).all()
        if name in EXPLODING:
            assert (alpha == 1).all()
            assert sigma[-1] == pytest.approx(shift * EXPLODING[name], rel=1e-6)
        elif name in ("cosine", "sigmoid", "steep", "flow"):
            assert (alpha[-1], sigma[-1]) == (0, 1)
    assert (np.diff(logsnr(schedule, t[4:])) < 0).all()  # EDM's sigma = 80 t^7 is 0 in float32 before that
    assert logsnr(schedule, t)[0] == np.inf


@each_schedule
def test_shift_moves_logsnr_and_keeps_the_family(name):
    schedule, t = dataclasses.replace(SCHEDULES[name], shift=3.0), np.linspace(0.01, 0.99, 99)
    with jax.enable_x64(True):
        moved = np.asarray(logsnr(schedule, jnp.asarray(t)) - logsnr(SCHEDULES[name], jnp.asarray(t)))
        alpha, sigma = (np.asarray(x) for x in schedule.levels(jnp.asarray(t)))
    assert np.abs(moved + 2 * np.log(3)).max() <= 1e-12
    total = alpha if name in EXPLODING else alpha + sigma if name == "flow" else alpha**2 + sigma**2
    assert np.abs(total - 1).max() <= 1e-14


@each_schedule
def test_prior_scale(name):
    assert float(prior_scale(SCHEDULES[name])) == pytest.approx(np.hypot(1, EXPLODING.get(name, 0)), rel=1e-6)


def test_every_kind_is_in_the_table_by_name():
    assert list(diffusion.SCHEDULES) == ["cosine", "sigmoid", "linear_beta", "vp", "ve", "edm", "rectified_flow"]
    assert {kind() for kind in diffusion.SCHEDULES.values()} <= set(SCHEDULES.values())
    assert {type(schedule) for schedule in SCHEDULES.values()} == set(diffusion.SCHEDULES.values())


def test_schedules_compare_by_value():
    assert len({*SCHEDULES.values(), Cosine(1.0), VP(0.1, 20.0), LinearBeta(50, 1e-4, 0.05)}) == len(SCHEDULES)
    assert Cosine(2.0) != Cosine()


# --- times ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "x64", "bound"),
    [(name, True, 1e-9) for name in SCHEDULES]
    + [(name, False, 2e-4) for name in ("sigmoid", "diffwave", "edm", "flow")],
)
def test_time_at_logsnr_inverts(name, x64, bound):
    schedule = SCHEDULES[name]
    with jax.enable_x64(x64):
        lowest = max(-10.0, float(logsnr(schedule, jnp.ones(()))) + 1e-3)
        value = jnp.linspace(lowest, 20, 101)
        t = time_at_logsnr(schedule, value)
        assert t.dtype == value.dtype
        assert np.abs(np.asarray(logsnr(schedule, t) - value)).max() <= bound
        assert (np.diff(t) < 0).all()


def test_time_at_logsnr_beyond_the_schedule():
    assert time_at_logsnr(LinearBeta(), jnp.array([jnp.inf, -5.0, -jnp.inf])).tolist() == [0, 1, 1]
    assert time_at_logsnr(Cosine(), jnp.array([[jnp.inf, -jnp.inf]])).tolist() == [[0, 1]]


def noise_to_signal(schedule, times):
    return np.asarray(schedule.sigma(times), np.float64) / np.asarray(schedule.alpha(times), np.float64)


def test_karras_times_are_the_papers():
    """Equation 5 of Karras et al. 2022 with their sigma_min 0.002, sigma_max 80 and rho 7."""
    i, n = np.arange(18), 18
    exact = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    for schedule in (EDM(), EDM(rho=1.0)):
        times = spaced_times(schedule, n, "karras")
        sigma = np.asarray(schedule.sigma(times), np.float64)
        assert np.abs(sigma[:-1] / exact - 1).max() <= 2e-5
        assert (times[0], times[-1], sigma[-1]) == (1, 0, 0)
    levels = noise_to_signal(RectifiedFlow(), spaced_times(RectifiedFlow(), n, "karras")[1:])
    assert np.abs(levels[:-1] / exact[1:] - 1).max() <= 2e-5


@pytest.mark.parametrize("name", ["cosine", "diffwave", "edm"])
def test_logsnr_times_are_even_in_logsnr(name):
    values = np.asarray(logsnr(SCHEDULES[name], spaced_times(SCHEDULES[name], 10, "logsnr", ends=(0.01, 40.0))))
    first = max(-2 * np.log(40), values[0])
    assert np.abs(values[1:-1] - np.linspace(first, -2 * np.log(0.01), 10)[1:]).max() <= 2e-5
    assert values[-1] == np.inf


@pytest.mark.slow
@each_schedule
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "cosine", "karras", "logsnr"])
def test_times_fall_from_one_to_zero(name, spacing):
    for steps in (1, 2, 7) if name == "flow" else (6,):
        times = np.asarray(spaced_times(SCHEDULES[name], steps, spacing))
        assert times.shape == (steps + 1,)
        assert (times[0], times[-1]) == (1, 0)
        assert (np.diff(times) < 0).all()


def test_other_spacings():
    assert np.allclose(spaced_times(Cosine(), 4, "cosine"), [1, 0.8535534, 0.5, 0.1464466, 0], atol=1e-7)
    inside = jax.jit(lambda: spaced_times(VP(), 6, "karras"))()
    assert np.abs(inside - spaced_times(VP(), 6, "karras")).max() <= 1e-6
    with pytest.raises(ValueError, match="ends"):
        spaced_times(Cosine(), 4, "karras", ends=(1.0, 0.5))


# --- predictions ---


@pytest.mark.slow
@each_schedule
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_all_pairs_convert(name, sigma_data):
    """From the output of a source network to that of any other, also at t = 0 and 1; nothing is NaN there."""
    schedule, rng = SCHEDULES[name], np.random.default_rng(0)
    with jax.enable_x64(True):
        t = jnp.array([0.0, 1e-3, 0.3, 0.5, 0.9, 1.0])
        x0, eps = (jnp.asarray(rng.standard_normal((6, 5, 2))) for _ in range(2))
        alpha, sigma = (np.asarray(x)[:, None, None] for x in schedule.levels(t))
        x_t = jnp.asarray(alpha * x0 + sigma * eps)
        outputs = {p: target(p, schedule, t, x0, eps, sigma_data) for p in PREDICTIONS}
        blurred = {p: target(p, schedule, t, x0, 0 * eps, sigma_data) for p in PREDICTIONS}  # if eps is unknown
        washed = {p: target(p, schedule, t, 0 * x0, eps, sigma_data) for p in PREDICTIONS}  # if x0 is unknown
        for source, destination in itertools.product(PREDICTIONS, repeat=2):
            ours = np.asarray(convert(source, destination, schedule, t, x_t, outputs[source], sigma_data))
            expected = np.asarray(outputs[destination])
            if source != destination and source == "x0":
                expected = np.where(sigma == 0, blurred[destination], expected)
            if source != destination and source == "eps":
                expected = np.where(alpha == 0, washed[destination], expected)
            condition = {"eps": 1 / np.where(alpha == 0, 1, alpha), "x0": 1 / np.where(sigma == 0, 1, sigma)}
            error = np.abs(ours - expected) / (1 + sigma) / condition.get(source, 1.0)
            assert error.max() <= 1e-13, (source, destination)
            again = convert(destination, source, schedule, t, x_t, jnp.asarray(ours), sigma_data)
            if {source, destination} <= {"v", "flow", "edm"}:
                assert max_relative(again, outputs[source]) <= 1e-12
        for source in PREDICTIONS:
            direct = to_x0(source, schedule, t, x_t, outputs[source], sigma_data)
            assert (convert(source, "x0", schedule, t, x_t, outputs[source], sigma_data) == direct).all()


@each_schedule
def test_edm_preconditions_any_schedule(name):
    """The five promises of Karras et al. 2022, appendix B.6, for data N(0, sigma_data^2), by exact variances."""
    schedule, sigma_data = SCHEDULES[name], 0.7
    with jax.enable_x64(True):
        t = jnp.array([0.0, 0.1, 0.5, 0.9, 1.0])
        alpha, sigma = (np.asarray(x) for x in schedule.levels(t))
        c = [np.asarray(x) for x in edm_coefficients(schedule, t, sigma_data)]
        one, none = jnp.ones(5), jnp.zeros(5)
        wanted = [np.asarray(target("edm", schedule, t, *x, sigma_data)) for x in ((one, none), (none, one))]
    assert np.abs(c[2] ** 2 * (alpha**2 * sigma_data**2 + sigma**2) - 1).max() <= 1e-13  # unit input
    assert np.abs(wanted[0] ** 2 * sigma_data**2 + wanted[1] ** 2 - 1).max() <= 1e-13  # unit target
    # x0 = c_skip x_t + c_out F for x0 and eps apart, so that c_out is as small as it can be.
    assert np.abs(c[0] * alpha + c[1] * wanted[0] - 1).max() <= 1e-13
    assert np.abs(c[0] * sigma + c[1] * wanted[1]).max() <= 1e-13
    assert (c[0][0], c[1][0]) == (1, 0)  # nothing is left to the network at the data


@pytest.mark.slow
@pytest.mark.parametrize(("x64", "bound"), [(True, 1e-14), (False, 4e-7)])
def test_edm_coefficients_are_the_papers(x64, bound):
    """Table 1 of Karras et al. 2022 at sigma from 0.002 to 80, sigma_data 0.5."""
    with jax.enable_x64(x64):
        t = spaced_times(EDM(), 18, "karras")[:-1].astype(float)
        sigma = np.asarray(EDM().sigma(t), np.float64)
        c = edm_coefficients(EDM(), t)
        assert np.abs(c.c_skip * (sigma**2 + 0.25) / 0.25 - 1).max() <= bound
        assert np.abs(c.c_out / (sigma * 0.5 / np.sqrt(0.25 + sigma**2)) - 1).max() <= bound
        assert np.abs(c.c_in * np.sqrt(sigma**2 + 0.25) - 1).max() <= bound
        assert np.abs(c.c_noise - np.log(sigma) / 4).max() <= bound
        x = jnp.ones((18, 2, 1))
        assert max_relative(network_input("edm", EDM(), t, x)[:, 0, 0], c.c_in) == 0
        assert network_input("v", EDM(), t, x) is x


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cosine", "ve", "edm", "flow"])
def test_denoiser_undoes_the_preconditioning(name):
    """A network that answers for the unit-variance input it sees, as "edm" wants, is the exact denoiser again."""
    schedule, exact = SCHEDULES[name], gaussian_denoiser(SCHEDULES[name], 0.7, 0.5)

    def network(seen, t, cond):
        x_t = seen / edm_coefficients(schedule, t, cond).c_in[:, None, None]
        x0 = exact(x_t, t)
        return target("edm", schedule, t, x0, to_eps(schedule, t, x_t, x0), cond)

    x_t, t = jax.random.normal(jax.random.key(0), (3, 4, 2)), jnp.array(0.6)
    assert max_relative(denoiser(network, schedule, "edm", 0.3, sigma_data=0.3)(x_t, t), exact(x_t, t)) <= 2e-5
