"""Averages of the weights whose length is chosen after training: post-hoc EMA (Karras et al. 2024, section 3).

    average(t) = (gamma + 1) / t^(gamma + 1) integral_0^t tau^gamma params(tau) dtau         (eq. 2)

Such a power-function average has a width that grows with training, sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1
(gamma + 3)^(-1/2) of its length. Training keeps two of them, in one line per step, and stores snapshots of both;
afterwards the average of any width at any step is approximated by the combination of snapshots whose weighting profile
is nearest in the least squares sense (appendix C). Nothing here knows of files.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

SIGMA_RELS = (0.05, 0.10)  # the two that the paper keeps


class Snapshot(NamedTuple):
    """One average as it was after `step` updates."""

    step: int
    sigma_rel: float
    average: Any  # a tree of arrays


def exponent(sigma_rel: float) -> float:
    """gamma of a relative width, from 0 (exclusive) to 12^(-1/2) = 0.2887, the plain mean (gamma = 0).

    >>> round(exponent(0.05), 2), round(exponent(0.10), 2)
    (16.97, 6.94)
    """
    if not 0 < sigma_rel <= 12**-0.5 + 1e-9:
        raise ValueError(f"sigma_rel must be above 0 and at most 0.2887 (the mean of all steps), got {sigma_rel}")
    inverse = sigma_rel**-2  # (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def init_averages(params: Any, sigma_rels: Sequence[float] = SIGMA_RELS) -> tuple[Any, ...]:
    """The averages before the first update: copies of `params`, which the first update replaces."""
    return tuple(jax.tree.map(jnp.copy, params) for _ in sigma_rels)


def update_averages(
    averages: tuple[Any, ...],
    params: Any,
    step: Int[Array, ""] | int,
    sigma_rels: Sequence[float] = SIGMA_RELS,
) -> tuple[Any, ...]:
    """The averages after update number `step`, counted from 1, whose new weights are `params` (eq. 3).

    Exactly the average of eq. 2 over weights that are constant between updates.
    """

    def update(average: Any, sigma_rel: float) -> Any:
        share = -jnp.expm1((exponent(sigma_rel) + 1) * jnp.log1p(-1 / jnp.asarray(step, float)))
        return jax.tree.map(lambda a, p: (a + share * (p - a)).astype(a.dtype), average, params)

    return tuple(update(a, s) for a, s in zip(averages, sigma_rels, strict=True))


def _inner_products(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """The integral of each profile of a times each of b, `[a, b]` in float64 (appendix C.2)."""
    t_a, gamma_a, t_b, gamma_b = t_a[:, None], gamma_a[:, None], t_b[None], gamma_b[None]
    ratio = np.where(t_a < t_b, (t_a / t_b) ** gamma_b, (t_b / t_a) ** gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * ratio / np.maximum(t_a, t_b)


def reconstruction_coefficients(
    steps: Sequence[int], sigma_rels: Sequence[float], step: int, sigma_rel: float
) -> np.ndarray:
    """Coefficients, one per snapshot, that best approximate the average of width `sigma_rel` at `step`; float64.

    Least squares over weighting profiles (appendix C.2), among coefficients that sum to 1, so that weights which did
    not move are reconstructed exactly. A snapshot that is the target itself gets 1.

    >>> reconstruction_coefficients([100, 200], [0.1, 0.1], 200, 0.1).round(6).tolist()
    [0.0, 1.0]
    """
    if step > max(steps):
        raise ValueError(f"step {step} is after the last snapshot, {max(steps)}; use {max(steps)} or train on")
    t, gamma = np.asarray(steps, np.float64), np.array([exponent(s) for s in sigma_rels])
    count = len(t)
    system, wanted = np.ones((count + 1, count + 1)), np.ones(count + 1)  # the last row is the sum
    system[:count, :count] = step * _inner_products(t, gamma, t, gamma)
    system[count, count] = 0
    end, end_gamma = np.array([float(step)]), np.array([exponent(sigma_rel)])
    wanted[:count] = step * _inner_products(t, gamma, end, end_gamma)[:, 0]
    return np.linalg.lstsq(system, wanted, rcond=1e-13)[0][:count]


def reconstruct(snapshots: Sequence[Snapshot], step: int, sigma_rel: float) -> Any:
    """The weights averaged with width `sigma_rel` as of `step`: host arrays typed as the snapshots', summed in float64.

    `step` is at most that of the last snapshot. With 20 snapshots of widths 0.05 and 0.10, widths of 0.04 to 0.2 at the
    step of a snapshot are within 0.3 % of the spread of the weights, between two snapshots within 3 %
    (tests/test_ema.py).
    """
    if not snapshots:
        raise ValueError("there are no snapshots; store Snapshot(step, sigma_rel, average) while training")
    steps, widths, trees = zip(*snapshots, strict=True)
    coefficients = reconstruction_coefficients(steps, widths, step, sigma_rel)

    def combine(*leaves: Any) -> np.ndarray:
        total = sum(c * np.asarray(leaf, np.float64) for c, leaf in zip(coefficients, leaves, strict=True))
        return np.asarray(total).astype(leaves[0].dtype)

    return jax.tree.map(combine, *trees)
