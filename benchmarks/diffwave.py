"""DiffWave BASE beside PyPI's `diffwave` in PyTorch with the same weights: forward, training step, 6-step sampling.

    pip install torch==2.13.0 -e . && pip install --no-deps diffwave        python benchmarks/diffwave.py [--rounds 5]

30 layers of 64 channels, crops of 62 frames of 256 samples, float32, default malloc. The step is theirs: noise,
L1 loss on eps, Adam at 2e-4. Sampling draws 2 s of one item in 6 whole steps; both get the same noise.
Ours runs one program per core: the batch is split over a mesh of the cores; a single item is cut in halves that overlap
by the receptive field. Each row alternates the two; medians. The outputs are compared first (1e-4). The
converter reads the weights that torch.save wrote. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

os.environ["XLA_FLAGS"] = " ".join(
    [
        f"--xla_force_host_platform_device_count={len(os.sched_getaffinity(0))}",
        "--xla_cpu_multi_thread_eigen=false",
        os.environ.get("XLA_FLAGS", ""),
    ]
)
sys.path.remove(os.path.dirname(os.path.abspath(__file__)))  # where `diffwave` is this file

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from diffwave.model import DiffWave
from diffwave.params import AttrDict
from diffwave.params import params as BASE
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.networks import Condition, convert_diffwave

CORES = len(os.sched_getaffinity(0))
HOP, CROP, STEPS = 256, 62, (3, 8, 15, 25, 38, 49)
MESH = jax.make_mesh((CORES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
SPLIT, WHOLE = NamedSharding(MESH, PartitionSpec("data")), NamedSharding(MESH, PartitionSpec())
NOISE_LEVEL = np.cumprod(1 - np.array(BASE.noise_schedule)).astype(np.float32)


def as_ours(array):
    return jnp.asarray(array.numpy())


def halves(a, unit, context):
    """[1, n, channels] as two items of `n / 2 + context` that overlap, `context` frames of `unit` beyond the middle."""
    middle, reach = a.shape[1] // 2, context * unit
    return jnp.concatenate([a[:, : middle + reach], a[:, middle - reach :]])


def make_ours(graphdef):
    network = lambda params, x, step, c: nnx.merge(graphdef, params)(  # noqa: E731
        x[..., None], (step + 1) / jnp.float32(50), Condition(frames=c)
    )[..., 0]
    optimizer = optax.adam(2e-4)

    @jax.jit
    def train(params, state, audio, c, key):
        step_key, noise_key = jax.random.split(key)
        step = jax.random.randint(step_key, audio.shape[:1], 0, 50)
        noise, level = jax.random.normal(noise_key, audio.shape), jnp.asarray(NOISE_LEVEL)[step][:, None]
        noisy = jnp.sqrt(level) * audio + jnp.sqrt(1 - level) * noise
        loss, gradient = jax.value_and_grad(lambda p: jnp.abs(network(p, noisy, step, c) - noise).mean())(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    @jax.jit
    def sample(params, c, noise):
        context = -(-nnx.merge(graphdef, params).receptive_field // 2 // HOP) + 2  # frames; two for the upsampler
        cut = jax.lax.with_sharding_constraint(halves(c, 1, context), SPLIT)
        middle = noise.shape[-1] // 2

        def one(x, inputs):
            step, c_1, c_2, sigma, eps = inputs
            parts = jax.lax.with_sharding_constraint(halves(x[..., None], HOP, context)[..., 0], SPLIT)
            out = network(params, parts, jnp.full(2, step), cut)
            out = jnp.concatenate([out[:1, :middle], out[1:, -middle:]], 1)
            return jnp.clip(c_1 * (x - c_2 * out) + sigma * eps, -1, 1), None

        return jax.lax.scan(one, noise[0], (jnp.asarray(STEPS[::-1]), *constants(), noise[1:]))[0]

    return jax.jit(network), train, sample, optimizer.init


def constants():
    """Of each step of DiffWave's sampler, in the order of use: 1 / sqrt alpha, beta / sqrt(1 - bar alpha), sigma."""
    beta = np.array(BASE.inference_noise_schedule)
    cumulative = np.cumprod(1 - beta)
    before = np.concatenate([[1.0], cumulative[:-1]])
    sigma = np.sqrt((1 - before) / (1 - cumulative) * beta)
    return [a[::-1].astype(np.float32) for a in ((1 - beta) ** -0.5, beta / np.sqrt(1 - cumulative), sigma)]


def torch_train(model, optimizer, audio, c):
    optimizer.zero_grad(set_to_none=True)
    step, level = torch.randint(0, 50, [len(audio)]), torch.from_numpy(NOISE_LEVEL)
    level, noise = level[step].unsqueeze(1), torch.randn_like(audio)
    out = model(level**0.5 * audio + (1 - level) ** 0.5 * noise, c, step)
    torch.nn.functional.l1_loss(noise, out.squeeze(1)).backward()
    optimizer.step()


@torch.inference_mode()
def torch_sample(model, c, noise):
    x = noise[0]
    for step, c_1, c_2, sigma, eps in zip(STEPS[::-1], *constants(), noise[1:], strict=True):
        x = c_1 * (x - c_2 * model(x, c, torch.tensor([step])).squeeze(1)) + sigma * eps
        x = torch.clamp(x, -1.0, 1.0)
    return x


def agree(ours, theirs, what):
    difference = float(np.abs(np.asarray(ours) - theirs.numpy()).max() / theirs.abs().max())
    if not difference <= 1e-4:
        raise SystemExit(f"{what}: the two differ by {difference:.2g} of the largest output")
    return difference


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    torch.set_num_threads(CORES)
    model = DiffWave(AttrDict(BASE))
    torch.nn.init.normal_(model.output_projection.weight, std=0.1)
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"step": 0, "model": model.state_dict(), "params": dict(BASE)}, f"{folder}/weights.pt")
        graphdef, params = nnx.split(convert_diffwave(f"{folder}/weights.pt"))
    params = jax.device_put(nnx.to_pure_dict(params), WHOLE)
    forward, train, sample, init = make_ours(graphdef)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)

    runs, compile_s, difference = {}, {}, {}
    for batch in (2, 4):
        audio, c = torch.randn(batch, CROP * HOP) * 0.1, torch.rand(batch, 80, CROP)
        placed = [jax.device_put(a, SPLIT) for a in (as_ours(audio), as_ours(c).transpose(0, 2, 1))]
        if batch == 2:
            step, ours_step = torch.tensor([49, 7]), jax.device_put(jnp.array([49, 7]), SPLIT)
            begin = time.perf_counter()
            out = jax.block_until_ready(forward(params, placed[0], ours_step, placed[1]))
            compile_s["forward"] = time.perf_counter() - begin
            with torch.inference_mode():
                difference["forward"] = agree(out, model(audio, c, step).squeeze(1), "forward")

            def torch_forward(audio=audio, c=c, step=step):
                with torch.inference_mode():
                    model(audio, c, step)

            runs["forward"] = (
                lambda p=placed, s=ours_step: jax.block_until_ready(forward(params, p[0], s, p[1])),
                torch_forward,
            )
        state = [(params, jax.device_put(init(params), WHOLE), None)]

        def ours(placed=placed, state=state):
            state[0] = jax.block_until_ready(train(*state[0][:2], *placed, jax.random.key(0)))

        begin = time.perf_counter()
        ours()
        compile_s[f"training step, batch {batch}"] = time.perf_counter() - begin
        runs[f"training step, batch {batch}"] = (
            ours,
            lambda audio=audio, c=c: torch_train(model, optimizer, audio, c),
        )
    frames = 2 * BASE.sample_rate // HOP // 2 * 2
    c, noise = torch.rand(1, 80, frames), torch.randn(6 + 1, 1, frames * HOP)
    inputs = [jax.device_put(a, WHOLE) for a in (as_ours(c).transpose(0, 2, 1), as_ours(noise))]
    begin = time.perf_counter()
    out = jax.block_until_ready(sample(params, *inputs))
    compile_s["6-step sampling of 2 s"] = time.perf_counter() - begin
    difference["sampling"] = agree(out, torch_sample(model, c, noise), "sampling")
    runs["6-step sampling of 2 s"] = (
        lambda: jax.block_until_ready(sample(params, *inputs)),
        lambda: torch_sample(model, c, noise),
    )
    rows = {}
    for name, pair in runs.items():
        times = [], []
        for r in range(rounds + 1):  # the first warms up
            for side, run in enumerate(pair):
                begin = time.perf_counter()
                run()
                if r:
                    times[side].append(1e3 * (time.perf_counter() - begin))
        a, b = map(statistics.median, times)
        rows[name] = {"jax_ms": round(a), "torch_ms": round(b), "torch / jax": round(b / a, 2)}
        rows[name]["first_call_s"] = round(compile_s[name], 1)
        print(f"{name:28s} {a:8.0f} ms {b:8.0f} ms {b / a:6.2f}x", flush=True)
    print(json.dumps({"rows": rows, "difference": difference, "cores": CORES, "rounds": rounds}))


if __name__ == "__main__":
    main()
