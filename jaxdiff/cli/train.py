"""`jaxdiff train`: a configuration becomes a run, or a run goes on."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

if TYPE_CHECKING:
    from jaxdiff.config import Config

_out = Console(highlight=False, soft_wrap=True)

_MAY_CHANGE = re.compile(r"train\.(steps|log_every|sample_every|save_every)|sampling\..*|data\.memory_mb")


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

    def run(self, overrides: dict[str, str]) -> int:
        if not self.config.is_file():
            raise ValueError(f"{self.config}: cannot be read (no such file); give the path of a YAML file")
        workdir = self.workdir
        if workdir.exists() and not workdir.is_dir():
            raise ValueError(f"--workdir {workdir}: is a file; give a folder")
        from jaxdiff.config import crop, load_config, to_dict, to_yaml  # jax is imported from here on

        config = load_config(self.config, overrides)
        _check_workdir(workdir, config)
        crop(config)
        from jaxdiff.run import run

        _out.print(to_yaml(config), markup=False)
        resume = f"jaxdiff train {shlex.join([str(self.config), '--workdir', str(workdir)])}" + "".join(
            f" --{key} {shlex.quote(value)}" for key, value in overrides.items()
        )
        stopped = run(config, workdir, report=lambda text: _out.print(text, markup=False))
        if stopped is not None:
            _out.print(f"interrupted, everything is saved; to go on:\n  {resume}", markup=False)
            return 128 + stopped
        folder, task = shlex.quote(str(workdir)), to_dict(config.task)["kind"]  # which is also the name of its command
        use = f"FILES --model {folder} --out out" if config.task.needs_sound else f"{folder} --out out --count 16"
        _out.print(f"done; to listen:\n  jaxdiff {task} {use}", markup=False)
        return 0


def print_help() -> None:
    """The keys of a configuration and their defaults."""
    from jaxdiff.config import Config, flatten

    _out.print("configuration keys and defaults (what has a kind has other kinds too, with keys of their own):")
    for key, value in flatten(Config()):
        _out.print(f"  --{key} {value}", markup=False)
    _out.print()


def _check_workdir(workdir: Path, config: "Config") -> None:
    """Refuse a work directory that holds another configuration."""
    from jaxdiff.config import ConfigError, flatten, load_config

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
