"""Losses against closed forms; one step moves what it should; a generator learns a distribution from its critic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import diffusion
from jaxdiff.diffusion import RectifiedFlow
from jaxdiff.features import Patches
from jaxdiff.methods import Model, adversarial
from jaxdiff.methods.method import Sampling
from jaxdiff.networks import Network
from jaxdiff.networks.discriminators import Judgement
from jaxdiff.tasks import Generate, Given
from jaxdiff.training import init_state, make_train_step


def says(*logits, maps=()):
    return [Judgement(jnp.asarray(x, jnp.float32), tuple(jnp.asarray(m, jnp.float32) for m in maps)) for x in logits]


@pytest.mark.parametrize(("game", "d_loss", "g_loss"), [("least_squares", 2.75, 3.125), ("hinge", 1.25, 0.75)])
def test_losses_are_the_papers(game, d_loss, g_loss):
    real, made = says([1.5], [-1.0]), says([-1.0], [-0.5])
    # least squares: (0.5^2 + 1 + 2^2 + 0.5^2) / 2 and (2^2 + 1.5^2) / 2; hinge: (0 + 0 + 2 + 0.5) / 2 and (1 + 0.5) / 2
    assert float(adversarial.discriminator_loss(real, made, game)) == pytest.approx(d_loss)
    assert float(adversarial.generator_loss(made, game)) == pytest.approx(g_loss)


def test_feature_distance_sums_layers_and_averages_discriminators():
    real = says([0.0], maps=([[1.0, 2.0]], [[3.0]])) + says([0.0], maps=([[1.0]],))
    made = says([0.0], maps=([[0.0, 4.0]], [[3.5]])) + says([0.0], maps=([[5.0]],))
    assert float(adversarial.feature_distance(real, made)) == pytest.approx(((1.5 + 0.5) + 4.0) / 2)


def scale(params, x_t, t, cond, *, key=None):
    """x0 = a + b x: with noise for x, N(a, b^2)."""
    return params["a"] + params["b"] * x_t


GENERATOR = {"a": jnp.zeros(()), "b": jnp.float32(0.3)}
MODEL = Model(Network(lambda key: GENERATOR, scale), Patches(size=1), Generate())


def critic(params, wave):
    """Of every sample: a quadratic function, whose maps are the moments."""
    logits = params["c"] + params["w"] * wave + params["v"] * wave**2
    return [Judgement(logits, (logits,))]


def make(network, example, key):
    keys = jax.random.split(key, len(example.x0))
    noise = diffusion.noise(keys, example.x0.shape)
    x0 = adversarial.unrolled(network, RectifiedFlow(), example.given, noise, keys)
    return x0, x0[..., 0]


def no_distance(made, real):
    return 0 * made[1].mean(-1)


def start_of(generator, critics, optimizers, key):
    both = {"generator": generator, "discriminators": critics}
    opt_state = {name: optimizers[name].init(tree) for name, tree in both.items()}
    return init_state(jax.tree.map(jnp.copy, both), generator, opt_state, key)


def game_of(rate=2e-2, distance=no_distance, task=MODEL.task, **options):
    optimizers: dict[str, optax.GradientTransformation]
    optimizers = {"generator": optax.adam(rate, b1=0.5), "discriminators": optax.adam(rate, b1=0.5)}
    critics = {"c": jnp.zeros(()), "w": jnp.zeros(()), "v": jnp.zeros(())}
    model = MODEL._replace(task=task)
    update = adversarial.adversarial_step(model, make, critic, distance, optimizers, **options)
    step = make_train_step(update, lambda both: both["generator"])
    return start_of(GENERATOR, critics, optimizers, jax.random.key(0)), step


def batch_of(seed, shift=2.0, spread=0.7):
    rng = np.random.default_rng(seed)
    return {
        "wave": (shift + spread * rng.standard_normal((16, 32))).astype(np.float32),
        "label": np.zeros(16, np.int32),
    }


@pytest.mark.parametrize("game", ["least_squares", "hinge"])
def test_a_generator_learns_a_distribution_that_it_is_never_shown(game):
    traces = []
    state, step = game_of(
        game=game, feature_weight=0.0, distance=lambda made, real: traces.append(0) or 0 * made[1][:, 0]
    )
    history = []
    for i in range(1500):
        state, metrics = step(state, batch_of(i))
        if i >= 1000:
            history.append([float(state.average["a"]), abs(float(state.average["b"]))])
    mean, deviation = np.mean(history, axis=0)
    assert abs(mean - 2.0) < 0.3 and abs(deviation - 0.7) < 0.3  # from 0 and 0.3
    assert len(traces) == 1


def test_before_the_contest_only_the_distance_teaches():
    state, step = game_of(begin=3, distance=lambda made, real: ((made[1] - real[1].mean()) ** 2).mean(-1))
    before = jax.device_get(state)
    for i in range(3):
        state, metrics = step(state, batch_of(i))
        assert float(metrics["discriminator"]) == 0
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), before.params["discriminators"],
                                     jax.device_get(state.params["discriminators"])))  # fmt: skip
    assert float(state.params["generator"]["a"]) > 0.02
    state, metrics = step(state, batch_of(3))
    assert float(metrics["discriminator"]) > 0 and float(jnp.abs(state.params["discriminators"]["w"])) > 0


@pytest.mark.slow
def test_each_player_follows_its_own_gradient():
    """The first update of plain gradient descent against gradients of the two losses written out."""
    generator, critics = GENERATOR, {"c": jnp.array(0.1), "w": jnp.array(0.4), "v": jnp.array(-0.2)}
    optimizers: dict[str, optax.GradientTransformation]
    optimizers = {"generator": optax.sgd(1.0), "discriminators": optax.sgd(1.0)}
    batch = batch_of(0)
    update = adversarial.adversarial_step(MODEL, make, critic, no_distance, optimizers, feature_weight=3.0)
    key = jax.random.key(5)
    after, _ = jax.jit(update)(start_of(generator, critics, optimizers, key), batch, key)
    sound_key = jax.random.split(key, 3)[1]
    eps = diffusion.noise(jax.random.split(sound_key, 16), (16, 32, 1))[..., 0]
    real = jnp.asarray(batch["wave"])
    D = lambda c, x: c["c"] + c["w"] * x + c["v"] * x**2  # noqa: E731
    G = lambda g: g["a"] + g["b"] * eps  # noqa: E731

    def loss_g(g):
        made = D(critics, G(g))
        return ((made - 1) ** 2).mean() + 3.0 * jnp.abs(made - D(critics, real)).mean()

    def loss_d(c):
        return ((D(c, real) - 1) ** 2).mean() + (D(c, G(generator)) ** 2).mean()

    for name, expected, start in (
        ("generator", jax.grad(loss_g)(generator), generator),
        ("discriminators", jax.grad(loss_d)(critics), critics),
    ):
        for leaf in start:
            moved = float(start[leaf] - after.params[name][leaf])
            assert moved == pytest.approx(float(expected[leaf]), rel=1e-4, abs=1e-6), (name, leaf)


def test_unrolled_steps_are_the_samplers_and_carry_gradients():
    """Of the exact denoiser of N(0, s^2) every Euler step is a multiplication: value and gradient in closed form."""
    schedule, keys = RectifiedFlow(), jax.random.split(jax.random.key(0), 2)
    eps = diffusion.noise(keys, (2, 3, 1))

    def made(gain, steps):
        network = lambda x_t, t, cond, **_: gain * x_t  # noqa: E731
        return adversarial.unrolled(network, schedule, Given(), eps, keys, steps=steps)

    # x_r = x0_hat + (r / t) (x_t - x0_hat): from t = 1 by 1/2 to 0
    both = lambda gain: gain * (gain + 0.5 * (1 - gain)) * eps  # noqa: E731
    value, gradient = jax.value_and_grad(lambda g: made(g, 2).sum())(0.3)
    wanted, wanted_gradient = jax.value_and_grad(lambda g: both(g).sum())(0.3)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-5)
    jumps = lambda x_t, t, cond, r=None: 0.5 * x_t  # noqa: E731
    one = adversarial.unrolled(jumps, schedule, Given(), eps, keys, jumps=True)
    np.testing.assert_allclose(one, 0.5 * eps, rtol=1e-6)
    start = Given(start=3 + eps)
    np.testing.assert_allclose(
        adversarial.unrolled(jumps, schedule, start, eps, keys, jumps=True), 0.5 * (3 + eps), rtol=1e-6
    )


def test_a_generator_that_predicts_the_flow_begins_with_its_start():
    """A network whose output begins at zero moves nothing, in any number of steps; from noise there is nothing else."""
    start = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 1)), jnp.float32)
    still = MODEL._replace(network=Network(lambda key: {}, lambda params, x_t, *_, **__: 0 * x_t))
    keys, noise = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 5, 1))
    for steps in (1, 3):
        method = adversarial.Adversarial(prediction="flow", steps=steps)
        assert method.network_options() == {"second_time": False, "zero_output": True}
        sample = method.make_sample(still, Sampling(), jnp.zeros(0))
        np.testing.assert_allclose(sample({}, Given(start=start), noise, keys), start, rtol=1e-6)
        np.testing.assert_allclose(sample({}, Given(), noise, keys), noise, rtol=1e-6)
