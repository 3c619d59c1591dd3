"""The command `jaxdiff`: what is wrong is said in one sentence before any work.

Exit codes: 0 done, 1 the data or a checkpoint cannot be used, 2 the command or configuration is wrong, 3 a device or
another process failed, 130 and 143 interrupted by Ctrl-C and SIGTERM with everything saved. Heavy imports happen inside
the commands, so `--help` is quick.
"""

import dataclasses
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import tyro

from jaxdiff import __version__, ranges

from .convert import Convert, Transcribe
from .doctor import Doctor
from .edit import Edit
from .enhance import Enhance
from .evaluate import Evaluate
from .features import Features
from .foley import Foley
from .inspect import Export, Info, SearchTimes
from .listen import Listen
from .models import Models
from .pack import Pack
from .repair import Repair
from .report import Report
from .restyle import Restyle
from .run import Generate, Vocode
from .train import Train, print_help
from .watch import Watch

Commands = (
    Train
    | Generate
    | Enhance
    | Vocode
    | Convert
    | Restyle
    | Repair
    | Edit
    | Transcribe
    | Features
    | Info
    | Doctor
    | Report
    | SearchTimes
    | Export
    | Models
    | Pack
    | Evaluate
    | Listen
    | Watch
    | Foley
)
_DESCRIPTION = "Audio diffusion: train a model on a folder of sound, make new sound with it."
_DATA_ERRORS = {"AudioError", "CardError", "CheckpointError", "TrainingError"}  # by name: most modules import slowly

_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory|YNNPACK operation failed|std::bad_alloc")


def main(argv: list[str] | None = None) -> None:
    """Run a command line and leave with its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--version"]:
        print(f"jaxdiff {__version__}")
        raise SystemExit(0)
    argv, overrides = _split_overrides(argv)
    if argv[:1] == ["train"] and {"-h", "--help"} & set(argv):
        print_help()
    command = tyro.cli(
        Commands,
        prog="jaxdiff",
        description=_DESCRIPTION,
        args=argv or ["--help"],
    )
    warnings.showwarning = lambda message, *_, **__: print(f"jaxdiff: warning: {message}", file=sys.stderr)
    try:
        command = dataclasses.replace(command, **_checked(command))
        if isinstance(command, Train):
            code = command.run(overrides)
        elif overrides:
            raise ValueError(f"--{next(iter(overrides))}: configuration keys can be given to train only")
        else:
            code = command.run()
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if command.debug:
            raise
        code = _explain(error)
    raise SystemExit(code)


def _checked(command: Any) -> dict[str, Any]:
    """The paths among the options of a command, with ~ and variables filled in unless that very name is there.

    Raises ValueError for a number out of its range.
    """

    def expand(path: Path) -> Path:
        return path if os.path.lexists(path) else Path(os.path.expandvars(path)).expanduser()

    ranges.check_fields(command, lambda name: f"--{name.replace('_', '-')}")
    paths = {}
    for name, value in vars(command).items():
        if isinstance(value, Path):
            paths[name] = expand(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Path):
            paths[name] = tuple(map(expand, value))
    return paths


def _explain(error: Exception) -> int:
    """Print an expected error as one sentence and return its exit code; anything else names itself."""
    message = " ".join(str(error).split())
    if _DATA_ERRORS & {c.__name__ for c in type(error).__mro__}:
        code = 1
    elif isinstance(error, ValueError):
        code = 2
    elif isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(message):
        code, message = 1, "out of memory; make less at once: a smaller train.batch, data.seconds or --seconds"
    elif isinstance(error, OSError):
        code, message = 1, f"{error.filename or 'file system'}: {error.strerror or error}"
    elif any(c.__name__ == "JaxRuntimeError" for c in type(error).__mro__):
        code, message = 3, f"a device or another process failed ({message}); run again to go on from what was saved"
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
