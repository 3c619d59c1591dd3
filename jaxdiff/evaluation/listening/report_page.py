"""The page of a listening test's report: one HTML file with tables and pictures that needs no other file.

Its parts and their rules are those of `pages`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdiff import pages

from .panel import GOLD, LOW_ANCHOR, MID_ANCHOR, TRAP, Table
from .results import BIMODAL

_NAMES = {MID_ANCHOR: "7 kHz anchor", LOW_ANCHOR: "3.5 kHz anchor"}
_KIND_NAMES = {"mushra": "MUSHRA", "mos": "MOS", "cmos": "CMOS", "abx": "ABX", "preference": "Preference"}
_SCALES = {"mushra": (0, 100), "mos": (1, 5), "cmos": (-3, 3), "preference": (-1, 1)}
_MARKERS = "osD^vP*X<>p"
_MOST_POINTS = 300  # a system in a picture
_MOST_NAME = 32  # letters of a name in a picture


def report_page(facts: dict[str, Any], table: Table) -> str:
    """The whole page of the facts of `report.listening_report`; the table gives the points of the pictures."""
    kept = sum(row["kept"] for row in facts["listeners"])
    numbers = [
        (_KIND_NAMES[facts["kind"]], "kind of test"),
        (f"{kept} of {len(facts['listeners'])}", "listeners kept"),
        (str(len(facts["items"])), "items"),
        (str(facts["ratings"]), "ratings"),
    ]
    sections = (
        _shares_section(facts),
        _scores_section(facts, table),
        _differences_section(facts),
        _items_section(facts, table),
        _listeners_section(facts),
        _outliers_section(facts),
        _model_section(facts),
        _needed_section(facts),
        _methods_section(facts) if facts["ratings"] else "",
    )
    head = pages.heads(numbers) + pages.notes(facts["notes"])
    return pages.page(facts["title"], head + "\n" + "\n".join(section for section in sections if section))


def _shares_section(facts: dict[str, Any]) -> str:
    if not facts["shares"]:
        return ""
    right = facts["kind"] == "abx"
    heading = "Right answers" if right else "Preferences"
    rows = facts["shares"]
    figure = _shares_figure(facts)
    words = (
        "Guessing gives one half. The p-value is that of a one-sided binomial test against guessing."
        if right
        else "The share is that of answers for the first system of each pair among those that preferred one. The "
        "p-value is that of a two-sided binomial test against one half."
    )
    heads = ["Right" if right else "For the first", "Decided", *([] if right else ["Ties"])]
    body = f"<p>{words}</p>{figure}{_shares_table(rows, 'Systems', heads, facts)}"
    if facts["listener_shares"]:
        heads = ["Right", "Decided"]
        body += f"<h3>By listener</h3>{_shares_table(facts['listener_shares'], 'Listener', heads, facts)}"
    return pages.section(heading, body)


def _shares_table(rows: list[dict[str, Any]], what: str, counts: list[str], facts: dict[str, Any]) -> str:
    columns = [what, *counts, "Share", _percent(facts["level"]) + " interval", "p", "p (Holm)"]
    cells = [
        [
            row["name"] if what == "Listener" else _pair_name(row["name"], facts["kind"]),
            *[str(row[key]) for key in ("chosen", "decided", "ties")[: len(counts)]],
            _number(row["share"]["estimate"], 2),
            _interval(row["share"], 2),
            _p(row["p"]),
            _p(row["p_holm"]),
        ]
        for row in rows
    ]
    return pages.table(columns, cells)


def _scores_section(facts: dict[str, Any], table: Table) -> str:
    if not facts["systems"]:
        return ""
    digits = _digits(facts["kind"])
    columns = ["System", "Ratings", "Mean", f"{_percent(facts['level'])} interval", "Median", "Quartiles"]
    columns += ["Deviation", "Bimodality"]
    cells = [
        [
            _pair_name(row["system"]),
            str(row["ratings"]),
            _number(row["mean"]["estimate"], digits),
            _interval(row["mean"], digits),
            _number(row["median"], digits),
            f"{_number(row['lower_quartile'], digits)} to {_number(row['upper_quartile'], digits)}",
            _number(row["deviation"], digits),
            _number(row["bimodality"], 2),
        ]
        for row in facts["systems"]
    ]
    figure = _scores_figure(facts, table)
    return pages.section("Scores", figure + pages.table(columns, cells))


def _differences_section(facts: dict[str, Any]) -> str:
    if not facts["differences"]:
        return ""
    digits = _digits(facts["kind"])
    columns = ["First", "Second", "Pairs", "First minus second", f"{_percent(facts['level'])} interval"]
    columns += ["p (Holm)", "p by listener (Holm)"]
    cells = [
        [
            shown_name(row["first"]),
            shown_name(row["second"]),
            str(row["cells"]),
            _number(row["difference"]["estimate"], digits, sign=True),
            _interval(row["difference"], digits, sign=True),
            _p(row["p_holm"]),
            _p(row["p_listeners_holm"]),
        ]
        for row in facts["differences"]
    ]
    words = (
        "<p>A p-value is the chance of a difference at least this large if labels did not matter, corrected for the "
        "number of pairs. The last column takes each listener as one observation.</p>"
    )
    if facts["kind"] in ("cmos", "preference"):
        words = f"<p>The difference is the mean answer; above 0 it speaks for the first system.</p>{words}"
    return pages.section("Differences", words + _differences_figure(facts) + pages.table(columns, cells, texts=2))


def _items_section(facts: dict[str, Any], table: Table) -> str:
    if not facts["systems"] or len(table.items) < 2:
        return ""
    return pages.section("Items", _items_figure(facts, table))


def _listeners_section(facts: dict[str, Any]) -> str:
    if not facts["listeners"]:
        return ""
    signed = facts["kind"] in ("abx", "preference")
    digits = _digits(facts["kind"])
    again = "Same answer again" if signed else "Repeats differ by"
    columns = ["Listener", "Result", "Sessions", "Ratings", "Median seconds", "Repeats", again]
    cells = []
    for row in facts["listeners"]:
        repeat = row["repeat_same_side"] if signed else row["repeat_difference"]
        cells.append(
            [
                row["listener"],
                "kept" if row["kept"] else "left out: " + "; ".join(row["reasons"]),
                str(row["sessions"]),
                str(row["ratings"]),
                _number(row["median_seconds"], 1),
                str(row["repeats"]),
                _number(repeat, 2 if signed else digits),
            ]
        )
    marked = [not row["kept"] for row in facts["listeners"]]
    words = ""
    if facts["uncounted_items"]:
        named = ", ".join(facts["uncounted_items"])
        words = (
            f"<p>More than 25 % of the listeners rated the mid anchor of these items above 90, so nobody was left out "
            f"because of them: {pages.text(named)}.</p>"
        )
    return pages.section("Listeners", words + pages.table(columns, cells, texts=2, marked=marked) + _checks(facts))


def _checks(facts: dict[str, Any]) -> str:
    """The table of the trap and gold clips: one that most people miss is at fault itself."""
    if not facts["checks"]:
        return ""
    columns = ["Clip", "Right score", "Answers", "Wrong"]
    cells = [[row["item"], f"{row['expected']:g}", str(row["ratings"]), str(row["missed"])] for row in facts["checks"]]
    words = (
        "<p>By these clips listeners were screened; they count for no system. Of a trap every other score is wrong, of "
        "a gold clip one that is further than 1 from the right one. Listen to a clip that most people missed.</p>"
    )
    return f"<h3>Traps and gold</h3>{words}{pages.table(columns, cells)}"


def _outliers_section(facts: dict[str, Any]) -> str:
    if not facts["outliers"]:
        return ""
    digits = _digits(facts["kind"])
    columns = ["Listener", "Item", "System", "Score", "Seconds"]
    cells = [
        [
            r["listener"] or r["session"],
            r["item"],
            shown_name(r["system"]),
            _number(r["score"], digits),
            f"{r['seconds']:.1f}",
        ]
        for r in facts["outliers"]
    ]
    words = (
        "<p>These ratings lie more than 1.5 interquartile ranges outside the quartiles of their system and item. They "
        "are shown to be looked at, and are part of all results.</p>"
    )
    details = f"<details><summary>Ratings: {len(cells)}</summary>{pages.table(columns, cells, texts=3)}</details>"
    return pages.section("Outliers", words + details)


def _model_section(facts: dict[str, Any]) -> str:
    model = facts["mixed_model"]
    if not model:
        return ""
    digits = _digits(facts["kind"])
    columns = ["System", f"Difference from {shown_name(model['baseline'])}", f"{_percent(facts['level'])} interval"]
    cells = [
        [shown_name(system), _number(effect["estimate"], digits, sign=True), _interval(effect, digits, sign=True)]
        for system, effect in model["effects"].items()
    ]
    words = (
        f"<p>Score by system, with random differences between listeners (standard deviation "
        f"{_number(model['listener_deviation'], digits)}) and between items "
        f"({_number(model['item_deviation'], digits)}); {_number(model['residual_deviation'], digits)} is left.</p>"
    )
    return pages.section("Mixed-effects model", words + pages.table(columns, cells))


def _needed_section(facts: dict[str, Any]) -> str:
    if not facts["needed"]:
        return ""
    if facts["kind"] in ("abx", "preference"):
        words = (
            "The number of decided answers, from one listener or many, with which a true share is told from one half "
            "in 80 % of tests, at a level of 0.05:"
        )
        columns = ["True share", "Answers"]
    else:
        digits = _digits(facts["kind"]) + 1
        words = (
            f"A listener's mean difference of two systems varies between listeners with a standard deviation of "
            f"{_number(facts['listener_deviation'], digits)}. With that, and as many items as here, a true difference "
            f"is found in 80 % of tests, at a level of 0.05 and without correction for many pairs, by this many "
            f"listeners:"
        )
        columns = ["True difference", "Listeners"]
    cells = [[f"{effect:g}", str(count)] for effect, count in facts["needed"]]
    return pages.section("How many are needed", f"<p>{words}</p>" + pages.table(columns, cells, texts=0))


def _clips(facts: dict[str, Any]) -> str:
    kinds = [row["system"] for row in facts["checks"]]
    return f"{kinds.count(TRAP)} trap and {kinds.count(GOLD)} gold clips, " if kinds else ""


def _methods_section(facts: dict[str, Any]) -> str:
    screenings = {
        "mushra": "Listeners were screened by ITU-R BS.1534-3: left out is who rated the hidden reference below 90, or "
        "the mid anchor above 90, on more than 15 % of the items.",
        "mos": f"Listeners were screened by the checks of ITU-T P.808: {_clips(facts)}clips played to their end, and "
        "a variance of the votes of at least 0.1.",
    }
    sentences = [screenings.get(facts["kind"], "All listeners are kept: this kind of test has no rule of screening.")]
    if facts["kind"] in ("abx", "preference"):
        sentences.append("Intervals of shares are Wilson's and take answers as independent of each other.")
    if facts["systems"]:
        sentences.append(
            f"Bimodality is Sarle's coefficient: {BIMODAL:.2f} for evenly spread scores, and more for two peaks."
        )
    if facts["kind"] != "abx":
        sentences.append(
            "Intervals of means come from a bootstrap that draws listeners and items again; p-values from exchanging "
            "the labels of two systems at random; Holm's correction is over all pairs in the table."
        )
        sentences.append("Replicated ratings show how well a listener agrees with the first time, and nothing else.")
    return pages.section("How this was computed", f'<p class="small">{" ".join(sentences)} Seed {facts["seed"]}.</p>')


# Pictures -----------------------------------------------------------------------------------------------------------


def _scores_figure(facts: dict[str, Any], table: Table) -> str:
    """Every rating as a point, the quartiles as a box, and the mean with its interval, a line per system."""
    rows = facts["systems"]
    figure, axis = _axis(len(rows))
    for y, row in enumerate(rows):
        scores = np.sort(table.of(row["system"]), axis=None)
        scores = scores[~np.isnan(scores)]
        shown = scores[np.linspace(0, len(scores) - 1, min(len(scores), _MOST_POINTS)).astype(int)]
        scatter = (0.618034 * np.arange(len(shown))) % 1 - 0.5  # spreads neighbours apart
        if facts["kind"] != "mushra":  # whole numbers, which would lie on each other
            shown = shown + 0.3 * ((0.754878 * np.arange(len(shown))) % 1 - 0.5)
        axis.scatter(shown, y + 0.55 * scatter, s=6, color=pages.SOFT, alpha=0.6, linewidths=0)
        box = row["lower_quartile"], y - 0.3, row["upper_quartile"] - row["lower_quartile"], 0.6
        axis.barh(y, box[2], 0.6, box[0], facecolor="none", edgecolor=pages.INK, linewidth=0.8)
        axis.vlines(row["median"], y - 0.3, y + 0.3, color=pages.INK, linewidth=1.6)
        _draw_interval(axis, row["mean"], y)
    low, high = _SCALES[facts["kind"]]
    margin = 0.04 * (high - low)
    axis.set_xlim(low - margin, high + margin)
    axis.set_xlabel("score")
    _name_rows(axis, [_pair_name(row["system"]) for row in rows])
    caption = (
        f"Every rating (points), quartiles and median (box), and mean with its {_percent(facts['level'])} interval "
        f"(coloured). Where there are more than {_MOST_POINTS} ratings, the points are a part of them."
    )
    return pages.figure(figure, "Scores of each system", caption)


def _differences_figure(facts: dict[str, Any]) -> str:
    rows = facts["differences"]
    figure, axis = _axis(len(rows))
    axis.axvline(0, color=pages.SOFT, linewidth=0.8, linestyle="--")
    for y, row in enumerate(rows):
        _draw_interval(axis, row["difference"], y)
    axis.set_xlabel("first minus second")
    _name_rows(axis, [f"{_short(shown_name(row['first']))} − {_short(shown_name(row['second']))}" for row in rows])
    caption = f"Mean difference of each pair with its {_percent(facts['level'])} interval."
    return pages.figure(figure, "Differences of systems", caption)


def _shares_figure(facts: dict[str, Any]) -> str:
    rows = facts["shares"]
    label = "share of right answers" if facts["kind"] == "abx" else "share of the first system"
    figure, axis = _axis(len(rows))
    axis.axvline(0.5, color=pages.SOFT, linewidth=0.8, linestyle="--")
    for y, row in enumerate(rows):
        _draw_interval(axis, row["share"], y)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel(label)
    _name_rows(axis, [_pair_name(row["name"], facts["kind"]) for row in rows])
    caption = f"Shares with their {_percent(facts['level'])} intervals; dashed: one half."
    return pages.figure(figure, label.capitalize(), caption)


def _items_figure(facts: dict[str, Any], table: Table) -> str:
    """The mean over listeners of each system on each item, a line per item."""
    rows = facts["systems"]
    figure, axis = _axis(len(table.items))
    for i, row in enumerate(rows):
        scores = table.of(row["system"])
        rated = ~np.isnan(scores)
        means = np.where(rated, scores, 0).sum(0) / np.where(rated.any(0), rated.sum(0), np.nan)
        colour, marker = pages.SERIES[i % len(pages.SERIES)], _MARKERS[i % len(_MARKERS)]
        axis.scatter(means, np.arange(len(means)), s=32, marker=marker, color=colour, linewidths=0)
    names = [_short(_pair_name(row["system"])) for row in rows]
    legend = axis.legend(names, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, labelcolor=pages.INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    axis.set_xlabel("mean score")
    _name_rows(axis, table.items)
    return pages.figure(figure, "Scores of each item", "The mean over listeners of each system on each item.")


def _axis(rows: int) -> tuple[Any, Any]:
    """A figure with one axis that is as high as its rows ask for, in the inks that become the page's colours."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(8, 1.1 + 0.4 * rows), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(pages.SOFT)
    axis.tick_params(colors=pages.INK, length=3)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.label.set_color(pages.INK)
    axis.grid(axis="x", color=pages.SOFT, alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_ylim(rows - 0.4, -0.6)  # the first row is on top
    return figure, axis


def _draw_interval(axis: Any, interval: dict[str, float | None], y: float) -> None:
    if interval["low"] is not None and interval["high"] is not None:
        axis.hlines(y, interval["low"], interval["high"], color=pages.ACCENT, linewidth=2.2)
    if interval["estimate"] is not None:
        axis.scatter([interval["estimate"]], [y], s=34, color=pages.ACCENT, zorder=3)


def _name_rows(axis: Any, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [_short(pages.clean(name), 2 * _MOST_NAME) for name in names], parse_math=False)


# Words and numbers --------------------------------------------------------------------------------------------------


def _short(text: str, most: int = _MOST_NAME) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def shown_name(system: str) -> str:
    """The name under which a system is shown."""
    return _NAMES.get(system, system)


def _pair_name(system: str, kind: str = "") -> str:
    """The name of a system, or of a pair "a>b", whose order says nothing in an ABX test."""
    first, arrow, second = system.partition(">")
    between = "or" if kind == "abx" else ">"
    return f"{shown_name(first)} {between} {shown_name(second)}" if arrow else shown_name(system)


def _digits(kind: str) -> int:
    return 1 if kind == "mushra" else 2


def _number(value: float | None, digits: int, sign: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _interval(interval: dict[str, float | None], digits: int, sign: bool = False) -> str:
    if interval["low"] is None:
        return "–"
    return f"{_number(interval['low'], digits, sign)} to {_number(interval['high'], digits, sign)}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _percent(level: float) -> str:
    return f"{100 * level:g} %"
