"""`jaxdiff train`: a configuration becomes a run, or a run goes on."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

_out = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model from CONFIG.yaml, or resume the run in the work directory.

    Any key of the configuration can be overridden: --data.path FOLDER --train.steps 500 --network.kind transformer.
    """

    config: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="CONFIG.yaml")] = None
    """YAML with what differs from the defaults (that of the run in the work directory, which is resumed)"""
    workdir: Path
    """folder of the run: checkpoints, log, samples; made when absent"""
    accept_changes: bool = False
    """resume although the learning rate, the batch, the warm-up or the sounds are others than before"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self, overrides: dict[str, str]) -> int:
        workdir, path = self.workdir, self.config
        if workdir.exists() and not workdir.is_dir():
            raise ValueError(f"--workdir {workdir}: is a file; give a folder")
        if path is None:
            path = workdir / "config.yaml"
            if not path.is_file():
                raise ValueError(f"--workdir {workdir}: holds no run to resume; give a CONFIG.yaml to begin one")
        if not path.is_file():
            raise ValueError(f"{path}: cannot be read (no such file); give the path of a YAML file")
        from jaxdiff.config import crop, load_config, to_dict, to_yaml  # jax is imported from here on

        config = load_config(path, overrides)
        crop(config)
        from jaxdiff.run import run

        _out.print(to_yaml(config), markup=False)
        report = lambda text: _out.print(text, markup=False)  # noqa: E731
        stopped = run(config, workdir, accept_changes=self.accept_changes, report=report)
        folder, task = shlex.quote(str(workdir)), to_dict(config.task)["kind"]
        if stopped is not None:
            _out.print(f"interrupted, everything is saved; to go on:\n  jaxdiff train --workdir {folder}", markup=False)
            return 128 + stopped
        use = f"FILES --model {folder} --out out" if config.task.needs_sound else f"{folder} --out out --count 16"
        command = {"instrument": "convert", "voice": "convert"}.get(task, task)
        use += " --to NAME" if command == "convert" else ""
        _out.print(f"done; to go on:\n  jaxdiff {command} {use}", markup=False)
        return 0


def print_help() -> None:
    """The keys of a configuration and their defaults."""
    from jaxdiff.config import Config, flatten

    _out.print("configuration keys and defaults (what has a kind has other kinds too, with keys of their own):")
    for key, value in flatten(Config()):
        _out.print(f"  --{key} {value}", markup=False)
    _out.print()
