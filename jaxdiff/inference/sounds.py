"""A given sound of any rate and number of channels: read in blocks, worked on at the model's rate, given back alike.

The sound passes twice: for its length and peak, and to be worked on. What the model makes of it comes in pieces, each
with the piece of the sound that it was made of, so that memory does not grow with the length.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.config import ConfigError
from jaxdiff.data.files import audio_blocks, audio_info
from jaxdiff.tasks import Batch, Task

from . import chunks
from .streaming import SoundStream, enhanced_blocks

PIECE_SECONDS = 16.0
CONTEXT_SECONDS = 1.0  # that a task's `restore` sees on both sides of a piece
GRID_HZ = 50  # what `restore` sees begins at a multiple of round(rate / 50) samples, on which its frames may rely

Sound = np.ndarray | str | Path
Take = Callable[[int, int], Batch]
Also = Callable[[int, int], dict[str, np.ndarray]]  # (start, window) in samples: further inputs of one item


class Source(NamedTuple):
    """A sound as a function that gives its blocks [channels, samples]; its rate in Hz; the shape of the whole."""

    blocks: Callable[[], Iterator[np.ndarray]]
    rate: float
    shape: tuple[int, ...]


def read(sound: Sound, rate: float | None, usual: int) -> Source:
    """A file, or an array at `rate`; `usual` is a rate for a mistake's example.

    Raises ConfigError for an array and AudioError for a file that cannot be used.
    """
    if isinstance(sound, str | Path):
        path = Path(sound)
        info = audio_info(path)
        shape = (info.samples,) if info.channels == 1 else (info.channels, info.samples)
        return Source(lambda: (block.T for block in audio_blocks(path)), info.sample_rate, shape)
    wave = np.asarray(sound)
    if wave.ndim not in (1, 2) or not np.issubdtype(wave.dtype, np.floating) or 0 in wave.shape:
        raise ConfigError(
            f"sound: expected floats [samples] or [channels, samples], got {wave.dtype} {list(wave.shape)}"
        )
    if not np.isfinite(wave).all():
        raise ConfigError("sound: holds samples that are not finite numbers")
    if rate is None:
        raise ConfigError(f"sr: say the sample rate of the array in Hz, for example sr={usual}")
    return Source(lambda: chunks.blocks(np.atleast_2d(wave).astype(np.float32, copy=False)), rate, wave.shape)


def processed(
    source: Source,
    task: Task,
    request: Any,
    sr: int,
    windows: Callable[[Take, int, int], Iterator[np.ndarray]],
    stream: SoundStream | None = None,
    also: Also | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The sound and what is made of it, both [channels, samples], in pieces.

    `windows(take, length, channels)` makes sound at `sr` Hz of the batches that `take(start, window)` gives; a `stream`
    is used instead where there is one. What `also` gives for a window is put into its batch, alike for all channels.
    """
    rate = source.rate
    channels, length, peak = _measured(chunks.resampled(source.blocks(), rate, sr))
    sound, made = chunks.Passing(channels), chunks.Passing(channels)

    def heard() -> Iterator[np.ndarray]:
        for block in source.blocks():
            sound.add(block)
            yield block

    def restored(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        low, high = max(0, start - context), min(sound.end, stop + context)
        given, inner = sound.part(low, high), slice(start - low, stop - low)
        out = task.restore(given, made.part(low, high), rate, sr, request)
        sound.forget(stop - context)
        made.forget(stop - context)
        return given[:, inner], np.asarray(out[:, inner], np.float32)

    if stream is None:
        gain, passing = float(task.gain(peak)), chunks.Passing(channels)
        take = _with(_windowed(chunks.resampled(heard(), rate, sr), passing, gain), also, channels)
        results = (part / gain for part in windows(take, length, channels))
    else:
        results = enhanced_blocks(stream, chunks.resampled(heard(), rate, sr), length)
    grid, start = max(1, round(rate / GRID_HZ)), 0
    size, context = (round(seconds * GRID_HZ) * grid for seconds in (PIECE_SECONDS, CONTEXT_SECONDS))
    for out in chunks.resampled(results, sr, rate):
        made.add(out)
        while min(sound.end, made.end) >= start + size + context:
            yield restored(start, start + size)
            start += size
    while start < sound.end:
        stop = min(start + size, sound.end)
        yield restored(start, stop)
        start = stop


def _with(take: Take, also: Also | None, channels: int) -> Take:
    if also is None:
        return take
    more = lambda *where: {k: np.broadcast_to(v, (channels, *v.shape)) for k, v in also(*where).items()}  # noqa: E731
    return lambda *where: {**take(*where), **more(*where)}


def mixed(source: Source, task: Task, sr: int) -> tuple[Take, int]:
    """Windows of the mean of all channels at `sr` Hz and at the task's level, and how many samples there are."""

    def mono() -> Iterator[np.ndarray]:
        return (y.mean(0, keepdims=True) for y in chunks.resampled(source.blocks(), source.rate, sr))

    _, length, peak = _measured(mono())
    return _windowed(mono(), chunks.Passing(1), float(task.gain(peak))), length


def _measured(blocks: Iterator[np.ndarray]) -> tuple[int, int, float]:
    """Channels, samples (at least one: a sound may be shorter than a sample of its rate) and peak of a sound."""
    length, peak, channels = 0, 0.0, 1
    for y in blocks:
        channels, length, peak = len(y), length + y.shape[-1], max(peak, float(np.abs(y).max(initial=0)))
    return channels, max(length, 1), peak


def _windowed(blocks: Iterator[np.ndarray], heard: chunks.Passing, gain: float) -> Take:
    """Windows of a sound in blocks [channels, samples], which pass through `heard`."""

    def take(start: int, window: int) -> Batch:
        while heard.end < start + window and (block := next(blocks, None)) is not None:
            heard.add(block)
        heard.forget(start)
        return {"wave": gain * heard.part(start, start + window)}

    return take
