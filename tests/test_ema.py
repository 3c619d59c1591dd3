"""Post-hoc averages of the weights against averages that are computed directly from a known trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.training.ema import (
    SIGMA_RELS,
    Snapshot,
    exponent,
    init_averages,
    reconstruct,
    reconstruction_coefficients,
    update_averages,
)

STEPS = 2000


def profile(sigma_rel: float, step: int, length: int = STEPS) -> np.ndarray:
    """How much each update counts in the average: the integral of eq. 2's weights over its unit of time."""
    edges = np.minimum(np.arange(length + 1) / step, 1) ** (exponent(sigma_rel) + 1)
    return np.diff(edges)


def trajectory() -> np.ndarray:
    """Weights [steps, 6] that move as in training: towards a point, with noise correlated over tens of steps."""
    rng, k = np.random.default_rng(0), np.arange(1, STEPS + 1)[:, None]
    noise = rng.standard_normal((STEPS, 6))
    for i in range(1, STEPS):
        noise[i] = 0.97 * noise[i - 1] + 0.25 * noise[i]
    return 3 + rng.standard_normal(6) * (k / 300) ** -0.7 + 0.3 * noise


@pytest.fixture(scope="module")
def averages():
    """The averages of float32 weights after each step, `[steps, 2, 6]`, by one scan of the update."""
    points = jnp.asarray(trajectory(), jnp.float32)

    def step(averages, inputs):
        averages = update_averages(averages, {"w": inputs[0]}, inputs[1])
        return averages, jnp.stack([a["w"] for a in averages])

    start = init_averages({"w": jnp.full(6, 5.0)})
    return np.asarray(jax.jit(lambda p: jax.lax.scan(step, start, (p, jnp.arange(1, STEPS + 1)))[1])(points))


def test_exponent_gives_the_width():
    for sigma_rel in (0.01, 0.05, 0.1, 0.25):
        weights = profile(sigma_rel, 100_000, 100_000)
        t = (np.arange(100_000) + 0.5) / 100_000
        mean = (weights * t).sum()
        assert np.sqrt((weights * (t - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-4)
    assert exponent(12**-0.5) == pytest.approx(0, abs=1e-6)
    for wrong in (0.0, -0.1, 0.3):
        with pytest.raises(ValueError, match="sigma_rel"):
            exponent(wrong)


def test_tracked_average_is_the_power_function_average(averages):
    for step in (1, 2, 10, 333, STEPS):
        for i, sigma_rel in enumerate(SIGMA_RELS):
            exact = profile(sigma_rel, step) @ trajectory()
            assert np.abs(averages[step - 1, i] - exact).max() <= 2e-6 * np.abs(trajectory()).max()
    wrong = profile(0.06, STEPS) @ trajectory()  # and another width is told apart
    assert np.abs(averages[-1, 0] - wrong).max() > 1e-3


def snapshots(averages, every: int) -> list[Snapshot]:
    return [
        Snapshot(step, sigma_rel, {"w": averages[step - 1, i]})
        for step in range(every, STEPS + 1, every)
        for i, sigma_rel in enumerate(SIGMA_RELS)
    ]


@pytest.mark.parametrize(("sigma_rel", "bound"), [(0.04, 3e-3), (0.05, 1e-5), (0.075, 1e-3), (0.1, 1e-5), (0.2, 5e-3)])
@pytest.mark.parametrize("step", [STEPS, 1600, 1950])
def test_any_length_is_reconstructed(averages, sigma_rel, bound, step):
    """Within `bound` of the spread of the weights over the last half; between snapshots within 3 % of it."""
    every = 100
    exact = profile(sigma_rel, step) @ trajectory()
    ours = reconstruct(snapshots(averages, every), step, sigma_rel)["w"]
    spread = np.ptp(trajectory()[STEPS // 2 :], axis=0).max()
    error = np.abs(ours - exact).max() / spread
    assert ours.dtype == np.float32
    assert error <= (bound if step % every == 0 else 0.03)


def test_error_is_bounded_by_the_difference_of_profiles(averages):
    """Coefficients sum to 1, so the error is at most sum |wanted - ours| over steps times the largest deviation."""
    stored = snapshots(averages, 250)
    for step, sigma_rel in ((2000, 0.07), (1900, 0.15), (1000, 0.12)):
        steps, widths, _ = zip(*stored, strict=True)
        coefficients = reconstruction_coefficients(steps, widths, step, sigma_rel)
        assert coefficients.sum() == pytest.approx(1, abs=1e-9)
        ours = sum(c * profile(s.sigma_rel, s.step) for c, s in zip(coefficients, stored, strict=True))
        wanted = profile(sigma_rel, step)
        points = trajectory()
        bound = np.abs(wanted - ours).sum() * np.abs(points - points[-1]).max()
        error = np.abs(reconstruct(stored, step, sigma_rel)["w"] - wanted @ points).max()
        assert error <= bound + 1e-4
        # Least squares: moving any pair of coefficients along the constraint makes the profile worse.
        base = ((wanted - ours) ** 2).sum()
        for i in range(0, len(stored) - 1, 3):
            change = profile(stored[i].sigma_rel, stored[i].step) - profile(stored[-1].sigma_rel, stored[-1].step)
            assert min(((wanted - ours - h * change) ** 2).sum() for h in (0.02, -0.02)) > base * (1 - 1e-3)


def test_weights_that_stand_still_are_reconstructed(averages):
    stored = [s._replace(average={"w": np.array([1e3, -2.5], np.float32)}) for s in snapshots(averages, 500)]
    assert np.abs(reconstruct(stored, 1700, 0.13)["w"] / [1e3, -2.5] - 1).max() <= 1e-6


def test_late_steps_do_not_round_away():
    """In float32 (1 - 1 / t)^(gamma + 1) would lose a tenth of a step's share at t = 2,000,000."""
    (average,) = update_averages((jnp.zeros(()),), jnp.ones(()), jnp.int32(2_000_000), (0.05,))
    assert float(average) == pytest.approx((exponent(0.05) + 1) / 2e6, rel=1e-4)


def test_wrong_requests_are_refused(averages):
    with pytest.raises(ValueError, match="after the last snapshot, 2000"):
        reconstruct(snapshots(averages, 1000), 2001, 0.05)
    with pytest.raises(ValueError, match="no snapshots"):
        reconstruct([], 10, 0.05)
