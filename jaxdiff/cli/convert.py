"""`jaxdiff convert` and `jaxdiff transcribe`: another instrument or voice for what was played or said; its notes."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdiff import __version__, ranges

from . import files, run

if TYPE_CHECKING:
    from jaxdiff.inference import Pipeline
    from jaxdiff.inference.convert import Kept, Prepared, Target

INSTRUMENTS, VOICES, TRACKER = "instruments-16k", "voice-16k", "notes-16k"


@dataclass(frozen=True, kw_only=True)
class Transcribe(run.Processed):
    """Write down the notes of recordings: MIDI, piano roll as PNG, and JSON sidecar each."""

    model: Path = Path(TRACKER)
    """work directory of a run, an exported file, or the name of a shipped model"""
    threshold: ranges.Share = 0.5
    """how sure the model must be of a note; fewer are written down at a higher one"""

    def run(self) -> int:
        jobs = files.jobs(self.files, self.out, (".mid", ".png", ".json"), self.overwrite)
        pipeline = run.load(self.model, None, self.device, "transcribe")
        from jaxdiff.inference.transcription import process_transcription  # jax is imported by now

        about = {"jaxdiff": __version__, "model": str(self.model)}

        def do(file: Path, target: Path, tell: Callable[[float], None]) -> str:
            notes = process_transcription(pipeline, file, target, threshold=self.threshold, about=about, tell=tell)
            return f"{files.beside(target, '.mid')}: {len(notes)} notes"

        return files.long_work(jobs, do)


@dataclass(frozen=True, kw_only=True)
class Convert(run.Processed):
    """Have what was played played by another instrument, or what was said said by another voice: WAV, spectrograms
    before and after as PNG, and JSON sidecar each; of instruments also the notes, as MIDI."""

    to: str | None = None
    """the instrument or voice, by a name that the model knows: see jaxdiff models"""
    model: Path | None = None
    """work directory of a run, an exported file, or the name of a shipped model (the one that knows the name)"""
    strength: ranges.Share = 1.0
    """0 gives the recording's own sound, 1 the target's, between them a mixture"""
    target_voice: Path | None = None
    """instead of --to, a folder of recordings of the voice that is to speak, some minutes of it"""
    roll: Path | None = None
    """MIDI file with the notes to play in place of those that are heard, for one recording of an instrument"""
    tracker: Path = Path(TRACKER)
    """the model that hears the notes"""
    steps: ranges.Count | None = None
    """sampling steps (the configuration's)"""
    check: bool = True
    """listen to the result and say what of the notes, or of intonation and loudness, was kept"""

    def run(self) -> int:
        if (self.to is None) == (self.target_voice is None):
            raise ValueError("give either --to NAME or --target-voice FOLDER")
        if self.target_voice is not None and not self.target_voice.is_dir():
            raise ValueError(f"--target-voice {self.target_voice}: is no folder; give one with recordings of the voice")
        model = self._model()
        from jaxdiff.tasks import Instrument, Voice

        pipeline = run.load(model, None, self.device)
        task = pipeline.model.task
        if not isinstance(task, Instrument | Voice):
            raise ValueError(f"--model {model}: has the task {type(task).__name__.lower()}, and converts nothing")
        musical = isinstance(task, Instrument)
        if musical and self.to is None:
            raise ValueError(f"--target-voice: is for voices, {model} plays {', '.join(pipeline.classes)}; give --to")
        if musical and self.to not in pipeline.classes:
            raise ValueError(f"--to {self.to}: is unknown; {model} plays {', '.join(pipeline.classes)}")
        if self.roll is not None and not musical:
            raise ValueError("--roll: is for instruments; a voice has no notes")
        jobs = files.jobs(self.files, self.out, (*run.ENDS, ".mid") if musical else run.ENDS, self.overwrite)
        if self.roll is not None and len(jobs) > 1:
            raise ValueError(f"--roll: has the notes of one recording, and {len(jobs)} are given; convert it alone")
        convert = self._instrument(pipeline) if musical else self._voice(pipeline)
        return files.long_work(jobs, lambda *job: convert(model, *job))

    def _model(self) -> Path:
        """The model that was asked for, or the shipped one that knows the name."""
        if self.model is not None:
            return self.model
        from jaxdiff.inference.load import classes_of

        known = {name: classes_of(name) for name in (INSTRUMENTS, VOICES)}
        found = VOICES if self.to is None else next((name for name in known if self.to in known[name]), None)
        if found is None:
            raise ValueError(f"--to {self.to}: is unknown; use one of {', '.join(sum(known.values(), ()))}")
        return Path(found)

    def _instrument(self, pipeline: "Pipeline") -> Callable[..., str]:
        from jaxdiff.data.midi import read_midi, write_midi
        from jaxdiff.inference.convert import instrument, kept_notes
        from jaxdiff.inference.transcription import transcribe

        tracker = run.load(self.tracker, None, self.device, "transcribe")
        notes_given = None if self.roll is None else read_midi(self.roll)

        def convert(model: Path, file: Path, target: Path, tell: Callable[[float], None]) -> str:
            notes = transcribe(tracker, file) if notes_given is None else notes_given
            prepared = instrument(pipeline, notes, str(self.to), strength=self.strength)
            said = self._made(pipeline, model, prepared, file, target, tell)
            write_midi(files.beside(target, ".mid"), notes)
            if not self.check:
                return said
            return said + _heard(kept_notes(tracker, notes, files.beside(target, ".wav")), file, target)

        return convert

    def _voice(self, pipeline: "Pipeline") -> Callable[..., str]:
        from jaxdiff.data import sound_files
        from jaxdiff.inference.contours import contours
        from jaxdiff.inference.convert import kept_contours, named_voice, recorded_voice, voice

        if self.target_voice is None:
            who: Target = named_voice(pipeline, str(self.to))
        else:
            who = recorded_voice(pipeline, sound_files([self.target_voice]))

        def convert(model: Path, file: Path, target: Path, tell: Callable[[float], None]) -> str:
            before = contours(file)
            prepared = voice(pipeline, before, who, strength=self.strength)
            said = self._made(pipeline, model, prepared, file, target, tell)
            if not self.check:
                return said
            return said + _heard(kept_contours(before, contours(files.beside(target, ".wav"))), file, target)

        return convert

    def _made(
        self, pipeline: "Pipeline", model: Path, prepared: "Prepared", file: Path, target: Path, tell: Callable
    ) -> str:
        from jaxdiff.inference.files import process_file

        about = {"jaxdiff": __version__, "model": str(model), **prepared.facts}
        options: dict[str, Any] = dict(seed=self.seed, about=about, tell=tell, steps=self.steps)
        done = process_file(pipeline, file, target, request=prepared.request, also=prepared.also, **options)
        return f"{files.beside(target, '.wav')}: {done.seconds:.1f} s to {prepared.facts['to']}"


def _heard(kept: "Kept", file: Path, target: Path) -> str:
    """The words for what was kept, which is put into the sidecar; a loss is also warned of."""
    from jaxdiff.data.files import atomic

    sidecar = files.beside(target, ".json")
    facts = json.loads(sidecar.read_text(encoding="utf-8"))
    facts["kept"] = {name: round(value, 3) for name, value in kept.measures.items()}
    with atomic(sidecar) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if kept.lost:
        print(f"jaxdiff: warning: {file}: much was lost ({kept.said}); look at the picture and listen", file=sys.stderr)
    return f", {kept.said}"
