"""`jaxdiff listen`: a listening test from folders of systems, taken in a browser, and what its listeners said."""

import contextlib
import csv
import io
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from annotated_types import Interval

from jaxdiff import ranges


@dataclass(frozen=True)
class Make:
    """Make a listening test: excerpts of equal loudness under blind names, from folders of files of the same names."""

    config: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG.yaml")]
    """YAML with kind, systems, reference, excerpts, anchors, repeats, traps, gold, loudness, seed, title, instructions,
    question, questions"""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """a new folder for the test"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        from jaxdiff.data.files import expand
        from jaxdiff.evaluation.listening.design import read_design
        from jaxdiff.evaluation.listening.make import make_test

        design = read_design(expand(self.config))
        made = make_test(design, expand(self.out))
        quiet = f", {made.quietest:.1f} where peaks allow no more" if made.quietest < design.loudness - 0.05 else ""
        known = f" ({made.traps} traps and {made.gold} gold clips among them)" if made.traps + made.gold else ""
        print(
            f"{self.out}: a {design.kind} test of {made.screens} screens{known}, {made.sounds} sounds of "
            f"{design.loudness:.1f} LUFS{quiet}; to go on:\n  jaxdiff listen serve {shlex.quote(str(self.out))}"
        )
        return 0


@dataclass(frozen=True)
class Serve:
    """Let people take the test in a browser: ratings are saved at once and restored when the page is opened again."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """folder of a test that `listen make` made"""
    host: str = "127.0.0.1"
    """address to listen at; elsewhere than here (0.0.0.0: everywhere) listeners need the token. Nothing is encrypted"""
    port: Annotated[int, Interval(ge=0, le=65_535)] = 8008
    """port to listen at, 0 is any free one"""
    token: str | None = None
    """secret that listeners need, part of the address that you give them (elsewhere than here a new one each time)"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        from jaxdiff.data.files import expand
        from jaxdiff.evaluation.listening.serve import serve

        serve(expand(self.folder), self.host, self.port, token=self.token, say=lambda line: print(line, flush=True))
        return 0


@dataclass(frozen=True)
class Report:
    """Screen the listeners and compare the systems: report.html, report.json and ratings.csv beside the test.

    Where questions were asked at the end, answers.csv holds the answers.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """folder of a test that was served"""
    unfinished: bool = False
    """count the ratings of sessions that were not finished too"""
    webmushra: bool = False
    """write webmushra.csv too, in the form of webMUSHRA's results"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        from jaxdiff.data.files import atomic, expand
        from jaxdiff.evaluation.listening.panel import Rating, webmushra_csv
        from jaxdiff.evaluation.listening.plan import load_test
        from jaxdiff.evaluation.listening.report import listening_report
        from jaxdiff.evaluation.listening.store import DATABASE, Store

        folder = expand(self.folder)
        test = load_test(folder)
        if not (folder / DATABASE).is_file():
            raise ValueError(f"{folder}: nobody has taken this test; jaxdiff listen serve {folder} lets people in")
        with contextlib.closing(Store(folder / DATABASE)) as store:
            sessions = store.sessions(finished_only=not self.unfinished)
        ratings = test.ratings(sessions)
        title = test.public["title"]
        report = listening_report(ratings, test.kind, title=title, expected=test.expected, durations=test.seconds)
        texts = {
            "report.html": report.html,
            "report.json": json.dumps(report.facts, indent=1, ensure_ascii=False),
            "ratings.csv": _table(Rating._fields, ratings),
        }
        if test.public["questions"]:
            rows = [(test.code(s.session), s.listener, *choice) for s in sessions for choice in s.choices.items()]
            texts["answers.csv"] = _table(("session", "listener", "question", "choice"), rows)
        if self.webmushra:
            texts["webmushra.csv"] = webmushra_csv(ratings, title)
        for name, text in texts.items():
            with atomic(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        print(
            f"{folder / 'report.html'}: {len(ratings)} ratings of {len(sessions)} sessions; {', '.join(texts)} written"
        )
        return 0


@dataclass(frozen=True)
class Listen:
    """Make a listening test (MUSHRA, MOS, CMOS, ABX, preference), let people take it in a browser, report on it."""

    action: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Make, tyro.conf.subcommand("make", prefix_name=False)]
        | Annotated[Serve, tyro.conf.subcommand("serve", prefix_name=False)]
        | Annotated[Report, tyro.conf.subcommand("report", prefix_name=False)]
    ]

    @property
    def debug(self) -> bool:
        return self.action.debug

    def run(self) -> int:
        ranges.check_fields(self.action, lambda name: f"--{name}")
        return self.action.run()


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file; a text that a spreadsheet would run as a formula has an apostrophe before it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            [f"'{v}" if isinstance(v, str) and v.startswith(("=", "+", "-", "@", "\t")) else v for v in row]
        )
    return file.getvalue()
