"""Guidance against its algebra and against Gaussians, for which guided estimates are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import gaussian_denoiser, max_relative

from jaxdiff.diffusion import (
    Cosine,
    RectifiedFlow,
    autoguidance,
    classifier_free_guidance,
    euler,
    guidance_interval,
    keep_known,
    logsnr,
    spaced_times,
)

COND, UNCOND = gaussian_denoiser(Cosine(), 1.0, 0.5), gaussian_denoiser(Cosine(), -1.0, 2.0)
X, T = jax.random.normal(jax.random.key(0), (3, 40, 2)), jnp.array(0.6)


def test_scale_one_is_the_plain_model_and_zero_the_unconditional():
    for rescale in (0.0, 0.7, 1.0):
        plain = classifier_free_guidance(COND, UNCOND, 1.0, rescale=rescale)(X, T)
        assert max_relative(plain, COND(X, T)) <= 1e-6
    assert (classifier_free_guidance(COND, UNCOND, 0.0)(X, T) == UNCOND(X, T)).all()


def test_scale_may_be_one_per_item():
    scale = jnp.array([0.0, 1.0, 3.0])[:, None, None]
    together = classifier_free_guidance(COND, UNCOND, scale)(X, T)
    for i, one in enumerate((0.0, 1.0, 3.0)):
        assert max_relative(together[i], classifier_free_guidance(COND, UNCOND, one)(X, T)[i]) <= 1e-6


@pytest.mark.parametrize("guide", [classifier_free_guidance, autoguidance])
def test_rescale_keeps_the_standard_deviation(guide):
    per_item = lambda x: np.asarray(x, np.float64).std(axis=(1, 2))  # noqa: E731
    wanted, raw = per_item(COND(X, T)), guide(COND, UNCOND, 4.0)(X, T)
    assert (np.abs(per_item(raw) / wanted - 1) > 0.1).all()  # so there is something to mend
    full = guide(COND, UNCOND, 4.0, rescale=1.0)(X, T)
    np.testing.assert_allclose(per_item(full), wanted, rtol=1e-5)
    part = guide(COND, UNCOND, 4.0, rescale=0.7)(X, T)  # Lin et al. 2024: a blend of both
    np.testing.assert_allclose(part, 0.7 * full + 0.3 * raw, rtol=1e-4, atol=1e-5)


def test_rescale_of_a_constant_estimate_is_finite():
    constant = lambda x_t, t: jnp.ones_like(x_t)  # noqa: E731
    assert (classifier_free_guidance(constant, constant, 3.0, rescale=1.0)(X, T) == 1).all()


def test_autoguidance_cancels_an_error_that_the_worse_model_has_twice():
    """Karras et al. 2024: where the worse model errs alike but more, extrapolation undoes the error of the model."""
    exact, error = gaussian_denoiser(Cosine(), 0.3, 0.8), 0.1 * jnp.sin(7 * X)
    model, worse = (lambda x_t, t, k=k: exact(x_t, t) + k * error for k in (1, 2))
    assert max_relative(autoguidance(model, worse, 2.0)(X, T), exact(X, T)) <= 1e-6
    assert max_relative(model(X, T), exact(X, T)) > 0.01


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), RectifiedFlow(3.0)], ids=["cosine", "flow", "shifted"])
@pytest.mark.parametrize(("low", "high"), [(0.0, float("inf")), (0.2, 1.5), (0.0, 0.7), (2.0, float("inf"))])
def test_interval_is_off_outside_and_on_inside(schedule, low, high):
    one, zero = lambda x_t, t: jnp.ones_like(x_t), lambda x_t, t: jnp.zeros_like(x_t)
    denoise = jax.jit(guidance_interval(one, zero, schedule, low, high))
    times = np.linspace(0.013, 1, 40)
    seen = [float(denoise(X[:1], jnp.array(t))[0, 0, 0]) for t in times]
    level = np.exp(-0.5 * np.asarray(logsnr(schedule, jnp.asarray(times)), np.float64))  # sigma / alpha, infinite at 1
    assert seen == [float(low < v <= high) for v in level]


def test_interval_skips_the_evaluation_of_the_other():
    """The unconditional model is not run outside the interval, in a compiled sampler either."""
    calls = []

    def counted(x_t, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return UNCOND(x_t, t)

    guided = classifier_free_guidance(COND, counted, 2.0)
    denoise = guidance_interval(guided, COND, Cosine(), 0.3, 2.0)
    times = spaced_times(Cosine(), 10)
    jax.jit(lambda x: euler(denoise, Cosine(), x, times, jax.random.key(0)))(X).block_until_ready()
    jax.effects_barrier()
    inside = [float(t) for t in times[:-1] if 0.3 < np.tan(np.pi * float(t) / 2) <= 2.0]
    assert sorted(calls, reverse=True) == inside
    assert 0 < len(inside) < 10


def test_known_parts_are_kept_exactly():
    known = jax.random.normal(jax.random.key(1), X.shape)
    mask = jnp.arange(40)[:, None] < 13
    denoise = keep_known(COND, known, mask)
    x0_hat = denoise(X, T)
    assert (x0_hat[:, :13] == known[:, :13]).all()
    assert (x0_hat[:, 13:] == COND(X, T)[:, 13:]).all()
    sample = euler(denoise, Cosine(), X, spaced_times(Cosine(), 8), jax.random.key(0))
    assert (sample[:, :13] == known[:, :13]).all()


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="rescale must lie between 0 .off. and 1 .fully., got 1.5"):
        classifier_free_guidance(COND, UNCOND, 2.0, rescale=1.5)
    with pytest.raises(ValueError, match="0 <= low < high, got low 2.0 and high 1.0"):
        guidance_interval(COND, UNCOND, Cosine(), 2.0, 1.0)
