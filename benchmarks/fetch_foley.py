"""Fetch recorded hits, steps, clicks and impacts by Debian package name and sort them into class folders.

    python benchmarks/fetch_foley.py FOLDER [--cache DIR]

FOLDER/train/CLASS and FOLDER/test/CLASS then hold 16 kHz mono FLAC that begins at the onset, with at most 2 s of it:
drums (kick, snare, hat, tom, cymbal, cowbell, wood) as `fetch_one_shots.py` tells them apart, footsteps, keys of a
keyboard, and impacts on metal, stone and wood (knock). Recordings that are silent, rise slowly, or hold several sounds
one after another are left out, and so are copies. Held out is every fourth instrument of the drums and every fourth
recording of the others; the press and the release of a key stay together.

Packages, fetched with `apt-get download` and unpacked without installing: sonic-pi-samples (mostly CC0),
hydrogen-drumkits (by kit), ufoai-sound (GPL-2+, CC-BY-3.0 or CC-BY-SA-3.0 by file), bucklespring-data (GPL-2+),
nexuiz-data (GPL-2), flare-game and 0ad-data (CC-BY-SA-3.0; 1.4 GB).
"""

import argparse
import collections
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fetch_one_shots import PACKAGES as DRUMS
from fetch_one_shots import classify, instrument
from fetch_sounds import Packages

from jaxdiff.data import AudioError, audio_info, read_audio, write_audio

RATE = 16_000
LONGEST, FADE = 2.0, 0.25  # seconds, and of the end of what is longer
SILENT = 3e-3

EFFECTS = (  # class, package, what the path of a file contains and what it does not
    ("footstep", "ufoai-sound", r"/footsteps/", r"water|splash|stand|crouch|hitground"),
    ("footstep", "0ad-data", r"/singlesteps/", r"^$"),
    ("footstep", "nexuiz-data", r"/misc/(metal)?footstep", r"^$"),
    ("footstep", "flare-game", r"/steps/", r"^$"),
    ("key", "bucklespring-data", r"/buckle/wav/", r"^$"),
    ("metal", "0ad-data", r"/(shield|sling|arrow)_metal|/swordhit|/mine_metal", r"^$"),
    ("metal", "nexuiz-data", r"/(tink|metalhitground)\d", r"^$"),
    ("stone", "0ad-data", r"/(mine|con|sling|arrow)_stone", r"^$"),
    ("knock", "0ad-data", r"/(con|shield|sling|arrow)_wood|/lumber_tree_", r"^$"),
)


def onset(y: np.ndarray) -> int:
    """1 ms before the first sample within 20 dB of the peak."""
    return max(0, int(np.argmax(np.abs(y) > 0.1 * np.abs(y).max())) - RATE // 1000)


def is_one(y: np.ndarray) -> bool:
    """Whether a sound that begins at its onset is loudest within 120 ms and does not begin again: no 10 ms after the
    first 0.2 s are within 12 dB of the loudest and 9 dB above one of the 50 ms before."""
    size, y = RATE // 100, y[: round(LONGEST * RATE)]
    levels = 10 * np.log10(np.square(np.pad(y, (0, -len(y) % size)).reshape(-1, size)).mean(1) + 1e-9)
    levels -= levels.max()
    before = np.lib.stride_tricks.sliding_window_view(np.pad(levels, (5, 0), mode="edge"), 5)[: len(levels)].min(1)
    again = (levels > -12) & (levels > before + 9)
    return bool(np.argmax(levels) < 12 and not again[20:].any())


def cut(y: np.ndarray) -> np.ndarray:
    """At most 2 s at a peak of 0.9, with ends faded: the first ms, and the last 10 ms or, of what is cut, 0.25 s."""
    longest = round(LONGEST * RATE)
    fade = round(FADE * RATE) if len(y) > longest else min(len(y), RATE // 100)
    y = 0.9 * y[:longest] / np.abs(y).max()
    y[: RATE // 1000] *= np.linspace(0, 1, RATE // 1000)
    y[len(y) - fade :] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(fade) / fade)
    return y.astype(np.float32)


def of_package(package: str, root: Path) -> Iterator[tuple[str, str, str, Path]]:
    """Class, series (what is held out together or not at all), name and path of the recordings of a package."""
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".wav", ".flac", ".aiff", ".ogg")):
        name = f"{path.parent.name}/{path.stem}".lower()
        if package in DRUMS:
            label = classify(name)
            if label is not None:
                yield label, instrument(name), name, path
            continue
        whole = "/" + path.relative_to(root).as_posix()
        for label, of, pattern, without in EFFECTS:
            if of == package and re.search(pattern, whole) and not re.search(without, whole):
                yield label, re.sub(r"-\d$", "", name) if label == "key" else name, name, path
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the downloaded packages here for the next time")
    arguments = parser.parse_args()
    made: dict[str, dict[str, list[tuple[str, np.ndarray]]]] = {}
    left_out, seen = collections.Counter(), set()
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        packages = Packages(cache.resolve(), Path(temporary) / "unpacked")
        for package in (*DRUMS, *dict.fromkeys(package for _, package, *_ in EFFECTS)):
            try:
                root = packages.unpacked(package)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                raise SystemExit(str(error)) from None
            for label, series, name, path in of_package(package, root):
                try:
                    y = read_audio(path, RATE) if audio_info(path).sample_rate >= RATE else np.zeros(1)
                except AudioError as error:
                    print(error, file=sys.stderr)
                    continue
                y = y[onset(y) :] if np.abs(y).max() > SILENT else y[:0]
                if len(y) < RATE // 50 or not is_one(y):
                    left_out[label] += 1
                    continue
                y = cut(y)
                if (same := (len(y), *np.round(y[:512], 2).tolist())) in seen:
                    continue
                seen.add(same)
                made.setdefault(label, {}).setdefault(f"{package} {series}", []).append((f"{package}-{name}", y))
            packages.remove(package)
    for label, series in sorted(made.items()):
        counts = {"train": 0, "test": 0}
        for i, key in enumerate(sorted(series)):
            split = "test" if i % 4 == 0 else "train"
            for name, y in series[key]:
                target = arguments.folder / split / label / (re.sub(r"[^a-z0-9]+", "-", name) + ".flac")
                target.parent.mkdir(parents=True, exist_ok=True)
                write_audio(target, y, RATE)
                counts[split] += 1
        print(f"{label:9s} {counts['train']:4d} to train on, {counts['test']:3d} held out, {left_out[label]} left out")


if __name__ == "__main__":
    main()
