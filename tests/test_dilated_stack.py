"""The chunked layers of WaveNet against their definition: value and every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import max_relative
from test_networks import FAST_COMPILE, small_wavenet

from jaxdiff.networks import dilated_stack


@pytest.mark.slow
@pytest.mark.parametrize(
    "frames, condition, kept, lengths", [(150, 3, False, None), (128, 0, True, (128, 70)), (7, 3, True, None)]
)
def test_chunks_equal_the_definition(monkeypatch, frames, condition, kept, lengths):
    """150 frames are two chunks and a part of one; the last dilation reaches across chunks, or beyond 7 frames."""
    monkeypatch.setattr(dilated_stack, "_ROWS", 64)
    monkeypatch.setattr(dilated_stack, "_DEAR", 1 if kept else 512)
    network = small_wavenet(layers=9, dilation_cycle=8, condition_features=condition)
    graphdef, params = nnx.split(network)
    rng, ends = np.random.default_rng(0), None if lengths is None else jnp.array(lengths)
    draw = [rng.standard_normal(shape) for shape in ((2, frames, 6), (2, 8), (2, frames, 6), (2, frames, condition))]

    def run(name, params, h, e, target, c):
        def loss(params, h, e, c):
            out = getattr(nnx.merge(graphdef, params), name)(h, e, c, ends)
            return (out * target).sum(), out

        return jax.value_and_grad(loss, (0, 1, 2, 3) if condition else (0, 1, 2), has_aux=True)(params, h, e, c)

    both = jax.jit(lambda *args: (run("_skips_chunked", *args), run("_skips", *args)), compiler_options=FAST_COMPILE)
    for dtype, tolerance in ((jnp.float64, 1e-10), (jnp.float32, 1e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)  # noqa: E731, B023
            h, e, target, c = map(cast, draw)
            fast, plain = both(cast(params), h, e, target, c if condition else None)
            leaves = zip(jax.tree_util.tree_leaves_with_path(fast), jax.tree.leaves(plain), strict=True)
            for (path, ours), expected in leaves:
                if np.abs(expected).max() > 0:
                    assert max_relative(ours, expected) <= tolerance, path
                else:
                    assert not ours.any()


@pytest.mark.slow
@pytest.mark.parametrize("condition, lengths", [(3, None), (0, (150, 70))])
def test_winograds_products_give_the_definition_too(monkeypatch, condition, lengths):
    """Where no gradient is asked for: chunks of 64 frames hold the tiles of dilations up to 16."""
    monkeypatch.setattr(dilated_stack, "_ROWS", 64)
    monkeypatch.setattr(dilated_stack, "_WIDE", 1)
    calls, convolve = [], dilated_stack.winograd.convolve
    monkeypatch.setattr(dilated_stack.winograd, "convolve", lambda *args: calls.append(0) or convolve(*args))
    network = small_wavenet(layers=6, dilation_cycle=5, condition_features=condition)
    graphdef, params = nnx.split(network)
    rng, ends = np.random.default_rng(0), None if lengths is None else jnp.array(lengths)
    draw = [rng.standard_normal(shape) for shape in ((2, 150, 6), (2, 8), (2, 150, condition))]

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def both(params, h, e, c):
        c = c if condition else None
        return [getattr(nnx.merge(graphdef, params), name)(h, e, c, ends) for name in ("_skips_chunked", "_skips")]

    for dtype, tolerance in ((jnp.float64, 1e-10), (jnp.float32, 1e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)  # noqa: E731, B023
            fast, plain = both(cast(params), *map(cast, draw))
            kept = slice(None) if ends is None else jnp.arange(150) < ends[:, None]
            assert max_relative(fast[kept], plain[kept]) <= tolerance
    assert len(calls) == 2
