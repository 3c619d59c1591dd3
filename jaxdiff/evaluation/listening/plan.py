"""The plan of a session, and the meaning of its answers: pages in order, sounds in order, scores by system.

A session has a number, from 0, from which its orders follow (`orders.py`): nothing needs to be stored but the answers.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .design import DesignError
from .make import FORMAT, KEY, SOUNDS, TEST
from .orders import balanced_order, interspersed
from .panel import Kind, Rating
from .store import Session


class Page(NamedTuple):
    """A screen as a session sees it.

    `sounds` stand in their order; `open` is a sound that is known for what it is, the reference or the X of an ABX
    test; `rated` are those that take a score, one for the whole page where two are compared.
    """

    page: str
    training: bool
    sounds: tuple[str, ...]
    open: str | None
    rated: tuple[str, ...]

    @property
    def heard(self) -> frozenset[str]:
        """The sounds that must have been heard before the page can be left."""
        return frozenset(self.sounds) | ({self.open} if self.open else set())


@dataclass(frozen=True)
class ListeningTest:
    """A listening test: its public part, its key, and its sound files by blind name."""

    public: Mapping[str, Any]
    key: Mapping[str, Any]
    sounds: Mapping[str, Path]

    @property
    def kind(self) -> Kind:
        return self.public["kind"]

    @cached_property
    def values(self) -> frozenset[int]:
        """The scores that can be given."""
        return frozenset(range(101)) if self.kind == "mushra" else frozenset(value for value, _ in self.public["scale"])

    def code(self, session: str) -> str:
        """The name of a session in the results, which its listener gets as completion code at the end."""
        return hmac.new(self.key["secret"].encode(), session.encode(), hashlib.sha256).hexdigest()[:10].upper()

    @cached_property
    def seconds(self) -> dict[str, float]:
        """How long the excerpts are, by item."""
        return {page["item"]: page["seconds"] for page in self.key["pages"]}

    @cached_property
    def expected(self) -> dict[str, float]:
        """The scores that are right, by item: those of the trap and gold clips."""
        return {page["item"]: float(page["expected"]) for page in self.key["pages"] if "expected" in page}

    def plan(self, number: int) -> list[Page]:
        """The pages of the session of that number: the training first, the others in a balanced order, and the trap and
        gold clips among them."""
        pages, seed = self.key["pages"], self.key["seed"]
        training = [i for i, page in enumerate(pages) if page["training"]]
        checks = [i for i, page in enumerate(pages) if "expected" in page]
        others = [i for i in range(len(pages)) if i not in training and i not in checks]
        ordered = [others[k] for k in balanced_order(len(others), number, (seed, 1))]
        return [self._page(i, number) for i in training + interspersed(ordered, checks, number, (seed, 4))]

    def _page(self, index: int, number: int) -> Page:
        page, seed = self.key["pages"][index], self.key["seed"]
        sounds, opened = list(page["sounds"]), list(page["open"])
        ordered = tuple(sounds[k] for k in balanced_order(len(sounds), number, (seed, 2, index)))
        known = opened[balanced_order(len(opened), number // len(sounds), (seed, 3, index))[0]] if opened else None
        rated = {"abx": (known,), "cmos": ordered[1:], "preference": ordered[1:]}.get(self.kind, ordered)
        return Page(page["page"], page["training"], ordered, known, rated)

    def ratings(self, sessions: Iterable[Session]) -> list[Rating]:
        """The ratings of sessions as rows by system, in the order of their pages; those of the training are none."""
        keys = {page["page"]: page for page in self.key["pages"]}
        rows = []
        for session in sessions:
            seen: set[tuple[str, str]] = set()
            for place, page in enumerate(self.plan(session.number)):
                key = keys[page.page]
                if page.training:
                    continue
                for sound in page.rated:
                    answer = session.answers.get((page.page, sound))
                    if answer is None:
                        continue
                    system, score = self._score(page, key, sound, answer.value)
                    repeated = (key["item"], system) in seen
                    seen.add((key["item"], system))
                    row = (
                        self.code(session.session),
                        session.listener,
                        page.page,
                        key["item"],
                        system,
                        score,
                        answer.seconds,
                    )
                    rows.append(Rating(*row, order=place, repeated=repeated))
        return rows

    def _score(self, page: Page, key: Mapping[str, Any], sound: str, value: int) -> tuple[str, float]:
        """The system, or the pair "a>b" of systems, that a value is about, and the score that it gives."""
        if self.kind in ("mushra", "mos"):
            return key["sounds"][sound], float(value)
        pair = ">".join(key["sounds"].values())
        if self.kind == "abx":
            return pair, float(key["sounds"][page.sounds[value]] == key["open"][sound])
        asked_about = list(key["sounds"])[0]
        return pair, float(value if page.sounds[1] == asked_about else -value)


def load_test(folder: Path) -> ListeningTest:
    """A test that `make_test` made; raises DesignError where the folder holds none."""
    parts = []
    for name in (TEST, KEY):
        path = folder / name
        try:
            part = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror
            raise DesignError(f"{path}: cannot be read ({reason}); give a folder that listen make made") from None
        except ValueError:
            raise DesignError(f"{path}: is damaged; make the test again") from None
        if not isinstance(part, dict) or part.get("format") != FORMAT:
            raise DesignError(f"{path}: is not of format {FORMAT}; make the test again with this jaxdiff")
        parts.append(part)
    public, key = parts
    sounds = {
        name: folder / SOUNDS / f"{name}.wav" for page in key["pages"] for name in [*page["sounds"], *page["open"]]
    }
    missing = [path for path in sounds.values() if not path.is_file()]
    if missing:
        raise DesignError(f"{missing[0]}: is missing; make the test again")
    return ListeningTest(public, key, sounds)
