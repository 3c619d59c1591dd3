"""What every transform promises, over one table of all of them: batches equal items, gradients are finite and right."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jaxtyping import Array, Float

from jaxdiff import features
from jaxdiff.features import effects
from jaxdiff.features.resample import LARGEST_TERM
from jaxdiff.features.transform import transform

pytestmark = pytest.mark.usefixtures("optimised")

SR, SAMPLES = 8000, 1600
STFT: dict[str, Any] = dict(n_fft=256, hop_length=64)
MEL: dict[str, Any] = dict(sr=SR, n_mels=12, **STFT)


def wave(y):
    return y


def magnitudes(y):
    return jnp.abs(features.stft(y, **STFT))


def spectrum(y):
    return features.stft(y, **STFT)


def mel(y):
    return features.melspectrogram(y, **MEL)


TRANSFORMS = {  # name: (what its input is made of, options)
    "stft": (wave, STFT),
    "istft": (spectrum, dict(hop_length=64)),
    "magphase": (spectrum, dict()),
    "power_to_db": (mel, dict(ref=jnp.max)),
    "amplitude_to_db": (magnitudes, dict()),
    "db_to_power": (mel, dict()),
    "db_to_amplitude": (mel, dict()),
    "melspectrogram": (wave, MEL),
    "mfcc": (wave, dict(n_mfcc=5, lifter=3.0, **MEL)),
    "delta": (mel, dict(width=5)),
    "spectral_centroid": (wave, dict(sr=SR, **STFT)),
    "spectral_bandwidth": (wave, dict(sr=SR, **STFT)),
    "spectral_rolloff": (wave, dict(sr=SR, **STFT)),
    "spectral_flatness": (wave, STFT),
    "spectral_contrast": (wave, dict(sr=SR, n_bands=4, **STFT)),
    "rms": (wave, dict(frame_length=256, hop_length=64)),
    "zero_crossing_rate": (wave, dict(frame_length=256, hop_length=64)),
    "onset_strength": (wave, dict(sr=SR, **STFT)),
    "yin": (wave, dict(fmin=100.0, fmax=1000.0, sr=SR, frame_length=256)),
    "pyin": (wave, dict(fmin=100.0, fmax=1000.0, sr=SR, frame_length=256, fill_na=0.0)),
    "lpc": (wave, dict(order=6)),
    "extrapolate": (wave, dict(samples=50, order=6)),
    "mel_to_stft": (mel, dict(sr=SR, n_fft=256, n_iter=4)),
    "griffinlim": (magnitudes, dict(n_iter=2, hop_length=64)),
    "mel_to_audio": (mel, dict(sr=SR, n_iter=2, **STFT)),
    "mfcc_to_mel": (lambda y: 0.1 * mel(y), dict(n_mels=16)),
    "mfcc_to_audio": (lambda y: 0.1 * mel(y), dict(sr=SR, n_mels=16, n_iter=2, **STFT)),
    "hpss_masks": (magnitudes, dict(kernel_size=5)),
    "hpss": (wave, dict(kernel_size=5, **STFT)),
    "phase_vocoder": (spectrum, dict(rate=1.3)),
    "time_stretch": (wave, dict(rate=0.8, **STFT)),
    "pitch_shift": (wave, dict(n_steps=2.0, **STFT)),
    "cqt": (wave, dict(sr=SR, hop_length=64, fmin=200.0, n_bins=24)),
    "vqt": (wave, dict(sr=SR, hop_length=64, fmin=200.0, n_bins=24, gamma=5.0)),
    "chroma_stft": (wave, dict(sr=SR, **STFT)),
    "chroma_cqt": (wave, dict(sr=SR, hop_length=64, fmin=200.0, n_octaves=3)),
    "resample": (wave, dict(orig_sr=SR, target_sr=6000)),
}
# Discrete, or iterated from a kink: the derivative along a direction is not that of one smooth piece.
NOT_SMOOTH = {"spectral_rolloff", "zero_crossing_rate", "pyin", "yin", "hpss_masks", "hpss", "spectral_contrast"}
# Representations, streams, filter banks; loudness, filters, losses, augmentation are held to it in their own tests.
NO_TRANSFORM = {
    "PianoRoll", "Roll", "Stereo", "Vocoded", "piano_roll", "notes_of_roll",
    "CompressedStft", "LogMel", "Magnitude", "Normalization", "Normalized", "Patches", "Representation", "Stream",
    "fit_normalization", "hz_to_mel", "mel_to_hz", "mel_filterbank", "fft_frequencies", "stft_stream",
    "istft_stream", "melspectrogram_stream", "chroma_filterbank", "cq_to_chroma", "cqt_frequencies",
    "invertible_cqt", "icqt",
    "frame_loudness", "integrated_loudness", "momentary_loudness", "short_term_loudness", "loudness_range",
    "true_peak", "normalize_loudness", "A_weighting", "C_weighting", "K_weighting", "biquad_response", "fft_convolve",
    "sosfilt", "change_speed", "Augmentation", "Mixed", "add_noise", "background_noise", "bit_crush", "clipping",
    "colored_noise", "compose", "equalizer", "frequency_masking", "gain", "high_pass", "low_pass", "mix_up",
    "polarity_inversion", "reverberation", "room_response", "shift", "sometimes", "speed", "time_masking",
    "mel_loss", "multi_resolution_stft_loss", "compressed_stft_loss", "speech_loss",
}  # fmt: skip


def run(name: str):
    """The transform on what its input is made of, outputs as real arrays in a tuple."""
    prepare, options = TRANSFORMS[name]

    def call(y):
        out = getattr(features, name)(prepare(y), **options)
        leaves = [o for o in jax.tree.leaves(out) if not jnp.issubdtype(o.dtype, jnp.bool_)]
        parts = [(o.real, o.imag) if jnp.iscomplexobj(o) else (o,) for o in leaves]
        return tuple(p for part in parts for p in part)

    return call


def weighted_sum(outputs):
    """One number from all outputs, each weighed differently, so that no part of a gradient cancels."""
    return sum(jnp.sum(o * np.cos(np.arange(o.size)).reshape(o.shape).astype(o.dtype)) for o in outputs)


def sound(*lead: int, seed: int = 0) -> np.ndarray:
    t = np.arange(SAMPLES) / SR
    y = np.sin(2 * np.pi * 310 * t) + 0.3 * np.random.default_rng(seed).standard_normal((*lead, SAMPLES))
    return y.astype(np.float32)


def test_the_table_holds_every_public_transform():
    public = {n for n, f in vars(features).items() if callable(f) and not n.startswith("_") and not inspect.ismodule(f)}
    assert set(TRANSFORMS) <= public
    assert public - set(TRANSFORMS) == NO_TRANSFORM & public


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_batch_gives_what_its_items_give_and_gradients_are_finite(name):
    """In two programs: of a batch, and of one item with its gradient."""
    one = jax.jit(jax.grad(lambda y: (weighted_sum(out := run(name)(y)), out), has_aux=True))
    y = sound(2, 2) * np.array([[1, 0.1], [3, 0]], np.float32)[..., None]
    alone = [one(y[i, j]) for i in (0, 1) for j in (0, 1)]
    for together, *items in zip(jax.jit(run(name))(y), *(outputs for _, outputs in alone), strict=True):
        expected = np.stack(items).reshape(together.shape)
        np.testing.assert_allclose(together, expected, rtol=0, atol=1e-6 * max(1e-6, np.abs(expected).max()))
    assert name in NOT_SMOOTH or np.abs(alone[0][0]).max() > 0
    silence = np.zeros(SAMPLES, np.float32)
    impulse = silence.copy()
    impulse[700] = 1
    for kind, y in dict(silence=silence, subnormal=silence + 1e-40, dc=silence + 0.5, impulse=impulse).items():
        assert np.isfinite(one(np.float32(y))[0]).all(), kind
    for level in (1e-30, 1e-25, 1e-19, 1e-16, 1e-10):
        assert np.isfinite(one(np.float32(level) * sound())[0]).all(), level


QUIET = {  # functions and options that the table does not hold
    "mel of roots": lambda y: features.melspectrogram(y, power=0.5, **MEL),
    "mel of tenth powers": lambda y: features.melspectrogram(y, power=0.1, **MEL),
    "mel stream of roots": lambda y: (s := features.melspectrogram_stream(power=0.5, **MEL)).step(s.init(), y[:640])[1],
    "magphase of roots": lambda y: features.magphase(spectrum(y), power=0.5)[0],
    "bandwidth of roots": lambda y: features.spectral_bandwidth(y, p=0.5, sr=SR, **STFT),
    "flatness of roots": lambda y: features.spectral_flatness(y, power=0.5, **STFT),
    "amplitude to a tiny floor": lambda y: features.amplitude_to_db(magnitudes(y), ref=jnp.max, amin=1e-30),
    "loudness to a tiny floor": lambda y: features.frame_loudness(y, min_db=-1000.0, sr=SR, **STFT),
    "noise": lambda y: features.add_noise(jnp.ones_like(y), y, jnp.array(10.0)),
    "noise and sound": lambda y: features.add_noise(y, y[::-1], jnp.array(10.0)),
    "true peak": features.true_peak,
    "mel loss": lambda y: features.mel_loss(y, y[::-1], **MEL),
    "stft loss": lambda y: features.multi_resolution_stft_loss(y, y[::-1], resolutions=((128, 32, 128),)),
    "squared magnitudes": lambda y: features.Magnitude(SR, 256, 64, exponent=2.0, n_iter=1).decode(magnitudes(y).mT),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", QUIET)
def test_gradients_are_finite_however_quiet(name):
    gradient = jax.jit(jax.grad(lambda y: (QUIET[name](y) * 1.7).sum()))
    for level in (0, 1e-40, 1e-30, 1e-25, 1e-19, 1e-16, 1e-10):
        assert np.isfinite(gradient(np.float32(level) * sound())).all(), level


@pytest.mark.slow
def test_quiet_sounds_are_described_as_loud_ones():
    loud, options = sound(), dict(sr=SR, **STFT)
    names = ("spectral_centroid", "spectral_bandwidth", "chroma_stft")

    @jax.jit
    def described(y):
        yin = features.yin(y, fmin=100.0, fmax=1000.0, sr=SR, frame_length=256)
        return [getattr(features, name)(y, **options) for name in names], features.rms(y), yin

    (quiet, _, quiet_yin), (ours, rms, yin) = described(np.float32(2**-53) * loud), described(loud)
    _, quiet_rms, _ = described(np.float32(2**-50) * loud)
    for a, b in zip(quiet, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_array_equal(2.0**50 * np.asarray(quiet_rms), rms)
    np.testing.assert_array_equal(quiet_yin, yin)


def test_pitch_is_shifted_by_what_is_asked():
    for steps in np.arange(-48, 48.001, 0.0137):
        rate, few = effects._near(2 ** (-steps / 12))
        assert abs(1200 * np.log2(float(rate)) + 100 * steps) <= 0.03
        assert max(rate.numerator, rate.denominator) <= (256 * 16 if few else LARGEST_TERM)
    t = np.arange(24000) / SR
    for steps in (0.05, 12.034):
        y = np.asarray(
            features.pitch_shift(jnp.asarray(np.sin(2 * np.pi * 440 * t), jnp.float32), n_steps=steps, **STFT), float
        )
        turned = y[4000:-4000] * np.exp(-2j * np.pi * 440 * 2 ** (steps / 12) * t[4000:-4000])
        phase = np.unwrap(np.angle(np.convolve(turned, np.hanning(2000), "valid")))
        slope = np.polyfit(np.arange(len(phase)) / SR, phase, 1)[0] / (2 * np.pi)  # Hz
        assert abs(1200 * np.log2(1 + slope / (440 * 2 ** (steps / 12)))) <= 0.05
    with pytest.raises(ValueError, match="n_steps 120 of 12 per octave is 10 octaves; use at most 4"):
        features.pitch_shift(jnp.zeros(9000), n_steps=120)


@pytest.mark.slow
def test_medians_equal_scipy_s():
    S = np.random.default_rng(0).standard_normal((70, 80)).astype(np.float32)
    for size in (1, 5, 65):
        for axis in (0, 1):
            shape = (size, 1) if axis == 0 else (1, size)
            expected = scipy.ndimage.median_filter(S, size=shape, mode="reflect")
            if size == 65:  # step by step, as one program it is too much for the tests' quick compiler: of three runs
                part = (slice(None), slice(3)) if axis == 0 else (slice(3),)
                with jax.disable_jit():
                    np.testing.assert_array_equal(effects._median(jnp.asarray(S[part]), 65, axis), expected[part])
            else:
                ours = jax.jit(effects._median, static_argnums=(1, 2))(S, size, axis)
                np.testing.assert_array_equal(ours, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - NOT_SMOOTH))
def test_gradients_equal_finite_differences(name):
    with jax.enable_x64(True):
        y, direction = (sound(seed=s).astype(np.float64) for s in (1, 2))
        f = jax.jit(jax.value_and_grad(lambda y: weighted_sum(run(name)(y))))
        h = 1e-6
        difference = float(f(y + h * direction)[0] - f(y - h * direction)[0]) / (2 * h)
        through = float(np.vdot(f(y)[1], direction))
        assert through == pytest.approx(difference, rel=1e-4, abs=1e-6)


def test_an_array_may_be_left_out():
    """Where another one is needed; of arrays that may all be left out, one must be given."""

    @transform
    def louder(y: Float[Array, "... samples"], gains: Float[Array, "..."] | None = None) -> Float[Array, "... samples"]:
        return 2 * y if gains is None else gains[..., None] * y

    y, gains = jnp.ones((3, 4)), jnp.array([1.0, 2.0, 3.0])
    assert (louder(y) == 2).all() and (louder(y, None) == 2).all() and (louder(y, gains)[1] == 2).all()
    with pytest.raises(ValueError, match=r"the leading axes \[\(3,\), \(2,\)\] of y and gains must broadcast"):
        louder(y, gains[:2])
    with pytest.raises(ValueError, match="rms: give either y or S"):
        features.rms(frame_length=64)
