"""Order of convergence of every sampler, measured where the exact answer is known.

    python benchmarks/samplers.py

Two exact denoisers in three dimensions and float64, at the cosine times sin^2(pi u / 2):
  gaussian   x0 ~ N(m, C), correlated, sampled down to t = 0. The probability-flow ODE has a closed solution, the error
             is that of x0. Samplers that draw noise are affine in it: their answers to one unit of noise at a time give
             the mean and covariance of x0 exactly, without sampling; the error is the larger of the two's.
  points     x0 is one of four points, sampled down to t = 0.3, where it is not yet decided; the reference is SciPy's
             DOP853 at 3e-14. Deterministic samplers only.
`order` is the theory, the next two columns are the measured slopes: minus that of log error over log steps, from 128
to 512 steps. Midpoint has one order more on Gaussian data, whose squared deviation is quadratic in the noise share.
`stochastic_flow` is given the exact consistency function, with which any number of steps is exact: its order is 0. The
last line is JSON; its `slope` is the lower of the two.
"""

import contextlib
import json
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from jaxdiff.diffusion import SAMPLERS, Cosine
from jaxdiff.diffusion.samplers import multistep, onestep, stochastic

MEAN = np.array([0.7, -0.2, 0.1])
COVARIANCE = np.array([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.9]])
POINTS = np.array([[-1.0, 0.5, 0.0], [0.3, 0.8, -0.6], [1.0, -0.7, 0.4], [0.0, -0.4, 1.1]])
START = np.array([[-1.2, 0.4, 0.3], [0.5, 1.1, -0.7], [1.6, -0.3, 0.2], [0.1, -0.9, 1.4], [-0.4, -0.6, -1.3]])


def cosine_times(steps, end=0.0):
    u = np.sin(0.5 * np.pi * np.arange(steps, -1, -1) / steps) ** 2
    return jnp.asarray(end + (1 - end) * u)


def gaussian_denoiser(schedule):
    """E[x0 | x_t] = m + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha m)."""
    values, vectors = np.linalg.eigh(COVARIANCE)

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gain = alpha * values / (alpha**2 * values + sigma**2)
        return MEAN + ((x - alpha * MEAN) @ vectors * gain) @ vectors.T

    return denoise


def gaussian_flow(schedule):
    """Where the probability-flow ODE ends: along C's axes x_t keeps its distance from the mean in deviations."""
    values, vectors = np.linalg.eigh(COVARIANCE)

    def flow(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        stretch = jnp.sqrt(values / (alpha**2 * values + sigma**2))
        return MEAN + ((x - alpha * MEAN) @ vectors * stretch) @ vectors.T

    return flow


def points_denoiser(schedule):
    """E[x0 | x_t] for x0 one of the points, all as likely: their softmax average. For arrays of either library."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        logits = -((x[..., None, :] - alpha * POINTS) ** 2).sum(-1) / (2 * sigma**2)
        weight = np.e ** (logits - logits.max(-1, keepdims=True))
        return (weight / weight.sum(-1, keepdims=True)) @ POINTS

    return denoise


def points_flow(schedule, x, end):
    """The path of the probability-flow ODE to time `end`, by SciPy.

    All schedules share it: x / (alpha + sigma) over s = sigma / (alpha + sigma), that of alpha = 1 - s, sigma = s.
    """
    straight, shape = points_denoiser(SimpleNamespace(alpha=lambda s: 1 - s, sigma=lambda s: s)), x.shape
    (a, s), (a_end, s_end) = ([float(f(jnp.asarray(t))) for f in (schedule.alpha, schedule.sigma)] for t in (1.0, end))
    slope = lambda s, y: ((y.reshape(shape) - straight(y.reshape(shape), s)) / s).ravel()  # noqa: E731
    span = s / (a + s), s_end / (a_end + s_end)
    solution = solve_ivp(slope, span, (x / (a + s)).ravel(), "DOP853", rtol=3e-14, atol=1e-15)
    return (a_end + s_end) * solution.y[:, -1].reshape(shape)


def moments(sampler, schedule, denoiser, times, noise=1.0):
    """Mean and covariance of a sampler's x0 on the Gaussian, exactly, by its answers to single units of noise.

    The rows of a batch are: nothing, a unit of x_T in each dimension, a unit of each number that is drawn (two draws
    per step at most). All noise is multiplied by `noise`: 1.05 is a sampler whose sigma is 5 % off.
    """
    size = len(MEAN)
    number, axis = np.divmod(np.arange(size * (1 + 2 * (len(times) - 1))) - size, size)  # draw (-1: x_T), dimension
    units = jnp.asarray(np.vstack([np.zeros(size), np.eye(size)[axis]]))
    number = jnp.asarray([-2, *number])
    one = lambda key, count, x: jnp.where((number == count)[:, None], units, 0)  # noqa: E731
    with contextlib.ExitStack() as stack:
        for module in (onestep, multistep, stochastic):
            stack.enter_context(mock.patch.object(module, "draw", one))
        run = jax.jit(lambda x: sampler(denoiser, schedule, x, times, jax.random.key(0)))
        out = np.asarray(run(one(None, -1, None)))
    answers = out[1:] - out[0]
    alpha, sigma = (float(f(times[0])) for f in (schedule.alpha, schedule.sigma))
    start, drawn = answers[:size], noise * answers[size:]
    spread = alpha**2 * COVARIANCE + (noise * sigma) ** 2 * np.eye(size)
    return out[0] + alpha * MEAN @ start, start.T @ spread @ start + drawn.T @ drawn


def gaussian_error(named, schedule, steps):
    times, denoiser = cosine_times(steps), gaussian_denoiser(schedule)
    if not named.deterministic:
        if named.order == 0:  # made for consistency functions
            denoiser = gaussian_flow(schedule)
        mean, covariance = moments(named.sampler, schedule, denoiser, times)
        return max(np.abs(mean - MEAN).max(), np.abs(covariance - COVARIANCE).max())
    run = jax.jit(lambda x: named.sampler(denoiser, schedule, x, times, jax.random.key(0)))
    exact = gaussian_flow(schedule)(START, times[0])
    return float(jnp.sqrt(((run(START) - exact) ** 2).mean()))


def points_error(named, schedule, steps, end=0.3):
    times, denoiser = cosine_times(steps, end), points_denoiser(schedule)
    run = jax.jit(lambda x: named.sampler(denoiser, schedule, x, times, jax.random.key(0)))
    return float(jnp.sqrt(((run(START) - points_flow(schedule, START, end)) ** 2).mean()))


def slope(steps, errors):
    """Minus the slope of log error over log steps; errors below 1e-12 are rounding and count as that."""
    return -float(np.polyfit(np.log(steps), np.log(np.maximum(errors, 1e-12)), 1)[0])


def measure(name, steps, schedule=Cosine()):
    """Slope and last error on each problem that applies, and the lower slope, which is the order."""
    named, row = SAMPLERS[name], {"name": name, "order": SAMPLERS[name].order}
    for problem, error in (("gaussian", gaussian_error), ("points", points_error)):
        if problem == "gaussian" or named.deterministic:
            errors = [error(named, schedule, n) for n in steps]
            row[problem], row[f"{problem}_error"] = round(slope(steps, errors), 3), errors[-1]
    row["slope"] = min(row[problem] for problem in ("gaussian", "points") if problem in row)
    return row | {"evaluations": named.evaluations, "deterministic": named.deterministic}


def main():
    rows, steps = [], [128, 256, 512]
    print(f"{'sampler':22}{'order':>6}{'gaussian':>10}{'points':>8}{'error':>10}{'points':>10}{'evaluations':>13}")
    with jax.enable_x64(True):
        for name in SAMPLERS:
            rows.append(row := measure(name, steps))
            points = f"{row['points']:8.2f}" if "points" in row else f"{'-':>8}"
            points_last = f"{row['points_error']:10.1e}" if "points" in row else f"{'-':>10}"
            print(
                f"{name:22}{row['order']:6}{row['gaussian']:10.2f}{points}{row['gaussian_error']:10.1e}{points_last}"
                f"{row['evaluations']:13}"
            )
    print(json.dumps({"samplers": rows, "steps": steps, "jax": jax.__version__}))


if __name__ == "__main__":
    main()
