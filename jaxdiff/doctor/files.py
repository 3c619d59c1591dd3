"""The files of a run: configuration, newest usable checkpoint with averaged and latest weights, and the log."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff import config as configuration
from jaxdiff.config import Config, ConfigError, load_config
from jaxdiff.features import Normalized
from jaxdiff.inference import Pipeline, load
from jaxdiff.networks import Params
from jaxdiff.training import CheckpointError, TrainState, checkpoints, init_state

from .findings import Finding, judged, unseen

GRADIENT_LIMIT = 1.0  # of the norm, as in training.optimizers


@dataclass(frozen=True)
class Case:
    """The thing that is examined: a configuration, and where it was trained the run's folder, its pipeline (averaged
    weights) and the latest weights, each None where it is not there."""

    config: Config
    folder: Path | None = None
    pipeline: Pipeline | None = None
    latest: Params | None = None

    @property
    def trained(self) -> Params | None:
        """The latest weights, or the averaged ones where these cannot be read."""
        return self.pipeline.params if self.latest is None and self.pipeline is not None else self.latest


def open_case(source: Path) -> tuple[Case | None, list[Finding]]:
    """The thing that is examined, None where no configuration can be read, and the findings on the way.

    Raises ConfigError for a file that is no configuration, a folder that holds no run, and a run of parts that no
    configuration describes.
    """
    if source.is_file() and source.suffix != ".safetensors":
        case = Case(load_config(source))
        return case, [Finding("configuration", "good", source.name, "It can be read; nothing is trained yet.")]
    file, directory = source / "config.yaml", source / "checkpoints"
    if not file.is_file() and not directory.is_dir():
        raise ConfigError(f"{source}: is neither the work directory of a run nor a configuration; give one of these")
    findings, config = [], None
    try:
        config = load_config(file)
        findings.append(Finding("configuration", "good", file.name, "It can be read."))
    except ConfigError as error:
        findings.append(Finding("configuration", "bad", file.name, f"{error}; write it anew from your CONFIG.yaml."))
    if not any(p.name.isdigit() for p in directory.glob("*")):
        findings += unseen(["checkpoint"], "No checkpoint was saved yet.")
        return None if config is None else Case(config, source), findings
    try:
        pipeline = load(source)
    except (CheckpointError, ConfigError) as error:
        if not file.is_file():
            raise ConfigError(f"{error}; the doctor needs a run that a configuration describes") from None
        sentence = f"{error}; move the checkpoints away and train again. The checks below take fresh weights."
        findings.append(Finding("checkpoint", "bad", "", sentence))
        return None if config is None else Case(config, source), findings
    assert pipeline.config is not None  # or `load` would have asked for a model
    latest, value = None, f"step {pipeline.step}"
    if pipeline.warnings:
        sentence = f"Passed over {'; '.join(pipeline.warnings)}; the checks below look at step {pipeline.step}."
        findings.append(Finding("checkpoint", "bad", value, sentence))
    else:
        findings.append(Finding("checkpoint", "good", value, "All of its files are what was saved."))
    try:
        latest = _latest(pipeline, directory)
    except CheckpointError as error:
        sentence = f"The latest weights cannot be read ({error}); the averaged ones can."
        findings.append(Finding("training state", "doubtful", value, sentence))
    return Case(pipeline.config, source, pipeline, latest), findings


def _latest(pipeline: Pipeline, directory: Path) -> Params:
    """The weights of the newest usable checkpoint that are not averaged."""
    config = pipeline.config
    assert config is not None
    t, method, key = config.train, config.method, jax.random.key(0)
    model = configuration.model(config, pipeline.classes, None)
    optimizer = configuration.optimizer(t)

    def fresh() -> TrainState:
        params, opt_state, extra = method.init(model, model.network.init(key), optimizer, t.steps, key)
        return init_state(params, method.weights(params), opt_state, key, extra=extra, posthoc_ema=t.posthoc_ema)

    r = pipeline.model.representation
    like = r.normalization if isinstance(r, Normalized) else None
    state, _ = checkpoints.restore_state(directory, pipeline.step, jax.eval_shape(fresh), like)
    return method.weights(state.params)


def check_log(path: Path, steps: int) -> list[Finding]:
    """Whether the loss is finite, falls and has levelled off, and whether the gradient is always cut to its limit.

    Of a method with discriminators the distance to the real sound is looked at, since the whole loss grows when they
    join.
    """
    names = ["loss finite", "loss falls", "loss level", "gradient norm"]
    rows = _rows(path)
    if not rows:
        return unseen(names, f"{path.name} holds no losses yet.")
    loss = np.array([row.get("distance", row["loss"]) for row in rows], np.float64)
    broken = [row["step"] for row, value in zip(rows, loss, strict=True) if not np.isfinite(value)]
    if broken:
        sentence = f"The loss is not a finite number at step {broken[0]}; train again with a lower learning rate."
        bad = Finding(names[0], "bad", f"{len(broken)} of {len(rows)} rows", sentence)
        return [bad, *unseen(names[1:], "The loss is not finite.")]
    findings = [Finding(names[0], "good", f"{len(rows)} rows", "Every loss in the log is a finite number.")]
    if len(rows) < 6:
        return findings + unseen(names[1:], "The log is too short.")
    part = max(2, len(loss) // 6)
    first, before, last = loss[:part].mean(), loss[-2 * part : -part].mean(), loss[-part:].mean()
    sentence = "The loss in the log does not fall; look at the learning rate, the corpus and the checks below."
    rise, value = (last - first) / max(abs(first), 1e-12), f"{first:.4g} to {last:.4g}"
    findings.append(judged(names[1], rise, -0.02, 0.02, value, "The loss in the log falls.", sentence))
    if rows[-1]["step"] < steps:
        sentence = f"Training is at step {rows[-1]['step']} of {steps}; it can go on."
        findings.append(Finding(names[2], "good", value, sentence))
    else:
        late = max(0.0, (before - last) / max(first - last, 1e-12)) if last < first else 0.0
        sentence = "The loss was still falling when training ended; raise train.steps."
        value = f"{late:.0%} of its fall in the last sixth"
        findings.append(judged(names[2], late, 0.15, np.inf, value, "The loss has levelled off.", sentence))
    return [*findings, _gradient_norm(rows[len(rows) // 2 :])]


def _gradient_norm(rows: list[dict[str, Any]]) -> Finding:
    norm = np.array([row["gradient_norm"] for row in rows if "gradient_norm" in row], np.float64)
    if not len(norm):
        return unseen(["gradient norm"], "The log does not hold it.")[0]
    over, size = float((norm > GRADIENT_LIMIT).mean()), float(np.median(norm))
    value = f"above {GRADIENT_LIMIT:g} in {over:.0%} of rows"
    fine = f"Its median is {size:.3g}, which AdamW copes with."
    sentence = f"Its median is {size:.3g} and every update is cut; look at the levels of features and loss."
    return judged("gradient norm", size if over > 0.95 else 0.0, 10 * GRADIENT_LIMIT, np.inf, value, fine, sentence)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log that can be read and hold a loss."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # a line that was not written to its end
            continue
        if isinstance(row, dict) and {"loss", "step"} <= row.keys():
            rows.append(row)
    return rows
