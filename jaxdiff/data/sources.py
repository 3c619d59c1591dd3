"""What sounds are read from, where it is no file of this machine."""

from pathlib import Path
from typing import Any, Protocol


class Source(Protocol):
    """A path, or what is opened and shown as one is: a record of a shard."""

    def is_file(self) -> bool: ...
    def open(self, mode: Any, /) -> Any: ...


def changed(source: Any) -> int:
    """When a file was changed last, in nanoseconds; 0 for what is no file of this machine."""
    return source.stat().st_mtime_ns if isinstance(source, Path) else 0
