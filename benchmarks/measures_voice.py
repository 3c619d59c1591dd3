"""Measures of voice conversion: whose voice it is, and how words, phones, pitch, loudness and rhythm were kept.

    python benchmarks/measures_voice.py data/voices [--sounds data/sounds] [--tries 40]

prints what these measures give for synthetic and recorded voices as they are, against which conversions are judged.

Every sound is mono at 16 kHz. Speakers are compared by the embedding of the package resemblyzer, words and phones by
the recogniser and the American model of the package pocketsphinx (`jaxdiff.evaluation.external`), which is old: rates
of word errors mean something only beside those of the unconverted voice; they go over all words of a set. F0 is that of
WORLD's Harvest (package pyworld), voiced where D4C finds a periodic frame, every 5 ms: a tracker that no model of ours
has as its condition, as the tracker of `f0_rmse` may be.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measures import RATE, pyworld

from jaxdiff.data import read_audio
from jaxdiff.evaluation import external
from jaxdiff.evaluation.external import speaker_embedding

HOP_SECONDS = 0.005  # of F0 contours
LOWEST, HIGHEST = 60.0, 500.0  # Hz, of F0
SHORTEST_VOICING = 0.03  # s, of voiced stretches and of gaps between them that count
MALE = 165.0  # Hz; a voice whose median F0 is lower is taken for a man's

# Speakers -----------------------------------------------------------------------------------------------------------


def voice_embedding(clips: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the embeddings of some clips of a voice, [256], of unit length."""
    mean = np.mean([speaker_embedding(y, RATE) for y in clips], axis=0)
    return mean / np.linalg.norm(mean)


def similarity(y: np.ndarray, voice: np.ndarray) -> float:
    """The cosine between a sound and the embedding of a voice."""
    return float(speaker_embedding(y, RATE) @ voice)


# Words and phones ---------------------------------------------------------------------------------------------------

AMERICAN = {
    "neighbour": "neighbor", "harbour": "harbor", "theatre": "theater", "colour": "color", "grey": "gray",
    "travelled": "traveled", "yoghurt": "yogurt", "judgement": "judgment", "metres": "meters", "axe": "ax",
}  # fmt: skip


def words(text: str) -> list[str]:
    """The words of a text, as Americans spell them."""
    return [AMERICAN.get(word, word) for word in external.words(text)]


def recognised(y: np.ndarray) -> list[str]:
    """The words that the recogniser finds in a sound, as Americans spell them."""
    return [AMERICAN.get(word, word) for word in external.recognised_words(y, RATE)]


@functools.cache
def _phone_decoder() -> Any:
    from pocketsphinx import Decoder, get_model_path

    model = get_model_path("en-us/en-us-phone.lm.bin")
    return Decoder(samprate=RATE, allphone=model, lm=None, lw=2.0, beam=1e-20, pbeam=1e-20, loglevel="FATAL")


def phones(y: np.ndarray) -> list[str]:
    """The phones the recogniser finds without a lexicon, pauses and noises left out, whatever the language."""
    found = [part.word or "" for part in external.heard(_phone_decoder(), y).seg()]
    return [phone for phone in found if phone.isalpha() and phone != "SIL"]


def error_rate(references: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """Edits of all clips over the length of all references: of words, or of phones."""
    total = sum(len(one) for one in references)
    return sum(external.edit_distance(a, b) for a, b in zip(references, found, strict=True)) / max(total, 1)


# Pitch, loudness and rhythm -----------------------------------------------------------------------------------------


def pitch(y: np.ndarray) -> np.ndarray:
    """F0 in Hz of every 5 ms, 0 where unvoiced."""
    world, wave = pyworld(), y.astype(np.float64)
    f0, times = world.harvest(wave, RATE, f0_floor=LOWEST, f0_ceil=HIGHEST, frame_period=1000 * HOP_SECONDS)
    f0 = world.stonemask(wave, f0, times, RATE)
    aperiodic = world.d4c(wave, f0, times, RATE, threshold=0.85)[:, 0] > 0.5
    return np.where(aperiodic, 0.0, f0)


class PitchStatistics(NamedTuple):
    """Over the voiced frames: the median in Hz, and mean and deviation of log2 F0 (octaves above 1 Hz)."""

    median: float
    log_mean: float
    log_deviation: float
    voiced: float  # share of the frames


def pitch_statistics(f0: np.ndarray) -> PitchStatistics:
    """All but the share are not a number where nothing is voiced."""
    voiced = f0[f0 > 0]
    if not len(voiced):
        return PitchStatistics(np.nan, np.nan, np.nan, 0.0)
    log = np.log2(voiced)
    return PitchStatistics(float(np.median(voiced)), float(log.mean()), float(log.std()), len(voiced) / len(f0))


def semitones(reference: float, found: float) -> float:
    """From one frequency to another."""
    return float(12 * np.log2(found / reference))


def _together(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = min(len(a), len(b))
    return a[:count], b[:count]


def pitch_accuracy(reference: np.ndarray, found: np.ndarray, cents: float = 50.0, transposed: bool = False) -> float:
    """RPA: the share of the frames voiced in both contours [frames] whose F0 differs by less than `cents`.

    With `transposed`, the log F0 of `found` is first brought to the mean and the deviation of the reference, as a
    conversion between two ranges does.
    """
    a, b = _together(reference, found)
    both = (a > 0) & (b > 0)
    if not both.any():
        return float("nan")
    a, b = np.log2(a[both]), np.log2(b[both])
    if transposed:
        b = a.mean() + (b - b.mean()) * a.std() / max(float(b.std()), 1e-9)
    return float(np.mean(np.abs(a - b) < cents / 1200))


def voicing_agreement(reference: np.ndarray, found: np.ndarray) -> float:
    """The share of the frames that are voiced in both or in neither."""
    a, b = _together(reference, found)
    return float(np.mean((a > 0) == (b > 0)))


def pitch_correlation(reference: np.ndarray, found: np.ndarray) -> float:
    """Of log F0 over the frames voiced in both contours."""
    a, b = _together(reference, found)
    both = (a > 0) & (b > 0)
    return float(np.corrcoef(np.log(a[both]), np.log(b[both]))[0, 1]) if both.sum() > 2 else float("nan")


def levels(y: np.ndarray) -> np.ndarray:
    """In dB, every 10 ms over 20 ms, at least 50 dB below the loudest."""
    power = np.square(y[: len(y) // 160 * 160].reshape(-1, 160), dtype=np.float64).mean(1)
    power = (power[1:] + power[:-1]) / 2
    return np.maximum(10 * np.log10(power + 1e-12), 10 * np.log10(power.max() + 1e-12) - 50)


def loudness_correlation(reference: np.ndarray, made: np.ndarray) -> float:
    """Of the levels of two sounds [samples]."""
    return float(np.corrcoef(*_together(levels(reference), levels(made)))[0, 1])


def voicing_changes(f0: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The times in s at which voiced stretches begin and end; gaps, then stretches, below 30 ms do not count."""
    voiced = np.concatenate([[0], (f0 > 0).astype(int), [0]])
    least = round(SHORTEST_VOICING / HOP_SECONDS)
    begins, ends = np.flatnonzero(np.diff(voiced) == 1), np.flatnonzero(np.diff(voiced) == -1)
    if len(begins):
        apart = begins[1:] - ends[:-1] >= least
        begins, ends = begins[np.r_[True, apart]], ends[np.r_[apart, True]]
        long = ends - begins >= least
        begins, ends = begins[long], ends[long]
    return begins * HOP_SECONDS, ends * HOP_SECONDS


def voicing_distances(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """From every begin and end of voicing in one contour to the nearest of its kind in the other, in ms; inf: none."""
    distances = []
    for a, b in zip(voicing_changes(reference), voicing_changes(found), strict=True):
        distances += [1000 * float(np.min(np.abs(b - time), initial=np.inf)) for time in a]
    return np.array(distances)


# Both ---------------------------------------------------------------------------------------------------------------


def fidelity(source: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """What a conversion of `source` to `made` [samples] kept: pitch contour, loudness, voicing, words and phones.

    `words` and `phones` are rates of edits between what is recognised in both, so they need no text; in a language
    other than English only `phones` means something.
    """
    a, b = pitch(source), pitch(made)
    return {
        "pitch_correlation": pitch_correlation(a, b),
        "pitch_accuracy_transposed": pitch_accuracy(a, b, transposed=True),
        "semitones": semitones(pitch_statistics(a).median, pitch_statistics(b).median),
        "voicing_agreement": voicing_agreement(a, b),
        "voicing_ms": float(np.median(voicing_distances(a, b))) if (a > 0).any() else float("nan"),
        "loudness_correlation": loudness_correlation(source, made),
        "words": error_rate([recognised(source)], [recognised(made)]),
        "phones": error_rate([phones(source)], [phones(made)]),
    }


# Clips --------------------------------------------------------------------------------------------------------------


def clips(folder: Path, count: int, least: float = 3.0, most: float = 8.0) -> list[np.ndarray]:
    """Up to `count` clips of `least` to `most` seconds of a voice's FLAC files, spread over them.

    Shorter files are joined in order of their names, with pauses of 0.15 s; of longer ones the beginning is taken.
    """
    made: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    for path in sorted(folder.glob("*.flac")):
        parts += [read_audio(path, RATE), np.zeros(round(0.15 * RATE), np.float32)]
        if sum(map(len, parts)) >= least * RATE:
            made.append(np.concatenate(parts[:-1])[: round(most * RATE)])
            parts = []
    return made[:: max(1, len(made) // count)][:count]


def texts(table: Path) -> dict[str, str]:
    """The text of each file that a table of `fetch_voices.py` names."""
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    return {row[0]: row[1] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description="What the measures of voice conversion give for unconverted voices.")
    parser.add_argument("folder", type=Path, help="the folder of fetch_voices.py")
    parser.add_argument("--sounds", type=Path, default=Path("data/sounds"), help="the folder of fetch_sounds.py")
    parser.add_argument("--tries", type=int, default=40, help="clips of each voice of flite")
    parser.add_argument("--clips", type=int, default=10, help="clips of each recorded voice")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}

    target = voice_embedding(clips(arguments.folder / "train" / "woman", 30))
    known = texts(arguments.folder / "tune" / "text.tsv")
    print("Whole sets of tune: similarity to the woman (mean, least, most), word error rate, median F0")
    for voice in ("woman", "man", "awb"):
        names = [name for name in known if name.startswith(f"{voice}/")][: arguments.tries]
        sources = [name for name in known if name.startswith("woman/")][: arguments.tries]
        for side, chosen in (("tune", names), *((("tune_source", sources),) if voice == "woman" else ())):
            waves = [read_audio(arguments.folder / side / name, RATE) for name in chosen]
            likeness = [similarity(y, target) for y in waves]
            rate = error_rate([words(known[name]) for name in chosen], [recognised(y) for y in waves])
            row = {
                "similarity": [float(np.mean(likeness)), min(likeness), max(likeness)],
                "word_error_rate": rate,
                "f0": float(np.median([pitch_statistics(pitch(y)).median for y in waves])),
            }
            found[f"{side}/{voice}"] = row
            print(f"{side + '/' + voice:22} {json.dumps(row)}", flush=True)

    pairs = [
        fidelity(*(read_audio(arguments.folder / side / name, RATE) for side in ("tune_source", "tune")))
        for name in [name for name in known if name.startswith("woman/")][: arguments.tries]
    ]
    found["source to target"] = {name: float(np.nanmean([pair[name] for pair in pairs])) for name in pairs[0]}
    print(f"the woman against her aligned sources: {json.dumps(found['source to target'])}", flush=True)
    others = [phones(read_audio(arguments.folder / "tune" / name, RATE)) for name in known if name.startswith("woman/")]
    found["phones of other sentences"] = error_rate(others[1:], others[:-1])
    print(f"phone edit rate between different sentences: {found['phones of other sentences']:.2f}", flush=True)

    print("Recorded voices not trained on: median F0, similarity to the woman, and to the own voice")
    for split in ("tune", "test"):
        for folder in sorted((arguments.sounds / "voices" / split).iterdir()):
            waves = clips(folder, arguments.clips)
            if len(waves) < 3:
                continue
            f0 = float(np.median([pitch_statistics(pitch(y)).median for y in waves]))
            marks = np.array([speaker_embedding(y, RATE) for y in waves])
            rest = [marks[np.arange(len(marks)) != index].mean(0) for index in range(len(marks))]
            own = [float(mark @ mean / np.linalg.norm(mean)) for mark, mean in zip(marks, rest, strict=True)]
            row = {
                "clips": len(waves), "f0": f0, "man": f0 < MALE, "to_woman": float(np.mean(marks @ target)),
                "to_itself": float(np.mean(own)), "least_to_itself": min(own),
            }  # fmt: skip
            found[f"{split}/{folder.name}"] = row
            print(f"{split + '/' + folder.name:22} {json.dumps(row)}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
