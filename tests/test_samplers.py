"""Every sampler on the benchmark's exact cases, against the papers' formulas, and as a program."""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import finite_denoiser, gaussian_denoiser, max_relative

from jaxdiff.diffusion import (
    SAMPLERS,
    Cosine,
    LinearBeta,
    RectifiedFlow,
    adams_bashforth,
    ddim,
    dpmpp,
    dpmpp_2s,
    edm,
    euler,
    euler_ancestral,
    midpoint,
    noise,
    predictor_corrector,
    rk4,
    unipc,
)

spec = importlib.util.spec_from_file_location("benchmark", Path(__file__).parent.parent / "benchmarks" / "samplers.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

KEY = jax.random.key(0)
# The same as euler and ancestral (test_first_orders_are_one_sampler), or as the start of lms4.
REDUNDANT = {"ddim", "dpmpp_1s", "euler_ancestral", "sde_dpmpp_1s", "lms2", "lms3"}
STOCHASTIC = [name for name in SAMPLERS if name not in REDUNDANT and not SAMPLERS[name].deterministic]
each_sampler = pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in REDUNDANT])
each_stochastic = pytest.mark.parametrize("name", STOCHASTIC)
each_program = pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in REDUNDANT | {"unipc3"}])


@dataclass(frozen=True)
class Exploding:
    """alpha = 1, sigma = sigma_max t^rho, as EDM's."""

    sigma_max: float = 80.0
    rho: float = 7.0

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return self.sigma_max * jnp.asarray(t) ** self.rho


SCHEDULES = [Cosine(), RectifiedFlow(3.0), LinearBeta(), LinearBeta(1000, 1e-4, 0.02), Exploding(), Exploding(50.0, 1)]


@dataclass(frozen=True)
class Chosen:
    """One of SCHEDULES by an index that may be traced, so that one program serves all."""

    index: jax.Array

    def alpha(self, t):
        return jax.lax.switch(self.index, [s.alpha for s in SCHEDULES], t)

    def sigma(self, t):
        return jax.lax.switch(self.index, [s.sigma for s in SCHEDULES], t)


@functools.cache
def program(name):
    """`(index of schedule, x_T, times, key) -> x0` on N(0.7, 0.5^2); NaN if evaluated at t = 0; counts evaluations."""
    evaluations = []

    def run(index, x_T, times, key):
        schedule = Chosen(index)
        exact = gaussian_denoiser(schedule, 0.7, 0.5)

        def denoise(x, t):
            jax.debug.callback(lambda: evaluations.append(1))
            return jnp.where(t > 0, exact(x, t), jnp.nan)

        return SAMPLERS[name].sampler(denoise, schedule, x_T, times, key)

    return jax.jit(run), evaluations


def cosine_grid(steps, first=1.0, last=0.0):
    return jnp.asarray(last + (first - last) * np.sin(0.5 * np.pi * np.arange(steps, -1, -1) / steps) ** 2, jnp.float32)


# --- convergence ---


@each_sampler
def test_order_of_convergence(name):
    """The slope of theory, towards the one exact answer, so that all samplers agree in the limit."""
    with jax.enable_x64(True):
        row = benchmark.measure(name, [128, 512])
    assert row["slope"] == pytest.approx(row["order"], abs=0.25)
    assert row["gaussian_error"] <= (3e-3 if row["deterministic"] else 2e-2)
    assert row.get("points_error", 0) <= 1e-3


def test_a_wrong_order_is_noticed(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "wrong", SAMPLERS["heun"]._replace(sampler=euler))
    with jax.enable_x64(True):
        row = benchmark.measure("wrong", [16, 64])
    assert abs(row["slope"] - row["order"]) > 0.5


@each_stochastic
def test_noise_of_the_right_size(name):
    """Mean and covariance at 512 steps, exactly: right within a bound that 5 % too much noise exceeds four times."""
    schedule, method = Cosine(), SAMPLERS[name]
    with jax.enable_x64(True):
        problem = benchmark.gaussian_flow if method.order == 0 else benchmark.gaussian_denoiser
        right, wrong = (
            benchmark.moments(method.sampler, schedule, problem(schedule), benchmark.grid(512), noise=scale)
            for scale in (1.0, 1.05)
        )
    for got, exact in zip(right, (benchmark.MEAN, benchmark.COVARIANCE), strict=True):
        assert np.abs(got - exact).max() <= 0.02
    assert np.abs(wrong[1] - benchmark.COVARIANCE).max() >= 0.07


@each_stochastic
def test_samples_have_the_moments(name, monkeypatch):
    """6,000 samples with a key each and 256 steps; the same bound fails when the noise is 5 % too large."""
    schedule, method = Cosine(), SAMPLERS[name]
    keys = jax.random.split(jax.random.key(3), 6_000)
    problem = benchmark.gaussian_flow if method.order == 0 else benchmark.gaussian_denoiser
    x_T = noise(jax.random.split(jax.random.key(4), 6_000), (6_000, 3))
    original = benchmark.stochastic.draw

    def worst(scale):
        for module in (benchmark.onestep, benchmark.multistep, benchmark.stochastic):
            monkeypatch.setattr(module, "draw", lambda key, count, x: scale * original(key, count, x))
        run = jax.jit(lambda x, k: method.sampler(problem(schedule), schedule, x, cosine_grid(256), k))
        x = np.asarray(run(scale * x_T, keys), np.float64)
        deviation = np.sqrt(np.diag(benchmark.COVARIANCE))
        covariance = (np.cov(x.T) - benchmark.COVARIANCE) / np.outer(deviation, deviation)
        return max(np.abs((x.mean(0) - benchmark.MEAN) / deviation).max(), np.abs(np.linalg.eigvalsh(covariance)).max())

    assert worst(1.0) <= 0.08
    if name in ("ancestral", "sde_dpmpp_2m"):
        assert worst(1.05) > 0.08


# --- the papers' formulas, as loops in NumPy ---

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
    """On an even grid: 1; 3, -1; 23, -16, 5; 55, -59, 37, -9, over 1, 2, 12, 24 (Hairer et al. 1993, III.1)."""
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


# --- as programs ---


@each_program
def test_finite_down_to_the_data_with_every_schedule(name):
    """In float32 and 12 steps, never evaluated at t = 0, and not far from the data's N(0.7, 0.5^2)."""
    run, evaluations = program(name)
    keys = jax.random.split(KEY, 4)
    for index, schedule in enumerate(SCHEDULES):
        times = jnp.linspace(1, 0, 13) if schedule == Exploding() else cosine_grid(12)  # EDM's own grid
        x_T = noise(keys, (4, 50)) * jnp.hypot(schedule.alpha(jnp.ones(())), schedule.sigma(jnp.ones(())))
        x = np.asarray(run(jnp.array(index), x_T, times, keys))
        assert np.isfinite(x).all()
        assert abs(x.mean() - 0.7) <= 0.4  # DiffWave's chain starts from noise without the signal that it should have
        assert 0.1 <= x.std() <= 1
    jax.effects_barrier()
    evaluations.clear()
    run(jnp.array(2), x_T, cosine_grid(12, 0.9, 0.2), keys)
    jax.effects_barrier()
    assert len(evaluations) == 12 * SAMPLERS[name].evaluations  # fewer only where a step starts or ends in the infinite


@each_program
def test_more_steps_are_no_larger_a_program(name):
    def size(steps):
        run = lambda x, times: SAMPLERS[name].sampler(jax_denoiser, Cosine(), x, times, KEY)  # noqa: E731
        return jax.jit(run).lower(jnp.ones((2, 3)), cosine_grid(steps)).as_text().count("\n")

    assert size(1000) == size(10)


@each_stochastic
def test_items_with_their_own_keys_ignore_the_batch(name):
    run, _ = program(name)
    keys, times = jax.random.split(KEY, 4), cosine_grid(12)
    x_T = noise(keys, (4, 50))
    whole = run(jnp.array(0), x_T, times, keys)
    assert max_relative(run(jnp.array(0), x_T[2:3], times, keys[2:3]), whole[2:3]) <= 1e-5
    assert np.abs(whole[2] - whole[1]).max() > 0.1


@pytest.mark.parametrize("sampler", [dpmpp(3), dpmpp_2s, unipc(3), rk4], ids=["dpmpp_3m", "dpmpp_2s", "unipc3", "rk4"])
def test_samples_land_on_a_finite_set(sampler):
    points = jnp.array([[-2.0, 1.0], [0.5, 0.5], [1.5, -1.0]])
    exact, x_T = finite_denoiser(Cosine(), points), jax.random.normal(KEY, (64, 2))
    x = jax.jit(lambda x: sampler(exact, Cosine(), x, cosine_grid(30), KEY))(x_T)
    distance = np.abs(np.asarray(x)[:, None] - points).max(2)
    assert distance.min(1).max() <= 1e-3
    assert set(distance.argmin(1)) == {0, 1, 2}


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="adams_bashforth has order 1 to 4, got 5"):
        adams_bashforth(5)
    with pytest.raises(ValueError, match="unipc has order 1 to 3, got 0"):
        unipc(0)
    with pytest.raises(ValueError, match="langevin must be at least 0 and below 2, .*, got 3"):
        predictor_corrector(3.0)
