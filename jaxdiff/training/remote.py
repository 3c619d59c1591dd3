"""Runs of a cloud: a training works in a folder of this machine, its mirror, which is copied up while it goes on.

An object store adds nothing to a file, renames no folder and locks nothing. So nothing is written there piece by piece:
all goes on in the mirror as in any folder, and every `COPY` seconds, and at the end, the first process copies up what
has changed since. A checkpoint's manifest goes last, so a step that was not copied whole does not count, and what is
copied down again is held against the same sums. Whatever fails costs a warning and is tried again; only the last copy
has to succeed, and if it does not, the mirror still has all.

The file systems are those of fsspec, each a package of its own (gs:// is gcsfs, s3:// s3fs).
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from jaxdiff.data.cloud import THREADS, copy, fetch, listed, place, url_of
from jaxdiff.data.files import AudioError, atomic
from jaxdiff.data.index import cache_directory

from .checkpoints import MANIFEST, CheckpointError

COPY = 60.0  # seconds between copies
BEAT = 15.0  # seconds between signs of life
DEAD = 60.0  # seconds without one after which a training is over
LOCK = ".lock.json"
_MEMORY = ".remote.json"
_STEPS = ("checkpoints", "snapshots")
RUN = ("config.yaml", "log.jsonl", "history.jsonl", "rejected.txt", "best.json", "samples", "tensorboard", "grids")
WHOLE = (*RUN, *_STEPS)


def mirror(url: str) -> Path:
    """The folder of this machine in which the run at `url` is trained."""
    return _own(url) / "training"


def _own(url: str) -> Path:
    url = url.rstrip("/")
    digest = hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()[:16]
    return cache_directory() / "runs" / f"{url.rpartition('/')[2][:64]}-{digest}"


def fetched(path: Path, wanted: Iterable[str], needed: bool = True) -> Path:
    """A folder of this machine with those files and folders of a run that are `wanted`; `path` itself if it is one.

    What was copied before and did not change is not copied again. Raises CheckpointError where nothing of it is there
    and it is `needed`, and where it cannot be copied.
    """
    url = url_of(path)
    if url is None:
        return path
    wanted = tuple(wanted)
    folder = _own(url) / hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:16]  # copies of other things are others
    try:
        where = place(url)
        there = listed(where)
        files = _sealed(name for name in there if _root(name) in wanted)
        if needed and not files:
            raise CheckpointError(f"{url}: holds no {wanted[0]} of a run; give the work directory of jaxdiff train")
        copy(where, {name: there[name] for name in files}, folder)
    except AudioError as error:
        raise CheckpointError(str(error)) from None
    return folder


@contextlib.contextmanager
def held(url: str, folder: Path) -> Iterator[None]:
    """Make `folder` the mirror of the run at `url` and keep the run up to date with it, until the context ends.

    A file there says which training holds the run, and gives signs of life. One that has given none for `DEAD` seconds
    is over; so is one that held it in this very mirror, since the caller has locked that. This is no true lock, which
    object stores have not in common: two that begin within the same moment may both go on at first, and so may one that
    was cut off for longer than `DEAD`. Who finds that the file is another's copies no more, and ends with an error.
    What the mirror has and the run has not is kept where nobody else has trained since, and is lost otherwise.

    Raises BlockingIOError while another training holds the run, and CheckpointError where it cannot be read or written,
    or holds other things.
    """
    try:
        run = _Run(url, folder)
        run.take()
    except AudioError as error:
        raise CheckpointError(str(error)) from None
    over, left = threading.Event(), threading.Event()
    copies = threading.Thread(target=_repeat, args=(COPY, run.copy, over), daemon=True)
    beats = threading.Thread(target=_repeat, args=(BEAT, run.beat, left), daemon=True)
    try:
        copies.start()
        beats.start()
        try:
            yield
        finally:
            over.set()
            copies.join()
    except BaseException:
        run.copy()
        raise
    else:
        run.copy(last=True)
    finally:
        left.set()
        beats.join()
        run.leave()


def _repeat(seconds: float, call: Callable[[], None], over: threading.Event) -> None:
    while not over.wait(seconds):
        call()


class _Run:
    """A run at `url` that is trained in `folder`, and what each file was when it was copied: size and time.

    `copied` names every file that is there, so that those which are gone here go there too.
    """

    def __init__(self, url: str, folder: Path):
        self.folder, self.place, self.id = folder, place(url), uuid.uuid4().hex
        self.copied: dict[str, list[int] | None] = {}
        self._beats, self._lost = 0, False

    def take(self) -> None:
        """Hold the run once nobody does, and make the mirror the same, but for what it has that is newer."""
        memory: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            memory = json.loads((self.folder / _MEMORY).read_bytes())
        there = listed(self.place)
        if there and not {_root(name) for name in there} & {*WHOLE}:
            raise CheckpointError(f"{self.place.url}: holds other files and no run; give a new or empty folder")
        ours = self._free(memory.get("id")) == memory.get("id", "")
        try:
            self._write(free=False)
        except Exception as error:  # of whatever cloud
            raise CheckpointError(f"{self.place.url}: cannot be written to ({_reason(error)})") from None
        try:
            if ours:
                self.copied = memory.get("copied", {})
                self._remember()
            else:
                _clear(self.folder)
            there = {name: about for name, about in listed(self.place).items() if _root(name) in WHOLE}
            missing = {name: there[name] for name in _sealed(there) if not (self.folder / name).is_file()}
            was, self.copied = self.copied, {}
            for name in fetch(self.place, missing, self.folder):
                self.copied[name] = _stamp(self.folder / name)
            self.copied |= {name: was.get(name) for name in there if name not in missing}
            self._remember()
            if ours:
                self.copy()
        except BaseException:
            self.leave()
            raise

    def _free(self, ours: str | None) -> str | None:
        """Who held the run last, once nobody does; raises BlockingIOError where one gives signs of life."""
        holder, until = self._holder(), time.monotonic() + DEAD
        waits = lambda: holder and not holder.get("free") and holder.get("id") != ours  # noqa: E731
        if waits():
            what = f"{self.place.url}: a training on {holder.get('host')} holds it; waiting {DEAD:.0f} s for it to live"
            warnings.warn(what, stacklevel=2)
        while waits() and time.monotonic() < until:
            time.sleep(DEAD / 60)
            before, holder = holder, self._holder()
            if waits() and holder != before:
                raise BlockingIOError(f"{self.place.url}: a training on {holder.get('host')} holds it")
        return holder.get("id")

    def _holder(self) -> dict[str, Any]:
        """The content of the file that tells who holds the run; nothing where there is none."""
        self.place.system.invalidate_cache()
        try:
            found = json.loads(self.place.system.cat_file(f"{self.place.top}/{LOCK}"))
        except (FileNotFoundError, ValueError):
            return {}
        except Exception as error:  # of whatever cloud
            raise CheckpointError(f"{self.place.url}: cannot be read ({_reason(error)})") from None
        return found if isinstance(found, dict) else {}

    def _write(self, free: bool) -> None:
        self._beats += 1
        about = {"id": self.id, "host": socket.gethostname(), "beat": self._beats, "free": free}
        self.place.system.pipe_file(f"{self.place.top}/{LOCK}", json.dumps(about).encode())

    def _check(self) -> None:
        """Raise CheckpointError where the run is another training's by now."""
        self._lost = self._lost or self._holder().get("id") != self.id
        if self._lost:
            raise CheckpointError(f"{self.place.url}: another training holds it by now, so nothing is copied there")

    def beat(self) -> None:
        """Give a sign of life."""
        with contextlib.suppress(Exception):  # which the next copy tells of
            self._check()
            self._write(free=False)

    def leave(self) -> None:
        """Hold the run no longer; where nothing of it is there, its file goes too."""
        with contextlib.suppress(Exception):  # then it is over after `DEAD` seconds
            self._check()
            if self.copied:
                self._write(free=True)
            else:
                self.place.system.rm_file(f"{self.place.top}/{LOCK}")

    def copy(self, last: bool = False) -> None:
        """Copy up what has changed and remove what is gone; a failure is warned of, if it is not the `last` try."""
        try:
            self._check()
            self._copy()
        except Exception as error:  # whatever it is, training does not need this copy
            what = f"{self.place.url}: cannot be copied to ({_reason(error)})"
            if last:
                raise CheckpointError(
                    f"{what}; all is in {self.folder}, run again on this machine to copy it"
                ) from None
            warnings.warn(f"{what}; training goes on in {self.folder}, it is tried again", stacklevel=2)

    def _copy(self) -> None:
        here = {name: stamp for name in _files(self.folder) if (stamp := _stamp(self.folder / name))}
        changed = [name for name, stamp in here.items() if self.copied.get(name) != stamp]
        seals = [name for name in changed if _is_seal(name)]
        gone = self.copied.keys() - here.keys()
        try:
            with ThreadPoolExecutor(THREADS) as threads:
                send = lambda names: list(threads.map(lambda name: self._send(name, here[name]), names))  # noqa: E731
                send(name for name in changed if not _is_seal(name))
                send(seal for seal in seals if self._whole(seal, here))
                for group in (filter(_is_seal, gone), gone):
                    list(threads.map(self._remove, list(group)))
        finally:
            if changed or gone:
                self._remember()

    def _whole(self, seal: str, here: dict[str, list[int]]) -> bool:
        """Whether all other files of a step were copied, and none of them vanished meanwhile."""
        step = seal.removesuffix(MANIFEST)
        return all(self.copied.get(name) == here[name] for name in here if name.startswith(step) and name != seal)

    def _send(self, name: str, stamp: list[int]) -> None:
        self.copied[name] = None  # of which something may be there from now on
        try:
            self.place.system.put_file(str(self.folder / name), f"{self.place.top}/{name}")
            self.copied[name] = stamp
        except FileNotFoundError:
            if (self.folder / name).exists():  # so it did not vanish here
                raise

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.place.system.rm_file(f"{self.place.top}/{name}")
        self.copied.pop(name, None)

    def _remember(self) -> None:
        with atomic(self.folder / _MEMORY) as temporary:
            temporary.write_text(json.dumps({"id": self.id, "copied": self.copied}), encoding="utf-8")


def _root(name: str) -> str:
    return name.partition("/")[0]


def _is_seal(name: str) -> bool:
    return _root(name) in _STEPS and name.endswith(f"/{MANIFEST}") and name.count("/") == 2


def _sealed(names: Iterable[str]) -> list[str]:
    """The names without those of steps that were not copied up whole."""
    names = list(names)
    seals = {name.rpartition("/")[0] for name in names if _is_seal(name)}
    return [n for n in names if _root(n) not in _STEPS or "/".join(PurePosixPath(n).parts[:2]) in seals]


def _files(folder: Path) -> list[str]:
    """The names of the files of a run that are no drafts."""
    places = [folder / root for root in WHOLE]
    places += [Path(at) / name for root in WHOLE for at, _, inside in os.walk(folder / root) for name in inside]
    names = (p.relative_to(folder).as_posix() for p in places if p.is_file() and not p.is_symlink())
    return sorted(name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts))


def _stamp(file: Path) -> list[int] | None:
    """The size and time of a file, which tell its versions apart; None where there is none."""
    try:
        about = file.stat()
    except OSError:
        return None
    return [about.st_size, about.st_mtime_ns]


def _clear(folder: Path) -> None:
    """Empty a mirror, of which the caller holds the lock."""
    (folder / _MEMORY).unlink(missing_ok=True)
    for root in WHOLE:
        if (folder / root).is_dir():
            shutil.rmtree(folder / root)
        (folder / root).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
