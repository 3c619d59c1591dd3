"""What was found about systems: a row of scores per file, distances of sets, and from these means and comparisons.

A mean goes over the files on which every system has a score, so that systems are told apart by what they did and not by
the files that they were given. Its interval, and those of differences, come from drawing the files again.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .folders import Pair, Problem
from .interval import Interval
from .metrics import Metric

if TYPE_CHECKING:  # for scipy.stats, which it needs, is slow to import
    from .compare import Comparison

LEVEL = 0.95  # of all intervals
ALPHA = 1 - LEVEL


class Row(NamedTuple):
    """One sound of a system: its scores by measure, NaN where one has none, for which `failed` says why.

    `lengths` are the samples of reference (0 without one) and estimate at the rate of the pair, `silent` whether they
    are nothing but zeros, and `late` by how many samples the estimate lags behind.
    """

    pair: Pair
    lengths: tuple[int, int]
    silent: tuple[bool, bool]
    late: int
    scores: Mapping[str, float]
    failed: Mapping[str, str]


class Distance(NamedTuple):
    """How far the sounds of a system are from the references as sets; NaN where it is not known for a `reason`."""

    metric: str
    system: str
    interval: Interval
    files: int
    references: int
    reason: str = ""


class Mean(NamedTuple):
    """The mean of a measure over the files on which all systems have a score, or a distance of sets.

    `best` is true of the best system, and `tied` of another one whose difference from it Wilcoxon's test, corrected for
    all pairs, does not find.
    """

    metric: Metric
    system: str
    interval: Interval
    files: int
    best: bool = False
    tied: bool = False


@dataclass(frozen=True)
class Scores:
    """The scores of systems on files, and what was not compared.

    `print(scores)` shows the table of a paper, `save` writes everything into a folder.
    """

    metrics: tuple[Metric, ...]
    systems: tuple[str, ...]
    rows: tuple[Row, ...]
    distances: tuple[Distance, ...]
    problems: tuple[Problem, ...]
    files: Mapping[str, int]  # of the reference and of each system
    settings: Mapping[str, Any]

    def values(self, metric: str) -> dict[str, np.ndarray]:
        """For each system its scores on the files that have one of any system, in one order; NaN where it has none."""
        names = {row.pair.name: i for i, row in enumerate({row.pair.name: row for row in self.rows}.values())}
        columns = {system: np.full(len(names), math.nan) for system in self.systems}
        for row in self.rows:
            columns[row.pair.system][names[row.pair.name]] = row.scores.get(metric, math.nan)
        return columns

    @property
    def _options(self) -> dict[str, Any]:
        return {"level": LEVEL, "resamples": self.settings["resamples"], "seed": self.settings["seed"]}

    @functools.cached_property
    def _comparisons(self) -> "dict[str, list[Comparison]]":
        from .compare import compare_systems

        return {
            metric.name: compare_systems(dict(reversed(self.values(metric.name).items())), **self._options)
            for metric in self.metrics
            if metric.kind != "set" and len(self.systems) > 1
        }

    def comparisons(self) -> "dict[str, list[Comparison]]":
        """Every two systems on the files that both have, by measure; p-values are corrected for the pairs of a measure.

        A difference is that of the later system less the earlier one, in the order in which they were given.
        """
        return self._comparisons

    @functools.cached_property
    def _means(self) -> list[Mean]:
        means = []
        for metric in self.metrics:
            if metric.kind == "set":
                own = [one for one in self.distances if one.metric == metric.name]
                found = [Mean(metric, one.system, one.interval, one.files) for one in own]
            else:
                found = self._of_files(metric)
            means += _ranked(found, self.comparisons().get(metric.name, []))
        return means

    def means(self) -> list[Mean]:
        """One line of the table for each measure and system, in this order."""
        return self._means

    def _of_files(self, metric: Metric) -> list[Mean]:
        from .compare import bootstrap_interval

        columns = self.values(metric.name)
        common = ~np.isnan(np.stack(list(columns.values()))).any(0)
        return [
            Mean(metric, system, bootstrap_interval(values[common], **self._options), int(common.sum()))
            for system, values in columns.items()
        ]

    def table(self) -> str:
        """The table in Markdown: a line per system, means with intervals, the best in bold, and notes below it."""
        from .report import markdown

        return markdown(self)

    def notes(self) -> list[str]:
        """Sentences on what a reader must know beside the numbers: what was resampled, mixed, cut, or left out."""
        from .remarks import notes

        return notes(self)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write scores.csv (a row per file and system), scores.json, scores.md and scores.png into a folder.

        Raises ValueError where one of them is there already and is not to be replaced.
        """
        from .report import save

        save(self, Path(folder), overwrite)

    def __str__(self) -> str:
        return self.table()


def _ranked(means: list[Mean], comparisons: "list[Comparison]") -> list[Mean]:
    """The means of one measure with the best one marked, and those that are not told from it."""
    known = [mean for mean in means if not math.isnan(mean.interval.estimate)]
    better = means[0].metric.higher_is_better if means else None
    if better is None or len(known) < 2:
        return means
    top = (max if better else min)(mean.interval.estimate for mean in known)
    best = {mean.system for mean in known if mean.interval.estimate == top}
    told = {frozenset((pair.first, pair.second)): pair.wilcoxon_holm < ALPHA for pair in comparisons}
    tied = {
        mean.system
        for mean in known
        if mean.system not in best and told and not any(told[frozenset((mean.system, other))] for other in best)
    }
    return [mean._replace(best=mean.system in best, tied=mean.system in tied) for mean in means]
