"""An interval is what every estimate that is uncertain gives. This module imports nothing slow."""

from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate and the two ends of its confidence interval. What cannot be told from the data is NaN."""

    estimate: float
    low: float
    high: float
