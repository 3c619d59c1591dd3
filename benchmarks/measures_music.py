"""What the benchmarks of music conversion share: tags and embeddings, note scores, likeness of pitch, simple baselines.

Every sound is mono at 16 kHz, [samples]. Notes are float arrays [notes, 4]: onset in s, offset in s, MIDI pitch and
velocity (0 to 127).

- Tags: the networks of the musicnn package (Pons & Serra 2019), as `jaxdiff.evaluation.embeddings` reads them.
  `MTT_vgg` and `MTT_musicnn` know the tags of MagnaTagATune, piano and violin among them.
- Frechet distance: between embeddings of windows, in the principal components of the reference.
- Notes: onset F1 of mir_eval, and F1 of the frames of a piano roll; basic-pitch (Bittner et al. 2022) as a tracker.
- Likeness to a source: cosine of chroma, and agreement of F0.
- Baselines: a filter between average spectra, and WORLD with a held amplitude.

Needs mir_eval, librosa, pyworld, pretty_midi, `pip install --no-deps basic-pitch resampy` and
`pip install --no-deps musicnn`: TensorFlow is not used.
"""

import contextlib
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import librosa
import numpy as np
import soundfile
from measures import RATE
from scipy.ndimage import uniform_filter1d

from jaxdiff.evaluation import embeddings
from jaxdiff.evaluation.frechet import frechet_distance
from jaxdiff.features import pyin

LOWEST_KEY, KEYS = 21, 88  # the piano's, as MIDI pitches
ONSET, OFFSET, PITCH, VELOCITY = range(4)  # the columns of notes
FRAME_SECONDS = 0.01  # of a piano roll
ONSET_SECONDS, CENTS = 0.1, 50.0  # within which two notes, or two pitches, are the same
ACTIVE_RANGE_DB = 40.0

TAG_LEVEL_DB = -20.0

F0_RANGE = 60.0, 2000.0  # Hz
F0_FRAME, F0_HOP = 1024, 256
CHROMA_FRAME, CHROMA_HOP = 2048, 512

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


class Score(NamedTuple):
    precision: float
    recall: float
    f1: float


def onset_score(reference: np.ndarray, estimated: np.ndarray, tolerance: float = ONSET_SECONDS) -> Score:
    """Notes found at the right pitch (50 cents) with an onset within `tolerance` s; offsets do not count."""
    from mir_eval.transcription import precision_recall_f1_overlap

    if len(reference) == 0 or len(estimated) == 0:
        return _score(0, len(estimated), len(reference))
    sides = []
    for notes in (reference, estimated):
        ends = np.maximum(notes[:, OFFSET], notes[:, ONSET] + 1e-3)  # mir_eval refuses notes without length
        sides += [np.stack([notes[:, ONSET], ends], -1), librosa.midi_to_hz(notes[:, PITCH])]
    found = precision_recall_f1_overlap(*sides, onset_tolerance=tolerance, pitch_tolerance=CENTS, offset_ratio=None)
    return Score(*(float(value) for value in found[:3]))


def piano_roll(notes: np.ndarray, frames: int) -> np.ndarray:
    """Whether each of the 88 keys sounds in the middle of each frame of 10 ms: bool [frames, 88]."""
    roll = np.zeros((frames, KEYS), bool)
    bounds = np.ceil(notes[:, [ONSET, OFFSET]] / FRAME_SECONDS - 0.5).astype(int).clip(0, frames)
    for (first, last), key in zip(bounds, np.round(notes[:, PITCH]).astype(int) - LOWEST_KEY, strict=True):
        if 0 <= key < KEYS:
            roll[first:last, key] = True
    return roll


def frame_score(reference: np.ndarray, estimated: np.ndarray) -> Score:
    """Of the keys that sound in the frames of the piano rolls of two sets of notes."""
    end = max((notes[:, OFFSET].max() for notes in (reference, estimated) if len(notes)), default=0.0)
    frames = int(np.ceil(end / FRAME_SECONDS))
    wanted, found = piano_roll(reference, frames), piano_roll(estimated, frames)
    return _score(int((wanted & found).sum()), int(found.sum()), int(wanted.sum()))


def _score(hits: int, found: int, wanted: int) -> Score:
    """Perfect where nothing is wanted and nothing found."""
    if found == wanted == 0:
        return Score(1.0, 1.0, 1.0)
    return Score(hits / max(found, 1), hits / max(wanted, 1), 2 * hits / (found + wanted))


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


def chroma_similarity(a: np.ndarray, b: np.ndarray, kind: str = "stft") -> float:
    """Mean cosine of the chroma of two sounds over the frames where both are less than 40 dB below their loudest.

    `kind` is "stft" (n_fft 2048, hop 512), which hears something of timbre in low chords too, or "cqt", which hears
    pitch alone: librosa's.
    """
    functions: dict[str, Callable[..., np.ndarray]] = {
        "stft": functools.partial(librosa.feature.chroma_stft, n_fft=CHROMA_FRAME),
        "cqt": librosa.feature.chroma_cqt,
    }
    a, b = _equally_long(a, b)
    first, second = (functions[kind](y=y, sr=RATE, hop_length=CHROMA_HOP, tuning=0.0) for y in (a, b))
    both = _active(a) & _active(b)
    if not both.any():
        return 0.0
    norms = np.sqrt((first**2).sum(0) * (second**2).sum(0))
    return float(((first * second).sum(0) / np.maximum(norms, 1e-12))[both].mean())


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


def _active(y: np.ndarray) -> np.ndarray:
    """Whether each frame of the chroma is less than 40 dB below the loudest: bool [frames]."""
    rms = librosa.feature.rms(y=y, frame_length=CHROMA_FRAME, hop_length=CHROMA_HOP)[0]
    return (rms > rms.max() * 10 ** (-ACTIVE_RANGE_DB / 20)) & (rms > 0)


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


def pyworld():
    """The package, which warns about its own use of setuptools."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyworld
    return pyworld
