"""How well notes were found or kept: precision, recall and F1 of their onsets, and of what sounds by frames."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxdiff.features import KEYS, LOWEST_KEY


class Scores(NamedTuple):
    """Shares of what was estimated that is right, of what there is that was found, and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def _scores(hits: float, estimated: float, there: float) -> Scores:
    if not estimated or not there:
        none = float(not estimated and not there)
        return Scores(none, none, none)
    return Scores(hits / estimated, hits / there, 2 * hits / (estimated + there))


def note_scores(reference: np.ndarray, estimated: np.ndarray, *, tolerance: float = 0.1) -> Scores:
    """The scores of notes [notes, 4]: one counts as found where one of its pitch begins within `tolerance` seconds of
    it, each for one other at most. Offsets and velocities are passed over.

    >>> note_scores(np.array([[0.0, 1, 60, 90], [1, 2, 60, 90]]), np.array([[0.05, 1, 60, 90]])).recall
    0.5
    """
    hits = sum(1 for _ in matches(reference, estimated, tolerance))
    return _scores(hits, len(estimated), len(reference))


def matches(reference: np.ndarray, estimated: np.ndarray, tolerance: float = 0.1) -> Iterator[tuple[int, int]]:
    """Pairs of indices of notes of one pitch whose onsets are that near, as many as there can be."""
    for pitch in np.intersect1d(reference[:, 2], estimated[:, 2]):
        ours, theirs = (_of_pitch(notes, pitch) for notes in (reference, estimated))
        i = j = 0
        while i < len(ours) and j < len(theirs):  # the earliest that fits is never worse than a later one
            late = estimated[theirs[j], 0] - reference[ours[i], 0]
            if abs(late) <= tolerance + 1e-6:
                yield int(ours[i]), int(theirs[j])
                i, j = i + 1, j + 1
            elif late > 0:
                i += 1
            else:
                j += 1


def _of_pitch(notes: np.ndarray, pitch: float) -> np.ndarray:
    """The indices of the notes of a pitch, by their onsets."""
    index = np.flatnonzero(notes[:, 2] == pitch)
    return index[np.argsort(notes[index, 0], kind="stable")]


def frame_scores(reference: np.ndarray, estimated: np.ndarray, *, frame_seconds: float = 0.01) -> Scores:
    """The scores of the frames in which keys sound, of notes [notes, 4]."""
    end = max((float(notes[:, 1].max()) for notes in (reference, estimated) if len(notes)), default=0.0)
    one, other = (sounding(notes, 1 + int(end / frame_seconds), frame_seconds) for notes in (reference, estimated))
    return _scores(float((one & other).sum()), float(other.sum()), float(one.sum()))


def sounding(notes: np.ndarray, frames: int, frame_seconds: float) -> np.ndarray:
    """Which of the 88 keys sound in each frame, [frames, 88]."""
    whole = np.zeros((frames, KEYS), bool)
    for onset, offset, pitch, _ in notes:
        key = int(pitch) - LOWEST_KEY
        if 0 <= key < KEYS:
            first = round(onset / frame_seconds)
            whole[first : max(first + 1, round(offset / frame_seconds)), key] = True
    return whole
