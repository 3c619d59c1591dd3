"""Make aligned pairs of voices for voice conversion, as 16 kHz mono FLAC, from flite and from recorded voices.

    python benchmarks/fetch_voices.py FOLDER [--sounds data/sounds] [--sentences 1600] [--tune 40] [--minutes 6]

Into FOLDER go files of equal length under equal names,

    {train,tune}/VOICE/NNNN.flac            what is to be made: the target voice
    {train,tune}_source/VOICE/NNNN.flac     what is converted, aligned in time with it
    {train,tune}/text.tsv                   file, text and source of each synthetic pair

The targets `woman` (flite's slt; --sentences for training), `man` (rms) and `awb` (a man, too; a quarter as many
each) are synthesised by flite, as they are, but for their speed, which varies by a tenth. The sources are the same
sentences by the other voices of flite. They are made to differ: in speed, in the mean and the deviation of their pitch
(which the voice rms ignores), and by resampling, which shifts pitch and formants together. flite names the end of each
phone in both. Where the phones are the same, the pauses between words aside, the source is warped in time, phone by
phone, by WSOLA (Verhelst & Roelands 1993): windows at the mapped time are overlapped and added, each moved by up to
6 ms to where it goes on best from the one before, so that pitch and formants stay. Faults of this are in the source
only. A pause that the source lacks is silent there, one that the target lacks is left out. Other pairs are dropped.

The recorded voices of SOUNDS/voices/train and /tune, as `fetch_sounds.py` makes them, are their own sources: hard links
to the same files, up to --minutes of each voice for training; nexuiz-tutorial, an English man, is left for judging. The
sentences are made from the frames, words and facts below; a fifth of the frames and of the facts is for tuning only, so
that no sentence is in both splits.

Licences: flite and its voices are free, like BSD (Carnegie Mellon University; see the copyright file of the package
flite); those of the recorded voices are named in `fetch_sounds.py`.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxdiff.data import audio_info, read_audio, write_audio
from jaxdiff.data.files import resample

RATE = 16_000
WINDOW, SEARCH = 400, 96  # of WSOLA, in samples: 25 ms, of which half overlaps, and 6 ms
LEAST_SECONDS, MOST_SECONDS = 1.8, 8.0
PAUSE = "pau"
SOURCES = {  # in turn; kal is sampled at 8 kHz
    "slt": ("rms", "awb", "kal16", "rms", "awb", "kal16", "rms", "awb", "kal16", "kal"),
    "rms": ("slt", "awb", "slt", "kal16"),
    "awb": ("slt", "rms", "slt", "kal16"),
}
PITCH = {"slt": (140.0, 230.0), "rms": (85.0, 125.0), "awb": (85.0, 175.0), "kal16": (80.0, 160.0)}  # Hz
PITCH["kal"] = PITCH["kal16"]
MAIN = "slt"  # of the other targets there are a quarter as many sentences
FOLDERS = {"slt": "woman", "rms": "man", "awb": "awb"}
LEFT = ("nexuiz-tutorial",)  # for judging

# Sentences ----------------------------------------------------------------------------------------------------------

WORDS = {
    "person": "farmer teacher captain doctor neighbour baker soldier child judge painter sailor thief widow prince "
    "nurse carpenter gardener singer lawyer shepherd hunter stranger pilot uncle grandmother engineer merchant poet "
    "tailor butcher visitor girl boy father mother clerk preacher miller cook brother youth witch giant scholar",
    "name": "George Sarah Peter Julia Thomas Martha Oliver Ruth Edward Charlotte Hugh Joyce Vincent Zoe Walter Irene "
    "Luke Geoffrey Naomi Fergus Beatrice Arthur Phoebe Simon Agatha Roy Yvonne",
    "place": "garden valley harbour kitchen church village library castle forest market station meadow cellar bridge "
    "island tower orchard stable theatre desert courtyard hospital mountain river museum school lighthouse workshop",
    "thing": "basket candle hammer letter mirror blanket bottle chair coin drum feather glove jacket key ladder "
    "needle oyster pencil quilt rope saddle shovel table umbrella violin watch yoke zipper box bell broom cage fork "
    "hat jewel kettle lamp map oar pillow ring sword trumpet vase wheel anchor axe bucket cloth curtain engine flag "
    "shield toy treasure thimble judgement picture measure mushroom",
    "food": "bread cheese honey onion pepper butter mustard peach soup turnip cabbage lemon vinegar sugar porridge "
    "fish ginger cherry beef yoghurt pie rice garlic chocolate orange juice ham toast spinach walnut",
    "animal": "horse fox sheep goose rabbit wolf mouse owl pigeon tiger whale zebra donkey beetle cat dog frog goat "
    "hen lion monkey otter pony raven snail toad vulture wasp elephant giraffe ox thrush jackdaw bear",
    "adjective": "old young heavy quiet yellow broken curious gentle bitter narrow smooth huge thin crooked golden "
    "dusty foolish cheerful shallow strange purple sharp lazy clever rough pale wooden frozen empty tiny brave noisy "
    "wise dreadful beige loose thick royal fresh mild choice vague joyful southern usual",
    "past": "found carried broke painted stole washed borrowed dropped measured followed buried watched pushed sold "
    "lifted hid mended noticed threw caught offered polished destroyed enjoyed chose shook guarded forgot bought kept",
    "base": "find carry break paint steal wash borrow drop measure follow bury watch push sell lift hide mend notice "
    "throw catch offer polish destroy enjoy choose shake guard forget buy keep",
    "went": "walked ran hurried wandered rode marched crept drove travelled returned escaped strolled moved rushed "
    "climbed jumped swam sailed",
    "adverb": "slowly quickly always never gladly rarely often carefully badly suddenly usually perhaps barely "
    "gently loudly truly already finally",
    "when": "yesterday|last night|every morning|in the winter|before breakfast|after the storm|on Thursday|at noon|"
    "during the war|in early June|long ago|by the end of the week|since the spring|at half past three|next Tuesday|"
    "in the autumn|just before dawn",
    "where": "near the {place}|behind the {place}|under the {thing}|across the {place}|"
    "beside the {adjective} {place}|in the {place}|above the {place}|beyond the {place}|on the road to the {place}|"
    "outside the {place}|between the {place} and the {place}",
    "number": "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fifteen|nineteen|twenty|thirty|"
    "forty|fifty|sixty one|eighty four|a hundred|a thousand",
    "weather": "rain snow wind thunder fog frost sunshine hail smoke darkness moonlight dust",
    "material": "wood iron paper leather silver glass stone wool copper clay silk straw brass bone rubber",
    "colour": "red blue green white black brown grey orange pink violet",
    "body": "hand shoulder finger eye ear mouth knee foot elbow nose thumb chin hair tooth voice",
    "abstract": "truth danger beauty silence freedom justice knowledge patience courage pleasure anger fortune "
    "memory hope fear peace trouble wisdom luck joy health",
}  # fmt: skip

FRAMES = (
    "The {adjective} {person} {past} the {adjective} {thing} {where}.",
    "{name} {past} {number} {animal}s and a {adjective} {thing} {when}.",
    "Why did the {person} {base} the {thing} {where}?",
    "Did {name} {base} the {colour} {thing}, or was it the {person}?",
    "There were {number} {thing}s, {number} {animal}s, and a {adjective} {person} {where}.",
    "Please bring the {food}, the {food}, the {food}, and some {food}.",
    "When the {weather} came, the {animal} {went} {where}.",
    "{name} and {name} {went} to the {place} {when}, but nobody was there.",
    "The {thing} was made of {material} and {material}, and it was very {adjective}.",
    "I would rather {base} the {thing} than {base} the {adjective} {thing}.",
    "Where can we {base} a {adjective} {thing} and {number} pounds of {food}?",
    "A {animal} with a {colour} {body} {adverb} {went} {where}.",
    "Without {abstract}, said the {person}, there is no {abstract}.",
    "It was {adjective} {weather} that {past} the {thing}, not the {person}.",
    "She {past} her {thing} {when} and {adverb} spoke of it again.",
    "He put his {body} on the {material} {thing} and {past} it.",
    "If you {base} the {thing}, {name} will {base} the {food}.",
    "Nobody knew that the {person} had {number} {colour} {thing}s.",
    "How many {animal}s does the {person} {base} {when}?",
    "The {food} and the {food} were {adjective}, yet the {person} {adverb} ate them.",
    "{when}, the {weather} {past} everything {where}.",
    "Do not {base} that {thing}, it belongs to the {person}.",
    "My {person} says that {abstract} is worth more than {material}.",
    "Should we {base} the {animal}, the {thing}, or the {food}?",
    "The {person}'s {body} was {adjective} with {weather} and {abstract}.",
    "They {went} {where}, {went} {where}, and {went} home again.",
    "Page {number} of the book shows a {adjective} {animal} {where}.",
    "What a {adjective} {thing} you have there, {name}!",
    "On the {material} table lay a {thing}, a {thing}, and {number} {colour} {thing}s.",
    "Once there was a {person} who could {base} any {animal} {where}.",
    "The {animal} {went}, the {animal} {went}, and only the {adjective} {animal} stayed.",
    "Is it true that {name} {past} the {person} of the {place}?",
    "Add {number} spoons of {food} to the {food} and stir it {adverb}.",
    "Every {person} in the {place} once {past} a {thing}.",
    "Turn left at the {place}, then go straight on for {number} miles.",
    "With {abstract} in her voice, {name} {past} the {adjective} {person}.",
    "The train to the {place} leaves {when} from platform {number}.",
    "We heard the {weather} {where}, and the {animal}s {went} away.",
    "As {adjective} as a {animal}, as {adjective} as {material}.",
    "Could the {person} {adverb} {base} {number} of these {thing}s?",
)  # those whose place is a multiple of five are for tuning only

FACTS = (
    "Water freezes at zero degrees and boils at one hundred.",
    "The moon goes round the earth in about twenty seven days.",
    "Light needs eight minutes to travel from the sun to us.",
    "Bees visit thousands of flowers to make one spoon of honey.",
    "Iron is heavier than wood, and gold is heavier than iron.",
    "The whale is the largest animal that has ever lived.",
    "A triangle has three sides, and a square has four.",
    "Sound moves faster through water than through the air.",
    "Most rivers flow into the sea, but some end in a desert.",
    "The oak may grow for several hundred years.",
    "Salt lowers the temperature at which ice will melt.",
    "Paper was first made in China from bark and old rags.",
    "The heart of a mouse beats more than five hundred times a minute.",
    "In summer the days are long and the nights are short.",
    "A year on Jupiter lasts nearly twelve of our own.",
    "The violin has four strings, which are tuned in fifths.",
    "Owls turn their heads because their eyes cannot move.",
    "Glass is made by heating sand, soda, and lime together.",
    "The equator divides the northern half of the world from the southern.",
    "A compass needle always points towards the north.",
    "Mount Everest rises nearly nine thousand metres above the sea.",
    "Bread rises because yeast gives off gas in the dough.",
    "Sharks have no bones, only something softer and lighter.",
    "The first steam engines pumped water out of mines.",
    "Spiders have eight legs, and beetles have only six.",
    "Copper carries electricity better than almost any other metal.",
    "The shadow of the earth falls on the moon in an eclipse.",
    "Camels store fat in their humps, not water.",
    "Thunder follows lightning, since light outruns sound.",
    "Cheese is made from the milk of cows, goats, or sheep.",
)  # every fifth is for tuning only


def sentences(rng: np.random.Generator, tune: bool) -> Iterator[str]:
    """Different sentences without end: the facts of the split among filled frames."""
    facts = [text for index, text in enumerate(FACTS) if (index % 5 == 0) is tune]
    frames = [text for index, text in enumerate(FRAMES) if (index % 5 == 0) is tune]
    choices = {kind: text.split("|") if "|" in text else text.split() for kind, text in WORDS.items()}
    seen: set[str] = set()
    while True:
        if facts and rng.random() < 0.1:
            text = facts.pop(int(rng.integers(len(facts))))
        else:
            text = frames[int(rng.integers(len(frames)))]
            while blank := re.search(r"\{(\w+)\}", text):
                word = str(rng.choice(choices[blank[1]]))
                if word not in text:  # no word twice
                    text = text[: blank.start()] + word + text[blank.end() :]
            text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
            text = text[0].upper() + text[1:]
        if text not in seen:
            seen.add(text)
            yield text


# Synthesis ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speech:
    """A sound [samples] and its phones, with the end of each in samples."""

    wave: np.ndarray
    phones: tuple[str, ...]
    ends: tuple[float, ...]


def speak(voice: str, text: str, folder: Path, **settings: float) -> Speech:
    """`text` by a voice of flite at 16 kHz; `settings` are named as flite names its features."""
    path = folder / "speech.wav"
    command = ["flite", "-voice", voice, "-psdur", "-o", str(path)]
    for name, value in settings.items():
        command += ["--setf", f"{name}={value:.4f}"]
    printed = subprocess.run([*command, "-t", text], check=True, capture_output=True, text=True).stdout
    pairs = [item.rsplit(":", 1) for item in printed.split()]
    wave = read_audio(path, RATE)
    ends = tuple(min(float(end) * RATE, len(wave)) for _, end in pairs)
    return Speech(wave, tuple(phone for phone, _ in pairs), ends)


def resampled(speech: Speech, ratio: float) -> Speech:
    """`speech` played `ratio` times as fast, with pitch and formants higher by as much."""
    return Speech(resample(speech.wave, RATE * ratio, RATE), speech.phones, tuple(end / ratio for end in speech.ends))


# Alignment ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """Samples of the target from `start` to `stop`, and those of the source they come from; none where it is silent."""

    start: float
    stop: float
    source: tuple[float, float] | None


def spans(target: Speech, source: Speech) -> list[Span] | None:
    """Phone by phone, where in `source` each part of `target` is; None where the phones without pauses differ."""
    places, begin = [], 0.0
    for phone, end in zip(source.phones, source.ends, strict=True):
        places.append((phone, begin, end))
        begin = end
    found, begin, at = [], 0.0, 0
    for phone, end in zip(target.phones, target.ends, strict=True):
        if phone != PAUSE:
            while at < len(places) and places[at][0] == PAUSE:
                at += 1
        if at < len(places) and places[at][0] == phone:
            found.append(Span(begin, end, places[at][1:]))
            at += 1
        elif phone == PAUSE:
            found.append(Span(begin, end, None))
        else:
            return None
        begin = end
    return found if all(phone == PAUSE for phone, *_ in places[at:]) else None


def warped(source: np.ndarray, parts: Sequence[Span], length: int) -> np.ndarray:
    """`source` [samples] moved to the target's times by WSOLA, [length]."""
    times = np.array([[part.start, part.stop] for part in parts]).ravel()
    froms = np.array([part.source or (np.nan, np.nan) for part in parts]).ravel()
    silent = np.isnan(froms)
    froms = np.interp(np.arange(len(froms)), np.flatnonzero(~silent), froms[~silent])
    hop = WINDOW // 2
    centres = np.arange(0, length + hop, hop)
    # Two points at one time are a jump: an offset of less than a sample puts them in order.
    mapped = np.interp(centres, times + np.linspace(0, 1e-3, len(times)), froms)
    margin = WINDOW + SEARCH + hop
    padded = np.pad(source.astype(np.float64), margin)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    out = np.zeros(length + 3 * hop)
    expected: np.ndarray | None = None
    for centre, place in zip(centres, mapped, strict=True):
        first = int(round(min(place, len(source)))) - hop + margin
        if expected is not None:
            region = padded[first - SEARCH : first + SEARCH + WINDOW]
            energy = np.convolve(region**2, np.ones(WINDOW), "valid")
            likeness = np.correlate(region, expected, "valid") / np.sqrt(energy + 1e-3)
            first += int(np.argmax(likeness)) - SEARCH
        out[centre : centre + WINDOW] += window * padded[first : first + WINDOW]
        expected = padded[first + hop : first + hop + WINDOW]
    out = out[hop : hop + length]
    for part in parts:
        if part.source is None:
            out[int(part.start) : int(part.stop)] = 0.0
    return out.astype(np.float32)


def loudness(y: np.ndarray) -> np.ndarray:
    """Levels in dB of frames of 20 ms, of which 50 dB below the loudest is the least."""
    power = np.square(y[: len(y) // 320 * 320].reshape(-1, 320), dtype=np.float64).mean(1)
    return np.maximum(10 * np.log10(power + 1e-12), 10 * np.log10(power.max() + 1e-12) - 50)


def lag(y: np.ndarray, x: np.ndarray, most: int = 8) -> int:
    """The shift of `x` against `y`, in frames of 5 ms, at which their flux of energy below 4 kHz agrees best."""

    def flux(wave: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(wave, 320)[::80] * np.hanning(320)
        bands = np.abs(np.fft.rfft(frames, axis=1))[:, :80].reshape(len(frames), 10, 8).sum(-1)
        change = np.abs(np.diff(np.log(bands + 1e-2), axis=0)).sum(1)
        return (change - change.mean()) / (change.std() + 1e-9)

    a, b = flux(y), flux(x)
    count = min(len(a), len(b))
    scores = [(a[most : count - most] * b[most + k : count - most + k]).mean() for k in range(-most, most + 1)]
    return int(np.argmax(scores)) - most


# The folder ---------------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """What was made of a voice, and how well its pairs are aligned."""

    seconds: float = 0.0
    files: int = 0
    dropped: int = 0
    loudness: list[float] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.files:5d} files {self.seconds / 60:6.1f} min"
        if self.loudness:
            low, middle = np.percentile(self.loudness, [5, 50])
            near = np.mean(np.abs(self.lags) <= 2)
            text += (
                f" {self.dropped:4d} dropped; correlation of loudness {middle:.2f} (5 %: {low:.2f}), "
                f"median lag {5 * np.median(self.lags):.0f} ms, within 10 ms {near:.0%}"
            )
        return text


def write_pairs(folder: Path, split: str, voice: str, texts: Iterator[str], count: int, seed: int) -> Table:
    """Write `count` pairs of a voice of flite and its sources, and add their texts to those of the split."""
    rng = np.random.default_rng(seed)
    table = Table()
    for side in (split, f"{split}_source"):
        shutil.rmtree(folder / side / FOLDERS[voice], ignore_errors=True)
        (folder / side / FOLDERS[voice]).mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary, (folder / split / "text.tsv").open("a") as list_of_texts:
        while table.files < count:
            text = next(texts)
            name = SOURCES[voice][table.files % len(SOURCES[voice])]
            low, high = PITCH[name]
            pitch = float(np.exp(rng.uniform(np.log(low), np.log(high))))
            target = speak(voice, text, Path(temporary), duration_stretch=rng.uniform(0.92, 1.15))
            if not LEAST_SECONDS * RATE <= len(target.wave) <= MOST_SECONDS * RATE:
                continue
            source = speak(
                name, text, Path(temporary), duration_stretch=rng.uniform(0.8, 1.25), int_f0_target_mean=pitch,
                int_f0_target_stddev=pitch * rng.uniform(0.05, 0.25),
            )  # fmt: skip
            source = resampled(source, float(np.exp(rng.uniform(-0.16, 0.16))))
            parts = spans(target, source)
            if parts is None:
                table.dropped += 1
                continue
            moved = warped(source.wave, parts, len(target.wave))
            table.files += 1
            place = f"{FOLDERS[voice]}/{table.files:04d}.flac"
            for side, y in ((split, target.wave), (f"{split}_source", moved)):
                write_audio(folder / side / place, y / max(1.0, float(np.abs(y).max())), RATE)
            list_of_texts.write(f"{place}\t{text}\t{name}\n")
            table.seconds += len(target.wave) / RATE
            table.loudness.append(float(np.corrcoef(loudness(target.wave), loudness(moved))[0, 1]))
            table.lags.append(lag(target.wave, moved))
    return table


def link_voice(folder: Path, split: str, voice: Path, most_seconds: float) -> Table:
    """Link files of a recorded voice, in random order until there are enough, as targets and as their own sources."""
    table = Table()
    for side in (split, f"{split}_source"):
        shutil.rmtree(folder / side / voice.name, ignore_errors=True)
    paths = sorted(voice.glob("*.flac"))
    for index in np.random.default_rng(0).permutation(len(paths)):
        info = audio_info(paths[index])
        if table.seconds >= most_seconds:
            break
        table.seconds += info.seconds
        table.files += 1
        for side in (split, f"{split}_source"):
            place = folder / side / voice.name / paths[index].name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(paths[index], place)
            except OSError:  # another file system
                shutil.copyfile(paths[index], place)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Make aligned pairs of voices for voice conversion.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sounds", type=Path, default=Path("data/sounds"), help="the folder of fetch_sounds.py")
    parser.add_argument("--sentences", type=int, default=1600, help="of the woman for training; a quarter for the men")
    parser.add_argument("--tune", type=int, default=40, help="of the woman for tuning; a quarter for the men")
    parser.add_argument("--minutes", type=float, default=6.0, help="of each recorded voice for training")
    arguments = parser.parse_args()
    totals: dict[str, float] = {}
    for seed, (split, count) in enumerate((("train", arguments.sentences), ("tune", arguments.tune))):
        texts = sentences(np.random.default_rng(seed), split == "tune")
        (arguments.folder / split).mkdir(parents=True, exist_ok=True)
        (arguments.folder / split / "text.tsv").write_text("")
        for number, voice in enumerate(SOURCES):
            wanted = count if voice == MAIN else count // 4
            table = write_pairs(arguments.folder, split, voice, texts, wanted, 10 * seed + number)
            print(f"{split:6} {FOLDERS[voice]:18} {table}", flush=True)
            totals[split] = totals.get(split, 0.0) + table.seconds
        for voice in sorted(
            path for path in (arguments.sounds / "voices" / split).glob("*") if path.is_dir() and path.name not in LEFT
        ):
            table = link_voice(arguments.folder, split, voice, 60 * arguments.minutes)
            print(f"{split:6} {voice.name:18} {table}", flush=True)
            totals[split] += table.seconds
    for split, seconds in totals.items():
        print(f"{split}: {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
