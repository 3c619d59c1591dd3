"""A training is watched by its log, its history, TensorBoard and `jaxdiff report`; each is read back independently."""

import base64
import fcntl
import html.parser
import json
import shutil
import struct
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
import trainer

from jaxdiff.cli.main import main
from jaxdiff.config import ConfigError, from_dict
from jaxdiff.diffusion import init_histogram
from jaxdiff.methods import Diffusion
from jaxdiff.report import read_run, report_page
from jaxdiff.report.curves import COLUMNS, smooth, thinned
from jaxdiff.run import run
from jaxdiff.training import TrainingError, init_state, loop, make_validate
from jaxdiff.training.tensorboard import Board

HOSTILE = "<script>alert('x')</script>"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tree(folder, **train) -> Any:
    return {
        "data": {"path": str(folder / "sounds"), "seconds": 0.256, "sample_rate": 8000},
        "representation": {"kind": "patches", "size": 32},
        "normalize": {"enabled": False},
        "network": {"kind": "lstm", "width": 8, "depth": 1},
        "sampling": {"steps": 1},
        "train": {"batch": 2, "log_every": 1, "save_every": 0, "sample_every": 2, "tensorboard": True, **train},
    }


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Three steps, and two more of a second start."""
    folder = tmp_path_factory.mktemp("watched")
    for name in ("sounds", "others"):
        (folder / name).mkdir()
        for i in range(4):
            y = 0.3 * np.random.default_rng(i).standard_normal(4000)
            soundfile.write(folder / name / f"{i}.wav", y, 8000)
    options = dict(validation=str(folder / "others"), validate_every=1)
    for steps in (3, 5):
        assert run(from_dict(tree(folder, steps=steps, **options)), folder / "run", report=lambda text: None) is None
    return folder


# Norms and history --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_norms_of_blocks_are_those_of_parameters_and_gradients(tmp_path):
    """A step of plain gradient descent with rate 1 moves the parameters by their gradient."""
    state = trainer.train(tmp_path, steps=1, optimizer=optax.sgd(1.0))
    before, (row,) = trainer.model().network.init(jax.random.key(0)), lines(tmp_path / "log.jsonl")
    assert list(row["parameter_norms"]) == list(row["gradient_norms"]) == ["a", "b"]
    for name in "ab":
        assert row["parameter_norms"][name] == pytest.approx(np.linalg.norm(state.params[name]), rel=1e-3)
        gradient = np.linalg.norm(before[name] - state.params[name])
        assert row["gradient_norms"][name] == pytest.approx(gradient, rel=1e-3)
    assert row["gradient_norm"] == pytest.approx(np.hypot(*row["gradient_norms"].values()), rel=1e-3)


def test_norms_are_logged_in_some_rows_of_a_long_training(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxdiff.training.loop"], "NORMS", 3)
    state = init_state({"w": jnp.float32(2)}, {}, (), jax.random.key(0))
    step = lambda state, batch: (state._replace(step=state.step + 1), {"loss": batch})  # noqa: E731
    loop(step, state, iter(np.ones(8, np.float32)), lambda state: None, steps=8, log_path=tmp_path / "l", log_every=1)
    found = {row["step"]: row.get("parameter_norms") for row in lines(tmp_path / "l")}
    assert found == {k: {"w": 2.0} if k in (3, 6) else None for k in range(1, 9)}


def test_starts_and_ends_are_noted(watched, tmp_path):
    history = lines(watched / "run" / "history.jsonl")
    assert [(row["event"], row["step"]) for row in history] == [("start", 0), ("end", 3), ("start", 3), ("end", 5)]
    assert history[2]["devices"] == f"{jax.device_count()} x cpu" and history[2]["jax"] == jax.__version__
    assert history[1]["how"] == "finished" and history[2]["steps"] == 5 and history[0]["parameters"] > 100
    (tmp_path / "history.jsonl").write_text('{"event": "start", "ti')  # a process was killed meanwhile
    broken = (dict(wave=np.full((16, trainer.CROP), np.nan, np.float32)) for _ in range(3))
    with pytest.warns(UserWarning, match="changed nothing"), pytest.raises(TrainingError):
        trainer.train(tmp_path, steps=2, batches=broken)
    _, start, end = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(start)["event"] == "start" and json.loads(end)["how"].startswith("TrainingError: the loss is nan")


# Validation ---------------------------------------------------------------------------------------------------------


def test_sounds_that_are_trained_on_are_no_validation(watched, tmp_path):
    (tmp_path / "both").symlink_to(watched / "sounds")
    settings = tree(watched, steps=1, validation=str(watched / "sounds" / ".." / "sounds"))
    with pytest.raises(ConfigError, match=r"4 of its 4 recordings are trained on \(0.wav, 1.wav, 2.wav, 3.wav\)"):
        run(from_dict(settings), tmp_path / "run", report=lambda text: None)


def test_what_is_held_out_is_validated_and_never_trained_on(watched, tmp_path):
    """The recording that is held out has no finite sample: each step has a finite loss, and no validation has."""
    shutil.copytree(watched / "sounds", tmp_path / "sounds")
    settings = tree(tmp_path, steps=4, validate_every=2, tensorboard=False, sample_every=0)
    settings["data"]["held_out"] = 0.25
    corpus, _ = from_dict(settings).data.open()
    assert corpus.held_out is not None
    (spoiled,) = corpus.held_out.recordings
    soundfile.write(spoiled.path, np.full(4000, 1e30), 8000, subtype="FLOAT")  # its square is beyond float32
    told = []
    with pytest.warns(UserWarning, match="peaks at 1e"):
        run(from_dict(settings), tmp_path / "run", report=told.append)
    assert any("3 recordings" in line and "; 1 more are held out" in line for line in told)
    rows = lines(tmp_path / "run" / "log.jsonl")
    assert [row["step"] for row in rows if "validation" in row] == [2, 4]
    assert all(np.isfinite(row["loss"]) and not row["skipped"] for row in rows if "loss" in row)
    assert not any(np.isfinite(row["validation"] or np.nan) for row in rows if "validation" in row)
    settings["train"]["validation"] = str(watched / "others")
    with pytest.raises(ConfigError, match="both name sounds for validation"):
        run(from_dict(settings), tmp_path / "both", report=lambda text: None)


@pytest.mark.slow
def test_validation_times_do_not_follow_the_losses_of_training():
    method, model = Diffusion(times="importance"), trainer.model()
    params = model.network.init(jax.random.key(0))
    seen = init_histogram()
    uneven = seen._replace(mass=jnp.ones_like(seen.mass), square=jnp.linspace(0, 9, len(seen.mass)) ** 4)
    batch = {**next(trainer.batches(0)), "label": np.full(16, -1, np.int32)}
    losses = {}
    for name, judge in (("validation", method.judge()), ("training", method)):
        validate = make_validate(judge.make_step(model, optax.sgd(0.0), 1))
        states = [init_state(params, params, (optax.sgd(0.0).init(params)), jax.random.key(0), extra=e)
                  for e in (seen, uneven)]  # fmt: skip
        losses[name] = [float(validate(state, batch, 0)) for state in states]
    assert losses["validation"][0] == losses["validation"][1]
    assert losses["training"][0] != losses["training"][1]
    assert Diffusion().judge() == Diffusion()


# TensorBoard --------------------------------------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    """The checksum of event files by its definition: polynomial 0x1EDC6F41, bits reversed; masked as TFRecord does."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def fields(message: bytes) -> dict[int, list[Any]]:
    """The fields of a protobuf message by number: integers, 4 or 8 bytes, or the bytes of what it holds."""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    at, found = 0, {}
    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}[kind] if kind != 2 else varint()
            value, at = message[at : at + size], at + size
        found.setdefault(number, []).append(value)
    return found


def events(path) -> list[dict[int, list[Any]]]:
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        body = data[at + 12 : at + 12 + size]
        assert struct.unpack_from("<I", data, at + 8) == (crc32c(data[at : at + 8]),)
        if size < 2000:
            assert struct.unpack_from("<I", data, at + 12 + size) == (crc32c(body),)
        found.append(fields(body))
        at += 16 + size
    return found


def test_tensorboard_gets_numbers_norms_sounds_and_spectrograms(watched):
    first, second = sorted((watched / "run" / "tensorboard").iterdir(), key=lambda path: int(path.name.split(".")[-1]))
    numbers: dict[str, dict[int, float]] = {}
    files: dict[str, bytes] = {}
    for event in events(first)[1:]:
        (step,) = event[2]
        for value in map(fields, fields(event[5][0])[1]):
            (name,) = (tag.decode() for tag in value[1])
            if 2 in value:
                numbers.setdefault(name, {})[step] = struct.unpack("<f", value[2][0])[0]
            elif 6 in value:
                audio = fields(value[6][0])
                assert audio[5] == [b"audio/wav"] and struct.unpack("<f", audio[1][0]) == (8000.0,)
                files[f"{step}/{name.removeprefix('sounds/')}.wav"] = audio[4][0]
            else:
                image = fields(value[4][0])
                files[f"{step}/{name.removeprefix('spectrograms/')}.png"] = image[4][0]
                assert (image[2][0], image[1][0]) == struct.unpack(">II", image[4][0][16:24])
    written = {row["step"]: row for row in lines(watched / "run" / "log.jsonl") if "loss" in row}
    for step in (1, 2, 3):
        assert numbers["loss"][step] == np.float32(written[step]["loss"])
        for kind in ("gradient_norms", "parameter_norms"):
            for name, norm in written[step][kind].items():
                assert numbers[f"{kind}/{name}"][step] == np.float32(norm)
    assert sorted(numbers["validation"]) == [1, 2, 3]
    assert {name: data for name, data in files.items() if name.endswith(".wav")} and files == {
        f"2/{path.name}": path.read_bytes()
        for path in (watched / "run" / "samples" / "2").iterdir()
        if path.suffix == ".wav" or path.suffix == ".png" and path.stem != "sheet"
    }
    again = events(second)
    assert again[1][2] == [4] and fields(again[1][7][0])[1] == [1]  # begin anew at step 4
    assert {step for event in again[2:] for step in event[2]} == {4, 5}


def test_tensorboard_that_cannot_be_written_costs_a_warning_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in its way")
    with Board(tmp_path / "file", 0) as board:
        with pytest.warns(UserWarning, match="file: cannot be written .* goes on without TensorBoard"):
            board.row({"step": 1, "loss": 1.0})
        board.row({"step": 2, "loss": 1.0})
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(ValueError, match=r"tensorboardX, which is missing; pip install 'jaxdiff\[tensorboard\]'"):
        run(from_dict(tree(tmp_path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The report ---------------------------------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """The tags, attributes and text of a page, and its headings of steps."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text, self.sources = [], [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("img", "audio"):
            self.sources.append((tag, dict(attrs)["src"]))

    def handle_data(self, data):
        self.text += data


def report(capsys, *arguments) -> tuple[Any, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, arguments)])
    return stop.value.code, *capsys.readouterr()


@pytest.mark.slow
def test_the_report_of_a_run(watched, tmp_path, capsys):
    folder = watched / "run"
    code, out, error = report(capsys, folder)
    assert (code, error) == (0, "") and "5 steps, 8 sounds" in out
    page = Reader((folder / "report.html").read_text())
    names = [path for step in ("2", "4") for path in sorted((folder / "samples" / step).glob("*.wav"))]
    expected = [("img", "image/png", p.with_suffix(".png")) for p in names]
    expected = [x for pair in zip(expected, [("audio", "audio/wav", p) for p in names], strict=True) for x in pair]
    assert [(tag, source.split(";")[0][5:]) for tag, source in page.sources] == [(t, k) for t, k, _ in expected]
    for (_, source), (_, _, path) in zip(page.sources, expected, strict=True):
        assert base64.b64decode(source.partition(",")[2]) == path.read_bytes()
    labels = [value for name, value in page.attributes if name == "aria-label"]
    curves = ("loss", "learning rate", "gradient norm", "steps per second")
    assert labels[:4] == [f"{name} over steps" for name in curves] and "training went on" in page.text
    assert labels[-2:] == ["Norm of the gradient", "Norm of the parameters"]
    assert all(part in page.text for part in ("finished", "5 of 5", "kind: lstm", "lstm", jax.__version__, "Starts"))
    links = [value for name, value in page.attributes if name in ("href", "xlink:href", "src")]
    assert all(link.startswith(("#", "data:")) for link in links) and "script" not in page.tags
    assert report(capsys, folder)[0] == 0  # again
    assert report(capsys, folder, "--out", tmp_path / "r.html", "--megabytes", 0)[0] == 0
    page = Reader((tmp_path / "r.html").read_text())
    assert not page.sources and "8 of 8 sounds are left out: the page holds 0 MB" in page.text
    code, _, error = report(capsys, folder, "--out", tmp_path / "r.html")
    assert (code, "r.html: exists; give another, or --overwrite" in error) == (2, True)


def made(folder, rows, previews=()):
    """A run's folder by hand."""
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(row if isinstance(row, str) else f"{json.dumps(row)}\n" for row in rows))
    for step, name, data in previews:
        (folder / "samples" / str(step)).mkdir(parents=True, exist_ok=True)
        (folder / "samples" / str(step) / f"{name}.wav").write_bytes(data)
    return folder


def test_a_hostile_or_damaged_run_is_text_and_counted(tmp_path):
    norms = {"gradient_norms": {HOSTILE: 1.0}, "parameter_norms": {HOSTILE: 1.0, "b": 0.0}}
    rows: list[Any] = [
        {"step": k, "loss": 2.0 / k, HOSTILE: 1.0, "skipped": int(k == 3), **norms} for k in range(1, 40)
    ]
    rows += ['{"step": 40, "lo\n', "\n", "[1]\n", "9" * (1 << 21) + "\n", {"step": True}, {"loss": 1.0}]
    rows += [{"step": 50, "loss": float("nan")}, {"step": 51, "loss": 10**400}, {"step": 52, "loss": [1], "x": "y"}]
    folder = made(tmp_path / HOSTILE.replace("/", "_"), rows, [(1, HOSTILE.replace("/", "_"), b"RIFF")])
    (folder / "config.yaml").write_text(f"task: {{kind: '{HOSTILE}'}}\ndata: {{path: [}}\n")
    (folder / "rejected.txt").write_text(f"{HOSTILE}: no sound\n\u202eb\n")
    (folder / "history.jsonl").write_text(json.dumps({"event": "start", "time": 1e300, "step": HOSTILE}) + "\nx\n")
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (folder / "samples" / "1" / "link.wav").symlink_to(tmp_path / "secret.wav")
    run = read_run(folder)
    assert run.damaged == 6 and run.step == 51
    page = report_page(run, 32)
    reader = Reader(page.html)
    assert "script" not in reader.tags and not any(name.startswith("on") for name, _ in reader.attributes)
    assert HOSTILE in reader.text and "\u202e" not in page.html and page.sounds == 1
    assert "6 lines of the log could not be read and are left out." in page.notes
    assert "2 values of loss are not finite and left out of the curves." in page.notes
    assert "1 step had a loss or gradient that is not finite and changed nothing." in page.notes
    assert "stopped without a word" in reader.text and "steps skipped" in reader.text


def test_the_state_of_a_run(tmp_path, capsys):
    folder = made(tmp_path / "run", [])
    page = report_page(read_run(folder), 1)
    assert page.notes == ["Nothing is logged yet: the first numbers come after train.log_every steps."]
    history = [{"event": "start", "time": 0.0, "step": 0, "steps": 9}]
    for last, said in [
        (None, "stopped without a word"),
        ({"event": "end", "time": 90.0, "how": "TrainingError: the loss is nan at step 1; why"}, "the loss is nan"),
        ({"event": "end", "time": 90.0, "step": 9, "how": "finished"}, "finished"),
    ]:
        text = "".join(f"{json.dumps(row)}\n" for row in history + [last] * (last is not None))
        (folder / "history.jsonl").write_text(text)
        page = report_page(read_run(folder), 1).html
        assert said in page and ("90 s" in page) == (last is not None)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(folder).running
    assert not read_run(folder).running
    (tmp_path / "none").mkdir()
    code, _, error = report(capsys, tmp_path / "none")
    assert (code, error.endswith("none: holds no run; give the work directory of jaxdiff train\n")) == (2, True)


def test_of_many_previews_the_newest_and_the_first_stay(tmp_path):
    folder = made(tmp_path, [{"step": 9, "loss": 1.0}], [(k, "a", bytes(3000)) for k in (10, 20, 30, 40, 50, 100)])
    for megabytes, steps in [
        (0.0041, [100]),
        (0.0081, [10, 100]),
        (0.0121, [10, 30, 100]),
        (1, [10, 20, 30, 40, 50, 100]),
    ]:
        page = report_page(read_run(folder), megabytes)
        assert [f"Step {k}<" in page.html for k in (10, 20, 30, 40, 50, 100)] == [
            k in steps for k in (10, 20, 30, 40, 50, 100)
        ]
        left = 6 - len(steps)
        assert any(f"{left} of 6 sounds are left out" in note for note in page.notes) == (left > 0)


def test_curves_keep_their_extremes_and_smoothing_is_a_centred_mean():
    y = np.random.default_rng(0).standard_normal(50_000)
    y[31_415] = 99
    x, kept = thinned(np.arange(50_000.0), y)
    assert len(x) <= 2 * COLUMNS + 2 and kept.max() == 99 and x[kept.argmax()] == 31_415 and kept.min() == y.min()
    assert (x[0], x[-1]) == (0, 49_999) and (np.diff(x) > 0).all() and (y[x.astype(int)] == kept).all()
    y = y[:600]
    direct = [y[max(0, i - 10) : i + 11].mean() for i in range(600)]
    np.testing.assert_allclose(smooth(y), direct, atol=1e-12)
