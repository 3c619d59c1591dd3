"""The commands that make sound with a trained model, one for each task."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from annotated_types import Gt, Interval
from rich.console import Console

from jaxdiff import __version__, ranges

from . import files

if TYPE_CHECKING:
    from jaxdiff.inference import Pipeline

_out = Console(highlight=False, soft_wrap=True)

_ENDS = (".wav", ".png", ".json")
_KNOBS = ("sampler", "steps", "spacing", "guidance", "temperature", "times")


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Options of all these commands."""

    out: Path
    """folder for the sounds; made when absent"""
    seed: ranges.Seed = 0
    """item i of a seed is the same sound however many are made"""
    steps: ranges.Count | None = None
    """sampling steps (the configuration's)"""
    guidance: float | None = None
    """classifier-free guidance scale, 1 is off (the configuration's)"""
    temperature: ranges.Positive | None = None
    """of an autoregressive model, below 1 the likely becomes more likely (the configuration's)"""
    sampler: str | None = None
    """euler, heun, dpmpp_2m, unipc2 ... (the configuration's)"""
    spacing: str | None = None
    """uniform, quadratic, cosine, karras, logsnr, or searched (see search-times) (the configuration's)"""
    times: tuple[ranges.Share, ...] | None = None
    """the times themselves instead of steps and spacing: falling from 1 to 0"""
    ema: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """relative width of the average of the weights, 0.04 to 0.2, for runs with train.posthoc_ema"""
    overwrite: bool = False
    """replace files that are there"""
    debug: bool = False
    """show the traceback of an error"""

    def knobs(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _KNOBS}


@dataclass(frozen=True, kw_only=True)
class Generate(Sampled):
    """Make sounds with a trained model: WAV, spectrogram PNG and JSON sidecar each, and one contact sheet."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """work directory of a run, an exported file, or the name of a shipped model"""
    count: ranges.Count = 1
    """how many"""
    seconds: Annotated[float, Gt(0)] | None = None
    """length of each (the training crop's); longer sounds are continued window by window"""
    label: tuple[str, ...] = ()
    """class of all of them, or classes to take in turn (all)"""

    def run(self) -> int:
        files.refuse_file(self.out)
        from jaxdiff.inference.load import classes_of  # jax is imported from here on
        from jaxdiff.inference.outputs import item_name

        classes = classes_of(self.model)
        unknown = [label for label in self.label if label not in classes]
        if unknown:
            known = f"one of {', '.join(classes)}" if classes else "none, this model has no classes"
            raise ValueError(f"--label {unknown[0]}: is unknown; use {known}")
        pipeline = _load(self.model, self.ema)
        labels = [pipeline.label(self.label or None, i) for i in range(self.count)]
        names = [item_name(i, pipeline.classes[k] if k >= 0 else None) for i, k in enumerate(labels)]
        results = [self.out / f"{name}{end}" for name in names for end in _ENDS]
        files.refuse_existing([*results, self.out / "sheet.png"], self.overwrite)
        options: dict[str, Any] = dict(labels=self.label or None, seed=self.seed, **self.knobs())
        made = pipeline(count=self.count, seconds=self.seconds, **options)
        made.save(self.out, names, jaxdiff=__version__, model=str(self.model))
        seconds = made.waves[0].shape[-1] / pipeline.sample_rate
        _out.print(f"{self.count} sounds of {seconds:g} s in {self.out}", markup=False)
        return 0


@dataclass(frozen=True, kw_only=True)
class Vocode(Sampled):
    """Sound from its mel spectrogram, of sound files of any length, rate and number of channels."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILES")]
    """sound files, or folders of them, whose sub-folders are kept"""
    model: Path
    """work directory of a run, an exported file, or the name of a shipped model"""

    def run(self) -> int:
        jobs = files.jobs(self.files, self.out, _ENDS, self.overwrite)
        pipeline = _load(self.model, self.ema)

        def do(file: Path, target: Path) -> str:
            made = pipeline(file, seed=self.seed, **self.knobs())
            made.save(target.parent, [target.name], sheet=False, jaxdiff=__version__, model=str(self.model))
            return f"{files.beside(target, '.wav')}"

        return files.work(jobs, do)


def _load(model: Path, ema: float | None) -> "Pipeline":
    from jaxdiff.inference import load

    pipeline = load(model, ema=ema)
    for warning in pipeline.warnings:
        print(f"jaxdiff: warning: passed over {warning}", file=sys.stderr)
    return pipeline
