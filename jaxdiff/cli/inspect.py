"""`jaxdiff info`, `search-times` and `export`: look at a trained model, tune it, pack it."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from annotated_types import Ge
from rich.console import Console

from jaxdiff import ranges

_out = Console(highlight=False, soft_wrap=True)

Directory = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]


@dataclass(frozen=True)
class Info:
    """Show what a model is: task, size, data, checkpoint."""

    directory: Directory
    """work directory of a run, an exported file, or the name of a shipped model"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        from jaxdiff.config import to_dict, to_yaml
        from jaxdiff.inference import load

        p = load(self.directory)
        for warning in p.warnings:
            print(f"jaxdiff: warning: passed over {warning}", file=sys.stderr)
        if p.config is None:
            raise ValueError(f"{self.directory}: was trained in Python, and no configuration describes it")
        config, r = p.config, p.model.representation
        sampling = [f"{k} {v}" for k, v in p.facts(p.sampling).items() if k != "checkpoint"]
        kinds = {name: to_dict(config)[name]["kind"] for name in ("task", "network", "representation", "method")}
        rows = {
            "run": self.directory,
            "checkpoint": f"step {p.step} of {config.train.steps}, sha256 {p.fingerprint}",
            **kinds,
            "representation": f"{kinds['representation']}, {r.channels} features a frame, "
            f"{p.sample_rate / r.hop_length:g} frames/s",
            "data": f"{config.data.path}, {p.sample_rate} Hz, crops of {config.data.seconds:g} s",
            "classes": ", ".join(p.classes) or "none",
            "sampling": ", ".join(sampling) or "one pass",
        }
        for name, value in rows.items():
            _out.print(f"{name:15s} {value}", markup=False)
        _out.print(f"\n{p.summary()}\n\n{to_yaml(config)}", markup=False)
        return 0


@dataclass(frozen=True)
class SearchTimes:
    """Find the best N times for a trained model and keep them beside its checkpoint.

    They are found by gradient descent through the sampler, towards what many steps make of the same noise. To use them:
    jaxdiff generate DIR --sampler SAMPLER --steps N --spacing searched.
    """

    directory: Directory
    """work directory of a run"""
    steps: Annotated[int, Ge(2)]
    """sampling steps"""
    sampler: str | None = None
    """a deterministic one (the configuration's)"""
    count: ranges.Count = 16
    """sounds to search on, and as many others to judge on"""
    iterations: ranges.Count = 60
    """steps of gradient descent"""
    seed: ranges.Seed = 0
    """of the noise"""
    sounds: Path | None = None
    """for a model that works on sounds: a folder of at least twice as many"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        from jaxdiff.data import Crop, Recording, sound_files
        from jaxdiff.inference import load
        from jaxdiff.inference.times import search, write_times

        pipeline = load(self.directory)
        _out.print(f"searching: {self.iterations} steps of descent on {self.count} sounds, compilation first")
        waves = None
        if self.sounds is not None:
            r, files = pipeline.model.representation, sound_files([self.sounds])[: 2 * self.count]
            crop, rng = Crop(round(pipeline.seconds * r.sample_rate), r.sample_rate, "start"), np.random.default_rng(0)
            waves = np.stack([crop.read(Recording(f, pipeline.seconds, None), rng)["wave"] for f in files])
        options: dict[str, Any] = dict(sampler=self.sampler, count=self.count, seed=self.seed)
        found = search(pipeline, steps=self.steps, **options, iterations=self.iterations, waves=waves)
        path = write_times(pipeline.directory or self.directory, found)
        name = shlex.quote(str(self.directory))
        use = f"vocode FILES --model {name}" if pipeline.model.task.needs_sound else f"generate {name}"
        _out.print(" ".join(f"{t:.4f}" for t in found.times), markup=False)
        _out.print(
            f"mean squared error {found.error:.3g}, before the search {found.error_before:.3g}; kept in {path}; to use "
            f"them:\n  jaxdiff {use} --out out --sampler {found.sampler} --steps {self.steps} --spacing searched",
            markup=False,
        )
        return 0


@dataclass(frozen=True)
class Export:
    """Write a trained model as one file: averaged weights with their configuration, which every command reads, or with
    --stablehlo a program that runs where only jax is."""

    directory: Directory
    """work directory of a run, an exported file, or the name of a shipped model"""
    out: Path
    """the file, NAME.safetensors, or NAME.stablehlo beside which NAME.npz is a test vector"""
    half: bool = False
    """store float16, half the size"""
    stablehlo: bool = False
    """write a program of any number of sounds of one length"""
    seconds: ranges.Positive | None = None
    """length of the program's sounds (the training crop's)"""
    steps: ranges.Count | None = None
    """sampling steps of the program (the configuration's)"""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """where the program can run"""
    overwrite: bool = False
    """replace the files"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        suffix, what = (".stablehlo", "program") if self.stablehlo else (".safetensors", "model")
        for path in (self.out, self.out.with_suffix(".npz"))[: 1 + self.stablehlo]:
            if path.exists() and not self.overwrite:
                raise ValueError(f"--out {path}: exists; give another, or --overwrite to replace it")
        if self.out.suffix != suffix:
            hint = ", or add --stablehlo" if self.out.suffix == ".stablehlo" else ""
            raise ValueError(f"--out {self.out}: an exported {what} is a {suffix} file; give it that extension{hint}")
        for name, value in (("seconds", self.seconds), ("steps", self.steps)):
            if value is not None and not self.stablehlo:
                raise ValueError(f"--{name}: is for a program; add --stablehlo")
        if self.half and self.stablehlo:
            raise ValueError("--half: is for weights, a program has float32; leave it away")
        from jaxdiff.inference import export, export_program, load

        pipeline = load(self.directory)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if not self.stablehlo:
            path = export(pipeline, self.out, half=self.half)
            _out.print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB", markup=False)
            return 0
        _out.print("exporting, and running it beside the pipeline: about a minute", markup=False)
        made = export_program(pipeline, self.out, seconds=self.seconds, platforms=self.platforms, steps=self.steps)
        size, within = made.path.stat().st_size / 2**20, f"within {made.tolerance:.2g} of a peak of {made.peak:.2g}"
        _out.print(f"{made.path}: {size:.1f} MiB, {made.takes}", markup=False)
        _out.print(f"{made.vector}: a test vector, to be met {within}", markup=False)
        return 0
