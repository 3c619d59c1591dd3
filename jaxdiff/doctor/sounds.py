"""The sounds: does an exported file make the same ones, are they like the corpus, and would more sampling steps help?

Sounds are made of what the task knows of crops of the corpus: classes, or the degraded sounds. They are compared with
the same crops through the features, with noise in the features, and with what fresh weights make.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff import diffusion
from jaxdiff.config import ConfigError
from jaxdiff.evaluation import frechet_distance, log_mel_statistics
from jaxdiff.features import spectral_flatness
from jaxdiff.inference import Pipeline, export, load
from jaxdiff.methods import Model, Sampling
from jaxdiff.networks import Params
from jaxdiff.tasks import Batch
from jaxdiff.training import CheckpointError

from .corpus import SILENT, Heard
from .findings import ORDER, Finding, judged, unseen
from .weights import Tell

SAMPLES = 2  # batches of them
MORE = 4  # times as many sampling steps
NEAR = 3.0  # dB of log-mel statistics that is always near enough
LESS = 1.0  # dB that more steps must gain


class Maker:
    """The features that a pipeline makes of crops, as one program for all weights."""

    def __init__(self, pipeline: Pipeline, steps: int | None = None):
        model, method = pipeline.model, pipeline.method
        sampling, times = sampling_of(pipeline, steps)

        def make(params: Params, batch: Batch, key: Array) -> Array:
            example_key, noise_key = jax.random.split(key)
            x0, given = model.task.example(model.representation, batch, example_key)
            keys = jax.random.split(noise_key, len(x0))
            made = method.make_sample(model, sampling, times)(params, given, diffusion.noise(keys, x0.shape), keys)
            return model.task.finish(model.representation, made, given)

        self.make, self.params, self.steps = jax.jit(make), pipeline.params, sampling.steps

    def __call__(self, crops: Sequence[Batch], params: Params | None = None) -> np.ndarray:
        """Sounds [items, samples] of the pipeline's weights or of others; a batch draws from its number alone."""
        params = self.params if params is None else params
        return np.concatenate([np.asarray(self.make(params, b, jax.random.key(i))) for i, b in enumerate(crops)])


def sampling_of(pipeline: Pipeline, steps: int | None) -> tuple[Sampling, Array]:
    """How a pipeline samples, with another number of steps if one is given, and its times; those that were searched
    for give way to uniform ones, as in previews."""
    method, sampling = pipeline.method, pipeline.sampling
    if "steps" not in method.knobs or method.schedule is None:
        return sampling, jnp.zeros(0)
    spacing = "uniform" if sampling.spacing == "searched" else sampling.spacing
    sampling = dataclasses.replace(sampling, steps=steps or sampling.steps, spacing=spacing)
    return sampling, diffusion.spaced_times(method.schedule, sampling.steps, spacing)


def check_export(maker: Maker, pipeline: Pipeline, heard: Heard, exported: Path | None) -> Finding:
    """The largest difference between the sounds of a run and of its exported file, loaded again: same seed, same crops.

    Beside it stands that of weights stored as float16.
    """
    name, crops = "export", heard.crops[:1]
    preview = maker(crops)
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = exported or export(pipeline, Path(folder) / "model.safetensors")
            made = Maker(load(file))(crops)
            half = maker(crops, load(export(pipeline, Path(folder) / "half.safetensors", half=True)).params)
        except (ConfigError, CheckpointError) as error:
            return Finding(name, "bad", "", f"{error}.")
    if made.shape != preview.shape:
        sentence = "The exported file makes sounds of another length; export the run again."
        return Finding(name, "bad", f"{made.shape[-1]} samples, here {preview.shape[-1]}", sentence)
    scale = max(float(np.abs(preview).max(initial=0.0)), 1e-9)
    apart, rough = (float(np.abs(y - preview).max()) / scale for y in (made, half))
    value = f"difference {apart:.1e} of the peak, as float16 {rough:.1e}"
    if pipeline.sampling.spacing == "searched":
        sentence = "Times that were searched for stay in the run's folder; give the exported file another spacing."
        return Finding(name, "doubtful", value, sentence)
    sentence = "The exported file does not sound like the run; export it again."
    return judged(name, apart, 1e-4, 1e-2, value, "The exported file sounds like the run.", sentence)


class Portrait(NamedTuple):
    """Sounds in numbers: log-mel statistics [items, 64] in dB, spectral flatness and peak [items]."""

    statistics: np.ndarray
    flatness: np.ndarray
    peaks: np.ndarray


def portrait(waves: np.ndarray, sr: int) -> Portrait:
    """The portrait of sounds [items, samples] at `sr` Hz; what is not finite counts as 0."""
    y = jnp.asarray(np.nan_to_num(waves, posinf=0.0, neginf=0.0))
    flatness = spectral_flatness(y, n_fft=1024, hop_length=256)[:, 0].mean(-1)
    return Portrait(*map(np.asarray, (log_mel_statistics(y, sr=sr), flatness, jnp.abs(y).max(-1))))


def distance(a: Portrait, b: Portrait, paired: bool) -> float:
    """How far sounds are apart in dB: item by item, or as two sets by their Frechet distance."""
    if paired:
        return float(np.sqrt(((a.statistics - b.statistics) ** 2).mean()))
    return float(np.sqrt(max(0.0, frechet_distance(a.statistics, b.statistics)) / a.statistics.shape[-1]))


def check_samples(maker: Maker, pipeline: Pipeline, fresh: Params, heard: Heard, tell: Tell) -> list[Finding]:
    """Whether sounds are finite, heard, not clipped and no noise, and whether more sampling steps help."""
    names = ["samples", "sampling steps"]
    model, sr, paired = pipeline.model, pipeline.sample_rate, pipeline.model.task.needs_sound
    crops = heard.crops[:SAMPLES]
    made = maker(crops)
    if not np.isfinite(made).all():
        sentence = "They are not finite numbers; look at the weights and the sampler."
        bad = Finding(names[0], "bad", f"{np.isfinite(made).mean():.1%} finite", sentence)
        return [bad, *unseen(names[1:], "The samples are not finite.")]
    tell("samples: what to compare with")
    real, noise = references(model, crops if paired else heard.crops)
    theirs, ours = portrait(real, sr), portrait(made, sr)
    useless = [portrait(waves, sr) for waves in (noise[: len(made)], maker(crops, fresh))]
    far, nothing = distance(ours, theirs, paired), min(distance(p, theirs, paired) for p in useless)
    findings = [_judge_samples(made, ours, theirs, far, nothing)]
    if "steps" not in pipeline.method.knobs:
        return findings + unseen(names[1:], "The method has no sampling steps.")
    tell(f"samples: {MORE * maker.steps} sampling steps")
    longer = distance(portrait(Maker(pipeline, MORE * maker.steps)(crops), sr), theirs, paired)
    value = f"{maker.steps}: {far:.1f} dB from the corpus, {MORE * maker.steps}: {longer:.1f} dB"
    gain = 1 - longer / far if far - longer > LESS else 0.0
    fine = "More steps do not come nearer to the corpus."
    sentence = f"With more steps samples come nearer to the corpus; raise sampling.steps from {maker.steps}."
    return [*findings, judged(names[1], gain, 0.2, 0.4, value, fine, sentence)]


def _judge_samples(made: np.ndarray, ours: Portrait, theirs: Portrait, far: float, nothing: float) -> Finding:
    """The worst that is found of sounds that are `far` from the corpus; `nothing` is how far those are that need no
    training."""
    silent = float((ours.peaks < SILENT).mean() - (theirs.peaks < SILENT).mean())
    over, flat, real = float((np.abs(made) > 1).mean()), float(ours.flatness.mean()), float(theirs.flatness.mean())
    share = 0.0 if far < NEAR else far / max(nothing, 1e-9)
    value = f"{far:.1f} dB from the corpus, untrained {nothing:.1f}; flatness {flat:.2f}, corpus {real:.2f}"
    fine = "They are nearer to the corpus than noise and what fresh weights make."
    sentence = (
        "They are hardly nearer to the corpus than noise or what fresh weights make; train on, with more weights."
    )
    every = [
        judged("samples", share, 0.5, 0.8, value, fine, sentence),
        judged("samples", flat, max(0.3, 3 * real), np.inf, value, fine, "Their spectrum is flat as that of noise."),
        judged("samples", silent, 0.2, 0.5, f"{silent:.0%} silent", fine, "They are silent; look at the levels."),
        judged("samples", over, 0.01, 0.1, f"{over:.1%} beyond full scale", fine, "They clip; set task.peak_db."),
    ]
    return max(every, key=lambda finding: ORDER.index(finding.verdict))


def references(model: Model, crops: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Crops through features and back as the task finishes them, and noise of the same mean and deviation."""

    @jax.jit
    def make(batch: Batch, key: Array) -> list[Array]:
        example_key, noise_key = jax.random.split(key)
        x0, given = model.task.example(model.representation, batch, example_key)
        noise = x0.mean((0, 1)) + x0.std((0, 1)) * jax.random.normal(noise_key, x0.shape)
        return [model.task.finish(model.representation, x, given) for x in (x0, noise)]

    pairs = [make(batch, jax.random.key(i)) for i, batch in enumerate(crops)]
    real, noise = (np.concatenate(jax.device_get(waves)) for waves in zip(*pairs, strict=True))
    return real, noise
