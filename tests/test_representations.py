"""Representations, encode and decode: round trips, shapes, and the statistics that a normalisation measures."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.data.orchestra import INSTRUMENTS, synthesize
from jaxdiff.features import (
    REPRESENTATIONS,
    CompressedStft,
    LogMel,
    Magnitude,
    Normalization,
    Normalized,
    Patches,
    Representation,
    fit_normalization,
    griffinlim,
    istft,
    mel_to_stft,
    stft,
)


def waves(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def round_trip(representation, y):
    return jax.jit(lambda y: representation.decode(representation.encode(y)))(y)


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_patches_are_the_samples(size, lead):
    y, pair = waves(*lead, 64), Patches(size=size)
    x = pair.encode(jnp.asarray(y))
    assert x.shape == (*lead, 64 // size, size)
    assert (x[..., 1, :] == y[..., size : 2 * size]).all()
    assert (pair.decode(x) == y).all()
    assert pair.hop_length == size


@pytest.mark.slow
@pytest.mark.parametrize(("n_fft", "hop_length"), [(64, 16), (256, 128), (512, 128), (128, 50)])
@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.3])
def test_compressed_stft_round_trip(n_fft, hop_length, exponent):
    pair, y = CompressedStft(16_000, n_fft, hop_length, exponent), waves(2, 20 * hop_length)
    assert jax.eval_shape(pair.encode, y).shape == (2, 21, n_fft + 2)
    assert max_relative(round_trip(pair, y), y) <= 1e-5


def test_compressed_stft_raises_magnitudes_and_keeps_phase():
    y = waves(1024)
    X = librosa.stft(y.astype(np.float64), n_fft=128, hop_length=32).T
    x = CompressedStft(16_000, 128, 32, 0.3).encode(jnp.asarray(y))
    ours = np.asarray(x[:, :65]) + 1j * np.asarray(x[:, 65:])
    assert max_relative(ours, np.abs(X) ** 0.3 * np.exp(1j * np.angle(X))) <= 1e-4


@pytest.mark.slow
def test_magnitudes_come_back_and_their_gradient_takes_phases_as_constants():
    y, pair = waves(2, 4096), Magnitude(n_fft=256, hop_length=64)
    x = pair.encode(jnp.asarray(y))
    assert max_relative(x, np.sqrt(np.abs(librosa.stft(y, n_fft=256, hop_length=64))).swapaxes(-1, -2)) <= 1e-5
    again = pair.encode(jax.jit(pair.decode)(x))
    assert np.linalg.norm(again**2 - x**2) / np.linalg.norm(x**2) <= 0.3  # spectral convergence of noise
    assert pair.decode(x).shape == y.shape
    # With constant phases the sound is linear in the magnitudes: its derivative along x = sqrt(S) is twice itself.
    few, x = Magnitude(n_fft=256, hop_length=64, n_iter=2), x[:1]
    made, moved = jax.jit(lambda x: jax.jvp(few.decode, (x,), (x,)))(x)
    assert max_relative(moved, 2 * made) <= 1e-4
    assert jnp.isfinite(jax.jit(jax.grad(lambda x: (few.decode(x) ** 2).sum()))(0 * x)).all()


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.3])
def test_compressed_stft_of_silence(exponent):
    """Silence stays silence, both ways, with finite gradients."""
    pair, y = CompressedStft(16_000, 64, 16, exponent), jnp.zeros(320)
    x = pair.encode(y)
    assert not x.any()
    assert np.abs(pair.decode(x)).max() <= 1e-6
    assert np.isfinite(jax.jit(jax.grad(lambda y: (pair.encode(y) ** 2).sum()))(y)).all()
    assert np.isfinite(jax.jit(jax.grad(lambda x: (pair.decode(x) ** 2).sum()))(x)).all()


@pytest.mark.parametrize("kind", [CompressedStft, Magnitude, LogMel])
@pytest.mark.parametrize(("n_fft", "hop_length"), [(511, 128), (512, 257), (512, 0)])
def test_sizes_without_an_inverse_are_refused(kind, n_fft, hop_length):
    with pytest.raises(
        ValueError,
        match=rf"n_fft {n_fft} must be even and hop_length {hop_length} at most half|hop_length must lie in .*, got 0",
    ):
        kind(n_fft=n_fft, hop_length=hop_length)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Patches, dict(size=0), r"size must lie in \[1, inf\), got 0"),
        (Patches, dict(sample_rate=0), r"sample_rate must lie in \[1, inf\), got 0"),
        (CompressedStft, dict(sample_rate=-1), r"sample_rate must lie in \[1, inf\), got -1"),
        (Magnitude, dict(phase_period=0), r"phase_period must lie in \[1, inf\), got 0"),
        (LogMel, dict(phase_period=0), r"phase_period must lie in \[1, inf\), got 0"),
        (LogMel, dict(n_mels=0), r"n_mels must lie in \[1, inf\), got 0"),
        (LogMel, dict(floor_db=0.0), "floor_db must be below 0 dB, got 0.0"),
    ],
)
def test_other_bad_sizes_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_a_broken_patch_is_refused():
    with pytest.raises(ValueError, match="65 samples are no whole number of patches of size 64"):
        Patches().encode(jnp.zeros(65))


def test_fields_are_the_configuration():
    """The rate comes first, every field has a default, and equal fields are equal (and hashed) representations."""
    for name, kind in REPRESENTATIONS.items():
        pair = kind()
        assert dataclasses.is_dataclass(pair)
        fields = dataclasses.fields(pair)
        assert fields[0].name == "sample_rate", name
        assert kind(**dataclasses.asdict(pair)) == pair
        assert len({pair, kind(), dataclasses.replace(pair, sample_rate=8000)}) == 2
        with pytest.raises(dataclasses.FrozenInstanceError):
            kind().sample_rate = 1
        assert isinstance(kind(), Representation)
    assert {name for name, kind in REPRESENTATIONS.items() if kind.exact} == {"patches", "compressed_stft"}


@pytest.mark.slow
def test_normalised_by_fitted_numbers():
    corpus = [waves(4, 1280, seed=s) * np.float32(s + 1) for s in range(3)]
    spectra = CompressedStft(n_fft=128, hop_length=64)
    pair = Normalized(spectra, fit_normalization(spectra.encode, corpus))
    x = np.concatenate([pair.encode(jnp.asarray(y)) for y in corpus], dtype=np.float64).reshape(-1, 130)
    heard = np.setdiff1d(np.arange(130), [65, 129])  # the imaginary parts of DC and Nyquist are zero
    assert np.abs(x[:, heard].mean(0)).max() <= 1e-4
    assert np.abs(x[:, heard].std(0) - 1).max() <= 1e-4
    assert np.abs(x[:, [65, 129]]).max() <= 1e-4
    assert max_relative(round_trip(pair, corpus[1]), corpus[1]) <= 1e-5


def test_normalised_by_known_numbers():
    pair = Normalized(Patches(size=2), Normalization(jnp.array([3.0, 0.0]), jnp.array([2.0, 4.0])))
    assert pair.encode(jnp.array([5.0, 7.0, 3.0, -4.0])).tolist() == [[1.0, 1.75], [0.0, -1.0]]
    assert pair.decode(jnp.array([[1.0, 1.75], [0.0, -1.0]])).tolist() == [5.0, 7.0, 3.0, -4.0]


def test_fitted_numbers_are_numpys():
    corpus = [waves(2, 40, seed=s) + np.float32(s) for s in range(4)]
    fitted = fit_normalization(Patches(size=4).encode, corpus)
    x = np.concatenate(corpus, dtype=np.float64).reshape(-1, 4)
    assert max_relative(fitted.mean, x.mean(0)) <= 1e-6
    assert max_relative(fitted.scale, x.std(0)) <= 1e-6


def test_fitted_over_uneven_batches_weighs_every_frame():
    y = waves(1, 400)
    whole, parts = (fit_normalization(Patches(size=4).encode, c) for c in ([y], [y[:, :40], y[:, 40:120], y[:, 120:]]))
    assert max_relative(parts.mean, whole.mean) <= 1e-5
    assert max_relative(parts.scale, whole.scale) <= 1e-5


def test_silent_channels_are_not_blown_up():
    y = waves(3, 400).reshape(3, 100, 4) * np.array([1, 1, 0, 1e-6], np.float32) + np.array([0, 0, 0.5, 0], np.float32)
    scale = np.asarray(fit_normalization(Patches(size=4).encode, [y.reshape(3, -1)]).scale)
    root_mean_square = np.sqrt(y.reshape(-1, 4).var(0, dtype=np.float64).mean())
    assert np.allclose(scale[2:], 0.01 * root_mean_square, rtol=1e-4)
    assert np.isfinite(
        1 / np.asarray(fit_normalization(Patches(size=4).encode, [np.zeros((1, 40), np.float32)]).scale)
    ).all()


def test_an_empty_corpus_is_refused():
    with pytest.raises(ValueError, match="at least one waveform to measure"):
        fit_normalization(Patches(size=4).encode, [])


def test_log_mel_scale_and_floor():
    pair = LogMel(8000, n_fft=256, hop_length=64, n_mels=20, floor_db=-80.0)
    y = waves(2, 2048)
    M = librosa.feature.melspectrogram(y=y.astype(np.float64), sr=8000, n_fft=256, hop_length=64, n_mels=20, power=1.0)
    decibels = np.maximum(20 * np.log10(M), -80)
    assert max_relative(pair.encode(jnp.asarray(y)), (1 + decibels / 40).mT) <= 1e-5
    assert (pair.encode(jnp.zeros(2048)) == -1).all()


def test_log_mel_decodes_to_nearly_the_same_mel():
    """The sound is another, its mel spectrogram nearly the same: within 1.5 dB on average where it is loud."""
    t = np.arange(8192) / 16_000
    y = sum(np.sin(2 * np.pi * 200 * k * t + 20 * k * t**2) / k for k in range(1, 20)) * 0.2 + waves(8192) * 0.1
    pair = LogMel(n_fft=512, hop_length=128, n_mels=40)
    x = pair.encode(jnp.asarray(y, jnp.float32))
    again = pair.encode(jax.jit(pair.decode)(x))
    error = 50 * np.abs(np.asarray(again - x))[2:-2]  # 100 dB span 2 units
    loud = np.asarray(x)[2:-2] > np.asarray(x).max() - 40 / 50
    assert error[loud].mean() <= 1.5
    assert np.percentile(error[loud], 95) <= 5


@pytest.mark.slow
@pytest.mark.parametrize("samples", [320, 321, 335, 336, 1, 15, 17, 1999])
@pytest.mark.parametrize(
    "pair",
    [
        Patches(size=16),
        CompressedStft(n_fft=64, hop_length=16),
        CompressedStft(n_fft=50, hop_length=7),
        Magnitude(n_fft=64, hop_length=16, n_iter=2),
        LogMel(8000, n_fft=64, hop_length=16, n_mels=8, n_iter=2),
        LogMel(n_fft=66, hop_length=33, n_mels=8, n_iter=2),
    ],
    ids=repr,
)
@pytest.mark.parametrize("normalised", [False, True])
def test_frames_channels_and_samples(pair, samples, normalised):
    """The numbers are the shapes that encode gives, and whole hops decode to as many samples."""
    inner = pair
    if normalised:
        pair = Normalized(inner, Normalization(jnp.zeros(inner.channels), jnp.ones(inner.channels)))
        assert (pair.sample_rate, pair.hop_length, pair.exact) == (inner.sample_rate, inner.hop_length, inner.exact)
    if isinstance(inner, Patches):
        samples *= 16
    x = jax.eval_shape(pair.encode, jnp.zeros((2, samples)))
    assert x.shape == (2, pair.frames(samples), pair.channels)
    if whole := samples - samples % pair.hop_length:
        assert jax.eval_shape(pair.decode, x).shape == (2, whole)


@functools.cache
def melody() -> jax.Array:
    """Eight seconds of the orchestra at 16 kHz, its notes of many lengths."""
    length = np.random.default_rng(0).integers(4000, 16_000, 32)
    notes = [synthesize(list(INSTRUMENTS)[i % 8], "test", i)[:n] for i, n in enumerate(length)]
    return jnp.asarray(np.concatenate(notes)[:128_000], jnp.float32)


@pytest.mark.slow
def test_without_a_period_decode_is_griffin_lim_of_one_draw():
    """Bit for bit what a decode by hand gives."""
    sizes: dict[str, Any] = dict(n_fft=256, hop_length=64)
    y = melody()[16_000:24_000]
    pair = Magnitude(**sizes, n_iter=8, phase_period=None)
    x = pair.encode(y)
    S = jnp.maximum(x.mT, 0) ** (1 / 0.5)
    X = stft(griffinlim(S, n_iter=8, **sizes), **sizes)
    assert (pair.decode(x) == istft(S * (X / jnp.maximum(jnp.abs(X), 1e-12)), hop_length=64)).all()
    pair = LogMel(**sizes, n_mels=20, n_iter=8, phase_period=None)
    x = pair.encode(y)
    S = mel_to_stft(10 ** ((1 - x.mT) * -100.0 / 40), sr=16_000, n_fft=256, power=1.0)
    assert (pair.decode(x) == griffinlim(S, n_iter=8, **sizes)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "share"), [(Magnitude(), 1.0), (LogMel(), 0.75)], ids=["magnitude", "log_mel"])
def test_a_part_sounds_as_in_the_whole(pair, share):
    """Within -60 dB from 40 frames after its beginning and before its end (measured: 28); at 20 frames it is -20 dB.

    Griffin-Lim amplifies rounding, which is the same for a part's magnitudes but not for its inverted mels: there some
    frames differ more. A part that begins elsewhere than at a multiple of the period is another sound.
    """
    x = pair.encode(melody())
    whole, hop, count = np.asarray(pair.decode(x)), pair.hop_length, 256
    size = np.sqrt((whole**2).mean())

    def decibels(first: int) -> np.ndarray:
        """Size of the difference of every frame from the first, relative to that of the sound."""
        part = np.asarray(pair.decode(x[first : first + count]))
        error = part - whole[first * hop :][: len(part)]
        return 20 * np.log10(np.sqrt((error.reshape(-1, hop) ** 2).mean(1)) / size + 1e-9)

    for first in (64, 192):
        assert (decibels(first)[40:-40] <= -60).mean() >= share
    assert decibels(80)[40:-40].max() >= -20


@pytest.mark.slow
def test_a_period_does_not_cost_quality():
    """Spectral convergence with and without, on average over keys, of which one alone changes it by a fifth."""
    S = jnp.abs(stft(melody(), n_fft=1024, hop_length=256))

    def error(period: int | None) -> float:
        sounds = [
            griffinlim(S, n_fft=1024, hop_length=256, phase_period=period, key=jax.random.key(k)) for k in range(3)
        ]
        distance = [jnp.linalg.norm(jnp.abs(stft(y, n_fft=1024, hop_length=256)) - S) for y in sounds]
        return float(np.mean(distance) / jnp.linalg.norm(S))

    assert error(64) <= 1.15 * error(None)


@pytest.mark.parametrize("name", ["log_mel", "magnitude"])
def test_a_decoded_sound_keeps_the_level_of_its_features(name):
    """To a decibel of its energy, for features of any level, also far above full scale."""
    kind: Any = REPRESENTATIONS[name]
    pair = kind(n_fft=512, hop_length=128)
    for instrument in ("string", "snare"):
        y = jnp.asarray(synthesize(instrument, "train", 0)[:8192], jnp.float32)
        for gain in (0.01, 1, 8):
            energy = [float((z**2).sum()) for z in (gain * y, round_trip(pair, gain * y))]
            assert abs(10 * np.log10(energy[1] / energy[0])) < 1
