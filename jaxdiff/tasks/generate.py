"""Generation: sound from noise, given its class or nothing."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxdiff.features import PianoRoll, Representation
from jaxdiff.networks import Condition

from .task import Batch, Example, Given, Level, NoRequest, Task


@dataclass(frozen=True)
class Generate(Task):
    """Known: the class, where there are `classes` and the recording has one. Made: the whole sound, of one channel or,
    in a representation that is `Stereo`, of two.

    `flip_polarity` negates each training crop with probability 1/2, which no ear notices.
    """

    stereo: ClassVar[bool] = True

    classes: tuple[str, ...] = ()
    peak_db: Level = None
    flip_polarity: bool = False

    def check(self, representation: Representation) -> None:
        if isinstance(representation.inner, PianoRoll):
            raise ValueError("task generate needs features of sound, a piano roll is read off a score; use another")

    def example(self, representation: Representation, batch: Batch, key: PRNGKeyArray) -> Example:
        wave = self.leveled(batch["wave"])
        if self.flip_polarity:
            wave = wave * jax.random.rademacher(key, (len(wave), *[1] * (wave.ndim - 1)), wave.dtype)
        return Example(representation.encode(wave), self._known(batch["label"]))

    def given(self, representation: Representation, batch: Batch, request: NoRequest = NoRequest()) -> Given:
        return self._known(batch["label"])

    def _known(self, label: Array) -> Given:
        unknown = len(self.classes)
        return Given(Condition(label=jnp.where(label < 0, unknown, label) if unknown else None))
