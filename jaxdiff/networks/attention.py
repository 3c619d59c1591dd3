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
    """What each query gathers from the keys that `mask` marks, at most `window` frames away; 0 where there is none."""
    q, k, v = (a.astype(compute_dtype) for a in (q, k, v))
    batch, frames, heads, channels = q.shape
    if window is not None and frames > 3 * window:
        out = _attend(*_blocks(q, k, v, mask, window))
        return out.reshape(batch, -1, heads, channels)[:, :frames]
    seen = None if mask is None else jnp.broadcast_to(mask[:, None], (batch, frames, k.shape[1]))
    if window is not None:
        near = jnp.asarray(np.abs(np.arange(frames) - np.arange(frames)[:, None]) <= window)
        seen = near[None] if seen is None else seen & near
    return _attend(q, k, v, seen)


def _blocks(q: Array, k: Array, v: Array, mask: Array | None, window: int) -> tuple[Array, Array, Array, Array]:
    """Each block of `window` queries as an item of its own, with the keys of three blocks and those that it sees."""
    batch, frames = q.shape[:2]
    blocks = -(-frames // window)
    pad = blocks * window - frames

    def neighbourhoods(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (window, window + pad)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(batch, blocks + 2, window, *x.shape[2:])
        x = jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)
        return x.reshape(batch * blocks, 3 * window, *x.shape[3:])

    exists = neighbourhoods(jnp.ones((batch, frames), bool) if mask is None else mask)
    lag = np.arange(3 * window) - window - np.arange(window)[:, None]
    q = jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))).reshape(batch * blocks, window, *q.shape[2:])
    return q, neighbourhoods(k), neighbourhoods(v), exists[:, None] & (np.abs(lag) <= window)


def _attend(q: Array, k: Array, v: Array, seen: Array | None) -> Array:
    """Attention to the keys `seen` [batch or 1, queries, keys]; on a CPU with heads before frames, twice as fast."""

    def heads_first(q: Array, k: Array, v: Array) -> Array:
        q, k, v = (x.swapaxes(1, 2) for x in (q * float(1 / np.sqrt(q.shape[-1])), k, v))
        scores = jnp.einsum("bhqc,bhkc->bhqk", q, k, preferred_element_type=jnp.float32)
        scores = scores if seen is None else jnp.where(seen[:, None], scores, -1e30)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))  # divided after the product,
        total = weights.sum(-1, keepdims=True)  # where there is less to divide
        out = jnp.einsum("bhqk,bhkc->bhqc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / total).swapaxes(1, 2)

    def any_device(q: Array, k: Array, v: Array) -> Array:
        mask = None if seen is None else seen[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask).astype(jnp.float32)

    out = jax.lax.platform_dependent(q, k, v, cpu=heads_first, default=any_device)
    return out if seen is None else jnp.where(seen.any(-1)[..., None, None], out, 0)


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
