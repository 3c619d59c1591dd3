"""From a model to sounds: one program, items that do not depend on their batch, and sounds that keep what they had."""

import base64
import dataclasses
import io
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from oracles import drawn, max_relative

from jaxdiff.config import ConfigError, from_dict
from jaxdiff.config import model as build_model
from jaxdiff.data import AudioError, read_audio
from jaxdiff.data.files import resample
from jaxdiff.diffusion import euler, prior_scale, spaced_times
from jaxdiff.features import CompressedStft, Normalization, Normalized, Patches
from jaxdiff.inference import Pipeline
from jaxdiff.inference.load import pipeline_of
from jaxdiff.methods import Model, Regression
from jaxdiff.networks import Network
from jaxdiff.tasks import Vocode

TREE = {
    "data": {"seconds": 0.064},
    "representation": {"n_fft": 64, "hop_length": 32},
    "network": {"kind": "transformer", "width": 16, "depth": 1, "heads": 2},
    "sampling": {"steps": 3, "sampler": "ancestral"},
}
VOCODER = {
    "data": {"sample_rate": 2000, "seconds": 0.256},
    "task": {"kind": "vocode", "n_fft": 64, "hop_length": 32, "n_mels": 12, "peak_db": -3},
    "representation": {"n_fft": 64, "hop_length": 32},
    "network": {"kind": "convnext", "width": 8, "depth": 1},
    "normalize": {"enabled": False},
    "sampling": {"steps": 2, "sampler": "ancestral"},
}


@pytest.fixture(scope="module")
def pipeline():
    config, classes = from_dict(TREE), ("a", "b", "c")
    params = drawn(build_model(config, classes, None).network, 0.2)
    return pipeline_of(config, classes, params, Normalization(jnp.zeros(66), 0.1 * jnp.ones(66)))


@pytest.fixture(scope="module")
def vocoder():
    """One whose parameters are no beginning: the zero output layer of a fresh network would hide every mistake."""
    config = from_dict(VOCODER)
    leaves, tree = jax.tree.flatten(jax.jit(build_model(config, (), None).network.init)(jax.random.key(1)))
    draws = [np.random.default_rng(i).standard_normal(x.shape).astype(np.float32) for i, x in enumerate(leaves)]
    params = tree.unflatten([x + 0.1 * draw for x, draw in zip(leaves, draws, strict=True)])
    return pipeline_of(config, (), params, None)


def rows(output) -> np.ndarray:
    return np.stack(output.waves)


def sound(seed: int, *shape: int, level: float = 0.2) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


# From noise ---------------------------------------------------------------------------------------------------------


def test_an_item_is_the_same_in_any_batch(pipeline):
    many = rows(pipeline(count=20, seed=4))
    for count in (1, 17):
        made = rows(pipeline(count=count, seed=4))
        np.testing.assert_allclose(made, many[:count], atol=1e-5 * np.abs(many).max())
    assert np.abs(many[0] - many[3]).max() > 0.1 * np.abs(many).max()
    assert np.abs(rows(pipeline(count=1, seed=5)) - many[:1]).max() > 0.1 * np.abs(many).max()


class Counted(CompressedStft):
    """Counts how often its decoder is traced."""

    traces = 0

    def decode(self, x):
        type(self).traces += 1
        return super().decode(x)


def test_three_generations_trace_once(pipeline):
    model = pipeline.model._replace(representation=Counted(n_fft=64, hop_length=32))
    fresh = Pipeline(model, pipeline.method, pipeline.params, seconds=0.064, sampling=pipeline.sampling)
    for seed in range(3):
        fresh(count=2, seed=seed)
    assert Counted.traces == 1
    fresh(count=2, steps=2)
    assert Counted.traces == 2


def test_labels_and_lengths(pipeline):
    by_turn = rows(pipeline(count=4, seed=0))
    second = rows(pipeline(count=2, seed=0, labels="b"))
    np.testing.assert_allclose(by_turn[1], second[1], atol=1e-5 * np.abs(second).max())
    assert np.abs(by_turn[0] - second[0]).max() > 1e-3 * np.abs(second).max()
    assert rows(pipeline(seconds=0.1)).shape == (1, 1600)
    assert rows(pipeline(seconds=0.0301)).shape == (1, 482)


def test_normalisation_changes_nothing_about_windows(pipeline):
    """Frames that see where a window ends are made anew, whether or not features are normalised."""
    options: dict[str, Any] = dict(seconds=0.064, sampling=pipeline.sampling)
    inner, nothing = pipeline.model.representation.representation, Normalization(jnp.zeros(66), jnp.ones(66))
    made = [
        rows(
            Pipeline(pipeline.model._replace(representation=r), pipeline.method, pipeline.params, **options)(
                seconds=0.15
            )
        )
        for r in (inner, Normalized(inner, nothing))
    ]
    np.testing.assert_allclose(made[1], made[0], rtol=0, atol=1e-5 * np.abs(made[0]).max())


def test_labels_are_taken_in_turn_by_name_by_number_or_not_at_all(pipeline):
    a, b, c = (rows(pipeline(count=4, seed=2, labels=name)) for name in "abc")
    close: dict[str, Any] = dict(rtol=0, atol=1e-5 * np.abs(a).max())
    mixed = pipeline(count=4, seed=2, labels=["c", 0, None])
    assert [f["label"] for f in mixed.facts] == ["c", "a", "c", "c"]
    np.testing.assert_allclose(rows(mixed), [c[0], a[1], c[2], c[3]], **close)
    turn = pipeline(count=4, seed=2)
    assert [f["label"] for f in turn.facts] == ["a", "b", "c", "a"]
    np.testing.assert_allclose(rows(turn), [a[0], b[1], c[2], a[3]], **close)
    np.testing.assert_array_equal(rows(pipeline(count=4, seed=2, labels=1)), b)


def test_guidance_moves_the_sound_and_one_is_off(pipeline):
    plain = rows(pipeline(guidance=1.0))
    np.testing.assert_array_equal(plain, rows(pipeline()))
    assert np.abs(rows(pipeline(guidance=3.0)) - plain).max() > 1e-3 * np.abs(plain).max()


def test_times_are_those_given(pipeline):
    schedule = pipeline.method.schedule
    usual = pipeline(count=2)
    given = pipeline(count=2, times=spaced_times(schedule, 3))
    np.testing.assert_array_equal(rows(given), rows(usual))
    quadratic = pipeline(count=2, spacing="quadratic")
    np.testing.assert_array_equal(rows(quadratic), rows(pipeline(count=2, times=np.array([9, 4, 1, 0]) / 9)))
    other = pipeline(count=2, times=[1, 0.8, 0.4, 0.2, 0])
    assert [f["steps"] for f in other.facts] == [4, 4]
    assert np.abs(rows(other) - rows(usual)).max() > 1e-3 * np.abs(rows(usual)).max()


@pytest.mark.slow
def test_a_sampler_of_one_s_own(pipeline):
    """A function with the signature of one: it sees prior, times and keys, and what it returns is decoded."""
    seen = {}

    def own(denoiser, schedule, x_T, times, keys):
        seen.update(schedule=schedule, shape=x_T.shape, keys=keys.shape)
        return jnp.ones_like(x_T) * times.sum() + 0 * denoiser(x_T, times[0])

    made = pipeline(count=2, sampler=own, times=[1, 0.25, 0])
    r = pipeline.model.representation
    frames = r.frames(1024)
    expected = r.decode(1.25 * jnp.ones((2, frames, r.channels)))
    np.testing.assert_allclose(rows(made), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert seen == {"schedule": pipeline.method.schedule, "shape": (2, frames, r.channels), "keys": (2,)}
    assert [f["sampler"] for f in made.facts] == ["own", "own"]

    def through(denoiser, schedule, x_T, times, keys):
        return euler(denoiser, schedule, x_T, times, keys)

    np.testing.assert_array_equal(rows(pipeline(sampler=through)), rows(pipeline(sampler="euler")))

    def prior(denoiser, schedule, x_T, times, keys):
        return x_T / prior_scale(schedule)

    first = rows(pipeline(count=2, seed=3, sampler=prior))
    np.testing.assert_array_equal(first[:1], rows(pipeline(seed=3, sampler=prior)))


def test_a_pipeline_says_what_it_is(pipeline, vocoder):
    text = repr(pipeline)
    for part in ("Pipeline", "Generate", "Diffusion", "16000 Hz", "step 0", "classes a, b, c"):
        assert part in text
    text = repr(vocoder)
    assert "Vocode" in text and "CompressedStft" in text and "2000 Hz" in text and "classes" not in text


def test_what_is_made_shows_itself_in_a_notebook(pipeline):
    made = pipeline(count=2, labels=["c", "b"], seed=1)
    assert made.names == ["0000-c", "0001-b"]
    assert made.sample_rate == 16000
    html = made._repr_html_()
    assert html.count("<audio") == html.count("<img") == 2
    sounds = re.findall(r'<audio[^>]* src="data:audio/wav;base64,([^"]+)"', html)
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    for wave, text in zip(made.waves, sounds, strict=True):
        y, rate = soundfile.read(io.BytesIO(base64.b64decode(text)))
        assert rate == 16000
        np.testing.assert_allclose(y, np.clip(wave, -1, 1), atol=1 / 32768)
    assert all(base64.b64decode(text).startswith(b"\x89PNG") for text in pictures)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": "d"}, "label 'd' is unknown; use one of a, b, c"),
        ({"labels": 3}, "label 3 is unknown; use one of a, b, c"),
        ({"labels": ["a", "d"], "count": 2}, "label 'd' is unknown"),
        ({"count": 0}, "count 0: make at least 1"),
        ({"seconds": -1.0}, "seconds -1.0: expected more than 0 and at most 14400"),
        ({"seconds": float("nan")}, "seconds nan"),
        ({"seed": -1}, "seed -1: expected 0 to 4294967295"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"sampler": "hern"}, "sampler: expected one of heun, euler"),
        ({"sampler": "dbim"}, "sampler: expected one of heun, euler"),
        ({"spacing": "even"}, "spacing 'even' is unknown"),
        ({"times": [1, 0.5]}, "times: expected at least two numbers that fall from 1 to 0"),
        ({"times": [1, 0.5, 0.5, 0]}, "times: expected"),
        ({"times": [1, float("nan"), 0]}, "times: expected"),
        ({"temperature": 0.5}, "temperature: method Diffusion has no such option; it has guidance"),
        ({"colour": "red"}, "colour: method Diffusion has no such option"),
        ({"sound": "x.wav"}, "generates from noise and a class alone; leave the sound away"),
    ],
)
def test_impossible_requests_get_one_sentence(pipeline, options, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        pipeline(**options)
    assert "\n" not in str(error.value)


def test_searched_times_need_a_sampler_with_a_name(pipeline):
    for options in ({"sampler": euler}, {"sampler": "euler"}):
        with pytest.raises(ConfigError, match="spacing searched: "):
            pipeline(spacing="searched", **options)
    config = from_dict({**TREE, "method": {"kind": "shortcut"}, "sampling": {}})
    jumps = pipeline_of(config, (), None, None)
    with pytest.raises(ConfigError, match="spacing searched: "):
        jumps(spacing="searched")
    with pytest.raises(ConfigError, match="sampler: method Shortcut has no such option; it has spacing, steps"):
        jumps(sampler="euler")


# Of sounds ----------------------------------------------------------------------------------------------------------


def test_a_sound_keeps_rate_length_and_channels(vocoder, tmp_path):
    stereo = sound(0, 2, 5001)
    for wave, sr in ((stereo, 2000), (stereo[0], 2000), (stereo, 3000), (stereo[:1], 1500.5), (stereo[:, :7], 44100)):
        made = vocoder(wave, sr=sr)
        assert made.waves[0].shape == wave.shape
        assert made.waves[0].dtype == np.float32
        assert made.sample_rates == [sr]
        assert np.isfinite(made.waves[0]).all()
    path = tmp_path / "stereo.wav"
    soundfile.write(path, stereo.T, 3000, subtype="FLOAT")
    made = vocoder([path, str(path), stereo[0]], sr=3000)
    assert [w.shape for w in made.waves] == [stereo.shape, stereo.shape, (5001,)]
    assert [f["source"] for f in made.facts] == [str(path), str(path), None]
    assert made.names == ["stereo", "stereo", "0002"]
    array = vocoder(stereo, sr=3000).waves[0]
    np.testing.assert_array_equal(array, vocoder(path).waves[0])
    np.testing.assert_array_equal(array, vocoder(jnp.asarray(stereo), sr=3000).waves[0])
    np.testing.assert_array_equal(made.waves[0], array)
    assert max_relative(made.waves[1], array) > 1e-3  # another item, other noise


def test_equal_channels_stay_equal(vocoder):
    left, right = sound(1, 2, 3000)
    both = vocoder(np.stack([left, left]), sr=2000).waves[0]
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_array_equal(both[0], vocoder(left, sr=2000).waves[0])
    mixed = vocoder(np.stack([left, right]), sr=2000).waves[0]
    assert max_relative(mixed[0], mixed[1]) > 0.1


def test_the_level_is_the_sound_s_own(vocoder):
    wave = sound(2, 4000)
    made = vocoder(wave, sr=2000).waves[0]
    for scale in (0.1, 3.0):
        assert max_relative(vocoder(np.float32(scale) * wave, sr=2000).waves[0], scale * made) <= 1e-5
    two = np.stack([wave, 0.1 * sound(3, 4000)])  # one gain for all channels: the quiet one stays quiet
    gain = vocoder.model.task.gain(np.abs(two).max())
    assert float(gain * np.abs(two).max()) == pytest.approx(10 ** (-3 / 20))
    task = dataclasses.replace(vocoder.model.task, peak_db=None)
    plain = Pipeline(
        vocoder.model._replace(task=task), vocoder.method, vocoder.params, seconds=0.256, sampling=vocoder.sampling
    )
    assert max_relative(plain(gain * two, sr=2000).waves[0] / gain, vocoder(two, sr=2000).waves[0]) <= 1e-5
    assert max_relative(plain(0.1 * wave, sr=2000).waves[0], 0.1 * plain(wave, sr=2000).waves[0]) > 1e-2


def test_an_item_of_many_sounds_depends_on_its_place_alone(vocoder):
    a, b, c = (sound(seed, 2000) for seed in (4, 5, 6))
    first, second = vocoder([a, b], sr=2000, seed=1), vocoder([c, b], sr=2000, seed=1)
    np.testing.assert_array_equal(first.waves[1], second.waves[1])
    assert max_relative(vocoder([a, b], sr=2000, seed=2).waves[1], first.waves[1]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("length", [1000, 40_000])
def test_what_a_vocoder_knows_is_the_sound_s_mel_spectrogram(length, tmp_path):
    """A network that hands its condition on: the made sound holds the mel frames of the given one, of any length."""
    hop = 20
    network = Network(lambda key: {}, lambda params, x_t, t, cond, *, r=None, key=None: cond.frames)
    task = Vocode(n_fft=64, hop_length=hop, n_mels=hop)
    model = Model(network, Patches(sample_rate=2000, size=hop), task)
    wave = sound(7, 2, length, level=0.1)
    heard = np.pad(wave, ((0, 0), (0, 10 * hop)))  # after the end is silence
    frames = task.given(model.representation, {"wave": jnp.asarray(heard)}).cond.frames
    expected = np.asarray(frames).reshape(2, -1)[:, :length]
    made = Pipeline(model, Regression(), {})(wave, sr=2000).waves[0]
    assert np.abs(made - expected).max() <= 1e-4
    path = tmp_path / "other rate.flac"
    soundfile.write(path, wave.T, 4000, subtype="PCM_24")
    given = resample(read_audio(path, channels="all"), 4000, 2000)
    at_own = Pipeline(model, Regression(), {})(given, sr=2000).waves[0]
    np.testing.assert_allclose(
        Pipeline(model, Regression(), {})(path).waves[0], resample(at_own, 2000, 4000)[:, :length], atol=1e-6
    )


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (dict(), ConfigError, "this model works on a sound: give an array and its sr, a path, or a list of them"),
        (dict(sound=np.ones(9, np.float32)), ConfigError, "sr: say the sample rate of the array in Hz"),
        (dict(sound=np.ones(9, int), sr=2000), ConfigError, r"expected floats .* got int64 \[9\]"),
        (dict(sound=np.ones((2, 2, 9)), sr=2000), ConfigError, r"got float64 \[2, 2, 9\]"),
        (dict(sound=np.ones((2, 0)), sr=2000), ConfigError, r"got float64 \[2, 0\]"),
        (dict(sound=np.full(9, np.nan), sr=2000), ConfigError, "holds samples that are not finite numbers"),
        (dict(sound="gone.wav"), AudioError, "gone.wav: no such file"),
    ],
)
def test_impossible_sounds_get_one_sentence(vocoder, call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        vocoder(**call)
    assert "\n" not in str(caught.value)


def test_items_are_classes_in_turn_or_the_sounds_given(pipeline, vocoder):
    keys, batch = pipeline.items(3, np.array([4, 2]))
    np.testing.assert_array_equal(batch["label"], [1, 2])
    assert batch["wave"].shape == (2, 1024) and not batch["wave"].any()
    again, _ = pipeline.items(3, np.array([2]))
    np.testing.assert_array_equal(jax.random.key_data(again[0]), jax.random.key_data(keys[1]))
    _, batch = vocoder.items(0, np.array([4, 2]), sound(8, 2, 64))
    np.testing.assert_array_equal(batch["wave"], sound(8, 2, 64))
    np.testing.assert_array_equal(batch["label"], [-1, -1])
