"""The models that ship with the package: their names, sums and cards. Nothing here imports jax.

    weights/NAME/weights.safetensors   what counts: weights and configuration, as `jaxdiff export` writes them
    weights/NAME/config.yaml           the same configuration for people to read
    weights/NAME/card.md               what the model does, of which data it is made, what it reaches, where it fails
    weights/SHA256SUMS                 a line for each file of weights, as `sha256sum` writes it

`benchmarks/ship.py` puts a model there. A card begins with YAML between two lines of `---` and goes on as text with the
sections of `SECTIONS`; `weights/TEMPLATE.md` is an empty one.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).parent / "weights"
TEMPLATE = FOLDER / "TEMPLATE.md"
SUMS, WEIGHTS, CONFIG, CARD = "SHA256SUMS", "weights.safetensors", "config.yaml", "card.md"
HEADER = "jaxdiff"  # the key of a file's metadata under which configuration, classes and step stand
SECTIONS = ("Use", "Training", "Figures", "Limits")  # of a card's text, in this order
LARGEST = 8 * 2**20  # bytes of a shipped file of weights
_BLANK = "FILL IN"  # what the template says where a person has to write


class CardError(ValueError):
    """A card, or the weights beside it, that cannot be read; one sentence: what, expected, got, what to do."""


class Source(NamedTuple):
    """Data that a model was trained on."""

    name: str
    licence: str


@dataclass(frozen=True)
class Card:
    """What a card says; its fields are the keys of its YAML, all of them required."""

    title: str
    task: str
    summary: str  # one line
    licence: str  # of the weights
    data: tuple[Source, ...]
    figures: tuple[str, ...]  # a line each, the most important one first


class Shipped(NamedTuple):
    """A shipped model as its card and the header of its weights describe it; `size` in bytes, `sample_rate` in Hz."""

    name: str
    card: Card
    parameters: int
    size: int
    sample_rate: int


def names() -> tuple[str, ...]:
    """The names of the shipped models, sorted."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{WEIGHTS}")))


def unknown(name: str) -> str:
    """What to say of a name that no shipped model has: which names there are, and the nearest one."""
    there = names()
    if not there:
        return "no models ship with this version of jaxdiff"
    near = difflib.get_close_matches(name, there, 1, 0.4)
    return f"the shipped models are {', '.join(there)}" + (f"; did you mean {near[0]}?" if near else "")


def sums() -> dict[str, str]:
    """The sha256 of each file of weights by the name of its model; lines of another form are passed over."""
    path = FOLDER / SUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = (re.fullmatch(rf"([0-9a-f]{{64}}) [ *]([^/]+)/{re.escape(WEIGHTS)}", line) for line in lines)
    return {match[2]: match[1] for match in found if match}


def sha256(name: str) -> str:
    """The sha256 of a model's file of weights."""
    return hashlib.sha256((FOLDER / name / WEIGHTS).read_bytes()).hexdigest()


def damage(name: str) -> str | None:
    """What is wrong with a model's file of weights, in one sentence; None where its sum is right."""
    path, wanted = FOLDER / name / WEIGHTS, sums().get(name)
    if wanted is None:
        return f"{path}: {SUMS} beside it has no line for this file, so it cannot be verified; install jaxdiff again"
    found = sha256(name)
    if found == wanted:
        return None
    return f"{path}: is damaged, its sha256 should be {wanted}, got {found}; install jaxdiff again"


def describe(name: str) -> Shipped:
    """A shipped model by its card and the header of its weights, which are not read; raises CardError."""
    from safetensors import SafetensorError, safe_open

    path, card = FOLDER / name / WEIGHTS, read_card(FOLDER / name / CARD)
    try:
        with safe_open(path, framework="numpy") as file:
            config = json.loads((file.metadata() or {})[HEADER])["config"]
            weights = [key for key in file.keys() if key.startswith("params/")]  # noqa: SIM118
            parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in weights)
        task, sample_rate = config["task"]["kind"], config["data"]["sample_rate"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CardError(f"{path}: is not a model that jaxdiff export wrote ({error})") from None
    if card.task != task:
        raise CardError(f"{path.parent / CARD}: task should be {task}, as in the weights, got {card.task}")
    return Shipped(name, card, parameters, path.stat().st_size, sample_rate)


# Cards --------------------------------------------------------------------------------------------------------------


class _Loader(yaml.BaseLoader):
    """Reads every value as text and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_card(path: Path) -> Card:
    """A card, checked: every key and section is there, and nothing is left to fill in; raises CardError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: cannot be read as a text in UTF-8 ({error}); a shipped model needs a card") from None
    line = next((i for i, row in enumerate(text.splitlines(), 1) if _BLANK in row), None)
    if line is not None:
        raise CardError(f"{path}: line {line} says {_BLANK}; write there what it asks for")
    parts = re.fullmatch(r"---\n(.*?\n)---\n(.*)", text, re.DOTALL)
    if parts is None:
        raise CardError(f"{path}: should begin with YAML between two lines of ---; {TEMPLATE.name} shows how")
    sections = tuple(re.findall(r"^## (.*?) *$", parts[2], re.MULTILINE))
    if sections != SECTIONS:
        raise CardError(f"{path}: should have the sections {_list(SECTIONS)}, got {_list(sections)}")
    try:
        tree = yaml.load(parts[1], Loader=_Loader)  # BaseLoader makes text, lists and groups, nothing else
    except (yaml.YAMLError, RecursionError) as error:
        raise CardError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    return _card(tree, path)


def _card(tree: Any, path: Path) -> Card:
    found = _fields(tree, tuple(Card.__dataclass_fields__), f"{path}")
    data, figures = found.pop("data"), found.pop("figures")
    for name, rows in (("data", data), ("figures", figures)):
        if not isinstance(rows, list) or not rows:
            raise CardError(f"{path}: {name} should be a list of at least one entry, got {rows!r}")
    sources = [_fields(row, Source._fields, f"{path}: data") for row in data]
    return Card(
        **{key: _line(value, f"{path}: {key}") for key, value in found.items()},
        data=tuple(Source(*(_line(row[key], f"{path}: data.{key}") for key in Source._fields)) for row in sources),
        figures=tuple(_line(row, f"{path}: figures") for row in figures),
    )


def _fields(tree: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    """A group of exactly these keys."""
    if not isinstance(tree, dict) or set(tree) != set(keys):
        got = _list(tuple(map(str, tree))) if isinstance(tree, dict) else repr(tree)
        raise CardError(f"{where}: should have the keys {_list(keys)}, got {got}")
    return dict(tree)


def _line(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or "\n" in value.strip():
        raise CardError(f"{where}: should be one line of text, got {value!r}")
    return value.strip()


def _list(items: tuple[str, ...]) -> str:
    return ", ".join(items) or "none"
