"""`jaxdiff pack`: a corpus as a few large files, for training on a cluster."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Interval
from rich.progress import Progress

from jaxdiff import ranges


@dataclass(frozen=True)
class Pack:
    """Pack a corpus into shards (ArrayRecord, each record a FLAC), which data.path opens like a folder of sounds."""

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    """folder of sounds, or a manifest"""
    out: Path
    """new or empty folder for the shards"""
    labels: str | None = None
    """manifest of the folder's files, instead of sub-folders"""
    sample_rate: ranges.Rate | None = None
    """resample to this rate in Hz (every recording keeps its own)"""
    seconds: Annotated[float, Interval(ge=1, le=3600)] = 30.0
    """longest piece: longer recordings become several, each heard as often as a short one"""
    shard_mb: Annotated[int, Interval(ge=1, le=65536)] = 256
    """size of a shard"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(f"--out {self.out}: is there already; give a new or empty folder")
        from jaxdiff.data import open_corpus
        from jaxdiff.data.packing import pack

        corpus = open_corpus(self.path, self.labels)
        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("packing", total=1.0)
            made = pack(
                corpus,
                self.out,
                sample_rate=self.sample_rate,
                seconds=self.seconds,
                shard_bytes=self.shard_mb << 20,
                tell=lambda share: progress.update(task, completed=share),
            )
        shards = f"{made.shards} shard{'s' * (made.shards != 1)}"
        print(
            f"{self.out}: {made.records} recordings, {made.seconds / 60:.1f} minutes, {shards} of {made.bytes:,} bytes"
        )
        if made.clipped:
            print(f"jaxdiff: warning: {made.clipped} samples outside [-1, 1] were clipped", file=sys.stderr)
        if corpus.rejected:
            print(f"{len(corpus.rejected)} files cannot be used, listed in {self.out / 'rejected.txt'}")
        return 0
