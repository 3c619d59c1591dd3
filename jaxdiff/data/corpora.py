"""A corpus is a sorted list of sound files with classes: a folder tree, a CSV, or the built-in orchestra.

Every file is decoded once when the corpus is opened; what cannot be used goes into `Corpus.rejected` with its reason
and is reported, never skipped silently.
"""

import csv
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .files import EXTENSIONS, AudioError, AudioInfo, check_audio, expand, printable, scan
from .orchestra import write_orchestra

BUILT_IN = "orchestra"


@dataclass(frozen=True)
class Recording:
    """One usable file: its path, length in seconds and class index (None without classes)."""

    path: Path
    seconds: float
    label: int | None


@dataclass(frozen=True)
class Corpus:
    """Recordings in sorted order, the class names that labels index, and the files left out with their reasons.

    `rejected` grows when recordings turn out unreadable while batches are drawn.
    """

    root: Path
    recordings: tuple[Recording, ...]
    classes: tuple[str, ...]
    rejected: list[str]

    @property
    def seconds(self) -> float:
        return sum(r.seconds for r in self.recordings)

    def count(self, label: str) -> int:
        return sum(r.label == self.classes.index(label) for r in self.recordings)


def cache_directory() -> Path:
    """Where the built-in corpus is written: $JAXDIFF_CACHE, or jaxdiff in the user's cache directory."""
    if "JAXDIFF_CACHE" in os.environ:
        return Path(os.environ["JAXDIFF_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxdiff"


def open_corpus(path: str, labels_csv: str | None = None) -> Corpus:
    """The built-in corpus when `path` is "orchestra" (or "orchestra/test"), else the folder `path`.

    >>> open_corpus("no/such/folder")
    Traceback (most recent call last):
    ...
    jaxdiff.data.files.AudioError: no/such/folder: no such folder of sounds
    """
    name, _, split = path.partition("/")
    if name == BUILT_IN and split in ("", "train", "test") and not Path(path).exists():
        return folder_corpus(write_orchestra(cache_directory() / "orchestra-1", split or "train"))
    return folder_corpus(expand(path), labels_csv)


def folder_corpus(root: Path, labels_csv: str | None = None) -> Corpus:
    """All sound files below `root`, recursively and sorted.

    The class of a file is the name of the first sub-folder on its way; with `labels_csv` (columns `file`, relative to
    `root`, and `label`) it is what the CSV says, and only the files it lists are used. Raises AudioError when nothing
    usable remains.
    """
    root = Path(root)
    if not root.is_dir():
        raise AudioError(f"{root}: no such folder of sounds")
    if labels_csv is not None:
        named, rejected = _read_labels(root, expand(labels_csv)), []
    else:
        files, rejected = scan(root)
        named = [(p, printable(p.relative_to(root).parts[0]) if p.parent != root else None) for p in files]
    if not named:
        also = "".join(f"; {line}" for line in rejected[:1])
        raise AudioError(f"{root}: holds no sound files (looked for {', '.join(sorted(EXTENSIONS))}){also}")
    usable = []
    with ThreadPoolExecutor() as threads:
        for (path, name), found in zip(named, threads.map(_check, [p for p, _ in named]), strict=True):
            if isinstance(found, AudioError):
                rejected.append(str(found))
            else:
                usable.append((path, found, name))
    if not usable:
        first = rejected[-len(named)]
        raise AudioError(f"{root}: none of its {len(named)} sound files can be used; the first: {first}")
    peak, loudest = max((info.peak, path) for path, info, _ in usable)
    if peak < 1e-5:
        raise AudioError(f"{root}: all of its {len(usable)} recordings are silent (below -100 dB)")
    if peak > 2:
        what = f"{loudest}: peaks at {peak:.6g}, and full scale is 1; divide the recordings by theirs"
        warnings.warn(printable(what), stacklevel=3)
    classes = tuple(sorted({name for *_, name in usable if name is not None}))
    index = {name: i for i, name in enumerate(classes)}
    return Corpus(root, tuple(Recording(p, i.seconds, index.get(n)) for p, i, n in usable), classes, rejected)


def _check(path: Path) -> AudioInfo | AudioError:
    try:
        return check_audio(path)
    except AudioError as error:
        return error


def _read_labels(root: Path, table: Path) -> list[tuple[Path, str | None]]:
    """The files of a CSV with their labels, sorted; raises AudioError with the line of what cannot be used."""
    if not table.is_file():
        raise AudioError(f"{table}: no such file of labels")
    found: dict[Path, str | None] = {}
    lines: dict[Path, int] = {}
    with table.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.DictReader(text, restkey="")
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if not {"file", "label"} <= set(reader.fieldnames):
                raise AudioError(f"{table}: needs the columns file,label in its first line, got {reader.fieldnames}")
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                if "" in row:
                    raise AudioError(f"{where}: has more fields than the first line; quote names that hold commas")
                path = _inside(root, (row["file"] or "").strip(), where)
                if path in found:
                    raise AudioError(f"{where}: names {path} again, as line {lines[path]} does; keep one of them")
                found[path], lines[path] = (row["label"] or "").strip() or None, reader.line_num
        except (csv.Error, UnicodeDecodeError) as error:
            raise AudioError(f"{table}, line {reader.line_num + 1}: not CSV in UTF-8 ({error})") from None
    if not found:
        raise AudioError(f"{table}: lists no files below its first line")
    return [(path, found[path]) for path in sorted(found)]


def _inside(root: Path, name: str, where: str) -> Path:
    if not name or "\0" in name:
        raise AudioError(f"{where}: names no file, got {name!r}")
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise AudioError(f"{where}: names {name!r}, which lies outside {root}")
    return path


def write_report(path: Path, rejected: Iterable[str]) -> None:
    """One line per rejected file."""
    Path(path).write_text("".join(f"{printable(line)}\n" for line in rejected), encoding="utf-8")
