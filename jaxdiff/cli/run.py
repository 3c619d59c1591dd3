"""The commands that make sound with a trained model, and what those share that work on files (`enhance.py`, too)."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from annotated_types import Gt, Interval
from rich.console import Console

from jaxdiff import __version__, ranges

from . import files

if TYPE_CHECKING:
    from jaxdiff.inference import Pipeline
    from jaxdiff.inference.files import Done

console = Console(highlight=False, soft_wrap=True)

ENDS = (".wav", ".png", ".json")
MELS = (".npy", ".npz")
_KNOBS = ("sampler", "steps", "spacing", "guidance", "temperature", "times")


@dataclass(frozen=True, kw_only=True)
class Making:
    """Options of all these commands."""

    out: Path
    """folder for the sounds; made when absent"""
    seed: ranges.Seed = 0
    """item i of a seed is the same sound however many are made"""
    device: Literal["cpu", "gpu", "tpu"] | None = None
    """where to compute (the fastest that is there)"""
    overwrite: bool = False
    """replace files that are there"""
    debug: bool = False
    """show the traceback of an error"""


@dataclass(frozen=True, kw_only=True)
class Processed(Making):
    """Options of commands that work on files."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILES")]
    """sound files, or folders of them, whose sub-folders are kept"""


@dataclass(frozen=True, kw_only=True)
class Sampled(Making):
    """Options of commands that sample as one likes."""

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
        pipeline = load(self.model, self.ema, self.device)
        labels = [pipeline.label(self.label or None, i) for i in range(self.count)]
        names = [item_name(i, pipeline.classes[k] if k >= 0 else None) for i, k in enumerate(labels)]
        results = [self.out / f"{name}{end}" for name in names for end in ENDS]
        files.refuse_existing([*results, self.out / "sheet.png"], self.overwrite)
        options: dict[str, Any] = dict(labels=self.label or None, seed=self.seed, **self.knobs())
        made = pipeline(count=self.count, seconds=self.seconds, **options)
        made.save(self.out, names, jaxdiff=__version__, model=str(self.model))
        seconds = made.waves[0].shape[-1] / pipeline.sample_rate
        console.print(f"{self.count} sounds of {seconds:g} s in {self.out}", markup=False)
        return 0


@dataclass(frozen=True, kw_only=True)
class Vocode(Sampled, Processed):
    """Sound from its mel spectrogram: of sound files of any length, rate and number of channels, and of mel
    spectrograms in NPY and NPZ files, as jaxdiff features and text-to-speech front ends write them."""

    model: Path = Path("vocoder-16k")
    """work directory of a run, an exported file, or the name of a shipped model"""
    iterations: ranges.Count | None = None
    """of Griffin-Lim, for models that make magnitudes: fewer are faster (the configuration's)"""
    mel_scale: Literal["auto", "ln", "log10", "db", "magnitude", "power"] = "auto"
    """what the numbers in NPY and NPZ files are: logarithms, decibels or magnitudes of bands, or powers; auto goes by
    their range, and says so"""

    def run(self) -> int:
        jobs = files.jobs(self.files, self.out, ENDS, self.overwrite, MELS)
        pipeline = load(self.model, self.ema, self.device, "vocode")
        from jaxdiff.inference.files import process_file, process_mel  # jax is imported by now
        from jaxdiff.tasks import Phases

        about, request = {"jaxdiff": __version__, "model": str(self.model)}, Phases(self.iterations)

        def do(file: Path, target: Path, tell: Callable[[float], None]) -> str:
            options: dict[str, Any] = dict(seed=self.seed, about=about, tell=tell, request=request, **self.knobs())
            wav = files.beside(target, ".wav")
            if file.suffix.lower() not in MELS:
                return f"{wav}: {process_file(pipeline, file, target, **options).seconds:.1f} s"
            seconds, said = process_mel(pipeline, file, target, scale=self.mel_scale, **options)
            return f"{wav}: {seconds:.1f} s, {said}"

        return files.long_work(jobs, do)


def process(
    pipeline: "Pipeline",
    jobs: Sequence[tuple[Path, Path]],
    command: Any,
    told: Callable[[Path, "Done"], str],
    **options: Any,
) -> int:
    """Work through the files of a command with `options` of `process_file`; `told` says what became of each. The exit
    code: 1 where one could not be used."""
    from jaxdiff.inference.files import process_file

    about = {"jaxdiff": __version__, "model": str(command.model)}

    def do(file: Path, target: Path, tell: Callable[[float], None]) -> str:
        done = process_file(pipeline, file, target, seed=command.seed, about=about, tell=tell, **options)
        return told(files.beside(target, ".wav"), done)

    return files.long_work(jobs, do)


def load(model: Path, ema: float | None, device: str | None, task: str | None = None) -> "Pipeline":
    """A model on the wanted `device`; raises ValueError where the machine has none, and for a model that works on
    sounds for another `task`."""
    if device is not None:
        compute_on(device)
    from jaxdiff import inference

    pipeline = inference.load(model, ema=ema)
    for warning in pipeline.warnings:
        print(f"jaxdiff: warning: passed over {warning}", file=sys.stderr)
    from jaxdiff.tasks import TASKS

    own = pipeline.model.task
    if task is not None and own.needs_sound and not isinstance(own, TASKS[task]):
        raise ValueError(f"--model {model}: has the task {type(own).__name__.lower()}; give a model of task {task}")
    return pipeline


def compute_on(device: str) -> None:
    """Have jax, which must not have computed anything, use this kind of device."""
    import jax

    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    try:
        jax.config.update("jax_platforms", device)
        found = jax.default_backend()
    except RuntimeError:
        found = None
    if found != device:
        jax.config.update("jax_platforms", before)
        raise ValueError(f"--device {device}: jax finds no such device on this machine; leave --device away")
