"""What a trained model is worth on a few minutes of sound: from scratch, trained on as a whole, frozen, by LoRA.

    python benchmarks/fetch_sounds.py data/sounds --only tuxpaint-be
    python benchmarks/transfer.py data/sounds/voices/test/tuxpaint-be [--model prior-16k] [--label voices]
        [--minutes 5] [--held-out 1] [--steps 300] [--batch 8] [--seconds 1.024] [--rates 1e-3 3e-4] [--rank 8]

--minutes of the folder's recordings are trained on, --held-out others are scored: the mean of the training loss of the
averaged weights, at the same crops, times and noise for all. Each way of training takes the same steps and crops; the
learning rate with the lower loss at the end is shown. Prints a table in Markdown.
"""

import argparse
import hashlib
import itertools
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdiff
from jaxdiff.data import Crop, batches, open_corpus
from jaxdiff.data.corpora import Corpus
from jaxdiff.training import Every, Lora, init_state, make_optimizer, restricted, transfer

WAYS: dict[str, tuple[bool, tuple[str, ...], bool]] = {  # whether it begins with the model, what is frozen, LoRA
    "from scratch": (False, (), False),
    "`train.init`, whole": (True, (), False),
    '`train.freeze: ["blocks/*"]`': (True, ("blocks/*",), False),
    '`train.freeze: ["*"]`, `train.lora`': (True, ("*",), True),
}


def split(folder: Path, minutes: float, held_out: float) -> tuple[Corpus, Corpus]:
    """Two corpora of so many minutes of the folder's recordings, in an order that their names alone say."""
    corpus, parts = open_corpus(str(folder)), []
    rest = sorted(corpus.recordings, key=lambda r: hashlib.sha256(r.name.encode()).digest())
    for wanted in (held_out, minutes):
        seconds, count = 0.0, 0
        while seconds < 60 * wanted and count < len(rest):
            seconds, count = seconds + rest[count].seconds, count + 1
        parts.append(replace(corpus, recordings=tuple(rest[:count]), rejected=[]))
        rest = rest[count:]
    return parts[1], parts[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--model", default="prior-16k")
    parser.add_argument("--label", help="the class that the sounds are of")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--held-out", type=float, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.024)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-4])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--held-out-batches", type=int, default=16)
    a = parser.parse_args()
    pipeline = jaxdiff.load(a.model)
    model, method = pipeline.model, pipeline.method
    crop = Crop(round(a.seconds * pipeline.sample_rate), pipeline.sample_rate)
    label = np.full(a.batch, -1 if a.label is None else pipeline.classes.index(a.label), np.int32)
    trained_on, held_out = split(a.sounds, a.minutes, a.held_out)
    print(f"{len(trained_on.recordings)} recordings of {trained_on.seconds / 60:.1f} minutes, "
          f"{len(held_out.recordings)} of {held_out.seconds / 60:.1f} minutes held out", flush=True)  # fmt: skip
    drawn = batches(held_out, crop, a.batch, seed=1)
    judged = [{**next(drawn), "label": label} for _ in range(a.held_out_batches)]

    still = optax.set_to_zero()
    update = method.make_step(model, still, a.steps)
    params, opt_state, extra = method.init(model, pipeline.params, still, a.steps, jax.random.key(0))
    state = init_state(params, method.weights(params), opt_state, jax.random.key(0), extra=extra)
    one = jax.jit(lambda weights, batch, key: update(state._replace(params=weights), batch, key)[1]["loss"])

    def score(weights: Any) -> float:
        losses = [one(weights, batch, jax.random.fold_in(jax.random.key(2), i)) for i, batch in enumerate(judged)]
        return float(np.mean(losses))

    def sounds(start: int) -> Any:
        for batch in batches(trained_on, crop, a.batch, seed=0, start=start):
            yield {**batch, "label": label}

    marks = [a.steps // 6, a.steps // 2, a.steps]
    unit = math.gcd(*marks)
    before = score(pipeline.params)
    lines = [f"| | numbers trained | learning rate | step 0 | {' | '.join(map(str, marks))} | CPU s a step |"]
    lines.append("|---|---|---|---|" + "---|" * len(marks) + "---|")
    for way, (begins, freeze, low) in WAYS.items():
        runs = []
        for rate in a.rates:
            base = make_optimizer(rate, a.steps, warmup=a.steps // 10)
            lora = Lora(a.rank) if low else None
            optimizer = restricted(base, freeze, lora) if freeze or lora else base
            params = pipeline.params if begins else jax.jit(model.network.init)(jax.random.key(0))
            count = transfer.trained_numbers(jax.eval_shape(optimizer.init, params), params)
            count = sum(x.size for x in jax.tree.leaves(params)) if count is None else count
            found, spans = {}, []

            def note(state: Any, metrics: Any, found: dict = found, spans: list = spans) -> None:
                begin = time.process_time()
                found[int(state.step)] = score(jax.tree.map(jnp.copy, state.average))
                spans.append((begin, time.process_time()))

            start = before if begins else score(params)
            every = [Every(unit, note)]
            jaxdiff.train(model, method, sounds, optimizer, steps=a.steps, params=params, callbacks=every, log_every=0)
            pace = sum(next_[0] - one[1] for one, next_ in itertools.pairwise(spans)) / (a.steps - unit)
            runs.append((found[a.steps], rate, start, found, pace, count))
            print(f"{way}: rate {rate:g}, {found}", flush=True)
        _, rate, start, found, pace, count = min(runs)
        values = " | ".join(f"{found[m]:.4f}" for m in marks)
        lines.append(f"| {way} | {count:,} | {rate:g} | {start:.4f} | {values} | {pace:.2f} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
