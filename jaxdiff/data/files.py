"""Read and write sound files safely: any format libsndfile knows in, WAV or FLAC out.

libsndfile trusts headers: it opens files that promise more than they hold, absurd sample rates and a thousand channels.
So every file is judged by its header before memory is taken, and by its samples after, which the check and the reader
take from the same decoder. Writing goes to a temporary file beside the target that is renamed when complete: a reader
never sees half a file. Names are bytes to the system; where they are shown, what is not UTF-8 is escaped. Parts are
read by seeking, a block at a time, so that memory is that of the part.
"""

import contextlib
import dataclasses
import errno
import hashlib
import math
import os
import re
import tempfile
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import soxr

from . import mp3
from .sources import Source

Channels = Literal["mix", "left", "right", "stereo", "all"] | int
SampleType = Literal["float32", "float64", "int32"]

MAX_SAMPLE_RATE = 768_000
MAX_CHANNELS = 64
MAX_SECONDS = 4 * 3600
EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd",
                        ".caf", ".w64", ".rf64", ".voc", ".sph"})  # fmt: skip
UNREAD = frozenset({".m4a", ".m4b", ".aac", ".mp4", ".wma", ".ape", ".wv", ".mka", ".mkv", ".webm", ".mov", ".avi",
                    ".ac3", ".amr", ".dsf", ".dff", ".tta", ".mpc", ".ra", ".spx"})  # fmt: skip
_BLOCK = 1 << 16  # samples decoded at once
_EXACT = {"PCM_S8": "PCM_16", "ULAW": "PCM_16", "ALAW": "PCM_16", "IMA_ADPCM": "PCM_16", "MS_ADPCM": "PCM_16",
          "GSM610": "PCM_16", "G721_32": "PCM_16", "ALAC_16": "PCM_16", "ALAC_20": "PCM_24", "ALAC_24": "PCM_24",
          "ALAC_32": "PCM_32"}  # fmt: skip
_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}  # of a sample in a WAV
_DEEP = frozenset({"PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_20", "ALAC_24", "ALAC_32"})  # more than 16 bits
_LARGEST_WAV = 2**32 - 2**16  # bytes of samples
_CORRECTED = re.compile(r"^(?!RIFF|FORM).*: (\d+) \(should be (\d+)\)", re.MULTILINE)  # in libsndfile's log


def printable(text: str) -> str:
    """`text` with the parts of file names that are not UTF-8 escaped, as in caf\\udce9: it can be printed and kept."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class AudioError(ValueError):
    """A sound file, or a folder of them, that cannot be used; the message is one sentence that names it."""

    def __init__(self, message: str):
        super().__init__(printable(message))


@dataclass(frozen=True)
class AudioInfo:
    """A header says the sample rate in Hz, samples per channel, channels and how samples are kept (libsndfile's
    `subtype`); `check_audio` also finds the peak (None: not listened to)."""

    sample_rate: int
    samples: int
    channels: int
    peak: float | None = None
    subtype: str = "PCM_16"

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


def _name(path: Path) -> Any:
    """A path as soundfile takes it: bytes, for it encodes a str as strict UTF-8; on Windows a str alone."""
    return str(path) if os.name == "nt" else os.fsencode(path)


class _File(soundfile.SoundFile):
    """A file that is read on and on: soundfile seeks after every block where it can, and an MP3 is damaged there, since
    libsndfile looks back at too few of its frames."""

    def seekable(self) -> bool:
        return self.format != "MP3" and super().seekable()


@contextlib.contextmanager
def _opened(path: Source) -> Iterator[_File]:
    """The file as libsndfile reads it."""
    with contextlib.ExitStack() as stack:
        file = _name(path) if isinstance(path, Path) else stack.enter_context(path.open("rb"))
        yield stack.enter_context(_File(file))


@contextlib.contextmanager
def naming(path: Source, what: str) -> Iterator[None]:
    """Whatever a library or the system raises becomes an AudioError that names the file and says `what` it is."""
    try:
        yield
    except AudioError:
        raise
    except Exception as error:
        raise AudioError(f"{path}: {what} ({reason_of(error)})") from None


def reason_of(error: Exception) -> str:
    """The words of libsndfile, FFmpeg or the system for what went wrong, or else those of Python."""
    said = getattr(error, "error_string", None) or getattr(error, "strerror", None)
    return said or f"{type(error).__name__}: {error}"


def audio_info(path: Source) -> AudioInfo:
    """The header of a sound file, checked against limits; raises AudioError when it is missing, not audio or absurd."""
    path = Path(path) if isinstance(path, str) else path
    with naming(path, "not a sound file that libsndfile can read"):
        if not path.is_file():
            raise AudioError(f"{path}: no such file")
        with _opened(path) as file:
            info = AudioInfo(file.samplerate, file.frames, file.channels, subtype=file.subtype)
            log = file.extra_info
    check_limits(info, path)
    for promised, there in _CORRECTED.findall(log):
        if int(there) + 64 < int(promised) < 0x7FFF0000:  # headers miscount by a few bytes; streams write a huge size
            raise AudioError(f"{path}: truncated, {promised} bytes promised and {there} there")
    return info


def check_limits(info: AudioInfo, path: Any) -> None:
    """Raise AudioError for a header that promises nothing, or more than is read."""
    if info.samples < 1:
        raise AudioError(f"{path}: holds no samples")
    if not 1 <= info.sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{path}: sample rate {info.sample_rate} Hz is outside 1 to {MAX_SAMPLE_RATE} Hz")
    if not 1 <= info.channels <= MAX_CHANNELS:
        raise AudioError(f"{path}: {info.channels} channels, at most {MAX_CHANNELS} are read")
    if info.seconds > MAX_SECONDS:
        raise AudioError(f"{path}: {info.seconds / 3600:.1f} hours long, at most {MAX_SECONDS // 3600} are; cut it")


def check_audio(path: Source, seconds: float = math.inf) -> AudioInfo:
    """`audio_info` as found by decoding the samples, block by block; raises AudioError where `read_audio` would.

    A recording of more than `seconds` is decoded at its beginning, in its middle and at its end, a third of them each.
    """
    info, peak = exact_info(path), 0.0
    third = round(min(seconds, info.seconds) * info.sample_rate / 3)
    middle, last = (info.samples - third) // 2, info.samples - third
    samples = 0
    for start, stop in [(0, None)] if info.seconds <= seconds else [(at, at + third) for at in (0, middle, last)]:
        for block in _blocks(path, start, stop):
            loudest = float(np.abs(block).max())
            if not np.isfinite(loudest):
                raise AudioError(f"{path}: holds samples that are not finite numbers")
            samples, peak = samples + len(block), max(peak, loudest)
    if info.seconds > seconds:
        samples = info.samples
    elif not list(_blocks(path, samples // 2, samples // 2 + 1)):
        raise AudioError(f"{path}: damaged, it cannot be read from its middle")
    return dataclasses.replace(info, samples=samples, peak=peak)


def exact_info(path: Source) -> AudioInfo:
    """`audio_info` with the number of samples that there are, which an MP3 may not say and is decoded for then."""
    info = audio_info(path)
    if info.subtype.startswith("MPEG_LAYER"):
        with naming(path, "damaged"):
            if not _says_its_length(path):
                return dataclasses.replace(info, samples=max(1, sum(map(len, _blocks(path)))))
    return info


def read_audio(
    path: Source,
    sample_rate: int | None = None,
    *,
    channels: Channels = "mix",
    offset: float = 0.0,
    seconds: float | None = None,
) -> np.ndarray:
    """A sound file [samples], float32 with full scale 1, resampled to `sample_rate` Hz (None keeps the file's).

    `channels` mixes down ("mix", the mean), selects one ("left", "right", an index) or gives "all" [channels, samples];
    "stereo" is [2, samples], of a mono file twice the same. `offset` and `seconds` read a part, with the samples of the
    whole; a file that ends earlier gives what it has. Warns when channels cancel in the mix. Raises AudioError for
    anything `audio_info` refuses, a channel the file lacks, samples that are not finite, and data shorter than the
    header promises.
    """
    path = Path(path) if isinstance(path, str) else path
    info = audio_info(path)
    source, target = info.sample_rate, info.sample_rate if sample_rate is None else sample_rate
    first, count = round(offset * target), None if seconds is None else round(seconds * target)
    begin, end = _neighbours(first, count, source, target)
    parts = [_select(np.zeros((0, info.channels), np.float32), channels, path)]
    power = of_mix = 0.0
    for block in _blocks(path, begin, end):
        parts.append(_select(block, channels, path))
        of_mix, power = of_mix + np.vdot(parts[-1], parts[-1]), power + np.vdot(block, block) / info.channels
    if channels == "mix" and 100 * of_mix < power:
        warnings.warn(printable(f"{path}: its channels cancel when they are mixed; use one of them"), stacklevel=2)
    y = resample(np.concatenate(parts).T, source, target)
    if not np.isfinite(y).all():
        raise AudioError(f"{path}: holds samples that are not finite numbers")
    return y[..., first - round(begin * target / source) :][..., :count]


def _neighbours(first: int, count: int | None, source: int, target: int) -> tuple[int, int | None]:
    """`begin` and `end` of the source samples for target samples `first` to `first + count`, resampled as in the whole.

    soxr's filter weighs up to 128 samples of the lower rate beside each. `begin` falls together with a target sample,
    or as nearly as any within a twentieth of a second.
    """
    if source == target:
        return first, None if count is None else first + count
    margin = -(-128 * source // min(source, target))
    last = max(0, first * source // target - margin)
    begins = np.arange(last, max(-1, last - source // 20 - 1), -1)
    beside = begins * target % source
    begin = int(begins[np.argmin(np.minimum(beside, source - beside))])
    return begin, None if count is None else -(-(first + count) * source // target) + margin


def _blocks(
    path: Source, start: int = 0, stop: int | None = None, dtype: SampleType = "float32"
) -> Iterator[np.ndarray]:
    """The samples of a file from `start` to `stop` (None: its end) in blocks [samples, channels].

    libsndfile guesses the length of an MP3 that does not say it, and ends there; the rest it reads from a pipe.
    """
    at = start
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming(path, "damaged"))
        source = file = stack.enter_context(_opened(path))
        part = mp3.part(path, file, start, stop) if file.format == "MP3" and start else None
        before = 0
        if part is not None:
            source, before = stack.enter_context(_File(part.stream)), part.before
            stop = min(file.frames, math.inf if stop is None else stop)
        end = None if stop is None else stop - before
        for block in _decoded(source, start - before, end, dtype):
            at += len(block)
            yield block
        if file.format == "MP3" and (stop is None or at < stop) and not _says_its_length(path):
            with mp3.piped(path) as pipe, soundfile.SoundFile(pipe, closefd=False) as stream:
                yield from _decoded(stream, at, stop, dtype)
            return
        promised = file.frames if stop is None else min(stop, file.frames)
        if at < promised:
            raise AudioError(f"{path}: truncated, {promised - start} samples promised and {at - start} read")


def _says_its_length(path: Source) -> bool:
    """Whether libsndfile knows where an MP3 ends; raises AudioError where several are in one."""
    headers = mp3.headers(path)
    if headers > 1:
        raise AudioError(f"{path}: several MP3 files in one, of which only the first can be read; split it")
    return headers == 1


def _decoded(
    file: soundfile.SoundFile, start: int, stop: int | None, dtype: SampleType = "float32"
) -> Iterator[np.ndarray]:
    """Blocks of an open file; a format in which libsndfile cannot seek is decoded from its beginning."""
    at = file.seek(min(start, file.frames)) if start and file.seekable() else 0
    while stop is None or at < stop:
        block = file.read(_BLOCK if stop is None else min(_BLOCK, stop - at), dtype=dtype, always_2d=True)
        if not len(block):
            return
        at += len(block)
        if at > start:
            yield block[max(0, len(block) - (at - start)) :]


def resample(y: np.ndarray, source: float, target: float) -> np.ndarray:
    """`y` [..., samples] of `source` Hz at `target` Hz, by soxr's high quality; float32."""
    if source != target and y.size:
        y = np.stack([soxr.resample(row, source, target, "HQ") for row in y.reshape(-1, y.shape[-1])]).reshape(
            *y.shape[:-1], -1
        )
    return np.ascontiguousarray(y, np.float32)


def expand(path: str | Path) -> Path:
    """`path` with ~ and environment variables filled in, unless that very name is there; refuses an empty one."""
    text = os.fspath(path)
    text = text if os.path.lexists(text) else os.path.expanduser(os.path.expandvars(text))
    if not text.strip():
        raise AudioError(f"path {os.fspath(path)!r} is empty; name a file or folder, . is the current one")
    if "://" in text:
        raise AudioError(f"{text}: is no path of this machine; copy it here, only corpora are read from elsewhere")
    return Path(text)


def scan(folder: Path, extensions: frozenset[str] = EXTENSIONS) -> tuple[list[Path], list[str]]:
    """The sound files below a folder, sorted, and a sentence for each thing that may be sound and cannot be used.

    Sound files are those with one of the `extensions`. Names that begin with a dot are not sounds. Links to folders are
    followed when the folders themselves are read.
    """
    found: list[str] = []
    unused: list[str] = []
    seen: set[str] = set()
    folders, links = [str(folder)], []
    while folders or links:
        where = folders.pop() if folders else links.pop()
        if (real := os.path.realpath(where)) in seen:
            unused.append(f"{where}: a link to a folder that is read already")
            continue
        seen.add(real)
        try:
            with os.scandir(where) as inside:
                entries = sorted(inside, key=lambda entry: entry.name, reverse=True)  # the first is popped first
        except OSError as error:
            unused.append(f"{where}: {error.strerror}")
            continue
        for entry in entries:
            path, linked, suffix = entry.path, entry.is_symlink(), os.path.splitext(entry.name)[1]
            if entry.name.startswith("."):
                continue
            if linked and not os.path.exists(path):
                unused.append(f"{path}: a link to nothing")
            elif os.path.isdir(path) if linked else entry.is_dir():
                (links if linked else folders).append(path)
            elif suffix.lower() in UNREAD:
                unused.append(f"{path}: {suffix} is not read; convert it, for example to .flac")
            elif suffix.lower() in extensions:
                found.append(path)
    found.sort(key=lambda path: path.split(os.sep))
    return [Path(path) for path in found], [printable(line) for line in sorted(unused)]


def sound_files(paths: Sequence[Path]) -> list[Path]:
    """The files, and the sound files in the folders, of `paths`; checked by their headers before any work.

    Warns of what `scan` leaves out.
    """
    found = []
    for path in map(expand, paths):
        inside, unused = scan(path) if path.is_dir() else ([path], [])
        for line in unused:
            warnings.warn(f"left out: {line}", stacklevel=2)
        if not inside:
            raise AudioError(f"{path}: holds no sound files")
        found += inside
    for path in found:
        audio_info(path)
    return found


def audio_blocks(path: Path, dtype: SampleType = "float32") -> Iterator[np.ndarray]:
    """The samples of a file, floats with full scale 1, in blocks [samples, channels].

    As int32, for files of integers, full scale is 2^31: samples of fewer bits are shifted up. Raises AudioError for
    anything `read_audio` refuses.
    """
    audio_info(path)
    for block in _blocks(path, dtype=dtype):
        if not np.isfinite(block).all():
            raise AudioError(f"{path}: holds samples that are not finite numbers")
        yield block


def _select(y: np.ndarray, channels: Channels, path: Source) -> np.ndarray:
    """The wanted channels of samples [samples, channels]: [samples], or [samples, channels] of several."""
    there = y.shape[1]
    if channels == "mix":
        return y.mean(axis=1)
    if channels == "all" or channels == "stereo" and there == 2:
        return y
    if channels == "stereo":
        if there > 2:
            raise AudioError(f"{path}: has {there} channels, where stereo is made of one or two; mix it down")
        return np.repeat(y, 2, axis=1)
    index = {"left": 0, "right": 1}[channels] if isinstance(channels, str) else channels
    if not 0 <= index < there:
        raise AudioError(f"{path}: has {there} channels, channel {channels!r} was asked for; use 'mix'")
    return y[:, index]


def write_audio(path: Path, y: np.ndarray, sample_rate: int) -> int:
    """Write `y` ([samples] or [samples, channels], float in [-1, 1]) as 16-bit FLAC or WAV, by extension, atomically.

    The number of samples outside [-1, 1], which are clipped with a warning. Raises AudioError for another extension or
    samples that are not finite, TypeError for integers.
    """
    path, y = Path(path), np.asarray(y)
    kind = {".wav": "WAV", ".flac": "FLAC"}.get(path.suffix.lower())
    if kind is None:
        raise AudioError(f"{path}: can be written as .wav or .flac only")
    if not np.issubdtype(y.dtype, np.floating):
        raise TypeError(f"{path}: a sound must be floating point in [-1, 1], got {y.dtype}; divide by full scale first")
    if not np.isfinite(y).all():
        raise AudioError(f"{path}: not written, the sound holds samples that are not finite numbers")
    with atomic(path) as temporary:
        soundfile.write(_name(temporary), np.clip(y, -1, 1), sample_rate, subtype="PCM_16", format=kind)
    clipped = int((np.abs(y) > 1).sum())
    if clipped:
        warnings.warn(printable(f"{path}: {clipped} of {y.size} samples outside [-1, 1] were clipped"), stacklevel=2)
    return clipped


def wav_subtype(info: AudioInfo) -> str:
    """How to keep what was made of a file as WAV: with 16 bits, or 24 where the file has more than 16, or floats."""
    return "PCM_24" if info.subtype in _DEEP else "PCM_16"


def exact_subtype(info: AudioInfo) -> str:
    """How a WAV keeps each sample of a file as it is: the file's own subtype, 16 bits for what is decoded to those, or
    floats for what is decoded to floats."""
    return info.subtype if info.subtype in _BYTES else _EXACT.get(info.subtype, "FLOAT")


@contextlib.contextmanager
def sound_writer(
    temporary: Path, path: Path, sample_rate: int, channels: int, subtype: str, samples: int
) -> Iterator[soundfile.SoundFile]:
    """A WAV file, or by its ending a FLAC, open for blocks [samples, channels]; RF64 where `samples` need more than a
    WAV's 4 GiB.

    Raises OSError that names `path`, whose `temporary` file it is, where a block cannot be written.
    """
    size = samples * channels * _BYTES[subtype]
    flac = path.suffix.lower() == ".flac"
    kind = "FLAC" if flac else "WAV" if size < _LARGEST_WAV else "RF64"
    try:
        with soundfile.SoundFile(_name(temporary), "w", sample_rate, channels, subtype, format=kind) as file:
            yield file
            file.flush()
    except (AssertionError, soundfile.SoundFileRuntimeError) as error:  # libsndfile writes less and may not say why
        reason = str(error) or "the disk may be full"
        raise OSError(errno.ENOSPC, f"the sound could not be written ({reason})", str(path)) from None
    if not flac and temporary.stat().st_size < size:
        raise OSError(errno.ENOSPC, "the sound could not be written whole (the disk may be full)", str(path))


def safe_name(text: str) -> str:
    """`text` as a file name on any system, without separators, control characters, leading dots; at most 200 bytes.

    Ordinary names in any script stay as they are, others are changed and end with a hash that keeps them apart.

    >>> safe_name("été 1.5"), safe_name("../a")
    ('été 1.5', '_a-61b4c98b')
    """
    name = "".join("_" if c in '/\\:*?"<>|' or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    name = name.strip().strip(". ")
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE):
        name = f"_{name}"
    cut = name.encode("utf-8")[:191].decode("utf-8", "ignore") or "_"
    same = name and name == text and len(name.encode("utf-8")) <= 200
    return name if same else f"{cut}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends, and vanishes when it fails."""
    suffix = path.suffix if len(path.suffix) < 16 else ""
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:24]}.", suffix=suffix, dir=path.parent)  # of any length
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
