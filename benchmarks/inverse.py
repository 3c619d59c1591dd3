"""How well the first half of a sound is kept, and the second half made to fit it, by each way of conditioning.

    python benchmarks/inverse.py RUN [--count 4] [--steps 16] [--iterations 1 2 3 5 8]

RUN is a trained model of method diffusion on a corpus. The first half of `count` recordings' features is known; each
method samples the rest by dpmpp_2m. Prints the root mean square error of both halves against the recording, in features
as the network sees them (deviation 1): the known half's should be 0, the other's can only be that of a likely sound.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import config, diffusion, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--iterations", type=int, nargs="+", default=[1, 2, 3, 5, 8])
    arguments = parser.parse_args()

    pipeline = load(arguments.run)
    model, method, settings = pipeline.model, pipeline.method, pipeline.config
    crop, rng = config.crop(settings), np.random.default_rng(0)
    corpus, _ = settings.data.open()
    count = len(corpus.classes) or 1
    recordings = [next(r for r in corpus.recordings if r.label in (None, i % count)) for i in range(arguments.count)]
    waves = np.stack([crop.read(r, rng)["wave"] for r in recordings])
    _, batch = pipeline.items(0, np.arange(arguments.count), waves)
    given = model.task.given(model.representation, batch, model.task.Request())
    denoise = diffusion.denoiser(model.network.bound(pipeline.params), method.schedule, method.prediction, given.cond)
    x0 = model.representation.encode(model.task.leveled(jnp.asarray(waves)))
    known = np.arange(x0.shape[1])[:, None] < x0.shape[1] // 2
    times = diffusion.spaced_times(method.schedule, arguments.steps, "cosine")
    keys = jax.random.split(jax.random.key(0), arguments.count)
    x_T = diffusion.prior_scale(method.schedule) * diffusion.noise(keys, x0.shape)

    methods = {"none": lambda *_: denoise}
    methods |= {name: getattr(diffusion, name) for name in ("data_consistency", "pseudo_inverse_guidance")}
    for n in arguments.iterations:
        methods[f"moment_matching_guidance, {n}"] = lambda *a, n=n: diffusion.moment_matching_guidance(*a, iterations=n)
    rows = {}
    print(f"{'method':30s} known  made")
    for name, condition in methods.items():
        guided = condition(denoise, method.schedule, diffusion.masking(known), x0 * known)
        sample = jax.jit(lambda x, g=guided: diffusion.SAMPLERS["dpmpp_2m"].sampler(g, method.schedule, x, times, keys))
        error = np.asarray(sample(x_T) - x0) ** 2
        rows[name] = [float(np.sqrt(error[:, half].mean())) for half in (known[:, 0], ~known[:, 0])]
        print(f"{name:30s} {rows[name][0]:5.3f}  {rows[name][1]:5.3f}", flush=True)
    print(json.dumps({"run": arguments.run, "checkpoint": pipeline.fingerprint, "rows": rows}))


if __name__ == "__main__":
    main()
