"""Norms of the blocks of a network: of its parameters, or of their gradient, which has the same tree.

A block is named by the first two keys of its parameters' path, as `jaxdiff info` lists them: `input`, `blocks.qkv`,
`encoder.0`. What a network keeps outside of any layer is a block by its own name.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def block_names(params: Any) -> list[str]:
    """The names of the blocks, in the order of their norms.

    >>> block_names({"layers": {"0": {"kernel": 1.0, "bias": 2.0}, "1": {"kernel": 3.0}}, "scale": 4.0})
    ['layers.0', 'layers.1', 'scale']
    """
    return list(_blocks(params))


def block_norms(params: Any) -> Float[Array, " blocks"]:
    """The Euclidean norm of each block, in float32.

    >>> block_norms({"layers": {"0": {"kernel": jnp.float32(3), "bias": jnp.float32(4)}}, "scale": jnp.float32(2)})
    Array([5., 2.], dtype=float32)
    """
    squares = [sum(jnp.sum(jnp.abs(x).astype(jnp.float32) ** 2) for x in block) for block in _blocks(params).values()]
    return jnp.sqrt(jnp.array(squares, jnp.float32))


def gradient_norms(gradient: Any) -> dict[str, Array]:
    """The metrics of a step's gradient: the norm of all, and those of its blocks."""
    norms = block_norms(gradient)
    return {"gradient_norm": jnp.sqrt(jnp.sum(norms**2)), "gradient_norms": norms}


def _blocks(params: Any) -> dict[str, list[Any]]:
    blocks: dict[str, list[Any]] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        blocks.setdefault(".".join(keys[:-1][:2] or keys), []).append(leaf)
    return blocks
