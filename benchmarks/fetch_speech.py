"""Fetch recorded speech by Debian package name and sort it by voice, with whole speakers held out.

    python benchmarks/fetch_speech.py FOLDER

`tuxpaint-stamps-default` (GPL-2) is fetched with `apt-get download` and unpacked without installing: people of several
countries name the pictures of a drawing program, a few seconds each. FOLDER/train, FOLDER/tune and FOLDER/test then
hold 16 kHz mono FLAC in a folder per voice, pauses at the ends cut off. The voices of `tune` are for choosing between
models, those of `test` (another man and a woman) for the figures that are reported; the package's other voices are left
alone, for whoever judges the models. Recordings below 16 kHz are left out; files that cannot be read are listed on
stderr.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from jaxdiff.data import AudioError, audio_info, read_audio, write_audio

PACKAGE, RATE = "tuxpaint-stamps-default", 16_000
SPLITS = {
    "train": ("fr", "bg", "es", "nl", "en"),
    "tune": ("ca", "lt"),
    "test": ("ru", "be"),
}


def without_silence(y: np.ndarray) -> np.ndarray:
    """From 50 ms before the first to 100 ms after the last sample within 40 dB of the peak."""
    loud = np.flatnonzero(np.abs(y) > 0.01 * np.abs(y).max())
    return y[max(0, loud[0] - RATE // 20) : loud[-1] + RATE // 10]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    split_of = {voice: split for split, voices in SPLITS.items() for voice in voices}
    minutes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["dpkg", "-x", next(Path(temporary).glob("*.deb")), "unpacked"], cwd=temporary, check=True)
        for path in sorted((Path(temporary) / "unpacked").rglob("*_desc*.ogg")):
            voice = re.fullmatch(r".*_desc(?:_(.+))?", path.stem).group(1) or "en"
            if voice not in split_of:
                continue
            try:
                if audio_info(path).sample_rate < RATE:
                    continue
                y = read_audio(path, RATE)
            except AudioError as error:
                print(error, file=sys.stderr)
                continue
            if np.abs(y).max() < 0.02:
                print(f"{path.name}: silent", file=sys.stderr)
                continue
            y = without_silence(y)
            target = folder / split_of[voice] / voice / f"{path.parent.name}-{path.stem}.flac"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_audio(target, y, RATE)
            minutes[voice] = minutes.get(voice, 0) + len(y) / RATE / 60
    for split, voices in SPLITS.items():
        print(f"{split}: " + ", ".join(f"{voice} {minutes.get(voice, 0):.1f} minutes" for voice in voices))


if __name__ == "__main__":
    main()
