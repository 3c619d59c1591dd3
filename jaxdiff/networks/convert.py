"""Weights trained elsewhere, in our networks: the DiffWave of PyPI's package `diffwave`, version 0.1.7.

Its convolutions are [out, in, taps] and its linear layers [out, in]; ours are [taps * in, out] and [in, out]. It counts
diffusion steps 0 ... steps - 1, ours is called with t = (step + 1) / steps; between whole steps it interpolates the
embedding's table, ours evaluates the sines there.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from .torch_zip import read_torch_zip
from .wavenet import UPSAMPLER_STRIDES, WaveNet

_LAYER = {
    "dilated_conv": "dilated",
    "diffusion_projection": "step",
    "conditioner_projection": "condition",
    "output_projection": "output",
}
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
    schedule = params.get("noise_schedule", [0] * 50)
    return diffwave_network(read_torch_zip(path, only="model"), params.get("dilation_cycle_length", 10), len(schedule))


def diffwave_network(state: dict[str, np.ndarray], dilation_cycle: int = 10, diffusion_steps: int = 50) -> WaveNet:
    """The network with the arrays of a `diffwave` state_dict."""
    state = dict(state)
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
    kernels = [take(f"spectrogram_upsampler.conv{i}.weight") for i in (1, 2)]
    biases = [take(f"spectrogram_upsampler.conv{i}.bias") for i in (1, 2)]
    tree["upsample"] = {"kernels": dict(enumerate(k[0, 0] for k in kernels)), "biases": np.concatenate(biases)}
    if state:
        raise ValueError(f"the state has arrays that diffwave 0.1.7 has not, first {next(iter(state))}")
    strides = tuple(k.shape[-1] // 2 for k in kernels)
    hops = [hop for hop, known in UPSAMPLER_STRIDES.items() if known == strides]
    if not hops:
        raise ValueError(f"no upsampler has strides {strides}; known: {list(UPSAMPLER_STRIDES.values())}")
    network = nnx.eval_shape(
        lambda: WaveNet(
            tree["output"]["kernel"].shape[1],
            channels=tree["skip"]["kernel"].shape[1],
            layers=layers,
            dilation_cycle=dilation_cycle,
            embedding=tree["step_2"]["kernel"].shape[1],
            diffusion_steps=diffusion_steps,
            condition_features=each[0]["condition"]["kernel"].shape[0],
            condition_hop=hops[0],
            rngs=nnx.Rngs(0),
        )
    )
    graphdef, shapes = nnx.split(network)
    for where, expected in nnx.to_flat_state(shapes):
        found = _at(tree, where)
        if found.shape != expected.shape:
            raise ValueError(f"{'.'.join(map(str, where))} has shape {found.shape}, expected {expected.shape}")
    nnx.replace_by_pure_dict(shapes, _as_jax(tree))
    return nnx.merge(graphdef, shapes)


def _at(tree: Any, where: Iterable) -> Any:
    for key in where:
        tree = tree[key]
    return tree


def _as_jax(tree):
    return {k: _as_jax(v) for k, v in tree.items()} if isinstance(tree, dict) else jnp.asarray(tree)
