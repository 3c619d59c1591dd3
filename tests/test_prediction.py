"""Linear prediction: librosa's filters, filters that made a sound, and continuations by the recursion itself."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from scipy.signal import lfilter

from jaxdiff.features import extrapolate, lpc
from jaxdiff.features.prediction import burg

FILTER = np.array([1.0, -1.6, 0.8, 0.1, -0.2])


def colored(samples, seed=0):
    noise = np.random.default_rng(seed).standard_normal(samples)
    return np.asarray(lfilter([1.0], FILTER, noise), np.float32)


@pytest.mark.parametrize("order", [1, 4, 16])
def test_filters_are_librosas(order):
    y = np.stack([colored(3000, seed) for seed in range(2)])
    assert np.abs(np.asarray(lpc(jnp.asarray(y), order=order)) - librosa.lpc(y, order=order)).max() < 1e-4


def test_the_filter_that_made_a_sound_is_found_with_the_deviation_of_its_noise():
    a, deviation = burg(jnp.asarray(0.3 * colored(200_000)), 4)
    assert np.abs(np.asarray(a) - FILTER).max() < 0.01
    assert abs(float(deviation) / 0.3 - 1) < 0.01


def test_silence_has_no_prediction_and_goes_on():
    assert np.asarray(lpc(jnp.zeros(100), order=4)).tolist() == [1, 0, 0, 0, 0]
    assert np.asarray(extrapolate(jnp.zeros(100), samples=7, order=4)).tolist() == [0.0] * 7


def test_a_continuation_is_that_of_the_recursion():
    y, order, damping = colored(3000).astype(np.float64), 16, 0.9998
    hiss = np.random.default_rng(0).standard_normal(len(y))  # as it is added before the filter is found
    a = librosa.lpc(y + 1e-3 * np.sqrt((y**2).mean()) * hiss, order=order) * damping ** np.arange(order + 1)
    whole = list(y[-order:] * damping ** np.arange(-order, 0.0))
    for _ in range(400):
        whole.append(-np.dot(a[1:], whole[: -order - 1 : -1]))
    further = np.asarray(extrapolate(jnp.asarray(y, jnp.float32), samples=400, order=order))
    assert np.abs(further - whole[order:]).max() < 1e-3 * np.abs(y).max()


def test_fewer_samples_than_the_order_are_the_first_of_more():
    y = jnp.asarray(colored(500))
    few, more = (np.asarray(extrapolate(y, samples=n, order=32)) for n in (10, 400))
    assert np.abs(few - more[:10]).max() < 1e-4 * np.abs(more).max()


def test_noise_of_a_continuation_has_the_level_of_the_sound():
    y = jnp.asarray(np.stack([colored(4000, seed) for seed in range(8)]))
    further = np.asarray(extrapolate(y, samples=4000, order=4, key=jax.random.key(0)))
    assert abs(further.std() / np.asarray(y).std() - 1) < 0.1
    assert np.abs(np.asarray(extrapolate(y, samples=4000, order=4))[:, 2000:]).max() < 0.01 * np.asarray(y).std()


def test_bands_that_hold_nothing_do_not_spoil_a_continuation():
    noise = np.fft.rfft(np.random.default_rng(0).standard_normal(4096))
    noise[1200:] = 0  # above 0.6 of the band
    y = np.fft.irfft(noise)[1000:1640].astype(np.float32)
    further = np.asarray(extrapolate(jnp.asarray(y), samples=800, order=200))
    assert np.isfinite(further).all() and np.abs(further).max() < 2 * np.abs(y).max()


def test_an_order_beyond_the_sound_is_refused():
    with pytest.raises(ValueError, match="order 100 must be less than the 100 samples; use a smaller order"):
        lpc(jnp.ones(100), order=100)
