"""Every sampler on the benchmark's exact cases, and as a program; test_sampler_formulas.py has the papers' loops."""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Exploding, finite_denoiser, gaussian_denoiser, max_relative

from jaxdiff.diffusion import (
    SAMPLERS,
    Cosine,
    LinearBeta,
    RectifiedFlow,
    adams_bashforth,
    dpmpp,
    dpmpp_2s,
    euler,
    noise,
    predictor_corrector,
    rk4,
    unipc,
)

spec = importlib.util.spec_from_file_location("benchmark", Path(__file__).parent.parent / "benchmarks" / "samplers.py")
assert spec is not None and spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

KEY = jax.random.key(0)
# The same as euler and ancestral (test_sampler_formulas.py), or as the start of lms4.
REDUNDANT = {"ddim", "dpmpp_1s", "euler_ancestral", "sde_dpmpp_1s", "lms2", "lms3"}
STOCHASTIC = [name for name in SAMPLERS if name not in REDUNDANT and not SAMPLERS[name].deterministic]
each_sampler = pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in REDUNDANT])
each_stochastic = pytest.mark.parametrize("name", STOCHASTIC)
each_program = pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in REDUNDANT | {"unipc3"}])


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


def cosine_times(steps, first=1.0, last=0.0):
    return jnp.asarray(last + (first - last) * np.sin(0.5 * np.pi * np.arange(steps, -1, -1) / steps) ** 2, jnp.float32)


# --- convergence ---


@pytest.mark.slow
@each_sampler
def test_order_of_convergence(name):
    """The slope of theory, towards the one exact answer, so that all samplers agree in the limit."""
    with jax.enable_x64(True):
        row = benchmark.measure(name, [128, 512])
    assert row["slope"] == pytest.approx(row["order"], abs=0.25)
    assert row["gaussian_error"] <= (3e-3 if row["deterministic"] else 2e-2)
    assert row.get("points_error", 0) <= 1e-3


@pytest.mark.slow
def test_a_wrong_order_is_noticed(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "wrong", SAMPLERS["heun"]._replace(sampler=euler))
    with jax.enable_x64(True):
        row = benchmark.measure("wrong", [16, 64])
    assert abs(row["slope"] - row["order"]) > 0.5


@each_stochastic
def test_noise_of_the_right_size(name):
    """Mean and covariance at 512 steps, exactly: right within a bound that 5 % too much noise exceeds thrice over."""
    schedule, named = Cosine(), SAMPLERS[name]
    with jax.enable_x64(True):
        problem = benchmark.gaussian_flow if named.order == 0 else benchmark.gaussian_denoiser
        right, wrong = (
            benchmark.moments(named.sampler, schedule, problem(schedule), benchmark.cosine_times(512), noise=scale)
            for scale in (1.0, 1.05)
        )
    for got, exact in zip(right, (benchmark.MEAN, benchmark.COVARIANCE), strict=True):
        assert np.abs(got - exact).max() <= 0.02
    assert np.abs(wrong[1] - benchmark.COVARIANCE).max() >= 0.07


@pytest.mark.slow
@each_stochastic
def test_samples_have_the_moments(name, monkeypatch):
    """6,000 samples with a key each and 256 steps; the same bound fails when the noise is 5 % too large."""
    schedule, named = Cosine(), SAMPLERS[name]
    keys = jax.random.split(jax.random.key(3), 6_000)
    problem = benchmark.gaussian_flow if named.order == 0 else benchmark.gaussian_denoiser
    x_T = noise(jax.random.split(jax.random.key(4), 6_000), (6_000, 3))
    original = benchmark.stochastic.draw

    def worst(scale):
        for module in (benchmark.onestep, benchmark.multistep, benchmark.stochastic):
            monkeypatch.setattr(module, "draw", lambda key, count, x: scale * original(key, count, x))
        run = jax.jit(lambda x, k: named.sampler(problem(schedule), schedule, x, cosine_times(256), k))
        x = np.asarray(run(scale * x_T, keys), np.float64)
        deviation = np.sqrt(np.diag(benchmark.COVARIANCE))
        covariance = (np.cov(x.T) - benchmark.COVARIANCE) / np.outer(deviation, deviation)
        return max(np.abs((x.mean(0) - benchmark.MEAN) / deviation).max(), np.abs(np.linalg.eigvalsh(covariance)).max())

    assert worst(1.0) <= 0.08
    if name in ("ancestral", "sde_dpmpp_2m"):
        assert worst(1.05) > 0.08


# --- as programs ---


@pytest.mark.slow
@each_program
def test_finite_down_to_the_data_with_every_schedule(name):
    """In float32 and 12 steps, never evaluated at t = 0, and not far from the data's N(0.7, 0.5^2)."""
    run, evaluations = program(name)
    keys = jax.random.split(KEY, 4)
    for index, schedule in enumerate(SCHEDULES):
        times = jnp.linspace(1, 0, 13) if schedule == Exploding() else cosine_times(12)  # EDM's own times
        x_T = noise(keys, (4, 50)) * jnp.hypot(schedule.alpha(jnp.ones(())), schedule.sigma(jnp.ones(())))
        x = np.asarray(run(jnp.array(index), x_T, times, keys))
        assert np.isfinite(x).all()
        assert abs(x.mean() - 0.7) <= 0.4  # DiffWave's chain starts from noise without the signal that it should have
        assert 0.1 <= x.std() <= 1
    jax.effects_barrier()
    evaluations.clear()
    run(jnp.array(2), x_T, cosine_times(12, 0.9, 0.2), keys)
    jax.effects_barrier()
    assert len(evaluations) == 12 * SAMPLERS[name].evaluations  # fewer only where a step starts or ends in the infinite


@each_program
def test_more_steps_are_no_larger_a_program(name):
    def size(steps):
        run = lambda x, times: SAMPLERS[name].sampler(lambda x, t: 0.5 * x, Cosine(), x, times, KEY)  # noqa: E731
        return jax.jit(run).lower(jnp.ones((2, 3)), cosine_times(steps)).as_text().count("\n")

    assert size(1000) == size(10)


@pytest.mark.slow
@each_stochastic
def test_items_with_their_own_keys_ignore_the_batch(name):
    run, _ = program(name)
    keys, times = jax.random.split(KEY, 4), cosine_times(12)
    x_T = noise(keys, (4, 50))
    whole = run(jnp.array(0), x_T, times, keys)
    assert max_relative(run(jnp.array(0), x_T[2:3], times, keys[2:3]), whole[2:3]) <= 1e-5
    assert np.abs(whole[2] - whole[1]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [dpmpp(3), dpmpp_2s, unipc(3), rk4], ids=["dpmpp_3m", "dpmpp_2s", "unipc3", "rk4"])
def test_samples_land_on_a_finite_set(sampler):
    points = jnp.array([[-2.0, 1.0], [0.5, 0.5], [1.5, -1.0]])
    exact, x_T = finite_denoiser(Cosine(), points), jax.random.normal(KEY, (64, 2))
    x = jax.jit(lambda x: sampler(exact, Cosine(), x, cosine_times(30), KEY))(x_T)
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
