"""`jaxdiff restyle`: clips in the style of a model that generates, with what was played kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from jaxdiff import __version__, ranges

from . import files, run

if TYPE_CHECKING:
    from jaxdiff.inference import Pipeline
    from jaxdiff.tasks import Keep

SWEEP = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95)


@dataclass(frozen=True, kw_only=True)
class Restyle(run.Processed):
    """Bring clips into the style of a model that generates by diffusion, keeping what was played: WAV, spectrograms
    before and after as PNG, and JSON sidecar each."""

    model: Path = Path("styles-16k")
    """work directory of a run, an exported file, or the name of a shipped model"""
    to: str | None = None
    """the style, one of the model's classes, where it has any"""
    strength: ranges.Share = 0.9
    """0 leaves the clip as it is, 1 forgets it but for what is kept"""
    keep: tuple[str, ...] = ("melody", "loudness", "onsets")
    """some of melody, loudness and onsets, or none"""
    source_model: Path | None = None
    """the model of the clip's own style, which takes it to noise in place of chance: a dual bridge"""
    source_style: str | None = None
    """the same by a class of --source-model, or of --model without one"""
    steps: ranges.Count | None = None
    """sampling steps (the configuration's)"""
    guidance: float | None = None
    """classifier-free guidance scale, 1 is off (the configuration's)"""
    sweep: bool = False
    """instead of one strength try several, STEM.0.20.wav to STEM.0.95.wav, and print how each trades the clip for the
    style"""

    def run(self) -> int:
        from jaxdiff.inference.restyle import keep_of, restyler  # jax is imported from here on

        names = () if self.keep == ("none",) else self.keep
        keep_of(names)
        ends = [f".{s:.2f}{end}" for s in SWEEP for end in run.ENDS] if self.sweep else run.ENDS
        jobs = files.jobs(self.files, self.out, ends, self.overwrite)
        pipeline = run.load(self.model, None, self.device)
        source = None if self.source_model is None else run.load(self.source_model, None, self.device)
        if bool(pipeline.classes) != (self.to is not None):
            known = f"has the styles {', '.join(pipeline.classes)}; name one" if pipeline.classes else "has one style"
            raise ValueError(f"--to: {self.model} {known}{'' if pipeline.classes else '; leave it away'}")
        label = -1 if self.to is None else pipeline.label(self.to, 0)
        request = keep_of(names, label)

        def made(strength: float) -> "Pipeline":
            return restyler(pipeline, strength=strength, source=source, source_label=self.source_style)

        if self.sweep:
            return self._sweep(jobs, pipeline, [made(s) for s in SWEEP], request)
        one = made(self.strength)

        def do(file: Path, target: Path, tell: Callable[[float], None]) -> str:
            self._write(one, self.strength, request, file, target, tell)
            wav = files.beside(target, ".wav")
            return f"{wav}: {_fidelity(file, wav)}"

        return files.long_work(jobs, do)

    def _write(
        self, pipeline: "Pipeline", strength: float, request: "Keep", file: Path, target: Path, tell: Any
    ) -> None:
        from jaxdiff.inference.files import process_file

        about = {"jaxdiff": __version__, "model": str(self.model), "to": self.to, "strength": strength}
        if self.source_model is not None or self.source_style is not None:
            about |= {"source_model": str(self.source_model or self.model), "source_style": self.source_style}
        knobs: dict[str, Any] = dict(steps=self.steps, guidance=self.guidance)
        process_file(pipeline, file, target, request=request, seed=self.seed, about=about, tell=tell, **knobs)

    def _sweep(self, jobs: Any, pipeline: "Pipeline", several: list["Pipeline"], request: "Keep") -> int:
        """Each clip with each strength, and a table of what is kept and how near it comes to the style."""
        from jaxdiff.inference.restyle import Likeness

        likeness = Likeness(pipeline, self.to)

        def do(file: Path, target: Path, tell: Callable[[float], None]) -> str:
            table = Table("strength", "melody kept", "loudness kept", "way to the style", title=str(target))
            for i, (strength, one) in enumerate(zip(SWEEP, several, strict=True)):
                place = files.beside(target, f".{strength:.2f}")
                self._write(one, strength, request, file, place, lambda share, i=i: tell((i + share) / len(SWEEP)))
                wav = files.beside(place, ".wav")
                left = _measured(file, wav)
                row = (left.melody, left.loudness, likeness(file, wav))
                table.add_row(f"{strength:.2f}", *(f"{value:.2f}" for value in row))
            run.console.print(table)
            return f"{target}: {len(SWEEP)} strengths"

        return files.long_work(jobs, do)


def _measured(file: Path, wav: Path) -> Any:
    from jaxdiff.inference.contours import contours
    from jaxdiff.inference.restyle import HIGHEST_HZ, fidelity

    return fidelity(*(contours(path, highest=HIGHEST_HZ) for path in (file, wav)))


def _fidelity(file: Path, wav: Path) -> str:
    left = _measured(file, wav)
    return f"melody {left.melody:.0%} kept, loudness {left.loudness:.2f}"
