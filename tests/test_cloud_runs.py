"""Trainings whose folder is in a cloud, of which a file system in a folder stands in."""

import json
import socket
import time
import warnings
from pathlib import Path
from typing import Any

import fsspec
import jax
import numpy as np
import pytest
import trainer

from jaxdiff import load
from jaxdiff.cli.main import main
from jaxdiff.config import ConfigError
from jaxdiff.data import write_audio
from jaxdiff.methods import Diffusion
from jaxdiff.report import read_run
from jaxdiff.training import CheckpointError, Every, remote

URL = "gs://bucket/run"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder in which the files of gs://bucket/run lie."""
    monkeypatch.setattr(remote, "BEAT", 0.05)
    monkeypatch.setattr(remote, "DEAD", 0.6)
    machine(tmp_path, monkeypatch, "one")
    trainer.bucket(tmp_path / "cloud")
    return tmp_path / "cloud" / "bucket" / "run"


def machine(tmp_path, monkeypatch, name):
    """Work on another machine, which has a cache of its own."""
    monkeypatch.setenv("JAXDIFF_CACHE", str(tmp_path / name))


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps_of(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir())


def leaves(state):
    return [np.asarray(x) for x in jax.tree.leaves((state.step, state.params, state.average, state.opt_state))]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_run_goes_on_on_another_machine_as_if_nothing_had_been(bucket, tmp_path, monkeypatch):
    options: dict[str, Any] = dict(save_every=3, keep=3)
    straight = trainer.train(tmp_path / "straight", steps=9, **options)
    trainer.train(URL, steps=6, **options)
    machine(tmp_path, monkeypatch, "two")
    trainer.train(Path(URL), steps=7, **options)
    assert steps_of(bucket) == [3, 6, 7] and [row["step"] for row in rows(bucket)] == [*range(1, 8)]
    data = max((bucket / "checkpoints" / "7" / "train").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    (bucket / "checkpoints" / "8").mkdir()
    (bucket / "checkpoints" / "8" / "part").write_bytes(b"of a step that was not copied whole")
    (bucket / "notes.txt").write_text("of the user")
    machine(tmp_path, monkeypatch, "three")
    with pytest.warns(UserWarning, match="passed over .*/7: damaged, train.* is not what was saved"):
        assert_same(trainer.train(URL, steps=9, **options), straight)
    assert steps_of(bucket) == [3, 6, 9] and (bucket / "notes.txt").exists()
    assert [row["step"] for row in rows(bucket)] == [*range(1, 10)]
    assert [row["loss"] for row in rows(bucket)] == [row["loss"] for row in rows(tmp_path / "straight")]
    machine(tmp_path, monkeypatch, "one")  # whose mirror is older than the run
    assert_same(trainer.train(URL, steps=9, **options), straight)
    made, same = (load(f, model=trainer.model(), method=Diffusion()) for f in (URL, tmp_path / "straight"))
    np.testing.assert_array_equal(made(count=1, steps=2).waves[0], same(count=1, steps=2).waves[0])
    assert load(f"{URL}/checkpoints/6", model=trainer.model(), method=Diffusion()).step == 6
    with pytest.raises(CheckpointError, match="gs://bucket/none: holds no checkpoints of a run"):
        load("gs://bucket/none")
    assert not Path("gs:").exists()


@pytest.mark.slow
def test_one_training_at_a_time_holds_a_run(bucket, tmp_path, monkeypatch):
    seen: list[str] = []

    def second(*_: Any) -> None:
        for name in ("one", "two"):
            machine(tmp_path, monkeypatch, name)
            with (
                warnings.catch_warnings(),
                pytest.raises(ConfigError, match="--workdir .*(process|a training on) ") as e,
            ):
                warnings.simplefilter("ignore")
                trainer.train(URL, steps=4)
            seen.append(str(e.value))
        machine(tmp_path, monkeypatch, "one")

    trainer.train(URL, steps=2, callbacks=[Every(1, second)])
    assert len(seen) == 4 and "another process trains there" in seen[0] and "holds it; wait for its end" in seen[1]
    lock = bucket / remote.LOCK
    held = json.loads(lock.read_text())
    assert held["free"]
    lock.write_text(json.dumps(held | {"free": False}))  # as a training that was killed leaves it
    trainer.train(URL, steps=3)  # at once where it was
    lock.write_text(json.dumps(held | {"free": False}))
    machine(tmp_path, monkeypatch, "two")
    with pytest.warns(UserWarning, match="waiting .* for it to live"):
        trainer.train(URL, steps=4)

    def taken(*_: Any) -> None:
        while json.loads(lock.read_text())["id"] != "another":  # a beat that has looked before may still write after
            lock.write_text(json.dumps(held | {"id": "another"}))
            time.sleep(0.2)

    with pytest.raises(CheckpointError, match=r"another training holds it by now.*all is in .*two/runs"):
        trainer.train(URL, steps=5, callbacks=[Every(5, taken)])
    assert steps_of(bucket) == [3, 4] and json.loads(lock.read_text())["id"] == "another"
    (bucket.parent / "other").mkdir()
    (bucket.parent / "other" / "song.wav").write_bytes(b"x")
    for url, problem in (("gs://bucket/other", "holds other files and no run"), ("ftp://host/run", "one that begins")):
        with pytest.raises(CheckpointError, match=problem):
            trainer.train(url, steps=1)


@pytest.mark.slow
def test_a_cloud_that_fails_does_not_end_a_training(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "COPY", 0.02)
    cloud: Any = type(fsspec.filesystem("gs"))
    put, failing, tried = cloud.put_file, [False], []

    def put_file(*args: Any, **options: Any) -> None:
        tried.append(failing[0])
        if failing[0]:
            raise OSError("the network is down")
        put(*args, **options)

    monkeypatch.setattr(cloud, "put_file", put_file)

    def down(state: Any, _: Any) -> None:
        failing[0] = 3 <= int(state.step) < 6
        (remote.mirror(URL) / "rejected.txt").write_text(f"{state.step} something to copy")
        tried.clear()
        until = time.monotonic() + 20
        while failing[0] not in tried:
            assert time.monotonic() < until, "nothing was copied"
            time.sleep(0.01)

    with pytest.warns(UserWarning, match="run: cannot be copied to .OSError: the network is down.; training goes on"):
        trainer.train(URL, steps=8, save_every=2, callbacks=[Every(3, down)])
    assert steps_of(bucket) == [6, 8] and [row["step"] for row in rows(bucket)] == [*range(1, 9)]
    failing[0] = True
    with pytest.raises(CheckpointError, match="the network is down.; all is in .*, run again on this machine"):
        trainer.train(URL, steps=10)
    assert steps_of(bucket) == [6, 8]
    failing[0] = False
    begins: list[int] = []
    trainer.train(URL, steps=10, callbacks=[Every(1, lambda *_: begins.append(1))])  # copies what was made
    assert steps_of(bucket)[-2:] == [8, 10] and not begins


@pytest.mark.slow
def test_processes_of_several_machines_train_one_run(bucket, tmp_path):
    """They have caches of their own, and each a part of the state."""
    options: dict[str, Any] = dict(fsdp=2, save_every=3)

    def both(steps: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        args = [(i, 2, port, str(tmp_path), URL, {**options, "steps": steps}) for i in (0, 1)]
        started = [trainer.start(trainer.one_of_cloud, *a, log=tmp_path / f"log{a[0]}") for a in args]
        codes = [trainer.ended(process, 100) for process in started]
        assert codes == [0, 0], "\n".join((tmp_path / f"log{i}").read_text()[-3000:] for i in (0, 1))

    both(5)
    both(7)
    assert steps_of(bucket) == [6, 7] and [row["step"] for row in rows(bucket)] == [*range(1, 8)]
    trainer.train(tmp_path / "alone", steps=7)
    losses = [[row["loss"] for row in rows(folder)] for folder in (bucket, tmp_path / "alone")]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert trainer.train(URL, steps=7).step == 7


@pytest.mark.slow
def test_commands_take_the_address_of_a_run(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxdiff.run.PREVIEWS", 1)
    rng = np.random.default_rng(0)
    (tmp_path / "sounds").mkdir()
    for name in "ab":
        write_audio(tmp_path / "sounds" / f"{name}.wav", rng.uniform(-0.5, 0.5, 4000).astype(np.float32), 8000)
    words = f"""task: {{kind: generate}}
data: {{path: {tmp_path / "sounds"}, sample_rate: 8000, seconds: 0.064}}
network: {{kind: wavenet, channels: 8, layers: 1}}
representation: {{kind: patches, size: 16}}
train: {{steps: 2, batch: 2, sample_every: 2, log_every: 1}}
sampling: {{steps: 2}}
normalize: {{crops: 16}}
"""
    (tmp_path / "c.yaml").write_text(words)

    def command(*argv: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main([*argv])
        return ended.value.code  # type: ignore[return-value]

    assert command("train", str(tmp_path / "c.yaml"), "--workdir", URL) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"{URL} is trained in {tmp_path / 'one'}" in said and f"jaxdiff generate {URL} --out" in said
    assert {p.name for p in bucket.iterdir()} >= {"config.yaml", "log.jsonl", "history.jsonl", "samples", "checkpoints"}
    assert {p.suffix for p in (bucket / "samples" / "2").iterdir()} == {".wav", ".png", ".json"}
    machine(tmp_path, monkeypatch, "two")
    assert command("train", "--workdir", URL, "--train.steps=3", "--train.sample_every=0") == 0, capsys.readouterr().err
    assert [row["step"] for row in rows(bucket)] == [1, 2, 3]
    assert command("generate", URL, "--out", str(tmp_path / "made")) == 0, capsys.readouterr().err
    assert command("export", URL, "--out", str(tmp_path / "m.safetensors")) == 0
    report = read_run(remote.fetched(Path(URL), remote.RUN))
    assert report.step == 3 and len(report.previews[2]) == 1 and len(report.starts) == 2
    assert command("report", URL) == 2 and "--out" in capsys.readouterr().err
    assert load(URL).step == 3 and load(tmp_path / "m.safetensors").step == 3
    assert not Path("gs:").exists()
