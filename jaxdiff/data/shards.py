"""Shards: files of many recordings for clusters, in Grain's own format ArrayRecord.

Each record of a shard is a FLAC file, but the last, which is its table of contents: names, classes and headers as JSON.
So a corpus of shards opens by reading one record of each, and a crop by reading one. `packing` writes them.
"""

import functools
import importlib
import io
import json
import threading
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .files import AudioError, AudioInfo, check_limits
from .sources import changed

EXTENSION = ".array_record"
FORMAT = 1
_last = threading.local()  # the record that a thread read last


@dataclass(frozen=True)
class Record:
    """A sound in a shard, which is opened and shown as a path is."""

    shard: Path
    number: int
    name: str

    def is_file(self) -> bool:
        return self.shard.is_file()

    def open(self, mode: str = "rb") -> io.BytesIO:
        if getattr(_last, "record", None) != self:  # which is opened for its header, then for its samples
            _last.record, _last.bytes = None, _read(self.shard, self.number)
            _last.record = self
        return io.BytesIO(_last.bytes)

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"


class Packed(NamedTuple):
    """A recording of a shard: its place, class and header."""

    record: Record
    label: str | None
    info: AudioInfo


def read_contents(shard: Path) -> list[Packed]:
    """The recordings of a shard; raises AudioError for one that is damaged or was not written by `pack`."""
    try:
        contents = json.loads(_read(shard, -1))
        if contents["format"] != FORMAT:
            raise AudioError(
                f"{shard}: is of format {contents['format']}, this jaxdiff knows {FORMAT}; install a newer one"
            )
        return [_packed(shard, i, *row) for i, row in enumerate(contents["recordings"])]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{shard}: has no table of contents as jaxdiff pack writes it") from None


def _packed(shard: Path, number: int, name: str, label: str | None, rate: int, samples: int, channels: int) -> Packed:
    inside = isinstance(name, str) and name and "\0" not in name and ".." not in PurePosixPath(name).parts
    if not inside or PurePosixPath(name).is_absolute():
        raise AudioError(f"{shard}: names {name!r}, which lies outside a corpus")
    if not all(type(n) is int for n in (rate, samples, channels)) or not isinstance(label, str | None):
        raise TypeError
    info = AudioInfo(rate, samples, channels)
    check_limits(info, f"{shard}: {name}")
    return Packed(Record(shard, number, name), label, info)


def _read(shard: Path, number: int) -> bytes:
    """A record of a shard, from the end where `number` is negative; raises AudioError."""
    if not shard.is_file():
        raise AudioError(f"{shard}: no such file")
    try:
        reader = _reader(shard, changed(shard))
        count = reader.num_records()
        return reader.read([number % count])[0] if -count <= number < count else b""
    except AudioError:
        raise
    except Exception as error:  # of its own kinds
        raise AudioError(f"{shard}: damaged ({' '.join(str(error).split())})") from None


def array_record() -> Any:
    """The module that reads and writes shards, which comes with Grain on most systems."""
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        raise AudioError(f"shards need the package array_record, which is not there ({error})") from None


@functools.lru_cache(maxsize=256)
def _reader(shard: Path, _changed: int) -> Any:
    reader = array_record().ArrayRecordReader(str(shard), "readahead_buffer_size:0,max_parallelism:0")
    if "uncompressed" not in reader.writer_options_string().split(","):  # so a record is not larger than its shard
        raise AudioError(f"{shard}: is not as jaxdiff pack writes shards; pack the sounds anew")
    return reader
