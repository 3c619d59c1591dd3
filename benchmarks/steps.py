"""Quality against the number of network evaluations, for samplers and time grids, on a trained run.

    python benchmarks/steps.py RUN --heldout FOLDER [--count 32] [--picture benchmarks/steps.png]

The figure is the squared Frechet distance to held-out sounds (as in quality.py), in units of that between training and
held-out sounds, averaged over the classes as a geometric mean. Every method makes the same sounds of the same noise.
Writes the picture, prints a table and one JSON line.
"""

import argparse
import json
import math
from pathlib import Path

import jax
import numpy as np
from quality import embed, sounds

import jaxdiff
from jaxdiff.data import open_corpus
from jaxdiff.diffusion import SAMPLERS
from jaxdiff.evaluation import frechet_distance

METHODS = [
    ("euler", "uniform"),
    ("euler", "cosine"),
    ("heun", "uniform"),
    ("heun", "cosine"),
    ("dpmpp_2m", "uniform"),
    ("dpmpp_2m", "cosine"),
    ("dpmpp_3m", "cosine"),
    ("unipc2", "cosine"),
    ("lms3", "uniform"),
    ("ancestral", "uniform"),
    ("sde_dpmpp_2m", "cosine"),
]
EVALUATIONS = (4, 8, 16, 32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--heldout", default="orchestra/test")
    parser.add_argument("--count", type=int, default=32, help="sounds per class")
    parser.add_argument("--picture", type=Path, default=Path(__file__).parent / "steps.png")
    options = parser.parse_args()

    pipeline = jaxdiff.load(options.run)
    config = pipeline.config
    known, held = (
        {name: embed(waves) for name, waves in sounds(corpus, config, 256).items()}
        for corpus in (config.data.open()[0], open_corpus(options.heldout))
    )
    classes = pipeline.classes
    yardstick = {name: frechet_distance(known[name], held[name]) for name in classes}

    def score(sampler, spacing, steps):
        knobs = dict(steps=steps, sampler=sampler, spacing=spacing)
        made = embed(np.stack(pipeline(count=options.count * len(classes), seed=1000, **knobs).waves))
        ratios = [frechet_distance(made[i :: len(classes)], held[c]) / yardstick[c] for i, c in enumerate(classes)]
        return math.exp(np.mean(np.log(ratios)))

    rows = {}
    print(f"{'sampler':16s}{'spacing':10s}" + "".join(f"{n:>8d}" for n in EVALUATIONS))
    for sampler, spacing in METHODS:
        steps = [n // SAMPLERS[sampler].evaluations for n in EVALUATIONS]
        rows[sampler, spacing] = [score(sampler, spacing, n) for n in steps]
        print(f"{sampler:16s}{spacing:10s}" + "".join(f"{v:8.1f}" for v in rows[sampler, spacing]), flush=True)
    _draw(rows, options.picture)
    result = [{"sampler": s, "spacing": g, "scores": [round(v, 2) for v in row]} for (s, g), row in rows.items()]
    device = jax.devices()[0].device_kind
    print(json.dumps({"run": str(options.run), "evaluations": EVALUATIONS, "methods": result, "device": device}))


def _draw(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, ((sampler, spacing), values) in enumerate(rows.items()):
        style = {"uniform": "--", "cosine": "-"}[spacing]
        axes.plot(
            EVALUATIONS, values, style, marker="o", color=f"C{i}" if i < 10 else "black", label=f"{sampler}, {spacing}"
        )
    axes.set(xscale="log", xlabel="evaluations of the network", ylabel="Frechet distance / training sounds'")
    axes.set_xticks(EVALUATIONS, EVALUATIONS)
    axes.minorticks_off()
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
