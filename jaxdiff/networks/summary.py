"""What a network consists of and costs: layers, parameters, receptive field, operations per second of sound.

Operations are those of matrix products and convolutions, two for each multiply-add, in the traced program with every
loop run to its end (XLA's own cost analysis counts a loop's body once). Element-wise work is left out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .layers import Condition, count_params


class Row(NamedTuple):
    """A layer: where it lies in the network, its class and its number of parameters."""

    name: str
    kind: str
    parameters: int


class Summary(NamedTuple):
    """`receptive_field` in ms, None where it is the whole input; `flops` of one call per second of sound."""

    rows: tuple[Row, ...]
    parameters: int
    receptive_field: float | None
    flops: float

    def __repr__(self) -> str:
        wide, kinds = max(len(row.name) for row in self.rows), max(len(row.kind) for row in self.rows)
        rows = [*self.rows, Row("all", "", self.parameters)]
        field = "the whole input" if self.receptive_field is None else f"{self.receptive_field:,.1f} ms"
        lines = [f"{r.name:{wide}s}  {r.kind:{kinds}s}  {r.parameters:>12,}" for r in rows]
        lines += [f"receptive field {field}", f"{self.flops / 1e9:,.3g} GFLOP per call and second of sound"]
        return "\n".join(lines)


def summarize(
    network: nnx.Module,
    features: int,
    frames: int,
    frame_rate: float,
    cond: Condition = Condition(),
    *,
    inputs: tuple | None = None,
) -> Summary:
    """The summary of `network` on one item of `frames` frames of `features` at `frame_rate` Hz.

    `inputs` are those of a call that is not `network(x_t, t, cond)`. The network may be abstract (`nnx.eval_shape`),
    the inputs `jax.ShapeDtypeStruct`s. Attention costs more per second for longer items, so `frames` matters there.
    """
    graphdef, params = nnx.split(network)
    rows: dict[str, Row] = {}
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(params)):
        keys = [key.key for key in path][:-1][:2]
        name = ".".join(map(str, keys)) or "(itself)"
        before = rows[name].parameters if name in rows else 0
        rows[name] = Row(name, _kind(network, keys), before + int(np.prod(leaf.shape)))
    x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, frames, features), (1,)))
    inputs = (x, t, cond) if inputs is None else inputs
    per_call = flops(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs), params, *inputs)
    reach: float | None = getattr(network, "receptive_field")  # noqa: B009 (an nnx.Module in general has none)
    field = None if reach is None else 1e3 * reach / frame_rate
    return Summary(tuple(rows.values()), count_params(params), field, per_call * frame_rate / frames)


def _kind(network: Any, keys: list) -> str:
    for key in keys:
        network = network[key] if isinstance(key, int) else getattr(network, key)
    return type(network).__name__


def flops(function: Callable, *args) -> int:
    """Operations of the matrix products and convolutions of `function(*args)`, arrays or `jax.ShapeDtypeStruct`s.

    A `while_loop` counts once, a conditional as its costliest branch.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in (*equation.invars[:2], *equation.outvars[:1]) if hasattr(v.aval, "shape")]
        inside = [_count(sub) for sub in _programs(equation.params)]
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                total += 2 * int(np.prod(shapes[2])) * int(np.prod([shapes[0][i] for i in contracted]))
            case "conv_general_dilated":
                kernel, output = shapes[1], shapes[2]
                outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
                total += 2 * int(np.prod(output)) * int(np.prod(kernel)) // outputs
            case "scan":
                total += equation.params["length"] * sum(inside)
            case "cond":
                total += max(inside)
            case _:
                total += sum(inside)
    return total


def _programs(params: dict) -> list:
    """The jaxprs among an equation's parameters."""
    values = [v for value in params.values() for v in (value if isinstance(value, tuple | list) else [value])]
    values = [getattr(v, "jaxpr", v) for v in values]
    return [v for v in values if hasattr(v, "eqns")]
