"""A network as two pure functions, whatever library it was written with.

    params = network.init(key)                                          a nested dict of arrays
    output = network.apply(params, x_t, t, cond, r=..., key=...)        shaped like x_t

`r` is given to networks of two times alone and `key` in training alone, for dropout. Everything outside this folder
sees networks so: plain dicts cross `jax.jit`, optax and Orbax, which costs the host a tenth of NNX's own transforms.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray

from .layers import Condition, streams

Params = Any  # nested dict of arrays


class Network(NamedTuple):
    """`init(key) -> params` and `apply(params, x_t, t, cond, *, r=None, key=None) -> output`, any two such functions.
    `bind(params)` is the module itself, where there is one: what counts parameters by layer or generates sample by
    sample needs it. `parts` are those of a batch that `apply` works on one after the other (`in_parts`)."""

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable
    bind: Callable[[Params], Any] | None = None
    parts: int = 1

    def module(self, params: Params) -> Any:
        """The module with these parameters; raises ValueError where the network is two functions and no module."""
        if self.bind is None:
            raise ValueError("this needs a network with a module, such as from_nnx gives; got two functions")
        return self.bind(params)

    def bound(self, params: Params, key: PRNGKeyArray | None = None) -> Callable:
        """`(x_t, t, cond, r=...) -> output` with these parameters; every call uses the same `key`, if any."""
        options = {} if key is None else {"key": key}
        return lambda *inputs, **more: self.apply(params, *inputs, **options, **more)

    def shapes(self) -> Params:
        """The parameters as shapes and types, without making them."""
        return jax.eval_shape(self.init, jax.random.key(0))


def in_parts(network: Network, parts: int) -> Network:
    """The network, which works on a batch in so many parts, one after the other, and keeps what a gradient needs of one
    part alone: it is computed again on the way back, a second forward pass.

    Equal to the whole batch at once up to rounding, but for dropout, which each part draws anew: what stands around the
    network sees the whole batch. A batch that does not divide is cut into fewer parts.
    """
    if parts == 1:
        return network

    def apply(params: Params, *inputs, r=None, key: PRNGKeyArray | None = None):
        batch = len(jax.tree.leaves(inputs)[0])
        count = math.gcd(batch, parts)
        cut = lambda x: x.reshape(batch // count, count, *x.shape[1:]).swapaxes(0, 1)  # noqa: E731 of each device's rows

        @jax.checkpoint
        def part(number, own):
            inputs, r = own
            options = {} if r is None else {"r": r}
            options |= {} if key is None else {"key": jax.random.fold_in(key, number)}
            return network.apply(params, *inputs, **options)

        made = jax.lax.map(lambda own: part(*own), (jnp.arange(count), jax.tree.map(cut, (inputs, r))))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(batch, *x.shape[2:]), made)

    return network._replace(apply=apply, parts=parts)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """The network that `make(rngs)` builds, an `nnx.Module` called as `(x_t, t, cond, *, r=None, rngs=None)`.

    A module that takes fewer arguments is given fewer: the leading positional ones, and `r` and `rngs` by name.
    """
    shape = nnx.eval_shape(lambda: make(streams(jax.random.key(0))))
    graphdef, _ = nnx.split(shape)
    count, names = _arguments(type(shape).__call__)

    def apply(params: Params, *inputs, r=None, key: PRNGKeyArray | None = None):
        options = {} if r is None else {"r": r}
        if key is not None and "rngs" in names:
            options["rngs"] = streams(key)
        return nnx.merge(graphdef, params)(*inputs[:count], **options)

    init = lambda key: nnx.to_pure_dict(nnx.split(make(streams(key)))[1])  # noqa: E731
    return Network(init, apply, bind=lambda params: nnx.merge(graphdef, params))


def from_linen(module: Any, channels: int, cond: Condition = Condition(), *, frames: int = 8) -> Network:
    """The network of a `flax.linen.Module` called as `(x_t, t, cond)`, or with fewer arguments.

    `channels` are the features of a frame and `cond` an example of the condition, which Linen needs to make parameters;
    `frames` is the length it is shown. In training its dropout draws from the collection "dropout".
    """
    count, _ = _arguments(type(module).__call__)
    example = (jnp.zeros((1, frames, channels)), jnp.zeros(1), cond)[:count]

    def apply(params: Params, *inputs, r=None, key: PRNGKeyArray | None = None):
        options = {} if r is None else {"r": r}
        return module.apply(params, *inputs[:count], rngs=None if key is None else {"dropout": key}, **options)

    return Network(init=lambda key: module.init(key, *example), apply=apply)


def _arguments(call: Callable) -> tuple[int, set[str]]:
    """How many positional arguments a module's `__call__` takes after self, and the names of all."""
    parameters = inspect.signature(call).parameters.values()
    positional = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) - 1
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return 3 if any_number else positional, {p.name for p in parameters}
