"""`jaxdiff evaluate`: how good systems are, as a table, and for each file."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from jaxdiff import ranges

from . import files

if TYPE_CHECKING:
    from jaxdiff.evaluation import Scores

LISTED = 8  # problems on the screen
COMPARED = 40  # comparisons on the screen
PIPED = 160  # columns where the output is no terminal


@dataclass(frozen=True)
class Evaluate:
    """Score the sounds of systems against references of the same names: a table with 95 % intervals on the screen, and
    with --out scores of each file as CSV, everything as JSON, a table for a paper in Markdown and a picture. The first
    folder has the references; one folder alone is scored by measures that need none. With several systems every two are
    compared. What does not fit is listed and the rest is done; the exit code is 1 then."""

    folders: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="REFERENCE_DIR OUTPUT_DIR [OUTPUT_DIR ...]")
    ] = ()
    """folders of sounds, or one sound file each"""
    metrics: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """measures (see --list); default and all stand for several"""
    out: Path | None = None
    """folder for scores.csv, scores.json, scores.md and scores.png; made when absent"""
    names: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """how the systems are called, one name for each (those of the folders)"""
    reference_free: bool = False
    """all folders are systems, none has references"""
    rate: ranges.Rate | None = None
    """rate in Hz at which sounds are compared (that of each reference)"""
    transcripts: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder with a text NAME.txt for each file, the words that are said, for word_error_rate"""
    seed: ranges.Seed = 0
    """of the intervals"""
    sync: Annotated[Path | None, tyro.conf.arg(metavar="VIDEO|ONSETS")] = None
    """instead of measures, how well the sounds of the folders and files, all of them outputs, keep to the times of this
    one: the onsets of a video's or a sound's own sound, what is seen in a video without, a cue sheet or list of times
    (CSV), or a MIDI file; with --out as sync.csv and sync.json"""
    list: bool = False
    """list all measures with unit, better direction and what they need"""
    overwrite: bool = False
    """replace files that are there"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        if self.list:
            _list_measures()
            return 0
        folders = self.folders
        if self.sync is not None:
            return self._sync(self.sync)
        if not folders:
            mistaken = next((name for name in self.metrics if Path(name).exists()), None)
            if mistaken is not None:
                raise ValueError(f"--metrics {mistaken}: is a file or folder; give the folders before --metrics")
            raise ValueError("no folders: give that of the references and that of a system, or that of a system alone")
        reference = None if self.reference_free or len(folders) == 1 else folders[0]
        systems = folders if reference is None else folders[1:]
        if self.names and len(self.names) != len(systems):
            raise ValueError(f"--names: expected one for each of {len(systems)} systems, got {len(self.names)}")
        if len(set(self.names)) < len(self.names):
            raise ValueError("--names: two systems cannot have one name")
        from jaxdiff.evaluation.report import refuse_existing  # jax is imported from here on
        from jaxdiff.evaluation.scoring import Interrupted, evaluate

        if self.out is not None:
            refuse_existing(self.out, self.overwrite)
        named = dict(zip(self.names, systems, strict=True)) if self.names else systems
        interrupted = False
        with Progress(transient=True, disable=not sys.stderr.isatty(), console=_console(stderr=True)) as progress:
            task = progress.add_task("files", total=None)
            try:
                scores = evaluate(
                    reference,
                    named,
                    self.metrics or None,
                    rate=self.rate,
                    transcripts=self.transcripts,
                    seed=self.seed,
                    workers=min(8, os.cpu_count() or 1),
                    tell=lambda done, steps: progress.update(task, completed=done, total=steps),
                )
            except ModuleNotFoundError as error:  # which says what to install
                raise ValueError(str(error)) from None
            except Interrupted as stopped:
                scores, interrupted = stopped.scores, True
        if self.out is not None:
            scores.save(self.out, overwrite=self.overwrite)
        if interrupted:
            kept = f"; {len(scores.rows)} are in {self.out}" if self.out is not None else ""
            print(f"jaxdiff: interrupted before all files were scored{kept}", file=sys.stderr)
            return 130
        _print(scores)
        return 1 if scores.problems else 0

    def _sync(self, reference: Path) -> int:
        """The table of how well outputs keep to the times of a reference."""
        wrong = [name for name in ("metrics", "names", "reference_free", "rate", "transcripts") if getattr(self, name)]
        if wrong:
            raise ValueError(f"--{wrong[0].replace('_', '-')}: is not for --sync; leave one of them away")
        if not self.folders:
            raise ValueError("--sync: say what is to be scored, after it a folder of outputs or an output")
        from jaxdiff.data import AudioError
        from jaxdiff.evaluation.sync import SHIFTS
        from jaxdiff.inference.rhythm import events, outputs, save_kept, score

        results = [] if self.out is None else [self.out / "sync.csv", self.out / "sync.json"]
        files.refuse_existing(results, self.overwrite)
        with Progress(transient=True, disable=not sys.stderr.isatty(), console=_console(stderr=True)) as progress:
            task = progress.add_task("listening", total=None)
            wanted = events(reference)
            if not len(wanted.seconds):
                raise AudioError(f"{reference}: nothing is to be heard in it; give a cue sheet of when it is")
            found = outputs(self.folders)
            scores, problems = {}, []
            for i, path in enumerate(found):
                try:
                    scores[path] = score(wanted, path)
                except AudioError as error:
                    problems.append(str(error))
                progress.update(task, completed=i + 1, total=len(found))
        table = Table("output", box=None, pad_edge=False)
        heads = [
            "hits",
            "AP",
            "offset ms",
            "delay ms",
            "loudness",
            "shift ms",
            *(f"moved {1000 * s:g}" for s in SHIFTS),
        ]
        for head in heads:
            table.add_column(head, justify="right")
        for path, kept in scores.items():
            row = [f"{kept.hit_rate:.3f}", f"{kept.average_precision:.3f}"]
            row += [f"{1000 * kept.offset:.1f}", f"{1000 * kept.delay:+.1f}", f"{kept.loudness:.3f}"]
            row += [f"{1000 * value:+.1f}" for value in (kept.shift, *kept.recovered)]
            table.add_row(str(path), *(text.replace("+nan", "nan").replace("nan", "-") for text in row))
        _console().print(table)
        print(
            f"\n{len(wanted.seconds)} events of {reference}; hits and AP within 100 ms; moved: the shift that is found"
        )
        if self.out is not None:
            save_kept(self.out, reference, scores)
        for line in problems:
            print(f"jaxdiff: error: {line}", file=sys.stderr)
        return 1 if problems else 0


def _console(stderr: bool = False) -> Console:
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else PIPED
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def _print(scores: "Scores") -> None:
    from jaxdiff.evaluation.remarks import left_out
    from jaxdiff.evaluation.report import DIFFERENCE, by_metric, decimals, difference_rows, legend, one_line, shown

    console = _console()
    table = Table("measure", "better", "system", box=None, pad_edge=False)
    for head in ("mean", "95 % interval", "files"):
        table.add_column(head, justify="right")
    for metric, means in by_metric(scores).items():
        places = decimals(means)
        for i, mean in enumerate(means):
            name = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
            better = {True: "higher", False: "lower", None: ""}[metric.higher_is_better]
            value, interval = shown(mean, places)
            style = "bold green" if mean.best else ""
            table.add_row(
                *((name, better) if i == 0 else ("", "")),
                Text(one_line(mean.system), style),
                Text(f"{value}{'*' if mean.best else '~' if mean.tied else ' '}", style),
                interval,
                str(mean.files),
            )
    console.print(table)
    rows = difference_rows(scores)
    if 0 < len(rows) <= COMPARED:
        table = Table(box=None, pad_edge=False)
        for head in DIFFERENCE:
            table.add_column(head, justify="left" if head in ("measure", "systems", "better") else "right")
        for row in rows:
            table.add_row(*map(one_line, row))
        console.print()
        console.print(table)
    elif rows:
        console.print(f"\n{len(rows)} comparisons of systems: with --out they are in scores.md and scores.json")
    console.print()
    for note in [*legend(scores, "*", "~"), *scores.notes()]:
        console.print(one_line(note), soft_wrap=True)
    lines = left_out(scores)
    for line in lines[:LISTED]:
        print(f"jaxdiff: error: {one_line(line)}", file=sys.stderr)
    if len(lines) > LISTED:
        print(
            f"jaxdiff: error: and {len(lines) - LISTED} more; with --out all are in scores.md",
            file=sys.stderr,
        )


def _list_measures() -> None:
    from jaxdiff.evaluation.metrics import ALONE, DEFAULT, catalogue, installed

    table = Table("measure", "unit", "better", "reference", "needs", "default", box=None, pad_edge=False)
    for name, metric in catalogue().items():
        needs = f"{metric.package}{'' if installed(metric.package) else ' (not installed)'}" if metric.package else ""
        reference = {"set": "a set"}.get(metric.kind, "yes") if metric.needs_reference else "no"
        default = "yes" if name in DEFAULT else "alone" if name in ALONE else ""
        better = {True: "higher", False: "lower", None: "neither"}[metric.higher_is_better]
        table.add_row(name, metric.unit, better, reference, needs, default)
    console = _console()
    console.print(table)
    console.print(
        "\nPackages come with pip install 'jaxdiff[eval]'; of musicnn and openwakeword only the files are needed: "
        "pip install --no-deps musicnn openwakeword",
        soft_wrap=True,
    )
