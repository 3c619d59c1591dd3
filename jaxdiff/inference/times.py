"""Times found for one checkpoint and kept beside it: RUN/grids/SAMPLER-STEPS.json."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from jaxdiff.config import ConfigError
from jaxdiff.data.files import atomic
from jaxdiff.diffusion import SAMPLERS, heun, noise, prior_scale, search_times, spaced_times, times_error
from jaxdiff.methods import Diffusion

if TYPE_CHECKING:
    from .pipeline import Pipeline


class Times(NamedTuple):
    """Decreasing `times` from 1 to 0 for `sampler`; mean squared errors on sounds that were not searched on."""

    sampler: str
    times: tuple[float, ...]
    error: float
    error_before: float  # with the times that the search began with
    checkpoint: str  # fingerprint of the weights


def search(
    pipeline: "Pipeline",
    *,
    steps: int,
    sampler: str | None = None,
    count: int = 16,
    seed: int = 0,
    iterations: int = 60,
    waves: np.ndarray | None = None,
) -> Times:
    """The `steps` times with which `sampler` comes nearest to what 64 Heun steps make of the same noise.

    The search begins with the pipeline's spacing, works on `count` sounds of `seed` (the classes in turn, or the first
    half of `waves` [2 count, samples] for a task that needs sound) and is judged on as many others, in features as the
    network sees them. Raises ConfigError for methods without a denoiser, samplers that draw noise and for 1 step.
    """
    model, method, sampling = pipeline.model, pipeline.method, pipeline.sampling
    if not isinstance(method, Diffusion):
        name = type(method).__name__.lower()
        raise ConfigError(f"method {name} has no denoiser; use a model trained with method diffusion")
    name = sampler or sampling.sampler or next(iter(method.samplers))
    if name not in SAMPLERS or not SAMPLERS[name].deterministic:
        known = ", ".join(k for k, v in SAMPLERS.items() if v.deterministic)
        raise ConfigError(f"sampler {name!r}: times can be searched for deterministic samplers only: {known}")
    for option, value, least in (("steps", steps, 2), ("count", count, 1), ("iterations", iterations, 1)):
        if value < least:
            raise ConfigError(f"{option}: expected at least {least}, got {value}")
    if model.task.needs_sound and (waves is None or len(waves) < 2 * count):
        raise ConfigError(f"this model works on sounds: give {2 * count} to search and judge on (--sounds FOLDER)")
    schedule = method.schedule
    start = spaced_times(schedule, steps, "uniform" if sampling.spacing == "searched" else sampling.spacing)
    fine = spaced_times(schedule, 64, "cosine")

    def problem(params, keys, batch):
        given = model.task.given(model.representation, batch, model.task.Request())
        denoiser = method.denoiser(model, sampling, params, given)
        shape = (len(keys), model.representation.frames(batch["wave"].shape[-1]), model.representation.channels)
        x_T = prior_scale(schedule) * noise(keys, shape)
        return SAMPLERS[name].sampler, denoiser, schedule, x_T, heun(denoiser, schedule, x_T, fine, keys)

    @jax.jit
    def run(params, searched, judged):
        times, _ = search_times(*problem(params, *searched), start, iterations=iterations)
        judge = problem(params, *judged)
        return times, times_error(*judge, times), times_error(*judge, start)

    half = lambda i: None if waves is None else waves[i : i + count]  # noqa: E731
    halves = [pipeline.items(seed, np.arange(i, i + count), half(i)) for i in (0, count)]
    times, error, before = run(pipeline.params, *halves)
    return Times(name, tuple(map(float, times)), float(error), float(before), pipeline.fingerprint)


def write_times(run: Path, times: Times) -> Path:
    """Keep times in the folder of their run; those for the same sampler and number of steps are replaced."""
    folder = Path(run) / "grids"
    folder.mkdir(exist_ok=True)
    path = folder / f"{times.sampler}-{len(times.times) - 1}.json"
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(times._asdict(), indent=1) + "\n", encoding="utf-8")
    return path


def read_times(run: Path | None, sampler: str, steps: int, checkpoint: str) -> Times:
    """The times kept for this sampler, number of steps and checkpoint; raises ConfigError when there are none."""
    if run is None:
        raise ConfigError("spacing searched: this model stands in no run's folder; use another spacing, or times=...")
    path = Path(run) / "grids" / f"{sampler}-{steps}.json"
    again = f"run jaxdiff search-times {run} --sampler {sampler} --steps {steps}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        times = np.asarray(found["times"], np.float64)
        kept = Times(**found | {"times": tuple(times.tolist())})
    except OSError:
        raise ConfigError(f"{path}: no times were searched for {steps} {sampler} steps; {again}") from None
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"{path}: does not hold times; {again}") from None
    if times.shape != (steps + 1,) or times[0] != 1 or times[-1] != 0 or not (np.diff(times) < 0).all():
        raise ConfigError(f"{path}: does not hold {steps + 1} times that fall from 1 to 0; {again}")
    if kept.checkpoint != checkpoint:
        raise ConfigError(f"{path}: was searched for another checkpoint of the run; {again}")
    return kept
