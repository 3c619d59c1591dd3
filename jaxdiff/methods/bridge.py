"""Bridges: diffusion between paired data, from degraded features y to clean x0 (Chen et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Array

from jaxdiff import diffusion, ranges
from jaxdiff.diffusion import Bridge as Path
from jaxdiff.diffusion import NamedSampler, VEBridge
from jaxdiff.networks import Condition, Params
from jaxdiff.tasks import Example, Given

from . import method


@dataclass(frozen=True)
class Bridge(method.Method):
    """The task gives y as `Given.start`; the network predicts x0 and sees beside x_t the condition's estimate: y, where
    the task gives no other."""

    knobs: ClassVar[frozenset[str]] = frozenset({"sampler", "steps", "spacing"})
    samplers: ClassVar[Mapping[str, NamedSampler]] = diffusion.BRIDGE_SAMPLERS
    takes_start: ClassVar[bool] = True

    schedule: Path = VEBridge()
    times: Literal["uniform", "logit_normal", "lognormal"] = "uniform"
    times_mean: float = 0.0
    times_std: ranges.Positive = 1.0
    at_start: ranges.Share = 0.0  # of the items, trained at t = 1: the network's first estimate is a predictor's then
    auxiliary: method.AuxiliaryName = "none"  # loss of the decoded sound, times auxiliary_weight
    auxiliary_weight: ranges.Weight = 1.0

    def network_options(self) -> dict[str, Any]:
        return {"self_conditioning": True}

    def check(self, model: method.Model) -> None:
        super().check(model)
        method.check_auxiliary(model, self.auxiliary)
        if not model.task.gives_start:
            raise ValueError("method bridge needs a task that gives a start (paired sounds); use method diffusion")

    def make_step(self, model: method.Model, optimizer: method.Optimizer, steps: int) -> method.Update:
        within = method.training_times(self.times, self.schedule, self.times_mean, self.times_std)
        sample_t = lambda key, batch: within(key, batch).at[: round(self.at_start * batch)].set(1.0)  # noqa: E731

        def loss(network, example: Example, context: method.Context):
            x0, given = example
            y = given.start
            assert y is not None  # see check
            auxiliary = method.sound_distance(model, self.auxiliary, self.auxiliary_weight, given)
            cond = _beginning(given)
            options: dict[str, Any] = dict(sample_t=sample_t, auxiliary=auxiliary)
            loss, metrics = diffusion.bridge_loss(network, self.schedule, x0, y, cond, context.key, **options)
            return loss, (metrics, context.extra)

        return method.gradient_step(model, loss, optimizer)

    def make_sample(self, model: method.Model, sampling: method.Sampling, times: Array) -> method.Sample:
        sampler = self.sampler(sampling)

        def sample(params: Params, given: Given, noise: Array, keys: Array) -> Array:
            y = given.start
            assert y is not None  # see check
            denoiser = diffusion.bridge_denoiser(model.network.bound(params), _beginning(given))
            denoiser = model.task.guide(model.representation, denoiser, self.schedule, given)
            return sampler(denoiser, self.schedule, y, times, keys)

        return sample


def _beginning(given: Given) -> Condition:
    """The condition with an estimate of x0: the task's own, or where the bridge begins."""
    assert given.start is not None  # see check
    return given.cond if given.cond.estimate is not None else given.cond.with_estimate(given.start)
