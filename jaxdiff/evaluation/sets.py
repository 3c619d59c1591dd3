"""How far the sounds of systems are from references as sets: every file is embedded, and the sets are compared.

A file counts once, however long it is, and files need no partner of the same name. Sounds are read at the rate of the
embedding, as mono. The kernel distance is that of a Gaussian whose bandwidth is the median distance between references,
0 to 2 (as in Chung et al. 2025, KAD): it has no unit, and it sees differences of the size of those between references.
The interval of a Frechet distance and of FAD-infinity is one, as both estimate the distance of sets without end.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.distance import pdist

from jaxdiff.data.files import AudioError, audio_info, read_audio

from . import bootstrap_interval, fad_infinity, kernel_distance
from .batches import BATCH, BATCH_SAMPLES, LONGEST, bucket
from .embeddings import EMBEDDINGS, Embedding
from .folders import REFERENCE, Problem, reason_of
from .interval import Interval
from .metrics import Metric, distance_and_embedding
from .scores import Distance

RESAMPLES = 300
MEDIAN_SOUNDS = 2000  # between which, at most, the median distance is sought
NORMAL = 1.959964  # standard errors to each side of a normal interval of 95 %


def distances(
    metrics: Sequence[Metric],
    sets: Mapping[str, Mapping[str, Path]],
    seed: int = 0,
    tell: Callable[[], None] = lambda: None,
) -> tuple[list[Distance], list[Problem]]:
    """The distances of each system's sounds from those of the reference, and the files that are in no set.

    `sets` are files by system and name, the reference among them; `tell` is called after each file.
    """
    found, problems = [], {}
    for name in dict.fromkeys(distance_and_embedding(metric.name)[1] for metric in metrics):
        embedded = {}
        for system, files in sets.items():
            embedded[system], bad = embed(files, system, EMBEDDINGS[name], tell)
            problems |= {(one.system, one.name): one for one in bad}
        for metric in metrics:
            distance, embedding = distance_and_embedding(metric.name)
            for system in sets:
                if embedding == name and system != REFERENCE:
                    both = embedded[REFERENCE], embedded[system]
                    found.append(_distance(metric.name, distance, system, *both, seed))
    return found, list(problems.values())


def _distance(metric: str, distance: str, system: str, reference: np.ndarray, made: np.ndarray, seed: int) -> Distance:
    counts = len(made), len(reference)
    try:
        if distance == "kernel":
            value, error = kernel_distance(reference, made, "gaussian", bandwidth=_bandwidth(reference))
            ends = value, value - NORMAL * error, value + NORMAL * error
        else:
            ends = bootstrap_interval(reference, made, resamples=RESAMPLES, seed=seed)
            if distance == "fad_infinity":
                ends = fad_infinity(reference, made, both=True, seed=seed).value, ends.low, ends.high
    except ValueError as error:
        return Distance(metric, system, Interval(*(math.nan,) * 3), *counts, str(error))
    return Distance(metric, system, Interval(*ends), *counts)


def _bandwidth(reference: np.ndarray) -> float:
    """The median distance between references, so that one kernel sees all systems; 1 where they are equal."""
    evenly = np.linspace(0, len(reference) - 1, min(len(reference), MEDIAN_SOUNDS)).astype(int)
    return (float(np.median(pdist(reference[evenly]))) if len(reference) > 1 else 0.0) or 1.0


def embed(
    files: Mapping[str, Path], system: str, embedding: Embedding, tell: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, list[Problem]]:
    """The embeddings [files, dimension] of the files that can be read, in their order, and the problems of the others.

    Sounds are embedded a few of one length at a time; only an embedding that takes lengths has them filled up.
    """
    rows: dict[str, np.ndarray] = {}
    problems = []
    lengths = {}
    for name, path in files.items():
        try:
            info = audio_info(path)
            lengths[name] = -(-info.samples * embedding.rate // info.sample_rate)
            if lengths[name] > LONGEST:
                seconds = LONGEST / embedding.rate
                raise AudioError(f"is {info.seconds:.0f} s long, at most {seconds:.0f} s are embedded; cut it")
        except AudioError as error:
            problems.append(Problem(name, system, reason_of(error, path)))
            lengths.pop(name, None)
            tell()
    longest = max(lengths.values(), default=1)

    def size(name: str) -> int:
        return bucket(lengths[name], longest) if embedding.takes_lengths else lengths[name]

    for samples, group in itertools.groupby(sorted(lengths, key=size), size):
        names = list(group)
        count = min(len(names), max(1, min(BATCH, BATCH_SAMPLES // samples)))
        for start in range(0, len(names), count):
            waves = {}
            for name in names[start : start + count]:
                try:
                    waves[name] = read_audio(files[name], embedding.rate)
                except AudioError as error:
                    problems.append(Problem(name, system, reason_of(error, files[name])))
                tell()
            rows |= _embedded(waves, embedding, samples, count)
    made = [rows[name] for name in files if name in rows]
    return np.stack(made) if made else np.zeros((0, embedding.dimension)), problems


def _embedded(waves: Mapping[str, np.ndarray], embedding: Embedding, size: int, count: int) -> dict[str, np.ndarray]:
    """The embedding of each sound, by name; where it takes lengths, in one program for `count` sounds of `size`."""
    rows = {}
    if embedding.takes_lengths:
        size = max([size, *map(len, waves.values())])
        filled, lengths = np.zeros((count, size), np.float32), np.ones(count, np.int32)
        for i, wave in enumerate(waves.values()):
            filled[i, : len(wave)], lengths[i] = wave, len(wave)
        made = np.asarray(embedding.function(filled, lengths=lengths))
        return dict(zip(waves, made, strict=False))
    for _, group in itertools.groupby(sorted(waves, key=lambda name: len(waves[name])), lambda name: len(waves[name])):
        names = list(group)
        made = np.asarray(embedding.function(np.stack([waves[name] for name in names])))
        rows |= dict(zip(names, made, strict=True))
    return rows
