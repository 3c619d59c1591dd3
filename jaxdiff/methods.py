"""What a method trains, and the program that makes sound with what it trained.

A method is two functions of a configuration: `objective`, the loss inside the train step, and `generate`, one jitted

    generate(params, keys, batch, times, scale) -> wave [batch, samples]

`keys` [batch] seed the items; `batch` gives labels or sounds to condition on and, by the shape of its wave, the length;
`times` is a sampler's grid, and `scale` that of the guidance or the temperature, for the methods that have them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxdiff import autoregression, build, diffusion
from jaxdiff.config import Autoregression, Config, ConfigError, Diffusion, Regression, Shortcut
from jaxdiff.data.pipeline import Batch
from jaxdiff.diffusion import Denoiser, Schedule
from jaxdiff.features import Representation
from jaxdiff.networks import Condition
from jaxdiff.tasks import Example, Task
from jaxdiff.training import Context, Objective

OPTIONS: dict[str, tuple[str, ...]] = {  # of sampling, that a method has a use for
    "diffusion": ("sampler", "steps", "spacing", "guidance"),
    "shortcut": ("steps",),
    "autoregression": ("temperature",),
    "regression": (),
}

Generate = Callable[[Any, Array, Batch, Array, Array], Array]


class Model(NamedTuple):
    """What a configuration builds for a given number of classes and normalisation."""

    graphdef: nnx.GraphDef
    representation: Representation
    task: Task
    schedule: Schedule | None  # None for methods without noise
    features: int


def objective(config: Config, representation: Representation) -> Objective:
    match config.method:
        case Diffusion():
            return _diffusion_objective(config, representation)
        case Shortcut():
            return _shortcut_objective(config)
        case Autoregression():
            return _likelihood_objective(config)
        case Regression():
            return _regression_objective(config, representation)


def generate(config: Config, model: Model, sampler: str | None, guided: bool) -> Generate:
    """The program of a configuration; `guided` puts classifier-free guidance into it where the method has any."""
    match config.method:
        case Diffusion():
            sample, make = build.sampler(sampler), make_denoiser(config, model, guided)
            return jax.jit(
                lambda params, keys, batch, times, scale: model.representation.decode(
                    sample(make(params, batch, scale), model.schedule, _start(model, keys, batch), times, keys)
                )
            )
        case Shortcut(levels=levels):

            def jump(params, keys, batch, times, scale):
                network = nnx.merge(model.graphdef, params)
                jumps = diffusion.flow_map(network, model.task.condition(batch), 0.5**levels)
                x_T = _start(model, keys, batch)
                return model.representation.decode(diffusion.flow_map_sampler(jumps, model.schedule, x_T, times, keys))

            return jax.jit(jump)
        case Autoregression():
            output = build.output(config)

            def sample(params, keys, batch, times, scale):
                network, samples = nnx.merge(model.graphdef, params), batch["wave"].shape[-1]
                cond = model.task.condition(batch)
                wave = autoregression.generate(network, output, keys, cond, samples, temperature=scale)
                return model.representation.decode(wave[..., None])

            return jax.jit(sample)
        case Regression():

            def regress(params, keys, batch, times, scale):
                network = nnx.merge(model.graphdef, params)
                return model.representation.decode(_mean(network, _shape(model, batch), model.task.condition(batch)))

            return jax.jit(regress)


def make_denoiser(config: Config, model: Model, guided: bool) -> Callable[[Any, Batch, Array], Denoiser]:
    """`(params, batch, scale) -> denoiser` of the batch's condition; unless `guided` the scale is not used."""
    d = config.method
    if not isinstance(d, Diffusion):
        raise ConfigError(f"method {d.kind} has no denoiser; use a model trained with method diffusion")
    estimate = Condition.with_estimate if d.self_conditioning else None
    options = dict(sigma_data=d.sigma_data, with_estimate=estimate)
    guide = build.guidance(config) if guided else None

    def make(params: Any, batch: Batch, scale: Array) -> Denoiser:
        network = nnx.merge(model.graphdef, params)
        cond = model.task.condition(batch)
        conditional = diffusion.denoiser(network, model.schedule, d.prediction, cond, **options)
        if guide is None:
            return conditional
        unconditional = diffusion.denoiser(network, model.schedule, d.prediction, cond.without_label(), **options)
        return guide(conditional, unconditional, scale)

    return make


def _shape(model: Model, batch: Batch) -> tuple[int, ...]:
    return jax.eval_shape(model.representation.encode, batch["wave"]).shape


def _start(model: Model, keys: Array, batch: Batch) -> Array:
    return diffusion.prior_scale(model.schedule) * diffusion.noise(keys, _shape(model, batch))


def _mean(network: Callable, shape: tuple[int, ...], cond: Condition) -> Array:
    """The x0 that a network expects when it sees nothing of it."""
    return network(jnp.zeros(shape), jnp.ones(shape[0]), cond)


def _diffusion_objective(config: Config, representation: Representation) -> Objective:
    d, levels = config.method, build.schedule(config)
    options = dict(
        prediction=d.prediction,
        weight=build.weight(config),
        sigma_data=d.sigma_data,
        auxiliary=build.auxiliary(config, representation),
        with_estimate=Condition.with_estimate if d.self_conditioning else None,
    )

    def importance(network, example: Example, context: Context):
        time_key, noise_key = jax.random.split(context.key)
        drawn = diffusion.sample_histogram(context.histogram, time_key, len(example.x0))
        losses, metrics = diffusion.item_losses(network, levels, *example, drawn.t, noise_key, **options)
        loss = (drawn.weight * losses).mean()
        return loss, ({"loss": loss, **metrics}, diffusion.update_histogram(context.histogram, drawn.t, losses))

    def plain(network, example: Example, context: Context):
        sample_t = build.times(config)
        loss, metrics = diffusion.diffusion_loss(network, levels, *example, context.key, sample_t=sample_t, **options)
        return loss, (metrics, context.histogram)

    return importance if d.times == "importance" else plain


def _shortcut_objective(config: Config) -> Objective:
    m, levels = config.method, build.schedule(config)
    begin = round(m.begin * config.train.steps)
    shared = dict(sample_t=build.times(config), weight=build.weight(config))
    jumps = dict(
        every=m.every, sample_intervals=diffusion.dyadic_intervals(m.levels), resolution=0.5**m.levels, **shared
    )

    def loss_of(network, example: Example, context: Context):
        def ordinary():
            loss, metrics = diffusion.diffusion_loss(network, levels, *example, context.key, prediction="x0", **shared)
            return loss, {**metrics, "jump_loss": jnp.zeros_like(loss)}

        def shortcut():
            return diffusion.shortcut_loss(network, levels, *example, context.key, teacher=context.teacher, **jumps)

        loss, metrics = jax.lax.cond(context.step < begin, ordinary, shortcut)
        return loss, (metrics, context.histogram)

    return loss_of


def _likelihood_objective(config: Config) -> Objective:
    output = build.output(config)

    def loss_of(network, example: Example, context: Context):
        wave = example.x0[..., 0]
        nats = -autoregression.log_likelihood(network, output, wave, example.cond) / wave.shape[-1]
        bits = nats.mean() / np.log(2).astype(np.float32)
        return bits, ({"loss": bits}, context.histogram)

    return loss_of


def _regression_objective(config: Config, representation: Representation) -> Objective:
    auxiliary = build.auxiliary(config, representation)

    def loss_of(network, example: Example, context: Context):
        made = _mean(network, example.x0.shape, example.cond)
        loss = ((made - example.x0) ** 2).mean()
        metrics = {}
        if auxiliary is not None:
            metrics["auxiliary"] = auxiliary(made, example.x0).mean()
            loss = loss + metrics["auxiliary"]
        return loss, ({"loss": loss, **metrics}, context.histogram)

    return loss_of
