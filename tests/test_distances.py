"""Distances between sets in cases with a closed form or against literal sums, and the embedding of known sounds."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from oracles import max_relative

from jaxdiff.evaluation import distances
from jaxdiff.evaluation.distances import (
    bootstrap_interval,
    fad_infinity,
    frechet_distance,
    kernel_distance,
)
from jaxdiff.evaluation.embeddings import log_mel_statistics


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_equal_sets_are_at_zero():
    a = normal(0, 50, 8) * np.arange(1, 9)
    for equal in (a, a[::-1], a.copy()):
        assert 0 <= frechet_distance(a, equal) <= 1e-20
    assert 0 <= frechet_distance(a + 1e4, a + 1e4) <= 1e-16
    assert frechet_distance(a, 2 * a) > 1


def test_shifted_set_is_at_the_squared_shift():
    a, shift = normal(0, 50, 8), normal(1, 8)
    assert frechet_distance(a, a + shift) == pytest.approx((shift**2).sum(), rel=1e-9)


def test_one_dimension():
    """(mu_1 - mu_2)^2 + (std_1 - std_2)^2."""
    a, b = normal(0, 40, 1), 3 * normal(1, 60, 1) + 2
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_commuting_covariances():
    """Scaling by s along the axes of `a` moves it by the sum of (1 - s)^2 times the variances."""
    a = normal(0, 200, 5)
    a = (a - a.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a.T))).T  # covariance exactly 1
    rotation, scale = np.linalg.qr(normal(1, 5, 5))[0], np.array([0.5, 1.0, 2.0, 3.0, 0.1])
    expected = ((1 - scale) ** 2).sum()
    assert frechet_distance(a @ rotation, (a * scale) @ rotation) == pytest.approx(expected, rel=1e-9)


def test_it_is_symmetric_and_ignores_rotation():
    a, b, rotation = normal(0, 30, 6), normal(1, 40, 6) @ normal(2, 6, 6), np.linalg.qr(normal(3, 6, 6))[0]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_fewer_sounds_than_dimensions():
    """Singular covariances: still positive, and zero for equal sets."""
    a, b = normal(0, 4, 64), normal(1, 5, 64)
    assert frechet_distance(a, b) > 0
    assert 0 <= frechet_distance(a, a) <= 1e-20


def gaussian(seed: int, d: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A mean and a covariance that shares no axes with others."""
    mixed = scale * (0.5 * normal(seed, d, d) / np.sqrt(d) + np.eye(d))
    return 0.5 * normal(seed + 100, d) / np.sqrt(d), mixed.T @ mixed


def drawn(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    return mean + normal(seed, count, len(mean)) @ np.linalg.cholesky(covariance).T


def analytic(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """The formula as it stands, with the symmetric root by eigenvalues."""
    (mean_1, S_1), (mean_2, S_2) = one, other
    values, vectors = np.linalg.eigh(S_1)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ S_2 @ root), 0)).sum()
    return float(((mean_1 - mean_2) ** 2).sum() + np.trace(S_1) + np.trace(S_2) - 2 * cross)


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(0), np.cov(x.T)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 60, 6), (9, 60, 12), (5, 7, 20), (2, 2, 3)])
def test_it_equals_the_formula(n, m, d):
    a, b = drawn(*gaussian(0, d), n, 1), drawn(*gaussian(1, d, 2.0), m, 2)
    expected = analytic(moments(a), moments(b))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    cross = np.trace(scipy.linalg.sqrtm(moments(a)[1] @ moments(b)[1] + 0j)).real
    (mean_a, S_a), (mean_b, S_b) = moments(a), moments(b)
    literal = ((mean_a - mean_b) ** 2).sum() + np.trace(S_a) + np.trace(S_b) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(literal, rel=1e-5)


def test_it_recovers_the_distance_of_known_gaussians():
    one, other = gaussian(0, 6), gaussian(1, 6, 1.3)
    found = frechet_distance(drawn(*one, 40_000, 2), drawn(*other, 40_000, 3))
    assert found == pytest.approx(analytic(one, other), rel=0.02)


@pytest.mark.parametrize("distance", [frechet_distance, fad_infinity, bootstrap_interval, kernel_distance])
def test_sets_that_have_no_distance_are_refused(distance):
    a, hole = normal(0, 20, 3), normal(1, 20, 3)
    hole[7, 1] = np.nan
    for b, sentence in (
        (a[:, 0], r"the second set has the shape \(20,\)"),
        (a[:, :0], r"the second set has the shape \(20, 0\)"),
        (a[:, :2], "as many dimensions on each side, got 3 and 2"),
        (a[:1], "sounds on each side, got 20 and 1"),
        (hole, "sound 7 in the second set is not"),
        (a.astype(str), "of real numbers"),
        (a + 1j, "of real numbers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            distance(a, b)


# FAD-infinity -------------------------------------------------------------------------------------------------------


def test_extrapolation_takes_most_of_the_bias_away():
    """Of 64 sounds against many, and with both sets of 64."""
    one, other = gaussian(0, 12), gaussian(1, 12, 1.2)
    truth = analytic(one, other)
    plain, first, second = [], [], []
    for seed in range(10):
        made, few = drawn(*other, 64, seed), drawn(*one, 64, 500 + seed)
        many = drawn(*one, 4000, 1000 + seed)
        plain.append([frechet_distance(many, made) - truth, frechet_distance(few, made) - truth])
        first.append(fad_infinity(many, made, points=6, repeats=2).value - truth)
        second.append(fad_infinity(few, made, points=6, repeats=2, both=True).value - truth)
    many_bias, few_bias = np.mean(plain, axis=0)
    assert abs(np.mean(first)) < 0.3 * many_bias
    assert abs(np.mean(second)) < 0.3 * few_bias


def test_extrapolation_is_a_line_that_ends_at_all_sounds():
    reference, made = drawn(*gaussian(0, 12), 300, 0), drawn(*gaussian(1, 12), 100, 1)
    found = fad_infinity(reference, made, seed=3)
    assert found.sizes[0] == 50 and found.sizes[-1] == 100 and len(found.sizes) == 15
    assert found.distances[-1] == pytest.approx(frechet_distance(reference, made), rel=1e-9)
    assert found.value < found.distances[-1] < found.distances[0] and found.slope > 0
    left = found.distances - found.value - found.slope / found.sizes
    assert found.residual == pytest.approx(np.sqrt((left**2).mean()), rel=1e-6)
    assert found.fit == pytest.approx(1 - (left**2).mean() / found.distances.var(), rel=1e-6)
    assert 0.9 < found.fit <= 1
    again, other = fad_infinity(reference, made, seed=3), fad_infinity(reference, made, seed=4)
    assert again.value == found.value != other.value


def test_extrapolation_refuses_what_makes_no_line():
    a = normal(0, 20, 3)
    options: dict[str, Any]
    for options, made, sentence in (
        (dict(), a[:7], "at least 8 sounds that were made, got 7"),
        (dict(smallest=20), a, "must have 2 to 19 of them, got 20"),
        (dict(smallest=1), a, "must have 2 to 19 of them, got 1"),
        (dict(points=1), a, "at least 2 points and 1 repeat, got 1 and 8"),
        (dict(repeats=0), a, "at least 2 points and 1 repeat, got 15 and 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fad_infinity(a, made, **options)


# Intervals ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False])
def test_intervals_cover_the_truth_at_their_rate(apart):
    """In 80 experiments 95 % are 76, give or take 2; where the truth is zero the interval may be wider than needed."""
    one = gaussian(0, 3)
    other = gaussian(1, 3, 1.2) if apart else one
    truth = analytic(one, other)
    hits = []
    for seed in range(80):
        a, b = drawn(*one, 60, seed), drawn(*other, 80, 1000 + seed)
        found = bootstrap_interval(a, b, resamples=150, seed=seed)
        hits.append(found.low <= truth + 1e-12 and truth <= found.high + 1e-12)
    assert np.sum(hits) >= 70
    assert not apart or np.sum(hits) <= 79


def test_interval_is_around_the_corrected_distance_and_reproduced_by_its_seed():
    a, b = drawn(*gaussian(0, 4), 90, 0), drawn(*gaussian(1, 4, 2.0), 80, 1)
    found = bootstrap_interval(a, b, resamples=200, seed=1)
    assert found == bootstrap_interval(a, b, resamples=200, seed=1)
    assert found != bootstrap_interval(a, b, resamples=200, seed=2)
    assert found.estimate == frechet_distance(a, b)
    assert found.low > 0 and (found.low + found.high) / 2 < found.estimate
    wider = bootstrap_interval(a, b, level=0.99, resamples=200, seed=1)
    ratio = scipy.stats.norm.ppf(0.995) / scipy.stats.norm.ppf(0.975)
    assert wider.high - wider.low == pytest.approx(ratio * (found.high - found.low))
    assert wider.high + wider.low == pytest.approx(found.high + found.low)


def test_interval_of_another_distance():
    """Of means in one dimension: the standard error is known, and limits below zero are set to zero."""
    a, b = normal(0, 400, 1), normal(1, 400, 1) + 1
    between = lambda a, b: float(b.mean() - a.mean())  # noqa: E731
    found = bootstrap_interval(a, b, between, resamples=1000)
    half = 1.96 * np.sqrt(a.var() / 400 + b.var() / 400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert (found.high + found.low) / 2 == pytest.approx(found.estimate, abs=0.01)
    assert bootstrap_interval(b, a, between, resamples=50)[1:3] == (0, 0)


@pytest.mark.parametrize("options", [dict(level=1.0), dict(level=0.0), dict(resamples=5)])
def test_interval_refuses_what_gives_none(options):
    with pytest.raises(ValueError, match="a level between 0 and 1 and 20 resamples"):
        bootstrap_interval(normal(0, 20, 3), normal(1, 20, 3), **options)


# Kernel distance ----------------------------------------------------------------------------------------------------


def literal_kernel_distance(a: np.ndarray, b: np.ndarray, kernel) -> float:
    """The three means, pair by pair."""
    within = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    return float(sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b]))


@pytest.mark.parametrize("kernel", ["polynomial", "gaussian"])
def test_kernel_distance_and_its_error_equal_literal_sums(kernel, monkeypatch):
    monkeypatch.setattr(distances, "KERNEL_ROWS", 4)
    a, b = normal(0, 9, 3), 1.5 * normal(1, 7, 3) + 0.5
    pooled = np.concatenate([a, b])
    median = np.median([np.linalg.norm(pooled[i] - pooled[j]) for i in range(16) for j in range(i)])
    function = {
        "polynomial": lambda x, y: (x @ y / 3 + 1) ** 3,
        "gaussian": lambda x, y: np.exp(-((x - y) ** 2).sum() / (2 * median**2)),
    }[kernel]
    found = kernel_distance(a, b, kernel)
    assert found.value == pytest.approx(literal_kernel_distance(a, b, function), rel=1e-9)
    squares = 0.0
    for count, without in (
        (9, [literal_kernel_distance(np.delete(a, i, 0), b, function) for i in range(9)]),
        (7, [literal_kernel_distance(a, np.delete(b, i, 0), function) for i in range(7)]),
    ):
        squares += (count - 1) / count * ((np.array(without) - np.mean(without)) ** 2).sum()
    assert found.error == pytest.approx(np.sqrt(squares), rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_kernel_distance_is_unbiased_and_its_error_is_right(shift):
    """Of normal numbers under a Gaussian kernel, whose means are b / sqrt(b^2 + 2) exp(-shift^2 / (2 b^2 + 4))."""
    bandwidth = 1.3
    mean = lambda s: bandwidth / np.sqrt(bandwidth**2 + 2) * np.exp(-(s**2) / (2 * bandwidth**2 + 4))  # noqa: E731
    truth = 2 * mean(0) - 2 * mean(shift)
    found = np.array(
        [
            kernel_distance(normal(i, 50, 1), normal(1000 + i, 40, 1) + shift, "gaussian", bandwidth=bandwidth)
            for i in range(300)
        ]
    )
    spread = found[:, 0].std()
    assert abs(found[:, 0].mean() - truth) < 3 * spread / np.sqrt(300)
    ratio = np.sqrt((found[:, 1] ** 2).mean()) / spread
    assert 0.85 < ratio < (1.2 if shift else 1.7)


@pytest.mark.parametrize("kernel", ["polynomial", "gaussian"])
def test_kernel_distance_of_alike_and_of_silent_sets(kernel):
    a = normal(0, 30, 4)
    assert kernel_distance(a, a, kernel).value <= 0
    assert kernel_distance(a, a + 3, kernel).value > 5 * kernel_distance(a, a + 3, kernel).error
    silent = np.full((5, 4), -60.0)
    assert kernel_distance(silent, silent[:3], kernel) == pytest.approx((0, 0), abs=1e-3)
    assert kernel_distance(np.zeros((5, 4)), np.zeros((4, 4)), kernel) == (0, 0)


def test_kernel_distance_refuses_what_it_does_not_know():
    a = normal(0, 5, 2)
    with pytest.raises(ValueError, match="the kernel cosine is unknown; use one of polynomial, gaussian"):
        kernel_distance(a, a, "cosine")  # type: ignore[arg-type]
    for bandwidth in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="must be positive and finite"):
            kernel_distance(a, a, "gaussian", bandwidth=bandwidth)
    with pytest.raises(ValueError, match="at least 3 sounds on each side, got 2 and 5"):
        kernel_distance(a[:2], a)


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (0, 5)])
def test_too_few_sounds_are_refused(n, m):
    with pytest.raises(ValueError, match=rf"at least 2 sounds on each side, got {n} and {m}"):
        frechet_distance(normal(0, n, 3), normal(1, m, 3))


def test_embedding_hears_level_and_floor():
    t = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 1000 * t)
    quiet, loud, silence = np.asarray(log_mel_statistics(jnp.asarray([0.1 * tone, tone, 0 * tone], jnp.float32)))
    assert np.abs(silence[:32] + 60).max() <= 1e-4
    assert np.abs(silence[32:]).max() <= 1e-4
    band = loud[:32].argmax()
    assert loud[band] - quiet[band] == pytest.approx(20, abs=0.1)
    assert -3 < loud[band] < 3  # a full-scale sine is near 0 dB
    assert max_relative(log_mel_statistics(jnp.asarray([tone], jnp.float32))[0], loud) <= 1e-5
