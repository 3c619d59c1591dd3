"""Descriptors against librosa in double precision, and closed forms."""

from typing import Any

import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff import features

SIZES: dict[str, Any] = dict(n_fft=512, hop_length=100)


def sound() -> np.ndarray:
    """Half a second at 22.05 kHz: a decaying tone in faint noise, then noise that fades in, then silence."""
    t = np.arange(11025) / 22050
    y = np.sin(2 * np.pi * 700 * t) * np.exp(-20 * t)
    y += np.maximum(1e-3, t - 0.2) * np.random.default_rng(0).standard_normal(len(t))
    return np.where(t < 0.45, y, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("spectral_centroid", dict(), 2e-6),
        ("spectral_centroid", dict(win_length=400, window="hamming", center=False), 2e-6),
        ("spectral_bandwidth", dict(), 1e-5),
        ("spectral_bandwidth", dict(norm=False, p=3.0), 1e-5),
        ("spectral_flatness", dict(), 5e-6),
        ("spectral_flatness", dict(power=1.0, amin=1e-6), 5e-6),
        ("spectral_contrast", dict(sr=16000), 3e-4),
        ("spectral_contrast", dict(fmin=150.0, n_bands=5, quantile=0.1, linear=True), 5e-6),
    ],
)
def test_spectral_descriptor_equals_librosa(name, options, tolerance):
    ours = getattr(features, name)(jnp.asarray(sound()), **SIZES, **options)
    reference = getattr(librosa.feature, name)(y=sound().astype(np.float64), **SIZES, **options)
    assert max_relative(ours, reference) <= tolerance


@pytest.mark.parametrize("roll_percent", [0.85, 0.3])
def test_rolloff_equals_librosa(roll_percent):
    """But for frames in which rounding moves the sum across the threshold: one bin, in at most 1 % of them."""
    ours = features.spectral_rolloff(jnp.asarray(sound()), **SIZES, roll_percent=roll_percent)
    reference = librosa.feature.spectral_rolloff(y=sound().astype(np.float64), **SIZES, roll_percent=roll_percent)
    off = np.abs(np.asarray(ours) - reference)
    assert off.max() <= 22050 / 512 + 1e-3
    assert (off > 1e-3).mean() <= 0.01


@pytest.mark.parametrize("center", [True, False])
def test_rms_and_zero_crossings_equal_librosa(center):
    y = sound()
    sizes: dict[str, Any] = dict(frame_length=512, hop_length=100, center=center)
    assert max_relative(features.rms(jnp.asarray(y), **sizes), librosa.feature.rms(y=y.astype(float), **sizes)) <= 1e-6
    ours = features.zero_crossing_rate(jnp.asarray(y), **sizes)
    assert max_relative(ours, librosa.feature.zero_crossing_rate(y, **sizes)) <= 1e-6


@pytest.mark.parametrize("n_fft", [512, 511])
def test_rms_of_a_spectrogram_is_that_of_its_frames(n_fft):
    y = jnp.asarray(sound())
    S = jnp.abs(features.stft(y, n_fft=n_fft, hop_length=100, window="boxcar"))
    assert (
        max_relative(features.rms(S=S, frame_length=n_fft), features.rms(y, frame_length=n_fft, hop_length=100)) <= 1e-5
    )


@pytest.mark.parametrize("options", [dict(), dict(lag=2, max_size=3), dict(max_size=4), dict(center=False)])
def test_onset_strength_equals_librosa(options):
    y = sound()
    ours = features.onset_strength(jnp.asarray(y), hop_length=128, **options)
    assert max_relative(ours, librosa.onset.onset_strength(y=y.astype(float), hop_length=128, **options)) <= 2e-6


@pytest.mark.slow
def test_a_spectrogram_may_be_given_instead():
    y = jnp.asarray(sound())
    S = jnp.abs(features.stft(y, **SIZES))
    for name in (
        "spectral_centroid",
        "spectral_bandwidth",
        "spectral_rolloff",
        "spectral_flatness",
        "spectral_contrast",
    ):
        f = getattr(features, name)
        assert max_relative(f(S=S), f(y, **SIZES)) <= 1e-5
        with pytest.raises(ValueError, match="give either y or S"):
            f(y, S)


def test_bad_options_are_refused():
    y = jnp.ones(4096)
    with pytest.raises(ValueError, match=r"roll_percent must lie in \(0, 1\), got 1"):
        features.spectral_rolloff(y, roll_percent=1.0)
    with pytest.raises(ValueError, match="9 octaves from fmin 200.0 Hz do not fit below 11025.0 Hz"):
        features.spectral_contrast(y, n_bands=9)
    with pytest.raises(ValueError, match=r"lag must lie in \[1, inf\), got 0"):
        features.onset_strength(y, lag=0)
    with pytest.raises(ValueError, match="S has 3 bins, frame_length 2048 gives 1025"):
        features.rms(S=jnp.ones((3, 2)))
