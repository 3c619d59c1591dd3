"""The vocoder's condition against librosa, its envelope and its guess; features and back to sound."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.features import compressed_stft, magnitude, patches
from jaxdiff.tasks import spectral_envelope, vocoding

MEL = dict(sr=16000, n_fft=512, n_mels=40, fmax=None)


def coloured(seed, count=4, samples=8192):
    """Noise that falls by 12 dB an octave above 500 Hz, at levels 10 dB apart."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal((count, samples)))
    slope = 1 / (1 + (np.fft.rfftfreq(samples, 1 / 16000) / 500) ** 2)
    return (10.0 ** (-np.arange(count) / 2)[:, None] * np.fft.irfft(spectrum * slope)).astype(np.float32)


def batch_of(wave):
    return {"wave": jnp.asarray(wave), "label": jnp.zeros(len(wave), jnp.int32)}


def test_the_condition_is_diffwaves():
    wave = coloured(0)
    frames = vocoding(patches(128), hop_length=128, **MEL).condition(batch_of(wave)).frames
    for ours, y in zip(frames, wave, strict=True):
        M = librosa.feature.melspectrogram(y=y, sr=16000, n_fft=512, hop_length=128, n_mels=40, power=1.0)
        expected = np.clip((20 * np.log10(np.maximum(1e-5, M)) - 20 + 100) / 100, 0, 1).T
        assert ours.shape == (64, 40)
        assert np.abs(ours - expected[:64]).max() <= 1e-5


@pytest.mark.parametrize("stft_n_fft", [256, 512])
def test_divided_by_the_envelope_features_are_of_unit_size_at_any_level_and_frequency(stft_n_fft):
    pair = compressed_stft(stft_n_fft, 128, 0.5)
    envelope = spectral_envelope(**MEL, stft_n_fft=stft_n_fft, exponent=0.5)
    task, batch = vocoding(pair, hop_length=128, envelope=envelope, **MEL), batch_of(coloured(1))
    example = task.example(batch, jax.random.key(0))
    assert example.x0.shape[1] == example.cond.frames.shape[1] == 65
    bins = stft_n_fft // 2 + 1
    power = np.asarray(example.x0[..., :bins] ** 2 + example.x0[..., bins:] ** 2)  # of compressed numbers: |X| / mean
    level = power[:, 2:-2, 2:-2].mean(1)  # per item and bin
    assert 0.7 < np.median(level) < 1.4
    assert (level > 0.4).all() and (level < 2.5).all()
    assert max_relative(task.decode(*example), batch["wave"]) <= 1e-5


def test_the_guess_is_the_inverted_mel():
    pair = magnitude(512, 128, 0.5)
    task, batch = vocoding(pair, hop_length=128, guess=0.5, **MEL), batch_of(coloured(2, count=2))
    example = task.example(batch, jax.random.key(0))
    for estimate, x0, y in zip(example.cond.estimate, example.x0, np.asarray(batch["wave"]), strict=True):
        X = np.abs(librosa.stft(y, n_fft=512, hop_length=128))
        assert max_relative(x0, np.sqrt(X).T) <= 1e-4
        M = librosa.feature.melspectrogram(S=X, sr=16000, n_fft=512, n_mels=40, power=1.0)
        again = librosa.filters.mel(sr=16000, n_fft=512, n_mels=40) @ np.asarray(estimate, np.float64).T ** 2
        assert np.linalg.norm(again - M) <= 0.02 * np.linalg.norm(M)
