"""`jaxdiff edit`: one change to one sound by a model that generates; what is not changed keeps every bit."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from annotated_types import Gt

from jaxdiff import __version__, ranges

from . import files, run

if TYPE_CHECKING:
    from jaxdiff.inference import Pipeline

OPERATIONS = ("replace", "extend_by", "loop", "variation", "interpolate")


@dataclass(frozen=True, kw_only=True)
class Edit(run.Making):
    """Edit a sound with a model that generates by diffusion: make a place anew, go on at the end, make a loop of it,
    vary it, or go between it and another: WAV, spectrograms before and after as PNG, and a JSON sidecar.

    With --replace, --extend-by and --loop every sample outside the places made anew is the file's, bit for bit.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """a sound file of any length, rate and number of channels"""
    model: Path = Path("styles-16k")
    """work directory of a run, an exported file, or the name of a shipped model"""
    replace: str | None = None
    """make START:END anew, in seconds, such as 1.5:2.25, so that it fits what is before and after"""
    extend_by: Annotated[float, Gt(0)] | None = None
    """go on at the end for so many seconds"""
    loop: bool = False
    """make the seam anew, so that the end flows into the beginning"""
    variation: ranges.Share | None = None
    """make the whole again: 0 leaves it as it is, 1 forgets it"""
    interpolate: Path | None = None
    """go from FILE towards this sound file, through the model's noise"""
    like: str | None = None
    """the class of what is made, one of the model's; with --replace also a sound file with which the place begins"""
    strength: ranges.Share = 0.7
    """of --like CLIP: 0 leaves the clip as it is, 1 forgets it"""
    seam: ranges.Positive = 0.25
    """of --loop: seconds made anew at the end and at the beginning"""
    share: ranges.Share = 0.5
    """of --interpolate: 0 is FILE, 1 the other"""
    fit: ranges.Index = 2
    """iterations that fit a place to the sound around it: 0 is quickest"""
    steps: ranges.Count | None = None
    """sampling steps (the configuration's; of --interpolate 32)"""
    guidance: float | None = None
    """classifier-free guidance scale, 1 is off (the configuration's)"""

    def run(self) -> int:
        values = {name: getattr(self, name) for name in OPERATIONS}
        asked = [name for name, value in values.items() if value is not None and value is not False]
        if len(asked) != 1:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in OPERATIONS)
            got = " and ".join(f"--{name.replace('_', '-')}" for name in asked) or "none"
            raise ValueError(f"give one of {options}, got {got}")
        place = None if self.replace is None else _seconds(self.replace)
        if self.file.is_dir():
            raise ValueError(f"{self.file}: is a folder; give one sound file")
        job = files.jobs([self.file], self.out, run.ENDS, self.overwrite)
        pipeline = run.load(self.model, None, self.device)
        label, clip = self._like(pipeline)
        return files.long_work(
            job, lambda file, target, tell: self._do(pipeline, place, label, clip, file, target, tell)
        )

    def _like(self, pipeline: "Pipeline") -> tuple[str | None, Path | None]:
        """The class, or the sound file, that is wanted."""
        if self.like is None or self.like in pipeline.classes:
            return self.like, None
        if self.replace is not None and Path(self.like).expanduser().is_file():
            return None, Path(self.like).expanduser()
        known = f"one of {', '.join(pipeline.classes)}" if pipeline.classes else "none, this model has no classes"
        file = " and no sound file" if self.replace is not None else ""
        raise ValueError(f"--like {self.like}: is no class of the model{file}; its classes are {known}")

    def _do(
        self,
        pipeline: "Pipeline",
        place: tuple[float, float] | None,
        label: str | None,
        clip: Path | None,
        file: Path,
        target: Path,
        tell: Any,
    ) -> str:
        from jaxdiff.inference import edits, variations  # jax is imported by now

        about: dict[str, Any] = {"jaxdiff": __version__, "model": str(self.model), "like": self.like}
        shared: dict[str, Any] = dict(label=label, seed=self.seed, steps=self.steps, guidance=self.guidance)
        wav = files.beside(target, ".wav")
        if self.variation is not None:
            about |= {"edit": "variation", "strength": self.variation}
            done = variations.write_variation(pipeline, file, target, self.variation, about=about, tell=tell, **shared)
            return f"{wav}: {done.seconds:.2f} s, a variation"
        if self.interpolate is not None:
            about |= {"edit": "interpolate"}
            made = variations.write_interpolation(
                pipeline, file, self.interpolate, target, share=self.share, about=about, tell=tell, **shared
            )
            return f"{wav}: {made:.2f} s, {self.share:g} of the way to {self.interpolate}"
        shared |= {"fit": self.fit}
        sound = edits.heard(file)
        if place is not None:
            like = None if clip is None else edits.heard(clip)
            plan = edits.replacing(pipeline, sound, *place, like=like, strength=self.strength, **shared)
            about |= {"edit": "replace", **({} if clip is None else {"strength": self.strength})}
        elif self.extend_by is not None:
            plan = edits.extending(pipeline, sound, self.extend_by, **shared)
            about |= {"edit": "extend"}
        else:
            plan = edits.looping(pipeline, sound, seam=self.seam, **shared)
            about |= {"edit": "loop"}
        done = edits.write_plan(plan, file, target, about={**about, "fit": self.fit}, tell=tell)
        made = " and ".join(f"{a / sound.rate:.2f} to {b / sound.rate:.2f} s" for a, b in plan.places)
        band = f", which holds up to {pipeline.sample_rate // 2} Hz" if sound.rate > pipeline.sample_rate else ""
        return (
            f"{wav}: {made} made anew{band}; the other {done.samples - done.changed} of {done.samples} samples are the "
            f"file's, bit for bit ({done.subtype}, checked)"
        )


def _seconds(text: str) -> tuple[float, float]:
    """The numbers of START:END; raises ValueError for anything else."""
    number = r"(\d+(?:\.\d*)?|\.\d+)"
    found = re.fullmatch(f"{number}:{number}", text.strip())
    if found is None or float(found[1]) >= float(found[2]):
        raise ValueError(
            f"--replace {text}: expected START:END in seconds, the first less than the second, like 1.5:2.25"
        )
    return float(found[1]), float(found[2])
