"""What the benchmark of repair mends and measures: sounds, what is done to them, and distances.

Sounds are mono at 16 kHz with a peak of -6 dBFS; places are (start, stop) in samples.

The log-spectral distance (LSD, dB) of a frame is the root of the mean over its bins of the squared difference of two
levels in dB, each not below -60 dB of the loudest bin of the true clip; of a lost band not below -80 dB, and again not
below -120 dB, which is next to no limit, as the measure is mostly given. Frames have 512 samples (Hann), every 128. In
a gap count the frames whose centre lies inside it, so that those near its ends see known samples too; of a lost band
count the bins above its cut-off, in all frames. The figure of a clip is the mean over the frames, then over the gaps.
`log_spectral_distance` of jaxdiff.evaluation is that of whole sounds, with a floor that does not follow the clip; the
SDR (dB) is its `snr`.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import measures
import numpy as np
import soxr
from measures import RATE
from peers import delay
from scipy.signal import fftconvolve, firwin, kaiserord

PEAK = 10 ** (-6 / 20)
MUSIC_SECONDS = 6
APART = RATE // 5  # of gaps, from each other and from the ends
QUIETEST_GAP_DB = -35.0  # relative to the clip
FRAME, HOP, FLOOR_DB = 512, 128, -60.0
TRANSITION, ATTENUATION_DB = 200.0, 80.0  # of the steep low-pass, Hz
CLICK_SECONDS = (0.001, 0.004)
CLICK_DB = (-12.0, 0.0)  # of a click's peak, relative to the sound's

Gap = tuple[int, int]


class Clip(NamedTuple):
    source: str
    wave: np.ndarray


# Sounds -------------------------------------------------------------------------------------------------------------


def peaked(y: np.ndarray) -> np.ndarray:
    return (y * (PEAK / np.abs(y).max())).astype(np.float32)


def speech(folder: Path, count: int, seed: int) -> list[Clip]:
    """`measures.speech_clips` of the voices in `folder`."""
    found = measures.speech_clips(measures.recordings(folder), count, seed)
    return [Clip(clip.voice, peaked(clip.wave)) for clip in found]


def music(folder: Path, count: int, seed: int) -> list[Clip]:
    """Excerpts of 6 s of the sub-folders in turn."""
    rng, samples = np.random.default_rng([seed, 2]), MUSIC_SECONDS * RATE
    supplies = [(name, measures.Supply(paths, rng)) for name, paths in measures.recordings(folder).items()]
    if not supplies:
        raise SystemExit(f"{folder} has no folders with FLAC files; fetch them with benchmarks/fetch_sounds.py")
    turns = [supplies[i % len(supplies)] for i in range(count)]
    return [Clip(name, peaked(supply.take(samples, samples))) for name, supply in turns]


# Damage -------------------------------------------------------------------------------------------------------------


def energy(y: np.ndarray) -> float:
    return float((y.astype(np.float64) ** 2).sum())


def rms(y: np.ndarray) -> float:
    return (energy(y) / len(y)) ** 0.5


def gap_places(y: np.ndarray, samples: int, rng: np.random.Generator) -> list[Gap]:
    """One gap a second at random places that are not silent, fewer where there is no room."""
    least, found = rms(y) * 10 ** (QUIETEST_GAP_DB / 20), []
    for _ in range(1000):
        start = int(rng.integers(APART, len(y) - APART - samples))
        stop = start + samples
        clear = all(stop + APART <= first or last + APART <= start for first, last in found)
        if clear and rms(y[start:stop]) > least:
            found.append((start, stop))
        if len(found) == round(len(y) / RATE):
            break
    return sorted(found)


def clip_level(y: np.ndarray, wanted_sdr: float) -> float:
    """The level at which clipping leaves `wanted_sdr` dB, by bisection."""
    low, high = 0.0, float(np.abs(y).max())
    for _ in range(50):
        middle = (low + high) / 2
        if energy(y - np.clip(y, -middle, middle)) > energy(y) * 10 ** (-wanted_sdr / 10):
            low = middle
        else:
            high = middle
    return float(np.float32(high))


def clicked(y: np.ndarray, per_second: float, rng: np.random.Generator) -> tuple[np.ndarray, list[Gap]]:
    """Bursts of white noise of 1 to 4 ms added, one in every equal part of the sound, and where they are."""
    made, peak, places = y.copy(), np.abs(y).max(), []
    edges = np.linspace(RATE // 100, len(y) - RATE // 100, round(per_second * len(y) / RATE) + 1)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        samples = round(rng.uniform(*CLICK_SECONDS) * RATE)
        start = round(rng.uniform(low, max(low, high - samples - RATE // 1000)))
        burst = rng.uniform(-1, 1, samples)
        made[start : start + samples] += burst * (peak * 10 ** (rng.uniform(*CLICK_DB) / 20) / np.abs(burst).max())
        places.append((start, start + samples))
    return np.clip(made, -1, 1), places


def low_passed(y: np.ndarray, cutoff: float) -> np.ndarray:
    """A linear-phase filter without delay, 80 dB down within 200 Hz, half the amplitude at the cut-off."""
    taps, beta = kaiserord(ATTENUATION_DB, TRANSITION / (RATE / 2))
    response = firwin(taps | 1, cutoff, window=("kaiser", beta), fs=RATE)
    return fftconvolve(y, response, "same").astype(np.float32)


def resampled(y: np.ndarray, cutoff: float) -> np.ndarray:
    """To twice the cut-off and back, which has another filter."""
    low = soxr.resample(y, RATE, 2 * cutoff)
    made = soxr.resample(low, 2 * cutoff, RATE)
    return np.pad(made, (0, max(0, len(y) - len(made))))[: len(y)].astype(np.float32)


def coded(y: np.ndarray, codec: str, kilobits: int) -> np.ndarray:
    """Through `mp3` or `opus` at a constant rate by ffmpeg and back, in its place: the delay is measured and taken out.

    Raises SystemExit where ffmpeg or its encoder is missing.
    """
    encoder = {
        "mp3": ["-c:a", "libmp3lame", "-f", "mp3"],
        "opus": ["-c:a", "libopus", "-vbr", "off", "-f", "ogg"],
    }[codec]
    raw = ["-f", "f32le", "-ar", str(RATE), "-ac", "1"]
    packets = _ffmpeg([*raw, "-i", "pipe:0", *encoder, "-b:a", f"{kilobits}k", "pipe:1"], y.astype("<f4").tobytes())
    made = np.frombuffer(_ffmpeg(["-i", "pipe:0", *raw, "pipe:1"], packets), "<f4")
    return in_place(y, made)


def _ffmpeg(options: list[str], given: bytes) -> bytes:
    try:
        command = ["ffmpeg", "-hide_banner", "-loglevel", "error", *options]
        return subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"the codecs need ffmpeg with libmp3lame and libopus, or leave out --faults codec: {error}"
        ) from error


def in_place(y: np.ndarray, made: np.ndarray) -> np.ndarray:
    """`made` without its delay relative to y and of y's length."""
    late = delay(y, made, RATE)
    made = made[late:] if late >= 0 else np.pad(made, (-late, 0))
    return np.pad(made, (0, max(0, len(y) - len(made))))[: len(y)].astype(np.float32)


# Measures -----------------------------------------------------------------------------------------------------------


def only(y: np.ndarray, gaps: Sequence[Gap]) -> np.ndarray:
    """A sound that is silent outside the gaps, of which alone a measure of energies tells then."""
    made = np.zeros_like(y)
    for start, stop in gaps:
        made[start:stop] = y[start:stop]
    return made


def magnitudes(y: np.ndarray) -> np.ndarray:
    """[frames, bins]; frame i is centred at sample 128 i."""
    padded = np.pad(y.astype(np.float64), FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]
    return np.abs(np.fft.rfft(frames * np.hanning(FRAME + 1)[:-1]))


def log_spectral_distances(
    target: np.ndarray, made: np.ndarray, above: float = 0.0, floor_db: float = FLOOR_DB
) -> np.ndarray:
    """The LSD of every frame [frames], of the bins at `above` Hz and higher."""
    true, found = magnitudes(target), magnitudes(made)
    floor = true.max() * 10 ** (floor_db / 20)
    first = int(np.ceil(above * FRAME / RATE))
    levels = [20 * np.log10(np.maximum(part[:, first:], floor)) for part in (true, found)]
    return np.sqrt(((levels[0] - levels[1]) ** 2).mean(1))


def gap_lsd(target: np.ndarray, made: np.ndarray, gaps: Sequence[Gap]) -> float:
    distances = log_spectral_distances(target, made)
    centres = np.arange(len(distances)) * HOP
    return float(np.mean([distances[(centres >= start) & (centres < stop)].mean() for start, stop in gaps]))


def lsd(target: np.ndarray, made: np.ndarray, above: float = 0.0, floor_db: float = FLOOR_DB) -> float:
    return float(log_spectral_distances(target, made, above, floor_db).mean())
