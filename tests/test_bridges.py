"""Bridges against closed forms, moment equations of the pinned SDE, and exact denoisers of Gaussian pairs."""

import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import max_relative, slope
from scipy.integrate import quad, solve_ivp
from scipy.stats import norm

from jaxdiff.diffusion import (
    BRIDGE_SAMPLERS,
    BRIDGES,
    Bridge,
    FlowBridge,
    RectifiedFlow,
    Schedule,
    Spacing,
    VEBridge,
    VPBridge,
    bridge_denoiser,
    bridge_loss,
    bridge_ode,
    bridge_sde,
    dbim,
    lognormal_times,
    logsnr,
    noise,
    prior_scale,
    spaced_times,
)

pytestmark = pytest.mark.usefixtures("optimised")

MEAN, STD, Y = 0.7, 0.5, -1.2  # x0 given y is N(MEAN, STD^2)
KEY = jax.random.key(0)
RBG = jax.random.key(0, impl="rbg")  # draws millions of numbers faster than the default generator
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # small programs: compiling them is the cost
DIFFUSIONS = [VEBridge(), VEBridge(5.0, 0.2), VPBridge(), VPBridge(0.1, 4.0, 1.0)]
KINDS = [VEBridge(), VPBridge(), FlowBridge(), FlowBridge(0.4)]
each_bridge = pytest.mark.parametrize("bridge", KINDS, ids=["ve", "vp", "flow", "noisy-flow"])
each_diffusion = pytest.mark.parametrize("bridge", DIFFUSIONS, ids=["ve", "ve-steep", "vp", "vp-flat"])


def drift_and_diffusion(bridge):
    """f(t) and g(t)^2 of the papers, as float64 functions."""
    if isinstance(bridge, VEBridge):
        return lambda t: 0.0, lambda t: bridge.c * bridge.k ** (2 * t)
    beta = lambda t: bridge.beta_min + t * (bridge.beta_max - bridge.beta_min)  # noqa: E731
    return lambda t: -beta(t) / 2, lambda t: bridge.c * beta(t)


def scale_and_clock(bridge, t):
    """alpha(t) and V(t) by quadrature of their definitions."""
    f, g2 = drift_and_diffusion(bridge)
    alpha = lambda t: np.exp(quad(f, 0, t)[0])  # noqa: E731
    return alpha(t), quad(lambda s: g2(s) / alpha(s) ** 2, 0, t, epsabs=0, epsrel=1e-12)[0]


def weights(bridge, t):
    """The marginal in float64."""
    with jax.enable_x64(True):
        return tuple(np.asarray(w) for w in bridge.marginal(jnp.asarray(t, jnp.float64)))


def gaussian(bridge, std=STD):
    """The exact denoiser for x0 ~ N(MEAN, std^2) given Y: E[x0 | x_t, y]."""

    def denoise(x_t, t):
        w_x, w_y, s = bridge.marginal(t)
        variance = (w_x * std) ** 2 + s**2
        gain = jnp.where(variance > 0, w_x * std**2 / jnp.where(variance > 0, variance, 1), 0)
        return MEAN + gain * (x_t - w_x * MEAN - w_y * Y)

    return denoise


@functools.partial(jax.jit, static_argnames=("sampler", "bridge"))
def draw(sampler, bridge, y, times, key, std=STD):
    return sampler(gaussian(bridge, std), bridge, y, times, key)


def uniform(steps, dtype=jnp.float32):
    return jnp.linspace(1, 0, steps + 1, dtype=dtype)


# --- marginals ---


@each_bridge
def test_ends_are_exact(bridge):
    assert isinstance(bridge, Bridge)
    for marginal in (bridge.marginal, jax.jit(bridge.marginal)):
        w_x, w_y, std = (np.asarray(w) for w in marginal(jnp.array([0.0, 1.0])))
        assert (w_x.tolist(), w_y.tolist()) == ([1, 0], [0, 1])
        assert std.tolist() == pytest.approx([0, getattr(bridge, "noise_std", 0)], abs=0, rel=1e-6)


@each_diffusion
def test_marginal_is_the_papers_closed_form(bridge):
    (scale_1, clock_1), times = scale_and_clock(bridge, 1.0), np.linspace(0.02, 0.98, 9)
    scale, clock = np.array([scale_and_clock(bridge, t) for t in times]).T
    left = clock_1 - clock
    exact = scale * left / clock_1, scale / scale_1 * clock / clock_1, scale * np.sqrt(left * clock / clock_1)
    for ours, theirs in zip(weights(bridge, times), exact, strict=True):
        assert np.abs(ours / theirs - 1).max() <= 1e-8
    single = bridge.marginal(jnp.asarray(times, jnp.float32))
    for ours, theirs in zip(single, weights(bridge, np.float32(times)), strict=True):
        assert np.abs(np.asarray(ours, np.float64) / theirs - 1).max() <= 1e-5


@each_diffusion
def test_marginal_solves_the_moment_equations_of_the_pinned_sde(bridge):
    """dx = (f x + g^2 grad log p(x_1 = y | x)) dt + g dw, its mean and variance integrated in float64."""
    f, g2 = drift_and_diffusion(bridge)
    x0, scale_1 = 2.0, scale_and_clock(bridge, 1.0)[0]
    clock_1 = scale_and_clock(bridge, 1.0)[1]

    def slopes(t, state):
        mean, variance, log_scale, clock = state
        scale = np.exp(log_scale)
        pull = g2(t) / (scale**2 * (clock_1 - clock))  # (y / alpha_1 - x / alpha) / (V_1 - V) g^2 / alpha
        return (
            f(t) * mean + pull * (scale / scale_1 * Y - mean),
            2 * (f(t) - pull) * variance + g2(t),
            f(t),
            g2(t) / scale**2,
        )

    times = np.array([0.1, 0.4, 0.7, 0.9])
    path = solve_ivp(slopes, (0, 0.9), (x0, 0, 0, 0), "DOP853", times, rtol=1e-10, atol=1e-12).y
    w_x, w_y, std = weights(bridge, times)
    assert np.abs(path[0] - (w_x * x0 + w_y * Y)).max() <= 1e-7
    assert np.abs(path[1] / std**2 - 1).max() <= 1e-6


def test_flow_bridge_is_straight():
    t = np.linspace(0, 1, 5)
    assert np.allclose(weights(FlowBridge(0.4), t), (1 - t, t, 0.4 * t), rtol=1e-15, atol=0)


# --- bridges as schedules ---


@each_bridge
def test_levels_are_what_is_x0_and_what_is_not(bridge):
    assert isinstance(bridge, Schedule)
    t, (w_x, w_y, std) = np.linspace(0, 1, 9), weights(bridge, np.linspace(0, 1, 9))
    with jax.enable_x64(True):
        assert (bridge.alpha(jnp.asarray(t)) == w_x).all()
        assert max_relative(bridge.sigma(jnp.asarray(t)), np.sqrt(w_y**2 + std**2)) <= 1e-15
    assert float(prior_scale(bridge)) == pytest.approx(np.hypot(1, getattr(bridge, "noise_std", 0)))


@pytest.mark.parametrize("bridge", DIFFUSIONS + KINDS[2:], ids=str)
@pytest.mark.parametrize("times", [64, 513])
def test_logsnr_falls_from_inf_to_minus_inf(bridge, times):
    value = np.asarray(logsnr(bridge, jnp.linspace(0, 1, times)))
    assert (value[0], value[-1]) == (np.inf, -np.inf)
    assert np.isfinite(value[1:-1]).all()
    assert (np.diff(value) < 0).all()


def test_flow_bridge_without_noise_is_the_rectified_flow():
    t = jnp.linspace(0, 1, 513)
    assert (FlowBridge().alpha(t) == RectifiedFlow().alpha(t)).all()
    assert (FlowBridge().sigma(t) == RectifiedFlow().sigma(t)).all()


@each_bridge
def test_lognormal_times_have_their_quantiles(bridge):
    t = jax.jit(lognormal_times(bridge, -1.2, 1.2), static_argnums=1)(KEY, 1024)
    level = np.asarray(-0.5 * logsnr(bridge, t), np.float64)
    for q in (0.05, 0.5, 0.95):
        assert np.quantile(level, q) == pytest.approx(-1.2 + 1.2 * norm.ppf(q), abs=1e-2)


@pytest.mark.slow
@each_bridge
@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_spaced_times_fall_from_one_to_zero(bridge, spacing):
    for steps in (1, 7, 64):
        times = np.asarray(spaced_times(bridge, steps, spacing))
        assert np.isfinite(times).all()
        assert (len(times), times[0], times[-1]) == (steps + 1, 1, 0)
        assert (np.diff(times) < 0).all()


def test_tables():
    assert list(BRIDGES) == ["ve", "vp", "flow"]
    assert [kind() for kind in BRIDGES.values()] == KINDS[:3]
    assert {name: named.deterministic for name, named in BRIDGE_SAMPLERS.items()} == {
        "bridge_sde": False, "bridge_ode": True, "dbim": False
    }  # fmt: skip


# --- loss ---


@each_bridge
def test_loss_of_a_linear_network_has_its_closed_form(bridge):
    """x_t as the estimate of x0: the loss is E (w_x - 1)^2 x0^2 + 2 (w_x - 1) w_y x0 y + w_y^2 y^2 + std^2."""
    shape, times = (64, 100, 25), lambda key, batch: jnp.linspace(0.01, 0.99, batch)
    x0, y = jnp.full(shape, 2.0), jnp.full(shape, Y)
    run = lambda: bridge_loss(lambda x_t, t, c: x_t, bridge, x0, y, None, KEY, sample_t=times)[0]  # noqa: E731
    loss = jax.jit(run, compiler_options=FAST_COMPILE)()
    w_x, w_y, std = weights(bridge, np.linspace(0.01, 0.99, 64))
    assert float(loss) == pytest.approx(np.mean(((w_x - 1) * 2 + w_y * Y) ** 2 + std**2), rel=0.01)


def test_loss_adds_the_auxiliary_distance_and_passes_the_condition():
    x0, y, cond = jnp.full((2, 3, 1), 2.0), jnp.zeros((2, 3, 1)), jnp.full((2, 3, 1), 5.0)
    network = lambda x_t, t, cond: cond  # noqa: E731
    distance = lambda x0_hat, x0, cond: jnp.abs(x0_hat - x0).sum((1, 2))  # noqa: E731
    options: dict[str, Any] = dict(auxiliary=distance, auxiliary_weight=0.1)
    loss, metrics = bridge_loss(network, VEBridge(), x0, y, cond, KEY, **options)
    assert float(loss) == pytest.approx(9 + 0.1 * 9)
    assert float(metrics["auxiliary"]) == 9


# --- samplers ---


@pytest.mark.slow
@each_diffusion
def test_one_step_of_the_sde_is_the_reference_posterior(bridge):
    """x_u given x_t and x0 by conditioning the unpinned diffusion's Gaussian joint: y plays no part in it."""
    t, u, x0 = 0.6, 0.35, 0.8
    (scale_t, clock_t), (scale_u, clock_u) = scale_and_clock(bridge, t), scale_and_clock(bridge, u)
    gain = scale_u * scale_t * clock_u / (scale_t**2 * clock_t)
    variance = scale_u**2 * clock_u - gain * scale_u * scale_t * clock_u
    with jax.enable_x64(True):
        known, y = lambda x, t: jnp.full_like(x, x0), jnp.full((1, 1000), Y, jnp.float64)
        run = jax.jit(lambda times: bridge_sde(known, bridge, y, times, KEY))
        x_t, x_u = run(jnp.array([1, t])), run(jnp.array([1, t, u]))
        z = [noise(jax.random.fold_in(KEY, i), y.shape).astype(float) for i in range(2)]
        w_x, w_y, std = weights(bridge, t)
        assert max_relative(x_t, w_x * x0 + w_y * Y + std * z[0]) <= 1e-9
        assert max_relative(x_u, scale_u * x0 + gain * (x_t - scale_t * x0) + np.sqrt(variance) * z[1]) <= 1e-7


@each_diffusion
def test_one_step_of_the_ode_is_the_papers_update(bridge):
    """Chen et al. 2023, first-order ODE sampler, written with alpha, sigma and their bars."""
    t, u, x0 = 0.7, 0.3, 0.8
    (a_t, v_t), (a_u, v_u), (a_1, v_1) = (scale_and_clock(bridge, time) for time in (t, u, 1.0))
    s_t, s_u, bar_t, bar_u = np.sqrt([v_t, v_u, v_1 - v_t, v_1 - v_u])
    x_t = sum(w * v for w, v in zip(weights(bridge, t)[:2], (x0, Y), strict=True))
    carried = a_u * s_u * bar_u / (a_t * s_t * bar_t) * x_t
    estimate = a_u / v_1 * (bar_u**2 - bar_t * s_u * bar_u / s_t) * -x0  # the second estimate differs from the first
    prior = a_u / (a_1 * v_1) * (s_u**2 - s_t * s_u * bar_u / bar_t) * Y
    with jax.enable_x64(True):
        estimates = lambda x, time: jnp.where(time == 1, x0, -x0) * jnp.ones_like(x)  # noqa: E731
        x_u = bridge_ode(estimates, bridge, jnp.full((1, 1), Y, jnp.float64), jnp.array([1, t, u]), KEY)
    assert float(x_u[0, 0]) == pytest.approx(carried + estimate + prior, rel=1e-8)


@pytest.mark.parametrize("noise_std", [0.0, 0.4])
@pytest.mark.parametrize("sampler", [bridge_ode, bridge_sde])
def test_flow_bridge_takes_euler_steps(sampler, noise_std):
    """dx/dt = (x - x0_hat) / t, by a loop; without noise too, where x_t has no z to carry."""
    with jax.enable_x64(True):
        y, estimate, times = jnp.linspace(-2.0, 2, 5), lambda x, t: jnp.tanh(2 * x) + t, np.linspace(1, 0, 6)
        x = sampler(estimate, FlowBridge(noise_std), y, jnp.asarray(times), KEY)
        exact = np.asarray(y + noise_std * noise(jax.random.fold_in(KEY, len(times)), y.shape))
        for t, u in zip(times[:-1], times[1:], strict=True):
            exact = exact + (u - t) * (exact - (np.tanh(2 * exact) + t)) / t
        assert max_relative(x, exact) <= (1e-12 if sampler is bridge_ode or noise_std == 0 else 1e-6)


@pytest.mark.parametrize("bridge", KINDS[:3], ids=["ve", "vp", "flow"])
@pytest.mark.parametrize("steps", [1, 7])
def test_ode_from_y_ends_at_the_conditional_mean(bridge, steps):
    x = draw(bridge_ode, bridge, jnp.full((2, 3), Y), uniform(steps), KEY)
    assert np.abs(x - MEAN).max() <= 3e-6


IMPLICIT = dbim()
SAMPLERS = {"sde": bridge_sde, "dbim": IMPLICIT}


def recursion(bridge, steps, eta):
    """Mean and variance of the samples, through the affine steps in float64 (Zheng et al. 2024)."""
    levels = np.stack(weights(bridge, np.linspace(1, 0, steps + 1)), -1)
    mean, variance = Y, levels[0, 2] ** 2
    for (x_t, y_t, s_t), (x_u, y_u, s_u) in zip(levels[:-1], levels[1:], strict=True):
        fresh = (eta if s_t > 0 else 1) * np.sqrt(max(s_u**2 - (y_u / y_t * s_t) ** 2, 0))
        r = np.sqrt(max(s_u**2 - fresh**2, 0)) / s_t if s_t > 0 else y_u / y_t
        gain = x_t * STD**2 / max((x_t * STD) ** 2 + s_t**2, 1e-300)
        slope_x = r + (x_u - r * x_t) * gain
        mean = slope_x * mean + (x_u - r * x_t) * (MEAN - gain * (x_t * MEAN + y_t * Y)) + (y_u - r * y_t) * Y
        variance = slope_x**2 * variance + fresh**2
    return mean, variance


CASES = [("sde", VEBridge()), ("sde", VPBridge()), ("dbim", VEBridge()), ("dbim", FlowBridge(0.4))]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bridge"), CASES, ids=lambda c: c if isinstance(c, str) else type(c).__name__)
def test_samples_have_the_moments_of_x0_given_y(name, bridge):
    """60,000 samples of 400 steps: mean and spread right within bounds that a standard deviation 5 % off fails."""
    y, n = np.full((1000, 60), Y, np.float32), 60_000
    steps, bound = 400, 0.025
    times = np.linspace(1, 0, steps + 1, dtype=np.float32)
    exact = np.asarray(draw(SAMPLERS[name], bridge, y, times, RBG, STD), np.float64)
    assert abs(exact.mean() - MEAN) <= 5 * STD / np.sqrt(n)
    assert abs(exact.std() / STD - 1) <= bound
    wrong = np.asarray(draw(SAMPLERS[name], bridge, y, times, RBG, 1.05 * STD), np.float64)
    assert abs(wrong.std() / STD - 1) > bound
    assert exact.var() == pytest.approx(recursion(bridge, steps, name == "sde")[1], rel=5 * np.sqrt(2 / n))


@pytest.mark.parametrize(("name", "bridge"), CASES, ids=lambda c: c if isinstance(c, str) else type(c).__name__)
def test_moments_converge_at_order_one(name, bridge):
    steps = [64, 128, 256, 512]
    errors = [abs(recursion(bridge, n, name == "sde")[1] / STD**2 - 1) for n in steps]
    assert slope(steps, errors) == pytest.approx(1, abs=0.25)
    assert abs(recursion(bridge, 512, name == "sde")[0] - MEAN) <= 1e-9


@functools.partial(jax.jit, static_argnames=("sampler", "bridge"))
def answers(sampler, bridge, times):
    """Samples for no noise, and for a unit of each number that is drawn, under `units` below."""
    return sampler(gaussian(bridge), bridge, jnp.full((len(times) + 2, 1), Y, times.dtype), times, KEY)


@pytest.mark.slow
@each_bridge
@pytest.mark.parametrize("name", BRIDGE_SAMPLERS)
def test_samplers_converge_at_all_spaced_times(name, bridge, monkeypatch):
    """Mean and variance of the program's samples, exactly; 256 steps have a third of the error of 64 or less."""
    units = lambda key, i, y: jnp.where(jnp.arange(-1, len(y) - 1)[:, None] == i, 1.0, 0)  # noqa: E731
    monkeypatch.setattr("jaxdiff.diffusion.bridges.draw", units)
    certain = bridge == FlowBridge() or (name == "bridge_ode" and bridge != FlowBridge(0.4))  # one y has one answer
    for spacing in get_args(Spacing):
        errors = []
        for steps in (64, 256):
            with jax.enable_x64(True):
                times = spaced_times(bridge, steps, spacing).astype(float)
                x = np.asarray(answers(BRIDGE_SAMPLERS[name].sampler, bridge, times))[:, 0]
            assert abs(x[0] - MEAN) <= 1e-9
            errors.append(abs(np.sqrt(((x[1:] - x[0]) ** 2).sum()) / STD - (not certain)))
        assert errors[0] <= (1e-9 if certain else 0.1), spacing
        assert errors[1] <= 0.35 * errors[0] + 1e-9, spacing


def test_sde_keeps_correlations():
    """Two correlated channels through the exact joint denoiser: the covariance of the samples is the data's."""
    cov, mean, bridge = np.array([[0.3, 0.18], [0.18, 0.2]]), jnp.array([0.5, -0.3]), VEBridge()

    def denoise(x, t):
        w_x, w_y, s = bridge.marginal(t)
        gain = w_x * cov @ jnp.linalg.inv(w_x**2 * cov + s**2 * jnp.eye(2) + 1e-12 * jnp.eye(2))
        return mean + (x - w_x * mean - w_y * Y) @ gain.T

    times, y = uniform(400), jnp.full((50_000, 2), Y)
    x = np.asarray(jax.jit(lambda y: bridge_sde(denoise, bridge, y, times, RBG))(y), np.float64)
    assert np.abs(np.cov(x.T) / cov - 1).max() <= 0.04
    assert np.abs(x.mean(0) - mean).max() <= 0.01


def test_items_with_their_own_keys_ignore_the_batch():
    keys, sampler = jax.random.split(KEY, 4), dbim(0.5)
    y = np.random.default_rng(1).standard_normal((4, 3, 2), np.float32)
    whole = draw(sampler, VPBridge(), y, uniform(5), keys)
    assert max_relative(draw(sampler, VPBridge(), y[1:3], uniform(5), keys[1:3]), whole[1:3]) <= 1e-6


@each_bridge
def test_samplers_are_finite_and_end_at_the_last_estimate(bridge):
    """In float32 up to both ends; at t = 0 only x0_hat is left, so bounded estimates give bounded samples."""
    estimate = lambda x, t: jnp.sin(3 * x)  # noqa: E731
    y = 10 * jax.random.normal(KEY, (4, 50))
    run = lambda y: [sampler(estimate, bridge, y, uniform(40), KEY) for sampler in (bridge_ode, bridge_sde)]  # noqa: E731
    assert np.abs(jax.jit(run, compiler_options=FAST_COMPILE)(y)).max() <= 1


def test_bridge_denoiser_gives_every_item_its_time():
    seen = bridge_denoiser(lambda x_t, t, cond: x_t * t[:, None, None] + cond, 1.0)
    x = seen(jnp.ones((3, 2, 1)), jnp.array(0.25))
    assert (x == 1.25).all()
