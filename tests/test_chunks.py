"""Sounds of any length, rate and number of channels: one program, constant memory, no seam."""

import functools
import subprocess
import sys
import threading
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from jaxdiff import Model, Pipeline, diffusion
from jaxdiff.features import CompressedStft, Magnitude, Patches
from jaxdiff.inference import chunks
from jaxdiff.inference import pipeline as module
from jaxdiff.methods import Diffusion, Regression, Sampling, Shortcut
from jaxdiff.networks import ConvNeXt, Network, from_nnx
from jaxdiff.tasks import Generate, Vocode

TASK = Vocode(n_fft=64, hop_length=32, n_mels=12)
TRACES = []


@dataclass(frozen=True)
class Counted(CompressedStft):
    """Notes every time that a program with it is traced."""

    def decode(self, x):
        TRACES.append(x.shape)
        return super().decode(x)


def vocoder(representation=Counted(8000, 64, 32), method=Regression(), task=TASK):  # noqa: B008
    channels = representation.channels
    make = lambda rngs: ConvNeXt(channels, width=16, depth=2, condition_features=12, zero_output=False, rngs=rngs)  # noqa: E731
    network = from_nnx(make)
    return Pipeline(Model(network, representation, task), method, network.init(jax.random.key(1)))


def sound(samples, seed=0, channels=None):
    shape = (samples,) if channels is None else (channels, samples)
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def below(made, wanted, edge):
    """The largest difference away from the edges, in dB of the sound's RMS."""
    inner = slice(edge, len(wanted) - edge)
    return 20 * np.log10(np.abs(made - wanted)[inner].max() / np.sqrt((wanted**2).mean()) + 1e-12)


def test_windows_cover_a_sound_and_join_without_a_trace():
    y = sound(1000)
    for window, overlap in ((100, 40), (64, 32), (1000, 0), (2000, 500)):
        out = np.zeros(1000, np.float32)
        for start in chunks.starts(1000, window, window - overlap):
            chunks.join(out, chunks.cut(y, start, window), start, overlap)
        np.testing.assert_allclose(out, y, atol=1e-7)


def test_the_judge_of_seams_hears_one():
    y = sound(1000)
    assert below(y, y, 10) < -200
    assert below(np.where(np.arange(1000) == 500, y + 0.001, y), y, 10) > -60


@pytest.mark.parametrize("representation", [Counted(8000, 64, 32), Magnitude(8000, 64, 32, phase_period=16)])
def test_a_long_sound_is_what_the_whole_at_once_would_be(representation, monkeypatch):
    pipeline, y = vocoder(representation), sound(8000 * 6)
    pipeline.window_seconds = 1.5
    monkeypatch.setattr(module, "OVERLAP_SECONDS", 0.5)
    made = pipeline(y, sr=8000).waves[0]
    pipeline.window_seconds = 7.0
    whole = pipeline(y, sr=8000).waves[0]
    assert made.shape == y.shape
    assert below(made, whole, 1000) < -60


def test_calls_are_made_ahead_and_give_their_results_in_order():
    begun, meeting = [], threading.Barrier(2, timeout=20)

    def call(i: int) -> int:
        begun.append(i)
        if i:
            meeting.wait()  # passes when two are at work at once
        return i

    results = chunks.ahead(functools.partial(call, i) for i in range(7))
    assert next(results) == 0 and begun == [0]
    assert list(results) == [1, 2, 3, 4, 5, 6]
    assert list(chunks.ahead([])) == []

    def fail() -> int:
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(chunks.ahead([lambda: 0, lambda: 1, fail, lambda: 3]))


def test_twenty_lengths_compile_once():
    pipeline = vocoder()
    TRACES.clear()
    for samples in [1, 7, 31, 100, *range(4000, 150_000, 9500)][:20]:
        made = pipeline(sound(samples), sr=8000).waves[0]
        assert made.shape == (samples,) and np.isfinite(made).all()
    assert len(TRACES) == 1


def test_channels_and_rate_are_kept():
    pipeline = vocoder()
    stereo = sound(44100 // 2, channels=2)
    stereo[1] = stereo[0]
    out = pipeline(stereo, sr=44100)
    assert out.waves[0].shape == stereo.shape and out.sample_rate == 44100
    np.testing.assert_array_equal(out.waves[0][0], out.waves[0][1])  # both draw the same noise
    mono = pipeline(stereo[0], sr=44100).waves[0]
    np.testing.assert_allclose(mono, out.waves[0][0], atol=1e-6)
    swapped = pipeline(np.stack([stereo[0], 0.5 * stereo[1]]), sr=44100).waves[0]
    assert np.abs(swapped[1] - mono).max() > 1e-3 and np.allclose(swapped[0], mono, atol=1e-6)


def test_a_file_comes_back_at_its_own_length_rate_and_channels(tmp_path):
    soundfile.write(tmp_path / "s.wav", sound(11_025, channels=2).T, 22_050, subtype="FLOAT")
    out = vocoder()([tmp_path / "s.wav", tmp_path / "s.wav"])
    assert [w.shape for w in out.waves] == [(2, 11_025)] * 2 and out.sample_rates == [22_050] * 2
    assert [f["source"] for f in out.facts] == [str(tmp_path / "s.wav")] * 2


def test_a_task_s_level_is_undone():
    leveled = vocoder(task=Vocode(n_fft=64, hop_length=32, n_mels=12, peak_db=-3))
    plain, y = vocoder(), sound(3000)
    loud, quiet = (leveled(gain * y, sr=8000).waves[0] for gain in (1.0, 0.01))
    np.testing.assert_allclose(quiet, 0.01 * loud, atol=1e-5 * np.abs(quiet).max())
    other = plain(0.01 * y, sr=8000).waves[0]
    assert np.abs(other - 0.01 * loud).max() > 1e-3 * np.abs(other).max()


def test_noise_belongs_to_the_place_in_the_sound():
    keys = jax.random.split(jax.random.key(0), 2)
    at = lambda first: np.asarray(chunks.windowed_noise(keys, jnp.array(first), 50, 3))  # noqa: E731
    np.testing.assert_array_equal(at([0, 0]), diffusion.noise(keys, (2, 50, 3)))
    np.testing.assert_array_equal(at([0, 20])[0, 20:], at([20, 20])[0, :30])
    np.testing.assert_array_equal(at([170, 130])[0, :10], at([130, 130])[0, 40:])
    np.testing.assert_array_equal(diffusion.noise(keys, (2, 7, 3)), at([0, 0])[:, :7])  # and shorter sounds agree
    far = at([200, 100])
    assert abs(np.corrcoef(far[0].ravel(), at([0, 0])[0].ravel())[0, 1]) < 0.3


IDENTITY = Network(lambda key: {"gain": jnp.float32(0.5)}, lambda params, x_t, t, cond, **_: params["gain"] * x_t)


@pytest.mark.slow
@pytest.mark.parametrize("method", [Diffusion(), Shortcut()], ids=["diffusion", "shortcut"])
@pytest.mark.parametrize("representation", [Patches(8000, 8), CompressedStft(8000, 64, 32)], ids=["patches", "stft"])
def test_longer_sounds_continue_the_shorter(method, representation):
    """A second window keeps the features of the first where they overlap, so that the first stays what it was."""
    model = Model(IDENTITY, representation, Generate())
    pipeline = Pipeline(model, method, {"gain": jnp.float32(0.5)}, seconds=0.256, sampling=Sampling(steps=2))
    window, edge = 2048, 0 if isinstance(representation, Patches) else 512
    one, two, five = (pipeline(seconds=s, seed=3).waves[0] for s in (0.256, 0.4, 1.0))
    assert (len(one), len(two), len(five)) == (2048, 3200, 8000)
    np.testing.assert_allclose(five[: 2048 - edge], one[: 2048 - edge], atol=1e-5)
    np.testing.assert_allclose(five[: 2048 + 512], two[: 2048 + 512], atol=1e-5)
    assert five[window:].std() > 0.3 * one.std()
    assert np.abs(np.corrcoef(five[window : 2 * window], five[:window])[0, 1]) < 0.2  # new sound, not a loop


FIVE_MINUTES = """
import resource, sys
import numpy as np
sys.path.insert(0, {tests!r})
from test_chunks import vocoder, sound
pipeline = vocoder()
pipeline(sound(80_000), sr=8000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = pipeline(sound(8000 * 300), sr=8000).waves[0]
assert made.shape == (2_400_000,) and np.isfinite(made).all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_five_minutes_take_constant_memory():
    """What grows are the sound itself and its result; ru_maxrss is in KiB on Linux."""
    tests = str(__file__).rsplit("/", 1)[0]
    done = subprocess.run([sys.executable, "-c", FIVE_MINUTES.format(tests=tests)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100


def test_a_module_s_window_is_a_multiple_of_what_must_divide_it():
    make = lambda rngs: nnx.Linear(8, 8, rngs=rngs)  # noqa: E731
    network = Network(lambda key: from_nnx(make).init(key), lambda params, x_t, t, cond, **_: x_t)
    model = Model(network, Magnitude(8000, 128, 64, phase_period=16), Vocode(n_fft=128, hop_length=64, n_mels=8))
    pipeline = Pipeline(model, Regression(), {})
    assert pipeline._hop == 64 and pipeline._unit == 64 * 16
    overlap = pipeline._overlap(8 * pipeline._unit, 3 * 8000 / 16)
    assert overlap >= 1500 and overlap % pipeline._unit == 0
