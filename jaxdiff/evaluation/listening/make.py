"""How a folder of a listening test is made: excerpts of files of the same names, equally loud, under blind names.

    DIR/test.json   what everybody may know: texts, scale, screens and the names of their sounds
    DIR/key.json    what the listeners may not know: which sound is which system; it is never served
    DIR/sounds/     WAV files of 16 bits; a name is 16 random hexadecimal digits

A trap or gold clip of a MOS test is a page like any other, whose right score the key knows.

All copies on a screen have the same rate, channels, length and loudness, fade in and out by the same 5 ms and are
written in the order of their names. Each has its own triangular dither, so that not even the file of the hidden
reference equals that of the open one.
"""

import json
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.data import AudioError, audio_info, read_audio, write_audio
from jaxdiff.data.files import atomic, printable, scan
from jaxdiff.features import integrated_loudness, true_peak

from .anchors import anchor, lowest_rate
from .checks import spoiled, with_beeps
from .design import ANCHORS, SHORTEST, Design, DesignError
from .panel import GOLD, REFERENCE, TRAP

FORMAT = 1  # of test.json and key.json
TEST, KEY, SOUNDS = "test.json", "key.json", "sounds"
FADE = 0.005  # seconds
_LATE = 0.1  # seconds by which a system may end before its reference
_CEILING = -1.0  # dBTP
_SILENT = -70.0  # LUFS, the gate of the loudness
_LONGEST = 60.0  # seconds of an own trap or gold clip
_BEEPS = "If a clip ends with beeps, count them and give their number as your answer, however good the clip is."
_OWN_TRAPS = "If a clip tells you which answer to give, give that answer, however good the clip is."
_SCALES = {  # the values that a score can have, with their labels; of MUSHRA the lower ends of the five bands
    "mushra": {80: "Excellent", 60: "Good", 40: "Fair", 20: "Poor", 0: "Bad"},
    "mos": {5: "Excellent", 4: "Good", 3: "Fair", 2: "Poor", 1: "Bad"},
    "cmos": {3: "Much better", 2: "Better", 1: "Slightly better", 0: "About the same", -1: "Slightly worse",
             -2: "Worse", -3: "Much worse"},
    "abx": {0: "X is A", 1: "X is B"},
    "preference": {-1: "I prefer A", 0: "No preference", 1: "I prefer B"},
}  # fmt: skip


class Excerpt(NamedTuple):
    """The signals of one excerpt by system, each [channels, samples], and their rate in Hz."""

    item: str
    signals: dict[str, Float[np.ndarray, "channels samples"]]
    rate: int

    @property
    def seconds(self) -> float:
        return next(iter(self.signals.values())).shape[1] / self.rate


class Made(NamedTuple):
    """The numbers of a made test: all its screens, its sounds, its traps and gold clips, and its loudness in LUFS."""

    screens: int
    sounds: int
    traps: int
    gold: int
    quietest: float


def make_test(design: Design, folder: Path) -> Made:
    """Write a listening test into an empty or new folder, whole or not at all.

    Raises DesignError where files are missing or do not fit together and AudioError where one cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DesignError(f"{folder}: is there already and not an empty folder; give another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = _make_in(design, Path(temporary) / "test")
        (Path(temporary) / "test").replace(folder)
    return made


def _make_in(design: Design, folder: Path) -> Made:
    """Write a listening test into a new folder."""
    rng = np.random.default_rng([design.seed, 0])
    found = _matched(design)
    needed = design.excerpts.count + 1  # one for the training
    if len(found) < needed:
        raise DesignError(
            f"excerpts.count: {design.excerpts.count} and one for the training are {needed} excerpts, and only "
            f"{len(found)} names are in all folders; take fewer, or add files"
        )
    items = [sorted(found)[i] for i in rng.permutation(len(found))[:needed]]
    screens = [(item, systems, False) for item in items[1:] for systems in design.screens()]
    again = [screens[i] for i in sorted(rng.permutation(len(screens))[: design.repeats])]
    training = [design.screens()[i] for i in rng.permutation(len(design.screens()))[: design.training()]]
    screens = [(items[0], systems, True) for systems in training] + screens + again
    (folder / SOUNDS).mkdir(parents=True)
    names = _blind_names(rng)
    pages: dict[int, dict[str, Any]] = {}
    copies = 0
    quietest = design.loudness
    for item in items:
        excerpt, level = _levelled(_excerpt(design, item, found[item]), design.loudness)
        quietest = min(quietest, level)
        here = [(place, systems) for place, (name, systems, _) in enumerate(screens) if name == item]
        written = {}
        for place, systems in here:
            page = {"page": next(names), "item": item, "training": screens[place][2], "seconds": excerpt.seconds}
            page |= {"sounds": {next(names): system for system in systems}, "open": {}}
            if design.kind == "mushra" or design.kind == "preference" and design.reference is not None:
                page["open"] = {next(names): REFERENCE}
            if design.kind == "abx":  # X is either of them, which a session's number decides
                page["open"] = {next(names): system for system in systems}
            pages[place] = page
            written |= page["sounds"] | page["open"]
        _write_sounds(folder / SOUNDS, excerpt, written, rng)
        copies += len(written)
    ordered = [pages[place] for place in range(len(screens))]
    checks = _checks(design, items[1:], rng)
    for check in checks:
        clip, level = _levelled(_clip(check, design, found, rng), design.loudness)
        quietest = min(quietest, level)
        page = {"page": next(names), "item": check.item, "training": False, "seconds": clip.seconds}
        page |= {"sounds": {next(names): check.kind}, "open": {}, "expected": check.score}
        _write_sounds(folder / SOUNDS, clip, page["sounds"], rng)
        ordered.append(page)
    key = {"format": FORMAT, "seed": design.seed, "secret": secrets.token_hex(16), "pages": ordered}
    _write_json(folder / KEY, key, 0o600)
    _write_json(folder / TEST, _public(design, ordered), 0o644)
    traps = sum(check.kind == TRAP for check in checks)
    return Made(len(ordered), copies + len(checks), traps, len(checks) - traps, quietest)


def _public(design: Design, pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a test that everybody may know; the sounds of a screen are sorted by name, and names are random."""
    screens = [
        {"page": page["page"], "training": page["training"], "sounds": sorted([*page["sounds"], *page["open"]])}
        for page in pages
    ]
    return {
        "format": FORMAT,
        "kind": design.kind,
        "title": design.title,
        "instructions": design.instructions,
        "traps": "" if not design.traps else _BEEPS if isinstance(design.traps, int) else _OWN_TRAPS,
        "question": design.question,
        "scale": [[value, label] for value, label in _SCALES[design.kind].items()],
        "questions": [[question, list(choices)] for question, choices in design.questions.items()],
        "pages": sorted(screens, key=lambda screen: screen["page"]),
    }


def _blind_names(rng: np.random.Generator) -> Iterator[str]:
    """Names of 16 hexadecimal digits, no two of them equal."""
    seen = set()
    while True:
        name = rng.bytes(8).hex()
        if name not in seen:
            seen.add(name)
            yield name


# Traps and gold -----------------------------------------------------------------------------------------------------


class _Check(NamedTuple):
    """A clip with a known right score: TRAP or GOLD, made of an excerpt or an own file."""

    item: str
    kind: str
    source: str | Path
    score: int


def _checks(design: Design, items: Sequence[str], rng: np.random.Generator) -> list[_Check]:
    """The trap and gold clips: excerpts come in turn, traps of 1 to 5 in a drawn order, gold clips of 1 and 5."""
    found, sources = [], cycle(items)
    for kind, wanted in ((TRAP, design.traps), (GOLD, design.gold)):
        if isinstance(wanted, int):
            scores = rng.permutation(np.arange(1, 6)).tolist() if kind == TRAP and wanted else [1, 5]
            clips = [(next(sources), scores[k % len(scores)]) for k in range(wanted)]
        else:
            clips = list(wanted.items())
        for k, (source, score) in enumerate(clips, 1):
            name = source.stem if isinstance(source, Path) else source
            found.append(_Check(printable(f"{kind} {k} ({name})"), kind, source, score))
    return found


def _clip(check: _Check, design: Design, found: Mapping[str, Mapping[str, Path]], rng: np.random.Generator) -> Excerpt:
    """The own file, or the clip that is made of an excerpt, where a trap begins like a clip of any system."""
    if isinstance(check.source, Path):
        return _own_clip(check.source, check.kind)
    excerpt = _excerpt(design, check.item, found[check.source])
    if check.kind == TRAP:
        excerpt, level = _levelled(excerpt, design.loudness)
        system = list(excerpt.signals)[rng.integers(len(excerpt.signals))]
        y = with_beeps(excerpt.signals[system], check.score, excerpt.rate, level)
    else:
        y = excerpt.signals[REFERENCE]
        y = y if check.score == 5 else spoiled(y, excerpt.rate, rng)
    return Excerpt(check.item, {check.kind: y.astype(np.float32)}, excerpt.rate)


def _own_clip(path: Path, kind: str) -> Excerpt:
    """A file, whole, since its message may stand at its end."""
    info = audio_info(path)
    if info.channels > 2:
        raise AudioError(f"{path}: has {info.channels} channels, at most 2 can be played")
    if info.sample_rate < 4000:
        raise AudioError(f"{path}: has a rate of {info.sample_rate} Hz, at least 4000 are needed")
    if not SHORTEST <= info.samples / info.sample_rate <= _LONGEST:
        raise DesignError(
            f"{path}: has {info.samples / info.sample_rate:.2f} s, {SHORTEST} to {_LONGEST:g} s are played; cut it so"
        )
    return Excerpt(str(path), {kind: read_audio(path, channels="all")}, info.sample_rate)


# Sounds -------------------------------------------------------------------------------------------------------------


def _matched(design: Design) -> dict[str, dict[str, Path]]:
    """The files of each name that is in all folders, by system; names that are not in all are warned of."""
    folders = dict(design.systems) | ({} if design.reference is None else {REFERENCE: design.reference})
    files = {system: _named(folder) for system, folder in folders.items()}
    everywhere = set.intersection(*(set(named) for named in files.values()))
    for system, named in files.items():
        others = sorted(set(named) - everywhere)
        if others:
            warnings.warn(
                printable(f"{folders[system]}: {len(others)} files are not in all folders, such as {others[0]}"),
                stacklevel=3,
            )
    return {name: {system: named[name] for system, named in files.items()} for name in everywhere}


def _named(folder: Path) -> dict[str, Path]:
    """The sound files below a folder by their path in it without the ending."""
    found, unused = scan(folder)
    for line in unused:
        warnings.warn(f"left out: {line}", stacklevel=4)
    named: dict[str, Path] = {}
    for path in found:
        name = printable(path.relative_to(folder).with_suffix("").as_posix())
        if name in named:
            raise DesignError(printable(f"{named[name]} and {path} have the same name; keep one of them"))
        named[name] = path
    return named


def _excerpt(design: Design, item: str, files: Mapping[str, Path]) -> Excerpt:
    """The signals of an excerpt with its anchors, at one rate and of one length.

    They have the reference's rate, channels and length. Without a reference they have the highest rate, the most
    channels and the longest length of the systems', and silence follows what is shorter.
    """
    infos = {system: audio_info(path) for system, path in files.items()}
    guides = [infos[REFERENCE]] if REFERENCE in infos else list(infos.values())
    rate, channels = max(info.sample_rate for info in guides), max(info.channels for info in guides)
    if channels > 2:
        raise AudioError(f"{files.get(REFERENCE, item)}: has {channels} channels, at most 2 can be played")
    if rate < 4000:
        raise AudioError(f"{files.get(REFERENCE, item)}: has a rate of {rate} Hz, at least 4000 are needed")
    start, seconds = design.excerpts.start, design.excerpts.seconds
    signals = {system: _read(path, infos[system].channels, rate, channels, start, seconds)
               for system, path in files.items()}  # fmt: skip
    lengths = {system: y.shape[1] for system, y in signals.items()}
    length = lengths[REFERENCE] if REFERENCE in lengths else max(lengths.values())
    if length < SHORTEST * rate:
        longest = files.get(REFERENCE, next(iter(files.values())))
        raise DesignError(
            f"{longest}: the excerpt from {start:g} s has {length / rate:.2f} s, at least {SHORTEST} s are needed; "
            "set excerpts.start lower or leave the file out"
        )
    for system, there in lengths.items():
        if REFERENCE in lengths and there < length - _LATE * rate:
            raise DesignError(
                f"{files[system]}: ends {(length - there) / rate:.2f} s before its reference, at most {_LATE} s are "
                "passed over; make them equally long or leave the file out of all folders"
            )
    signals = {s: np.pad(y, ((0, 0), (0, max(0, length - y.shape[1]))))[:, :length] for s, y in signals.items()}
    for cutoff in design.anchors:
        if rate < lowest_rate(cutoff):
            raise DesignError(
                f"anchors: one of {cutoff} Hz needs sounds of at least {lowest_rate(cutoff)} Hz, got "
                f"{files[REFERENCE]} of {rate} Hz; leave it out, as in anchors: [3500]"
            )
        signals[ANCHORS[cutoff]] = anchor(signals[REFERENCE], cutoff, rate).astype(np.float32)
    return Excerpt(item, signals, rate)


def _read(path: Path, own: int, rate: int, channels: int, start: float, seconds: float) -> np.ndarray:
    """A part of a file at `rate`, [channels, samples]; a file of another number of channels is mixed or doubled."""
    if own > channels:
        warnings.warn(printable(f"{path}: its {own} channels are mixed, as the others have one"), stacklevel=4)
        return read_audio(path, rate, channels="mix", offset=start, seconds=seconds)[None]
    y = read_audio(path, rate, channels="all", offset=start, seconds=seconds)
    if own < channels:
        warnings.warn(
            printable(f"{path}: its one channel is played on both sides, as the others have two"), stacklevel=4
        )
        y = np.repeat(y, channels, axis=0)
    return y


def _levelled(excerpt: Excerpt, target: float) -> tuple[Excerpt, float]:
    """All signals of an excerpt with faded ends and one loudness, which in LUFS comes with them.

    It is the target, or lower where the peak of any signal would exceed -1 dBTP.
    """
    rate = excerpt.rate
    names = list(excerpt.signals)
    y = np.stack([excerpt.signals[name] for name in names])
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(round(FADE * rate)) + 0.5) / round(FADE * rate))
    y[..., : len(ramp)] *= ramp.astype(np.float32)
    y[..., -len(ramp) :] *= ramp[::-1].astype(np.float32)
    loudness = np.asarray(integrated_loudness(jnp.asarray(y), sr=rate, channels_axis=-2))
    for name, level in zip(names, loudness, strict=True):
        if level <= _SILENT:
            raise DesignError(
                f"{excerpt.item}: the excerpt of {name} is silent and no gain makes it as loud as the others; leave "
                "the file out of all folders or set another excerpts.start"
            )
    peaks = np.asarray(true_peak(jnp.asarray(y))).max(-1)
    level = min(target, float((loudness + _CEILING - peaks).min()))
    gains = 10 ** ((level - loudness) / 20)
    signals = {name: part * gain for name, part, gain in zip(names, y, gains, strict=True)}
    return Excerpt(excerpt.item, signals, rate), level


def _write_sounds(folder: Path, excerpt: Excerpt, copies: Mapping[str, str], rng: np.random.Generator) -> None:
    for name in sorted(copies):
        y = excerpt.signals[copies[name]]
        dither = (rng.random(y.shape) - rng.random(y.shape)) / 2**15
        write_audio(folder / f"{name}.wav", np.clip(y + dither, -1, 1).T, excerpt.rate)


def _write_json(path: Path, value: Any, mode: int) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    os.chmod(path, mode)
