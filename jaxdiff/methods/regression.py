"""Regression: the conditional mean in one pass, by mean squared error of the features or as probabilities."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff import ranges
from jaxdiff.networks import Params
from jaxdiff.tasks import Example, Given

from . import method


@dataclass(frozen=True)
class Regression(method.Method):
    """The network is shown what is given and nothing of x0: where the task begins, or zeros.

    With `loss` binary the features are probabilities, the network's output their logits and the loss the cross-entropy,
    in which what is there weighs `positive_weight` times as much as what is not.
    """

    takes_start: ClassVar[bool] = True

    loss: Literal["squared", "binary"] = "squared"
    positive_weight: ranges.Positive = 1.0  # of binary
    auxiliary: method.AuxiliaryName = "none"  # loss of the decoded sound, times auxiliary_weight
    auxiliary_weight: ranges.Weight = 1.0

    def check(self, model: method.Model) -> None:
        super().check(model)
        method.check_auxiliary(model, self.auxiliary)

    def make_step(self, model: method.Model, optimizer: method.Optimizer, steps: int) -> method.Update:
        def loss(network, example: Example, context: method.Context):
            x0, given = example
            made = _mean(network, x0.shape, given)
            loss, metrics = self._loss(made, x0).mean(), {}
            auxiliary = method.sound_distance(model, self.auxiliary, self.auxiliary_weight, given)
            if auxiliary is not None:
                metrics["auxiliary"] = auxiliary(made, x0, given.cond).mean()
                loss = loss + metrics["auxiliary"]
            return loss, ({"loss": loss, **metrics}, context.extra)

        return method.gradient_step(model, loss, optimizer)

    def make_sample(self, model: method.Model, sampling: method.Sampling, times: Array) -> method.Sample:
        def sample(params: Params, given: Given, noise: Array, keys: Array) -> Array:
            made = _mean(model.network.bound(params), noise.shape, given)
            return jax.nn.sigmoid(made) if self.loss == "binary" else made

        return sample

    def _loss(self, made: Array, x0: Array) -> Array:
        if self.loss == "squared":
            return (made - x0) ** 2
        return self.positive_weight * x0 * jax.nn.softplus(-made) + (1 - x0) * jax.nn.softplus(made)


def _mean(network, shape: tuple[int, ...], given: Given) -> Array:
    """The x0 that a network expects when it sees nothing of it."""
    return network(jnp.zeros(shape) if given.start is None else given.start, jnp.ones(shape[0]), given.cond)
