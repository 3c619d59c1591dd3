"""Every measure against an independent one in float64, on sounds like speech; what is documented of silence, equal and
short sounds, of gain and sign, of batches, lengths and gradients."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pyloudnorm
import pytest
import scipy.fft
import scipy.signal
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from jaxdiff.evaluation import music, signals, speech
from jaxdiff.evaluation.measures import MEASURES

SR, SAMPLES = 16000, 9600
TRACKERS = ("f0_rmse", "voicing_error")  # whose programs take long to compile
each_measure = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in TRACKERS else []) for name in MEASURES]
)


def voice(pitch: float, sr: int = SR, samples: int = SAMPLES) -> np.ndarray:
    """Harmonics of a gliding pitch in syllables of 0.2 s, with breath noise 30 dB below."""
    t = np.arange(samples) / sr
    f0 = pitch * 2 ** (0.3 * np.sin(2 * np.pi * 0.9 * t))
    phase = 2 * np.pi * np.cumsum(f0) / sr
    harmonics = sum(np.sin(k * phase + k * k) / (1 + (k * pitch / 700 - 1) ** 2) for k in range(1, 20))
    syllables = 0.05 + np.abs(np.sin(2 * np.pi * 2.5 * t)) ** 0.7
    return 0.1 * harmonics * syllables + 0.005 * np.random.default_rng(1).standard_normal(samples)


def pairs(**options) -> tuple[np.ndarray, np.ndarray]:
    """A voice in noise and at another pitch: two references and two estimates, `[2, samples]`."""
    reference = voice(150, **options)
    noisy = 0.9 * reference + 0.05 * np.random.default_rng(2).standard_normal(len(reference))
    return np.stack([reference, reference]), np.stack([noisy, 1.1 * voice(162, **options)])


def check(measure, expected, tolerance: float, **options):
    """`measure` of both pairs equals the function `expected` of each in float64."""
    references, estimates = pairs()
    ours = np.asarray(measure(jnp.asarray(references, jnp.float32), jnp.asarray(estimates, jnp.float32), **options))
    theirs = [expected(r, e) for r, e in zip(references, estimates, strict=True)]
    assert ours.shape == (2,)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def db(power):
    return 10 * np.log10(power)


# Sample by sample and by energies


def test_mse_and_mae():
    check(signals.mse, lambda r, e: np.mean((r - e) ** 2), 1e-8)
    check(signals.mae, lambda r, e: np.mean(np.abs(r - e)), 1e-7)


def test_snr():
    check(signals.snr, lambda r, e: db((r @ r) / ((r - e) @ (r - e))), 1e-4)


@pytest.mark.parametrize("zero_mean", [False, True])
def test_si_sdr(zero_mean):
    def expected(r, e):
        if zero_mean:
            r, e = r - r.mean(), e - e.mean()
        target = (r @ e) / (r @ r) * r
        return db((target @ target) / ((e - target) @ (e - target)))

    check(lambda r, e: signals.si_sdr(r + 0.1, e + 0.2, zero_mean=zero_mean), lambda r, e: expected(r + 0.1, e + 0.2),
          1e-3)  # fmt: skip


def test_ratios_of_long_sounds_keep_their_digits():
    """2^21 samples at an SNR of 80 dB: sums one after the other in float32 would be off by several dB."""
    rng = np.random.default_rng(0)
    reference, noise = rng.standard_normal((2, 2**21)).astype(np.float32)
    estimate = reference + np.float32(1e-4) * noise
    error = estimate.astype(float) - reference
    expected = db((reference.astype(float) ** 2).sum() / (error**2).sum())
    assert float(signals.snr(jnp.asarray(reference), jnp.asarray(estimate))) == pytest.approx(expected, abs=1e-3)
    assert float(signals.si_sdr(jnp.asarray(reference), jnp.asarray(estimate))) == pytest.approx(expected, abs=0.01)


def test_segmental_snr():
    """In noise that rises from nothing, so that frames reach both limits; some frames of the reference are silent."""
    reference = voice(150)
    estimate = reference + np.linspace(0, 1, SAMPLES) ** 4 * np.random.default_rng(2).standard_normal(SAMPLES)
    window = np.hanning(481)[:-1]
    frames = [(window * reference[i : i + 480], window * estimate[i : i + 480]) for i in range(0, SAMPLES - 479, 120)]
    loudest = max((x**2).sum() for x, _ in frames)
    ratios = [db((x**2).sum() / ((x - y) ** 2).sum()) for x, y in frames if (x**2).sum() > loudest / 20]
    assert len(ratios) < len(frames) and min(ratios) < -10 and max(ratios) > 35
    waves = (jnp.asarray(y, jnp.float32) for y in (reference, estimate))
    ours = signals.segmental_snr(*waves, sr=SR, top_db=float(db(20)))
    assert float(ours) == pytest.approx(np.mean(np.clip(ratios, -10, 35)), abs=1e-4)


# Spectra


def test_log_spectral_distance():
    def expected(r, e):
        scale = 2 / np.hanning(513)[:-1].sum()
        R, E = (np.abs(scale * librosa.stft(y, n_fft=512, hop_length=128)) ** 2 for y in (r, e))
        return np.sqrt(((db(np.maximum(R, 1e-6)) - db(np.maximum(E, 1e-6))) ** 2).mean(0)).mean()

    check(signals.log_spectral_distance, expected, 2e-3, n_fft=512, hop_length=128, floor=1e-6)


def test_multi_resolution_stft():
    def expected(r, e):
        losses = []
        for n_fft, hop, win in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
            R, E = (np.abs(librosa.stft(y, n_fft=n_fft, hop_length=hop, win_length=win)) for y in (r, e))
            R, E = (np.sqrt(np.maximum(X**2, 1e-7)) for X in (R, E))
            losses.append(np.linalg.norm(R - E) / np.linalg.norm(R) + np.abs(np.log(R) - np.log(E)).mean())
        return np.mean(losses)

    check(signals.multi_resolution_stft, expected, 1e-4)


def log_mel(y: np.ndarray, n_mels: int) -> np.ndarray:
    """Mel bands in dB of frames of 1024 samples, relative to a sine of full scale."""
    scale = (2 / np.hanning(1025)[:-1].sum()) ** 2
    options: dict[str, Any] = dict(sr=SR, n_fft=1024, hop_length=256, n_mels=n_mels, norm=None)
    return db(np.maximum(scale * librosa.feature.melspectrogram(y=y, **options), 1e-10))


def test_mel_distance():
    check(signals.mel_distance, lambda r, e: np.abs(log_mel(r, 80) - log_mel(e, 80)).mean(), 1e-3, sr=SR)


@pytest.mark.parametrize(("sr", "length"), [(16000, 1024), (22050, 1024), (44100, 2048), (48000, 2048), (8000, 512)])
def test_frames_are_near_50_ms(sr, length):
    assert signals.frame_length(sr, 0.05) == length


def test_loudness_error():
    def loudness(y):
        return pyloudnorm.Meter(48000, filter_class="DeMan").integrated_loudness(y)

    sounds = [np.concatenate(3 * [y]) for y in (voice(150, sr=48000), 0.5 * voice(400, sr=48000))]  # 0.6 s
    reference, estimate = (jnp.asarray(y, jnp.float32) for y in sounds)
    expected = abs(loudness(sounds[0]) - loudness(sounds[1]))
    assert expected > 1
    assert float(signals.loudness_error(reference, estimate, sr=48000)) == pytest.approx(expected, abs=2e-3)


def test_loudness_error_of_a_short_sound_is_that_of_its_gain():
    y = jnp.asarray(voice(150)[:800], jnp.float32)
    assert float(signals.loudness_error(y, 0.5 * y, sr=SR)) == pytest.approx(6.0206, abs=1e-3)


# Speech


def cepstral_distances(r, e) -> np.ndarray:
    """The distortion in dB between all frames of r and all of e, coefficient by coefficient."""
    bands = (np.arange(40) + 0.5) / 40
    cosines = np.cos(np.pi * np.arange(1, 14)[:, None] * bands) / 40
    c, d = (cosines @ (log_mel(y, 40) * np.log(10) / 10) for y in (r, e))
    return 10 / np.log(10) * np.sqrt(2 * ((c[:, :, None] - d[:, None, :]) ** 2).sum(0))


def test_mel_cepstral_distortion():
    check(speech.mel_cepstral_distortion, lambda r, e: np.diag(cepstral_distances(r, e)).mean(), 1e-3, sr=SR)


def test_cepstral_distortion_is_the_rms_of_the_spectra_it_draws():
    """With all coefficients, of log-mel spectra whose mean is taken away."""

    def expected(r, e):
        difference = log_mel(r, 40) - log_mel(e, 40)
        return (difference - difference.mean(0)).std(0).mean()

    check(speech.mel_cepstral_distortion, expected, 1e-3, sr=SR, n_mfcc=39)


def test_mel_cepstral_distortion_dtw_equals_librosa():
    """On a sound that is also a third shorter than its reference, alone and padded to its length."""

    def expected(r, e):
        total, path = librosa.sequence.dtw(C=cepstral_distances(r, e))
        return total[-1, -1] / len(path)

    check(speech.mel_cepstral_distortion_dtw, expected, 1e-3, sr=SR)
    reference, estimate = voice(150), voice(160)[::3].repeat(2)
    ours = speech.mel_cepstral_distortion_dtw(
        jnp.asarray(reference, jnp.float32), jnp.asarray(estimate, jnp.float32), sr=SR
    )
    assert float(ours) == pytest.approx(expected(reference, estimate), abs=1e-3)
    padded = np.concatenate([estimate, np.ones(SAMPLES - len(estimate))])
    found = values("mel_cepstral_distortion_dtw", reference, padded, np.array([SAMPLES, len(estimate)]))
    assert found == pytest.approx(float(ours), abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 1), (4, 6)])
def test_least_mean_over_all_paths(shape):
    """Every path between few frames is tried; those that follow them play no part."""
    ours, theirs = (np.random.default_rng(seed).standard_normal((2, count)) for seed, count in enumerate(shape))
    distance = 10 / np.log(10) * np.sqrt(2 * ((ours[:, :, None] - theirs[:, None]) ** 2).sum(0))
    best = (np.inf, 0)
    for length in range(max(shape), sum(shape)):
        for steps in itertools.product([(0, 1), (1, 0), (1, 1)], repeat=length - 1):
            path = np.cumsum([(0, 0), *steps], axis=0)
            if (path[-1] == np.array(shape) - 1).all() and (path < shape).all():
                best = min(best, (distance[path[:, 0], path[:, 1]].sum(), length))
    longer = (jnp.asarray(np.pad(x, ((0, 0), (0, 3)))[:, :6], jnp.float32) for x in (ours, theirs))
    assert float(jax.jit(speech._least_mean)(*longer, *shape)) == pytest.approx(best[0] / best[1], rel=1e-6)


def intelligibility(r, e, sr: int, extended: bool) -> float:
    """STOI and ESTOI word by word, in float64."""
    up, down = 10000 // np.gcd(10000, sr), sr // np.gcd(10000, sr)
    if up != down:
        size = int(np.ceil(52 / 28.714 * 20 * max(up, down)))
        taps = np.kaiser(2 * size + 1, 0.1102 * 51.3) * np.sinc(np.arange(-size, size + 1) / max(up, down))
        r, e = (scipy.signal.resample_poly(y, up, down, window=taps / taps.sum()) for y in (r, e))
    window = np.hanning(258)[1:-1]
    starts = range(0, len(r) - 256, 128)
    energies = np.array([((window * r[i : i + 256]) ** 2).sum() for i in starts])
    kept = [i for i, energy in zip(starts, energies, strict=True) if energy > energies.max() / 1e4]
    edges = 150 * 2 ** ((2 * np.arange(16) - 1) / 6)
    bins = np.round(edges / 10000 * 512).astype(int)

    def envelopes(y):
        joined = np.zeros(128 * len(kept) + 128)
        for k, i in enumerate(kept):
            joined[128 * k : 128 * k + 256] += window * y[i : i + 256]
        frames = [np.abs(np.fft.rfft(window * joined[i : i + 256], 512)) ** 2 for i in range(0, len(joined) - 256, 128)]
        return np.sqrt([[frame[a:b].sum() for frame in frames] for a, b in itertools.pairwise(bins)])

    def unit(x, axis):
        x = x - x.mean(axis, keepdims=True)
        return x / np.linalg.norm(x, axis=axis, keepdims=True)

    X, Y = envelopes(r), envelopes(e)
    values = []
    for m in range(X.shape[1] - 29):
        x, y = X[:, m : m + 30], Y[:, m : m + 30]
        if extended:
            values.append((unit(unit(x, 1), 0) * unit(unit(y, 1), 0)).sum() / 30)
        else:
            y = y * np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(y, axis=1, keepdims=True)
            values.append((unit(x, 1) * unit(np.minimum(y, x * (1 + 10**0.75)), 1)).sum() / 15)
    return float(np.mean(values))


def with_pauses(y: np.ndarray) -> np.ndarray:
    """`y` where 90 ms in the middle are silent, and some before that are not loud enough to count."""
    y = y.copy()
    third = len(y) // 3
    y[third : third + len(y) // 20] *= 1e-3
    y[2 * third : 2 * third + len(y) * 3 // 20] = 0
    return y


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize(
    ("sr", "samples"),
    [
        (16000, 19200),
        (10000, 256 + 128 * 60),
        pytest.param(8000, 8000, marks=pytest.mark.slow),
        pytest.param(22050, 22050, marks=pytest.mark.slow),
    ],
)
def test_intelligibility_word_by_word(sr, samples, extended):
    """At 10 kHz with a whole number of hops, of which the last frame is left out."""
    references, estimates = pairs(sr=sr, samples=samples)
    references = np.stack([with_pauses(r) for r in references])
    ours = (speech.estoi if extended else speech.stoi)(
        jnp.asarray(references, jnp.float32), jnp.asarray(estimates, jnp.float32), sr=sr
    )
    expected = [intelligibility(r, e, sr, extended) for r, e in zip(references, estimates, strict=True)]
    assert 0.1 < min(expected) < max(expected) < 0.95
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("extended", [False, True])
def test_intelligibility_equals_pystoi(extended):
    pystoi = pytest.importorskip("pystoi")
    references, estimates = pairs(samples=19200)
    references = np.stack([with_pauses(r) for r in references])
    ours = (speech.estoi if extended else speech.stoi)(
        jnp.asarray(references, jnp.float32), jnp.asarray(estimates, jnp.float32), sr=SR
    )
    expected = [pystoi.stoi(r, e, SR, extended=extended) for r, e in zip(references, estimates, strict=True)]
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("measure", [speech.stoi, speech.estoi])
def test_too_little_speech_has_no_intelligibility(measure):
    """0.35 s of sound in 2 s of silence: 30 frames are not left."""
    reference = jnp.zeros(32000).at[8000:13600].set(jnp.asarray(voice(150)[:5600], jnp.float32))
    assert float(measure(reference, reference + 0.1, sr=SR)) == 0
    assert float(measure(reference, reference, sr=SR)) == 1


# Music


@pytest.mark.slow
def test_pitch_errors_equal_librosa():
    """The share of the frames that librosa decides otherwise is less than a hundredth."""

    def contours(y):
        options: dict[str, Any] = dict(fmin=60.0, fmax=1000.0, sr=SR, frame_length=1024, hop_length=160)
        return librosa.pyin(y, fill_na=None, **options)[:2]

    references, estimates = pairs()
    estimates[1, 4000:6000] = 0.05 * np.random.default_rng(3).standard_normal(2000)
    reference, estimate = jnp.asarray(references, jnp.float32), jnp.asarray(estimates, jnp.float32)
    rmse, voicing = music.f0_rmse(reference, estimate, sr=SR), music.voicing_error(reference, estimate, sr=SR)
    f, voiced = contours(references[0])  # which is the other too
    for i in range(2):
        g, also = contours(estimates[i])
        cents = 1200 * np.log2(g / f)[voiced & also]
        assert float(voicing[i]) == pytest.approx((voiced != also).mean(), abs=0.02)
        assert float(rmse[i]) == pytest.approx(np.sqrt((cents**2).mean()), abs=2)
    assert float(voicing[1]) > 0.1 and float(rmse[1]) > 100


def test_f0_rmse_of_tones():
    t = np.arange(4800) / SR
    low, high = (jnp.asarray(np.sin(2 * np.pi * f * t) + 0.5 * np.sin(4 * np.pi * f * t), jnp.float32)
                 for f in (200, 200 * 2 ** (3 / 12)))  # fmt: skip
    assert float(music.f0_rmse(low, high, sr=SR)) == pytest.approx(300, abs=20)


@pytest.mark.slow
def test_pitches_at_no_common_time_have_the_range_as_error():
    t = np.arange(9600) / SR
    tone = np.sin(2 * np.pi * 200 * t)
    first, last = (jnp.asarray(np.where(part, tone, 0), jnp.float32) for part in (t < 0.2, t > 0.4))
    assert float(music.f0_rmse(first, last, sr=SR)) == pytest.approx(1200 * np.log2(1000 / 60), rel=1e-5)
    assert float(music.f0_rmse(first, last, sr=SR, fmin=100.0, fmax=400.0)) == pytest.approx(2400, rel=1e-5)


def test_chroma_similarity():
    def expected(r, e):
        options: dict[str, Any] = dict(sr=SR, n_fft=2048, hop_length=512, norm=None, tuning=0.0)
        C, D = (librosa.feature.chroma_stft(y=y, **options) for y in (r, e))
        return ((C * D).sum(0) / np.linalg.norm(C, axis=0) / np.linalg.norm(D, axis=0)).mean()

    check(music.chroma_similarity, expected, 1e-4, sr=SR)


def test_chroma_of_silent_frames():
    """A pause in one sound costs its share; in both it counts nothing."""
    t = np.arange(16 * 2048) / SR
    tone = np.sin(2 * np.pi * 440 * t).astype(np.float32)
    half = np.where(np.arange(len(t)) < len(t) // 2, tone, 0).astype(np.float32)
    similarity = music.chroma_similarity(jnp.asarray([tone, half]), jnp.asarray([half, half]), sr=SR)
    assert float(similarity[0]) == pytest.approx(0.5, abs=0.05)
    assert float(similarity[1]) == pytest.approx(1, abs=1e-6)


def notes(times, seed: int = 0) -> np.ndarray:
    """Plucked tones that begin at `times` in seconds, over faint noise; 2 s."""
    rng = np.random.default_rng(seed)
    t = np.arange(2 * SR) / SR
    y = 0.001 * rng.standard_normal(len(t))
    for start in times:
        late = np.maximum(t - start, 0)
        y += (t >= start) * np.exp(-late / 0.2) * np.sin(2 * np.pi * rng.uniform(200, 800) * late)
    return 0.3 * y


def librosa_onsets(y: np.ndarray) -> np.ndarray:
    """Frames of onsets by librosa, whose peak picking has the same numbers."""
    S = librosa.feature.melspectrogram(y=y, sr=SR, n_fft=1024, hop_length=160, n_mels=80, norm=None)
    S = librosa.power_to_db(S, top_db=80.0)
    flux = librosa.onset.onset_strength(S=S, sr=SR, n_fft=1024, hop_length=160, center=True)
    return librosa_peaks((flux - flux.min()) / (flux - flux.min()).max())


def librosa_peaks(flux: np.ndarray) -> np.ndarray:
    return librosa.util.peak_pick(flux, pre_max=3, post_max=1, pre_avg=10, post_avg=11, wait=3, delta=0.07)


TIMES = np.array([0.2, 0.5, 0.62, 0.9, 1.3, 1.65])


def test_onsets_equal_librosa():
    y = notes(TIMES)
    onsets = jax.jit(music._onsets, static_argnums=2)
    found = np.flatnonzero(onsets(jnp.asarray(y / np.abs(y).max(), jnp.float32), len(y), SR))
    assert set(found) == set(librosa_onsets(y / np.abs(y).max()))
    assert np.abs(found[:, None] / 100 - TIMES).min(0).max() < 0.04


def test_onsets_until_a_frame_equal_librosa():
    flux = np.random.default_rng(0).uniform(size=60).astype(np.float32) ** 2
    flux[0] = 0
    peaks = jax.jit(music._peaks)
    for frames in range(2, 60):
        expected = librosa_peaks(flux[:frames] / flux[:frames].max())
        np.testing.assert_array_equal(np.flatnonzero(peaks(jnp.asarray(flux), frames)), expected)


def test_onset_f1():
    """Two onsets of six are moved: one by less than 50 ms, one by more."""
    other = notes(TIMES + [0, 0.03, 0, 0, 0.1, 0], seed=1)
    ours = music.onset_f1(jnp.asarray(notes(TIMES), jnp.float32), jnp.asarray(other, jnp.float32), sr=SR)
    a, b = librosa_onsets(notes(TIMES)), librosa_onsets(other)
    hits = np.abs(a[:, None] - b) <= 5
    found = (maximum_bipartite_matching(csr_array(hits)) >= 0).sum()
    assert 0.5 < float(ours) < 1
    assert float(ours) == pytest.approx(2 * found / (len(a) + len(b)))


def onset_masks(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(2, 80)) < 0.25


@pytest.mark.parametrize("reach", [0, 1, 5])
def test_most_onsets_are_matched(reach):
    hits = jax.jit(music._hits, static_argnums=2)
    for seed in range(8):
        reference, estimate = onset_masks(seed)
        near = np.abs(np.flatnonzero(reference)[:, None] - np.flatnonzero(estimate)) <= reach
        expected = (maximum_bipartite_matching(csr_array(near)) >= 0).sum()
        assert int(hits(jnp.asarray(reference), jnp.asarray(estimate), reach)) == expected


def test_onset_matching_equals_mir_eval():
    mir_eval = pytest.importorskip("mir_eval")
    most = jax.jit(music._hits, static_argnums=2)
    for seed in range(8):
        masks = onset_masks(seed)
        reference, estimate = (np.flatnonzero(mask) / 100 for mask in masks)
        f1 = mir_eval.onset.f_measure(reference, estimate, window=0.05 + 1e-6)[0]
        hits = int(most(jnp.asarray(masks[0]), jnp.asarray(masks[1]), 5))
        assert 2 * hits / masks.sum() == pytest.approx(f1)


# All measures

EDGES = {  # of (silence, voice), (voice, silence), (silence, silence), (voice, voice); None: any finite number
    "mse": (None, None, 0, 0),
    "mae": (None, None, 0, 0),
    "snr": (-100, 0, 100, 100),
    "si_sdr": (-100, -100, 100, 100),
    "segmental_snr": (-10, 0, 35, 35),
    "log_spectral_distance": (None, None, 0, 0),
    "mel_distance": (None, None, 0, 0),
    "multi_resolution_stft": (None, None, 0, 0),
    "loudness_error": (None, None, 0, 0),
    "mel_cepstral_distortion": (None, None, 0, 0),
    "mel_cepstral_distortion_dtw": (None, None, 0, 0),
    "stoi": (0, 0, 1, 1),
    "estoi": (0, 0, 1, 1),
    "f0_rmse": (1200 * np.log2(1000 / 60), 1200 * np.log2(1000 / 60), 0, 0),
    "voicing_error": (None, None, 0, 0),
    "chroma_similarity": (0, 0, 1, 1),
    "onset_f1": (0, 0, 1, 1),
}


def rows() -> tuple[np.ndarray, np.ndarray]:
    """The four pairs of `EDGES`, and two of which the estimate is in noise, at another pitch and in part a pause."""
    y, (references, estimates) = voice(150), pairs()
    estimates[1, 3000:4500] = 1e-4 * np.random.default_rng(5).standard_normal(1500)
    return np.stack([0 * y, y, 0 * y, y, *references]), np.stack([y, 0 * y, 0 * y, y, *estimates])


def values(name: str, references: np.ndarray, estimates: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    return np.asarray(_values(name, np.float32(references), np.float32(estimates), lengths))


@functools.partial(jax.jit, static_argnums=0)
def _values(name, references, estimates, lengths):
    return MEASURES[name].function(references, estimates, SR, lengths)


def test_the_table_names_functions_by_their_names():
    assert set(EDGES) == set(MEASURES)
    for name, measure in MEASURES.items():
        assert name == name.lower() and measure.needs_reference
        assert any(hasattr(module, name) for module in (signals, speech, music))


@each_measure
def test_silence_and_equal_sounds(name):
    """Equal sounds are best, a silent one among two is worse, as the table says of both."""
    got = values(name, *rows())
    assert got.shape == (6,) and np.isfinite(got).all()
    for value, expected in zip(got, EDGES[name], strict=False):
        assert expected is None or value == pytest.approx(expected, rel=1e-6, abs=1e-5)
    sign = 1 if MEASURES[name].higher_is_better else -1
    assert (sign * got[[0, 1, 5]] < sign * got[[2, 3]].min()).all()


def one_sample() -> np.ndarray:
    """Five pairs of one sample, of which the second are equal, the last are silent and those before not finite."""
    return np.array([[1, 1, np.nan, 1, 0], [-0.5, 1, 1, np.inf, 0]])[..., None]


@each_measure
def test_one_sample(name):
    """It has a value, and none that looks like one where it is not finite."""
    other, best, *broken, silent = values(name, *one_sample())
    assert np.isfinite(other) and np.isnan(broken).all()
    assert best == pytest.approx(EDGES[name][3], abs=1e-5)
    assert silent == pytest.approx(EDGES[name][3], abs=1e-5)


@each_measure
def test_lengths(name):
    """A padded batch has what its sounds have alone, which are loud to their ends, whatever follows them."""
    lengths = np.array(3 * [(SAMPLES, 12000), (11000, SAMPLES)] + 4 * [(1, 1)] + [(0, 0)])
    if name == "mel_cepstral_distortion_dtw":  # it would take all of the longer sound
        lengths = np.minimum(lengths, lengths[:, ::-1])
    long, short = [waves * np.linspace(0.1, 1, SAMPLES) for waves in rows()], one_sample()
    noise = 8 * np.random.default_rng(7).standard_normal((2, 11, 12000))
    noise[:, 3:8:2] = np.nan
    expected = np.concatenate([values(name, *long), values(name, *short)])
    for after in (noise, np.zeros_like(noise)):
        after[:, :6, :SAMPLES], after[:, 6:10, :1] = long, short[:, :4]
        np.testing.assert_allclose(values(name, after[0], after[1], lengths), expected, rtol=1e-5, atol=1e-6)


def test_lengths_are_limited_to_the_samples_that_are_there():
    references, estimates = pairs()
    beyond = values("mse", references, estimates, np.array([2 * SAMPLES, SAMPLES]))
    np.testing.assert_allclose(beyond, values("mse", references, estimates), rtol=1e-6)
    assert values("mse", references, estimates, np.array([-1, SAMPLES])) == pytest.approx(estimates[:, 0] ** 2)


@pytest.mark.slow
@each_measure
def test_gradients_are_finite(name):
    """At silence, at equal sounds and elsewhere; only what decides has none, and what follows a sound."""
    lengths = np.full((6, 2), SAMPLES)
    lengths[5] = 7013, 8125
    total = lambda r, e: MEASURES[name].function(r, e, SR, lengths).sum()  # noqa: E731
    gradients = [np.asarray(g) for g in jax.jit(jax.grad(total, argnums=(0, 1)))(*map(np.float32, rows()))]
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    decides = name in ("f0_rmse", "voicing_error", "onset_f1")
    assert all((gradient[i] == 0).all() == decides for gradient in gradients for i in (4, 5))
    assert all((gradient[5, 8125:] == 0).all() for gradient in gradients)


@pytest.mark.slow
@each_measure
def test_items_stand_alone(name):
    """What a batch holds beside an item does not matter."""
    references, estimates = rows()
    beside = 8 * np.random.default_rng(6).standard_normal((2, 4, SAMPLES))
    others = values(name, *(np.concatenate([a, b[4:]]) for a, b in zip(beside, (references, estimates), strict=True)))
    np.testing.assert_allclose(others[4:], values(name, references, estimates)[4:], rtol=1e-5)


@pytest.mark.parametrize("name", ["si_sdr", "mel_cepstral_distortion_dtw"])
def test_leading_axes_broadcast(name):
    references, estimates = pairs()
    both = values(name, references[0], np.stack([estimates, estimates[::-1]]))
    assert both.shape == (2, 2)
    np.testing.assert_allclose(both[0], both[1, ::-1], rtol=1e-5)
    np.testing.assert_allclose(both[0], values(name, references, estimates), rtol=1e-4)


CHANGES = {
    "gain of both": lambda r, e: (0.3 * r, 0.3 * e),
    "gain of one": lambda r, e: (r, 0.3 * e),
    "sign of both": lambda r, e: (-r, -e),
    "sign of one": lambda r, e: (r, -e),
    "exchange": lambda r, e: (e, r),
}
DIFFERENCE, RATIO = {"sign of both", "exchange"}, {"gain of both", "sign of both"}
SPECTRAL = {"gain of both", "sign of both", "sign of one"}
INVARIANT = {
    "mse": DIFFERENCE,
    "mae": DIFFERENCE,
    "snr": RATIO,
    "si_sdr": set(CHANGES),
    "segmental_snr": RATIO,
    "log_spectral_distance": SPECTRAL | {"exchange"},
    "mel_distance": SPECTRAL | {"exchange"},
    "multi_resolution_stft": SPECTRAL,
    "loudness_error": SPECTRAL | {"exchange"},
    "mel_cepstral_distortion": set(CHANGES),
    "mel_cepstral_distortion_dtw": set(CHANGES),
    "stoi": set(CHANGES) - {"exchange"},
    "estoi": set(CHANGES) - {"exchange"},
    "f0_rmse": set(CHANGES),
    "voicing_error": set(CHANGES),
    "chroma_similarity": set(CHANGES),
    "onset_f1": set(CHANGES),
}


@each_measure
def test_invariances(name):
    """The documented changes leave a measure, the others change it; so loud that nothing is below a floor."""
    reference, estimate = (100 * waves[5] for waves in rows())
    changed = [(reference, estimate), *(change(reference, estimate) for change in CHANGES.values())]
    first, *others = values(name, *(np.stack(column) for column in zip(*changed, strict=True))).astype(float)
    same = {change for change, value in zip(CHANGES, others, strict=True) if abs(value - first) < 1e-3 * abs(first)}
    assert same == INVARIANT[name], dict(zip(CHANGES, others - first, strict=True))


def test_offset():
    """A common offset leaves differences, and any offset the SI-SDR without means."""
    reference, estimate = (jnp.asarray(waves[0], jnp.float32) for waves in pairs())
    for measure in (signals.mse, signals.mae):
        assert float(measure(reference + 0.1, estimate + 0.1)) == pytest.approx(
            float(measure(reference, estimate)), 1e-4
        )
    plain = float(signals.si_sdr(reference, estimate, zero_mean=True))
    assert float(signals.si_sdr(reference + 0.1, estimate - 0.2, zero_mean=True)) == pytest.approx(plain, abs=1e-3)
    assert abs(float(signals.si_sdr(reference + 0.1, estimate - 0.2)) - plain) > 1


def test_what_does_not_fit_is_refused():
    y = jnp.ones(100)
    with pytest.raises(ValueError, match="mse: reference and estimate must have equally many samples, got 100 and 99"):
        signals.mse(y, y[:99])
    with pytest.raises(TypeError, match="estimate must be floating point"):
        speech.stoi(y, jnp.ones(100, int), sr=SR)
    with pytest.raises(TypeError, match="mse: lengths must be int32 or int64, got float32"):
        signals.mse(y, y, jnp.ones(2))
    with pytest.raises(ValueError, match=r"mse: lengths must have the axes \[... 2\], got the shape \(3,\)"):
        signals.mse(y, y, jnp.ones(3, int))
    with pytest.raises(ValueError, match=r"\[\(2,\), \(2,\), \(3,\)\] of reference and estimate and lengths must"):
        signals.mse(jnp.ones((2, 9)), jnp.ones((2, 9)), jnp.ones((3, 2), int))
