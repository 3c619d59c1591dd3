"""Read and write sound files safely: any format libsndfile knows in, WAV or FLAC out.

libsndfile trusts headers: it opens files that promise more than they hold, absurd sample rates and a thousand channels.
So every file is judged by its header before memory is taken, and by its samples after. Writing goes to a temporary file
beside the target that is renamed when complete: a reader never sees half a file.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

Channels = Literal["mix", "left", "right", "all"] | int

MAX_SAMPLE_RATE = 768_000
MAX_CHANNELS = 64
MAX_SECONDS = 4 * 3600
EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd",
                        ".caf", ".w64", ".rf64", ".voc", ".sph"})  # fmt: skip


class AudioError(ValueError):
    """A sound file, or a folder of them, that cannot be used; the message is one sentence that names it."""


@dataclass(frozen=True)
class AudioInfo:
    """What a header says: sample rate in Hz, samples per channel, channels."""

    sample_rate: int
    samples: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


def audio_info(path: Path) -> AudioInfo:
    """The header of a sound file, checked against limits; raises AudioError when it is missing, not audio or absurd."""
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    try:
        header = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: not a sound file that libsndfile can read ({error.error_string})") from None
    info = AudioInfo(header.samplerate, header.frames, header.channels)
    if info.samples < 1:
        raise AudioError(f"{path}: holds no samples")
    if not 1 <= info.sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"{path}: sample rate {info.sample_rate} Hz is outside 1 to {MAX_SAMPLE_RATE} Hz")
    if not 1 <= info.channels <= MAX_CHANNELS:
        raise AudioError(f"{path}: {info.channels} channels, at most {MAX_CHANNELS} are read")
    if info.seconds > MAX_SECONDS:
        raise AudioError(f"{path}: {info.seconds / 3600:.1f} hours long, at most {MAX_SECONDS // 3600} are; cut it")
    return info


def check_audio(path: Path) -> AudioInfo:
    """`audio_info`, then every sample is decoded block by block: raises AudioError for truncated or non-finite data."""
    info, samples = audio_info(path), 0
    try:
        for block in soundfile.blocks(str(path), blocksize=1 << 16, dtype="float32"):
            samples += len(block)
            if not np.isfinite(block).all():
                raise AudioError(f"{path}: holds samples that are not finite numbers")
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: damaged ({error.error_string})") from None
    if samples < info.samples:
        raise AudioError(f"{path}: truncated, {info.samples} samples promised and {samples} read")
    return info


def read_audio(
    path: Path,
    sample_rate: int | None = None,
    *,
    channels: Channels = "mix",
    offset: float = 0.0,
    seconds: float | None = None,
) -> np.ndarray:
    """A sound file [samples], float32 in [-1, 1], resampled to `sample_rate` Hz (None keeps the file's).

    `channels` mixes down ("mix", the mean), selects one ("left", "right", an index) or gives "all" [channels, samples].
    `offset` and `seconds` read a part; a file that ends earlier gives what it has. Raises AudioError for anything
    `audio_info` refuses, a channel the file lacks, samples that are not finite, and data shorter than the header
    promises.
    """
    info = audio_info(path)
    start = min(round(offset * info.sample_rate), info.samples)
    count = info.samples - start if seconds is None else min(round(seconds * info.sample_rate), info.samples - start)
    try:
        y, _ = soundfile.read(str(path), start=start, frames=count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: damaged ({error.error_string})") from None
    if len(y) < count:
        raise AudioError(f"{path}: truncated, {count} samples promised and {len(y)} read")
    y = y.T if channels == "all" else _select(y, channels, path)
    if not np.isfinite(y).all():
        raise AudioError(f"{path}: holds samples that are not finite numbers")
    return resample(y, info.sample_rate, info.sample_rate if sample_rate is None else sample_rate)


def resample(y: np.ndarray, source: float, target: float) -> np.ndarray:
    """`y` [..., samples] of `source` Hz at `target` Hz, by soxr's high quality; float32."""
    if source != target:
        y = np.stack([soxr.resample(row, source, target, "HQ") for row in y.reshape(-1, y.shape[-1])]).reshape(
            *y.shape[:-1], -1
        )
    return np.ascontiguousarray(y, np.float32)


def sound_files(paths: Sequence[Path]) -> list[Path]:
    """The files, and the sound files in the folders, of `paths`; checked by their headers before any work."""
    found = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS) if path.is_dir() else [path]
        if not inside:
            raise AudioError(f"{path}: holds no sound files")
        found += inside
    for path in found:
        audio_info(path)
    return found


def _select(y: np.ndarray, channels: Channels, path: Path) -> np.ndarray:
    if channels == "mix":
        return y.mean(axis=1)
    index = {"left": 0, "right": 1}[channels] if isinstance(channels, str) else channels
    if not 0 <= index < y.shape[1]:
        raise AudioError(f"{path}: has {y.shape[1]} channels, channel {channels!r} was asked for; use 'mix'")
    return y[:, index]


def write_audio(path: Path, y: np.ndarray, sample_rate: int) -> None:
    """Write `y` ([samples] or [samples, channels], float in [-1, 1]) as 16-bit FLAC or WAV, by extension, atomically.

    Samples outside [-1, 1] are clipped. Raises AudioError for another extension or samples that are not finite.
    """
    path = Path(path)
    kind = {".wav": "WAV", ".flac": "FLAC"}.get(path.suffix.lower())
    if kind is None:
        raise AudioError(f"{path}: can be written as .wav or .flac only")
    if not np.isfinite(y).all():
        raise AudioError(f"{path}: not written, the sound holds samples that are not finite numbers")
    with atomic(path) as temporary:
        soundfile.write(str(temporary), np.clip(y, -1, 1), sample_rate, subtype="PCM_16", format=kind)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends, and vanishes when it fails."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
