"""Intervals that cover the truth as often as they say, tests that equal their definition, and numbers that suffice."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from jaxdiff.evaluation.compare import (
    bootstrap_interval,
    compare_systems,
    holm,
    listeners_needed,
    paired_power,
    sign_test,
    trials_needed,
    wilcoxon_test,
)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_cover_the_mean_at_their_rate(method):
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        interval = bootstrap_interval(rng.gamma(4.0, 0.25, 40), method=method, level=0.9, resamples=300, seed=seed)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.84 < covered / 300 < 0.94  # a share of 300 at 0.9 has a deviation of 0.017


def test_percentile_interval_is_that_of_all_resamples():
    values = np.array([0.0, 1.0, 3.0, 7.0])
    every = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    interval = bootstrap_interval(values, method="percentile", level=0.8, resamples=20_000)
    assert interval.estimate == 2.75
    np.testing.assert_allclose(interval[1:], np.quantile(every, [0.1, 0.9]), atol=0.25)  # means lie 0.25 apart


def test_bca_moves_the_interval_of_skewed_scores_towards_their_tail():
    values = np.random.default_rng(1).lognormal(0, 1, 30)
    plain = bootstrap_interval(values, method="percentile")
    corrected = bootstrap_interval(values, method="bca")
    assert corrected.low > plain.low and corrected.high > plain.high


def test_a_seed_gives_the_same_interval():
    values = np.random.default_rng(2).normal(size=20)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_few_and_equal_scores_are_defined():
    assert all(math.isnan(v) for v in bootstrap_interval([]))
    assert all(math.isnan(v) for v in bootstrap_interval([math.nan]))
    one = bootstrap_interval([4.0, math.nan])
    assert one.estimate == 4.0 and math.isnan(one.low) and math.isnan(one.high)
    assert bootstrap_interval([4.0, 4.0]) == (4.0, 4.0, 4.0)
    steady = bootstrap_interval([1.0, 1.0, 1.0, 1.0, 9.0], np.median)  # a jackknife without spread
    assert steady.estimate == 1.0 and steady.low == 1.0 and math.isfinite(steady.high)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, math.nan])
def test_a_level_is_a_share(level):
    with pytest.raises(ValueError, match="level: expected a share between 0 and 1"):
        bootstrap_interval([1.0, 2.0], level=level)


def test_wilcoxon_is_that_of_all_signs():
    d = np.random.default_rng(3).normal(0.5, 1, 9)
    ranks = 1 + np.argsort(np.argsort(np.abs(d)))
    center = ranks.sum() / 2
    far = abs(ranks[d > 0].sum() - center)
    sums = np.array([ranks[np.array(signs)].sum() for signs in itertools.product([True, False], repeat=len(d))])
    assert wilcoxon_test(d) == pytest.approx((np.abs(sums - center) >= far - 1e-9).mean())
    assert wilcoxon_test([*d, 0.0, math.nan]) == wilcoxon_test(d)


@pytest.mark.parametrize(("above", "below"), [(0, 1), (3, 3), (9, 1), (2, 15), (40, 20)])
def test_sign_test_is_a_sum_of_binomials(above, below):
    count, fewer = above + below, min(above, below)
    literal = min(1.0, 2 * sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count)
    assert sign_test([1.0] * above + [-2.0] * below + [0.0, math.nan]) == pytest.approx(literal)


@pytest.mark.parametrize("test", [wilcoxon_test, sign_test])
def test_without_a_difference_p_is_one_and_without_a_file_it_is_nan(test):
    assert test([0.0, 0.0, math.nan]) == 1.0
    assert math.isnan(test([math.nan])) and math.isnan(test([]))


def test_holm_rejects_what_stepping_down_rejects():
    p = np.random.default_rng(4).uniform(0, 0.1, 7)
    corrected = holm(p)
    for alpha in (0.01, 0.03, 0.05, 0.1, 0.2, 0.4):
        rejected = set()
        for step, index in enumerate(np.argsort(p)):  # Holm's procedure, word for word
            if p[index] > alpha / (len(p) - step):
                break
            rejected.add(int(index))
        assert rejected == {i for i, value in enumerate(corrected) if value <= alpha}


def test_holm_leaves_out_nan_and_stays_below_one():
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    assert holm([0.6, 0.9, 0.7]) == [1.0, 1.0, 1.0]
    first, missing, last = holm([0.04, math.nan, 0.01])
    assert (first, last) == (0.04, 0.02) and math.isnan(missing)


def test_power_is_the_share_of_simulated_tests_that_find_it():
    rng = np.random.default_rng(5)
    d = rng.normal(4.0, 8.0, (20_000, 15))
    found = np.asarray(scipy.stats.ttest_1samp(d, 0.0, axis=1))[1] <= 0.05
    assert paired_power(4.0, 8.0, 15) == pytest.approx(found.mean(), abs=0.01)
    assert paired_power(-4.0, 8.0, 15) == pytest.approx(paired_power(4.0, 8.0, 15))
    assert paired_power(0.0, 8.0, 15) == pytest.approx(0.05)


def test_power_at_its_ends():
    assert paired_power(1.0, 1.0, 1) == 0.0
    assert paired_power(1.0, 0.0, 2) == 1.0
    assert paired_power(1e6, 1.0, 2) == 1.0
    with pytest.raises(ValueError, match="deviation: expected a standard deviation of at least 0, got -1"):
        paired_power(1.0, -1.0, 5)


@pytest.mark.parametrize(("effect", "count"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_listeners_needed_are_those_of_the_tables(effect, count):
    """Paired t-test, two-sided, alpha 0.05, power 0.8: the numbers that G*Power gives for Cohen's three effects."""
    assert listeners_needed(10 * effect, 10.0) == count
    assert paired_power(effect, 1.0, count) >= 0.8 > paired_power(effect, 1.0, count - 1)


def test_listeners_needed_at_its_ends():
    assert listeners_needed(1.0, 0.0) == 2
    assert listeners_needed(0.001, 1.0) == pytest.approx(2.8016**2 * 1e6, rel=0.001)  # the normal approximation
    with pytest.raises(ValueError, match="effect: expected a difference other than 0"):
        listeners_needed(0.0, 1.0)
    with pytest.raises(ValueError, match="power: expected a share"):
        listeners_needed(1.0, 1.0, power=1.0)


@pytest.mark.parametrize("two_sided", [False, True])
def test_trials_needed_are_the_last_that_were_too_few_and_one_more(two_sided):
    def enough(count):
        for least in range(count + 1):  # the critical number of right answers
            guessed = sum(math.comb(count, k) for k in range(least, count + 1)) / 2**count
            if guessed <= (0.025 if two_sided else 0.05):
                return sum(math.comb(count, k) * 0.8**k * 0.2 ** (count - k) for k in range(least, count + 1)) >= 0.8
        return False

    short = [count for count in range(1, 80) if not enough(count)]
    assert trials_needed(0.8, two_sided=two_sided) == short[-1] + 1
    with pytest.raises(ValueError, match=r"share: expected 0\.51 to 1, got 0\.5"):
        trials_needed(0.5)


def test_systems_are_compared_on_the_files_they_share():
    rng = np.random.default_rng(6)
    files = rng.normal(0, 10, 30)  # files differ far more than systems
    scores = {"a": files + rng.normal(1, 0.5, 30), "b": files + rng.normal(0, 0.5, 30), "c": files.copy()}
    scores["c"][:5] = np.nan
    ab, ac, bc = compare_systems(scores, resamples=500)
    assert (ab.first, ab.second, ab.files) == ("a", "b", 30) and (ac.files, bc.files) == (25, 25)
    d = scores["a"] - scores["b"]
    assert ab.difference.estimate == pytest.approx(d.mean())
    assert 0 < ab.difference.low < 1 < ab.difference.high
    assert (ab.higher, ab.lower) == ((d > 0).sum(), (d < 0).sum())
    assert ab.wilcoxon == pytest.approx(scipy.stats.wilcoxon(d)[1])
    assert [row.wilcoxon_holm for row in (ab, ac, bc)] == holm([row.wilcoxon for row in (ab, ac, bc)])
    assert [row.sign_holm for row in (ab, ac, bc)] == holm([row.sign for row in (ab, ac, bc)])
    assert ab.wilcoxon_holm < 0.001 and bc.wilcoxon_holm > 0.05


def test_systems_without_common_files_are_defined_and_uneven_ones_refused():
    (row,) = compare_systems({"a": [1.0, math.nan], "b": [math.nan, 1.0]})
    assert row.files == 0 and math.isnan(row.difference.estimate) and math.isnan(row.wilcoxon_holm)
    assert compare_systems({"a": [1.0]}) == []
    with pytest.raises(ValueError, match="a has 2, b has 1; put NaN where a file has no score"):
        compare_systems({"a": [1.0, 2.0], "b": [1.0]})
