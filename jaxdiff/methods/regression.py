"""Regression: the conditional mean in one pass, by mean squared error of the features. A baseline."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff import ranges
from jaxdiff.networks import Params
from jaxdiff.tasks import Example, Given

from . import method


@dataclass(frozen=True)
class Regression(method.Method):
    """The network is shown what is given and nothing of x0: where the task begins, or zeros."""

    takes_start: ClassVar[bool] = True

    auxiliary: method.AuxiliaryName = "none"  # loss of the decoded sound, times auxiliary_weight
    auxiliary_weight: ranges.Weight = 1.0

    def check(self, model: method.Model) -> None:
        super().check(model)
        method.check_auxiliary(model, self.auxiliary)

    def make_step(self, model: method.Model, optimizer: method.Optimizer, steps: int) -> method.Update:
        def loss(network, example: Example, context: method.Context):
            x0, given = example
            made = _mean(network, x0.shape, given)
            loss, metrics = ((made - x0) ** 2).mean(), {}
            auxiliary = method.sound_distance(model, self.auxiliary, self.auxiliary_weight, given)
            if auxiliary is not None:
                metrics["auxiliary"] = auxiliary(made, x0, given.cond).mean()
                loss = loss + metrics["auxiliary"]
            return loss, ({"loss": loss, **metrics}, context.extra)

        return method.gradient_step(model, loss, optimizer)

    def make_sample(self, model: method.Model, sampling: method.Sampling, times: Array) -> method.Sample:
        def sample(params: Params, given: Given, noise: Array, keys: Array) -> Array:
            return _mean(model.network.bound(params), noise.shape, given)

        return sample


def _mean(network, shape: tuple[int, ...], given: Given) -> Array:
    """The x0 that a network expects when it sees nothing of it."""
    return network(jnp.zeros(shape) if given.start is None else given.start, jnp.ones(shape[0]), given.cond)
