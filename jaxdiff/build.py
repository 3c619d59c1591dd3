"""The one place where the names of a configuration become objects.

Each function is named after what it builds and raises ConfigError when the parts do not fit each other.
"""

import dataclasses
from collections.abc import Callable

import optax
from flax import nnx

from jaxdiff import diffusion, features, networks, tasks, training
from jaxdiff.config import (
    CompressedStft,
    Config,
    ConfigError,
    Cosine,
    Generation,
    LinearBeta,
    LogMel,
    Patches,
    RectifiedFlow,
    Vocoding,
    WaveNet,
    crop_samples,
    hop_length,
)
from jaxdiff.data import Crop
from jaxdiff.diffusion import Sampler, Schedule
from jaxdiff.diffusion.objectives import SampleTimes
from jaxdiff.features import Representation
from jaxdiff.tasks import Task


def crop(config: Config) -> Crop:
    data = config.data
    peak = None if data.peak_db is None else 10 ** (data.peak_db / 20)
    samples = crop_samples(config)
    return Crop(samples, data.sample_rate, data.crop, data.channels, peak, data.speed)


def representation(config: Config) -> Representation:
    """Without normalisation, whose numbers a corpus or a checkpoint gives."""
    r = config.representation
    match r:
        case Patches():
            return features.patches(r.size)
        case CompressedStft():
            return features.compressed_stft(r.n_fft, r.hop_length, r.exponent)
        case LogMel():
            return features.log_mel(config.data.sample_rate, r.n_fft, r.hop_length, r.n_mels, r.fmin, r.fmax)


def network(config: Config, channels: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Module:
    options = {k: v for k, v in dataclasses.asdict(config.network).items() if k != "kind"}
    vocoding = config.task if isinstance(config.task, Vocoding) else None
    options["condition_features"] = vocoding.n_mels if vocoding else 0
    options["num_classes"] = 0 if vocoding else num_classes
    frames_per_condition = vocoding.hop_length // hop_length(config) if vocoding else 1
    if isinstance(config.network, WaveNet):
        return networks.WaveNet(channels, condition_hop=frames_per_condition, rngs=rngs, **options)
    if frames_per_condition != 1:
        raise ConfigError(
            f"network.kind transformer needs one condition frame per network frame, got {frames_per_condition} network "
            f"frames to each; set task.hop_length to {hop_length(config)} or use wavenet"
        )
    return networks.Transformer(channels, rngs=rngs, **options)


def task(config: Config, representation: Representation, num_classes: int) -> Task:
    match config.task:
        case Generation():
            return tasks.generation(representation, num_classes, flip_polarity=config.data.flip_polarity)
        case Vocoding(n_fft=n_fft, hop_length=hop, n_mels=n_mels, fmax=fmax):
            sizes = dict(n_fft=n_fft, hop_length=hop, n_mels=n_mels, fmax=fmax)
            return tasks.vocoding(representation, sr=config.data.sample_rate, **sizes)


def schedule(config: Config) -> Schedule:
    match config.diffusion.schedule:
        case Cosine():
            return diffusion.Cosine()
        case RectifiedFlow(shift=shift):
            return diffusion.RectifiedFlow(shift)
        case LinearBeta(steps=steps, beta_min=low, beta_max=high):
            return diffusion.LinearBeta(steps, low, high)


def times(config: Config) -> SampleTimes:
    d = config.diffusion
    return diffusion.uniform_times if d.times == "uniform" else diffusion.logit_normal_times(d.times_mean, d.times_std)


def weight(config: Config) -> Callable | None:
    d = config.diffusion
    if d.weight == "velocity" and d.prediction != "x0":
        raise ConfigError(f"diffusion.weight velocity needs prediction x0, got {d.prediction}; use weight constant")
    return None if d.weight == "constant" else diffusion.velocity_weight


def sampler(name: str) -> Sampler:
    samplers = {
        "euler": diffusion.euler,
        "heun": diffusion.heun,
        "ddim": diffusion.ddim(),
        "ancestral": diffusion.ancestral,
    }
    if name not in samplers:
        raise ConfigError(f"sampler: expected one of {', '.join(samplers)}, got {name!r}")
    return samplers[name]


def optimizer(config: Config) -> optax.GradientTransformation:
    t = config.train
    return training.make_optimizer(t.learning_rate, t.steps, warmup=t.warmup, weight_decay=t.weight_decay)
