"""Which notes a recording holds: the piano roll of a tracker becomes notes, a MIDI file and a picture."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdiff.data.files import atomic, printable
from jaxdiff.data.midi import Notes, write_midi
from jaxdiff.features import notes_of_roll

from .pictures import draw, roll
from .sounds import Sound

if TYPE_CHECKING:
    from .pipeline import Pipeline


def transcribe(pipeline: "Pipeline", sound: Sound, *, sr: float | None = None, threshold: float = 0.5) -> Notes:
    """The notes [notes, 4] of a sound, an array [samples] or [channels, samples] at `sr` Hz or a path: onset and offset
    in seconds, MIDI pitch and velocity.

    A key counts as sounding where the tracker's estimate is at least `threshold`. Raises as a pipeline does.
    """
    whole = np.concatenate([piece.astype(np.float16) for piece in pipeline.features(sound, sr=sr)])
    sounding, onset, force = np.split(whole.astype(np.float32), 3, axis=1)
    frame_seconds = pipeline.model.representation.hop_length / pipeline.sample_rate
    return notes_of_roll(sounding, onset, force, frame_seconds=frame_seconds, threshold=threshold)


def process_transcription(
    pipeline: "Pipeline", file: Path, target: Path, *, threshold: float = 0.5, about: dict[str, Any] | None = None
) -> Notes:
    """Write the notes of `file` as TARGET.mid with .png and .json; the notes are returned.

    Raises AudioError for a file that cannot be used and OSError where nothing can be written.
    """
    notes = transcribe(pipeline, file, threshold=threshold)
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
