"""A corpus is a sorted list of recordings with classes: a folder tree, a manifest, shards, the built-in orchestra, or a
mixture of these.

Opening reads headers, and those from an index where it knows them; a sample of the files is listened to. What cannot be
used goes into `Corpus.rejected` with its reason and is reported, never skipped silently; so is what turns out damaged
when it is read in training.
"""

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cloud import is_url, mirrored
from .files import EXTENSIONS, AudioError, AudioInfo, expand, printable, scan
from .index import Found, Index, below, cache_directory
from .manifests import EXTENSIONS as MANIFESTS
from .manifests import Entry, read_manifest
from .orchestra import write_orchestra
from .shards import EXTENSION as SHARD
from .shards import read_contents

BUILT_IN = "orchestra"
SAMPLE = 64  # files that are listened to when a corpus is opened
FULL_SCALES = 2.0  # of a peak that is said to be too loud
_SILENCE = 1e-5
_ROUNDED = 0.05  # seconds by which a manifest may promise too much


@dataclass(frozen=True)
class Recording:
    """One usable recording: what it is read from, its length in seconds and class index (None without classes).

    `name` is its path below the corpus's folder. A part of a file begins at `offset` and ends at `until`, in seconds.
    """

    path: Any  # or what is opened as one is, a Source
    seconds: float
    label: int | None
    name: str = ""
    offset: float = 0.0
    until: float = math.inf


@dataclass(frozen=True)
class Corpus:
    """Recordings in sorted order, the class names that labels index, and the files left out with their reasons.

    `rejected` grows when recordings turn out unreadable while batches are drawn. `peak` is the largest of the sample
    that was listened to, and `root` the folder or manifest. In a mixture the recordings of each corpus follow each
    other: `parts` says how many and how much they weigh together, and `root` names all. `held_out` are the recordings
    that were taken away for validation.
    """

    root: Path
    recordings: tuple[Recording, ...]
    classes: tuple[str, ...]
    rejected: list[str]
    peak: float = 0.0
    parts: tuple[tuple[int, float], ...] = ()
    held_out: "Corpus | None" = None

    @property
    def seconds(self) -> float:
        return sum(r.seconds for r in self.recordings)

    def count(self, label: str) -> int:
        return sum(r.label == self.classes.index(label) for r in self.recordings)


def open_corpus(path: str | Mapping[str, float], labels: str | None = None) -> Corpus:
    """The built-in corpus when `path` is "orchestra" (or "orchestra/test"), else a folder or a manifest.

    `labels` is a manifest of the folder's files. A folder or manifest of a cloud (gs://bucket/sounds) is copied into
    the cache first. A mapping of several to weights is their mixture.

    >>> open_corpus("no/such/folder")
    Traceback (most recent call last):
    ...
    jaxdiff.data.files.AudioError: no/such/folder: no such folder of sounds
    """
    if not isinstance(path, str):
        if labels is not None:
            raise AudioError(
                f"{labels}: labels are those of one folder, not of a mixture; name the manifests in its place"
            )
        return _mixture([(open_corpus(name), weight) for name, weight in path.items()])
    name, _, split = path.partition("/")
    if name == BUILT_IN and split in ("", "train", "test") and not Path(path).exists():
        return folder_corpus(write_orchestra(cache_directory() / "orchestra-1", split or "train"))
    root = mirrored(path) if is_url(path) else expand(path)
    if labels is None and root.suffix.lower() in MANIFESTS and root.is_file():
        return dataclasses.replace(folder_corpus(root.parent, root), root=root)
    return folder_corpus(root, None if labels is None else expand(labels))


def hold_out(corpus: Corpus, share: float) -> Corpus:
    """The corpus without a share of each class's files, at least one of each class of two and more: its `held_out`.

    Which files is drawn by their names, so that it is the same wherever the folder lies; parts of one file stay
    together. Raises AudioError where no file can be spared.
    """
    sizes = [count for count, _ in corpus.parts] or [len(corpus.recordings)]
    part_of = np.repeat(np.arange(len(sizes)), sizes)
    groups: dict[tuple[int, int | None], dict[str, str]] = {}
    for part, recording in zip(part_of, corpus.recordings, strict=True):
        groups.setdefault((int(part), recording.label), {})[str(recording.path)] = recording.name
    taken: set[str] = set()
    for names in groups.values():
        drawn = sorted(names, key=lambda path: hashlib.sha256(names[path].encode(errors="surrogateescape")).digest())
        taken |= {*drawn[: min(max(1, round(share * len(names))), len(names) - 1)]}
    if not taken:
        raise AudioError(
            f"{corpus.root}: has one file of each class and can spare none; set data.held_out 0 and train.validation "
            f"to a folder of other sounds"
        )
    apart = np.array([str(recording.path) in taken for recording in corpus.recordings])
    kept, held = (tuple(r for r, out in zip(corpus.recordings, apart, strict=True) if out == side) for side in (0, 1))
    counts = np.bincount(part_of[~apart], minlength=len(sizes))
    parts = tuple((int(count), weight) for count, (_, weight) in zip(counts, corpus.parts, strict=False))
    others = dataclasses.replace(corpus, recordings=held, parts=())
    return dataclasses.replace(corpus, recordings=kept, parts=parts, held_out=others)


def folder_corpus(root: Path, manifest: Path | None = None) -> Corpus:
    """All sound files below `root`, recursively and sorted, and the recordings of shards.

    The class of a file is the name of the first sub-folder on its way; with a `manifest` it is what that says, and only
    what it lists is used. Raises AudioError when nothing usable remains.
    """
    root = Path(root)
    if not root.is_dir():
        raise AudioError(f"{root}: no such folder of sounds")
    if manifest is not None:
        entries, rejected = read_manifest(root, manifest), []
    else:
        paths, rejected = scan(root, EXTENSIONS | {SHARD})
        folders = (below(root, path).partition("/") for path in paths)
        entries = [
            Entry(p, printable(name) if under else None) for p, (name, under, _) in zip(paths, folders, strict=True)
        ]
    if not entries:
        also = "".join(f"; {line}" for line in rejected[:1])
        raise AudioError(f"{root}: holds no sound files (looked for {', '.join(sorted(EXTENSIONS))}){also}")
    shards = [entry for entry in entries if entry.path.suffix.lower() == SHARD]
    sounds = [entry for entry in entries if entry.path.suffix.lower() != SHARD]
    before = len(rejected)
    found, peak = _of_files(root, sounds, rejected, whole=manifest is None)
    found += _of_shards(shards, rejected)
    if not found:
        raise AudioError(f"{root}: none of its {len(entries)} sound files can be used; the first: {rejected[before]}")
    classes = tuple(sorted({label for label, *_ in found if label is not None}))
    index = {name: i for i, name in enumerate(classes)}
    recordings = tuple(
        Recording(path, seconds, index.get(label or ""), name, offset, until)
        for label, path, seconds, name, offset, until in found
    )
    return Corpus(root, recordings, classes, rejected, peak)


Labelled = list[tuple[str | None, Any, float, str, float, float]]  # a label, and the other fields of its recording


def _of_files(root: Path, entries: Sequence[Entry], rejected: list[str], whole: bool) -> tuple[Labelled, float]:
    """The usable recordings of files, and the largest peak of those that were listened to."""
    paths = list(dict.fromkeys(entry.path for entry in entries))
    with Index(root, whole) as index:
        found: dict[Path, Found] = dict(zip(paths, index.headers(paths), strict=True))
        good = [path for path in paths if isinstance(found[path], AudioInfo)]
        at = np.unique(np.linspace(0, len(good) - 1, min(SAMPLE, len(good))).round().astype(int))
        sample = [good[i] for i in at]
        found |= zip(sample, index.listen(sample), strict=True)
    rejected += [str(found[path]) for path in paths if isinstance(found[path], AudioError)]
    heard = [(info.peak or 0.0, path) for path in sample if isinstance(info := found[path], AudioInfo)]
    some = f"the {len(sample)} that were listened to, of its {len(good)} recordings,"
    if good and not heard and len(good) > len(sample):
        raise AudioError(f"{root}: none of {some} can be used; the first: {found[sample[0]]}")
    peak, loudest = max(heard, default=(0.0, root))
    if heard and peak < _SILENCE:
        all_of = f"its {len(heard)} recordings" if len(good) == len(sample) else some
        raise AudioError(f"{root}: all of {all_of} are silent (below -100 dB)")
    if peak > FULL_SCALES:
        warnings.warn(too_loud(loudest, peak), stacklevel=4)
    usable: Labelled = []
    for entry in entries:
        info = found[entry.path]
        if isinstance(info, AudioError):
            continue
        end = info.seconds if entry.seconds is None else entry.offset + entry.seconds
        if entry.offset >= info.seconds or end > info.seconds + _ROUNDED:
            what = f"{entry.offset:g} to {end:g} s of {entry.path}, which lasts {info.seconds:g} s"
            rejected.append(printable(f"{entry.where}: {what}"))
            continue
        until = math.inf if end >= info.seconds else end
        seconds = min(end, info.seconds) - entry.offset
        name = below(root, entry.path)
        usable.append((entry.label, entry.path, seconds, name, entry.offset, until))
    return usable, peak


def too_loud(path: Any, peak: float) -> str:
    """The sentence for a recording far above full scale."""
    return printable(f"{path}: peaks at {peak:.6g}, and full scale is 1; divide the recordings by theirs")


def _of_shards(entries: Sequence[Entry], rejected: list[str]) -> Labelled:
    """The recordings of shards."""
    usable: Labelled = []
    for entry in entries:
        try:
            packed = read_contents(entry.path)
        except AudioError as error:
            rejected.append(str(error))
            continue
        usable += [(p.label, p.record, p.info.seconds, p.record.name, 0.0, math.inf) for p in packed]
    return usable


def _mixture(parts: Sequence[tuple[Corpus, float]]) -> Corpus:
    """One corpus of several, each with its weight."""
    if not parts:
        raise AudioError("a mixture names no corpora; give folders and their weights")
    corpora = [corpus for corpus, _ in parts]
    classes = tuple(sorted({name for corpus in corpora for name in corpus.classes}))
    index = {name: i for i, name in enumerate(classes)}
    relabelled = [
        dataclasses.replace(r, label=None if r.label is None else index[corpus.classes[r.label]])
        for corpus in corpora
        for r in corpus.recordings
    ]
    return Corpus(
        root=Path(" + ".join(str(corpus.root) for corpus in corpora)),
        recordings=tuple(relabelled),
        classes=classes,
        rejected=[line for corpus in corpora for line in corpus.rejected],
        peak=max(corpus.peak for corpus in corpora),
        parts=tuple((len(corpus.recordings), weight) for corpus, weight in parts),
    )


def write_report(path: Path, rejected: Iterable[str]) -> None:
    """One line per rejected file."""
    Path(path).write_text("".join(f"{printable(line)}\n" for line in rejected), encoding="utf-8")
