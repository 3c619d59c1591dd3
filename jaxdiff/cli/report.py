"""`jaxdiff report`: how a training went, as one HTML page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxdiff import ranges

NAME = "report.html"


@dataclass(frozen=True)
class Report:
    """Put a run on one HTML page: curves, sounds to play with their spectrograms, norms of blocks, configuration.

    The page needs no other file. The run may go on meanwhile, and is never changed.
    """

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """work directory of a run"""
    out: Path | None = None
    """the page (report.html in DIR, replaced each time); to be given for a run of a cloud"""
    megabytes: ranges.Weight = 32.0
    """of sounds and pictures in the page, at most"""
    overwrite: bool = False
    """replace the file that --out names"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        out = self.directory / NAME if self.out is None else self.out
        if out.is_dir():
            raise ValueError(f"--out {out}: is a folder; give the name of a file, as {out / NAME}")
        if self.out is not None and out.exists() and not self.overwrite:
            raise ValueError(f"--out {out}: exists; give another, or --overwrite to replace it")
        from jaxdiff.data.cloud import url_of
        from jaxdiff.data.files import atomic
        from jaxdiff.report import read_run, report_page

        directory = self.directory
        if url_of(directory) is not None:
            if self.out is None:
                raise ValueError(f"--out: give the page of {url_of(directory)} a place on this machine")
            from jaxdiff.training import remote  # jax is imported from here on

            directory = remote.fetched(directory, remote.RUN)
        run = read_run(directory)
        page = report_page(run, self.megabytes)
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic(out) as temporary:
            temporary.write_text(page.html, encoding="utf-8")
        print(f"{out}: {run.step} steps, {page.sounds} sounds, {out.stat().st_size / 1e6:.1f} MB")
        for note in page.notes:
            print(note)
        return 0
