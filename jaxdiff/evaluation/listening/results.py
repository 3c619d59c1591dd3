"""The findings of a listening test: a score per system and its interval, differences, and shares of answers.

Ratings are paired: a listener hears all systems on the same items. Both listeners and items are samples of more of
their kind, so an interval draws both again. A difference of two systems is tested by exchanging their labels, which
would not matter if there were none: once for each rating by itself, and once for all ratings of a listener together.
The first asks about these listeners, the second about listeners in general, and needs at least six of them to find
anything.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from ..compare import holm
from ..interval import Interval
from .panel import LOW_ANCHOR, MID_ANCHOR, REFERENCE, Rating, Table, listener_of, tabulate

BIMODAL = 5 / 9  # Sarle's coefficient of a uniform distribution


class Summary(NamedTuple):
    """The scores of one system: how many, their quartiles, mean with interval, standard deviation and bimodality."""

    system: str
    ratings: int
    lower_quartile: float
    median: float
    upper_quartile: float
    mean: Interval
    deviation: float
    bimodality: float


class Difference(NamedTuple):
    """Mean difference of two systems over `cells`, the pairs of listener and item that rated both, and its p-values.

    `p` exchanges labels rating by rating, `p_listeners` listener by listener; `_holm` says corrected for all pairs.
    `listener_deviation` is the standard deviation over listeners of a listener's mean difference.
    """

    first: str
    second: str
    cells: int
    difference: Interval
    p: float
    p_holm: float
    p_listeners: float
    p_listeners_holm: float
    listener_deviation: float


class Share(NamedTuple):
    """How often the answer was a certain one, of `decided` answers, with Wilson's interval and a binomial p-value.

    For ABX the answer is a right one, and the test against guessing is one-sided. For preferences it is the first
    system of a pair; answers without a preference are counted as `ties` and are part of nothing else. The interval and
    the p-value take answers as independent of each other.
    """

    name: str
    chosen: int
    decided: int
    ties: int
    share: Interval
    p: float
    p_holm: float


class MixedModel(NamedTuple):
    """score ~ system + (1 | listener) + (1 | item), fitted by restricted maximum likelihood.

    `effects` are differences from the mean of `baseline`. The three deviations are those between listeners, between
    items, and of what is left.
    """

    baseline: str
    effects: dict[str, Interval]
    listener_deviation: float
    item_deviation: float
    residual_deviation: float


def summaries(table: Table, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> list[Summary]:
    """The scores of each system. A system with one rating has no interval and no deviation: they are NaN."""
    found = []
    for system, scores in zip(table.systems, table.scores, strict=True):
        rated = scores[~np.isnan(scores)]
        lower, median, upper = np.quantile(rated, [0.25, 0.5, 0.75])
        found.append(
            Summary(
                system=system,
                ratings=len(rated),
                lower_quartile=float(lower),
                median=float(median),
                upper_quartile=float(upper),
                mean=mean_interval(scores, level=level, resamples=resamples, seed=seed),
                deviation=float(rated.std(ddof=1)) if len(rated) > 1 else math.nan,
                bimodality=bimodality(rated),
            )
        )
    return found


def mean_interval(scores: np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of scores [listeners, items] with the interval of a bootstrap over both; NaN where nobody rated.

    Listeners and items are drawn again at the same time (Owen 2007, "The pigeonhole bootstrap"). That counts what is
    left beside both up to three times over, so the draws are scaled about the mean to the variance that clusters of
    both have (Cameron, Gelbach & Miller 2011, each with its factor G / (G - 1)); it is never taken to be less than that
    of one of them alone. With fewer than about ten listeners the interval is somewhat too narrow.

    With one listener the items alone are drawn again, and the interval says nothing about other listeners; with one
    item it is the other way round. One score has no interval.
    """
    there = ~np.isnan(scores)
    if not there.any():
        return Interval(math.nan, math.nan, math.nan)
    scores, there = scores[there.any(1)][:, there.any(0)], there[there.any(1)][:, there.any(0)]
    mean = float(scores[there].mean())
    if there.sum() == 1:
        return Interval(mean, math.nan, math.nan)
    deviations = np.where(there, scores - mean, 0.0)
    rng = np.random.default_rng(seed)
    listeners, items = (_drawn(rng, size, resamples) for size in scores.shape)
    sums, weights = ((listeners @ deviations) * items).sum(1), ((listeners @ there) * items).sum(1)
    draws = sums[weights > 0] / weights[weights > 0]  # a draw may miss all ratings of a sparse table
    drawn = float(draws.std())
    scale = math.sqrt(_variance_of_mean(deviations, int(there.sum()))) / drawn if drawn > 0 else 0.0
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, mean + scale * float(low), mean + scale * float(high))


def _variance_of_mean(deviations: np.ndarray, count: int) -> float:
    """The variance of the mean of `count` ratings from their deviations [listeners, items], 0 where there is none."""
    parts = deviations.sum(1), deviations.sum(0), deviations.ravel()
    sizes = *deviations.shape, count
    by_listener, by_item, single = (
        float((sums**2).sum()) / count**2 * size / (size - 1) if size > 1 else 0.0
        for sums, size in zip(parts, sizes, strict=True)
    )
    return max(by_listener + by_item - single, by_listener, by_item)


def _drawn(rng: np.random.Generator, size: int, resamples: int) -> np.ndarray:
    """How often each of `size` was drawn in each resample, [resamples, size]."""
    return rng.multinomial(size, np.full(size, 1 / size), resamples).astype(np.float64)


def bimodality(scores: Sequence[float] | np.ndarray) -> float:
    """Sarle's coefficient with the correction for a finite sample; above BIMODAL the scores may have two peaks.

    (skewness^2 + 1) / (excess kurtosis + 3 (n - 1)^2 / ((n - 2) (n - 3))), with the unbiased estimates of both (SAS
    Institute 1990; Pfister et al. 2013, "Good things peak in pairs"). A skewed distribution of one peak can be above
    it too, so it asks for a look at the picture. Fewer than four scores, or equal ones, have none: NaN.
    """
    values = np.asarray(scores, np.float64)
    n = len(values)
    if n < 4 or np.ptp(values) == 0:
        return math.nan
    skewness = float(scipy.stats.skew(values, bias=False))
    kurtosis = float(scipy.stats.kurtosis(values, bias=False))
    return (skewness**2 + 1) / (kurtosis + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))


def differences(
    table: Table, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0, anchors: bool = False
) -> list[Difference]:
    """Every pair of systems: first minus second on what both were rated, tested and corrected by Holm.

    The anchors are left out unless `anchors` is set: they are there to span the scale.
    """
    systems = [name for name in table.systems if anchors or name not in (LOW_ANCHOR, MID_ANCHOR)]
    pairs = list(itertools.combinations(systems, 2))
    cells = {f"{a}>{b}": table.of(a) - table.of(b) for a, b in pairs}
    found = _tested(cells, level=level, resamples=resamples, seed=seed)
    return [row._replace(first=a, second=b) for row, (a, b) in zip(found, pairs, strict=True)]


def pair_scores(
    ratings: Iterable[Rating], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[Difference]:
    """The mean score of each pair "a>b" of a CMOS or preference test as the difference of a and b, tested against 0."""
    table = tabulate(oriented(ratings))  # whose systems are pairs
    cells = dict(zip(table.systems, table.scores, strict=True))
    return _tested(cells, level=level, resamples=resamples, seed=seed)


def _tested(cells: dict[str, np.ndarray], *, level: float, resamples: int, seed: int) -> list[Difference]:
    """Differences [listeners, items] of each pair, NaN where there is none."""
    by_rating = [label_exchange_test(d[~np.isnan(d)], resamples=resamples, seed=seed) for d in cells.values()]
    by_listener = [label_exchange_test(np.nansum(d, 1), resamples=resamples, seed=seed) for d in cells.values()]
    found = []
    for (pair, d), p, p_holm, p_listeners, p_listeners_holm in zip(
        cells.items(), by_rating, holm(by_rating), by_listener, holm(by_listener), strict=True
    ):
        first, _, second = pair.partition(">")
        own_means = [float(np.nanmean(row)) for row in d if not np.isnan(row).all()]
        found.append(
            Difference(
                first=first,
                second=second,
                cells=int((~np.isnan(d)).sum()),
                difference=mean_interval(d, level=level, resamples=resamples, seed=seed),
                p=p,
                p_holm=p_holm,
                p_listeners=p_listeners,
                p_listeners_holm=p_listeners_holm,
                listener_deviation=float(np.std(own_means, ddof=1)) if len(own_means) > 1 else math.nan,
            )
        )
    return found


def label_exchange_test(d: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> float:
    """The two-sided p-value of a mean difference when the labels of each pair are exchanged at random.

    Exchanging the labels turns a difference's sign. Up to `resamples` ways of doing so are all tried and p is exact;
    of more, so many are drawn. Without a difference, and with one pair, p is 1; without a pair it is NaN.
    """
    if not len(d):
        return math.nan
    if len(d) == 1 or not d.any():
        return 1.0
    tested = scipy.stats.permutation_test(
        (d, np.zeros_like(d)),
        lambda first, second, axis: (first - second).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2**21 // len(d)),
        rng=np.random.default_rng(seed),
    )
    return float(tested.pvalue)


def oriented(ratings: Iterable[Rating]) -> list[Rating]:
    """Ratings of pairs with every pair written in one order, that of its first rating, and the reference second.

    Where "b>a" becomes "a>b", the score changes its sign.
    """
    orders: dict[frozenset[str], str] = {}
    found = []
    for r in ratings:
        first, _, second = r.system.partition(">")
        turned = f"{second}>{first}"
        order = orders.setdefault(frozenset((first, second)), turned if first == REFERENCE else r.system)
        found.append(r if r.system == order else r._replace(system=turned, score=-r.score))
    return found


def preference_shares(ratings: Iterable[Rating], *, level: float = 0.95) -> list[Share]:
    """How often the first system of each pair was preferred. Replications do not count."""
    groups: dict[str, list[float]] = {}
    for r in oriented(ratings):
        if not r.repeated and math.isfinite(r.score):
            groups.setdefault(r.system, []).append(r.score)
    return _shares({name: groups[name] for name in sorted(groups)}, level=level, alternative="two-sided")


def abx_shares(ratings: Iterable[Rating], *, by_listener: bool = False, level: float = 0.95) -> list[Share]:
    """How often X was named rightly, for each system or for each listener; every trial counts."""
    groups: dict[str, list[float]] = {}
    for r in ratings:
        if math.isfinite(r.score):
            groups.setdefault(listener_of(r) if by_listener else r.system, []).append(2 * r.score - 1)
    return _shares({name: groups[name] for name in sorted(groups)}, level=level, alternative="greater")


def _shares(groups: dict[str, list[float]], *, level: float, alternative: str) -> list[Share]:
    """Shares of scores above 0 among those that are not 0."""
    found = []
    for name, scores in groups.items():
        chosen, decided = sum(s > 0 for s in scores), sum(s != 0 for s in scores)
        share, p = Interval(math.nan, math.nan, math.nan), math.nan
        if decided:
            p = float(scipy.stats.binomtest(chosen, decided, 0.5, alternative=alternative).pvalue)
            both = scipy.stats.binomtest(chosen, decided).proportion_ci(level, method="wilson")
            share = Interval(chosen / decided, float(both.low), float(both.high))
        found.append(Share(name, chosen, decided, len(scores) - decided, share, p, math.nan))
    corrected = holm([row.p for row in found])
    return [row._replace(p_holm=p) for row, p in zip(found, corrected, strict=True)]


def typical_deviation(rows: Sequence[Difference]) -> float:
    """The median over pairs of systems of `listener_deviation`: what the number of listeners needed depends on."""
    known = [r.listener_deviation for r in rows if REFERENCE not in (r.first, r.second)]
    known = [d for d in known or [r.listener_deviation for r in rows] if not math.isnan(d)]
    return float(np.median(known)) if known else math.nan


def mixed_model(table: Table, *, level: float = 0.95) -> MixedModel:
    """The mixed-effects model of the scores, by statsmodels. The baseline is the first system of the table.

    Raises ImportError without statsmodels, and ValueError for fewer than two systems, listeners or items, or where the
    fit does not converge.
    """
    try:
        import pandas  # pyright: ignore[reportMissingImports]
        from statsmodels.regression.mixed_linear_model import MixedLM  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "the mixed-effects model was left out: it needs statsmodels; install it by pip install 'jaxdiff[eval]'"
        ) from error
    if min(table.scores.shape) < 2:
        systems, listeners, items = table.scores.shape
        raise ValueError(
            "the mixed-effects model was left out: it needs at least 2 systems, listeners and items, "
            f"got {systems}, {listeners} and {items}"
        )
    system, listener, item = np.nonzero(~np.isnan(table.scores))
    frame = pandas.DataFrame({"score": table.scores[system, listener, item], "listener": listener, "item": item})
    columns = [f"system{i}" for i in range(1, len(table.systems))]
    for i, column in enumerate(columns, 1):
        frame[column] = (system == i).astype(float)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a deviation that is estimated as 0
            fit = MixedLM.from_formula(
                f"score ~ {' + '.join(columns)}",
                frame,
                groups=np.zeros(len(frame)),
                re_formula="0",
                vc_formula={"listener": "0 + C(listener)", "item": "0 + C(item)"},
            ).fit(reml=True)
    except np.linalg.LinAlgError:
        fit = None
    if fit is None or not fit.converged or not np.isfinite(fit.bse_fe).all():
        raise ValueError("the mixed-effects model was left out: its fit did not converge on these ratings")
    reach = scipy.stats.norm.ppf((1 + level) / 2) * fit.bse_fe
    effects = {
        name: Interval(*(float(fit.fe_params[column] + way * reach[column]) for way in (0, -1, 1)))
        for name, column in zip(table.systems[1:], columns, strict=True)
    }
    variances = dict(zip(fit.model.exog_vc.names, fit.vcomp, strict=True))
    return MixedModel(
        baseline=table.systems[0],
        effects=effects,
        listener_deviation=math.sqrt(max(0.0, variances["listener"])),
        item_deviation=math.sqrt(max(0.0, variances["item"])),
        residual_deviation=math.sqrt(fit.scale),
    )
