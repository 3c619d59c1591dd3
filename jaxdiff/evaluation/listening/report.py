"""The report of a listening test: all findings as plain data for a JSON file, with sentences on what to know first.

`listening_report` is the door: it screens the panel, computes, and has `report_page` draw the page.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..compare import listeners_needed, trials_needed
from .panel import (
    GOLD,
    KINDS,
    MID_ANCHOR,
    REFERENCE,
    TRAP,
    Kind,
    Rating,
    Screening,
    Table,
    agreement,
    kept_ratings,
    listener_of,
    missed,
    outliers,
    screen,
    tabulate,
)
from .report_page import report_page, shown_name
from .results import (
    BIMODAL,
    abx_shares,
    differences,
    mixed_model,
    oriented,
    pair_scores,
    preference_shares,
    summaries,
    typical_deviation,
)

_EFFECTS = {"mushra": (3.0, 5.0, 10.0), "mos": (0.1, 0.25, 0.5), "cmos": (0.1, 0.25, 0.5)}
_SHARES = (0.55, 0.6, 0.7, 0.8)


class Report(NamedTuple):
    """The results of a listening test, as data that `json.dumps` takes, and as the text of an HTML page."""

    facts: dict[str, Any]
    html: str


def listening_report(
    ratings: Iterable[Rating],
    kind: Kind,
    *,
    title: str = "Listening test",
    expected: Mapping[str, float] | None = None,
    durations: Mapping[str, float] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Report:
    """The report of all ratings of a test of one kind.

    `expected` and `durations` serve the checks of a MOS test, as in `panel.screen_mos`. `level` is that of the
    intervals; `resamples` and `seed` belong to the bootstrap and the label exchange. Few ratings, or none, give a page
    that says so.

    Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    rows = list(ratings)
    finite = [r for r in rows if math.isfinite(r.score)]
    screening = screen(finite, kind, expected=expected, durations=durations)
    kept = kept_ratings(finite, screening)
    table = _best_first(tabulate(oriented(kept) if kind in ("cmos", "preference") else kept))
    options: dict[str, Any] = dict(level=level, resamples=resamples, seed=seed)
    facts = _facts(finite, kept, table, screening, kind, options)
    facts["checks"] = _checks(finite, expected or {})
    facts["notes"] = _notes(rows, finite, table, screening, kind, expected or {}) + facts["notes"]
    facts = _plain({"title": title, "kind": kind, "level": level, "seed": seed, **facts})
    return Report(facts, report_page(facts, table))


def _best_first(table: Table) -> Table:
    """The table with the reference first and the others by falling mean, so that differences mostly are positive."""
    means = [float(np.nanmean(scores)) for scores in table.scores]
    order = sorted(range(len(means)), key=lambda i: (table.systems[i] != REFERENCE, -means[i]))
    return table._replace(systems=tuple(table.systems[i] for i in order), scores=table.scores[order])


def _facts(
    rows: list[Rating], kept: list[Rating], table: Table, screening: Screening, kind: Kind, options: dict[str, Any]
) -> dict[str, Any]:
    """All findings, still as the named tuples of `results`."""
    facts: dict[str, Any] = {
        "ratings": len(rows),
        "listeners": _listeners(rows, screening),
        "items": sorted({r.item for r in rows if r.system not in (TRAP, GOLD)}),
        "uncounted_items": screening.uncounted_items,
        "outliers": outliers(kept) if kind in ("mushra", "mos") else [],
        "systems": [],
        "differences": [],
        "shares": [],
        "listener_shares": [],
        "mixed_model": None,
        "needed": [],
        "listener_deviation": math.nan,
        "notes": [],
    }
    if kind == "abx":
        facts["shares"] = abx_shares(kept, level=options["level"])
        facts["listener_shares"] = abx_shares(kept, by_listener=True, level=options["level"])
        facts["needed"] = [(share, trials_needed(share)) for share in _SHARES]
        return facts
    if kind == "preference":
        facts["shares"] = preference_shares(kept, level=options["level"])
        facts["differences"] = pair_scores(kept, **options)
        facts["needed"] = [(share, trials_needed(share, two_sided=True)) for share in _SHARES]
        return facts
    found = summaries(table, **options)
    facts["systems"] = sorted(found, key=lambda row: -row.mean.estimate)
    facts["differences"] = pair_scores(kept, **options) if kind == "cmos" else differences(table, **options)
    deviation = facts["listener_deviation"] = typical_deviation(facts["differences"])
    if deviation > 0:
        facts["needed"] = [(effect, listeners_needed(effect, deviation)) for effect in _EFFECTS[kind]]
    if kind != "cmos" and kept:
        try:
            facts["mixed_model"] = mixed_model(table, level=options["level"])
        except (ImportError, ValueError) as error:
            facts["notes"].append(_sentence(str(error)))
    for row in found:
        if row.bimodality > BIMODAL and row.system != REFERENCE:
            facts["notes"].append(
                f"The scores of {shown_name(row.system)} may have two peaks (bimodality {row.bimodality:.2f}, above "
                f"{BIMODAL:.2f}), so a mean says little about them; look at the picture."
            )
    return facts


def _listeners(rows: list[Rating], screening: Screening) -> list[dict[str, Any]]:
    """A row per listener: how much was rated, in which time, how it was repeated, and whether the listener is kept."""
    agreed = {row.listener: row for row in agreement(rows)}
    found = []
    for listener in sorted({listener_of(r) for r in rows}):
        own = [r for r in rows if listener_of(r) == listener]
        again = agreed.get(listener)
        found.append(
            {
                "listener": listener,
                "sessions": len({r.session for r in own}),
                "ratings": len(own),
                "median_seconds": float(np.median([r.seconds for r in own])),
                "repeats": again.repeats if again else 0,
                "repeat_difference": again.mean_difference if again else math.nan,
                "repeat_same_side": again.same_side if again else math.nan,
                "kept": listener in screening.kept,
                "reasons": screening.excluded.get(listener, []),
            }
        )
    return found


def _checks(rows: list[Rating], expected: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row per trap and gold clip of a known score: how many answers it had, and how many of them were wrong."""
    found = []
    for system, item in sorted({(r.system, r.item) for r in rows if r.system in (TRAP, GOLD) and r.item in expected}):
        own = [r for r in rows if (r.system, r.item) == (system, item)]
        wrong = sum(missed(r, expected) for r in own)
        found.append({"system": system, "item": item, "expected": expected[item], "ratings": len(own), "missed": wrong})
    return found


def _notes(
    rows: list[Rating],
    finite: list[Rating],
    table: Table,
    screening: Screening,
    kind: Kind,
    expected: Mapping[str, float],
) -> list[str]:
    """Sentences about what a reader must know before the numbers."""
    if not rows:
        return ["There are no ratings yet, so there is nothing to report."]
    notes = []
    if len(finite) < len(rows):
        notes.append(f"{_count(len(rows) - len(finite), 'rating')} had no finite score and went into nothing.")
    if not finite:
        return notes
    if not screening.kept:
        notes.append("All listeners were left out by the screening, so there are no results.")
    elif len(screening.kept) == 1:
        notes.append("There is one listener: intervals and tests say nothing about other listeners.")
    elif kind == "mushra" and len(screening.kept) < 20:
        notes.append(f"{len(screening.kept)} listeners are kept; BS.1534-3 holds about 20 to be enough.")
    if len(table.items) == 1:
        notes.append("There is one item: intervals and tests say nothing about other items.")
    if kind == "mushra":
        systems = {r.system for r in finite}
        for system, name in ((REFERENCE, "hidden reference"), (MID_ANCHOR, "7 kHz anchor")):
            if system not in systems:
                notes.append(f"Nobody rated the {name}, so the panel was not screened by it.")
        if MID_ANCHOR in systems and len({listener_of(r) for r in finite}) < 4:
            notes.append("With fewer than four listeners BS.1534-3's rule of the mid anchor leaves nobody out.")
    unchecked = sorted({r.item for r in finite if r.system in (TRAP, GOLD)} - set(expected))
    if unchecked:
        notes.append(f"No right score is known for the trap and gold clips {', '.join(unchecked)}; they check nothing.")
    sessions = {listener_of(r): set[str]() for r in finite}
    for r in finite:
        sessions[listener_of(r)].add(r.session)
    for listener, own in sorted(sessions.items()):
        if len(own) > 1:
            notes.append(f"{len(own)} sessions bear the pseudonym {listener}; they are taken for one listener.")
    return notes


def _plain(value: Any) -> Any:
    """Data as JSON has it: named tuples become objects, and numbers that are none become null."""
    fields = getattr(value, "_fields", None)
    if fields is not None:
        return {key: _plain(part) for key, part in zip(fields, value, strict=True)}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
