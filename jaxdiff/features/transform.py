"""How every transform runs: compiled once per set of options, and item by item where that is faster.

A transform takes arrays by position and options by keyword, which are checked by their annotations (`arguments.py`).
`@transform` compiles it with the options as constants, so that a call outside `jax.jit` is one program too (inside, it
is inlined). On CPU `each_item` walks over the leading axes, because one item's intermediate arrays stay in the cache
and none of them is large enough to be mapped and unmapped at every call; on GPU and TPU all items go at once.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .arguments import array_kind, check_argument, check_together, plain

_Function = TypeVar("_Function", bound=Callable)


def transform(function: _Function) -> _Function:
    """Compile `function` under `jax.jit`: positional arguments are arrays, keyword-only ones are hashable options.

    A keyword named `key` is a random key, hence an array too. An array whose default is None may be left out; where all
    have that default, exactly one of them must be given.
    """
    name, parameters = function.__name__, inspect.signature(function).parameters
    arrays = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    either = arrays if all(parameters[array].default is None for array in arrays) else []
    kinds = {array: array_kind(parameters[array].annotation) for array in arrays}
    compiled = jax.jit(function, static_argnames=[option for option in parameters if option not in (*arrays, "key")])

    @functools.wraps(function)
    def call(*values, **options):
        given = dict(zip(arrays, values, strict=False)) | options
        for parameter, value in given.items():
            if parameter in parameters:  # of any other, Python itself says that it is not expected
                check_argument(name, parameter, parameters[parameter].annotation, value, parameters[parameter].default)
        if either and sum(given.get(array) is not None for array in either) != 1:
            raise ValueError(f"{name}: give either {' or '.join(either)}")
        if not either and len(arrays) > 1:
            there = [array for array in arrays if given.get(array) is not None]
            check_together(name, {array: (kinds[array], given[array]) for array in there})
        return compiled(*values, **{option: plain(value) for option, value in options.items()})

    return call  # type: ignore[return-value]


def each_item(function: Callable, *arrays: Array, axes: int = 1, scratch: tuple[int, ...] | None = None):
    """`function` of every item of `arrays`, whose last `axes` axes are one item and whose leading axes agree.

    `function` sees and returns arrays (or tuples of them) without leading axes. With `scratch`, the shape of a buffer,
    it is `function(*item, scratch) -> (out, scratch)`: on CPU one buffer then serves all items; what a function finds
    in it has no meaning, and None stands for a new one.
    """
    lead = arrays[0].shape[: arrays[0].ndim - axes]
    flat = [a.reshape(math.prod(lead), *a.shape[len(lead) :]) for a in arrays]
    plain = function if scratch is None else lambda *item: function(*item, None)[0]

    def mapped(*items: Array):
        if scratch is None:
            return jax.lax.map(lambda item: function(*item), items)

        def step(buffer: Array, item: tuple[Array, ...]):
            out, buffer = function(*item, buffer)
            return jax.lax.stop_gradient(buffer), out

        return jax.lax.scan(step, jnp.zeros(scratch, arrays[0].dtype), items)[1]

    if len(flat[0]) == 1:
        out = jax.tree.map(lambda x: x[None], plain(*(a[0] for a in flat)))
    else:
        out = jax.lax.platform_dependent(*flat, cpu=mapped, default=jax.vmap(plain))
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), out)
