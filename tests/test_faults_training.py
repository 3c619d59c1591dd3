"""What happens to trainings, made to happen: killed processes, full disks, damaged files, numbers not finite."""

import itertools
import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
import trainer

from jaxdiff import load
from jaxdiff.config import ConfigError, from_dict, load_config
from jaxdiff.data import Crop, batches, heard, open_corpus, write_audio
from jaxdiff.methods import Diffusion
from jaxdiff.run import run
from jaxdiff.training import CheckpointError, Every, TrainingError, checkpoints, init_state

pytestmark = pytest.mark.slow


def rows(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def logged(workdir):
    """The last step in the log, 0 before any."""
    log = workdir / "log.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def steps_of(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def losses(workdir):
    return [row["loss"] for row in rows(workdir)]


def leaves(state):
    trees = (state.step, state.params, state.average, state.opt_state, state.profiles)
    return [np.asarray(x) for x in jax.tree.leaves(trees)]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def mounted(tmp_path):
    """A file system in memory, of a size or read-only."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("nothing can be mounted here")
        return folder

    yield mount
    while os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


def write_float(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.astype(np.float32), 8000, subtype="FLOAT")


# --- processes that are killed ---


def test_kills_while_it_saves_cost_nothing_that_was_saved(tmp_path):
    """Weights are the number of the step: what is found says whose it is. `benchmarks/faults.py` kills 20 times."""
    rng, workdir, numbers = random.Random(0), tmp_path / "w", 30_000
    saving = lambda: any((workdir / "checkpoints").glob(".*.saving*"))  # noqa: E731
    begun = 0
    for _ in range(3):
        process = trainer.start(trainer.count, str(workdir), 500, numbers, log=tmp_path / "log")
        trainer.wait(process, lambda: logged(workdir) > begun + 2)  # noqa: B023
        trainer.wait(process, saving)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert trainer.ended(process) == -signal.SIGKILL
        step, _ = checkpoints.latest(workdir / "checkpoints")
        assert step > begun
        begun = step
        shape: Any = jax.ShapeDtypeStruct((trainer.SIZE, numbers), np.float32)
        like = {"ema_params": {"a": shape, "b": jax.ShapeDtypeStruct(shape.shape[::-1], np.float32)}}
        found = checkpoints.restore_model(workdir / "checkpoints", step, like | {"normalization": None})["ema_params"]
        average = 0.0
        for k in range(step):
            decay = min(0.999, (1 + k) / (10 + k))
            average = decay * average + (1 - decay) * (k + 1)
        assert jnp.ptp(found["a"]) == jnp.ptp(found["b"]) == 0
        assert found["a"][0, 0] == pytest.approx(average, rel=1e-5)
    process = trainer.start(trainer.count, str(workdir), begun + 3, numbers, log=tmp_path / "log")
    assert trainer.ended(process) == 0
    assert [row["step"] for row in rows(workdir)] == list(range(1, begun + 4))
    assert names(workdir / "checkpoints") == sorted(str(step) for step in (begun + 2, begun + 3))
    assert names(workdir) == [".lock", "checkpoints", "history.jsonl", "log.jsonl"]


TINY = """
data: {path: sounds, seconds: 0.512, sample_rate: 8000}
representation: {kind: patches, size: 32}
normalize: {crops: 16}
network: {kind: lstm, width: 16, depth: 1}
train: {steps: 1000000, batch: 2, warmup: 2, log_every: 1, sample_every: 0, save_every: 50, ema_decay: 0.9}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A configuration and its six sounds."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY.replace("sounds", str(folder / "sounds")))
    for i in range(6):
        file = folder / "sounds" / "ab"[i % 2] / f"{i}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_audio(file, 0.3 * np.sin((0.1 + 0.1 * i) * np.arange(8000)), 8000)
    return folder / "tiny.yaml"


def test_a_supervised_run_survives_a_kill_and_ends_well_on_sigterm(tiny, tmp_path):
    workdir, log = tmp_path / "w", tmp_path / "log"
    argv = ("train", str(tiny), "--workdir", str(workdir), "--restarts", "1")
    process = trainer.start(trainer.command, *argv, log=log)
    trainer.wait(process, lambda: logged(workdir) >= 50 and steps_of(workdir))
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    trainer.wait(process, lambda: "resuming from step" in log.read_text())
    before = logged(workdir)
    trainer.wait(process, lambda: logged(workdir) > before)
    os.kill(process.pid, signal.SIGTERM)
    assert trainer.ended(process, 30) == 128 + signal.SIGTERM
    said = log.read_text()
    assert f"interrupted, everything is saved; to go on:\n  jaxdiff train --workdir {workdir}" in said
    assert "was killed by signal 9; restart 1 of 1" in said
    assert steps_of(workdir)[-1] == logged(workdir)
    assert load(workdir).step == logged(workdir)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def two(workdir, tmp_path, **options):
    port = free_port()
    return [trainer.start(trainer.one_of, i, 2, port, str(workdir), options, log=tmp_path / f"log{i}") for i in (0, 1)]


def test_two_processes_stop_together_and_one_does_not_outlive_the_other(tmp_path):
    """On several machines it is the same program: here two processes, then one."""
    workdir, options = tmp_path / "w", dict(steps=10**6, save_every=5, fsdp=2)
    both = two(workdir, tmp_path, **options)
    trainer.wait(both[0], lambda: logged(workdir) >= 7)
    os.kill(both[1].pid, signal.SIGTERM)
    assert [trainer.ended(process, 60) for process in both] == [0, 0], (tmp_path / "log0").read_text()
    step = steps_of(workdir)[-1]
    assert step == logged(workdir) and checkpoints.latest(workdir / "checkpoints") == (step, [])
    for i in (0, 1):
        assert f"ended at {step}\n" in (tmp_path / f"log{i}").read_text()

    both = two(workdir, tmp_path, **options)
    trainer.wait(both[0], lambda: steps_of(workdir)[-1] > step)
    both[1].kill()
    assert trainer.ended(both[0], 60) != 0
    newest, _ = checkpoints.latest(workdir / "checkpoints")
    assert newest > step
    trainer.train(workdir, steps=newest + 2, save_every=5)
    assert names(workdir) == [".lock", "checkpoints", "history.jsonl", "log.jsonl"]
    trainer.train(tmp_path / "alone", steps=newest + 2, save_every=0)
    np.testing.assert_allclose(losses(workdir), losses(tmp_path / "alone"), rtol=1e-4)


def test_devices_may_be_others_and_share_the_state(tmp_path, monkeypatch):
    """50 steps on one device, on eight that hold a copy each, on eight that share one, and by turns."""
    one = trainer.train(tmp_path / "one", steps=50, save_every=0)
    trainer.train(tmp_path / "turns", steps=16, save_every=0)
    eight = [(str(tmp_path / "turns"), dict(steps=33, save_every=0, fsdp=4, accumulate=2))]
    eight += [(str(tmp_path / f"fsdp{n}"), dict(steps=50, save_every=0, fsdp=n)) for n in (1, 4, 8)]
    log = tmp_path / "log"
    assert trainer.ended(trainer.start(trainer.several, eight, log=log, devices=8)) == 0, log.read_text()
    on_two = [(str(tmp_path / "turns"), dict(steps=50, save_every=0))]
    assert trainer.ended(trainer.start(trainer.several, on_two, log=log, devices=2)) == 0, log.read_text()
    expected = losses(tmp_path / "one")
    for name in ("turns", "fsdp8"):  # made on two devices and on eight
        made, alone = np.load(tmp_path / name / "made.npy"), trainer.sounds(tmp_path / name)
        np.testing.assert_allclose(made, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    for name in ("turns", "fsdp1", "fsdp4", "fsdp8"):
        np.testing.assert_allclose(losses(tmp_path / name), expected, rtol=1e-5, err_msg=name)
    assert expected[-1] < 0.9 * expected[0]
    assert int(one.step) == 50
    parts = [line for line in log.read_text().splitlines() if line.startswith("part")]
    assert parts == ["part 4 (16, 16)", "part 1 (16, 64)", "part 4 (16, 16)", "part 8 (16, 8)", "part 1 (16, 64)"]


# --- disks ---


def test_a_full_disk_costs_the_saves_of_its_time_alone(tmp_path, mounted):
    workdir = mounted("size=3m") / "w"
    other = workdir.parent / "other"

    def fill(path, with_what):
        with pytest.raises(OSError), path.open("ab", buffering=0) as file:
            while file.write(with_what):
                pass

    def disk(state, metrics):
        if int(state.step) == 3:
            while steps_of(workdir) != [2]:
                time.sleep(0.01)
            fill(other, bytes(512))
            fill(workdir / "log.jsonl", b" ")  # what there was left of its last block
        if int(state.step) == 5:
            assert steps_of(workdir) == [2]
            other.unlink()

    with pytest.warns(UserWarning) as said:
        state = trainer.train(workdir, steps=8, save_every=2, callbacks=[Every(1, disk)])
    texts = [str(warning.message) for warning in said]
    assert any("w/log.jsonl: cannot be written (No space left on device)" in text for text in texts)
    assert any("/4: cannot be saved (No space left on device); training goes on" in text for text in texts)
    assert [row["step"] for row in rows(workdir)] == list(range(1, 9))  # those that could not be written came later
    assert steps_of(workdir) == [6, 8] and int(state.step) == 8
    assert checkpoints.latest(workdir / "checkpoints") == (8, [])
    assert names(workdir / "checkpoints") == ["6", "8"]
    fill(other, bytes(512))
    with pytest.raises(
        CheckpointError, match=r"cannot be written to \(No space left on device\), and a checkpoint takes"
    ):
        trainer.train(workdir, steps=9)
    assert steps_of(workdir) == [6, 8]


def test_what_cannot_be_written_to_is_refused_before_any_step(tmp_path, mounted):
    seen, folder = [], mounted("size=3m")
    (folder / "w").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoints").symlink_to(folder)
    mounted("remount,ro")
    options = dict(steps=2, callbacks=[Every(1, lambda *_: seen.append(0))])
    with pytest.raises(ConfigError, match=r"w: cannot be written to \(Read-only file system\); give a folder that can"):
        trainer.train(folder / "w", **options)
    with pytest.raises(CheckpointError, match=r"checkpoints: cannot be written to \(Read-only file system\)"):
        trainer.train(other, **options)
    assert not seen


# --- damage ---


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Checkpoints of three steps."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    with checkpoints.Saver(folder) as saver:
        for step in (1, 2, 3):
            state = init_state({"w": jnp.full(5000, 1.0 * step)}, {}, (), jax.random.key(0))._replace(
                step=jnp.int32(step)
            )
            saver.save(step, checkpoints.parts(state, None), {"format": 2})
    return folder


def data_file(step):
    return max((step / "train").rglob("d/*"), key=lambda p: p.stat().st_size)


def flipped(step):
    file = data_file(step)
    content = bytearray(file.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 4
    file.write_bytes(content)
    return f"damaged, {file.relative_to(step)} is not what was saved"


def truncated(step):
    file = data_file(step)
    os.truncate(file, file.stat().st_size // 2)
    return f"damaged, {file.relative_to(step)} is not"


def lost_file(step):
    data_file(step).unlink()
    return "damaged, train/"


def no_manifest(step):
    (step / "manifest.json").unlink()
    return "incomplete, it has no readable manifest"


def empty(step):
    shutil.rmtree(step)
    step.mkdir()
    return "incomplete, it has no readable manifest"


@pytest.mark.parametrize("harm", [flipped, truncated, lost_file, no_manifest, empty])
def test_damage_is_found_named_and_passed_over(three, tmp_path, harm):
    folder = shutil.copytree(three, tmp_path / "checkpoints")
    assert checkpoints.latest(folder) == (3, [])
    sentence = harm(folder / "3")
    step, (problem,) = checkpoints.latest(folder)
    assert step == 2 and problem.startswith(f"{folder / '3'}: {sentence}")
    like = init_state({"w": jnp.zeros(5000)}, {}, (), jax.random.key(0))
    assert (checkpoints.restore_state(folder, 2, like, None)[0].params["w"] == 2).all()


class Canary:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_that_is_given_as_a_model_or_configuration_is_executed(tmp_path, three):
    canary = tmp_path / "canary"
    text = pickle.dumps(Canary(canary))
    for name in ("model.pt", "model.safetensors", "model.pkl"):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(CheckpointError, match="is not a model that jaxdiff export wrote"):
            load(tmp_path / name)
    run = tmp_path / "run"
    shutil.copytree(three / "3", run / "checkpoints" / "3")
    (run / "checkpoints" / "3" / "meta" / "metadata").write_bytes(text)
    with pytest.raises(CheckpointError, match="damaged, meta/metadata is not what was saved"):
        load(run)
    with pytest.raises(CheckpointError, match="metadata: cannot be read"):
        checkpoints.read_meta(run / "checkpoints", 3)
    yaml = tmp_path / "evil.yaml"
    for value in (f"!!python/object/apply:os.mkdir ['{canary}']", f"!!python/object/new:os.mkdir ['{canary}']"):
        yaml.write_text(f"data: {{path: {value}}}")
        with pytest.raises(ConfigError, match="cannot be read as YAML"):
            load_config(yaml)
    assert not canary.exists()
    pickle.loads(text)
    assert canary.exists()  # so the test would have seen it


# --- what does not fit ---


def test_a_state_of_another_shape_or_type_is_refused_and_named(tmp_path):
    trainer.train(tmp_path / "w", steps=2, save_every=0)
    with pytest.raises(
        CheckpointError, match=r"ema_params.a is float32 \(16, 32\); the checkpoint has float32 \(16, 64\)"
    ):
        trainer.train(tmp_path / "w", steps=3, model=trainer.model(32))
    with pytest.raises(CheckpointError, match=r"ema_params.a is bfloat16 \(16, 64\); the checkpoint has float32"):
        trainer.train(tmp_path / "w", steps=3, model=trainer.model(dtype="bfloat16"))
    with pytest.raises(CheckpointError, match="opt_state.0.count is nothing; the checkpoint has int32"):
        trainer.train(tmp_path / "w", steps=3, optimizer=optax.sgd(0.1))
    assert int(trainer.train(tmp_path / "w", steps=3).step) == 3


# --- numbers that are not finite, and when it is enough ---


def with_nan(*steps):
    def batches(start):
        for step, batch in enumerate(trainer.batches(start), start + 1):
            if step in steps:
                batch["wave"][3, 7] = np.nan
            yield batch

    return batches


def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(tmp_path):
    states = {}
    watch = Every(1, lambda state, metrics: states.update({int(state.step): jax.device_get(state[1:4])}))
    options: dict[str, Any] = dict(log_every=2, callbacks=[watch])
    with pytest.warns(UserWarning, match="1 of the 1 steps up to 5 had a loss or gradient that is not finite"):
        state = trainer.train(tmp_path / "w", steps=8, batches=with_nan(5), **options)
    for x, y in zip(jax.tree.leaves(states[4]), jax.tree.leaves(states[5]), strict=True):
        np.testing.assert_array_equal(x, y)
    assert any((x != y).any() for x, y in zip(*(jax.tree.leaves(states[k]) for k in (5, 6)), strict=True))
    assert [row["skipped"] for row in rows(tmp_path / "w")] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert ["loss" in row for row in rows(tmp_path / "w")] == [True] * 4 + [False] + [True] * 3
    assert int(state.step) == 8


def test_a_training_that_diverges_stops_and_keeps_its_last_good_checkpoint(tmp_path):
    workdir = tmp_path / "w"
    rate = optax.piecewise_constant_schedule(1e-2, {5: 1e30})
    sentence = "weights is inf after step 8; run again with a lower learning rate, training goes on from the last"
    with pytest.raises(TrainingError, match=sentence), pytest.warns(UserWarning, match="not finite"):
        trainer.train(workdir, steps=40, save_every=4, optimizer=optax.sgd(rate))
    assert checkpoints.latest(workdir / "checkpoints") == (4, [])
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 3 and in all steps up to 13 something is not finite"
    ):
        trainer.train(tmp_path / "bad", steps=40, batches=with_nan(*range(3, 40)))
    rate = optax.constant_schedule(1e-2)
    assert int(trainer.train(workdir, steps=8, optimizer=optax.sgd(rate)).step) == 8


def test_the_sounds_of_a_batch_that_is_not_finite_are_named(tmp_path):
    """Of six recordings one is so loud that its square is beyond float32."""
    for i in range(6):
        write_float(tmp_path / "sounds" / f"{i}.wav", np.full(8000, 1e25 if i == 4 else 0.1 + 0.1 * i))
    corpus = open_corpus(str(tmp_path / "sounds"))
    for evenness in (0.0, 0.5):
        read = batches(corpus, Crop(64, 8000), 4, 7, evenness=evenness)
        for step in range(1, 5):
            names = [r.name for r in heard(corpus, 4, 7, step, evenness=evenness)]
            expected = [f"{round((x - 0.1) / 0.1) if x < 1 else 4}.wav" for x in next(read)["wave"].max(-1)]
            assert names == expected
    tree = {"data": {"path": str(tmp_path / "sounds"), "seconds": 0.512, "sample_rate": 8000}}
    tree |= {"representation": {"kind": "patches", "size": 32}, "normalize": {"enabled": False}}
    tree |= {"network": {"kind": "lstm", "width": 16, "depth": 1}, "task": {"kind": "generate", "peak_db": None}}
    tree["train"] = {"steps": 8, "batch": 1, "sample_every": 0, "log_every": 1, "skips": 0}
    loud = [k for k in range(1, 9) if heard(corpus, 1, 0, k)[0].name == "4.wav"]
    with pytest.raises(TrainingError, match=rf"the \w+ is \w+ at step {loud[0]} \(heard: 4.wav\)"):
        run(from_dict(tree), tmp_path / "a", report=lambda text: None)
    tree["train"]["skips"] = 1
    with pytest.warns(UserWarning, match=f"1 of the 1 steps up to {loud[0]} had"):
        run(from_dict(tree), tmp_path / "b", report=lambda text: None)
    assert [row["step"] for row in rows(tmp_path / "b") if row["skipped"]] == loud


def test_the_loss_of_sounds_that_are_not_trained_on_is_measured_and_changes_nothing(tmp_path):
    """It is that of the averaged weights, with the same noise each time, whoever computes it."""
    held_out = list(itertools.islice(trainer.batches(9000), 3))
    options: dict[str, Any] = dict(steps=6, save_every=2, ema_decay=0.5)
    plain = trainer.train(tmp_path / "a", **options)
    state = trainer.train(tmp_path / "b", validation=held_out, validate_every=3, best="validation", **options)
    assert_same(plain, state)
    found = [(row["step"], row["validation"]) for row in rows(tmp_path / "b") if "validation" in row]
    assert [step for step, _ in found] == [3, 6]
    model, (_, last) = trainer.model(), found[1]
    update = Diffusion().make_step(model, optax.sgd(0.0), 6)
    own = state._replace(params=state.average, opt_state=optax.sgd(0.0).init(state.params))
    keys = [jax.random.fold_in(jax.random.key(0), k) for k in range(3)]
    losses = [
        update(own, {"wave": jnp.asarray(b["wave"]), "label": jnp.full(16, -1)}, k)[1]["loss"]
        for b, k in zip(held_out, keys, strict=True)
    ]
    assert last == pytest.approx(np.mean(losses), rel=1e-5)
    assert json.loads((tmp_path / "b" / "best.json").read_text())["value"] == last
    pipelines = [load(tmp_path / "b" / name, model=model, method=Diffusion()) for name in ("", "checkpoints/4")]
    assert [pipeline.step for pipeline in pipelines] == [6, 4]
    (tmp_path / "b" / "checkpoints" / "4" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="checkpoints/4: incomplete"):
        load(tmp_path / "b" / "checkpoints" / "4", model=model, method=Diffusion())


def test_the_best_checkpoint_stays_and_patience_ends(tmp_path):
    values = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 1.0, 12: 0.5}
    measure = Every(2, lambda state, metrics: {"held_out": values[int(state.step)]}, ("held_out",))
    options: dict[str, Any] = dict(save_every=2, keep=1, best="held_out", callbacks=[measure])
    state = trainer.train(tmp_path / "w", steps=12, patience=3, **options)
    assert int(state.step) == 10 and steps_of(tmp_path / "w") == [4, 10]
    assert json.loads((tmp_path / "w" / "best.json").read_text())["step"] == 4
    assert [row["held_out"] for row in rows(tmp_path / "w") if "held_out" in row] == [3.0, 1.0, 2.0, 1.5, 1.0]
    state = trainer.train(tmp_path / "w", steps=12, patience=5, **options)
    assert int(state.step) == 12 and steps_of(tmp_path / "w") == [12]
    with pytest.raises(ConfigError, match="train.best heard: is not measured; use one of gradient_norm, loss"):
        trainer.train(tmp_path / "v", steps=2, best="heard")
