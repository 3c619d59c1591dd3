"""Training on real crops: one program, exact resume, damaged checkpoints, and learning that a test can see."""

import dataclasses
import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
from flax import nnx
from oracles import max_relative

import jaxdiff
from jaxdiff import config as configuration
from jaxdiff import load
from jaxdiff import run as runs
from jaxdiff import workdir as workdirs
from jaxdiff.config import ConfigError, from_dict, to_dict
from jaxdiff.data import AudioError, Further, batches, open_corpus, write_audio
from jaxdiff.data.crops import Crop
from jaxdiff.data.orchestra import INSTRUMENTS, write_orchestra
from jaxdiff.diffusion import Cosine
from jaxdiff.features import Normalization, Patches
from jaxdiff.inference import Pipeline
from jaxdiff.methods import Bridge, Diffusion, Model, Regression, Shortcut, adversarial
from jaxdiff.methods.method import AuxiliaryName
from jaxdiff.networks import Condition, Network, WaveNet, count_params, discriminators, from_nnx, in_parts
from jaxdiff.networks.discriminators import Judgement
from jaxdiff.tasks import Example, Generate, Given, Task
from jaxdiff.training import (
    CheckpointError,
    Every,
    TrainingError,
    checkpoints,
    init_state,
    loop,
    make_optimizer,
    make_train_step,
    warmup_cosine,
)

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = {
    "data": {"crop": "start", "seconds": 0.256},
    "representation": {"kind": "log_mel", "n_fft": 256, "hop_length": 128, "n_mels": 16},
    "network": {"kind": "wavenet", "channels": 16, "layers": 2, "embedding": 16},
    "normalize": {"crops": 32},
    "train": {"steps": 20, "batch": 4, "log_every": 1, "sample_every": 0, "save_every": 0, "warmup": 5},
    "sampling": {"steps": 2, "sampler": "euler"},
}
PATCHES = {"representation": {"kind": "patches", "size": 64}}  # what takes little time to compile
TRANSFORMER = {"network": {"kind": "transformer", "width": 16, "depth": 1, "heads": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_orchestra(tmp_path_factory.mktemp("orchestra"), count=3)


def small(folder, parts=(), **train):
    parts = {**SMALL, **dict(parts), "train": {**SMALL["train"], **train}}
    return from_dict({**parts, "data": {**parts["data"], "path": str(folder)}})


def run(config, workdir, **options):
    return runs.run(config, workdir, **{"report": lambda _: None, **options})


def interrupted(config, workdir, after):
    """The run, ended by a signal that comes in step number `after`; returns what `run` does."""
    make = runs.make_train_step

    def stopping(*args, **options):
        train_step, done = make(*args, **options), 0

        def step(state, batch):
            nonlocal done
            done += 1
            if done == after:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(state, batch)

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_train_step", stopping)
        return run(config, workdir)


def last_state(workdir, config, classes=tuple(sorted(INSTRUMENTS))):
    directory, key = workdir / "checkpoints", jax.random.key(0)
    model, method, steps = configuration.model(config, classes, None), config.method, config.train.steps

    def fresh():
        made = method.init(model, model.network.init(key), make_optimizer(1e-3, steps), steps, key)
        params, opt_state, extra = made
        weights, keep = method.weights(params), config.train.posthoc_ema
        return init_state(params, weights, opt_state, key, extra=extra, posthoc_ema=keep)

    vector: Any = jax.ShapeDtypeStruct((model.representation.channels,), jnp.float32)
    normalization = Normalization(vector, vector) if config.normalize.enabled else None
    step, _ = checkpoints.latest(directory)
    return checkpoints.restore_state(directory, step, jax.eval_shape(fresh), normalization)


def leaves(tree):
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            for x in jax.tree.leaves(tree)]  # fmt: skip


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def rows(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def log(workdir):
    return [(r["step"], r["loss"], r["gradient_norm"]) for r in rows(workdir)]


# --- a run, and what becomes of its folder ---


@pytest.fixture(scope="module")
def sixty(folder, tmp_path_factory):
    """Its configuration and two folders: sixty steps, and 27, a signal, and 33 more. Four snapshots in each.

    All that a state may hold is there: a histogram of training times and averages for any width. Crops are changed at
    random and a batch is seen in two parts.
    """
    parts = PATCHES | TRANSFORMER | {"method": {"times": "importance", "self_conditioning": True}}
    parts |= {"augment": [{"kind": "gain", "low_db": -6, "high_db": 6}, {"kind": "shift", "low": -99, "high": 99}]}
    config = small(folder, parts, steps=60, learning_rate=1e-2, posthoc_ema=True, accumulate=2)
    workdir = tmp_path_factory.mktemp("sixty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdirs, "SNAPSHOTS", 4)
        assert run(config, workdir / "a") is None
        assert interrupted(config, workdir / "b", 27) == signal.SIGTERM
        assert checkpoints.latest(workdir / "b" / "checkpoints")[0] == 27
        assert run(config, workdir / "b") is None
    return config, workdir / "a", workdir / "b"


def test_sixty_steps_equal_27_stop_resume_33(sixty, tmp_path):
    config, a, b = sixty
    state, normalization = last_state(a, config)
    assert int(state.step) == 60
    assert_same((state, normalization), last_state(b, config))
    assert log(a) == log(b)
    assert [step for step, *_ in log(a)] == list(range(1, 61))
    assert 60 < float(state.extra.mass.sum()) <= 240  # 60 steps of 4 items, the older ones faded
    assert float(state.extra.square.sum()) > 0
    interrupted(dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1)), tmp_path, 2)
    assert not {loss for _, loss, _ in log(tmp_path)} & {loss for _, loss, _ in log(a)}
    other = last_state(tmp_path, config)[0].params
    assert any((x != y).any() for x, y in zip(leaves(state.params), leaves(other), strict=True))


def test_damaged_checkpoints_are_noticed_and_passed_over(sixty, tmp_path):
    config, _, b = sixty
    directory = shutil.copytree(b / "checkpoints", tmp_path / "checkpoints")
    assert sorted(p.name for p in directory.iterdir()) == ["27", "60"]
    victim = max((directory / "60" / "model").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    pipeline = load(tmp_path)
    assert pipeline.step == 27
    assert "damaged" in pipeline.warnings[0]
    (directory / "27" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="move .* away"):
        run(config, tmp_path)


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no training has saved anything"):
        load(tmp_path / "nowhere")


def test_class_change_is_refused_on_resume(folder, sixty, tmp_path):
    shutil.copytree(sixty[1] / "checkpoints", tmp_path / "w" / "checkpoints")
    copy = shutil.copytree(folder, tmp_path / "data")
    shutil.rmtree(copy / "kick")
    with pytest.raises(ConfigError, match="has classes"):
        run(small(copy, steps=61), tmp_path / "w")
    shutil.rmtree(copy)
    with pytest.raises(AudioError, match="no such folder"):
        run(small(copy, steps=61), tmp_path / "w")


@pytest.mark.slow
def test_averages_of_any_width_can_be_made_afterwards(sixty, tmp_path):
    config, a, _ = sixty
    workdir = shutil.copytree(a, tmp_path / "a")
    assert sorted(int(p.name) for p in (workdir / "snapshots").iterdir()) == [15, 30, 45, 60]
    profiles = last_state(workdir, config)[0].profiles
    for width, profile in zip((0.05, 0.10), profiles, strict=True):  # a width that was kept comes back as it was
        made = load(workdir, ema=width).params
        for x, y in zip(leaves(made), leaves(profile), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-6 * max(1.0, np.abs(y).max()))
    between = leaves(load(workdir, ema=0.07).params)
    distance = lambda x, y: sum(float(((a - b) ** 2).sum()) for a, b in zip(x, y, strict=True))  # noqa: E731
    ends = [leaves(profile) for profile in profiles]
    assert 0 < distance(between, ends[0]) < distance(*ends)
    assert 0 < distance(between, ends[1]) < distance(*ends)
    damaged = next((workdir / "snapshots" / "30").rglob("*.json"))
    damaged.write_text("{}")
    assert load(workdir, ema=0.07).step == 60  # passed over
    shutil.rmtree(workdir / "snapshots")
    with pytest.raises(CheckpointError, match="no snapshots"):
        load(workdir, ema=0.07)


@pytest.fixture(scope="module")
def six(folder, tmp_path_factory):
    """A configuration and the folder of its run of six steps, saved every second one, with averages of every step."""
    config = small(folder, PATCHES | TRANSFORMER, steps=6, warmup=1, save_every=2, posthoc_ema=True)
    workdir = tmp_path_factory.mktemp("six") / "run"
    run(config, workdir)
    return config, workdir


@pytest.fixture(scope="module")
def of_six(six):
    """The last state of that run and an average that it did not keep."""
    config, workdir = six
    return last_state(workdir, config), load(workdir, ema=0.07).params


@pytest.fixture(scope="module")
def programs():
    """Those of `same_step`."""
    return []


@pytest.fixture
def same_step(programs, monkeypatch):
    """One program for trainings that differ in what lies in their folders; `sixty` is of programs of their own."""
    make = runs.make_train_step

    def once(*args, **options):
        if not programs:
            programs.append(make(*args, **options))
        return programs[0]

    monkeypatch.setattr(runs, "make_train_step", once)


def numbers(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def killed_between_saves(workdir):
    shutil.rmtree(workdir / "checkpoints" / "6")
    with (workdir / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')


def killed_in_a_save(workdir):
    for name in (".6.saving", ".6.saving.orbax-checkpoint-tmp", "6.orbax-checkpoint-tmp-0"):
        shutil.copytree(workdir / "checkpoints" / "6" / "train", workdir / "checkpoints" / name)
    (workdir / "checkpoints" / "6" / "manifest.json").unlink()


def killed_in_the_first_save(workdir):
    for step in (4, 6):
        (workdir / "checkpoints" / str(step)).rename(workdir / "checkpoints" / f".{step}.saving")
    shutil.copytree(workdir / "checkpoints" / ".4.saving" / "model", workdir / "checkpoints" / "2" / "model")


def damaged(workdir):
    (workdir / "checkpoints" / "6" / "meta" / "metadata").write_text("{}")
    shutil.rmtree(workdir / "snapshots" / "4")  # the run had ended before it was written
    (workdir / "snapshots" / "99").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [killed_between_saves, killed_in_a_save, killed_in_the_first_save, damaged])
def test_redone_work_replaces_what_is_left_of_the_first_attempt(six, of_six, same_step, tmp_path, fault):
    (config, whole), (state, average) = six, of_six
    workdir = shutil.copytree(whole, tmp_path / "run")
    fault(workdir)
    assert run(config, workdir) is None
    assert_same(last_state(workdir, config), state)
    assert log(workdir) == log(whole)
    assert [step for step, *_ in log(workdir)] == numbers(workdir / "snapshots") == list(range(1, 7))
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["4", "6"]
    assert_same(load(workdir, ema=0.07).params, average)


def test_only_the_files_of_its_manifest_make_a_checkpoint(six, tmp_path):
    directory = shutil.copytree(six[1] / "checkpoints", tmp_path / "checkpoints")
    for name in (".DS_Store", "model/.DS_Store", "meta/metadata~"):
        (directory / "6" / name).write_text("of another program")
    (directory / ".DS_Store").write_text("of another program")
    assert checkpoints.latest(directory) == (6, [])
    for nothing in ("{}", "[]", ""):
        (directory / "6" / "manifest.json").write_text(nothing)
        step, (problem,) = checkpoints.latest(directory)
        assert step == 4 and "no readable manifest" in problem


def test_a_save_that_fails_says_why_and_leaves_what_was_there(tmp_path):
    state = init_state({"w": jnp.arange(50_000.0)}, {}, (), jax.random.key(0))
    save = lambda step: checkpoints.save(tmp_path / "c", state._replace(step=jnp.int32(step)), None, {})  # noqa: E731
    save(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"c/2: cannot be saved \(File too large\); what was saved before"):
            save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["1"]
    assert checkpoints.latest(tmp_path / "c") == (1, [])
    save(2)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/2: cannot be saved \(\w+"):
        checkpoints.save(tmp_path / "file", state._replace(step=jnp.int32(2)), None, {})


@pytest.mark.slow
def test_a_preview_that_fails_costs_nothing_and_is_said_once(six, of_six, same_step, tmp_path):
    config, whole = six
    workdir = shutil.copytree(whole, tmp_path / "run")
    (workdir / "samples").write_text("no folder")
    killed_between_saves(workdir)
    changed = to_dict(config)
    changed["train"] |= {"sample_every": 1, "save_every": 0}
    changed["sampling"] |= {"spacing": "searched"}
    with pytest.warns(UserWarning) as said:
        assert run(from_dict(changed), workdir) is None
    assert_same(last_state(workdir, config), of_six[0])
    uniform, nothing = (str(warning.message) for warning in said)
    assert "previews use sampling.spacing uniform" in uniform
    assert f"no preview in {workdir}/samples/5 (NotADirectoryError" in nothing


@pytest.mark.slow
def test_what_may_change_on_a_resume_is_shown_and_what_matters_is_confirmed(six, folder, tmp_path):
    config, whole = six
    workdir, moved = shutil.copytree(whole, tmp_path / "run"), shutil.copytree(folder, tmp_path / "moved")
    write_audio(moved / "kick" / "new.wav", np.full(4096, 0.1, np.float32), 16_000)

    def changed(group, **values):
        return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **values)})

    before = (workdir / "config.yaml").read_text()
    for other, sentence in [
        (changed("train", seed=1, learning_rate=0.5), "holds a run with train.seed = 0, this configuration says 1"),
        (small(folder, PATCHES | {"network": {**TRANSFORMER["network"], "width": 24}}, steps=6, warmup=1, save_every=2,
               posthoc_ema=True),
         r"network.width = 16, .* says 24 \(its parameter blocks/\S+/bias is \(1, 16\), here it would be \(1, 24\)\)"),
        (changed("train", learning_rate=0.5, batch=8),
         r"\(train.batch: 4 -> 8; train.learning_rate: 0.001 -> 0.5\); add --accept-changes to go on"),
        (changed("data", path=str(moved)),
         rf"\(corpus: 24 recordings \(\w+\) -> 25 .*; data.path: {folder} -> {moved}\)"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=sentence):
            run(other, workdir)
    assert (workdir / "config.yaml").read_text() == before
    said = []
    run(changed("train", steps=8, log_every=0, batch=2, learning_rate=0.5), workdir, accept_changes=True,
        report=said.append)  # fmt: skip
    assert [text for text in said if "->" in text] == ["train.batch: 4 -> 2", "train.learning_rate: 0.001 -> 0.5",
                                                       "train.log_every: 1 -> 0", "train.steps: 6 -> 8"]  # fmt: skip
    assert "the cosine decay of the learning rate stretches with train.steps and now ends at 8" in said
    assert [row["step"] for row in rows(workdir)] == [*range(1, 7), 7, 8]  # for the snapshots; a loss is seen before
    rates = [row["learning_rate"] for row in rows(workdir)]
    expected = np.array([warmup_cosine(0.001, 6, 1)(k) for k in range(6)])
    np.testing.assert_allclose(rates[:6], expected, rtol=1e-5)
    np.testing.assert_allclose(rates[6:], [0.5 * (0.5 + 0.5 * np.cos(np.pi * k / 7)) for k in (5, 6)], rtol=1e-5)


def test_a_folder_is_trained_in_by_one_process(six, folder, tmp_path):
    config, whole = six
    workdir = shutil.copytree(whole, tmp_path / "run")
    with workdirs.alone(workdir), pytest.raises(ConfigError, match="another process trains there; wait"):
        run(config, workdir)
    assert run(config, workdir) is None
    new = tmp_path / "new"
    with pytest.raises(AudioError, match="no such folder"):
        run(small("nowhere"), new)
    assert not new.exists()


# --- the step and the loop ---


@dataclasses.dataclass(frozen=True)
class Counted(Generate):
    """Notes how often a program is made of it."""

    traces: list = dataclasses.field(default_factory=list, compare=False)

    def example(self, representation, batch, key):
        self.traces.append(0)
        return super().example(representation, batch, key)


@pytest.mark.slow
def test_three_hundred_steps_trace_once_and_learn():
    make = lambda rngs: WaveNet(32, channels=16, layers=2, embedding=16, num_classes=2, rngs=rngs)  # noqa: E731
    task = Counted(classes=("low", "high"))
    model = Model(from_nnx(make), Patches(size=32), task)
    method = Diffusion(schedule=Cosine(), prediction="v", weight="constant", times="uniform")
    wave = np.sin(np.outer([0.1, 0.3, 0.1, 0.3], np.arange(512))).astype(np.float32) * 2
    batch, losses = {"wave": wave, "label": np.array([0, 1, 0, 1], np.int32)}, []
    state = jaxdiff.train(
        model,
        method,
        iter([batch] * 300),
        make_optimizer(1e-3, 300, warmup=5),
        steps=300,
        callbacks=[Every(1, lambda state, metrics: losses.append(metrics["loss"]))],
    )
    assert len(task.traces) == 1
    assert len(losses) == int(state.step) == 300
    assert np.mean(losses[-30:]) < 0.7 * np.mean(losses[:10])


def linear(channels):
    """A network of two matrices, of x_t and of the estimate of x0 where one is given."""

    def apply(params, x_t, t, cond, **_):
        estimate = 0 if cond.estimate is None else cond.estimate @ params["estimate"]
        return x_t @ params["x"] + estimate + params["bias"]

    shapes = {"x": (channels, channels), "estimate": (channels, channels), "bias": (channels,)}
    return Network(lambda key: {name: jnp.zeros(shape) for name, shape in shapes.items()}, apply)


def deep(channels, layers=12):
    """A network whose gradient needs what many layers made of a batch."""

    def apply(params, x_t, t, cond, *, r=None, **_):
        h = x_t + t[:, None, None] + (0 if r is None else r[:, None, None])
        layer = lambda h, w: (jnp.tanh(h @ w + cond.label[:, None, None]), None)  # noqa: E731
        return jax.lax.scan(layer, h, params["w"])[0]

    return Network(lambda key: {"w": jax.random.normal(key, (layers, channels, channels)) / channels**0.5}, apply)


@pytest.mark.slow
def test_a_batch_in_parts_has_the_loss_and_gradient_of_the_whole_and_needs_less_memory():
    model = Model(deep(32), Patches(size=32), Generate(classes=("a", "b", "c")))
    key, optimizer = jax.random.key(0), optax.sgd(1.0)
    batch = {"wave": 0.1 * jax.random.normal(key, (24, 2048)), "label": jnp.arange(24) % 3}
    for method, counts in ((Diffusion(times="importance"), (1, 6, 16)), (Shortcut(begin=0.0), (1, 6))):
        params, opt_state, extra = method.init(model, model.network.init(key), optimizer, 10, key)
        state, made, memory = init_state(params, params, opt_state, key, extra=extra), [], []
        for parts in counts:
            update = method.make_step(model._replace(network=in_parts(model.network, parts)), optimizer, 10)
            program = jax.jit(update).lower(state, batch, key).compile()
            after, metrics = program(state, batch, key)
            made.append((jax.tree.map(jnp.subtract, state.params, after.params), metrics["loss"], after.extra))
            analysis = program.memory_analysis()
            assert analysis is not None
            memory.append(analysis.temp_size_in_bytes)
        for other in made[1:]:
            for x, y in zip(jax.tree.leaves(made[0]), jax.tree.leaves(other), strict=True):
                assert max_relative(y, x) <= 2e-5
        assert memory[1] < 0.5 * memory[0]
    draw = lambda params, x, t, cond, *, key: jnp.broadcast_to(jax.random.uniform(key), x.shape)  # noqa: E731
    network = in_parts(Network(lambda key: {}, draw), 4)
    drawn = network.apply({}, jnp.zeros((8, 2, 1)), jnp.zeros(8), Condition(), key=key)[:, 0, 0]
    assert len(set(drawn.tolist())) == 4  # each part has its own dropout


@pytest.mark.slow
def test_parameters_of_weak_types_or_of_numpy_are_no_second_program_and_survive():
    """What a step returns is of strong types: a weak one given to the first step would have it compiled again."""
    network, batch = linear(8), {"wave": np.ones((2, 64), np.float32)}
    shared = lambda p: {**p, "estimate": p["x"], "bias": jnp.full(8, 0.5)}  # noqa: E731
    weak = lambda key: shared(network.init(key))  # noqa: E731
    assert weak(None)["bias"].weak_type
    for params in (None, weak(None), jax.device_get(weak(None))):
        task = Counted()
        model = Model(network._replace(init=weak), Patches(size=8), task)
        state = jaxdiff.train(model, Diffusion(), iter([batch] * 3), steps=3, params=params)
        assert len(task.traces) == 1
        assert params is None or (np.asarray(params["bias"]) == 0.5).all()
        assert (state.params["bias"] != 0.5).all()


def test_the_average_of_the_weights_follows_its_formula():
    model = Model(linear(8), Patches(size=8), Generate())
    method, optimizer, key = Diffusion(), make_optimizer(1e-1, 300, warmup=5), jax.random.key(0)
    params, opt_state, extra = method.init(model, model.network.init(key), optimizer, 300, key)
    step = make_train_step(method.make_step(model, optimizer, 300), method.weights, ema_decay=0.25)
    state = init_state(params, params, opt_state, key, extra=extra)
    batch = {"wave": np.ones((2, 64), np.float32), "label": np.full(2, -1, np.int32)}
    expected = np.asarray(params["x"])
    for k in range(5):
        state, _ = step(state, batch)
        decay = min(0.25, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["x"])
        np.testing.assert_allclose(state.average["x"], expected, rtol=1e-5, atol=1e-7)
    assert np.abs(expected).max() > 0.1


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(tmp_path):
    saved = []
    state = init_state({}, {}, (), jax.random.key(0))
    step = lambda state, batch: (state._replace(step=state.step + 1), {"loss": batch})  # noqa: E731
    losses = iter([jnp.float32(x) for x in (1.0, 0.9, float("nan"), 0.8)])
    with pytest.raises(TrainingError, match="the loss is nan at step 3"):
        loop(step, state, losses, saved.append, steps=4, log_path=tmp_path / "l", log_every=1, save_every=2)
    assert [int(state.step) for state in saved] == [2]


def counting(weights=lambda step: 1.0, loss=lambda step: 1.0):
    """A train step and a state whose weights and losses are given numbers."""
    state = init_state({"w": jnp.float32(1)}, {}, (), jax.random.key(0))

    def train_step(state, batch):
        step = int(state.step) + 1
        params = {"w": jnp.float32(weights(step))}
        return state._replace(step=jnp.int32(step), params=params), {"loss": jnp.float32(loss(step))}

    return train_step, state


def test_what_is_saved_is_finite_and_the_advice_fits():
    nan, saved = float("nan"), []
    lower, anew = "run again with a lower learning rate", "before any update, so look for its reason in the sounds"
    for parts, begin, sentence, steps in [
        ({"weights": lambda step: 1e30 if step >= 6 else 1.0}, 0, f"weights is inf after step 6; {lower}", [3]),
        ({"weights": lambda step: nan if step >= 6 else 1.0}, 0, f"weights is nan after step 6; {lower}", [3]),
        ({"loss": lambda step: nan if step >= 6 else 1.0}, 0, f"the loss is nan at step 6; {lower}", [3]),
        ({"loss": lambda step: nan}, 0, f"the loss is nan at step 1; {anew}", []),
        ({"loss": lambda step: nan}, 7, "nan at step 8; the checkpoint of step 7 cannot be trained on, remove it", []),
    ]:
        step, state = counting(**parts)
        saved.clear()
        with pytest.raises(TrainingError, match=sentence):
            state = state._replace(step=jnp.int32(begin))
            loop(step, state, iter(range(9)), saved.append, steps=9, log_every=4, save_every=3)
        assert [int(state.step) for state in saved] == steps


def test_no_finished_step_is_lost_to_an_error():
    def failing(error):
        yield from range(5)
        raise error

    def save(state):
        saved.append(int(state.step))
        if str(error) == "full" and len(saved) == 1:
            raise error

    for error, steps in [
        (AudioError("vanished"), [3, 5]),
        (KeyboardInterrupt("twice"), [3, 5]),
        (MemoryError("much"), [3]),
        (CheckpointError("full"), [3]),
    ]:
        saved, (step, state) = [], counting()
        with pytest.raises(type(error), match=str(error)):
            loop(step, state, failing(error), save, steps=9, save_every=3)
        assert saved == steps


def test_a_state_is_saved_before_events_and_no_interval_is_never(tmp_path):
    done, (step, state) = [], counting()
    events = [Every(2, lambda state, metrics: done.append(("event", int(state.step)))), Every(0, lambda *_: 1 / 0)]
    save = lambda state: done.append(("save", int(state.step)))  # noqa: E731
    loop(step, state, iter(range(4)), save, steps=4, log_every=0, save_every=2, events=events, log_path=tmp_path / "l")
    assert done == [("save", 2), ("event", 2), ("save", 4), ("event", 4)]
    assert [json.loads(line)["step"] for line in (tmp_path / "l").read_text().splitlines()] == [2, 4]


# --- methods ---


@pytest.fixture
def small_discriminators(monkeypatch):
    """One of a kind: compiling many is most of the time of the tests that use them."""
    monkeypatch.setattr(discriminators, "PERIODS", (2,))
    monkeypatch.setattr(adversarial, "RESOLUTIONS", ((256, 64),))


def resumed(config, workdir, step, copy):
    """A run that goes on from the checkpoint of a step of another run."""
    shutil.copytree(workdir / "checkpoints" / str(step), copy / "checkpoints" / str(step))
    assert run(config, copy) is None
    return copy


@pytest.mark.slow
def test_a_vocoder_trains_against_discriminators_and_resumes_bit_for_bit(folder, tmp_path, small_discriminators):
    tiny = {"data.path": str(folder), "data.seconds": "0.128", "task.n_fft": "256", "task.hop_length": "64",
            "task.n_mels": "20", "representation.n_fft": "256", "representation.hop_length": "64",
            "network.width": "16", "network.depth": "1", "method.begin": "0.5", "method.segment": "0.1",
            "method.period_width": "1", "method.spectral_width": "2", "method.mel_weight": "0", "train.steps": "8",
            "train.batch": "2", "train.sample_every": "0", "train.save_every": "6", "train.log_every": "1"}  # fmt: skip
    config = configuration.load_config(CONFIGS / "gan_vocoder.yaml", tiny)
    run(config, tmp_path / "a")
    resumed(config, tmp_path / "a", 6, tmp_path / "b")
    assert_same(*(last_state(tmp_path / name, config, ()) for name in "ab"))
    logged = rows(tmp_path / "a")
    assert [row["discriminator"] > 0 for row in logged] == [False] * 4 + [True] * 4
    assert [row["loss"] > row["distance"] for row in logged] == [False] * 4 + [True] * 4
    sound = 0.1 * np.random.default_rng(0).standard_normal((2, 2000)).astype(np.float32)
    (wave,) = load(tmp_path / "a")(sound, sr=16_000, seed=3).waves
    assert wave.shape == sound.shape
    assert np.isfinite(wave).all() and wave.std() > 0


@pytest.fixture(scope="module")
def few(folder, tmp_path_factory):
    """A run of method shortcut and its configuration."""
    method = {"kind": "shortcut", "begin": 0.5, "every": 2, "levels": 3}
    config = small(folder, PATCHES | TRANSFORMER | {"method": method}, steps=60, learning_rate=1e-2)
    workdir = tmp_path_factory.mktemp("few")
    run(config, workdir)
    return config, workdir


class Volume(nnx.Module):
    """A discriminator that knows one number; compiling real ones is half the time."""

    def __init__(self, resolutions, *, period_width, spectral_width, rngs):
        self.gain = nnx.Param(jnp.ones(()))

    def __call__(self, wave, magnitudes):
        return [Judgement(self.gain[...] * wave**2, (wave,))]


@pytest.mark.slow
def test_a_few_step_model_is_trained_further_from_its_run(few, tmp_path, monkeypatch):
    monkeypatch.setattr(adversarial, "Discriminators", Volume)
    shortcut, workdir = few
    game = {"kind": "adversarial", "jumps": True, "steps": 2, "begin": 0.0}
    game |= {"x0_weight": 1.0, "stft_weight": 0.0, "mel_weight": 0.0}  # what takes no time to compile
    tree = {**to_dict(shortcut), "method": game}
    tree["train"] |= {"steps": 1, "learning_rate": 1e-30, "init": str(workdir)}
    config = from_dict(tree)
    run(config, tmp_path / "game")
    before, after = load(workdir), load(tmp_path / "game")
    made, expected = (np.stack(output.waves) for output in (after(count=2), before(count=2, steps=2)))
    assert max_relative(made, expected) <= 1e-5
    with pytest.raises(ConfigError, match="lacks; method.kind was shortcut and is adversarial .*by method.jumps"):
        run(from_dict({**to_dict(config), "method": {**game, "jumps": False}}), tmp_path / "x")
    with pytest.raises(ConfigError, match=r"has the shape .*; network.width was 16 and is 32; set them alike"):
        run(from_dict({**to_dict(config), "network": {**TRANSFORMER["network"], "width": 32}}), tmp_path / "y")
    said, fits = [], {**to_dict(config)["network"], "label_dropout": 0.25}  # an option that shapes no weight
    run(from_dict({**to_dict(config), "network": fits}), tmp_path / "z", report=said.append)
    assert sum("was trained with network.label_dropout 0.1, here it is 0.25" in line for line in said) == 1


@pytest.mark.slow
def test_weights_of_other_classes_begin_as_those_of_no_class(few, tmp_path):
    config, workdir = few
    there = load(workdir)
    shared, *others = there.classes
    corpus = Path(config.data.path)
    for name, new in ((shared, shared), (others[0], "0 new")):
        shutil.copytree(corpus / name, tmp_path / "corpus" / new)
    tree = to_dict(config)
    tree["data"] |= {"path": str(tmp_path / "corpus")}
    tree["train"] |= {"steps": 1, "learning_rate": 1e-30, "weight_decay": 0.0, "init": str(workdir)}
    said: list[str] = []
    run(from_dict(tree), tmp_path / "run", report=said.append)
    here = load(tmp_path / "run")
    assert here.classes == ("0 new", shared)
    before, after = (np.asarray(pipeline.params["label"]["table"]) for pipeline in (there, here))
    np.testing.assert_allclose(after, before[[-1, 0, -1]], rtol=1e-6)
    assert sum("begin as none told: 0 new" in line for line in said) == 1
    flat = next(iter(sorted((corpus / shared).iterdir())))
    (tmp_path / "flat").mkdir()
    for k in range(3):
        shutil.copyfile(flat, tmp_path / "flat" / f"{k}{flat.suffix}")
    tree["data"]["path"] = str(tmp_path / "flat")
    with pytest.raises(ConfigError, match="on classes .*, here are none"):
        run(from_dict(tree), tmp_path / "no")


METHODS = {
    "importance": None,  # the run of `sixty`
    "edm": {
        "prediction": "edm",
        "schedule": {"kind": "edm"},
        "times": "lognormal",
        "times_mean": -1.2,
        "weight": "edm",
    },
    "shortcut": None,  # the run of `few`
    "regression": {"kind": "regression"},
    "autoregression": {"kind": "autoregression", "output": "mu_law"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_samples(folder, request, tmp_path, name):
    parts = {"method": METHODS[name]} | (TRANSFORMER if name != "regression" else {})
    if name == "edm":
        parts |= PATCHES
    if name == "autoregression":
        parts |= {"network": {"kind": "causal_wavenet", "channels": 8, "layers": 3}, "normalize": {"enabled": False}}
        parts |= {"representation": {"kind": "patches", "size": 1}, "data": {"crop": "start", "seconds": 0.064}}
    if METHODS[name] is None:
        config, workdir, *_ = request.getfixturevalue("sixty" if name == "importance" else "few")
    else:
        config, workdir = small(folder, parts, steps=60, learning_rate=1e-2), tmp_path
        run(config, workdir)
    losses = [loss for _, loss, _ in log(workdir)]
    assert np.mean(losses[-15:]) < 0.97 * np.mean(losses[:15])
    pipeline, method = load(workdir), type(config.method).__name__
    if "steps" in config.method.knobs:
        waves = pipeline(count=2, steps=3).waves
    else:
        with pytest.raises(ConfigError, match=f"steps: method {method} has no such option"):
            pipeline(count=2, steps=3)
        waves = pipeline(count=2).waves
    assert np.isfinite(waves).all() and np.std(waves) > 0


@pytest.mark.slow
def test_the_auxiliary_loss_is_added():
    """The first losses of trainings that differ in its weight alone, of one program."""
    model, key = Model(linear(64), Patches(size=64), Generate()), jax.random.key(0)
    batch = {"wave": 0.1 * jax.random.normal(key, (2, 4096)), "label": jnp.full(2, -1)}
    params, optimizer = model.network.init(key), make_optimizer(1e-3, 10)
    state = init_state(params, params, optimizer.init(params), key)

    auxiliaries: list[tuple[AuxiliaryName, float]] = [("none", 1), ("mel", 0), ("mel", 2)]

    @jax.jit
    def losses(state):
        methods = [Diffusion(auxiliary=name, auxiliary_weight=w) for name, w in auxiliaries]
        return [method.make_step(model, optimizer, 10)(state, batch, key)[1] for method in methods]

    none, nothing, twice = jax.device_get(losses(state))
    assert "auxiliary" not in none and nothing["auxiliary"] == 0
    assert nothing["loss"] == pytest.approx(none["loss"], rel=1e-6)
    assert twice["auxiliary"] > 0
    assert twice["loss"] == pytest.approx(none["loss"] + twice["auxiliary"], rel=1e-5)


# --- parts of one's own ---


@dataclasses.dataclass(frozen=True)
class Restore(Task):
    """Known: a sound that something happened to. Made: its partner, what it was before."""

    inputs = ("target",)
    needs_sound = True
    gives_start = True

    def example(self, representation, batch, key):
        return Example(representation.encode(self.leveled(batch["target"])), self.given(representation, batch))

    def given(self, representation, batch, request=None):
        return Given(start=representation.encode(batch["wave"]))


@pytest.mark.slow
def test_a_bridge_of_ones_own_task_trains_resumes_and_samples(tmp_path):
    """Sounds and their targets, -2 times as loud: what is learned is a matrix, and the sound that is made exact."""
    rng, rate = np.random.default_rng(0), 8000
    for i in range(6):
        wave = rng.uniform(-0.4, 0.4, 1500 + 100 * i).astype(np.float32)
        for name, factor in (("wave", 1), ("target", -2)):
            (tmp_path / name / "all").mkdir(parents=True, exist_ok=True)
            write_audio(tmp_path / name / "all" / f"{i}.wav", factor * wave, rate)
    corpus, target = (open_corpus(str(tmp_path / name)) for name in ("wave", "target"))
    crop, further = Crop(512, rate), Further(paired={"target": target})
    read = lambda start: batches(corpus, crop, 4, seed=1, start=start, memory=1e6, further=further)  # noqa: E731
    model, method = Model(linear(4), Patches(rate, size=4), Restore()), Bridge()
    train = lambda name, *callbacks: jaxdiff.train(  # noqa: E731
        model,
        method,
        read,
        optax.adam(optax.cosine_decay_schedule(0.2, 90)),
        steps=90,
        ema_decay=0.5,
        workdir=tmp_path / name,
        callbacks=callbacks,
    )
    stop = Every(50, lambda state, metrics: os.kill(os.getpid(), signal.SIGTERM))
    whole, part = train("a"), train("b", stop)
    assert (int(whole.step), int(part.step)) == (90, 50)
    assert_same(whole, train("b"))
    assert_same(whole, train("b"))  # and a finished training is what it was

    for pipeline in (Pipeline(model, method, whole.average), load(tmp_path / "a", model=model, method=method)):
        sound = rng.uniform(-0.4, 0.4, (2, 1111)).astype(np.float32)
        (made,) = pipeline(sound, sr=rate, steps=4).waves
        assert max_relative(made, -2 * sound) <= 0.02
    assert (pipeline.step, pipeline.seconds) == (90, 512 / rate)
    with pytest.raises(CheckpointError, match="parts of its own; give load"):
        load(tmp_path / "a")
    with pytest.raises(ConfigError, match="works on a sound"):
        pipeline(count=2)
    with pytest.raises(ValueError, match="method bridge needs a task that gives a start"):
        jaxdiff.train(model._replace(task=Generate()), method, read, steps=1)


def test_parts_that_do_not_fit_are_refused_before_any_step():
    model = Model(linear(9), jaxdiff.features.LogMel(n_fft=64, hop_length=16, n_mels=9), Generate())
    with pytest.raises(ValueError, match="auxiliary stft needs a representation that decodes exactly, got LogMel"):
        jaxdiff.train(model, Regression(auxiliary="stft"), iter([]), steps=1)


# --- the configurations that ship ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "one_shots", "few_step", "diffwave", "wavenet", "lstm_baseline"])
def test_shipped_configurations_train_and_make_sound_in_two_tiny_steps(name, folder, tmp_path):
    """The network of each is built as it ships; but for the quick start's it is made small to be trained."""
    file = CONFIGS / f"{name}.yaml"
    shipped = configuration.model(configuration.load_config(file), (), None)
    assert count_params(shipped.network.shapes()) > 20_000
    tiny = {"data.path": str(folder), "data.seconds": "0.128", "train.steps": "2", "train.batch": "2",
            "train.sample_every": "0", "normalize.crops": "16", "sampling.steps": "2"}  # fmt: skip
    if name in ("wavenet", "diffwave"):
        tiny |= {"network.layers": "1" if name == "wavenet" else "3", "network.channels": "8"}
    elif name != "quickstart":
        tiny |= {"network.depth": "1", "network.width": "32", "representation.n_iter": "2"}
    if name == "diffwave":
        tiny |= {"data.seconds": "0.0928798"}
    else:
        tiny |= {"network.label_dropout": "0.1"}
    run(configuration.load_config(file, tiny), tmp_path)
    pipeline = load(tmp_path)
    if pipeline.model.task.needs_sound:
        sound = np.sin(0.3 * np.arange(3000, dtype=np.float32))
        waves = pipeline([sound, sound[:1000]], sr=pipeline.sample_rate, seed=3).waves
        assert [len(wave) for wave in waves] == [3000, 1000]
    else:
        waves = pipeline(count=2, seed=3).waves
    wave = np.concatenate(waves)
    assert np.isfinite(wave).all()
    assert wave.std() > 0


def test_diffwave_configuration_is_base():
    config = configuration.load_config(CONFIGS / "diffwave.yaml")
    assert count_params(configuration.model(config, (), None).network.shapes()) == 2_637_305


@pytest.mark.parametrize("level", [0.0, 1e-7, 2e-5])
def test_a_corpus_of_silence_is_refused(level, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        wave = (level * rng.uniform(-1, 1, 8000)).astype(np.float32)
        (tmp_path / "in").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "in" / f"{i}.wav", wave, 8000, subtype="FLOAT")
    quiet = {**SMALL, "representation": {**SMALL["representation"], "floor_db": -60}}
    with pytest.raises(AudioError, match="silent|as silence has"):
        runs.run(small(tmp_path / "in", quiet), tmp_path / "w", report=lambda text: None)
