"""Filters against scipy in double precision, and weighting curves against librosa and the standard's tables."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal
from oracles import max_relative

from jaxdiff.features.filters import (
    A_weighting,
    C_weighting,
    K_weighting,
    biquad_response,
    fft_convolve,
    k_sections,
    shape_spectrum,
    sosfilt,
)

FILTERS = {
    "butterworth": scipy.signal.butter(6, [200, 3000], "bandpass", fs=16000, output="sos"),
    "elliptic": scipy.signal.ellip(4, 0.5, 60, 0.3, output="sos"),
    "high-pass at 5 Hz": scipy.signal.butter(2, 5, "highpass", fs=48000, output="sos"),
    "one pole": np.array([[1.0, 0, 0, 1, -0.9, 0]]),
    "no pole": np.array([[1.0, 2, 3, 1, 0, 0]]),
    "K-weighting": np.array(k_sections(48000)),
}


def waves(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sections(sos) -> tuple:
    return tuple(tuple(map(float, row)) for row in sos)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("length", [1, 127, 5000])
def test_sosfilt_equals_scipy(name, length):
    y = waves(2, length)
    ours = sosfilt(jnp.asarray(y), sos=sections(FILTERS[name]))
    assert ours.dtype == jnp.float32
    assert max_relative(ours, scipy.signal.sosfilt(FILTERS[name], y.astype(np.float64))) <= 2e-6


@pytest.mark.parametrize("y", [np.ones(40000), np.sin(np.arange(40000) / 400), np.eye(1, 40000)[0]])
def test_sosfilt_keeps_its_precision_below_the_corner(y):
    ours = np.asarray(sosfilt(jnp.asarray(y, jnp.float32), sos=k_sections(48000)))
    assert np.abs(ours - scipy.signal.sosfilt(k_sections(48000), y)).max() <= 1e-6


def test_sosfilt_in_double_precision_and_its_gradient():
    with jax.enable_x64(True):
        y, g = jnp.asarray(waves(3000).astype(np.float64)), jnp.asarray(waves(3000, seed=1).astype(np.float64))
        sos = sections(FILTERS["elliptic"])
        assert max_relative(sosfilt(y, sos=sos), scipy.signal.sosfilt(FILTERS["elliptic"], np.asarray(y))) <= 1e-12
        adjoint = jax.grad(lambda y: jnp.vdot(sosfilt(y, sos=sos), g))(y)
        reverse = scipy.signal.sosfilt(FILTERS["elliptic"], np.asarray(g)[::-1])[::-1]
        assert max_relative(adjoint, reverse) <= 1e-12


def test_unusable_sections_are_refused():
    with pytest.raises(ValueError, match="unstable; every pole must lie inside"):
        sosfilt(jnp.ones(10), sos=((1.0, 0.0, 0.0, 1.0, -1.0, 0.0),))
    for sos in (((1.0, 0.0, 1.0, 0.0, 0.0),), ((1.0, 0.0, 0.0, 2.0, 0.0, 0.0),)):
        with pytest.raises(ValueError, match="six numbers .* divide each by its a0"):
            sosfilt(jnp.ones(10), sos=sos)


@pytest.mark.parametrize(("length", "taps"), [(1000, 50), (50, 1000), (1, 1)])
def test_fft_convolve_equals_numpy(length, taps):
    y, h = waves(3, length), waves(taps, seed=1)
    reference = np.stack([np.convolve(item.astype(np.float64), h)[:length] for item in y])
    assert max_relative(fft_convolve(jnp.asarray(y), jnp.asarray(h)), reference) <= 1e-6
    each = np.stack([np.convolve(item.astype(np.float64), k)[:length] for item, k in zip(y, h * y[:, :1], strict=True)])
    assert max_relative(fft_convolve(jnp.asarray(y), jnp.asarray(h * y[:, :1])), each) <= 1e-6


def cookbook(kind: str, corner: float, gain_db: float, sr: float, q: float) -> tuple[np.ndarray, np.ndarray]:
    """Digital coefficients from R. Bristow-Johnson's text, which the package never computes."""
    a, w = 10 ** (gain_db / 40), 2 * np.pi * corner / sr
    c, alpha = np.cos(w), np.sin(w) / (2 * q)
    r = 2 * np.sqrt(a) * alpha
    m, p = a - 1, a + 1
    return {
        "low_pass": (np.array([(1 - c) / 2, 1 - c, (1 - c) / 2]), np.array([1 + alpha, -2 * c, 1 - alpha])),
        "high_pass": (np.array([(1 + c) / 2, -1 - c, (1 + c) / 2]), np.array([1 + alpha, -2 * c, 1 - alpha])),
        "peaking": (
            np.array([1 + alpha * a, -2 * c, 1 - alpha * a]),
            np.array([1 + alpha / a, -2 * c, 1 - alpha / a]),
        ),
        "low_shelf": (
            a * np.array([p - m * c + r, 2 * (m - p * c), p - m * c - r]),
            np.array([p + m * c + r, -2 * (m + p * c), p + m * c - r]),
        ),
        "high_shelf": (
            a * np.array([p + m * c + r, -2 * (m + p * c), p + m * c - r]),
            np.array([p - m * c + r, 2 * (m - p * c), p - m * c - r]),
        ),
    }[kind]


def gain(b, a, frequencies, sr):
    """The complex response of a rational filter."""
    return scipy.signal.freqz(b, a, frequencies, fs=sr)[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["low_pass", "high_pass", "peaking", "low_shelf", "high_shelf"])
@pytest.mark.parametrize(("corner", "gain_db", "q"), [(1000.0, 9.0, 2**-0.5), (20.0, -12.0, 2.0), (7000.0, 3.0, 0.5)])
def test_biquads_equal_the_cookbook(kind, corner, gain_db, q):
    sr, frequencies = 16000, np.linspace(0, 8000, 500, endpoint=False)  # freqz divides by 0 at the Nyquist frequency
    b, a = cookbook(kind, corner, gain_db, sr, q)
    ours = biquad_response(
        jnp.asarray(frequencies, jnp.float32), jnp.float32(corner), jnp.float32(gain_db), kind=kind, sr=sr, q=q
    )
    assert max_relative(ours, gain(b, a, frequencies, sr)) <= 2e-6
    y = waves(3000)
    response = lambda f: biquad_response(f, jnp.float32(corner), jnp.float32(gain_db), kind=kind, sr=1.0 * sr, q=q)  # noqa: E731
    tail = 16 if corner > 20 else 16000
    shaped = shape_spectrum(jnp.asarray(y), lambda f: response(f * sr), tail=tail * 64)
    assert max_relative(shaped, scipy.signal.lfilter(b, a, y.astype(np.float64))) <= 5e-6


def test_weighting_curves_equal_librosa():
    frequencies = np.array([1e-3, 1.0, 10.0, 20.6, 100.0, 997.0, 1000.0, 8000.0, 12194.0, 22050.0, 48000.0])
    for ours, reference in ((A_weighting, librosa.A_weighting), (C_weighting, librosa.C_weighting)):
        f = jnp.asarray(frequencies, jnp.float32)
        assert np.abs(np.asarray(ours(f)) - reference(frequencies)).max() <= 2e-5
        assert np.abs(np.asarray(ours(f, min_db=None)) - reference(frequencies, min_db=None)).max() <= 1e-4
        assert np.isfinite(jax.grad(lambda f, ours=ours: ours(f, min_db=None).sum())(f.at[0].set(0))).all()


def test_k_weighting_at_48_khz_is_the_table_of_bs1770():
    frequencies = np.array([1.0, 20.0, 38.0, 100.0, 997.0, 1682.0, 10000.0, 23000.0])
    shelf = gain(
        [1.53512485958697, -2.69169619838640, 1.19839281085285], [1, -1.69065929318241, 0.73248077421585],
        frequencies, 48000,
    )  # fmt: skip
    highpass = gain([1, -2, 1], [1, -1.99004745483398, 0.99007225036621], frequencies, 48000)
    ours = K_weighting(jnp.asarray(frequencies, jnp.float32), min_db=None)
    assert np.abs(np.asarray(ours) - 20 * np.log10(np.abs(shelf * highpass))).max() <= 1e-4


@pytest.mark.parametrize("sr", [8000, 16000, 22050, 44100, 96000])
def test_k_weighting_is_the_same_at_any_rate(sr):
    frequencies = np.geomspace(10, min(sr, 48000) / 8, 30)
    shelf, highpass = (gain(section[:3], section[3:], frequencies, sr) for section in k_sections(sr))
    response = shelf * highpass
    standard = K_weighting(jnp.asarray(frequencies, jnp.float32), min_db=None)
    assert np.abs(20 * np.log10(np.abs(response)) - np.asarray(standard)).max() <= (0.25 if sr < 16000 else 0.1)
    ours = K_weighting(jnp.asarray(frequencies, jnp.float32), sr=sr, min_db=None)
    assert np.abs(20 * np.log10(np.abs(response)) - np.asarray(ours)).max() <= 2e-4


def test_bad_filter_arguments_are_refused():
    one = jnp.ones(())
    with pytest.raises(ValueError, match=r"sr must lie in \(0, inf\), got 0"):
        biquad_response(jnp.ones(3), one, one, kind="peaking", sr=0, q=1.0)
    with pytest.raises(ValueError, match="biquad_response: kind must be 'low_pass', .* or 'high_shelf', got 'notch'"):
        biquad_response(jnp.ones(3), one, one, kind="notch", sr=8000)  # type: ignore
    with pytest.raises(ValueError, match="sr 3000 Hz is too low for K-weighting"):
        K_weighting(jnp.ones(3), sr=3000)
    with pytest.raises(TypeError, match="divide by full scale"):
        sosfilt(jnp.ones(3, jnp.int16), sos=k_sections(48000))
