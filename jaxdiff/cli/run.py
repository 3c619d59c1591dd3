"""The commands that make sound with a trained model, one for each task."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from jaxdiff import __version__

if TYPE_CHECKING:
    from jaxdiff.inference import Pipeline

_out = Console(highlight=False, soft_wrap=True)

_KNOBS = ("sampler", "steps", "spacing", "guidance", "temperature")


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Options of all these commands."""

    out: Path
    """folder for the sounds; made when absent"""
    seed: int = 0
    """item i of a seed is the same sound however many are made"""
    steps: int | None = None
    """sampling steps (the configuration's)"""
    guidance: float | None = None
    """classifier-free guidance scale, 1 is off (the configuration's)"""
    temperature: float | None = None
    """of an autoregressive model, below 1 the likely becomes more likely (the configuration's)"""
    sampler: str | None = None
    """euler, heun, dpmpp_2m, unipc2 ... (the configuration's)"""
    spacing: str | None = None
    """uniform, quadratic, cosine, karras, logsnr, or searched (see search-times) (the configuration's)"""
    ema: float | None = None
    """relative width of the average of the weights, 0.04 to 0.2, for runs with train.posthoc_ema"""
    overwrite: bool = False
    """replace files that are there"""
    debug: bool = False
    """show the traceback of an error"""

    def knobs(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _KNOBS}

    def refuse(self, names: Sequence[str]) -> None:
        """Raise ValueError where results exist and are not to be replaced."""
        files = [self.out / f"{name}{end}" for name in names for end in (".wav", ".png", ".json")]
        there = [f for f in [*files, self.out / "sheet.png"] if f.exists()]
        if there and not self.overwrite:
            raise ValueError(f"{there[0]}: exists; give another --out, or --overwrite to replace it")


@dataclass(frozen=True, kw_only=True)
class Generate(Sampled):
    """Make sounds with a trained model: WAV, spectrogram PNG and JSON sidecar each, and one contact sheet."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """work directory of a run, an exported file, or the name of a shipped model"""
    count: int = 1
    """how many"""
    seconds: float | None = None
    """length of each (the training crop's); longer sounds are continued window by window"""
    label: str | None = None
    """class of all of them (otherwise the classes in turn)"""

    def run(self) -> int:
        _check_out(self.out)
        if self.count < 1:
            raise ValueError(f"--count {self.count}: make at least 1")
        pipeline = _load(self.model, self.ema)
        labels = [pipeline.label(self.label, i) for i in range(self.count)]
        names = [f"{i:04d}" + (f"-{pipeline.classes[k]}" if k >= 0 else "") for i, k in enumerate(labels)]
        self.refuse(names)
        made = pipeline(count=self.count, seconds=self.seconds, labels=self.label, seed=self.seed, **self.knobs())
        made.save(self.out, names, jaxdiff=__version__, model=str(self.model))
        seconds = made.waves[0].shape[-1] / pipeline.sample_rate
        _out.print(f"{self.count} sounds of {seconds:g} s in {self.out}", markup=False)
        return 0


@dataclass(frozen=True, kw_only=True)
class Vocode(Sampled):
    """Sound from its mel spectrogram, of sound files of any length, rate and number of channels."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILES")]
    """sound files, or folders of them"""
    model: Path
    """work directory of a run, an exported file, or the name of a shipped model"""

    def run(self) -> int:
        _check_out(self.out)
        if not self.files:
            raise ValueError("no FILES: give sound files or folders of them")
        from jaxdiff.data import sound_files

        files = sound_files(self.files)
        names = [f.stem for f in files]
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise ValueError(f"{min(twice)}: the name of several files; work on them in different folders")
        self.refuse(names)
        pipeline = _load(self.model, self.ema)
        for number, (file, name) in enumerate(zip(files, names, strict=True), 1):  # each is kept as soon as it is made
            made = pipeline(file, seed=self.seed, **self.knobs())
            made.save(self.out, [name], sheet=False, jaxdiff=__version__, model=str(self.model))
            _out.print(f"{number}/{len(files)}  {self.out / name}.wav", markup=False)
        return 0


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; give a folder")


def _load(model: Path, ema: float | None) -> "Pipeline":
    from jaxdiff.inference import load

    pipeline = load(model, ema=ema)
    for warning in pipeline.warnings:
        print(f"jaxdiff: warning: passed over {warning}", file=sys.stderr)
    return pipeline
