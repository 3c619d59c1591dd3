"""What the files of a run say, whatever their state: one that is missing says nothing, a damaged line is counted.

Training may go on meanwhile; nothing is changed, and nothing outside the folder is read.
"""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LINE = 1 << 20  # bytes of a line, at most
TEXT = 1 << 20  # bytes of a configuration, at most
NAMES = 4096  # numbers of a log, by name, at most
NORMS = ("gradient_norms", "parameter_norms")  # of blocks, in the log


class Series(NamedTuple):
    """The steps and values of one number of the log."""

    steps: array
    values: array


class Sound(NamedTuple):
    """A sound of a preview and its picture, if there is one."""

    name: str
    wave: Path
    picture: Path | None


class Run(NamedTuple):
    """Numbers of the log by name (of a block: `gradient_norms/NAME`), starts and ends, previews by step.

    `damaged` counts the lines that could not be read, `running` says whether a process trains there now.
    """

    folder: Path
    numbers: dict[str, Series]
    history: list[dict[str, Any]]
    damaged: int
    previews: dict[int, list[Sound]]
    config: str
    rejected: list[str]
    best: dict[str, Any]
    running: bool

    @property
    def step(self) -> int:
        """The last step of the log, 0 where it is empty."""
        return max((int(of.steps[-1]) for of in self.numbers.values()), default=0)

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [row for row in self.history if row.get("event") == "start"]


def read_run(folder: Path) -> Run:
    """All that is known of a run; raises ValueError where the folder holds none."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the work directory of jaxdiff train")
    traces = ("config.yaml", "log.jsonl", "history.jsonl", "checkpoints")
    if not any((folder / name).exists() for name in traces):
        raise ValueError(f"{folder}: holds no run; give the work directory of jaxdiff train")
    numbers: dict[str, Series] = {}
    history, damaged = [], 0
    for row in _rows(folder, "log.jsonl"):
        damaged += row is None or not _collect(row, numbers)
    for row in _rows(folder, "history.jsonl"):
        known = row is not None and row.get("event") in ("start", "end")
        history += [row] if known else []
        damaged += not known
    best = next(_rows(folder, "best.json"), None) or {}
    config, rejected = (_text(folder, name) for name in ("config.yaml", "rejected.txt"))
    lines = rejected.splitlines()
    return Run(folder, numbers, history, damaged, _previews(folder), config, lines, best, _running(folder))


def _inside(folder: Path, path: Path) -> bool:
    """Whether a path is a file of the folder, and no link out of it."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _text(folder: Path, name: str) -> str:
    if not _inside(folder, folder / name):
        return ""
    with (folder / name).open("rb") as file:
        return file.read(TEXT).decode("utf-8", "replace")


def _rows(folder: Path, name: str) -> Iterator[dict[str, Any] | None]:
    """The objects of a file of JSON lines, None for a line that is none."""
    if not _inside(folder, folder / name):
        return
    with (folder / name).open("rb") as file:
        while line := file.readline(LINE):
            whole = line.endswith(b"\n") or len(line) < LINE
            rest = line
            while not whole and rest and not rest.endswith(b"\n"):
                rest = file.readline(LINE)
            if line.strip():
                yield _object(line) if whole else None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _number(value: Any) -> float | None:
    """A number of a row, not a number where it is beyond all that can be drawn; None where it is something else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else float("nan")


def _collect(row: dict[str, Any], numbers: dict[str, Series]) -> bool:
    """Add the numbers of a row of the log; whether it is one."""
    step = row.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**53:
        return False
    found = {name: value for name, value in row.items() if name != "step"}
    for kind in NORMS:
        blocks = found.pop(kind, None)
        found |= {f"{kind}/{name}": value for name, value in blocks.items()} if isinstance(blocks, dict) else {}
    for name, value in found.items():
        number = _number(value)
        if number is not None and (name in numbers or len(numbers) < NAMES):
            series = numbers.setdefault(name, Series(array("d"), array("d")))
            series.steps.append(step)
            series.values.append(number)
    return True


def _previews(folder: Path) -> dict[int, list[Sound]]:
    """The sounds of the previews by step, in order."""
    previews: dict[int, list[Sound]] = {}
    for place in folder.glob("samples/*"):
        if not place.name.isascii() or not place.name.isdigit() or len(place.name) > 15:
            continue
        sounds = []
        for wave in sorted(place.glob("*.wav")):
            picture = wave.with_name(f"{wave.stem}.png")
            if _inside(folder, wave):
                sounds.append(Sound(wave.stem, wave, picture if _inside(folder, picture) else None))
        if sounds:
            previews[int(place.name)] = sounds
    return dict(sorted(previews.items()))


def _running(folder: Path) -> bool:
    """Whether a process holds the folder's lock; False where the file system has none, or the process is elsewhere."""
    try:
        import fcntl  # which Windows lacks

        with (folder / ".lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False
