"""`jaxdiff foley`: cues become sound, of a sheet, of a video, of a drum pattern or of another sound's rhythm."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from annotated_types import Interval

from jaxdiff import __version__

from . import files, run

if TYPE_CHECKING:
    from jaxdiff.inference import Pipeline
    from jaxdiff.inference.rhythm import Rhythm

MODEL = "foley-16k"


@dataclass(frozen=True, kw_only=True)
class Foley(run.Sampled):
    """Make the sound of cues, in stereo, of any length: as WAV or FLAC, or as a video whose pictures are copied bit for
    bit; with a spectrogram PNG and a JSON sidecar, and where the cues were found the sheet of them."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO|CUES")]
    """a video, which is watched; a cue sheet (CSV); a MIDI file, its drums or else its notes; or a sound, whose rhythm
    is played"""
    out: Path
    """the result: .wav or .flac, or of a video .mp4, .m4v, .mov, .mkv or .webm; the others have its name with .png,
    .json and .csv"""
    label: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """class of all cues that name none of the model's"""
    cues: Path | None = None
    """the cue sheet of VIDEO, which is not watched then"""
    keep_original: Annotated[float, Interval(ge=-80, le=20)] | None = None
    """keep the video's own sound beside it, at this gain in dB (leave it out)"""
    model: Path = Path(MODEL)
    """work directory of a run, an exported file, or the name of a shipped model of task foley"""

    def run(self) -> int:
        self._check_names()
        from jaxdiff.data.soundtrack import KINDS, check_copy

        as_video, end = self.out.suffix.lower() in KINDS, self.out.suffix.lower()
        if not as_video and end not in (".wav", ".flac"):
            raise ValueError(f"--out {self.out}: expected a file that ends with .wav, .flac, {', '.join(KINDS)}")
        sheet = self.out.with_suffix(".csv")
        from jaxdiff.inference.rhythm import SCORES, SHEETS, is_video, rhythm  # jax is imported from here on

        given = self.source.suffix.lower() in SHEETS or self.cues is not None
        others = [self.out.with_suffix(end) for end in (".png", ".json")]
        files.refuse_existing([self.out, *others, *([] if given else [sheet])], self.overwrite)
        video = self.source if is_video(self.source) else None
        if video is None:
            for name, wrong in (("--cues", self.cues is not None), ("--keep-original", self.keep_original is not None)):
                if wrong:
                    raise ValueError(f"{name}: is for a video, {self.source} is none; leave it away")
            if as_video:
                raise ValueError(f"--out {self.out}: {self.source} has no pictures; give a file that ends with .wav")
        elif as_video:
            check_copy(video, self.out)
        pipeline = run.load(self.model, self.ema, self.device)
        from rich.progress import Progress

        from jaxdiff.data.cues import write_cues
        from jaxdiff.data.soundtrack import video_seconds
        from jaxdiff.inference.foley import write_foley

        self._check_model(pipeline, names_classes=(self.cues or self.source).suffix.lower() in SHEETS | SCORES)
        label = self.label or "impact"
        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("looking", total=1.0)
            tell = lambda share: progress.update(task, completed=share)  # noqa: E731
            found = rhythm(self.source if self.cues is None else self.cues, label, pipeline.classes, tell=tell)
            self._check_classes(found, pipeline.classes)
            progress.update(task, description="making", completed=0.0)
            seconds = video_seconds(video) if video is not None else found.seconds
            about = {"jaxdiff": __version__, "model": str(self.model), "source": str(self.source)}
            about |= {"cue_sheet": str(self.cues)} if self.cues is not None else {"cues_from": found.source}
            done = write_foley(
                pipeline,
                found.cues,
                self.out,
                seconds=seconds,
                video=video,
                keep_original=self.keep_original,
                label=self.label,
                seed=self.seed,
                about=about,
                tell=tell,
                **self.knobs(),
            )
        if not given:
            write_cues(sheet, found.cues)
        if done.scaled_db < 0:
            print(
                f"jaxdiff: warning: {self.out}: exceeded full scale and was scaled down as a whole by "
                f"{-done.scaled_db:.1f} dB",
                file=sys.stderr,
            )
        copied = f", {done.muxed.packets} pictures copied bit for bit" if done.muxed is not None else ""
        kept = "" if given else f" ({sheet})"
        count = f"{done.cues or 'no'} cue{'' if done.cues == 1 else 's'}"
        print(f"{self.out}: {done.seconds:.1f} s, {count} from the {found.source}{kept}{copied}")
        return 0

    def _check_names(self) -> None:
        if self.out.is_dir():
            raise ValueError(f"--out {self.out}: is a folder; give a file, as {self.out / 'foley.wav'}")
        if self.out.exists() and self.source.exists() and self.out.samefile(self.source):
            raise ValueError(f"--out {self.out}: is the source itself; give another file")

    def _check_model(self, pipeline: "Pipeline", names_classes: bool) -> None:
        from jaxdiff.tasks import Foley as Task

        task, classes = pipeline.model.task, pipeline.classes
        if not isinstance(task, Task):
            kind = type(task).__name__.lower()
            raise ValueError(f"--model {self.model}: has the task {kind}; give a model of task foley")
        known = f"one of {', '.join(classes)}" if classes else "none, for the model has no classes"
        if self.label is None and classes and not names_classes:
            raise ValueError(f"--class: say what is to be heard, {known}")
        if self.label is not None and self.label not in classes:
            raise ValueError(f"--class {self.label}: is unknown; use {known}")

    def _check_classes(self, found: "Rhythm", classes: tuple[str, ...]) -> None:
        strange = sorted({cue.label for cue in found.cues} - set(classes)) if classes else []
        if strange and self.label is None:
            raise ValueError(
                f"--class: {', '.join(strange[:3])} {'is none' if len(strange) == 1 else 'are none'} of the model's "
                f"classes, which are {', '.join(classes)}; name one for such cues"
            )
