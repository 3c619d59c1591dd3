"""Weights trained elsewhere, in our networks: the DiffWave of PyPI's package `diffwave`, version 0.1.7.

Its convolutions are [out, in, taps] and its linear layers [out, in]; ours are [taps * in, out] and [in, out]. It counts
diffusion steps 0 ... steps - 1, ours is called with t = (step + 1) / steps; between whole steps it interpolates the
embedding's table, ours evaluates the sines there.
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .torch_zip import read_torch_zip
from .wavenet import UPSAMPLER_STRIDES, WaveNet

_LAYER = dict(
    dilated_conv="dilated", diffusion_projection="step", conditioner_projection="condition", output_projection="output"
)
_OUTSIDE = {
    "input_projection": "input",
    "diffusion_embedding.projection1": "step_1",
    "diffusion_embedding.projection2": "step_2",
    "skip_projection": "skip",
    "output_projection": "output",
}


def convert_diffwave(path: str | Path) -> WaveNet:
    """The network in a `weights.pt` of PyPI's `diffwave` (or in a saved state_dict of its model), float32.

    Sizes are read from the weights, dilation cycle and diffusion steps from the file's `params` where it has them (10
    and 50 otherwise). The pickle in the file is not executed. `network(x, t, Condition(frames=mel))` takes `x`
    [batch, 256 * frames, 1] and their log-mels as [batch, frames, mels]. Raises ValueError for anything else.

    >>> network = convert_diffwave("weights.pt")  # doctest: +SKIP
    >>> graphdef, params = nnx.split(network)  # doctest: +SKIP
    """
    params = read_torch_zip(path, only="params")
    params = params if isinstance(params, dict) else {}
    state = dict(read_torch_zip(path, only="model"))
    state.pop("diffusion_embedding.embedding", None)  # a table of constants that older files keep

    def take(name: str) -> np.ndarray:
        if not isinstance(array := state.pop(name, None), np.ndarray):
            raise ValueError(f"the state has no array {name}; expected the state_dict of diffwave 0.1.7")
        return array.astype(np.float32)

    def affine(name: str) -> dict:
        weight = take(f"{name}.weight")
        return {"kernel": weight.T.reshape(-1, len(weight)), "bias": take(f"{name}.bias")}

    layers = 1 + max((int(m[1]) for m in map(re.compile(r"residual_layers\.(\d+)\.").match, state) if m), default=-1)
    each = [{ours: affine(f"residual_layers.{i}.{theirs}") for theirs, ours in _LAYER.items()} for i in range(layers)]
    if not each:
        raise ValueError("the state has no residual_layers; expected the state_dict of diffwave 0.1.7")
    tree: dict[str, Any] = {ours: affine(theirs) for theirs, ours in _OUTSIDE.items()}
    tree["layers"] = {o: {p: np.stack([e[o][p] for e in each]) for p in ("kernel", "bias")} for o in _LAYER.values()}
    kernels, biases = ([take(f"spectrogram_upsampler.conv{i}.{name}") for i in (1, 2)] for name in ("weight", "bias"))
    tree["upsample"] = {"kernels": dict(enumerate(k[0, 0] for k in kernels)), "biases": np.concatenate(biases)}
    if state:
        raise ValueError(f"the state has arrays that diffwave 0.1.7 has not, first {next(iter(state))}")
    strides = tuple(k.shape[-1] // 2 for k in kernels)
    hops = [hop for hop, known in UPSAMPLER_STRIDES.items() if known == strides]
    if not hops:
        raise ValueError(f"no upsampler has strides {strides}; known: {list(UPSAMPLER_STRIDES.values())}")
    size = lambda part: tree[part]["kernel"].shape[1]  # noqa: E731
    options = dict(channels=size("skip"), layers=layers, embedding=size("step_2"), condition_hop=hops[0])
    options |= dict(condition_features=each[0]["condition"]["kernel"].shape[0])
    options |= dict(dilation_cycle=params.get("dilation_cycle_length", 10))
    options |= dict(diffusion_steps=len(params.get("noise_schedule", [0] * 50)))
    make = lambda: WaveNet(size("output"), **options, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    for where, expected in nnx.to_flat_state(shapes):
        found: Any = tree
        for key in where:
            found = found[key]
        if found.shape != expected.shape:
            raise ValueError(f"{'.'.join(map(str, where))} has shape {found.shape}, expected {expected.shape}")
    nnx.replace_by_pure_dict(shapes, jax.tree.map(jnp.asarray, tree))
    return nnx.merge(graphdef, shapes)
