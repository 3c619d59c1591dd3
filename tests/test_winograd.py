"""Winograd's convolution against the direct one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.networks import winograd


def direct(x, kernel, size, dilation, reach):
    """Outputs at `size` frames of x, which has `reach` frames more at both ends."""
    starts = (reach - dilation, reach, reach + dilation)
    return sum(x[:, s : s + size] @ w for s, w in zip(starts, np.split(kernel, 3), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dilation"), [(4, 1), (16, 2), (24, 3), (64, 16)])
def test_tiles_give_the_direct_convolution(size, dilation):
    rng, reach = np.random.default_rng(0), 16
    x, kernel = rng.standard_normal((2, size + 2 * reach, 5)), rng.standard_normal((15, 7))

    @jax.jit
    def tiled(x, kernel, dilation):
        tiles = winograd.Tiles(size, dilation)
        y = winograd.convolve(x[:, reach + tiles.inputs], winograd.transform(kernel))
        return tiles.in_time(y), y - tiles.in_time(y)[:, tiles.order]

    for dtype, tolerance in ((jnp.float64, 1e-13), (jnp.float32, 5e-6)):
        with jax.enable_x64(dtype == jnp.float64):
            y, apart = tiled(jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), jnp.int32(dilation))
            assert max_relative(y, direct(x, kernel, size, dilation, reach)) < tolerance
            assert not apart.any()


def test_kernels_of_a_stack_are_transformed_one_by_one():
    kernels = jax.random.normal(jax.random.key(0), (3, 6, 4))
    alone = jnp.stack([winograd.transform(kernel) for kernel in kernels])
    np.testing.assert_allclose(winograd.transform(kernels), alone, atol=1e-6)
    assert alone.shape == (3, 6, 2, 4)
