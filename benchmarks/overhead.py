"""What is not computing: the compilation of every configuration, and the host's part of a training step.

    python benchmarks/overhead.py [--configs configs] [--steps 200]

For each configuration of the folder: seconds to trace and to compile its training step, and to make the program of one
sound of a crop's length, without a cache on disk. Then the quick start: ms of a compiled step on one batch, beside ms
per step of the training loop (`jaxdiff.training.train`) with its data and its log around a step that does nothing,
which is what the host costs when nothing of it is hidden behind the device. The last line is JSON.
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

from jaxdiff import build, methods
from jaxdiff import config as configuration
from jaxdiff.config import Config, Generation
from jaxdiff.data import batches, open_corpus, write_audio
from jaxdiff.data.orchestra import write_orchestra
from jaxdiff.features import Normalization
from jaxdiff.pipeline import Pipeline, abstract_params, build_model, init_params
from jaxdiff.training import Hooks, sharding, train

CLASSES = 8


def seconds(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def parts(config: Config):
    """The step of a configuration that trains on CLASSES classes, and the shapes of its state and batch."""
    classes = CLASSES if isinstance(config.task, Generation) else 0
    features = build_model(config, classes, None).features
    normalization = None
    if config.normalize.enabled:
        normalization = Normalization(np.zeros(features, np.float32), np.ones(features, np.float32))
    model, key = build_model(config, classes, normalization), jax.random.key(0)
    state = lambda: methods.init_state(config, init_params(config, features, classes, key), key)  # noqa: E731
    size = config.train.batch, configuration.crop_samples(config)
    batch = {"wave": jax.ShapeDtypeStruct(size, np.float32), "label": jax.ShapeDtypeStruct(size[:1], np.int32)}
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(config, features, classes))
    pipeline = Pipeline(config, ("",) * classes, params, normalization, step=0, fingerprint="")
    return methods.train_step(config, model), state, batch, pipeline


def compilation(path: Path, sound: Path) -> dict[str, float]:
    step, state, batch, pipeline = parts(configuration.load_config(path))
    row = {}
    row["trace step"], lowered = seconds(lambda: step.lower(jax.eval_shape(state), batch))
    row["compile step"], _ = seconds(lowered.compile)
    options = {} if pipeline.classes else {"source": sound}
    first, again = (seconds(lambda: pipeline.generate(**options))[0] for _ in range(2))
    row["program of sound"] = first - again
    return {name: round(value, 1) for name, value in row.items()}


def host(path: Path, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = configuration.load_config(path, {"data.path": str(write_orchestra(Path(folder) / "sounds", count=16))})
        step, state, _, _ = parts(config)
        corpus, mesh = open_corpus(config.data.path, None), sharding.data_mesh()
        raw = batches(corpus, build.crop(config), config.train.batch, 0, memory=config.data.memory_mb * 2**20)
        state, fixed, times = jax.jit(state)(), next(raw), []
        for _ in range(12):
            elapsed, (state, metrics) = seconds(lambda: jax.block_until_ready(step(state, fixed)))  # noqa: B023
            times.append(elapsed)
        nothing = jax.jit(lambda state, batch: (state._replace(step=state.step + 1), metrics), donate_argnums=0)
        begin = state._replace(step=0 * state.step)
        begin, _ = nothing(begin, sharding.split_batch(fixed, mesh))
        elapsed, _ = seconds(
            lambda: train(
                nothing,
                begin,
                (sharding.split_batch(batch, mesh) for batch in raw),
                Hooks(lambda state: None, lambda state: None),
                steps=steps + 1,
                seconds_per_step=1.0,
                log_path=Path(folder) / "log.jsonl",
                log_every=config.train.log_every,
                save_every=0,
            )
        )
    compute, around = 1e3 * statistics.median(times[2:]), 1e3 * elapsed / steps
    return {"step ms": round(compute, 1), "host ms": round(around, 2), "host share": round(around / compute, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--configs", type=Path, default=Path("configs"))
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "sound.wav"
        write_audio(sound, 0.1 * np.random.default_rng(0).standard_normal(32000).astype(np.float32), 16000)
        for path in sorted(args.configs.glob("*.yaml")):
            row = rows[path.stem] = compilation(path, sound)
            print(f"{path.stem:16s}" + "".join(f"{name} {s:5.1f} s   " for name, s in row.items()), flush=True)
    share = host(args.configs / "quickstart.yaml", args.steps)
    print(share)
    print(
        json.dumps({"compilation": rows, "host": share, "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__})
    )


if __name__ == "__main__":
    main()
