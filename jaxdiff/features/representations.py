"""Representations are what a network sees in place of a waveform: `encode` to features, `decode` back.

    encode: wave [..., samples] -> features [..., frames, channels]        decode: the way back

A representation is a frozen dataclass, and its fields are its configuration. `Patches` and `CompressedStft` are exactly
invertible; `Magnitude` loses phase and `LogMel` phase and detail, so their decode is a reconstruction. `Stereo` makes
any of them one of sound [..., 2, samples], and `Normalized` puts the affine map whose numbers `fit_normalization`
measures on a corpus around any of them.
"""

import abc
import dataclasses
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from .arguments import check_argument
from .mel import melspectrogram
from .notes import KEYS, LOWEST_KEY
from .reconstruct import griffinlim, mel_to_stft
from .spectral import istft, safe_power, stft


class Representation(abc.ABC):
    """Sound to features and back: `decode(encode(y))` is y where `exact`, else as near as the representation allows.

    `sample_rate` is that of the sound in Hz, and `hop_length` the samples from one frame to the next, which divides the
    samples that `decode` makes. `edge` frames at an end see beyond it. A part of a sound decodes as in the whole where
    it begins at a multiple of `phase_period` frames; None: nowhere. `stereo` is whether sounds are [..., 2, samples].
    """

    sample_rate: int
    hop_length: int
    exact: bool
    edge: int = 0
    phase_period: int | None = 1
    stereo: bool = False

    @property
    def inner(self) -> "Representation":
        """The representation that others were put around: features as they were configured."""
        return self

    def sound_shape(self, samples: int) -> tuple[int, ...]:
        """The shape of one sound of so many samples."""
        return (2, samples) if self.stereo else (samples,)

    def __post_init__(self):
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every representation is a dataclass
            check_argument(type(self).__name__, field.name, field.type, getattr(self, field.name))

    @property
    @abc.abstractmethod
    def channels(self) -> int:
        """Features per frame."""

    @abc.abstractmethod
    def frames(self, samples: int) -> int:
        """How many frames `encode` makes of so many samples."""

    @abc.abstractmethod
    def encode(self, y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        """Features of sound."""

    @abc.abstractmethod
    def decode(self, x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        """Sound from features."""


@dataclass(frozen=True)
class Patches(Representation):
    """Raw samples, `size` of them to a frame; `size` 1 is the waveform itself with one channel.

    >>> Patches(size=4).encode(jnp.arange(8.0)).tolist()
    [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    """

    sample_rate: int = 16_000
    size: int = 64

    exact: ClassVar[bool] = True

    @property
    def hop_length(self) -> int:
        return self.size

    @property
    def channels(self) -> int:
        return self.size

    def frames(self, samples: int) -> int:
        if samples % self.size:
            raise ValueError(f"{samples} samples are no whole number of patches of size {self.size}; trim or pad them")
        return samples // self.size

    def encode(self, y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        return y.reshape(*y.shape[:-1], self.frames(y.shape[-1]), self.size)

    def decode(self, x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        return x.reshape(*x.shape[:-2], -1)


class _ShortTime(Representation):
    """Features of a centred STFT, with a frame at each end: m frames stand for `(m - 1) * hop_length` samples."""

    n_fft: int

    def __post_init__(self):
        super().__post_init__()
        if self.n_fft % 2 or not 1 <= self.hop_length <= self.n_fft // 2:
            raise ValueError(
                f"n_fft {self.n_fft} must be even and hop_length {self.hop_length} at most half of it, to be invertible"
            )

    @property
    def edge(self) -> int:
        return -(-self.n_fft // (2 * self.hop_length))

    def frames(self, samples: int) -> int:
        return 1 + samples // self.hop_length


@dataclass(frozen=True)
class CompressedStft(_ShortTime):
    """Complex STFT with magnitudes raised to `exponent`, real parts then imaginary parts as channels.

    Power-law compression as in SGMSE (Richter et al. 2023, eq. 13; its constant factor is left to `Normalized`): quiet
    partials weigh more in a squared error. m frames stand for `(m - 1) * hop_length` samples. Exact inverse.

    >>> CompressedStft(n_fft=64, hop_length=16).encode(jnp.ones((2, 160))).shape
    (2, 11, 66)
    """

    sample_rate: int = 16_000
    n_fft: int = 512
    hop_length: int = 128
    exponent: float = 0.5

    exact: ClassVar[bool] = True

    @property
    def channels(self) -> int:
        return self.n_fft + 2

    def encode(self, y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        return self.compress(stft(y, n_fft=self.n_fft, hop_length=self.hop_length))

    def decode(self, x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        return istft(self.decompress(x), hop_length=self.hop_length)

    def compress(self, X: Complex[Array, "... bins frames"]) -> Float[Array, "... frames channels"]:
        """Features of an STFT."""
        X = X.mT
        X = X * jnp.maximum(jnp.abs(X), 1e-12) ** (self.exponent - 1)
        return jnp.concatenate([X.real, X.imag], axis=-1)

    def decompress(self, x: Float[Array, "... frames channels"]) -> Complex[Array, "... bins frames"]:
        """The STFT of features."""
        real, imag = jnp.split(x, 2, axis=-1)
        gain = (real**2 + imag**2 + 1e-24) ** (0.5 / self.exponent - 0.5)
        return jax.lax.complex(real * gain, imag * gain).mT


@dataclass(frozen=True)
class Magnitude(_ShortTime):
    """STFT magnitudes raised to `exponent`; decoded by Griffin-Lim, whose phases are constants to a gradient.

    Below 0 counts as 0. m frames stand for `(m - 1) * hop_length` samples. `n_iter` and `phase_period` are those of
    `griffinlim`: a part that begins at a multiple of `phase_period` frames sounds, away from its ends, as in the whole.

    >>> Magnitude(n_fft=64, hop_length=16).encode(jnp.ones((2, 160))).shape
    (2, 11, 33)
    """

    sample_rate: int = 16_000
    n_fft: int = 1024
    hop_length: int = 256
    exponent: float = 0.5
    n_iter: int = 32
    phase_period: int | None = 64

    exact: ClassVar[bool] = False

    @property
    def channels(self) -> int:
        return self.n_fft // 2 + 1

    def encode(self, y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        X = stft(y, n_fft=self.n_fft, hop_length=self.hop_length)
        return jnp.maximum(jnp.abs(X), 1e-12).mT ** self.exponent

    def decode(self, x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        S = safe_power(x.mT, 1 / self.exponent)
        sizes: dict[str, Any] = dict(hop_length=self.hop_length, n_fft=self.n_fft)
        y = griffinlim(jax.lax.stop_gradient(S), n_iter=self.n_iter, phase_period=self.phase_period, **sizes)
        X = stft(y, **sizes)
        phase = X / jnp.maximum(jnp.abs(X), 1e-12)
        return istft(S * jax.lax.stop_gradient(phase), hop_length=self.hop_length)


@dataclass(frozen=True)
class LogMel(_ShortTime):
    """Log-mel magnitudes, 0 dB mapped to 1 and `floor_db` to -1; decoded by mel inversion and Griffin-Lim, or where a
    model is loaded by the shipped `vocoder` of that name.

    m frames stand for `(m - 1) * hop_length` samples. `n_iter` and `phase_period` are as in `Magnitude`; but the mel
    inversion rounds a part otherwise than the whole and Griffin-Lim amplifies that, to -30 dB in the worst frames.

    >>> LogMel(8000, n_fft=256, hop_length=64, n_mels=20).encode(jnp.ones(640)).shape
    (11, 20)
    """

    sample_rate: int = 16_000
    n_fft: int = 1024
    hop_length: int = 256
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float | None = None
    floor_db: float = -100.0
    n_iter: int = 32
    phase_period: int | None = 64
    vocoder: str | None = None

    exact: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if self.floor_db >= 0:
            raise ValueError(f"floor_db must be below 0 dB, got {self.floor_db}")

    @property
    def channels(self) -> int:
        return self.n_mels

    @property
    def _mel(self) -> dict:
        return dict(sr=self.sample_rate, n_fft=self.n_fft, fmin=self.fmin, fmax=self.fmax, power=1.0)

    def encode(self, y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        M = melspectrogram(y, hop_length=self.hop_length, n_mels=self.n_mels, **self._mel)
        db = 20 * jnp.log10(jnp.maximum(M, 10 ** (self.floor_db / 20)))
        return (1 - 2 * db / self.floor_db).mT

    def magnitudes(self, x: Float[Array, "... frames channels"]) -> Float[Array, "... mels frames"]:
        """The mel magnitudes of features."""
        return 10 ** ((1 - x.mT) * self.floor_db / 40)

    def decode(self, x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        S = mel_to_stft(self.magnitudes(x), **self._mel)
        sizes: dict[str, Any] = dict(hop_length=self.hop_length, n_fft=self.n_fft)
        return griffinlim(S, n_iter=self.n_iter, phase_period=self.phase_period, **sizes)


@dataclass(frozen=True)
class PianoRoll(Representation):
    """What a score says of each of 88 keys, as in `Roll`: whether it sounds, whether a note begins, its force.

    It is read off a score or estimated by a network; there is no `encode`. Decoded, each key that sounds is a sine of
    its pitch, rounded to an eighth of a hertz so that parts that begin at multiples of 8 s continue one another.

    >>> PianoRoll().decode(jnp.zeros((11, 264))).shape
    (1600,)
    """

    sample_rate: int = 16_000
    hop_length: int = 160

    exact: ClassVar[bool] = False

    @property
    def channels(self) -> int:
        return 3 * KEYS

    @property
    def phase_period(self) -> int:  # type: ignore[override]
        return _PERIOD_SECONDS * self.sample_rate // math.gcd(_PERIOD_SECONDS * self.sample_rate, self.hop_length)

    def frames(self, samples: int) -> int:
        return 1 + samples // self.hop_length

    def encode(self, y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        raise TypeError("a piano roll is read off a score or estimated by a network; a sound has none")

    def decode(self, x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        sounding, _, force = jnp.split(x, 3, axis=-1)
        amplitude = 0.1 * jnp.where(sounding >= 0.5, force, 0)
        frames = amplitude.shape[-2]
        t = jnp.arange((frames - 1) * self.hop_length)
        seconds = (t % (_PERIOD_SECONDS * self.sample_rate)).astype(x.dtype) / self.sample_rate
        index, part = t // self.hop_length, (t % self.hop_length / self.hop_length).astype(x.dtype)
        keys = np.arange(LOWEST_KEY, LOWEST_KEY + KEYS)
        pitches = np.round(440 * 2 ** ((keys - 69) / 12) * _PERIOD_SECONDS) / _PERIOD_SECONDS  # Hz

        def add(y: Array, key: tuple[Array, Array]) -> tuple[Array, None]:
            track, pitch = key
            gain = track[..., index] * (1 - part) + track[..., jnp.minimum(index + 1, frames - 1)] * part
            return y + gain * jnp.sin(2 * jnp.pi * (pitch * seconds % 1)), None

        tracks = jnp.moveaxis(amplitude, -1, 0)
        start = jnp.zeros((*x.shape[:-2], len(t)), x.dtype)
        return jax.lax.scan(add, start, (tracks, jnp.asarray(pitches, x.dtype)))[0]


REPRESENTATIONS: dict[str, type[Representation]] = {
    "compressed_stft": CompressedStft,
    "patches": Patches,
    "magnitude": Magnitude,
    "log_mel": LogMel,
    "piano_roll": PianoRoll,
}
_PERIOD_SECONDS = 8  # of a piano roll's sines


class Normalization(NamedTuple):
    """Mean and scale per channel, measured on a corpus and kept in the checkpoint."""

    mean: Float[Array, " channels"]
    scale: Float[Array, " channels"]


def _of_the_inner(name: str) -> Any:
    return property(operator.attrgetter(f"representation.{name}"))


class _Around(Representation):
    """A representation around another, whose properties it has unless it says otherwise."""

    representation: Representation

    sample_rate, hop_length, channels, exact = map(_of_the_inner, ("sample_rate", "hop_length", "channels", "exact"))
    edge, phase_period, stereo = map(_of_the_inner, ("edge", "phase_period", "stereo"))
    inner = _of_the_inner("inner")

    def frames(self, samples: int) -> int:
        return self.representation.frames(samples)


@dataclass(frozen=True, eq=False)
class Vocoded(_Around):
    """The features of a `representation` of mel bands, decoded by `decoder`: magnitudes [..., mels, frames] to sound.

    `phase_period` is that of the decoder.
    """

    representation: LogMel
    decoder: Callable[[Array], Array]
    phase_period: int | None = None

    def encode(self, y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        return self.representation.encode(y)

    def decode(self, x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        M = self.representation.magnitudes(x)
        return self.decoder(M.reshape(-1, *M.shape[-2:])).reshape(*M.shape[:-2], -1)


@dataclass(frozen=True)
class Stereo(_Around):
    """The features of `representation` of the middle, then those of the side, of sound [..., 2, samples].

    The middle is (left + right) / 2 and the side (left - right) / 2, so that what both channels hold is described once.

    >>> Stereo(Patches(size=2)).encode(jnp.array([[3.0, 3.0], [1.0, 1.0]])).tolist()
    [[2.0, 2.0, 1.0, 1.0]]
    """

    representation: Representation

    stereo: ClassVar[bool] = True  # type: ignore[misc]

    @property
    def channels(self) -> int:
        return 2 * self.representation.channels

    def encode(self, y: Float[Array, "... 2 samples"]) -> Float[Array, "... frames channels"]:
        left, right = y[..., 0, :], y[..., 1, :]
        x = self.representation.encode(jnp.stack([left + right, left - right]) / 2)
        return jnp.concatenate([x[0], x[1]], axis=-1)

    def decode(self, x: Float[Array, "... frames channels"]) -> Float[Array, "... 2 samples"]:
        middle, side = self.representation.decode(jnp.stack(jnp.split(x, 2, axis=-1)))
        return jnp.stack([middle + side, middle - side], axis=-2)


@dataclass(frozen=True, eq=False)
class Normalized(_Around):
    """The features of `representation`, less the mean and divided by the scale of their channel.

    >>> pair = Normalized(Patches(size=2), Normalization(jnp.ones(2), jnp.full(2, 4.0)))
    >>> pair.encode(jnp.full(2, 9.0)).tolist()
    [[2.0, 2.0]]
    """

    representation: Representation
    normalization: Normalization

    def encode(self, y: Float[Array, "... samples"]) -> Float[Array, "... frames channels"]:
        mean, scale = self.normalization
        return (self.representation.encode(y) - mean) / scale

    def decode(self, x: Float[Array, "... frames channels"]) -> Float[Array, "... samples"]:
        mean, scale = self.normalization
        return self.representation.decode(x * scale + mean)


def fit_normalization(
    encode: Callable[[Array], Array], waves: Iterable[np.ndarray], *, evenness: float = 1.0
) -> Normalization:
    """Mean and standard deviation of every channel of `encode` over batches of waveforms, summed in float64.

    The scale is never below a hundredth of its root-mean-square over channels, so a channel that is always silent
    (the imaginary part of DC) is not blown up. `evenness` below 1 moves it, on a log scale, towards that common value:
    at 0 all channels are divided by one number and keep their proportions.

    >>> fit_normalization(Patches(size=1).encode, [np.array([[1.0, 3.0]])]).scale.tolist()
    [1.0]
    """
    encode = jax.jit(encode)
    count, total, squares = 0, np.float64(0), np.float64(0)
    for wave in waves:
        x = np.asarray(encode(wave), np.float64)
        x = x.reshape(-1, x.shape[-1])
        count, total, squares = count + len(x), total + x.sum(0), squares + (x**2).sum(0)
    if count == 0:
        raise ValueError("a normalisation needs at least one waveform to measure; the corpus gave none")
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0)
    common = np.sqrt(variance.mean() + 1e-20)
    scale = np.maximum(np.sqrt(variance), 0.01 * common) ** evenness * common ** (1 - evenness)
    return Normalization(jnp.asarray(mean, jnp.float32), jnp.asarray(scale, jnp.float32))
