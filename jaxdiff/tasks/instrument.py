"""Conversion of instruments: the same notes, as another instrument would play them."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff import ranges
from jaxdiff.features import KEYS, Representation, frame_loudness, piano_roll
from jaxdiff.networks import Condition

from .task import Batch, Example, Given, Level, Needs, Task

_QUIETEST = 80.0  # dB below full scale of the loudness contour


@dataclass(frozen=True)
class Conversion:
    """How far a conversion goes: with `strength` 0 the recording's own features are made into sound again, with 1 those
    of the target, between them a mixture of both. `label` is the index of the target among the model's classes."""

    strength: ranges.Share = 1.0
    label: ranges.Index = 0

    def __post_init__(self) -> None:
        ranges.check_fields(self)

    def mixed(self, x0: Array, source: Array) -> Array:
        """Features between the source's and those that were made."""
        return x0 if self.strength == 1 else self.strength * x0 + (1 - self.strength) * source


@dataclass(frozen=True)
class Instrument(Task):
    """Known: the notes, the seconds since each began, the features and the loudness of the recording, and the class.
    Made: the sound of the instrument of that class.

    In training the notes are moved by up to `jitter` seconds and `dropped` of them are left out, as a tracker's are.
    """

    inputs: ClassVar[tuple[str, ...]] = ("source", "notes")
    needs_sound: ClassVar[bool] = True
    Request: ClassVar[type] = Conversion

    classes: tuple[str, ...] = ()
    jitter: ranges.Weight = 0.02
    dropped: ranges.Share = 0.05
    peak_db: Level = -3.0

    def needs(self, representation: Representation) -> Needs:
        return Needs(4 * KEYS + representation.channels + 1, representation.hop_length, len(self.classes))

    def example(self, representation: Representation, batch: Batch, key: PRNGKeyArray) -> Example:
        jitter_key, drop_key = jax.random.split(key)
        notes = jnp.asarray(batch["notes"])
        moved = notes.at[..., :2].add(self.jitter * jax.random.uniform(jitter_key, (*notes.shape[:2], 2), minval=-1))
        lost = jax.random.bernoulli(drop_key, self.dropped, notes.shape[:2])
        notes = moved.at[..., 2].set(jnp.where(lost, -1, notes[..., 2]))
        known = {"wave": self.leveled(batch["source"]), "notes": notes}
        given = self._known(representation, known, batch["label"])
        return Example(representation.encode(self.leveled(batch["wave"])), given)

    def given(self, representation: Representation, batch: Batch, request: Conversion = Conversion()) -> Given:
        label = jnp.full_like(batch["label"], request.label)
        given = self._known(representation, batch, label)
        return given._replace(kept=(request, representation.encode(batch["wave"])))

    def finish(self, representation: Representation, x0: Array, given: Given) -> Float[Array, "batch samples"]:
        if not given.kept:
            return representation.decode(x0)
        request, source = given.kept
        return representation.decode(request.mixed(x0, source))

    def _known(self, representation: Representation, batch: Batch, label: Array) -> Given:
        x, wave, rate = representation.encode(batch["wave"]), batch["wave"], representation.sample_rate
        hop = representation.hop_length
        roll = piano_roll(batch["notes"], frames=x.shape[1], frame_seconds=hop / rate)
        loudness = frame_loudness(wave, sr=rate, n_fft=1024, hop_length=hop, min_db=-_QUIETEST) / _QUIETEST + 1
        since = jnp.log2(1 + 16 * roll.since) / 4
        frames = [roll.sounding, roll.onset, roll.force, since, x, loudness[..., : x.shape[1], None]]
        return Given(Condition(label=label, frames=jnp.concatenate(frames, axis=-1)))
