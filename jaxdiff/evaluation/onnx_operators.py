"""The computation of an ONNX graph in JAX: the operators that the two graphs of openwakeword hold, of set 13.

An operator is a function of its inputs whose keyword arguments are the attributes it knows, so a graph that asks for
more is refused and never computed in part. Integers of a graph (shapes, axes, pads) stay NumPy arrays: they must be
known when the program is traced. Products are of full single precision on every device.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .foreign_weights import Graph, Node

MAXIMUM_ELEMENTS = 1 << 31  # of a value within a graph: a damaged file shall not fill the memory


def weights_of(graph: Graph) -> dict[str, np.ndarray]:
    """The float tensors of a graph: what `run_graph` takes as an argument, so that programs do not hold them."""
    return {name: tensor for name, tensor in graph.tensors.items() if tensor.dtype.kind == "f"}


def run_graph(graph: Graph, weights: Mapping[str, Any], *inputs: jax.Array) -> tuple[jax.Array, ...]:
    """The outputs of a graph for its inputs; it may be traced by `jax.jit` with the graph held fixed.

    Raises ValueError for an operator, an attribute or a number of inputs that is not known, for a value that is used
    before it is made, and for one that is too large.
    """
    if len(inputs) != len(graph.inputs):
        raise ValueError(f"the graph has the inputs {', '.join(graph.inputs)}, got {len(inputs)} arrays")
    values: dict[str, Any] = {**graph.tensors, **weights, **dict(zip(graph.inputs, inputs, strict=True))}
    for node in graph.nodes:
        missing = [name for name in node.inputs if name and name not in values]
        if missing or len(node.outputs) != 1:
            raise ValueError(
                f"{node.operator} of the graph needs one output and known inputs, got outputs {list(node.outputs)} "
                f"and unknown inputs {missing}"
            )
        made = _computed(node, [values[name] if name else None for name in node.inputs])
        if made.size > MAXIMUM_ELEMENTS:
            raise ValueError(f"{node.operator} of the graph makes {made.size} numbers, at most {MAXIMUM_ELEMENTS} fit")
        values[node.outputs[0]] = made
    if missing := [name for name in graph.outputs if name not in values]:
        raise ValueError(f"no node of the graph makes its outputs {', '.join(missing)}")
    return tuple(values[name] for name in graph.outputs)


def _computed(node: Node, inputs: list[Any]) -> Any:
    if node.operator not in OPERATORS:
        raise ValueError(f"the operator {node.operator} of the graph is unknown; known are {', '.join(OPERATORS)}")
    try:
        return OPERATORS[node.operator](*inputs, **node.attributes)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{node.operator} of the graph cannot be computed: {error}") from None


def _fixed(values: Any, what: str) -> list[int]:
    """Integers that are known when the program is traced."""
    if not isinstance(values, np.ndarray | Sequence):
        raise ValueError(f"it takes {what} from computed values, which is not supported")
    return [int(v) for v in values]


def _constant(*, value: np.ndarray) -> np.ndarray:
    return value


def _unsqueeze(x: Any, axes: Any) -> Any:
    return jnp.expand_dims(x, tuple(_fixed(axes, "axes")))


def _transpose(x: Any, *, perm: Sequence[int]) -> Any:
    return jnp.transpose(x, perm)


def _reshape(x: Any, shape: Any) -> Any:
    """A size of 0 keeps that of the input, -1 is what is left."""
    sizes = _fixed(shape, "a shape")
    return jnp.reshape(x, [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])


def _pad(x: Any, pads: Any, value: Any = None, *, mode: str = "constant") -> Any:
    """All paddings before the axes come first, then those behind them."""
    if mode != "constant":
        raise ValueError(f"its mode is {mode}, only constant is supported")
    widths = _fixed(pads, "a padding")
    return jnp.pad(x, _pairs(widths, x.ndim), constant_values=0 if value is None else value)


def _pairs(pads: Sequence[int], axes: int) -> list[tuple[int, int]]:
    if len(pads) != 2 * axes or min(pads, default=0) < 0 or max(pads, default=0) > MAXIMUM_ELEMENTS:
        raise ValueError(f"its padding is {list(pads)}, {2 * axes} sizes that are not negative are expected")
    return list(zip(pads[:axes], pads[axes:], strict=True))


def _conv(
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
) -> Any:
    """The correlation of x [batch, channels, ...] with a kernel [out, channels / group, ...]."""
    axes = x.ndim - 2
    out = jax.lax.conv_general_dilated(
        x,
        kernel,
        tuple(strides or (1,) * axes),
        _pairs(pads or (0,) * (2 * axes), axes),
        rhs_dilation=tuple(dilations or (1,) * axes),
        feature_group_count=group,
        precision="highest",
    )
    return out if bias is None else out + jnp.reshape(bias, (-1, *[1] * axes))


def _max_pool(x: Any, *, kernel_shape: Sequence[int], strides: Sequence[int], pads: Sequence[int] | None = None) -> Any:
    axes = x.ndim - 2
    padding = [(0, 0), (0, 0), *_pairs(pads or (0,) * (2 * axes), axes)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, *kernel_shape), (1, 1, *strides), padding)


def _batch_normalization(x: Any, scale: Any, bias: Any, mean: Any, variance: Any, *, epsilon: float = 1e-5) -> Any:
    shape = (-1, *[1] * (x.ndim - 2))
    scale, bias, mean, variance = (jnp.reshape(v, shape) for v in (scale, bias, mean, variance))
    return (x - mean) * (scale / jnp.sqrt(variance + epsilon)) + bias


def _clip(x: Any, low: Any = None, high: Any = None) -> Any:
    return jnp.clip(x, low, high)


def _reduce_max(x: Any, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Any:
    return jnp.max(x, None if axes is None else tuple(axes), keepdims=bool(keepdims))


def _cast(x: Any, *, to: int) -> Any:
    if to != 1:
        raise ValueError(f"its type is {to}, only float32 (1) is supported")
    return jnp.asarray(x, jnp.float32)


def _power(x: Any, exponent: Any) -> Any:
    """A square is a product: powers by logarithms have no sign."""
    return x * x if isinstance(exponent, np.ndarray) and np.all(exponent == 2) else jnp.power(x, exponent)


def _leaky_relu(x: Any, *, alpha: float = 0.01) -> Any:
    return jnp.where(x >= 0, x, alpha * x)


def _maximum(*values: Any) -> Any:
    return functools.reduce(jnp.maximum, values)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, b: a + b,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Constant": _constant,
    "Conv": _conv,
    "Div": lambda a, b: a / b,
    "LeakyRelu": _leaky_relu,
    "Log": lambda x: jnp.log(x),
    "MatMul": lambda a, b: jnp.matmul(a, b, precision="highest"),
    "Max": _maximum,
    "MaxPool": _max_pool,
    "Mul": lambda a, b: a * b,
    "Pad": _pad,
    "Pow": _power,
    "ReduceMax": _reduce_max,
    "Relu": lambda x: jnp.maximum(x, 0),
    "Reshape": _reshape,
    "Sub": lambda a, b: a - b,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
