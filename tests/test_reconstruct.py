"""Griffin-Lim and mel inversion: as good as librosa's, and exact where the answer is known."""

from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative
from scipy.optimize import nnls

from jaxdiff.features import griffinlim, istft, mel_filterbank, mel_to_stft, melspectrogram, stft

SR = 8000


def tone_and_noise() -> np.ndarray:
    """A gliding harmonic sound of half a second, over noise 30 dB below."""
    t = np.arange(SR // 2) / SR
    phase = 2 * np.pi * (220 * t + 60 * t**2)
    y = sum(np.sin(k * phase) / k for k in range(1, 8)) * np.exp(-2 * t)
    return (0.3 * y + 0.01 * np.random.default_rng(0).standard_normal(len(t))).astype(np.float32)


def spectral_convergence(y, S, **sizes) -> float:
    """|| |STFT(y)| - S || / ||S||, the number that Griffin-Lim lowers."""
    return float(np.linalg.norm(np.abs(librosa.stft(np.asarray(y, np.float64), **sizes)) - S) / np.linalg.norm(S))


@pytest.mark.slow
@pytest.mark.parametrize(("n_fft", "hop_length", "win_length"), [(512, 128, None), (400, 100, 320)])
def test_griffinlim_is_as_good_as_librosas(n_fft, hop_length, win_length):
    """On average over 64 initial phases, of which one alone changes the error by a fifth."""
    sizes: dict[str, Any] = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length)
    S, count = np.abs(librosa.stft(tone_and_noise(), **sizes)), 64
    sounds = jax.jit(jax.vmap(lambda key: griffinlim(jnp.asarray(S), **sizes, n_iter=32, key=key)))(
        jax.random.split(jax.random.key(0), count)
    )
    ours = np.mean([spectral_convergence(y, S, **sizes) for y in sounds])
    theirs = np.mean(
        [
            spectral_convergence(librosa.griffinlim(S, **sizes, n_iter=32, random_state=k), S, **sizes)
            for k in range(count)
        ]
    )
    assert ours == pytest.approx(theirs, rel=0.1)


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_griffinlim_is_the_fast_algorithm(momentum):
    """Perraudin et al. 2013, algorithm 2, in float64 with librosa's transforms, from the same initial phase."""
    sizes: dict[str, Any] = dict(n_fft=256, hop_length=60, win_length=200)
    key = jax.random.key(3)
    S = np.abs(librosa.stft(tone_and_noise().astype(np.float64), **sizes))
    angles = np.exp(1j * np.asarray(jax.random.uniform(key, S.shape, jnp.float32, 0, 2 * np.pi), np.float64))
    before = np.zeros_like(angles)
    for _ in range(4):
        rebuilt = librosa.stft(librosa.istft(S * angles, **sizes), **sizes)
        angles = rebuilt - momentum / (1 + momentum) * before
        angles, before = angles / np.abs(angles), rebuilt
    reference = librosa.istft(S * angles, **sizes, length=4000)
    ours = griffinlim(jnp.asarray(S, jnp.float32), **sizes, n_iter=4, key=key, momentum=momentum, length=4000)
    assert max_relative(ours, reference) <= 1e-3


def test_griffinlim_improves_with_iterations():
    S = np.abs(librosa.stft(tone_and_noise(), n_fft=512))
    errors = [spectral_convergence(griffinlim(jnp.asarray(S), n_iter=n), S, n_fft=512) for n in (0, 4, 32)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_griffinlim_of_one_true_phase():
    """Without iterations the result is the inverse transform of the magnitudes with the drawn phase."""
    S, key = jnp.abs(stft(jnp.asarray(tone_and_noise()), n_fft=256)), jax.random.key(3)
    phase = jax.random.uniform(key, S.shape, jnp.float32, 0, 2 * np.pi)
    assert max_relative(griffinlim(S, n_iter=0, key=key), istft(S * jnp.exp(1j * phase))) <= 1e-6


def test_an_impulse_is_found_without_phase():
    """An impulse's magnitudes say where and how loud it is; only its sign is lost."""
    y = np.zeros(1024, np.float32)
    y[512] = 0.7
    S = np.abs(librosa.stft(y, n_fft=256, hop_length=64))
    x = np.asarray(griffinlim(jnp.asarray(S), hop_length=64, n_iter=200, length=1024))
    assert spectral_convergence(x, S, n_fft=256, hop_length=64) <= 0.05
    assert np.abs(x).argmax() == 512
    assert np.abs(x).max() == pytest.approx(0.7, rel=0.05)


def test_griffinlim_lengths_and_silence():
    S = jnp.zeros((129, 9))
    assert griffinlim(S, n_iter=2).shape == (8 * 64,)
    assert griffinlim(S, n_iter=2, length=700).shape == (700,)
    assert griffinlim(S, n_iter=2, length=300).shape == (300,)
    assert not griffinlim(S, n_iter=2).any()


@pytest.mark.slow
def test_griffinlim_batch_equals_items_and_key_matters():
    y = tone_and_noise()
    S = jnp.asarray(np.abs(librosa.stft(np.stack([y, y[::-1]]), n_fft=256)))
    both = griffinlim(S, n_iter=4)
    assert max_relative(both[1], griffinlim(S[1], n_iter=4)) <= 1e-4
    assert max_relative(griffinlim(S, n_iter=4, key=jax.random.key(1)), both) > 0.1


def test_griffinlim_repeats_its_phases():
    """Without iterations the result has the phases of the first frames over and over; no period draws all of them."""
    S, key = jnp.abs(stft(jnp.asarray(tone_and_noise()), n_fft=256)), jax.random.key(3)
    phase = jax.random.uniform(key, (129, 12), jnp.float32, 0, 2 * np.pi)
    phase = jnp.tile(phase, 6)[:, : S.shape[1]]
    made = griffinlim(S, n_iter=0, key=key, phase_period=12)
    assert max_relative(made, istft(S * jnp.exp(1j * phase))) <= 1e-6
    assert (griffinlim(S, n_iter=4, phase_period=S.shape[1]) == griffinlim(S, n_iter=4)).all()
    with pytest.raises(ValueError, match=r"phase_period must lie in \[1, inf\), got 0"):
        griffinlim(S, phase_period=0)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_mel_inversion_is_not_worse_than_librosas(power):
    options: dict[str, Any] = dict(sr=SR, n_fft=512, fmax=3600.0)
    y = tone_and_noise()
    M = librosa.feature.melspectrogram(y=y, hop_length=128, n_mels=40, power=power, **options)
    filters = mel_filterbank(SR, 512, 40, 0.0, 3600.0)
    residual = lambda S: np.linalg.norm(filters @ np.asarray(S, np.float64) ** power - M) / np.linalg.norm(M)  # noqa: E731
    ours = mel_to_stft(jnp.asarray(M), power=power, **options)
    assert ours.shape == (257, M.shape[1])
    assert np.asarray(ours).min() >= 0
    assert residual(ours) <= max(1.05 * residual(librosa.feature.inverse.mel_to_stft(M, power=power, **options)), 1e-5)


@pytest.mark.parametrize(("htk", "norm"), [(False, "slaney"), (True, None)])
def test_mel_inversion_converges(htk, norm):
    """A mel spectrogram of true magnitudes has an exact answer: the residual falls to nothing."""
    options: dict[str, Any] = dict(sr=SR, n_fft=512, fmax=3600.0, htk=htk, norm=norm)
    filters = mel_filterbank(SR, 512, 40, 0.0, 3600.0, htk, norm)
    M = filters @ np.abs(librosa.stft(tone_and_noise(), n_fft=512)) ** 2
    residuals = [
        np.linalg.norm(filters @ np.asarray(S, np.float64) ** 2 - M) / np.linalg.norm(M)
        for S in (mel_to_stft(jnp.asarray(M, jnp.float32), n_iter=n, **options) for n in (0, 50, 2000))
    ]
    assert residuals[0] > 5 * residuals[1]
    assert residuals[1] <= 0.02
    assert residuals[2] <= 1e-5


def test_mel_inversion_nears_the_least_squares_answer():
    """For mels that no magnitudes give exactly, the residual is that of scipy's active-set solver."""
    filters, M = mel_filterbank(SR, 128, 12), np.random.default_rng(0).uniform(0, 1, (12, 3))
    M[3] = 0
    best = np.array([nnls(filters, m)[1] for m in M.T])
    S = np.asarray(mel_to_stft(jnp.asarray(M, jnp.float32), sr=SR, n_fft=128, power=1.0, n_iter=2000), np.float64)
    ours = np.linalg.norm(filters @ S - M, axis=0)
    assert (ours <= best + 0.01 * np.linalg.norm(M, axis=0)).all()


def test_mel_inversion_of_a_batch_and_of_silence():
    y = tone_and_noise()
    M = melspectrogram(jnp.stack([jnp.asarray(y), 0.1 * jnp.asarray(y[::-1])]), sr=SR, n_fft=256, n_mels=20)
    both = mel_to_stft(M, sr=SR, n_fft=256)
    assert max_relative(both[1], mel_to_stft(M[1], sr=SR, n_fft=256)) <= 1e-4
    assert mel_to_stft(0 * M, sr=SR, n_fft=256).max() <= 1e-9
