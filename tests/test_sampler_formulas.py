"""Samplers against the papers' algorithms, written as loops in NumPy, in float64 and to its precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Exploding, max_relative

from jaxdiff.diffusion import (
    Cosine,
    LinearBeta,
    RectifiedFlow,
    adams_bashforth,
    ddim,
    dpmpp,
    edm,
    euler,
    euler_ancestral,
    midpoint,
    noise,
    predictor_corrector,
    rk4,
    unipc,
)

KEY = jax.random.key(0)

A, B = 0.6, 0.4  # a denoiser that is not linear, so that no error cancels: x0_hat = A tanh(x) + B t


def numpy_denoiser(x, t):
    return A * np.tanh(x) + B * t


def jax_denoiser(x, t):
    return A * jnp.tanh(x) + B * t


def ours(sampler, schedule, x_T, times):
    return np.asarray(jax.jit(lambda x: sampler(jax_denoiser, schedule, x, jnp.asarray(times), KEY))(x_T))


def levels(schedule, times):
    return tuple(np.asarray(f(jnp.asarray(times))) for f in (schedule.alpha, schedule.sigma))


def draws(count, shape):
    return [np.asarray(noise(jax.random.fold_in(KEY, i), shape)) for i in range(count)]


X_T = np.linspace(-1.5, 2.0, 12).reshape(2, 6)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_the_papers(eta):
    """Song et al. 2021, eq. 12 with 16, in their cumulative products."""
    with jax.enable_x64(True):
        schedule, times, x = LinearBeta(), np.linspace(1, 0, 8), X_T
        products, z = levels(schedule, times)[0] ** 2, draws(7, x.shape)
        for i, (now, then) in enumerate(zip(products, products[1:], strict=False)):
            x0 = numpy_denoiser(x, times[i])
            eps = (x - np.sqrt(now) * x0) / np.sqrt(1 - now)
            deviation = eta * np.sqrt((1 - then) / (1 - now)) * np.sqrt(1 - now / then)
            x = np.sqrt(then) * x0 + np.sqrt(1 - then - deviation**2) * eps + deviation * z[i]
        assert max_relative(ours(ddim(eta), schedule, X_T, times), x) <= 1e-13


def test_euler_ancestral_is_k_diffusions():
    with jax.enable_x64(True):
        schedule, times, x = Exploding(10.0, 3), np.linspace(1, 0, 8), 10 * X_T
        sigmas, z = levels(schedule, times)[1], draws(7, x.shape)
        for i, (now, then) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            up = 0.7 * np.sqrt(then**2 * (now**2 - then**2) / now**2)
            x = x + (x - numpy_denoiser(x, times[i])) / now * (np.sqrt(then**2 - up**2) - now) + up * z[i]
        assert max_relative(ours(euler_ancestral(0.7), schedule, 10 * X_T, times), x) <= 1e-13


@pytest.mark.parametrize("churn", [0.0, 2.0, 40.0])
def test_edm_is_the_papers(churn):
    """Karras et al. 2022, algorithm 2; time is their sigma over 10, so that the raised level has a time too."""
    with jax.enable_x64(True):
        schedule, times, x = Exploding(10.0, 1), np.linspace(1, 0, 12) ** 2, 10 * X_T
        z = draws(11, x.shape)
        for i, (now, then) in enumerate(zip(10 * times, 10 * times[1:], strict=False)):
            gamma = min(churn / 11, np.sqrt(2) - 1) if 0.1 <= now <= 5 else 0
            raised = now + gamma * now
            x = x + np.sqrt(raised**2 - now**2) * 1.01 * z[i]
            slope = (x - numpy_denoiser(x, raised / 10)) / raised
            x_next = x + (then - raised) * slope
            if then > 0:
                slope = (slope + (x_next - numpy_denoiser(x_next, then / 10)) / then) / 2
                x_next = x + (then - raised) * slope
            x = x_next
        sampler = edm(churn, s_noise=1.01, s_min=0.1, s_max=5.0)
        assert max_relative(ours(sampler, schedule, 10 * X_T, times), x) <= 1e-13


def test_edm_never_goes_beyond_the_first_level():
    with jax.enable_x64(True):
        times, x = np.array([1.0, 0.9, 0.2]), 10 * X_T  # 0.9 would be raised to 1.27
        z, denoise = draws(2, x.shape), lambda x, sigma: numpy_denoiser(x, sigma / 10)
        for i, (now, raised, then) in enumerate([(10.0, 10.0, 9.0), (9.0, 10.0, 2.0)]):
            x = x + np.sqrt(raised**2 - now**2) * z[i]
            slope = (x - denoise(x, raised)) / raised
            x_next = x + (then - raised) * slope
            x = x + (then - raised) * (slope + (x_next - denoise(x_next, then)) / then) / 2
        sampler = edm(1e3, s_noise=1.0, s_max=100.0)
        assert max_relative(ours(sampler, Exploding(10.0, 1), 10 * X_T, times), x) <= 1e-13


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpmpp_2m_is_the_papers(eta):
    """Lu et al. 2022, algorithm 2, and eq. 19 for the SDE; the last step to sigma = 0 is x0_hat."""
    with jax.enable_x64(True):
        schedule, times, x, before = LinearBeta(), np.linspace(1, 0, 9), X_T, None
        alpha, sigma = levels(schedule, times)
        logs, z = np.log(alpha[:-1] / sigma[:-1]), draws(8, x.shape)
        for i in range(7):
            h, x0 = logs[i + 1] - logs[i], numpy_denoiser(x, times[i])
            mean = x0 if before is None else x0 + (x0 - before) * h / (2 * (logs[i] - logs[i - 1]))
            x = sigma[i + 1] / sigma[i] * np.exp(-eta * h) * x + alpha[i + 1] * (1 - np.exp(-(1 + eta) * h)) * mean
            x, before = x + eta * sigma[i + 1] * np.sqrt(1 - np.exp(-2 * h)) * z[i], x0
        x = numpy_denoiser(x, times[7])
        assert max_relative(ours(dpmpp(2, eta), schedule, X_T, times), x) <= 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_the_papers(order):
    """Zhao et al. 2023, algorithms 1 and 2 for data prediction with B2, solving for the weights a as they do."""

    def update(x, i, x0, others, h):
        """From times[i] over h; `others` are (place r, x0_hat) beside x0."""
        places, n = np.array([r for r, _ in others]), len(others)
        phi, b = np.expm1(-h), []
        for k in range(1, n + 1):  # b_k = k! h phi_(k+1)(-h) / B
            phi = (phi / -h if k > 1 else np.expm1(-h) / -h) - 1 / np.prod(np.arange(1.0, k + 1))
            b.append(np.prod(np.arange(1.0, k + 1)) * phi / np.expm1(-h))
        rho = np.linalg.solve(places ** np.arange(n)[:, None], b) if n > 1 else np.full(n, 0.5)
        extra = sum(w / r * (d - x0) for w, (r, d) in zip(rho, others, strict=True))
        return sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * (x0 + extra)

    with jax.enable_x64(True):
        schedule, times = LinearBeta(), np.linspace(1, 0.02, 9)
        alpha, sigma = levels(schedule, times)
        logs = np.log(alpha / sigma)
        x, seen = X_T, [numpy_denoiser(X_T, times[0])]
        for i in range(8):
            h, n = logs[i + 1] - logs[i], min(i + 1, order)
            others = [((logs[i - k] - logs[i]) / h, seen[i - k]) for k in range(1, n)]
            predicted = update(x, i, seen[i], others, h)
            if i < 7:
                seen.append(numpy_denoiser(predicted, times[i + 1]))
                x = update(x, i, seen[i], [*others, (1.0, seen[-1])], h)
        assert max_relative(ours(unipc(order), schedule, X_T, times), predicted) <= 1e-11


def test_adams_bashforth_has_the_classical_weights():
    """At even times: 1; 3, -1; 23, -16, 5; 55, -59, 37, -9, over 1, 2, 12, 24 (Hairer et al. 1993, III.1)."""
    classical = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    with jax.enable_x64(True):
        times, x, slopes = np.linspace(1, 0.1, 10), X_T, []
        for t, then in zip(times, times[1:], strict=False):
            slopes.insert(0, (x - numpy_denoiser(x, t)) / t)
            x = x + (then - t) * sum(w * k for w, k in zip(classical[min(len(slopes), 4) - 1], slopes, strict=False))
        assert max_relative(ours(adams_bashforth(4), RectifiedFlow(), X_T, times), x) <= 1e-12


@pytest.mark.parametrize("sampler", [midpoint, rk4], ids=["midpoint", "rk4"])
def test_runge_kutta_is_the_textbooks(sampler):
    slope = lambda x, t: (x - numpy_denoiser(x, t)) / t  # noqa: E731
    with jax.enable_x64(True):
        times, x = np.linspace(1, 0.1, 6) ** 2, X_T
        for t, then in zip(times, times[1:], strict=False):
            h, k1 = then - t, slope(x, t)
            k2 = slope(x + h / 2 * k1, t + h / 2)
            k3 = slope(x + h / 2 * k2, t + h / 2)
            k4 = slope(x + h * k3, then)
            x = x + h * (k2 if sampler is midpoint else (k1 + 2 * k2 + 2 * k3 + k4) / 6)
        assert max_relative(ours(sampler, RectifiedFlow(), X_T, times), x) <= 1e-12


def test_first_orders_are_one_sampler():
    with jax.enable_x64(True):
        times = np.linspace(1, 0, 7)
        for same in (ddim(0.0), dpmpp(1), adams_bashforth(1)):
            assert max_relative(ours(same, Cosine(), X_T, times), ours(euler, Cosine(), X_T, times)) <= 1e-12
        ancestral = ours(ddim(1.0), Cosine(), X_T, times)
        assert max_relative(ours(dpmpp(1, eta=1.0), Cosine(), X_T, times), ancestral) <= 1e-12
        assert max_relative(ours(predictor_corrector(corrections=0), Cosine(), X_T, times), ancestral) <= 1e-12
