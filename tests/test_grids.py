"""Grids are found by descent through the sampler, kept beside the checkpoint, and only used for it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pipeline import TREE

from jaxdiff import grids
from jaxdiff.config import ConfigError, from_dict
from jaxdiff.diffusion import RectifiedFlow, euler, grid_error, search_grid, time_grid
from jaxdiff.pipeline import Pipeline, build_model, init_params

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_best_two_euler_steps_of_a_gaussian():
    """For x0 ~ N(0, d^2) two Euler steps are a function of the middle time alone: try them all."""
    d = 0.5

    def gaussian(x, t):  # E[x0 | x_t]
        return (1 - t) * d**2 / ((1 - t) ** 2 * d**2 + t**2) * x

    x_T = jnp.ones((1, 1))
    reference = d * x_T  # the exact flow maps quantiles to quantiles

    def error(m):
        return grid_error(euler, gaussian, RectifiedFlow(), x_T, reference, jnp.stack([1.0, m, 0.0]))

    candidates = jnp.linspace(0.01, 0.99, 981)
    best = candidates[jnp.argmin(jax.vmap(error)(candidates))]
    start = time_grid(RectifiedFlow(), 2)
    found, errors = search_grid(euler, gaussian, RectifiedFlow(), x_T, reference, start, iterations=200)
    assert found[0] == 1
    assert found[2] == 0
    assert float(found[1]) == pytest.approx(float(best), abs=0.01)
    assert float(error(found[1])) <= float(errors.min()) * (1 + 1e-5)
    assert float(error(found[1])) < 0.7 * float(errors[0])


def test_too_few_times_are_refused():
    with pytest.raises(ValueError, match="2 steps or more"):
        search_grid(euler, lambda x, t: x, RectifiedFlow(), jnp.ones(1), jnp.ones(1), jnp.array([1.0, 0.0]))


@pytest.fixture
def pipeline(tmp_path):
    config = from_dict({**TREE, "sampling": {"steps": 3, "sampler": "euler"}})
    features = build_model(config, 3, None).features
    params = jax.tree.map(lambda x: x + 0.05, init_params(config, features, 3, jax.random.key(1)))
    config = from_dict({**TREE, "sampling": {"steps": 3, "sampler": "euler"}, "normalize": {"enabled": False}})
    return Pipeline(config, ("a", "b", "c"), params, None, step=0, fingerprint="f", directory=tmp_path)


def test_a_searched_grid_is_better_on_other_sounds_kept_and_used(pipeline):
    grid = grids.search(pipeline, steps=3, count=4, iterations=30)
    assert grid.error < grid.error_before
    path = grids.write_grid(pipeline.directory, grid)
    assert path.name == "euler-3.json"
    assert grids.read_grid(pipeline.directory, "euler", 3, "f") == grid
    sampling = pipeline.sampling(sampler="euler", steps=3, spacing="searched")
    np.testing.assert_array_equal(pipeline.times(sampling), np.float32(grid.times))
    usual, searched = (pipeline.generate(count=1, spacing=s) for s in ("uniform", "searched"))
    assert np.abs(usual - searched).max() > 1e-3 * np.abs(usual).max()


def test_a_grid_that_does_not_fit_is_refused(pipeline):
    with pytest.raises(ConfigError, match=r"no grid was searched for 5 heun steps; run jaxdiff search-schedule"):
        pipeline.generate(sampler="heun", steps=5, spacing="searched")
    grid = grids.Grid("euler", (1.0, 0.4, 0.0), 0.1, 0.2, "f")
    path = grids.write_grid(pipeline.directory, grid)
    with pytest.raises(ConfigError, match="another checkpoint"):
        grids.read_grid(pipeline.directory, "euler", 2, "g")
    for times in ((1.0, 1.2, 0.0), (1.0, 0.0), (0.9, 0.4, 0.0), (1.0, float("nan"), 0.0)):
        path.write_text(json.dumps(grid._replace(times=times)._asdict()))
        with pytest.raises(ConfigError, match="does not hold 3 times"):
            grids.read_grid(pipeline.directory, "euler", 2, "f")
    for text in ("{", "[1]", '{"times": [1, 0.5, 0], "kind": 1}', '{"times": "x"}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is not a time grid"):
            grids.read_grid(pipeline.directory, "euler", 2, "f")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(steps=3, sampler="ancestral"), "deterministic samplers only: euler"),
        (dict(steps=3, sampler="hern"), "'hern': a grid can be searched for"),
        (dict(steps=1), "steps 1 must be at least 2"),
    ],
)
def test_what_cannot_be_searched_is_refused(pipeline, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        grids.search(pipeline, **options)
