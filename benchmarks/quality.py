"""How good is a trained run: Frechet distance of generated to held-out sounds, per class, beside three yardsticks.

    python benchmarks/quality.py RUN --heldout FOLDER [--count 256]

For every class it prints the squared Frechet distance on log-mel statistics (jaxdiff.evaluation.distances: 64 numbers a
sound, dB^2) between held-out sounds and
  generated    sounds of that class from the run (seed 1000)
  training     (a) the sounds it was trained on: what a perfect memory would score
  noise        (b) white noise shaped to the class's mean spectrum, at the levels of its sounds
  other        (c) held-out sounds of the nearest other class
and the distance of each generated sound to its nearest training sound over that of held-out sounds (1: as new as a new
recording, 0: copied). The last line is JSON.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import jax
import numpy as np

import jaxdiff
from jaxdiff import config as configuration
from jaxdiff.data import open_corpus
from jaxdiff.evaluation import frechet_distance, log_mel_statistics
from jaxdiff.evaluation.embeddings import EMBEDDING_RATE


def sounds(corpus, config, count):
    """Crops [n, samples] of up to `count` recordings per class, at the level that the task works at."""
    crop, by_class, rng = configuration.crop(config)._replace(speed=0.0), {}, np.random.default_rng(0)
    for r in corpus.recordings:
        if r.label is not None and len(by_class.setdefault(corpus.classes[r.label], [])) < count:
            by_class[corpus.classes[r.label]].append(crop.read(r, rng)["wave"])
    return {name: np.asarray(config.task.leveled(np.stack(waves))) for name, waves in by_class.items()}


def shaped_noise(waves, rng):
    """Stationary noise with the mean power spectrum of `waves` (smoothed over 20 Hz), one for each."""
    power = (np.abs(np.fft.rfft(waves, axis=-1)) ** 2).mean(0)
    shape = np.sqrt(np.convolve(power, np.ones(21) / 21, "same") / waves.shape[-1])
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(waves.shape), axis=-1) * shape, waves.shape[-1])
    level = np.sqrt((waves**2).mean(-1) / (waves**2).mean())
    return (noise * level[:, None]).astype(np.float32)


def embed(waves):
    pad = -len(waves) % 64
    waves = np.concatenate([waves, np.repeat(waves[-1:], pad, axis=0)])
    return np.concatenate([np.asarray(log_mel_statistics(waves[i : i + 64])) for i in range(0, len(waves), 64)])[
        : len(waves) - pad
    ]


def nearest(a, b, exclude_self=False):
    """Median over `a` of the distance to the nearest of `b`."""
    d = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return float(np.median(np.sort(d, axis=1)[:, 1 if exclude_self else 0]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--heldout", default="orchestra/test", help="folder with the same classes")
    parser.add_argument("--count", type=int, default=256, help="sounds per class, at most that many real ones")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--sampler")
    parser.add_argument("--guidance", type=float)
    options = parser.parse_args()

    pipeline = jaxdiff.load(options.run)
    if pipeline.sample_rate != EMBEDDING_RATE:
        raise SystemExit(f"the embedding is defined at {EMBEDDING_RATE} Hz, the run makes {pipeline.sample_rate} Hz")
    config = pipeline.config
    known = sounds(config.data.open()[0], config, options.count)
    held = sounds(open_corpus(options.heldout), config, options.count)
    held_embedded = {name: embed(waves) for name, waves in held.items()}
    rng, rows, seconds = np.random.default_rng(0), {}, 0.0
    columns = ("generated", "training", "noise", "other")
    print(f"{'class':10s}" + "".join(f"{c:>10s}" for c in columns) + f"  {'ratio':>6s} {'novelty':>8s}")
    for name in pipeline.classes:
        begin = time.perf_counter()
        sampling = {"steps": options.steps, "sampler": options.sampler, "guidance": options.guidance}
        made = pipeline(count=options.count, labels=name, seed=1000, **sampling).waves
        seconds += time.perf_counter() - begin
        target, own, made = held_embedded[name], embed(known[name]), embed(np.stack(made))
        others = {k: frechet_distance(e, target) for k, e in held_embedded.items() if k != name}
        neighbour = min(others, key=others.get)
        row = {
            "generated": frechet_distance(made, target),
            "training": frechet_distance(own, target),
            "noise": frechet_distance(embed(shaped_noise(known[name], rng)), target),
            "other": others[neighbour],
            "nearest_class": neighbour,
            "novelty": nearest(made, own) / nearest(target, own),
            "training_sounds": len(own),
            "heldout_sounds": len(target),
        }
        row["ratio"] = row["generated"] / row["training"]
        rows[name] = row
        numbers = "".join(f"{row[k]:10.1f}" for k in columns)
        print(f"{name:10s}{numbers}  {row['ratio']:6.2f} {row['novelty']:8.2f}  (nearest: {neighbour})", flush=True)
    versions = {"jaxdiff": jaxdiff.__version__, "jax": jax.__version__, "python": platform.python_version()}
    result = {"run": str(options.run), "step": pipeline.step, "checkpoint": pipeline.fingerprint, "classes": rows}
    print(json.dumps(result | {"device": jax.devices()[0].device_kind, "versions": versions, "seconds": seconds}))


if __name__ == "__main__":
    main()
