"""How well voices are converted: whose voice is heard, and what of words, intonation and rhythm is left.

    python benchmarks/quality_voice.py [MODEL] [--to woman] [--split tune] [--sentences 40] [--clips 8]

MODEL is `voice-16k` or a run's folder, with @steps=N another number of steps. Two sets that no training
of it saw (vocoder-16k heard nexuiz-tutorial):

    pair     sentences of data/voices/SPLIT (`fetch_voices.py`) said by synthetic men, against the target's own
    men      recorded men: nexuiz-tutorial, and men of data/sounds/voices/{tune,test}

    target, source    cosine of resemblyzer embeddings to the target's voice and to the clip's own
    above             share of clips nearer to the target than to the source
    F0                median against the target's, in semitones
    words             word error rate of pocketsphinx against the text; of men against what it hears in the source
    phones            rate of phones that pocketsphinx hears otherwise than in the source (about .95 between any two)
    voicing           median distance of voiced on- and offsets to the source's, in ms
    loudness          correlation with the source's

Needs what `measures_voice.py` says.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from measures import RATE
from measures_voice import (
    clips,
    error_rate,
    fidelity,
    phones,
    pitch,
    pitch_statistics,
    recognised,
    semitones,
    similarity,
    texts,
    voice_embedding,
    words,
)

from jaxdiff import load
from jaxdiff.data import read_audio
from jaxdiff.inference.contours import contours
from jaxdiff.inference.convert import named_voice, recorded_voice, voice

MEN = {
    "nexuiz-tutorial": "train",
    "klettres-lt": "tune",
    "tuxpaint-ca": "tune",
    "klettres-hu": "test",
    "tuxpaint-ru": "test",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="voice-16k")
    parser.add_argument("--to", default="woman")
    parser.add_argument("--target-voice", type=Path, help="a folder of recordings in place of --to")
    parser.add_argument("--split", default="tune")
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--clips", type=int, default=8, help="of each recorded man")
    parser.add_argument("--men", nargs="*", default=list(MEN))
    parser.add_argument("--data", type=Path, default=Path("data"))
    asked = parser.parse_args()
    name, _, steps = asked.model.partition("@steps=")
    pipeline, options = load(name), {"steps": int(steps)} if steps else {}
    spent = {"sound": 0.0, "time": 0.0}
    own = sorted((asked.data / "voices/train" / asked.to).glob("*.flac"))
    if asked.target_voice is None:
        who = named_voice(pipeline, asked.to)
    else:
        own = sorted(asked.target_voice.rglob("*.flac"))
        who = recorded_voice(pipeline, own)
    examples = [read_audio(path, RATE) for path in own[:: max(1, len(own) // 30)][:30]]
    target = voice_embedding(examples)
    wanted = float(np.median([pitch_statistics(pitch(y)).median for y in examples]))

    def converted(y: np.ndarray) -> np.ndarray:
        begin = time.perf_counter()
        prepared = voice(pipeline, contours(y, sr=RATE), who)
        made = pipeline(y, sr=RATE, request=prepared.request, also=prepared.also, **options).waves[0]
        spent["sound"], spent["time"] = spent["sound"] + len(y) / RATE, spent["time"] + time.perf_counter() - begin
        return made

    columns = ("target", "source", "above", "F0", "words", "phones", "voicing", "loudness")
    print(f"{'':28s}" + "".join(f"{column:>10s}" for column in columns))

    def row(label: str, pairs: list, source: np.ndarray, references: list | None) -> None:
        """One row of the table, of (source clip, converted clip)."""
        near = np.array([(similarity(made, target), similarity(made, source)) for _, made in pairs])
        left = [fidelity(before, made) for before, made in pairs]
        heard = [recognised(made) for _, made in pairs]
        said = [recognised(before) for before, _ in pairs] if references is None else references
        other = error_rate([phones(before) for before, _ in pairs], [phones(made) for _, made in pairs])
        median = float(np.median([pitch_statistics(pitch(made)).median for _, made in pairs]))
        values: list[Any] = [*near.mean(0), (near[:, 0] > near[:, 1]).mean(), semitones(wanted, median)]
        values += [error_rate(said, heard), other]
        values += [np.nanmean([one[key] for one in left]) for key in ("voicing_ms", "loudness_correlation")]
        print(f"{label:28s}" + "".join(f"{value:10.3f}" for value in values), flush=True)

    known = texts(asked.data / "voices" / asked.split / "text.tsv")
    names = [n for n in known if n.startswith(f"{asked.to}/")][: asked.sentences]
    if names and asked.target_voice is None:
        folder = asked.data / "voices"
        targets = [read_audio(folder / asked.split / n, RATE) for n in names]
        sources = [read_audio(folder / f"{asked.split}_source" / n, RATE) for n in names]
        said = [words(known[n]) for n in names]
        man = voice_embedding(sources)
        row("pair: the target herself", list(zip(sources, targets, strict=True)), man, said)
        row("pair: the source", list(zip(sources, sources, strict=True)), man, said)
        row("pair: converted", [(y, converted(y)) for y in sources], man, said)
    for man in asked.men:
        sources = clips(asked.data / "sounds/voices" / MEN[man] / man, asked.clips)
        row(f"{man}: the source", [(y, y) for y in sources], voice_embedding(sources), None)
        row(f"{man}: converted", [(y, converted(y)) for y in sources], voice_embedding(sources), None)
    print(f"real-time factor {spent['time'] / max(spent['sound'], 1e-9):.3f}, compilation included")


if __name__ == "__main__":
    main()
