"""Cue sheets: when something is to be heard, of which class, how strong and where between left and right.

A sheet is a CSV with the columns `time`, `class`, `strength` and `pan`, of which the last two may be missing:

    time,class,strength,pan
    0.480,footstep,0.8,-0.2
    1:02.5,knock,1,0

`time` is in seconds, or minutes and seconds as 1:02.5. A `strength` of 1 is the strongest and 0 is 30 dB below it.
`pan` runs from -1, left, to 1, right. What spreadsheets write is read as well: semicolons or tabs between columns, and
then commas in numbers.
"""

import csv
import difflib
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import AudioError, atomic, printable

STRENGTH_DB = 30.0  # between strengths 0 and 1
FAINTEST = -1 / 3  # a strength below which a cue is not heard in a channel: 40 dB below the strongest
LONGEST_RING = 4.0  # seconds that a sound is heard after its cue
WINDOW_CUES = 512  # of a window at most
MOST_BYTES = 8 << 20
MOST_CUES = 100_000
MOST_SECONDS = 4 * 3600.0
COLUMNS = ("time", "class", "strength", "pan")


class Cue(NamedTuple):
    """A sound of the class `label` that begins at `seconds`, of a `strength` from 0 to 1 and a `pan` from -1 to 1."""

    seconds: float
    label: str
    strength: float = 1.0
    pan: float = 0.0


def read_cues(path: str | Path) -> list[Cue]:
    """The cues of a sheet by their times; raises AudioError, with the number of the line, for what is none."""
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such cue sheet")
    if path.stat().st_size > MOST_BYTES:
        raise AudioError(
            f"{path}: has {path.stat().st_size / 2**20:.0f} MiB, a cue sheet has at most {MOST_BYTES >> 20}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise AudioError(f"{path}: is no text in UTF-8; save it as CSV in UTF-8") from None
    title = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=title.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names, found = None, []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if names is None:
                names = _names(cells)
            else:
                found.append(_cue(names, cells, decimal_comma=delimiter != ","))
            if len(found) > MOST_CUES:
                raise ValueError(f"more than {MOST_CUES} cues; cut the sheet into several")
    except (ValueError, csv.Error) as error:
        raise AudioError(printable(f"{path}, line {max(1, reader.line_num)}: {error}")) from None
    if names is None:
        raise AudioError(f"{path}: is empty; a cue sheet begins with the line {','.join(COLUMNS)}")
    return sorted(found, key=lambda cue: cue.seconds)


def read_times(path: str | Path) -> list[float]:
    """The times of a cue sheet, or of a list of times: a line each, or the first column of a table with a title.

    Raises AudioError as `read_cues` does.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size <= MOST_BYTES:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")[: MOST_CUES + 1]
        first = [re.split("[,;\t]", line.strip())[0].strip(" \"'") for line in lines if line.strip()]
        title = [cell.strip(" \"'").lower() for cell in re.split("[,;\t]", next((x for x in lines if x.strip()), ""))]
        if "class" not in title and first:
            numbers = [_number(cell, clock=True) for cell in first]
            rest = numbers[1:] if numbers[0] is None else numbers
            if rest and all(value is not None and 0 <= value <= MOST_SECONDS for value in rest):
                return sorted(value for value in rest if value is not None)
    return [cue.seconds for cue in read_cues(path)]


def write_cues(path: str | Path, cues: Iterable[Cue]) -> None:
    """A cue sheet, sorted by time, with milliseconds and hundredths."""
    with atomic(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for cue in sorted(cues, key=lambda cue: cue.seconds):
            writer.writerow([f"{cue.seconds:.3f}", cue.label, f"{cue.strength:.2f}", f"{cue.pan:.2f}"])


def cut_cues(
    cues: Sequence[Cue], offset: float, seconds: float, *, stereo: bool = False, most: int = WINDOW_CUES
) -> np.ndarray:
    """What may be heard within `seconds` from `offset`: [channels, most, 2] of times from there and strengths.

    Cues before the window have times below 0, and those that pad are infinitely late. With `stereo` the channels are
    left and right, between which a cue's power is shared; in one where it is faint it is left out. Where there are more
    than `most`, the weakest are left out.

    >>> cut_cues([Cue(1.0, "knock", 1.0, -1.0)], 0.5, 2.0, stereo=True, most=1).tolist()
    [[[0.5, 1.0]], [[inf, 0.0]]]
    """
    near = [cue for cue in cues if -LONGEST_RING <= cue.seconds - offset < seconds]
    made = np.tile(np.array([np.inf, 0], np.float32), (2 if stereo else 1, most, 1))
    for channel, rows in enumerate(made):
        placed = [(cue.seconds - offset, cue.strength + _share(cue.pan, channel, stereo)) for cue in near]
        heard = np.array([cue for cue in placed if cue[1] >= FAINTEST], np.float32).reshape(-1, 2)
        kept = np.sort(np.argsort(-heard[:, 1], kind="stable")[:most])
        rows[: len(kept)] = heard[kept]
    return made


def _share(pan: float, channel: int, stereo: bool) -> float:
    """What a pan adds to the strength in one of two channels."""
    if not stereo:
        return 0.0
    angle = (pan + 1) * math.pi / 4
    gain = math.sin(angle) if channel else math.cos(angle)
    return 20 * math.log10(max(gain, 1e-9)) / STRENGTH_DB


def _names(cells: list[str]) -> list[str]:
    """The columns that the first line names."""
    names = [cell.lower() for cell in cells]
    for name in names:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, 1)
            hint = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(COLUMNS)}"
            raise ValueError(f"column {name!r} is unknown; {hint}")
        if names.count(name) > 1:
            raise ValueError(f"column {name!r} stands twice; keep one of them")
    missing = [name for name in COLUMNS[:2] if name not in names]
    if missing:
        raise ValueError(f"has no column {missing[0]}; begin the sheet with {','.join(COLUMNS)}")
    return names


def _cue(names: list[str], cells: list[str], *, decimal_comma: bool) -> Cue:
    """The cue of a line."""
    if len(cells) > len(names) and any(cells[len(names) :]):
        raise ValueError(f"has {len(cells)} cells for {len(names)} columns")
    texts = dict(zip(names, cells, strict=False))
    label = texts.get("class", "")
    if not label:
        raise ValueError("class is empty; say what is to be heard")

    def number(name: str, low: float, high: float, usual: float | None) -> float:
        text = texts.get(name, "")
        if not text and usual is not None:
            return usual
        value = _number(text.replace(",", ".") if decimal_comma else text, clock=name == "time")
        if value is None or not low <= value <= high:
            raise ValueError(f"{name}: expected {low:g} to {high:g}, got {text!r}")
        return value

    strength = number("strength", 0, 1, 1.0)
    return Cue(number("time", 0, MOST_SECONDS, None), label, strength, number("pan", -1, 1, 0.0))


def _number(text: str, clock: bool) -> float | None:
    """A number, or with `clock` hours, minutes and seconds as one; None for what is none."""
    parts = text.split(":") if clock else [text]
    if len(parts) > 3 or not all(re.fullmatch(r"[0-9]+", part) for part in parts[:-1]):
        return None
    if not re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e-?[0-9]+)?", parts[-1], re.IGNORECASE):
        return None
    value = float(parts[-1])
    if len(parts) > 1 and not 0 <= value < 60:
        return None
    return value + sum(int(part) * 60**place for place, part in enumerate(reversed(parts[:-1]), 1))
