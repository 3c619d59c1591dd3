"""Corpora become batches of raw crops: a Grain pipeline whose batch is a function of (seed, step) alone.

Each epoch is a new permutation of the recordings; a mixture takes from its corpora in turn, as they weigh; where
classes are to be heard more evenly, recordings are drawn. Beside its wave an example may hold further sounds by name:
crops of a recording drawn from another corpus (noise, rooms), the same place of the recording's partner (a target), its
notes there, or another recording of its class. A corpus that fits in memory is decoded once. What can run on the device
(level, features, noise) is left to the training step.
"""

import collections
import dataclasses
import functools
import itertools
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from .corpora import FULL_SCALES, Corpus, Recording, too_loud
from .crops import Crop, Example, Place
from .files import AudioError
from .midi import EXTENSIONS as SCORES
from .midi import Notes, cut_notes, read_midi

Sounds = dict[str, np.ndarray]  # "wave" and further sounds [batch, samples] float32, "label" int32 (-1: no class)
_TRIES = 50  # recordings drawn in place of one that cannot be read: at most half of them are bad
_TOLD = 5  # bad recordings of a corpus that are warned of
_THREADS = 4  # each of which reads a batch; from memory one does, since Python lets one copy at a time


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


def _partners(corpus: Corpus, other: Corpus) -> dict[str, Recording]:
    """The recording of `other` with the same name, whatever the extension, for every name in `corpus`.

    Where several differ by their extensions alone, it is the one with the same. A partner is its whole file.
    """
    bare = lambda name: str(PurePosixPath(name).with_suffix(""))  # noqa: E731
    there: dict[str, dict[str, Recording]] = {}
    for r in other.recordings:
        there.setdefault(bare(r.name), {})[r.name] = dataclasses.replace(r, offset=0.0, until=math.inf)
    pairs: dict[str, Recording] = {}
    owners: dict[str, Recording] = {}
    missing = []
    for r in corpus.recordings:
        if owners.setdefault(r.name, r).path != r.path:
            raise AudioError(f"{r.path}: has the name of {owners[r.name].path}, so partners cannot be told; rename one")
        named = there.get(bare(r.name), {})
        found = [named[r.name]] if r.name in named else list(named.values())
        if len(found) > 1:
            other_name = PurePosixPath(found[1].name).name
            raise AudioError(f"{r.path}: has several partners, {found[0].path} and {other_name}; keep one of them")
        if found:
            pairs[r.name] = found[0]
        else:
            missing.append(r.path)
    if missing:
        raise AudioError(f"{missing[0]}: has no partner of the same name in {other.root} ({len(missing)} have none)")
    return pairs


def _scores(corpus: Corpus, folder: Path) -> dict[str, Notes]:
    """The score of every recording of a corpus: the MIDI file of the same name below `folder`."""
    scores: dict[str, Notes] = {}
    for r in corpus.recordings:
        if r.name in scores:
            continue
        found = [path for end in SCORES if (path := (folder / r.name).with_suffix(end)).is_file()]
        if not found:
            raise AudioError(f"{r.path}: has no score, a MIDI file of the same name in {folder}")
        scores[r.name] = read_midi(found[0])
    return scores


Draw = Callable[[np.random.Generator], int]


def _parts(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Where each corpus of a mixture begins among the recordings, and the last ends; and what share each has."""
    sizes, weights = zip(*(corpus.parts or ((len(corpus.recordings), 1.0),)), strict=True)
    return np.concatenate([[0], np.cumsum(sizes)]), np.array(weights) / sum(weights)


def _drawers(corpus: Corpus, evenness: float) -> list[Draw]:
    """For each corpus of a mixture a function that draws the index of a recording.

    Each label is drawn in proportion to its number of recordings to the power of 1 - `evenness`.
    """
    begins, _ = _parts(corpus)

    def of(first: int, end: int) -> Draw:
        if not evenness:
            return lambda rng: first + int(rng.integers(end - first))
        counts = collections.Counter(r.label for r in corpus.recordings[first:end])
        total = np.cumsum([counts[r.label] ** -evenness for r in corpus.recordings[first:end]])
        return lambda rng: first + int(np.searchsorted(total[:-1], rng.uniform(0, total[-1]), side="right"))

    return [of(first, end) for first, end in itertools.pairwise(begins.tolist())]


def _drawer(corpus: Corpus, evenness: float) -> Draw:
    """Draws the index of a recording of a corpus, whichever of a mixture."""
    drawers, total = _drawers(corpus, evenness), np.cumsum(_parts(corpus)[1])
    if len(drawers) == 1:
        return drawers[0]
    return lambda rng: drawers[int(np.searchsorted(total[:-1], rng.uniform(), side="right"))](rng)


class _Order:
    """The numbers from `first` to `end` without end: in each epoch another permutation, a function of the seed.

    Grain's own shuffle is slower for a few recordings than reading them from memory: it looks for a place among 2**16.
    """

    def __init__(self, first: int, end: int, seed: int):
        self._first, self._size = first, end - first
        self._of = functools.lru_cache(2)(  # threads may be in two epochs
            lambda epoch: np.random.default_rng((seed, first, epoch)).permutation(self._size)
        )

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(index, self._size)
        return self._first + int(self._of(epoch)[place])


def _rows(corpus: Corpus, seed: int) -> Any:
    """The indices of a corpus's recordings in the order in which they are heard, without end."""
    import grain  # takes half a second, which an error in a configuration need not wait for

    begins, weights = _parts(corpus)
    order = [
        grain.MapDataset.source(_Order(first, end, seed)).seed(seed)
        for first, end in itertools.pairwise(begins.tolist())
    ]
    return order[0] if len(order) == 1 else grain.MapDataset.mix(order, weights.tolist()).seed(seed)


def heard(corpus: Corpus, batch: int, seed: int, step: int, *, evenness: float = 0.0) -> list[Recording]:
    """The recordings in the batch of a training step, the first of which is 1, unless they could not be read."""
    begins, draw = _parts(corpus)[0], _drawers(corpus, evenness)
    again = lambda index: draw[int(np.searchsorted(begins[1:-1], index, side="right"))]  # noqa: E731
    rows = _rows(corpus, seed).random_map(lambda index, rng: again(index)(rng) if evenness else index)
    return [corpus.recordings[rows[place]] for place in range((step - 1) * batch, step * batch)]


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

    Batch k is the same whether the iterator began at 0 or at k. `process` (index, count) reads its part of each batch:
    those of all processes, one after the other, are the batch of one process alone. Sounds are kept decoded when
    `memory` bytes hold them all. A class, or a sub-folder of a drawn corpus, of n recordings is heard in proportion to
    n^(1 - evenness): with 1 all of them equally often. In place of a recording that turns out damaged or gone another
    of its corpus is drawn, the same each time; it goes into `rejected` of its corpus, and of the first ones a warning
    tells. Raises AudioError when these become more than half, or a recording has no partner in a paired corpus.
    """
    import grain  # takes half a second, which an error in a configuration need not wait for

    if batch % process[1]:
        raise ValueError(f"a batch of {batch} does not divide over {process[1]} processes; use a multiple of that")
    channels = 2 if crop.channels == "stereo" else 1
    fits = 4 * channels * crop.sample_rate * (corpus.seconds + further.seconds) <= memory and not crop.speed
    part = crop.from_memory() if fits else None
    partners = {name: _partners(corpus, other) for name, other in further.paired.items()}
    draw = {name: _drawer(other, evenness) for name, other in further.drawn.items()}
    recordings, begins, draw_own = corpus.recordings, _parts(corpus)[0], _drawers(corpus, evenness)
    scores = {} if further.notes is None else _scores(corpus, further.notes)
    alike: dict[int | None, list[Recording]] = {}
    for r in recordings:
        alike.setdefault(r.label, []).append(r)
    corpora = (corpus, *further.drawn.values(), *further.paired.values())
    lost: dict[int, dict[Any, AudioError]] = {id(of): {} for of in corpora}
    listing = threading.Lock()
    loud = {id(of) for of in corpora if of.peak > FULL_SCALES}

    def cut(of: Corpus, recording: Recording, place: Place) -> np.ndarray:
        bad = lost[id(of)]
        try:
            y = crop.cut(recording, place, part=part)
        except AudioError as error:
            with listing:
                if bad.setdefault(recording.path, error) is error:
                    of.rejected.append(str(error))
                    if len(bad) <= _TOLD:
                        also = "; further ones are listed only" if len(bad) == _TOLD else ""
                        warnings.warn(f"left out from here on: {error}{also}", stacklevel=2)
            raise
        peak = float(max(y.max(initial=0), -y.min(initial=0)))
        if peak > FULL_SCALES and id(of) not in loud:
            loud.add(id(of))
            warnings.warn(too_loud(recording.path, peak), stacklevel=2)
        return y

    def example(recording: Recording, rng: np.random.Generator) -> Example:
        place = crop.place(recording, rng)
        label = np.int32(-1 if recording.label is None else recording.label)
        made: Example = {"wave": cut(corpus, recording, place), "label": label}
        for name, found in partners.items():
            made[name] = cut(further.paired[name], found[recording.name], place)
        for name, other in further.drawn.items():
            drawn = other.recordings[draw[name](rng)]
            made[name] = cut(other, drawn, crop.place(drawn, rng))
        if further.notes is not None:
            made["notes"] = cut_notes(scores[recording.name], place.offset, place.seconds)
        if further.reference:
            others = alike[recording.label]
            drawn = others[int(rng.integers(len(others)))]
            made["reference"] = cut(corpus, drawn, crop.place(drawn, rng))
        return made

    def read(index: int, rng: np.random.Generator) -> Example:
        again = draw_own[int(np.searchsorted(begins[1:-1], index, side="right"))]
        index, last = again(rng) if evenness else index, None
        for _ in range(_TRIES):
            try:
                return example(recordings[index], rng)
            except AudioError as error:
                for of in corpora:
                    if len(lost[id(of)]) > max(1, len(of.recordings) // 2):
                        count = f"{len(lost[id(of)])} of {len(of.recordings)} recordings cannot be read"
                        raise AudioError(f"{error}; {count}, restore them") from None
                index, last = again(rng), error
        raise AudioError(f"{last}; nothing else could be drawn in its place")

    mine = (
        _rows(corpus, seed).random_map(read).batch(batch // process[1], drop_remainder=True)[process[0] :: process[1]]
    )
    ahead = grain.ReadOptions(num_threads=1 if fits else _THREADS, prefetch_buffer_size=2 * _THREADS)
    iterator = iter(mine.to_iter_dataset(ahead))
    iterator.set_state({"next_index": start})
    return iterator
