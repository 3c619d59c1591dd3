"""Conversion: what a model must know of a recording and of the target beside the sound, and whether it was kept.

`instrument` and `voice` prepare a call; `pipeline(sound, sr=sr, request=p.request, also=p.also)` then converts, and
`kept_notes` or `kept_contours` compare what came out with what was to be kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdiff.config import ConfigError
from jaxdiff.data import AudioError, read_audio
from jaxdiff.data.midi import Notes, cut_notes
from jaxdiff.evaluation.notes import note_scores
from jaxdiff.tasks import Conversion, Instrument, Voice
from jaxdiff.tasks.voice import active_frames, log_mel_of

from .contours import Contours, folder_pitch
from .sounds import Also, Sound
from .transcription import transcribe

if TYPE_CHECKING:
    from .pipeline import Pipeline

WINDOW_NOTES = 1024  # of a window at most
REFERENCE_FRAMES = 1024  # of a target voice
REFERENCE_SECONDS = 600.0
_STEEPEST = 1.5  # factor by which intonation is widened, or narrowed, at most
_NOTES_LOST, _PITCH_LOST, _LOUDNESS_LOST = 0.7, 0.9, 0.8


class Prepared(NamedTuple):
    """What a pipeline is given to convert a sound: its `request` and `also`, and `facts` for a sidecar."""

    request: Conversion
    also: Also
    facts: dict[str, Any]


class Kept(NamedTuple):
    """What of a recording is found again after a conversion: measures by name for a sidecar, and a sentence for people.
    `lost` says that it is less than can be expected."""

    measures: dict[str, float]
    said: str
    lost: bool


class Target(NamedTuple):
    """Who is to speak: a `label` among the model's classes, or reference `frames` [tokens, mels] of a voice; and the
    `pitch`: mean and deviation in octaves above 200 Hz."""

    label: int
    frames: np.ndarray | None
    pitch: tuple[float, float]
    name: str


def instrument(pipeline: "Pipeline", notes: Notes, to: str, *, strength: float = 1.0) -> Prepared:
    """The conversion of a recording of `notes` to the instrument `to`. Raises ConfigError for an unknown one."""
    if not isinstance(pipeline.model.task, Instrument):
        raise ConfigError(f"this model converts no instruments, its task is {type(pipeline.model.task).__name__}")
    request, sr = Conversion(strength, _label(pipeline, to)), pipeline.sample_rate

    def also(start: int, window: int) -> dict[str, np.ndarray]:
        return {"notes": cut_notes(notes, start / sr, window / sr, most=WINDOW_NOTES)}

    return Prepared(request, also, {"to": to, "notes": len(notes)})


def voice(pipeline: "Pipeline", source: Contours, target: Target, *, strength: float = 1.0) -> Prepared:
    """The conversion of speech of these contours to a `target` voice, whose pitch has the target's mean and deviation.

    A deviation is changed by a factor of 1.5 at most.
    """
    _voice_task(pipeline)
    own = source.pitch
    factor, offset = 1.0, 0.0
    if own is not None:
        factor = float(np.clip(target.pitch[1] / max(own[1], 1e-3), 1 / _STEEPEST, _STEEPEST))
        offset = target.pitch[0] - factor * own[0]
    given = {"pitch": np.array([factor, offset], np.float32)}
    if target.frames is not None:
        given["reference_frames"] = target.frames
    facts = {"to": target.name, "pitch_factor": round(factor, 3), "pitch_offset_octaves": round(offset, 3)}
    return Prepared(Conversion(strength, target.label), lambda start, window: given, facts)


def named_voice(pipeline: "Pipeline", to: str) -> Target:
    """A voice that the model knows by name. Raises ConfigError for an unknown one."""
    task = _voice_task(pipeline)
    known = [name for name in pipeline.classes if name in task.pitch_hz]
    if to not in known:
        raise ConfigError(
            f"to {to}: is unknown; use one of {', '.join(known) or 'none'}, or give recordings of a voice"
        )
    pitch = float(np.log2(task.pitch_hz[to] / 200)), task.pitch_semitones.get(to, 3.0) / 12
    return Target(_label(pipeline, to), None, pitch, to)


def recorded_voice(pipeline: "Pipeline", files: Sequence[Path]) -> Target:
    """A voice by recordings of it, of which up to ten minutes are used; some minutes are best.

    Raises AudioError where there is no speech in them.
    """
    task, mel, sr = _voice_task(pipeline), log_mel_of(pipeline.model.representation), pipeline.sample_rate
    frames, used, seconds = [], [], 0.0
    for file in files:
        wave = read_audio(file, sr, seconds=REFERENCE_SECONDS - seconds)
        if len(wave) < sr // 2 or not np.abs(wave).max() > 0:
            continue
        for part in np.array_split(wave, max(1, len(wave) // (30 * sr))):  # few lengths, little memory
            part = np.pad(part, (0, -len(part) % (2 * sr)))
            x = mel.encode(jnp.asarray(part[None] * float(task.gain(np.abs(wave).max()))))
            frames.append(np.asarray(x)[np.asarray(active_frames(x, mel))])
        used.append(file)
        seconds += len(wave) / sr
        if seconds >= REFERENCE_SECONDS:
            break
    pitch = folder_pitch(used) if used else None
    if pitch is None:
        raise AudioError(f"{files[0].parent if files else 'no files'}: holds no speech of half a second or more")
    whole = np.concatenate(frames)
    chosen = np.linspace(0, len(whole) - 1, REFERENCE_FRAMES).round().astype(int)
    return Target(0, whole[chosen].astype(np.float32), pitch, "the given voice")


def kept_notes(tracker: "Pipeline", notes: Notes, made: Sound, *, sr: float | None = None) -> Kept:
    """How many of the notes are heard in the result, each within 100 ms."""
    scores = note_scores(notes, transcribe(tracker, made, sr=sr))
    measures = {"notes_kept": scores.recall, "notes_added": 1 - scores.precision}
    return Kept(
        measures,
        f"{scores.recall:.0%} of {len(notes)} notes heard again",
        bool(len(notes)) and scores.recall < _NOTES_LOST,
    )


def kept_contours(before: Contours, after: Contours) -> Kept:
    """How far the intonation and the loudness of a recording are those of the result: correlations, of the pitch in
    frames where both have one."""
    frames = min(len(before.voiced), len(after.voiced))
    both = before.voiced[:frames] & after.voiced[:frames]
    loud = before.loudness[:frames] > before.loudness.max(initial=-100.0) - 40
    pitch = _correlation(before.octaves[:frames][both], after.octaves[:frames][both])
    loudness = _correlation(before.loudness[:frames][loud], after.loudness[:frames][loud])
    voiced = float((before.voiced[:frames] == after.voiced[:frames])[loud].mean()) if loud.any() else 1.0
    measures = {"pitch_correlation": pitch, "loudness_correlation": loudness, "voicing_kept": voiced}
    said = f"intonation {pitch:.2f}, loudness {loudness:.2f}, voicing {voiced:.0%} kept"
    return Kept(measures, said, pitch < _PITCH_LOST or loudness < _LOUDNESS_LOST)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 1 where there is too little to compare, or nothing moves."""
    if len(a) < 10 or a.std() < 1e-6:
        return 1.0
    return float(np.corrcoef(a, b)[0, 1]) if b.std() > 1e-6 else 0.0


def _label(pipeline: "Pipeline", to: str) -> int:
    if to not in pipeline.classes:
        raise ConfigError(f"to {to}: is unknown; this model knows {', '.join(pipeline.classes) or 'no names'}")
    return pipeline.classes.index(to)


def _voice_task(pipeline: "Pipeline") -> Voice:
    task = pipeline.model.task
    if not isinstance(task, Voice):
        raise ConfigError(f"this model converts no voices, its task is {type(task).__name__}")
    return task
