"""A picture of scores: a panel per measure with the scores of all files of each system, and the mean."""

import math
from typing import Any

import numpy as np

from .report import by_metric, one_line
from .scores import Scores

DRAWN = 400  # points of a system in a panel
FONT = "DejaVu Sans"  # which matplotlib brings


def picture(scores: Scores) -> Any:
    """A figure with a panel per measure: all scores of each system, their quartiles, and the mean with its interval."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    groups = by_metric(scores)
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    height = 0.75 + 0.35 * len(scores.systems)
    figure = Figure(figsize=(1.2 + 3.4 * columns, 0.4 + (height + 0.35) * lines), dpi=120, layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, sharey=True)).ravel()
    places = np.arange(len(scores.systems))[::-1]
    rng = np.random.default_rng(0)
    for axis, (metric, means) in zip(axes, groups.items(), strict=False):
        values = {} if metric.kind == "set" else scores.values(metric.name)
        for place, mean in zip(places, means, strict=True):
            own = values.get(mean.system, np.zeros(0))
            own = own[~np.isnan(own)]
            colour = f"C{(len(places) - 1 - place) % 10}"
            if len(own) > 1:
                part = own[np.linspace(0, len(own) - 1, min(len(own), DRAWN)).astype(int)]
                scatter = place + rng.uniform(-0.22, 0.22, len(part))
                axis.scatter(part, scatter, s=5, color=colour, alpha=0.35, linewidths=0)
                axis.boxplot(
                    own, positions=[place], orientation="horizontal", widths=0.55, showfliers=False,
                    medianprops={"color": colour}, boxprops={"color": colour}, whiskerprops={"color": colour},
                    capprops={"color": colour},
                )  # fmt: skip
            estimate, low, high = mean.interval
            if math.isfinite(estimate):
                ends = None if math.isnan(low) else [[max(0, estimate - low)], [max(0, high - estimate)]]
                axis.errorbar(estimate, place, xerr=ends, fmt="D", color="black", ms=4, capsize=3, lw=1.2)
        better = {True: "higher is better", False: "lower is better", None: ""}[metric.higher_is_better]
        axis.set_title(better, fontsize=8, color="0.4")
        axis.set_xlabel(f"{metric.name} ({metric.unit})" if metric.unit else metric.name)
        axis.set_ylim(-0.6, len(places) - 0.4)
        axis.set_yticks(places, [_legible(system) for system in scores.systems], parse_math=False)
        axis.grid(axis="x", alpha=0.3)
    for axis in axes[len(groups) :]:
        axis.axis("off")
    figure.suptitle("scores of files, quartiles, and mean with 95 % interval", fontsize=9)
    return figure


def _legible(text: str) -> str:
    """A name, shortened, with escapes for the letters that the font of the picture lacks."""
    from matplotlib import font_manager

    letters = font_manager.get_font(font_manager.findfont(FONT)).get_charmap()
    text = one_line(text)
    text = text if len(text) <= 28 else f"...{text[-25:]}"
    return "".join(c if ord(c) in letters else c.encode("unicode_escape").decode() for c in text)
