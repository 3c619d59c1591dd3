"""Attention over frames and to tokens: softmax(q k^T / sqrt d) v, whole or within a sliding window.

A window of w lets frame m see the frames m - w ... m + w (Beltagy et al. 2020, section 3.1): frames are cut into blocks
of w and each block attends to itself and its two neighbours, so that time and memory grow with frames times w.
Positions are rotary (Su et al. 2021, eq. 34), a relative encoding: other lengths than the trained one can be generated.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .layers import ComputeDtype


def rope(x: Float[Array, "batch frames heads channels"]) -> Float[Array, "batch frames heads channels"]:
    """Rotate channel pairs (k, k + channels / 2) of frame m by the angle m 10000^(-2k / channels)."""
    frames, channels = x.shape[1], x.shape[-1]
    angle = np.arange(frames)[:, None] * 1e4 ** (-np.arange(0, channels, 2) / channels)
    cos, sin = (jnp.asarray(f(angle), x.dtype)[:, None] for f in (np.cos, np.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attention(
    q: Float[Array, "batch queries heads channels"],
    k: Float[Array, "batch keys heads channels"],
    v: Float[Array, "batch keys heads channels"],
    *,
    mask: Bool[Array, "batch keys"] | None = None,
    window: int | None = None,
    compute_dtype: ComputeDtype = "float32",
) -> Float[Array, "batch queries heads channels"]:
    """What each query gathers from the keys that `mask` marks, at most `window` frames away; 0 where there is none.

    The softmax is float32 whatever the `compute_dtype`.
    """
    q, k, v = (a.astype(compute_dtype) for a in (q, k, v))
    if window is not None and q.shape[1] > 3 * window:
        return _sliding(q, k, v, mask, window).astype(jnp.float32)
    near = None if window is None else (window, window)
    some = None if mask is None else mask[:, None, None]
    out = jax.nn.dot_product_attention(q, k, v, mask=some, local_window_size=near).astype(jnp.float32)
    return out if mask is None else jnp.where(mask.any(1)[:, None, None, None], out, 0)


def _sliding(q: Array, k: Array, v: Array, mask: Array | None, window: int) -> Array:
    batch, frames, heads, channels = q.shape
    blocks = -(-frames // window)
    pad = blocks * window - frames
    q = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(batch * blocks, window, heads, channels)

    def neighbourhoods(x: Array) -> Array:
        """[batch, frames, ...] to the three blocks around each block, [batch, blocks, 3 window, ...]."""
        x = jnp.pad(x, ((0, 0), (window, window + pad)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(batch, blocks + 2, window, *x.shape[2:])
        return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)

    k, v = (neighbourhoods(x).reshape(batch * blocks, 3 * window, heads, channels) for x in (k, v))
    exists = neighbourhoods(jnp.ones((batch, frames), bool) if mask is None else mask)
    lag = np.arange(3 * window) - window - np.arange(window)[:, None]
    some = exists[:, :, None] & (np.abs(lag) <= window)
    # A query without keys attends evenly, to finite values, and is set to 0.
    out = jax.nn.dot_product_attention(q, k, v, mask=some.reshape(batch * blocks, 1, window, 3 * window))
    out = jnp.where(some.any(-1).reshape(batch * blocks, window, 1, 1), out, 0)
    return out.reshape(batch, blocks * window, heads, channels)[:, :frames]


def self_attention(
    qkv: Float[Array, "batch frames three_width"],
    heads: int,
    *,
    valid: Bool[Array, "batch frames"] | None = None,
    window: int | None = None,
    compute_dtype: ComputeDtype = "float32",
) -> Float[Array, "batch frames width"]:
    """Multi-head attention of frames to frames with rotary positions; queries, keys and values lie side by side."""
    qkv = qkv.reshape(*qkv.shape[:2], 3, heads, -1)
    q, k, v = rope(qkv[:, :, 0]), rope(qkv[:, :, 1]), qkv[:, :, 2]
    out = attention(q, k, v, mask=valid, window=window, compute_dtype=compute_dtype)
    return out.reshape(*out.shape[:2], -1)


def cross_attention(
    q: Float[Array, "batch frames width"],
    kv: Float[Array, "batch tokens two_width"],
    heads: int,
    *,
    mask: Bool[Array, "batch tokens"] | None = None,
    compute_dtype: ComputeDtype = "float32",
) -> Float[Array, "batch frames width"]:
    """Multi-head attention of frames to tokens (Vaswani et al. 2017, section 3.2.3); their order does not matter."""
    k, v = jnp.split(kv.reshape(*kv.shape[:2], 2 * heads, -1), 2, axis=2)
    out = attention(q.reshape(*q.shape[:2], heads, -1), k, v, mask=mask, compute_dtype=compute_dtype)
    return out.reshape(*out.shape[:2], -1)
