"""Configuration: frozen dataclasses and a strict loader; `build.py` makes objects of them.

A YAML file holds only what differs from the defaults below; command-line overrides (`--train.steps 500`) are laid over
it. Every key is checked against the dataclasses and every value coerced to its annotated type: YAML reads 1e-4 as a
string and `no` as False. Where several kinds exist (network, representation ...), `kind` chooses the dataclass.
This module imports no jax, so that `--help` is quick.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

SamplerName = Literal[
    "euler", "ddim", "heun", "midpoint", "rk4", "dpm2", "dpmpp_1s", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "lms2", "lms3",
    "lms4", "unipc2", "unipc3", "ancestral", "euler_ancestral", "edm", "sde_dpmpp_1s", "sde_dpmpp_2m",
    "predictor_corrector", "stochastic_flow",
]  # fmt: skip
SpacingName = Literal["uniform", "quadratic", "cosine", "karras", "logsnr", "searched"]


class ConfigError(ValueError):
    """A configuration that cannot be used; one sentence: what, expected, got, what to do."""


@dataclass(frozen=True)
class Data:
    """Which sounds, and how they become crops."""

    path: str = "orchestra"  # a folder of audio (first sub-folder = class), or the built-in "orchestra"
    labels: str | None = None  # CSV with columns file,label instead of sub-folders
    sample_rate: int = 16_000  # Hz
    seconds: float = 1.0  # length of a crop
    crop: Literal["random", "start"] = "random"
    channels: Literal["mix", "left", "right"] = "mix"
    peak_db: float | None = None  # scale each crop to this peak, dB below full scale
    speed: float = 0.0  # play crops up to this many octaves slower or faster
    flip_polarity: bool = False
    memory_mb: int = 512  # a corpus that fits is decoded once and kept; 0: files are read again for every crop


@dataclass(frozen=True)
class Patches:
    """Raw samples, `size` to a frame."""

    kind: Literal["patches"] = "patches"
    size: int = 64


@dataclass(frozen=True)
class CompressedStft:
    """Power-law compressed complex STFT."""

    kind: Literal["compressed_stft"] = "compressed_stft"
    n_fft: int = 512
    hop_length: int = 128
    exponent: float = 0.5


@dataclass(frozen=True)
class Magnitude:
    """Power-law compressed STFT magnitudes, decoded by Griffin-Lim."""

    kind: Literal["magnitude"] = "magnitude"
    n_fft: int = 1024
    hop_length: int = 256
    exponent: float = 0.5


@dataclass(frozen=True)
class LogMel:
    """Log-mel magnitudes, decoded by Griffin-Lim."""

    kind: Literal["log_mel"] = "log_mel"
    n_fft: int = 1024
    hop_length: int = 256
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float | None = None


@dataclass(frozen=True)
class Normalize:
    """Measure mean and scale per channel on the corpus, over this many crops; `evenness` 1 gives every channel unit
    deviation, 0 keeps their proportions."""

    enabled: bool = True
    crops: int = 512
    evenness: float = 1.0


@dataclass(frozen=True)
class WaveNet:
    """DiffWave's network; `authors_form` counts parameters as the paper does."""

    kind: Literal["wavenet"] = "wavenet"
    channels: int = 256
    layers: int = 8
    dilation_cycle: int = 4
    embedding: int = 512
    diffusion_steps: int = 1
    label_dropout: float = 0.1
    authors_form: bool = False
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclass(frozen=True)
class Transformer:
    """Diffusion transformer."""

    kind: Literal["transformer"] = "transformer"
    width: int = 256
    depth: int = 8
    heads: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.0
    label_dropout: float = 0.1
    absolute_positions: bool = False
    window: int | None = None  # frames on either side that a frame attends to; none: all
    dilation_cycle: int = 0  # above 0 every block begins with a dilated convolution
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclass(frozen=True)
class UNet:
    """1-D U-Net, halving the frame rate from level to level."""

    kind: Literal["unet"] = "unet"
    width: int = 128
    levels: int = 3
    blocks: int = 2
    attention_levels: int = 1
    heads: int = 4
    label_dropout: float = 0.1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclass(frozen=True)
class ConvNeXt:
    """Depthwise convolutions over frames, as in Vocos."""

    kind: Literal["convnext"] = "convnext"
    width: int = 256
    depth: int = 8
    kernel: int = 7
    expansion: int = 3
    dilation_cycle: int = 1
    label_dropout: float = 0.1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclass(frozen=True)
class LSTM:
    """Stacked long short-term memory: a baseline."""

    kind: Literal["lstm"] = "lstm"
    width: int = 256
    depth: int = 2
    bidirectional: bool = False
    label_dropout: float = 0.1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


@dataclass(frozen=True)
class CausalWaveNet:
    """Autoregressive WaveNet on samples; for method autoregression."""

    kind: Literal["causal_wavenet"] = "causal_wavenet"
    channels: int = 64
    layers: int = 30
    dilation_cycle: int = 10
    label_dropout: float = 0.1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False


# Schedules. In each a shift above 1 spends more of training and sampling at high noise.


@dataclass(frozen=True)
class Cosine:
    """Variance-preserving cosine schedule."""

    kind: Literal["cosine"] = "cosine"
    shift: float = 1.0


@dataclass(frozen=True)
class Sigmoid:
    """Variance-preserving schedule along a piece of the logistic curve."""

    kind: Literal["sigmoid"] = "sigmoid"
    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    shift: float = 1.0


@dataclass(frozen=True)
class LinearBeta:
    """DDPM's betas, or with `scaled` their square roots, evenly spaced; the defaults are DiffWave's."""

    kind: Literal["linear_beta"] = "linear_beta"
    steps: int = 50
    beta_min: float = 1e-4
    beta_max: float = 0.05
    scaled: bool = False
    shift: float = 1.0


@dataclass(frozen=True)
class VP:
    """Variance-preserving SDE with linear beta."""

    kind: Literal["vp"] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    shift: float = 1.0


@dataclass(frozen=True)
class VE:
    """Variance-exploding SDE with geometric noise levels."""

    kind: Literal["ve"] = "ve"
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    shift: float = 1.0


@dataclass(frozen=True)
class EDM:
    """Noise levels to `sigma_max`, time their power 1 / `rho`."""

    kind: Literal["edm"] = "edm"
    sigma_max: float = 80.0
    rho: float = 7.0
    shift: float = 1.0


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths."""

    kind: Literal["rectified_flow"] = "rectified_flow"
    shift: float = 1.0


@dataclass(frozen=True)
class Generation:
    """Sound from noise and a class."""

    kind: Literal["generation"] = "generation"


@dataclass(frozen=True)
class Vocoding:
    """Sound from its log-mel spectrogram."""

    kind: Literal["vocoding"] = "vocoding"
    n_fft: int = 1024
    hop_length: int = 256
    n_mels: int = 80
    fmax: float | None = None
    envelope: bool = False  # divide spectra by the mel's magnitudes, so that noise is shaped as the sound
    guess: bool = False  # method adversarial begins at the magnitudes of an inverted mel, in place of noise


# Methods: what is trained, and how sound comes of it.


@dataclass(frozen=True)
class Diffusion:
    """Noise schedule, what the network predicts, which times it trains on and how they weigh."""

    kind: Literal["diffusion"] = "diffusion"
    schedule: Cosine | Sigmoid | LinearBeta | VP | VE | EDM | RectifiedFlow = field(default_factory=RectifiedFlow)
    prediction: Literal["x0", "eps", "v", "flow", "edm"] = "x0"
    sigma_data: float = 1.0  # deviation of the features, which normalisation makes 1: for prediction and weight edm
    times: Literal["uniform", "logit_normal", "lognormal", "importance"] = "logit_normal"
    times_mean: float = 0.0
    times_std: float = 1.0
    weight: Literal["velocity", "constant", "snr", "min_snr", "edm", "sigmoid"] = "velocity"  # constant: its own error
    auxiliary: Literal["none", "stft", "mel"] = "none"  # loss of the decoded sound, times auxiliary_weight
    auxiliary_weight: float = 1.0
    self_conditioning: bool = False  # the network sees its own first estimate, at twice the sampling cost


@dataclass(frozen=True)
class Shortcut:
    """Jumps of any length along the flow: 1, 2, 4 ... steps make a sound. The network predicts x0."""

    kind: Literal["shortcut"] = "shortcut"
    schedule: Cosine | Sigmoid | LinearBeta | VP | VE | EDM | RectifiedFlow = field(default_factory=RectifiedFlow)
    times: Literal["uniform", "logit_normal"] = "uniform"
    times_mean: float = 0.0
    times_std: float = 1.0
    weight: Literal["velocity", "constant"] = "velocity"
    begin: float = 0.5  # the share of the steps before, in which it is an ordinary diffusion model
    every: int = 4  # from then on every n-th item of a batch is a jump
    levels: int = 6  # jumps of 1, 1/2, 1/4 ... of the time


@dataclass(frozen=True)
class Autoregression:
    """Sample by sample; needs network causal_wavenet, representation patches of size 1 and no normalisation."""

    kind: Literal["autoregression"] = "autoregression"
    output: Literal["mu_law", "logistics", "gaussian"] = "mu_law"
    levels: int = 256  # of mu_law
    mixtures: int = 10  # of logistics


@dataclass(frozen=True)
class Regression:
    """The conditional mean in one pass, by mean squared error of the features: a baseline."""

    kind: Literal["regression"] = "regression"
    auxiliary: Literal["none", "stft", "mel"] = "none"  # loss of the decoded sound, times auxiliary_weight
    auxiliary_weight: float = 1.0


@dataclass(frozen=True)
class Adversarial:
    """A generator against discriminators; it makes sound in `steps` Euler steps from noise or the task's guess."""

    kind: Literal["adversarial"] = "adversarial"
    schedule: Cosine | Sigmoid | LinearBeta | VP | VE | EDM | RectifiedFlow = field(default_factory=RectifiedFlow)
    steps: int = 1  # above 1 the generator is a diffusion model's whole sampler: for fine-tuning, see train.init
    prediction: Literal["x0", "flow"] = "x0"  # flow: what takes the start to the sound, at first nothing
    jumps: bool = False  # the steps are those of method shortcut
    game: Literal["least_squares", "hinge"] = "least_squares"
    begin: float = 0.5  # the share of the steps before, in which it learns by the distance to the real sound alone
    ramp: float = 0.02  # the share in which the discriminators' part then grows to its weight
    segment: float | None = None  # seconds of each sound that the discriminators see, at a random place; none: all
    learning_rate: float = 2e-4  # of the discriminators
    period_width: int = 32
    spectral_width: int = 32
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0
    x0_weight: float = 0.0  # of the mean difference of features; the next two are distances of the sounds
    stft_weight: float = 5.0
    mel_weight: float = 15.0


@dataclass(frozen=True)
class Train:
    """Length, optimiser and intervals (in steps; 0 is never)."""

    steps: int = 10_000
    batch: int = 16
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    posthoc_ema: bool = False  # keep snapshots from which averages of any length can be made afterwards
    seed: int = 0
    init: str | None = None  # a run whose averaged weights to begin with
    log_every: int = 20
    sample_every: int = 1000
    save_every: int = 1000


@dataclass(frozen=True)
class Sampling:
    """How sounds are made when the command line does not say."""

    sampler: SamplerName = "heun"
    steps: int = 16
    spacing: SpacingName = "uniform"
    guidance: float = 1.0
    guidance_low: float = 0.0  # guide only where sigma / alpha is above this ...
    guidance_high: float = float("inf")  # ... and at most this
    guidance_rescale: float = 0.0  # 1: the guided estimate keeps the deviation of the conditional one
    temperature: float = 1.0  # of autoregression; below 1 the likely becomes more likely


@dataclass(frozen=True)
class Config:
    """Everything a run is; stored in its checkpoints."""

    data: Data = field(default_factory=Data)
    task: Generation | Vocoding = field(default_factory=Generation)
    representation: CompressedStft | Patches | Magnitude | LogMel = field(default_factory=CompressedStft)
    normalize: Normalize = field(default_factory=Normalize)
    network: WaveNet | Transformer | UNet | ConvNeXt | LSTM | CausalWaveNet = field(default_factory=WaveNet)
    method: Diffusion | Shortcut | Autoregression | Regression | Adversarial = field(default_factory=Diffusion)
    train: Train = field(default_factory=Train)
    sampling: Sampling = field(default_factory=Sampling)


# Loading ------------------------------------------------------------------------------------------------------------


def load_config(path: Path, overrides: Mapping[str, str] | None = None) -> Config:
    """The configuration of a YAML file with dotted-key overrides laid over it; raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        problem = str(error).replace("\n", " ")
        raise ConfigError(f"{path}: is not YAML ({problem})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold keys and values, got {type(tree).__name__}")
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {parent} in {path} is a single value, not a group")
        node[last] = value
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """A Config from nested mappings; absent keys keep defaults, unknown keys and wrong types raise ConfigError."""
    return _load(Config, tree, "")


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values; `from_dict(to_dict(c)) == c`."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The resolved configuration, every key of it."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def _load(cls: type, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')}: expected a group of keys, got {tree!r}")
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in hints:
            names = [name for name, _ in flatten(cls(), prefix)] + [f"{prefix}{name}" for name in hints]
            near = difflib.get_close_matches(f"{prefix}{key}", names, 1, 0.4)
            hint = f"did you mean {near[0]}?" if near else f"valid here: {', '.join(hints)}"
            raise ConfigError(f"{prefix}{key}: unknown key; {hint}")
    return cls(**{key: _value(hints[key], tree[key], f"{prefix}{key}", cls) for key in tree})


def _value(hint: Any, value: Any, key: str, owner: type) -> Any:
    kinds = [k for k in typing.get_args(hint) or (hint,) if dataclasses.is_dataclass(k)]
    if kinds:
        chosen = _kind(kinds, value, key, owner) if len(kinds) > 1 else kinds[0]
        return _load(chosen, value, f"{key}.")
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, 1)
            hint_text = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{key}: expected one of {', '.join(choices)}, got {value!r}{hint_text}")
        return value
    if isinstance(hint, types.UnionType):
        if value is None or value in ("none", "null"):
            return None
        hint = next(h for h in typing.get_args(hint) if h is not types.NoneType)
    return _scalar(hint, value, key)


def _kind(kinds: list[type], value: Any, key: str, owner: type) -> type:
    by_name = {k().kind: k for k in kinds}
    default = next(f for f in dataclasses.fields(owner) if f.name == key.rpartition(".")[2]).default_factory
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: expected a group with kind: {' or '.join(by_name)}, got {value!r}")
    name = value.get("kind", default().kind)
    if name not in by_name:
        near = difflib.get_close_matches(str(name), by_name, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{key}.kind: expected one of {', '.join(by_name)}, got {name!r}{hint}")
    return by_name[name]


def _scalar(hint: type, value: Any, key: str) -> Any:
    wrong = ConfigError(f"{key}: expected {hint.__name__}, got {value!r}")
    if hint is bool:
        word = str(value).lower()
        if word not in ("true", "false", "yes", "no"):
            raise wrong
        return word in ("true", "yes")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    if hint is str:
        return str(value)
    try:
        number = hint(value)
    except ValueError:
        raise wrong from None
    if hint is int and isinstance(value, float) and value != number:
        raise wrong
    return number


# What follows from it -----------------------------------------------------------------------------------------------


def crop_samples(config: Config) -> int:
    """Samples in a training crop; raises ConfigError when the representation cannot cut it into frames."""
    samples = round(config.data.seconds * config.data.sample_rate)
    hops = {"representation": hop_length(config)}
    if isinstance(config.task, Vocoding):
        hops["task"] = config.task.hop_length
    for where, hop in hops.items():
        if samples < hop or samples % hop:
            fits = max(1, round(samples / hop)) * hop
            raise ConfigError(
                f"data.seconds {config.data.seconds} is {samples} samples, which the {where}'s hop of {hop} does not "
                f"divide; use data.seconds {fits / config.data.sample_rate:.6g} ({fits} samples)"
            )
    return samples


def hop_length(config: Config) -> int:
    """Samples per network frame."""
    r = config.representation
    return r.size if isinstance(r, Patches) else r.hop_length
