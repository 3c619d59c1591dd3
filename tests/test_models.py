"""The models that ship, their sums and cards, and the recipes that make them again."""

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

import jaxdiff
from jaxdiff import shipped
from jaxdiff.cli.main import main
from jaxdiff.config import ConfigError, from_dict, model, to_yaml
from jaxdiff.inference.load import classes_of, pipeline_of
from jaxdiff.shipped import CardError
from jaxdiff.training import CheckpointError

ROOT = Path(__file__).parent.parent

CONFIG = {
    "data": {"sample_rate": 4000, "seconds": 0.256},
    "task": {"kind": "vocode", "n_fft": 128, "hop_length": 32, "n_mels": 16},
    "representation": {"kind": "compressed_stft", "n_fft": 128, "hop_length": 32},
    "network": {"kind": "convnext", "width": 8, "depth": 1},
    "method": {"kind": "regression"},
    "normalize": {"enabled": False},
}
CARD = """---
title: Speech from its mel spectrogram
task: vocode
summary: Makes speech of 4 kHz from 16 mel bands.
licence: Apache-2.0
data:
  - {name: festvox-ru, licence: BSD-like}
  - {name: tuxpaint-stamps-default, licence: GPL-2}
figures:
  - PESQ 3.61 [3.52, 3.70] on 40 sentences of unseen voices
---
# tiny-4k

## Use
It is copied as it is.

## Training
One core.

## Figures
None.

## Limits
All of them.
"""


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe, ship = script("recipe"), script("ship")


@pytest.fixture(scope="module")
def pipeline():
    config = from_dict(CONFIG)
    params = model(config, (), None).network.init(jax.random.key(0))
    return pipeline_of(config, (), params, None, step=7)


@pytest.fixture
def exported(pipeline, tmp_path):
    return jaxdiff.export(pipeline, tmp_path / "m.safetensors")


@pytest.fixture
def folder(exported, tmp_path, monkeypatch):
    """A folder of shipped models with one in it, `tiny-4k`."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "weights")
    ship.ship(exported, "tiny-4k", half=True)
    (tmp_path / "weights" / "tiny-4k" / "card.md").write_text(CARD)
    return tmp_path / "weights"


def command(capsys, *arguments):
    """Exit code, output and errors of a command run in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code, *capsys.readouterr()


# What ships ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped.names())
def test_what_ships_is_whole(name):
    about, path = shipped.describe(name), shipped.FOLDER / name / shipped.WEIGHTS
    assert shipped.damage(name) is None
    assert about.size <= shipped.LARGEST and about.parameters > 0
    stored = yaml.safe_load((path.parent / shipped.CONFIG).read_text())
    assert stored == json.loads(_metadata(path))["config"]


def test_every_folder_and_sum_is_of_a_model_that_ships():
    folders = {path.name for path in shipped.FOLDER.iterdir() if path.is_dir()}
    assert folders == set(shipped.names()) == set(shipped.sums())


def _metadata(path):
    header = path.read_bytes()
    return json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"][shipped.HEADER]


# Loading by name ----------------------------------------------------------------------------------------------------


def test_a_shipped_model_is_loaded_by_its_name(folder, pipeline):
    found = jaxdiff.load("tiny-4k")
    for ours, theirs in zip(jax.tree.leaves(pipeline.params), jax.tree.leaves(found.params), strict=True):
        assert theirs.dtype == ours.dtype == np.float32
        np.testing.assert_array_equal(theirs, np.asarray(ours).astype(np.float16))
    assert found.config == pipeline.config and classes_of("tiny-4k") == ()
    line = (folder / "SHA256SUMS").read_text()
    assert line == f"{found.fingerprint}  tiny-4k/weights.safetensors\n"
    assert found.fingerprint == hashlib.sha256((folder / "tiny-4k" / "weights.safetensors").read_bytes()).hexdigest()
    assert (folder / "tiny-4k" / "config.yaml").read_text() == to_yaml(pipeline.config)


def test_a_damaged_file_is_found_and_no_sum_is_no_pass(folder):
    path = folder / "tiny-4k" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # a weight that is a good number still
    path.write_bytes(content)
    for use in (jaxdiff.load, classes_of):
        with pytest.raises(CheckpointError, match="is damaged, its sha256 should be [0-9a-f]{64}, got [0-9a-f]{64};"):
            use("tiny-4k")
    for text in ("", f"{hashlib.sha256(content).hexdigest()} tiny-4k/weights.safetensors\n"):
        (folder / "SHA256SUMS").write_text(text)
        with pytest.raises(CheckpointError, match="SHA256SUMS beside it has no line for this file"):
            jaxdiff.load("tiny-4k")


def test_an_unknown_name_is_told_the_names_there_are(folder, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"tiny4k: no usable .* models are tiny-4k; did you mean tiny-4k\?"):
        jaxdiff.load("tiny4k")
    with pytest.raises(CheckpointError, match=r"no usable checkpoint .*the shipped models are tiny-4k\)$"):
        jaxdiff.load("voice")
    with pytest.raises(CheckpointError, match="no training has saved anything"):
        jaxdiff.load(tmp_path / "tiny-4k")  # a path is no name
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "none")
    with pytest.raises(CheckpointError, match="denoise-16k: no usable checkpoint .*no models ship with this version"):
        jaxdiff.load("denoise-16k")


def test_a_run_of_the_same_name_comes_first_and_another_folder_does_not(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny-4k").mkdir()
    assert jaxdiff.load("tiny-4k").step == 7
    Path("tiny-4k/checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="tiny-4k/checkpoints: no usable checkpoint"):
        jaxdiff.load("tiny-4k")


# Shipping -----------------------------------------------------------------------------------------------------------


def test_shipping_keeps_the_sums_of_others_and_a_card_that_is_written(folder, exported):
    first, before = shipped.sums()["tiny-4k"], (folder / "tiny-4k" / "weights.safetensors").stat().st_size
    ship.ship(exported, "another")
    assert list(shipped.sums()) == ["another", "tiny-4k"] and shipped.sums()["tiny-4k"] == first
    with pytest.raises(CardError, match=r"card.md: line 2 says FILL IN; write there"):
        shipped.describe("another")
    ship.ship(exported, "tiny-4k")
    assert (folder / "tiny-4k" / "weights.safetensors").stat().st_size > before
    assert shipped.sums()["tiny-4k"] != first and shipped.damage("tiny-4k") is None
    assert (folder / "tiny-4k" / "card.md").read_text() == CARD


def test_what_is_too_large_or_has_no_name_does_not_ship(folder, exported, monkeypatch):
    monkeypatch.setattr(shipped, "LARGEST", 1000)
    with pytest.raises(ValueError, match="MiB of weights, at most .* MiB ship; use --half"):
        ship.ship(exported, "tiny-4k")
    assert shipped.damage("tiny-4k") is None
    for name in ("", "..", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="is no name for a shipped model"):
            ship.ship(exported, name)


def test_weights_beyond_float16_are_not_halved(pipeline, tmp_path):
    params = jax.tree.map(lambda leaf: leaf + 1e5, pipeline.params)
    large = pipeline_of(pipeline.config, (), params, None, step=1)
    with pytest.raises(ConfigError, match="holds numbers beyond float16's 65504; export without half"):
        jaxdiff.export(large, tmp_path / "m.safetensors", half=True)
    assert jaxdiff.export(large, tmp_path / "m.safetensors").is_file()


# Cards --------------------------------------------------------------------------------------------------------------


def test_models_are_listed_and_a_card_is_shown(folder, pipeline, capsys):
    code, out, err = command(capsys, "models")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(pipeline.params))
    size = (folder / "tiny-4k" / "weights.safetensors").stat().st_size
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["tiny-4k", "vocode", f"{parameters:,}", f"{size / 2**20:.2f}", "MiB", "4000", "Hz", "Apache-2.0"] in rows
    assert "Makes speech of 4 kHz from 16 mel bands." in out and "PESQ 3.61 [3.52, 3.70]" in out
    assert command(capsys, "models", "tiny-4k") == (0, CARD, "")
    code, _, err = command(capsys, "models", "tiny")
    assert code == 2 and "tiny: is not the name of a shipped model" in err and "did you mean tiny-4k?" in err


def test_a_model_with_a_bad_card_is_reported_and_the_others_are_listed(folder, exported, capsys):
    ship.ship(exported, "another")
    code, out, err = command(capsys, "models")
    assert code == 1 and "tiny-4k" in out and "another/card.md: line 2 says FILL IN" in err
    assert command(capsys, "models", "another")[0] == 1


def test_without_shipped_models_the_list_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    assert command(capsys, "models") == (
        0,
        "no models ship with this version of jaxdiff; jaxdiff train makes one\n",
        "",
    )


def test_listing_loads_no_jax():
    code = (
        "import sys\nfrom jaxdiff.cli.main import main\n"
        "try: main(['models'])\nexcept SystemExit as stop: print(stop.code, 'jax' in sys.modules)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1] == "0 False"


BAD = {
    "should begin with YAML between two lines of ---": ("---\ntitle", "title"),
    "should have the keys title, task, summary, licence, data, figures, got title, task, summary, data": (
        "licence: Apache-2.0\n",
        "",
    ),
    "the key task stands twice": ("task: vocode", "task: vocode\ntask: vocode"),
    "data: should have the keys name, licence, got name": (", licence: GPL-2", ""),
    "figures should be a list of at least one entry, got ''": ("  - PESQ 3.61 [3.52, 3.70] on 40", "#"),
    "summary: should be one line of text, got": ("Makes speech", "|\n  Makes\n  speech"),
    "title: should be one line of text, got {'a': '1'}": ("Speech from its mel spectrogram", "{a: 1}"),
    "should have the sections Use, Training, Figures, Limits, got Use, Training, Figures": ("## Limits\n", ""),
    "cannot be read as YAML": ("title: ", "title: ["),
    "task should be vocode, as in the weights, got enhance": ("task: vocode", "task: enhance"),
}


@pytest.mark.parametrize("sentence", BAD)
def test_a_card_is_read_strictly(sentence, folder):
    path, (old, new) = folder / "tiny-4k" / "card.md", BAD[sentence]
    assert CARD.count(old) == 1
    path.write_text(CARD.replace(old, new))
    with pytest.raises(CardError) as error:
        shipped.describe("tiny-4k")
    assert str(error.value).startswith(str(path)) and sentence in str(error.value)


def test_a_card_runs_nothing(folder):
    path = folder / "tiny-4k" / "card.md"
    path.write_text(CARD.replace("title: Speech", "title: !!python/object/apply:os.getcwd Speech"))
    assert shipped.read_card(path).title == "Speech from its mel spectrogram"


def test_no_card_and_no_weights_are_one_sentence(folder):
    (folder / "tiny-4k" / "weights.safetensors").write_bytes(b"text")
    with pytest.raises(CardError, match="is not a model that jaxdiff export wrote"):
        shipped.describe("tiny-4k")
    (folder / "tiny-4k" / "card.md").unlink()
    with pytest.raises(CardError, match="a shipped model needs a card"):
        shipped.describe("tiny-4k")


def test_the_template_is_a_card_once_it_is_filled_in(tmp_path):
    text = shipped.TEMPLATE.read_text()
    (tmp_path / "card.md").write_text(text.replace("FILL IN", "said:"))
    with pytest.raises(CardError, match="cannot be read as YAML"):  # a colon in plain YAML is none
        shipped.read_card(tmp_path / "card.md")
    (tmp_path / "card.md").write_text(text.replace("FILL IN", "said"))
    assert shipped.read_card(tmp_path / "card.md").title == "said what the model makes, in a few words"


# Recipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_is_a_recipe(path, capsys):
    assert recipe.main([path.stem, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"train   jaxdiff train configs/{path.name} --workdir runs/") for line in lines)


def test_commands_are_read_from_the_header_alone():
    text = (
        "# A model.\n#   python benchmarks/fetch_it.py 'data/a b'\n#   XLA_FLAGS=a \\\n#   jaxdiff train a variant\n"
        "#   jaxdiff train configs/a.yaml \\\n#     --workdir runs/a\n#   4 steps of jaxdiff\n#  jaxdiff info runs/a\n"
        "#   jaxdiff export runs/a --out a.safetensors\n#   python benchmarks/ship.py runs/a a-16k\n"
        "#   jaxdiff generate runs/a --out out\n\ndata: {}\n#   jaxdiff info runs/a\n"
    )
    found = recipe.steps(text)
    assert [step.kind for step in found] == ["fetch", "train", "export", "export", "score"]
    assert found[0].words == ("python", "benchmarks/fetch_it.py", "data/a b")
    assert found[1].words == ("jaxdiff", "train", "configs/a.yaml", "--workdir", "runs/a")
    python = [sys.executable]
    assert found[0].command() == [*python, str(recipe.ROOT / "benchmarks/fetch_it.py"), "data/a b"]
    config = str(recipe.ROOT / "configs/a.yaml")
    assert found[1].command() == [*python, "-m", "jaxdiff", "train", config, "--workdir", "runs/a"]
    with pytest.raises(recipe.RecipeError, match="cannot be read as a command"):
        recipe.steps("#   python 'open")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of its own with one recipe whose steps append to a file `done`; the second fails on demand."""
    monkeypatch.setattr(recipe, "ROOT", tmp_path / "repository")
    for name in ("configs", "benchmarks"):
        (tmp_path / "repository" / name).mkdir(parents=True)
    code = "import os, sys\nopen('done', 'a').write(sys.argv[1])\nsys.exit(7 if os.path.exists(sys.argv[1]) else 0)\n"
    for name in ("fetch_it", "ship", "judge"):
        (tmp_path / "repository" / "benchmarks" / f"{name}.py").write_text(code)
    (tmp_path / "repository" / "configs" / "toy.yaml").write_text(
        "# Toy.\n#   python benchmarks/fetch_it.py a\n#   python benchmarks/ship.py b FOLDER\n"
        "#   python benchmarks/judge.py c\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    return work


def test_a_recipe_goes_on_where_it_failed(repository, capsys):
    call, done = ["toy", "--workdir", str(repository), "--set", "FOLDER=x"], repository / "done"
    (repository / "b").touch()
    assert recipe.main(call) == 7 and done.read_text() == "ab"
    said = capsys.readouterr().err
    assert said.startswith("recipe: step 2 of 3, export, ended with exit code 7") and len(said.splitlines()) == 1
    (repository / "b").unlink()
    assert recipe.main(call) == 0 and done.read_text() == "abbc"
    assert "step 1 of 3, fetch: done before in 0 s: python benchmarks/fetch_it.py a" in capsys.readouterr().out
    assert recipe.main(call) == 0 and done.read_text() == "abbc"
    assert recipe.main([*call, "--only", "export"]) == 0 and done.read_text() == "abbcb"
    assert recipe.main(call) == 0 and done.read_text() == "abbcbc"  # what followed it was out of date


def test_mistakes_of_a_recipe_are_said_before_any_step(repository, capsys):
    def mistake(*arguments):
        assert recipe.main([*arguments, "--workdir", str(repository)]) == 2
        return capsys.readouterr().err

    assert "toys: is no configuration in configs; did you mean toy?" in mistake("toys")
    assert "a command needs FOLDER; give it as --set FOLDER=..." in mistake("toy")
    assert "--set FILES: no command of configs/toy.yaml has this word" in mistake("toy", "--set", "FILES=x")
    assert "--set takes WORD=VALUE" in mistake("toy", "--set", "FOLDER")
    assert "--only train: toy has no such step" in mistake("toy", "--only", "train")
    assert not (repository / "done").exists()
    (recipe.ROOT / "benchmarks" / "judge.py").unlink()
    assert "benchmarks/judge.py is not in this repository" in mistake("toy")
    (recipe.ROOT / "configs" / "toy.yaml").write_text("data: {}\n")
    assert "its header has no line of" in mistake("toy")


def test_a_signal_lets_the_command_save_and_ends_the_recipe_with_its_code(repository):
    (recipe.ROOT / "benchmarks" / "judge.py").write_text(
        "import signal, sys, time\n"
        "def stop(*_):\n    open('saved', 'w').write('all')\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\nopen('started', 'w').close()\ntime.sleep(60)\n"
    )
    starter = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import recipe; from pathlib import Path; "
    arguments = ["toy", "--only", "score", "--workdir", str(repository)]
    code = f"{starter}recipe.ROOT = Path({str(recipe.ROOT)!r}); sys.exit(recipe.main({arguments}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    for _ in range(300):
        if (repository / "started").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143 and (repository / "saved").read_text() == "all"
    assert "step 3 of 3, score, ended with exit code 143" in said
