"""The loader beside the training that it feeds: seconds of sound that each gets through in a second of one core.

    python benchmarks/loader.py [--files 20000] [--batches 60] [--configs quickstart vocoder_16k]

Crops of one second at 16 kHz in batches of 16 are read from folders of 44.1 kHz WAV, FLAC, OGG and MP3 (resampled), of
one hour-long file each, and of one-second WAVs at 16 kHz, as files and packed into shards; `memory` keeps decoded
sounds. Then a folder of `--files` one-second WAVs is opened twice, the second time with its index. Last the training
steps of configurations on one batch, from sound to updated weights. Seconds are those of processors, summed over
threads, which other programs on the machine change little. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parent))

BATCH, RATE, SOURCE = 16, 16_000, 44_100


def music(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Decaying partials over a little noise, so that codecs have work as with real sounds."""
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * rate)) / rate
    y = 0.01 * rng.standard_normal(len(t))
    for f, begin in zip(rng.uniform(80, 4000, 12), rng.uniform(0, 1, 12), strict=True):
        y += 0.1 * np.sin(2 * np.pi * f * t) * np.exp(-3 * ((t - begin) % 1))
    return np.clip(y, -1, 1).astype(np.float32)


def write(path: Path, minutes: list[np.ndarray], rate: int) -> None:
    """A file of these sounds one after the other; in small blocks, which libsndfile's Vorbis needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:].upper()
    options = {"compression_level": 0.5, "bitrate_mode": "VARIABLE"} if kind == "MP3" else {}
    with soundfile.SoundFile(path, "w", rate, 1, format=kind, **options) as file:
        for y in minutes:
            for i in range(0, len(y), 1 << 16):
                file.write(y[i : i + (1 << 16)])


def sources(root: Path) -> None:
    parts = [music(20, SOURCE, seed) for seed in range(8)]
    for kind in ("wav", "flac", "ogg", "mp3"):
        for i, part in enumerate(parts):
            write(root / kind / f"{i}.{kind}", [part], SOURCE)
            for j in range(1, 16):  # more names for it, since Grain takes milliseconds to shuffle few
                os.link(root / kind / f"{i}.{kind}", root / kind / f"{i}-{j}.{kind}")
        write(root / f"hour of {kind}" / f"long.{kind}", parts * 22, SOURCE)
    for i in range(2000):
        write(root / "short wav" / f"{i % 10}" / f"{i:05d}.wav", [parts[i % 8][i : i + RATE]], RATE)


def speed(root: Path, count: int, memory: float) -> float:
    """Seconds of sound per second of one core, after the loader ran in."""
    from jaxdiff.data import Crop, batches, open_corpus

    made = batches(open_corpus(str(root)), Crop(RATE, RATE), BATCH, 0, memory=memory)
    for _ in range(10):  # more than are read ahead
        next(made)
    start = time.process_time()
    for _ in range(count):
        next(made)
    return BATCH * count / (time.process_time() - start)


def opening(root: Path, files: int) -> tuple[float, float]:
    from jaxdiff.data import open_corpus

    original = root / "original.wav"
    write(original, [music(1, RATE, 0)], RATE)
    for i in range(files):
        folder = root / "many" / f"{i % 20}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(original, folder / f"{i:06d}.wav")
    times = []
    for _ in range(2):
        start = time.process_time()
        open_corpus(str(root / "many"))
        times.append(time.process_time() - start)
    return times[0], times[1]


def appetite(path: Path) -> float:
    """Seconds of sound per second of one core of the compiled training step of a configuration."""
    import jax
    from overhead import parts

    from jaxdiff import config as configuration

    step, state, shapes = parts(configuration.load_config(path))
    rng = np.random.default_rng(0)
    batch = {"wave": 0.1 * rng.standard_normal(shapes["wave"].shape, np.float32)}
    batch["label"] = np.zeros(shapes["label"].shape, np.int32)
    state, times = jax.jit(state)(), []
    for _ in range(6):
        start = time.process_time()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(time.process_time() - start)
    return batch["wave"].size / configuration.load_config(path).data.sample_rate / statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--configs", nargs="*", default=["quickstart", "vocoder_16k"])
    args = parser.parse_args()
    from jaxdiff.data import open_corpus
    from jaxdiff.data.packing import pack

    read, steps = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["JAXDIFF_CACHE"] = str(root / "cache")
        sources(root / "sounds")
        for name in ("short wav", "hour of mp3"):
            pack(open_corpus(str(root / "sounds" / name)), root / "sounds" / f"{name}, packed")
        for path in sorted((root / "sounds").iterdir()):
            read[path.name] = round(speed(path, args.batches, 0), 1)
            print(f"{path.name:24s} {read[path.name]:10.1f} s of sound per s", flush=True)
        read["short wav, memory"] = round(speed(root / "sounds" / "short wav", 4 * args.batches, 2**30), 1)
        print(f"{'short wav, memory':24s} {read['short wav, memory']:10.1f} s of sound per s", flush=True)
        first, again = (round(seconds, 2) for seconds in opening(root, args.files))
        print(f"{args.files} files opened in {first} s, and again in {again} s", flush=True)
        for name in args.configs:
            steps[name] = round(appetite(Path(__file__).parent.parent / "configs" / f"{name}.yaml"), 1)
            print(f"{name:24s} {steps[name]:10.1f} s of sound per s of training", flush=True)
    cores = len(os.sched_getaffinity(0))
    print(json.dumps({"loader": read, "opening": [first, again], "training": steps, "cores": cores}))


if __name__ == "__main__":
    main()
