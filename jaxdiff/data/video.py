"""The pictures of a video, small and grey, at the times at which they are shown.

    seconds = presentation time of the picture - start of the file

so that 0 is where a player begins, whatever the file counts from, and rates that vary need no care. Pictures are
decoded one after the other, turned as the file says (its display matrix) and scaled at once, so that memory does not
depend on length or size. PyAV reads the files; it comes with `pip install 'jaxdiff[video]'` and is imported when it is
needed.

A file is opened as a stream of bytes that may not name others: a playlist that calls itself a video reaches nothing.
"""

import contextlib
import math
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .files import AudioError, naming, printable, reason_of

WIDTH, HEIGHT = 96, 54  # pixels of a small picture
MAX_SECONDS = 4 * 3600
MAX_PIXELS = 1 << 26  # of a picture: 8192 x 8192
_SHORT = 0.5  # seconds that a file may end before it says
_DAMAGED = 100  # packets that cannot be decoded, one after the other, of a file that is given up
_UPRIGHT = (1, 0, 0, 1)


class VideoInfo(NamedTuple):
    """A video as its file has it: length in seconds and mean rate of pictures per second (None where the file does
    not say), width and height in pixels as it is shown, and how many sound tracks it has. `start` is the time of
    the file's own clock at which it begins, in seconds, which ours are counted from."""

    seconds: float | None
    start: float
    rate: float | None
    width: int
    height: int
    sounds: int


class Frame(NamedTuple):
    """A picture that is shown from `seconds` on, grey from 0 to 255."""

    seconds: float
    picture: np.ndarray  # [HEIGHT, WIDTH], uint8


def video_info(path: str | Path) -> VideoInfo:
    """The facts of a video file; raises AudioError for what is none."""
    path = Path(path)
    with opened(path) as container, naming(path, "cannot be read as a video"):
        stream = video_stream(container, path)
        first = next(container.decode(stream), None)
        if first is None:
            raise AudioError(f"{path}: its video track holds no pictures; export the video again")
        turned = _matrix(first)[0] == 0
        width, height = (first.height, first.width) if turned else (first.width, first.height)
        rate = float(stream.average_rate) if stream.average_rate else None
        length, sounds = length_of(container, stream), len(container.streams.audio)
        return VideoInfo(length, start_of(container), rate, width, height, sounds)


def read_frames(
    path: str | Path, width: int = WIDTH, height: int = HEIGHT, tell: Callable[[float], None] = lambda share: None
) -> Iterator[Frame]:
    """The pictures of a video in the order in which they are shown, each scaled to `width` x `height`.

    A picture that is not shown later than the one before is left out, a damaged one with a warning. Raises AudioError
    for a file without pictures, with a single one, that ends before it says, that is longer than 4 hours or that is no
    video. `tell` is told the share that is done.
    """
    path, shown, last, damaged = Path(path), 0, -math.inf, 0
    with opened(path) as container:
        with naming(path, "cannot be read as a video"):
            from av.video.reformatter import VideoReformatter

            stream, scaler = video_stream(container, path), VideoReformatter()
        start, promised, there = start_of(container), length_of(container, stream), 0.0
        for pictures, end in decoded(container, stream, path):
            there = max(there, end - start)
            if pictures is None:
                damaged += 1
                continue
            for frame in pictures:
                seconds = _time(frame, stream, shown) - start
                if not last < seconds:
                    continue
                if seconds > MAX_SECONDS:
                    raise AudioError(f"{path}: is longer than {MAX_SECONDS // 3600} hours; cut it into several")
                yield Frame(seconds, _small(frame, scaler, width, height, path))
                shown, last = shown + 1, seconds
            tell(min(1.0, last / promised) if promised and shown else 0.0)
    there = max(there, last, 0.0)
    if promised is not None and there < promised - _SHORT:
        raise AudioError(f"{path}: truncated, {promised:.1f} s promised and {there:.1f} s there; get the whole file")
    if shown < 2:
        pictures = f"{shown or 'no'} picture{'' if shown == 1 else 's'}"
        raise AudioError(f"{path}: holds {pictures}, a video has two at least; give a video")
    if damaged:
        warnings.warn(printable(f"{path}: {damaged} damaged pictures were left out"), stacklevel=2)


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """The file as PyAV's container to read from, which can open no other file.

    Raises ValueError where PyAV is missing and AudioError for what cannot be opened.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"videos are read by av, which cannot be imported ({error}); run pip install 'jaxdiff[video]'"
        ) from None
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    with contextlib.ExitStack() as stack:
        with naming(path, "cannot be read as a video"):
            file = stack.enter_context(path.open("rb"))
            if not file.read(1):
                raise AudioError(f"{path}: is empty")
            file.seek(0)
            options = {"protocol_whitelist": "none", "max_pixels": str(MAX_PIXELS)}
            container = stack.enter_context(av.open(file, options=options, io_open=_refuse, buffer_size=1 << 20))
        yield container


def video_stream(container: Any, path: Path) -> Any:
    """The video track, which a cover picture is none; raises AudioError where there is none."""
    from av.stream import Disposition

    cover = Disposition.attached_pic
    found = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not found:
        sound = ", only sound" if container.streams.audio else ""
        raise AudioError(f"{path}: has no video track{sound}; give a video")
    found[0].thread_type = "AUTO"
    return found[0]


def _refuse(url: str, flags: int, options: dict) -> Any:
    raise PermissionError(f"names another file, {url}")


def decoded(container: Any, stream: Any, path: Path) -> Iterator[tuple[list[Any] | None, float]]:
    """The pictures of packet after packet, None for one that is damaged, and the time at which the packet ends."""
    from av.error import FFmpegError

    row, packets = 0, container.demux()
    while True:
        try:
            packet = next(packets, None)
        except (FFmpegError, OSError) as error:
            raise AudioError(f"{path}: damaged ({reason_of(error)}); get the whole file") from None
        if packet is None:
            return
        begin = packet.pts if packet.pts is not None else packet.dts
        end = -math.inf if begin is None else float((begin + (packet.duration or 0)) * packet.time_base)
        if packet.stream.index != stream.index:
            yield [], end
            continue
        try:
            pictures, row = packet.decode(), 0
        except (FFmpegError, OSError, ValueError) as error:
            pictures, row = None, row + 1
            if row >= _DAMAGED:
                raise AudioError(f"{path}: damaged, its pictures cannot be decoded ({reason_of(error)})") from None
        yield pictures, end


def _time(frame: Any, stream: Any, shown: int) -> float:
    """When a picture is shown, in seconds of the file's clock; streams without a clock are taken at their rate."""
    if frame.time is not None:
        return float(frame.time)
    rate = stream.average_rate or stream.guessed_rate or 25
    return shown / float(rate)


def start_of(container: Any) -> float:
    return 0.0 if container.start_time is None else container.start_time / 1e6


def length_of(container: Any, stream: Any) -> float | None:
    """The promised length in seconds: the container's or else that of its video."""
    if container.duration is not None:
        return container.duration / 1e6
    return None if stream.duration is None else float(stream.duration * stream.time_base)


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """How a picture is turned: a, b, c, d of (x', y') = (a x + c y, b x + d y), to the nearest quarter of a turn."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return _UPRIGHT
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    sign = lambda value: int(math.copysign(1, value))  # noqa: E731
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (sign(a), 0, 0, sign(d)) if a and d else _UPRIGHT
    return 0, sign(b), sign(c), 0


def _small(frame: Any, scaler: Any, width: int, height: int, path: Path) -> np.ndarray:
    """A picture as it is shown, scaled by PyAV's reformatter, which is quick where it is the same for all."""
    a, b, c, d = _matrix(frame)
    size = (width, height) if a else (height, width)
    with naming(path, "its pictures cannot be scaled"):
        small = scaler.reformat(frame, *size, format="gray", interpolation="AREA").to_ndarray()
    if not a:  # x' = c y, y' = b x
        small, a, d = small.T, c, b
    return np.ascontiguousarray(small[::d, ::a])
