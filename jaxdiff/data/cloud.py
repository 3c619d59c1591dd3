"""Corpora of a cloud: their files are copied into the cache directory when they are opened, and read from there.

What was copied before and did not change is not copied again, what is gone there goes here; so a crop costs no request,
and seeking, indexes and shards are those of local files. The file systems are those of fsspec, each a package of its
own (gs:// is gcsfs, s3:// s3fs).
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from .files import EXTENSIONS, AudioError, atomic
from .index import cache_directory
from .manifests import EXTENSIONS as MANIFESTS
from .midi import EXTENSIONS as SCORES
from .shards import EXTENSION as SHARD

SCHEMES = ("gs", "s3", "az", "hf")
_WANTED = EXTENSIONS | MANIFESTS | SCORES | {SHARD}
_STAMPS = ("etag", "ETag", "md5Hash", "mtime", "updated", "LastModified", "last_modified", "created")
_LISTING = ".copied.json"
_THREADS = 16


def is_url(path: str) -> bool:
    """Whether a path names a place outside of this machine."""
    return "://" in path


def mirrored(url: str) -> Path:
    """The folder, or the manifest, of this machine that is the same as the one at `url`; raises AudioError."""
    scheme, _, place = url.rstrip("/").partition("://")
    parts = PurePosixPath(place).parts
    if scheme not in SCHEMES or not parts or ".." in parts:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise AudioError(f"{url}: expected a folder of this machine, or one that begins with {known}")
    if PurePosixPath(place).suffix.lower() in MANIFESTS:
        return mirrored(f"{scheme}://{PurePosixPath(place).parent}") / parts[-1]
    try:
        import fsspec

        system = fsspec.filesystem(scheme)
        top = system._strip_protocol(f"{scheme}://{place}")
        listed: dict[str, Any] = system.find(top, detail=True)
    except ImportError as error:
        raise AudioError(f"{url}: needs a package that is not installed ({error})") from None
    except Exception as error:  # of whatever cloud
        raise AudioError(f"{url}: cannot be listed ({type(error).__name__}: {error})") from None
    there = {}
    for path, about in listed.items():
        name = path.removeprefix(f"{top}/")
        inside = PurePosixPath(name)
        hidden = any(part.startswith(".") for part in inside.parts)  # no sounds, and .. leads elsewhere
        if inside.suffix.lower() in _WANTED and not hidden and not inside.is_absolute() and "\0" not in name:
            there[name] = [about["size"], str(next((about[key] for key in _STAMPS if about.get(key)), ""))]
    if not there:
        raise AudioError(f"{url}: holds no sound files")
    folder = cache_directory().joinpath("clouds", scheme, *parts)
    _copy(system, top, there, folder, url)
    return folder


def _copy(system: Any, top: str, there: dict[str, list], folder: Path, url: str) -> None:
    """Make `folder` hold the files `there`, each with its size and what tells its versions apart."""
    folder.mkdir(parents=True, exist_ok=True)
    here: dict[str, list] = {}
    with contextlib.suppress(OSError, ValueError):
        here = dict(json.loads((folder / _LISTING).read_bytes()))
    for name in here.keys() - there.keys():
        if ".." not in PurePosixPath(name).parts and not PurePosixPath(name).is_absolute():
            (folder / name).unlink(missing_ok=True)
    wanted = [name for name, about in there.items() if here.get(name) != about or not (folder / name).is_file()]
    needed, free = sum(there[name][0] for name in wanted), shutil.disk_usage(folder).free
    if needed > free:
        raise AudioError(f"{url}: {needed:,} bytes are to be copied and {folder} has {free:,}; set JAXDIFF_CACHE")

    def fetch(name: str) -> str:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as temporary:
            system.get_file(f"{top}/{name}", str(temporary))
            if temporary.stat().st_size != there[name][0]:
                raise AudioError(f"{url}/{name}: {there[name][0]} bytes promised, {temporary.stat().st_size} copied")
        return name

    done = {name: about for name, about in there.items() if name not in wanted}
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            for name in _shown(threads.map(fetch, wanted), len(wanted), f"copying {url}"):
                done[name] = there[name]
    except AudioError:
        raise
    except Exception as error:
        raise AudioError(f"{url}: cannot be copied ({type(error).__name__}: {error})") from None
    finally:
        if done != here:
            with atomic(folder / _LISTING) as temporary:
                temporary.write_text(json.dumps(done), encoding="utf-8")


def _shown(made: Iterable[str], count: int, what: str) -> Iterable[str]:
    if not count or not sys.stderr.isatty():
        return made
    from rich.console import Console
    from rich.progress import track

    return track(made, what, count, console=Console(stderr=True), transient=True)
