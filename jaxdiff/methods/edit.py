"""Editing: a trained denoiser begins with somebody's sound instead of noise. Nothing is trained by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array

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
class Edit(method.Method):
    """Sampling by `inner` from `Given.start`, at the time `strength`: noised as far as that (SDEdit, Meng et al. 2022),
    or with an `origin` taken there along the origin's own probability flow (DDIB, Su et al. 2023), which draws nothing.
    """

    knobs: ClassVar[frozenset[str]] = Diffusion.knobs
    takes_start: ClassVar[bool] = True
    samplers: ClassVar[Mapping[str, NamedSampler]] = Diffusion.samplers

    inner: Diffusion = Diffusion()
    strength: ranges.Share = 0.5
    origin: Origin | None = None

    @property
    def schedule(self) -> diffusion.Schedule:  # type: ignore[override]
        return self.inner.schedule

    def make_step(self, model: method.Model, optimizer: method.Optimizer, steps: int) -> Any:
        raise TypeError("an edit trains nothing; train its inner method")

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
