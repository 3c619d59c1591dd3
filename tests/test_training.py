"""Training on real crops: one program, exact resume, damaged checkpoints, and learning that a test can see."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import max_relative

from jaxdiff import adversarial, load, methods, runs
from jaxdiff import config as configuration
from jaxdiff.config import ConfigError, from_dict, to_dict
from jaxdiff.data import AudioError
from jaxdiff.data.orchestra import write_orchestra
from jaxdiff.networks import count_params, discriminators
from jaxdiff.pipeline import abstract_params, build_model, init_params
from jaxdiff.training import (
    CheckpointError,
    Hooks,
    TrainingError,
    checkpoints,
    init_state,
    make_optimizer,
    make_train_step,
    train,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {
    "data": {"crop": "start", "seconds": 0.256},
    "representation": {"kind": "log_mel", "n_fft": 256, "hop_length": 128, "n_mels": 16},
    "network": {"kind": "wavenet", "channels": 16, "layers": 2, "embedding": 16},
    "normalize": {"crops": 32},
    "train": {"steps": 20, "batch": 4, "log_every": 1, "sample_every": 0, "save_every": 0, "warmup": 5},
    "sampling": {"steps": 2, "sampler": "euler"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_orchestra(tmp_path_factory.mktemp("orchestra"), count=3)


def small(folder, **train):
    tree = {**SMALL, "data": {**SMALL["data"], "path": str(folder)}, "train": {**SMALL["train"], **train}}
    return from_dict(tree)


def last_state(workdir, config, classes=8):
    directory = workdir / "checkpoints"
    step, _ = checkpoints.latest(directory)
    features = build_model(config, classes, None).features
    key = jax.random.key(0)
    like = jax.eval_shape(lambda: methods.init_state(config, init_params(config, features, classes, key), key))
    vector = jax.ShapeDtypeStruct((features,), jnp.float32)
    state, normalization = checkpoints.restore_state(
        directory, step, like, runs.Normalization(vector, vector) if config.normalize.enabled else None
    )
    return state, normalization


def leaves(tree):
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
            for x in jax.tree.leaves(tree)]  # fmt: skip


def log(workdir):
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"], r["gradient_norm"]) for r in rows]


class Interrupt:
    """Ends a real run after `steps`, the way a signal does: after a step, before the next batch."""

    def __init__(self, monkeypatch, steps):
        import os
        import signal

        real = runs.methods.train_step

        def make(*args, **kwargs):
            step_function, done = real(*args, **kwargs), 0

            def step(state, batch):
                nonlocal done
                done += 1
                if done == steps:
                    os.kill(os.getpid(), signal.SIGTERM)
                return step_function(state, batch)

            return step

        monkeypatch.setattr(runs.methods, "train_step", make)


def test_twenty_steps_equal_nine_stop_resume_eleven(folder, tmp_path, monkeypatch):
    config = small(folder)
    assert runs.run(config, tmp_path / "a", report=lambda _: None) is None
    with monkeypatch.context() as patch:
        Interrupt(patch, 9)
        assert runs.run(config, tmp_path / "b", report=lambda _: None) == 15
    assert checkpoints.latest(tmp_path / "b" / "checkpoints")[0] == 9
    assert runs.run(config, tmp_path / "b", report=lambda _: None) is None
    a, b = (last_state(tmp_path / name, config) for name in "ab")
    assert int(a[0].step) == int(b[0].step) == 20
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert log(tmp_path / "a") == log(tmp_path / "b")
    other = last_state_of_other_seed(folder, tmp_path)
    assert any((x != y).any() for x, y in zip(leaves(a), leaves(other), strict=True))


def last_state_of_other_seed(folder, tmp_path):
    config = small(folder, seed=1)
    runs.run(config, tmp_path / "c", report=lambda _: None)
    return last_state(tmp_path / "c", config)


def test_damaged_checkpoints_are_noticed_and_passed_over(folder, tmp_path):
    config = small(folder, steps=4, save_every=2)
    runs.run(config, tmp_path, report=lambda _: None)
    directory = tmp_path / "checkpoints"
    assert sorted(p.name for p in directory.iterdir()) == ["2", "4"]
    victim = max((directory / "4" / "model").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    pipeline = load(tmp_path)
    assert pipeline.step == 2
    assert "damaged" in pipeline.warnings[0]
    (directory / "2" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="move .* away"):
        runs.run(config, tmp_path, report=lambda _: None)


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no training has saved anything"):
        load(tmp_path / "nowhere")


def toy_objective():
    diffusion = {"schedule": {"kind": "cosine"}, "prediction": "v", "weight": "constant", "times": "uniform"}
    return methods.objective(from_dict({"method": diffusion}), None)


def toy(config, num_classes=2):
    model = build_model(config, num_classes, None)
    key = jax.random.key(0)
    params = init_params(config, model.features, num_classes, key)
    optimizer = make_optimizer(1e-3, 300, warmup=5)
    return model, params, optimizer, key


def toy_config(**network):
    return from_dict({
        "data": {"seconds": 0.032},
        "representation": {"kind": "patches", "size": 32},
        "normalize": {"enabled": False},
        "network": {"kind": "wavenet", "channels": 16, "layers": 2, "embedding": 16, **network},
    })  # fmt: skip


def test_three_hundred_steps_trace_once_and_learn():
    model, params, optimizer, key = toy(toy_config())
    traces = 0

    def example(batch, key):
        nonlocal traces
        traces += 1
        return model.task.example(batch, key)

    step = make_train_step(model.graphdef, model.task._replace(example=example), toy_objective(), optimizer)
    state = init_state(params, optimizer, key)
    wave = np.sin(np.outer([0.1, 0.3, 0.1, 0.3], np.arange(512))).astype(np.float32) * 2
    batch = {"wave": wave, "label": np.array([0, 1, 0, 1], np.int32)}
    losses = []
    for _ in range(300):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    assert traces == 1
    assert np.mean(losses[-30:]) < 0.7 * np.mean(losses[:10])
    assert int(state.step) == 300


def test_the_average_of_the_weights_follows_its_formula():
    model, params, optimizer, key = toy(toy_config())
    step = make_train_step(model.graphdef, model.task, toy_objective(), optimizer, ema_decay=0.25)
    state = init_state(params, optimizer, key)
    batch = {"wave": np.ones((2, 512), np.float32), "label": np.zeros(2, np.int32)}
    expected = np.asarray(jax.tree.leaves(params)[3])
    for k in range(5):
        state, _ = step(state, batch)
        decay = min(0.25, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * np.asarray(jax.tree.leaves(state.params)[3])
        np.testing.assert_allclose(jax.tree.leaves(state.ema_params)[3], expected, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(tmp_path):
    saved = []
    hooks = Hooks(save=lambda state: saved.append(state), sample=lambda state: None)
    state = init_state({}, optax.sgd(0.1), jax.random.key(0))
    step = lambda state, batch: (state._replace(step=state.step + 1), {"loss": batch})  # noqa: E731
    losses = iter([jnp.float32(x) for x in (1.0, 0.9, float("nan"), 0.8)])
    with pytest.raises(TrainingError, match="the loss is nan at step 3"):
        train(step, state, losses, hooks, steps=4, seconds_per_step=1, log_path=tmp_path / "l", log_every=1)
    assert not saved


def test_class_change_is_refused_on_resume(folder, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    config = small(copy, steps=1)
    runs.run(config, tmp_path / "w", report=lambda _: None)
    shutil.rmtree(copy / "kick")
    with pytest.raises(ConfigError, match="has classes"):
        runs.run(small(copy, steps=2), tmp_path / "w", report=lambda _: None)
    shutil.rmtree(copy)
    with pytest.raises(AudioError, match="no such folder"):
        runs.run(small(copy, steps=2), tmp_path / "w", report=lambda _: None)


@pytest.mark.parametrize("name", ["quickstart", "one_shots", "few_step", "diffwave", "wavenet", "lstm_baseline"])
def test_shipped_configurations_train_and_generate_in_two_tiny_steps(name, folder, tmp_path):
    path = configuration.Path(__file__).parent.parent / "configs" / f"{name}.yaml"
    tiny = {"data.path": str(folder), "train.steps": "2", "train.batch": "2", "train.sample_every": "0",
            "normalize.crops": "16", "sampling.steps": "2"}  # fmt: skip
    if name in ("few_step", "wavenet", "lstm_baseline"):
        tiny |= {"network.depth" if name != "wavenet" else "network.layers": "1", "network.label_dropout": "0.1"}
        tiny |= {"data.seconds": "0.128"}
    if name == "diffwave":
        tiny |= {"network.layers": "3", "network.channels": "8", "data.seconds": "0.0928798"}
    runs.run(configuration.load_config(path, tiny), tmp_path, report=lambda _: None)
    wave = load(tmp_path).generate(count=2, seed=3)
    assert np.isfinite(wave).all()
    assert wave.std() > 0


def one_small_discriminator_of_a_kind(monkeypatch):
    """Compiling many is most of the time of these tests."""
    monkeypatch.setattr(discriminators, "PERIODS", (2,))
    monkeypatch.setattr(adversarial, "RESOLUTIONS", ((256, 64),))


def test_a_vocoder_trains_against_discriminators_and_resumes_bit_for_bit(folder, tmp_path, monkeypatch):
    one_small_discriminator_of_a_kind(monkeypatch)
    path = configuration.Path(__file__).parent.parent / "configs" / "gan_vocoder.yaml"
    tiny = {"data.path": str(folder), "data.seconds": "0.128", "task.n_fft": "256", "task.hop_length": "64",
            "task.n_mels": "20", "representation.n_fft": "256", "representation.hop_length": "64",
            "network.width": "16", "network.depth": "1", "method.begin": "0.5", "method.segment": "0.1",
            "method.period_width": "1", "method.spectral_width": "2", "method.mel_weight": "0", "train.steps": "8",
            "train.batch": "2", "train.sample_every": "0", "train.log_every": "1"}  # fmt: skip
    config = configuration.load_config(path, tiny)
    runs.run(config, tmp_path / "a", report=lambda _: None)
    with monkeypatch.context() as patch:
        Interrupt(patch, 6)
        assert runs.run(config, tmp_path / "b", report=lambda _: None) == 15
    runs.run(config, tmp_path / "b", report=lambda _: None)
    first, second = (last_state(tmp_path / name, config, 0)[0] for name in "ab")
    assert all((x == y).all() for x, y in zip(leaves(first), leaves(second), strict=True))
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [row["discriminator"] > 0 for row in rows] == [False] * 4 + [True] * 4
    assert [row["loss"] > row["distance"] for row in rows] == [False] * 4 + [True] * 4
    wave = load(tmp_path / "a").generate(count=2, seed=3)
    assert np.isfinite(wave).all() and wave.std() > 0


def test_a_few_step_model_is_trained_further_from_its_run(folder, tmp_path, monkeypatch):
    one_small_discriminator_of_a_kind(monkeypatch)
    network = {"kind": "transformer", "width": 16, "depth": 1, "heads": 2}
    tree = {**to_dict(small(folder, steps=2)), "network": network, "representation": {"kind": "patches", "size": 64}}
    shortcut = from_dict({**tree, "method": {"kind": "shortcut", "begin": 0.0, "levels": 2}})
    runs.run(shortcut, tmp_path / "few", report=lambda _: None)
    game = {"kind": "adversarial", "jumps": True, "steps": 2, "begin": 0.0, "period_width": 1, "spectral_width": 2}
    game |= {"x0_weight": 1.0, "stft_weight": 0.0, "mel_weight": 0.0}  # what takes no time to compile
    train = {**tree["train"], "steps": 1, "learning_rate": 1e-30, "init": str(tmp_path / "few")}
    config = from_dict({**tree, "method": game, "train": train})
    runs.run(config, tmp_path / "game", report=lambda _: None)
    before, after = load(tmp_path / "few"), load(tmp_path / "game")
    assert max_relative(after.generate(count=2), before.generate(count=2, steps=2)) <= 1e-5
    with pytest.raises(ConfigError, match=r"method shortcut has other weights than method adversarial; .*method.jumps"):
        runs.run(from_dict({**to_dict(config), "method": {**game, "jumps": False}}), tmp_path / "x", report=print)
    with pytest.raises(ConfigError, match="was trained with network .*width=16.*, here it is .*width=32"):
        runs.run(from_dict({**to_dict(config), "network": {**network, "width": 32}}), tmp_path / "y", report=print)


def test_diffwave_configuration_is_base():
    config = configuration.load_config(configuration.Path(__file__).parent.parent / "configs" / "diffwave.yaml")
    assert count_params(abstract_params(config, 1, 0)) == 2_637_305


@pytest.mark.parametrize(
    "method",
    [
        {"times": "importance"},
        {"self_conditioning": True},
        {"prediction": "edm", "schedule": {"kind": "edm"}, "times": "lognormal", "times_mean": -1.2, "weight": "edm"},
        {"kind": "shortcut", "begin": 0.5, "every": 2, "levels": 3},
        {"kind": "regression"},
        {"kind": "autoregression", "output": "mu_law"},
    ],
    ids=lambda d: next(iter(d)) + str(next(iter(d.values()))),
)
def test_every_objective_trains_resumes_and_samples(folder, tmp_path, monkeypatch, method):
    network = {
        "shortcut": {"network": {"kind": "transformer", "width": 16, "depth": 1, "heads": 2}},
        "autoregression": {
            "network": {"kind": "causal_wavenet", "channels": 8, "layers": 3},
            "representation": {"kind": "patches", "size": 1},
            "normalize": {"enabled": False},
        },
    }.get(method.get("kind"), {})
    config = from_dict({**to_dict(small(folder, steps=60, learning_rate=1e-2)), "method": method, **network})
    runs.run(config, tmp_path / "a", report=lambda _: None)
    if method.get("times") == "importance":  # its histogram is part of the state
        with monkeypatch.context() as patch:
            Interrupt(patch, 7)
            assert runs.run(config, tmp_path / "b", report=lambda _: None) == 15
        runs.run(config, tmp_path / "b", report=lambda _: None)
        assert log(tmp_path / "a") == log(tmp_path / "b")
        histogram = last_state(tmp_path / "a", config)[0].histogram
        assert 60 < float(histogram.mass.sum()) <= 240  # 60 steps of 4 items, the older ones faded
        assert float(histogram.square.sum()) > 0
    losses = [loss for _, loss, _ in log(tmp_path / "a")]
    assert np.mean(losses[-15:]) < 0.95 * np.mean(losses[:15])
    pipeline = load(tmp_path / "a")
    if "steps" not in methods.OPTIONS[config.method.kind]:
        with pytest.raises(ConfigError, match=f"steps 3: a model of method {config.method.kind} has none"):
            pipeline.generate(count=2, steps=3)
        assert np.isfinite(pipeline.generate(count=2)).all()
    else:
        assert np.isfinite(pipeline.generate(count=2, steps=3)).all()


def test_the_auxiliary_loss_is_added(folder, tmp_path):
    tree = to_dict(small(folder, steps=3)) | {"representation": {"kind": "patches", "size": 64}}
    for name, weight in (("a", 0.0), ("b", 2.0)):
        extra = {"method": {"auxiliary": "mel", "auxiliary_weight": weight}}
        runs.run(from_dict(tree | extra), tmp_path / name, report=lambda _: None)
    rows = [json.loads((tmp_path / n / "log.jsonl").read_text().splitlines()[0]) for n in "ab"]
    assert rows[0]["auxiliary"] == 0
    assert rows[1]["auxiliary"] > 0
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"] + rows[1]["auxiliary"], rel=1e-5)


def test_averages_of_any_width_can_be_made_afterwards(folder, tmp_path):
    config = small(folder, steps=16, posthoc_ema=True)
    runs.run(config, tmp_path, report=lambda _: None)
    averages = last_state(tmp_path, config)[0].averages
    for width, average in zip((0.05, 0.10), averages, strict=True):  # a width that was kept comes back as it was
        made = load(tmp_path, ema=width).params
        for a, b in zip(leaves(made), leaves(average), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1.0, np.abs(b).max()))
    between = leaves(load(tmp_path, ema=0.07).params)
    distance = lambda x, y: sum(float(((a - b) ** 2).sum()) for a, b in zip(x, y, strict=True))  # noqa: E731
    ends = [leaves(a) for a in averages]
    assert 0 < distance(between, ends[0]) < distance(*ends)
    assert 0 < distance(between, ends[1]) < distance(*ends)
    damaged = next((tmp_path / "snapshots" / "8").rglob("*.json"))
    damaged.write_text("{}")
    assert load(tmp_path, ema=0.07).step == 16  # passed over
    runs.run(small(folder, steps=2), tmp_path / "other", report=lambda _: None)
    with pytest.raises(CheckpointError, match="no snapshots"):
        load(tmp_path / "other", ema=0.07)
