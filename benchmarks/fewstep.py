"""Few steps: the quick-start network trained with and without the shortcut objective, Frechet distance at few steps.

    python benchmarks/fewstep.py [--config configs/quickstart.yaml] [--steps 1400] [--plain 0.5] [--every 4]

One network with a second time is trained as usual for the share `plain` of the steps; from there it goes on twice, as
usual ("ordinary") and with `shortcut_loss`, the averaged weights being the teacher ("shortcut"). Data, learning rate
and number of steps are equal. Per class it prints the squared Frechet distance to held-out sounds (as quality.py, seed
1000) for 1, 2, 4 and 16 evaluations of the network: Euler steps of the ordinary model beside jumps of the other. The
last line is JSON.
"""

import argparse
import functools
import json
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from quality import embed, sounds

import jaxdiff
from jaxdiff import build, config, networks
from jaxdiff.data import batches, open_corpus
from jaxdiff.diffusion import (
    diffusion_loss,
    dyadic_intervals,
    flow_map,
    flow_map_sampler,
    noise,
    shortcut_loss,
    time_grid,
)
from jaxdiff.evaluation import frechet_distance
from jaxdiff.features import chain, fit_normalization, normalize
from jaxdiff.networks import Condition
from jaxdiff.training import init_state

COUNTS = (1, 2, 4, 16)


def make_step(loss_of, graphdef, task, optimizer, ema_decay):
    """A train step (jaxdiff.training.step) of any loss `(network, teacher, example, key) -> (loss, metrics)`."""

    def step(state, batch):
        example_key, loss_key, network_key = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        example = task.example(batch, example_key)
        teacher = nnx.merge(graphdef, state.ema_params)

        def loss(params):
            network = functools.partial(nnx.merge(graphdef, params), rngs=nnx.Rngs(network_key))
            return loss_of(network, teacher, example, loss_key)

        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
        new = dict(step=state.step + 1, params=params, ema_params=ema_params, opt_state=opt_state)
        return state._replace(**new), metrics

    return jax.jit(step, donate_argnums=0)


def train(step, state, data, steps, name):
    begin, window = time.perf_counter(), []
    for i in range(int(state.step), steps):
        state, metrics = step(state, next(data))
        window.append(metrics)
        if (i + 1) % 100 == 0 or i + 1 == steps:
            mean = {k: float(np.mean([m[k] for m in window])) for k in window[0]}
            text = "  ".join(f"{k} {v:.4f}" for k, v in mean.items())
            print(f"{name} {i + 1}: {text}  {time.perf_counter() - begin:.0f} s", flush=True)
            window = []
    return jax.block_until_ready(state), time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "configs" / "quickstart.yaml")
    parser.add_argument("--heldout", default="orchestra/test")
    parser.add_argument("--steps", type=int, help="training steps; the configuration's by default")
    parser.add_argument("--plain", type=float, default=0.5, help="share of ordinary steps before the shortcut's")
    parser.add_argument("--every", type=int, default=4, help="every n-th item of a batch is a jump")
    parser.add_argument("--levels", type=int, default=6)
    parser.add_argument("--count", type=int, default=128, help="sounds per class")
    options = parser.parse_args()

    c = config.load_config(options.config)
    steps = options.steps or c.train.steps
    c = config.from_dict(config.to_dict(c) | {"train": config.to_dict(c)["train"] | {"steps": steps}})
    corpus, crop, schedule = open_corpus(c.data.path, c.data.labels), build.crop(c), build.schedule(c)
    raw = batches(corpus, crop, 16, c.train.seed)
    waves = (next(raw)["wave"] for _ in range(max(1, c.normalize.crops // 16)))
    plain = build.representation(c)
    fitted = fit_normalization(plain.encode, waves, evenness=c.normalize.evenness)
    representation = chain(plain, normalize(fitted))
    task = build.task(c, representation, len(corpus.classes))
    samples = config.crop_samples(c)
    shape = jax.eval_shape(representation.encode, jax.ShapeDtypeStruct((1, samples), jnp.float32)).shape
    kind = {k: v for k, v in config.to_dict(c)["network"].items() if k != "kind"}
    make = lambda: networks.Transformer(  # noqa: E731
        shape[-1],
        num_classes=len(corpus.classes),
        second_time=True,
        rngs=nnx.Rngs(jax.random.key(c.train.seed)),
        **kind,
    )
    graphdef = nnx.split(nnx.eval_shape(make))[0]
    optimizer = build.optimizer(c)
    key = jax.random.key(c.train.seed)
    fresh = lambda: init_state(nnx.to_pure_dict(nnx.split(make())[1]), optimizer, key)  # noqa: E731
    shared = dict(sample_t=build.times(c), weight=build.weight(c))

    def ordinary(network, teacher, example, key):
        return diffusion_loss(network, schedule, example.x0, example.cond, key, prediction="x0", **shared)

    def shortcut(network, teacher, example, key):
        jumps = dict(teacher=teacher, every=options.every, sample_intervals=dyadic_intervals(options.levels))
        jumps["resolution"] = 0.5**options.levels
        return shortcut_loss(network, schedule, example.x0, example.cond, key, **jumps, **shared)

    ordinary_step, shortcut_step = (
        make_step(loss, graphdef, task, optimizer, c.train.ema_decay) for loss in (ordinary, shortcut)
    )
    feed = lambda start: batches(corpus, crop, c.train.batch, c.train.seed, start=start)  # noqa: E731
    half = round(options.plain * steps)
    state, shared_seconds = train(ordinary_step, jax.jit(fresh)(), feed(0), half, "plain")
    copy = jax.tree.map(jnp.copy, state)
    models, seconds = {}, {"plain": shared_seconds}
    for name, step, start in (("ordinary", ordinary_step, copy), ("shortcut", shortcut_step, state)):
        done, seconds[name] = train(step, start, feed(half), steps, name)
        models[name] = done.ema_params

    @functools.partial(jax.jit, static_argnames="resolution")
    def generate(params, keys, label, times, resolution):
        jump = flow_map(nnx.merge(graphdef, params), Condition(label=label), resolution)
        x0 = flow_map_sampler(jump, schedule, noise(keys, (len(keys), *shape[1:])), times, keys)
        return representation.decode(x0)

    def made(name, label, count):
        """`options.count` sounds; a resolution of 1 makes every jump an Euler step."""
        resolution, size, out = 1.0 if name == "ordinary" else 0.5**options.levels, 16, []
        for i in range(0, options.count, size):
            keys = jax.vmap(lambda j: jax.random.fold_in(jax.random.key(1000), j))(jnp.arange(i, i + size))
            labels, times = jnp.full(size, label), time_grid(schedule, count)
            out.append(np.asarray(generate(models[name], keys, labels, times, resolution)))
        return np.concatenate(out)[: options.count]

    held = {name: embed(w) for name, w in sounds(open_corpus(options.heldout), crop, 256).items()}
    print(f"{'class':10s}" + "".join(f"{name + ' ' + str(n):>13s}" for n in COUNTS for name in models))
    rows = {}
    for label, kind in enumerate(corpus.classes):
        row = {
            f"{name} {n}": frechet_distance(embed(made(name, label, n)), held[kind]) for n in COUNTS for name in models
        }
        rows[kind] = row
        print(f"{kind:10s}" + "".join(f"{v:13.1f}" for v in row.values()), flush=True)
    mean = {column: float(np.exp(np.mean([np.log(r[column]) for r in rows.values()]))) for column in row}
    print(f"{'(geo mean)':10s}" + "".join(f"{v:13.1f}" for v in mean.values()))
    versions = {"jaxdiff": jaxdiff.__version__, "jax": jax.__version__, "python": platform.python_version()}
    result = {"steps": steps, "plain": options.plain, "every": options.every, "levels": options.levels}
    result |= {"count": options.count, "classes": rows, "geometric_mean": mean, "seconds": seconds}
    print(json.dumps(result | {"device": jax.devices()[0].device_kind, "versions": versions}))


if __name__ == "__main__":
    main()
