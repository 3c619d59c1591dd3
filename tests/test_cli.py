"""The command line: the main road end to end, and one sentence with the right exit code for every mistake."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from jaxdiff.cli import main
from jaxdiff.data.orchestra import write_orchestra

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = """
data: {crop: start, seconds: 0.256}
representation: {kind: compressed_stft, n_fft: 256, hop_length: 128}
network: {kind: transformer, width: 16, depth: 1, heads: 2}
normalize: {crops: 16}
train: {steps: 3, batch: 4, log_every: 1, sample_every: 2, save_every: 0}
sampling: {steps: 2}
"""


def jaxdiff(capsys, *arguments):
    """Exit code and the text on standard error of a command run in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code, capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_orchestra(tmp_path_factory.mktemp("orchestra"), count=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def trained(folder, config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.raises(SystemExit) as stop:
        main(["train", str(config), "--workdir", str(workdir), "--data.path", str(folder)])
    assert stop.value.code == 0
    return workdir


def test_training_leaves_log_samples_and_configuration(trained):
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3]
    assert len(list((trained / "samples" / "2").glob("*.wav"))) == 8
    assert (trained / "samples" / "2" / "sheet.png").stat().st_size > 1000
    assert "width: 16" in (trained / "config.yaml").read_text()


def test_generate_writes_sound_picture_and_sidecar_and_never_overwrites(trained, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["generate", trained, "--out", out, "--count", 2, "--seconds", 0.3, "--label", "hat", "--seed", 7]
    assert jaxdiff(capsys, *command)[0] == 0
    names = {"0000-hat.wav", "0000-hat.png", "0000-hat.json", "0001-hat.wav", "0001-hat.png", "0001-hat.json"}
    assert {p.name for p in out.iterdir()} == names | {"sheet.png"}
    y, rate = soundfile.read(out / "0001-hat.wav")
    assert (len(y), rate) == (4800, 16000)
    sidecar = json.loads((out / "0001-hat.json").read_text())
    assert (sidecar["seed"], sidecar["item"], sidecar["label"], sidecar["steps"]) == (7, 1, "hat", 2)
    assert len(sidecar["checkpoint"]["sha256"]) == 64
    before = {p: p.read_bytes() for p in out.iterdir()}
    code, error = jaxdiff(capsys, *command)
    assert code == 2
    assert "exists; give another --out, or --overwrite" in error
    assert {p: p.read_bytes() for p in out.iterdir()} == before
    assert jaxdiff(capsys, *command, "--overwrite")[0] == 0
    np.testing.assert_array_equal(soundfile.read(out / "0001-hat.wav")[0], y)


def test_info_shows_the_model(trained, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["info", str(trained)])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for part in (
        "transformer",
        "modulation",
        "receptive field",
        "GFLOP",
        "bar, bow, flute",
        "step 3 of 3",
        "125 frames/s",
    ):
        assert part in text


def test_another_configuration_in_the_work_directory_is_refused(trained, config, folder, capsys):
    base = ["train", config, "--workdir", trained, "--data.path", folder]
    code, error = jaxdiff(capsys, *base, "--network.width", 32)
    assert code == 2
    assert "holds a run with network.width = 16, this configuration says 32" in error
    assert jaxdiff(capsys, *base, "--train.steps", 4)[0] == 0
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4


def mistakes(tmp_path, config, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.wav").write_text("no sound")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    work = ["--workdir", tmp_path / "w"]
    train = ["train", config, *work]
    return [
        (1, "holds no sound files", [*train, "--data.path", tmp_path / "empty"]),
        (1, "none of its 1 sound files can be used", [*train, "--data.path", tmp_path / "texts"]),
        (1, "no such folder of sounds", [*train, "--data.path", tmp_path / "gone"]),
        (2, "train.stps: unknown key; did you mean train.steps?", [*train, "--train.stps", 3]),
        (2, "train.steps: expected int, got 'many'", [*train, "--train.steps=many"]),
        (2, "cannot be read", ["train", tmp_path / "gone.yaml", *work]),
        (2, "does not divide; use data.seconds", [*train, "--data.seconds", 0.2501]),
        (2, "needs a value", [*train, "--train.steps"]),
        (2, "holds other files and no run", ["train", config, "--workdir", tmp_path / "other"]),
        (1, "no usable checkpoint", ["generate", tmp_path / "w", "--out", tmp_path / "o"]),
        (2, "configuration keys can be given to train only", ["info", tmp_path, "--train.steps", 3]),
    ]


def test_mistakes_get_one_sentence_an_exit_code_and_lose_nothing(tmp_path, config, folder, capsys):
    cases = mistakes(tmp_path, config, folder)
    before = sorted(tmp_path.rglob("*"))
    for expected, sentence, command in cases:
        code, error = jaxdiff(capsys, *command)
        assert (code, sentence in error) == (expected, True), (command, error)
        assert len(error.strip().splitlines()) == 1
        assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


def test_unknown_label_sampler_and_option_are_usage_errors(trained, tmp_path, capsys):
    out = tmp_path / "o"
    for option, value, sentence in [
        ("--label", "oboe", "label 'oboe' is unknown; use one of bar"),
        ("--sampler", "hern", "expected one of euler"),
        ("--steps", 0, "must be at least 1"),
        ("--colour", "red", "colour"),
    ]:
        code, error = jaxdiff(capsys, "generate", trained, "--out", out, option, value)
        assert (code, sentence in error) == (2, True), error
    assert not out.exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="no usable checkpoint"):
        main(["info", str(tmp_path), "--debug"])


def test_sigterm_saves_and_prints_the_command_that_resumes(folder, config, tmp_path):
    command = [sys.executable, "-m", "jaxdiff", "train", config, "--workdir", tmp_path / "w", "--data.path", folder]
    command += ["--train.steps", "100000", "--train.sample_every", "0"]
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    log = tmp_path / "w" / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.stat().st_size > 100):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "to go on:" in output
    assert f"jaxdiff train {config} --workdir {tmp_path / 'w'} --data.path {folder}" in output
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    assert max(int(p.name) for p in (tmp_path / "w" / "checkpoints").iterdir()) >= last
