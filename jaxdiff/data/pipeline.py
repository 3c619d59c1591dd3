"""From a corpus to batches of raw crops: a Grain pipeline whose batch is a function of (seed, step) alone.

Each epoch is a new permutation of the recordings. A crop starts at a random place of a long recording ("random") or
at its beginning ("start": one-shots, whose onset matters) and is zero-padded when the recording is shorter. A corpus
that fits in memory is decoded once. What can run on the device (features, noise) is left to the training step.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import grain
import numpy as np

from .corpora import Corpus, Recording
from .files import AudioError, Channels, read_audio


class Batch(TypedDict):
    """Raw crops [batch, samples] float32 and class indices [batch] int32 (-1: no class)."""

    wave: np.ndarray
    label: np.ndarray


Part = Callable[[Path, int, float, float], np.ndarray]  # (file, rate in Hz, offset and length in seconds) -> samples


class Crop(NamedTuple):
    """How a recording becomes a training example; `speed` s draws playback speeds from 2**-s to 2**s octaves."""

    samples: int
    sample_rate: int
    position: Literal["random", "start"] = "random"
    channels: Channels = "mix"
    peak: float | None = None
    speed: float = 0.0

    def read(self, recording: Recording, rng: np.random.Generator, *, part: Part | None = None) -> Batch:
        """A crop of one recording; randomness from `rng` alone. `part` reads it, None: from its file."""
        octaves = rng.uniform(-self.speed, self.speed) if self.speed else 0.0
        rate = round(self.sample_rate * 2**-octaves)  # played back at sample_rate: speed and pitch x 2**octaves
        seconds = self.samples / rate
        slack = max(0.0, recording.seconds - seconds)
        offset = rng.uniform(0, slack) if self.position == "random" else 0.0
        y = (part or self._from_file)(recording.path, rate, offset, seconds)[: self.samples]
        y = np.pad(y, (0, self.samples - len(y)))
        if self.peak is not None:
            y = y * (self.peak / max(np.abs(y).max(), 1e-4))
        return {"wave": y.astype(np.float32), "label": np.int32(-1 if recording.label is None else recording.label)}

    def _from_file(self, path: Path, rate: int, offset: float, seconds: float) -> np.ndarray:
        return read_audio(path, rate, channels=self.channels, offset=offset, seconds=seconds)

    def from_memory(self) -> Part:
        """Decodes a recording once and keeps it, at the crop's rate: for crops without `speed`."""

        @functools.cache
        def whole(path: Path) -> np.ndarray:
            return read_audio(path, self.sample_rate, channels=self.channels)

        return lambda path, rate, offset, seconds: whole(path)[round(offset * rate) :][: round(seconds * rate)]


class _Recordings(grain.sources.RandomAccessDataSource):
    def __init__(self, corpus: Corpus):
        self._recordings = corpus.recordings

    def __len__(self) -> int:
        return len(self._recordings)

    def __getitem__(self, index: int) -> Recording:
        return self._recordings[index]

    def __repr__(self) -> str:
        return f"{len(self)} recordings"


def batches(
    corpus: Corpus,
    crop: Crop,
    batch: int,
    seed: int,
    *,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
    memory: float = 0,
) -> Iterator[Batch]:
    """Endless batches from step `start` on; reading and resampling run ahead in threads.

    Batch k is the same whether the iterator began at 0 or at k. `process` (index, count) gives each host its share of
    the recordings, kept decoded when `memory` bytes hold them all. Raises AudioError when a recording turns out
    damaged.
    """
    source = grain.MapDataset.source(_Recordings(corpus)).seed(seed)[process[0] :: process[1]]
    if len(source) == 0:
        raise AudioError(f"{corpus.root}: {len(corpus.recordings)} recordings are too few for {process[1]} processes")
    fits = 4 * crop.sample_rate * corpus.seconds / process[1] <= memory and not crop.speed
    read = functools.partial(crop.read, part=crop.from_memory() if fits else None)
    data = source.shuffle().repeat(None).random_map(read).batch(batch, drop_remainder=True)
    iterator = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=2 * batch)))
    iterator.set_state({"next_index": start})
    return iterator
