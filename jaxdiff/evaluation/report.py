"""How scores are written: as a table of a paper in Markdown, as CSV and as JSON.

A number is shown to two digits of the half of its interval. Names of files and systems are anybody's: where they are
written, what Markdown or a spreadsheet would take for its own is escaped.
"""

import collections
import csv
import io
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff import __version__
from jaxdiff.data.files import atomic

from .interval import Interval
from .metrics import Metric
from .remarks import changes, left_out, notes
from .scores import ALPHA, Mean, Scores

FILES = ("scores.csv", "scores.json", "scores.md", "scores.png")
DIFFERENCE = ("measure", "systems", "difference", "files higher / lower", "Wilcoxon p", "sign p", "better")
_ARROWS = {True: " ↑", False: " ↓", None: ""}
_TEST = "Wilcoxon's signed rank test, Holm's correction for the pairs of systems"


# Numbers and names --------------------------------------------------------------------------------------------------


def decimals(means: Iterable[Mean]) -> int:
    """How many decimals the numbers of one measure have, alike for all systems."""
    return _decimals([mean.interval for mean in means])


def _decimals(intervals: Iterable[Interval]) -> int:
    """So many that the narrowest interval has two digits, but at most 3, or 4 digits of the largest number."""
    finite = [one for one in intervals if math.isfinite(one.estimate)]
    halves = [(one.high - one.low) / 2 for one in finite if one.high > one.low]
    largest = max([abs(one.estimate) for one in finite if one.estimate], default=1.0)
    most = max(3, 3 - math.floor(math.log10(largest)))
    return min(most, max(0, 1 - math.floor(math.log10(min(halves))))) if halves else most


def shown(mean: Mean, places: int) -> tuple[str, str]:
    """A mean and its interval as text; a dash for what cannot be told."""

    def text(value: float) -> str:
        if value and abs(value) < 0.5 * 10**-places:
            return f"{value:.1e}"
        if abs(value) >= 1e6:
            return f"{value:.3g}"
        return f"{value:.{places}f}"

    estimate, low, high = mean.interval
    return (
        "-" if math.isnan(estimate) else text(estimate),
        "" if math.isnan(low) or math.isnan(high) else f"[{text(low)}, {text(high)}]",
    )


def by_metric(scores: Scores) -> dict[Metric, list[Mean]]:
    """The means of each measure, in the order of the systems."""
    found: dict[Metric, list[Mean]] = {}
    for mean in scores.means():
        found.setdefault(mean.metric, []).append(mean)
    return found


def one_line(text: str) -> str:
    """`text` with everything that is not printed, line ends and terminal codes above all, as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _in_markdown(text: str) -> str:
    text = re.sub(r"([\\|*`<\[\]$~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", one_line(text))
    return text.replace("&", "&amp;")


def _in_csv(value: Any) -> Any:
    """A cell; a text that a spreadsheet would run as a formula has an apostrophe before it."""
    if isinstance(value, float):
        return f"{value:.9g}" if math.isfinite(value) else ""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


# Markdown -----------------------------------------------------------------------------------------------------------


def markdown(scores: Scores) -> str:
    """The table of a paper, a line per system, and what must be known beside it."""
    groups = by_metric(scores)
    heads = [f"{m.name}{_ARROWS[m.higher_is_better]}{f' ({m.unit})' if m.unit else ''}" for m in groups]
    columns = [_cells(means) for means in groups.values()]
    lines = [
        f"| system | {' | '.join(heads)} |",
        f"|---|{'---:|' * len(heads)}",
        *(
            f"| {_in_markdown(system)} | {' | '.join(column[i] for column in columns)} |"
            for i, system in enumerate(scores.systems)
        ),
    ]
    below = [*legend(scores, "Bold", "†"), *notes(scores)]
    return "\n".join([*lines, "", *(f"- {_in_markdown(note)}" for note in below)]) + "\n"


def legend(scores: Scores, best: str, tied: str) -> list[str]:
    """What the marks in a table mean, where there are some."""
    if any(mean.tied for mean in scores.means()):
        return [f"{best}: the best mean; {tied}: its difference from the best was not found ({_TEST}, p >= 0.05)."]
    return [f"{best}: the best mean."] if any(mean.best for mean in scores.means()) else []


def _cells(means: Sequence[Mean]) -> list[str]:
    places, cells = decimals(means), []
    for mean in means:
        value, interval = shown(mean, places)
        cells.append(f"{f'**{value}**' if mean.best else value}{'†' if mean.tied else ''} {interval}".strip())
    return cells


def _differences(scores: Scores) -> str:
    """The comparisons of systems in Markdown."""
    lines = [f"| {' | '.join(DIFFERENCE)} |", "|---|---|---:|---:|---:|---:|---|"]
    for row in difference_rows(scores):
        cells = [_in_markdown(cell) if head in ("systems", "better") else cell
                 for head, cell in zip(DIFFERENCE, row, strict=True)]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def difference_rows(scores: Scores) -> list[tuple[str, ...]]:
    """Every comparison of two systems as texts for the columns DIFFERENCE; p-values are those that are corrected."""
    rows = []
    better = {metric.name: metric.higher_is_better for metric in scores.metrics}
    for name, pairs in scores.comparisons().items():
        places = _decimals([pair.difference for pair in pairs])
        for pair in pairs:
            estimate, low, high = pair.difference
            interval = "" if math.isnan(low) else f" [{low:+.{places}f}, {high:+.{places}f}]"
            value = "-" if math.isnan(estimate) else f"{estimate:+.{places}f}{interval}"
            found = better[name] is not None and pair.wilcoxon_holm < ALPHA
            winner = "" if not found else pair.first if (estimate > 0) == better[name] else pair.second
            rows.append((
                name, f"{pair.first} - {pair.second}", value, f"{pair.higher} / {pair.lower}",
                _p(pair.wilcoxon_holm), _p(pair.sign_holm), winner,
            ))  # fmt: skip
    return rows


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


# CSV and JSON -------------------------------------------------------------------------------------------------------


def csv_text(scores: Scores) -> str:
    """A row per file and system: scores, what both sounds were, and what went wrong.

    A score that is not there is empty, and a file that was not compared has a row without scores.
    """
    names = [metric.name for metric in scores.metrics if metric.kind != "set"]
    heads = [
        "file", "system", *names, "compared_rate", "seconds", "reference_seconds", "late_seconds", "sample_rate",
        "reference_sample_rate", "channels", "reference_channels", "silent", "reference_silent", "problem",
    ]  # fmt: skip
    file = io.StringIO()
    writer = csv.DictWriter(file, heads, lineterminator="\n")
    writer.writeheader()
    for row in scores.rows:
        pair, info, theirs = row.pair, row.pair.info, row.pair.reference_info
        cells: dict[str, Any] = {"file": pair.name, "system": pair.system}
        cells |= {name: row.scores.get(name, math.nan) for name in names}
        cells |= {
            "compared_rate": pair.rate,
            "seconds": row.lengths[1] / pair.rate,
            "sample_rate": info.sample_rate,
            "channels": info.channels,
            "silent": int(row.silent[1]),
            "problem": "; ".join(f"{name}: {why}" for name, why in row.failed.items()),
        }
        if theirs is not None:
            cells |= {
                "reference_seconds": row.lengths[0] / pair.rate,
                "late_seconds": row.late / pair.rate,
                "reference_sample_rate": theirs.sample_rate,
                "reference_channels": theirs.channels,
                "reference_silent": int(row.silent[0]),
            }
        writer.writerow({head: _in_csv(cell) for head, cell in cells.items()})
    there = {(row.pair.name, row.pair.system) for row in scores.rows}
    for problem in scores.problems:
        if (problem.name, problem.system) not in there:
            cells = {"file": problem.name, "system": problem.system, "problem": problem.reason}
            writer.writerow({head: _in_csv(cell) for head, cell in cells.items()})
    return file.getvalue()


def facts(scores: Scores) -> dict[str, Any]:
    """Everything but the scores of single files, as data that JSON has; equal runs give equal data."""
    better = {True: "higher", False: "lower", None: None}
    return _plain(
        {
            "jaxdiff": __version__,
            "settings": dict(scores.settings),
            "systems": list(scores.systems),
            "files": dict(scores.files),
            "compared": collections.Counter(row.pair.system for row in scores.rows),
            "measures": [
                {"name": m.name, "unit": m.unit, "better": better[m.higher_is_better], "kind": m.kind}
                for m in scores.metrics
            ],
            "means": [
                {
                    "measure": mean.metric.name,
                    "system": mean.system,
                    **mean.interval._asdict(),
                    "files": mean.files,
                    "best": mean.best,
                    "tied": mean.tied,
                }
                for mean in scores.means()
            ],
            "comparisons": {
                name: [{**pair._asdict(), "difference": pair.difference._asdict()} for pair in pairs]
                for name, pairs in scores.comparisons().items()
            },
            "sounds": {
                system: changes([row for row in scores.rows if row.pair.system == system]) for system in scores.systems
            },
            "notes": notes(scores),
            "problems": [problem._asdict() for problem in scores.problems],
        }
    )


def _plain(value: Any) -> Any:
    """Data as JSON has it: numbers that are none become null."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


# All ----------------------------------------------------------------------------------------------------------------


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Raise ValueError where the folder is a file, or has results that are not to be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; give a folder for the scores")
    there = next((folder / name for name in FILES if (folder / name).exists()), None)
    if there is not None and not overwrite:
        raise ValueError(f"{there}: exists; give another folder, or overwrite it")


def save(scores: Scores, folder: Path, overwrite: bool) -> None:
    """Write the files of the scores, of interrupted ones scores.csv alone; a picture that fails costs a warning."""
    refuse_existing(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:  # none of an earlier run stays beside those of this one
        (folder / name).unlink(missing_ok=True)
    texts = {"scores.csv": csv_text(scores)}
    if scores.settings["complete"]:
        texts["scores.json"] = json.dumps(facts(scores), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        told = [f"- {_in_markdown(line)}\n" for line in left_out(scores)]
        compared = f"\n## Differences\n\n{_differences(scores)}" if scores.comparisons() else ""
        without = f"\n## What was left out\n\n{''.join(told)}" if told else ""
        texts["scores.md"] = markdown(scores) + compared + without
    for name, text in texts.items():
        with atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if scores.settings["complete"]:
        path = folder / "scores.png"
        try:
            from .distributions import picture

            with atomic(path) as temporary:
                picture(scores).savefig(temporary, format="png")
        except OSError:
            raise
        except Exception as error:
            warnings.warn(f"{path}: no picture was drawn ({type(error).__name__}: {error})", stacklevel=3)
