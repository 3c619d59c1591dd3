"""Loudness against pyloudnorm, the EBU's synthetic test signals (Tech 3341 and 3342) and interpolation in float64."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pyloudnorm
import pytest
import scipy.signal
from oracles import max_relative

from jaxdiff.features.filters import A_weighting, C_weighting, K_weighting
from jaxdiff.features.loudness import (
    frame_loudness,
    integrated_loudness,
    loudness_range,
    momentary_loudness,
    normalize_loudness,
    short_term_loudness,
    true_peak,
)

SR = 24000  # of the EBU's signals, which fix the weighting at 1 kHz: there it lies 0.02 dB under that at 48 kHz


def waves(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def programme(*parts: tuple[float, float], sr: int = SR) -> jnp.ndarray:
    """A stereo sine that has each of the given levels (dBFS of the peak) for so many seconds."""
    levels = np.concatenate([np.full(round(seconds * sr), 10 ** (db / 20)) for db, seconds in parts])
    y = levels * np.sin(2 * np.pi * 1000 * np.arange(len(levels)) / sr)
    return jnp.asarray(np.stack([y, y]), jnp.float32)


def speechlike(sr: int, channels: int) -> np.ndarray:
    """8 s `[channels, samples]` with loud, quiet, silent and middling passages, of which the gates drop some."""
    t = np.arange(8 * sr) / sr
    y = 0.2 * np.sin(2 * np.pi * 220 * t) + 0.05 * np.random.default_rng(1).standard_normal((channels, len(t)))
    return y * np.select([t < 2, t < 4, t < 5], [1.0, 1e-2, 0.0], 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    # pyloudnorm's default filters lie 0.043 dB under the standard's table; its "DeMan" ones are that table at 48 kHz,
    # but the gain of their high-pass drifts from it at lower rates (at 16 kHz by 0.086 dB).
    ("sr", "filters", "offset"),
    [
        (48000, "DeMan", 0.0),
        (44100, "DeMan", 0.004),
        (48000, "K-weighting", -0.042),
        (22050, "K-weighting", -0.042),
        (16000, "K-weighting", -0.042),
    ],
)
def test_integrated_loudness_equals_pyloudnorm(sr, filters, offset, channels):
    y = speechlike(sr, channels)
    ours = float(integrated_loudness(jnp.asarray(y, jnp.float32), sr=sr, channels_axis=-2))
    theirs = pyloudnorm.Meter(sr, filter_class=filters).integrated_loudness(y.T)
    assert theirs - ours == pytest.approx(offset, abs=0.002)


@pytest.mark.parametrize(
    "parts",
    [  # EBU Tech 3341, table 1, cases 1 to 5
        [(-23.0, 20)],
        [(-36.0, 10), (-23.0, 60), (-36.0, 10)],
        [(-72.0, 10), (-36.0, 10), (-23.0, 60), (-36.0, 10), (-72.0, 10)],
        [(-26.0, 20), (-20.0, 20.1), (-26.0, 20)],
    ],
)
def test_ebu_3341_integrated(parts):
    assert float(integrated_loudness(programme(*parts), sr=SR, channels_axis=0)) == pytest.approx(-23.0, abs=0.05)


def test_ebu_3341_at_48_khz_and_at_33_lufs():
    for level in (-23.0, -33.0):
        y = programme((level, 20), sr=48000)
        assert float(integrated_loudness(y, sr=48000, channels_axis=0)) == pytest.approx(level, abs=0.02)


def test_ebu_3341_five_channels():
    sine = np.asarray(programme((0.0, 20)))[0]
    y = 10 ** (np.array([-28, -28, -24, -30, -30]) / 20)[:, None] * sine
    assert float(integrated_loudness(jnp.asarray(y, jnp.float32), sr=SR, channels_axis=0)) == pytest.approx(
        -23.0, abs=0.05
    )


def test_ebu_3341_sliding_measures():
    short = short_term_loudness(programme(*[(-20.0, 1.34), (-30.0, 1.66)] * 5), sr=SR, channels_axis=0)
    assert np.abs(np.asarray(short) + 23.0).max() <= 0.1  # case 9
    momentary = momentary_loudness(programme(*[(-20.0, 0.18), (-30.0, 0.22)] * 25), sr=SR, channels_axis=0)
    assert np.abs(np.asarray(momentary) + 23.0).max() <= 0.1  # case 12
    assert momentary.shape == (97,)


@pytest.mark.parametrize(
    ("levels", "expected"),  # EBU Tech 3342, table 1, cases 1 to 4, tolerance 1 LU
    [((-20, -30), 10), ((-20, -15), 5), ((-40, -20), 20), ((-50, -35, -20, -35, -50), 15)],
)
def test_ebu_3342_loudness_range(levels, expected):
    y = programme(*[(float(level), 20) for level in levels])
    assert float(loudness_range(y, sr=SR, channels_axis=0)) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("divisor", "degrees"), [(4, 0), (4, 45), (6, 60), (8, 67.5)])
def test_ebu_3341_true_peak_of_sines(divisor, degrees):
    fade = np.minimum(1, np.minimum(np.arange(4000), np.arange(4000)[::-1]) / 500)
    y = 0.5 * fade * np.sin(2 * np.pi * np.arange(4000) / divisor + np.deg2rad(degrees))
    assert float(true_peak(jnp.asarray(y, jnp.float32))) == pytest.approx(20 * np.log10(0.5), abs=0.02)


@pytest.mark.parametrize(("band", "tolerance"), [(0.2, 0.01), (0.45, 0.03), (0.485, 0.1)])
def test_true_peak_of_noise(band, tolerance):
    y = scipy.signal.sosfiltfilt(scipy.signal.ellip(12, 0.1, 100, 2 * band * 0.98, output="sos"), waves(6, 4000))
    y = y * np.hanning(4000) * 0.2
    kaiser: dict[str, Any] = dict(window=("kaiser", 9))
    fine = scipy.signal.resample_poly(y, 16, 1, axis=-1, window=scipy.signal.firwin(8193, 1 / 16, **kaiser))
    reference = 20 * np.log10(np.abs(fine).max(-1))
    assert np.abs(np.asarray(true_peak(jnp.asarray(y, jnp.float32))) - reference).max() <= tolerance


@pytest.mark.parametrize(("n_fft", "hop_length", "win_length"), [(1024, 256, None), (513, 200, 400)])
@pytest.mark.parametrize("weighting", ["A", "C", "K", None])
def test_frame_loudness_is_the_weighted_power(n_fft, hop_length, win_length, weighting):
    y = waves(2, 6000) * np.linspace(0, 1, 6000, dtype=np.float32)
    sizes = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length)
    ours = frame_loudness(jnp.asarray(y), sr=16000, weighting=weighting, **sizes)
    frequencies = np.fft.rfftfreq(n_fft, 1 / 16000)
    with np.errstate(divide="ignore"):
        curve = {
            "A": librosa.A_weighting(frequencies, min_db=None),
            "C": librosa.C_weighting(frequencies, min_db=None),
            "K": np.asarray(K_weighting(jnp.asarray(frequencies, jnp.float32), sr=16000, min_db=None)),
            None: 0 * frequencies,
        }[weighting]
    power = np.abs(librosa.stft(y.astype(np.float64), **sizes)) ** 2 * 10 ** (curve / 10)[:, None]
    power[:, 1 : None if n_fft % 2 else -1] *= 2
    window = np.asarray(scipy.signal.get_window("hann", win_length or n_fft))
    reference = 10 * np.log10(power.sum(1) / (n_fft * (window**2).sum()))
    assert np.abs(np.asarray(ours) - np.maximum(reference, -120)).max() <= 2e-4


def test_frame_loudness_of_known_sounds():
    square = jnp.asarray(np.sign(np.sin(2 * np.pi * (np.arange(16000) + 0.5) / 40)), jnp.float32)
    assert float(frame_loudness(square, sr=16000, weighting=None)[10]) == pytest.approx(0.0, abs=1e-3)
    sine = jnp.asarray(np.sqrt(2) * np.sin(2 * np.pi * 125 * np.arange(16000) / 16000), jnp.float32)
    curves: dict[Literal["A", "C"], Callable] = {"A": A_weighting, "C": C_weighting}
    for weighting, curve in curves.items():
        expected = float(curve(jnp.array(125.0)))
        assert float(frame_loudness(sine, sr=16000, weighting=weighting)[10]) == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_normalize_reaches_its_target():
    y = jnp.asarray(speechlike(16000, 2), jnp.float32)
    options: dict[str, Any] = dict(sr=16000, channels_axis=-2)
    assert float(integrated_loudness(normalize_loudness(y, **options), **options)) == pytest.approx(-23.0, abs=1e-3)
    batch = jnp.stack([y, 0.1 * y])
    mono = normalize_loudness(batch[:, 0], sr=16000, target=-30.0)
    assert np.asarray(integrated_loudness(mono, sr=16000)) == pytest.approx(-30.0, abs=1e-3)
    first = normalize_loudness(jnp.moveaxis(batch, 1, 0), sr=16000, channels_axis=0)
    assert max_relative(jnp.moveaxis(first, 0, 1), normalize_loudness(batch, **options)) <= 1e-6
    limited = normalize_loudness(batch, target=0.0, max_true_peak=-1.0, **options)
    assert np.asarray(true_peak(limited).max(-1)) == pytest.approx(-1.0, abs=1e-3)


@pytest.mark.slow
def test_silence_has_a_floor_and_stays_silent():
    y = jnp.zeros((2, 8000 * 4))
    assert (integrated_loudness(y, sr=8000) == -70).all() and (loudness_range(y, sr=8000) == 0).all()
    for level in (momentary_loudness(y, sr=8000), short_term_loudness(y, sr=8000), true_peak(y), frame_loudness(y)):
        assert np.asarray(level) == pytest.approx(-120, abs=1e-4)
    assert not normalize_loudness(y, sr=8000, max_true_peak=-1.0).any()
    hiss = 1e-5 * jnp.asarray(waves(8000))
    assert (normalize_loudness(hiss, sr=8000) == hiss).all()


MEASURES = {
    "frame": lambda y: frame_loudness(y, sr=8000, n_fft=512, hop_length=256),
    "integrated": lambda y: integrated_loudness(y, sr=8000),
    "momentary": lambda y: momentary_loudness(y, sr=8000),
    "range": lambda y: loudness_range(y, sr=8000),
    "true peak": lambda y: true_peak(y),
    "normalize": lambda y: normalize_loudness(y, sr=8000, max_true_peak=-1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_batch_and_gradients(name):
    f = MEASURES[name]
    y = jnp.asarray(waves(5, 8000 * 4) * np.array([0, 1e-22, 0.01, 0.1, 1], np.float32)[:, None])
    y = y.at[3].set(0.5).at[4, :20000].set(0).at[4, 20001:].set(0)  # a constant and an impulse too
    y = y * jnp.linspace(0.1, 1, y.shape[-1])
    out = f(y)
    assert out.dtype == jnp.float32
    assert max_relative(out, np.stack([f(item) for item in y])) <= 1e-6
    assert np.isfinite(out).all() and np.isfinite(jax.grad(lambda y: f(y).sum())(y)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_gradients_equal_finite_differences(name):
    with jax.enable_x64(True):
        y, d = (jnp.asarray(waves(8000 * 4, seed=seed).astype(np.float64)) for seed in (0, 1))
        y = y * jnp.linspace(0.01, 1, len(y))
        f = lambda y: (MEASURES[name](y) ** 2).sum()  # noqa: E731
        slope = (f(y + 1e-6 * d) - f(y - 1e-6 * d)) / 2e-6
        assert f(y).dtype == jnp.float64
        assert float(jnp.vdot(jax.grad(f)(y), d)) == pytest.approx(float(slope), rel=1e-5)


def test_bad_arguments_are_refused():
    y = jnp.ones((2, 4, 8000))
    with pytest.raises(ValueError, match=r"100 samples, one block of 0.4 s at 8000 Hz has 3200; give a longer one"):
        integrated_loudness(y[..., :100], sr=8000)
    with pytest.raises(ValueError, match="one block of 3.0 s at 8000 Hz has 24000"):
        short_term_loudness(y, sr=8000)
    with pytest.raises(ValueError, match="4 channels need as many channel_weights"):
        integrated_loudness(y, sr=8000, channels_axis=-2)
    with pytest.raises(ValueError, match=r"4 channels need as many channel_weights .* got \(1.0, 1.0\)"):
        integrated_loudness(y, sr=8000, channels_axis=1, channel_weights=(1.0, 1.0))
    for axis in (-1, 2, -4):
        with pytest.raises(ValueError, match=f"channels_axis {axis} is no axis before the samples"):
            momentary_loudness(y, sr=8000, channels_axis=axis)
    for sr in (1, 3000):
        with pytest.raises(ValueError, match=f"sr {sr} Hz is too low for K-weighting"):
            loudness_range(y, sr=sr)
    with pytest.raises(ValueError, match=r"sr must lie in \(0, inf\), got 0"):
        frame_loudness(y, sr=0)
    with pytest.raises(ValueError, match="weighting must be 'A', 'C', 'K' or None, got 'B'"):
        frame_loudness(y, weighting="B")  # type: ignore
    with pytest.raises(ValueError, match=r"oversampling must lie in \[1, inf\), got 0"):
        true_peak(y, oversampling=0)
    with pytest.raises(TypeError, match="divide by full scale"):
        integrated_loudness(jnp.ones(8000, jnp.int16), sr=8000)
