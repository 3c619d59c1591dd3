"""Models elsewhere: one file that notices damage, and a program that runs where there is no jaxdiff."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import config as configuration
from jaxdiff.cli.main import main
from jaxdiff.config import ConfigError, from_dict
from jaxdiff.inference import export_program
from jaxdiff.inference.begin import begin_with
from jaxdiff.inference.load import pipeline_of
from jaxdiff.training import CheckpointError, transfer

ROOT = Path(__file__).parent.parent
SOUND = {
    "data": {"seconds": 0.064},
    "task": {"kind": "instrument"},
    "representation": {"kind": "patches", "size": 32},
    "network": {"kind": "lstm", "width": 8, "depth": 1},
    "normalize": {"enabled": False},
    "method": {"kind": "diffusion"},
    "sampling": {"steps": 2, "sampler": "ancestral"},
}
VOCODE = SOUND | {"task": {"kind": "vocode", "n_fft": 64, "hop_length": 32, "n_mels": 8}}
GENERATE = SOUND | {"task": {"kind": "generate"}}
ENHANCE = SOUND | {"task": {"kind": "enhance", "peak_db": -6},
                   "representation": {"kind": "compressed_stft", "n_fft": 64, "hop_length": 32},
                   "method": {"kind": "regression"}}  # fmt: skip


def fresh(tree, classes=()):
    """A pipeline of weights that nobody trained, none of which is zero."""
    config, rng = from_dict(tree), np.random.default_rng(3)
    shapes = configuration.model(config, classes, None).network.shapes()
    params = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), shapes)
    return pipeline_of(config, classes, params, None, step=5)


@pytest.fixture(scope="module")
def generator():
    return fresh(GENERATE, ("low", "high"))


# --- one file ---


def test_a_file_is_the_model_bit_for_bit_and_damage_is_noticed(generator, tmp_path):
    path = jaxdiff.export(generator, tmp_path / "m.safetensors")
    there = jaxdiff.load(path)
    assert (there.config, there.classes, there.step) == (generator.config, generator.classes, 5)
    for name, leaf in transfer.named(generator.params).items():
        found = np.asarray(transfer.named(there.params)[name])
        assert found.dtype == leaf.dtype and found.tobytes() == np.asarray(leaf).tobytes()
    begins = from_dict(GENERATE | {"train": {"init": str(path)}})
    params, _ = begin_with(begins, generator.classes)
    jax.tree.map(np.testing.assert_array_equal, params, generator.params)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # in the middle of the weights, where the format itself sees nothing
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m.safetensors: is damaged, its weights are not those that were exp"):
        jaxdiff.load(path)
    assert len(list(tmp_path.iterdir())) == 1


# --- a program ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generate", "enhance", "vocode"])
def test_a_program_is_the_pipeline(name, generator, tmp_path):
    pipeline = generator if name == "generate" else fresh({"enhance": ENHANCE, "vocode": VOCODE}[name])
    made = export_program(pipeline, tmp_path / "program.stablehlo", platforms=("cpu", "cuda", "tpu"))
    program = jax.export.deserialize(bytearray(made.path.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    test = np.load(made.vector)
    items = np.concatenate([test["input"], test["input"][:1]]) if name == "generate" else test["input"]
    waves = np.asarray(program.call(np.uint32(9), items))
    if name == "generate":
        expected = np.stack(pipeline(count=3, seed=9, labels=["low", "high", "low"]).waves)
    elif name == "enhance":  # a sound alone, at its own level, is item 0
        expected = np.stack([pipeline(wave, sr=16_000, seed=9).waves[0] for wave in items])
    else:
        expected = pipeline.of_batch({"wave": np.zeros_like(waves), "mel": items}, seed=9)
    assert waves.shape == (len(items), 1024) and np.std(expected) > 0
    np.testing.assert_allclose(waves, expected, atol=1e-4 * np.abs(expected).max())
    assert 0 < made.tolerance < 0.01 * made.peak and float(test["tolerance"]) == np.float32(made.tolerance)
    if name == "generate":  # an item that draws other noise, or of another class, would be seen
        apart = np.abs(program.call(np.uint32(8), items) - waves).max(-1)
        assert (apart > 10 * made.tolerance).all() and np.abs(waves[0] - waves[2]).max() > 10 * made.tolerance


@pytest.mark.slow
def test_a_program_runs_where_only_jax_is(generator, tmp_path, capsys):
    """The snippet of the document, in a process in which jaxdiff, flax and the like cannot be imported."""
    file = jaxdiff.export(generator, tmp_path / "m.safetensors")
    with pytest.raises(SystemExit) as end:
        main(["export", str(file), "--stablehlo", "--out", str(tmp_path / "program.stablehlo"), "--steps", "1",
              "--platforms", "cpu"])  # fmt: skip
    assert end.value.code == 0 and "program(seed, label [batch]) -> wave [batch, 1024]" in capsys.readouterr().out
    snippet = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "transfer.md").read_text(), re.DOTALL | re.M)[-1]
    assert "deserialize" in snippet and "jaxdiff" not in snippet
    blocked = "import sys\nfor name in ('jaxdiff', 'flax', 'optax', 'orbax', 'librosa', 'scipy.signal'):\n"
    blocked += "    sys.modules[name] = None\n"
    code = blocked + snippet + "assert more.shape == (4, 1024) and about['classes'] == ['low', 'high']\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_exported_is_one_sentence(generator, tmp_path, capsys):
    with pytest.raises(ConfigError, match="an exported program is a .stablehlo file"):
        export_program(generator, tmp_path / "m.bin")
    with pytest.raises(ConfigError, match="at most the 0.064 s of the training crop"):
        export_program(generator, tmp_path / "m.stablehlo", seconds=1.0)
    with pytest.raises(ConfigError, match="expected at least 0.002, a frame"):
        export_program(generator, tmp_path / "m.stablehlo", seconds=1e-4)
    with pytest.raises(ConfigError, match=r"task instrument needs 'notes' beside the sound"):
        export_program(fresh(SOUND, ("low", "high")), tmp_path / "m.stablehlo")
    for options, sentence in [
        (["--stablehlo", "--out", "m.safetensors"], "an exported program is a .stablehlo file; give it that extension"),
        (["--out", "m.stablehlo"], "an exported model is a .safetensors file; .* add --stablehlo"),
        (["--out", "m.safetensors", "--seconds", "1"], "--seconds: is for a program; add --stablehlo"),
        (["--out", "m.stablehlo", "--stablehlo", "--half"], "--half: is for weights"),
        (["--out", str(ROOT / "README.md"), "--overwrite"], "an exported model is a .safetensors file"),
    ]:
        with pytest.raises(SystemExit) as end:
            main(["export", "denoise-16k", *options])
        assert end.value.code == 2 and re.search(sentence, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
