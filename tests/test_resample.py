"""Resampling against exact sinusoids (stop-band, ripple, delay), soxr, and the definition of a change of speed."""

import itertools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soxr
from oracles import max_relative

from jaxdiff.features.resample import change_speed, resample

RATIOS = [(44100, 16000), (48000, 44100), (16000, 48000), (22050, 16000), (2, 1), (1, 2), (8000, 44100), (3, 2)]


def waves(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tones(frequencies, rate: float, length: int) -> np.ndarray:
    """Sinusoids `[frequencies, length]` under a Gaussian bell in the middle, so that no edge is heard."""
    t = np.arange(length) / rate
    middle, width = t[-1] / 2, t[-1] / 12
    return np.sin(2 * np.pi * np.outer(frequencies, t) + 0.3) * np.exp(-(((t - middle) / width) ** 2))


def bell(rate: float, orig: float, length: int, count: int) -> np.ndarray:
    """The bell of `tones(_, orig, length)` at `count` times of another rate."""
    t, end = np.arange(count) / rate, (length - 1) / orig
    return np.exp(-(((t - end / 2) / (end / 12)) ** 2))


@pytest.mark.parametrize(("orig_sr", "target_sr"), RATIOS)
def test_passband_is_exact_and_in_time(orig_sr, target_sr):
    length = 6000
    frequencies = np.array([0.05, 0.4, 0.7, 0.88]) * min(orig_sr, target_sr) / 2
    y = tones(frequencies, orig_sr, length)
    ours = resample(jnp.asarray(y, jnp.float32), orig_sr=orig_sr, target_sr=target_sr)
    t = np.arange(ours.shape[-1]) / target_sr
    exact = np.sin(2 * np.pi * np.outer(frequencies, t) + 0.3) * bell(target_sr, orig_sr, length, len(t))
    assert ours.dtype == jnp.float32
    assert max_relative(ours, exact) <= 3e-6  # ripple and delay together; 0.05 dB would be 6e-3


@pytest.mark.parametrize(("orig_sr", "target_sr"), RATIOS)
def test_stopband_is_below_100_db(orig_sr, target_sr):
    down = orig_sr > target_sr
    length, lower = 8000, min(orig_sr, target_sr)
    # Downwards: tones above the new Nyquist frequency vanish. Upwards: the images above the old one do.
    share = np.array([1.02, 1.1, 1.3]) if down else np.array([0.3, 0.7, 0.88])
    frequencies = share[share * lower < orig_sr] * lower / 2
    y = tones(frequencies, orig_sr, length)
    ours = np.asarray(resample(jnp.asarray(y, jnp.float32), orig_sr=orig_sr, target_sr=target_sr), np.float64)
    if down:
        leak = np.sqrt((ours**2).mean() / (y**2).mean())
    else:
        spectrum = np.abs(np.fft.rfft(ours)) ** 2
        images = np.fft.rfftfreq(ours.shape[-1], 1 / target_sr) > lower * 0.52
        leak = np.sqrt(spectrum[:, images].sum() / spectrum.sum())
    assert 20 * np.log10(leak) <= -105


@pytest.mark.parametrize("stopband_db", [60.0, 100.0, 120.0])
def test_stopband_and_ripple_are_as_asked(stopband_db):
    with jax.enable_x64(True):
        impulse = jnp.zeros(4001).at[2000].set(1.0)  # 1 -> 4 shows the whole filter
        h = np.asarray(resample(impulse, orig_sr=1, target_sr=4, stopband_db=stopband_db, rolloff=0.9))
    assert h.dtype == np.float64
    response = 20 * np.log10(np.maximum(np.abs(np.fft.rfft(h, 2**17)) / 4, 1e-12))
    f = np.fft.rfftfreq(2**17) * 8  # 1 is the lower Nyquist frequency
    assert response[f >= 1].max() <= 1.5 - stopband_db
    assert np.abs(response[f <= 0.9]).max() <= 20 * np.log10(1 + 2 * 10 ** (-stopband_db / 20))


@pytest.mark.parametrize("quality", ["HQ", "VHQ"])
@pytest.mark.parametrize(("orig_sr", "target_sr"), RATIOS[:6])
def test_resample_agrees_with_soxr(orig_sr, target_sr, quality):
    y = tones(np.array([0.02, 0.3, 0.6, 0.85]) * min(orig_sr, target_sr) / 2, orig_sr, 6000).sum(0)
    ours = np.asarray(resample(jnp.asarray(y, jnp.float32), orig_sr=orig_sr, target_sr=target_sr))
    theirs = soxr.resample(y, orig_sr, target_sr, quality=quality)
    count = min(len(ours), len(theirs))
    # Where neither rate divides the other, soxr's own time axis is off by up to 4e-4 of a sample (ours: see above).
    whole = orig_sr % target_sr == 0 or target_sr % orig_sr == 0
    assert max_relative(ours[:count], theirs[:count]) <= (2e-6 if whole else 6e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("orig_sr", "target_sr"), RATIOS)
@pytest.mark.parametrize("length", [1, 441, 1000])
def test_length_is_that_of_librosa(orig_sr, target_sr, length):
    y = waves(length)
    ours = resample(jnp.asarray(y), orig_sr=orig_sr, target_sr=target_sr)
    theirs = librosa.resample(y, orig_sr=orig_sr, target_sr=target_sr, res_type="soxr_qq")
    assert ours.shape == theirs.shape == (-(-length * target_sr // orig_sr),)


def test_identity_returns_the_wave():
    y = jnp.asarray(waves(2, 100))
    assert (resample(y, orig_sr=44100, target_sr=44100.0) == y).all()


def test_constants_stay_and_every_wave_is_alone():
    y = waves(2, 3, 900)
    ours = resample(jnp.asarray(y), orig_sr=48000, target_sr=44100)
    each = np.stack([resample(jnp.asarray(item), orig_sr=48000, target_sr=44100) for item in y.reshape(6, 900)])
    assert max_relative(ours, each.reshape(2, 3, -1)) <= 1e-6
    ones = np.asarray(resample(jnp.ones(3000), orig_sr=48000, target_sr=44100))
    assert np.abs(ones[300:-300] - 1).max() <= 3e-6


def test_resample_is_linear_with_the_adjoint_as_gradient():
    y, g = waves(500), waves(182, seed=1)
    run = lambda y: resample(y, orig_sr=44100, target_sr=16000)  # noqa: E731
    gradient = jax.grad(lambda y: jnp.vdot(run(y), g))(jnp.zeros(500))
    assert float(jnp.vdot(gradient, y)) == pytest.approx(float(jnp.vdot(run(jnp.asarray(y)), g)), rel=1e-5)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1 + 1e-4, 1.25, 1.5])
def test_change_speed_reads_at_multiples_of_the_factor(factor):
    length = 20000
    frequencies = np.array([0.01, 0.2, 0.55]) / 2  # of the sampling rate; 0.913 / 1.5 = 0.61 of Nyquist passes
    y = tones(frequencies, 1.0, length)
    ours = np.asarray(change_speed(jnp.asarray(y, jnp.float32), jnp.float32(factor), fastest=1.5))
    t = np.arange(length) * (round(factor * 2**16) / 2**16)
    inside = np.exp(-(((t - (length - 1) / 2) / ((length - 1) / 12)) ** 2))
    exact = np.sin(2 * np.pi * np.outer(frequencies, t) + 0.3) * inside
    exact[:, t > length - 1] = 0
    assert max_relative(ours, exact) <= 1e-5
    assert not ours[:, t > length + 1].any()


def test_change_speed_filters_what_would_alias():
    y = tones(np.array([0.7]), 2.0, 8000)  # Nyquist is 1, so 0.7 lies beyond 1 / 1.5
    ours = np.asarray(change_speed(jnp.asarray(y, jnp.float32), jnp.float32(1.5), fastest=1.5))
    assert 20 * np.log10(np.abs(ours).max()) <= -95


@pytest.mark.slow
def test_change_speed_takes_one_factor_per_item():
    y, factors = jnp.asarray(waves(3, 1000)), jnp.array([0.9, 1.0, 1.3])
    each = np.stack([change_speed(item, factor) for item, factor in zip(y, factors, strict=True)])
    assert max_relative(change_speed(y, factors), each) <= 1e-6
    gradient = jax.grad(lambda y: (change_speed(y, factors) ** 2).sum())(0 * y)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("function", ["resample", "change_speed"])
def test_gradients_equal_finite_differences(function):
    with jax.enable_x64(True):
        y, d = (jnp.asarray(waves(300, seed=seed).astype(np.float64)) for seed in (0, 1))
        run = {
            "resample": lambda y: resample(y, orig_sr=3, target_sr=2),
            "change_speed": lambda y: change_speed(y, jnp.array(1.2)),
        }[function]
        f = lambda y: (jnp.tanh(run(y)) ** 2).sum()  # noqa: E731
        slope = (f(y + 1e-5 * d) - f(y - 1e-5 * d)) / 2e-5
        assert run(y).dtype == jnp.float64
        assert float(jnp.vdot(jax.grad(f)(y), d)) == pytest.approx(float(slope), rel=1e-8)


def test_bad_arguments_are_refused():
    y = jnp.ones(1000)
    for rates in itertools.permutations((0, 16000)):
        with pytest.raises(ValueError, match=r"_sr must lie in \(0, inf\), got 0"):
            resample(y, orig_sr=rates[0], target_sr=rates[1])
    with pytest.raises(ValueError, match=r"ratio \d+:\d+ needs \d+ filter weights.*larger common divisor"):
        resample(y, orig_sr=44100, target_sr=44101)
    with pytest.raises(ValueError, match=r"rolloff must lie in \(0, 1\), got 1.0"):
        resample(y, orig_sr=2, target_sr=1, rolloff=1.0)
    with pytest.raises(ValueError, match=r"fastest must lie in \[1, 2\), got 2.5"):
        change_speed(y, jnp.array(1.0), fastest=2.5)
    with pytest.raises(TypeError, match="divide by full scale"):
        resample(jnp.ones(10, jnp.int16), orig_sr=2, target_sr=1)
