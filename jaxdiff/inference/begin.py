"""The weights with which a training begins that `train.init` gives another model, and what is said of them.

Everything has to fit unless `train.init_partial` says otherwise: then what fits by name and shape is taken, and the
rest begins as it would without. Classes may be others at all times: those of the same name keep their row of the table.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdiff import config as configuration
from jaxdiff.config import Config, ConfigError, flatten, to_dict
from jaxdiff.features import Normalization, Normalized
from jaxdiff.networks import Params
from jaxdiff.training import transfer

from .load import load

_PARTS = ("task", "representation", "normalize", "network")
_KEYS = 3  # at most, that a sentence says


def begin_with(
    config: Config, classes: tuple[str, ...], report: Callable[[str], None] = lambda text: None
) -> tuple[Params, Normalization | None]:
    """Weights, and normalisation where the features are the same, of the model that `config.train.init` names.

    Raises ConfigError where something does not fit, and where it is frozen though it begins anew.
    """
    t = config.train
    there, where, partial = load(t.init or ""), f"train.init {t.init}", t.init_partial
    assert there.config is not None  # or `load` would have asked for a model
    theirs, ours = to_dict(there.config), to_dict(config)
    for tree in (theirs, ours):
        tree["representation"].pop("vocoder", None)  # which no training hears
    differ = [name for name in _PARTS if theirs[name] != ours[name]]
    same_features = not {"representation", "normalize"} & set(differ)
    if there.sample_rate != config.data.sample_rate:
        same_features = False
        if not partial:
            raise ConfigError(f"{where}: was trained at {there.sample_rate} Hz, here are {config.data.sample_rate} Hz")
    stereo = config.data.channels == "stereo"
    if there.model.representation.stereo != stereo:
        same_features = False
        if not partial:
            one, both = "each channel by itself", "both channels together"
            had, has = (both, one) if not stereo else (one, both)
            raise ConfigError(
                f"{where}: was trained on {had}, here it is {has}; set data.channels alike, or train.init_partial yes "
                f"to take what fits"
            )
    for name in differ if not partial else ():
        if name in ("representation", "normalize") or theirs[name]["kind"] != ours[name]["kind"]:
            raise ConfigError(
                f"{where}: was trained with {name} {theirs[name]}, here it is {ours[name]}; set them alike, or "
                f"train.init_partial yes to take what fits"
            )
    if bool(there.classes) != bool(classes) and not partial:
        had, has = (", ".join(names) or "none" for names in (there.classes, classes))
        raise ConfigError(
            f"{where}: was trained on classes {had}, here are {has}; give the corpus a folder for each class, or none"
        )
    params = there.params
    if there.classes != classes and there.classes and classes:
        params = _of_classes(params, there.classes, classes)
        new = [name for name in classes if name not in there.classes]
        report(
            f"{t.init} was trained on other classes; new ones begin as none told: {', '.join(new) or 'there are none'}"
        )
    network = configuration.model(config, classes, None).network
    match = transfer.match(params, network.shapes())
    before = dict(flatten(there.config))
    changed = {
        key: (before[key], value)
        for key, value in flatten(config)
        if key.partition(".")[0] in (*differ, "method") and key in before and before[key] != value
    }
    if not partial and (match.other or match.new or match.left):
        raise ConfigError(f"{where}: {_misfit(match)}; {_advice(match, changed)}")
    _check_trained(config, network.shapes(), [*match.new, *match.other])
    for line in match.report():
        report(f"{t.init}: {line}")
    for key, (old, new) in changed.items():
        if key.partition(".")[0] in differ:
            report(f"{t.init} was trained with {key} {old}, here it is {new}")
    if match.other or match.new or match.left:
        params = transfer.fill(jax.jit(network.init)(jax.random.key(t.seed)), params)
    r = there.model.representation
    if not same_features:
        report(f"{t.init} hears other features; their normalisation is measured anew")
    return params, r.normalization if same_features and isinstance(r, Normalized) else None


def _of_classes(params: Params, there: tuple[str, ...], here: tuple[str, ...]) -> Params:
    """The weights with the rows of a `LabelEmbedding`, a row for each class and a last one for none, in our order."""
    known = {name: row for row, name in enumerate(there)}
    rows = np.array([known.get(name, len(known)) for name in here] + [len(known)])
    is_table = lambda path: [getattr(part, "key", None) for part in path[-2:]] == ["label", "table"]  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: x[rows] if is_table(path) else x, params)


def _misfit(match: transfer.Match) -> str:
    """The first parameter that does not fit."""
    if match.other:
        name, (old, new) = next(iter(match.other.items()))
        return f"{name} has the shape {old}, here it has {new}"
    if match.new:
        name, shape = next(iter(match.new.items()))
        return f"lacks {name} {shape}, which this network has"
    name, shape = next(iter(match.left.items()))
    return f"has {name} {shape}, which this network lacks"


def _advice(match: transfer.Match, changed: dict[str, tuple[Any, Any]]) -> str:
    """The keys to set alike, those of the network first, which alone say shapes; of another method only its name."""
    if "method.kind" in changed:
        changed = {key: pair for key, pair in changed.items() if not key.startswith("method.") or key == "method.kind"}
    network = {key: pair for key, pair in changed.items() if key.startswith("network.")}
    changed = network if network and match.other else network | changed
    said = ", ".join(f"{key} was {old} and is {new}" for key, (old, new) in list(changed.items())[:_KEYS])
    jumps = " (jumps are learned by method shortcut, and on by method.jumps)" if "method.kind" in changed else ""
    return f"{said}{jumps}; set them alike, or train.init_partial yes to let what does not fit begin anew"


def _check_trained(config: Config, params: Any, new: list[str]) -> None:
    """Raise ConfigError where patterns of `freeze` and `lora` match nothing, or what nobody trained."""
    t = config.train
    try:
        kinds = transfer.kinds(params, t.freeze, t.lora)
    except ValueError as error:
        raise ConfigError(f"train.{error}") from None
    kept = [name for name in new if kinds[name] is not transfer.Full]
    if kept:
        key = "freeze" if kinds[kept[0]] is transfer.Frozen else "lora"
        raise ConfigError(
            f"train.{key}: matches {transfer.shortened(kept)}, which train.init {t.init} does not give and which "
            f"begins anew; use patterns that leave it to be trained"
        )
