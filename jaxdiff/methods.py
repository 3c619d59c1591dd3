"""What a method trains, and the program that makes sound with what it trained.

A method is three functions of a configuration: `init_state`, `train_step` (for most methods the common one with an
`objective` in it) and `generate`, one jitted

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

from jaxdiff import adversarial, autoregression, build, diffusion, training
from jaxdiff.config import (
    Adversarial,
    Autoregression,
    Config,
    ConfigError,
    Diffusion,
    Regression,
    Shortcut,
    crop_samples,
)
from jaxdiff.data.pipeline import Batch
from jaxdiff.diffusion import Denoiser, Schedule
from jaxdiff.features import Representation
from jaxdiff.networks import Condition, Discriminators
from jaxdiff.tasks import Example, Task
from jaxdiff.training import Context, Objective, TrainState

OPTIONS: dict[str, tuple[str, ...]] = {  # of sampling, that a method has a use for
    "diffusion": ("sampler", "steps", "spacing", "guidance"),
    "shortcut": ("steps",),
    "autoregression": ("temperature",),
    "regression": (),
    "adversarial": (),
}

Generate = Callable[[Any, Array, Batch, Array, Array], Array]


class Model(NamedTuple):
    """What a configuration builds for a given number of classes and normalisation."""

    graphdef: nnx.GraphDef
    representation: Representation
    task: Task
    schedule: Schedule | None  # None for methods without noise
    features: int


def init_state(config: Config, params: Any, key: Array) -> TrainState:
    """Step 0 with the network's `params`."""
    if not isinstance(config.method, Adversarial):
        return training.init_state(params, build.optimizer(config), key, posthoc_ema=config.train.posthoc_ema)
    if config.train.posthoc_ema:
        raise ConfigError("train.posthoc_ema: method adversarial keeps one average; leave it away")
    critics = nnx.to_pure_dict(nnx.split(discriminators(config, key))[1])
    return adversarial.init_state(params, critics, build.optimizers(config), key)


def train_step(config: Config, model: Model) -> Callable:
    """`(state, batch) -> (state, metrics)`, one program."""
    if not isinstance(config.method, Adversarial):
        options = dict(ema_decay=config.train.ema_decay)
        loss, optimizer = objective(config, model.task), build.optimizer(config)
        return training.make_train_step(model.graphdef, model.task, loss, optimizer, **options)
    m, steps = config.method, config.train.steps
    critics = nnx.split(nnx.eval_shape(lambda: discriminators(config, jax.random.key(0))))[0]

    def make(network: Callable, example: Example, key: Array) -> adversarial.Made:
        keys = jax.random.split(key, len(example.x0))
        return _unrolled(config, model, network, example.cond, example.x0.shape, keys)

    def judge(params: Any, wave: Array) -> list:
        return nnx.merge(critics, params)(wave, adversarial.magnitudes(wave))

    return adversarial.make_adversarial_step(
        model.graphdef,
        model.task,
        make,
        judge,
        build.distance(config),
        build.optimizers(config),
        game=m.game,
        begin=round(m.begin * steps),
        ramp=max(1, round(m.ramp * steps)),
        segment=_segment(config),
        adversarial_weight=m.adversarial_weight,
        feature_weight=m.feature_weight,
        ema_decay=config.train.ema_decay,
    )


def objective(config: Config, task: Task) -> Objective:
    match config.method:
        case Diffusion():
            return _diffusion_objective(config, task)
        case Shortcut():
            return _shortcut_objective(config)
        case Autoregression():
            return _likelihood_objective(config)
        case Regression():
            return _regression_objective(config, task)


def generate(config: Config, model: Model, sampler: str | None, guided: bool) -> Generate:
    """The program of a configuration; `guided` puts classifier-free guidance into it where the method has any."""
    match config.method:
        case Diffusion():
            sample, make = build.sampler(sampler), make_denoiser(config, model, guided)
            return jax.jit(
                lambda params, keys, batch, times, scale: model.task.decode(
                    sample(make(params, batch, scale), model.schedule, _start(model, keys, batch), times, keys),
                    model.task.condition(batch),
                )
            )
        case Shortcut(levels=levels):

            def jump(params, keys, batch, times, scale):
                network, cond = nnx.merge(model.graphdef, params), model.task.condition(batch)
                jumps, x_T = diffusion.flow_map(network, cond, 0.5**levels), _start(model, keys, batch)
                return model.task.decode(diffusion.flow_map_sampler(jumps, model.schedule, x_T, times, keys), cond)

            return jax.jit(jump)
        case Autoregression():
            output = build.output(config)

            def sample(params, keys, batch, times, scale):
                network, samples = nnx.merge(model.graphdef, params), batch["wave"].shape[-1]
                cond = model.task.condition(batch)
                wave = autoregression.generate(network, output, keys, cond, samples, temperature=scale)
                return model.task.decode(wave[..., None], cond)

            return jax.jit(sample)
        case Regression():

            def regress(params, keys, batch, times, scale):
                network, cond = nnx.merge(model.graphdef, params), model.task.condition(batch)
                return model.task.decode(_mean(network, _shape(model, batch), cond), cond)

            return jax.jit(regress)
        case Adversarial():

            def play(params, keys, batch, times, scale):
                network, cond = nnx.merge(model.graphdef, params), model.task.condition(batch)
                return _unrolled(config, model, network, cond, _shape(model, batch), keys)[1]

            return jax.jit(play)


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


def _unrolled(
    config: Config, model: Model, network: Callable, cond: Condition, shape: tuple, keys: Array
) -> adversarial.Made:
    """What the generator of method adversarial makes."""
    m = config.method
    x0 = adversarial.unrolled(
        network, model.schedule, cond, shape, keys, steps=m.steps, prediction=m.prediction, jumps=m.jumps
    )
    return x0, model.task.decode(x0, cond)


def _segment(config: Config) -> int | None:
    """Samples of each sound that the discriminators see; raises ConfigError for more than a crop."""
    m, samples = config.method, crop_samples(config)
    if m.segment is None:
        return None
    wanted = round(m.segment * config.data.sample_rate)
    if not 1 <= wanted <= samples:
        raise ConfigError(f"method.segment {m.segment} s: expected a part of data.seconds {config.data.seconds} s")
    return wanted


def discriminators(config: Config, key: Array) -> Discriminators:
    m = config.method
    widths = dict(period_width=m.period_width, spectral_width=m.spectral_width)
    return Discriminators(len(adversarial.RESOLUTIONS), **widths, rngs=nnx.Rngs(jax.random.fold_in(key, 1)))


def _diffusion_objective(config: Config, task: Task) -> Objective:
    d, levels = config.method, build.schedule(config)
    options = dict(
        prediction=d.prediction,
        weight=build.weight(config),
        sigma_data=d.sigma_data,
        auxiliary=build.auxiliary(config, task),
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


def _regression_objective(config: Config, task: Task) -> Objective:
    auxiliary = build.auxiliary(config, task)

    def loss_of(network, example: Example, context: Context):
        made = _mean(network, example.x0.shape, example.cond)
        loss = ((made - example.x0) ** 2).mean()
        metrics = {}
        if auxiliary is not None:
            metrics["auxiliary"] = auxiliary(made, *example).mean()
            loss = loss + metrics["auxiliary"]
        return loss, ({"loss": loss, **metrics}, context.histogram)

    return loss_of
