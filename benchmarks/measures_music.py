"""What the benchmarks of music conversion share: tags and embeddings, notes, agreement of pitch, simple baselines.

Every sound is mono at 16 kHz, [samples]. Notes are float arrays [notes, 4]: onset in s, offset in s, MIDI pitch and
velocity (0 to 127).

- Tags: the networks of the musicnn package (Pons & Serra 2019), as `jaxdiff.evaluation.embeddings` reads them.
  `MTT_vgg` and `MTT_musicnn` know the tags of MagnaTagATune, piano and violin among them.
- Frechet distance: between embeddings of windows, in the principal components of the reference.
- Notes: those that basic-pitch hears (Bittner et al. 2022); `jaxdiff.evaluation.notes` scores them.
- Agreement of F0: the share of frames within 50 cents, which says of a conversion how much of a melody it kept;
  `f0_rmse` of jaxdiff.evaluation is ruled by the few frames that are an octave off.
- Baselines: a filter between average spectra, and WORLD with a held amplitude.

Needs librosa, pyworld, pretty_midi, mir_eval (of basic-pitch), `pip install --no-deps basic-pitch resampy` and
`pip install --no-deps musicnn`: TensorFlow is not used.
"""

import contextlib
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import librosa
import numpy as np
import soundfile
from measures import RATE, pyworld
from scipy.ndimage import uniform_filter1d

from jaxdiff.evaluation import embeddings
from jaxdiff.evaluation.distances import frechet_distance
from jaxdiff.features import pyin

ONSET, OFFSET = range(2)  # columns of notes

TAG_LEVEL_DB = -20.0

F0_RANGE = 60.0, 2000.0  # Hz
F0_FRAME, F0_HOP = 1024, 256
CENTS = 50.0  # within which two pitches are the same

LTAS_FRAME, LTAS_HOP, LTAS_OCTAVES = 2048, 512, 1 / 3
LTAS_FLOOR = 1e-6  # of the loudest bin: what is quieter in a source is not raised further
WORLD_F0 = 60.0, 1600.0  # Hz
WORLD_SIZE = 1024
WORLD_PERIOD = 0.005  # s
ATTACK_SECONDS = 0.1  # after an onset, where the level to be held is sought


# Tags ---------------------------------------------------------------------------------------------------------------


class Musicnn(embeddings.Musicnn):
    """A network of the musicnn package for one sound, brought to the RMS `level`; `MTT_vgg` tells a piano from a violin
    best."""

    def __init__(
        self,
        name: embeddings.MusicnnName = "MTT_vgg",
        folder: Path | None = None,
        level: float | None = TAG_LEVEL_DB,
    ):
        super().__init__(name, folder, level)

    def __call__(self, y: np.ndarray) -> embeddings.Tagged:
        """Tags and embeddings [windows, ...] of a sound [samples]."""
        return embeddings.Tagged(*(np.asarray(part[0]) for part in super().__call__(y[None])))

    def probability(self, tagged: embeddings.Tagged, tag: str) -> float:
        """The mean over windows of a tag's probability."""
        if tag not in self.labels:
            raise ValueError(f"this network has no tag {tag!r}; it has {', '.join(self.labels)}")
        return float(tagged.tags[:, self.labels.index(tag)].mean())


def frechet(made: np.ndarray, reference: np.ndarray, components: int = 16) -> float:
    """Squared Frechet distance between embeddings [windows, d] in the reference's first principal components."""
    if len(reference) <= components:
        raise ValueError(
            f"{components} principal components need more windows of reference than that, got {len(reference)}; "
            "give more sound or ask for fewer components"
        )
    mean = reference.mean(0, dtype=np.float64)
    _, _, axes = np.linalg.svd(reference - mean, full_matrices=False)
    project = lambda x: (x - mean) @ axes[:components].T  # noqa: E731
    return frechet_distance(project(made), project(reference))


# Notes --------------------------------------------------------------------------------------------------------------


def basic_pitch_notes(y: np.ndarray) -> np.ndarray:
    """The notes that basic-pitch hears, with its own thresholds; velocity is 127 times its amplitude."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        from basic_pitch.inference import predict

        path = Path(folder) / "sound.wav"
        soundfile.write(path, y, RATE, subtype="FLOAT")
        _, _, events = predict(path, _basic_pitch_network())
    found = np.array([event[:4] for event in events], float).reshape(-1, 4) * [1, 1, 1, 127]
    return found[np.argsort(found[:, ONSET], kind="stable")]


@functools.cache
def _basic_pitch_network() -> Any:
    """The package's ONNX network; its default is that of whichever runtime it finds first."""
    from basic_pitch import FilenameSuffix, build_icassp_2022_model_path
    from basic_pitch.inference import Model

    return Model(build_icassp_2022_model_path(FilenameSuffix.onnx))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what a package prints and logs."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.root.setLevel(level)


# Likeness to a source -----------------------------------------------------------------------------------------------


def f0_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The share of frames voiced in both sounds where their F0, by pYIN, are within 50 cents; 0 if there is none.

    It means something for melodies only: chords have no F0.
    """
    a, b = _equally_long(a, b)
    first, second = _f0(a), _f0(b)
    both = np.isfinite(first) & np.isfinite(second)
    if not both.any():
        return 0.0
    return float((np.abs(1200 * np.log2(first[both] / second[both])) < CENTS).mean())


def _equally_long(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = min(len(a), len(b))
    return a[:size], b[:size]


def _f0(y: np.ndarray) -> np.ndarray:
    """F0 in Hz of frames 16 ms apart, NaN where unvoiced; whole tens of seconds, so that few lengths are compiled."""
    frames = 1 + len(y) // F0_HOP
    padded = np.pad(y, (0, -len(y) % (10 * RATE))).astype(np.float32)
    low, high = F0_RANGE
    f0, _, _ = pyin(jnp.asarray(padded), fmin=low, fmax=high, sr=RATE, frame_length=F0_FRAME, hop_length=F0_HOP)
    return np.asarray(f0)[:frames]


# Baselines ----------------------------------------------------------------------------------------------------------


class AverageFilter:
    """Filters a sound so that the average spectrum of the sources becomes that of the targets.

    The gain of each bin is the root of the ratio of the two long-term average power spectra (n_fft 2048, hop 512), each
    smoothed over a third of an octave: without that it follows the single partials of the notes that were played.
    """

    def __init__(self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]):
        before, after = self._average(sources), self._average(targets)
        self.gain = np.sqrt(after / np.maximum(before, LTAS_FLOOR * before.max()))  # [1025]

    @staticmethod
    def _average(waves: Sequence[np.ndarray]) -> np.ndarray:
        powers = [np.abs(librosa.stft(y, n_fft=LTAS_FRAME, hop_length=LTAS_HOP)) ** 2 for y in waves]
        power = np.concatenate(powers, -1).mean(-1, dtype=np.float64)
        bins, half = np.arange(len(power)), 2.0 ** (LTAS_OCTAVES / 2)
        first, end = np.floor(bins / half).astype(int), np.minimum(np.ceil(bins * half).astype(int) + 1, len(power))
        sums = np.concatenate([[0.0], np.cumsum(power)])
        return (sums[end] - sums[first]) / (end - first)

    def __call__(self, y: np.ndarray) -> np.ndarray:
        spectrum = librosa.stft(y, n_fft=LTAS_FRAME, hop_length=LTAS_HOP) * self.gain[:, None]
        return librosa.istft(spectrum, n_fft=LTAS_FRAME, hop_length=LTAS_HOP, length=len(y)).astype(np.float32)


class SustainedWorld:
    """WORLD with the source's F0, the targets' average envelope and aperiodicity, and the level of each onset held.

    The targets should be melodies, in which WORLD finds F0. Where the source is unvoiced the last F0 goes on. From each
    onset on the output has the highest level of the source in the 100 ms after it; it is silent where no note sounds.
    """

    def __init__(self, targets: Sequence[np.ndarray]):
        envelopes, aperiodicities = [], []
        for y in targets:
            wave = y.astype(np.float64)
            f0, times = self._f0(wave)
            voiced = f0 > 0
            envelope = pyworld().cheaptrick(wave, f0, times, RATE, fft_size=WORLD_SIZE)[voiced]
            level = envelope.mean(1, keepdims=True)
            keep = level[:, 0] > 1e-3 * level.max(initial=0)
            envelopes.append(np.log(envelope / level)[keep])
            aperiodicities.append(pyworld().d4c(wave, f0, times, RATE, fft_size=WORLD_SIZE)[voiced][keep])
        self.envelope = np.exp(np.concatenate(envelopes).mean(0))  # [513], power
        self.aperiodicity = np.concatenate(aperiodicities).mean(0)  # [513]

    @staticmethod
    def _f0(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """F0 in Hz, 0 where unvoiced, and the times of the frames in s."""
        low, high = WORLD_F0
        return pyworld().harvest(wave, RATE, f0_floor=low, f0_ceil=high, frame_period=1000 * WORLD_PERIOD)

    def __call__(self, y: np.ndarray, notes: np.ndarray) -> np.ndarray:
        """Of the sound `y` of these notes."""
        f0, _ = self._f0(y.astype(np.float64))
        voiced = np.flatnonzero(f0)
        if len(voiced) == 0 or len(notes) == 0:
            return np.zeros_like(y, np.float32)
        last = np.maximum(np.searchsorted(voiced, np.arange(len(f0)), side="right") - 1, 0)
        f0 = f0[voiced[last]]
        shape = len(f0), 1
        made = pyworld().synthesize(
            f0, np.tile(self.envelope, shape), np.tile(self.aperiodicity, shape), RATE, 1000 * WORLD_PERIOD
        )
        made = np.pad(made, (0, max(0, len(y) - len(made))))[: len(y)]
        frame = RATE // 20
        own = np.sqrt(uniform_filter1d(made**2, frame) + 1e-20)
        return (made / own * self._held_level(y, notes, frame)).astype(np.float32)

    @staticmethod
    def _held_level(y: np.ndarray, notes: np.ndarray, frame: int) -> np.ndarray:
        """RMS to be held, [samples], with edges of 10 ms."""
        rms = np.sqrt(uniform_filter1d(y.astype(np.float64) ** 2, frame).clip(0))
        level = np.zeros(len(y))
        onsets = np.unique(np.round(notes[:, ONSET] * RATE).astype(int).clip(0, len(y)))
        for onset, end in zip(onsets, [*onsets[1:], len(y)], strict=True):
            level[onset:end] = rms[onset : onset + round(ATTACK_SECONDS * RATE)].max(initial=0)
        sounding = np.zeros(len(y))
        for onset, offset in np.round(notes[:, [ONSET, OFFSET]] * RATE).astype(int):
            sounding[max(onset, 0) : max(offset, 0)] = 1
        return uniform_filter1d(level * sounding, RATE // 100)
