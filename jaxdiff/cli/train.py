"""`jaxdiff train`: a configuration becomes a run, or a run goes on; in one process or several, watched over or not."""

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxdiff import ranges

_out = Console(highlight=False, soft_wrap=True)
_FINAL = {0, 1, 2, 130, 143}  # exit codes of a training that would end so again, or that was to end


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
    restarts: ranges.Index = 0
    """resume up to so many times after an accident: a process that was killed, a machine of several that was lost"""
    distributed: bool = False
    """train together with other processes, as the cluster's environment says (TPU pod, Slurm, Open MPI, Kubernetes)"""
    coordinator: str | None = None
    """the same without such an environment: ADDRESS:PORT on the machine of process 0, to which all connect"""
    processes: ranges.Count | None = None
    """how many processes there are"""
    process: ranges.Index | None = None
    """which of them this is, from 0"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self, overrides: dict[str, str]) -> int:
        workdir, path = self.workdir, self.config
        if workdir.exists() and not workdir.is_dir():
            raise ValueError(f"--workdir {workdir}: is a file; give a folder")
        if path is not None and not path.is_file():
            raise ValueError(f"{path}: cannot be read (no such file); give the path of a YAML file")
        own = (self.coordinator, self.processes, self.process)
        if any(own) and None in own:
            raise ValueError("--coordinator, --processes and --process belong together; give all three, or none")
        if self.restarts:
            return _supervised(self._command(overrides), self.restarts)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_programs()))
        from jaxdiff.config import crop, load_config, to_dict, to_yaml  # jax is imported from here on
        from jaxdiff.data.cloud import url_of
        from jaxdiff.training import remote

        if self.distributed or self.coordinator is not None:
            import jax

            try:
                jax.distributed.initialize(self.coordinator, self.processes, self.process)
            except ValueError as error:
                raise ValueError(
                    f"--distributed: no cluster in the environment ({str(error).rstrip('.')}); give --coordinator, "
                    f"--processes and --process"
                ) from None
            _out.quiet = jax.process_index() > 0
        if path is None:
            path = remote.fetched(workdir, ["config.yaml"], needed=False) / "config.yaml"
            if not path.is_file():
                raise ValueError(f"--workdir {workdir}: holds no run to resume; give a CONFIG.yaml to begin one")
        config = load_config(path, overrides)
        crop(config)
        from jaxdiff.run import run

        _out.print(to_yaml(config), markup=False)
        report = lambda text: _out.print(text, markup=False)  # noqa: E731
        stopped = run(config, workdir, accept_changes=self.accept_changes, report=report)
        folder, task = shlex.quote(url_of(workdir) or str(workdir)), to_dict(config.task)["kind"]
        if stopped is not None:
            _out.print(f"interrupted, everything is saved; to go on:\n  jaxdiff train --workdir {folder}", markup=False)
            return 128 + stopped
        use = f"FILES --model {folder} --out out" if config.task.needs_sound else f"{folder} --out out --count 16"
        command = {"instrument": "convert", "voice": "convert"}.get(task, task)
        use += " --to NAME" if command == "convert" else ""
        _out.print(f"done; to go on:\n  jaxdiff {command} {use}", markup=False)
        return 0

    def _command(self, overrides: dict[str, str]) -> list[str]:
        """The same command without `restarts`."""
        words = ["train", *([] if self.config is None else [str(self.config)]), "--workdir", str(self.workdir)]
        for name in ("accept_changes", "distributed", "debug"):
            words += [f"--{name.replace('_', '-')}"] if getattr(self, name) else []
        for name in ("coordinator", "processes", "process"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name}", str(value)]
        return words + [f"--{key}={value}" for key, value in overrides.items()]


def _supervised(words: list[str], restarts: int) -> int:
    """Run a command in a process of its own, again after each accident, which it resumes from; its last exit code.

    SIGTERM is passed on; a terminal sends Ctrl-C to both.
    """
    child: subprocess.Popen | None = None
    asked: list[int] = []

    def pass_on(number: int, _frame) -> None:
        asked.append(number)
        if child is not None and number == signal.SIGTERM:
            child.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for restart in range(restarts + 1):
            child = subprocess.Popen([sys.executable, "-m", "jaxdiff", *words])
            code = child.wait()
            if code in _FINAL or restart == restarts or asked:
                break
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            print(f"jaxdiff: warning: training {how}; restart {restart + 1} of {restarts}", file=sys.stderr, flush=True)
        return 128 - code if code < 0 else code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _programs() -> Path:
    """Where compiled programs are kept for the next start: a folder of the user's own, for they are executed."""
    cache = (
        os.environ.get("JAXDIFF_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxdiff"
    )
    return Path(cache) / "programs"


def print_help() -> None:
    """The keys of a configuration and their defaults."""
    from jaxdiff.config import Config, flatten

    _out.print("configuration keys and defaults (what has a kind has other kinds too, with keys of their own):")
    for key, value in flatten(Config()):
        _out.print(f"  --{key} {value}", markup=False)
    _out.print()
