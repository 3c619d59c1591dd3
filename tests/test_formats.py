"""Checkpoints for good: runs of older layouts load and sound as they did, exported files come back bit for bit.

`old_runs/` holds two small runs that jaxdiff 0.1 trained (format 1, before formats had numbers) with their weights and
sounds: one of generation, one vocoder of which only what makes sound was kept.
"""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import max_relative

import jaxdiff
from jaxdiff import config as configuration
from jaxdiff.config import ConfigError, from_dict, to_dict
from jaxdiff.features import melspectrogram
from jaxdiff.run import run
from jaxdiff.training import CheckpointError

OLD = Path(__file__).parent / "old_runs"


def flat(params):
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(str(k.key) for k in path): np.asarray(leaf) for path, leaf in paths}


@functools.cache
def old(name):
    """The pipeline of an old run and the sounds that it makes."""
    pipeline = jaxdiff.load(OLD / name)
    return pipeline, sounds(name, pipeline)


def sounds(name, pipeline):
    if name == "generation":
        return np.stack(pipeline(count=2, seed=3).waves)
    return np.stack(pipeline(list(np.load(OLD / "vocoding.npz")["sources"]), sr=16000, seed=3).waves)


@pytest.mark.slow
def test_training_of_an_older_run_is_refused_and_can_begin_with_its_weights(tmp_path):
    shutil.copytree(OLD / "generation", tmp_path / "old")
    source, kinds = np.load(OLD / "vocoding.npz")["sources"], ("flute", "kick")
    for wave, kind in zip(source, kinds, strict=True):
        (tmp_path / "sounds" / kind).mkdir(parents=True)
        jaxdiff.data.write_audio(tmp_path / "sounds" / kind / "a.wav", wave, 16000)
    tree = to_dict(jaxdiff.load(tmp_path / "old").config)
    data = {**tree["data"], "path": str(tmp_path / "sounds")}
    with pytest.raises(CheckpointError, match="older jaxdiff.*--train.init"):
        run(from_dict({**tree, "data": data, "train": {**tree["train"], "steps": 40}}), tmp_path / "old")
    train = {**tree["train"], "init": str(tmp_path / "old"), "learning_rate": 1e-30, "steps": 1, "weight_decay": 0}
    train |= {"batch": 2, "sample_every": 0}
    run(from_dict({**tree, "data": data, "train": train}), tmp_path / "new", report=lambda _: None)
    old, new = (flat(jaxdiff.load(tmp_path / name).params) for name in ("old", "new"))
    assert all(np.allclose(old[key], new[key], rtol=1e-6, atol=1e-12) for key in old)


# What follows is compiled as users' programs are. ------------------------------------------------------------------


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", ["generation", "vocoding"])
def test_a_run_of_format_1_has_the_same_weights_and_the_same_sound(name):
    (pipeline, made), stored = old(name), dict(np.load(OLD / f"{name}.npz"))
    weights, waves = flat(pipeline.params), stored.pop("waves")
    assert set(weights) == set(stored) - {"jax", "sources"}
    for key, leaf in weights.items():
        np.testing.assert_array_equal(leaf, stored[key])
    if max_relative(made, waves) > 1e-5:  # Griffin-Lim makes much of the last bit of another processor's, or version's
        sizes: dict[str, Any] = dict(sr=16000, n_fft=512, hop_length=128, n_mels=20)
        mels = [np.asarray(melspectrogram(jnp.asarray(w), **sizes)) for w in (made, waves)]
        assert np.abs(np.sqrt(mels[0]) - np.sqrt(mels[1])).max() <= 0.05 * np.sqrt(mels[1]).max()


def test_upgrades_lead_from_every_older_format_to_this_one():
    assert set(configuration.UPGRADES) == set(range(1, configuration.FORMAT))
    meta = json.loads((OLD / "vocoding" / "checkpoints" / "30" / "meta" / "metadata").read_text())
    config = from_dict({"format": 1, **meta["config"]})
    assert to_dict(config)["format"] == configuration.FORMAT
    assert from_dict(to_dict(config)) == config
    assert config.task.peak_db is None  # it was used at the sound's own level
    assert config.train.b1 == 0.8
    with pytest.raises(ConfigError, match="knows formats 1 to"):
        from_dict({**to_dict(config), "format": 99})


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", ["generation", "vocoding"])
def test_an_exported_file_is_the_model(name, tmp_path):
    pipeline, made = old(name)
    jaxdiff.export(pipeline, tmp_path / "m.safetensors")
    there = jaxdiff.load(tmp_path / "m.safetensors")
    assert (there.config, there.classes, there.step) == (pipeline.config, pipeline.classes, pipeline.step)
    ours, theirs = flat(pipeline.params), flat(there.params)
    assert all((ours[key] == theirs[key]).all() for key in ours)
    np.testing.assert_array_equal(sounds(name, there), made)
    jaxdiff.export(pipeline, tmp_path / "half.safetensors", half=True)
    half = flat(jaxdiff.load(tmp_path / "half.safetensors").params)
    assert all((half[key] == ours[key].astype(np.float16)).all() for key in ours)
    assert (tmp_path / "half.safetensors").stat().st_size < (tmp_path / "m.safetensors").stat().st_size


def test_files_that_are_no_models_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="no such file of weights"):
        jaxdiff.load(tmp_path / "gone.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(CheckpointError, match="is not a model that jaxdiff export wrote"):
        jaxdiff.load(tmp_path / "text.safetensors")
    with pytest.raises(ConfigError, match="give it that extension"):
        jaxdiff.export(jaxdiff.load(OLD / "vocoding"), tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        jaxdiff.load("no-model-of-that-name")
