"""Commands that work on many files: which they are, where their results go, and a bad one does not stop the rest."""

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.progress import Progress


def jobs(
    sources: Sequence[Path], out: Path, ends: Sequence[str], overwrite: bool, also: tuple[str, ...] = ()
) -> list[tuple[Path, Path]]:
    """Each sound file of `sources`, files and folders, with the path of its results in `out` without `ends`.

    Files that end with one of `also` are taken too, unseen. The sub-folders of a folder are kept. Raises ValueError
    where two files would have one result, or one exists already and is not to be replaced, and AudioError where no file
    can be used.
    """
    from jaxdiff.data import AudioError
    from jaxdiff.data.files import EXTENSIONS, audio_info, safe_name, scan

    if not sources:
        raise ValueError("no FILES: give sound files or folders of them")
    refuse_file(out)
    targets: dict[Path, Path] = {}
    bad: list[AudioError] = []
    for source in sources:
        found, unused = scan(source, EXTENSIONS | {*also}) if source.is_dir() else ([source], [])
        for line in unused:
            warnings.warn(f"left out: {line}", stacklevel=2)
        for file in found:
            try:
                if file.suffix.lower() not in also or not file.is_file():
                    audio_info(file)
            except AudioError as error:
                bad.append(error)
            inside = file.parent.relative_to(source).parts if source.is_dir() else ()
            target = out.joinpath(*map(safe_name, inside), safe_name(file.stem))
            if target in targets:
                raise ValueError(f"{targets[target]} and {file} would have the same results; give them different --out")
            targets[target] = file
    if len(bad) == len(targets):
        raise bad[0] if bad else AudioError(f"{', '.join(map(str, sources))}: no sound files are in there")
    results = [beside(target, end) for target in targets for end in ends]
    if len(set(results)) < len(results):
        twice = next(path for path in results if results.count(path) > 1)
        raise ValueError(f"{twice}: would be the result of two files; give them different --out")
    refuse_existing(results, overwrite)
    return [(file, target) for target, file in targets.items()]


def beside(target: Path, end: str) -> Path:
    """The result of a target, whose name may hold dots."""
    return target.with_name(target.name + end)


def refuse_file(out: Path) -> None:
    """Raise ValueError where the folder for results is a file."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; give a folder")


def refuse_existing(results: Iterable[Path], overwrite: bool) -> None:
    """Raise ValueError where a result exists and is not to be replaced."""
    there = next((path for path in results if path.exists()), None)
    if there is not None and not overwrite:
        raise ValueError(f"{there}: exists; give another --out, or --overwrite to replace it")


def work(todo: Sequence[tuple[Path, Path]], do: Callable[[Path, Path], str]) -> int:
    """`do(file, target)` for each, which says what it did; a file that cannot be used is reported and passed over.

    The exit code: 1 where there was such a file.
    """
    return long_work(todo, lambda file, target, _: do(file, target))


def long_work(todo: Sequence[tuple[Path, Path]], do: Callable[[Path, Path, Callable[[float], None]], str]) -> int:
    """This is `work` for what takes long on one file: `do(file, target, tell)` tells which share of it is done."""
    from jaxdiff.data import AudioError

    bad = 0
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("files", total=len(todo))
        for i, (file, target) in enumerate(todo):
            try:
                said = do(file, target, lambda share, i=i: progress.update(task, completed=i + min(share, 1.0)))
                progress.console.print(said, markup=False, highlight=False, soft_wrap=True)
            except AudioError as error:
                bad += 1
                print(f"jaxdiff: error: {error}", file=sys.stderr)
            progress.update(task, completed=i + 1)
    if bad and len(todo) > 1:
        print(f"jaxdiff: error: {bad} of {len(todo)} files could not be used, the others are done", file=sys.stderr)
    return 1 if bad else 0
