"""What is known of the sound files of a folder, kept between openings: their headers, and how loud some of them are.

A folder has one file of JSON in the cache directory. An entry holds as long as the size and the time of change of its
file do; what cannot be used has none, and is looked at again each time. An index that is damaged or cannot be written
costs time alone: it saves a look at a header, and whoever reads the sound looks at that again.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .files import AudioError, AudioInfo, atomic, check_audio, check_limits, exact_info

FORMAT = 1
LISTENED = 10.0  # seconds of a recording that are decoded when it is listened to
_CHUNK = 64  # files that are looked at in one go
_FIRST = 8  # files whose looks are timed
_SLOW = 2e-3  # seconds a look from which on threads look, since it decodes or waits; shorter looks they only slow down
_MANY = 4096  # files from which on progress is shown
_OLD = 180 * 86400  # seconds after which an index that did not change is made anew

Found = AudioInfo | AudioError


def cache_directory() -> Path:
    """Where indexes and the built-in corpus are written: $JAXDIFF_CACHE, or jaxdiff in the user's cache directory."""
    if "JAXDIFF_CACHE" in os.environ:
        return Path(os.environ["JAXDIFF_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxdiff"


def below(root: Path, path: Path) -> str:
    """The path from `root` on, as it is written on any system."""
    name = str(path).removeprefix(f"{root}{os.sep}")
    return name if os.sep == "/" else name.replace(os.sep, "/")


class Index:
    """The headers of the files below `root`: a context, at whose end what was learned is kept.

    With `whole` the files that were not asked for are forgotten.
    """

    def __init__(self, root: Path, whole: bool):
        self._root, self._whole = root, whole
        self._name = os.path.abspath(root)
        digest = hashlib.sha256(os.fsencode(self._name)).hexdigest()[:32]
        self._file = cache_directory() / "indexes" / f"{digest}.json"
        self._stored: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            stored = json.loads(self._file.read_bytes())
            if stored["format"] == FORMAT and stored["root"] == self._name:
                self._stored = dict(stored["files"])
        self._entries: dict[str, Any] = {}
        self._learned = False

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._learned:
            return
        files = self._entries if self._whole else self._stored | self._entries
        text = json.dumps({"format": FORMAT, "root": self._name, "files": files}, separators=(",", ":"))
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic(self._file) as temporary:
                temporary.write_text(text, encoding="utf-8")
            for other in self._file.parent.glob("*.json"):
                if time.time() - other.stat().st_mtime > _OLD:
                    other.unlink()

    def headers(self, paths: Sequence[Path]) -> list[Found]:
        """The header of every file, or why it cannot be used."""
        return self._each(lambda path: self._look(path, exact_info, heard=False), paths, "reading headers")

    def listen(self, paths: Sequence[Path]) -> list[Found]:
        """The same with peaks, as found by decoding: short files whole, others for ten seconds of theirs."""
        return self._each(lambda path: self._look(path, _heard, heard=True), paths, "listening")

    def _look(self, path: Path, read: Callable[[Path], AudioInfo], heard: bool) -> AudioInfo:
        try:
            there = os.stat(path)
        except (OSError, ValueError):
            raise AudioError(f"{path}: no such file") from None
        name, stamp = below(self._root, path), [there.st_size, there.st_mtime_ns]
        entry = self._stored.get(name)
        info = _info(entry, stamp)
        if info is None or heard and info.peak is None:
            self._learned = True
            self._entries.pop(name, None)  # it may be found bad
            info = read(path)
            entry = [*stamp, info.sample_rate, info.samples, info.channels, info.subtype, info.peak]
        self._entries[name] = entry
        return info

    def _each(self, look: Callable[[Path], AudioInfo], paths: Sequence[Path], what: str) -> list[Found]:
        def some(chunk: Sequence[Path]) -> list[Found]:
            found: list[Found] = []
            for path in chunk:
                try:
                    found.append(look(path))
                except AudioError as error:
                    found.append(error)
            return found

        start, found, rest = time.monotonic(), some(paths[:_FIRST]), paths[_FIRST:]
        waits = (time.monotonic() - start) / _FIRST > _SLOW
        size = _CHUNK if len(rest) > 16 * _CHUNK else 1
        chunks = [rest[i : i + size] for i in range(0, len(rest), size)]
        with contextlib.ExitStack() as stack:
            each = stack.enter_context(ThreadPoolExecutor()).map if waits else map
            made: Iterable[list[Found]] = each(some, chunks)
            if len(paths) >= _MANY and sys.stderr.isatty():
                from rich.console import Console
                from rich.progress import track

                made = track(made, what, len(chunks), console=Console(stderr=True), transient=True)
            return found + [one for part in made for one in part]


def _heard(path: Path) -> AudioInfo:
    return check_audio(path, LISTENED)


def _info(entry: Any, stamp: list[int]) -> AudioInfo | None:
    """The header that an entry holds, None where it is of another file or no entry at all."""
    with contextlib.suppress(TypeError, ValueError):
        size, changed, rate, samples, channels, subtype, peak = entry
        plain = all(type(number) is int for number in (rate, samples, channels)) and type(subtype) is str
        if [size, changed] == stamp and plain and (peak is None or math.isfinite(peak)):
            info = AudioInfo(rate, samples, channels, peak, subtype)
            check_limits(info, "")
            return info
    return None
