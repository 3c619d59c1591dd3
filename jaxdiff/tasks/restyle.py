"""Style transfer: a clip becomes one that a generative model could have made, and what was played is kept.

What is kept is set right in every estimate of the sampler, a projection on the features that have it (Choi et al. 2021,
ILVR, for images): the sound around it is the model's and fits it.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff import ranges
from jaxdiff.diffusion import Schedule
from jaxdiff.features import LogMel, Normalized, Representation
from jaxdiff.networks import Condition

from .task import Batch, Estimate, Example, Given, Level, Task
from .voice import log_mel_of, mel_band_centres

_ENVELOPE = 14  # cosines over the mel bands that make the colour of a sound; finer ones are its partials
_PARTIALS_HZ = (2000.0, 4000.0)  # partials are kept below the first, not above the second
_CONTOUR_SECONDS = 0.1  # faster changes of loudness are onsets
_NEPERS = np.log(10) / 10 * 50  # of power, in a unit of log-mel features with a floor of -100 dB


@dataclass(frozen=True)
class Keep:
    """What is kept of a clip: its `melody` (the pattern of partials, not their strengths), its `loudness` contour, its
    `onsets`; and `label`, the index of the style among the model's classes (-1: it has none)."""

    melody: bool = True
    loudness: bool = True
    onsets: bool = True
    label: int = -1

    def __post_init__(self) -> None:
        ranges.check_fields(self)


@dataclass(frozen=True, eq=False)
class Restyle(Task):
    """Known: a clip, where sampling begins, and what is kept of it. Made: the clip in the model's style.

    `origin` are the features in which sampling begins where another model takes the clip to noise; None: the model's.
    """

    needs_sound: ClassVar[bool] = True
    gives_start: ClassVar[bool] = True
    Request: ClassVar[type] = Keep

    classes: tuple[str, ...] = ()
    peak_db: Level = None
    origin: Representation | None = None

    def check(self, representation: Representation) -> None:
        log_mel_of(representation)

    def example(self, representation: Representation, batch: Batch, key: Array) -> Example:
        raise TypeError("a restyling trains nothing; train its model to generate")

    def given(self, representation: Representation, batch: Batch, request: Keep = Keep()) -> Given:
        label = jnp.full_like(batch["label"], request.label if request.label >= 0 else len(self.classes))
        x = representation.encode(batch["wave"])
        start = x if self.origin is None else self.origin.encode(batch["wave"])
        return Given(Condition(label=label if self.classes else None), start, (request, x))

    def guide(self, representation: Representation, denoiser: Estimate, schedule: Schedule, given: Given) -> Estimate:
        request, source = given.kept
        return lambda x_t, t, *r: kept(representation, request, source, denoiser(x_t, t, *r))


def kept(
    representation: Representation, request: Keep, source: Float[Array, "batch frames bands"], x0: Array
) -> Float[Array, "batch frames bands"]:
    """Features x0 with what is kept of those of the source: normalised features of log-mel bands, both."""
    if not (request.melody or request.loudness or request.onsets):
        return x0
    mel = log_mel_of(representation)
    mean, scale = representation.normalization if isinstance(representation, Normalized) else (0.0, 1.0)
    s, x = source * scale + mean, x0 * scale + mean
    if request.melody:
        x = x + _partials(mel, s - x)
    if request.loudness or request.onsets:
        difference = _loudness(s) - _loudness(x)
        slow = _smooth(difference, max(1, round(_CONTOUR_SECONDS * mel.sample_rate / mel.hop_length)))
        wanted = request.loudness * slow + request.onsets * (difference - slow)
        x = x + wanted[..., None]
    return (x - mean) / scale


def _partials(mel: LogMel, x: Float[Array, "batch frames bands"]) -> Array:
    """The fine structure of log-mel features along the bands, where single partials are told apart."""
    bands = mel.n_mels
    basis = np.cos(np.pi / bands * (np.arange(bands)[:, None] + 0.5) * np.arange(_ENVELOPE))
    basis /= np.linalg.norm(basis, axis=0)
    envelope = basis @ basis.T
    hz = mel_band_centres(mel)
    weight = np.clip((_PARTIALS_HZ[1] - hz) / (_PARTIALS_HZ[1] - _PARTIALS_HZ[0]), 0, 1)
    return (x - x @ jnp.asarray(envelope, x.dtype)) * jnp.asarray(weight, x.dtype)


def _loudness(x: Float[Array, "batch frames bands"]) -> Float[Array, "batch frames"]:
    """The power of all bands together, in the unit of the features."""
    return jax.nn.logsumexp(_NEPERS * x, axis=-1) / _NEPERS


def _smooth(x: Float[Array, "batch frames"], frames: int) -> Array:
    """A mean over as many frames as that on both sides, weighted by a Hann window; ends are repeated."""
    window = np.hanning(2 * frames + 3)[1:-1]
    window = jnp.asarray(window / window.sum(), x.dtype)
    padded = jnp.pad(x, ((0, 0), (frames, frames)), mode="edge")
    return jax.vmap(lambda row: jnp.convolve(row, window, mode="valid"))(padded)
