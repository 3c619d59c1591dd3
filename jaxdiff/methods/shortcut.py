"""Shortcut models: jumps of any length along the flow, so that 1, 2, 4 ... steps make a sound (Frans et al. 2024)."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jaxtyping import Array

from jaxdiff import diffusion, ranges
from jaxdiff.diffusion import RectifiedFlow, Schedule
from jaxdiff.networks import Params
from jaxdiff.tasks import Example, Given

from . import method


@dataclass(frozen=True)
class Shortcut(method.Method):
    """The network predicts x0 and has two times."""

    knobs: ClassVar[frozenset[str]] = frozenset({"steps", "spacing"})

    schedule: Schedule = RectifiedFlow()
    times: Literal["uniform", "logit_normal"] = "uniform"
    times_mean: float = 0.0
    times_std: ranges.Positive = 1.0
    weight: Literal["velocity", "constant"] = "velocity"
    begin: ranges.Share = 0.5  # the share of the steps before, in which it is an ordinary diffusion model
    every: ranges.Count = 4  # from then on every n-th item of a batch is a jump
    levels: Annotated[int, Interval(ge=1, le=16)] = 6  # jumps of 1, 1/2, 1/4 ... of the time

    def network_options(self) -> dict[str, Any]:
        return {"second_time": True}

    def make_step(self, model: method.Model, optimizer: method.Optimizer, steps: int) -> method.Update:
        begin, schedule = round(self.begin * steps), self.schedule
        sample_t = method.training_times(self.times, schedule, self.times_mean, self.times_std)
        shared: dict[str, Any] = dict(sample_t=sample_t, weight=method.x0_weight(self.weight))
        intervals = diffusion.dyadic_intervals(self.levels)
        every = dict(every=self.every, sample_intervals=intervals, resolution=0.5**self.levels)
        jumps: dict[str, Any] = {**every, **shared}

        def loss(network, example: Example, context: method.Context):
            x0, cond, key = example.x0, example.given.cond, context.key

            def ordinary():
                loss, metrics = diffusion.diffusion_loss(network, schedule, x0, cond, key, prediction="x0", **shared)
                return loss, {**metrics, "jump_loss": jnp.zeros_like(loss)}

            def shortcut():
                return diffusion.shortcut_loss(network, schedule, x0, cond, key, teacher=context.teacher, **jumps)

            loss, metrics = jax.lax.cond(context.step < begin, ordinary, shortcut)
            return loss, (metrics, context.extra)

        return method.gradient_step(model, loss, optimizer)

    def make_sample(self, model: method.Model, sampling: method.Sampling, times: Array) -> method.Sample:
        def sample(params: Params, given: Given, noise: Array, keys: Array) -> Array:
            jumps = diffusion.flow_map(model.network.bound(params), given.cond, 0.5**self.levels)
            jumps = model.task.guide(model.representation, jumps, self.schedule, given)
            x_T = diffusion.prior_scale(self.schedule) * noise
            return diffusion.flow_map_sampler(jumps, self.schedule, x_T, times, keys)

        return sample
