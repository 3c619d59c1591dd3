"""Pitch and loudness of a whole sound of any length, frame by frame: what a conversion of voices moves, and keeps."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jaxdiff.features import frame_loudness
from jaxdiff.tasks.voice import F0_HIGHEST, pitch_of

from . import chunks, sounds
from .sounds import Sound

RATE = 16_000
HOP = 160  # samples at that rate
_PIECE_SECONDS, _MARGIN_SECONDS = 24, 1  # looked at together, and seen beside that


class Contours(NamedTuple):
    """Per frame of 10 ms: octaves above 200 Hz, whether there is a pitch, and A-weighted loudness in dB."""

    octaves: np.ndarray
    voiced: np.ndarray
    loudness: np.ndarray

    @property
    def pitch(self) -> tuple[float, float] | None:
        """Mean, in octaves above 200 Hz, and deviation in octaves of the voiced frames; None with fewer than 10."""
        if self.voiced.sum() < 10:
            return None
        octaves = self.octaves[self.voiced]
        return float(octaves.mean()), float(octaves.std())


def contours(sound: Sound, *, sr: float | None = None, highest: float = F0_HIGHEST) -> Contours:
    """The contours of a sound, channels mixed, with pitches up to `highest` Hz; memory grows by 9 bytes a frame.

    Raises as a pipeline does.
    """
    source = sounds.read(sound, sr, RATE)
    held, begin, parts = chunks.Passing(1), 0, []
    size, margin = _PIECE_SECONDS * RATE, _MARGIN_SECONDS * RATE

    def look(stop: int, last: bool) -> None:
        nonlocal begin
        low = max(0, begin - margin)
        found = _look(held.part(low, low + size + 2 * margin), highest)
        first, count = (begin - low) // HOP, 1 + (stop - begin) // HOP if last else (stop - begin) // HOP
        parts.append([np.asarray(x)[first : first + count] for x in found])
        begin = stop
        held.forget(begin - margin)

    for block in chunks.resampled(source.blocks(), source.rate, RATE):
        held.add(block.mean(0, keepdims=True))
        while held.end >= begin + size + margin:
            look(begin + size, False)
    while begin < held.end or not parts:
        stop = min(begin + size, held.end)
        look(stop, stop == held.end)
    return Contours(*(np.concatenate(values) for values in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames="highest")
def _look(y: Array, highest: float) -> tuple[Array, Array, Array]:
    octaves, voiced = pitch_of(y, RATE, HOP, highest)
    return octaves[0], voiced[0], frame_loudness(y, sr=RATE, n_fft=1024, hop_length=HOP, min_db=-100.0)[0]


def folder_pitch(files: list[Path]) -> tuple[float, float] | None:
    """The pitch of all files together, as `Contours.pitch`."""
    found = [contours(file) for file in files]
    return Contours(*(np.concatenate(values) for values in zip(*found, strict=True))).pitch
