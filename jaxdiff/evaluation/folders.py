"""Which sounds are compared with which: folders of the same names, matched by headers and read at one rate as mono.

The name of a file is its path in its folder without the ending, so `takes/a.flac` of one system belongs to
`takes/a.wav` of the reference. Names are equal where their letters are, however a system composes accents. Whatever has
no partner, no clear one, or cannot be read is a `Problem`, and the other files are compared.
"""

import os
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdiff.data.files import AudioError, AudioInfo, audio_info, printable, read_audio, scan

REFERENCE = "reference"  # stands for the reference where a system is named


class Pair(NamedTuple):
    """A sound of a system and its reference, if there is one, and the rate in Hz at which both are read.

    `transcript` is a text file with the words that are said.
    """

    name: str
    system: str
    estimate: Path
    info: AudioInfo
    reference: Path | None
    reference_info: AudioInfo | None
    rate: int
    transcript: Path | None = None

    @property
    def samples(self) -> int:
        """How many samples the longer of both has at their rate, by the headers."""
        infos = [info for info in (self.info, self.reference_info) if info is not None]
        return max(-(-info.samples * self.rate // info.sample_rate) for info in infos)


class Problem(NamedTuple):
    """A file that is not compared, or not by all measures: its name, its system, and why."""

    name: str
    system: str
    reason: str

    def __str__(self) -> str:
        return f"{self.system}: {self.name}: {self.reason}"


class Files(NamedTuple):
    """The sound files of each system, and of the reference if there is one, by name."""

    of: dict[str, dict[str, Path]]
    problems: list[Problem]


class Matched(NamedTuple):
    """The pairs, sorted by name and in the order of the systems, and what is left out."""

    pairs: list[Pair]
    problems: list[Problem]


def find(reference: Path | None, systems: Mapping[str, Path]) -> Files:
    """The sound files of systems and of a reference, which are folders, or single files all of them.

    Single files belong together whatever their names are. Of several files with one name none is taken, and what looks
    like sound and is not read is warned of. Raises ValueError for what is not there, and for folders beside files,
    AudioError for a folder without sound files.
    """
    places = {**({} if reference is None else {REFERENCE: reference}), **systems}
    for place in places.values():
        if not place.exists():
            raise ValueError(f"{place}: no such file or folder")
    if all(place.is_file() for place in places.values()):
        name = _name(Path(next(iter(places.values())).name))
        return Files({system: {name: place} for system, place in places.items()}, [])
    files, problems = {}, []
    for system, place in places.items():
        if place.is_file():
            raise ValueError(f"{place}: is a file beside folders; give a folder, or one file of each")
        found, unused = scan(place)
        for line in unused:
            warnings.warn(f"left out: {line}", stacklevel=2)
        if not found:
            raise AudioError(f"{place}: holds no sound files")
        named: dict[str, list[Path]] = {}
        for path in found:
            named.setdefault(_name(path.relative_to(place)), []).append(path)
        files[system] = {name: paths[0] for name, paths in named.items() if len(paths) == 1}
        for name, paths in named.items():
            if len(paths) > 1:
                several = " and ".join(printable(path.name) for path in paths)
                problems.append(Problem(name, system, f"{several} have one name; keep one of them"))
    return Files(files, problems)


def _name(path: Path) -> str:
    """A path without its ending, as it is shown and compared."""
    return unicodedata.normalize("NFC", printable(path.with_suffix("").as_posix()))


def match(files: Files, rate: int | None = None, transcripts: Path | None = None) -> Matched:
    """The pairs of files of one name, by their headers, and what has no partner or cannot be read.

    Both sounds of a pair are read at the rate of the reference, a sound without reference at its own, unless `rate`
    (Hz) is given. `transcripts` is a folder with a text file NAME.txt for each. Raises ValueError where that folder is
    not there and AudioError for a system of which nothing can be compared.
    """
    if transcripts is not None and not transcripts.is_dir():
        raise ValueError(f"{transcripts}: is no folder; give that of the transcripts")
    problems = list(files.problems)
    infos = {system: _infos(named, system, problems) for system, named in files.of.items()}
    systems = [system for system in files.of if system != REFERENCE]
    refused = {(problem.system, problem.name) for problem in problems}
    with_reference = REFERENCE in files.of
    if with_reference:
        wanted = sorted(infos[REFERENCE])
        for system in systems:
            alone = set(files.of[system]) - set(files.of[REFERENCE])
            alone -= {problem.name for problem in problems if problem.system == REFERENCE}
            problems += [Problem(name, system, "has no reference") for name in sorted(alone)]
    else:
        wanted = sorted({name for system in systems for name in files.of[system]})
    pairs = []
    for name in wanted:
        theirs, reference = (infos[REFERENCE][name], files.of[REFERENCE][name]) if with_reference else (None, None)
        for system in systems:
            info = infos[system].get(name)
            if info is not None:
                path, at = files.of[system][name], rate or (info if theirs is None else theirs).sample_rate
                text = None if transcripts is None else transcripts / f"{name}.txt"
                pairs.append(Pair(name, system, path, info, reference, theirs, at, text))
            elif (system, name) not in refused:
                problems.append(Problem(name, system, "is missing"))
    for system in systems:
        if not any(pair.system == system for pair in pairs):
            raise _nothing(system, files, problems)
    return Matched(pairs, problems)


def _infos(files: Mapping[str, Path], system: str, problems: list[Problem]) -> dict[str, AudioInfo]:
    """The headers of the files that can be read; the others are added to the problems."""
    infos = {}
    for name, path in files.items():
        try:
            infos[name] = audio_info(path)
        except AudioError as error:
            problems.append(Problem(name, system, reason_of(error, path)))
    return infos


def reason_of(error: AudioError, path: Path) -> str:
    """The message of an error without the path that it begins with."""
    return str(error).removeprefix(f"{printable(str(path))}: ")


def _nothing(system: str, files: Files, problems: list[Problem]) -> AudioError:
    """The error where no file of a system can be compared, with the likeliest reason."""
    own, theirs = files.of[system], files.of.get(REFERENCE, files.of[system])
    if own and theirs and not set(own) & set(theirs):
        return AudioError(
            f"{system}: none of its files has the name of a reference ({min(own)} is here, {min(theirs)} there); give "
            "files that belong together one name, or ask for distances of sets, such as frechet_log_mel"
        )
    first = next((str(problem) for problem in problems if problem.system in (system, REFERENCE)), "")
    return AudioError(f"{system}: none of its files can be compared{first and f' ({first})'}")


def read_pair(pair: Pair) -> tuple[np.ndarray | None, np.ndarray] | Problem:
    """Reference and estimate as mono at the rate of the pair, at their own lengths, or why one cannot be read."""
    reference = None
    path, system = pair.reference, REFERENCE
    try:
        if path is not None:
            reference = read_audio(path, pair.rate)
        path, system = pair.estimate, pair.system
        return reference, read_audio(path, pair.rate)
    except AudioError as error:
        return Problem(pair.name, system, reason_of(error, path or pair.estimate))


def system_names(folders: Sequence[Path]) -> list[str]:
    """The name of each folder; where several have the same, with as many folders above it as tell them apart.

    Raises ValueError where one is given twice.
    """
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = [printable("/".join(part[-depth:])) for part in parts]
        if len({*names, REFERENCE}) > len(names):
            return names
    raise ValueError(f"{', '.join(map(str, folders))}: one is given twice; give each system once")
