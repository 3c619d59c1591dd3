"""A sound file with some samples replaced and all others bit for bit: how repaired and edited files are written.

Samples of integer formats are read and written as integers, so that nothing is rounded but what is replaced. The
patches wait in an unnamed file until all have come, for only then is it known whether they fit into the file's format.
At last what was written is read again and compared with the source, sample by sample.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxdiff.data.files import (
    AudioError,
    AudioInfo,
    SampleType,
    atomic,
    audio_blocks,
    audio_info,
    exact_subtype,
    sound_writer,
)

_BITS = {"PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}


class Patch(NamedTuple):
    """A place of a sound made anew: `start` is its first sample at the file's rate; of `made` (float32 or float64, full
    scale 1) only the samples where `changed` is true are used."""

    start: int
    made: Float[np.ndarray, "channels samples"]
    changed: Bool[np.ndarray, "channels samples"]

    @property
    def stop(self) -> int:
        """The sample after the last."""
        return self.start + self.made.shape[-1]


class Patched(NamedTuple):
    """The facts of a written file: its `seconds`, the `subtype` of the WAV, how many samples were `changed` of all
    `samples` (of every channel), its largest sample, and whether reading it again has shown that the others are
    the source's."""

    seconds: float
    subtype: str
    changed: int
    samples: int
    peak: float
    verified: bool


def write_patched(
    file: Path,
    target: Path,
    patches: Iterable[Patch],
    *,
    longer: int = 0,
    tell: Callable[[float], None] = lambda share: None,
) -> Patched:
    """Write `file` as WAV `target` with the samples of `patches` replaced and all others bit for bit.

    The patches come in order and do not overlap; memory does not grow with the length of the file. The WAV has the
    file's rate and channels, and is `longer` by so many samples per channel, all of which a patch must make. It has the
    file's subtype; 16 bits where that is of fewer, or decoded to 16 (u-law, ADPCM); floats where a lossy format is
    decoded to floats. New samples are rounded to that. Where one exceeds the full scale of integers the WAV has floats
    instead, which hold the others exactly (double ones for 32 bits): nothing is scaled or clipped. `tell` hears which
    share is done. Raises ValueError for patches that do not fit, AudioError for a file that cannot be used or a result
    that is not the file's outside the patches, and OSError where it cannot be written; no file is left then.
    """
    info = audio_info(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=target.parent) as held, atomic(target) as temporary:
        spool = _Spool(held, info.channels)
        for patch in patches:
            spool.add(patch)
            tell(min(1.0, patch.stop / (info.samples + longer)))
        subtype = _subtype(info, spool)
        kind = _kind(subtype)
        samples, peak = 0, 0.0
        with sound_writer(temporary, target, info.sample_rate, info.channels, subtype, info.samples + longer) as out:
            for block, made, changed in _beside(audio_blocks(file, kind), spool, longer):
                block = np.where(changed, _quantised(made, subtype), block)
                peak = max(peak, float(np.abs(block.astype(np.float64)).max()))
                samples += len(block)
                out.write(block)
        _verify(file, temporary, target, kind, spool, longer)
    scale = 2.0**31 if kind == "int32" else 1.0
    return Patched(samples / info.sample_rate, subtype, spool.changed, samples * info.channels, peak / scale, True)


class _Spool:
    """Patches in an unnamed file, to be read in order as often as one likes."""

    def __init__(self, held: IO[bytes], channels: int):
        self.held, self.channels = held, channels
        self.count, self.stop, self.changed = 0, 0, 0
        self.least, self.most = 0.0, 0.0  # of the new samples

    def add(self, patch: Patch) -> None:
        """Check a patch and keep it."""
        made, changed = patch.made, patch.changed
        kinds, shapes = f"{made.dtype} and {changed.dtype}", f"{list(made.shape)} and {list(changed.shape)}"
        if made.dtype not in (np.float32, np.float64) or changed.dtype != np.bool_:
            raise ValueError(f"a patch has made as float32 or float64 and changed as bool, got {kinds}")
        if made.ndim != 2 or made.shape != changed.shape or len(made) != self.channels:
            raise ValueError(f"a patch has made and changed as [{self.channels}, samples], got {shapes}")
        if patch.start < self.stop:
            raise ValueError(f"patches come in order and apart; one begins at {patch.start}, before sample {self.stop}")
        new = made[changed]
        if not np.isfinite(new).all():
            raise ValueError(f"the patch at sample {patch.start} holds samples that are not finite numbers")
        self.count, self.stop, self.changed = self.count + 1, patch.stop, self.changed + new.size
        self.least, self.most = min(self.least, new.min(initial=0.0)), max(self.most, new.max(initial=0.0))
        for array in (np.int64(patch.start), np.where(changed, made, 0), changed):
            np.save(self.held, array)

    def __iter__(self) -> Iterator[Patch]:
        self.held.seek(0)
        for _ in range(self.count):
            start, made, changed = (np.load(self.held) for _ in range(3))
            yield Patch(int(start), made, changed)


def _subtype(info: AudioInfo, spool: _Spool) -> str:
    """The subtype of the WAV, which holds the samples of the file exactly and the new ones without clipping."""
    subtype = exact_subtype(info)
    if subtype not in _BITS:
        return subtype
    full = 2 ** (_BITS[subtype] - 1)
    if -full <= np.rint(spool.least * full) and np.rint(spool.most * full) < full:
        return subtype
    return "DOUBLE" if subtype == "PCM_32" else "FLOAT"


def _kind(subtype: str) -> SampleType:
    """The numbers that hold the samples of a WAV exactly."""
    return "int32" if subtype in _BITS else "float64" if subtype == "DOUBLE" else "float32"


def _quantised(made: np.ndarray, subtype: str) -> np.ndarray:
    """New samples as the numbers that are written; integers are 32 bits wide, rounded to those that the WAV has."""
    if subtype not in _BITS:
        return made.astype(_kind(subtype))
    bits = _BITS[subtype]
    full = 2 ** (bits - 1)
    return np.rint(made * full).astype(np.int32) << (32 - bits)


def _beside(
    blocks: Iterable[np.ndarray], spool: _Spool, longer: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks [samples, channels] of a sound, `longer` by zeros, with the patches' samples and where they count.

    Raises ValueError where a patch reaches beyond the end, or none makes what is longer.
    """
    patches, at, new = iter(spool), 0, 0
    patch = next(patches, None)
    for block, added in _lengthened(blocks, longer, spool.channels):
        stop = at + len(block)
        made, changed = np.zeros(block.shape, np.float64), np.zeros(block.shape, bool)
        while patch is not None and patch.start < stop:
            low, high = max(patch.start, at), min(patch.stop, stop)
            inside = slice(low - patch.start, high - patch.start)
            made[low - at : high - at] = patch.made[:, inside].T
            changed[low - at : high - at] = patch.changed[:, inside].T
            if patch.stop > stop:
                break
            patch = next(patches, None)
        if added:
            new += int(changed.sum())
        yield block, made, changed
        at = stop
    if patch is not None and patch.stop > at:
        raise ValueError(f"a patch reaches to sample {patch.stop}, the sound ends at {at}")
    if new < longer * spool.channels:
        raise ValueError(f"the {longer} samples after the sound's end must all be made, {new} were")


def _lengthened(blocks: Iterable[np.ndarray], longer: int, channels: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Blocks, and zeros after their end, with whether they are those."""
    last, dtype = 0, np.dtype(np.float32)
    for block in blocks:
        last, dtype = max(last, len(block)), block.dtype
        yield block, False
    for start in range(0, longer, max(last, 1)):
        yield np.zeros((min(last, longer - start), channels), dtype), True


def _verify(file: Path, temporary: Path, target: Path, kind: SampleType, spool: _Spool, longer: int) -> None:
    """Raise AudioError unless what was written has the bits of the file outside the patches, and its length."""
    written, at = _Regular(audio_blocks(temporary, kind)), 0
    for block, _, changed in _beside(audio_blocks(file, kind), spool, longer):
        bits = [np.ascontiguousarray(y).view(f"u{y.dtype.itemsize}") for y in (block, written.take(len(block)))]
        if bits[0].shape != bits[1].shape:
            raise AudioError(f"{target}: not written, it has not the length of {file}")
        wrong = (bits[0] != bits[1]) & ~changed
        if wrong.any():
            raise AudioError(
                f"{target}: not written, {int(wrong.sum())} samples after sample {at} were to be left as {file} has "
                "them and were not; check the disk, and if it is sound report this as a bug"
            )
        at += len(block)
    if len(written.take(1)):
        raise AudioError(f"{target}: not written, it has not the length of {file}")


class _Regular:
    """Blocks of any length, to be taken in other lengths."""

    def __init__(self, blocks: Iterator[np.ndarray]):
        self._blocks, self._held = blocks, None

    def take(self, samples: int) -> np.ndarray:
        """The next samples, fewer at the end."""
        held = next(self._blocks) if self._held is None else self._held
        while len(held) < samples and (block := next(self._blocks, None)) is not None:
            held = np.concatenate([held, block])
        self._held = held[samples:]
        return held[:samples]
