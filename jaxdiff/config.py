"""Configuration: strict YAML to objects and back. A part's dataclass, or a network's constructor, is its schema.

A YAML file holds only what differs from the defaults of the parts; command-line overrides (`--train.steps 500`) are
laid over it. Every key is checked against the fields and every value coerced to its annotated type: YAML reads 1e-4 as
a string and `no` as False. Where a table of parts exists (task, representation, network, method, schedule), `kind` is
the name in it. A checkpoint stores its configuration with a format number; `UPGRADES` brings older ones up to date.
"""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
import yaml
from annotated_types import Interval

from jaxdiff import ranges
from jaxdiff.data import Corpus, Crop, Further, hold_out, open_corpus
from jaxdiff.data.files import expand
from jaxdiff.diffusion import BRIDGES, SCHEDULES, Bridge, Schedule
from jaxdiff.features import (
    AUGMENTATIONS,
    REPRESENTATIONS,
    Augmentation,
    CompressedStft,
    Normalization,
    Normalized,
    Representation,
    Stereo,
    compose,
    sometimes,
)
from jaxdiff.methods import METHODS, Diffusion, Method, Model, Sampling
from jaxdiff.networks import NETWORKS, Network, from_nnx
from jaxdiff.tasks import TASKS, Generate, Task
from jaxdiff.training import Lora, learning_rates, make_optimizer, restricted
from jaxdiff.training.optimizers import OptimizerName, RateName

FORMAT = 2  # of a stored configuration; 1 is what jaxdiff 0.1 wrote before it said so


class ConfigError(ValueError):
    """A configuration that cannot be used; one sentence: what, expected, got, what to do."""


@dataclass(frozen=True)
class Data:
    """Which sounds, and how they become crops."""

    # a folder of audio (first sub-folder = class) or of shards, a manifest, or the built-in "orchestra"; {a: 3, b: 1}
    # hears three crops of a for each one of b
    path: str | Mapping[str, ranges.Positive] = "orchestra"
    labels: str | None = None  # manifest, CSV or JSON lines of file, label, offset, seconds, instead of sub-folders
    drawn: Mapping[str, str] = field(default_factory=dict)  # folders of further sounds by name: noise, room ...
    paired: Mapping[str, str] = field(default_factory=dict)  # folders of partners, files of the same names: target ...
    notes: str | None = None  # folder of scores, MIDI files of the recordings' names
    held_out: ranges.Share = 0.0  # of each class's files that are not trained on: their loss is logged as validation
    reference: bool = False  # a crop of another recording of the same class comes along
    sample_rate: ranges.Rate = 16_000  # Hz
    seconds: Annotated[float, Interval(gt=0, le=3600)] = 1.0  # length of a crop
    crop: Literal["random", "start"] = "random"
    evenness: ranges.Share = 0.0  # 0: every recording is heard as often, 1: every class, and folder of what is drawn
    channels: Literal["mix", "left", "right", "stereo"] = "mix"
    speed: Annotated[float, Interval(ge=0, le=2)] = 0.0  # play crops up to this many octaves slower or faster
    memory_mb: ranges.Index = 512  # a corpus that fits is decoded once and kept; 0: files are read again for every crop

    def open(self) -> tuple[Corpus, Further]:
        """The corpus and those of its further sounds; raises AudioError."""
        drawn, paired = ({n: open_corpus(path) for n, path in paths.items()} for paths in (self.drawn, self.paired))
        notes = None if self.notes is None else expand(self.notes)
        if notes is not None and self.speed:
            raise ConfigError("data.speed changes the pitch and data.notes does not know it; set data.speed 0")
        corpus = open_corpus(self.path, self.labels)
        corpus = hold_out(corpus, self.held_out) if self.held_out else corpus
        return corpus, Further(drawn, paired, notes, self.reference)


@dataclass(frozen=True)
class Normalize:
    """Measure mean and scale per channel on the corpus, over this many crops; `evenness` 1 gives every channel unit
    deviation, 0 keeps their proportions."""

    enabled: bool = True
    crops: ranges.Count = 512
    evenness: ranges.Share = 1.0


@dataclass(frozen=True)
class Train:
    """Length, optimiser and intervals (in steps; 0 is never)."""

    steps: ranges.Count = 10_000
    batch: ranges.Count = 16
    learning_rate: ranges.Positive = 1e-3
    warmup: ranges.Index = 100
    weight_decay: ranges.Weight = 0.01
    b1: ranges.Decay = 0.9  # decay of the optimiser's first moment
    optimizer: OptimizerName = "adamw"
    schedule: RateName = "cosine"  # of the learning rate after its warm-up
    decay_share: ranges.Share = 0.2  # of the steps, in which schedule wsd falls
    ema_decay: ranges.Decay = 0.999
    posthoc_ema: bool = False  # keep snapshots from which averages of any length can be made afterwards
    seed: ranges.Seed = 0
    init: str | None = None  # a run, file or shipped model whose averaged weights to begin with
    init_partial: bool = False  # what does not fit of them begins anew
    freeze: tuple[str, ...] = ()  # parameters that stay as they are, by patterns of their names: blocks/0/*
    lora: Lora | None = None  # low-rank updates of matrices
    accumulate: ranges.Count = 1  # parts of a batch that the network sees one after the other, where memory is short
    fsdp: ranges.Count = 1  # devices that share one copy of the weights and of the optimiser's state
    skips: ranges.Index = 10  # steps in a row without a finite loss and gradient, which change nothing, before the end
    log_every: ranges.Index = 20
    sample_every: ranges.Index = 1000
    save_every: ranges.Index = 1000
    keep: ranges.Count = 2  # the last checkpoints, and ...
    best: str | None = None  # ... the one at which this metric of the log was least, loss or validation
    patience: ranges.Index = 0  # checkpoints in a row of which none was the best, before training ends
    validation: str | None = None  # sounds that are not trained on, a folder as data.path; where none, data.held_out;
    validate_every: ranges.Index = 1000  # their loss is logged at this interval
    tensorboard: bool = False  # write the log and the previews for TensorBoard too

    def __post_init__(self) -> None:
        if self.patience and self.best is None:
            raise ValueError(f"patience {self.patience}: waits for a better checkpoint; set best to a metric, as loss")
        if self.optimizer == "schedule_free" and self.schedule != "constant":
            raise ValueError(
                f"optimizer schedule_free has averages in place of a decay, got schedule {self.schedule}; set schedule "
                f"constant"
            )
        if self.init is None and (self.freeze or self.lora or self.init_partial):
            raise ValueError("freeze, lora and init_partial are for weights of an older model; set init to one")


class Options(NamedTuple):
    """A network by name and the options of its constructor; it is built when features and classes are known."""

    kind: str
    values: Mapping[str, Any]


class Change(Options):
    """A random change of crops by name, the options of its function, and its probability."""


@dataclass(frozen=True, repr=False)
class Config:
    """Everything a run is; stored in its checkpoints. It shows itself as its YAML."""

    data: Data = field(default_factory=Data)
    augment: tuple[Change, ...] = ()  # random changes of crops in training, one after the other
    task: Task = field(default_factory=Generate)
    representation: Representation = field(default_factory=CompressedStft)
    normalize: Normalize = field(default_factory=Normalize)
    network: Options = field(default_factory=lambda: _value(Options, {}, "network"))
    method: Method = field(default_factory=Diffusion)
    train: Train = field(default_factory=Train)
    sampling: Sampling = field(default_factory=Sampling)

    def __repr__(self) -> str:
        return to_yaml(self)


# type of a field -> table of the parts that it may be, and the name that stands for none given
TABLES: dict[Any, tuple[Mapping[str, Any], str]] = {
    Task: (TASKS, "generate"),
    Representation: (REPRESENTATIONS, "compressed_stft"),
    Options: (NETWORKS, "convnext"),
    Method: (METHODS, "diffusion"),
    Schedule: (SCHEDULES, "rectified_flow"),
    Bridge: (BRIDGES, "ve"),
    Change: (AUGMENTATIONS, "gain"),
}
# fields that a user does not choose: a corpus, the sample rate or the other parts supply them
_SUPPLIED = {
    Task: {"classes"},
    Representation: {"sample_rate"},
    Options: {"condition_features", "condition_hop", "num_classes", "self_conditioning", "second_time", "zero_output",
              "input_classes", "token_features", "rngs"},
    Change: {"sr"},
}  # fmt: skip


# From YAML ----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Reads values as text or nothing, since a field's type says what they are (010 is 10, 1:30 is no number), and
    refuses a key that stands twice."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [(self.construct_object(key), key.start_mark) for key, _ in node.value]
        for i, (key, mark) in enumerate(keys):
            if key in [k for k, _ in keys[:i]]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", mark)
        return super().construct_mapping(node, deep)


def load_config(path: Path, overrides: Mapping[str, str] | None = None) -> Config:
    """The configuration of a YAML file with dotted-key overrides laid over it; raises ConfigError."""
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader) or {}  # which is a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML in UTF-8 ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold keys and values, got {type(tree).__name__}")
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node[parent] = node = {} if node.get(parent) is None else node[parent]
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {parent} in {path} is a single value, not a group")
        node[last] = value
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """A Config from nested mappings; absent keys keep defaults, unknown keys and wrong types raise ConfigError.

    A stored tree says its format and may be an older one; people's files are of the newest.
    """
    tree = dict(tree)
    stored = _scalar(int, tree.pop("format", FORMAT), "format")
    if not 1 <= stored <= FORMAT:
        raise ConfigError(f"format {stored}: this jaxdiff knows formats 1 to {FORMAT}; install a newer one")
    for older in range(stored, FORMAT):
        tree = UPGRADES[older](tree)
    config = _make(Config, tree, "")
    augmentation(config)
    at_rate = dataclasses.replace(config.representation, sample_rate=config.data.sample_rate)
    return dataclasses.replace(config, representation=at_rate)


class Key(NamedTuple):
    """A key that a part understands: its annotated type and its default."""

    hint: Any
    default: Any


def schema(part: Any, family: Any = None) -> dict[str, Key]:
    """The keys of a part: the parameters of its constructor, but for those that are supplied by others.

    A change of crops is made by a function, and with some probability.
    """
    maker: Any = part if family is Change else part.__init__
    hints = typing.get_type_hints(part if dataclasses.is_dataclass(part) else maker, include_extras=True)
    parameters = list(inspect.signature(maker).parameters.values())
    first = {Options: 2, Change: 0}.get(family, 1)  # after self, and a network's channels
    chosen = [p for p in parameters[first:] if p.name not in _SUPPLIED.get(family, ())]
    further = {"probability": Key(ranges.Share, 1.0)} if family is Change else {}
    return {p.name: Key(hints[p.name], p.default) for p in chosen} | further


def _make(part: Any, tree: Any, prefix: str, family: Any = None) -> Any:
    """A part from its group of keys."""
    tree = {} if tree is None else tree
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')}: expected a group of keys, got {tree!r}")
    keys = schema(part, family)
    for key in tree:
        if key not in keys:
            names = [f"{prefix}{name}" for name in keys]
            inner = [name for name, _ in flatten(part(), prefix)] if family is None else []
            near = difflib.get_close_matches(f"{prefix}{key}", names + inner, 1, 0.4)
            hint = f"did you mean {near[0]}?" if near else f"valid here: {', '.join(keys)}"
            raise ConfigError(f"{prefix}{key}: unknown key; {hint}")
    values = {key: _value(keys[key].hint, tree[key], f"{prefix}{key}") for key in tree}
    if family in (Options, Change):
        missing = [name for name, key in keys.items() if key.default is inspect.Parameter.empty and name not in values]
        if missing:
            raise ConfigError(f"{prefix}{missing[0]}: is missing and has no default; give all of {', '.join(keys)}")
        return {name: values.get(name, default) for name, (_, default) in keys.items()}
    try:
        return part(**values)
    except ValueError as error:
        raise ConfigError(f"{prefix.rstrip('.')}: {error}") from None


def _value(hint: Any, value: Any, key: str) -> Any:
    """A value of the type that a field or parameter is annotated with, within its range."""
    if hint in TABLES:
        table, default = TABLES[hint]
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected a group with kind: {' or '.join(table)}, got {value!r}")
        kind = value.get("kind", default)
        _choose(list(table), kind, f"{key}.kind")
        made = _make(table[kind], {k: v for k, v in value.items() if k != "kind"}, f"{key}.", hint)
        return hint(kind, made) if hint in (Options, Change) else made
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _make(hint, value, f"{key}.")
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hints = [h for h in typing.get_args(hint) if h is not types.NoneType]
        if len(hints) < len(typing.get_args(hint)) and (value is None or value in ("none", "null", "~")):
            return None
        return _value(hints[-1 if isinstance(value, Mapping) else 0], value, key)
    origin = typing.get_origin(hint)
    if origin is tuple:
        of_text = typing.get_args(hint)[0] is str
        parts = () if value is None else value.split(",") if of_text and isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            what = "texts" if of_text else "groups that say their kind"
            raise ConfigError(f"{key}: expected a list of {what}, got {value!r}")
        return tuple(_value(typing.get_args(hint)[0], part, f"{key}.{i}") for i, part in enumerate(parts))
    if origin is Literal:
        return _choose(typing.get_args(hint), value, key)
    if origin is not None and origin is not Annotated and issubclass(origin, Mapping):
        of = typing.get_args(hint)[1]
        if not isinstance(value, Mapping):
            what = "folders" if of is str else "numbers"
            raise ConfigError(f"{key}: expected names and {what}, got {value!r}")
        return {_scalar(str, k, key): _value(of, v, f"{key}.{k}") for k, v in value.items()}
    number = _scalar(typing.get_args(hint)[0] if origin is Annotated else hint, value, key)
    try:
        ranges.check(key, hint, number)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return number


def _choose(choices: typing.Sequence[Any], value: Any, key: str) -> Any:
    if value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{key}: expected one of {', '.join(map(str, choices))}, got {value!r}{hint}")
    return value


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
        number = hint(value.lower().replace(".inf", "inf") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        raise wrong from None
    if hint is int and isinstance(value, float) and value != number:
        raise wrong
    return number


# And back -----------------------------------------------------------------------------------------------------------


def to_dict(part: Any) -> dict[str, Any]:
    """Nested plain values with every key; `from_dict(to_dict(config)) == config`, and the format number with it."""
    start: dict[str, Any] = {"format": FORMAT} if isinstance(part, Config) else {}
    return {**start, **{name: to_dict(v) if _is_group(v) else v for name, v in _items(part)}}


def to_yaml(config: Config) -> str:
    """The resolved configuration, every key of it."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def flatten(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values."""
    for name, value in _items(part):
        if _is_group(value):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_group(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or isinstance(value, Options)


def _items(part: Any) -> Iterator[tuple[str, Any]]:
    """The keys of a part with their values, the name of its kind first where it stands in a table."""
    if isinstance(part, Options):
        yield "kind", part.kind
        yield from part.values.items()
        return
    family = next((f for f, (table, _) in TABLES.items() if type(part) in table.values()), None)
    if family is not None:
        yield "kind", next(name for name, kind in TABLES[family][0].items() if kind is type(part))
    for name in schema(type(part), family):
        value = getattr(part, name)
        if isinstance(value, tuple) and not _is_group(value):
            value = [to_dict(item) if _is_group(item) else item for item in value]
        yield name, dict(value) if isinstance(value, Mapping) else value


# What is built of it ------------------------------------------------------------------------------------------------


def representation(config: Config) -> Representation:
    """The features before they are normalised: those of both channels, where the data have two."""
    return Stereo(config.representation) if config.data.channels == "stereo" else config.representation


def crop(config: Config) -> Crop:
    """How training crops are cut; raises ConfigError when they cannot be cut into frames."""
    data = config.data
    samples = round(data.seconds * data.sample_rate)
    hop = math.lcm(config.representation.hop_length, config.task.needs(config.representation).condition_hop or 1)
    if samples < hop or samples % hop:
        fits = max(1, round(samples / hop)) * hop
        texts = (f"{fits / data.sample_rate:.{digits}g}" for digits in range(4, 18))
        advice = next(text for text in texts if round(float(text) * data.sample_rate) == fits)
        raise ConfigError(
            f"data.seconds {data.seconds} is {samples} samples, which the hop of {hop} (the representation's and the "
            f"task's) does not divide; use data.seconds {advice} ({fits} samples)"
        )
    return Crop(samples, data.sample_rate, data.crop, data.channels, data.speed)


def augmentation(config: Config) -> Augmentation | None:
    """The random changes of training crops, None where there are none; raises ConfigError for ranges that cannot be."""
    made = []
    for i, (kind, values) in enumerate(config.augment):
        options = {name: value for name, value in values.items() if name != "probability"}
        needs_rate = "sr" in inspect.signature(AUGMENTATIONS[kind]).parameters
        try:
            change = AUGMENTATIONS[kind](**options, **({"sr": config.data.sample_rate} if needs_rate else {}))
        except ValueError as error:
            raise ConfigError(f"augment.{i}: {error}") from None
        if kind in ("shift", "speed") and config.data.notes is not None:
            raise ConfigError(f"augment.{i}: {kind} moves sounds and data.notes does not know it; take it out")
        made.append(sometimes(change, values["probability"]) if values["probability"] < 1 else change)
    return compose(*made) if made else None


def learning_rate(t: Train) -> optax.Schedule:
    """The learning rate of a training after so many updates."""
    return learning_rates(t.learning_rate, t.steps, warmup=t.warmup, schedule=t.schedule, decay_share=t.decay_share)


def optimizer(t: Train) -> optax.GradientTransformation:
    """The optimiser of a training."""
    made = make_optimizer(
        t.learning_rate,
        t.steps,
        warmup=t.warmup,
        weight_decay=t.weight_decay,
        b1=t.b1,
        kind=t.optimizer,
        schedule=t.schedule,
        decay_share=t.decay_share,
    )
    return restricted(made, t.freeze, t.lora, t.seed) if t.freeze or t.lora else made


def model(config: Config, classes: tuple[str, ...], normalization: Normalization | None) -> Model:
    """The model of a configuration for a corpus's classes and normalisation; raises ConfigError where parts do not fit.

    Classes are left away by tasks that have no use for them; a normalisation that is not known yet (None) does nothing.
    """
    task, sound = config.task.with_classes(classes), representation(config)
    if config.normalize.enabled:
        blank = Normalization(jnp.zeros(sound.channels), jnp.ones(sound.channels))
        sound = Normalized(sound, blank if normalization is None else normalization)
    try:
        task.check(sound)
        built = Model(_network(config, sound, task), sound, task)
        config.method.check(built)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return built


def _network(config: Config, representation: Representation, task: Task) -> Network:
    """The network with what the task and the method need; an option that its constructor lacks is an error."""
    kind, method = config.network.kind, config.method
    needs, wanted = task.needs(representation), method.network_options()
    parameters = inspect.signature(NETWORKS[kind].__init__).parameters
    if needs.condition_hop % representation.hop_length:
        raise ConfigError(
            f"the task's hop of {needs.condition_hop} samples is no multiple of the representation's hop of "
            f"{representation.hop_length}; set task.hop_length or the representation's so that it is"
        )
    frames = needs.condition_hop // representation.hop_length or 1
    supplied = {**needs._asdict(), "condition_hop": frames, **wanted}
    if ("input_classes" in parameters) != ("input_classes" in wanted):
        name = next(name for name, m in METHODS.items() if m is type(method))
        raise ConfigError(
            f"method autoregression, network causal_wavenet, representation patches of size 1 and normalize.enabled no "
            f"belong together, got method {name} and network {kind}; set all four"
        )
    for option, value in supplied.items():
        default = 1 if option == "condition_hop" else option == "zero_output"
        if option not in parameters and value != default and option != "input_classes":
            able = [k for k, v in NETWORKS.items() if option in inspect.signature(v.__init__).parameters]
            raise ConfigError(
                f"network.kind {kind} has no {option}, which the task or method needs to be {value}; use "
                f"{', '.join(able)}"
            )
    options = {**config.network.values, **{k: v for k, v in supplied.items() if k in parameters}}
    return from_nnx(lambda rngs: NETWORKS[kind](method.outputs(representation), **options, rngs=rngs))


# Older formats ------------------------------------------------------------------------------------------------------


def _from_1(tree: dict[str, Any]) -> dict[str, Any]:
    """Level and polarity were the data's, sampling's names of tasks were nouns, Griffin-Lim drew phases for all frames
    and the guess of magnitudes took 50 steps.

    A vocoder was trained at `peak_db` and used at the sound's own level, which it keeps.
    """
    data, task = dict(tree["data"]), dict(tree["task"])
    peak, flip = data.pop("peak_db"), data.pop("flip_polarity")
    kinds = {"generation": "generate", "vocoding": "vocode"}
    task["kind"] = kinds[task["kind"]]
    if task["kind"] == "generate":
        task |= {"peak_db": peak, "flip_polarity": flip}
    if task.get("guess"):
        task["guess_steps"] = 50
    representation = dict(tree["representation"])
    if representation["kind"] in ("log_mel", "magnitude"):
        representation["phase_period"] = None
    train = {**tree["train"], "b1": 0.8 if tree["method"]["kind"] == "adversarial" else 0.9}
    return {**tree, "data": data, "task": task, "representation": representation, "train": train}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}  # from that format to the next
