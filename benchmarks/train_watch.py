"""Train the network of `jaxdiff watch` on scenes that are drawn for it, and score it beside the rules on unseen ones.

    python benchmarks/train_watch.py [--seed 0] [--scenes 2000] [--steps 5000] [--unseen 160] [--out FILE]
        [--score-only]

Scene i of training is `draw_scene(np.random.default_rng([seed, i]))` of `watch_scenes.py`, and of scoring
`default_rng([seed + 2000, i])`. The network learns a bump of 25 ms around each contact by cross-entropy; places within
80 ms of the ends of a shot do not count. In training curves are mirrored, and moved faster and slower. Scores:
contacts and cues within 100 ms are pairs (`jaxdiff.evaluation.onsets`); AP is the average precision over all
thresholds, hit and precision are at the default one. Last come cuts: how many are found, and how many cues stand
within 50 ms of one.
"""

import argparse
import json
import multiprocessing
import os
import platform
import time
from pathlib import Path

import numpy as np
from watch_scenes import STRIKING, draw_scene

BUMP = 0.025  # seconds
KINDS = (*STRIKING, "none")


def example(arguments: tuple) -> dict:
    """What is seen of a scene: everything that training and scores need."""
    from jaxdiff.inference.watch import gridded, see

    scene = draw_scene(np.random.default_rng(arguments[0]), arguments[1])
    seen = see(scene.frames)
    return {"seen": seen, "grid": gridded(seen), "contacts": scene.contacts, "cuts": scene.cuts, "kind": scene.kind}


def examples(seeds: list[list[int]], kinds: list[str | None]) -> list[dict]:
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        return pool.map(example, list(zip(seeds, kinds, strict=True)), chunksize=8)


def train(found: list[dict], seed: int, steps: int):
    """The trained detector."""
    import jax
    import jax.numpy as jnp
    import optax

    from jaxdiff.features.motion import CHANGES, CURVES, VELOCITIES
    from jaxdiff.inference.watch import Detector, inputs, make_network

    rng, network = np.random.default_rng(seed), make_network()
    length = round(1.2 * max(len(e["grid"][0]) for e in found))
    first = inputs({name: np.concatenate([e["grid"][1][name] for e in found]) for name in CURVES})
    detector = Detector(network, network.init(jax.random.key(seed)), first.mean(0), first.std(0) + 1e-3)
    swapped = {"right_going": "left_going", "left_going": "right_going"}

    def one(e: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, targets and what counts of a scene that is mirrored, played faster or slower and lit otherwise."""
        seconds, curves, _ = e["grid"]
        faster, contrast, mirrored = np.exp(rng.uniform(-0.3, 0.3)), np.exp(rng.uniform(-0.5, 0.5)), rng.random() < 0.5
        now = np.arange(0, len(seconds) - 1, faster)[:length]
        times, made = np.interp(now, np.arange(len(seconds)), seconds), {}
        for name in CURVES:
            curve = np.interp(now, np.arange(len(seconds)), curves[swapped.get(name, name) if mirrored else name])
            curve *= faster if name in VELOCITIES else contrast if name in CHANGES else 1
            made[name] = curve * (-1 if mirrored and name == "camera_x" else 1)
        distance = (
            (times[:, None] - e["contacts"][None]) / faster if len(e["contacts"]) else np.full((len(now), 1), 9.0)
        )
        target = np.exp(-0.5 * (distance / BUMP) ** 2).max(1)
        counts = np.ones(len(now))
        for at in (seconds[0], seconds[-1], *e["cuts"]):
            counts[np.abs(times - at) < 0.08] = 0
        x = (inputs(made) - detector.mean) / detector.deviation
        x += 0.1 * rng.normal(size=x.shape)
        fill = length - len(x)
        return np.pad(x, ((0, fill), (0, 0))), np.pad(target, (0, fill)), np.pad(counts, (0, fill))

    def loss(params, x, target, counts):
        logits = network.apply(params, x)
        each = optax.sigmoid_binary_cross_entropy(logits, target) * (1 + 4 * target)
        return (each * counts).sum() / counts.sum()

    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))

    @jax.jit
    def step(params, state, average, n, *batch):
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        change, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, change)
        keep = jnp.minimum(0.995, n / (n + 10))
        return params, state, jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params), value

    params = average = detector.params
    state, values, begin = optimizer.init(params), [], time.perf_counter()
    for n in range(steps):
        rows = [one(found[i]) for i in rng.integers(0, len(found), 24)]
        batch = [jnp.asarray(np.stack(part), jnp.float32) for part in zip(*rows, strict=True)]
        params, state, average, value = step(params, state, average, n, *batch)
        values.append(value)
        if (n + 1) % 250 == 0:
            print(
                f"step {n + 1:5d}  loss {np.mean(values[-250:]):.4f}  {time.perf_counter() - begin:.0f} s", flush=True
            )
    return detector._replace(params=average)


def score(found: list[dict], impacts, threshold: float) -> dict[str, float]:
    """How well peaks keep to contacts; `impacts(example)` is the curve whose peaks count."""
    from jaxdiff.evaluation.onsets import Onsets, pairs, synchrony
    from jaxdiff.inference.watch import onsets_of

    every, hits, cues, near_cuts = [], 0, 0, 0
    for e in found:
        curve = impacts(e)
        times, heights = onsets_of(curve, e["grid"][0], 0.02)
        every.append(Onsets(times, heights))
        sure = times[heights >= threshold]
        hits, cues = hits + len(pairs(e["contacts"], sure)), cues + len(sure)
        near_cuts += int((np.abs(sure[:, None] - e["cuts"][None]) < 0.05).sum())
    made = synchrony([e["contacts"] for e in found], every)
    contacts = sum(len(e["contacts"]) for e in found)
    return {
        "contacts": contacts,
        "AP": made.average_precision,
        "hit": hits / contacts if contacts else np.nan,
        "precision": hits / cues if cues else np.nan,
        "offset_ms": 1000 * made.offset,
        "delay_ms": 1000 * made.delay,
        "false_per_minute": (cues - hits) / (sum(len(e["grid"][0]) for e in found) / 3600),
        "near_cuts": near_cuts,
    }


def report(found: list[dict], detector) -> dict:
    """The table of rules and network by kind of scene."""
    from jaxdiff.inference.watch import THRESHOLD, by_network, by_rules, vetoed

    ways = {
        "rules": lambda e: vetoed(by_rules(e["grid"][1]), e["grid"][0], e["seen"]),
        "network": lambda e: vetoed(by_network(e["grid"][1], detector), e["grid"][0], e["seen"]),
    }
    columns = ("contacts", "AP", "hit", "precision", "offset_ms", "delay_ms", "false_per_minute")
    rows: dict[str, dict] = {}
    for way, impacts in ways.items():
        print(f"{way:10s}" + "".join(f"{c:>17s}" for c in columns))
        for kind in (*KINDS, "all"):
            some = [e for e in found if kind in (e["kind"], "all")]
            row = score(some, impacts, THRESHOLD)
            rows.setdefault(way, {})[kind] = row
            print(f"{kind:10s}" + "".join(f"{row[c]:17.3f}" for c in columns), flush=True)
    true = [c for e in found for c in e["cuts"]]
    named = [c for e in found for c in e["seen"].seconds[e["seen"].cuts]]
    met = sum(
        np.isclose(e["cuts"][:, None], e["seen"].seconds[e["seen"].cuts][None], atol=0.01).any(1).sum() for e in found
    )
    print(f"cuts: {met} of {len(true)} found, {len(named) - met} more named")
    return rows | {"cuts": len(true), "found": int(met), "more": int(len(named) - met)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--unseen", type=int, default=160, help="scenes to score, the same number of each kind")
    parser.add_argument("--out", type=Path, help="where the weights go (jaxdiff/weights/watch.safetensors)")
    parser.add_argument("--score-only", action="store_true", help="of the weights that ship")
    asked = parser.parse_args()
    from jaxdiff.inference import watch

    begin = time.perf_counter()
    kinds = [KINDS[i % len(KINDS)] for i in range(asked.unseen)]
    if asked.score_only:
        detector = watch.pretrained()
    else:
        found = examples([[asked.seed, i] for i in range(asked.scenes)], [None] * asked.scenes)
        print(f"{asked.scenes} scenes seen in {time.perf_counter() - begin:.0f} s", flush=True)
        detector = train(found, asked.seed, asked.steps)
        watch.save(asked.out or watch.WEIGHTS, detector)
    rows = report(examples([[asked.seed + 2000, i] for i in range(asked.unseen)], kinds), detector)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seed": asked.seed, "scores": rows, "seconds": seconds, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
