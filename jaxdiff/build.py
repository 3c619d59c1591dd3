"""The one place where the names of a configuration become objects.

Each function is named after what it builds and raises ConfigError when the parts do not fit each other.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from jaxdiff import autoregression, diffusion, features, networks, tasks, training
from jaxdiff.config import (
    Adversarial,
    Autoregression,
    CausalWaveNet,
    CompressedStft,
    Config,
    ConfigError,
    ConvNeXt,
    Generation,
    LogMel,
    Magnitude,
    Patches,
    Shortcut,
    Vocoding,
    WaveNet,
    crop_samples,
    hop_length,
)
from jaxdiff.data import Crop
from jaxdiff.diffusion import Denoiser, Guidance, Sampler, Schedule, Weight
from jaxdiff.diffusion.objectives import SampleTimes
from jaxdiff.features import Representation
from jaxdiff.tasks import Task

_RESOLUTIONS = ((1024, 256, 1024), (512, 128, 512), (256, 64, 256))  # n_fft, hop, window of a generator's distance


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
        case Magnitude():
            return features.magnitude(r.n_fft, r.hop_length, r.exponent)
        case LogMel():
            return features.log_mel(config.data.sample_rate, r.n_fft, r.hop_length, r.n_mels, r.fmin, r.fmax)


def network(config: Config, channels: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Module:
    options = {k: v for k, v in dataclasses.asdict(config.network).items() if k != "kind"}
    vocoding = config.task if isinstance(config.task, Vocoding) else None
    options["self_conditioning"] = getattr(config.method, "self_conditioning", False)
    options["condition_features"] = vocoding.n_mels if vocoding else 0
    options["num_classes"] = 0 if vocoding else num_classes
    if isinstance(config.method, Autoregression) or isinstance(config.network, CausalWaveNet):
        return _causal(config, vocoding.hop_length if vocoding else 1, rngs, options)
    frames_per_condition = vocoding.hop_length // hop_length(config) if vocoding else 1
    second = isinstance(config.method, Shortcut) or getattr(config.method, "jumps", False)
    silent = isinstance(config.method, Adversarial) and config.method.prediction == "x0"
    if isinstance(config.network, ConvNeXt):
        options["zero_output"] = not silent
    elif silent and config.train.init is None:
        raise ConfigError(
            f"network.kind {config.network.kind} begins at silence, where spectral distances have no gradient; use "
            f"convnext, method.prediction flow, or train.init for the weights of another method"
        )
    if isinstance(config.network, WaveNet):
        if second:
            raise ConfigError("jumps need a network of two times, got wavenet; use transformer, unet, convnext or lstm")
        return networks.WaveNet(channels, condition_hop=frames_per_condition, rngs=rngs, **options)
    if frames_per_condition != 1:
        raise ConfigError(
            f"network.kind {config.network.kind} needs one condition frame per network frame, got "
            f"{frames_per_condition} network frames to each; set task.hop_length to {hop_length(config)} or use wavenet"
        )
    kinds = {
        "transformer": networks.Transformer,
        "unet": networks.UNet,
        "convnext": networks.ConvNeXt,
        "lstm": networks.LSTM,
    }
    return kinds[config.network.kind](channels, second_time=second, rngs=rngs, **options)


def _causal(config: Config, condition_hop: int, rngs: nnx.Rngs, options: dict) -> networks.CausalWaveNet:
    r, normalized = config.representation, config.normalize.enabled
    fits = isinstance(config.method, Autoregression) and isinstance(config.network, CausalWaveNet)
    if not fits or not isinstance(r, Patches) or r.size != 1 or normalized:
        raise ConfigError(
            f"method autoregression, network causal_wavenet, representation patches of size 1 and normalize.enabled no "
            f"belong together, got {config.method.kind}, {config.network.kind}, {r.kind} and {normalized}; set all four"
        )
    made = output(config)
    options = {k: v for k, v in options.items() if k not in ("self_conditioning", "kind")}
    return networks.CausalWaveNet(made.size, levels=made.levels, condition_hop=condition_hop, rngs=rngs, **options)


def output(config: Config) -> autoregression.Output:
    """The distribution of a sample, for method autoregression."""
    m = config.method
    match m.output:
        case "mu_law":
            return autoregression.mu_law_categorical(m.levels)
        case "logistics":
            return autoregression.mixture_of_logistics(m.mixtures)
        case "gaussian":
            return autoregression.gaussian()


def task(config: Config, representation: Representation, num_classes: int) -> Task:
    match config.task:
        case Generation():
            return tasks.generation(representation, num_classes, flip_polarity=config.data.flip_polarity)
        case Vocoding(n_fft=n_fft, hop_length=hop, n_mels=n_mels, fmax=fmax, guess=guess):
            r, mel = config.representation, dict(sr=config.data.sample_rate, n_fft=n_fft, n_mels=n_mels, fmax=fmax)
            if guess and not (
                isinstance(config.method, Adversarial)
                and isinstance(r, Magnitude)
                and (r.n_fft, r.hop_length) == (n_fft, hop)
                and not config.normalize.enabled
            ):
                raise ConfigError(
                    f"task.guess needs method adversarial, representation magnitude of the task's n_fft and hop_length "
                    f"and normalize.enabled no, got {config.method.kind}, {r.kind} and {config.normalize.enabled}; set "
                    f"all three, or task.guess no"
                )
            options = dict(envelope=_envelope(config, mel), guess=r.exponent if guess else None)
            return tasks.vocoding(representation, hop_length=hop, **options, **mel)


def _envelope(config: Config, mel: dict) -> Callable | None:
    if not config.task.envelope:
        return None
    r, normalized = config.representation, config.normalize.enabled
    fits = isinstance(r, CompressedStft | Magnitude) and r.hop_length == config.task.hop_length
    if not fits or normalized:
        raise ConfigError(
            f"task.envelope needs representation compressed_stft or magnitude of the task's hop and normalize.enabled "
            f"no, got {r.kind} of hop {hop_length(config)} and {normalized}; set all three"
        )
    parts = 2 if isinstance(r, CompressedStft) else 1
    return tasks.spectral_envelope(stft_n_fft=r.n_fft, exponent=r.exponent, parts=parts, **mel)


def schedule(config: Config) -> Schedule | None:
    """None for methods without noise."""
    if not hasattr(config.method, "schedule"):
        return None
    options = dataclasses.asdict(config.method.schedule)
    kinds = {
        "cosine": diffusion.Cosine,
        "sigmoid": diffusion.Sigmoid,
        "linear_beta": diffusion.LinearBeta,
        "vp": diffusion.VP,
        "ve": diffusion.VE,
        "edm": diffusion.EDM,
        "rectified_flow": diffusion.RectifiedFlow,
    }
    return kinds[options.pop("kind")](**options)


def times(config: Config) -> SampleTimes:
    d = config.method
    match d.times:
        case "uniform":
            return diffusion.uniform_times
        case "logit_normal":
            return diffusion.logit_normal_times(d.times_mean, d.times_std)
        case "lognormal":
            return diffusion.lognormal_times(schedule(config), d.times_mean, d.times_std)


def weight(config: Config) -> Weight | None:
    """Of the network's own error; a constant one is None, which costs nothing."""
    d = config.method
    if d.weight == "constant":
        return None
    prediction, sigma_data = ("x0", 1.0) if isinstance(d, Shortcut) else (d.prediction, d.sigma_data)
    weights = {
        "velocity": diffusion.velocity_weight,
        "snr": diffusion.snr_weight,
        "min_snr": diffusion.min_snr_weight(),
        "edm": diffusion.edm_weight(sigma_data),
        "sigmoid": diffusion.sigmoid_weight(),
    }
    return diffusion.weight_for(prediction, weights[d.weight], sigma_data)


def auxiliary(config: Config, task: Task) -> Callable | None:
    """`(x0_hat, x0, cond) -> [batch]`: how far the decoded sounds are apart."""
    d, sr = config.method, config.data.sample_rate
    if d.auxiliary == "none":
        return None
    if isinstance(config.representation, LogMel | Magnitude):
        raise ConfigError(
            f"method.auxiliary {d.auxiliary} needs a representation that decodes exactly, got "
            f"{config.representation.kind}; "
            f"use patches or compressed_stft, or auxiliary none"
        )
    distance = {
        "stft": features.multi_resolution_stft_loss,
        "mel": functools.partial(features.mel_loss, sr=sr),
    }[d.auxiliary]
    return lambda x0_hat, x0, cond: d.auxiliary_weight * distance(task.decode(x0_hat, cond), task.decode(x0, cond))


def distance(config: Config) -> Callable:
    """`(made, real) -> [batch]`, both (features, wave): what a generator learns by beside its discriminators."""
    m, sr = config.method, config.data.sample_rate

    def apart(made: tuple[Array, Array], real: tuple[Array, Array]) -> Array:
        total = m.x0_weight * jnp.abs(made[0] - real[0]).mean((-2, -1))
        if m.stft_weight:
            spectral = features.multi_resolution_stft_loss(made[1], real[1], resolutions=_RESOLUTIONS)
            total = total + m.stft_weight * spectral
        if m.mel_weight:
            total = total + m.mel_weight * features.mel_loss(made[1], real[1], sr=sr)
        return total

    return apart


def sampler(name: str) -> Sampler:
    if name not in diffusion.SAMPLERS:
        raise ConfigError(f"sampler: expected one of {', '.join(diffusion.SAMPLERS)}, got {name!r}")
    return diffusion.SAMPLERS[name].sampler


def guidance(config: Config) -> Guidance:
    """`(conditional, unconditional, scale) -> denoiser`, within the configured noise levels."""
    s, levels = config.sampling, schedule(config)

    def guide(conditional: Denoiser, unconditional: Denoiser, scale: Array) -> Denoiser:
        guided = diffusion.classifier_free_guidance(conditional, unconditional, scale, rescale=s.guidance_rescale)
        if s.guidance_low == 0 and s.guidance_high == float("inf"):
            return guided
        return diffusion.guidance_interval(guided, conditional, levels, s.guidance_low, s.guidance_high)

    return guide


def optimizer(config: Config) -> optax.GradientTransformation:
    t = config.train
    return training.make_optimizer(t.learning_rate, t.steps, warmup=t.warmup, weight_decay=t.weight_decay)


def optimizers(config: Config) -> dict[str, optax.GradientTransformation]:
    """Of both players of method adversarial, betas 0.8 and 0.99 as HiFi-GAN's."""
    t, m = config.train, config.method
    shared = dict(warmup=t.warmup, weight_decay=t.weight_decay, b1=0.8)
    later = round((1 - m.begin) * t.steps)
    return {
        "generator": training.make_optimizer(t.learning_rate, t.steps, **shared),
        "discriminators": training.make_optimizer(m.learning_rate, later, **shared),
    }
