"""What a step of the GAN vocoder costs: the generator alone, discriminators alone, and both players.

    python benchmarks/adversarial.py [--rounds 9] [--config configs/gan_vocoder.yaml]

One crop length and batch as configured, noise for sound (the time does not depend on it). "generator" is a step before
the discriminators begin, "both" one after; "discriminators" is the difference, "judge" one look of all discriminators
at the batch. Calls are interleaved; medians in ms. The last line is JSON.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from overhead import parts

from jaxdiff.config import load_config
from jaxdiff.methods.adversarial import RESOLUTIONS, magnitudes
from jaxdiff.networks import Discriminators, count_params, from_nnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--config", type=Path, default=Path("configs/gan_vocoder.yaml"))
    args = parser.parse_args()
    calls, compile_s = {}, {}
    for name, begin in (("generator", "1.0"), ("both", "0.0")):
        config = load_config(args.config, {"method.begin": begin})
        train_step, state, shapes = parts(config)
        state = jax.jit(state)()
        wave = 0.1 * np.random.default_rng(0).standard_normal(shapes["wave"].shape, np.float32)
        batch = {"wave": wave, "label": np.full(len(wave), -1, np.int32)}
        start = time.perf_counter()
        step = train_step.lower(state, batch).compile()
        compile_s[name] = round(time.perf_counter() - start, 1)
        held = [state]

        def run(step=step, held=held, batch=batch):
            held[0], metrics = jax.block_until_ready(step(held[0], batch))

        calls[name] = run
    params = held[0].params
    widths = {name: getattr(config.method, name) for name in ("period_width", "spectral_width")}
    critics = from_nnx(lambda rngs: Discriminators(len(RESOLUTIONS), **widths, rngs=rngs))
    judge = jax.jit(lambda p, wave: critics.bind(p)(wave, magnitudes(wave)))
    calls["judge"] = lambda: jax.block_until_ready(judge(held[0].params["discriminators"], wave))
    times = {name: [] for name in calls}
    for r in range(args.rounds + 1):  # the first warms up
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if r:
                times[name].append(1e3 * (time.perf_counter() - start))
    median = {name: round(statistics.median(t), 1) for name, t in times.items()}
    median["discriminators"] = round(median["both"] - median["generator"], 1)
    for name, ms in median.items():
        print(f"{name:16s}{ms:9.1f} ms")
    seconds = wave.shape[-1] / config.data.sample_rate
    result = {"batch": len(wave), "seconds": seconds, "ms": median, "compile_s": compile_s}
    result |= {name: count_params(tree) for name, tree in params.items()}
    print(json.dumps(result | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}))


if __name__ == "__main__":
    main()
