"""The command line: the main road end to end, and one sentence with the right exit code for every mistake."""

import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import soundfile

from jaxdiff.cli.main import _explain, main
from jaxdiff.data.orchestra import write_orchestra
from jaxdiff.inference import load

CONFIG = """
data: {crop: start, seconds: 0.256}
representation: {kind: patches, size: 128}
network: {kind: transformer, width: 16, depth: 1, heads: 2}
normalize: {crops: 16}
train:
  {steps: 3, batch: 4, learning_rate: 0.03, warmup: 0, ema_decay: 0.1, log_every: 1, sample_every: 2, save_every: 0}
sampling: {steps: 2}
"""
VOCODER = """
data: {sample_rate: 4000, seconds: 0.256}
task: {kind: vocode, n_fft: 128, hop_length: 32, n_mels: 16, peak_db: -3}
representation: {kind: compressed_stft, n_fft: 128, hop_length: 32}
network: {kind: convnext, width: 8, depth: 1}
normalize: {enabled: no}
method: {kind: regression}
train: {steps: 2, batch: 2, log_every: 1, sample_every: 0, save_every: 0}
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


@pytest.fixture(scope="module")
def vocoder(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("vocoder")
    (path / "v.yaml").write_text(VOCODER)
    with pytest.raises(SystemExit) as stop:
        main(["train", str(path / "v.yaml"), "--workdir", str(path / "run"), "--data.path", str(folder)])
    assert stop.value.code == 0
    return path / "run"


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


@pytest.mark.slow
def test_another_configuration_in_the_work_directory_is_refused(trained, config, folder, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    base = ["train", config, "--workdir", run, "--data.path", folder]
    code, error = jaxdiff(capsys, *base, "--network.width", 32)
    assert code == 2
    assert "holds a run with network.width = 16, this configuration says 32" in error
    code, error = jaxdiff(capsys, *base, "--train.steps", 4, "--train.learning_rate", 0.01)
    assert (code, "(train.learning_rate: 0.03 -> 0.01); add --accept-changes to go on" in error) == (2, True), error
    resume = ["train", "--workdir", run]  # with the configuration that is there
    assert jaxdiff(capsys, *resume, "--train.steps", 4, "--train.learning_rate", 0.01, "--accept-changes")[0] == 0
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4
    assert jaxdiff(capsys, *resume)[0] == 0
    code, error = jaxdiff(capsys, "train", "--workdir", tmp_path / "new")
    assert (code, "new: holds no run to resume; give a CONFIG.yaml" in error) == (2, True), error
    assert not (tmp_path / "new").exists()


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
        ("--count", 0, "--count: expected at least 1, got 0"),
        ("--seconds", -1, "--seconds: expected above 0, got -1.0"),
        ("--temperature", 0.5, "temperature: method Diffusion has no such option"),
        ("--spacing", "even", "spacing 'even' is unknown; use one of uniform"),
        ("--label", "oboe", "--label oboe: is unknown; use one of bar"),
        ("--sampler", "hern", "sampler: expected one of heun, euler"),
        ("--steps", 0, "--steps: expected at least 1, got 0"),
        ("--guidance", "nan", "--guidance: expected a finite number, got nan"),
        ("--seed", 2**32, "--seed: expected at least 0 and below 4294967296"),
        ("--colour", "red", "colour"),
    ]:
        code, error = jaxdiff(capsys, "generate", trained, "--out", out, option, value)
        assert (code, sentence in error) == (2, True), error
    assert not out.exists()


def test_files_are_vocoded_at_their_own_rate_channels_and_length(vocoder, tmp_path, capsys):
    given = {"stereo": (44_100, 2, 20_001), "mono": (4_000, 1, 1_815)}
    (tmp_path / "in").mkdir()
    for i, (name, (rate, channels, samples)) in enumerate(given.items()):
        y = 0.1 * np.random.default_rng(i).standard_normal((samples, channels))
        soundfile.write(tmp_path / "in" / f"{name}.wav", y, rate, subtype="FLOAT")
    files, out = [tmp_path / "in" / f"{name}.wav" for name in given], tmp_path / "out"
    command = ["vocode", *files, "--model", vocoder, "--out", out, "--seed", 3]
    assert jaxdiff(capsys, *command)[0] == 0
    assert {p.name for p in out.iterdir()} == {f"{n}.{end}" for n in given for end in ("wav", "png", "json")}
    pipeline = load(vocoder)
    expected = [pipeline(file, seed=3).waves[0] for file in files]  # a file is the same whatever stands beside it
    for name, wave, file in zip(given, expected, files, strict=True):
        rate, channels, samples = given[name]
        y, written = soundfile.read(out / f"{name}.wav", always_2d=True)
        assert (written, *y.shape) == (rate, samples, channels)
        loud = max(1, np.abs(wave).max() / 0.999)  # such a sound is scaled as a whole
        np.testing.assert_allclose(y, np.atleast_2d(wave / loud).T, atol=1 / 32768)
        assert np.abs(y).max() > 0
        sidecar = json.loads((out / f"{name}.json").read_text())
        assert (sidecar["source"], sidecar["sample_rate"], sidecar["model"]) == (str(file), rate, str(vocoder))
    before = {p: p.read_bytes() for p in out.iterdir()}
    code, error = jaxdiff(capsys, *command)
    assert (code, "exists; give another --out, or --overwrite" in error) == (2, True)
    assert {p: p.read_bytes() for p in out.iterdir()} == before
    assert jaxdiff(capsys, "vocode", tmp_path / "in", "--model", vocoder, "--out", tmp_path / "folder")[0] == 0
    assert {p.stem for p in (tmp_path / "folder").glob("*.wav")} == set(given)


def test_each_task_has_its_command(trained, vocoder, folder, tmp_path, capsys):
    file, out = next(folder.rglob("*.flac")), tmp_path / "o"
    for code, sentence, command in [
        (2, "generates from noise and a class alone", ["vocode", file, "--model", trained, "--out", out]),
        (2, "this model works on a sound", ["generate", vocoder, "--out", out]),
        (2, "no FILES", ["vocode", "--model", vocoder, "--out", out]),
        (1, "no such file", ["vocode", tmp_path / "gone.wav", "--model", vocoder, "--out", out]),
        (2, "would have the same results", ["vocode", file, file, "--model", vocoder, "--out", out]),
        (2, "method Regression has no such option", ["vocode", file, "--model", vocoder, "--out", out, "--steps", 3]),
        (2, "has no denoiser", ["search-times", vocoder, "--steps", 3]),
    ]:
        got, error = jaxdiff(capsys, *command)
        assert (got, sentence in error) == (code, True), (command, error)
        assert len(error.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.slow
def test_an_exported_file_is_the_run(trained, tmp_path, capsys):
    file, half = tmp_path / "new" / "model.safetensors", tmp_path / "half.safetensors"
    assert jaxdiff(capsys, "export", trained, "--out", file)[0] == 0
    code, error = jaxdiff(capsys, "export", trained, "--out", file)
    assert (code, "exists; give another, or --overwrite" in error) == (2, True)
    assert jaxdiff(capsys, "export", trained, "--out", half, "--half")[0] == 0
    assert half.stat().st_size < 0.7 * file.stat().st_size
    code, error = jaxdiff(capsys, "export", trained, "--out", tmp_path / "model.bin")
    assert (code, "is a .safetensors file" in error) == (2, True)
    for name, model in (("run", trained), ("file", file)):
        command = ["generate", model, "--out", tmp_path / name, "--count", 2, "--seed", 5, "--guidance", 1.5]
        assert jaxdiff(capsys, *command)[0] == 0
    for name in ("0000-bar", "0001-bow"):
        of_run, of_file = (soundfile.read(tmp_path / f / f"{name}.wav")[0] for f in ("run", "file"))
        np.testing.assert_array_equal(of_file, of_run)
        assert np.abs(of_run).max() > 0
    whole, rounded = jax.tree.leaves(load(file).params), jax.tree.leaves(load(half).params)
    for a, b in zip(whole, rounded, strict=True):
        np.testing.assert_array_equal(np.float16(a), b)
        assert b.dtype == a.dtype == np.float32
    steps = [json.loads((tmp_path / n / "0000-bar.json").read_text())["checkpoint"]["step"] for n in ("run", "file")]
    assert steps == [3, 3]
    with pytest.raises(SystemExit) as stop:
        main(["info", str(file)])
    assert stop.value.code == 0
    assert "bar, bow, flute" in capsys.readouterr().out
    (tmp_path / "text.safetensors").write_text("no weights")
    for name, sentence in (("text", "is not a model that jaxdiff export wrote"), ("gone", "no such file of weights")):
        code, error = jaxdiff(capsys, "generate", tmp_path / f"{name}.safetensors", "--out", tmp_path / "o")
        assert (code, sentence in error) == (1, True), error


@pytest.mark.slow
def test_searched_times_are_kept_and_used(trained, tmp_path, capsys):
    command = ["search-times", trained, "--steps", 2, "--sampler", "euler", "--count", 2, "--iterations", 3]
    assert jaxdiff(capsys, *command)[0] == 0
    times = json.loads((trained / "grids" / "euler-2.json").read_text())["times"]
    assert len(times) == 3 and times[0] == 1 and times[2] == 0
    generate = ["generate", trained, "--sampler", "euler", "--steps", 2, "--out"]
    assert jaxdiff(capsys, *generate, tmp_path / "a", "--spacing", "searched")[0] == 0
    expected = load(trained)(sampler="euler", times=times).waves[0]
    made, _ = soundfile.read(tmp_path / "a" / "0000-bar.wav")
    np.testing.assert_allclose(made, np.clip(expected, -1, 1), atol=1 / 32768)
    code, error = jaxdiff(capsys, "generate", trained, "--out", tmp_path / "b", "--steps", 7, "--spacing", "searched")
    assert (code, "no times were searched for 7 heun steps; run jaxdiff search-times" in error) == (2, True), error


@pytest.mark.parametrize(
    ("sentence", "command"),
    [
        ("gone.yaml: cannot be read (no such file); give", ["train", "gone.yaml", "--workdir", "w"]),
        ("train.stps: unknown key; did you mean", ["train", "c.yaml", "--workdir", "w", "--train.stps", "3"]),
        ("--workdir c.yaml: is a file; give a folder", ["train", "c.yaml", "--workdir", "c.yaml"]),
        ("--out c.yaml: is a file; give a folder", ["generate", "run", "--out", "c.yaml"]),
        ("--out c.yaml: is a file; give a folder", ["vocode", "a.wav", "--model", "run", "--out", "c.yaml"]),
        ("--out c.yaml: is a file; give a folder", ["features", "a.wav", "--out", "c.yaml"]),
        ("--out c.yaml: exists; give another", ["export", "run", "--out", "c.yaml"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_needs_no_model_is_said_at_once(sentence, command, tmp_path):
    """In a process of its own: nothing is imported that the mistake can do without."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    begun = time.monotonic()
    run = [sys.executable, "-m", "jaxdiff", *command]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - begun < 20  # 0.3 s, or 2 s with jax, on an idle machine
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert done.stderr.startswith("jaxdiff: error: ") and done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="no usable checkpoint"):
        main(["info", str(tmp_path), "--debug"])


@pytest.mark.slow
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
    assert f"jaxdiff train --workdir {tmp_path / 'w'}\n" in output
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    assert max(int(p.name) for p in (tmp_path / "w" / "checkpoints").iterdir()) >= last


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (MemoryError(), 1, "out of memory; make less at once: a smaller train.batch, data.seconds or --seconds"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 1, "out of memory; make less at once"),
        (RuntimeError("INTERNAL: YNNPACK operation failed: error"), 1, "out of memory; make less at once"),
        (OSError(28, "No space left on device", "out/a.wav"), 1, "out/a.wav: No space left on device"),
        (KeyError("x"), 1, "KeyError: 'x'; run again with --debug for the traceback"),
    ],
)
def test_what_the_system_lacks_is_said_in_one_sentence(error, code, sentence, capsys):
    assert _explain(error) == code
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
