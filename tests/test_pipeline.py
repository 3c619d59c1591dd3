"""Generation: one program, and an item that does not depend on how many are made with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import ConfigError, from_dict
from jaxdiff.data import write_audio
from jaxdiff.features import Normalization
from jaxdiff.pipeline import Pipeline, build_model, init_params

pytestmark = pytest.mark.usefixtures("quick_compilation")

TREE = {
    "data": {"seconds": 0.064},
    "representation": {"n_fft": 64, "hop_length": 32},
    "network": {"kind": "transformer", "width": 16, "depth": 2, "heads": 2},
    "sampling": {"steps": 3, "sampler": "ancestral"},
}


@pytest.fixture(scope="module")
def pipeline():
    config = from_dict(TREE)
    features = build_model(config, 3, None).features
    params = init_params(config, features, 3, jax.random.key(1))
    leaves, tree = jax.tree.flatten(params)  # the zero output layer of a fresh network would hide every mistake
    keys = jax.random.split(jax.random.key(2), len(leaves))
    params = tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])
    normalization = Normalization(jnp.zeros(features), 0.1 * jnp.ones(features))
    return Pipeline(config, ("a", "b", "c"), params, normalization, step=0, fingerprint="")


def test_an_item_is_the_same_in_any_batch(pipeline):
    many = pipeline.generate(count=20, seed=4)
    for count in (1, 3, 17):
        np.testing.assert_allclose(pipeline.generate(count=count, seed=4), many[:count], atol=1e-5 * np.abs(many).max())
    assert np.abs(many[0] - many[3]).max() > 0.1 * np.abs(many).max()
    assert np.abs(pipeline.generate(count=1, seed=5) - many[:1]).max() > 0.1 * np.abs(many).max()


def test_three_generations_trace_once(pipeline, monkeypatch):
    fresh = Pipeline(pipeline.config, pipeline.classes, pipeline.params, None, step=0, fingerprint="")
    traces, encode = [], fresh.model.representation.encode
    counted = fresh.model.representation._replace(encode=lambda x: traces.append(0) or encode(x))
    fresh.model = fresh.model._replace(representation=counted)
    for seed in range(3):
        fresh.generate(count=2, seed=seed)
    assert len(traces) == 1


def test_labels_and_lengths(pipeline):
    by_turn = pipeline.generate(count=4, seed=0)
    second = pipeline.generate(count=2, seed=0, label="b")
    np.testing.assert_allclose(by_turn[1], second[1], atol=1e-5 * np.abs(second).max())
    assert np.abs(by_turn[0] - second[0]).max() > 1e-3 * np.abs(second).max()
    assert pipeline.generate(seconds=0.1).shape == (1, 1600)
    assert pipeline.generate(seconds=0.0301).shape == (1, 482)


def test_guidance_moves_the_sound_and_one_is_off(pipeline):
    plain = pipeline.generate(guidance=1.0)
    np.testing.assert_array_equal(plain, pipeline.generate())
    assert np.abs(pipeline.generate(guidance=3.0) - plain).max() > 1e-3 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label": "d"}, "label 'd' is unknown; use one of a, b, c"),
        ({"count": 0}, "must be at least 1"),
        ({"seconds": -1.0}, "in 0 to 600"),
        ({"steps": 0}, "must be at least 1"),
        ({"sampler": "hern"}, "sampler: expected one of"),
        ({"source": "x.wav"}, "for vocoders"),
    ],
)
def test_impossible_requests_get_one_sentence(pipeline, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        pipeline.generate(**options)


def test_a_vocoder_is_conditioned_on_files_in_turn(tmp_path):
    task = {"kind": "vocoding", "n_fft": 256, "hop_length": 32, "n_mels": 20}
    config = from_dict({**TREE, "task": task, "data": {"path": str(tmp_path), "seconds": 0.064}})
    files = [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    for number, path in enumerate(files):
        write_audio(path, np.full(1000, 0.1 * number, np.float32), 16000)
    params = init_params(config, build_model(config, 0, None).features, 0, jax.random.key(1))
    vocoder = Pipeline(config, (), params, None, step=0, fingerprint="")
    assert vocoder.sources(None, 5) == files + files[:2]
    assert vocoder.sources(files[1], 2) == [files[1]] * 2
    waves = vocoder.items(0, np.array([4, 2]), 1200)[1]["wave"]
    np.testing.assert_allclose(waves[:, [0, 999, 1000]], [[0.1, 0.1, 0], [0.2, 0.2, 0]], atol=1e-4)
