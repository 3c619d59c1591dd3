"""Sounds of any length by windows of one length, so that one program of constant memory makes them all.

Windows begin `advance` samples after one another and overlap by the rest. Each is right where it is far from its cut
ends; neighbours are joined by a short cross-fade in the middle of their overlap. The noise that sampling begins with is
a function of the place in the sound, not in the window, so that neighbours make the same sound where they overlap.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import soxr
from jaxtyping import Array, Float, Int, Key

from jaxdiff.diffusion import noise

_AT_ONCE = 2  # windows: a program leaves much of a second core idle, and an accelerator while results are fetched
_T = TypeVar("_T")
_LATER = 0x6C617465  # sets these keys apart from those that samplers fold with the number of a step


def starts(samples: int, window: int, advance: int) -> range:
    """Where windows begin that cover so many samples; the last may reach beyond the end.

    >>> list(starts(25, 10, 6)), list(starts(9, 10, 6))
    ([0, 6, 12, 18], [0])
    """
    count = 1 + max(0, -(-(samples - window) // advance))
    return range(0, count * advance, advance)


def cut(wave: Float[np.ndarray, "... samples"], start: int, window: int) -> Float[np.ndarray, "... window"]:
    """A window of a sound, zero beyond its end."""
    piece = wave[..., start : start + window]
    return np.pad(piece, [(0, 0)] * (wave.ndim - 1) + [(0, window - piece.shape[-1])])


def join(
    whole: Float[np.ndarray, "... samples"], piece: Float[np.ndarray, "... window"], start: int, overlap: int
) -> None:
    """Put a window in its place of `whole`, after those before it: a raised-cosine cross-fade over an eighth of the
    `overlap`, in its middle."""
    fade = overlap // 8 if start else 0
    low = start + (overlap - fade) // 2 if start else 0
    piece = piece[..., low - start :][..., : max(0, whole.shape[-1] - low)]
    ramp = np.ones(piece.shape[-1], np.float32)
    ramp[:fade] = (0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / max(fade, 1)))[: len(ramp)]
    place = whole[..., low : low + piece.shape[-1]]
    place += ramp * (piece - place)


def later_key(key: Key[Array, ""], block: Int[Array, ""]) -> Key[Array, ""]:
    """The key of a block or window of a sound: `key` itself for the first, so that a short sound is what it was."""
    other = jax.random.fold_in(jax.random.fold_in(key, _LATER), block)
    data = jnp.where(block == 0, jax.random.key_data(key), jax.random.key_data(other))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))


def windowed_noise(
    keys: Key[Array, " batch"], first: Int[Array, " batch"], frames: int, channels: int
) -> Float[Array, "batch frames channels"]:
    """Unit noise for windows of `frames` that begin at frame `first` of their sounds: the same at the same frame.

    It comes in blocks of as many frames; the first is `noise(key, (frames, channels))`, whose rows are also those of
    any shorter sound.
    """

    def one(key: Array, first: Array) -> Array:
        block = first // frames
        two = [noise(later_key(key, block + i), (frames, channels)) for i in (0, 1)]
        return jax.lax.dynamic_slice_in_dim(jnp.concatenate(two), first - block * frames, frames)

    return jax.vmap(one)(keys, first)


def groups(jobs: list, size: int) -> Iterator[list]:
    """Jobs `size` at a time."""
    for first in range(0, len(jobs), size):
        yield jobs[first : first + size]


def ahead(calls: Iterable[Callable[[], _T]]) -> Iterator[_T]:
    """The results of calls, in order: of the first alone, which may have to compile, and then of two at once."""
    calls = iter(calls)
    if (first := next(calls, None)) is None:
        return
    yield first()
    waiting: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > _AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Passing:
    """The part of a sound that is held while it passes in blocks [channels, samples]: samples `begin` to `end`."""

    def __init__(self, channels: int):
        self.begin, self._held = 0, np.zeros((channels, 0), np.float32)

    @property
    def end(self) -> int:
        return self.begin + self._held.shape[-1]

    def add(self, block: Float[np.ndarray, "channels samples"]) -> None:
        self._held = np.concatenate([self._held, block], axis=-1)

    def part(self, start: int, stop: int) -> Float[np.ndarray, "channels samples"]:
        """Samples `start`, which must be held, to `stop`; zero beyond the end."""
        return cut(self._held, start - self.begin, stop - start)

    def forget(self, before: int) -> None:
        """Let go of the samples before this one."""
        if before > self.begin:
            self._held = self._held[:, before - self.begin :].copy()
            self.begin = before


def blocks(wave: Float[np.ndarray, "channels samples"], samples: int = 1 << 16) -> Iterator[np.ndarray]:
    """A sound in blocks."""
    for start in range(0, wave.shape[-1], samples):
        yield wave[:, start : start + samples]


def resampled(blocks: Iterable[np.ndarray], source: float, target: float) -> Iterator[np.ndarray]:
    """Blocks [channels, samples] of `source` Hz at `target` Hz, the samples of `data.files.resample`."""
    if source == target:
        yield from blocks
        return
    stream, last = None, np.zeros((0, 1), np.float32)
    for block in blocks:
        if stream is None:
            stream, last = soxr.ResampleStream(source, target, len(block), "float32", "HQ"), last.repeat(len(block), 1)
        yield stream.resample_chunk(np.ascontiguousarray(block.T, np.float32)).T
    if stream is not None:
        yield stream.resample_chunk(last, last=True).T
