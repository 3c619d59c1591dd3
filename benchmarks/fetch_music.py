"""Render scores with recorded instruments: the same notes by two instruments each, with their scores beside them.

    pip install music21
    python benchmarks/fetch_music.py FOLDER [--cache DIR] [--minutes M]

Needs the program fluidsynth; the sounds of the instruments (fluid-soundfont-gm, MIT, and musescore-general-soundfont,
MIT) are fetched by `apt-get download`. Into FOLDER go 16 kHz mono FLAC and MIDI files

    {train,tune,test}/INSTRUMENT/NNNN.flac          violin, flute, trumpet, clarinet, cello, guitar, organ, piano
    {train,tune,test}_source/INSTRUMENT/NNNN.flac   the same notes, mostly by one of several pianos
    {train,tune,test}_notes/INSTRUMENT/NNNN.mid     the score of both
    judge_{tune,test}/INSTRUMENT/KIND-NN.flac       the same chorales, four voices (chords) and the upper alone
    judge_{tune,test}_notes/KIND-NN.mid             (melody), by all instruments as the score says, and their scores

Scores are excerpts of music21's collection, each piece in one split, transposed and played faster or slower with
uneven time and force, and notes drawn at random: runs, chords, arpeggios, repeated notes. Half of the excerpts are out
of tune by up to 30 cents, both sides alike. Some pieces are left alone for whoever judges the models: string quartets
and sonatas of Haydn, Mozart and Beethoven.
"""

import argparse
import subprocess
import tempfile
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
from fetch_sounds import Packages

from jaxdiff.data import read_audio, write_audio
from jaxdiff.data.midi import write_midi

RATE = 16_000
SECONDS = 16.0  # of an excerpt at most
JUDGED = 12  # chorales of a split to judge with
GAP = 2.0  # seconds between excerpts of one rendering
TARGETS = {"piano": 0, "organ": 19, "guitar": 24, "violin": 40, "cello": 42, "trumpet": 56, "clarinet": 71, "flute": 73}
SHARES = {"violin": 2.0}  # of the minutes; the others 1
FLUID, MUSESCORE = "fluid-soundfont-gm", "musescore-general-soundfont"
SOURCES = [  # soundfont, program, share
    *(
        (FLUID, 0, 0.3),
        (MUSESCORE, 0, 0.25),
        (MUSESCORE, 1, 0.08),
        (FLUID, 1, 0.05),
        (FLUID, 3, 0.03),
        (FLUID, 4, 0.04),
    ),
    *((FLUID, program, 0.25 / 10) for program in (6, 11, 19, 24, 40, 42, 46, 56, 71, 73)),
]
COMPOSERS = {  # folder of music21's collection -> pieces at most
    "bach": 200, "ryansMammoth": 120, "palestrina": 30, "monteverdi": 40, "trecento": 30, "oneills1850": 8,
    "essenFolksong": 4, "josquin": 8, "schumann_robert": 7, "schumann_clara": 5, "corelli": 1,
    "handel": 1, "joplin": 1, "chopin": 1, "schubert": 1, "verdi": 1, "weber": 1, "cpebach": 1, "beach": 1,
}  # fmt: skip

Generator = np.random.Generator


def split_of(name: str) -> str:
    """The split of a piece: a twelfth for tuning, a twelfth for testing."""
    return {0: "tune", 1: "test"}.get(zlib.crc32(name.encode()) % 12, "train")


def collection() -> dict[str, list[np.ndarray]]:
    """The pieces of each split as notes [n, 3]: onset and offset in quarters, pitch."""
    from music21 import corpus

    paths = defaultdict(list)
    for path in map(str, corpus.getCorePaths()):
        paths[path.replace("\\", "/").rpartition("/corpus/")[2].partition("/")[0]].append(path)
    pieces = defaultdict(list)
    for composer, most in COMPOSERS.items():
        chosen = sorted(paths[composer], key=lambda p: zlib.crc32(Path(p).name.encode()))[:most]
        for path in chosen:
            try:
                score = corpus.parse(path)
                notes = read_score(score)
            except Exception as error:  # a few of its pieces cannot be parsed
                print(f"left out: {Path(path).name} ({type(error).__name__})")
                continue
            if len(notes) > 20:
                pieces[split_of(Path(path).name)].append(notes)
    return pieces


def read_score(score) -> np.ndarray:
    """Notes [n, 3] of a score: onset and offset in quarters, pitch; a collection of pieces gives its first ones."""
    if hasattr(score, "scores") and len(score.scores):
        score = score.scores[0]
    rows = []
    for element in score.stripTies().flatten().notes:
        length = float(element.quarterLength)
        if length > 0:
            rows += [(float(element.offset), float(element.offset) + length, p.midi) for p in element.pitches]
    return np.array(sorted(set(rows)), np.float64).reshape(-1, 3)


def excerpt(piece: np.ndarray, rng: Generator, instrument: str) -> np.ndarray:
    """Notes [n, 4] of some seconds of a piece, transposed and performed."""
    fastest = np.percentile(piece[:, 1] - piece[:, 0], 10)
    quarter = np.clip(rng.uniform(0.35, 0.9), 0.1 / fastest, 2.0)  # seconds
    start = rng.uniform(0, max(1e-6, piece[-1, 0] - 8 / quarter))
    inside = piece[(piece[:, 0] >= start) & (piece[:, 0] < start + SECONDS / quarter)].copy()
    if len(inside) < 4:
        inside = piece[:40].copy()
    inside[:, :2] = (inside[:, :2] - inside[0, 0]) * quarter
    low, high = {"violin": (50, 98), "flute": (55, 96), "cello": (33, 80)}.get(instrument, (36, 92))
    least, most = low - int(inside[:, 2].min()), high - int(inside[:, 2].max())
    if least <= most:
        inside[:, 2] += np.clip(rng.integers(-9, 13), least, most)
    return performed(inside, rng)


def invented(rng: Generator) -> np.ndarray:
    """Notes [n, 4] without a composer: voices that walk, chords, runs, repeated notes, arpeggios."""
    rows: list[tuple[float, float, float]] = []
    voices, now = int(rng.integers(1, 6)), 0.0
    centre, beat = rng.uniform(50, 84), 2 ** rng.uniform(-3.2, 1.0)
    while now < SECONDS - 2:
        kind = rng.choice(["walk", "chord", "run", "repeat", "arpeggio"])
        if kind in ("walk", "chord"):
            for _ in range(int(rng.integers(1, 8))):
                length = beat * rng.choice([1, 1, 2, 3])
                chord = centre + rng.choice(np.arange(-16, 17), voices if kind == "chord" else 1, replace=False)
                rows += [(now, now + length * (rng.uniform(0.5, 1.0) if kind == "walk" else 1.0), p) for p in chord]
                now += length
        else:
            step = 2 ** rng.uniform(-3.6, -1.5)
            count = int(rng.integers(4, 16))
            first = centre + rng.integers(-10, 10)
            by = {"run": rng.choice([-2, -1, 1, 2]), "repeat": 0, "arpeggio": rng.choice([-4, 3, 4, 5])}[str(kind)]
            hold = rng.uniform(1, 4) if kind == "arpeggio" else rng.uniform(0.6, 1.0)
            rows += [(now + i * step, now + (i + hold) * step, first + by * (i % 8)) for i in range(count)]
            now += count * step
        now += rng.choice([0, 0, 0, 1]) * rng.uniform(0, 1.0)
    notes = np.array(rows)
    notes[:, 2] = np.clip(np.round(notes[:, 2]), 33, 100)
    return performed(notes[notes[:, 0] < SECONDS - 0.5], rng)


def performed(notes: np.ndarray, rng: Generator) -> np.ndarray:
    """Notes [n, 3] in seconds as [n, 4]: uneven in time and force, shortened as an articulation wants, and no note of
    a pitch while it still sounds."""
    notes = notes[np.lexsort((notes[:, 2], notes[:, 0]))]
    length = np.maximum((notes[:, 1] - notes[:, 0]) * rng.choice([0.6, 0.85, 0.95, 1.0]), 0.06)
    onset = np.maximum(notes[:, 0] + rng.normal(0, rng.choice([0, 0.006, 0.015]), len(notes)), 0) + 0.05
    wave = 12 * np.sin(2 * np.pi * (notes[:, 0] / rng.uniform(3, 9) + rng.uniform()))
    velocity = np.clip(rng.uniform(50, 110) + wave + rng.normal(0, 7, len(notes)), 30, 127)
    made = np.stack([onset, np.minimum(onset + length, SECONDS), notes[:, 2], np.round(velocity)], axis=1)
    made = made[np.argsort(made[:, 0], kind="stable")]
    for pitch in np.unique(made[:, 2]):
        same = np.flatnonzero(made[:, 2] == pitch)
        made[same[:-1], 1] = np.minimum(made[same[:-1], 1], made[same[1:], 0] - 0.01)
    return made[made[:, 1] - made[:, 0] > 0.04]


def render(soundfont: Path, program: int, excerpts: list[tuple[np.ndarray, float]]) -> list[np.ndarray]:
    """The sound [samples] at 16 kHz of each (notes, cents out of tune), all in one rendering."""
    import mido

    file, track, ticks = mido.MidiFile(type=0, ticks_per_beat=480), mido.MidiTrack(), 960
    events: list[tuple[int, int, mido.Message]] = [(0, 0, mido.Message("program_change", program=program))]
    for i, (notes, cents) in enumerate(excerpts):
        at = i * (SECONDS + GAP)
        bend = mido.Message("pitchwheel", pitch=round(8191 * cents / 200))
        events.append((round((at - 0.02 if i else 0) * ticks), 1, bend))
        for onset, offset, pitch, velocity in notes:
            begin, end = (round((at + float(t)) * ticks) for t in (onset, offset))
            note = dict(note=int(pitch), channel=0)
            events.append((begin, 3, mido.Message("note_on", velocity=int(velocity), **note)))
            events.append((max(end, begin + 1), 2, mido.Message("note_off", velocity=0, **note)))
    now = 0
    for tick, _, message in sorted(events, key=lambda e: e[:2]):
        track.append(message.copy(time=tick - now))
        now = tick
    file.tracks.append(track)
    with tempfile.TemporaryDirectory() as folder:
        score, wav = Path(folder, "score.mid"), Path(folder, "sound.wav")
        file.save(str(score))
        options = ["-ni", "-R", "0", "-C", "0", "-g", "0.4", "-r", "16000", "-O", "float", "-F", str(wav)]
        subprocess.run(["fluidsynth", *options, str(soundfont), str(score)], check=True, capture_output=True)
        whole = read_audio(wav, RATE)
    step, length = round((SECONDS + GAP) * RATE), round((SECONDS + 0.5) * RATE)
    parts = [whole[i * step :][:length] for i in range(len(excerpts))]
    return [np.pad(part, (0, length - len(part))) for part in parts]


def scaled(y: np.ndarray, rng: Generator) -> np.ndarray:
    """A sound whose largest sample is 1 to 9 dB below full scale."""
    return (y * 10 ** (-rng.uniform(1, 9) / 20) / max(np.abs(y).max(), 1e-4)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, help="where packages are kept (a temporary folder)")
    parser.add_argument("--minutes", type=float, default=30, help="of training for each instrument")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge", action="store_true", help="make the folders judge_* alone")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = asked.cache or Path(temporary) / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        packages = Packages(cache, Path(temporary) / "unpacked")
        fonts = {name: soundfont(packages, name) for name in (FLUID, MUSESCORE)}
        pieces = defaultdict(list) if asked.judge else collection()
        for split, share in (("train", 1.0), ("tune", 0.07), ("test", 0.1)):
            rng = np.random.default_rng([asked.seed, zlib.crc32(split.encode())])
            if not asked.judge:
                make(asked.folder, split, pieces[split], asked.minutes * share, fonts, rng)
            if split != "train":
                judge(asked.folder, split, fonts[FLUID])


def soundfont(packages: Packages, package: str) -> Path:
    """The largest soundfont of a package."""
    files = [p for p in packages.unpacked(package).rglob("*.sf[23]") if p.is_file() and not p.is_symlink()]
    return max(files, key=lambda p: p.stat().st_size)


def judge(folder: Path, split: str, font: Path) -> None:
    """Render chorales of a split by every instrument, as they are written."""
    from music21 import corpus

    paths = sorted(str(p) for p in corpus.getCorePaths() if "/bach/bwv" in str(p).replace("\\", "/"))
    kinds: dict[str, list[np.ndarray]] = {"chords": [], "melody": []}
    for path in (p for p in paths if split_of(Path(p).name) == split and p.endswith((".mxl", ".krn"))):
        score = corpus.parse(path)
        if len(score.parts) != 4 or len(kinds["chords"]) == JUDGED:
            continue
        for kind, part in (("chords", score), ("melody", score.parts[0])):
            notes = read_score(part)
            notes = notes[notes[:, 0] < 16]  # quarters, of 0.6 s
            whole = np.concatenate([0.6 * notes[:, :2] + 0.05, notes[:, 2:], np.full((len(notes), 1), 90.0)], axis=1)
            kinds[kind].append(whole[(whole[:, 0] < SECONDS - 1)])
    for kind, scores in kinds.items():
        for i, notes in enumerate(scores):
            notes[:, 1] = np.minimum(notes[:, 1] - 0.01, SECONDS)
            path = folder / f"judge_{split}_notes" / f"{kind}-{i:02d}.mid"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_midi(path, notes)
        for instrument, program in TARGETS.items():
            (folder / f"judge_{split}" / instrument).mkdir(parents=True, exist_ok=True)
            for i, y in enumerate(render(font, program, [(notes, 0.0) for notes in scores])):
                y = 0.5 * y / np.abs(y).max()
                write_audio(folder / f"judge_{split}" / instrument / f"{kind}-{i:02d}.flac", y.astype(np.float32), RATE)
    print(f"judge_{split}: {len(kinds['chords'])} chorales by {len(TARGETS)} instruments")


def make(folder: Path, split: str, pieces: list, minutes: float, fonts: dict[str, Path], rng: Generator) -> None:
    """Draw the excerpts of a split, render both sides and write them."""
    items = []  # instrument, number, notes, cents
    for instrument in TARGETS:
        for number in range(max(2, round(SHARES.get(instrument, 1.0) * minutes * 60 / SECONDS))):
            random = split == "train" and rng.uniform() < 0.25
            notes = invented(rng) if random else excerpt(pieces[rng.integers(len(pieces))], rng, instrument)
            items.append((instrument, number, notes, rng.uniform(-30, 30) if rng.uniform() < 0.5 else 0.0))
    shares = np.array([share for *_, share in SOURCES])
    by_source, by_target = defaultdict(list), defaultdict(list)
    for i, (instrument, *_) in enumerate(items):
        by_source[SOURCES[rng.choice(len(SOURCES), p=shares / shares.sum())][:2]].append(i)
        by_target[FLUID, TARGETS[instrument]].append(i)
    for name, groups in (("_source", by_source), ("", by_target)):
        for (font, program), group in groups.items():
            sounds = render(fonts[font], program, [(items[i][2], items[i][3]) for i in group])
            for i, y in zip(group, sounds, strict=True):
                path = folder / f"{split}{name}" / items[i][0] / f"{items[i][1]:04d}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_audio(path, scaled(y, rng), RATE)
    for instrument, number, notes, _ in items:
        path = folder / f"{split}_notes" / instrument / f"{number:04d}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_midi(path, notes, program=TARGETS[instrument])
    print(f"{split}: {len(items)} excerpts of {len(pieces)} pieces, {len(items) * SECONDS / 60:.0f} minutes")


if __name__ == "__main__":
    main()
