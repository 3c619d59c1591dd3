"""Which listening test is wanted: a strict YAML file becomes a `Design`, and every mistake in it one sentence.

kind        what is asked on a screen                                                       what is on the screen
mushra      0 to 100 for each sound beside an open reference (ITU-R BS.1534-3)              one excerpt, all systems
mos         1 to 5 for one sound (ITU-T P.800, absolute category rating)                    one excerpt, one system
cmos        -3 to 3 for the second of two sounds, one of which is the reference (P.800)     one excerpt, one system
abx         whether X is A or B                                                             one excerpt, two systems
preference  which of two sounds is preferred                                                one excerpt, two systems
"""

import difflib
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from jaxdiff.data.files import expand

from .panel import GOLD, KINDS, LOW_ANCHOR, MID_ANCHOR, REFERENCE, TRAP, Kind

ANCHORS = {3500: LOW_ANCHOR, 7000: MID_ANCHOR}  # by their cut-offs in Hz
LARGEST_SCREEN = 12  # signals, the open reference among them (BS.1534-3, section 5.2)
LARGEST_TEST = 200  # screens
SHORTEST = 0.5  # seconds of an excerpt and of a loop
_TRAINING_SCREENS = 3  # at most
_CHECKED = 10  # screens to which one trap and one gold clip are added, as in the open implementation of P.808
_ASK = {
    "mushra": "How good is the quality of each sound, compared with the reference?",
    "mos": "How good is the quality of this sound?",
    "cmos": "How good is the quality of sound B, compared with sound A?",
    "abx": "Which sound is X?",
    "preference": "Which sound do you prefer?",
}


class DesignError(ValueError):
    """A listening test that cannot be made; one sentence: what, expected, got, what to do."""


@dataclass(frozen=True)
class Excerpts:
    """How many excerpts are judged, how long they are at most and where in the files they begin, in seconds."""

    count: int
    seconds: float
    start: float


Checks = int | Mapping[Path, int]  # how many are made, or files and the score that is right for each


@dataclass(frozen=True)
class Design:
    """A listening test as it is wanted.

    `systems` and `reference` are folders with files of the same names. `anchors` are cut-offs in Hz. `repeats` screens
    are shown twice. `traps` and `gold` are the clips of a MOS test whose right score is known (`checks.py`): how many
    are made, or own files with their scores. `loudness` is what every copy has, in LUFS. `questions`, asked at the end,
    have choices.
    """

    kind: Kind
    systems: Mapping[str, Path]
    reference: Path | None
    excerpts: Excerpts
    anchors: tuple[int, ...]
    repeats: int
    traps: Checks
    gold: Checks
    loudness: float
    seed: int
    title: str
    instructions: str
    question: str
    questions: Mapping[str, tuple[str, ...]]

    def screens(self) -> list[tuple[str, ...]]:
        """The systems that stand together on each screen of one excerpt; of a pair the first is the one asked about."""
        names = list(self.systems)
        known = [] if self.reference is None else [REFERENCE]
        if self.kind == "mushra":
            return [(REFERENCE, *(ANCHORS[cutoff] for cutoff in self.anchors), *names)]
        if self.kind == "mos":
            return [(name,) for name in names + known]
        if self.kind == "cmos" or self.kind == "abx" and known:
            return [(name, REFERENCE) for name in names]
        return list(combinations(names, 2))

    def training(self) -> int:
        """How many screens the training has; its excerpt is used for nothing else."""
        return min(len(self.screens()), _TRAINING_SCREENS)

    def tested(self) -> int:
        """How many screens compare systems, the repeated ones among them."""
        return self.excerpts.count * len(self.screens()) + self.repeats


# From YAML ----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Reads every value as text, since the key says what it is, and refuses a key that stands twice."""

    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                mark = node.value[i][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", mark)
        return super().construct_mapping(node, deep)


def read_design(path: Path) -> Design:
    """The listening test that a YAML file describes; raises DesignError."""
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=_Loader)  # which is a SafeLoader
    except OSError as error:
        raise DesignError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DesignError(f"{path}: cannot be read as YAML in UTF-8 ({' '.join(str(error).split())})") from None
    try:
        return parse_design(tree)
    except DesignError as error:
        raise DesignError(f"{path}: {error}") from None


def parse_design(tree: Any) -> Design:
    """The listening test of nested mappings whose values are text; raises DesignError for whatever is wrong in them."""
    tree = _group(tree, "", _KEYS)
    kind = _choice(_needed(tree, "kind", f"one of {', '.join(KINDS)}"), "kind")
    found = {
        key: read(tree[key], key) if key in tree else default for key, (read, default) in _KEYS.items() if key != "kind"
    }
    if found["systems"] is None:
        raise DesignError("systems: is missing; give names and folders, like {ours: out/ours, theirs: out/theirs}")
    if found["anchors"] is None:
        found["anchors"] = tuple(ANCHORS) if kind == "mushra" else ()
    if found["seed"] is None:
        found["seed"] = secrets.randbits(32)
    wanted = {key: found[key] for key in ("traps", "gold")}
    design = Design(kind=kind, **{**found, "question": found["question"] or _ASK[kind], "traps": 0, "gold": 0})
    each = math.ceil(design.tested() / _CHECKED) if kind == "mos" else 0
    usual = {"traps": each, "gold": 0 if design.reference is None else each}
    design = replace(design, **{key: usual[key] if value is None else value for key, value in wanted.items()})
    _check(design)
    return design


def _check(design: Design) -> None:
    """Raise DesignError where what is asked for does not go together."""
    kind, systems = design.kind, design.systems
    if kind in ("mushra", "cmos") and design.reference is None:
        raise DesignError(f"reference: is missing; a {kind} test compares with a reference, give its folder")
    if kind == "abx" and design.reference is None and len(systems) < 2:
        raise DesignError(
            "systems: an abx test without a reference needs at least two, got one; add one or a reference"
        )
    if kind == "preference" and len(systems) < 2:
        raise DesignError("systems: a preference test needs at least two, got one; add one")
    if kind != "mushra" and design.anchors:
        raise DesignError(f"anchors: belong to a mushra test, got kind {kind}; leave them out")
    signals = 1 + len(design.screens()[0])
    if kind == "mushra" and signals > LARGEST_SCREEN:
        raise DesignError(
            f"systems: a screen of {signals} signals ({len(systems)} systems, {len(design.anchors)} anchors, the open "
            f"and the hidden reference) is more than the {LARGEST_SCREEN} of BS.1534; leave out "
            f"{signals - LARGEST_SCREEN}"
        )
    once = design.tested() - design.repeats
    if design.repeats > once:
        raise DesignError(f"repeats: at most the {once} screens of the test can be shown twice, got {design.repeats}")
    traps, gold = (checks if isinstance(checks, int) else len(checks) for checks in (design.traps, design.gold))
    if kind != "mos" and traps + gold:
        raise DesignError(f"{'traps' if traps else 'gold'}: belong to a mos test, got kind {kind}; leave them out")
    if isinstance(design.gold, int) and gold and design.reference is None:
        raise DesignError("gold: is made from the reference, which is missing; give its folder, or own files")
    if traps + gold > design.tested():
        raise DesignError(
            f"{'traps' if traps >= gold else 'gold'}: {traps} trap and {gold} gold clips cannot stand apart between "
            f"{design.tested()} screens; take fewer of them"
        )
    whole = design.tested() + design.training() + traps + gold
    if whole > LARGEST_TEST:
        raise DesignError(
            f"excerpts.count: the test would have {whole} screens, at most {LARGEST_TEST} are reasonable; take fewer "
            "excerpts or systems"
        )


def _group(tree: Any, prefix: str, keys: Mapping[str, Any]) -> Mapping[str, Any]:
    if tree in (None, ""):
        tree = {}
    if not isinstance(tree, Mapping):
        raise DesignError(f"{prefix.rstrip('.') or 'the file'}: expected keys and values, got {_shown(tree)}")
    for key in tree:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, 1, 0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"valid here: {', '.join(keys)}"
            raise DesignError(f"{prefix}{_plain(key)}: unknown key; {hint}")
    return tree


def _needed(tree: Mapping[str, Any], key: str, expected: str) -> Any:
    if key not in tree:
        raise DesignError(f"{key}: is missing; give {expected}")
    return tree[key]


def _plain(value: Any) -> str:
    return " ".join(str(value).split())


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a group of keys"
    if isinstance(value, list):
        return "a list"
    return repr(_plain(value)) if value else "nothing"


def _choice(value: Any, key: str) -> Kind:
    if value not in KINDS:
        near = difflib.get_close_matches(str(value), KINDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DesignError(f"{key}: expected one of {', '.join(KINDS)}, got {_shown(value)}{hint}")
    return value


def _text(longest: int) -> Callable[[Any, str], str]:
    """A reader of a text of at most so many characters."""

    def read(value: Any, key: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise DesignError(f"{key}: expected a text, got {_shown(value)}")
        if len(value) > longest:
            raise DesignError(f"{key}: expected at most {longest} characters, got {len(value)}; shorten it")
        return value.strip()

    return read


def _number(least: float, most: float, whole: bool = False) -> Callable[[Any, str], Any]:
    """A reader of a number from `least` to `most`."""
    expected = f"{'a whole number' if whole else 'a number'} from {least:g} to {most:g}"
    if whole and most >= 2**32 - 1:
        expected = f"a whole number from {least:g} to 2^32 - 1"

    def read(value: Any, key: str) -> Any:
        try:
            number = int(value) if whole else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not least <= number <= most:
            raise DesignError(f"{key}: expected {expected}, got {_shown(value)}")
        return number

    return read


def _folder(value: Any, key: str) -> Path:
    text = _text(4096)(value, key)
    folder = expand(text)
    if not folder.is_dir():
        raise DesignError(f"{key}: {folder} is no folder; give one that holds the sound files")
    return folder


def _systems(value: Any, key: str) -> Mapping[str, Path]:
    if not isinstance(value, Mapping) or not value:
        raise DesignError(f"{key}: expected names and folders, like {{ours: out/ours}}, got {_shown(value)}")
    for name in value:
        if not isinstance(name, str) or not name.strip() or len(name) > 40 or ">" in name or not name.isprintable():
            raise DesignError(f"{key}: the name {_shown(name)} must have 1 to 40 printable characters without >")
        if name in (REFERENCE, *ANCHORS.values(), TRAP, GOLD):
            raise DesignError(f"{key}.{name}: this name stands for something else in the results; use another")
    folders = {name: _folder(folder, f"{key}.{name}") for name, folder in value.items()}
    names = list(folders)
    for i, name in enumerate(names):
        for other in names[:i]:
            if folders[name].resolve() == folders[other].resolve():
                raise DesignError(f"{key}.{name}: is the folder of {other} too; give each system its own")
    return folders


def _anchors(value: Any, key: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    known = {str(cutoff): cutoff for cutoff in ANCHORS}
    for one in values:
        if one not in known:
            raise DesignError(f"{key}: expected a list of {' and '.join(known)} in Hz, got {_shown(one)}")
    if len(set(values)) < len(values):
        raise DesignError(f"{key}: each stands once in the list, got {', '.join(values)}")
    return tuple(sorted(known[one] for one in values))


def _checks(value: Any, key: str) -> Checks:
    """How many clips, or sound files by path with their right scores."""
    if not isinstance(value, Mapping):
        if isinstance(value, str) and value.isdecimal():
            return _number(0, 50, whole=True)(value, key)
        raise DesignError(
            f"{key}: expected a whole number from 0 to 50, or files and their scores, like {{say_two.wav: 2}}, got "
            f"{_shown(value)}"
        )
    if not 1 <= len(value) <= 50:
        raise DesignError(f"{key}: expected 1 to 50 files, got {len(value)}")
    found: dict[Path, int] = {}
    for name, score in value.items():
        path = expand(_text(4096)(name, key))
        if not path.is_file():
            raise DesignError(f"{key}: {path} is no file; give a sound file and its score")
        found[path] = _number(1, 5, whole=True)(score, f"{key}.{path.name}")
    return found


def _excerpts(value: Any, key: str) -> Excerpts:
    tree = _group(value, f"{key}.", _EXCERPT_KEYS)
    return Excerpts(
        **{k: read(tree[k], f"{key}.{k}") if k in tree else default for k, (read, default) in _EXCERPT_KEYS.items()}
    )


def _questions(value: Any, key: str) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value, Mapping) or len(value) > 20:
        raise DesignError(f"{key}: expected at most 20 questions with lists of choices, got {_shown(value)}")
    questions = {}
    for question, choices in value.items():
        _text(200)(question, key)
        if not isinstance(choices, list) or not 2 <= len(choices) <= 20 or len({*map(str, choices)}) < len(choices):
            raise DesignError(f"{key}: {_plain(question)} expected a list of 2 to 20 different choices")
        questions[question] = tuple(_text(100)(choice, f"{key}: {_plain(question)}") for choice in choices)
    return questions


_Readers = Mapping[str, tuple[Callable[[Any, str], Any], Any]]  # of the value of a key, and its default
_EXCERPT_KEYS: _Readers = {
    "count": (_number(1, 100, whole=True), 8),
    "seconds": (_number(SHORTEST, 60), 10.0),
    "start": (_number(0, 14_400), 0.0),
}
_KEYS: _Readers = {
    "kind": (_choice, None),
    "systems": (_systems, None),
    "reference": (_folder, None),
    "excerpts": (_excerpts, Excerpts(8, 10.0, 0.0)),
    "anchors": (_anchors, None),
    "repeats": (_number(1, 50, whole=True), 1),
    "traps": (_checks, None),
    "gold": (_checks, None),
    "loudness": (_number(-50, -10), -23.0),
    "seed": (_number(0, 2**32 - 1, whole=True), None),
    "title": (_text(100), "Listening test"),
    "instructions": (_text(10_000), ""),
    "question": (_text(200), None),
    "questions": (_questions, {}),
}
