"""The command `jaxdiff`. What is wrong is said in one sentence before any work.

Exit codes: 0 done, 1 the data or a checkpoint cannot be used, 2 the command or configuration is wrong, 130 and 143
interrupted by Ctrl-C and SIGTERM with everything saved. Heavy imports happen inside the commands, so `--help` is quick.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from . import __version__
from .config import Config, ConfigError, flatten, load_config, to_yaml

if TYPE_CHECKING:
    from .pipeline import Pipeline

_out = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Train:
    """Train a model from CONFIG.yaml, or resume the run in the work directory.

    Any key of the configuration can be overridden: --data.path FOLDER --train.steps 500 --network.kind transformer.
    """

    config: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CONFIG.yaml")]
    """YAML with what differs from the defaults"""
    workdir: Path
    """folder of the run: checkpoints, log, samples; made when absent"""
    debug: bool = False
    """show the traceback of an error"""


@dataclass(frozen=True)
class Generate:
    """Make sounds with a trained model: WAV, spectrogram PNG and JSON sidecar each, and one contact sheet."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """work directory of a run"""
    out: Path
    """folder for the sounds; made when absent"""
    count: int = 1
    """how many"""
    seconds: float | None = None
    """length of each (the training crop's)"""
    label: str | None = None
    """class of all of them (otherwise the classes in turn)"""
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
    """uniform, quadratic, cosine, karras, logsnr, or searched (see search-schedule) (the configuration's)"""
    ema: float | None = None
    """relative width of the average of the weights, 0.04 to 0.2, for runs with train.posthoc_ema"""
    source: Path | None = None
    """for vocoders: the sound, or folder of sounds, to resynthesise (the training corpus)"""
    overwrite: bool = False
    """replace files that are there"""
    debug: bool = False
    """show the traceback of an error"""


@dataclass(frozen=True)
class Features:
    """Compute features of sound files: an NPZ with the arrays and a picture of each."""

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILES")]
    """sound files, or folders of them"""
    out: Path
    """folder for the results; made when absent"""
    kind: Literal["mel", "mfcc", "stft", "cqt", "chroma", "pitch", "loudness"] = "mel"
    """which features"""
    invert: bool = False
    """also write the sound that mel, mfcc, stft or cqt features bring back, as WAV"""
    sample_rate: int | None = None
    """resample to this rate in Hz first (the file's own)"""
    n_fft: int = 2048
    """frame length in samples"""
    hop_length: int = 512
    """samples from frame to frame"""
    n_mels: int = 128
    """mel bands, of mel and mfcc"""
    n_mfcc: int = 20
    """coefficients of mfcc"""
    fmin: float = 65.0
    """lowest pitch in Hz"""
    fmax: float = 2093.0
    """highest pitch in Hz"""
    overwrite: bool = False
    """replace files that are there"""
    debug: bool = False
    """show the traceback of an error"""


@dataclass(frozen=True)
class SearchSchedule:
    """Find the best grid of N times for a trained model and keep it beside its checkpoint.

    It is found by gradient descent through the sampler, towards what many steps make of the same noise. To use it:
    jaxdiff generate DIR --sampler SAMPLER --steps N --spacing searched.
    """

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """work directory of a run"""
    steps: int
    """sampling steps"""
    sampler: str | None = None
    """a deterministic one (the configuration's)"""
    count: int = 16
    """sounds to search on, and as many others to judge on"""
    iterations: int = 60
    """steps of gradient descent"""
    seed: int = 0
    """of the noise"""
    debug: bool = False
    """show the traceback of an error"""


@dataclass(frozen=True)
class Info:
    """Show what a run is: model, size, data, checkpoint."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """work directory of a run"""
    debug: bool = False
    """show the traceback of an error"""


def main(argv: list[str] | None = None) -> None:
    """Run a command line and leave with its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--version"]:
        print(f"jaxdiff {__version__}")
        raise SystemExit(0)
    argv, overrides = _split_overrides(argv)
    if argv[:1] == ["train"] and {"-h", "--help"} & set(argv):
        _print_train_help()
    command = tyro.cli(
        Train | Generate | SearchSchedule | Features | Info,
        prog="jaxdiff",
        description=_DESCRIPTION,
        args=argv or ["--help"],
    )
    try:
        if overrides and not isinstance(command, Train):
            raise ConfigError(f"--{next(iter(overrides))}: configuration keys can be given to train only")
        run = {
            Train: _train,
            Generate: _generate,
            SearchSchedule: _search_schedule,
            Features: _features,
            Info: _info,
        }[type(command)]
        code = run(command, *([overrides] if isinstance(command, Train) else []))
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if command.debug:
            raise
        code = _explain(error)
    raise SystemExit(code)


_DESCRIPTION = "Audio diffusion: train a model on a folder of sound, make new sound with it."


def _explain(error: Exception) -> int:
    """Print an expected error as one sentence and return its exit code; anything else names itself."""
    from .data import AudioError
    from .training import CheckpointError, TrainingError

    message = " ".join(str(error).split())
    if isinstance(error, AudioError | CheckpointError | TrainingError):
        code = 1
    elif isinstance(error, ValueError):
        code = 2
    elif isinstance(error, OSError):
        code, message = 1, f"{error.filename or 'file system'}: {error.strerror or error}"
    else:
        code, message = 1, f"{type(error).__name__}: {message}; run again with --debug for the traceback"
    print(f"jaxdiff: error: {message}", file=sys.stderr)
    return code


def _split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--group.key value` and `--group.key=value` out of the arguments: dots mark configuration keys."""
    rest, overrides, i = [], {}, 0
    while i < len(argv):
        match = re.fullmatch(r"--([a-z_]+(?:\.[A-Za-z_-]+)+)(?:=(.*))?", argv[i], re.DOTALL)
        if match is None:
            rest.append(argv[i])
        elif match[2] is not None:
            overrides[match[1].replace("-", "_")] = match[2]
        elif i + 1 < len(argv):
            i += 1
            overrides[match[1].replace("-", "_")] = argv[i]
        else:
            print(f"jaxdiff: error: {argv[i]} needs a value", file=sys.stderr)
            raise SystemExit(2)
        i += 1
    return rest, overrides


def _print_train_help() -> None:
    _out.print(
        "configuration keys and defaults (network, representation, method, schedule and task have other kinds too):"
    )
    for key, value in flatten(Config()):
        _out.print(f"  --{key} {value}", markup=False)
    _out.print()


# train --------------------------------------------------------------------------------------------------------------

_MAY_CHANGE = re.compile(r"train\.(steps|log_every|sample_every|save_every)|sampling\..*|data\.memory_mb")


def _train(command: Train, overrides: dict[str, str]) -> int:
    config = load_config(command.config, overrides)
    workdir = command.workdir
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir {workdir}: is a file; give a folder")
    _check_workdir(workdir, config)

    from .config import crop_samples

    crop_samples(config)
    from . import runs  # jax starts here

    _out.print(to_yaml(config), markup=False)
    resume = f"jaxdiff train {shlex.join([str(command.config), '--workdir', str(workdir)])}" + "".join(
        f" --{key} {shlex.quote(value)}" for key, value in overrides.items()
    )
    stopped = runs.run(config, workdir, report=lambda text: _out.print(text, markup=False))
    if stopped is not None:
        _out.print(f"interrupted, everything is saved; to go on:\n  {resume}", markup=False)
        return 128 + stopped
    _out.print(f"done; to listen:\n  jaxdiff generate {shlex.quote(str(workdir))} --out out --count 16", markup=False)
    return 0


def _check_workdir(workdir: Path, config: Config) -> None:
    """Refuse a work directory that holds another configuration."""
    if not (workdir / "config.yaml").is_file():
        if workdir.is_dir() and any(workdir.iterdir()):
            raise ConfigError(f"--workdir {workdir}: holds other files and no run; give a new or empty folder")
        return
    there, here = dict(flatten(load_config(workdir / "config.yaml"))), dict(flatten(config))
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key) and not _MAY_CHANGE.fullmatch(key):
            raise ConfigError(
                f"--workdir {workdir}: holds a run with {key} = {there.get(key)}, this configuration says "
                f"{here.get(key)}; use another --workdir, or set it back to resume"
            )


# generate -----------------------------------------------------------------------------------------------------------


def _generate(command: Generate) -> int:
    if command.out.exists() and not command.out.is_dir():
        raise ConfigError(f"--out {command.out}: is a file; give a folder")
    if command.count < 1:
        raise ConfigError(f"--count {command.count}: make at least 1")
    from .pipeline import load

    pipeline = load(command.directory, ema=command.ema)
    for warning in pipeline.warnings:
        print(f"jaxdiff: warning: passed over {warning}", file=sys.stderr)
    labels = [pipeline.label_index(command.label, i) for i in range(command.count)]
    names = [f"{i:04d}" + (f"-{pipeline.classes[k]}" if k >= 0 else "") for i, k in enumerate(labels)]
    _refuse_to_overwrite(command, names)
    sources = pipeline.sources(command.source, command.count)
    waves = pipeline.generate(
        count=command.count,
        seconds=command.seconds,
        label=command.label,
        seed=command.seed,
        steps=command.steps,
        guidance=command.guidance,
        temperature=command.temperature,
        sampler=command.sampler,
        spacing=command.spacing,
        source=sources,
    )
    command.out.mkdir(parents=True, exist_ok=True)
    from .data.pictures import write_sounds

    write_sounds(command.out, waves, names, pipeline.sample_rate, _sidecars(command, pipeline, labels, sources))
    _out.print(f"{len(waves)} sounds of {waves.shape[1] / pipeline.sample_rate:g} s in {command.out}", markup=False)
    return 0


def _refuse_to_overwrite(command: Generate, names: list[str]) -> None:
    files = [command.out / f"{name}{end}" for name in names for end in (".wav", ".png", ".json")]
    there = [f for f in [*files, command.out / "sheet.png"] if f.exists()]
    if there and not command.overwrite:
        raise ConfigError(f"{there[0]}: exists; give another --out, or --overwrite to replace it")


def _sidecars(command: Generate, pipeline: "Pipeline", labels: list[int], sources: list[Path | None]) -> list[dict]:
    wanted = {name: getattr(command, name) for name in pipeline.sampling()._fields}
    sampling = pipeline.sampling(**wanted)._asdict()
    return [
        {
            "jaxdiff": __version__,
            "run": str(command.directory),
            "checkpoint": {"step": pipeline.step, "sha256": pipeline.fingerprint},
            "seed": command.seed,
            "item": i,
            "label": pipeline.classes[k] if k >= 0 else None,
            **sampling,
            "source": str(source) if source else None,
            "sample_rate": pipeline.sample_rate,
        }
        for i, (k, source) in enumerate(zip(labels, sources, strict=True))
    ]


# search-schedule ----------------------------------------------------------------------------------------------------


def _search_schedule(command: SearchSchedule) -> int:
    from . import grids
    from .pipeline import load

    pipeline = load(command.directory)
    options = dict(sampler=command.sampler, count=command.count, seed=command.seed, iterations=command.iterations)
    _out.print(f"searching: {command.iterations} steps of descent on {command.count} sounds, compilation first")
    grid = grids.search(pipeline, steps=command.steps, **options)
    path = grids.write_grid(command.directory, grid)
    _out.print(" ".join(f"{t:.4f}" for t in grid.times), markup=False)
    _out.print(
        f"mean squared error {grid.error:.3g}, before the search {grid.error_before:.3g}; kept in {path}; to use it:\n"
        f"  jaxdiff generate {shlex.quote(str(command.directory))} --out out --sampler {grid.sampler} "
        f"--steps {command.steps} --spacing searched",
        markup=False,
    )
    return 0


# features -----------------------------------------------------------------------------------------------------------


def _features(command: Features) -> int:
    from . import extraction

    if command.out.exists() and not command.out.is_dir():
        raise ConfigError(f"--out {command.out}: is a file; give a folder")
    if command.invert and command.kind not in extraction.INVERTIBLE:
        kinds = ", ".join(extraction.INVERTIBLE)
        raise ConfigError(f"--invert: {command.kind} cannot be turned back into sound; use --kind {kinds}")
    if not command.files:
        raise ConfigError("no FILES: give sound files or folders of them")
    files = extraction.sound_files(command.files)
    targets = [command.out / f.stem for f in files]
    twice = {t for t in targets if targets.count(t) > 1}
    if twice:
        raise ConfigError(f"{min(twice).name}: the name of several files; extract them to different folders")
    there = [p for t in targets for p in map(t.with_suffix, (".npz", ".png", ".wav")) if p.exists()]
    if there and not command.overwrite:
        raise ConfigError(f"{there[0]}: exists; give another --out, or --overwrite to replace it")
    names = ("kind", "sample_rate", "n_fft", "hop_length", "n_mels", "n_mfcc", "fmin", "fmax")
    settings = extraction.Settings(**{name: getattr(command, name) for name in names})
    command.out.mkdir(parents=True, exist_ok=True)
    for path, target in zip(files, targets, strict=True):
        shape = extraction.extract(path, target, settings, invert=command.invert)
        _out.print(f"{target.with_suffix('.npz')}  {command.kind} {shape}", markup=False)
    return 0


# info ---------------------------------------------------------------------------------------------------------------


def _info(command: Info) -> int:
    from .pipeline import load

    p = load(command.directory)
    for warning in p.warnings:
        print(f"jaxdiff: warning: passed over {warning}", file=sys.stderr)
    config = p.config
    rows = {
        "run": command.directory,
        "checkpoint": f"step {p.step} of {config.train.steps}, sha256 {p.fingerprint}",
        "task": config.task.kind,
        "network": config.network.kind,
        "representation": f"{config.representation.kind}, {p.model.features} features a frame, "
        f"{p.sample_rate / p.model.representation.hop_length:g} frames/s",
        "data": f"{config.data.path}, {p.sample_rate} Hz, crops of {config.data.seconds:g} s",
        "classes": ", ".join(p.classes) or "none",
        "method": config.method.kind,
        "sampling": ", ".join(f"{k} {v}" for k, v in p.sampling()._asdict().items() if v is not None) or "one pass",
    }
    for name, value in rows.items():
        _out.print(f"{name:15s} {value}", markup=False)
    _out.print(f"\n{p.summary()}\n\n{to_yaml(config)}", markup=False)
    return 0
