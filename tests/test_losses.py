"""Spectral losses against float64 references on librosa's transforms; finite gradients where they vanish or agree."""

from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from jaxdiff.features import compressed_stft_loss, mel_loss, multi_resolution_stft_loss, speech_loss

RESOLUTIONS = ((256, 60, 150), (512, 120, 300))
MEL: dict[str, Any] = dict(sr=8000, n_fft=256, hop_length=64, n_mels=20)
SHORT: dict[str, Any] = dict(n_fft=256, hop_length=64)
LOSSES = {
    "stft": lambda y, x: multi_resolution_stft_loss(y, x, resolutions=RESOLUTIONS),
    "mel": lambda y, x: mel_loss(y, x, **MEL),
    "compressed": lambda y, x: compressed_stft_loss(y, x, **SHORT),
    "speech": lambda y, x: speech_loss(y, x, **SHORT),
}
LEAST = dict(stft=0.0, mel=0.0, compressed=0.0, speech=-0.06)  # of equal sounds; 0.002 times -30 dB
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


def compressed(y, target, exponent=0.3, phase=0.4):
    """Braun & Tashev's equation 3 in float64."""
    Y, X = (librosa.stft(w, **SHORT) for w in (y, target))
    bend = lambda Z: np.abs(Z) ** exponent * np.exp(1j * np.angle(Z))  # noqa: E731
    louder = (np.abs(Y) ** exponent - np.abs(X) ** exponent) ** 2
    return (phase * np.abs(bend(Y) - bend(X)) ** 2 + (1 - phase) * louder).mean()


@pytest.mark.parametrize("options", [{}, {"exponent": 0.5, "phase": 1.0}, {"phase": 0.0}])
def test_compressed_loss_in_float64(options):
    y, target = sounds(2, 2000)
    ours = compressed_stft_loss(jnp.asarray(y, jnp.float32), jnp.asarray(target, jnp.float32), **SHORT, **options)
    assert float(ours) == pytest.approx(compressed(y, target, **options), rel=1e-4)


def test_compressed_loss_is_linear_below_its_floor():
    """Bins are divided by the floor's magnitude to the power 1 - exponent, and only the share of phase is left."""
    quiet = 1e-7 * sounds(2, 2000)
    Y, X = (librosa.stft(w, **SHORT) for w in quiet)
    y, target = jnp.asarray(quiet, jnp.float32)
    expected = 0.4 * (np.abs(Y - X) ** 2 * 1e-8**-0.7).mean()
    assert float(compressed_stft_loss(y, target, **SHORT)) == pytest.approx(expected, rel=1e-4)


def distortion(y, target):
    """Minus SI-SDR in dB, with the error at least 30 dB below the target's part (added to it)."""
    along = (y @ target) / (target @ target) * target
    error = y - along
    return 10 * np.log10((error @ error) / (along @ along) + 1e-3)


@pytest.mark.parametrize("weights", [{}, {"wave": 1.0, "ratio": 0.0}, {"wave": 0.0, "ratio": 1.0}])
def test_speech_loss_in_float64(weights):
    y, target = sounds(2, 2000)
    y = 1.7 * target + 0.2 * y
    wave, ratio = weights.get("wave", 0.2), weights.get("ratio", 0.002)
    apart = np.abs(y - target).mean() / np.sqrt((target**2).mean())
    expected = compressed(y, target) + wave * apart + ratio * distortion(y, target)
    ours = speech_loss(jnp.asarray(y, jnp.float32), jnp.asarray(target, jnp.float32), **SHORT, **weights)
    assert float(ours) == pytest.approx(expected, rel=1e-4)


def test_what_louder_sounds_do_to_the_speech_losses():
    y, target = jnp.asarray(sounds(2, 2000), jnp.float32)
    near = target + 0.1 * y
    part = lambda y, x, **w: float(speech_loss(y, x, **SHORT, **w) - compressed_stft_loss(y, x, **SHORT))  # noqa: E731
    both = part(8 * near, 8 * target)
    assert both == pytest.approx(part(near, target), abs=1e-5)  # waves are measured by the target's deviation
    alone = dict(wave=0.0, ratio=1.0)
    assert part(8 * near, target, **alone) == pytest.approx(part(near, target, **alone), abs=1e-3)
    louder = float(compressed_stft_loss(8 * near, 8 * target, **SHORT))
    assert louder == pytest.approx(8**0.6 * float(compressed_stft_loss(near, target, **SHORT)), rel=1e-3)


def test_parts_that_are_smooth_have_no_gradient_at_the_target():
    sound = jnp.asarray(sounds(2000), jnp.float32)
    for loss in (LOSSES["compressed"], lambda y, x: speech_loss(y, x, **SHORT, wave=0.0, ratio=1.0)):
        slope = jax.jit(jax.grad(loss))
        assert np.abs(slope(sound, sound)).max() <= 1e-4 * np.abs(slope(sound + 0.1 * sound[::-1], sound)).max()


def test_a_silent_target_leaves_the_spectra_alone():
    y, target = jnp.asarray(sounds(2, 2000), jnp.float32)
    for silence in (0 * target, 1e-5 * target):
        assert float(speech_loss(y, silence, **SHORT)) == float(compressed_stft_loss(y, silence, **SHORT))
    assert float(speech_loss(y, 1e-2 * target, **SHORT)) > float(compressed_stft_loss(y, 1e-2 * target, **SHORT)) + 1
    # a sound that is silent itself has a distortion of 0 dB
    assert float(speech_loss(0 * y, target, **SHORT, wave=0.0, ratio=1.0)) == pytest.approx(
        float(compressed_stft_loss(0 * y, target, **SHORT)), abs=1e-4
    )


@each_loss
def test_gradients_are_finite_and_vanish_at_the_target(name):
    gradient = jax.jit(jax.grad(LOSSES[name]))
    sound = jnp.asarray(sounds(2000), jnp.float32)
    silence = 0 * sound
    for y, target in ((silence, silence), (silence, sound), (sound, silence), (sound, sound), (silence + 1e-40, sound)):
        assert np.isfinite(gradient(y, target)).all()
    assert np.abs(gradient(silence, silence)).max() == 0
    assert float(LOSSES[name](silence, silence)) == 0
    assert float(LOSSES[name](sound, sound)) == pytest.approx(LEAST[name], abs=1e-6)
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
