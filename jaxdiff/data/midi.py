"""Scores as notes: standard MIDI files are read, written, and cut like sounds.

Notes are an array [notes, 4] float32, sorted by onset: onset and offset in seconds, MIDI pitch (69 is the A of 440 Hz)
and velocity from 1 to 127. A score of a recording is the MIDI file of the same name.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .files import AudioError, atomic, printable

Notes = np.ndarray  # [notes, 4] float32, see above

EXTENSIONS = frozenset({".mid", ".midi"})
MOST_BYTES = 8 << 20
MOST_NOTES = 500_000
CROP_NOTES = 256  # of a training crop
_DRUMS = 9  # channel, counted from 0, whose notes are no pitches
_PEDAL = 64  # controller that holds notes while its value is at least 64
_TICKS = 480  # of a quarter of half a second: about a millisecond each


def no_notes() -> Notes:
    """An empty score."""
    return np.zeros((0, 4), np.float32)


def read_midi(path: str | Path) -> Notes:
    """The notes of all tracks and channels but drums, held as long as the sustain pedal holds them.

    Raises AudioError for what is no MIDI file, is longer than four hours or holds more than half a million notes.
    """
    return _read(path, _notes)


def read_hits(path: str | Path) -> np.ndarray:
    """When keys are struck, [hits, 3]: seconds, key and velocity, by time. Those of the drums where there are any, or
    else those of all channels. Raises as `read_midi` does."""
    return _read(path, _hits)


def _read(path: str | Path, take: Callable[[Path, Any], np.ndarray]) -> np.ndarray:
    """The result of `take` for a MIDI file; raises AudioError for what is none."""
    import mido

    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such MIDI file")
    if path.stat().st_size > MOST_BYTES:
        raise AudioError(f"{path}: has {path.stat().st_size / 2**20:.0f} MiB, a score has at most {MOST_BYTES >> 20}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return take(path, mido.MidiFile(str(path), clip=True))
    except AudioError:
        raise
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise AudioError(printable(f"{path}: cannot be read as MIDI ({why})")) from None


def _hits(path: Path, file: Any) -> np.ndarray:
    now, drums, others = 0.0, [], []
    for message in file:
        now += message.time
        if now > 4 * 3600:
            raise AudioError(f"{path}: is longer than four hours")
        if len(drums) + len(others) > MOST_NOTES:
            raise AudioError(f"{path}: has more than {MOST_NOTES} notes")
        if message.type == "note_on" and message.velocity:
            (drums if message.channel == _DRUMS else others).append((now, message.note, message.velocity))
    return np.array(drums or others or np.zeros((0, 3)))


def _notes(path: Path, file: Any) -> Notes:
    now = 0.0
    down: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)  # (channel, pitch) -> onset, velocity
    held: dict[int, list[tuple[float, int, int]]] = defaultdict(list)  # channel -> onset, pitch, velocity
    pedal: set[int] = set()
    notes: list[tuple[float, float, int, int]] = []
    for message in file:
        now += message.time
        if now > 4 * 3600:
            raise AudioError(f"{path}: is longer than four hours")
        if len(notes) > MOST_NOTES:
            raise AudioError(f"{path}: has more than {MOST_NOTES} notes")
        if message.is_meta or getattr(message, "channel", _DRUMS) == _DRUMS:
            continue
        channel = message.channel
        if message.type == "note_on" and message.velocity:
            down[channel, message.note].append((now, message.velocity))
        elif message.type in ("note_on", "note_off"):
            if begun := down[channel, message.note]:
                onset, velocity = begun.pop(0)
                if channel in pedal:
                    held[channel].append((onset, message.note, velocity))
                else:
                    notes.append((onset, now, message.note, velocity))
        elif message.type == "control_change" and message.control == _PEDAL:
            if message.value >= 64:
                pedal.add(channel)
            elif channel in pedal:
                pedal.discard(channel)
                notes += [(onset, now, pitch, velocity) for onset, pitch, velocity in held.pop(channel, [])]
    for (_, pitch), begun in down.items():
        notes += [(onset, now, pitch, velocity) for onset, velocity in begun]
    for channel in held:
        notes += [(onset, now, pitch, velocity) for onset, pitch, velocity in held[channel]]
    return checked_notes(np.array([n for n in notes if n[1] > n[0]] or no_notes(), np.float32))


def checked_notes(notes: Any) -> Notes:
    """Notes [notes, 4] in order of their onsets; raises AudioError for what is none."""
    notes = np.asarray(notes, np.float32)
    if notes.ndim != 2 or notes.shape[1] != 4:
        raise AudioError(f"notes: expected [notes, 4]: onset, offset, pitch, velocity; got {list(notes.shape)}")
    onset, offset, pitch, velocity = notes.T
    good = np.isfinite(notes).all(1) & (onset >= 0) & (offset > onset) & (pitch >= 0) & (pitch <= 127)
    good &= (velocity >= 1) & (velocity <= 127)
    if not good.all():
        at = int(np.argmin(good))
        raise AudioError(
            f"notes: expected 0 <= onset < offset in seconds, pitch 0 to 127 and velocity 1 to 127, got "
            f"{notes[at].tolist()} for number {at}"
        )
    return notes[np.lexsort((pitch, onset))]


def write_midi(path: str | Path, notes: Notes, *, program: int = 0) -> None:
    """Notes as a MIDI file of one track; `program` is the General MIDI instrument, counted from 0.

    Times are rounded to about a millisecond.
    """
    import mido

    if not 0 <= program <= 127:
        raise ValueError(f"program: expected 0 to 127, got {program}")
    events = []
    for onset, offset, pitch, velocity in checked_notes(notes):
        begin = round(float(onset) * 2 * _TICKS)
        end = max(begin + 1, round(float(offset) * 2 * _TICKS))
        events.append((begin, 1, "note_on", int(pitch), round(float(velocity))))
        events.append((end, 0, "note_off", int(pitch), 0))
    file = mido.MidiFile(type=0, ticks_per_beat=_TICKS)
    track = mido.MidiTrack([mido.Message("program_change", program=program)])
    now = 0
    for tick, _, kind, pitch, velocity in sorted(events):
        track.append(mido.Message(kind, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    file.tracks.append(track)
    with atomic(Path(path)) as temporary:
        file.save(str(temporary))


def cut_notes(notes: Notes, offset: float, seconds: float, *, most: int = CROP_NOTES) -> np.ndarray:
    """The notes that sound within `seconds` from `offset`, times counted from there: [most, 4], padded with pitch -1.

    Onsets before the crop are below 0. Where there are more than `most`, the quietest are left out.
    """
    inside = notes[(notes[:, 0] < offset + seconds) & (notes[:, 1] > offset)]
    if len(inside) > most:
        inside = inside[np.sort(np.argsort(-inside[:, 3], kind="stable")[:most])]
    made = np.tile(np.array([0, 0, -1, 0], np.float32), (most, 1))
    made[: len(inside)] = inside - np.array([offset, offset, 0, 0], np.float32)
    return made
