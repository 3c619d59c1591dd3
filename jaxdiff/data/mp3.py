"""MP3s as libsndfile leaves them to us: whether they say their length, and places far from their beginning.

libsndfile seeks by looking at every frame before, which takes half a second for an hour. So the places of the frames
are kept, and a part is decoded from a stream of its own: the first frames of the file, which say how it begins, then
those of the part and some before it, which its first samples need.
"""

import contextlib
import functools
import io
import os
import re
import shutil
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import soundfile

from .sources import Source, changed

_READ = 1 << 20  # bytes read at once
_LENGTH = re.compile(rb"\xff[\xe2-\xff]..\0{9}(?:\0{8}(?:\0{15})?)?(?:Xing|Info)", re.DOTALL)
_LENGTH_BYTES = 40  # at most
_HEAD, _BEFORE, _STRIDE = 16, 28, 16  # frames at the beginning, before a part, and between kept places
_SILENT = 24  # frames, of which the smallest hold what any refers back to
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz by version: 1, 2, 2.5
_BITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}  # kbit/s


def headers(source: Source) -> int:
    """The number of frames that say a length; 0 where libsndfile does not know it, several where MP3s stand in one."""
    return _headers(source, changed(source))


@functools.lru_cache(maxsize=1 << 16)
def _headers(source: Source, _changed: int) -> int:
    with piped(source) as pipe, soundfile.SoundFile(pipe, closefd=False) as stream:
        if not stream.seekable():
            return 0
    tail, found = b"", 0
    with source.open("rb") as file:
        while block := file.read(_READ):
            found += sum(match.end() > len(tail) for match in _LENGTH.finditer(tail + block))
            tail = (tail + block)[-_LENGTH_BYTES:]
    return max(1, found)


@contextlib.contextmanager
def piped(source: Source) -> Iterator[int]:
    """The end of a pipe from which the file can be read."""
    end, begin = os.pipe()

    def feed() -> None:  # until the file or the reader ends
        with contextlib.suppress(OSError), open(begin, "wb") as sink, source.open("rb") as file:
            shutil.copyfileobj(file, sink)

    threading.Thread(target=feed, daemon=True).start()
    try:
        yield end
    finally:
        os.close(end)


class Part(NamedTuple):
    """A stream to be decoded from its beginning, whose sample n is sample n + `before` of the file."""

    stream: io.BytesIO
    before: int


def part(source: Source, file: soundfile.SoundFile, start: int, stop: int | None) -> Part | None:
    """A stream with samples `start` to `stop` (None: the end) of an open MP3; None for no plain sequence of frames."""
    table = _table(source, changed(source), file.frames)
    if table is None:
        return None
    first = max(_HEAD, (start // table.size - _BEFORE) // _STRIDE * _STRIDE)
    last = len(table.places) - 1 if stop is None else (stop // table.size + _BEFORE) // _STRIDE + 1
    end = table.places[min(last, len(table.places) - 1)]
    with source.open("rb") as bytes_:
        head = bytearray(bytes_.read(table.places[_HEAD // _STRIDE]))
        bytes_.seek(table.places[first // _STRIDE])
        frames = bytearray(bytes_.read(end - table.places[first // _STRIDE]))
    if first > _HEAD:
        _silence(frames, table)
    if table.bytes_at:  # which libsndfile compares with what there is
        head[table.bytes_at : table.bytes_at + 4] = (len(head) + len(frames)).to_bytes(4, "big")
    return Part(io.BytesIO(head + frames), (first - _HEAD) * table.size)


def _silence(frames: bytearray, table: "_Table") -> None:
    """Make the first frames silent, whose bits stand partly in frames that are missing; later ones find theirs."""
    at = 0
    for _ in range(_SILENT):
        if at + _LENGTH_BYTES > len(frames) or not (length := table.lengths[frames[at + 2]]):
            return
        side = at + (4 if frames[at + 1] & 1 else 6)  # after the header and its checksum
        mono, first = frames[at + 3] >> 6 == 3, table.size == 1152
        size = (17 if mono else 32) if first else (9 if mono else 17)
        kept = frames[side + 1] & 0x80 if first else 0  # how far back the bits begin: 9 bits, or 8
        frames[side + 1 : side + size] = bytes([kept]) + bytes(size - 2)
        at += length


class _Table(NamedTuple):
    size: int  # samples of a frame
    lengths: list[int]  # bytes of a frame by the third byte of its header; 0: no such frame
    bytes_at: int  # where the first frame says the bytes of the file; 0: it does not
    places: np.ndarray  # of every _STRIDE-th frame, and of the end


@functools.lru_cache(maxsize=1 << 12)
def _table(source: Source, _changed: int, samples: int) -> _Table | None:
    """Where the frames of a file of so many samples begin; None for what is no plain sequence of frames."""
    with source.open("rb") as file:
        begin = _after_tags(file)
        file.seek(begin)
        first = file.read(_LENGTH_BYTES + 4)
        if len(first) < 4 or first[0] != 0xFF or first[1] & 0xE6 != 0xE2:  # a frame of layer III
            return None
        version, rate = first[1] >> 3 & 3, first[2] >> 2 & 3
        if version == 1 or rate == 3:
            return None
        size, bits = (1152, _BITS[3]) if version == 3 else (576, _BITS[2])
        lengths = [size // 8 * 1000 * bits[b >> 4] // _RATES[version][rate] + (b >> 1 & 1) for b in range(256)]
        lengths = [n if bits[b >> 4] and b >> 2 & 3 == rate else 0 for b, n in enumerate(lengths)]
        spoken = _LENGTH.match(first)  # then the first frame holds no sound
        flags = first[spoken.end() + 3] if spoken else 0
        bytes_at = begin + spoken.end() + (8 if flags & 1 else 4) if spoken and flags & 2 else 0
        places, count, at = [], -bool(spoken), begin
        base, block = begin, b""
        while True:
            i = at - base
            if i + 4 > len(block):
                file.seek(at)
                base, block, i = at, file.read(_READ), 0
                if len(block) < 4:
                    break
            if block[i] != 0xFF or block[i + 1] | 1 != first[1] | 1 or not lengths[block[i + 2]]:
                break
            if count >= 0 and count % _STRIDE == 0:
                places.append(at)
            at += lengths[block[i + 2]]
            count += 1
    if len(places) * _STRIDE <= _HEAD or not 0 <= count * size - samples < 8 * size:
        return None
    return _Table(size, lengths, bytes_at, np.array([*places, at], np.int64))


def _after_tags(file: io.BufferedIOBase) -> int:
    """Where the frames begin, after tags of ID3."""
    at = 0
    while True:
        file.seek(at)
        tag = file.read(10)
        if tag[:3] != b"ID3" or len(tag) < 10:
            return at
        at += 10 + sum((byte & 127) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
