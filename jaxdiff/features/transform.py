"""How every transform runs: compiled once per set of options, and item by item where that is faster.

A transform takes arrays by position and options by keyword. `@transform` compiles it with the options as constants, so
that a call outside `jax.jit` is one program too (inside, it is inlined). On CPU `each_item` walks over the leading
axes, because one item's intermediate arrays stay in the cache and none of them is large enough to be mapped and
unmapped at every call; on GPU and TPU all items go at once.
"""

import functools
import inspect
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

_Function = TypeVar("_Function", bound=Callable)


def transform(function: _Function) -> _Function:
    """Compile `function` under `jax.jit`: positional arguments are arrays, keyword-only ones are hashable options.

    A keyword named `key` is a random key, hence an array too.
    """
    parameters = inspect.signature(function).parameters.values()
    options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "key"]
    compiled = jax.jit(function, static_argnames=options)

    @functools.wraps(function)
    def call(*arrays, **options):
        return compiled(*arrays, **options)

    return call  # type: ignore[return-value]


def each_item(function: Callable, *arrays: Array, axes: int = 1, scratch: tuple[int, ...] | None = None):
    """`function` of every item of `arrays`, whose last `axes` axes are one item and whose leading axes agree.

    `function` sees and returns arrays (or tuples of them) without leading axes. With `scratch`, the shape of a buffer,
    it is `function(*item, scratch) -> (out, scratch)`: on CPU one buffer then serves all items; what a function finds
    in it has no meaning, and None stands for a new one.
    """
    lead = arrays[0].shape[: arrays[0].ndim - axes]
    flat = [a.reshape(-1, *a.shape[len(lead) :]) for a in arrays]
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
