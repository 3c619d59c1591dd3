"""The doctor: a healthy run is called so, and each fault that is put into a run is named by the diagnosis."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config as configuration
from jaxdiff import run as runs
from jaxdiff.cli.doctor import Doctor
from jaxdiff.config import ConfigError, from_dict
from jaxdiff.data import write_audio
from jaxdiff.doctor import CAUSES, Finding, corpus, diagnosis, examine
from jaxdiff.features import fit_normalization
from jaxdiff.inference import export, load
from jaxdiff.training import checkpoints, init_state, make_optimizer

RATE = 8000
SMALL = {
    "data": {"crop": "start", "seconds": 0.512, "sample_rate": RATE},
    "representation": {"kind": "log_mel", "n_fft": 256, "hop_length": 128, "n_mels": 24, "n_iter": 4},
    "network": {"kind": "transformer", "width": 32, "depth": 2, "heads": 2, "absolute_positions": True},
    "method": {"times": "uniform"},
    "normalize": {"crops": 64},
    "train": {"steps": 400, "batch": 8, "learning_rate": 1e-2, "warmup": 10, "ema_decay": 0.9, "log_every": 5,
              "sample_every": 0, "save_every": 250},
    "sampling": {"steps": 8, "sampler": "heun"},
}  # fmt: skip


def tones(folder, count=24):
    """Notes of two kinds that nothing tells apart beforehand: low ones that die away and high ones that swell."""
    rng, t = np.random.default_rng(0), np.arange(round(0.55 * RATE)) / RATE
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        hz, envelope = (rng.uniform(300, 330), np.exp(-t / 0.1)) if i % 2 else (rng.uniform(1800, 1900), t / 0.55)
        wave = rng.uniform(0.3, 0.6) * envelope * np.sin(2 * np.pi * hz * t + rng.uniform(0, 6))
        write_audio(folder / f"{i:02d}.wav", (wave + 1e-3 * rng.standard_normal(len(t))).astype(np.float32), RATE)
    return folder


def trained(root, **train):
    """A run on the tones in `root`."""
    config = {**SMALL, "data": {**SMALL["data"], "path": str(tones(root / "sounds"))}}
    runs.run(from_dict({**config, "train": {**SMALL["train"], **train}}), root / "run", report=lambda text: None)
    return root / "run"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of 6 steps with checkpoints at 3 and 6."""
    return trained(tmp_path_factory.mktemp("short"), steps=6, save_every=3, log_every=1)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A run of 400 steps with checkpoints at 250 and 400."""
    return trained(tmp_path_factory.mktemp("healthy"))


def by_name(findings) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def first_bad(source: Path, **options) -> tuple[Finding, str]:
    """The first bad finding, and the diagnosis as far as that."""
    findings = []
    for finding in examine(source, steps=0, **options):
        findings.append(finding)
        if finding.verdict == "bad":
            return finding, diagnosis(findings)
    raise AssertionError(f"nothing is bad: {findings}")


def altered(run, folder, *, state=lambda state: state, normalization=None, **config):
    """A copy of a run whose last checkpoint holds another state, normalisation or configuration."""
    pipeline, directory = load(run), run / "checkpoints"
    c: Any = pipeline.config
    t, key, model = c.train, jax.random.key(c.train.seed), configuration.model(c, pipeline.classes, None)

    def fresh():
        optimizer = make_optimizer(t.learning_rate, t.steps)
        params, opt_state, extra = c.method.init(model, model.network.init(key), optimizer, t.steps, key)
        return init_state(params, params, opt_state, key, extra=extra)

    like = jax.eval_shape(fresh)
    r: Any = pipeline.model.representation
    own = r.normalization
    found, _ = checkpoints.restore_state(directory, pipeline.step, like, own)
    meta = checkpoints.read_meta(directory, pipeline.step)
    for group, values in config.items():
        meta["config"][group] |= values
    shutil.copytree(run, folder)
    checkpoints.save(folder / "checkpoints", state(found), own if normalization is None else normalization, meta)
    return folder


def files_of(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_a_healthy_run_is_good_and_is_not_changed(healthy):
    before = files_of(healthy)
    findings = list(examine(healthy, steps=40))
    assert {f.name: f.verdict for f in findings if f.verdict not in ("good", "not looked at")} == {}
    assert [f.name for f in findings if f.verdict == "not looked at"] == ["condition used"]
    assert diagnosis(findings) == "Nothing is wrong in what was looked at."
    assert {f.name for f in findings} >= set(CAUSES)
    assert files_of(healthy) == before


# --- faults ---


def test_a_loss_that_is_not_finite_is_found_in_the_log(short, tmp_path):
    run = shutil.copytree(short, tmp_path / "run")
    rows = (run / "log.jsonl").read_text().splitlines()
    rows[2] = json.dumps({**json.loads(rows[2]), "loss": float("nan")})
    (run / "log.jsonl").write_text("\n".join(rows))
    finding, said = first_bad(run)
    assert finding.name == "loss finite"
    assert said.startswith("Training diverged. The loss is not a finite number at step 3")


@pytest.mark.parametrize(("losses", "name"), [((9, 1), None), ((9, 9), "loss falls")])
def test_a_loss_that_does_not_fall_is_found_in_the_log(short, tmp_path, losses, name):
    run = shutil.copytree(short, tmp_path / "run")
    values = np.linspace(losses[0], losses[1] + 1, 60)
    rows = [{"step": 5 * i, "loss": float(value), "gradient_norm": 0.5} for i, value in enumerate(values, 1)]
    (run / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = {}
    for finding in examine(run, steps=0):
        found[finding.name] = finding
        if finding.name == "gradient norm":
            break
    assert [n for n, finding in found.items() if finding.verdict == "bad"] == ([] if name is None else [name])


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_looked_at(short, tmp_path):
    run = shutil.copytree(short, tmp_path / "run")
    victim = max((run / "checkpoints" / "6" / "model").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    finding, said = first_bad(run)
    assert (finding.name, finding.value) == ("checkpoint", "step 3")
    assert said.startswith("The newest checkpoint cannot be used.") and "6: damaged" in said


def test_silent_files_are_named(short, tmp_path):
    sounds = shutil.copytree(short.parent / "sounds", tmp_path / "sounds")
    for file in sorted(sounds.iterdir())[:10]:
        write_audio(file, np.zeros(4400, np.float32), RATE)
    finding, said = first_bad(altered(short, tmp_path / "run", data={"path": str(sounds)}))
    assert finding.name == "silent crops"
    assert said.startswith("Much of the corpus is silent.")


def test_the_normalisation_of_another_corpus_is_named(short, tmp_path):
    r: Any = load(short).model.representation
    noise = np.random.default_rng(1).uniform(-1, 1, (8, 4096)).astype(np.float32)
    run = altered(short, tmp_path / "run", normalization=fit_normalization(r.representation.encode, [noise]))
    finding, said = first_bad(run)
    assert finding.name == "normalisation"
    assert said.startswith("The features are not those that the network was trained on.")


@pytest.mark.slow
def test_a_dead_branch_is_named(healthy, tmp_path):
    """The second block's hidden layer and what follows it are 0, so that neither lets a gradient through."""

    def kill(state):
        weights = [jax.tree.map(jnp.asarray, tree) for tree in (state.params, state.average)]
        for tree in weights:
            for layer, leaf in (("mlp_input", "kernel"), ("mlp_input", "bias"), ("mlp_output", "kernel")):
                tree["blocks"][layer][leaf] = tree["blocks"][layer][leaf].at[1].set(0)
        return state._replace(params=weights[0], average=weights[1])

    finding, said = first_bad(altered(healthy, tmp_path / "run", state=kill))
    assert finding.name == "gradients"
    assert "blocks.mlp_input.kernel[1], blocks.mlp_output.kernel[1]" in finding.sentence
    assert said.startswith("A part of the network does not learn.")


@pytest.mark.slow
def test_an_average_that_has_not_caught_up_is_named(healthy, tmp_path):
    """After 400 steps a decay of 0.9999 from the first step on leaves 96 % of the weights that training began with."""

    def lag(state):
        fresh = load(healthy).model.network.init(state.key)
        keep = 0.9999**400
        return state._replace(average=jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, fresh, state.params))

    finding, said = first_bad(altered(healthy, tmp_path / "run", state=lag))
    assert finding.name == "average"
    assert said.startswith("The samples are made with an average of the weights that has not caught up.")


@pytest.mark.slow
def test_an_exported_file_of_other_weights_is_named(healthy, tmp_path):
    older = shutil.copytree(healthy, tmp_path / "older")
    shutil.rmtree(older / "checkpoints" / "400")
    finding, said = first_bad(healthy, exported=export(load(older), tmp_path / "older.safetensors"))
    assert finding.name == "export"
    assert said.startswith("The exported file is not the run.")


@pytest.mark.slow
def test_too_few_sampling_steps_are_named(healthy, tmp_path):
    """One Euler step gives the mean of all notes, which is none of them."""
    run = altered(healthy, tmp_path / "run", sampling={"sampler": "euler", "steps": 1})
    verdicts = {finding.name: finding.verdict for finding in examine(run, steps=0)}
    assert verdicts["sampling steps"] in ("doubtful", "bad")  # near the limit between them


# --- what else it looks at ---


def test_a_diagnosis_names_the_first_cause_and_what_it_may_explain():
    bad = [Finding(name, "bad", "", f"About {name}.") for name in ("samples", "average")]
    fine = Finding("loss", "good", "", "Fine.")
    assert diagnosis([*bad, fine]) == (
        "The samples are made with an average of the weights that has not caught up. About average. This may explain "
        "what else is bad: samples."
    )
    assert diagnosis([fine, fine._replace(verdict="doubtful")]) == "Nothing is bad. Doubtful: loss."


@pytest.mark.slow
def test_a_configuration_is_looked_at_as_far_as_it_can_be(short, tmp_path):
    file = tmp_path / "config.yaml"
    shutil.copyfile(short / "config.yaml", file)
    found = by_name(examine(file, steps=0))
    assert {f.verdict for f in found.values()} == {"good", "not looked at"}
    assert [n for n, f in found.items() if f.verdict == "good"] == [
        "configuration", "corpus", "silent crops", "clipped crops", "level", "normalisation", "representation",
        "gradients",
    ]  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(file.read_text().replace(str(short.parent / "sounds"), str(tmp_path / "gone")))
    finding, said = first_bad(run)
    assert finding.name == "corpus"
    assert "gone: no such folder of sounds" in said


def test_what_is_neither_a_run_nor_a_configuration_is_refused(short, tmp_path):
    with pytest.raises(ConfigError, match="neither the work directory of a run nor a configuration"):
        list(examine(tmp_path))
    with pytest.raises(ConfigError, match="neither the work directory of a run nor a configuration"):
        list(examine(tmp_path / "model.safetensors"))
    (tmp_path / "config.yaml").write_text("train: {stps: 3}")
    with pytest.raises(ConfigError, match="did you mean train.steps"):
        list(examine(tmp_path / "config.yaml"))
    finding, _ = first_bad(tmp_path)
    assert finding.name == "configuration"


OTHERS = {
    "regression": {"task": {"kind": "vocode", "n_fft": 256, "hop_length": 64, "n_mels": 16},
                   "representation": {"kind": "compressed_stft", "n_fft": 256, "hop_length": 64},
                   "method": {"kind": "regression"}, "normalize": {"enabled": False}},
    "autoregression": {"data": {"seconds": 0.032}, "representation": {"kind": "patches", "size": 1},
                       "network": {"kind": "causal_wavenet", "channels": 8, "layers": 3},
                       "method": {"kind": "autoregression"}, "normalize": {"enabled": False}},
}  # fmt: skip
UNSEEN = {
    "regression": ["input used", "time used", "sampling steps"],
    "autoregression": ["time used", "condition used", "answers", "sampling steps"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_runs_of_other_methods_are_looked_at(short, tmp_path, name):
    """Six steps teach nothing, so that verdicts are open; all checks are done that have a meaning."""
    sounds = str(short.parent / "sounds")
    tree = {**SMALL, **OTHERS[name]}
    network = (
        tree["network"] if name == "autoregression" else {"kind": "transformer", "width": 16, "depth": 1, "heads": 2}
    )
    data = {**SMALL["data"], **tree["data"], "path": sounds, "drawn": {"noise": sounds} if name == "bridge" else {}}
    train = {**SMALL["train"], "steps": 6, "learning_rate": 1e-3, "warmup": 0, "log_every": 1, "save_every": 0}
    sampling = {"steps": 1}
    runs.run(from_dict({**tree, "network": network, "data": data, "train": train, "sampling": sampling}), tmp_path)
    found = by_name(examine(tmp_path, steps=2))
    assert found.keys() >= CAUSES.keys()
    assert [n for n, f in found.items() if f.verdict == "not looked at"] == UNSEEN[name]
    assert found["gradients"].verdict == "good" or name == "autoregression", found["gradients"]
    assert found["export"].verdict == "good"


# --- the command ---


def test_the_command_writes_its_report_and_leaves_with_1_where_something_is_bad(short, tmp_path, capsys):
    run = shutil.copytree(short, tmp_path / "run")
    (run / "config.yaml").write_text("train: {stps: 3}")
    shutil.rmtree(run / "checkpoints")
    before = files_of(run)
    assert Doctor(run, out=tmp_path / "out").run() == 1
    said = capsys.readouterr().out
    assert "The configuration of the run cannot be used. train.stps: unknown key; did you mean train.steps?" in said
    report = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert report["diagnosis"] in said
    assert report["findings"][0]["name"] == "configuration" and report["findings"][0]["verdict"] == "bad"
    assert files_of(run) == before
    with pytest.raises(ValueError, match="doctor.json: exists; give another --out, or --overwrite to replace it"):
        Doctor(run, out=tmp_path / "out").run()
    with pytest.raises(ValueError, match="gone: does not exist"):
        Doctor(tmp_path / "gone").run()


def test_an_interruption_shows_what_was_found(short, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "check_representation", interrupt)
    assert Doctor(short).run() == 130
    said = capsys.readouterr().out
    assert "normalisation" in said and "representation" not in said
    assert "Interrupted before the end." in said
