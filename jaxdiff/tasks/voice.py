"""Conversion of voices: the same words, rhythm and loudness, spoken by somebody else.

What is said is read from the spectral envelope, which in training is stretched along frequency, filtered and given
noise at random, so that it tells less of who speaks (after NANSY, Choi et al. 2021). Who is to speak is told by the
class, or by frames of another recording of the voice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxdiff import ranges
from jaxdiff.features import LogMel, Representation, hz_to_mel, mel_to_hz, pyin
from jaxdiff.networks import Condition

from .instrument import Conversion
from .task import Batch, Example, Given, Level, Needs, Task

F0_LOWEST, F0_HIGHEST = 60.0, 600.0  # Hz
_FRAME_LENGTH = 1024  # samples in which a pitch is sought
_MIDDLE_HZ = 200.0  # whose pitch is 0
_DOUBT = 0.2  # of whether a frame has a pitch
_ACTIVE_DB = 40.0  # below the loudest frame, at most, of frames that tell who speaks
_DB = 50.0  # of a unit of log-mel features with a floor of -100 dB


@dataclass(frozen=True)
class Voice(Task):
    """Known: the envelope of the recording as `cepstra` numbers a frame, their mean apart (which tells more of speaker
    and room than of words), the pitch that is wanted, and who is to speak. Made: the mel spectrogram of that voice.

    Training takes envelopes from the "source" of a batch where it has one, a recording of another speaker that is
    aligned with the wave; else, and in a share `alone` of all examples, from the wave itself. They are stretched along
    frequency by up to `stretch` octaves, filtered by curves of `equalizer_db` dB, and have noise in half of all cases;
    where there is a pitch is told a little wrongly, since a source is not voiced just where the target would be. Each
    item is told who speaks by its class or by the reference, half of them each. `pitch_hz` and `pitch_semitones`, by
    class, are the geometric mean of a voice's fundamental frequency and its deviation, to which a converted pitch is
    brought.
    """

    inputs: ClassVar[tuple[str, ...]] = ("reference",)
    needs_sound: ClassVar[bool] = True
    Request: ClassVar[type] = Conversion

    classes: tuple[str, ...] = ()
    cepstra: ranges.Count = 20
    alone: ranges.Share = 0.8
    stretch: ranges.Weight = 0.2
    equalizer_db: ranges.Weight = 2.5
    pitch_hz: Mapping[str, float] = field(default_factory=dict)
    pitch_semitones: Mapping[str, float] = field(default_factory=dict)
    peak_db: Level = -3.0

    def check(self, representation: Representation) -> None:
        mel = log_mel_of(representation)
        if self.cepstra > mel.n_mels:
            raise ValueError(f"cepstra: expected at most the {mel.n_mels} mel bands, got {self.cepstra}")

    def needs(self, representation: Representation) -> Needs:
        mel = log_mel_of(representation)
        return Needs(2 * self.cepstra + 2, representation.hop_length, len(self.classes), mel.n_mels)

    def example(self, representation: Representation, batch: Batch, key: PRNGKeyArray) -> Example:
        warp_key, noise_key, told_key, alone_key, voiced_key = jax.random.split(key, 5)
        mel, wave = log_mel_of(representation), self.leveled(batch["wave"])
        alone = jax.random.bernoulli(alone_key, self.alone, (len(wave), 1))
        source = jnp.where(alone, wave, self.leveled(batch["source"])) if "source" in batch else wave
        x = mel.encode(source)
        speech, x = active_frames(x, mel), self._disguised(mel, x, warp_key, noise_key)
        tokens = mel.encode(self.leveled(batch["reference"]))
        told = jax.random.bernoulli(told_key, 0.5, (len(wave),))
        label = jnp.where(told | (batch["label"] < 0), len(self.classes), batch["label"])
        mask = active_frames(tokens, mel) & told[:, None]
        octaves, voiced = pitch_of(wave, mel.sample_rate, mel.hop_length)
        pitch = octaves, voiced, _doubtful(voiced, voiced_key)
        return Example(representation.encode(wave), self._known(x, speech, pitch, label, tokens, mask))

    def given(self, representation: Representation, batch: Batch, request: Conversion = Conversion()) -> Given:
        """A batch may hold "pitch" [batch, 2], the factor and the offset in octaves of the logarithmic pitch, and
        "reference_frames" [batch, tokens, mels], log-mel frames of the voice that is wanted in place of its class."""
        mel, wave = log_mel_of(representation), batch["wave"]
        label = jnp.full_like(batch["label"], request.label)
        octaves, voiced = pitch_of(wave, mel.sample_rate, mel.hop_length)
        factor, offset = jnp.moveaxis(batch["pitch"], -1, 0)[..., None] if "pitch" in batch else (1.0, 0.0)
        if "reference_frames" in batch:
            tokens = batch["reference_frames"]
            mask, label = jnp.ones(tokens.shape[:2], bool), jnp.full_like(label, len(self.classes))
        else:
            tokens = jnp.zeros((len(wave), 1, mel.n_mels), wave.dtype)
            mask = jnp.zeros(tokens.shape[:2], bool)
        x, pitch = mel.encode(wave), (factor * octaves + offset, voiced, voiced)
        given = self._known(x, active_frames(x, mel), pitch, label, tokens, mask)
        return given._replace(kept=(request, representation.encode(wave)))

    def finish(self, representation: Representation, x0: Array, given: Given) -> Float[Array, "batch samples"]:
        if not given.kept:
            return representation.decode(x0)
        request, source = given.kept
        return representation.decode(request.mixed(x0, source))

    def _known(
        self,
        x: Array,
        speech: Array,
        pitch: tuple[Array, Array, Array],
        label: Array | None,
        tokens: Array,
        mask: Array | None,
    ) -> Given:
        bands = x.shape[-1]
        basis = np.cos(np.pi / bands * (np.arange(bands)[:, None] + 0.5) * np.arange(self.cepstra))  # DCT-II
        cepstra = x @ jnp.asarray(basis * np.sqrt(2 / bands), x.dtype)
        weight = speech[..., None] / jnp.maximum(speech.sum(1), 1)[:, None, None]
        mean = jnp.broadcast_to((weight * cepstra).sum(1, keepdims=True), cepstra.shape)
        octaves, known, voiced = pitch
        frames = [cepstra - mean, mean, between(octaves, known)[..., None], voiced[..., None].astype(x.dtype)]
        label_or_none = label if self.classes else None
        return Given(Condition(label_or_none, jnp.concatenate(frames, axis=-1), tokens=tokens, token_mask=mask))

    def _disguised(self, mel: LogMel, x: Array, warp_key: PRNGKeyArray, noise_key: PRNGKeyArray) -> Array:
        """Log-mel frames as if another throat, room and microphone had made them."""
        batch, bands = len(x), x.shape[-1]
        octaves_key, tilt_key = jax.random.split(warp_key)
        centres = mel_band_centres(mel)
        factor = 2 ** jax.random.uniform(octaves_key, (batch, 1), minval=-self.stretch, maxval=self.stretch)
        place = jax.vmap(lambda f: jnp.interp(f, centres, np.arange(bands, dtype=np.float32)))(factor * centres)
        low = jnp.clip(place.astype(int), 0, bands - 2)
        part = (place - low)[:, None]
        take = lambda index: jnp.take_along_axis(x, index[:, None], axis=-1)  # noqa: E731
        x = (1 - part) * take(low) + part * take(low + 1)
        orders = np.arange(6)
        curves = (
            np.cos(np.pi / bands * orders[:, None] * (np.arange(bands) + 0.5)) / np.maximum(orders, 1)[:, None] ** 0.5
        )
        tilt = (
            self.equalizer_db
            / _DB
            / 2
            * jax.random.normal(tilt_key, (batch, len(orders)))
            @ jnp.asarray(curves, x.dtype)
        )
        x = x + tilt[:, None]
        level_key, some_key = jax.random.split(noise_key)
        loudest = x.max((1, 2), keepdims=True)
        floor = loudest - jax.random.uniform(level_key, (batch, 1, 1), minval=45.0, maxval=90.0) / _DB
        power = jnp.log(10.0) * _DB / 10  # of a unit, as a natural logarithm
        noisy = jnp.logaddexp(power * x, power * floor) / power
        return jnp.where(jax.random.bernoulli(some_key, 0.5, (batch, 1, 1)), noisy, x)


def pitch_of(
    wave: Float[Array, "batch samples"], sr: int, hop_length: int, highest: float = F0_HIGHEST
) -> tuple[Array, Array]:
    """The fundamental frequency in octaves above 200 Hz, and where there is one up to `highest` Hz: [batch, frames]."""
    options: dict[str, Any] = dict(
        fmin=F0_LOWEST, fmax=highest, sr=sr, frame_length=_FRAME_LENGTH, hop_length=hop_length
    )
    f0, voiced, _ = pyin(wave, **options, fill_na=None)
    return jnp.log2(f0 / _MIDDLE_HZ), voiced


def between(x: Float[Array, "batch frames"], known: Bool[Array, "batch frames"]) -> Float[Array, "batch frames"]:
    """Values on straight lines between those that are known, and the nearest known ones at the ends; 0 without any."""
    frames = x.shape[-1]
    at = jnp.arange(frames)
    left = jax.lax.cummax(jnp.where(known, at, -1), axis=1)
    right = jax.lax.cummin(jnp.where(known, at, frames), axis=1, reverse=True)
    ends = jnp.where(left < 0, right, left), jnp.where(right == frames, left, right)
    a, b = (jnp.clip(end, 0, frames - 1) for end in ends)
    values = [jnp.take_along_axis(x, end, axis=1) for end in (a, b)]
    part = (at - a) / jnp.maximum(b - a, 1)
    return jnp.where(known.any(1, keepdims=True), values[0] + part * (values[1] - values[0]), 0)


def _doubtful(voiced: Bool[Array, "batch frames"], key: PRNGKeyArray) -> Bool[Array, "batch frames"]:
    """Where there is a pitch, with ends that are moved by some frames."""
    window = jnp.hanning(11)[1:-1] / 5
    smooth = jax.vmap(lambda row: jnp.convolve(row, window, mode="same"))
    noise = smooth(jax.random.normal(key, voiced.shape)) / jnp.linalg.norm(window)
    return smooth(voiced.astype(noise.dtype)) + _DOUBT * noise > 0.5


def active_frames(x: Float[Array, "batch frames mels"], mel: LogMel) -> Bool[Array, "batch frames"]:
    """The frames that are at most 40 dB below the loudest."""
    loudness = x.max(-1)
    return loudness > loudness.max(-1, keepdims=True) - _ACTIVE_DB * 2 / -mel.floor_db


def mel_band_centres(mel: LogMel) -> np.ndarray:
    """The centres of the mel bands in Hz."""
    low, high = hz_to_mel(mel.fmin), hz_to_mel(mel.sample_rate / 2 if mel.fmax is None else mel.fmax)
    return np.asarray(mel_to_hz(np.linspace(low, high, mel.n_mels + 2)))[1:-1]


def log_mel_of(representation: Any) -> LogMel:
    """The log-mel features inside of what may be normalised and have a vocoder."""
    inner = representation
    while not isinstance(inner, LogMel):
        if not hasattr(inner, "representation"):
            raise ValueError(f"task voice needs representation log_mel, got {type(inner).__name__}; set it")
        inner = inner.representation
    return inner
