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
from flax import nnx

from jaxdiff import adversarial, methods
from jaxdiff import config as configuration
from jaxdiff.networks import count_params
from jaxdiff.pipeline import build_model, init_params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--config", type=Path, default=Path("configs/gan_vocoder.yaml"))
    args = parser.parse_args()
    calls, compile_s = {}, {}
    for name, begin in (("generator", "1.0"), ("both", "0.0")):
        config = configuration.load_config(args.config, {"method.begin": begin})
        model, key = build_model(config, 0, None), jax.random.key(0)
        state = jax.jit(lambda c=config, m=model, k=key: methods.init_state(c, init_params(c, m.features, 0, k), k))()
        samples = configuration.crop_samples(config)
        wave = 0.1 * np.random.default_rng(0).standard_normal((config.train.batch, samples), np.float32)
        batch = {"wave": wave, "label": np.full(len(wave), -1, np.int32)}
        start = time.perf_counter()
        step = methods.train_step(config, model).lower(state, batch).compile()
        compile_s[name] = round(time.perf_counter() - start, 1)
        held = [state]

        def run(step=step, held=held, batch=batch):
            held[0], metrics = jax.block_until_ready(step(held[0], batch))

        calls[name] = run
    params = held[0].params
    critics = nnx.split(nnx.eval_shape(lambda: methods.discriminators(config, key)))[0]
    judge = jax.jit(lambda p, wave: nnx.merge(critics, p)(wave, adversarial.magnitudes(wave)))
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
    result = {"batch": len(wave), "seconds": samples / config.data.sample_rate, "ms": median, "compile_s": compile_s}
    result |= {name: count_params(tree) for name, tree in params.items()}
    print(json.dumps(result | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}))


if __name__ == "__main__":
    main()
