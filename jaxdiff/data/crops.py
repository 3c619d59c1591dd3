"""Corpora become batches of raw crops: a Grain pipeline whose batch is a function of (seed, step) alone.

Each epoch is a new permutation of the recordings; where classes are to be heard more evenly, recordings are drawn. A
crop starts at a random place of a long recording ("random") or at its beginning ("start": one-shots, whose onset
matters) and is zero-padded when the recording is shorter. Beside its wave an example may hold further sounds by name:
crops of a recording drawn from another corpus (noise, rooms), the same place of the recording's partner (a target), its
notes there, or another recording of its class. A corpus that fits in memory is decoded once. What can run on the
device (level, features, noise) is left to the training step.
"""

import collections
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from .corpora import Corpus, Recording
from .files import AudioError, Channels, read_audio
from .midi import EXTENSIONS as SCORES
from .midi import Notes, cut_notes, read_midi

Sounds = dict[str, np.ndarray]  # "wave" and further sounds [batch, samples] float32, "label" int32 (-1: no class)
Example = dict[str, Any]  # one of them, its label a scalar
_TRIES = 50  # recordings drawn in place of one that cannot be read: at most a tenth of them are bad


class Place(NamedTuple):
    """Where a crop is cut: `rate` in Hz at which the file is read, `offset` and `seconds` in seconds of it."""

    rate: int
    offset: float
    seconds: float


Part = Callable[[Path, Place], np.ndarray]  # reads a place of a file: samples at its rate


class Crop(NamedTuple):
    """How a recording becomes a training example; `speed` s draws playback speeds from 2**-s to 2**s octaves."""

    samples: int
    sample_rate: int
    position: Literal["random", "start"] = "random"
    channels: Channels = "mix"
    speed: float = 0.0

    def place(self, seconds: float, rng: np.random.Generator) -> Place:
        """Where to cut a recording of that many seconds; randomness from `rng` alone."""
        octaves = rng.uniform(-self.speed, self.speed) if self.speed else 0.0
        rate = round(self.sample_rate * 2**-octaves)  # played back at sample_rate: speed and pitch x 2**octaves
        length = self.samples / rate
        slack = max(0.0, seconds - length)
        return Place(rate, rng.uniform(0, slack) if self.position == "random" else 0.0, length)

    def cut(self, path: Path, place: Place, *, part: Part | None = None) -> np.ndarray:
        """The crop [samples] float32 at a place of a file; `part` reads it, None: from the file."""
        y = (part or self._from_file)(path, place)[: self.samples]
        return np.pad(y, (0, self.samples - len(y))).astype(np.float32)

    def read(self, recording: Recording, rng: np.random.Generator, *, part: Part | None = None) -> Example:
        """A crop of one recording and its class."""
        wave = self.cut(recording.path, self.place(recording.seconds, rng), part=part)
        return {"wave": wave, "label": np.int32(-1 if recording.label is None else recording.label)}

    def _from_file(self, path: Path, place: Place) -> np.ndarray:
        return read_audio(path, place.rate, channels=self.channels, offset=place.offset, seconds=place.seconds)

    def from_memory(self) -> Part:
        """Decodes a recording once and keeps it, at the crop's rate: for crops without `speed`."""

        @functools.cache
        def whole(path: Path) -> np.ndarray:
            return read_audio(path, self.sample_rate, channels=self.channels)

        return lambda path, at: whole(path)[round(at.offset * at.rate) :][: round(at.seconds * at.rate)]


class Further(NamedTuple):
    """The sounds that come with a crop: by name, corpora to draw from (`drawn`) and corpora of partners (`paired`).

    With `notes`, a folder of MIDI files of the recordings' names, the "notes" of the same place come along; with
    `reference`, as "reference", a crop of another recording of the same class.
    """

    drawn: Mapping[str, Corpus] = {}
    paired: Mapping[str, Corpus] = {}
    notes: Path | None = None
    reference: bool = False

    @property
    def names(self) -> set[str]:
        """The names of all that comes with a crop."""
        own = {"notes": self.notes is not None, "reference": self.reference}
        return {*self.drawn, *self.paired, *(name for name, there in own.items() if there)}

    @property
    def seconds(self) -> float:
        return sum(corpus.seconds for corpus in (*self.drawn.values(), *self.paired.values()))


def _partners(corpus: Corpus, other: Corpus) -> dict[Path, Path]:
    """The file of `other` with the same path below its root, whatever the extension, for every file of `corpus`.

    Where several differ by their extensions alone, it is the one with the same.
    """
    there: dict[Path, list[Path]] = {}
    for r in other.recordings:
        there.setdefault(r.path.relative_to(other.root).with_suffix(""), []).append(r.path)
    pairs, missing = {}, []
    for r in corpus.recordings:
        name = r.path.relative_to(corpus.root)
        found = there.get(name.with_suffix(""), [])
        found = [other.root / name] if other.root / name in found else found
        if len(found) > 1:
            raise AudioError(f"{r.path}: has several partners, {found[0]} and {found[1].name}; keep one of them")
        if found:
            pairs[r.path] = found[0]
        else:
            missing.append(r.path)
    if missing:
        raise AudioError(f"{missing[0]}: has no partner of the same name in {other.root} ({len(missing)} have none)")
    return pairs


def _scores(corpus: Corpus, folder: Path) -> dict[Path, Notes]:
    """The score of every recording of a corpus: the MIDI file of the same path below `folder`."""
    scores = {}
    for r in corpus.recordings:
        name = folder / r.path.relative_to(corpus.root)
        found = [path for end in SCORES if (path := name.with_suffix(end)).is_file()]
        if not found:
            raise AudioError(f"{r.path}: has no score, a MIDI file of the same name in {folder}")
        scores[r.path] = read_midi(found[0])
    return scores


def _drawer(recordings: Sequence[Recording], evenness: float) -> Callable[[np.random.Generator], int]:
    """Draws the index of a recording, each label's in proportion to their number to the power of 1 - `evenness`."""
    if not evenness:
        return lambda rng: int(rng.integers(len(recordings)))
    counts = collections.Counter(r.label for r in recordings)
    total = np.cumsum([counts[r.label] ** -evenness for r in recordings])
    return lambda rng: int(np.searchsorted(total[:-1], rng.uniform(0, total[-1]), side="right"))


def batches(
    corpus: Corpus,
    crop: Crop,
    batch: int,
    seed: int,
    *,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
    memory: float = 0,
    further: Further = Further(),
    evenness: float = 0.0,
) -> Iterator[Sounds]:
    """Endless batches from step `start` on; reading and resampling run ahead in threads.

    Batch k is the same whether the iterator began at 0 or at k. `process` (index, count) gives each host its share of
    the recordings, kept decoded when `memory` bytes hold them all. A class, or a sub-folder of a drawn corpus, of n
    recordings is heard in proportion to n^(1 - evenness): with 1 all of them equally often. In place of a recording
    that turns out damaged or gone another is drawn, the same each time; it is warned of and goes into `rejected` of
    its corpus. Raises AudioError when these become more than a tenth, or a recording has no partner in a paired
    corpus.
    """
    import grain  # takes half a second, which an error in a configuration need not wait for

    share = corpus.recordings[process[0] :: process[1]]
    if not share:
        raise AudioError(f"{corpus.root}: {len(corpus.recordings)} recordings are too few for {process[1]} processes")
    fits = 4 * crop.sample_rate * (corpus.seconds + further.seconds) / process[1] <= memory and not crop.speed
    part = crop.from_memory() if fits else None
    partners = {name: _partners(corpus, other) for name, other in further.paired.items()}
    draw = {name: _drawer(other.recordings, evenness) for name, other in further.drawn.items()}
    draw_own = _drawer(share, evenness)
    scores = {} if further.notes is None else _scores(corpus, further.notes)
    alike: dict[int | None, list[Recording]] = {}
    for r in share:
        alike.setdefault(r.label, []).append(r)
    lost: dict[Path, AudioError] = {}

    def cut(of: Corpus, path: Path, place: Place) -> np.ndarray:
        try:
            return crop.cut(path, place, part=part)
        except AudioError as error:
            if lost.setdefault(path, error) is error:
                of.rejected.append(str(error))
                warnings.warn(f"left out from here on: {error}", stacklevel=2)
            raise

    def example(recording: Recording, rng: np.random.Generator) -> Example:
        place = crop.place(recording.seconds, rng)
        label = np.int32(-1 if recording.label is None else recording.label)
        made: Example = {"wave": cut(corpus, recording.path, place), "label": label}
        for name, paths in partners.items():
            made[name] = cut(further.paired[name], paths[recording.path], place)
        for name, other in further.drawn.items():
            drawn = other.recordings[draw[name](rng)]
            made[name] = cut(other, drawn.path, crop.place(drawn.seconds, rng))
        if further.notes is not None:
            made["notes"] = cut_notes(scores[recording.path], place.offset, place.seconds)
        if further.reference:
            others = alike[recording.label]
            drawn = others[int(rng.integers(len(others)))]
            made["reference"] = cut(corpus, drawn.path, crop.place(drawn.seconds, rng))
        return made

    def read(recording: Recording, rng: np.random.Generator) -> Example:
        recording = share[draw_own(rng)] if evenness else recording
        for _ in range(_TRIES):
            try:
                return example(recording, rng)
            except AudioError as error:
                if len(lost) > max(1, len(corpus.recordings) // 10):
                    raise AudioError(f"{error}; {len(lost)} files went bad since the start, restore them") from None
                recording = share[draw_own(rng)]
        raise AudioError(f"{next(iter(lost.values()))}; nothing else could be drawn in its place")

    source = grain.MapDataset.source(corpus.recordings).seed(seed)[process[0] :: process[1]]
    data = source.shuffle().repeat(None).random_map(read).batch(batch, drop_remainder=True)
    iterator = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=2 * batch)))
    iterator.set_state({"next_index": start})
    return iterator
