"""Guidance: functions from denoisers to a denoiser that push samples towards a condition or a better model.

    x0_hat = negative + scale (positive - negative)

as for eps, v and flow (Ho & Salimans 2022, eq. 6). The negative is the model without its condition, or a worse model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .denoisers import Denoiser
from .schedules import Schedule

Guidance = Callable[[Denoiser, Denoiser, Array], Denoiser]  # positive, negative and scale to the guided one


def classifier_free_guidance(
    conditional: Denoiser, unconditional: Denoiser, scale: float | Array, *, rescale: float = 0.0
) -> Denoiser:
    """`uncond + scale (cond - uncond)`: scale 0 ignores the condition, 1 is the plain model, more sharpens it.

    `rescale` 1 gives each item back the standard deviation that it has in the conditional estimate, which a large scale
    inflates; values between 0 and 1 blend (Lin et al. 2024, section 3.4, where 0.7 is advised).

    >>> one, zero = lambda x_t, t: jnp.ones_like(x_t), lambda x_t, t: jnp.zeros_like(x_t)
    >>> classifier_free_guidance(one, zero, 3.0)(jnp.zeros((1, 2)), jnp.array(0.5)).tolist()
    [[3.0, 3.0]]
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie between 0 (off) and 1 (fully), got {rescale}")

    def denoise(x_t: Array, t: Array) -> Array:
        cond, uncond = conditional(x_t, t), unconditional(x_t, t)
        guided = uncond + scale * (cond - uncond)
        if rescale == 0:
            return guided
        axes = tuple(range(1, x_t.ndim))
        wanted, present = (x.std(axis=axes, keepdims=True) for x in (cond, guided))
        gain = jnp.where(present > 0, wanted / jnp.where(present > 0, present, 1), 1)
        return guided * (rescale * gain + 1 - rescale)

    return denoise


def autoguidance(model: Denoiser, worse: Denoiser, scale: float | Array, *, rescale: float = 0.0) -> Denoiser:
    """Away from the errors that a worse version of the same model makes more of (Karras et al. 2024, autoguidance).

    `worse` is smaller or less trained and has the same condition, so that variety is kept.
    """
    return classifier_free_guidance(model, worse, scale, rescale=rescale)


def guidance_interval(guided: Denoiser, plain: Denoiser, schedule: Schedule, low: float, high: float) -> Denoiser:
    """`guided` at the noise levels low < sigma / alpha <= high, `plain` elsewhere (Kynkaanniemi et al. 2024).

    The level is EDM's sigma, noise over signal; `high` may be infinite. Only the one that is used is evaluated.

    >>> from jaxdiff.diffusion import RectifiedFlow
    >>> one, zero = lambda x_t, t: jnp.ones_like(x_t), lambda x_t, t: jnp.zeros_like(x_t)
    >>> denoise = guidance_interval(one, zero, RectifiedFlow(), 0.5, 2.0)
    >>> [float(denoise(jnp.zeros((1, 1)), jnp.array(t))[0, 0]) for t in (0.3, 0.5, 0.7)]
    [0.0, 1.0, 0.0]
    """
    if not 0 <= low < high:
        raise ValueError(f"the noise levels must satisfy 0 <= low < high, got low {low} and high {high}")

    def denoise(x_t: Array, t: Array) -> Array:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        inside = (sigma > low * alpha) & (sigma / high <= alpha)  # without dividing by alpha, which may be 0
        return jax.lax.cond(inside, guided, plain, x_t, t)

    return denoise


def keep_known(denoiser: Denoiser, known: Array, mask: Array) -> Denoiser:
    """The estimate with its known parts put in place: x0_hat = known where `mask`, the denoiser's elsewhere.

    The simplest way to continue or fill in a sound (Lugmayr et al. 2022, eq. 8, on x0_hat instead of x_t);
    `inverse.repaint` and `inverse.moment_matching_guidance` fit the new parts better to the known.
    """
    return lambda x_t, t: jnp.where(mask, known, denoiser(x_t, t))
