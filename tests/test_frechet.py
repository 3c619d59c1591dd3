"""The Frechet distance of Gaussians in cases with a closed form, and the embedding of sounds of known level."""

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.evaluation.frechet import frechet_distance, log_mel_statistics


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_equal_sets_are_at_zero():
    a = normal(0, 50, 8) * np.arange(1, 9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
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
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)


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
