"""Fetch recorded drum one-shots by Debian package name and sort them into class folders, with a held-out split.

    python benchmarks/fetch_one_shots.py FOLDER

`sonic-pi-samples` (mostly CC0) and `hydrogen-drumkits` (licence per kit) are fetched with `apt-get download` and
unpacked without installing. FOLDER/train/CLASS and FOLDER/test/CLASS then hold 16 kHz mono FLAC, cut at the onset and
to at most 1.5 s. Held out is every fourth *instrument* of a class: the dynamic layers of one drum (Kick-0 ... Kick-4)
stay on one side. Kinds with fewer than 30 recordings (claps, shakers, tablas) are left out. Files that cannot be
played or are silent are listed on stderr.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from jaxdiff.data import AudioError, read_audio, write_audio

PACKAGES = ("sonic-pi-samples", "hydrogen-drumkits")
RATE = 16_000

# First match wins; names are lower-cased, with the kit's or package's folder in front.
CLASSES = (
    (None, r"loop|emptysample|demo|/fx|xfx|yfx|robot|phone|ambi_|misc_|vinyl|glitch|bass_|guit|beats_"),
    (None, r"clap|snap|tambourine|maraca|shaker|tabla"),
    ("kick", r"kick|/bd[_\d]|powr_bd|hse_k_|bassdrum|drum_bass|djembe\d bass|cajonthump"),
    ("snare", r"snare|/sn\d?_|powr_sn|/sd_|/s[nr]\d?_|rimshot"),
    ("hat", r"hat|/hh\d?_|hh_p|hhat|chh|ohh|powr_hh|/ho_|cymbal_(closed|pedal)|hhclosed|hhopen|hhpedal"),
    ("tom", r"tom|/t\d_|/ft_|/tm\d?_|conga|bongo|djembe\d tone|(kenkeni|sangban|dununba)1 head|ee_drum"),
    ("cymbal", r"crash|ride|splash|china|cymbal|/rc_|/cc_|/rd\d?_|cra_rock|paiste"),
    ("cowbell", r"cowbell|agogo|/cb\d?_|mc_cb|bell (hit|mute)|dununba1 bell|perc_bell|elec_bell|/bl_"),
    ("wood", r"stick|wood|clave|click|block|rimclick|/rim_|/rs_|elec_(tick|blip|wood)"),
)


def classify(name: str) -> str | None:
    """The class of a file by its name, None for what is no one-shot of these classes."""
    for label, pattern in CLASSES:
        if re.search(pattern, name):
            return label
    return None


def instrument(name: str) -> str:
    """The name without the marks of a dynamic layer or take, so that layers of one drum are one instrument."""
    name = re.sub(r"-(softest|soft|med|hardest|hard)$", "", name)
    return re.sub(r"[-_ ]?\d+$", "", name)


def at_onset(y: np.ndarray) -> np.ndarray:
    """From 2 ms before the first sample within 40 dB of the peak, at most 1.5 s, with the last 10 ms faded."""
    peak = np.abs(y).max()
    first = max(0, int(np.argmax(np.abs(y) > 0.01 * peak)) - RATE // 500)
    y = y[first : first + 3 * RATE // 2].copy()
    fade = min(len(y), RATE // 100)
    y[len(y) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    drums: dict[str, dict[str, list[tuple[str, np.ndarray]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for package in PACKAGES:
            subprocess.run(["apt-get", "download", package], cwd=temporary, check=True, stdout=subprocess.DEVNULL)
        for deb in Path(temporary).glob("*.deb"):
            subprocess.run(["dpkg", "-x", deb.name, "unpacked"], cwd=temporary, check=True)
        unpacked = Path(temporary) / "unpacked"
        for path in sorted(p for p in unpacked.rglob("*") if p.suffix in (".wav", ".flac", ".aiff")):
            name = f"{path.parent.name}/{path.stem}".lower()
            label = classify(name)
            if label is None:
                continue
            try:
                y = at_onset(read_audio(path, RATE))
            except AudioError as error:
                print(error, file=sys.stderr)
                continue
            if np.abs(y).max() < 1e-3:
                print(f"{path.name}: silent", file=sys.stderr)
                continue
            drums.setdefault(label, {}).setdefault(instrument(name), []).append((name, y))
    for label, instruments in sorted(drums.items()):
        counts = {"train": 0, "test": 0}
        for i, key in enumerate(sorted(instruments)):
            split = "test" if i % 4 == 0 else "train"
            for name, y in instruments[key]:
                target = folder / split / label / (re.sub(r"[^a-z0-9]+", "-", name) + ".flac")
                target.parent.mkdir(parents=True, exist_ok=True)
                write_audio(target, y, RATE)
                counts[split] += 1
        print(f"{label}: {counts['train']} to train on, {counts['test']} held out")


if __name__ == "__main__":
    main()
