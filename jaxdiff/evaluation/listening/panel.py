"""A panel of listeners: their ratings as rows and as a table, who is left out and why, and how well they agree.

Listeners are screened after the test and before anything is computed from their ratings: MUSHRA by ITU-R BS.1534-3
(section 4.1.2), MOS by the checks of ITU-T P.808. What is left out is always named with its reason.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["mushra", "mos", "cmos", "abx", "preference"]
KINDS: tuple[Kind, ...] = ("mushra", "mos", "cmos", "abx", "preference")

REFERENCE, LOW_ANCHOR, MID_ANCHOR = "reference", "anchor35", "anchor70"
TRAP, GOLD = "trap", "gold"  # MOS clips with a known right answer: one that says it, and one that anybody hears
_FORGIVEN = {TRAP: 0, GOLD: 1}  # how far beside the right score an answer may be
WEBMUSHRA_COLUMNS = (
    *("session_test_id", "listener", "session_uuid", "trial_id"),
    *("rating_stimulus", "rating_score", "rating_time", "rating_comment"),
)


class Rating(NamedTuple):
    """One answer of one listener.

    `listener` is a pseudonym that the listener chose, and may hold any text. `item` is the excerpt's name and `system`
    the condition that was heard: REFERENCE is the hidden reference, MID_ANCHOR and LOW_ANCHOR are the 7 and the 3.5 kHz
    anchor, and in a MOS test TRAP and GOLD are clips with a known right answer. In a CMOS or preference test `system`
    is a pair "a>b", and the score is above 0 where a is preferred. In an ABX test the score is 1 for a right answer and
    0 for a wrong one. `seconds` is the time from the page's opening to the rating, `order` the place of the page in its
    session, and `repeated` says that the listener had rated this system on this item before. Ratings of training pages
    are no rows.
    """

    session: str
    listener: str
    page: str
    item: str
    system: str
    score: float
    seconds: float
    order: int
    repeated: bool


class Table(NamedTuple):
    """Scores as an array [systems, listeners, items], NaN where there is none, and what its axes are."""

    systems: tuple[str, ...]
    listeners: tuple[str, ...]
    items: tuple[str, ...]
    scores: np.ndarray

    def of(self, system: str) -> np.ndarray:
        """The scores of a system, [listeners, items]; all are NaN for a system that nobody rated."""
        if system in self.systems:
            return self.scores[self.systems.index(system)]
        return np.full(self.scores.shape[1:], np.nan)


class Screening(NamedTuple):
    """Who is kept, who is left out with the reasons as sentences, and which items had no part in that."""

    kept: tuple[str, ...]
    excluded: dict[str, list[str]]
    uncounted_items: tuple[str, ...] = ()


class Agreement(NamedTuple):
    """How a listener rated again what was replicated: how often, how far apart on average, and on which side of 0.

    `same_side` is the share of answers that did not change sides; it says something for kinds of test with a side only.
    """

    listener: str
    repeats: int
    mean_difference: float
    same_side: float


def listener_of(rating: Rating) -> str:
    """Who gave a rating: the pseudonym, or the session of a listener who chose none."""
    return rating.listener or rating.session


def first_ratings(ratings: Iterable[Rating]) -> list[Rating]:
    """The ratings that count for results: neither replications, which show agreement only, nor clips of a check."""
    return [r for r in ratings if not r.repeated and r.system not in (TRAP, GOLD) and math.isfinite(r.score)]


def tabulate(ratings: Iterable[Rating]) -> Table:
    """The table of the ratings that count. What one listener rated more than once stands in it by its mean.

    Systems and items are sorted by name; the reference comes first and the anchors come last. Listeners are sorted too.
    """
    rows = first_ratings(ratings)
    systems = sorted({r.system for r in rows}, key=_place)
    listeners = sorted({listener_of(r) for r in rows})
    items = sorted({r.item for r in rows})
    system_index, listener_index, item_index = (
        {name: index for index, name in enumerate(names)} for names in (systems, listeners, items)
    )
    sums = np.zeros((len(systems), len(listeners), len(items)))
    counts = np.zeros_like(sums)
    for r in rows:
        cell = system_index[r.system], listener_index[listener_of(r)], item_index[r.item]
        sums[cell] += r.score
        counts[cell] += 1
    scores = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return Table(tuple(systems), tuple(listeners), tuple(items), scores)


def _place(system: str) -> tuple[int, str]:
    """Where a system stands in tables: the reference first, the anchors last, the others by name."""
    places = {REFERENCE: 0, MID_ANCHOR: 2, LOW_ANCHOR: 3}
    return places.get(system, 1), system


def missed(rating: Rating, expected: Mapping[str, float]) -> bool:
    """Whether a rating of a trap or gold clip is wrong: not the score that a trap asks for, or over 1 from gold's."""
    known = rating.system in _FORGIVEN and rating.item in expected
    return known and abs(rating.score - expected[rating.item]) > _FORGIVEN[rating.system]


def screen(
    ratings: Sequence[Rating],
    kind: Kind,
    *,
    expected: Mapping[str, float] | None = None,
    durations: Mapping[str, float] | None = None,
) -> Screening:
    """Who is kept, by the rules of the kind of test. Kinds without such rules (CMOS, ABX, preference) keep everybody.

    `expected` and `durations` are those of `screen_mos`.
    """
    if kind == "mushra":
        return screen_mushra(ratings)
    if kind == "mos":
        return screen_mos(ratings, expected=expected, durations=durations)
    return Screening(kept=tuple(sorted({listener_of(r) for r in ratings})), excluded={})


def screen_mushra(ratings: Iterable[Rating]) -> Screening:
    """The post-screening of a MUSHRA panel (ITU-R BS.1534-3, section 4.1.2).

    A listener is left out who rates the hidden reference below 90 on more than 15 % of the items, or the mid anchor
    above 90 on more than 15 % of them. Where more than 25 % of the listeners rate an item's mid anchor above 90, the
    item was hardly degraded by the anchor's filter, and nobody is left out because of it: the item is not counted. One
    of three listeners is more than 25 %, so a panel of up to three leaves nobody out by the anchor.
    """
    table = tabulate(ratings)
    reference, anchor = table.of(REFERENCE), table.of(MID_ANCHOR)
    anchor_high = anchor > 90  # False where there is no rating
    uncounted = 100 * anchor_high.sum(0) > 25 * (~np.isnan(anchor)).sum(0)
    faults = (
        ("the hidden reference below 90", (reference < 90)[:, ~uncounted], reference[:, ~uncounted]),
        ("the mid anchor above 90", anchor_high[:, ~uncounted], anchor[:, ~uncounted]),
    )
    excluded: dict[str, list[str]] = {}
    for fault, found, scores in faults:
        for listener, wrong, rated in zip(table.listeners, found.sum(1), (~np.isnan(scores)).sum(1), strict=True):
            if 100 * wrong > 15 * rated:
                sentence = f"rated {fault} on {wrong} of {_items(rated)}, which is more than 15 %"
                excluded.setdefault(listener, []).append(sentence)
    return Screening(
        kept=tuple(name for name in table.listeners if name not in excluded),
        excluded=excluded,
        uncounted_items=tuple(item for item, out in zip(table.items, uncounted, strict=True) if out),
    )


def screen_mos(
    ratings: Iterable[Rating],
    *,
    expected: Mapping[str, float] | None = None,
    durations: Mapping[str, float] | None = None,
) -> Screening:
    """The checks of a MOS panel, after ITU-T P.808 and its open implementation (Naderi & Cutler 2020).

    A listener is left out who answered a trap clip with another score than the one it asks for, missed a gold clip's
    score by more than 1, answered before a clip could have been played to its end, or whose votes have a variance below
    0.1, which is what the same answer to everything gives. `expected` names the right score of each trap and gold item;
    one that it does not name is not checked. `durations` are the items' lengths in seconds; without them nothing is
    said about the playing.
    """
    expected, durations = expected or {}, durations or {}
    reasons: dict[str, list[str]] = {}
    rows = list(ratings)
    for listener in sorted({listener_of(r) for r in rows}):
        own = [r for r in rows if listener_of(r) == listener]
        traps, golds = (sum(r.system == kind and missed(r, expected) for r in own) for kind in (TRAP, GOLD))
        unplayed = sum(r.seconds < durations.get(r.item, 0.0) for r in own)
        votes = [r.score for r in first_ratings(own)]
        variance = float(np.var(votes, ddof=1)) if len(votes) > 1 else math.inf
        found = (
            (traps, f"answered {_clips(traps, 'trap')} with another score than the one that was asked for"),
            (golds, f"missed the known score of {_clips(golds, 'gold')} by more than 1"),
            (unplayed, f"answered {_clips(unplayed)} before the end could have been heard"),
            (variance < 0.1 - 1e-9, f"gave nearly the same score to everything (variance {variance:.2g}, below 0.1)"),
        )
        reasons[listener] = [sentence for wrong, sentence in found if wrong]
    return Screening(
        kept=tuple(name for name, found in reasons.items() if not found),
        excluded={name: found for name, found in reasons.items() if found},
    )


def kept_ratings(ratings: Iterable[Rating], screening: Screening) -> list[Rating]:
    """The ratings of the listeners who are kept."""
    kept = set(screening.kept)
    return [r for r in ratings if listener_of(r) in kept]


def outliers(ratings: Iterable[Rating]) -> list[Rating]:
    """Ratings further than 1.5 interquartile ranges outside the quartiles of their system and item, over listeners.

    BS.1534-3 asks that they be looked at; they are reported here, and stay in the results.
    """
    groups: dict[tuple[str, str], list[Rating]] = {}
    for r in first_ratings(ratings):
        groups.setdefault((r.system, r.item), []).append(r)
    found = []
    for group in groups.values():
        lower, upper = np.quantile([r.score for r in group], [0.25, 0.75])
        reach = 1.5 * (upper - lower)
        found += [r for r in group if not lower - reach <= r.score <= upper + reach]
    return found


def agreement(ratings: Iterable[Rating]) -> list[Agreement]:
    """How each listener who rated something again agrees with the first time; listeners without are not listed."""
    rows = [r for r in ratings if math.isfinite(r.score)]
    first = {(listener_of(r), r.session, r.item, r.system): r.score for r in rows if not r.repeated}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        before = first.get((listener_of(r), r.session, r.item, r.system))
        if r.repeated and before is not None:
            pairs.setdefault(listener_of(r), []).append((before, r.score))
    return [
        Agreement(
            listener=listener,
            repeats=len(both),
            mean_difference=float(np.mean([abs(a - b) for a, b in both])),
            same_side=float(np.mean([np.sign(a) == np.sign(b) for a, b in both])),
        )
        for listener, both in sorted(pairs.items())
    ]


def webmushra_csv(
    ratings: Iterable[Rating], test: str = "jaxdiff", *, comments: Mapping[tuple[str, str], str] | None = None
) -> str:
    """The ratings as the CSV file that webMUSHRA writes for MUSHRA pages, with the pseudonym as the one question asked.

    The time is in milliseconds, as there. The trial is the item, with "_repeat" where the listener rated it again.
    `comments` maps (session, page) to what the listener wrote. A text that a spreadsheet would run as a formula has an
    apostrophe before it.
    """
    comments = comments or {}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(WEBMUSHRA_COLUMNS)
    for r in ratings:
        texts = [test, r.listener, r.session, r.item + ("_repeat" if r.repeated else ""), r.system]
        comment = comments.get((r.session, r.page), "")
        numbers = [f"{r.score:g}", f"{1000 * r.seconds:.0f}"]
        writer.writerow([*map(_no_formula, texts), *numbers, _no_formula(comment)])
    return file.getvalue()


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _items(count: int) -> str:
    return f"{count} item" if count == 1 else f"{count} items"


def _clips(count: int, kind: str = "") -> str:
    name = f"{kind} clip".strip()
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
