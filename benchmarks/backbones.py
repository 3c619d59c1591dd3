"""Frame-rate networks beside the same networks in PyTorch, interleaved in one process.

    pip install torch -e .        python benchmarks/backbones.py [--rounds 9] [--only transformer]

WaveNet, Transformer and ConvNeXt of width 256 and 8 layers on 16 items of 2 s at 125 frames/s with 80 features,
float32. PyTorch has the weights of ours and must give the same outputs and gradients. A round calls forward and
gradient (of a mean squared error, for all parameters) of each once. On a CPU our side runs one program per core, the
batch split over them as over any mesh of devices; PyTorch uses its default threads. Times are medians in ms; one JSON
line per row.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable

os.environ.setdefault(
    "XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()} --xla_cpu_multi_thread_eigen=false"
)

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jaxdiff import networks
from jaxdiff.training.sharding import data_mesh, replicate, split_batch

ITEMS, FRAMES, FEATURES, WIDTH, DEPTH = 16, 250, 80, 256, 8
Params = dict[str, Tensor]


def linear(p: Params, name: str, x: Tensor, layer: int | None = None) -> Tensor:
    kernel, bias = p[name + ".kernel"], p[name + ".bias"]
    return functional.linear(x, kernel, bias) if layer is None else functional.linear(x, kernel[layer], bias[layer])


def sinusoids(position: Tensor, frequencies: np.ndarray) -> Tensor:
    angle = position[:, None] * torch.from_numpy(frequencies.astype(np.float32)).to(position)
    return torch.cat([angle.sin(), angle.cos()], -1)


def torch_transformer(p: Params, x: Tensor, t: Tensor) -> Tensor:
    """DiT with rotary positions, kernels stored [out, in]."""
    silu, (batch, frames, _) = functional.silu, x.shape
    c = sinusoids(1000 * t, 1e4 ** (-np.arange(128) / 128))
    c = silu(linear(p, "time_2", silu(linear(p, "time_1", c))))
    h, heads, size = linear(p, "input", x), 4, WIDTH // 4
    angle = np.arange(frames)[:, None] * 1e4 ** (-np.arange(0, size, 2) / size)
    cos, sin = (torch.from_numpy(f(angle).astype(np.float32)).to(x) for f in (np.cos, np.sin))

    def turn(q: Tensor) -> Tensor:
        a, b = q.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return functional.layer_norm(h, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    for i in range(DEPTH):
        m = linear(p, "blocks.modulation", c, i).chunk(6, -1)
        qkv = linear(p, "blocks.qkv", modulate(h, m[0], m[1]), i).reshape(batch, frames, 3, heads, size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(turn(q), turn(k), v).transpose(1, 2)
        h = h + m[2][:, None] * linear(p, "blocks.attention_output", attended.reshape(batch, frames, WIDTH), i)
        mixed = functional.gelu(linear(p, "blocks.mlp_input", modulate(h, m[3], m[4]), i), approximate="tanh")
        h = h + m[5][:, None] * linear(p, "blocks.mlp_output", mixed, i)
    return linear(p, "output", modulate(h, *linear(p, "modulation", c).chunk(2, -1)))


def torch_wavenet(p: Params, x: Tensor, t: Tensor) -> Tensor:
    """DiffWave's network with its one-dimensional convolutions, channels first; kernels stored [out, in]."""
    silu = functional.silu
    exponents = np.arange(64, dtype=np.float32) * np.float32(4) / np.float32(63)  # rounded where DiffWave's are
    e = sinusoids(50 * t - 1, 10.0 ** exponents.astype(np.float64))
    e = silu(linear(p, "step_2", silu(linear(p, "step_1", e))))
    h, total = torch.relu(linear(p, "input", x)).mT, 0
    for i in range(DEPTH):
        d = 2 ** (i % 4)
        y = h + linear(p, "layers.step", e, i)[..., None]
        taps = p["layers.dilated.kernel"][i].reshape(2 * WIDTH, 3, WIDTH).mT
        z = functional.conv1d(y, taps, p["layers.dilated.bias"][i], padding=d, dilation=d)
        gate, signal = z.chunk(2, 1)
        kernel, bias = p["layers.output.kernel"][i], p["layers.output.bias"][i]
        o = functional.conv1d(torch.sigmoid(gate) * torch.tanh(signal), kernel[..., None], bias)
        residual, skip = o.chunk(2, 1)
        h, total = (h + residual) / 2**0.5, total + skip
    return linear(p, "output", torch.relu(linear(p, "skip", total.mT / DEPTH**0.5)))


def torch_convnext(p: Params, x: Tensor, t: Tensor) -> Tensor:
    """Vocos' blocks with modulation; the depthwise convolution channels first, as `groups` asks for."""
    silu = functional.silu
    c = sinusoids(1000 * t, 1e4 ** (-np.arange(128) / 128))
    c = silu(linear(p, "conditioner.time_2", silu(linear(p, "conditioner.time_1", c))))

    def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return functional.layer_norm(h, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    h = linear(p, "input", x)
    for i in range(DEPTH):
        shift, scale, gate = linear(p, "blocks.modulation", c, i).chunk(3, -1)
        taps = p["blocks.depthwise"][i].T[:, None]
        mixed = modulate(functional.conv1d(h.mT, taps, padding=3, groups=WIDTH).mT, shift, scale)
        mixed = functional.gelu(linear(p, "blocks.mlp_input", mixed, i), approximate="tanh")
        h = h + (p["blocks.scale"][i] + gate)[:, None] * linear(p, "blocks.mlp_output", mixed, i)
    return linear(p, "output", modulate(h, *linear(p, "modulation", c).chunk(2, -1)))


ROWS = {
    "transformer": (
        lambda rngs: networks.Transformer(FEATURES, width=WIDTH, depth=DEPTH, rngs=rngs),
        torch_transformer,
    ),
    "wavenet": (
        lambda rngs: networks.WaveNet(FEATURES, channels=WIDTH, layers=DEPTH, dilation_cycle=4, rngs=rngs),
        torch_wavenet,
    ),
    "convnext": (
        lambda rngs: networks.ConvNeXt(FEATURES, width=WIDTH, depth=DEPTH, rngs=rngs),
        torch_convnext,
    ),
}


def ours(network: networks.Network, params, x, t, target) -> tuple[dict[str, Callable], dict[str, float]]:
    """Forward and gradient, and the seconds that compiling each took."""
    loss = lambda params, x, t, target: ((network.apply(params, x, t) - target) ** 2).mean()  # noqa: E731
    mesh = data_mesh()
    params = replicate(params, mesh)
    x, t, target = split_batch((x, t, target), mesh)
    calls, seconds = {}, {}
    for name, function, args in (("forward", network.apply, (x, t)), ("gradient", jax.grad(loss), (x, t, target))):
        start = time.perf_counter()
        compiled = jax.jit(function).lower(params, *args).compile()
        seconds[name] = round(time.perf_counter() - start, 1)
        calls[name] = lambda compiled=compiled, args=args: jax.block_until_ready(compiled(params, *args))
    return calls, seconds


def theirs(network: Callable, params, x, t, target) -> dict[str, Callable]:
    flat = {".".join(k.key for k in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    to = lambda a: torch.from_numpy(np.array(a)).to(device)  # noqa: E731
    p = {k: to(v).mT.contiguous() if k.endswith("kernel") else to(v) for k, v in flat.items()}
    x, t, target = to(x), to(t), to(target)

    def finish(out):
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    def forward() -> Tensor:
        with torch.inference_mode():
            return finish(network(p, x, t))

    def gradient() -> dict[str, Tensor]:
        leaves = {k: v.detach().requires_grad_() for k, v in p.items()}
        functional.mse_loss(network(leaves, x, t), target).backward()
        return finish({k: v.grad for k, v in leaves.items()})

    return {"forward": forward, "gradient": gradient}


def disagreement(mine: dict[str, Callable], peer: dict[str, Callable]) -> float:
    """The largest difference of outputs and of gradients, relative to each array's largest value."""
    relative = lambda a, b: float(np.abs(a - b).max() / np.abs(b).max())  # noqa: E731
    worst = relative(np.asarray(mine["forward"]()), peer["forward"]().cpu().numpy())
    gradients = peer["gradient"]()
    for path, leaf in jax.tree.leaves_with_path(mine["gradient"]()):
        name = ".".join(k.key for k in path)
        other = gradients[name].cpu().numpy()
        worst = max(worst, relative(np.asarray(leaf), other.swapaxes(-1, -2) if name.endswith("kernel") else other))
    return worst


def measure(calls: dict[str, Callable], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Median and least milliseconds and mean minor page faults per call, after two calls that warm up."""
    times, faults = {n: [] for n in calls}, dict.fromkeys(calls, 0)
    for call in calls.values():
        call(), call()
    names = list(calls)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            calls[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
            faults[name] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {n: (statistics.median(t), min(t), faults[n] / rounds) for n, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS))
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    x, target = (rng.standard_normal((ITEMS, FRAMES, FEATURES)).astype(np.float32) for _ in range(2))
    t = np.arange(ITEMS, dtype=np.float32) / ITEMS  # exact: the finest sine of a time turns 10,000 times as fast
    for row in arguments.only:
        make, peers = ROWS[row]
        network = networks.from_nnx(make)
        draw = lambda leaf: jnp.asarray(0.04 * rng.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
        params = jax.tree.map(draw, network.shapes())
        mine, seconds = ours(network, params, x, t, target)
        peer = theirs(peers, params, x, t, target)
        error = disagreement(mine, peer)
        if not error <= 1e-3:
            raise SystemExit(f"{row}: PyTorch's outputs or gradients differ by {error:.1e}, expected 1e-3 at most")
        calls = {(who, what): call for who, side in (("ours", mine), ("torch", peer)) for what, call in side.items()}
        result = measure(calls, arguments.rounds)
        for what in mine:
            (our_ms, our_least, our_faults), (ms, least, faults) = result["ours", what], result["torch", what]
            line = {
                "row": f"{row} {what}",
                "device": jax.devices()[0].device_kind,
                "devices": jax.device_count(),
                "shape": [ITEMS, FRAMES, FEATURES],
                "ours": {"ms": round(our_ms, 1), "least": round(our_least, 1), "faults": round(our_faults)},
                "torch": {"ms": round(ms, 1), "least": round(least, 1), "faults": round(faults)},
                "torch / ours": round(ms / our_ms, 2),
                "compile s": seconds[what],
                "largest difference": float(f"{error:.1e}"),
                "versions": {"jax": jax.__version__, "torch": torch.__version__},
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
