"""The corpus as training hears it: what cannot be read, what is silent or clipped, and what the features make of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff import config as configuration
from jaxdiff.config import Config, ConfigError
from jaxdiff.data import AudioError, Corpus, Further, batches
from jaxdiff.evaluation.signals import log_spectral_distance, snr
from jaxdiff.features import fit_normalization
from jaxdiff.inference.faults import find_in
from jaxdiff.methods import Diffusion, Model
from jaxdiff.tasks import Batch

from .files import Case
from .findings import Finding, judged, unseen

BATCH, BATCHES = 8, 8  # crops at once, and how often
SILENT = 1e-3  # a peak of -60 dB
QUIET = 0.02  # a peak of -34 dB


class Heard(NamedTuple):
    """The corpus, what comes with it, and batches of raw crops."""

    corpus: Corpus
    further: Further
    crops: Sequence[Batch]


def hear(config: Config) -> tuple[Heard | None, list[Finding]]:
    """Crops of the corpus as training cuts them, None where it cannot be used, and what is found of them."""
    try:
        corpus, further = config.data.open()
        missing = sorted(set(config.task.inputs) - further.names)
        if missing:
            sentence = f"The task needs {missing[0]}; add it to data.drawn, data.paired, data.notes or data.reference."
            return None, [Finding("corpus", "bad", "", sentence)]
        options: dict[str, Any] = dict(further=further, evenness=config.data.evenness)
        drawn = batches(corpus, configuration.crop(config), BATCH, config.train.seed, **options)
        crops = [next(drawn) for _ in range(BATCHES)]
    except (AudioError, ConfigError) as error:
        return None, [Finding("corpus", "bad", "", f"{error}; give data.path a folder of sounds that can be read.")]
    waves = np.concatenate([batch["wave"] for batch in crops])
    return Heard(corpus, further, crops), [_files(corpus, further), *check_crops(waves, config)]


def _files(corpus: Corpus, further: Further) -> Finding:
    every = [corpus, *further.drawn.values(), *further.paired.values()]
    rejected, kept = [line for c in every for line in c.rejected], sum(len(c.recordings) for c in every)
    share, value = len(rejected) / (len(rejected) + kept), f"{len(rejected)} of {len(rejected) + kept} files rejected"
    fine = f"{len(corpus.recordings)} recordings of {corpus.seconds / 60:.1f} minutes can be read."
    sentence = f"The first of them: {rejected[0]}; repair or remove them." if rejected else ""
    return judged("corpus", share, 1e-9, 0.1, value, fine, sentence)


def check_crops(waves: np.ndarray, config: Config) -> list[Finding]:
    """The shares of silent and of clipped crops, and the level of the others."""
    peaks = np.abs(waves).max(-1)
    silent = float((peaks < SILENT).mean())
    fine, sentence = "Next to no crop is silent.", "Silence is what is learned of them; remove silent files and parts."
    findings = [judged("silent crops", silent, 0.05, 0.25, f"{silent:.0%} below -60 dB", fine, sentence)]
    clipped = float(np.mean([bool(find_in(wave[None], config.data.sample_rate, {"clip"}).faults) for wave in waves]))
    fine, sentence = "Few crops have flat peaks.", "Flat peaks are learned too; jaxdiff repair restores recordings."
    findings.append(judged("clipped crops", clipped, 0.3, 0.9, f"{clipped:.0%} with flat peaks", fine, sentence))
    loud = peaks >= SILENT
    if not loud.any():
        return findings + unseen(["level"], "All crops are silent.")
    level, peak = (float(np.median(x[loud])) for x in (np.sqrt((waves**2).mean(-1)), peaks))
    quiet = config.task.peak_db is None and peak < QUIET
    value = f"{20 * np.log10(level):.0f} dB, peaks {20 * np.log10(peak):.0f} dB"
    fine, sentence = (
        "The medians over crops are usual.",
        "It is very quiet; set task.peak_db, to which crops are brought.",
    )
    return [*findings, judged("level", quiet, 0.5, np.inf, value, fine, sentence)]


def model_of(case: Case, heard: Heard) -> Model:
    """The trained model; before training one whose normalisation is measured on half of the crops."""
    if case.pipeline is not None:
        return case.pipeline.model
    config, classes = case.config, heard.corpus.classes
    model = configuration.model(config, classes, None)
    if not config.normalize.enabled:
        return model
    encode = lambda wave: configuration.representation(config).encode(model.task.leveled(wave))  # noqa: E731
    waves = [batch["wave"] for batch in heard.crops[::2]]
    return configuration.model(config, classes, fit_normalization(encode, waves, evenness=config.normalize.evenness))


def check_features(model: Model, config: Config, heard: Heard) -> Finding:
    """Whether what the network learns is finite, and has mean 0 and deviation 1 where it is normalised."""
    name = "normalisation"
    encode = jax.jit(lambda batch, key: model.task.example(model.representation, batch, key).x0)
    made = [np.asarray(encode(batch, jax.random.key(i))) for i, batch in enumerate(heard.crops[1::2])]
    x = np.concatenate(made).reshape(-1, made[0].shape[-1]).astype(np.float64)
    if not np.isfinite(x).all():
        sentence = "Features are not finite numbers; look at the recordings and the representation."
        return Finding(name, "bad", f"{np.isfinite(x).mean():.1%} finite", sentence)
    mean, deviation = float(np.sqrt((x.mean(0) ** 2).mean())), float(np.sqrt(x.var(0).mean()))
    value = f"mean {mean:.2f}, deviation {deviation:.2f}"
    octaves = lambda ratio: abs(float(np.log2(max(ratio, 1e-9))))  # noqa: E731
    if config.normalize.enabled:
        sentence = (
            "They should have mean 0 and deviation 1: the normalisation was measured on other sounds; give data.path "
            "the corpus of the run, or train anew."
        )
        fine = "Features have a mean near 0 and a deviation near 1."
        return judged(name, max(mean, octaves(deviation)), 0.5, 1.0, value, fine, sentence)
    method = config.method
    if isinstance(method, Diffusion) and method.prediction == "edm" and octaves(deviation / method.sigma_data) > 1.5:
        sentence = f"method.sigma_data is {method.sigma_data:g}; set it to the deviation, or set normalize.enabled yes."
        return Finding(name, "doubtful", value, sentence)
    return Finding(name, "good", value, "Features are not normalised, as configured.")


def check_representation(model: Model, heard: Heard) -> Finding:
    """How near a sound comes to itself through the features: no sample can be better."""
    name, r = "representation", model.representation

    @jax.jit
    def through(wave: Array) -> tuple[Array, Array]:
        wave = model.task.leveled(wave)
        return wave, r.decode(r.encode(wave))

    try:
        wave, made = through(jnp.asarray(heard.crops[0]["wave"]))
    except TypeError as error:  # features that are no sound's
        return unseen([name], f"{str(error).capitalize()}.")[0]
    loud = np.abs(np.asarray(wave)).max(-1) >= SILENT
    if not loud.any():
        return unseen([name], "The crops are silent.")[0]
    if r.exact:
        ratio = float(np.median(np.asarray(snr(wave, made))[loud]))
        sentence = "Sounds do not come back from their features; look at the sizes of the representation."
        return judged(name, -ratio, -40, -20, f"SNR {ratio:.0f} dB", "Sounds come back from their features.", sentence)
    distance = float(np.median(np.asarray(log_spectral_distance(wave, made))[loud]))
    fine = "No sample can come nearer to the corpus than this."
    sentence = "Much of the sound is lost in the features; use more bands, a smaller hop, or a vocoder."
    return judged(name, distance, 12, 18, f"log-spectral distance {distance:.1f} dB", fine, sentence)
