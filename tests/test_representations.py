"""Pairs of encode and decode: round trips, shapes, and the statistics that a normalisation measures."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.features import (
    Normalization,
    chain,
    compressed_stft,
    fit_normalization,
    log_mel,
    magnitude,
    normalize,
    patches,
)


def waves(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def round_trip(representation, y):
    return jax.jit(lambda y: representation.decode(representation.encode(y)))(y)


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_patches_are_the_samples(size, lead):
    y, pair = waves(*lead, 64), patches(size)
    x = pair.encode(jnp.asarray(y))
    assert x.shape == (*lead, 64 // size, size)
    assert (x[..., 1, :] == y[..., size : 2 * size]).all()
    assert (pair.decode(x) == y).all()
    assert pair.hop_length == size


@pytest.mark.parametrize(("n_fft", "hop_length"), [(64, 16), (256, 128), (512, 128), (128, 50)])
@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.3])
def test_compressed_stft_round_trip(n_fft, hop_length, exponent):
    pair, y = compressed_stft(n_fft, hop_length, exponent), waves(2, 20 * hop_length)
    assert jax.eval_shape(pair.encode, y).shape == (2, 21, n_fft + 2)
    assert max_relative(round_trip(pair, y), y) <= 1e-5


def test_compressed_stft_raises_magnitudes_and_keeps_phase():
    y = waves(1024)
    X = librosa.stft(y.astype(np.float64), n_fft=128, hop_length=32).T
    x = compressed_stft(128, 32, 0.3).encode(jnp.asarray(y))
    ours = np.asarray(x[:, :65]) + 1j * np.asarray(x[:, 65:])
    assert max_relative(ours, np.abs(X) ** 0.3 * np.exp(1j * np.angle(X))) <= 1e-4


def test_magnitudes_come_back_and_their_gradient_takes_phases_as_constants():
    y, pair = waves(2, 4096), magnitude(256, 64, 0.5)
    x = pair.encode(jnp.asarray(y))
    assert max_relative(x, np.sqrt(np.abs(librosa.stft(y, n_fft=256, hop_length=64))).swapaxes(-1, -2)) <= 1e-5
    again = pair.encode(jax.jit(pair.decode)(x))
    assert np.linalg.norm(again**2 - x**2) / np.linalg.norm(x**2) <= 0.3  # spectral convergence of noise
    assert pair.decode(x).shape == y.shape
    # With constant phases the sound is linear in the magnitudes: its derivative along x = sqrt(S) is twice itself.
    made, moved = jax.jvp(pair.decode, (x,), (x,))
    assert max_relative(moved, 2 * made) <= 1e-4
    assert jnp.isfinite(jax.grad(lambda x: (pair.decode(x) ** 2).sum())(0 * x)).all()


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.3])
def test_compressed_stft_of_silence(exponent):
    """Silence stays silence, both ways, with finite gradients."""
    pair, y = compressed_stft(64, 16, exponent), jnp.zeros(320)
    x = pair.encode(y)
    assert not x.any()
    assert np.abs(pair.decode(x)).max() <= 1e-6
    assert np.isfinite(jax.jit(jax.grad(lambda y: (pair.encode(y) ** 2).sum()))(y)).all()
    assert np.isfinite(jax.jit(jax.grad(lambda x: (pair.decode(x) ** 2).sum()))(x)).all()


@pytest.mark.parametrize(("n_fft", "hop_length"), [(511, 128), (512, 257), (512, 0)])
def test_sizes_without_an_inverse_are_refused(n_fft, hop_length):
    with pytest.raises(ValueError, match=rf"n_fft {n_fft} must be even and hop_length {hop_length} at most half"):
        compressed_stft(n_fft, hop_length)


def test_chained_with_a_fitted_normalisation():
    corpus = [waves(4, 1280, seed=s) * np.float32(s + 1) for s in range(3)]
    spectra = compressed_stft(128, 64, 0.5)
    pair = chain(spectra, normalize(fit_normalization(spectra.encode, corpus)))
    x = np.concatenate([pair.encode(jnp.asarray(y)) for y in corpus], dtype=np.float64).reshape(-1, 130)
    heard = np.setdiff1d(np.arange(130), [65, 129])  # the imaginary parts of DC and Nyquist are zero
    assert np.abs(x[:, heard].mean(0)).max() <= 1e-4
    assert np.abs(x[:, heard].std(0) - 1).max() <= 1e-4
    assert np.abs(x[:, [65, 129]]).max() <= 1e-4
    assert pair.hop_length == 64
    assert max_relative(round_trip(pair, corpus[1]), corpus[1]) <= 1e-5


def test_chain_decodes_in_reverse():
    add = normalize(Normalization(jnp.array([3.0]), jnp.array([1.0])))
    halve = normalize(Normalization(jnp.array([0.0]), jnp.array([2.0])))
    pair = chain(patches(1), add, halve)
    assert pair.encode(jnp.array([5.0, 7.0])).tolist() == [[1.0], [2.0]]
    assert pair.decode(jnp.array([[1.0], [2.0]])).tolist() == [5.0, 7.0]


def test_fitted_numbers_are_numpys():
    corpus = [waves(2, 40, seed=s) + np.float32(s) for s in range(4)]
    fitted = fit_normalization(patches(4).encode, corpus)
    x = np.concatenate(corpus, dtype=np.float64).reshape(-1, 4)
    assert max_relative(fitted.mean, x.mean(0)) <= 1e-6
    assert max_relative(fitted.scale, x.std(0)) <= 1e-6


def test_fitted_over_uneven_batches_weighs_every_frame():
    y = waves(1, 400)
    whole, parts = (fit_normalization(patches(4).encode, c) for c in ([y], [y[:, :40], y[:, 40:120], y[:, 120:]]))
    assert max_relative(parts.mean, whole.mean) <= 1e-5
    assert max_relative(parts.scale, whole.scale) <= 1e-5


def test_silent_channels_are_not_blown_up():
    y = waves(3, 400).reshape(3, 100, 4) * np.array([1, 1, 0, 1e-6], np.float32) + np.array([0, 0, 0.5, 0], np.float32)
    scale = np.asarray(fit_normalization(patches(4).encode, [y.reshape(3, -1)]).scale)
    root_mean_square = np.sqrt(y.reshape(-1, 4).var(0, dtype=np.float64).mean())
    assert np.allclose(scale[2:], 0.01 * root_mean_square, rtol=1e-4)
    assert np.isfinite(
        1 / np.asarray(fit_normalization(patches(4).encode, [np.zeros((1, 40), np.float32)]).scale)
    ).all()


def test_an_empty_corpus_is_refused():
    with pytest.raises(ValueError, match="at least one waveform to measure"):
        fit_normalization(patches(4).encode, [])


def test_log_mel_scale_and_floor():
    pair = log_mel(8000, n_fft=256, hop_length=64, n_mels=20, floor_db=-80.0)
    y = waves(2, 2048)
    M = librosa.feature.melspectrogram(y=y.astype(np.float64), sr=8000, n_fft=256, hop_length=64, n_mels=20, power=1.0)
    decibels = np.maximum(20 * np.log10(M), -80)
    assert max_relative(pair.encode(jnp.asarray(y)), (1 + decibels / 40).mT) <= 1e-5
    assert (pair.encode(jnp.zeros(2048)) == -1).all()


def test_log_mel_decodes_to_nearly_the_same_mel():
    """The sound is another, its mel spectrogram nearly the same: within 1.5 dB on average where it is loud."""
    t = np.arange(8192) / 16_000
    y = sum(np.sin(2 * np.pi * 200 * k * t + 20 * k * t**2) / k for k in range(1, 20)) * 0.2 + waves(8192) * 0.1
    pair = log_mel(16_000, n_fft=512, hop_length=128, n_mels=40)
    x = pair.encode(jnp.asarray(y, jnp.float32))
    again = pair.encode(jax.jit(pair.decode)(x))
    error = 50 * np.abs(np.asarray(again - x))[2:-2]  # 100 dB span 2 units
    loud = np.asarray(x)[2:-2] > np.asarray(x).max() - 40 / 50
    assert error[loud].mean() <= 1.5
    assert np.percentile(error[loud], 95) <= 5


@pytest.mark.parametrize(
    "pair", [patches(16), compressed_stft(64, 16), log_mel(8000, n_fft=64, hop_length=16, n_mels=8, n_iter=2)]
)
def test_frames_and_samples(pair):
    y = jnp.asarray(waves(2, 320))
    x = jax.eval_shape(pair.encode, y)
    assert pair.hop_length == 16
    assert x.shape[:2] in ((2, 20), (2, 21))  # a centred transform has a frame at each end
    assert jax.eval_shape(pair.decode, x).shape == y.shape
