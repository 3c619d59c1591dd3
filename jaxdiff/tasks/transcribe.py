"""Transcription: which notes are played, as a piano roll (onsets and frames: Hawthorne et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff import ranges
from jaxdiff.features import PianoRoll, Representation, Roll, colored_noise, equalizer, piano_roll, vqt
from jaxdiff.networks import Condition

from .task import Batch, Example, Given, Level, Needs, NoRequest, Task

_LOWEST_HZ = 27.5  # of the lowest key
_GAMMA = 7.0  # Hz that widen the filters of low keys, so that they are no longer than a fifth of a second


@dataclass(frozen=True)
class Transcribe(Task):
    """Known: a recording, as a variable-Q transform of `bins_per_octave` over `octaves` from the lowest key of a piano
    on. Made: a piano roll, in which a note sounds until it is let go, however much of it has died away.

    Training reads the notes of a score that comes with each crop; sounds and notes are transposed by up to `transpose`
    semitones together, and other equalizations and noises are heard.
    """

    inputs: ClassVar[tuple[str, ...]] = ("notes",)
    needs_sound: ClassVar[bool] = True

    bins_per_octave: ranges.Count = 24
    octaves: ranges.Count = 8
    transpose: ranges.Index = 5
    equalizer_db: ranges.Weight = 10.0
    peak_db: Level = -3.0

    def check(self, representation: Representation) -> None:
        if not isinstance(representation, PianoRoll):
            raise ValueError(
                f"task transcribe needs representation piano_roll and normalize.enabled no, got "
                f"{type(representation).__name__}; set both"
            )
        if self.bins_per_octave % 12:
            raise ValueError(f"bins_per_octave: expected a multiple of 12, got {self.bins_per_octave}; use 24")

    def needs(self, representation: Representation) -> Needs:
        return Needs(self.bins_per_octave * self.octaves, representation.hop_length)

    def example(self, representation: Representation, batch: Batch, key: PRNGKeyArray) -> Example:
        tune_key, noise_key, by_key = jax.random.split(key, 3)
        wave = equalizer(-self.equalizer_db, self.equalizer_db, sr=representation.sample_rate)(batch["wave"], tune_key)
        wave = self.leveled(colored_noise(20.0, 60.0, -0.5, 2.0)(wave, noise_key))
        x = self._heard(representation, wave)
        roll = piano_roll(batch["notes"], frames=x.shape[1], frame_seconds=_hop_seconds(representation))
        by = jax.random.randint(by_key, (len(wave),), -self.transpose, self.transpose + 1)
        x = jax.vmap(_moved)(x, by * (self.bins_per_octave // 12))
        return Example(jax.vmap(_transposed)(roll, by), Given(Condition(frames=x)))

    def given(self, representation: Representation, batch: Batch, request: NoRequest = NoRequest()) -> Given:
        return Given(Condition(frames=self._heard(representation, batch["wave"])))

    def _heard(self, representation: Representation, wave: Float[Array, "batch samples"]) -> Array:
        """Logarithmic magnitudes [batch, frames, bins], about 0 to 1."""
        X = vqt(
            wave,
            sr=representation.sample_rate,
            hop_length=representation.hop_length,
            fmin=_LOWEST_HZ,
            n_bins=self.bins_per_octave * self.octaves,
            bins_per_octave=self.bins_per_octave,
            gamma=_GAMMA,
        )
        return 0.25 * jnp.log1p(200 * jnp.abs(X)).mT


def _hop_seconds(representation: Representation) -> float:
    return representation.hop_length / representation.sample_rate


def _moved(x: Float[Array, "frames bins"], by: Array) -> Array:
    """Bins moved up by that many, with nothing where none come from."""
    place = jnp.arange(x.shape[-1]) - by
    inside = (place >= 0) & (place < x.shape[-1])
    return jnp.where(inside, x[:, jnp.clip(place, 0, x.shape[-1] - 1)], 0)


def _transposed(roll: Roll, by: Array) -> Float[Array, "frames channels"]:
    """The features of a roll whose notes are that many keys higher; an onset is heard in its neighbours, too."""
    onset = jnp.pad(roll.onset, ((1, 1), (0, 0)))
    onset = jnp.maximum(roll.onset, jnp.maximum(onset[:-2], onset[2:]) / 2)
    return jnp.concatenate([_moved(x, by) for x in (roll.sounding, onset, roll.force)], axis=-1)
