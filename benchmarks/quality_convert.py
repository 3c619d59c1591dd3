"""How well instruments are converted: tags, notes, pitch and distance to the real instrument, beside simple ways.

    python benchmarks/quality_convert.py [MODEL] [--from piano] [--to violin] [--split test] [--pieces 12]

MODEL is `instruments-16k` or a run's folder, with @steps=N another number of steps. The pieces are the chorales of
data/music/judge_SPLIT (`fetch_music.py`), which no training saw: in four voices, and their upper voice alone. The
filter and WORLD are fitted on the pieces of judge_tune.

    violin, piano     tags of musicnn's MTT_vgg, mean over windows of 3 s (at -20 dB)
    chroma, F0        likeness to the source: `chroma_similarity`; F0 within 50 cents (melodies)
    notes             F1 of onsets within 100 ms (`note_scores`) against the score, as basic-pitch hears it
    FD                Frechet distance of MTT_vgg's embedding to the real instrument, 16 principal components

The rows `MODEL` hear the notes themselves, those `with score` are given the score. Needs what `measures_music.py` says.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measures import RATE, in_jax
from measures_music import AverageFilter, Musicnn, SustainedWorld, basic_pitch_notes, f0_agreement, frechet

from jaxdiff import load
from jaxdiff.data import read_audio
from jaxdiff.data.midi import read_midi
from jaxdiff.evaluation.notes import note_scores
from jaxdiff.inference.convert import instrument
from jaxdiff.inference.transcription import transcribe

KINDS = ("chords", "melody")
Make = Callable[[Path, np.ndarray], np.ndarray]  # (source file, score) -> sound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="instruments-16k")
    parser.add_argument("--tracker", default="notes-16k")
    parser.add_argument("--source", default="piano")
    parser.add_argument("--to", default="violin")
    parser.add_argument("--split", choices=("tune", "test"), default="test")
    parser.add_argument("--pieces", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="the model and the two instruments alone, without notes")
    parser.add_argument("--data", type=Path, default=Path("data/music"))
    asked = parser.parse_args()
    name, _, steps = asked.model.partition("@steps=")
    pipeline, tracker = load(name), load(asked.tracker)
    options: dict[str, Any] = {"steps": int(steps)} if steps else {}
    spent = {"sound": 0.0, "time": 0.0}

    def converted(path: Path, score: np.ndarray | None) -> np.ndarray:
        begin = time.perf_counter()
        prepared = instrument(pipeline, transcribe(tracker, path) if score is None else score, asked.to)
        made = pipeline(path, request=prepared.request, also=prepared.also, **options).waves[0]
        spent["sound"] += len(made) / RATE
        spent["time"] += time.perf_counter() - begin
        return made

    folder = asked.data / f"judge_{asked.split}"
    real = lambda path, _: read_audio(folder / asked.to / path.name, RATE)  # noqa: E731
    ways: dict[str, Make] = {
        f"real {asked.to}": real,
        f"{asked.source} (as it is)": lambda path, _: read_audio(path, RATE),
        asked.model: lambda path, _: converted(path, None),
        f"{asked.model}, with score": converted,
    }
    if not asked.quick:
        fit = {who: [read_audio(p, RATE) for p in files(asked.data / "judge_tune" / who, "melody", 4)]
               for who in (asked.source, asked.to)}  # fmt: skip
        alike, world = AverageFilter(fit[asked.source], fit[asked.to]), SustainedWorld(fit[asked.to])
        ways["average filter"] = lambda path, _: alike(read_audio(path, RATE))
        ways["WORLD, sustained"] = lambda path, score: world(read_audio(path, RATE), score)
    tagger = Musicnn("MTT_vgg")
    for kind in KINDS:
        reference = None
        print(f"\n{kind:32s} {asked.to:>8s} {asked.source:>8s} {'chroma':>8s} {'F0':>8s} {'notes':>8s} {'FD':>8s}")
        for way, make in ways.items():
            rows, embeddings, pairs = [], [], []
            for path in files(folder / asked.source, kind, asked.pieces):
                score = read_midi(asked.data / f"judge_{asked.split}_notes" / f"{path.stem}.mid")
                source, made = read_audio(path, RATE), make(path, score)
                tags = tagger(made)
                embeddings.append(tags.embedding)
                melody = f0_agreement(source, made) if kind == "melody" else np.nan
                notes = np.nan if asked.quick else note_scores(score, basic_pitch_notes(made)).f1
                pairs.append((source, made))
                rows.append((*(tagger.probability(tags, tag) for tag in (asked.to, asked.source)), melody, notes))
            windows = np.concatenate(embeddings)
            reference = windows if reference is None else reference
            to, of, melody, notes = np.mean(rows, axis=0)
            chroma = in_jax("chroma_similarity", pairs).mean()
            values = (to, of, chroma, melody, notes, frechet(windows, reference))
            print(f"{way:32s} " + " ".join(f"{value:8.3f}" for value in values), flush=True)
    print(f"\nreal-time factor {spent['time'] / spent['sound']:.3f}, compilation and tracker included")


def files(folder: Path, kind: str, count: int) -> list[Path]:
    """The first sounds of a kind."""
    found = sorted(folder.glob(f"{kind}-*.flac"))[:count]
    if not found:
        raise SystemExit(f"{folder}: no sounds; make them with python benchmarks/fetch_music.py data/music")
    return found


if __name__ == "__main__":
    main()
