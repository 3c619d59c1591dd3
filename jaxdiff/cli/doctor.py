"""`jaxdiff doctor`: look at a run, or at a configuration before training, and tell the usual faults apart."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxdiff import __version__, ranges

from . import files

if TYPE_CHECKING:
    from jaxdiff.doctor import Finding

_out = Console(highlight=False, markup=False, emoji=False)
_err = Console(stderr=True, highlight=False, markup=False, emoji=False)
_STYLES = {"good": "green", "doubtful": "yellow", "bad": "bold red", "not looked at": "dim"}
REPORT = "doctor.json"


@dataclass(frozen=True)
class Doctor:
    """Look at a run and tell the usual faults apart, above all why samples are noise although the loss falls.

    Files, log, corpus, features, gradients, losses, learning of one batch, export and samples are looked at, and one
    diagnosis is given. The run is never changed. A CONFIG.yaml is looked at as far as that can be before training. The
    exit code is 1 where something is bad.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """work directory of a run, or a CONFIG.yaml"""
    steps: ranges.Index = 100
    """of training on one batch with fresh weights; 0 leaves it out"""
    exported: Path | None = None
    """an exported file of the run to compare with it (one is made in a temporary folder)"""
    out: Path | None = None
    """folder for doctor.json; made when absent"""
    overwrite: bool = False
    """replace doctor.json"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        report = None if self.out is None else self.out / REPORT
        if self.out is not None and report is not None:
            files.refuse_file(self.out)
            files.refuse_existing([report], self.overwrite)
        if not self.source.exists():
            raise ValueError(f"{self.source}: does not exist; give the work directory of a run, or a CONFIG.yaml")
        if self.exported is not None and not self.exported.is_file():
            raise ValueError(f"--exported {self.exported}: no such file; give one that jaxdiff export wrote")
        from jaxdiff.doctor import diagnosis, examine  # jax is imported from here on

        findings: list[Finding] = []
        interrupted = False
        try:
            with _err.status("files") as status:
                for finding in examine(self.source, steps=self.steps, exported=self.exported, tell=status.update):
                    findings.append(finding)  # one by one, so that an interruption keeps them
        except KeyboardInterrupt:
            interrupted = True
        except Exception:
            if findings:  # what was found may say why
                _out.print(_table(findings))
            raise
        said = "Interrupted before the end." if interrupted else diagnosis(findings)
        _out.print(_table(findings))
        _out.print(f"\n{said}", soft_wrap=True)
        if report is not None:
            _write(report, self.source, findings, said)
        if interrupted:
            return 130
        return 1 if any(finding.verdict == "bad" for finding in findings) else 0


def _table(findings: Sequence["Finding"]) -> Table:
    table = Table("check", "verdict", "measured", "meaning", box=None, pad_edge=False)
    for finding in findings:
        verdict = Text(finding.verdict, style=_STYLES[finding.verdict])
        table.add_row(finding.name, verdict, finding.value, finding.sentence)
    return table


def _write(report: Path, source: Path, findings: Sequence["Finding"], said: str) -> None:
    from jaxdiff.data.files import atomic

    report.parent.mkdir(parents=True, exist_ok=True)
    about = {"jaxdiff": __version__, "source": str(source), "diagnosis": said}
    rows = [finding._asdict() for finding in findings]
    with atomic(report) as temporary:
        temporary.write_text(json.dumps({**about, "findings": rows}, indent=1) + "\n", encoding="utf-8")
