"""Editing: a trained denoiser begins with somebody's sound instead of noise, or with the noise between those of two.

Nothing is trained by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff import diffusion, ranges
from jaxdiff.diffusion import NamedSampler
from jaxdiff.networks import Params
from jaxdiff.tasks import Given

from . import method
from .diffusion import Diffusion


@dataclass(frozen=True, eq=False)
class Origin:
    """The model whose style a sound has, with its parameters, and the index of its class there (-1: none)."""

    model: method.Model
    method: Diffusion
    params: Params
    label: int = -1


@dataclass(frozen=True, eq=False)
class _Editing(method.Method):
    """A use of the denoiser that the method `inner` trained, on a sound."""

    takes_start: ClassVar[bool] = True

    inner: Diffusion = Diffusion()

    @property
    def schedule(self) -> diffusion.Schedule:  # type: ignore[override]
        return self.inner.schedule

    def make_step(self, model: method.Model, optimizer: method.Optimizer, steps: int) -> Any:
        raise TypeError("an edit trains nothing; train its inner method")


@dataclass(frozen=True, eq=False)
class Edit(_Editing):
    """Sampling by `inner` from `Given.start`, at the time `strength`: noised as far as that (SDEdit, Meng et al. 2022),
    or with an `origin` taken there along the origin's own probability flow (DDIB, Su et al. 2023), which draws nothing.
    """

    knobs: ClassVar[frozenset[str]] = Diffusion.knobs
    samplers: ClassVar[Mapping[str, NamedSampler]] = Diffusion.samplers

    strength: ranges.Share = 0.5
    origin: Origin | None = None

    def make_sample(self, model: method.Model, sampling: method.Sampling, times: Array) -> method.Sample:
        sampler, schedule = self.sampler(sampling), self.inner.schedule
        times = self.strength * times

        def sample(params: Params, given: Given, noise: Array, keys: Array) -> Array:
            assert given.start is not None
            if not self.strength:  # a sampler has nothing to do, and nothing to divide by
                return given.start
            if self.origin is None:
                x = diffusion.noised(schedule, times[0], given.start, noise)
            else:
                x = diffusion.invert(self._origin(given, sampling), schedule, given.start, times)
            return sampler(self.inner.denoiser(model, sampling, params, given), schedule, x, times, keys)

        return sample

    def _origin(self, given: Given, sampling: method.Sampling) -> diffusion.Denoiser:
        """The denoiser of the style that a sound has, unguided."""
        assert self.origin is not None
        model, own, params, label = self.origin.model, self.origin.method, self.origin.params, self.origin.label
        known = None if given.cond.label is None or label < 0 else 0 * given.cond.label + label
        network = model.network.bound(params)
        return diffusion.denoiser(
            network, own.schedule, own.prediction, given.cond._replace(label=known), sigma_data=own.sigma_data
        )


@dataclass(frozen=True, eq=False)
class Between(_Editing):
    """The sound at `share` of the way from `Given.start` to the features in `Given.kept`: both are taken to noise along
    the probability flow of `inner`, without guidance, and what lies between the two noises on the sphere comes back
    (Song et al. 2021, DDIM, section 5.3). Nothing is drawn."""

    knobs: ClassVar[frozenset[str]] = frozenset({"sampler", "steps", "spacing"})
    samplers: ClassVar[Mapping[str, NamedSampler]] = {
        name: named for name, named in Diffusion.samplers.items() if named.deterministic
    }

    share: ranges.Share = 0.5

    def make_sample(self, model: method.Model, sampling: method.Sampling, times: Array) -> method.Sample:
        sampler, schedule, unguided = self.sampler(sampling), self.inner.schedule, replace(sampling, guidance=1.0)

        def sample(params: Params, given: Given, noise: Array, keys: Array) -> Array:
            assert given.start is not None
            denoiser = self.inner.denoiser(model, unguided, params, given)
            first, second = (diffusion.invert(denoiser, schedule, x, times) for x in (given.start, given.kept))
            return sampler(denoiser, schedule, slerp(first, second, self.share), times, keys)

        return sample


def slerp(a: Float[Array, "batch ..."], b: Float[Array, "batch ..."], share: float) -> Float[Array, "batch ..."]:
    """Each item of `b` and `a` in the shares that keep the length of a noise, which their plain mean would not.

    >>> slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), 0.5).round(3).tolist()
    [[0.7070000171661377, 0.7070000171661377]]
    """
    axes = tuple(range(1, a.ndim))
    norm = lambda x: jnp.sqrt((x**2).sum(axes, keepdims=True))  # noqa: E731
    cosine = (a * b).sum(axes, keepdims=True) / jnp.maximum(norm(a) * norm(b), 1e-12)
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    apart = jnp.sin(angle) > 1e-4  # else they point the same way, and a line is as good
    below = jnp.where(apart, jnp.sin(angle), 1)
    first = jnp.where(apart, jnp.sin((1 - share) * angle) / below, 1 - share)
    second = jnp.where(apart, jnp.sin(share * angle) / below, share)
    return first * a + second * b
