"""Fetch recorded voices, noises and music by Debian package name and sort them into 16 kHz mono FLAC.

    python benchmarks/fetch_sounds.py FOLDER [--cache DIR] [--only NAME ...] [--skip-large]

The packages are fetched with `apt-get download` and unpacked without installing; the recordings of `asterisk` also need
ffmpeg. Into FOLDER go

    voices/{train,train_noisy,tune,test}/VOICE/*.flac   speech, a folder per speaker as far as that is known
    noise/{train,tune,test}/SOURCE/*.flac               noises and ambiences, split by kind
    music/{train,tune,test}/SOURCE/*.flac               at most 90 seconds from the middle of each piece; those for
                                                        training also stand in noise/train/music-SOURCE

A voice for training whose pauses are less than 28 dB below its speech goes to `train_noisy`: it serves as babble or for
variety, but not as a target of enhancement; voices/floors/VOICE.tsv gives the level of the pauses in each recording, in
dB relative to its speech. Single letters, syllables and words of a speaker are joined into files of 3 to 6 seconds, and
so are the shortest recordings of other voices and of the noises. Silent recordings, those below 16 kHz and clipped
speech (all of Tux Paint's `es`) are left out; files that cannot be read are listed on stderr. A voice or source that is
already there is fetched anew.

A language of `klettres` and `ktuberling` is in one split only, and so is every kind of noise: "rain 1" and "rain 2"
fall together, whatever package they come from. Some speakers are left alone for whoever judges the models: `da`, `ro`
and `el` of Tux Paint, klettres and ktuberling, and the Russian prompts of asterisk.

Licences: festvox-ru BSD-like; asterisk-core-sounds-* CC-BY-SA-3.0 (it: CC-BY-3.0); tuxpaint-stamps-default,
fillets-ng-data-nl, nexuiz-data, wesnoth-1.16-data and -music, warmux-data GPL-2; klettres-data, ktuberling-data,
bucklespring-data, tuxfootball GPL-2+; gcin-voice the man LGPL-3 or GPL-3 and the woman CC-BY-3.0; qabcs-data GPL-3+,
some public domain; openttd-opensfx, megaglest-data, flare-game CC-BY-SA-3.0; ufoai-sound GPL-2+, CC-BY-3.0 or
CC-BY-SA-3.0 by file; unknown-horizons GPL-2+ or CC-BY-SA-3.0; 0ad-data CC-BY-SA-3.0; openclonk-data CC-BY-3.0 and
others by file; fretsonfire-songs-sectoid MIT. Each package's copyright file has the word.
"""

import argparse
import hashlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxdiff.data import AudioError, audio_info, read_audio, write_audio

RATE = 16_000
CLEAN_DB = -28.0  # a voice whose pauses are louder than this, relative to its speech, is no target
LEAST_SECONDS = 0.4
LONGEST_SECONDS = {"noise": 120.0, "music": 90.0}
LARGE = ("0ad-data",)
SOUND = r"\.(wav|ogg|flac|g722)$"


@dataclass(frozen=True)
class Source:
    """Files of Debian packages that belong together: one speaker, or the noises or the music of one package.

    `files` gives, for each package, the expression that the path of a file must contain, and `without` what it must
    not. Voices name their split and say whether their short recordings are to be joined.
    """

    kind: str
    name: str
    files: tuple[tuple[str, str], ...]
    split: str = ""
    join: bool = False
    without: str = r"^$"


def voice(name: str, split: str, *files: tuple[str, str], join: bool = False, without: str = r"^$") -> Source:
    return Source("voices", name, files, split, join, without)


def noise(name: str, package: str, pattern: str, without: str = r"^$") -> Source:
    return Source("noise", name, ((package, pattern),), without=without)


def music(name: str, package: str, pattern: str, without: str = r"^$") -> Source:
    return Source("music", name, ((package, pattern),), without=without)


def tuxpaint(name: str, split: str, *others: tuple[str, str]) -> Source:
    ending = "" if name == "en" else f"_{name}"
    return voice(f"tuxpaint-{name}", split, ("tuxpaint-stamps-default", rf"_desc{ending}\.ogg$"), *others)


KLETTRES = ("ar", "cs", "de", "en", "en_GB", "es", "fr", "he", "hu", "it", "lt", "ml", "nb", "nds", "nl", "pt_BR", "ru",
            "tn", "uk")  # fmt: skip
KTUBERLING = ("ca", "de", "en", "fr", "ga", "gl", "lt", "nl", "sl", "sr", "uk", "wa")
TUNE_LANGUAGES, TEST_LANGUAGES = ("ca", "lt", "cs", "sl", "tn"), ("ru", "hu", "uk", "ga", "gl")


def words_of_languages() -> list[Source]:
    """The languages of klettres (letters, syllables) and ktuberling (words; its `ru` is the voice of tuxpaint `be`)."""
    split_of = dict.fromkeys(TUNE_LANGUAGES, "tune") | dict.fromkeys(TEST_LANGUAGES, "test")
    return [
        voice(f"{package}-{language}", split_of.get(language, "train"),
              (f"{package}-data", rf"/{package}/(sounds/)?{language}/"), join=True)
        for package, languages in (("klettres", KLETTRES), ("ktuberling", KTUBERLING))
        for language in languages
    ]  # fmt: skip


TONES = r"/(beep|confbridge-(join|leave)|tt-(monkeys|allbusy)|silence/|(a|de)scending-2tone)"
SOURCES = [
    voice("festvox-ru", "train", ("festvox-ru", r"/msu_ru_nsh_clunits/wav/")),
    voice("asterisk-en-es", "train", ("asterisk-core-sounds-en-g722", "g722"), ("asterisk-core-sounds-es-g722", "g722"),
          without=TONES),
    voice("asterisk-fr", "train", ("asterisk-core-sounds-fr-g722", "g722"), without=TONES),
    voice("asterisk-it", "train", ("asterisk-core-sounds-it-g722", "g722"), without=TONES),
    *(tuxpaint(language, "train") for language in ("fr", "bg", "es", "nl", "en")),
    *(tuxpaint(language, "tune") for language in ("ca", "lt")),
    tuxpaint("ru", "test"),
    tuxpaint("be", "test", ("ktuberling-data", r"/ktuberling/sounds/ru/")),
    voice("fillets-nl-m", "train", ("fillets-ng-data-nl", r"/nl/[^/-]+-m[-.]")),
    voice("fillets-nl-v", "train", ("fillets-ng-data-nl", r"/nl/[^/-]+-v[-.]")),
    noise("qabcs", "qabcs-data", r"/abcs/all/noises/"),
    noise("tuxpaint", "tuxpaint-stamps-default", r"\.ogg$", r"_desc"),
    noise("ufoai", "ufoai-sound", r"/sound/(ambience|doors|footsteps|geoscape|impact|misc|seq|ugv|ui|weapons)/",
          r"radiomessage|newswav|disco|/talk|aliencom"),
    *words_of_languages(),
    voice("gcin-3", "train", ("gcin-voice", r"/3\.ogg$"), join=True),
    voice("gcin-5", "train", ("gcin-voice", r"/5\.ogg$"), join=True),
    voice("nexuiz-tutorial", "train", ("nexuiz-data", r"/sound/tutorial/")),
    noise("opensfx", "openttd-opensfx", r"\.wav$"),
    noise("megaglest", "megaglest-data", r"/(tilesets|water_sounds)/", r"good_morning"),
    noise("bucklespring", "bucklespring-data", r"/buckle/wav/"),
    noise("tuxfootball", "tuxfootball", r"/tuxfootball/sound/", r"ingame|titlemusic"),
    noise("wesnoth", "wesnoth-1.16-data", r"/sounds/",
          r"human|elf-hit|dwarf|orc-|goblin|ogre|troll|mermaid|mermen|laugh|groan|wail|/ugg|zombie|naga|lich|ghoul"),
    noise("flare", "flare-game", r"/soundfx/|wind_ambient", r"/npcs/|/enemies/|male_|warcry"),
    noise("nexuiz", "nexuiz-data", r"/sound/", r"/(player|announcer|tutorial)/|radiomessage|tuba_note|/talk"),
    noise("unknown-horizons", "unknown-horizons", r"/audio/sounds/", r"main_square|tavern|scenario"),
    noise("warmux", "warmux-data", r"/sound/default/(misc|weapons)/", r"music|suicide|sherif|newcomer"),
    music("wesnoth", "wesnoth-1.16-music", r"/core/music/"),
    music("unknown-horizons", "unknown-horizons", r"/audio/music/", r"waves"),
    music("flare", "flare-game", r"/music/", r"wind_ambient"),
    music("megaglest", "megaglest-data", r"/music/"),
    music("fretsonfire", "fretsonfire-songs-sectoid", r"/songs/sectoid/"),
    music("warmux", "warmux-data", r"/warmux/music/"),
    music("openclonk", "openclonk-data", r"/Music\.ocg/"),
    noise("0ad", "0ad-data", r"/audio/(?!music|voice)", r"/(voice|music|death)/|/actor/(human|singular/death)"),
]  # fmt: skip


class Packages:
    """Debian packages, downloaded to `cache` and unpacked to `folder` when first asked for, once each."""

    def __init__(self, cache: Path, folder: Path):
        self.cache, self.folder = cache, folder

    def unpacked(self, package: str) -> Path:
        """The folder of the package's files, those of archives too; FileNotFoundError when there is no such package."""
        target = self.folder / package
        if target.exists():
            return target
        if not list(self.cache.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", package], cwd=self.cache, stdout=subprocess.DEVNULL, check=False)
        found = sorted(self.cache.glob(f"{package}_*.deb"))
        if not found:
            raise FileNotFoundError(f"{package}: no such package could be downloaded; look at the sources of apt")
        target.mkdir(parents=True)
        subprocess.run(["dpkg", "-x", found[-1], target], check=True)
        for archive in sorted([*target.rglob("*.pk3"), *target.rglob("*.zip")]):
            with zipfile.ZipFile(archive) as file:
                wanted = [name for name in file.namelist() if re.search(SOUND, name)]
                file.extractall(archive.parent, members=wanted)
            archive.unlink()
        for archive in sorted(target.rglob("*.cat")):
            unpack_sound_effects(archive)
        prompts = sorted(target.rglob("*.g722"))
        for start in range(0, len(prompts), 50):
            decode_g722(prompts[start : start + 50])
        return target

    def remove(self, package: str) -> None:
        shutil.rmtree(self.folder / package, ignore_errors=True)


def unpack_sound_effects(archive: Path) -> None:
    """The WAV files of an OpenTTD sound set beside it: a table of offsets and lengths, then names and sounds."""
    data = archive.read_bytes()
    count = (struct.unpack_from("<I", data)[0] & 0x7FFFFFFF) // 8
    for index in range(count):
        offset, length = struct.unpack_from("<II", data, 8 * index)
        offset &= 0x7FFFFFFF
        begin = offset + 1 + data[offset]
        title = data[offset + 1 : begin].decode("latin-1").strip("\0").split(". ")[0]
        name = re.sub(r"\W+", "_", title).strip("_").lower() or f"effect_{index}"
        archive.with_name(f"{name}.wav").write_bytes(data[begin : begin + length])


def decode_g722(paths: Sequence[Path]) -> None:
    """WAV files beside telephone prompts in G.722, of which each is decoded by itself."""
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y"]
    for path in paths:
        command += ["-f", "g722", "-i", str(path)]
    for index, path in enumerate(paths):
        command += ["-map", str(index), "-ar", str(RATE), str(path.with_suffix(".wav"))]
    subprocess.run(command, check=True)


def without_rumble(y: np.ndarray) -> np.ndarray:
    """`y` without a constant offset and what lies below 20 Hz, which several recordings have and nobody hears."""
    spectrum = np.fft.rfft(y)
    gain = np.clip((np.fft.rfftfreq(len(y), 1 / RATE) - 10) / 10, 0, 1)
    return np.fft.irfft(spectrum * gain, len(y)).astype(np.float32)


def without_silence(y: np.ndarray, below_peak: float = 0.01) -> np.ndarray:
    """From 50 ms before the first to 100 ms after the last sample above `below_peak` times the peak."""
    loud = np.flatnonzero(np.abs(y) > below_peak * np.abs(y).max())
    return y[max(0, loud[0] - RATE // 20) : loud[-1] + RATE // 10]


def frame_levels(y: np.ndarray) -> np.ndarray:
    """Levels of 20 ms frames in dB relative to the mean energy of the frames within 30 dB of the loudest one."""
    length = RATE // 50
    energy = np.square(y[: len(y) // length * length].reshape(-1, length), dtype=np.float64).mean(axis=1)
    active = energy[energy > 1e-3 * energy.max()].mean()
    return 10 * np.log10(np.maximum(energy / active, 1e-12))


def floor_level(levels: np.ndarray) -> float:
    """The mean energy in dB of the three quietest frames: the noise of a recording that has a pause of 60 ms."""
    return float(10 * np.log10(np.mean(10 ** (np.sort(levels)[:3] / 10))))


def is_clipped(y: np.ndarray) -> bool:
    """Whether more than one sample in 2,000 is at full scale or within one per cent of it."""
    return float(np.mean(np.abs(y) >= 0.99)) > 5e-4


def joined(pieces: Sequence[np.ndarray], name: str, shortest: float, longest: float) -> Iterator[np.ndarray]:
    """The pieces in random order, seeded by `name`, in files of 3 to 6 s with pauses of `shortest` to `longest` s."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    fade = np.linspace(0, 1, RATE // 200, dtype=np.float32)
    parts: list[np.ndarray] = []
    seconds, enough = 0.0, rng.uniform(3, 5)
    for index in rng.permutation(len(pieces)):
        piece = pieces[index].copy()
        if len(piece) < 2 * len(fade):
            continue
        piece[: len(fade)] *= fade
        piece[-len(fade) :] *= fade[::-1]
        pause = np.zeros(int(rng.uniform(shortest, longest) * RATE), np.float32)
        parts += [piece, pause]
        seconds += (len(piece) + len(pause)) / RATE
        if seconds >= enough:
            yield np.concatenate(parts[:-1])
            parts, seconds, enough = [], 0.0, rng.uniform(3, 5)
    if seconds >= 1:
        yield np.concatenate(parts[:-1])


def split_of(kind: str) -> str:
    """The split of a kind of noise or a piece of music by a hash of its name: 80, 10 and 10 per cent."""
    number = int.from_bytes(hashlib.sha256(kind.lower().encode()).digest()[:8], "big") % 10
    return {8: "tune", 9: "test"}.get(number, "train")


def kind_of(path: Path) -> str:
    """The name of a file without its last number; the stems of one song have the name of their folder."""
    stem = path.parent.name if path.stem in ("song", "guitar") else path.stem
    return re.sub(r"[-_ .]*\d+$", "", stem) or stem


def recordings(source: Source, packages: Packages) -> Iterator[tuple[Path, np.ndarray]]:
    """The files of a source in order with their sound, at 16 kHz and without rumble but otherwise as they are."""
    for package, pattern in source.files:
        root = packages.unpacked(package)
        for path in sorted(root.rglob("*")):
            name = "/" + path.relative_to(root).as_posix()
            if path.suffix == ".wav" and path.with_suffix(".g722").exists():
                name = name.removesuffix(".wav") + ".g722"
            elif path.suffix == ".g722":
                continue
            if not re.search(SOUND, name) or not re.search(pattern, name) or re.search(source.without, name):
                continue
            try:
                if audio_info(path).sample_rate < RATE:
                    continue
                if source.kind == "voices" and is_clipped(read_audio(path)):
                    print(f"{path.name}: clipped", file=sys.stderr)
                    continue
                y = without_rumble(read_audio(path, RATE))
            except AudioError as error:
                print(error, file=sys.stderr)
                continue
            if len(y) < RATE // 50 or np.abs(y).max() < (0.02 if source.kind == "voices" else 0.01):
                print(f"{path.name}: silent", file=sys.stderr)
                continue
            yield path, y


class Writer:
    """Writes sounds below `folder` under names that do not collide, and counts the seconds of each split."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.files: dict[str, int] = {}

    def write(self, split: str, name: str, y: np.ndarray) -> str:
        """Write `y` as FLAC, scaled where it exceeds full scale; the name of the file."""
        name = re.sub(r"[^\w.+-]+", "_", name, flags=re.ASCII).strip("_.") or "sound"
        target = self.folder / split / f"{name}.flac"
        count = 1
        while target.exists():
            count += 1
            target = self.folder / split / f"{name}~{count}.flac"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_audio(target, y / max(1.0, float(np.abs(y).max())), RATE)
        self.seconds[split] = self.seconds.get(split, 0.0) + len(y) / RATE
        self.files[split] = self.files.get(split, 0) + 1
        return target.name


def sort_voice(source: Source, packages: Packages, writer: Writer) -> tuple[float, float]:
    """Write the recordings of a speaker; two measures in dB, relative to the speech, of how loud the pauses are.

    The first is the median over the recordings of `floor_level`, which is written for each. The second is the fifth
    percentile of all frames, which lies within the speech where words are short and cut tightly.
    """
    levels, short, floors = [], [], []
    for path, y in recordings(source, packages):
        y = without_silence(y)
        if len(y) >= RATE // 5:
            levels.append(frame_levels(y))
        if source.join or len(y) < (LEAST_SECONDS + 0.15) * RATE:
            short.append(y)
        else:
            name = writer.write(source.split, f"{path.parent.parent.name}-{path.parent.name}-{path.stem}", y)
            floors.append(f"{name}\t{floor_level(levels[-1]):.1f}\n")
    for index, y in enumerate(joined(short, source.name, 0.05, 0.15)):
        writer.write(source.split, f"joined-{index:04d}", y)
    if not levels:
        return float("nan"), float("nan")
    table = writer.folder.parent / "floors" / f"{source.name}.tsv"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("".join(floors))
    return float(np.median([floor_level(level) for level in levels])), float(np.percentile(np.concatenate(levels), 5))


def sort_others(source: Source, packages: Packages, writer: Writer) -> None:
    """Write the noises or the pieces of music of a package, those below 0.3 s joined where there are several."""
    longest = int(LONGEST_SECONDS[source.kind] * RATE)
    short: dict[str, list[np.ndarray]] = {}
    for path, y in recordings(source, packages):
        y = without_silence(y, 0.003)
        begin = max(0, (len(y) - longest) // 2)
        y = y[begin : begin + longest]
        split = split_of(kind_of(path))
        if len(y) < 0.3 * RATE:
            short.setdefault(split, []).append(y)
        else:
            writer.write(split, f"{path.parent.name}-{path.stem}", y)
    for split, pieces in short.items():
        if len(pieces) > 2:
            for index, y in enumerate(joined(pieces, source.name + split, 0.1, 0.4)):
                writer.write(split, f"joined-{index:04d}", y)


@dataclass(frozen=True, order=True)
class Row:
    """What was written of one source to one place; the levels of a voice's pauses are as in `sort_voice`."""

    place: str
    name: str
    files: int
    minutes: float
    floor: float
    percentile: float

    def __str__(self) -> str:
        text = f"{self.place:18} {self.name:18} {self.files:5d} files {self.minutes:6.1f} min"
        return text if np.isnan(self.floor) else f"{text} {self.floor:6.1f} {self.percentile:6.1f} dB"


def fetch(source: Source, packages: Packages, folder: Path) -> list[Row]:
    """Put a source in its place at once when all of it is written: a row of the table for each split."""
    partial = folder / source.kind / f".{source.name}"
    shutil.rmtree(partial, ignore_errors=True)
    writer, floor, percentile = Writer(partial), float("nan"), float("nan")
    if source.kind == "voices":
        floor, percentile = sort_voice(source, packages, writer)
    else:
        sort_others(source, packages, writer)
    for split in ("train", "train_noisy", "tune", "test"):
        shutil.rmtree(folder / source.kind / split / source.name, ignore_errors=True)
    rows = []
    for split in ("train", "tune", "test"):
        if split not in writer.files:
            continue
        noisy = split == "train" and source.kind == "voices" and not floor < CLEAN_DB
        placed = "train_noisy" if noisy else split
        target = folder / source.kind / placed / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        (partial / split).rename(target)
        if (source.kind, split) == ("music", "train"):
            among = folder / "noise" / split / f"music-{source.name}"
            shutil.rmtree(among, ignore_errors=True)
            shutil.copytree(target, among)
        minutes = writer.seconds[split] / 60
        rows.append(Row(f"{source.kind}/{placed}", source.name, writer.files[split], minutes, floor, percentile))
    shutil.rmtree(partial, ignore_errors=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch recorded voices, noises and music by Debian package name.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the downloaded packages here for the next time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of packages, voices or sources to fetch")
    parser.add_argument("--skip-large", action="store_true", help=f"leave out {', '.join(LARGE)} (more than 1 GB)")
    arguments = parser.parse_args()
    chosen = [
        source for source in SOURCES
        if not (arguments.skip_large and any(package in LARGE for package, _ in source.files))
        and (not arguments.only or {source.name, *(package for package, _ in source.files)} & set(arguments.only))
    ]  # fmt: skip
    if not chosen:
        parser.error("--only names no package, voice or source of this script")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        packages = Packages(cache.resolve(), Path(temporary) / "unpacked")
        for index, source in enumerate(chosen):
            try:
                found = fetch(source, packages, arguments.folder)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                print(error, file=sys.stderr)
                continue
            for row in found:
                print(row, flush=True)
            rows += found
            later = {package for other in chosen[index + 1 :] for package, _ in other.files}
            for package, _ in source.files:
                if package not in later:
                    packages.remove(package)
    print("\nplace              name               files        length  floor, 5th percentile")
    for row in sorted(rows):
        print(row)
    for place in sorted({row.place for row in rows}):
        print(f"{place}: {sum(row.minutes for row in rows if row.place == place):.1f} minutes")


if __name__ == "__main__":
    main()
