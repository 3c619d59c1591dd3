"""YIN and pYIN against librosa, on tones of known pitch and on a voice-like sound with pauses."""

from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jaxdiff.features import pyin, yin
from jaxdiff.features.pitch import _viterbi

SR = 16000
RANGE: dict[str, Any] = dict(fmin=65.0, fmax=1000.0, sr=SR, frame_length=1024, hop_length=256)


def voice(seed: int = 0) -> np.ndarray:
    """Two seconds: harmonics of a gliding pitch with formants and vibrato, pauses, breath noise at -40 dB."""
    rng = np.random.default_rng(seed)
    t = np.arange(2 * SR) / SR
    pitch = 150 * 2 ** (0.6 * np.sin(2 * np.pi * 0.8 * t + seed) + 0.03 * np.sin(2 * np.pi * 5.5 * t))
    phase = 2 * np.pi * np.cumsum(pitch) / SR
    formants = lambda f: 1 / (1 + ((f - 600) / 200) ** 2) + 0.4 / (1 + ((f - 1700) / 300) ** 2)  # noqa: E731
    y = sum(formants(k * pitch) * np.sin(k * phase + seed * k) for k in range(1, 16))
    return (0.1 * y * (np.sin(2 * np.pi * 1.3 * t) > -0.4) + 0.001 * rng.standard_normal(len(t))).astype(np.float32)


def cents(a, b) -> np.ndarray:
    return np.abs(1200 * np.log2(np.asarray(a, float) / b))


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(), dict(fmin=100.0, fmax=400.0, resolution=0.2), dict(center=False)])
def test_pyin_equals_librosa(options):
    y, options = voice(), RANGE | options
    f0, voiced, probability = (np.asarray(x) for x in pyin(jnp.asarray(y), **options))
    reference = librosa.pyin(y.astype(np.float64), **options)
    assert (voiced == reference[1]).mean() >= 0.99
    both = voiced & reference[1]
    assert 0.3 < both.mean() < 0.9
    assert cents(f0[both], reference[0][both]).max() <= 5
    assert np.isnan(f0[~voiced]).all()
    assert np.median(np.abs(probability - reference[2])) <= 1e-5


def test_yin_equals_librosa():
    y = voice(1)
    error = cents(yin(jnp.asarray(y), **RANGE), librosa.yin(y.astype(np.float64), **RANGE))
    assert (error <= 1).mean() >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("pitch", [80.0, 220.0, 440.0])
def test_pitch_of_a_tone(pitch):
    phase = 2 * np.pi * pitch * np.arange(SR // 2) / SR
    y = jnp.asarray(sum(np.sin(k * phase) / k for k in (1, 2, 3)), jnp.float32)
    assert cents(yin(y, **RANGE)[4:-4], pitch).max() <= 12  # a frame holds only five periods of 80 Hz
    f0, voiced, _ = pyin(y, **RANGE)
    assert voiced[4:-4].all()
    assert cents(f0[4:-4], pitch).max() <= 17  # and rounded to bins of 10 cents


def test_noise_and_silence_are_unvoiced():
    noise = jnp.asarray(np.random.default_rng(0).standard_normal(SR), jnp.float32)
    for y in (0.1 * noise, 0 * noise):
        f0, voiced, probability = pyin(y, **RANGE, fill_na=-1.0)
        assert voiced.mean() < 0.1
        assert (f0[~np.asarray(voiced)] == -1).all()
        assert np.isfinite(probability).all()


def test_a_batch_gives_what_its_items_give():
    y = jnp.asarray(np.stack([voice(0), voice(1), 0 * voice(0)])[:, : SR // 2])
    each = zip(*(pyin(item, **RANGE, fill_na=0.0) for item in y), strict=True)
    for together, alone in zip(pyin(y, **RANGE, fill_na=0.0), each, strict=True):
        np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5, atol=1e-6)


def test_bad_ranges_are_refused():
    y = jnp.ones(4096)
    with pytest.raises(ValueError, match="fmin 500 Hz and fmax 400 Hz must satisfy 0 < fmin < fmax"):
        yin(y, fmin=500, fmax=400)
    with pytest.raises(ValueError, match="must satisfy.*<= 8000.0 Hz"):
        pyin(y, fmin=65.0, fmax=9000.0, sr=SR)
    with pytest.raises(ValueError, match="a period of fmin 5.0 Hz does not fit frame_length 2048; use 4412 or more"):
        pyin(y, fmin=5.0, fmax=400.0)


def test_a_path_may_end_before_the_last_frame():
    """The path is that of the frames until then and stays where it ends, even beside the lowest pitch."""
    path = jax.jit(_viterbi, static_argnums=(2, 3))
    voiced = np.random.default_rng(0).dirichlet(np.full(24, 2.0), size=12).astype(np.float32)
    probability, ends = jnp.ones(12), set()
    for lowest in np.linspace(0.4, 0.5, 41):
        voiced[8] = [lowest, 0.9 - lowest, *22 * [0.1 / 22]]
        expected = path(jnp.asarray(voiced[:9]), probability[:9], 20, 0.01, None)
        np.testing.assert_array_equal(
            path(jnp.asarray(voiced), probability, 20, 0.01, 9), [*expected, *3 * [expected[-1]]]
        )
        ends.add(int(expected[-1]))
    assert ends == {0, 1}
