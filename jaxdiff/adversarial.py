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
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxdiff import diffusion
from jaxdiff.data.pipeline import Batch
from jaxdiff.diffusion import Schedule
from jaxdiff.features import stft
from jaxdiff.networks import Condition
from jaxdiff.networks.discriminators import Judgement
from jaxdiff.tasks import Example, Task
from jaxdiff.training import TrainState

Game = Literal["least_squares", "hinge"]
RESOLUTIONS = ((1024, 256), (2048, 512), (512, 128))  # n_fft and hop_length of the spectrograms, in samples

_VALUES = ("discriminator", "adversarial", "feature")  # losses that the log shows

Judge = Callable[[Any, Float[Array, "batch samples"]], list[Judgement]]  # (discriminators' weights, wave)
Made = tuple[Float[Array, "batch frames features"], Float[Array, "batch samples"]]  # features and their sound
Make = Callable[[Callable, Example, Array], Made]  # (network, example, key)


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

    return sum(loss(r.logits, m.logits) for r, m in zip(real, made, strict=True)) / len(real)


def generator_loss(made: list[Judgement], game: Game) -> Float[Array, ""]:
    """L_G above, averaged over discriminators."""
    losses = [((m.logits - 1) ** 2 if game == "least_squares" else -m.logits).mean() for m in made]
    return sum(losses) / len(made)


def feature_distance(real: list[Judgement], made: list[Judgement]) -> Float[Array, ""]:
    """Mean absolute difference of feature maps, summed over layers and averaged over discriminators."""
    pairs = [pair for r, m in zip(real, made, strict=True) for pair in zip(r.maps, m.maps, strict=True)]
    return sum(jnp.abs(a - b).mean() for a, b in pairs) / len(real)


def unrolled(
    network: Callable,
    schedule: Schedule,
    cond: Condition,
    shape: tuple[int, ...],
    keys: Key[Array, " batch"],
    *,
    steps: int = 1,
    prediction: Literal["x0", "flow"] = "x0",
    jumps: bool = False,
) -> Float[Array, "batch frames features"]:
    """x0 of `shape` by `steps` Euler steps, or jumps of a network of two times that predicts x0.

    It begins at the condition's estimate, without one at noise.
    """
    x_T = diffusion.prior_scale(schedule) * diffusion.noise(keys, shape) if cond.estimate is None else cond.estimate
    times = diffusion.time_grid(schedule, steps)
    if jumps:
        flow_map = diffusion.flow_map(network, cond, 0.0)
        return diffusion.flow_map_sampler(flow_map, schedule, x_T, times, keys)
    denoiser = diffusion.denoiser(network, schedule, prediction, cond)
    return diffusion.SAMPLERS["euler"].sampler(denoiser, schedule, x_T, times, keys)


def _judge_both(judge: Judge, real: Array, discriminators: Any, made: Array) -> tuple[list[Judgement], list[Judgement]]:
    """What discriminators say of real and made sound, in one batch."""
    said = judge(discriminators, jnp.concatenate([real, made]))
    return tuple(jax.tree.map(lambda x, i=i: jnp.split(x, 2)[i], said) for i in (0, 1))


def _turns(batch: int) -> int:
    """Into how many looks at a batch the discriminators' work is cut: on a CPU an item per device at a time, so that
    the wide intermediate products stay in the cache."""
    devices = jax.device_count()
    return batch // devices if jax.default_backend() == "cpu" and batch % devices == 0 else 1


def init_state(
    generator: Any, discriminators: Any, optimizers: dict[str, optax.GradientTransformation], key: Array
) -> TrainState:
    """Step 0 of `make_adversarial_step`; the average is the generator's."""
    params = {"generator": generator, "discriminators": discriminators}
    opt_state = {name: optimizers[name].init(tree) for name, tree in params.items()}
    average = jax.tree.map(jnp.copy, generator)
    return TrainState(jnp.int32(0), params, average, opt_state, key, diffusion.init_histogram(), ())


def make_adversarial_step(
    graphdef: nnx.GraphDef,
    task: Task,
    make: Make,
    judge: Judge,
    distance: Callable[[Made, Made], Float[Array, " batch"]],
    optimizers: dict[str, optax.GradientTransformation],
    *,
    game: Game = "least_squares",
    begin: int = 0,
    ramp: int = 1,
    segment: int | None = None,
    adversarial_weight: float = 1.0,
    feature_weight: float = 2.0,
    ema_decay: float = 0.999,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """`train_step(state, batch) -> (state, metrics)`, jitted; the state passed in is donated.

    The generator learns by `distance(made, real)` alone until step `begin`; then the discriminators start, and their
    part of its loss grows to full weight over `ramp` steps. They see `segment` samples of every sound (None: all of
    it), at a random place. `optimizers` has "generator" and "discriminators".
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        example_key, sound_key, network_key = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        example, real = task.example(batch, example_key), batch["wave"]
        generator, discriminators = state.params["generator"], state.params["discriminators"]

        def play(generator):
            def network(*args, **options):
                return nnx.merge(graphdef, generator)(*args, rngs=nnx.Rngs(network_key), **options)

            return make(network, example, sound_key)

        made, pull_generator = jax.vjp(play, generator)
        apart, (d_x0, d_wave) = jax.value_and_grad(lambda made: distance(made, (example.x0, real)).mean())(made)
        weight = jnp.clip((state.step + 1 - begin) / ramp, 0, 1)

        def contest():
            turns = _turns(len(real))

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
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(generator, state.ema_params, 1 - decay)
        loss = apart + weight * (adversarial_weight * values["adversarial"] + feature_weight * values["feature"])
        metrics = {"loss": loss, "distance": apart, **values, "gradient_norm": optax.tree.norm(gradient)}
        return state._replace(
            step=state.step + 1,
            params={"generator": generator, "discriminators": discriminators},
            ema_params=average,
            opt_state={"generator": generator_state, "discriminators": critics_state},
        ), metrics

    return jax.jit(train_step, donate_argnums=0)
