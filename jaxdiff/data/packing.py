"""A corpus becomes shards: every recording as FLAC, in few large files that a cluster reads quickly.

A long recording becomes pieces of equal length, each a recording of its own that is heard as often as a short one; so a
crop decodes a piece at most. What cannot be read is left out and listed, as in training.
"""

import collections
import contextlib
import io
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import soundfile

from .corpora import Corpus, Recording, write_report
from .files import AudioError, audio_info, read_audio, wav_subtype
from .shards import EXTENSION, FORMAT, array_record

_MOST_CHANNELS = 8  # of FLAC
_AHEAD = 32  # pieces that are encoded while one is written


class Piece(NamedTuple):
    """What becomes a record: a part of a recording, from `start` on in its file, and the name that it gets."""

    recording: Recording
    start: float
    seconds: float | None  # None: all
    name: str


class Packing(NamedTuple):
    """What was made: numbers of shards and records, their length in seconds and bytes, and clipped samples."""

    shards: int
    records: int
    seconds: float
    bytes: int
    clipped: int


def pack(
    corpus: Corpus,
    folder: Path,
    *,
    sample_rate: int | None = None,
    seconds: float = 30.0,
    shard_bytes: int = 256 << 20,
    tell: Callable[[float], None] = lambda share: None,
) -> Packing:
    """Write a corpus into a new or empty folder of shards, which appears when all are complete.

    `sample_rate` in Hz resamples (None keeps each recording's); pieces are at most `seconds` long and shards about
    `shard_bytes` large. `tell` hears which share is done. Raises AudioError when the folder is in use, or nothing can
    be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AudioError(f"{folder}: is there already; give a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:24]}.", dir=folder.parent))
    try:
        made = _write(corpus, temporary, sample_rate, seconds, shard_bytes, tell)
        if corpus.rejected:
            write_report(temporary / "rejected.txt", corpus.rejected)
        if not made.records:
            raise AudioError(f"{corpus.root}: none of its recordings can be read; the first: {corpus.rejected[0]}")
        temporary.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return made


class _Shards:
    """Writes records into one shard after the other; each ends with its table of contents."""

    def __init__(self, folder: Path, size: int):
        self._folder, self._size = folder, size
        self._writer, self._contents, self._written = None, [], 0
        self.shards = self.bytes = 0

    def add(self, record: bytes, about: list) -> None:
        if self._writer is None:
            self._path = self._folder / f"{self.shards:05d}{EXTENSION}"
            self._writer = array_record().ArrayRecordWriter(str(self._path), "group_size:1,uncompressed")
            self.shards += 1
        self._writer.write(record)
        self._contents.append(about)
        self._written += len(record)
        if self._written >= self._size:
            self.close()

    def close(self) -> None:
        """Complete the last shard."""
        if self._writer is None:
            return
        contents = {"format": FORMAT, "recordings": self._contents}
        self._writer.write(json.dumps(contents, separators=(",", ":")).encode())
        self._writer.close()
        self.bytes += self._path.stat().st_size
        self._writer, self._contents, self._written = None, [], 0


def _write(
    corpus: Corpus, folder: Path, rate: int | None, longest: float, size: int, tell: Callable[[float], None]
) -> Packing:
    shards, bad = _Shards(folder, size), set()
    records, clipped, length, done = 0, 0, 0.0, 0.0
    for piece, encoded in _encoded(_pieces(corpus, longest), rate):
        done += piece.recording.seconds if piece.seconds is None else piece.seconds
        tell(done / corpus.seconds)
        if isinstance(encoded, AudioError):
            if piece.recording.path not in bad:
                corpus.rejected.append(str(encoded))
            bad.add(piece.recording.path)
            continue
        label = None if piece.recording.label is None else corpus.classes[piece.recording.label]
        shards.add(encoded.flac, [piece.name, label, encoded.sample_rate, encoded.samples, encoded.channels])
        records, clipped = records + 1, clipped + encoded.clipped
        length += encoded.samples / encoded.sample_rate
    shards.close()
    return Packing(shards.shards, records, length, shards.bytes, clipped)


def _pieces(corpus: Corpus, longest: float) -> Iterator[Piece]:
    """The pieces of all recordings; names are kept, but where several come from one file."""
    used: set[str] = set()
    for r in corpus.recordings:
        count = math.ceil(r.seconds / longest)
        for i in range(count):
            start, seconds = r.offset + i * r.seconds / count, r.seconds / count
            whole = count == 1 and r.offset == 0 and r.until == math.inf
            path = PurePosixPath(r.name)
            name = r.name if whole else str(path.with_name(f"{path.stem}@{start:.6g}{path.suffix}"))
            others = (str(path.with_name(f"{PurePosixPath(name).stem}~{n}{path.suffix}")) for n in itertools.count(2))
            name = name if name not in used else next(other for other in others if other not in used)
            used.add(name)
            yield Piece(r, start, None if whole else seconds, name)


class _Encoded(NamedTuple):
    flac: bytes
    sample_rate: int
    samples: int
    channels: int
    clipped: int


def _encoded(pieces: Iterator[Piece], rate: int | None) -> Iterator[tuple[Piece, _Encoded | AudioError]]:
    """The pieces in order with their FLAC, made by threads that run a little ahead."""

    def encode(piece: Piece) -> _Encoded | AudioError:
        try:
            return _encode(piece, rate)
        except AudioError as error:
            return error

    waiting: collections.deque[tuple[Piece, Future]] = collections.deque()
    with ThreadPoolExecutor() as threads:
        try:
            for piece in pieces:
                waiting.append((piece, threads.submit(encode, piece)))
                if len(waiting) >= _AHEAD:
                    first, made = waiting.popleft()
                    yield first, made.result()
            while waiting:
                first, made = waiting.popleft()
                yield first, made.result()
        finally:
            for _, made in waiting:
                made.cancel()


def _encode(piece: Piece, rate: int | None) -> _Encoded:
    path = piece.recording.path
    info = audio_info(path)
    if info.channels > _MOST_CHANNELS:
        raise AudioError(f"{path}: has {info.channels} channels, a shard keeps at most {_MOST_CHANNELS}; mix it down")
    rate = info.sample_rate if rate is None else rate
    y = read_audio(path, rate, channels="all", offset=piece.start, seconds=piece.seconds)
    if not y.size:
        raise AudioError(f"{path}: holds no samples from {piece.start:g} s on")
    flac = io.BytesIO()
    try:
        soundfile.write(flac, np.clip(y.T, -1, 1), rate, format="FLAC", subtype=wav_subtype(info))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: cannot be kept as FLAC of {rate} Hz ({error.error_string}); resample it") from None
    return _Encoded(flac.getvalue(), rate, y.shape[1], y.shape[0], int((np.abs(y) > 1).sum()))
