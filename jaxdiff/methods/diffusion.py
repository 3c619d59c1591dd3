"""Diffusion: a denoiser is trained at random noise levels, and a sampler walks from noise to data with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
from jaxtyping import Array, PRNGKeyArray

from jaxdiff import diffusion, ranges
from jaxdiff.diffusion import Denoiser, NamedSampler, Prediction, RectifiedFlow, Schedule
from jaxdiff.networks import Condition, Params
from jaxdiff.tasks import Example, Given

from . import method


@dataclass(frozen=True)
class Diffusion(method.Method):
    """Noise schedule, what the network predicts, which times it trains on and how they weigh."""

    knobs: ClassVar[frozenset[str]] = method.GUIDANCE | {"sampler", "steps", "spacing"}
    samplers: ClassVar[Mapping[str, NamedSampler]] = {"heun": diffusion.SAMPLERS["heun"]} | diffusion.SAMPLERS

    schedule: Schedule = RectifiedFlow()
    prediction: Prediction = "x0"
    sigma_data: ranges.Positive = 1.0  # deviation of the features (normalised: 1), for prediction and weight edm
    times: Literal["uniform", "logit_normal", "lognormal", "importance"] = "logit_normal"
    times_mean: float = 0.0
    times_std: ranges.Positive = 1.0
    weight: method.WeightName = "velocity"  # of the squared error of x0; constant: of the prediction's own
    auxiliary: method.AuxiliaryName = "none"  # loss of the decoded sound, times auxiliary_weight
    auxiliary_weight: ranges.Weight = 1.0
    self_conditioning: bool = False  # the network sees its own first estimate, at twice the sampling cost

    def network_options(self) -> dict[str, Any]:
        return {"self_conditioning": self.self_conditioning}

    def check(self, model: method.Model) -> None:
        super().check(model)
        method.check_auxiliary(model, self.auxiliary)

    def init(
        self,
        model: method.Model,
        params: Params,
        optimizer: method.Optimizer,
        steps: int,
        key: PRNGKeyArray,
    ) -> tuple[Any, Any, Any]:
        extra = diffusion.init_histogram() if self.times == "importance" else ()
        return params, optimizer.init(params), extra

    def judge(self) -> "Diffusion":
        """Times by importance follow the losses of training; uniform ones have the same mean loss and stay."""
        return replace(self, times="uniform") if self.times == "importance" else self

    def make_step(self, model: method.Model, optimizer: method.Optimizer, steps: int) -> method.Update:
        with_estimate = Condition.with_estimate if self.self_conditioning else None
        weight = method.x0_weight(self.weight, self.sigma_data)
        shared: dict[str, Any] = dict(
            prediction=self.prediction, sigma_data=self.sigma_data, with_estimate=with_estimate, weight=weight
        )

        def loss(network, example: Example, context: method.Context):
            x0, given = example
            options = dict(
                **shared, auxiliary=method.sound_distance(model, self.auxiliary, self.auxiliary_weight, given)
            )
            if self.times != "importance":
                sample_t = method.training_times(self.times, self.schedule, self.times_mean, self.times_std)
                of = diffusion.diffusion_loss
                loss, metrics = of(network, self.schedule, x0, given.cond, context.key, sample_t=sample_t, **options)
                return loss, (metrics, context.extra)
            time_key, noise_key = jax.random.split(context.key)
            drawn = diffusion.sample_histogram(context.extra, time_key, len(x0))
            losses, metrics = diffusion.item_losses(
                network, self.schedule, x0, given.cond, drawn.t, noise_key, **options
            )
            loss = (drawn.weight * losses).mean()
            return loss, ({"loss": loss, **metrics}, diffusion.update_histogram(context.extra, drawn.t, losses))

        return method.gradient_step(model, loss, optimizer)

    def make_sample(self, model: method.Model, sampling: method.Sampling, times: Array) -> method.Sample:
        sampler = self.sampler(sampling)

        def sample(params: Params, given: Given, noise: Array, keys: Array) -> Array:
            denoiser = self.denoiser(model, sampling, params, given)
            x_T = diffusion.prior_scale(self.schedule) * noise
            return sampler(denoiser, self.schedule, x_T, times, keys)

        return sample

    def denoiser(self, model: method.Model, sampling: method.Sampling, params: Params, given: Given) -> Denoiser:
        """The denoiser with guidance by class and by what else is given."""
        with_estimate = Condition.with_estimate if self.self_conditioning else None
        options: dict[str, Any] = dict(sigma_data=self.sigma_data, with_estimate=with_estimate)

        def of(cond: Condition) -> Denoiser:
            network = model.network.bound(params)
            return diffusion.denoiser(network, self.schedule, self.prediction, cond, **options)

        without = lambda: of(given.cond.without_label())  # noqa: E731
        denoiser = method.guided(sampling, self.schedule, of(given.cond), without, given)
        return model.task.guide(model.representation, denoiser, self.schedule, given)
