"""Notes as a piano roll on a grid of frames, and notes read off a roll that a network estimated.

Notes are [notes, 4]: onset and offset in seconds, MIDI pitch, velocity from 1 to 127; a pitch below 0 pads. A roll has
a column for each of the 88 keys of a piano, the lowest being MIDI pitch 21.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .arguments import checked

LOWEST_KEY, KEYS = 21, 88
_LONGEST = 16.0  # seconds since an onset; a note that began earlier is as old


class Roll(NamedTuple):
    """The keys of a piano over time, [..., frames, 88] each: `sounding` is 1 from a note's onset to its offset, `onset`
    1 in the frame nearest to an onset, `force` its velocity as a share of 127 and `since` the seconds since its onset,
    both 0 where nothing sounds."""

    sounding: Float[Array, "... frames keys"]
    onset: Float[Array, "... frames keys"]
    force: Float[Array, "... frames keys"]
    since: Float[Array, "... frames keys"]


@checked
def piano_roll(notes: Float[Array, "... notes values"], *, frames: int, frame_seconds: float) -> Roll:
    """The roll of notes; frame m is at `m * frame_seconds`. Pitches that no piano has are left out.

    Where two notes of a key overlap, the later and the stronger of both count.

    >>> roll = piano_roll(jnp.array([[0.1, 0.3, 69, 127]]), frames=5, frame_seconds=0.1)
    >>> roll.sounding[:, 48].tolist()
    [0.0, 1.0, 1.0, 0.0, 0.0]
    """

    if notes.ndim < 2 or notes.shape[-1] != 4:
        raise ValueError(
            f"piano_roll: notes must be [..., notes, 4]: onset, offset, pitch and velocity, got {list(notes.shape)}"
        )

    def one(notes: Array) -> Roll:
        onset, offset, pitch, velocity = notes.T[..., None]
        t = (jnp.arange(frames) * frame_seconds).astype(notes.dtype)
        key = pitch[:, 0].astype(int) - LOWEST_KEY
        key = jnp.where((key >= 0) & (key < KEYS), key, KEYS)  # out of bounds: dropped

        def spread(values: Array) -> Array:
            return jnp.zeros((KEYS, frames), notes.dtype).at[key].max(values, mode="drop").T

        within = half = frame_seconds / 2
        sounds = (t >= onset - half) & (t < jnp.maximum(offset, onset + frame_seconds) - half)
        begins = (t >= onset - half) & (t < onset + within)
        young = spread(jnp.where(sounds, _LONGEST - jnp.clip(t - onset, 0, _LONGEST) + 1, 0))
        return Roll(
            spread(sounds.astype(notes.dtype)),
            spread(begins.astype(notes.dtype)),
            spread(jnp.where(sounds, velocity / 127, 0)),
            jnp.where(young > 0, _LONGEST + 1 - young, 0),
        )

    batch = notes.shape[:-2]
    made = jax.vmap(one)(notes.reshape(-1, *notes.shape[-2:]))
    return Roll(*(x.reshape(*batch, frames, KEYS) for x in made))


def notes_of_roll(
    sounding: np.ndarray,
    onset: np.ndarray,
    force: np.ndarray,
    *,
    frame_seconds: float,
    threshold: float = 0.5,
    least_seconds: float = 0.05,
) -> np.ndarray:
    """Notes [notes, 4] of the probabilities [frames, 88] that a key sounds and that one of its notes begins, and of the
    force.

    A note begins at a peak of `onset` above `threshold`, or where `sounding` comes above it without one, and lasts
    until `sounding` falls below `threshold` or the key's next note begins. Shorter ones than `least_seconds` are left
    out. Velocities are between 1 and 127.

    >>> played = np.zeros((6, 88)); played[1:4, 48] = 1
    >>> notes_of_roll(played, played * [[0], [1], [0], [0], [0], [0]], played, frame_seconds=0.1).tolist()
    [[0.10000000149011612, 0.4000000059604645, 69.0, 127.0]]
    """
    frames, found = len(sounding), []
    before, after = (np.pad(onset, ((1, 1), (0, 0)))[i : i + frames] for i in (0, 2))
    peaks = (onset >= threshold) & (onset >= before) & (onset > after)
    on = sounding >= threshold
    for key in np.flatnonzero(on.any(0)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], on[:, key].astype(int), [0]])))
        for begin, end in edges.reshape(-1, 2):
            inside = np.flatnonzero(peaks[max(0, begin - 3) : end, key]) + max(0, begin - 3)
            starts = [int(i) for i in inside]
            if not starts or starts[0] > begin + 3:
                starts = [int(begin), *starts]
            for start, stop in zip(starts, [*starts[1:], int(end)], strict=True):
                if (stop - start) * frame_seconds >= least_seconds:
                    weight = sounding[start:stop, key]
                    ratio = float((force[start:stop, key]).sum() / max(weight.sum(), 1e-6))
                    found.append((start * frame_seconds, stop * frame_seconds, LOWEST_KEY + key, ratio))
    if not found:
        return np.zeros((0, 4), np.float32)
    notes = np.array(found, np.float32)
    notes[:, 3] = np.clip(np.round(127 * notes[:, 3]), 1, 127)
    return notes[np.lexsort((notes[:, 2], notes[:, 0]))]
