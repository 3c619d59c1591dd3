"""Times are found by descent through the sampler, kept beside the checkpoint, and only used for it."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import drawn
from test_pipeline import TREE, VOCODER, rows, sound

from jaxdiff.config import ConfigError, from_dict
from jaxdiff.config import model as build_model
from jaxdiff.diffusion import RectifiedFlow, euler, search_times, spaced_times, times_error
from jaxdiff.inference import Pipeline
from jaxdiff.inference.load import pipeline_of
from jaxdiff.inference.times import Times, read_times, search, write_times


@pytest.mark.slow
def test_the_best_two_euler_steps_of_a_gaussian():
    """For x0 ~ N(0, d^2) two Euler steps are a function of the middle time alone: try them all."""
    d = 0.5

    def gaussian(x, t):  # E[x0 | x_t]
        return (1 - t) * d**2 / ((1 - t) ** 2 * d**2 + t**2) * x

    x_T = jnp.ones((1, 1))
    reference = d * x_T  # the exact flow maps quantiles to quantiles

    def error(m):
        return times_error(euler, gaussian, RectifiedFlow(), x_T, reference, jnp.stack([1.0, m, 0.0]))

    candidates = jnp.linspace(0.01, 0.99, 981)
    best = candidates[jnp.argmin(jax.vmap(error)(candidates))]
    start = spaced_times(RectifiedFlow(), 2)
    found, errors = search_times(euler, gaussian, RectifiedFlow(), x_T, reference, start, iterations=200)
    assert found[0] == 1
    assert found[2] == 0
    assert float(found[1]) == pytest.approx(float(best), abs=0.01)
    assert float(error(found[1])) <= float(errors.min()) * (1 + 1e-5)
    assert float(error(found[1])) < 0.7 * float(errors[0])


def test_too_few_times_are_refused():
    with pytest.raises(ValueError, match="2 steps or more"):
        search_times(euler, lambda x, t: x, RectifiedFlow(), jnp.ones(1), jnp.ones(1), jnp.array([1.0, 0.0]))


@pytest.fixture(scope="module")
def made():
    config, classes = from_dict({**TREE, "normalize": {"enabled": False}, "sampling": {"steps": 3}}), ("a", "b", "c")
    return pipeline_of(config, classes, drawn(build_model(config, classes, None).network, 0.05), None)


@pytest.fixture
def pipeline(made, tmp_path):
    """The model in a folder of its own, its sampler the first of its method."""
    options: dict[str, Any] = dict(seconds=made.seconds, sampling=made.sampling, fingerprint="f", directory=tmp_path)
    return Pipeline(made.model, made.method, made.params, **options)


@pytest.mark.slow
def test_searched_times_are_better_on_other_sounds_kept_and_used(pipeline):
    found = search(pipeline, steps=3, sampler="euler", count=4, iterations=30)
    assert (found.sampler, len(found.times), found.checkpoint) == ("euler", 4, "f")
    assert found.error < found.error_before
    path = write_times(pipeline.directory, found)
    assert path == pipeline.directory / "grids" / "euler-3.json"
    assert read_times(pipeline.directory, "euler", 3, "f") == found
    usual, searched, given = (
        rows(pipeline(sampler="euler", **options))
        for options in ({"spacing": "uniform"}, {"spacing": "searched"}, {"times": found.times})
    )
    np.testing.assert_array_equal(searched, given)
    assert np.abs(usual - searched).max() > 1e-3 * np.abs(usual).max()


@pytest.mark.slow
def test_the_sampler_searched_for_is_the_one_used_when_nobody_says(pipeline):
    """Of a configuration without one it is the method's first."""
    assert pipeline.sampling.sampler is None
    found = search(pipeline, steps=2, count=1, iterations=1)
    assert found.sampler == pipeline.facts(pipeline.sampling)["sampler"] == "heun"
    write_times(pipeline.directory, found)
    assert rows(pipeline(steps=2, spacing="searched")).shape == (1, 1024)


@pytest.mark.slow
def test_a_vocoder_is_searched_on_sounds():
    config = from_dict({**VOCODER, "sampling": {}})
    vocoder = pipeline_of(config, (), drawn(build_model(config, (), None).network, 0.1), None)
    for waves in (None, sound(0, 3, 512)):
        with pytest.raises(ConfigError, match="works on sounds: give 4 to search and judge on"):
            search(vocoder, steps=2, count=2, waves=waves)
    found = search(vocoder, steps=2, count=2, iterations=10, sampler="euler", waves=sound(0, 4, 512))
    assert 1 > found.times[1] > 0
    assert np.isfinite([found.error, found.error_before]).all()


def test_times_that_do_not_fit_are_refused(pipeline):
    with pytest.raises(
        ConfigError, match=r"no times were searched for 5 heun steps; run jaxdiff search-times .*--steps 5"
    ):
        pipeline(sampler="heun", steps=5, spacing="searched")
    times = Times("euler", (1.0, 0.4, 0.0), 0.1, 0.2, "f")
    path = write_times(pipeline.directory, times)
    with pytest.raises(ConfigError, match="another checkpoint"):
        read_times(pipeline.directory, "euler", 2, "g")
    for wrong in ((1.0, 1.2, 0.0), (1.0, 0.0), (0.9, 0.4, 0.0), (1.0, float("nan"), 0.0)):
        path.write_text(json.dumps(times._replace(times=wrong)._asdict()))
        with pytest.raises(ConfigError, match="does not hold 3 times"):
            read_times(pipeline.directory, "euler", 2, "f")
    for text in ("{", "[1]", '{"times": [1, 0.5, 0], "kind": 1}', '{"times": "x"}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="does not hold times"):
            read_times(pipeline.directory, "euler", 2, "f")
    with pytest.raises(ConfigError, match="stands in no run's folder"):
        read_times(None, "euler", 2, "f")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(steps=3, sampler="ancestral"), "deterministic samplers only: euler"),
        (dict(steps=3, sampler="hern"), "'hern': times can be searched for"),
        (dict(steps=1), "steps: expected at least 2, got 1"),
        (dict(steps=3, count=0), "count: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(pipeline, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        search(pipeline, **options)


@pytest.mark.parametrize("method", ["shortcut", "regression", "adversarial"])
def test_a_method_without_a_denoiser_is_refused(method):
    config = from_dict({**TREE, "method": {"kind": method}})
    with pytest.raises(
        ConfigError, match=f"method {method} has no denoiser; use a model trained with method diffusion"
    ):
        search(pipeline_of(config, (), None, None), steps=3)
