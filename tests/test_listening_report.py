"""A panel whose truth is known: who is screened, what is recovered, and what a page shows of it, and never runs."""

import csv
import io
import itertools
import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.stats

from jaxdiff.evaluation.compare import holm
from jaxdiff.evaluation.listening.panel import (
    GOLD,
    KINDS,
    LOW_ANCHOR,
    MID_ANCHOR,
    REFERENCE,
    TRAP,
    Rating,
    agreement,
    kept_ratings,
    outliers,
    screen,
    screen_mos,
    screen_mushra,
    tabulate,
    webmushra_csv,
)
from jaxdiff.evaluation.listening.report import listening_report
from jaxdiff.evaluation.listening.results import (
    BIMODAL,
    abx_shares,
    bimodality,
    differences,
    label_exchange_test,
    mean_interval,
    mixed_model,
    oriented,
    pair_scores,
    preference_shares,
    summaries,
)

MEANS = {"good": 80.0, "fair": 65.0, "poor": 45.0, MID_ANCHOR: 50.0, LOW_ANCHOR: 20.0}


def rating(
    listener="anna", item="one", system="ours", score=50.0, *, session=None, seconds=10.0, order=0, repeated=False
):
    session = f"of {listener}" if session is None else session
    return Rating(session, listener, item, item, system, float(score), seconds, order, repeated)


def panel(seed, listeners=20, careless=3, items=8):
    """A MUSHRA panel whose first listeners answer at random; listeners and items differ by a known amount."""
    rng = np.random.default_rng(seed)
    item_effects = rng.normal(0, 3, items)
    rows = []
    for who in range(listeners):
        own = rng.normal(0, 4)
        for item in range(items):
            shift = own + item_effects[item]
            scores = {name: np.clip(mean + shift + rng.normal(0, 6), 0, 100) for name, mean in MEANS.items()}
            scores[REFERENCE] = 100 - min(9, abs(rng.normal(0, 2)))
            for system, score in scores.items():
                score = rng.uniform(0, 100) if who < careless else score
                rows.append(rating(f"{who:02}", f"item {item}", system, score))
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_the_careless_three_of_twenty_are_left_out_and_the_order_is_recovered(seed):
    rows = panel(seed)
    screening = screen_mushra(rows)
    assert set(screening.excluded) == {"00", "01", "02"}
    assert screening.kept == tuple(f"{who:02}" for who in range(3, 20))
    table = tabulate(kept_ratings(rows, screening))
    found = {row.system: row for row in summaries(table, resamples=500)}
    order = sorted(MEANS, key=lambda name: -found[name].mean.estimate)
    assert order == ["good", "fair", MID_ANCHOR, "poor", LOW_ANCHOR]
    pairs = {(row.first, row.second): row for row in differences(table, resamples=500)}
    assert len(pairs) == 6  # of the reference and three systems
    for (first, second), row in pairs.items():
        assert row.p_holm < 0.05 and row.p_listeners_holm < 0.05
        if REFERENCE not in (first, second):
            assert row.difference.low < MEANS[first] - MEANS[second] < row.difference.high


def test_intervals_cover_true_means_at_their_rate():
    covered = [
        row.mean.low <= MEANS[row.system] <= row.mean.high
        for seed in range(40)
        for row in summaries(tabulate(panel(100 + seed, careless=0)), level=0.9, resamples=200)
        if row.system in ("good", "fair", "poor")
    ]
    assert 0.8 < np.mean(covered) < 0.97


@pytest.mark.parametrize(("listener_spread", "item_spread"), [(0, 0), (5, 0), (0, 5), (4, 3)])
def test_an_interval_is_as_wide_as_both_kinds_of_spread_ask_for(listener_spread, item_spread):
    """The mean of a balanced table varies by s_l^2 / L + s_i^2 / I + s^2 / (L I)."""
    rng, listeners, items, widths = np.random.default_rng(0), 24, 16, []
    for seed in range(40):
        scores = rng.normal(0, 6, (listeners, items)) + rng.normal(0, listener_spread, (listeners, 1))
        interval = mean_interval(scores + rng.normal(0, item_spread, items), resamples=300, seed=seed)
        widths.append((interval.high - interval.low) / 2 / 1.96)
    variance = listener_spread**2 / listeners + item_spread**2 / items + 36 / (listeners * items)
    assert np.mean(np.square(widths)) == pytest.approx(variance, rel=0.25)


def mushra_rows(low_references=0, high_anchors=0, items=20, listener="anna", reference=89.9, anchor=90.1):
    """A listener's references and mid anchors: so many references at `reference`, so many anchors at `anchor`."""
    rows = []
    for i in range(items):
        rows.append(rating(listener, f"item {i:02}", REFERENCE, reference if i < low_references else 100))
        rows.append(rating(listener, f"item {i:02}", MID_ANCHOR, anchor if i < high_anchors else 50))
    return rows


def others(count, items=20):
    return [row for who in range(count) for row in mushra_rows(items=items, listener=f"other {who}")]


@pytest.mark.parametrize(
    ("faults", "excluded"),
    [
        (dict(low_references=3), False),  # 3 of 20 are 15 %, and not more
        (dict(low_references=4), True),
        (dict(low_references=20, reference=90), False),  # 90 is not below 90
        (dict(high_anchors=3), False),
        (dict(high_anchors=4), True),
        (dict(high_anchors=20, anchor=90), False),
        (dict(low_references=3, high_anchors=3), False),  # two rules, and not one sum
    ],
)
def test_mushra_s_rules_at_their_boundaries(faults, excluded):
    screening = screen_mushra(mushra_rows(**faults) + others(5))
    assert ("anna" in screening.excluded) == excluded
    assert len(screening.kept) == 6 - excluded and screening.uncounted_items == ()


def test_an_item_whose_anchor_many_rate_highly_leaves_nobody_out():
    rows = mushra_rows(high_anchors=4) + mushra_rows(high_anchors=4, listener="berta")
    quarter = screen_mushra(rows + others(6))  # 2 of 8 are 25 %, and not more
    assert set(quarter.excluded) == {"anna", "berta"} and quarter.uncounted_items == ()
    more = screen_mushra(rows + others(5))  # 2 of 7
    assert more.excluded == {} and more.uncounted_items == ("item 00", "item 01", "item 02", "item 03")
    other_items = mushra_rows(low_references=6, high_anchors=4)  # 2 of the 16 items that count: 12.5 %
    assert "anna" not in screen_mushra(other_items + rows[40:] + others(5)).excluded
    worse = mushra_rows(low_references=7, high_anchors=4)  # 3 of 16
    assert "3 of 16 items" in screen_mushra(worse + rows[40:] + others(5)).excluded["anna"][0]


def test_replicated_screens_and_other_systems_do_not_screen():
    rows = mushra_rows() + [r._replace(repeated=True, score=0.0) for r in mushra_rows()]
    rows += [rating("anna", f"item {i:02}", "ours", 5.0) for i in range(20)]
    assert screen_mushra(rows + others(5)).excluded == {}


def mos_rows(votes=(3, 4, 5, 2), **other):
    return [rating(item=f"clip {i}", score=score, **other) for i, score in enumerate(votes)]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (mos_rows(), None),
        (mos_rows() + [rating(item="trap", system=TRAP, score=2)], None),
        (mos_rows() + [rating(item="trap", system=TRAP, score=3)], "1 trap clip"),
        (mos_rows() + [rating(item="gold", system=GOLD, score=4)], None),  # one off is forgiven
        (mos_rows() + [rating(item="gold", system=GOLD, score=3)], "1 gold clip"),
        (mos_rows() + [rating(item="unknown", system=TRAP, score=3)], None),
        (mos_rows(seconds=6.0), None),
        (mos_rows(seconds=5.9), "answered 4 clips before the end"),
        (mos_rows((4, 4, 4, 4)), "nearly the same score"),
        (mos_rows((4, 4, 4, 4)) + [rating(item="trap", system=TRAP, score=2)], "nearly the same"),  # a trap is no vote
        (mos_rows((4,) * 9 + (5,)), None),  # variance 0.1
        (mos_rows((4,) * 10 + (5,)), "variance 0.091, below 0.1"),
        (mos_rows((4,)), None),  # one vote has no variance
    ],
)
def test_mos_checks_at_their_boundaries(rows, reason):
    durations = {f"clip {i}": 6.0 for i in range(11)}
    screening = screen_mos(rows, expected={"trap": 2, "gold": 5}, durations=durations)
    if reason is None:
        assert screening == (("anna",), {}, ())
    else:
        assert screening.kept == () and reason in " ".join(screening.excluded["anna"])


def test_outliers_are_named_and_stay():
    rows = [rating(str(who), score=score) for who, score in enumerate([50, 52, 54, 56, 58, 64, 65])]
    assert outliers(rows) == []
    assert outliers([*rows[:6], rating("6", score=73)]) == []  # quartiles 53 and 61: up to 73
    assert outliers([*rows[:6], rating("6", score=73.1)]) == [rating("6", score=73.1)]
    assert tabulate([*rows[:6], rating("6", score=73.1)]).scores.size == 7


def test_replicated_items_show_agreement_and_count_for_nothing_else():
    rows = [rating(score=60), rating(item="two", score=-1), rating("bert", score=10)]
    again = [rating(score=66, repeated=True), rating(item="two", score=1, repeated=True)]
    (found,) = agreement([*again, *rows])
    assert found == ("anna", 2, 4.0, 0.5)
    np.testing.assert_array_equal(tabulate(rows + again).scores, tabulate(rows).scores)


def test_a_table_holds_every_score_at_its_place():
    rows = [rating("b", "y", LOW_ANCHOR, 1), rating("a", "x", "zoo", 2), rating("a", "x", REFERENCE, 3)]
    rows += [rating("a", "y", "zoo", 4), rating("a", "y", "zoo", 6), rating("a", "x", MID_ANCHOR, math.nan)]
    table = tabulate([*rows, rating(item="trap", system=TRAP, score=1)])
    assert table.systems == (REFERENCE, "zoo", LOW_ANCHOR) and table.listeners == ("a", "b")
    nan = math.nan
    np.testing.assert_array_equal(table.scores, [[[3, nan], [nan] * 2], [[2, 5], [nan] * 2], [[nan] * 2, [nan, 1]]])
    assert tabulate([rating("", session="s1"), rating("", session="s2")]).listeners == ("s1", "s2")


def test_label_exchange_is_that_of_all_signs():
    d = np.random.default_rng(0).normal(0.6, 1, 7)
    means = np.array([np.mean(d * signs) for signs in itertools.product([1, -1], repeat=len(d))])
    assert label_exchange_test(d) == pytest.approx((np.abs(means) >= abs(d.mean()) - 1e-12).mean())
    assert label_exchange_test(np.zeros(4)) == 1.0
    assert math.isnan(label_exchange_test(np.zeros(0)))


def test_p_of_exchangeable_ratings_is_uniform():
    """Both p-values where systems do not differ, the one by listeners also where their differences are their own."""
    rng, by_rating, by_listener = np.random.default_rng(1), [], []
    for _ in range(150):
        plain = rng.normal(0, 1, 40)
        by_rating.append(label_exchange_test(plain, resamples=200, seed=int(rng.integers(1_000_000))))
        own = (rng.normal(0, 1, (12, 1)) + rng.normal(0, 1, (12, 6))).sum(1)
        by_listener.append(label_exchange_test(own, resamples=200, seed=int(rng.integers(1_000_000))))
    for p in (by_rating, by_listener):
        assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_differences_are_paired_and_corrected():
    rng = np.random.default_rng(2)
    rows = []
    for who, item in itertools.product("abcdefgh", "xyz"):
        common = rng.normal(50, 15)
        rows += [rating(who, item, "one", common + 4 + rng.normal()), rating(who, item, "two", common + rng.normal())]
        rows += [rating(who, item, "new", common + rng.normal())] if item != "z" else []
    found = {(row.first, row.second): row for row in differences(tabulate(rows), resamples=400)}
    assert list(found) == [("new", "one"), ("new", "two"), ("one", "two")]
    one_two = found["one", "two"]
    assert one_two.cells == 24 and found["new", "two"].cells == 16
    assert one_two.difference.low > 3 and one_two.difference.high < 5 and one_two.p_holm < 0.05
    assert [row.p_holm for row in found.values()] == holm([row.p for row in found.values()])
    assert [row.p_listeners_holm for row in found.values()] == holm([row.p_listeners for row in found.values()])
    one, two = (
        [[r.score for r in rows if (r.listener, r.system) == (who, name)] for who in "abcdefgh"]
        for name in ("one", "two")
    )
    own = np.mean(one, 1) - np.mean(two, 1)
    assert one_two.listener_deviation == pytest.approx(np.std(own, ddof=1))
    assert found["new", "two"].p_holm > 0.05


def test_p_by_listener_takes_a_listener_as_one_observation():
    """Four listeners who all prefer one system on every item are many ratings, but only four observations."""
    preferred = {"a": 9.0, "b": 8.0, "c": 7.0, "d": 6.0}
    rows = [rating(who, str(item), "one", 50 + by + item % 3) for who, by in preferred.items() for item in range(10)]
    rows += [rating(who, str(item), "two", 50) for who in preferred for item in range(10)]
    (row,) = differences(tabulate(rows), resamples=400)
    assert row.p < 0.01 and row.p_listeners == pytest.approx(2 / 16)


def test_an_interval_of_one_listener_or_one_item_or_one_score():
    scores = np.random.default_rng(3).normal(50, 10, 30)
    across, along = mean_interval(scores[None]), mean_interval(scores[:, None])
    for interval in (across, along):
        half = 1.96 * scores.std(ddof=1) / math.sqrt(30)
        np.testing.assert_allclose(interval, [scores.mean(), scores.mean() - half, scores.mean() + half], atol=0.4)
    one = mean_interval(np.array([[7.0, math.nan]]))
    assert one.estimate == 7 and math.isnan(one.low)
    assert all(math.isnan(v) for v in mean_interval(np.full((2, 2), math.nan)))
    assert mean_interval(np.full((3, 2), 5.0)) == (5.0, 5.0, 5.0)


def test_bimodality_knows_one_peak_from_two():
    rng = np.random.default_rng(4)
    assert bimodality(rng.uniform(0, 1, 50_000)) == pytest.approx(BIMODAL, abs=0.01)
    assert bimodality(rng.normal(0, 1, 50_000)) == pytest.approx(1 / 3, abs=0.01)
    assert bimodality(np.r_[rng.normal(20, 3, 40), rng.normal(80, 3, 40)]) > 0.8
    assert math.isnan(bimodality([1, 2, 3])) and math.isnan(bimodality([2.0] * 9))


def test_pairs_are_turned_to_one_order_and_shares_are_exact():
    rows = [rating(str(i), system="a>b", score=s) for i, s in enumerate([1, 1, 1, 1, 1, 1, 0, -1])]
    rows += [rating("8", system="b>a", score=-2), rating("9", system="reference>c", score=1)]
    assert [r.score for r in oriented(rows)][-2:] == [2, -1] and oriented(rows)[-1].system == "c>reference"
    ab, _ = preference_shares(rows)
    assert (ab.name, ab.chosen, ab.decided, ab.ties) == ("a>b", 7, 8, 1)
    assert ab.p == pytest.approx(2 * (1 + 8) / 2**8)
    assert ab.share.low < 7 / 8 == ab.share.estimate < ab.share.high
    first, _ = pair_scores(rows)
    assert (first.first, first.second) == ("a", "b") and first.difference.estimate == pytest.approx(7 / 9)


def test_abx_is_a_one_sided_binomial_test():
    rows = [rating("anna" if i % 2 else "bert", system="ours", score=i < 12, order=i) for i in range(16)]
    (row,) = abx_shares(rows)
    assert (row.chosen, row.decided) == (12, 16)
    assert row.p == pytest.approx(sum(math.comb(16, k) for k in range(12, 17)) / 2**16)
    assert [(r.name, r.chosen, r.decided) for r in abx_shares(rows, by_listener=True)] == [
        ("anna", 6, 8),
        ("bert", 6, 8),
    ]
    (guessing,) = abx_shares([r._replace(score=1 - r.score) for r in rows])
    assert guessing.p > 0.95  # more wrong than by guessing is no evidence of hearing


def test_the_mixed_model_is_the_analysis_of_variance_of_a_balanced_table():
    pytest.importorskip("statsmodels")
    table = tabulate(panel(7, listeners=10, careless=0, items=6))
    model = mixed_model(table)
    y = table.scores
    means = y.mean((1, 2))
    assert model.baseline == REFERENCE
    for system, mean in zip(table.systems[1:], means[1:], strict=True):
        effect = model.effects[system]
        assert (
            effect.estimate == pytest.approx(mean - means[0], abs=1e-4) and effect.low < mean - means[0] < effect.high
        )
    systems, listeners, items = y.shape
    by_listener, by_item = y.mean((0, 2)), y.mean((0, 1))
    fitted = means[:, None, None] + by_listener[:, None] + by_item - 2 * y.mean()
    freedom = y.size - (systems - 1) - (listeners - 1) - (items - 1) - 1
    residual = ((y - fitted) ** 2).sum() / freedom
    assert model.residual_deviation == pytest.approx(math.sqrt(residual), rel=0.01)
    between = by_listener.var(ddof=1) - residual / (systems * items)
    assert model.listener_deviation == pytest.approx(math.sqrt(between), rel=0.02)
    with pytest.raises(ValueError, match="at least 2 systems, listeners and items, got 1, 1 and 1"):
        mixed_model(tabulate([rating()]))


def test_without_statsmodels_the_report_says_what_was_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    report = listening_report(panel(0, listeners=6, careless=0, items=3), "mushra", resamples=100)
    assert report.facts["mixed_model"] is None
    (note,) = (note for note in report.facts["notes"] if "mixed" in note)
    assert note == (
        "The mixed-effects model was left out: it needs statsmodels; install it by pip install 'jaxdiff[eval]'."
    )


def test_webmushra_s_columns_and_units():
    rows = [rating('a,"b"\nc', system=REFERENCE, score=97.5, seconds=1.25), rating("=1+1", repeated=True, score=-2)]
    text = webmushra_csv(rows, "my test", comments={("of =1+1", "one"): "@home"})
    lines = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0] == (
        "session_test_id,listener,session_uuid,trial_id,rating_stimulus,rating_score,rating_time,rating_comment"
    )
    assert list(lines[0].values()) == ["my test", 'a,"b"\nc', 'of a,"b"\nc', "one", "reference", "97.5", "1250", ""]
    assert list(lines[1].values()) == ["my test", "'=1+1", "of =1+1", "one_repeat", "ours", "-2", "10000", "'@home"]


class Page(HTMLParser):
    """What a browser would find in a page: its tags, their attributes, and its text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def rows_of(kind, listeners=4, items=3, seed=0):
    rng = np.random.default_rng(seed)
    scores = {
        "mushra": lambda: rng.uniform(0, 100),
        "mos": lambda: rng.integers(1, 6),
        "cmos": lambda: rng.integers(-3, 4),
        "abx": lambda: rng.integers(0, 2),
        "preference": lambda: rng.integers(-1, 2),
    }
    systems = ["ours>theirs", "ours>old"] if kind in ("cmos", "preference") else ["ours", "theirs", REFERENCE]
    systems += [MID_ANCHOR] if kind == "mushra" else []
    systems += ["ours>old"] if kind == "abx" else []
    for who, item, system in itertools.product(range(listeners), range(items), systems):
        yield rating(f"listener {who}", f"item {item}", system, scores[kind]())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("listeners", "items"), [(4, 3), (1, 3), (4, 1), (1, 1), (0, 0)])
def test_every_kind_and_every_small_panel_has_a_page(kind, listeners, items):
    report = listening_report(rows_of(kind, listeners, items), kind, resamples=50)
    facts = json.loads(json.dumps(report.facts, allow_nan=False))
    assert facts == report.facts and facts["kind"] == kind
    page = Page(report.html)
    notes = " ".join(facts["notes"])
    if not listeners:
        assert facts["notes"] == ["There are no ratings yet, so there is nothing to report."]
        assert "nothing to report" in page.text and "svg" not in page.tags
    kept = [row["listener"] for row in facts["listeners"] if row["kept"]]
    assert ("There is one listener" in notes) == (len(kept) == 1)
    assert ("There is one item" in notes) == (items == 1 and bool(kept))
    assert ("svg" in page.tags) == bool(kept)
    assert ("ours or old" in page.text) == (kind == "abx" and bool(kept))


def test_a_panel_that_is_left_out_altogether_says_so():
    rows = [r._replace(score=10.0) for r in rows_of("mushra")]
    report = listening_report(rows, "mushra")
    assert "All listeners were left out by the screening, so there are no results." in report.facts["notes"]
    assert report.facts["systems"] == [] and "below 90 on 3 of 3 items" in report.html


def test_the_report_shows_the_screened_panel_and_its_numbers():
    report = listening_report(panel(0), "mushra", title="Vocoders", resamples=200)
    text = Page(report.html).text
    for shown in ("Vocoders", "17 of 20", "left out: rated the hidden reference below 90 on", "7 kHz anchor", "item 7"):
        assert shown in text
    systems = [row["system"] for row in report.facts["systems"]]
    assert systems == [REFERENCE, "good", "fair", MID_ANCHOR, "poor", LOW_ANCHOR]
    assert all(row["difference"]["low"] > 0 for row in report.facts["differences"])  # the better one stands first
    assert f"{report.facts['systems'][1]['mean']['estimate']:.1f}" in text
    effects, counts = zip(*report.facts["needed"], strict=True)
    assert effects == (3.0, 5.0, 10.0) and sorted(counts, reverse=True) == list(counts)
    assert listening_report(panel(0), "mushra", title="Vocoders", resamples=200) == report


HOSTILE = "$\\frac{a$<script>alert('x')</script><img src=x onerror=\"alert(1)\"> & --> \u202e\x00"


@pytest.mark.parametrize("kind", KINDS)
def test_a_script_in_a_name_is_text(kind):
    rows = [r._replace(listener=HOSTILE + r.listener, item=HOSTILE + r.item) for r in rows_of(kind)]
    pair = kind in ("cmos", "preference")
    rows = [r if pair else r._replace(system=r.system.replace("ours", HOSTILE)) for r in rows]
    if kind == "mushra":
        rows += [rating("l", system=s, score=100 * (s == REFERENCE)) for s in (REFERENCE, MID_ANCHOR)]
    report = listening_report(rows, kind, title=HOSTILE, resamples=50)
    page = Page(report.html)
    assert not page.tags & {"script", "img", "iframe", "object", "link", "foreignobject"}
    assert not any(name.startswith("on") or name in ("src", "srcdoc") for name, _ in page.attributes)
    assert "<script>alert('x')</script>" in page.text  # as letters
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in report.html
    assert "\x00" not in report.html and "\u202e" not in report.html
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def test_the_page_needs_nothing_from_elsewhere():
    report = listening_report(panel(0, listeners=6, careless=0), "mushra", resamples=50)
    page = Page(report.html)
    links = [value for name, value in page.attributes if name in ("href", "xlink:href", "src")]
    links += re.findall(r"url\(([^)]*)\)", report.html)
    assert links and all(link.startswith("#") for link in links)
    assert "currentColor" in report.html and "prefers-color-scheme: dark" in report.html
    assert "#010203" not in report.html and "@import" not in report.html


def test_notes_name_what_a_reader_must_know():
    rows = [rating("anna", session="s1"), rating("anna", item="two", session="s2"), rating(score=math.nan)]
    rows += [rating("bert", item="bell", system=TRAP, score=1)]
    notes = listening_report(rows, "mos", resamples=50).facts["notes"]
    assert "1 rating had no finite score and went into nothing." in notes
    assert "2 sessions bear the pseudonym anna; they are taken for one listener." in notes
    assert "No right score is known for the trap and gold clips bell; they check nothing." in notes
    facts = listening_report([rating(score=math.nan)], "mos").facts
    assert facts["notes"] == ["1 rating had no finite score and went into nothing."] and facts["systems"] == []
    notes = listening_report([rating(), rating("bert")], "mushra", resamples=50).facts["notes"]
    assert "Nobody rated the hidden reference, so the panel was not screened by it." in notes
    two_peaks = [rating(str(i), str(i % 2), score=10 if i % 4 < 2 else 90) for i in range(24)]
    notes = " ".join(listening_report(two_peaks, "mushra", resamples=50).facts["notes"])
    assert "The scores of ours may have two peaks" in notes


def test_an_unknown_kind_is_refused_and_other_kinds_keep_everybody():
    with pytest.raises(ValueError, match="kind: expected one of mushra, mos, cmos, abx, preference, got 'mushroom'"):
        listening_report([], "mushroom")  # pyright: ignore[reportArgumentType]
    assert screen([rating(score=0)], "abx") == (("anna",), {}, ())
