"""Where cues come from: a cue sheet, the notes of a MIDI file, the onsets of a sound, or the pictures of a video."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdiff.data.cues import MOST_CUES, STRENGTH_DB, Cue, read_cues, read_times
from jaxdiff.data.files import EXTENSIONS, AudioError, atomic, audio_blocks, audio_info
from jaxdiff.data.midi import EXTENSIONS as SCORES
from jaxdiff.data.midi import read_hits
from jaxdiff.data.soundtrack import KINDS, read_track, video_seconds
from jaxdiff.evaluation.sync import SHIFTS, Events, Heard, Kept, hear, kept

from .watch import watch_file

SHEETS = frozenset({".csv", ".tsv"})
_KEYS = {  # of General MIDI's drums, and the classes that sound like them, the best first
    (35, 36): ("kick",),
    (38, 40): ("snare",),
    (37,): ("rim", "wood", "snare"),
    (39,): ("clap", "snare"),
    (41, 43, 45, 47, 48, 50): ("tom",),
    (42, 44, 46): ("hat",),
    (49, 51, 52, 53, 55, 57, 59): ("cymbal",),
    (56,): ("cowbell", "metal"),
    (60, 61, 62, 63, 64, 65, 66): ("tom",),
    (67, 68, 80, 81): ("metal", "cowbell"),
    (75, 76, 77): ("wood", "knock"),
}
DRUMS = {key: names for keys, names in _KEYS.items() for key in keys}


class Rhythm(NamedTuple):
    """Cues, how many seconds they are of (None: the source does not say), and in words where they come from."""

    cues: list[Cue]
    seconds: float | None
    source: str


def is_video(path: Path) -> bool:
    """Whether a file is taken for a video: by its ending it is nothing else, and it has pictures."""
    if path.suffix.lower() in SHEETS | SCORES | EXTENSIONS:
        return False
    from jaxdiff.data.video import opened, video_stream

    with opened(path) as container:
        try:
            video_stream(container, path)
        except AudioError:
            if not container.streams.audio:
                raise
            return False
    return True


def rhythm(
    path: str | Path, label: str, classes: Sequence[str] = (), *, tell: Callable[[float], None] = lambda share: None
) -> Rhythm:
    """The cues of a file: a sheet's own; a MIDI file's drums, or else all its notes, by their velocity; a sound's
    onsets by their level; what is seen in a video.

    `label` is their class where the file says none; keys of drums have those of `classes` that sound like them. Raises
    AudioError for what is none of these.
    """
    path = Path(path)
    end = path.suffix.lower()
    if end in SHEETS:
        return Rhythm(read_cues(path), None, "cue sheet")
    if end in SCORES:
        return Rhythm(_few(of_hits(read_hits(path), label, classes), path), None, "MIDI")
    if end in EXTENSIONS or not is_video(path):
        heard = heard_in(path)
        return Rhythm(_few(of_sound(heard, label), path), heard.seconds, "onsets of the sound")
    return Rhythm(watch_file(path, label=label, tell=tell).cues, video_seconds(path), "pictures")


def of_hits(hits: np.ndarray, label: str, classes: Sequence[str] = ()) -> list[Cue]:
    """Cues of struck keys [hits, 3]; a velocity v is 40 log10(v / 127) dB, as General MIDI has it."""
    known = {name.lower(): name for name in classes}
    cues = []
    for seconds, key, velocity in hits.tolist():
        strength = 1 + 40 * np.log10(max(velocity, 1) / 127) / STRENGTH_DB
        name = next((known[name] for name in DRUMS.get(int(key), ()) if name in known), label)
        cues.append(Cue(float(seconds), name, float(np.clip(strength, 0, 1))))
    return cues


def of_sound(heard: Heard, label: str) -> list[Cue]:
    """Cues of a sound's onsets, the loudest of which is the strongest."""
    loudest = heard.strength.max(initial=-120.0)
    strength = np.clip(1 + (heard.strength - loudest) / STRENGTH_DB, 0, 1)
    return [Cue(float(t), label, float(s)) for t, s in zip(heard.onsets.seconds, strength, strict=True)]


def _few(cues: list[Cue], path: Path) -> list[Cue]:
    if len(cues) > MOST_CUES:
        raise AudioError(f"{path}: has {len(cues)} events, at most {MOST_CUES} are played; cut it into several")
    return cues


def sound_blocks(path: Path) -> tuple[int, Callable[[], Iterator[np.ndarray]]] | None:
    """The rate in Hz of a sound file or of a video's sound, and its blocks [channels, samples]; None where a video has
    no sound."""
    if path.suffix.lower() in EXTENSIONS or not path.is_file():
        return audio_info(path).sample_rate, lambda: (block.T for block in audio_blocks(path))
    track = read_track(path)
    return None if track is None else (track.rate, track.blocks)


def heard_in(path: str | Path) -> Heard:
    """The sound of a file, heard; raises AudioError where it has none."""
    found = sound_blocks(Path(path))
    if found is None:
        raise AudioError(f"{path}: has no sound; give a sound file or a video with sound")
    return hear(found[1], found[0])


def events(path: str | Path, *, tell: Callable[[float], None] = lambda share: None) -> Events:
    """The times at which something is to be heard by a file: a sheet's times, the onsets of its sound, or where a video
    has none of them its impacts."""
    path = Path(path)
    if path.suffix.lower() in SCORES:
        return Events(np.unique(read_hits(path)[:, 0]))
    if path.suffix.lower() in SHEETS:
        return Events(np.array(read_times(path)))
    found = sound_blocks(path)
    if found is not None:
        heard = hear(found[1], found[0])
        if len(heard.onsets.seconds) or not is_video(path):
            return Events(heard.onsets.seconds, heard.levels)
    return Events(np.array([cue.seconds for cue in watch_file(path, tell=tell).cues]))


# Scores -------------------------------------------------------------------------------------------------------------


def outputs(paths: Sequence[Path]) -> list[Path]:
    """The sound files and videos of folders, and files; raises AudioError where there are none."""
    ends = EXTENSIONS | {*KINDS}
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in ends) if path.is_dir() else [path]
        if not inside:
            raise AudioError(f"{path}: holds no sounds and no videos")
        found += inside
    return found


def score(wanted: Events, path: str | Path) -> Kept:
    """How well the sound of a file keeps to events."""
    return kept(wanted, heard_in(path))


def save_kept(folder: Path, reference: Path, scores: dict[Path, Kept]) -> None:
    """Write scores as sync.csv, a row for each file, and sync.json; times are in seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"moved_{by:g}" for by in SHIFTS]
    plain = lambda value: None if isinstance(value, float) and math.isnan(value) else value  # noqa: E731
    rows = []
    for path, one in scores.items():
        values = one._asdict()
        moved = values.pop("recovered")
        rows.append({"file": str(path), **values, **dict(zip(names, moved, strict=True))})
    rows = [{key: plain(value) for key, value in row.items()} for row in rows]
    with atomic(folder / "sync.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", *(n for n in Kept._fields if n != "recovered"), *names])
        writer.writeheader()
        writer.writerows(rows)
    with atomic(folder / "sync.json") as temporary:
        temporary.write_text(
            json.dumps({"reference": str(reference), "files": rows}, indent=1) + "\n", encoding="utf-8"
        )
