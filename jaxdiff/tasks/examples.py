"""The two types every task speaks: `Example`, and `Task` itself."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, PRNGKeyArray

from jaxdiff.data.pipeline import Batch
from jaxdiff.networks import Condition


class Example(NamedTuple):
    """Clean features [batch, frames, channels] and what the network is told about them."""

    x0: Array
    cond: Condition


class Task(NamedTuple):
    """`example(batch, key)` makes a training example; `condition(batch)` only what is known when sampling;
    `decode(x0, cond)` is the sound of features."""

    example: Callable[[Batch, PRNGKeyArray], Example]
    condition: Callable[[Batch], Condition]
    decode: Callable[[Array, Condition], Array]
