"""The sound of a video: read from a file, and put beside pictures that are copied packet by packet.

    a sample's time = start of the file + number / rate

as for pictures (`video.py`), so that sample 0 is heard where a player begins; files that are written begin at 0.
Pictures are not decoded, so that they lose nothing: what was written is read again, and its packets must have the bytes
that those of the source have. Sound is written as AAC into MP4 and QuickTime, and as Opus into Matroska and WebM; the
samples with which both codecs begin are told to the player, which leaves them out.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .files import AudioError, atomic, naming
from .video import MAX_SECONDS, decoded, length_of, opened, start_of, video_stream

RATE = 48_000  # Hz of the sound that is written
BIT_RATE = 192_000
_AHEAD = 1.0  # seconds by which sound is written before the pictures
_JITTER = 0.002  # seconds that the times of a file may be beside its samples, for some count milliseconds
_BLOCK = 1 << 16
_UNTIMED = 64  # packets that do not say when they are decoded, at most
_SHORT = 0.5  # seconds that a file may end before it says
_START_CODES = ("h264", "hevc")  # which streams mark by start codes and files by lengths
_BRANDS = ("major_brand", "minor_version", "compatible_brands", "encoder", "creation_time")


class Kind(NamedTuple):
    """A kind of file: FFmpeg's names for it, for the codec of its sound and for the samples that this takes."""

    format: str
    codec: str
    samples: str


KINDS = {
    ".mp4": Kind("mp4", "aac", "fltp"),
    ".m4v": Kind("mp4", "aac", "fltp"),
    ".mov": Kind("mov", "aac", "fltp"),
    ".mkv": Kind("matroska", "libopus", "flt"),
    ".webm": Kind("webm", "libopus", "flt"),
}


class Track(NamedTuple):
    """A sound track: its rate in Hz, one or two channels, and a function that gives its blocks [channels, samples],
    which begin where the file begins and have no gaps."""

    rate: int
    channels: int
    blocks: Callable[[], Iterator[np.ndarray]]


class Muxed(NamedTuple):
    """A video that was written: the number of picture packets, which have the bytes of the source's, the seconds of its
    sound and the codec."""

    packets: int
    seconds: float
    codec: str


def read_track(path: str | Path) -> Track | None:
    """The first sound track of a file that FFmpeg reads, of more than two channels mixed to two; None where there is
    none. Raises AudioError for what is no such file."""
    path = Path(path)
    with opened(path) as container, naming(path, "its sound cannot be read"):
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        rate, channels = stream.codec_context.sample_rate, min(2, stream.codec_context.channels)
        if not rate or not channels:
            raise AudioError(f"{path}: its sound track does not say its rate; convert it")
    return Track(rate, channels, lambda: _heard(path, rate, channels))


def video_seconds(path: str | Path) -> float:
    """The length of a video: what the file says, or else when its last packet ends."""
    path = Path(path)
    with opened(path) as container:
        stream = video_stream(container, path)
        promised = length_of(container, stream)
        if promised is None:
            begin, ends = start_of(container), [0.0]
            with naming(path, "cannot be read as a video"):
                for packet in container.demux():
                    ends.append(_end(packet) - begin)
            promised = max(end for end in ends if math.isfinite(end))
    if not 0 < promised <= MAX_SECONDS:
        raise AudioError(f"{path}: lasts {promised:g} s, expected more than 0 and at most {MAX_SECONDS // 3600} hours")
    return promised


def _heard(path: Path, rate: int, channels: int) -> Iterator[np.ndarray]:
    from av.audio.resampler import AudioResampler

    at, layout = 0, "mono" if channels == 1 else "stereo"
    with opened(path) as container:
        stream, start = container.streams.audio[0], start_of(container)
        plain = AudioResampler(format="fltp", layout=layout, rate=rate)
        for frames, _ in decoded(container, stream, path):
            for frame in frames or ():
                time = frame.time
                with naming(path, "its sound cannot be read"):
                    block = np.concatenate(
                        [part.to_ndarray() for part in plain.resample(frame)] or [_none(channels)], 1
                    )
                begin = at if time is None else round((time - start) * rate)
                begin = at if abs(begin - at) <= _JITTER * rate else begin
                if begin > MAX_SECONDS * rate:
                    raise AudioError(f"{path}: is longer than {MAX_SECONDS // 3600} hours; cut it into several")
                while at < begin:
                    silent = min(_BLOCK, begin - at)
                    yield np.zeros((channels, silent), np.float32)
                    at += silent
                block = np.nan_to_num(block[:, at - begin :].astype(np.float32))
                at += block.shape[-1]
                yield block


def _none(channels: int) -> np.ndarray:
    return np.zeros((channels, 0), np.float32)


# Writing ------------------------------------------------------------------------------------------------------------


def kind_of(out: Path) -> Kind:
    """The kind of a video file to be written; raises ValueError for another ending."""
    kind = KINDS.get(out.suffix.lower())
    if kind is None:
        raise ValueError(f"{out}: videos are written as {', '.join(KINDS)}; give a file that ends with one of them")
    return kind


def check_copy(video: str | Path, out: str | Path) -> None:
    """Raise what `write_track` raises for pictures that the kind of file `out` cannot hold as they are."""
    import av

    video, out = Path(video), Path(out)
    kind = kind_of(out)
    with opened(video) as source, av.open(io.BytesIO(), "w", format=kind.format) as made:
        picture = video_stream(source, video)
        _copy(made, picture, video, kind)
        extra = picture.codec_context.extradata or b""
        if picture.codec_context.name in _START_CODES and extra[:3] in (b"\0\0\0", b"\0\0\1"):
            raise _changed(video, out)


def write_track(
    video: str | Path,
    out: str | Path,
    sound: Iterator[np.ndarray],
    *,
    tell: Callable[[float], None] = lambda share: None,
) -> Muxed:
    """Write the pictures of `video` with another sound: blocks [2, samples] at `RATE`, from the start of the file on,
    cut to its length or filled up with silence.

    Pictures and subtitles that the kind of file takes are copied with their times, and nothing is decoded. Memory does
    not grow with the length. Raises AudioError for a video that cannot be copied exactly, ValueError for an ending that
    no kind of file has.
    """
    video, out = Path(video), Path(out)
    kind, seconds = kind_of(out), video_seconds(video)
    with atomic(out) as temporary:
        with opened(video) as source:
            copied = _write(source, video, temporary, out, kind, seconds, sound, tell)
        _verify(temporary, out, video, copied)
    return Muxed(copied.packets, seconds, kind.codec)


class _Copied(NamedTuple):
    packets: int
    digest: bytes


def _write(
    source: Any,
    video: Path,
    temporary: Path,
    out: Path,
    kind: Kind,
    seconds: float,
    sound: Iterator[np.ndarray],
    tell: Callable[[float], None],
) -> _Copied:
    import av

    start, picture = start_of(source), video_stream(source, video)
    digest, count, last = hashlib.sha256(), 0, -math.inf
    options = {"movflags": "+faststart"} if kind.codec == "aac" else {}
    with naming(out, "cannot be written"), av.open(str(temporary), "w", format=kind.format, options=options) as made:
        made.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in _BRANDS})
        copies = {picture.index: _copy(made, picture, video, kind)}
        for stream in source.streams.subtitles:
            if stream.codec_context is not None and stream.codec_context.name in made.supported_codecs:
                copies[stream.index] = _copy(made, stream, video, kind)
        voice = made.add_stream(kind.codec, rate=RATE, layout="stereo", bit_rate=BIT_RATE, format=kind.samples)
        made.start_encoding()
        voiced = _Voiced(made, voice, sound, round(seconds * RATE))
        for packet in _timed(source.demux([source.streams[index] for index in copies]), video):
            begun = round(start / packet.time_base)
            if packet.stream.index == picture.index:
                digest.update(bytes(packet))
                count += 1
                last = max(last, _end(packet) - start)
            packet.dts -= begun
            packet.pts = packet.dts if packet.pts is None else packet.pts - begun
            voiced.until(float(packet.dts * packet.time_base) + _AHEAD)
            packet.stream = copies[packet.stream.index]
            made.mux(packet)
            tell(min(1.0, max(0.0, last) / seconds))
        if not count:
            raise AudioError(f"{video}: its video track holds no pictures; export the video again")
        voiced.end()
    promised = picture.duration and float(picture.duration * picture.time_base)
    if promised and last < promised + (picture.start_time or 0) * float(picture.time_base) - start - _SHORT:
        raise AudioError(f"{video}: truncated, its pictures end at {last:.1f} s; get the whole file")
    return _Copied(count, digest.digest())


def _copy(made: Any, stream: Any, video: Path, kind: Kind) -> Any:
    """A track that takes the packets of another."""
    try:
        copy = made.add_stream_from_template(stream, opaque=True)
    except ValueError:
        name = stream.codec_context.name
        raise AudioError(
            f"{video}: its pictures are {name}, which {kind.format} does not take; give a file that ends with "
            f"{'.wav' if kind.format == 'matroska' else '.mkv, or .wav'}"
        ) from None
    copy.time_base = stream.time_base
    copy.metadata.update(stream.metadata)
    copy.disposition = stream.disposition
    return copy


class _Voiced:
    """A sound that is encoded as far as it is needed."""

    def __init__(self, made: Any, voice: Any, sound: Iterator[np.ndarray], samples: int):
        self._made, self._voice, self._sound, self._samples = made, voice, sound, samples
        self._at, self._held = 0, np.zeros((2, 0), np.float32)
        self._size = voice.codec_context.frame_size or 1024

    def until(self, seconds: float) -> None:
        """Write the frames that begin before `seconds`."""
        import av

        while self._at < self._samples and self._at < seconds * RATE:
            size = min(self._size, self._samples - self._at)
            while self._held.shape[-1] < size and (block := next(self._sound, None)) is not None:
                self._held = np.concatenate([self._held, block], axis=-1)
            part, self._held = self._held[:, :size], self._held[:, size:]
            part = np.pad(part, ((0, 0), (0, size - part.shape[-1])))
            frame = av.AudioFrame.from_ndarray(np.clip(part, -1, 1).astype(np.float32, order="C"), "fltp", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = RATE, self._at, Fraction(1, RATE)
            self._made.mux(self._voice.encode(frame))  # which brings floats to the codec's order
            self._at += size

    def end(self) -> None:
        self.until(math.inf)
        self._made.mux(self._voice.encode(None))


def _timed(packets: Iterator[Any], video: Path) -> Iterator[Any]:
    """The packets that hold something, each with a time of decoding; Matroska does not say it of the first ones, which
    are then as far before the next as they are long."""
    waiting: list[Any] = []
    while True:
        with naming(video, "cannot be read as a video"):
            packet = next(packets, None)
        if packet is None:
            break
        if not packet.size:
            continue  # which says that a track ends
        if packet.dts is None:
            waiting.append(packet)
            if len(waiting) > _UNTIMED:
                break
            continue
        before = packet.dts
        for early in reversed([one for one in waiting if one.stream.index == packet.stream.index]):
            before -= max(1, early.duration or 0)
            early.dts = before
        yield from (one for one in waiting if one.dts is not None)
        waiting = [one for one in waiting if one.dts is None]
        yield packet
    if waiting:
        raise AudioError(f"{video}: holds packets without a time; export the video again")


def _end(packet: Any) -> float:
    """When a packet ends, in seconds of the file's clock; minus infinity where it does not say."""
    begin = packet.pts if packet.pts is not None else packet.dts
    return -math.inf if begin is None else float((begin + (packet.duration or 0)) * packet.time_base)


def _verify(temporary: Path, out: Path, video: Path, copied: _Copied) -> None:
    """Raise AudioError unless the picture packets that were written are those that were read."""
    digest, count = hashlib.sha256(), 0
    with opened(temporary) as made, naming(out, "what was written cannot be read"):
        for packet in made.demux(video_stream(made, out)):
            if packet.size:
                digest.update(bytes(packet))
                count += 1
    if _Copied(count, digest.digest()) != copied:
        raise _changed(video, out)


def _changed(video: Path, out: Path) -> AudioError:
    return AudioError(
        f"{out}: not written, {video} cannot be copied into {out.suffix} bit for bit, for its pictures are kept "
        "otherwise; bring it into .mp4 or .mkv first (ffmpeg -i VIDEO -c copy), or give a file that ends with .wav"
    )
