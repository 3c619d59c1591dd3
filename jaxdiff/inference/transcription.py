"""Which notes a recording holds: the piano roll of a tracker becomes notes, a MIDI file and a picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdiff.data.files import atomic, audio_info, printable
from jaxdiff.data.midi import Notes, write_midi
from jaxdiff.features import notes_of_roll

from .pictures import draw, roll
from .sounds import Sound

if TYPE_CHECKING:
    from .pipeline import Pipeline


def transcribe(
    pipeline: "Pipeline",
    sound: Sound,
    *,
    sr: float | None = None,
    threshold: float = 0.5,
    heard: Callable[[float], None] = lambda seconds: None,
) -> Notes:
    """The notes [notes, 4] of a sound, an array [samples] or [channels, samples] at `sr` Hz or a path: onset and offset
    in seconds, MIDI pitch and velocity.

    A key counts as sounding where the tracker's estimate is at least `threshold`; `heard` is told how many seconds have
    been listened to. Memory grows by half a kilobyte a frame. Raises as a pipeline does.
    """
    frame_seconds = pipeline.model.representation.hop_length / pipeline.sample_rate
    pieces, frames = [], 0
    for piece in pipeline.features(sound, sr=sr):
        pieces.append(piece.astype(np.float16))
        frames += len(piece)
        heard(frames * frame_seconds)
    sounding, onset, force = np.split(np.concatenate(pieces).astype(np.float32), 3, axis=1)
    return notes_of_roll(sounding, onset, force, frame_seconds=frame_seconds, threshold=threshold)


def process_transcription(
    pipeline: "Pipeline",
    file: Path,
    target: Path,
    *,
    threshold: float = 0.5,
    about: dict[str, Any] | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> Notes:
    """Write the notes of `file` as TARGET.mid with .png and .json; the notes are returned. `about` goes into the
    sidecar, and `tell` hears which share is done.

    Raises AudioError for a file that cannot be used and OSError where nothing can be written.
    """
    seconds = max(audio_info(file).seconds, 1e-3)
    notes = transcribe(pipeline, file, threshold=threshold, heard=lambda done: tell(done / seconds))
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = lambda end: target.with_name(target.name + end)  # noqa: E731
    write_midi(beside(".mid"), notes)
    sidecar = {
        **(about or {}),
        "checkpoint": {"step": pipeline.step, "sha256": pipeline.fingerprint},
        "source": str(file),
        "threshold": threshold,
        "notes": len(notes),
    }
    with atomic(beside(".json")) as temporary:
        temporary.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
    draw(beside(".png"), lambda: roll(notes, printable(f"{file.name}: {len(notes)} notes")))
    return notes
