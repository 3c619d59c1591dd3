"""Spectral losses against float64 references on librosa's transforms; finite gradients where they vanish or agree."""

from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jaxdiff.features import mel_loss, multi_resolution_stft_loss

RESOLUTIONS = ((256, 60, 150), (512, 120, 300))
MEL: dict[str, Any] = dict(sr=8000, n_fft=256, hop_length=64, n_mels=20)
LOSSES = {
    "stft": lambda y, x: multi_resolution_stft_loss(y, x, resolutions=RESOLUTIONS),
    "mel": lambda y, x: mel_loss(y, x, **MEL),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def sounds(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return 0.3 * np.sin(0.2 * np.arange(shape[-1])) + 0.1 * rng.standard_normal(shape)


def test_stft_loss_in_float64():
    y, target = sounds(2, 2000)
    exact = []
    for n_fft, hop, win in RESOLUTIONS:
        options: dict[str, Any] = dict(n_fft=n_fft, hop_length=hop, win_length=win)
        Y, X = (np.sqrt(np.maximum(np.abs(librosa.stft(w, **options)) ** 2, 1e-7)) for w in (y, target))
        exact.append(np.linalg.norm(X - Y) / np.linalg.norm(X) + np.abs(np.log(X) - np.log(Y)).mean())
    ours = LOSSES["stft"](jnp.asarray(y, jnp.float32), jnp.asarray(target, jnp.float32))
    assert float(ours) == pytest.approx(np.mean(exact), rel=1e-5)


def test_mel_loss_in_float64():
    y, target = sounds(2, 2000)
    Y, X = (np.log(np.maximum(librosa.feature.melspectrogram(y=w, power=1.0, **MEL), 1e-5)) for w in (y, target))
    ours = LOSSES["mel"](jnp.asarray(y, jnp.float32), jnp.asarray(target, jnp.float32))
    assert float(ours) == pytest.approx(np.abs(X - Y).mean(), rel=1e-5)


@each_loss
def test_gradients_are_finite_and_vanish_at_the_target(name):
    gradient = jax.jit(jax.grad(LOSSES[name]))
    sound = jnp.asarray(sounds(2000), jnp.float32)
    silence = 0 * sound
    for y, target in ((silence, silence), (silence, sound), (sound, silence), (sound, sound), (silence + 1e-40, sound)):
        assert np.isfinite(gradient(y, target)).all()
    assert np.abs(gradient(silence, silence)).max() == 0
    assert float(LOSSES[name](silence, silence)) == 0
    assert float(LOSSES[name](sound, sound)) <= 1e-6
    assert np.isfinite(LOSSES[name](sound, silence))


@pytest.mark.slow
@each_loss
def test_gradient_is_the_directional_derivative(name):
    with jax.enable_x64(True):
        y, target = jnp.asarray(sounds(2, 2000))
        direction = jnp.asarray(np.random.default_rng(1).standard_normal(2000))
        slope = jax.grad(LOSSES[name])(y, target) @ direction
        h = 1e-6
        ahead, behind = (LOSSES[name](y + step * direction, target) for step in (h, -h))
        assert float(slope) == pytest.approx(float(ahead - behind) / (2 * h), rel=1e-4)


@each_loss
def test_a_batch_gives_what_its_items_give(name):
    y, target = jnp.asarray(sounds(2, 2, 2, 1000), jnp.float32)
    together = LOSSES[name](y, target)
    assert together.shape == (2, 2)
    for i, j in ((0, 0), (1, 0)):
        assert float(together[i, j]) == pytest.approx(float(LOSSES[name](y[i, j], target[i, j])), rel=2e-6)
