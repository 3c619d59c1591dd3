"""Edits of a sound by a model that generates: a place made anew, a sound varied, a sound between two others.

A place is filled by sampling from what the model takes for likely given the sound around it: moment matching (Rozet et
al. 2024) on those frames of the features that do not see the place, and in every estimate of the sampler what is known
is set right: the samples themselves where features are exactly invertible, else the known frames.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff import ranges
from jaxdiff.diffusion import Schedule, masking, moment_matching_guidance
from jaxdiff.features import Representation, istft, stft
from jaxdiff.networks import Condition

from .task import Batch, Estimate, Example, Given, Level, Task

_SILENT = 1e-3  # a peak below which a sound has no level of its own
_PHASE_STEPS = 100  # of Griffin-Lim


@dataclass(frozen=True)
class Filling:
    """How a place is filled: the index of the class of the sound (-1: none), and whether sampling begins with what the
    place holds, as far as the method's strength says, or with noise alone."""

    label: int = -1
    begun: bool = False


@dataclass(frozen=True, eq=False)
class Fill(Task):
    """Known: a sound but for the samples where `unknown` [batch, samples] is true. Made: those.

    `iterations` of moment matching, each of which costs about as much as two more estimates, fit the place to the sound
    around it; with 0 what is known is only held.
    """

    inputs: ClassVar[tuple[str, ...]] = ("unknown",)
    needs_sound: ClassVar[bool] = True
    gives_start: ClassVar[bool] = True
    Request: ClassVar[type] = Filling

    classes: tuple[str, ...] = ()
    peak_db: Level = None
    iterations: ranges.Index = 2

    def gain(self, peak: Any) -> Any:
        """As the policy says, and 1 for silence."""
        return 1.0 + 0 * peak if self.peak_db is None else jnp.where(peak < _SILENT, 1.0, super().gain(peak))

    def example(self, representation: Representation, batch: Batch, key: Array) -> Example:
        raise TypeError("an edit trains nothing; train its model to generate")

    def given(self, representation: Representation, batch: Batch, request: Filling = Filling()) -> Given:
        wave, unknown = batch["wave"], batch["unknown"]
        known = jnp.where(unknown, 0, wave)
        start = representation.encode(wave if request.begun else known)
        return Given(_condition(self.classes, batch, request.label), start, (known, unknown))

    def guide(self, representation: Representation, denoiser: Estimate, schedule: Schedule, given: Given) -> Estimate:
        known, unknown = given.kept
        mask = known_frames(representation, unknown)
        features = jnp.where(mask, representation.encode(known), 0)
        estimate = denoiser
        if self.iterations:
            operator = masking(mask)
            estimate = moment_matching_guidance(denoiser, schedule, operator, features, iterations=self.iterations)

        def held(x_t: Array, t: Array) -> Array:
            x0_hat = estimate(x_t, t)
            if representation.exact:
                return representation.encode(jnp.where(unknown, representation.decode(x0_hat), known))
            return jnp.where(mask, features, x0_hat)

        return held

    def finish(self, representation: Representation, x0: Array, given: Given) -> Float[Array, "batch samples"]:
        """The sound of features, with phases that fit what is known where the features have none."""
        wave = representation.decode(x0)
        return wave if representation.exact else _in_phase(representation, wave, *given.kept)


@dataclass(frozen=True)
class Style:
    """The index of the class of what is made (-1: none)."""

    label: int = -1


@dataclass(frozen=True, eq=False)
class Clip(Task):
    """Known: a sound, where sampling begins, and where `other` [batch, samples] is given a second one. Made: a sound
    like it, or one between both, as the method says."""

    needs_sound: ClassVar[bool] = True
    gives_start: ClassVar[bool] = True
    Request: ClassVar[type] = Style

    classes: tuple[str, ...] = ()
    peak_db: Level = None

    def example(self, representation: Representation, batch: Batch, key: Array) -> Example:
        raise TypeError("an edit trains nothing; train its model to generate")

    def given(self, representation: Representation, batch: Batch, request: Style = Style()) -> Given:
        other = representation.encode(batch["other"]) if "other" in batch else ()
        return Given(_condition(self.classes, batch, request.label), representation.encode(batch["wave"]), other)


def _condition(classes: tuple[str, ...], batch: Batch, label: int) -> Condition:
    known = jnp.full_like(batch["label"], label if label >= 0 else len(classes))
    return Condition(label=known if classes else None)


def known_frames(
    representation: Representation, unknown: Bool[Array, "batch samples"]
) -> Bool[Array, "batch frames 1"]:
    """Whether a frame sees known samples alone.

    >>> from jaxdiff.features import CompressedStft
    >>> unknown = jnp.zeros((1, 128), bool).at[0, 64].set(True)
    >>> known_frames(CompressedStft(n_fft=64, hop_length=16), unknown)[0, :, 0].astype(int).tolist()
    [1, 1, 1, 0, 0, 0, 0, 1, 1]
    """
    hop, edge = representation.hop_length, representation.edge
    blocks = unknown.reshape(len(unknown), -1, hop).any(-1)
    frames = representation.frames(unknown.shape[-1])
    if not edge:
        return ~blocks[..., None]
    seen = jnp.pad(blocks, ((0, 0), (edge, edge)))  # frame i sees the blocks i - edge to i + edge - 1
    return ~jnp.stack([seen[:, k : k + frames] for k in range(2 * edge)]).any(0)[..., None]


def _in_phase(representation: Representation, wave: Array, known: Array, unknown: Array) -> Array:
    """A sound with its magnitudes where it is unknown, and phases there that come to fit those of what is known.

    Griffin & Lim (1984), with the known samples set right in every step.
    """
    hop = representation.hop_length
    n_fft = 2 * hop * max(representation.edge, 1)
    transform = lambda y: stft(y, n_fft=n_fft, hop_length=hop)  # noqa: E731
    S = jnp.where(known_frames(representation, unknown).mT, jnp.abs(transform(known)), jnp.abs(transform(wave)))

    def step(_: Any, y: Array) -> Array:
        X = transform(jnp.where(unknown, y, known))
        return istft(S * X / jnp.maximum(jnp.abs(X), 1e-12), hop_length=hop)

    return jax.lax.fori_loop(0, _PHASE_STEPS, step, wave)
