"""A recording becomes a training example: where a crop of it is cut, and how it is read.

A crop starts at a random place of a long recording ("random") or at its beginning ("start": one-shots, whose onset
matters) and is zero-padded when the recording is shorter.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from .corpora import Recording
from .files import Channels, read_audio

Example = dict[str, Any]  # "wave" [samples] and further sounds, "label" int32 (-1: no class)


class Place(NamedTuple):
    """Where a crop is cut: `rate` in Hz at which the file is read, `offset` and `seconds` in seconds of it."""

    rate: int
    offset: float
    seconds: float


Part = Callable[[Recording, Place], np.ndarray]  # reads a place of a recording's file: samples at its rate


class Crop(NamedTuple):
    """How a recording becomes a training example; `speed` s draws playback speeds from 2**-s to 2**s octaves.

    Of `channels` "stereo" and "all" a wave is [channels, samples], else [samples].
    """

    samples: int
    sample_rate: int
    position: Literal["random", "start"] = "random"
    channels: Channels = "mix"
    speed: float = 0.0

    def place(self, recording: Recording, rng: np.random.Generator) -> Place:
        """Where to cut a recording; randomness from `rng` alone."""
        octaves = rng.uniform(-self.speed, self.speed) if self.speed else 0.0
        rate = round(self.sample_rate * 2**-octaves)  # played back at sample_rate: speed and pitch x 2**octaves
        length = self.samples / rate
        slack = max(0.0, recording.seconds - length)
        offset = recording.offset + (rng.uniform(0, slack) if self.position == "random" else 0.0)
        return Place(rate, offset, min(length, recording.until - offset))

    def cut(self, recording: Recording, place: Place, *, part: Part | None = None) -> np.ndarray:
        """The crop [..., samples] float32 at a place of a recording's file; `part` reads it, None: from the file."""
        y = (part or self._from_file)(recording, place)[..., : self.samples]
        crop = np.zeros((*y.shape[:-1], self.samples), np.float32)
        crop[..., : y.shape[-1]] = y
        return crop

    def read(self, recording: Recording, rng: np.random.Generator, *, part: Part | None = None) -> Example:
        """A crop of one recording and its class."""
        wave = self.cut(recording, self.place(recording, rng), part=part)
        return {"wave": wave, "label": np.int32(-1 if recording.label is None else recording.label)}

    def _from_file(self, r: Recording, place: Place) -> np.ndarray:
        return read_audio(r.path, place.rate, channels=self.channels, offset=place.offset, seconds=place.seconds)

    def from_memory(self) -> Part:
        """Decodes a recording once and keeps it, at the crop's rate: for crops without `speed`."""

        @functools.cache
        def whole(r: Recording) -> np.ndarray:
            length = None if r.until == math.inf else r.until - r.offset
            return read_audio(r.path, self.sample_rate, channels=self.channels, offset=r.offset, seconds=length)

        def part(r: Recording, at: Place) -> np.ndarray:
            first = round(at.offset * at.rate) - round(r.offset * at.rate)
            return whole(r)[..., first:][..., : round(at.seconds * at.rate)]

        return part
