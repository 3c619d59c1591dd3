"""When a run began, went on and ended, with which versions and on what: JSON lines that only ever grow.

A start has "time" (seconds since 1970), "step", and what was told of it; an end "time", "step" where it is known, and
"how". A start without an end is a training that goes on, or was killed.
"""

import contextlib
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import jaxdiff


def start(step: int, **facts: Any) -> dict[str, Any]:
    """What is noted of a training that begins at a step: the versions, the devices, and `facts`."""
    devices = jax.devices()
    return {
        "event": "start",
        "step": step,
        "devices": f"{len(devices)} x {devices[0].platform}",
        "device": devices[0].device_kind,
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
        "jaxdiff": jaxdiff.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        **facts,
    }


@contextlib.contextmanager
def recorded(path: Path | None, begin: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Note a start and, whatever comes, an end, to which the dict that it gives is added; no path, no note."""
    end: dict[str, Any] = {}
    _append(path, begin)
    try:
        yield end
    except BaseException as error:
        end["how"] = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        raise
    finally:
        _append(path, {"event": "end", **end})


def _append(path: Path | None, row: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        with path.open("a+b", buffering=0) as file:
            torn = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" * torn + json.dumps({"time": round(time.time(), 3), **row}).encode() + b"\n")
    except OSError as error:  # whatever the disk says, training does not need it
        warnings.warn(f"{path}: cannot be written ({error.strerror}); training goes on", stacklevel=3)
