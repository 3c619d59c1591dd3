"""The vocoder's condition against librosa, its envelope and its guess; features and back to sound."""

from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.features import CompressedStft, LogMel, Magnitude, Patches
from jaxdiff.tasks import Generate, Needs, Vocode, spectral_envelope

MEL: dict[str, Any] = dict(n_fft=512, n_mels=40)


def coloured(seed, count=4, samples=8192):
    """Noise that falls by 12 dB an octave above 500 Hz, at levels 10 dB apart."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal((count, samples)))
    slope = 1 / (1 + (np.fft.rfftfreq(samples, 1 / 16000) / 500) ** 2)
    return (10.0 ** (-np.arange(count) / 2)[:, None] * np.fft.irfft(spectrum * slope)).astype(np.float32)


def batch_of(wave):
    return {"wave": jnp.asarray(wave), "label": jnp.zeros(len(wave), jnp.int32)}


def test_the_condition_is_diffwaves():
    wave = coloured(0)
    frames = Vocode(hop_length=128, **MEL).given(Patches(size=128), batch_of(wave)).cond.frames
    assert frames is not None
    for ours, y in zip(frames, wave, strict=True):
        M = librosa.feature.melspectrogram(y=y, sr=16000, n_fft=512, hop_length=128, n_mels=40, power=1.0)
        expected = np.clip((20 * np.log10(np.maximum(1e-5, M)) - 20 + 100) / 100, 0, 1).T
        assert ours.shape == (64, 40)
        assert np.abs(ours - expected[:64]).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("representation", [Patches(size=128), CompressedStft(), LogMel(hop_length=128)])
def test_training_and_use_know_the_same(representation):
    task, batch = Vocode(hop_length=128, **MEL), batch_of(coloured(0))
    example, given = task.example(representation, batch, jax.random.key(0)), task.given(representation, batch)
    assert (example.given.cond.frames == given.cond.frames).all()
    assert given.cond.frames is not None
    assert given.cond.frames.shape == (4, representation.frames(8192), 40)
    assert (example.x0 == representation.encode(batch["wave"])).all()
    needs = task.needs(representation)
    assert needs == Needs(40, 128)


@pytest.mark.slow
@pytest.mark.parametrize("stft_n_fft", [256, 512])
@pytest.mark.parametrize("kind", [CompressedStft, Magnitude])
def test_divided_by_the_envelope_features_are_of_unit_size_at_any_level_and_frequency(kind, stft_n_fft):
    pair = kind(n_fft=stft_n_fft, hop_length=128, exponent=0.5, **({} if kind.exact else {"n_iter": 2}))
    task, batch = Vocode(hop_length=128, envelope=True, **MEL), batch_of(coloured(1))
    task.check(pair)
    x0, given = task.example(pair, batch, jax.random.key(0))
    assert given.cond.frames is not None
    assert x0.shape[1] == given.cond.frames.shape[1] == 65
    bins = stft_n_fft // 2 + 1
    parts = np.asarray(x0).reshape(4, 65, -1, bins)
    power = (parts**2).sum(2)  # of compressed numbers: |X| / mean
    level = power[:, 2:-2, 2:-2].mean(1)  # per item and bin
    assert 0.7 < np.median(level) < 1.4
    assert (level > 0.4).all() and (level < 2.5).all()
    options: dict[str, Any] = dict(sr=16000, n_fft=512, fmax=None, stft_n_fft=stft_n_fft, exponent=0.5)
    envelope = spectral_envelope(given.cond.frames, **options, parts=1 + (kind is CompressedStft))
    assert max_relative(x0 * envelope, pair.encode(batch["wave"])) <= 1e-5
    if pair.exact:
        assert max_relative(task.finish(pair, x0, given), batch["wave"]) <= 1e-5
    else:
        assert (task.finish(pair, x0, given) == pair.decode(x0 * envelope)).all()


@pytest.mark.parametrize("envelope", [False, True])
def test_the_guess_is_the_inverted_mel(envelope):
    pair = Magnitude(n_fft=512, hop_length=128, exponent=0.5)
    task, batch = Vocode(hop_length=128, guess=True, envelope=envelope, **MEL), batch_of(coloured(2, count=2))
    task.check(pair)
    x0, given = task.example(pair, batch, jax.random.key(0))
    start, frames = given.start, given.cond.frames
    assert start is not None and frames is not None
    if envelope:  # divided by it, as x0 is
        options: dict[str, Any] = dict(sr=16000, n_fft=512, fmax=None, stft_n_fft=512, exponent=0.5, parts=1)
        shape = spectral_envelope(frames, **options)
        x0, start = x0 * shape, start * shape
    assert (task.given(pair, batch).start == given.start).all()
    for estimate, x, y in zip(start, x0, np.asarray(batch["wave"]), strict=True):
        X = np.abs(librosa.stft(y, n_fft=512, hop_length=128))
        assert max_relative(x, np.sqrt(X).T) <= 1e-4
        M = librosa.feature.melspectrogram(S=X, sr=16000, n_fft=512, n_mels=40, power=1.0)
        again = librosa.filters.mel(sr=16000, n_fft=512, n_mels=40) @ np.asarray(estimate, np.float64).T ** 2
        assert np.linalg.norm(again - M) <= 0.02 * np.linalg.norm(M)


@pytest.mark.parametrize("task", [Vocode(hop_length=128, peak_db=-6, **MEL), Generate(peak_db=-6)])
def test_the_level_is_the_same_in_training_whatever_the_recording_s(task):
    pair, wave = Patches(size=128), coloured(3)
    example = task.example(pair, batch_of(wave), jax.random.key(0))
    peak = np.abs(np.asarray(example.x0)).max((1, 2))
    np.testing.assert_allclose(peak, 10 ** (-6 / 20), rtol=1e-6)
    quiet = task.example(pair, batch_of(0.1 * wave), jax.random.key(0))
    assert max_relative(quiet.x0, example.x0) <= 1e-6
    if task.needs_sound:
        assert max_relative(quiet.given.cond.frames, example.given.cond.frames) <= 1e-6
    gain = task.gain(np.abs(wave).max(1))
    assert max_relative(gain[:, None] * wave, pair.decode(example.x0)) <= 1e-6
    assert np.isfinite(task.leveled(jnp.zeros((1, 128)))).all()
