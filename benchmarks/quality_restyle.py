"""How far clips come into another style, and what of them is left, with the constraints and without.

    python benchmarks/quality_restyle.py [MODEL] [--pairs flute:violin ...] [--strengths 0.4 0.6 0.8] [--split test]

MODEL is `styles-16k` or a run's folder. The clips are the melodies of data/music/judge_SPLIT (`fetch_music.py`), which
no training saw.

    way        of the Frechet distance to the style (musicnn's MTT_vgg, 16 principal components): 0 as the clip, 1 there
    tag        probability of the style's tag, and of the source's (nan where musicnn has none)
    melody     share of pitched frames within 50 cents of the clip's pitch
    loudness   correlation with the clip's contour

`bridge` are rows by the dual bridge from the source's style. Needs what `measures_music.py` says.
"""

import argparse
from pathlib import Path

import numpy as np
from measures import RATE
from measures_music import Musicnn, frechet
from quality_convert import files

from jaxdiff import load
from jaxdiff.data import read_audio
from jaxdiff.inference.contours import contours
from jaxdiff.inference.restyle import FEATURES, HIGHEST_HZ, fidelity, keep_of, restyler

PAIRS = ("flute:violin", "clarinet:violin", "trumpet:flute")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="styles-16k")
    parser.add_argument("--pairs", nargs="*", default=PAIRS)
    parser.add_argument("--strengths", nargs="*", type=float, default=(0.8, 0.9))
    parser.add_argument("--split", choices=("tune", "test"), default="test")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--data", type=Path, default=Path("data/music"))
    asked = parser.parse_args()
    pipeline, tagger = load(asked.model), Musicnn("MTT_vgg")
    folder = asked.data / f"judge_{asked.split}"
    for pair in asked.pairs:
        source, _, style = pair.partition(":")
        paths = files(folder / source, "melody", asked.clips)
        clips = [read_audio(path, RATE) for path in paths]
        before = [contours(y, sr=RATE, highest=HIGHEST_HZ) for y in clips]
        real = [tagger(read_audio(folder / style / path.name, RATE)) for path in paths]
        there = np.concatenate([tags.embedding for tags in real])
        begin = frechet(np.concatenate([tagger(y).embedding for y in clips]), there)
        print(f"\n{source} to {style:24s}{'way':>8s}{style:>10s}{source:>10s}{'melody':>8s}{'loudness':>10s}")

        def row(label: str, made: list[np.ndarray], begin=begin, there=there, before=before, pair=(style, source)):
            tags = [tagger(y) for y in made]
            way = 1 - frechet(np.concatenate([t.embedding for t in tags]), there) / begin
            heard = lambda tag: [tagger.probability(t, tag) for t in tags if tag in tagger.labels] or [np.nan]  # noqa: E731
            probable = [np.mean(heard(tag)) for tag in pair]
            after = [contours(y, sr=RATE, highest=HIGHEST_HZ) for y in made]
            left = np.mean([fidelity(a, b) for a, b in zip(before, after, strict=True)], axis=0)
            values = (way, *probable, *left)
            print(
                f"{label:32s}{values[0]:8.2f}{values[1]:10.2f}{values[2]:10.2f}{values[3]:8.2f}{values[4]:10.2f}",
                flush=True,
            )

        row("the clip", clips)
        row("the style's own render", [read_audio(folder / style / path.name, RATE) for path in paths])
        label = pipeline.label(style, 0)
        for strength in asked.strengths:
            for name, own in (("noised", None), ("bridge", source)):
                for names in (FEATURES, ()):
                    one = restyler(pipeline, strength=strength, source_label=own)
                    request = keep_of(names, label)
                    made = [one(y, sr=RATE, request=request).waves[0] for y in clips]
                    row(f"{strength:.2f} {name}, {'kept' if names else 'nothing kept'}", made)


if __name__ == "__main__":
    main()
