"""Corpora of a cloud, and how files of a cloud are listed and copied.

A corpus's files are copied into the cache directory when it is opened, and read from there.

What was copied before and did not change is not copied again, what is gone there goes here; so a crop costs no request,
and seeking, indexes and shards are those of local files. The file systems are those of fsspec, each a package of its
own (gs:// is gcsfs, s3:// s3fs).
"""

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .files import EXTENSIONS, AudioError, atomic
from .index import cache_directory
from .manifests import EXTENSIONS as MANIFESTS
from .midi import EXTENSIONS as SCORES
from .shards import EXTENSION as SHARD

SCHEMES = ("gs", "s3", "az", "hf")
_WANTED = EXTENSIONS | MANIFESTS | SCORES | {SHARD}
_STAMPS = ("etag", "ETag", "md5Hash", "mtime", "updated", "LastModified", "last_modified", "created")
_LISTING = ".copied.json"
THREADS = 16
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")  # a letter alone is a drive of Windows


class Place(NamedTuple):
    """A folder, or a file, of a cloud: its file system, and what `top` is there."""

    url: str
    system: Any
    top: str
    parts: tuple[str, ...]


def is_url(path: str) -> bool:
    """Whether a path names a place outside of this machine."""
    return "://" in path


def url_of(path: str | Path) -> str | None:
    """The URL that a path is, with the slashes that pathlib takes away; None for a path of this machine."""
    found = _URL.fullmatch(str(path))
    return None if found is None or Path(path).exists() else f"{found[1]}://{found[2]}"


def place(url: str) -> Place:
    """Where a URL leads; raises AudioError."""
    scheme, _, rest = url.rstrip("/").partition("://")
    parts = PurePosixPath(rest).parts
    if scheme not in SCHEMES or not parts or ".." in parts:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise AudioError(f"{url}: expected a folder of this machine, or one that begins with {known}")
    try:
        import fsspec

        system = fsspec.filesystem(scheme)
    except ImportError as error:
        raise AudioError(f"{url}: needs a package that is not installed ({error})") from None
    except Exception as error:  # of whatever cloud
        raise AudioError(f"{url}: cannot be listed ({type(error).__name__}: {error})") from None
    return Place(url, system, system._strip_protocol(f"{scheme}://{rest}"), parts)


def listed(where: Place) -> dict[str, list]:
    """The size of each file in a folder of a cloud by its name, and what tells its versions apart; raises AudioError.

    Hidden ones, and what leads elsewhere, are not among them.
    """
    try:
        where.system.invalidate_cache()
        found: dict[str, Any] = where.system.find(where.top, detail=True)
    except Exception as error:  # of whatever cloud
        raise AudioError(f"{where.url}: cannot be listed ({type(error).__name__}: {error})") from None
    there = {}
    for path, about in found.items():
        name = path.removeprefix(f"{where.top}/")
        inside = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in inside.parts)  # as .. is
        if not hidden and not inside.is_absolute() and "\0" not in name:
            there[name] = [about["size"], str(next((about[key] for key in _STAMPS if about.get(key)), ""))]
    return there


def mirrored(url: str) -> Path:
    """The folder, or the manifest, of this machine that is the same as the one at `url`; raises AudioError."""
    where = place(url)
    if PurePosixPath(where.parts[-1]).suffix.lower() in MANIFESTS:
        return mirrored(url.rstrip("/").rpartition("/")[0]) / where.parts[-1]
    there = {name: about for name, about in listed(where).items() if PurePosixPath(name).suffix.lower() in _WANTED}
    if not there:
        raise AudioError(f"{url}: holds no sound files")
    folder = cache_directory().joinpath("clouds", url.partition("://")[0], *where.parts)
    copy(where, there, folder)
    return folder


def copy(where: Place, there: Mapping[str, list], folder: Path) -> None:
    """Make `folder` hold those files of a cloud, and of what was copied into it before no others; raises AudioError."""
    folder.mkdir(parents=True, exist_ok=True)
    here: dict[str, list] = {}
    with contextlib.suppress(OSError, ValueError):
        here = dict(json.loads((folder / _LISTING).read_bytes()))
    for name in here.keys() - there.keys():
        if ".." not in PurePosixPath(name).parts and not PurePosixPath(name).is_absolute():
            (folder / name).unlink(missing_ok=True)
    wanted = {name: of for name, of in there.items() if here.get(name) != of or not (folder / name).is_file()}
    done = {name: of for name, of in there.items() if name not in wanted}
    try:
        for name in fetch(where, wanted, folder):
            done[name] = there[name]
    finally:
        if done != here:
            with atomic(folder / _LISTING) as temporary:
                temporary.write_text(json.dumps(done), encoding="utf-8")


def fetch(where: Place, wanted: Mapping[str, list], folder: Path) -> Iterator[str]:
    """Copy files of a cloud into a folder, and yield the name of each when it is there; raises AudioError."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(size for size, _ in wanted.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise AudioError(f"{where.url}: {needed:,} bytes are to be copied and {folder} has {free:,}; set JAXDIFF_CACHE")

    def get(name: str) -> str:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as temporary:
            where.system.get_file(f"{where.top}/{name}", str(temporary))
            got = temporary.stat().st_size
            if got != wanted[name][0]:
                raise AudioError(f"{where.url}/{name}: {wanted[name][0]} bytes promised, {got} copied")
        return name

    try:
        with ThreadPoolExecutor(THREADS) as threads:
            yield from _shown(threads.map(get, wanted), len(wanted), f"copying {where.url}")
    except AudioError:
        raise
    except Exception as error:
        raise AudioError(f"{where.url}: cannot be copied ({type(error).__name__}: {error})") from None


def _shown(made: Iterable[str], count: int, what: str) -> Iterable[str]:
    if not count or not sys.stderr.isatty():
        return made
    from rich.console import Console
    from rich.progress import track

    return track(made, what, count, console=Console(stderr=True), transient=True)
