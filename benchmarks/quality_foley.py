"""How well made sounds keep to their cues, and whether they are of the class that was asked for.

    python benchmarks/quality_foley.py RUN_OR_MODEL --heldout FOLDER [--patterns 16] [--count 48] [--out FOLDER]

Patterns are drawn anew (seed 1000): a cue every 0.25 to 1 s, strengths even over 30 dB. Each is made by the model and,
as a yardstick, composed of a held-out recording of the class: what the detector of onsets finds in that is the best
there is, since a quiet cue may drown in what still rings.

    hit         share of cues with an onset within 100 ms (jaxdiff.evaluation.onsets, which sees no conditions)
    AP          average precision of the onsets, ordered by how far they rise
    offset      median distance of an onset to its cue, and delay the same with its sign, in ms
    strength    correlation of what was asked for with the level that was made, in dB
    RMS L1      mean distance in dB of the levels of 10 ms, down to -60 dB, to the composed pattern; beside it that of
                two patterns composed of different recordings, and of the model when it is told the contour too

Then the squared Frechet distances of `quality.py`: the first second of single sounds of a class to held-out ones,
beside training sounds, shaped noise and the nearest other class. The last line is JSON.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import jax
import numpy as np
from quality import embed, nearest, shaped_noise, sounds

import jaxdiff
from jaxdiff.data import open_corpus, write_audio
from jaxdiff.data.cues import Cue, cut_cues
from jaxdiff.evaluation import frechet_distance
from jaxdiff.evaluation.embeddings import EMBEDDING_RATE
from jaxdiff.evaluation.onsets import levels_at, onsets, synchrony
from jaxdiff.tasks.foley import Foley, Pattern, composed

MOST, TOGETHER = 16, 8  # cues of a pattern, and items of a program
LEAST_DB = -60.0


def drawn_patterns(count: int, seconds: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Patterns [cues, 2] of times and strengths that end half a second before the sound does."""
    made = []
    for _ in range(count):
        steps = rng.uniform(0.25, 1.0) * np.where(rng.random() < 0.5, 1.0, rng.uniform(0.5, 1.5, MOST))
        times = rng.uniform(0.05, 0.3) + np.concatenate(
            [[0], np.cumsum(np.maximum(0.25, np.broadcast_to(steps, MOST)))]
        )
        times = times[times < seconds - 0.5][:MOST]
        made.append(np.stack([times, rng.uniform(0, 1, len(times))], axis=1).astype(np.float32))
    return made


def in_batches(pipeline, label: int, more: dict[str, np.ndarray], samples: int, **knobs) -> np.ndarray:
    """What the model makes of a class and of what `more` holds for each item."""
    count, made = len(next(iter(more.values()))), []
    for first in range(0, count, TOGETHER):
        index = np.minimum(np.arange(first, first + TOGETHER), count - 1)
        batch = {name: values[index] for name, values in more.items()}
        batch |= {"wave": np.zeros((TOGETHER, samples), np.float32), "label": np.full(TOGETHER, label, np.int32)}
        made.append(pipeline.of_batch(batch, seed=1000 + first, **knobs)[: count - first])
    return np.concatenate(made)


def levels(y: np.ndarray, rate: int) -> np.ndarray:
    """The level of each 10 ms in dB, at least -60."""
    size = rate // 100
    power = np.square(y[..., : y.shape[-1] // size * size].reshape(*y.shape[:-1], -1, size)).mean(-1)
    return np.maximum(10 * np.log10(power + 1e-12), LEAST_DB)


def kept_cues(patterns: list[np.ndarray], waves: np.ndarray, rate: int) -> dict[str, float]:
    """How well sounds keep to their patterns."""
    found = synchrony([p[:, 0] for p in patterns], [onsets(y, rate) for y in waves])
    heard = [levels_at(y, rate, p[:, 0]) for p, y in zip(patterns, waves, strict=True)]
    strength = np.corrcoef(np.concatenate([p[:, 1] for p in patterns]), np.concatenate(heard))[0, 1]
    return {
        "hit": found.hit_rate,
        "AP": found.average_precision,
        "offset": 1000 * found.offset,
        "delay": 1000 * found.delay,
        "strength": float(strength),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run's folder, a file of weights or a shipped model's name")
    parser.add_argument("--heldout", default="data/foley/test", help="folder with the same classes")
    parser.add_argument("--patterns", type=int, default=16, help="of each class")
    parser.add_argument("--count", type=int, default=48, help="single sounds of each class")
    parser.add_argument("--classes", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, help="write the first two patterns of each class, made and composed, here")
    parser.add_argument("--train", help="folder of the training sounds, the configuration's by default")
    for knob, kind in (("steps", int), ("sampler", str), ("guidance", float)):
        parser.add_argument(f"--{knob}", type=kind)
    asked = parser.parse_args()
    pipeline, knobs = jaxdiff.load(asked.model), {k: getattr(asked, k) for k in ("steps", "sampler", "guidance")}
    rate, task, config, r = pipeline.sample_rate, pipeline.model.task, pipeline.config, pipeline.model.representation
    if not isinstance(task, Foley) or config is None:
        raise SystemExit(f"{asked.model}: expected a model of task foley, got {type(task).__name__}")
    if rate != EMBEDDING_RATE:
        raise SystemExit(f"the embedding is defined at {EMBEDDING_RATE} Hz, the run makes {rate} Hz")
    known = sounds(open_corpus(config.data.path if asked.train is None else asked.train), config, 256)
    held = sounds(open_corpus(asked.heldout), config, 256)
    samples = next(iter(held.values())).shape[-1]
    begin, rng, rows = time.perf_counter(), np.random.default_rng(1000), {}
    names = asked.classes or pipeline.classes
    columns = ("hit", "AP", "offset", "delay", "strength")
    print(f"{'class':9s}" + "".join(f"{c:>16s}" for c in columns) + f"{'RMS L1':>24s}")
    print(f"{'':9s}" + f"{'made  composed':>16s}" * len(columns) + f"{'made  composed  told':>24s}")
    for name in names:
        label = pipeline.label(name, 0)
        patterns = drawn_patterns(asked.patterns, samples / rate, rng)
        recordings = held[name][rng.permutation(np.resize(np.arange(len(held[name])), 2 * asked.patterns))]
        padded = Pattern(*np.moveaxis(np.stack([np.pad(p, ((0, MOST - len(p)), (0, 0))) for p in patterns]), -1, 0))
        silent = np.arange(MOST) >= np.array([len(p) for p in patterns])[:, None]
        padded = Pattern(padded.seconds, np.where(silent, -np.inf, padded.strength).astype(np.float32))
        real, other = (np.asarray(composed(recordings[i::2], padded, rate)) for i in (0, 1))
        length = samples / rate
        cues = np.stack([cut_cues([Cue(t, name, s) for t, s in p.tolist()], 0, length, most=MOST)[0] for p in patterns])
        contour = np.asarray(jax.jit(lambda y: task.contour(y, r))(real))
        made = in_batches(pipeline, label, {"cues": cues}, samples, **knobs)
        told = in_batches(pipeline, label, {"cues": cues, "contour": contour}, samples, **knobs)
        row, best = kept_cues(patterns, made, rate), kept_cues(patterns, real, rate)
        apart = {k: float(np.abs(levels(y, rate) - levels(real, rate)).mean())
                 for k, y in (("made", made), ("composed", other), ("told", told))}  # fmt: skip
        rows[name] = {"made": row, "composed": best, "rms_l1_db": apart}
        text = "".join(f"{row[c]:8.2f}{best[c]:8.2f}" for c in columns)
        print(f"{name:9s}{text}" + "".join(f"{v:8.1f}" for v in apart.values()), flush=True)
        for i in range(2 if asked.out else 0):
            asked.out.mkdir(parents=True, exist_ok=True)
            write_audio(asked.out / f"{name}-{i}-made.wav", np.clip(made[i], -1, 1), rate)
            write_audio(asked.out / f"{name}-{i}-composed.wav", np.clip(real[i], -1, 1), rate)
    columns = ("generated", "training", "noise", "other")
    print(f"\n{'class':9s}" + "".join(f"{c:>10s}" for c in columns) + f"{'novelty':>9s}")
    one = np.tile(np.array([[0, 1]], np.float32), (asked.count, 1, 1))
    first = lambda waves: waves[:, :rate]  # noqa: E731
    held_embedded = {name: embed(first(waves)) for name, waves in held.items()}
    for name in names:
        target, own = held_embedded[name], embed(first(known[name]))
        made = embed(first(in_batches(pipeline, pipeline.label(name, 0), {"cues": one}, samples, **knobs)))
        others = {k: frechet_distance(e, target) for k, e in held_embedded.items() if k != name}
        generated = {k: frechet_distance(made, e) for k, e in held_embedded.items()}
        row = {
            "generated": generated[name],
            "training": frechet_distance(own, target),
            "noise": frechet_distance(embed(shaped_noise(first(known[name]), rng)), target),
            "other": min(others.values()),
            "novelty": nearest(made, own) / (nearest(target, own) or np.nan),
            "nearest_class": min(generated, key=lambda k: generated[k]),
        }
        rows[name] |= {"frechet": row}
        numbers = "".join(f"{row[k]:10.1f}" for k in columns)
        near = min(others, key=lambda k: others[k])
        print(
            f"{name:9s}{numbers}{row['novelty']:9.2f}  (other: {near}; made is nearest to {row['nearest_class']})",
            flush=True,
        )
    result = {"model": asked.model, "step": pipeline.step, "checkpoint": pipeline.fingerprint, "classes": rows}
    result |= pipeline.facts(pipeline.sampling) | {k: v for k, v in knobs.items() if v is not None}
    versions = {"jaxdiff": jaxdiff.__version__, "jax": jax.__version__, "python": platform.python_version()}
    print(json.dumps(result | {"versions": versions, "seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
