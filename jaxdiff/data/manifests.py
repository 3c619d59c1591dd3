"""Manifests: tables of files with labels, as CSV whose first line names the columns, or as JSON lines.

    file,label,offset,seconds             {"file": "low/0.wav", "label": "low", "offset": 1.5, "seconds": 2}

`file` is relative to the corpus's folder and may not leave it. All else may be missing: `label` (no class), `offset`
in seconds (0) and `seconds` (up to the end). Further columns are not looked at.
"""

import csv
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .files import AudioError

EXTENSIONS = frozenset({".csv", ".jsonl"})
_MOST_BYTES = 1 << 30
_MOST_LINE = 1 << 16  # characters


class Entry(NamedTuple):
    """A part of a file, from `offset` on for `seconds` (None: to its end), and its label."""

    path: Path
    label: str | None
    offset: float = 0.0
    seconds: float | None = None
    where: str = ""  # it is said


def read_manifest(root: Path, table: Path) -> list[Entry]:
    """The entries of a manifest, sorted; raises AudioError with the line of what cannot be used."""
    if not table.is_file():
        raise AudioError(f"{table}: no such file of labels")
    if table.stat().st_size > _MOST_BYTES:
        raise AudioError(f"{table}: is larger than 1 GiB; make several of it")
    rows = _json_rows(table) if table.suffix.lower() == ".jsonl" else _csv_rows(table)
    found: dict[Any, Entry] = {}
    folders: dict[str, bool] = {}
    for number, row in rows:
        where = f"{table}, line {number}"
        path = _inside(root, row.get("file"), where, folders)
        offset, seconds = _number(row, "offset", where), _number(row, "seconds", where)
        if seconds == 0:
            raise AudioError(f"{where}: seconds is 0; leave it out to use the file to its end")
        label = row.get("label")
        if not isinstance(label, str | int | float | None):
            raise AudioError(f"{where}: expected label as text, got {label!r}")
        name = None if label is None else str(label).strip() or None
        entry = Entry(path, name, offset or 0.0, seconds, where)
        there = found.setdefault((path, entry.offset, entry.seconds), entry)
        if there is not entry:
            raise AudioError(
                f"{where}: names {path} again, as {there.where.rpartition(', ')[2]} does; keep one of them"
            )
    if not found:
        raise AudioError(f"{table}: lists no files")
    return sorted(found.values(), key=lambda e: (e.path, e.offset, e.seconds or 0.0))


def _csv_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.DictReader(text, restkey="")
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            if "file" not in reader.fieldnames:
                raise AudioError(f"{table}: needs a column file in its first line, got {reader.fieldnames}")
            for row in reader:
                if "" in row:
                    what = "has more fields than the first line; quote names that hold commas"
                    raise AudioError(f"{table}, line {reader.line_num}: {what}")
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise AudioError(f"{table}, line {reader.line_num + 1}: not CSV in UTF-8 ({error})") from None


def _json_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    with table.open(encoding="utf-8-sig") as text:
        try:
            while line := text.readline(_MOST_LINE):
                number += 1
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise AudioError(f'{table}, line {number}: expected an object such as {{"file": "a.wav"}}')
                    yield number, row
        except (ValueError, RecursionError) as error:
            if isinstance(error, AudioError):
                raise
            line = number + isinstance(error, UnicodeDecodeError)
            raise AudioError(f"{table}, line {line}: not JSON in UTF-8 ({error})") from None


def _number(row: dict[str, Any], name: str, where: str) -> float | None:
    value = row.get(name)
    if value is None or value == "" or isinstance(value, str) and not value.strip():
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise AudioError(f"{where}: expected {name} in seconds, at least 0, got {value!r}")
    return number


def _inside(root: Path, name: Any, where: str, folders: dict[str, bool]) -> Path:
    """The path of a name below `root`; `folders` remembers which were looked at."""
    name = name.strip() if isinstance(name, str) else ""
    if not name or "\0" in name:
        raise AudioError(f"{where}: names no file, got {name!r}")
    path = root / name
    folder = os.path.dirname(path)
    if folder not in folders:
        folders[folder] = Path(folder).resolve().is_relative_to(root.resolve())
    if (
        not folders[folder]
        or path.name == ".."
        or path.is_symlink()
        and not path.resolve().is_relative_to(root.resolve())
    ):
        raise AudioError(f"{where}: names {name!r}, which lies outside {root}")
    return path
