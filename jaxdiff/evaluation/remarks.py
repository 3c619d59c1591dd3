"""What a reader of scores must know beside the numbers: what was resampled, mixed, cut, late, silent or left out."""

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .embeddings import EMBEDDINGS
from .folders import REFERENCE
from .metrics import WHOLE, distance_and_embedding
from .scores import Row, Scores


def notes(scores: Scores) -> list[str]:
    """What a reader must know beside the numbers."""
    found = []
    means = scores.means()
    of_files = [mean for mean in means if mean.metric.kind != "set"]
    if not scores.settings["complete"]:
        found.append("Interrupted: these are the files that were done.")
    if of_files:
        counts = sorted({mean.files for mean in of_files})
        files = f"{counts[0]} to {counts[-1]} files" if len(counts) > 1 else _count(counts[0], "file")
        every = "that all systems have in common" if len(scores.systems) > 1 else ""
        level = f"{100 * scores.settings['level']:g} % intervals by bootstrap over files"
        found.append(f"Means over {files} {every}".strip() + f", with {level}." if counts[-1] > 1 else
                     f"One file {every}".strip() + ": there are no intervals.")  # fmt: skip
    found += _notes_on_sets(scores)
    for system in scores.systems:
        rows = [row for row in scores.rows if row.pair.system == system]
        found += [f"{system}: {sentence}" for sentence in _notes_on_files(rows)]
    if scores.rows and scores.rows[0].pair.reference is not None:
        references = {row.pair.name: row for row in scores.rows}.values()
        found += [f"{REFERENCE}: {sentence}" for sentence in _notes_on_references(list(references))]
    for metric in scores.metrics:
        if metric.kind == "set":
            continue
        none = collections.Counter(
            row.pair.system
            for row in scores.rows
            if metric.name not in row.failed and math.isnan(row.scores.get(metric.name, math.nan))
        )
        found += [f"{system}: {metric.name} has no value for {_count(n, 'file')}." for system, n in none.items()]
    if scores.problems:
        found.append(f"{_count(len(scores.problems), 'problem')}: what was left out is listed beside these notes.")
    return found


def left_out(scores: Scores) -> list[str]:
    """A line for each problem, and one for more than three files of a system that have the same."""
    alike: dict[tuple[str, str], list[str]] = {}
    for problem in scores.problems:
        alike.setdefault((problem.system, problem.reason), []).append(problem.name)
    lines = []
    for (system, reason), names in alike.items():
        one = len(names) > 3
        lines += (
            [f"{system}: {len(names)} files, such as {names[0]}: {reason}"]
            if one
            else [f"{system}: {name}: {reason}" for name in names]
        )
    return lines


def _notes_on_sets(scores: Scores) -> list[str]:
    found = []
    for distance in scores.distances:
        if distance.reason:
            found.append(f"{distance.system}: {distance.metric} is not known: {distance.reason}.")
    known = [distance for distance in scores.distances if not distance.reason]
    if known:
        fewest = min(min(distance.files, distance.references) for distance in known)
        found.append(
            f"Distances are between all {_range([d.files for d in known])} files of a system and all "
            f"{known[0].references} references as sets; their intervals are for sets without end of such files."
        )
        sizes = {name: EMBEDDINGS[name].dimension for d in known for name in [distance_and_embedding(d.metric)[1]]}
        for name, size in sizes.items():
            if fewest < 5 * size and any(d.metric != f"kernel_{name}" for d in known):
                found.append(
                    f"{fewest} sounds are few for the {size} dimensions of {name}: Frechet distances come out too "
                    f"large (fad_infinity_{name} and kernel_{name} less so); compare them only with sets as large."
                )
    return found


def _notes_on_files(rows: Sequence[Row]) -> list[str]:
    """What happened to the sounds of one system before they were compared."""
    found = []
    if not rows:
        return found
    rates = collections.Counter((row.pair.info.sample_rate, row.pair.rate) for row in rows)
    for (source, target), count in sorted(rates.items()):
        if source != target:
            loses = "; what it lacks above counts as a difference" if source < target else ""
            found.append(f"{_count(count, 'file')} resampled from {source} Hz to {target} Hz{loses}.")
    found += _notes_on_channels([row.pair.info.channels for row in rows])
    with_reference = [row for row in rows if row.pair.reference is not None]
    over = np.array([(row.lengths[1] - row.lengths[0]) / row.pair.rate for row in with_reference])
    for word, differences in (("longer", over[over > 0]), ("shorter", -over[over < 0])):
        if len(differences):
            files, by = _count(len(differences), "file"), _seconds(differences)
            found.append(
                f"{files} of {len(rows)} {word} than the reference, by {by}; the part that both have is compared "
                f"({', '.join(sorted(WHOLE))} and distances of sets take all)."
            )
    late = np.array([row.late / row.pair.rate for row in with_reference])
    for word, delays in (("late", late[late > 0]), ("early", -late[late < 0])):
        if len(delays):
            found.append(
                f"{_count(len(delays), 'file')} of {len(rows)} {word} by {_seconds(delays)}: measures that compare "
                "samples or frames suffer from that, so align the sounds if it is not meant."
            )
    silent = sum(row.silent[1] for row in rows)
    if silent:
        found.append(f"{_count(silent, 'file')} of {len(rows)} silent: all samples are zero.")
    return found


def _notes_on_references(rows: Sequence[Row]) -> list[str]:
    infos = [(row, row.pair.reference_info) for row in rows if row.pair.reference_info is not None]
    rates = collections.Counter((info.sample_rate, row.pair.rate) for row, info in infos)
    found = [
        f"{_count(count, 'file')} resampled from {source} Hz to {target} Hz."
        for (source, target), count in sorted(rates.items())
        if source != target
    ]
    found += _notes_on_channels([info.channels for _, info in infos])
    silent = sum(row.silent[0] for row in rows)
    if silent:
        found.append(f"{_count(silent, 'file')} of {len(rows)} silent: all samples are zero.")
    return found


def _notes_on_channels(channels: Sequence[int]) -> list[str]:
    counts = collections.Counter(count for count in channels if count > 1)
    return [
        f"{_count(files, 'file')} of {len(channels)} with {count} channels, averaged to mono."
        for count, files in sorted(counts.items())
    ]


def _seconds(values: np.ndarray) -> str:
    """The largest of some times, and the median where they differ."""
    most, middle = float(values.max()), float(np.median(values))
    alike = math.isclose(most, middle, rel_tol=0.02)
    return _time(most) if alike else f"up to {_time(most)} (median {_time(middle)})"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def changes(rows: Sequence[Row]) -> dict[str, Any]:
    """How many sounds of a system were changed for the comparison, and how far lengths differ at most, in seconds."""
    compared = [row for row in rows if row.pair.reference is not None]
    over = [(row.lengths[1] - row.lengths[0]) / row.pair.rate for row in compared]
    return {
        "resampled": sum(row.pair.info.sample_rate != row.pair.rate for row in rows),
        "mixed_to_mono": sum(row.pair.info.channels > 1 for row in rows),
        "longer": sum(seconds > 0 for seconds in over),
        "longer_by_seconds": max([0.0, *over]),
        "shorter": sum(seconds < 0 for seconds in over),
        "shorter_by_seconds": max([0.0, *(-seconds for seconds in over)]),
        "late_or_early": sum(row.late != 0 for row in compared),
        "silent": sum(row.silent[1] for row in rows),
        "silent_references": sum(row.silent[0] for row in compared),
    }


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
