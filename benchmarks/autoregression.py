"""Samples per second of the causal WaveNet beside PyTorch, 30 layers of 64 channels, 256 mu-law classes.

    pip install torch -e .        python benchmarks/autoregression.py [--rounds 7]

The peer has the same weights and remembers in the same way: ring buffers in place, `torch.inference_mode`, one
product for both taps, one at the end for all skips, the faster of one and two threads. Their distributions
for the same sound are compared first. Every round runs each once, in turn; medians. For a batch above 1 ours also runs
as one program per core. One JSON line per batch size.
"""

import argparse
import json
import os
import statistics
import time

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 " + os.environ.get("XLA_FLAGS", "")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.methods import autoregression, distributions
from jaxdiff.networks import CausalWaveNet, Condition, from_nnx

OUTPUT = distributions.mu_law_categorical()


class TorchWaveNet:
    """`CausalWaveNet` with the weights of `params`, one sample at a time."""

    def __init__(self, dilations, params, batch):
        get = lambda *path: torch.from_numpy(np.array(_at(params, path)))  # noqa: E731
        layers = lambda name: (get("layers", name, "kernel"), get("layers", name, "bias"))  # noqa: E731
        (past, past_bias), (present, present_bias) = layers("past"), layers("present")
        (residual, residual_bias), (skip, skip_bias) = layers("residual"), layers("skip")
        self.taps = torch.cat([past, present], 1).transpose(1, 2).contiguous()
        self.taps_bias = past_bias + present_bias
        self.residual, self.residual_bias = residual.transpose(1, 2).contiguous(), residual_bias
        self.skip, self.skip_bias = skip.flatten(0, 1).T.contiguous(), skip_bias.sum(0)
        self.table = get("embedding")
        self.hidden = get("hidden", "kernel").T.contiguous(), get("hidden", "bias")
        self.output = get("output", "kernel").T.contiguous(), get("output", "bias")
        rings = [torch.zeros(d, batch, past.shape[1]) for d in dilations]
        weights = (self.taps, self.taps_bias, self.residual, self.residual_bias)
        self.layers = list(zip(dilations, rings, *(list(w) for w in weights), strict=True))

    def step(self, x, n):
        linear = torch.nn.functional.linear
        h, gated = self.table[x], []
        for d, ring, taps, taps_bias, residual, residual_bias in self.layers:
            old = ring[n % d]
            z = linear(torch.cat([old, h], 1), taps, taps_bias)
            old.copy_(h)
            signal, gate = z.chunk(2, 1)
            g = signal.tanh_().mul_(gate.sigmoid_())
            gated.append(g)
            h = linear(g, residual, residual_bias).add_(h)
        total = linear(torch.cat(gated, 1), self.skip, self.skip_bias)
        return linear(torch.relu(linear(torch.relu(total), *self.hidden)), *self.output)

    @torch.inference_mode()
    def generate(self, batch, samples):
        x = torch.full((batch,), 128)
        for n in range(samples):
            x = torch.multinomial(torch.softmax(self.step(x, n), 1), 1)[:, 0]
        return x


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    network = from_nnx(lambda rngs: CausalWaveNet(OUTPUT.size, input_classes=OUTPUT.levels, rngs=rngs))
    noise = lambda a: a + 0.02 * jax.random.normal(jax.random.key(1), a.shape)  # noqa: E731
    params = jax.tree.map(noise, network.init(jax.random.key(0)))
    dilations = network.bind(params).dilations
    _compare(network, params, dilations)

    def program(params, keys, samples):
        return autoregression.generate(network.bind(params), OUTPUT, keys, Condition(), samples)

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    for batch, samples in ((1, 2000), (8, 1000), (64, 250)):
        keys = jax.random.split(jax.random.key(0), batch)
        runs, begin = {}, time.perf_counter()
        single = jax.jit(lambda params, keys, n=samples: program(params, keys, n))
        jax.block_until_ready(single(params, keys))
        compile_s = time.perf_counter() - begin
        runs["jax"] = lambda f=single, k=keys: jax.block_until_ready(f(params, k))
        if batch > 1:
            split = NamedSharding(mesh, PartitionSpec("batch"))
            spread = jax.device_put(params, NamedSharding(mesh, PartitionSpec())), jax.device_put(keys, split)
            per_core = jax.jit(
                jax.shard_map(
                    lambda params, keys, n=samples: program(params, keys, n),
                    mesh=mesh,
                    in_specs=(PartitionSpec(), PartitionSpec("batch")),
                    out_specs=PartitionSpec("batch"),
                    check_vma=False,
                )
            )
            jax.block_until_ready(per_core(*spread))
            runs["jax, one program per core"] = lambda f=per_core, a=spread: jax.block_until_ready(f(*a))
        peer, few = TorchWaveNet(dilations, params, batch), samples // 4
        for threads in (1, 2):

            def timed(threads=threads, peer=peer, few=few, batch=batch):
                torch.set_num_threads(threads)
                peer.generate(batch, few)

            timed()
            runs[f"torch, {threads} threads"] = timed
        rates = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                begin = time.perf_counter()
                run()
                rates[name].append(batch * (few if "torch" in name else samples) / (time.perf_counter() - begin))
        rates = {name: round(statistics.median(values)) for name, values in rates.items()}
        best = {side: max(v for k, v in rates.items() if k.startswith(side)) for side in ("jax", "torch")}
        row = {"batch": batch, "samples_per_s": rates, "ours / torch": round(best["jax"] / best["torch"], 2)}
        print(json.dumps(row | {"compile_s": round(compile_s, 1), "device": jax.devices()[0].device_kind}), flush=True)


def _compare(network, params, dilations):
    """Both give the same distributions for the same sound."""
    x = np.random.default_rng(0).integers(0, 256, (2, 40))
    ours = np.asarray(jax.jit(network.apply)(params, jnp.asarray(x)))
    peer = TorchWaveNet(dilations, params, 2)
    before = torch.from_numpy(np.concatenate([np.full((2, 1), 128), x[:, :-1]], 1))
    theirs = torch.stack([peer.step(before[:, n], n) for n in range(x.shape[1])], 1).numpy()
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if difference > 1e-4:
        raise SystemExit(f"the two networks differ by {difference:.2g} of the largest output")


if __name__ == "__main__":
    main()
