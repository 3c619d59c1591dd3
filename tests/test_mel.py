"""Mel scale, mel spectrogram, cepstrum and delta against librosa, which computes in double precision."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal
from oracles import max_relative

from jaxdiff.features import (
    chroma_stft,
    delta,
    hz_to_mel,
    mel_filterbank,
    mel_to_hz,
    mel_to_stft,
    melspectrogram,
    mfcc,
    power_to_db,
    rms,
)


def waves(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("n_fft", "n_mels", "fmin", "fmax"), [(512, 40, 0.0, None), (1024, 80, 50.0, 7600.0), (2048, 128, 0.0, None)]
)
@pytest.mark.parametrize("htk", [False, True])
@pytest.mark.parametrize("norm", ["slaney", 1.0, 2.0, None])
def test_mel_filterbank_equals_librosa(n_fft, n_mels, fmin, fmax, htk, norm):
    ours = mel_filterbank(16000, n_fft, n_mels, fmin, fmax, htk, norm)
    options: dict[str, Any] = dict(
        sr=16000, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax, htk=htk, norm=norm, dtype=np.float64
    )
    assert max_relative(ours, librosa.filters.mel(**options)) <= 1e-12


@pytest.mark.parametrize("htk", [False, True])
def test_mel_scale_equals_librosa(htk):
    frequencies = np.array([0.0, 60.0, 999.0, 1000.0, 1001.0, 4000.0, 11025.0])
    assert max_relative(hz_to_mel(frequencies, htk), librosa.hz_to_mel(frequencies, htk=htk)) <= 1e-14
    assert max_relative(mel_to_hz(hz_to_mel(frequencies, htk), htk), frequencies) <= 1e-14


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_fft", "hop_length", "win_length"), [(512, 100, 400), (513, 128, None), (512, 200, 301), (512, 512, None)]
)
@pytest.mark.parametrize(("power", "pad_mode"), [(1.0, "constant"), (2.0, "reflect"), (1.5, "constant")])
def test_melspectrogram_equals_librosa(n_fft, hop_length, win_length, power, pad_mode):
    y = waves(2, 3000)
    options: dict[str, Any] = dict(
        sr=16000, n_fft=n_fft, win_length=win_length, power=power, pad_mode=pad_mode, n_mels=40
    )
    reference = librosa.feature.melspectrogram(y=y.astype(np.float64), hop_length=hop_length, **options)
    assert max_relative(melspectrogram(jnp.asarray(y), hop_length=hop_length, **options), reference) <= 5e-7


def test_melspectrogram_passes_band_and_norm():
    y = waves(3000)
    options: dict[str, Any] = dict(
        sr=16000, n_fft=512, hop_length=128, n_mels=30, fmin=100.0, fmax=6000.0, htk=True, norm=None, center=False
    )
    reference = librosa.feature.melspectrogram(y=y.astype(np.float64), **options)
    assert max_relative(melspectrogram(jnp.asarray(y), **options), reference) <= 5e-7


@pytest.mark.parametrize("band", [(-1.0, 4000.0), (4000.0, 4000.0), (0.0, 9000.0)])
def test_impossible_mel_bands_are_refused(band):
    with pytest.raises(
        ValueError, match=r"must satisfy 0 <= fmin < fmax <= 8000.0 Hz|fmin must lie in \[0, inf\), got -1.0"
    ):
        mel_filterbank(16000, 512, 40, *band)


def test_other_bad_options_are_refused():
    with pytest.raises(ValueError, match="norm must be 'slaney', a number or None, got 'area'"):
        mel_filterbank(16000, 512, 40, norm="area")


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(lifter=22.0, n_mfcc=13),
        dict(dct_type=3),
        dict(norm=None, n_mfcc=40),
        dict(htk=True, hop_length=100),
    ],
)
def test_mfcc_equals_librosa(options):
    y = waves(4000) * np.linspace(0, 1, 4000, dtype=np.float32)
    sizes = dict(sr=16000, n_mels=40, n_fft=512) | options
    assert max_relative(mfcc(jnp.asarray(y), **sizes), librosa.feature.mfcc(y=y.astype(np.float64), **sizes)) <= 2e-6


def test_mfcc_of_a_spectrogram():
    S = power_to_db(melspectrogram(jnp.asarray(waves(4000)), n_mels=40))
    reference = librosa.feature.mfcc(S=np.asarray(S, np.float64), n_mfcc=13, lifter=10)
    assert max_relative(mfcc(S=S, n_mfcc=13, lifter=10.0), reference) <= 5e-7


@pytest.mark.slow
def test_double_precision_agrees_to_1e_10():
    y = waves(2, 3000).astype(np.float64)
    options: dict[str, Any] = dict(sr=16000, n_fft=400, hop_length=100, n_mels=30)
    with jax.enable_x64(True):
        mel, cepstrum = melspectrogram(jnp.asarray(y), **options), mfcc(jnp.asarray(y[0]), **options)
    assert max_relative(mel, librosa.feature.melspectrogram(y=y, **options, dtype=np.float64)) <= 1e-10
    assert max_relative(cepstrum, librosa.feature.mfcc(y=y[0], **options, dtype=np.float64)) <= 1e-10


@pytest.mark.parametrize("mode", ["interp", "nearest", "mirror", "constant", "wrap"])
@pytest.mark.parametrize(("width", "order", "axis"), [(9, 1, -1), (5, 2, -1), (7, 3, 0)])
def test_delta_equals_librosa(mode, width, order, axis):
    S = waves(20, 30)
    ours = delta(jnp.asarray(S), width=width, order=order, axis=axis, mode=mode)
    expected = librosa.feature.delta(S.astype(np.float64), width=width, order=order, axis=axis, mode=mode)
    assert max_relative(ours, expected) <= 1e-6


def test_bad_cepstral_options_are_refused():
    y = jnp.ones(4096)
    with pytest.raises(ValueError, match="n_mfcc must be from 1 to the 40 mel bands, got 41"):
        mfcc(y, n_mels=40, n_mfcc=41)
    with pytest.raises(ValueError, match="mfcc: dct_type must be 1, 2 or 3, got 4"):
        mfcc(y, dct_type=4)  # type: ignore
    with pytest.raises(ValueError, match=r"lifter must lie in \[0, inf\), got -1"):
        mfcc(y, lifter=-1.0)
    with pytest.raises(ValueError, match="melspectrogram: give either y or S"):
        melspectrogram()
    with pytest.raises(ValueError, match="width must be an odd number of at least 3 frames, got 4"):
        delta(y, width=4)
    with pytest.raises(ValueError, match="5 frames are fewer than width 9"):
        delta(y[:5])


def test_integer_spectrograms_are_refused():
    S = np.full((1025, 2), 5, np.int16)
    for f in (melspectrogram, mfcc, rms, chroma_stft):
        with pytest.raises(TypeError, match=f"{f.__name__}: S must be float32 or float64, got int16; convert it first"):
            f(S=S)  # type: ignore
    with pytest.raises(TypeError, match="mel_to_stft: M must be float32"):
        mel_to_stft(S[:40])  # type: ignore


def test_empty_mel_bands_are_told():
    with pytest.warns(UserWarning, match=r"\d+ of 256 mel bands hold no bin of n_fft 512 and stay 0") as told:
        filters = mel_filterbank(22050, 512, 256)
        librosa.filters.mel(sr=22050, n_fft=512, n_mels=256)
    assert str(told[0].message).startswith(f"{(filters.max(1) == 0).sum()} of") and len(told) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mel_filterbank(22050, 2048)


def test_a_wide_slope_is_that_of_scipy():
    x = waves(2, 100)
    expected = scipy.signal.savgol_filter(x.astype(float), 65, polyorder=2, deriv=2)
    assert max_relative(delta(jnp.asarray(x), width=65, order=2, mode="interp")[:, 32:-32], expected[:, 32:-32]) < 1e-5
