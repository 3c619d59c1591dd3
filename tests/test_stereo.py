"""Both channels of a sound at once: features of middle and side, training and generation."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from jaxdiff.config import ConfigError, from_dict
from jaxdiff.config import model as model_of
from jaxdiff.features import (
    CompressedStft,
    LogMel,
    Magnitude,
    Normalization,
    Normalized,
    Patches,
    Representation,
    Stereo,
    Vocoded,
)
from jaxdiff.inference import load
from jaxdiff.methods.method import sound_distance
from jaxdiff.run import run
from jaxdiff.tasks import Given

RATE = 44_100
ONE = {"representation": {"kind": "patches", "size": 1}}


@pytest.mark.parametrize("inner", [Patches(size=4), CompressedStft(n_fft=64, hop_length=16)])
def test_features_are_those_of_middle_and_side_and_both_channels_come_back(inner):
    whole, leads = Stereo(inner), [(), (3,), (2, 3)]
    assert whole.stereo and whole.sound_shape(320) == (2, 320) and not inner.stereo and inner.sound_shape(320) == (320,)
    assert whole.channels == 2 * inner.channels
    sounds = [np.random.default_rng(0).standard_normal((*lead, 2, 320)).astype(np.float32) for lead in leads]

    @jax.jit
    def make(sounds):
        made = []
        for y in sounds:
            parts = (y.mean(-2), (y[..., 0, :] - y[..., 1, :]) / 2)
            x = whole.encode(y)
            made.append((x, [inner.encode(part) for part in parts], whole.decode(x)))
        return made

    for lead, y, (x, parts, back) in zip(leads, sounds, jax.device_get(make(sounds)), strict=True):
        assert x.shape == (*lead, inner.frames(320), whole.channels)
        np.testing.assert_allclose(x, np.concatenate(parts, axis=-1), atol=2e-6)
        np.testing.assert_allclose(back, y, atol=2e-5)


def test_equal_channels_have_no_side_and_stay_equal():
    one = np.random.default_rng(1).standard_normal(1024).astype(np.float32)
    whole = Stereo(Magnitude(n_fft=64, hop_length=16))

    @jax.jit
    def make(y):
        x = whole.encode(y)
        return x, whole.decode(x)

    x, (left, right) = jax.device_get(make(np.stack([one, one])))
    assert np.abs(x[..., whole.channels // 2 :]).max() < 1e-5
    assert np.abs(left - right).max() < 1e-3 * np.abs(left).max()


def test_a_vocoder_makes_both_channels_and_what_is_around_is_seen_through():
    mel = LogMel(8000, n_fft=64, hop_length=16, n_mels=8)
    decoder = lambda M: jnp.repeat(M.sum(-2), 16, axis=-1)  # noqa: E731
    whole = Stereo(Vocoded(mel, decoder))
    around = Normalized(whole, Normalization(jnp.zeros(16), jnp.ones(16)))
    assert around.inner is mel and around.stereo and around.sample_rate == 8000 and around.phase_period is None

    @jax.jit
    def make(y):
        each = [decoder(mel.magnitudes(mel.encode(m))) for m in (y.mean(1), (y[:, 0] - y[:, 1]) / 2)]
        return around.decode(around.encode(y)), *each

    y = np.random.default_rng(2).standard_normal((3, 2, 160)).astype(np.float32)
    made, middle, side = jax.device_get(make(y))
    np.testing.assert_allclose(made, np.stack([middle + side, middle - side], 1), rtol=1e-4)


def config(folder, **parts):
    tree = {
        "data": {"path": str(folder), "channels": "stereo", "sample_rate": RATE, "seconds": 2048 / RATE},
        "task": {"peak_db": -3, "flip_polarity": True},
        "representation": {"kind": "patches", "size": 128},
        "network": {"kind": "convnext", "width": 16, "depth": 1},
        "train": {"steps": 3, "batch": 4, "save_every": 3, "sample_every": 3, "log_every": 1},
        "sampling": {"steps": 2},
    }
    return from_dict({**tree, **{k: {**tree.get(k, {}), **v} for k, v in parts.items()}})


@pytest.fixture(scope="module")
def hall(tmp_path_factory):
    """Sounds at 44.1 kHz whose right channel is the left one at half its level; one file has one channel."""
    folder, rng = tmp_path_factory.mktemp("hall"), np.random.default_rng(0)
    for i in range(4):
        left = 0.5 * np.sin(2 * np.pi * (200 + 90 * i) * np.arange(8192) / RATE) + 0.01 * rng.standard_normal(8192)
        soundfile.write(folder / f"{i}.flac", left if i == 3 else np.stack([left, left / 2], 1), RATE)
    return folder


@pytest.mark.slow
def test_sound_of_44100_hz_and_two_channels_is_trained_on_and_generated(hall, tmp_path):
    assert run(config(hall), tmp_path / "run", report=lambda text: None) is None
    preview, rate = soundfile.read(next((tmp_path / "run" / "samples" / "3").glob("*.wav")))
    assert rate == RATE and preview.shape[1] == 2
    pipeline = load(tmp_path / "run")
    short, long = (pipeline(count=2, seconds=s, seed=5) for s in (2048 / RATE, 5000 / RATE))
    assert [w.shape for w in short.waves] == [(2, 2048)] * 2 and [w.shape for w in long.waves] == [(2, 5000)] * 2
    assert all(np.isfinite(w).all() and w.std() > 0 for w in (*short.waves, *long.waves))
    np.testing.assert_allclose(pipeline(count=1, seconds=2048 / RATE, seed=5).waves[0], short.waves[0], atol=1e-5)
    long.save(tmp_path / "out")
    sound, rate = soundfile.read(tmp_path / "out" / "0000.wav")
    assert sound.shape == (5000, 2) and rate == RATE
    assert json.loads((tmp_path / "out" / "0000.json").read_text())["sample_rate"] == RATE
    assert pipeline.summary().parameters > 0
    with pytest.raises(ConfigError, match="data.channels alike"):
        mono = config(hall, data={"channels": "mix"}, train={"init": str(tmp_path / "run")})
        run(mono, tmp_path / "other", report=lambda text: None)


def test_level_and_polarity_are_those_of_both_channels_together(hall):
    settings = replace(config(hall, normalize={"enabled": False}), representation=Patches(RATE, 8))
    model = model_of(settings, (), None)
    y = np.random.default_rng(3).uniform(-0.3, 0.3, (6, 2, 256)).astype(np.float32)

    @jax.jit
    def make(y):
        batch = {"wave": y, "label": np.full(6, -1, np.int32)}
        return model.representation.decode(model.task.example(model.representation, batch, jax.random.key(0)).x0)

    made = np.asarray(make(y))
    gain = made / y
    assert (gain.max((1, 2)) - gain.min((1, 2))).max() < 1e-3  # of an item one factor
    np.testing.assert_allclose(np.abs(made).max((1, 2)), 10 ** (-3 / 20), rtol=1e-5)
    assert {-1.0, 1.0} == set(np.sign(gain[:, 0, 0]).tolist())


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"task": {"kind": "vocode"}, "network": {"kind": "wavenet"}, **ONE}, "each channel by itself"),
        ({"method": {"kind": "adversarial"}}, "one channel"),
    ],
)
def test_what_knows_one_channel_alone_says_so(hall, parts, sentence):
    other = from_dict({"data": {"path": str(hall), "channels": "stereo"}, **parts})
    with pytest.raises(ConfigError, match=sentence):
        model_of(other, (), None)


def test_a_loss_of_the_sound_hears_both_channels(hall):
    model = model_of(config(hall), (), None)
    x = np.random.default_rng(4).standard_normal((2, 17, model.representation.channels)).astype(np.float32)
    assert isinstance(model.representation, Representation)
    distance = sound_distance(model, "stft", 1.0, Given())
    assert distance is not None
    assert jax.jit(lambda x, y: distance(x, y, None))(x, x + 0.1).shape == (2,)
