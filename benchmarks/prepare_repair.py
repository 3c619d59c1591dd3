"""Prepare the sounds of `fetch_sounds.py` for repair: voices and music side by side, and both through lossy coders.

    python benchmarks/prepare_repair.py data/sounds [--seed 0]

FOLDER/all/SPLIT has links to the voices and the music of a split, as two classes. FOLDER/coded/train has the same files
of the training split, each through MP3 (8 to 32 kbit/s) or Opus (6 to 16 kbit/s) by ffmpeg and back, without its delay,
as 16-bit FLAC. What is there already is kept.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from measures import RATE
from measures_repair import coded

from jaxdiff.data import read_audio
from jaxdiff.data.files import scan, write_audio

KINDS, SPLITS = ("voices", "music"), ("train", "tune", "test")
RATES = {"mp3": (8, 16, 24, 32), "opus": (6, 8, 12, 16)}  # kbit/s


def link(folder: Path) -> None:
    """FOLDER/all/SPLIT/KIND is FOLDER/KIND/SPLIT."""
    for split in SPLITS:
        place = folder / "all" / split
        place.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            if not (place / kind).exists():
                (place / kind).symlink_to(Path("..") / ".." / kind / split, target_is_directory=True)


def code(folder: Path, seed: int) -> int:
    """How many files of the training split were written through a coder."""
    written = 0
    for kind in KINDS:
        root = folder / kind / "train"
        for number, path in enumerate(scan(root)[0]):
            target = (folder / "coded" / "train" / kind / path.relative_to(root)).with_suffix(".flac")
            if target.exists():
                continue
            rng = np.random.default_rng([seed, len(kind), number])
            codec = str(rng.choice(list(RATES)))
            y = read_audio(path, RATE)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_audio(target, np.clip(coded(y, codec, int(rng.choice(RATES[codec]))), -1, 1), RATE)
            written += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not all((args.folder / kind / "train").is_dir() for kind in KINDS):
        raise SystemExit(f"{args.folder}: has no voices/train and music/train; make it with benchmarks/fetch_sounds.py")
    link(args.folder)
    written = code(args.folder, args.seed)
    print(f"{args.folder}: {written} files through a coder, {os.path.relpath(args.folder / 'all')} linked")


if __name__ == "__main__":
    main()
