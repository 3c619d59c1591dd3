"""The time of a noise level, and the times that samplers walk along.

log-SNR(t) = log(alpha^2 / sigma^2) falls with t for every schedule, so that a noise level names a time. A sampler's
times are any decreasing array from 1 to 0. A bridge has noise levels too, and may stand for the schedule here.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .schedules import Schedule, logsnr

Spacing = Literal["uniform", "quadratic", "cosine", "karras", "logsnr"]


def time_at_logsnr(schedule: Schedule, value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The time at which log-SNR is `value`, and 1 where it never gets as low; 0 for +inf.

    64 bisections, in the precision of `value`: the result is the time to a few rounding errors, and its log-SNR in
    float32 within 2e-4 of `value` between -10 and 20 (1e-9 in float64). Constant for differentiation.

    >>> from jaxdiff.diffusion import RectifiedFlow
    >>> time_at_logsnr(RectifiedFlow(), jnp.array([jnp.inf, 0.0, -jnp.inf])).tolist()
    [0.0, 0.5, 1.0]
    """
    value = jax.lax.stop_gradient(value)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        noisier = logsnr(schedule, middle) <= value
        return jnp.where(noisier, low, middle), jnp.where(noisier, middle, high)

    high = jax.lax.fori_loop(0, 64, halve, (jnp.zeros_like(value), jnp.ones_like(value)))[1]
    return jnp.where(value == jnp.inf, 0, high)


def spaced_times(
    schedule: Schedule,
    steps: int,
    spacing: Spacing = "uniform",
    *,
    rho: float = 7.0,
    ends: tuple[float, float] = (0.002, 80.0),
) -> Float[Array, " steps_plus_1"]:
    """`steps + 1` decreasing times from 1 (noise) to 0 (data).

    Three are functions of u = i / steps: "uniform" is u; "quadratic" u^2, denser near the data; "cosine"
    sin^2(pi u / 2), denser at both ends. The other two place sigma / alpha between `ends`, its upper one at most that
    of t = 1, and then step to 0: "karras" evenly in its power 1 / `rho` (Karras et al. 2022, eq. 5), "logsnr" evenly
    in its logarithm.

    >>> from jaxdiff.diffusion import RectifiedFlow
    >>> spaced_times(RectifiedFlow(), 4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 < ends[0] < ends[1] or rho <= 0:
        raise ValueError(f"ends {ends} must be positive and increasing, and rho {rho} positive")
    u = np.arange(steps, -1, -1) / steps
    plain = {"uniform": u, "quadratic": u**2, "cosine": np.sin(0.5 * np.pi * u) ** 2}
    if spacing in plain:
        return jnp.asarray(plain[spacing], jnp.float32)
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing {spacing!r} is unknown; use one of {', '.join(get_args(Spacing))}")
    noisiest, cleanest = jnp.maximum(logsnr(schedule, jnp.ones(())), -2 * np.log(ends[1])), -2 * np.log(ends[0])
    share = np.linspace(0, 1, steps)[1:]  # of the way from the noisiest level to the cleanest
    if spacing == "logsnr":
        values = noisiest + share * (cleanest - noisiest)
    else:  # log-SNR is -2 log of the level, so its power 1 / rho is exp(-logsnr / (2 rho))
        first, last = (jnp.exp(-value / (2 * rho)) for value in (noisiest, cleanest))
        values = -2 * rho * jnp.log(first + share * (last - first))
    between = time_at_logsnr(schedule, values).astype(jnp.float32)
    return jnp.concatenate([jnp.ones(1, jnp.float32), between, jnp.zeros(1, jnp.float32)])
