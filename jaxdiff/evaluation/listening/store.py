"""The answers of listeners, kept in one SQLite file: every answer is on the disk when its request is answered.

A session is known by a random name of its own that its browser made, so that asking twice begins one session. An
answer carries the number of the change, which grows in the browser: of answers that arrive twice or in another order
the latest change stays. A page that was left, and a session that was finished, change no more.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DATABASE = "ratings.sqlite"
MOST_SESSIONS = 10_000
_TABLES = """
CREATE TABLE IF NOT EXISTS sessions (
    session TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, listener TEXT NOT NULL, began REAL NOT NULL,
    finished REAL);
CREATE TABLE IF NOT EXISTS answers (
    session TEXT NOT NULL REFERENCES sessions, page TEXT NOT NULL, sound TEXT NOT NULL, value INTEGER NOT NULL,
    seconds REAL NOT NULL, change INTEGER NOT NULL, PRIMARY KEY (session, page, sound));
CREATE TABLE IF NOT EXISTS pages (
    session TEXT NOT NULL REFERENCES sessions, page TEXT NOT NULL, seconds REAL NOT NULL, left REAL NOT NULL,
    PRIMARY KEY (session, page));
CREATE TABLE IF NOT EXISTS choices (
    session TEXT NOT NULL REFERENCES sessions, question TEXT NOT NULL, choice TEXT NOT NULL,
    PRIMARY KEY (session, question));
"""


class Answer(NamedTuple):
    """The value given for a sound, the seconds from the page's opening to it, and the number of the change."""

    value: int
    seconds: float
    change: int = 0


class Session(NamedTuple):
    """Everything that is known of a session; `answers` by page and sound, `left` the seconds of the pages left."""

    session: str
    number: int
    listener: str
    answers: dict[tuple[str, str], Answer]
    left: dict[str, float]
    choices: dict[str, str]
    finished: bool


class Closed(Exception):
    """An answer for a page that was left or a session that was finished."""


class Full(Exception):
    """A session beyond the number of those that are kept."""


class Store:
    """The database of a test; use it in one thread, and in as many processes as you like."""

    def __init__(self, path: Path):
        self._db = sqlite3.connect(path, timeout=10.0, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("PRAGMA foreign_keys=ON")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def begin(self, session: str, listener: str) -> None:
        """Begin a session; one that has begun stays as it is. Raises Full where there are too many."""
        with self._changing() as db:
            if db.execute("SELECT 1 FROM sessions WHERE session = ?", (session,)).fetchone():
                return
            (number,) = db.execute("SELECT count(*) FROM sessions").fetchone()
            if number >= MOST_SESSIONS:
                raise Full
            row = (session, number, listener, time.time())
            db.execute("INSERT INTO sessions (session, number, listener, began) VALUES (?, ?, ?, ?)", row)

    def answer(self, session: str, page: str, answers: Mapping[str, Answer]) -> None:
        """Keep answers by sound, each unless a later change of it is there; raises Closed where the page was left."""
        with self._changing() as db:
            if self._is_left(db, session, page):
                raise Closed
            self._keep(db, session, page, answers)

    def leave(self, session: str, page: str, answers: Mapping[str, Answer], seconds: float) -> None:
        """Keep the last answers of a page and close it; a page that is closed stays as it is."""
        with self._changing() as db:
            if self._is_left(db, session, page):
                return
            self._keep(db, session, page, answers)
            db.execute("INSERT INTO pages VALUES (?, ?, ?, ?)", (session, page, seconds, time.time()))

    def finish(self, session: str, choices: Mapping[str, str]) -> bool:
        """Close a session with its answers to the questions; whether it was open."""
        with self._changing() as db:
            if db.execute("SELECT 1 FROM sessions WHERE session = ? AND finished IS NOT NULL", (session,)).fetchone():
                return False
            db.executemany("INSERT INTO choices VALUES (?, ?, ?)", [(session, q, c) for q, c in choices.items()])
            db.execute("UPDATE sessions SET finished = ? WHERE session = ?", (time.time(), session))
            return True

    @staticmethod
    def _is_left(db: sqlite3.Connection, session: str, page: str) -> bool:
        return db.execute("SELECT 1 FROM pages WHERE session = ? AND page = ?", (session, page)).fetchone() is not None

    @staticmethod
    def _keep(db: sqlite3.Connection, session: str, page: str, answers: Mapping[str, Answer]) -> None:
        db.executemany(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (session, page, sound) DO UPDATE SET "
            "value = excluded.value, seconds = excluded.seconds, change = excluded.change "
            "WHERE excluded.change > answers.change",
            [(session, page, sound, answer.value, answer.seconds, answer.change) for sound, answer in answers.items()],
        )

    def session(self, session: str) -> Session | None:
        """One session, or None where it never began."""
        found = self._sessions("WHERE session = ?", (session,))
        return found[0] if found else None

    def sessions(self, finished_only: bool = False) -> list[Session]:
        """All sessions in the order in which they began."""
        return self._sessions("WHERE finished IS NOT NULL" if finished_only else "", ())

    def finished(self) -> int:
        """The number of finished sessions."""
        return self._db.execute("SELECT count(*) FROM sessions WHERE finished IS NOT NULL").fetchone()[0]

    def _sessions(self, where: str, values: Sequence[Any]) -> list[Session]:
        rows = self._db.execute(
            f"SELECT session, number, listener, finished FROM sessions {where} ORDER BY number", values
        ).fetchall()
        found = []
        for session, number, listener, finished in rows:
            read = lambda sql, session=session: self._db.execute(sql, (session,)).fetchall()  # noqa: E731
            answers = read("SELECT page, sound, value, seconds, change FROM answers WHERE session = ?")
            left = read("SELECT page, seconds FROM pages WHERE session = ?")
            choices = read("SELECT question, choice FROM choices WHERE session = ?")
            by_sound = {(page, sound): Answer(*answer) for page, sound, *answer in answers}
            found.append(Session(session, number, listener, by_sound, dict(left), dict(choices), finished is not None))
        return found
