"""Whatever the features are given ends in a result of the annotated shape or in one sentence of this package.

Every public function and class runs from a table of arguments that work, one of which is replaced at a time. Calls are
traced and not compiled; the annotation checks of `conftest.py` see the shapes of what is returned.
"""

import inspect
import random
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import features

SIZES: dict[str, Any] = dict(n_fft=64, hop_length=16)
RATE: dict[str, Any] = dict(sr=8000)
WAVE = np.random.default_rng(0).standard_normal(3600).astype(np.float32)
SPECTRUM = np.random.default_rng(1).standard_normal((33, 9)).astype(np.float32)
BINS = SPECTRUM.astype(np.complex64)
FLOAT = np.float32(0.5)
PITCH: dict[str, Any] = dict(sr=8000, fmin=200.0, bins_per_octave=4)
RANGE: dict[str, Any] = dict(fmin=400.0, fmax=1000.0, sr=8000, frame_length=64)
KEY = jax.random.key(0)

CALLS: dict[str, tuple[tuple, dict[str, Any]]] = {
    "stft": ((WAVE,), SIZES),
    "istft": ((BINS,), dict(hop_length=16)),
    "magphase": ((BINS,), dict()),
    "power_to_db": ((SPECTRUM,), dict()),
    "piano_roll": ((np.ones((3, 4), np.float32),), dict(frames=9, frame_seconds=0.1)),
    "PianoRoll": ((), dict(hop_length=100)),
    "amplitude_to_db": ((SPECTRUM,), dict()),
    "db_to_power": ((SPECTRUM,), dict()),
    "db_to_amplitude": ((SPECTRUM,), dict()),
    "melspectrogram": ((WAVE,), dict(n_mels=4, **SIZES)),
    "mfcc": ((WAVE,), dict(n_mels=4, n_mfcc=3, **SIZES)),
    "delta": ((SPECTRUM,), dict(width=5)),
    "hz_to_mel": ((300.0,), dict()),
    "mel_to_hz": ((3.0,), dict()),
    "mel_filterbank": ((8000, 64, 4), dict()),
    "chroma_filterbank": ((8000, 64), dict()),
    "cq_to_chroma": ((24,), dict()),
    "chroma_stft": ((WAVE,), SIZES),
    "chroma_cqt": ((WAVE,), dict(sr=8000, fmin=200.0, n_octaves=2, bins_per_octave=12)),
    "cqt_frequencies": ((5,), dict()),
    "cqt": ((WAVE,), dict(n_bins=8, **PITCH)),
    "vqt": ((WAVE,), dict(n_bins=8, **PITCH)),
    "invertible_cqt": ((WAVE,), PITCH),
    "icqt": ((np.zeros((22, 1200), np.complex64),), dict(length=3600, hop_length=3, **PITCH)),
    "fft_frequencies": ((), RATE),
    "spectral_centroid": ((WAVE,), SIZES),
    "spectral_bandwidth": ((WAVE,), SIZES),
    "spectral_rolloff": ((WAVE,), SIZES),
    "spectral_flatness": ((WAVE,), SIZES),
    "spectral_contrast": ((WAVE,), dict(fmin=400.0, n_bands=3, sr=8000, **SIZES)),
    "rms": ((WAVE,), dict(frame_length=64, hop_length=16)),
    "zero_crossing_rate": ((WAVE,), dict(frame_length=64, hop_length=16)),
    "onset_strength": ((None, SPECTRUM), SIZES),
    "yin": ((WAVE,), RANGE),
    "lpc": ((WAVE,), dict(order=4)),
    "extrapolate": ((WAVE,), dict(samples=20, order=4, key=KEY)),
    "pyin": ((WAVE,), dict(n_thresholds=5, resolution=0.5, **RANGE)),
    "hpss_masks": ((SPECTRUM,), dict(kernel_size=3)),
    "hpss": ((WAVE,), dict(kernel_size=3, **SIZES)),
    "phase_vocoder": ((BINS,), dict(rate=1.5)),
    "time_stretch": ((WAVE,), dict(rate=1.5, **SIZES)),
    "pitch_shift": ((WAVE,), dict(n_steps=0.05, **SIZES)),
    "mel_to_stft": ((SPECTRUM[:4],), dict(n_fft=64, n_iter=2)),
    "griffinlim": ((SPECTRUM,), dict(n_iter=2, key=KEY)),
    "mel_to_audio": ((SPECTRUM[:4],), dict(n_iter=2, key=KEY, **SIZES)),
    "mfcc_to_mel": ((SPECTRUM[:4],), dict(n_mels=6)),
    "mfcc_to_audio": ((SPECTRUM[:4],), dict(n_mels=6, n_iter=2, key=KEY, **SIZES)),
    "resample": ((WAVE,), dict(orig_sr=3, target_sr=2)),
    "change_speed": ((WAVE, FLOAT), dict()),
    "sosfilt": ((WAVE,), dict(sos=((1.0, 0.0, 0.0, 1.0, -0.5, 0.0),))),
    "fft_convolve": ((WAVE, WAVE[:9]), dict()),
    "biquad_response": ((WAVE, FLOAT, FLOAT), dict(kind="peaking", sr=8000)),
    "A_weighting": ((WAVE,), dict()),
    "C_weighting": ((WAVE,), dict()),
    "K_weighting": ((WAVE,), dict()),
    "frame_loudness": ((WAVE,), dict(sr=8000, **SIZES)),
    "integrated_loudness": ((WAVE,), RATE),
    "momentary_loudness": ((WAVE,), RATE),
    "short_term_loudness": ((np.tile(WAVE, 7),), RATE),
    "loudness_range": ((np.tile(WAVE, 7),), RATE),
    "true_peak": ((WAVE,), dict()),
    "normalize_loudness": ((WAVE,), RATE),
    "multi_resolution_stft_loss": ((WAVE, WAVE), dict(resolutions=((64, 16, 32),))),
    "compressed_stft_loss": ((WAVE, WAVE), dict(n_fft=64, hop_length=32)),
    "speech_loss": ((WAVE, WAVE), dict(n_fft=64, hop_length=32)),
    "mel_loss": ((WAVE, WAVE), dict(n_mels=4, **SIZES)),
    "add_noise": ((WAVE, WAVE, FLOAT), dict()),
    "room_response": ((FLOAT, FLOAT), dict(sr=8000, samples=9, key=KEY)),
    "mix_up": ((SPECTRUM,), dict(key=KEY)),
    "background_noise": ((jnp.asarray(SPECTRUM), 0.0, 1.0), dict()),
    "bit_crush": ((2, 3), dict()),
    "clipping": ((1.0, 2.0), dict()),
    "colored_noise": ((1.0, 2.0), dict()),
    "equalizer": ((-1.0, 1.0), RATE),
    "frequency_masking": ((3,), dict()),
    "time_masking": ((3,), dict()),
    "gain": ((0.0, 1.0), dict()),
    "high_pass": ((100.0, 200.0), RATE),
    "low_pass": ((100.0, 200.0), RATE),
    "reverberation": ((0.1, 0.2, 0.0, 1.0), RATE),
    "shift": ((0, 1), dict()),
    "sometimes": ((features.polarity_inversion(), 0.5), dict()),
    "speed": ((0.9, 1.1), dict()),
    "stft_stream": ((), SIZES),
    "istft_stream": ((), SIZES),
    "melspectrogram_stream": ((), dict(n_mels=4, **SIZES)),
    "Patches": ((8000, 4), dict()),
    "CompressedStft": ((8000, 64, 16), dict()),
    "Magnitude": ((8000, 64, 16), dict()),
    "LogMel": ((8000, 64, 16, 4), dict()),
}
OTHERS = {  # abstract, made of parts that are checked on their own, or taking any number of them
    "Augmentation", "Roll", "Vocoded", "notes_of_roll", "Mixed", "Normalization", "Normalized", "Representation",
    "Stereo", "Stream", "compose", "fit_normalization", "polarity_inversion",
}  # fmt: skip
ARRAYS: dict[str, Any] = {
    "scalar": FLOAT,
    "python": 0.5,
    "list": [0.5, 0.5],
    "text": "x",
    "none": None,
    "nan": WAVE * np.nan,
    "two": np.ones((2, 600), np.float32),
    "ranks": np.ones((1, 2, 40, 9), np.float32),
    "double": WAVE.astype(float),
    "integers": np.ones(400, np.int16),
    "table of integers": np.ones((33, 9), np.int32),
    "table of truths": np.ones((33, 9), bool),
    "complex": WAVE.astype(complex),
    "complex table": BINS,
    "half": WAVE.astype(np.float16),
    "half table": jnp.ones((33, 9), "bfloat16"),
    "no items": np.ones((0, 3600), np.float32),
    "no bins": np.ones((0, 9), np.float32),
    "no frames": np.ones((33, 0), np.float32),
    "key": KEY,
}
ARRAYS |= {f"{n} samples": np.ones(n, np.float32) for n in range(4)}
ARRAYS |= {f"{n} frames": SPECTRUM[:, :n] for n in range(1, 4)}
NUMBERS = [0, 1, 2, 3, -1, 7, 0.5, 1.5, -0.5, float("nan"), float("inf"), -float("inf"), True, False, 1j]
NUMPYS = [np.float32(2), np.int64(2), np.float64("nan"), np.ones(2), np.ones(()), jnp.ones(2)]
TUPLES = [[], [1], {}, (), (1,), ("kaiser", 4.0), ("kaiser", [4.0]), ("kaiser",), ((1.0,) * 6,)]
KEYS = [KEY, jax.random.PRNGKey(0), jax.random.split(KEY)]
OPTIONS = [*NUMBERS, *NUMPYS, *TUPLES, *KEYS, None, "x", "", "reflect", object(), len]


def cases(name):
    """Arguments in which one differs from the table, each with a label."""
    values, options = CALLS[name]
    for parameter in inspect.signature(getattr(features, name)).parameters.values():
        arrays = "Array" in str(parameter.annotation) and parameter.name != "key"
        for label, value in ARRAYS.items() if arrays else [(repr(v), v) for v in OPTIONS]:
            bound = inspect.signature(getattr(features, name)).bind(*values, **options)
            bound.arguments[parameter.name] = value
            yield f"{parameter.name}={label}", bound


def outcome(name, bound):
    """None if it works, else why the error is not one good sentence."""
    function, arrays = getattr(features, name), {}
    arguments = dict(bound.arguments)
    if name != "background_noise":
        arrays = {n: v for n, v in arguments.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fc"}
    else:
        arguments = {n: jnp.asarray(v) if n == "noise" and hasattr(v, "shape") else v for n, v in arguments.items()}
    rest = {n: v for n, v in arguments.items() if n not in arrays}
    try:
        if arrays:
            jax.eval_shape(lambda arrays: call(function, {**rest, **arrays}), arrays)
        else:
            call(function, arguments)
    except Exception as error:
        if inspect.isclass(function) and type(error).__name__ == "TypeCheckError":
            return None  # the tests' annotation checks come before those of a dataclass
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error)
        good = type(error) in (ValueError, TypeError) and "jaxdiff/features" in where.filename
        if not good or "\n" in text or len(text) > 300:
            return f"{type(error).__name__} at {where.filename}:{where.lineno}: {text[:300]}"
    return None


def call(function, arguments):
    bound = inspect.signature(function).bind_partial()
    bound.arguments.update({n: arguments[n] for n in inspect.signature(function).parameters if n in arguments})
    return function(*bound.args, **bound.kwargs)


@pytest.fixture
def whole_tracebacks():
    before = jax.config.jax_traceback_filtering  # type: ignore
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


def test_the_table_holds_every_public_function():
    public = {n for n, f in vars(features).items() if callable(f) and not n.startswith("_") and not inspect.ismodule(f)}
    assert public == set(CALLS) | OTHERS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_odd_arguments_give_a_result_or_a_sentence(name, whole_tracebacks):
    chosen = list(cases(name))
    chosen = random.Random(name).sample(chosen, min(60, len(chosen)))
    bad = {label: why for label, bound in chosen if (why := outcome(name, bound))}
    assert not bad, bad
