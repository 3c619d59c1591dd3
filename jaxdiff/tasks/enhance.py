"""Enhancement: speech from a recording with noise and reverberation."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff import ranges
from jaxdiff.data.files import resample
from jaxdiff.features import CompressedStft, Representation

from .mixtures import Mixture
from .task import Batch, Example, Given, Level, Task

_HOP = 0.02  # seconds between the gains of the upper band; pieces of a long file begin at multiples of it
_TOP = (0.7, 0.94)  # share of the model's band whose gains the upper band follows


@dataclass(frozen=True)
class Amount:
    """How much is taken away: `strength` 0 gives the recording back and 1 all that the model makes; `max_reduction` is
    a limit in dB to what any bin of the spectrum loses."""

    strength: ranges.Share = 1.0
    max_reduction: ranges.Positive | None = None

    def __post_init__(self) -> None:
        ranges.check_fields(self)

    def limited(self, x0: Array, y: Array, exponent: float) -> Array:
        """Features x0 of `exponent` that lose in no bin more than `max_reduction` of the recording's y."""
        if self.max_reduction is None:
            return x0
        least = 10 ** (-exponent * self.max_reduction / 20)
        size = lambda x: jnp.hypot(*jnp.split(x, 2, axis=-1))  # noqa: E731
        lost = jnp.tile(size(x0) < least * size(y), 2)
        return jnp.where(lost, least * y, x0)


@dataclass(frozen=True)
class Enhance(Task):
    """Known: the noisy recording, where sampling begins. Made: the clean speech, with the room's first 50 ms.

    Training mixes clean crops with crops of `noise` as `mixture` says. In use the recording's peak is brought to
    `peak_db` and back; what lies above the model's band follows the gains of its highest bands.
    """

    inputs: ClassVar[tuple[str, ...]] = ("noise",)
    needs_sound: ClassVar[bool] = True
    gives_start: ClassVar[bool] = True
    Request: ClassVar[type] = Amount

    mixture: Mixture = Mixture()
    peak_db: Level = None

    def check(self, representation: Representation) -> None:
        if not isinstance(representation, CompressedStft):
            raise ValueError(
                f"task enhance needs representation compressed_stft and normalize.enabled no, got "
                f"{type(representation).__name__}; set both"
            )

    def example(self, representation: Representation, batch: Batch, key: PRNGKeyArray) -> Example:
        pair = self.mixture(batch["wave"], batch["noise"], sr=representation.sample_rate, key=key)
        return Example(representation.encode(pair.clean), Given(start=representation.encode(pair.noisy)))

    def given(self, representation: Representation, batch: Batch, request: Amount = Amount()) -> Given:
        return Given(start=representation.encode(batch["wave"]), kept=request)

    def finish(self, representation: Representation, x0: Array, given: Given) -> Float[Array, "batch samples"]:
        amount, y = given.kept, given.start
        if not isinstance(amount, Amount) or y is None:
            return representation.decode(x0)
        assert isinstance(representation, CompressedStft)
        x0 = amount.limited(x0, y, representation.exponent)
        if amount.strength < 1:
            return amount.strength * representation.decode(x0) + (1 - amount.strength) * representation.decode(y)
        return representation.decode(x0)

    def restore(self, sound: np.ndarray, made: np.ndarray, rate: float, sr: float, request: Amount) -> np.ndarray:
        if rate <= sr or not sound.size:
            return made
        within = resample(resample(sound, rate, sr), sr, rate)[:, : sound.shape[-1]]
        within = np.pad(within, ((0, 0), (0, sound.shape[-1] - within.shape[-1])))
        return made + _followed(within, made, rate, sr) * (sound - within)


def _followed(within: np.ndarray, made: np.ndarray, rate: float, sr: float) -> np.ndarray:
    """The gain of each sample [channels, samples] by which the highest bands became quieter from `within` to `made`."""
    hop, samples = max(1, round(_HOP * rate)), within.shape[-1]
    window = np.hanning(2 * hop + 1)[:-1].astype(np.float32)
    f = np.fft.rfftfreq(2 * hop, 1 / rate)
    top = (f >= _TOP[0] * sr / 2) & (f <= _TOP[1] * sr / 2)

    def energy(y: np.ndarray) -> np.ndarray:
        y = np.pad(y, ((0, 0), (hop, 2 * hop)))
        frames = np.lib.stride_tricks.sliding_window_view(y, 2 * hop, axis=-1)[:, ::hop]
        power = [(np.abs(np.fft.rfft(part * window))[..., top] ** 2).sum(-1) for part in np.array_split(frames, 64, 1)]
        return np.concatenate(power, 1)

    before, after = energy(within), energy(made)
    floor = 1e-9 * hop
    gain = np.sqrt(np.minimum(1.0, (after + floor) / (before + floor)))
    at = np.arange(gain.shape[-1]) * hop
    return np.stack([np.interp(np.arange(samples), at, g) for g in gain]).astype(np.float32)
