"""How sure a number and a difference are: intervals, paired tests of systems on the same files, and sample sizes.

A score that is averaged over files is uncertain because other files would have given another mean. The bootstrap draws
the files again, with replacement, and looks how the mean moves (Efron & Tibshirani 1993, chapters 13 and 14). Two
systems are compared by their differences file by file, since most of the spread of a score lies between files. Where
many pairs are tested at once, Holm's correction keeps the chance of any false finding at the level that is named.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from .interval import Interval

Method = Literal["percentile", "bca"]


class Comparison(NamedTuple):
    """Two systems that were measured on the same files.

    `files` counts those on which both have a score; on `higher` of them the first system's score is the higher one, on
    `lower` it is the lower one. `difference` is the mean of first minus second. `wilcoxon` and `sign` are two-sided
    p-values, and those ending in `_holm` are corrected for all pairs that were compared.
    """

    first: str
    second: str
    files: int
    higher: int
    lower: int
    difference: Interval
    wilcoxon: float
    wilcoxon_holm: float
    sign: float
    sign_holm: float


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., np.ndarray] = np.mean,
    *,
    method: Method = "bca",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The interval of a statistic of one score per file, by drawing the files again.

    `statistic` takes an array and `axis`, as np.mean and np.median do. "percentile" reads the interval off the
    quantiles of the resampled statistic; "bca" also corrects its bias and its skewness (Efron 1987), which matters for
    few files, and falls back to "percentile" where the statistic varies too little for that. NaN scores are left out. A
    single score has no interval, and no score has no estimate either: both are NaN. Equal scores have an interval of no
    width.

    Raises ValueError for a level outside 0 to 1.

    >>> bootstrap_interval([2.0, 2.0, 2.0])
    Interval(estimate=2.0, low=2.0, high=2.0)
    """
    _check_share("level", level)
    scores = np.asarray(values, np.float64).ravel()
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return Interval(math.nan, math.nan, math.nan)
    estimate = float(statistic(scores, axis=0))
    if len(scores) == 1:
        return Interval(estimate, math.nan, math.nan)
    if np.ptp(scores) == 0:
        return Interval(estimate, estimate, estimate)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scipy's, about a statistic that hardly varies
        drawn = scipy.stats.bootstrap(
            (scores,),
            statistic,
            n_resamples=resamples,
            batch=max(1, 2**22 // len(scores)),
            vectorized=True,
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        )
    low, high = drawn.confidence_interval
    if math.isnan(low) or math.isnan(high):
        low, high = np.quantile(drawn.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def compare_systems(
    scores: Mapping[str, Sequence[float] | np.ndarray],
    *,
    method: Method = "bca",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Comparison]:
    """Every pair of systems, in the order in which they are given, from one score per file and system.

    The scores of all systems follow the same order of files. A file on which one of two systems has no score (NaN) is
    left out of that pair.

    Raises ValueError where the systems have different numbers of files.
    """
    columns = {name: np.asarray(values, np.float64).ravel() for name, values in scores.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"systems are compared on the same files, but {told}; put NaN where a file has no score")
    pairs = list(itertools.combinations(columns, 2))
    differences = [columns[first] - columns[second] for first, second in pairs]
    wilcoxon = [wilcoxon_test(d) for d in differences]
    sign = [sign_test(d) for d in differences]
    return [
        Comparison(
            first=first,
            second=second,
            files=int((~np.isnan(d)).sum()),
            higher=int((d > 0).sum()),
            lower=int((d < 0).sum()),
            difference=bootstrap_interval(d, method=method, level=level, resamples=resamples, seed=seed),
            wilcoxon=p_wilcoxon,
            wilcoxon_holm=p_wilcoxon_holm,
            sign=p_sign,
            sign_holm=p_sign_holm,
        )
        for (first, second), d, p_wilcoxon, p_wilcoxon_holm, p_sign, p_sign_holm in zip(
            pairs, differences, wilcoxon, holm(wilcoxon), sign, holm(sign), strict=True
        )
    ]


def wilcoxon_test(differences: ArrayLike) -> float:
    """The two-sided p-value of Wilcoxon's signed rank test: whether differences lie around 0 (Wilcoxon 1945).

    Zeros and NaN are left out. Without any difference p is 1, and without any file it is NaN.
    """
    d = np.asarray(differences, np.float64).ravel()
    d = d[~np.isnan(d)]
    if not d.any():
        return 1.0 if len(d) else math.nan
    return float(np.asarray(scipy.stats.wilcoxon(d[d != 0]))[1])


def sign_test(differences: ArrayLike) -> float:
    """The two-sided p-value of the sign test: whether a difference is as often above 0 as below it.

    Zeros and NaN are left out. Without any difference p is 1, and without any file it is NaN.

    >>> sign_test([1.0, 2.0, 3.0, 4.0, 5.0])
    0.0625
    """
    d = np.asarray(differences, np.float64).ravel()
    d = d[~np.isnan(d)]
    if not d.any():
        return 1.0 if len(d) else math.nan
    return float(scipy.stats.binomtest(int((d > 0).sum()), int((d != 0).sum())).pvalue)


def holm(p_values: Sequence[float] | np.ndarray) -> list[float]:
    """p-values corrected for their number by Holm's step-down rule (Holm 1979), in the order in which they are given.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than one before it, and
    none larger than 1. NaN stays NaN and is not counted.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    counted = np.flatnonzero(~np.isnan(p))
    order = counted[np.argsort(p[counted], kind="stable")]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected.tolist()


def paired_power(effect: float, deviation: float, count: int, *, alpha: float = 0.05) -> float:
    """The chance that a two-sided paired t-test of `count` differences finds a mean difference of `effect`.

    `deviation` is the standard deviation of the differences, in the unit of the effect. The power is that of the
    noncentral t distribution (Cohen 1988, chapter 2). One difference has no spread, so fewer than two find nothing.

    Raises ValueError for a negative deviation or an alpha outside 0 to 1.
    """
    _check_share("alpha", alpha)
    if not deviation >= 0:
        raise ValueError(f"deviation: expected a standard deviation of at least 0, got {deviation}")
    if count < 2:
        return 0.0
    if deviation == 0:
        return 1.0 if effect else alpha
    freedom = count - 1
    critical = scipy.stats.t.isf(alpha / 2, freedom)
    shift = abs(effect) / deviation * math.sqrt(count)
    if shift > critical + 40:  # where scipy's noncentral t runs out of digits, and nothing is missed
        return 1.0
    return float(scipy.stats.nct.sf(critical, freedom, shift) + scipy.stats.nct.cdf(-critical, freedom, shift))


def listeners_needed(effect: float, deviation: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """The fewest listeners (or files) with whom a paired test finds a mean difference of `effect` that often.

    `deviation` is the standard deviation over listeners of one listener's mean difference; take it from a pilot test,
    or from the report of an earlier one.

    Raises ValueError for an effect of 0, a negative deviation, or an alpha or a power outside 0 to 1.

    >>> listeners_needed(effect=5.0, deviation=10.0)
    34
    """
    _check_share("power", power)
    if effect == 0 or not math.isfinite(effect):
        raise ValueError(f"effect: expected a difference other than 0, got {effect}; no number of listeners finds that")
    high = 2
    while paired_power(effect, deviation, high, alpha=alpha) < power:
        high *= 2
    low = max(2, high // 2)
    while low < high:
        middle = (low + high) // 2
        if paired_power(effect, deviation, middle, alpha=alpha) < power:
            low = middle + 1
        else:
            high = middle
    return high


def trials_needed(share: float, alpha: float = 0.05, power: float = 0.8, *, two_sided: bool = False) -> int:
    """The fewest trials in which a share of right answers above one half is told from guessing that often.

    This is the exact binomial test against 1/2, one-sided as for ABX unless `two_sided` is set, as for preferences. The
    number is the smallest from which on more trials are never too few.

    Raises ValueError for a share outside 0.51 to 1, or an alpha or a power outside 0 to 1.
    """
    _check_share("alpha", alpha)
    _check_share("power", power)
    if not 0.51 <= share <= 1:
        raise ValueError(f"share: expected 0.51 to 1, got {share}; 0.5 is guessing, and nearer to it nothing is found")
    most = 64
    while True:
        counts = np.arange(1, 2 * most)
        fewest = scipy.stats.binom.isf(alpha / 2 if two_sided else alpha, counts, 0.5)  # P(more than this) <= alpha
        enough = scipy.stats.binom.sf(fewest, counts, share) >= power
        last_short = int(np.flatnonzero(~enough).max(initial=-1))
        if last_short < most:
            return last_short + 2
        most *= 2


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a share between 0 and 1, got {value}")
