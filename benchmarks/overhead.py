"""What is not computing: the compilation of every configuration, and what surrounds a training step.

    python benchmarks/overhead.py [--configs configs] [--steps 200] [--only training]

For each configuration of the folder: seconds to trace and to compile its training step, and to make the program of one
sound of a crop's length (in two steps, where it takes steps), without a cache on disk. Then the quick start: ms of a
compiled step on one batch, beside ms per step of the training loop (`jaxdiff.training.loop`) with its data and its log
around a step that does nothing, which is what the host costs when nothing of it is hidden behind the device; and the
speed of `jaxdiff.train` over 500 steps after the first 275, when all is compiled, with its data, a log every 20 steps,
and checkpoints and validation on two batches every 250, as a share of the bare compiled step's, which takes turns with
it. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["JAX_COMPILATION_CACHE_DIR"] = ""

import jax
import numpy as np

import jaxdiff
from jaxdiff import config as configuration
from jaxdiff.config import Config
from jaxdiff.data import batches
from jaxdiff.data.orchestra import write_orchestra
from jaxdiff.inference.load import pipeline_of
from jaxdiff.training import Every, init_state, loop, make_optimizer, make_train_step, sharding

CLASSES = tuple("abcdefgh")


def seconds(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def parts(config: Config):
    """The step of a configuration, as training makes it for CLASSES, its first state and the shapes of a batch."""
    model, method, t, key = configuration.model(config, CLASSES, None), config.method, config.train, jax.random.key(0)
    optimizer = make_optimizer(t.learning_rate, t.steps, warmup=t.warmup, weight_decay=t.weight_decay, b1=t.b1)

    def state():
        params, opt_state, extra = method.init(model, model.network.init(key), optimizer, t.steps, key)
        return init_state(params, method.weights(params), opt_state, key, extra=extra, posthoc_ema=t.posthoc_ema)

    size = t.batch, configuration.crop(config).samples
    batch = {"wave": jax.ShapeDtypeStruct(size, np.float32), "label": jax.ShapeDtypeStruct(size[:1], np.int32)}
    update = method.make_step(model, optimizer, t.steps)
    return make_train_step(update, method.weights, ema_decay=t.ema_decay), state, batch


def compilation(path: Path) -> dict[str, float]:
    config = configuration.load_config(path)
    step, state, batch = parts(config)
    row = {}
    row["trace step"], lowered = seconds(lambda: step.lower(jax.eval_shape(state), batch))
    row["compile step"], _ = seconds(lowered.compile)
    zeros = lambda leaf: np.zeros(leaf.shape, leaf.dtype)  # noqa: E731
    params = jax.tree.map(zeros, configuration.model(config, CLASSES, None).network.shapes())
    pipeline = pipeline_of(config, CLASSES, params, None)
    sound = 0.1 * np.random.default_rng(0).standard_normal(batch["wave"].shape[-1], np.float32)
    options = {"steps": 2} if "steps" in config.method.knobs else {}
    options |= {"sound": sound, "sr": pipeline.sample_rate} if config.task.needs_sound else {}
    first, again = (seconds(lambda: pipeline(**options))[0] for _ in range(2))
    row["program of sound"] = first - again
    return {name: round(value, 1) for name, value in row.items()}


def host(path: Path, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = configuration.load_config(path, {"data.path": str(write_orchestra(Path(folder) / "sounds", count=16))})
        step, state, _ = parts(config)
        (corpus, _), mesh = config.data.open(), sharding.data_mesh()
        raw = batches(corpus, configuration.crop(config), config.train.batch, 0, memory=config.data.memory_mb * 2**20)
        state, fixed, times = jax.jit(state)(), next(raw), []
        for _ in range(12):
            elapsed, (state, metrics) = seconds(lambda: jax.block_until_ready(step(state, fixed)))  # noqa: B023
            times.append(elapsed)
        nothing = jax.jit(lambda state, batch: (state._replace(step=state.step + 1), metrics), donate_argnums=0)
        begin = state._replace(step=0 * state.step)
        begin, _ = nothing(begin, sharding.split_batch(fixed, mesh))
        elapsed, _ = seconds(
            lambda: loop(
                nothing,
                begin,
                (sharding.split_batch(batch, mesh) for batch in raw),
                lambda state: None,
                steps=steps + 1,
                seconds_per_step=1.0,
                log_path=Path(folder) / "log.jsonl",
                log_every=config.train.log_every,
                save_every=0,
            )
        )
    compute, around = 1e3 * statistics.median(times[2:]), 1e3 * elapsed / steps
    return {"step ms": round(compute, 1), "host ms": round(around, 2), "host share": round(around / compute, 4)}


def training(path: Path, steps: int = 500, pieces: int = 20) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        sounds = write_orchestra(Path(folder) / "sounds", count=16)
        config = configuration.load_config(path, {"data.path": str(sounds)})
        step, state, _ = parts(config)
        (corpus, _), t, crop = config.data.open(), config.train, configuration.crop(config)
        read = lambda start: batches(corpus, crop, t.batch, 0, start=start, memory=config.data.memory_mb * 2**20)  # noqa: E731
        fixed, state = next(read(0)), jax.jit(state)()
        state, _ = jax.block_until_ready(step(state, fixed))
        clock = lambda: np.array([time.perf_counter(), time.process_time()])  # noqa: E731
        bare, whole, began, size, warm = np.zeros(2), np.zeros(2), np.zeros(2), steps // pieces, 275

        def turn(at, _metrics) -> None:
            """Count the time since the last turn, and let the bare step do as many."""
            nonlocal state, bare, whole, began
            if int(at.step) < warm:
                return
            now = clock()
            whole += (now - began) * began.any()
            for _ in range(size):
                state, metrics = step(state, fixed)
            jax.block_until_ready(metrics)
            began = clock()
            bare += began - now

        jaxdiff.train(
            configuration.model(config, CLASSES, None),
            config.method,
            read,
            configuration.optimizer(t),
            steps=steps + warm,
            workdir=Path(folder) / "run",
            validation=[next(read(10**6)), next(read(10**6 + 1))],
            validate_every=250,
            save_every=250,
            log_every=20,
            callbacks=[Every(size, turn)],
        )
    wall, cpu = bare * pieces / (pieces + 1) / whole  # the bare step has had one turn more
    speed = float(steps / (bare[0] * pieces / (pieces + 1)))
    shares = {"share": round(float(wall), 4), "share of processor time": round(float(cpu), 4)}
    return {"bare steps/s": round(speed, 2), **shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--configs", type=Path, default=Path("configs"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", choices=["training"])
    args = parser.parse_args()
    quick, facts = args.configs / "quickstart.yaml", {"cores": len(os.sched_getaffinity(0)), "jax": jax.__version__}
    trained = training(quick)
    print(trained)
    if args.only:
        print(json.dumps({"training": trained, **facts}))
        return
    rows = {}
    for path in sorted(args.configs.glob("*.yaml")):
        row = rows[path.stem] = compilation(path)
        print(f"{path.stem:16s}" + "".join(f"{name} {s:5.1f} s   " for name, s in row.items()), flush=True)
    share = host(quick, args.steps)
    print(share)
    print(json.dumps({"compilation": rows, "host": share, "training": trained, **facts}))


if __name__ == "__main__":
    main()
