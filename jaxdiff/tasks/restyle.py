"""Style transfer: a clip becomes one that a generative model could have made, and what was played is kept.

What is kept is set right in the estimates of the sampler, a projection on the features that have it (Choi et al. 2021,
ILVR, for images): the sound around it is the model's and fits it. The melody is held while there is much noise, when it
is decided; later its partials are left to the model, since their strengths are the colour of an instrument.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff import ranges
from jaxdiff.diffusion import Schedule
from jaxdiff.features import LogMel, Magnitude, Normalized, Representation
from jaxdiff.networks import Condition

from .task import Batch, Estimate, Example, Given, Level, Task
from .voice import mel_band_centres

_ENVELOPE = 14  # cosines over the bands that make the colour of a sound; finer ones are its partials
_PARTIALS_HZ = (2000.0, 4000.0)  # partials are kept below the first, not above the second
_HELD = 0.6, 0.9  # times of diffusion below which partials are the model's alone, and above which the clip's
_CONTOUR_SECONDS = 0.1  # faster changes of loudness are onsets
_NEPERS_A_DB = np.log(10) / 10  # of power


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
        _spectrum_of(representation)

    def example(self, representation: Representation, batch: Batch, key: Array) -> Example:
        raise TypeError("a restyling trains nothing; train its model to generate")

    def given(self, representation: Representation, batch: Batch, request: Keep = Keep()) -> Given:
        label = jnp.full_like(batch["label"], request.label if request.label >= 0 else len(self.classes))
        x = representation.encode(batch["wave"])
        start = x if self.origin is None else self.origin.encode(batch["wave"])
        return Given(Condition(label=label if self.classes else None), start, (request, x))

    def guide(self, representation: Representation, denoiser: Estimate, schedule: Schedule, given: Given) -> Estimate:
        request, source = given.kept

        def guided(x_t: Array, t: Array, *r: Array) -> Array:
            held = jnp.clip((t - _HELD[0]) / (_HELD[1] - _HELD[0]), 0, 1).reshape(-1, 1, 1)
            return kept(representation, request, source, denoiser(x_t, t, *r), held)

        return guided


def kept(
    representation: Representation,
    request: Keep,
    source: Float[Array, "batch frames bands"],
    x0: Array,
    held: float | Array = 1.0,
) -> Float[Array, "batch frames bands"]:
    """Features x0 with what is kept of those of the source, normalised log-mel bands or magnitudes both; with `held`
    below 1 the melody is kept in part.
    """
    if not (request.melody or request.loudness or request.onsets):
        return x0
    mean, scale = representation.normalization if isinstance(representation, Normalized) else (0.0, 1.0)
    inner = _spectrum_of(representation)
    levels = functools.partial(_levels, inner)
    x, by = x0 * scale + mean, jnp.zeros_like(x0)
    s, at = levels(source * scale + mean), levels(x)
    if request.melody:
        by = held * _partials(_centres(inner), s - at)
    if request.loudness or request.onsets:
        difference = jax.nn.logsumexp(s, axis=-1) - jax.nn.logsumexp(at + by, axis=-1)
        slow = _smooth(difference, max(1, round(_CONTOUR_SECONDS * inner.sample_rate / inner.hop_length)))
        by += (request.loudness * slow + request.onsets * (difference - slow))[..., None]
    return (_moved(inner, x, by) - mean) / scale


def _spectrum_of(representation: Any) -> LogMel | Magnitude:
    """The spectrum inside of what may be normalised and have a vocoder."""
    inner = representation
    while not isinstance(inner, LogMel | Magnitude):
        if not hasattr(inner, "representation"):
            name = type(inner).__name__
            raise ValueError(f"restyle needs a model of representation log_mel or magnitude, got {name}; use another")
        inner = inner.representation
    return inner


def _levels(inner: LogMel | Magnitude, x: Float[Array, "batch frames bands"]) -> Array:
    """The power of every band of a spectrum, as a natural logarithm."""
    if isinstance(inner, LogMel):
        return x * (-inner.floor_db / 2 * _NEPERS_A_DB)
    return 2 / inner.exponent * jnp.log(jnp.maximum(x, _faintest(inner)))


def _moved(inner: LogMel | Magnitude, x: Float[Array, "batch frames bands"], by: Array) -> Array:
    """A spectrum with `by` added to its levels."""
    if isinstance(inner, LogMel):
        return x + by / (-inner.floor_db / 2 * _NEPERS_A_DB)
    return jnp.maximum(x, _faintest(inner)) * jnp.exp(inner.exponent / 2 * by)


def _faintest(inner: Magnitude) -> float:
    """The feature of what is 90 dB below a sine at full scale."""
    return float((inner.n_fft / 4 * 10**-4.5) ** inner.exponent)


def _centres(inner: LogMel | Magnitude) -> np.ndarray:
    """The bands' middles in Hz."""
    if isinstance(inner, LogMel):
        return mel_band_centres(inner)
    return np.linspace(0, inner.sample_rate / 2, inner.channels)


def _partials(hz: np.ndarray, x: Float[Array, "batch frames bands"]) -> Array:
    """The fine structure of levels along the bands, where single partials are told apart."""
    bands = len(hz)
    basis = np.cos(np.pi / bands * (np.arange(bands)[:, None] + 0.5) * np.arange(min(_ENVELOPE, bands)))
    basis /= np.linalg.norm(basis, axis=0)
    weight = np.clip((_PARTIALS_HZ[1] - hz) / (_PARTIALS_HZ[1] - _PARTIALS_HZ[0]), 0, 1)
    smooth = x @ jnp.asarray(basis, x.dtype) @ jnp.asarray(basis.T, x.dtype)
    return (x - smooth) * jnp.asarray(weight, x.dtype)


def _smooth(x: Float[Array, "batch frames"], frames: int) -> Array:
    """A mean over as many frames as that on both sides, weighted by a Hann window; ends are repeated."""
    window = np.hanning(2 * frames + 3)[1:-1]
    window = jnp.asarray(window / window.sum(), x.dtype)
    padded = jnp.pad(x, ((0, 0), (frames, frames)), mode="edge")
    return jax.vmap(lambda row: jnp.convolve(row, window, mode="valid"))(padded)
