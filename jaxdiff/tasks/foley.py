"""Foley: sounds of a class that begin when cues say so, as strong as they say.

A training example is a pattern that is composed inside the step: copies of a recorded sound, and of another one of its
class, at random times and strengths. What is known of it follows from how it was placed, and its loudness from the
pattern itself; each is left out now and then, so that in use either may be missing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff import ranges
from jaxdiff.data.cues import FAINTEST, LONGEST_RING, STRENGTH_DB
from jaxdiff.features import LogMel, PianoRoll, Representation, fft_convolve, frame_loudness
from jaxdiff.networks import Condition

from .task import Batch, Example, Given, Level, Needs, Task
from .voice import active_frames

LIKE_SECONDS = 0.5  # of a recording that tells what a sound is to be like
_BEFORE = 1.0  # seconds before a pattern in which sounds may have begun that are still heard
_HITS = 32  # of a pattern at most
_SHORTEST, _LONGEST = 0.12, 3.0  # seconds from one to the next, on average
_QUIETEST = 80.0  # dB below full scale of the loudness contour
_MELS = 40  # bands that tell what a sound is to be like
_CUE_FEATURES = 5


@dataclass(frozen=True)
class Cued:
    """The index of the class of what is made; -1: the batch says it."""

    label: int = -1


class Pattern(NamedTuple):
    """When sounds begin, in seconds from the start, and how strong they are."""

    seconds: Float[Array | np.ndarray, "batch hits"]
    strength: Float[Array | np.ndarray, "batch hits"]


@dataclass(frozen=True)
class Foley(Task):
    """Known: the class, the cues, the loudness contour and a recording that the sound is to be like, each or none of
    them. Made: the sound. One of strength 1 peaks at `peak_db`, one of strength 0 is 30 dB quieter.

    In training a share `alone` of all patterns consists of one recording, the others of two by turns, and in a share
    `told` of the former the network is told the recording. Cues and contours are left out in the shares `dropped_cues`
    and `dropped_contour`; a cue sheet has no contour.

    In use a batch may hold "cues" [batch, cues, 2], times from the start of the window in seconds and strengths as
    `data.cues.cut_cues` gives them, "contour" [batch, frames], dB of full scale, and "like" [batch, samples], a
    recording that begins at its onset.
    """

    inputs: ClassVar[tuple[str, ...]] = ("reference",)
    Request: ClassVar[type] = Cued

    classes: tuple[str, ...] = ()
    alone: ranges.Share = 0.7
    told: ranges.Share = 0.5
    dropped_cues: ranges.Share = 0.2
    dropped_contour: ranges.Share = 0.5
    peak_db: Level = -6.0

    def check(self, representation: Representation) -> None:
        inner = getattr(representation, "representation", representation)
        if isinstance(inner, PianoRoll):
            raise ValueError("task foley needs features of sound, a piano roll is read off a score; use another")

    def needs(self, representation: Representation) -> Needs:
        return Needs(_CUE_FEATURES + 3, representation.hop_length, len(self.classes), _MELS)

    def example(self, representation: Representation, batch: Batch, key: PRNGKeyArray) -> Example:
        pattern_key, alone_key, turn_key, told_key, cues_key, contour_key = jax.random.split(key, 6)
        wave, other, sr = self.leveled(batch["wave"]), self.leveled(batch["reference"]), representation.sample_rate
        count = len(wave)
        some = lambda key, share: jax.random.bernoulli(key, share, (count,))  # noqa: E731
        pattern = random_pattern(count, wave.shape[-1] / sr, pattern_key)
        alone = some(alone_key, self.alone)
        own = alone[:, None] | jax.random.bernoulli(turn_key, 0.5, pattern.seconds.shape)
        silent = Pattern(pattern.seconds, jnp.full_like(pattern.strength, -jnp.inf))
        pick = lambda mask: pattern._replace(strength=jnp.where(mask, pattern.strength, silent.strength))  # noqa: E731
        made = composed(wave, pick(own), sr) + composed(other, pick(~own), sr)
        given = self._known(
            representation,
            label=batch["label"],
            samples=made.shape[-1],
            cues=jnp.stack(pattern, axis=-1),
            contour=self.contour(made, representation),
            like=wave,
            known=(~some(cues_key, self.dropped_cues), ~some(contour_key, self.dropped_contour)),
            told=alone & some(told_key, self.told),
        )
        return Example(representation.encode(made), given)

    def given(self, representation: Representation, batch: Batch, request: Cued = Cued()) -> Given:
        count, samples = batch["wave"].shape
        there = lambda name: jnp.full(count, name in batch)  # noqa: E731
        like = batch["like"] if "like" in batch else jnp.zeros((count, representation.hop_length))
        return self._known(
            representation,
            label=jnp.full_like(batch["label"], request.label) if request.label >= 0 else batch["label"],
            samples=samples,
            cues=batch["cues"] if "cues" in batch else jnp.zeros((count, 1, 2)),
            contour=batch["contour"] if "contour" in batch else jnp.zeros((count, representation.frames(samples))),
            like=self.leveled(like),
            known=(there("cues"), there("contour")),
            told=there("like") & (like != 0).any(-1),
        )

    def contour(
        self, wave: Float[Array, "batch samples"], representation: Representation
    ) -> Float[Array, "batch frames"]:
        """The loudness contour of sounds: the level of each frame in dB of full scale."""
        frames = representation.frames(wave.shape[-1])
        options: dict[str, Any] = dict(sr=representation.sample_rate, hop_length=representation.hop_length)
        levels = frame_loudness(wave, **options, weighting=None, n_fft=512, min_db=-_QUIETEST)
        return levels[..., :frames]

    def _known(
        self,
        representation: Representation,
        *,
        label: Array,
        samples: int,
        cues: Array,
        contour: Array,
        like: Array,
        known: tuple[Array, Array],
        told: Array,
    ) -> Given:
        frames, sr = representation.frames(samples), representation.sample_rate
        with_cues, with_contour = (mask.astype(jnp.float32)[:, None, None] for mask in known)
        shape = len(label), frames, 1
        placed = cue_frames(cues, frames=frames, frame_seconds=representation.hop_length / sr)
        loudness = jnp.clip(contour / _QUIETEST + 1, 0, 2)[..., None]
        parts = [with_cues * placed, jnp.broadcast_to(with_cues, shape), with_contour * loudness]
        parts.append(jnp.broadcast_to(with_contour, shape))
        unknown = len(self.classes)
        mel = LogMel(sr, n_fft=512, hop_length=128, n_mels=_MELS)
        tokens = mel.encode(like[:, : round(LIKE_SECONDS * sr)])
        return Given(
            Condition(
                label=jnp.where(label < 0, unknown, label) if unknown else None,
                frames=jnp.concatenate(parts, axis=-1),
                tokens=tokens,
                token_mask=active_frames(tokens, mel) & told[:, None],
            )
        )


def random_pattern(count: int, seconds: float, key: PRNGKeyArray) -> Pattern:
    """Patterns for so many seconds, half of them a rhythm and half without one; each has an accent of its own."""
    keys = jax.random.split(key, 8)
    draw = lambda key, low, high, *size: jax.random.uniform(key, (count, *size), minval=low, maxval=high)  # noqa: E731
    period = jnp.exp(draw(keys[0], np.log(_SHORTEST), np.log(_LONGEST), 1))
    regular = period * (1 + 0.03 * jax.random.normal(keys[1], (count, _HITS)))
    irregular = _SHORTEST / 2 + period * jax.random.exponential(keys[2], (count, _HITS))
    steps = jnp.where(jax.random.bernoulli(keys[3], 0.5, (count, 1)), regular, irregular)
    first = period * draw(keys[4], 0.0, 1.0, 1) - _BEFORE
    middle, spread = draw(keys[5], 0.0, 1.0, 1), draw(keys[6], 0.0, 0.7, 1)
    strength = middle + spread * draw(keys[7], -1.0, 1.0, _HITS)
    return Pattern(first + jnp.cumsum(steps, axis=1) - steps, jnp.clip(strength, FAINTEST, 1.0))


def composed(
    wave: Float[Array | np.ndarray, "batch samples"], pattern: Pattern, sr: int
) -> Float[Array, "batch samples"]:
    """Copies of sounds at the sample next to each time of a pattern, quieter by what its strength lacks to 1.

    A strength of minus infinity is silence. Copies that begin more than a second before the start are not heard.
    """
    lead, samples = round(_BEFORE * sr), wave.shape[-1]
    gain = 10 ** ((pattern.strength - 1) * STRENGTH_DB / 20)
    place = jnp.round(jnp.minimum(pattern.seconds, 2 * samples / sr) * sr).astype(int) + lead
    place = jnp.where(place < 0, lead + samples, place)
    impulses = jax.vmap(lambda place, gain: jnp.zeros(lead + samples).at[place].add(gain, mode="drop"))(place, gain)
    return fft_convolve(impulses, jnp.asarray(wave))[..., lead:]


def cue_frames(
    cues: Float[Array, "batch cues 2"], *, frames: int, frame_seconds: float
) -> Float[Array, "batch frames 5"]:
    """What a network sees of cues; frame m is at `m * frame_seconds`.

    In the frame next to a cue, of several the strongest: 1, its strength, and its place in the frame from -1/2 to 1/2;
    in every frame the logarithmic time since the last cue, and its strength until 4 s have passed.

    >>> cue_frames(jnp.array([[[0.625, 0.5]]]), frames=3, frame_seconds=0.5)[0, :, :3].tolist()
    [[0.0, 0.0, 0.0], [1.0, 0.5, 0.25], [0.0, 0.0, 0.0]]
    """
    seconds, strength = cues[..., 0], cues[..., 1]
    since = jnp.arange(frames)[:, None] * frame_seconds - seconds[:, None, :]  # [batch, frames, cues]
    half = frame_seconds / 2
    here, begun = (since >= -half) & (since < half), (since >= -half) & (since < LONGEST_RING)
    at = lambda x, index: jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]  # noqa: E731
    strengths = jnp.broadcast_to(strength[:, None], since.shape)
    strongest = jnp.argmax(jnp.where(here, strengths, -jnp.inf), axis=-1)
    latest = jnp.argmin(jnp.where(begun, since, jnp.inf), axis=-1)
    onset, some = here.any(-1), begun.any(-1)
    age = jnp.where(some, jnp.maximum(at(since, latest), 0), LONGEST_RING)
    features = [
        onset,
        jnp.where(onset, at(strengths, strongest), 0),
        jnp.where(onset, -at(since, strongest) / frame_seconds, 0),
        jnp.log2(1 + 16 * age) / 4,
        jnp.where(some, at(strengths, latest), 0),
    ]
    return jnp.stack([jnp.asarray(x, jnp.float32) for x in features], axis=-1)
