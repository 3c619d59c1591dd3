"""Generative adversarial training (Goodfellow et al. 2014): generator and discriminators updated in one program.

    least squares (Mao et al. 2017)   L_D = E[(D(y) - 1)^2] + E[D(G)^2]            L_G = E[(D(G) - 1)^2]
    hinge (Lim & Ye 2017)             L_D = E[(1 - D(y))_+] + E[(1 + D(G))_+]      L_G = -E[D(G)]

y is real sound, G made. L_G is joined by the distance between the feature maps of both (HiFi-GAN, Kong et al. 2020,
eq. 4) and by a distance of the sounds themselves. In a step both players see the same sounds: what the discriminators
say of them is computed once and differentiated twice, for the made sound and for the discriminators' weights.

The generator is any callable that makes a wave. `unrolled` is the one of a diffusion model: all steps of its sampler,
with gradients through all of them (as Flow2GAN and PeriodWave-Turbo fine-tune); with one step it is a plain GAN whose
network sees noise and the condition.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PRNGKeyArray

from jaxdiff import diffusion, features, ranges
from jaxdiff.diffusion import RectifiedFlow, Schedule
from jaxdiff.features import stft
from jaxdiff.networks import Discriminators, Network, Params, from_nnx
from jaxdiff.networks.discriminators import Judgement
from jaxdiff.tasks import Batch, Example, Given
from jaxdiff.training import Metrics, TrainState, Update, gradient_norms, make_optimizer

from .method import Method, Model, Optimizer, Sample, Sampling

Game = Literal["least_squares", "hinge"]
RESOLUTIONS = ((1024, 256), (2048, 512), (512, 128))  # n_fft and hop_length of the spectrograms, in samples

_VALUES = ("discriminator", "adversarial", "feature")  # losses that the log shows

Judge = Callable[[Any, Float[Array, "batch samples"]], list[Judgement]]  # (discriminators' weights, wave)
Made = tuple[Float[Array, "batch frames features"], Float[Array, "batch samples"]]  # features and their sound
Make = Callable[[Callable, Example, Array], Made]  # (network, example, key)


_DISTANCE = ((1024, 256, 1024), (512, 128, 512), (256, 64, 256))  # n_fft, hop, window of a generator's distance


@dataclass(frozen=True)
class Adversarial(Method):
    """A generator against discriminators; it makes sound in `steps` Euler steps from noise or where the task begins."""

    takes_start: ClassVar[bool] = True

    schedule: Schedule = RectifiedFlow()
    steps: ranges.Count = 1  # above 1: a diffusion model's whole sampler, for fine-tuning (train.init)
    prediction: Literal["x0", "flow"] = "x0"  # flow: what takes the start to the sound, at first nothing
    jumps: bool = False  # the steps are those of method shortcut
    game: Game = "least_squares"
    begin: ranges.Share = 0.5  # the share of the steps before, with the distance to the real sound alone
    ramp: ranges.Share = 0.02  # the share in which the discriminators' part then grows to its weight
    segment: ranges.Positive | None = None  # seconds of each sound that the discriminators see; none: all
    learning_rate: ranges.Positive = 2e-4  # of the discriminators
    period_width: ranges.Count = 32
    spectral_width: ranges.Count = 32
    adversarial_weight: ranges.Weight = 1.0
    feature_weight: ranges.Weight = 2.0
    x0_weight: ranges.Weight = 0.0  # of the mean difference of features; the next two are distances of the sounds
    stft_weight: ranges.Weight = 5.0
    mel_weight: ranges.Weight = 15.0

    def check(self, model: Model) -> None:
        super().check(model)
        if model.representation.stereo:
            raise ValueError("method adversarial judges sound of one channel; set data.channels to mix, left or right")
        if model.task.inputs:
            raise ValueError(
                f"method adversarial compares with the recordings themselves, which are not what task "
                f"{type(model.task).__name__.lower()} makes of them; use method regression or bridge"
            )

    def network_options(self) -> dict[str, Any]:
        return {"second_time": self.jumps, "zero_output": self.prediction == "flow"}

    def init(
        self, model: Model, params: Params, optimizer: Optimizer, steps: int, key: PRNGKeyArray
    ) -> tuple[Any, Any, Any]:
        critics = self._discriminators().init(jax.random.fold_in(key, 1))
        both = {"generator": params, "discriminators": critics}
        optimizers = self._optimizers(optimizer, steps)
        return both, {name: optimizers[name].init(tree) for name, tree in both.items()}, ()

    def weights(self, params: Any) -> Params:
        return params["generator"]

    def make_step(self, model: Model, optimizer: Optimizer, steps: int) -> Update:
        critics = self._discriminators()

        def make(network: Callable, example: Example, key: Array) -> Made:
            noise = diffusion.noise(jax.random.split(key, len(example.x0)), example.x0.shape)
            x0 = self._play(network, example.given, noise, jax.random.split(key, len(example.x0)))
            return x0, model.task.finish(model.representation, x0, example.given)

        return adversarial_step(
            model,
            make,
            lambda params, wave: critics.module(params)(wave, magnitudes(wave)),
            self._distance(model),
            self._optimizers(optimizer, steps),
            game=self.game,
            begin=round(self.begin * steps),
            ramp=max(1, round(self.ramp * steps)),
            segment=None if self.segment is None else round(self.segment * model.representation.sample_rate),
            adversarial_weight=self.adversarial_weight,
            feature_weight=self.feature_weight,
        )

    def make_sample(self, model: Model, sampling: Sampling, times: Array) -> Sample:
        def sample(params: Params, given: Given, noise: Array, keys: Array) -> Array:
            guide = lambda denoiser: model.task.guide(model.representation, denoiser, self.schedule, given)  # noqa: E731
            return self._play(model.network.bound(params), given, noise, keys, guide=guide)

        return sample

    def _play(self, network: Callable, given: Given, noise: Array, keys: Array, **options) -> Array:
        return unrolled(
            network,
            self.schedule,
            given,
            noise,
            keys,
            steps=self.steps,
            prediction=self.prediction,
            jumps=self.jumps,
            **options,
        )

    def _discriminators(self) -> Network:
        widths = dict(period_width=self.period_width, spectral_width=self.spectral_width)
        return from_nnx(lambda rngs: Discriminators(len(RESOLUTIONS), **widths, rngs=rngs))

    def _optimizers(self, optimizer: Optimizer, steps: int) -> dict:
        """The generator's is the one given; the discriminators' betas are HiFi-GAN's, 0.8 and 0.99."""
        later = round((1 - self.begin) * steps)
        return {
            "generator": optimizer,
            "discriminators": make_optimizer(self.learning_rate, later, warmup=100, b1=0.8),
        }

    def _distance(self, model: Model) -> Callable[[Made, Made], Array]:
        """`(made, real) -> [batch]`: what a generator learns by beside its discriminators."""

        def apart(made: Made, real: Made) -> Array:
            total = self.x0_weight * jnp.abs(made[0] - real[0]).mean((-2, -1))
            if self.stft_weight:
                spectral = features.multi_resolution_stft_loss(made[1], real[1], resolutions=_DISTANCE)
                total = total + self.stft_weight * spectral
            if self.mel_weight:
                total = total + self.mel_weight * features.mel_loss(
                    made[1], real[1], sr=model.representation.sample_rate
                )
            return total

        return apart


def magnitudes(wave: Float[Array, "batch samples"]) -> list[Float[Array, "batch frames bins"]]:
    """Spectrograms at `RESOLUTIONS`, scaled as a unitary transform's."""
    return [jnp.abs(stft(wave, n_fft=n, hop_length=hop)).mT / n**0.5 for n, hop in RESOLUTIONS]


def discriminator_loss(real: list[Judgement], made: list[Judgement], game: Game) -> Float[Array, ""]:
    """L_D above, averaged over discriminators.

    >>> undecided = [Judgement(jnp.zeros((2, 3)), ())]
    >>> [float(discriminator_loss(undecided, undecided, game)) for game in ("least_squares", "hinge")]
    [1.0, 2.0]
    """

    def loss(r: Array, m: Array) -> Array:
        if game == "least_squares":
            return ((r - 1) ** 2).mean() + (m**2).mean()
        return jax.nn.relu(1 - r).mean() + jax.nn.relu(1 + m).mean()

    return jnp.stack([loss(r.logits, m.logits) for r, m in zip(real, made, strict=True)]).mean()


def generator_loss(made: list[Judgement], game: Game) -> Float[Array, ""]:
    """L_G above, averaged over discriminators."""
    losses = [((m.logits - 1) ** 2 if game == "least_squares" else -m.logits).mean() for m in made]
    return jnp.stack(losses).mean()


def feature_distance(real: list[Judgement], made: list[Judgement]) -> Float[Array, ""]:
    """Mean absolute difference of feature maps, summed over layers and averaged over discriminators."""
    pairs = [pair for r, m in zip(real, made, strict=True) for pair in zip(r.maps, m.maps, strict=True)]
    return jnp.stack([jnp.abs(a - b).mean() for a, b in pairs]).sum() / len(real)


def unrolled(
    network: Callable,
    schedule: Schedule,
    given: Given,
    noise: Float[Array, "batch frames features"],
    keys: Key[Array, " batch"],
    *,
    steps: int = 1,
    prediction: Literal["x0", "flow"] = "x0",
    jumps: bool = False,
    guide: Callable[[Callable], Callable] = lambda denoiser: denoiser,
) -> Float[Array, "batch frames features"]:
    """x0 by `steps` Euler steps, or jumps of a network of two times that predicts x0.

    Sampling begins where `given` says, else at `noise` of unit deviation; `guide` maps the denoiser, or flow map.
    """
    x_T = diffusion.prior_scale(schedule) * noise if given.start is None else given.start
    times = diffusion.spaced_times(schedule, steps)
    if jumps:
        flow_map = guide(diffusion.flow_map(network, given.cond, 0.0))
        return diffusion.flow_map_sampler(flow_map, schedule, x_T, times, keys)
    denoiser = guide(diffusion.denoiser(network, schedule, prediction, given.cond))
    return diffusion.SAMPLERS["euler"].sampler(denoiser, schedule, x_T, times, keys)


def _judge_both(judge: Judge, real: Array, discriminators: Any, made: Array) -> tuple[list[Judgement], list[Judgement]]:
    """What discriminators say of real and made sound, in one batch."""
    said = judge(discriminators, jnp.concatenate([real, made]))
    return tuple(jax.tree.map(lambda x, i=i: jnp.split(x, 2)[i], said) for i in (0, 1))


def _turns(batch: int, parts: int) -> int:
    """Into how many looks at a batch the discriminators' work is cut: those of the generator's (`in_parts`), and on a
    CPU an item per device at a time, so that the wide intermediate products stay in the cache."""
    devices = jax.device_count()
    return batch // devices if jax.default_backend() == "cpu" and batch % devices == 0 else math.gcd(batch, parts)


def adversarial_step(
    model: Model,
    make: Make,
    judge: Judge,
    distance: Callable[[Made, Made], Float[Array, " batch"]],
    optimizers: dict[str, Optimizer],
    *,
    game: Game = "least_squares",
    begin: int = 0,
    ramp: int = 1,
    segment: int | None = None,
    adversarial_weight: float = 1.0,
    feature_weight: float = 2.0,
) -> Update:
    """The update of both players, `(state, batch, key) -> (state, metrics)`.

    The generator learns by `distance(made, real)` alone until step `begin`; then the discriminators start, and their
    part of its loss grows to full weight over `ramp` steps. They see `segment` samples of every sound (None: all of
    it), at a random place. `optimizers` has "generator" and "discriminators".
    """

    def update(state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        example_key, sound_key, network_key = jax.random.split(key, 3)
        example = model.task.example(model.representation, batch, example_key)
        real = model.task.leveled(batch["wave"])
        if segment is not None and not 1 <= segment <= real.shape[1]:
            raise ValueError(f"method.segment is {segment} samples; expected a part of the crop of {real.shape[1]}")
        generator, discriminators = state.params["generator"], state.params["discriminators"]
        play = lambda generator: make(model.network.bound(generator, network_key), example, sound_key)  # noqa: E731
        made, pull_generator = jax.vjp(play, generator)
        apart, (d_x0, d_wave) = jax.value_and_grad(lambda made: distance(made, (example.x0, real)).mean())(made)
        weight = jnp.clip((state.step + 1 - begin) / ramp, 0, 1)

        def contest():
            turns = _turns(len(real), model.network.parts)

            def criticism(of_real, of_made):
                adversarial, feature = generator_loss(of_made, game) / turns, feature_distance(of_real, of_made) / turns
                loss = weight * (adversarial_weight * adversarial + feature_weight * feature)
                return loss, {"adversarial": adversarial, "feature": feature}

            def own(of_real, of_made):
                return discriminator_loss(of_real, of_made, game) / turns

            def look(total, waves):
                real, made = waves
                (of_real, of_made), pull = jax.vjp(functools.partial(_judge_both, judge, real), discriminators, made)
                loss, d_own = jax.value_and_grad(own, argnums=(0, 1))(of_real, of_made)
                (_, values), d_made = jax.value_and_grad(criticism, argnums=1, has_aux=True)(of_real, of_made)
                d_discriminators, _ = pull(d_own)
                _, d_by_critics = pull((jax.tree.map(jnp.zeros_like, of_real), d_made))
                return jax.tree.map(jnp.add, total, (d_discriminators, {"discriminator": loss, **values})), d_by_critics

            cut = lambda x: x.reshape(len(x) // turns, turns, -1).swapaxes(0, 1)  # noqa: E731
            total = (jax.tree.map(jnp.zeros_like, discriminators), dict.fromkeys(_VALUES, jnp.zeros(())))
            size = real.shape[1] if segment is None else segment
            start = jax.random.randint(jax.random.fold_in(sound_key, 1), (), 0, real.shape[1] - size + 1)
            seen = [cut(jax.lax.dynamic_slice_in_dim(wave, start, size, axis=1)) for wave in (real, made[1])]
            (d_discriminators, values), d_by_critics = jax.lax.scan(look, total, tuple(seen))
            updates, opt_state = optimizers["discriminators"].update(
                d_discriminators, state.opt_state["discriminators"], discriminators
            )
            d_by_critics = d_by_critics.swapaxes(0, 1).reshape(len(real), size)
            d_by_critics = jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(real), d_by_critics, start, axis=1)
            return d_by_critics, optax.apply_updates(discriminators, updates), opt_state, values

        def rest():
            values = dict.fromkeys(_VALUES, jnp.zeros(()))
            return jnp.zeros_like(real), discriminators, state.opt_state["discriminators"], values

        d_by_critics, discriminators, critics_state, values = jax.lax.cond(state.step >= begin, contest, rest)
        (gradient,) = pull_generator((d_x0, d_wave + d_by_critics))
        updates, generator_state = optimizers["generator"].update(gradient, state.opt_state["generator"], generator)
        generator = optax.apply_updates(generator, updates)
        loss = apart + weight * (adversarial_weight * values["adversarial"] + feature_weight * values["feature"])
        metrics = {"loss": loss, "distance": apart, **values, **gradient_norms(gradient)}
        return state._replace(
            params={"generator": generator, "discriminators": discriminators},
            opt_state={"generator": generator_state, "discriminators": critics_state},
        ), metrics

    return update
