"""Few steps: the Frechet distance of a shortcut model at 1, 2, 4 and 16 steps beside an ordinary one's.

    python benchmarks/fewstep.py RUN ORDINARY --heldout FOLDER [--count 128]

RUN was trained with method shortcut, ORDINARY on the same sounds with method diffusion. Per class it prints the squared
Frechet distance to held-out sounds (as quality.py, seed 1000) of jumps of the one and as many Euler steps of the other,
which are as many evaluations of the network. The last line is JSON.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from quality import embed, sounds

import jaxdiff
from jaxdiff.data import open_corpus
from jaxdiff.evaluation import frechet_distance

COUNTS = (1, 2, 4, 16)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("ordinary", type=Path)
    parser.add_argument("--heldout", default="orchestra/test", help="folder with the same classes")
    parser.add_argument("--count", type=int, default=128, help="sounds per class")
    options = parser.parse_args()

    models = {"euler": jaxdiff.load(options.ordinary), "jumps": jaxdiff.load(options.run)}
    sampling = {"euler": {"sampler": "euler", "spacing": "uniform"}, "jumps": {}}
    real = sounds(open_corpus(options.heldout), models["euler"].config, 256)
    held = {name: embed(waves) for name, waves in real.items()}
    columns = [(name, steps) for steps in COUNTS for name in models]
    print(f"{'class':10s}" + "".join(f"{name + ' ' + str(steps):>10s}" for name, steps in columns))
    rows = {}
    for kind in models["euler"].classes:
        rows[kind] = {}
        for name, steps in columns:
            made = models[name](count=options.count, labels=kind, seed=1000, steps=steps, **sampling[name]).waves
            rows[kind][f"{name} {steps}"] = frechet_distance(embed(np.stack(made)), held[kind])
        print(f"{kind:10s}" + "".join(f"{v:10.1f}" for v in rows[kind].values()), flush=True)
    mean = {c: float(np.exp(np.mean([np.log(row[c]) for row in rows.values()]))) for c in rows[kind]}
    print(f"{'(geo mean)':10s}" + "".join(f"{v:10.1f}" for v in mean.values()))
    result = {"run": str(options.run), "ordinary": str(options.ordinary), "count": options.count, "classes": rows}
    print(json.dumps(result | {"geometric_mean": mean, "device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
