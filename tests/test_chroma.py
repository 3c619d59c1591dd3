"""Chroma against librosa, closed forms, and gradients of frames without energy."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.features.chroma import chroma_cqt, chroma_filterbank, chroma_stft, cq_to_chroma
from jaxdiff.features.constantq import cqt
from jaxdiff.features.spectral import stft

SR = 22050


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def coarse_cqt(*arrays, **options):
    """`chroma_cqt` with few bins, which compiles faster."""
    return chroma_cqt(*arrays, **{"fmin": 200.0, "n_octaves": 2, "bins_per_octave": 12, **options})


@pytest.mark.slow
@pytest.mark.parametrize("n_fft", [512, 2048, 1023])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(n_chroma=24, tuning=0.3),
        dict(n_chroma=7, octwidth=None),
        dict(norm=None, base_c=False),
        dict(norm=1.0, ctroct=4.0, octwidth=1.5),
    ],
)
def test_chroma_filterbank_equals_librosa(n_fft, options):
    reference = librosa.filters.chroma(sr=SR, n_fft=n_fft, dtype=np.float64, **options)
    assert max_relative(chroma_filterbank(SR, n_fft, **options), reference) <= 1e-12


@pytest.mark.parametrize(
    "options",
    [
        dict(n_input=84),
        dict(n_input=250, bins_per_octave=36),
        dict(n_input=50, bins_per_octave=24, fmin=100.0),
        dict(n_input=70, bins_per_octave=48, n_chroma=24, fmin=61.0, base_c=False),
    ],
)
def test_cq_to_chroma_equals_librosa(options):
    assert max_relative(cq_to_chroma(**options), librosa.filters.cq_to_chroma(**options)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(norm=2, tuning=0.2, center=False),
        dict(norm=None, n_fft=1023, hop_length=300, win_length=900),
        dict(norm=1, n_chroma=24, pad_mode="reflect", ctroct=4.0, octwidth=None, base_c=False),
    ],
)
def test_chroma_stft_equals_librosa(options):
    y = noise(2, 9001)
    reference = librosa.feature.chroma_stft(y=y.astype(np.float64), **{"tuning": 0.0, **options})
    assert max_relative(chroma_stft(jnp.asarray(y), **options), reference) <= 5e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(norm=2, bins_per_octave=12, n_octaves=6, hop_length=256),
        dict(norm=None, n_chroma=24, bins_per_octave=None, n_octaves=5),
        dict(norm=1, tuning=0.3, fmin=50.0, threshold=0.2),
    ],
)
def test_chroma_cqt_equals_librosa(options):
    y = noise(2, 20001)
    reference = librosa.feature.chroma_cqt(y=y.astype(np.float64), **{"tuning": 0.0, **options})
    assert max_relative(chroma_cqt(jnp.asarray(y), **options), reference) <= 1e-3


@pytest.mark.slow
def test_spectrograms_are_taken_as_they_are():
    y = jnp.asarray(noise(3, 9000))
    power = jnp.abs(stft(y, n_fft=1024, hop_length=300)) ** 2
    assert max_relative(chroma_stft(None, power), chroma_stft(y, n_fft=1024, hop_length=300)) <= 1e-5
    odd = jnp.abs(stft(y, n_fft=1023, hop_length=300)) ** 2
    assert max_relative(chroma_stft(None, odd, n_fft=1023), chroma_stft(y, n_fft=1023, hop_length=300)) <= 1e-5
    C = cqt(y, n_bins=24, fmin=200.0)
    for given in (C, jnp.abs(C)):
        assert max_relative(coarse_cqt(None, given), coarse_cqt(y)) <= 1e-6


@pytest.mark.parametrize("chroma", [chroma_stft, chroma_cqt])
@pytest.mark.parametrize(("note", "pitch_class"), [(60, 0), (69, 9), (83, 11)])
def test_a_note_is_its_pitch_class(chroma, note, pitch_class):
    y = jnp.sin(2 * jnp.pi * 440 * 2 ** ((note - 69) / 12) / SR * jnp.arange(SR))
    column = np.asarray(chroma(y))[:, 20]
    assert np.argmax(column) == pitch_class and column[pitch_class] == 1
    assert column[(pitch_class + 6) % 12] < 0.05


CHROMAS = pytest.mark.parametrize("chroma", [chroma_stft, coarse_cqt])


@CHROMAS
def test_each_frame_has_unit_norm_and_silence_has_none(chroma):
    y = jnp.asarray(noise(2, 9000)).at[1].set(0)
    for norm, measure in ((np.inf, lambda x: x.max(0)), (1.0, lambda x: x.sum(0)), (3.0, lambda x: (x**3).sum(0))):
        heard, silent = np.asarray(chroma(y, norm=norm))
        assert measure(heard) == pytest.approx(1, rel=1e-5) and not silent.any()


@pytest.mark.slow
@CHROMAS
def test_batch_jit_and_vmap_equal_items(chroma):
    y = jnp.asarray(noise(2, 3, 5000) * np.array([1, 1e-4, 1e4], np.float32)[:, None])
    items = np.stack([chroma(item) for item in y.reshape(-1, 5000)])
    items = items.reshape(2, 3, *items.shape[1:])
    for f in (chroma, jax.jit(chroma), jax.vmap(jax.vmap(chroma))):
        assert max_relative(f(y), items) <= 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("norm", [np.inf, 2.0, None])
def test_gradients_are_finite_where_energy_vanishes(norm):
    weights = jnp.asarray(noise(12, 1, seed=2))  # the sum of a normalised frame would have no gradient
    half = jnp.asarray(noise(3000)).at[1000:].set(0)
    inputs = [0 * half, 1e-41 * half, 1e-20 * half, 1e-12 * half, half, jnp.ones(3000), jnp.zeros(3000).at[9].set(1)]
    for f in (chroma_stft, coarse_cqt):
        gradient = jax.jit(jax.grad(lambda y, f=f: (weights * f(y, norm=norm)).sum()))
        assert all(np.isfinite(gradient(y)).all() for y in inputs)
        assert np.abs(gradient(half)).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("norm", [np.inf, 1.0, 2.0])
def test_gradients_equal_finite_differences(norm):
    with jax.enable_x64(True):
        y, direction = (jnp.asarray(noise(1500, seed=s), jnp.float64) for s in (4, 5))
        weights = jnp.asarray(noise(12, 1, seed=2), jnp.float64)
        for f in (chroma_stft, coarse_cqt):
            loss = jax.jit(lambda y, f=f: (weights * f(y, norm=norm)).sum())
            slope = (loss(y + 1e-6 * direction) - loss(y - 1e-6 * direction)) / 2e-6
            assert float(jnp.vdot(jax.jit(jax.grad(loss))(y), direction)) == pytest.approx(float(slope), rel=1e-5)


def test_wrong_options_are_refused():
    y = jnp.ones(3000)
    with pytest.raises(ValueError, match=r"chroma_stft: norm must lie in \(0, inf\], got -1"):
        chroma_stft(y, norm=-1.0)
    with pytest.raises(ValueError, match="chroma_stft: give either y or S"):
        chroma_stft()
    with pytest.raises(ValueError, match="chroma_cqt: give either y or C"):
        chroma_cqt(y, jnp.ones((84, 5)))
    with pytest.raises(ValueError, match="bins_per_octave 30 must be a multiple of n_chroma 12"):
        chroma_cqt(y, bins_per_octave=30)
    with pytest.raises(ValueError, match=r"n_chroma must lie in \[1, inf\), got 0"):
        chroma_stft(y, n_chroma=0)
    with pytest.raises(ValueError, match=r"octwidth must lie in \(0, inf\), got 0.0"):
        chroma_stft(y, octwidth=0.0)
