"""Time grids found for one checkpoint and kept beside it: RUN/grids/SAMPLER-STEPS.json."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .config import ConfigError, crop_samples
from .data.files import atomic
from .diffusion import SAMPLERS, grid_error, heun, noise, prior_scale, search_grid, time_grid

if TYPE_CHECKING:
    from .pipeline import Pipeline


class Grid(NamedTuple):
    """Decreasing `times` from 1 to 0 for `sampler`; mean squared errors on sounds that were not searched on."""

    sampler: str
    times: tuple[float, ...]
    error: float
    error_before: float  # on the grid that the search began with
    checkpoint: str  # fingerprint of the weights


def search(
    pipeline: "Pipeline",
    *,
    steps: int,
    sampler: str | None = None,
    count: int = 16,
    seed: int = 0,
    iterations: int = 60,
) -> Grid:
    """The grid of `steps` times on which `sampler` comes nearest to what 64 Heun steps make of the same noise.

    Begins with the configured spacing. Searched on `count` sounds of `seed` (the classes in turn) and judged on as many
    others, in features as the network sees them. Raises ConfigError for samplers that draw noise and for 1 step.
    """
    sampling, schedule = pipeline.config.sampling, pipeline.model.schedule
    name = sampler or sampling.sampler
    if name not in SAMPLERS or not SAMPLERS[name].deterministic:
        known = ", ".join(k for k, v in SAMPLERS.items() if v.deterministic)
        raise ConfigError(f"sampler {name!r}: a grid can be searched for deterministic samplers only: {known}")
    if steps < 2 or count < 1 or iterations < 1:
        raise ConfigError(f"steps {steps} must be at least 2, count {count} and iterations {iterations} at least 1")
    scale = jnp.float32(sampling.guidance)
    make_denoiser = pipeline.make_denoiser(sampling.guidance)
    start = time_grid(schedule, steps, "uniform" if sampling.spacing == "searched" else sampling.spacing)
    fine = time_grid(schedule, 64, "cosine")

    def problem(params, keys, batch):
        denoiser = make_denoiser(params, batch, scale)
        shape = jax.eval_shape(pipeline.model.representation.encode, batch["wave"]).shape
        x_T = prior_scale(schedule) * noise(keys, shape)
        return SAMPLERS[name].sampler, denoiser, schedule, x_T, heun(denoiser, schedule, x_T, fine, keys)

    @jax.jit
    def run(params, searched, judged):
        times, _ = search_grid(*problem(params, *searched), start, iterations=iterations)
        judge = problem(params, *judged)
        return times, grid_error(*judge, times), grid_error(*judge, start)

    halves = [pipeline.items(seed, np.arange(i, i + count), crop_samples(pipeline.config)) for i in (0, count)]
    times, error, before = run(pipeline.params, *halves)
    return Grid(name, tuple(map(float, times)), float(error), float(before), pipeline.fingerprint)


def write_grid(run: Path, grid: Grid) -> Path:
    """Keep a grid in the folder of its run; one that is there for the same sampler and number of steps is replaced."""
    folder = Path(run) / "grids"
    folder.mkdir(exist_ok=True)
    path = folder / f"{grid.sampler}-{len(grid.times) - 1}.json"
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(grid._asdict(), indent=1) + "\n", encoding="utf-8")
    return path


def read_grid(run: Path, sampler: str, steps: int, checkpoint: str) -> Grid:
    """The grid kept for this sampler, number of steps and checkpoint; raises ConfigError when there is none."""
    path = Path(run) / "grids" / f"{sampler}-{steps}.json"
    again = f"run jaxdiff search-schedule {run} --sampler {sampler} --steps {steps}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        times = np.asarray(found["times"], np.float64)
        grid = Grid(**found | {"times": tuple(times.tolist())})
    except OSError:
        raise ConfigError(f"{path}: no grid was searched for {steps} {sampler} steps; {again}") from None
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"{path}: is not a time grid; {again}") from None
    if times.shape != (steps + 1,) or times[0] != 1 or times[-1] != 0 or not (np.diff(times) < 0).all():
        raise ConfigError(f"{path}: does not hold {steps + 1} times that fall from 1 to 0; {again}")
    if grid.checkpoint != checkpoint:
        raise ConfigError(f"{path}: was searched for another checkpoint of the run; {again}")
    return grid
