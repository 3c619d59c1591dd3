"""Counts of parameters and operations against those by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxdiff.networks import Condition, Transformer, WaveNet, count_params, flops, summarize

f32 = jnp.float32


def test_operations_of_products_loops_and_convolutions():
    a, b = jax.ShapeDtypeStruct((5, 3, 4), f32), jax.ShapeDtypeStruct((5, 4, 7), f32)
    assert flops(jnp.matmul, a, b) == 2 * 5 * 3 * 4 * 7
    square, kernel = jax.ShapeDtypeStruct((6, 6), f32), jax.ShapeDtypeStruct((3, 2, 8), f32)
    power = lambda x: jax.lax.scan(lambda c, _: (jax.jit(jnp.dot)(c, x), None), x, length=9)[0]  # noqa: E731
    assert flops(power, square) == 9 * 2 * 6**3
    either = lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x, x)  # noqa: E731
    assert flops(either, square) == 2 * 6**3
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2
    )
    assert flops(convolve, jax.ShapeDtypeStruct((1, 12, 4), f32), kernel) == 2 * 10 * 8 * 3 * 2
    assert flops(jax.checkpoint(lambda x: x @ x), square) == 2 * 6**3


def test_a_wavenets_summary_by_hand():
    make = lambda: WaveNet(10, channels=8, layers=6, dilation_cycle=3, embedding=16, rngs=nnx.Rngs(0))  # noqa: E731
    network, frames = nnx.eval_shape(make), 50
    s = summarize(network, 10, frames, 125.0)
    per_frame = 10 * 8 + 6 * (3 * 8 * 16 + 8 * 16) + 8 * 8 + 8 * 10
    per_call = 128 * 16 + 16 * 16 + 6 * 16 * 8
    assert s.flops == pytest.approx(125 * 2 * (per_frame + per_call / frames), rel=1e-12)
    assert s.receptive_field == pytest.approx(1000 * 29 / 125)
    assert s.parameters == count_params(nnx.split(network)[1]) == sum(row.parameters for row in s.rows)
    assert next(row for row in s.rows if row.name == "layers.dilated") == (
        "layers.dilated", "Projection", 6 * (24 * 16 + 16),
    )  # fmt: skip
    assert f"{s.parameters:,}" in str(s) and "232.0 ms" in str(s)
    assert repr(s) == str(s)  # as a notebook shows it


def test_a_transformers_operations_by_hand():
    width, depth, tokens, frames = 16, 3, 5, 40
    make = lambda: Transformer(4, width=width, depth=depth, heads=2, token_features=6, rngs=nnx.Rngs(0))  # noqa: E731
    network = nnx.eval_shape(make)
    described: Any = jax.ShapeDtypeStruct((1, tokens, 6), f32)
    cond = Condition(tokens=described)
    s = summarize(network, 4, frames, 100.0, cond)
    layer = frames * width**2 * (4 + 8 + 2) + 2 * frames**2 * width
    layer += tokens * 6 * 2 * width + 2 * frames * tokens * width
    modulation = depth * 9 * width**2 + 2 * width**2 + 256 * width + width**2
    assert s.flops == pytest.approx(2 * (depth * layer + modulation + 2 * frames * 4 * width) * 100 / frames)
    assert s.receptive_field is None and "whole input" in str(s)
