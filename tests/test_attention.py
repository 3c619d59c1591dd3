"""Attention against a full masked matrix in float64: windows, missing keys, and the order of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.networks.attention import attention, cross_attention, rope, self_attention


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def full(q, k, v, seen):
    """softmax(q k^T / sqrt d) v by item and head over the keys that `seen` [batch, queries, keys] marks, else 0."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros_like(q)
    for b, n, h in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(seen[b, n])
        if len(keys):
            scores = np.exp(k[b, keys, h] @ q[b, n, h] / np.sqrt(q.shape[-1]))
            out[b, n, h] = scores @ v[b, keys, h] / scores.sum()
    return out


@pytest.mark.parametrize(("frames", "window"), [(23, 4), (24, 4), (13, 4), (12, 4), (7, 1), (9, 20), (11, None)])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_equal_the_full_masked_matrix(frames, window, masked):
    q, k, v = (normal(seed, 2, frames, 2, 4) for seed in range(3))
    mask = np.random.default_rng(3).random((2, frames)) < 0.6
    mask[1, :12] = False  # some queries have no key within their window
    lag = np.abs(np.arange(frames) - np.arange(frames)[:, None])
    near = np.ones_like(lag, bool) if window is None else lag <= window
    seen = near & (mask[:, None] if masked else True) & np.ones((2, 1, 1), bool)
    ours = jax.jit(lambda q, k, v: attention(q, k, v, mask=jnp.asarray(mask) if masked else None, window=window))(
        q, k, v
    )
    assert max_relative(ours, full(q, k, v, seen)) <= 1e-5


def test_what_masked_keys_hold_does_not_matter_and_gradients_stay_finite():
    q, k, v = (jnp.asarray(normal(seed, 2, 23, 2, 4)) for seed in range(3))
    mask = jnp.arange(23) < jnp.array([[9], [23]])

    @jax.jit
    def value_and_gradients(k, v):
        square = lambda *a: (attention(*a, mask=mask, window=3)[:, :9] ** 2).sum()  # noqa: E731
        return square(q, k, v), jax.grad(square, argnums=(0, 1, 2))(q, k, v)

    value, gradients = value_and_gradients(k, v)
    again, _ = value_and_gradients(k.at[0, 9:].add(7.0), v.at[0, 9:].set(1e6))
    assert again == value
    for gradient in gradients:
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    assert not gradients[1][0, 9:].any() and not gradients[2][0, 9:].any()


def test_tokens_have_no_order_and_masked_ones_no_effect():
    q, kv, mask = normal(0, 1, 6, 8), normal(1, 1, 5, 16), jnp.array([[True, True, False, True, False]])
    order = np.array([3, 0, 4, 1, 2])
    attend = jax.jit(lambda q, kv, mask: cross_attention(q, kv, 2, mask=mask))
    out = attend(q, kv, mask)
    heads = [a.reshape(1, -1, 2, 4) for a in (q, kv[..., :8], kv[..., 8:])]
    expected = full(heads[0], heads[1], heads[2], np.broadcast_to(mask[:, None], (1, 6, 5)))
    assert max_relative(out.reshape(1, 6, 2, 4), expected) <= 1e-5
    assert max_relative(attend(q, kv[:, order], mask[:, order]), out) <= 1e-5
    assert (attend(q, kv + 9 * ~np.asarray(mask)[..., None], mask) == out).all()
    assert not attend(q, kv, jnp.zeros((1, 5), bool)).any()


@pytest.mark.slow
def test_bfloat16_rounds_the_factors_only():
    """Scores that differ by less than a bfloat16 step at their size still sum to weights of float32 accuracy."""
    qkv = normal(0, 1, 40, 24) * 3
    ours, rounded = (self_attention(jnp.asarray(qkv), 2, window=5, compute_dtype=d) for d in ("float32", "bfloat16"))
    assert rounded.dtype == jnp.float32
    assert 1e-4 < max_relative(rounded, ours) <= 3e-2
    ones = jnp.concatenate([jnp.asarray(qkv)[..., :16], jnp.ones((1, 40, 8))], axis=-1)
    assert max_relative(self_attention(ones, 2, window=5, compute_dtype="bfloat16"), jnp.ones((1, 40, 8))) <= 4e-3


def test_self_attention_turns_queries_and_keys_not_values():
    qkv = normal(0, 1, 11, 24)
    q, k, v = (jnp.asarray(a.reshape(1, 11, 2, 4)) for a in np.split(qkv, 3, axis=-1))
    expected = full(rope(q), rope(k), v, np.ones((1, 11, 11), bool)).reshape(1, 11, 8)
    assert max_relative(self_attention(jnp.asarray(qkv), 2), expected) <= 1e-5
