"""Vocoding: sound from its mel spectrogram (DiffWave, Kong et al. 2021, section 3.2)."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff import ranges
from jaxdiff.features import (
    CompressedStft,
    Magnitude,
    Representation,
    hz_to_mel,
    mel_filterbank,
    mel_to_hz,
    mel_to_stft,
    melspectrogram,
)
from jaxdiff.networks import Condition

from .task import Batch, Example, Given, Level, Needs, Task

_RANGE_DB = 100.0  # of the condition's magnitudes, the largest being 20 dB above 1


@dataclass(frozen=True)
class Phases:
    """How long Griffin-Lim looks for phases, where a model makes magnitudes: `iterations`, None the configuration's."""

    iterations: ranges.Count | None = None

    def __post_init__(self) -> None:
        ranges.check_fields(self)


@dataclass(frozen=True)
class Vocode(Task):
    """Known: log-mel magnitudes, one frame per `hop_length` samples. Made: the waveform.

    Mel magnitudes are scaled as DiffWave's: 20 dB below full scale is the reference, 100 dB the range, so that the
    condition lies in [0, 1]. With `envelope` features are divided by what the condition tells of their magnitudes, so
    that the network sees and makes numbers of unit size, and noise is shaped as the sound is (PriorGrad, Lee et al.
    2022, for the mel's energy). With `guess` sampling begins at the magnitudes of the inverted mel, in the `magnitude`
    representation's power, for a network to improve: after `guess_steps` steps of non-negative least squares, of which
    50 gain nothing in PESQ over 8.
    """

    needs_sound: ClassVar[bool] = True
    Request: ClassVar[type] = Phases

    n_fft: Annotated[int, Interval(ge=2, le=2**16)] = 1024
    hop_length: ranges.Count = 256
    n_mels: ranges.Count = 80
    fmax: ranges.Positive | None = None
    envelope: bool = False
    guess: bool = False
    guess_steps: ranges.Count = 8
    peak_db: Level = None

    def check(self, representation: Representation) -> None:
        name = type(representation).__name__
        if self.envelope and not (
            isinstance(representation, CompressedStft | Magnitude) and representation.hop_length == self.hop_length
        ):
            raise ValueError(
                f"task.envelope needs representation compressed_stft or magnitude of the task's hop {self.hop_length} "
                f"and normalize.enabled no, got {name} of hop {representation.hop_length}; set all three"
            )
        if self.guess and not (
            isinstance(representation, Magnitude)
            and (representation.n_fft, representation.hop_length) == (self.n_fft, self.hop_length)
        ):
            raise ValueError(
                f"task.guess needs representation magnitude of the task's n_fft and hop_length and normalize.enabled "
                f"no, got {name} of hop {representation.hop_length}; set all three, or task.guess no"
            )

    @property
    def gives_start(self) -> bool:
        return self.guess

    def needs(self, representation: Representation) -> Needs:
        return Needs(condition_features=self.n_mels, condition_hop=self.hop_length)

    def example(self, representation: Representation, batch: Batch, key: PRNGKeyArray) -> Example:
        wave = self.leveled(batch["wave"])
        given = self._known(representation, self.mel(representation, wave))
        x0 = representation.encode(wave)
        return Example(x0 / self._envelope(representation, given) if self.envelope else x0, given)

    def given(self, representation: Representation, batch: Batch, request: Phases = Phases()) -> Given:
        """Of the "mel" [batch, mels, frames] of a batch where it has one, else of its "wave"."""
        M = batch["mel"] if "mel" in batch else self.mel(representation, batch["wave"])
        return self._known(representation, M)._replace(kept=request)

    def finish(self, representation: Representation, x0: Array, given: Given) -> Array:
        if isinstance(given.kept, Phases) and given.kept.iterations is not None:
            if not isinstance(representation, Magnitude):
                raise ValueError("iterations are of Griffin-Lim, for models of magnitudes, which this one is not")
            representation = dataclasses.replace(representation, n_iter=given.kept.iterations)
        return representation.decode(x0 * self._envelope(representation, given) if self.envelope else x0)

    def frames(self, representation: Representation, samples: int) -> int:
        """Of the mel spectrogram of so many samples."""
        if self.hop_length == representation.hop_length:  # as many as the network's, which may have one at both ends
            return representation.frames(samples)
        return samples // self.hop_length

    def mel(self, representation: Representation, wave: Float[Array, "batch samples"]) -> Array:
        """The mel magnitudes [batch, mels, frames] of sounds."""
        sizes = self._sizes(representation)
        M = melspectrogram(wave, hop_length=self.hop_length, n_mels=self.n_mels, **sizes)
        return M[..., : self.frames(representation, wave.shape[-1])]

    def _sizes(self, representation: Representation) -> dict[str, Any]:
        return dict(sr=representation.sample_rate, n_fft=self.n_fft, fmax=self.fmax, power=1.0)

    def _known(self, representation: Any, M: Float[Array, "batch mels frames"]) -> Given:
        db = 20 * jnp.log10(jnp.maximum(M, 1e-5)) - 20
        given = Given(Condition(frames=jnp.clip((db + _RANGE_DB) / _RANGE_DB, 0, 1).mT))
        if not self.guess:
            return given
        start = mel_to_stft(M, n_iter=self.guess_steps, **self._sizes(representation)).mT ** representation.exponent
        return given._replace(start=start / self._envelope(representation, given) if self.envelope else start)

    def _envelope(self, representation: Any, given: Given) -> Array:
        return spectral_envelope(
            jnp.asarray(given.cond.frames),
            sr=representation.sample_rate,
            n_fft=self.n_fft,
            fmax=self.fmax,
            stft_n_fft=representation.n_fft,
            exponent=representation.exponent,
            parts=2 if isinstance(representation, CompressedStft) else 1,
        )


def spectral_envelope(
    frames: Float[Array, "batch frames mels"],
    *,
    sr: float,
    n_fft: int,
    fmax: float | None,
    stft_n_fft: int,
    exponent: float,
    parts: int = 2,
) -> Float[Array, "batch frames features"]:
    """The magnitudes that a vocoder's condition implies for spectra of `stft_n_fft` and `exponent`, repeated for
    `parts` 2, real and imaginary: decibels of the mean magnitude in a band, linear between the bands' centres.

    `sr` in Hz, `n_fft` and `fmax` (Hz, None: half of `sr`) are those of the mel spectrogram.
    """
    n_mels = frames.shape[-1]
    area = mel_filterbank(sr, n_fft, n_mels, fmax=fmax).sum(1)
    edges = np.linspace(0, hz_to_mel(sr / 2 if fmax is None else fmax), n_mels + 2)
    centres = np.asarray(mel_to_hz(edges))[1:-1]
    bins = np.arange(stft_n_fft // 2 + 1) * sr / stft_n_fft
    between = np.stack([np.interp(bins, centres, row) for row in np.eye(n_mels)])  # [mels, bins]
    shorter = np.sqrt(stft_n_fft / n_fft)  # noise grows with the root of the window's length
    offset = 20 * np.log10(shorter / np.maximum(area, 1e-10)) + 20 - _RANGE_DB
    db = (_RANGE_DB * frames + offset.astype(np.float32)) @ between.astype(np.float32)
    magnitude = 10 ** (exponent / 20 * db)
    return jnp.concatenate([magnitude] * parts, axis=-1)
