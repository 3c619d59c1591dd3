"""Shortcut training against the exact flow map of Gaussian data, reflow against its exact pairs, and a 2-D mixture."""

import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from oracles import gaussian_denoiser, max_relative

from jaxdiff.diffusion import (
    Cosine,
    Prediction,
    RectifiedFlow,
    diffusion_loss,
    dyadic_intervals,
    euler,
    flow_map,
    flow_map_sampler,
    heun,
    item_losses,
    noise,
    reflow_loss,
    reflow_pairs,
    shortcut_loss,
    snr_weight,
    spaced_times,
    velocity_weight,
)
from jaxdiff.networks import Condition, Transformer

MEAN, STD = 0.7, 0.5
KEY = jax.random.key(0)
RBG = jax.random.key(0, impl="rbg")  # compiles faster than the default generator
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these programs run once: compiling them is the cost
SCHEDULES = [RectifiedFlow(), RectifiedFlow(3.0), Cosine()]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=["flow", "shifted", "cosine"])


def column(level):
    return jnp.reshape(level, (-1, 1, 1))


def exact_jump(schedule, x_t, t, r):
    """x_r on the probability-flow ODE of N(MEAN, STD^2): the standardised x_t is constant along it."""
    (a_t, s_t), (a_r, s_r) = ((column(schedule.alpha(v)), column(schedule.sigma(v))) for v in (t, r))
    return a_r * MEAN + jnp.sqrt(((a_r * STD) ** 2 + s_r**2) / ((a_t * STD) ** 2 + s_t**2)) * (x_t - a_t * MEAN)


def exact_network(schedule, error=0.0):
    """X of the exact jump in closed form, at r = t the exact denoiser; `error` is a relative fault of the jump."""
    denoise = gaussian_denoiser(schedule, MEAN, STD)

    def network(x_t, t, cond, r=None):
        if r is None:
            return denoise(x_t, t)
        scale_t, scale_r = (column(schedule.alpha(v) + schedule.sigma(v)) for v in (t, r))
        share = column(schedule.sigma(r) / schedule.sigma(t)) * scale_t / scale_r
        same = share == 1
        z_r = exact_jump(schedule, x_t, t, r) / scale_r
        X = (z_r - share * x_t / scale_t) / jnp.where(same, 1, 1 - share)
        return jnp.where(same, denoise(x_t, t), (1 + error) * X)

    return network


def random_intervals(key, batch):
    """t and r anywhere, as the loss allows too."""
    u = jnp.sort(jax.random.uniform(key, (2, batch)), axis=0)
    return 0.02 + 0.98 * u[1], 0.98 * u[0]


# --- the flow map ---


@each_schedule
@pytest.mark.parametrize("times", [[1, 0], [1, 0.5, 0], [1, 0.9, 0.31, 0]], ids=len)
def test_exact_flow_map_needs_one_step(schedule, times):
    with jax.enable_x64(True):
        jump = flow_map(exact_network(schedule), None, resolution=0)
        x_T = jax.random.normal(KEY, (5, 4, 1), jnp.float64)
        x = flow_map_sampler(jump, schedule, x_T, jnp.asarray(times, jnp.float64), KEY)
        assert max_relative(x, MEAN + STD * x_T) <= 1e-12  # alpha(1) = 0 and sigma(1) = 1


@each_schedule
def test_network_at_equal_times_makes_the_sampler_euler(schedule):
    denoise, x_T = gaussian_denoiser(schedule, MEAN, STD), jax.random.normal(KEY, (3, 4, 1))
    times = spaced_times(schedule, 7)
    x = flow_map_sampler(lambda x_t, t, r: denoise(x_t, t), schedule, x_T, times, KEY)
    assert max_relative(x, euler(denoise, schedule, x_T, times, KEY)) <= 1e-6


def test_short_jumps_are_euler_steps():
    network = lambda x_t, t, cond, r: column(r) * jnp.ones_like(x_t)  # noqa: E731
    jump, x = flow_map(network, None, resolution=0.25), jnp.zeros((3, 1, 1))
    seen = jump(x, jnp.array([0.5, 0.5, 0.5]), jnp.array([0.5, 0.25, 0.2]))
    assert seen.ravel().tolist() == pytest.approx([0.5, 0.5, 0.2])
    assert jump(x, jnp.array(1.0), jnp.array(0.5)).ravel().tolist() == [0.5] * 3


# --- the objective ---


@pytest.mark.slow
@each_schedule
@pytest.mark.parametrize("intervals", [dyadic_intervals(), random_intervals], ids=["dyadic", "random"])
def test_exact_flow_map_has_no_error_on_jumps(schedule, intervals):
    with jax.enable_x64(True):
        x0 = MEAN + STD * jax.random.normal(KEY, (256, 2, 1), jnp.float64)
        options: dict[str, Any] = dict(every=1, sample_intervals=intervals, resolution=0.0, weight=velocity_weight)
        run = lambda error: shortcut_loss(exact_network(schedule, error), schedule, x0, None, KEY, **options)[0]  # noqa: E731
        loss = jax.jit(run, compiler_options=FAST_COMPILE)
        assert loss(0.0) <= 1e-20
        assert loss(0.01) >= 1e-6  # an estimate that is 1 % off is seen


def test_fixed_point_is_the_composition_of_euler_steps():
    """With a resolution the loss vanishes for X of all Euler steps of that length, for each dyadic jump."""
    schedule, cells = RectifiedFlow(), 16
    denoise = gaussian_denoiser(schedule, MEAN, STD)

    def network(x_t, t, cond, r):
        x = x_t
        for cell in range(cells, 0, -1):  # Euler from t to r, cell by cell
            at = cell / cells
            moved = x - (x - denoise(x, jnp.asarray(at))) / cells / at
            x = jnp.where(column((t >= at) & (r < at)), moved, x)
        share = column(r / t)
        return jnp.where(column(t == r), denoise(x_t, t), (x - share * x_t) / jnp.where(share == 1, 1, 1 - share))

    with jax.enable_x64(True):
        x0 = MEAN + STD * jax.random.normal(KEY, (128, 1, 1), jnp.float64)
        options: dict[str, Any] = dict(every=1, sample_intervals=dyadic_intervals(4))
        loss = lambda resolution: shortcut_loss(network, schedule, x0, None, KEY, resolution=resolution, **options)[0]  # noqa: E731
        loss = jax.jit(loss, compiler_options=FAST_COMPILE)
        assert loss(1 / cells) <= 1e-20
        assert loss(2 / cells) >= 1e-8  # half as many Euler steps


@pytest.mark.slow
@each_schedule
def test_ordinary_items_learn_the_denoiser(schedule):
    """At r = t the loss is that of x0 prediction: the exact denoiser's is the posterior variance."""
    x0 = MEAN + STD * jax.random.normal(KEY, (256, 20, 10))
    times = lambda key, batch: jnp.full(batch, 0.6)  # noqa: E731
    options: dict[str, Any] = dict(every=256, sample_t=times)
    run = lambda: shortcut_loss(exact_network(schedule), schedule, x0, None, KEY, **options)  # noqa: E731
    loss, metrics = jax.jit(run, compiler_options=FAST_COMPILE)()
    alpha, sigma = (float(level(jnp.array(0.6))) for level in (schedule.alpha, schedule.sigma))
    variance = (STD * sigma) ** 2 / ((alpha * STD) ** 2 + sigma**2)
    assert float(loss) * 256 - float(metrics["jump_loss"]) == pytest.approx(255 * variance, rel=0.03)


@pytest.mark.slow
def test_teacher_gets_no_gradient_and_every_other_item_jumps():
    x0, schedule = jax.random.normal(KEY, (4, 2, 1)), RectifiedFlow()
    network = lambda scale: lambda x_t, t, cond, r: scale * jnp.tanh(x_t) + cond  # noqa: E731
    cond = jnp.arange(4.0).reshape(4, 1, 1)
    loss = lambda own, other: shortcut_loss(  # noqa: E731
        network(own), schedule, x0, cond, KEY, teacher=None if other is None else network(other), every=2
    )[0]
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), compiler_options=FAST_COMPILE)
    (same, (own, _)), (different, (_, leaked)) = run(0.8, 0.8), run(0.8, 0.5)
    alone = jax.jit(jax.grad(lambda scale: loss(scale, None)), compiler_options=FAST_COMPILE)(0.8)
    assert float(alone) == pytest.approx(float(own), rel=1e-6)
    assert leaked == 0
    assert abs(different - same) > 1e-3
    seen = []
    shortcut_loss(lambda x_t, t, cond, r: seen.append((cond, t, r)) or x_t, schedule, x0, cond, KEY, every=2)
    (own, _, _), (again, _, _), (whole, t, r) = seen
    assert own.ravel().tolist() == again.ravel().tolist() == [0, 2]
    assert whole.shape == (4, 1, 1)
    assert (t == r).tolist() == [False, True, False, True]


@pytest.mark.slow
def test_shortcut_loss_is_finite_at_the_data():
    x0, schedule = jax.random.normal(KEY, (4, 2, 1)), Cosine()
    zeros = lambda key, batch: jnp.zeros(batch)  # noqa: E731
    loss, _ = shortcut_loss(lambda x, t, c, r: x / 2, schedule, x0, None, KEY, sample_t=zeros, weight=snr_weight)
    assert np.isfinite(loss)


def test_dyadic_intervals_are_the_steps_of_uniform_times():
    t, r = (np.asarray(v) for v in dyadic_intervals(4)(KEY, 4000))
    length = t - r
    assert sorted(set(length.tolist())) == [0.125, 0.25, 0.5, 1]
    assert ((t / length) % 1 == 0).all()
    for value in (0.125, 0.25, 0.5, 1):
        assert (length == value).mean() == pytest.approx(0.25, abs=0.001)
        places = r[length == value] / value
        assert np.bincount(places.astype(int), minlength=int(1 / value)).min() >= 0.7 * 1000 * value


# --- reflow ---


@pytest.mark.slow
def test_reflow_pairs_are_the_teachers_map_and_have_no_loss():
    """Gaussian pairs x0 = MEAN + STD eps lie on straight paths: x_t gives both, and one Euler step is the teacher."""
    schedule = RectifiedFlow()
    with jax.enable_x64(True):
        times, teacher = jnp.linspace(1, 0, 401), gaussian_denoiser(schedule, MEAN, STD)
        eps, x0 = reflow_pairs(heun, teacher, schedule, (64, 2, 1), times, KEY)
        assert (eps == noise(KEY, (64, 2, 1))).all()
        assert max_relative(x0, MEAN + STD * eps) <= 1e-4
        eps, x0 = (jnp.asarray(v, jnp.float32) for v in (eps, MEAN + STD * eps))

    def network(x_t, t, cond):
        t = column(t)
        return MEAN + STD * (x_t - (1 - t) * MEAN) / ((1 - t) * STD + t)

    options: dict[str, Any] = dict(prediction="x0", weight=velocity_weight)
    run = lambda eps: float(reflow_loss(network, schedule, x0, eps, None, KEY, **options)[0])  # noqa: E731
    assert run(eps) <= 1e-10
    assert run(eps[::-1]) >= 0.1  # paths of mixed pairs cross
    one = euler(lambda x, t: network(x, jnp.full(64, t), None), schedule, eps, jnp.array([1.0, 0.0]), KEY)
    assert max_relative(one, x0) <= 1e-6
    keys = jax.random.split(KEY, 5)
    pairs = lambda keys: reflow_pairs(heun, teacher, schedule, (len(keys), 2, 1), spaced_times(schedule, 4), keys)  # noqa: E731
    for whole, part in zip(pairs(keys), pairs(keys[1:3]), strict=True):
        assert max_relative(part, whole[1:3]) <= 1e-6


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_reflow_is_the_diffusion_loss_of_given_pairs(prediction):
    """With weights and preconditioning, which `test_objectives.py` compares with their definitions."""
    x0, t, schedule = jax.random.normal(jax.random.key(1), (4, 3, 2)), jnp.array([0.0, 0.2, 0.5, 0.9]), Cosine(2.0)
    network = lambda x_t, t, cond: jnp.sin(x_t) + cond  # noqa: E731
    for weight in (None, snr_weight, velocity_weight):
        options: dict[str, Any] = dict(prediction=prediction, weight=weight, sigma_data=0.3)
        plain, _ = item_losses(network, schedule, x0, 0.1, t, KEY, **options)
        eps = jax.random.normal(KEY, x0.shape)
        ours, _ = reflow_loss(network, schedule, x0, eps, 0.1, KEY, sample_t=lambda key, batch: t, **options)
        assert float(ours) == pytest.approx(float(plain.mean()), rel=1e-6)


# --- the transformer's second time ---


@pytest.mark.slow
def test_transformer_with_a_second_time_starts_as_the_ordinary_one():
    make = lambda second_time: Transformer(  # noqa: E731
        5, width=8, depth=1, heads=2, num_classes=3, second_time=second_time, rngs=nnx.Rngs(RBG)
    )
    init = lambda second_time: nnx.to_pure_dict(nnx.split(make(second_time))[1])  # noqa: E731
    plain, jumper = jax.jit(lambda: (init(False), init(True)), compiler_options=FAST_COMPILE)()
    extra = {name: jumper.pop(name) for name in ("jump_1", "jump_2")}
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), plain, jumper))
    assert not extra["jump_2"]["kernel"].any()

    rng, (graphdef, shapes) = np.random.default_rng(0), nnx.split(nnx.eval_shape(lambda: make(True)))
    draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    network = nnx.merge(graphdef, jax.tree.map(draw, shapes))  # every parameter drawn, so that none hides another
    x, t, cond = jax.random.normal(KEY, (2, 4, 5)), jnp.array([0.9, 0.4]), Condition(label=jnp.array([0, 2]))
    ordinary = jax.jit(lambda: network(x, t, cond), compiler_options=FAST_COMPILE)()
    run = jax.jit(lambda r: network(x, t, cond, r=r), compiler_options=FAST_COMPILE)
    assert max_relative(run(t), ordinary) <= 1e-6
    jump = run(jnp.array([0.9, 0.1]))  # only the second item jumps
    assert max_relative(jump[0], ordinary[0]) <= 1e-6
    assert np.abs(jump[1] - ordinary[1]).max() >= 1e-2
    with pytest.raises(ValueError, match="second_time=True"):
        nnx.eval_shape(lambda: make(False)(x, t, cond, r=t))


# --- a mixture ---

WIDTH, BATCH, STEPS = 64, 256, 1200
MODES = np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3)], -1) * 1.5


def mixture(key, count):
    pick, spread = jax.random.split(key)
    modes = jnp.asarray(MODES, jnp.float32)[jax.random.randint(pick, (count,), 0, len(MODES))]
    return (modes + 0.1 * jax.random.normal(spread, (count, 2)))[:, None]


def init_mlp(key):
    sizes = [(2 + 16, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 2)]
    return [
        (jax.random.normal(k, s) * np.sqrt(2 / s[0]), jnp.zeros(s[1]))
        for k, s in zip(jax.random.split(key, 4), sizes, strict=True)
    ]


def mlp(params, x_t, t, cond, r=None):
    waves = jnp.arange(1, 5) * 1.5
    angle = jnp.stack([t, t - (t if r is None else r)], -1)[:, :, None] * waves
    times = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1).reshape(len(t), -1)
    h = jnp.concatenate([x_t[:, 0], times], -1)
    for w, b in params[:-1]:
        h = jax.nn.silu(h @ w + b)
    return (h @ params[-1][0] + params[-1][1])[:, None]


@functools.partial(jax.jit, static_argnames="objective")
def train(objective, key):
    params, optimizer = init_mlp(key), optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def step(carry, i):
        params, state = carry
        data, noise_key = jax.random.split(jax.random.fold_in(key, i))
        x0 = mixture(data, BATCH)
        gradient = jax.grad(lambda p: objective(functools.partial(mlp, p), x0, noise_key)[0])(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(STEPS))[0][0]


def ordinary_objective(network, x0, key):
    return diffusion_loss(network, RectifiedFlow(), x0, None, key, prediction="x0", weight=velocity_weight)


def shortcut_objective(network, x0, key):
    return shortcut_loss(network, RectifiedFlow(), x0, None, key, every=2, weight=velocity_weight)


@jax.jit
def energy_distance(a, b):
    mean = lambda a, b: jnp.linalg.norm(a[:, 0, None] - b[None, :, 0] + 1e-12, axis=-1).mean()  # noqa: E731
    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


@pytest.mark.slow
def test_shortcut_training_makes_one_step_samples_of_a_mixture():
    """Energy distance to the mixture; an ordinary model's one step from noise lands on the mean of all modes."""
    schedule, x_T, data = RectifiedFlow(), noise(jax.random.key(7), (2000, 1, 2)), mixture(jax.random.key(8), 2000)
    plain, jumper = train(ordinary_objective, KEY), train(shortcut_objective, KEY)
    denoise = lambda x, t: mlp(plain, x, jnp.broadcast_to(t, len(x)), None)  # noqa: E731
    jump, ordinary, jumped = flow_map(functools.partial(mlp, jumper), None), {}, {}
    for steps in (1, 2, 16):
        times = spaced_times(schedule, steps)
        ordinary[steps] = float(energy_distance(euler(denoise, schedule, x_T, times, KEY), data))
        jumped[steps] = float(energy_distance(flow_map_sampler(jump, schedule, x_T, times, KEY), data))
    assert jumped[1] <= ordinary[1] / 10  # measured: 0.052 against 0.96
    assert jumped[2] <= ordinary[2] / 3  # 0.037 against 0.20
    assert ordinary[16] <= 0.05  # 0.028: both trainings worked
    assert jumped[16] <= 0.05  # 0.025
