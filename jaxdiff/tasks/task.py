"""What a task is: it says what is known, turns a batch of sounds into x0 and that, and features back into sound.

A `Task` is a frozen dataclass whose fields are its configuration. Its methods are pure and run inside the compiled
program: `example` for training, `given` and `finish` for use. What is known travels as one `Given`.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff.diffusion import Schedule
from jaxdiff.features import Representation
from jaxdiff.networks import Condition

Estimate = Callable[..., Array]  # (x_t, t) -> x0_hat, or of a flow map (x_t, t, r)
Level = Annotated[float, Interval(ge=-100, le=20)] | None  # dB of full scale
Batch = Mapping[str, Any]  # "wave" [batch, samples], "label" [batch] (-1: no class), and a task's `inputs`


class Known(NamedTuple):
    """Features that are known already, where `mask` [frames, 1] says."""

    features: Float[Array, "batch frames features"]
    mask: Array | np.ndarray


class Given(NamedTuple):
    """All that is known: what the network sees, where sampling begins instead of noise (a bridge's degraded features, a
    GAN's guess), and what only `guide` and `finish` use."""

    cond: Condition = Condition()
    start: Float[Array, "batch frames features"] | None = None
    kept: Any = ()


class Example(NamedTuple):
    """Clean features and what is known of them."""

    x0: Float[Array, "batch frames features"]
    given: Given


class Needs(NamedTuple):
    """What a network must be built for: condition channels, samples per condition frame (0: none), classes, features of
    a condition token (0: none)."""

    condition_features: int = 0
    condition_hop: int = 0
    num_classes: int = 0
    token_features: int = 0


@dataclass(frozen=True)
class NoRequest:
    """A task without options of its own."""


class Task(abc.ABC):
    """A task; subclasses are frozen dataclasses.

    `peak_db` is the level policy, the same in training and in use: the largest sample of what is worked on is brought
    to that many dB of full scale, and a sound that was given gets its own level back. None works at the sound's level.
    """

    inputs: ClassVar[tuple[str, ...]] = ()  # further sounds of a batch: "noise", "target", "room" ...
    needs_sound: ClassVar[bool] = False  # whether use begins with somebody's sound
    Request: ClassVar[type] = NoRequest  # a frozen dataclass: a user's options
    stereo: ClassVar[bool] = False  # whether it can work on both channels of a sound at once
    gives_start: bool = False  # whether `Given.start` says where sampling begins
    classes: tuple[str, ...] = ()
    peak_db: Level = None

    def with_classes(self, classes: tuple[str, ...]) -> "Task":
        """The task for a corpus of these classes; itself where it has no use for them."""
        fields = {f.name for f in dataclasses.fields(self)} if dataclasses.is_dataclass(self) else set()
        return dataclasses.replace(self, classes=classes) if "classes" in fields else self  # type: ignore

    def check(self, representation: Representation) -> None:  # noqa: B027
        """Raise ValueError where the task does not fit the representation."""

    def needs(self, representation: Representation) -> Needs:
        """What the network must be built for; classes alone by default."""
        return Needs(num_classes=len(self.classes))

    def gain(self, peak: Any) -> Any:
        """The factor for a sound whose largest sample is `peak` (level policy above)."""
        return 1.0 + 0 * peak if self.peak_db is None else 10 ** (self.peak_db / 20) / jnp.maximum(peak, 1e-4)

    def leveled(self, wave: Float[Array, "batch *both samples"]) -> Float[Array, "batch *both samples"]:
        """Each sound at the task's level, both channels alike."""
        axes = tuple(range(1, wave.ndim))
        return wave if self.peak_db is None else wave * self.gain(jnp.abs(wave).max(axes, keepdims=True))

    @abc.abstractmethod
    def example(self, representation: Representation, batch: Batch, key: PRNGKeyArray) -> Example:
        """A training example of raw crops; the level policy is applied here."""

    @abc.abstractmethod
    def given(self, representation: Representation, batch: Batch, request: Any) -> Given:
        """What is known in use; sounds come at the task's level."""

    def guide(self, representation: Representation, denoiser: Estimate, schedule: Schedule, given: Given) -> Estimate:
        """A denoiser, or flow map, that also knows `given`: inverse problems are solved here. By default a continued
        sound keeps what it continues, which is `given.kept` then.
        """
        if not isinstance(given.kept, Known):
            return denoiser
        known, mask = given.kept
        return lambda x_t, t, *r: jnp.where(mask, known, denoiser(x_t, t, *r))

    def finish(
        self, representation: Representation, x0: Array, given: Given
    ) -> Float[Array, "batch *channels samples"]:
        """The sound of features."""
        return representation.decode(x0)

    def restore(self, sound: np.ndarray, made: np.ndarray, rate: float, sr: float, request: Any) -> np.ndarray:
        """The result for a `sound` [channels, samples] at `rate` Hz, of what was `made` of it at the model's rate `sr`
        and brought back to `rate`: what the model's band lacks is put in here, on the host. By default nothing.
        """
        return made
