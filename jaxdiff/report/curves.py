"""Curves and maps of a run's log, as SVG in the colours of the page.

A raw curve keeps the least and the largest value of each of `COLUMNS` stretches, so that no spike is lost; a smoothed
one is the mean over a thirtieth of the run, centred. A scale is logarithmic where all values are positive and the
largest is more than `DECADE` times the least.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff import pages

from .read import Series

COLUMNS = 600
DECADE = 5.0
_WIDE, _HALF = (9.6, 3.3), (4.8, 2.6)  # inches


class Marks:
    """What is marked in every picture: the steps at which training went on, and rows that hold skipped steps."""

    def __init__(self, restarts: Sequence[float] = (), skipped: Sequence[float] = ()):
        self.restarts, self.skipped = restarts, skipped


def curve(
    name: str,
    series: Series,
    marks: Marks,
    *,
    others: Mapping[str, Series] | None = None,
    smoothing: bool = True,
    zero: bool = False,
) -> str:
    """A number of the log over steps, raw and smoothed; `others` (None: half as wide) are drawn as points on a line.

    With `zero` its scale is linear and begins at 0.
    """
    figure, axis = _axis(_HALF if others is None else _WIDE)
    x, y = finite(series)
    shown = [y]
    smoothed = smoothing and len(y) >= 20 and np.ptp(y) > 0
    if len(y):
        axis.plot(*thinned(x, y), color=pages.ACCENT, linewidth=0.8 if smoothed else 1.4, alpha=0.35 if smoothed else 1)
    if smoothed:
        axis.plot(*thinned(x, smooth(y)), color=pages.ACCENT, linewidth=1.6, label=f"{_plain(name)}, smoothed")
    for (other, points), colour in zip((others or {}).items(), pages.SERIES[1:], strict=False):
        x, y = finite(points)
        shown.append(y)
        axis.plot(*thinned(x, y), "o-", color=colour, markersize=3, linewidth=1.2, label=_plain(other))
    values = np.concatenate(shown)
    if zero:
        axis.set_ylim(0, 1.05 * max(values, default=1) or 1)
    elif len(values) and values.min() > 0 and values.max() > DECADE * values.min():
        axis.set_yscale("log")
    _mark(axis, marks)
    _legend(axis)
    axis.set_xlabel("step")
    return pages.figure(figure, f"{name} over steps", name)


def blocks(name: str, caption: str, norms: Mapping[str, Series], marks: Marks) -> str:
    """Norms of blocks over steps, a row each, on one logarithmic scale of colours."""
    steps = np.unique(np.concatenate([np.asarray(of.steps) for of in norms.values()]))
    table = np.full((len(norms), len(steps)), np.nan)
    for row, of in zip(table, norms.values(), strict=True):
        row[np.searchsorted(steps, np.asarray(of.steps))] = np.asarray(of.values)
    edges = np.linspace(0, len(steps), min(len(steps), COLUMNS // 2) + 1).astype(int)
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.log10(np.where(table > 0, table, np.nan))
        columns = [levels[:, a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
        counts = np.stack([np.isfinite(c).sum(1) for c in columns], 1)
        means = np.stack([np.nansum(np.where(np.isfinite(c), c, 0), 1) for c in columns], 1) / counts
    figure, axis = _axis((_WIDE[0], 1.0 + 0.24 * len(norms)))
    starts = steps[edges[:-1]]
    before = np.concatenate([[starts[0] - (starts[1] - starts[0] if len(starts) > 1 else 1)], starts[:-1]])
    bounds = np.concatenate([(before + starts) / 2, [steps[-1] + (starts[-1] - before[-1]) / 2]])
    masked = np.ma.masked_invalid(means)
    image = axis.pcolormesh(bounds, np.arange(len(norms) + 1) - 0.5, masked, cmap="viridis", rasterized=True)
    axis.grid(visible=False)
    axis.set_ylim(len(norms) - 0.5, -0.5)
    axis.set_yticks(range(len(norms)), [_plain(block, 40) for block in norms], parse_math=False, fontsize=8)
    bar = figure.colorbar(image, ax=axis, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=pages.INK, length=2, labelsize=8)
    bar.ax.yaxis.set_major_formatter(lambda level, _: f"{10**level:.2g}")
    _mark(axis, marks)
    axis.set_xlabel("step")
    return pages.figure(figure, name, caption)


def finite(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, those alone that are finite."""
    x, y = np.asarray(series.steps, np.float64), np.asarray(series.values, np.float64)
    return x[np.isfinite(y)], y[np.isfinite(y)]


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most two points, the least and the largest, of each of `COLUMNS` stretches of a curve; and its ends."""
    if len(y) <= 2 * COLUMNS:
        return x, y
    edges = np.linspace(0, len(y), COLUMNS + 1).astype(int)
    kept = {0, len(y) - 1}
    for a, b in zip(edges[:-1], edges[1:], strict=True):
        kept |= {a + int(y[a:b].argmin()), a + int(y[a:b].argmax())}
    index = np.array(sorted(kept))
    return x[index], y[index]


def smooth(y: np.ndarray) -> np.ndarray:
    """The mean over a thirtieth of all values around each; at the ends of those that are there."""
    i, half = np.arange(len(y)), max(1, len(y) // 60)
    low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, len(y))
    total = np.concatenate([[0.0], np.cumsum(y)])
    return (total[high] - total[low]) / (high - low)


def _axis(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(pages.SOFT)
    axis.tick_params(which="both", colors=pages.INK, length=3, labelsize=8)
    axis.xaxis.label.set_color(pages.INK)
    axis.xaxis.label.set_fontsize(8)
    axis.grid(color=pages.SOFT, alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
    return figure, axis


def _mark(axis: Any, marks: Marks) -> None:
    for number, step in enumerate(marks.restarts):
        label = "training went on" if number == 0 else None
        axis.axvline(step, color=pages.SOFT, linewidth=1, linestyle="--", label=label)
    if len(marks.skipped):
        x, _ = thinned(np.asarray(marks.skipped), np.zeros(len(marks.skipped)))
        bottom = axis.get_xaxis_transform()
        axis.plot(x, np.full(len(x), 0.03), "|", color=pages.BAD, transform=bottom, label="steps skipped")


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[1]:
        legend = axis.legend(frameon=False, labelcolor=pages.INK, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _plain(name: str, most: int = 60) -> str:
    """A name as it may stand in a picture."""
    name = pages.clean(name)
    name = name if len(name) <= most else name[: most - 1] + "…"
    return name.removeprefix("_") if name.startswith("_") else name  # matplotlib hides labels that begin so
