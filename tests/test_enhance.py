"""The task enhance: strength, limits to what is lost, the band above the model's, and where regression begins."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import max_relative

from jaxdiff.data.files import resample
from jaxdiff.features import CompressedStft
from jaxdiff.inference import Pipeline
from jaxdiff.methods import Bridge, Model, Regression
from jaxdiff.methods.method import Sampling
from jaxdiff.networks import Condition, Network, Subband, from_nnx
from jaxdiff.tasks import Enhance, Example, Given
from jaxdiff.tasks.enhance import Amount
from jaxdiff.tasks.mixtures import Mixture
from jaxdiff.training import init_state

SR = 8000
KEY = jax.random.key(0)
PAIR = CompressedStft(sample_rate=SR, n_fft=128, hop_length=64, exponent=0.3)
TASK = Enhance(peak_db=-6)
PLAIN = Mixture(noises=1, colored=0.0, babble=0.0, clipped=0.0, equalized=0.0, rooms=0.0, band_limited=0.0)


def noise(*shape, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def batch_of(wave):
    return {"wave": wave, "label": np.full(len(wave), -1)}


ENCODE = jax.jit(PAIR.encode)


@functools.partial(jax.jit, static_argnames="amount")
def _finished(batch, x0, amount):
    return TASK.finish(PAIR, x0, TASK.given(PAIR, batch, amount))


def finished(wave, x0, **amount):
    return np.asarray(_finished(batch_of(wave), x0, Amount(**amount)))


def db(ratio):
    return 20 * np.log10(ratio)


def size(y):
    return np.sqrt((np.asarray(y, np.float64) ** 2).mean(-1))


# --- How much is taken away ---


def test_strength_is_the_share_of_what_the_model_makes():
    y = noise(2, 3200)
    x0 = ENCODE(noise(2, 3200, seed=1))
    made = np.asarray(jax.jit(PAIR.decode)(x0))
    assert np.abs(finished(y, x0, strength=0.0) - y).max() <= 1e-5
    assert np.abs(finished(y, x0, strength=0.3) - (0.3 * made + 0.7 * y)).max() <= 1e-5
    assert (finished(y, x0, strength=1.0) == made).all()
    assert Amount() == Amount(strength=1.0, max_reduction=None)


@dataclasses.dataclass(frozen=True)
class Undecoded(CompressedStft):
    """Shows what would be decoded."""

    def decode(self, x):
        return x


def test_no_bin_loses_more_than_max_reduction():
    pair = Undecoded(**dataclasses.asdict(PAIR))
    y = jnp.asarray(noise(2, 3200))
    given = TASK.given(pair, batch_of(y), Amount(max_reduction=12.0))
    x0 = PAIR.encode(jnp.asarray(noise(2, 3200, seed=1))) * jnp.asarray(noise(2, 51, 130, seed=2, level=1.0)) ** 2
    X, Y, kept = (
        x[..., :65] + 1j * x[..., 65:] for x in map(np.asarray, (x0, given.start, TASK.finish(pair, x0, given)))
    )
    least = 10 ** (-0.3 * 12 / 20)  # of compressed magnitudes
    assert (np.abs(kept) >= least * np.abs(Y) * (1 - 1e-6)).all()
    lost = np.abs(X) < least * np.abs(Y)
    assert 0.1 < lost.mean() < 0.9
    assert (kept[~lost] == X[~lost]).all()
    np.testing.assert_allclose(kept[lost], least * Y[lost], rtol=1e-5)  # the recording's phase


@pytest.mark.parametrize("mask", ["nothing", "half", "noise"])
def test_the_limit_holds_for_the_sound_in_every_tenth_of_a_second(mask):
    y = noise(1, 6400) * (1 + np.sin(np.arange(6400) / 400)).astype(np.float32)
    start = np.asarray(ENCODE(y))
    bins = np.arange(130) % 65
    factor = {
        "nothing": np.float32(0),
        "half": bins < 20,
        "noise": np.tile(noise(*start.shape[:2], 65, level=0.5).clip(0, 1), 2),
    }
    share = factor[mask]
    made = finished(y, share * start, max_reduction=10.0)
    before, after = (size(x.reshape(-1, 800)) for x in (y, made))
    lost = -db(after / before)
    assert (lost <= 10.02).all()
    if mask == "nothing":
        np.testing.assert_allclose(lost, 10, atol=1e-3)
    assert (size(finished(y, share * start)) < 0.99 * size(made)).all()  # so that there was something to hold


@pytest.mark.parametrize(
    "options", [{"strength": 1.1}, {"strength": -0.1}, {"max_reduction": 0.0}, {"max_reduction": -3.0}]
)
def test_amounts_have_ranges(options):
    with pytest.raises(ValueError, match=rf"^{next(iter(options))}: expected "):
        Amount(**options)


# --- The band above the model's ---

RATE = 48_000


def within_band(y):
    """`y` [channels, samples] at RATE as it comes back from a model at SR that changes nothing."""
    back = resample(resample(y, RATE, SR), SR, RATE)[:, : y.shape[-1]]
    return np.pad(back, ((0, 0), (0, y.shape[-1] - back.shape[-1])))


def upper_size(y, where=slice(None)):
    """The size of what lies above the model's band."""
    f = np.fft.rfftfreq(y.shape[-1], 1 / RATE)
    return size(np.fft.irfft(np.fft.rfft(y) * (f > 0.55 * SR), y.shape[-1])[..., where])


@pytest.mark.parametrize(("factor", "gain"), [(1.0, 1.0), (0.1, 0.1), (3.0, 1.0), (0.0, 0.0)])
def test_the_upper_band_goes_down_as_the_highest_bands_do_and_never_up(factor, gain):
    sound = noise(2, 24_000)
    made = TASK.restore(sound, factor * within_band(sound), RATE, SR, Amount())
    inner = slice(2400, -2400)
    np.testing.assert_allclose(upper_size(made, inner) / upper_size(sound, inner), gain, atol=0.01)
    assert made.shape == sound.shape and made.dtype == np.float32


def test_the_upper_band_follows_in_time_and_each_channel_its_own():
    sound = noise(2, 24_000)
    change = np.ones((2, 24_000), np.float32)
    change[0, :12_000] = 0.1
    change[1, 12_000:] = 0.03
    made = TASK.restore(sound, change * within_band(sound), RATE, SR, Amount())
    for half, expected in ((slice(2400, 10_000), [0.1, 1.0]), (slice(14_000, -2400), [1.0, 0.03])):
        np.testing.assert_allclose(upper_size(made, half) / upper_size(sound, half), expected, atol=0.02)


def test_the_upper_band_is_neither_early_nor_late():
    """A step down is the mirror image of a step up at the same place."""
    t, step = np.arange(24_000) / RATE, 11_520
    sound = np.tile(np.sin(2 * np.pi * 3300 * t) + np.sin(2 * np.pi * 9000 * t), (2, 1)).astype(np.float32)
    change = np.ones((2, 24_000), np.float32)
    change[0, :step] = 0.1
    change[1, step:] = 0.1
    made = TASK.restore(sound, change * within_band(sound), RATE, SR, Amount())
    upper = made - change * within_band(sound)
    up, down = size(upper[:, step - 3840 : step + 3840].reshape(2, -1, 240)) * 2**0.5  # in steps of 5 ms
    np.testing.assert_allclose(up, down[::-1], atol=0.02)
    assert up[0] < 0.12 and up[-1] > 0.98


def test_a_file_without_highest_bands_keeps_what_lies_above():
    """Nothing is known of it: the bands that would tell hold nothing before and after."""
    t = np.arange(24_000) / RATE
    sound = (0.3 * np.sin(2 * np.pi * 300 * t) + 0.1 * np.sin(2 * np.pi * 9000 * t))[None].astype(np.float32)
    made = TASK.restore(sound, 0.5 * within_band(sound), RATE, SR, Amount())
    inner = slice(2400, -2400)
    np.testing.assert_allclose(upper_size(made, inner), upper_size(sound, inner), rtol=0.01)


@pytest.mark.parametrize("rate", [8000, 4000])
def test_a_file_of_the_model_s_rate_or_less_is_not_touched(rate):
    made = noise(1, 500, seed=1)
    assert TASK.restore(noise(1, 500), made, rate, SR, Amount()) is made


@pytest.mark.parametrize("samples", [0, 1, 7, 500])
def test_short_sounds_keep_their_length(samples):
    sound = noise(2, samples)
    made = TASK.restore(sound, within_band(sound) if samples else sound, RATE, SR, Amount())
    assert made.shape == sound.shape
    assert np.abs(made - sound).max(initial=0) <= 1e-5


# --- From file to file ---


def pipeline_of(apply):
    """A model whose network is the function `apply` of x_t, which has no parameters."""
    network = Network(lambda key: {}, lambda params, x_t, t, cond, **_: apply(x_t))
    return Pipeline(Model(network, PAIR, TASK), Regression(), {}, window_seconds=0.512)


@pytest.mark.parametrize("rate", [8000, 11_025, 48_000])
def test_a_model_that_changes_nothing_gives_every_sample_back(rate):
    """No delay, no lost band, no seam between windows: 1.3 s are three windows of half a second."""
    sound = noise(2, round(1.3 * rate))
    made = pipeline_of(lambda x: x)(sound, sr=rate)
    assert made.sample_rates == [rate]
    assert made.waves[0].shape == sound.shape
    assert db(np.abs(made.waves[0] - sound).max() / np.abs(sound).max()) <= -80


def test_a_model_that_takes_all_away_takes_the_limit_away():
    sound = noise(2, 24_000)
    made = pipeline_of(jnp.zeros_like)(sound, sr=RATE, request=Amount(max_reduction=20.0)).waves[0]
    inner = slice(1200, -1200)
    assert max_relative(made[:, inner], 0.1 * sound[:, inner]) <= 0.02
    silent = pipeline_of(jnp.zeros_like)(sound, sr=RATE).waves[0]
    assert db(size(silent[:, inner]) / size(sound[:, inner])).max() <= -50


def test_the_network_hears_every_recording_at_one_level():
    louder = pipeline_of(lambda x: x * jnp.tanh(x**2))
    sound = noise(1, 4000)
    whole = louder(sound, sr=SR).waves[0]
    assert max_relative(louder(0.01 * sound, sr=SR).waves[0], 0.01 * whole) <= 1e-3
    assert max_relative(whole, sound) > 0.1


# --- Training ---


@pytest.mark.slow
def test_an_example_is_the_mixture_s_pair():
    speech, other, key = noise(2, 1600), noise(2, 1600, seed=1), jax.random.key(3)

    @jax.jit
    def made(speech, other):
        example = Enhance(mixture=PLAIN).example(PAIR, {**batch_of(speech), "noise": other}, key)
        pair = PLAIN(speech, other, sr=SR, key=key)
        assert example.given.start is not None
        return PAIR.decode(example.x0), PAIR.decode(example.given.start), pair

    clean, noisy, pair = made(speech, other)
    assert max_relative(clean, pair.clean) <= 1e-4
    assert max_relative(noisy, pair.noisy) <= 1e-4
    assert max_relative(noisy, clean) > 1e-2


def test_regression_begins_where_the_task_begins():
    start = jnp.asarray(noise(2, 5, 130))
    seen = []

    def apply(params, x_t, t, cond, **_):
        seen.append((x_t, t))
        return 2 * x_t

    model = Model(Network(lambda key: {}, apply), PAIR, TASK)
    sample = Regression().make_sample(model, Sampling(), jnp.zeros(0))
    for given, expected in ((Given(start=start), start), (Given(), 0 * start)):
        made = sample({}, given, jnp.ones((2, 5, 130)), jax.random.split(jax.random.key(0), 2))
        assert (seen[-1][0] == expected).all() and (seen[-1][1] == 1).all()
        assert (made == 2 * expected).all()


def test_the_loss_of_a_training_step_compares_the_start_s_improvement():
    """Of a network that scales: gradient and loss of E[(a start - x0)^2] in closed form."""
    task, key = Enhance(mixture=PLAIN), jax.random.key(3)
    network = Network(lambda key: {"a": jnp.float32(0.5)}, lambda params, x_t, t, cond, **_: params["a"] * x_t)
    batch = {**batch_of(noise(2, 1600)), "noise": jnp.asarray(noise(2, 1600, seed=1))}
    params, optimizer = network.init(key), optax.sgd(1.0)
    update = Regression().make_step(Model(network, PAIR, task), optimizer, 10)
    state = init_state(params, params, optimizer.init(params), key)
    after, metrics = jax.jit(update)(state, batch, key)
    x0, given = jax.jit(lambda batch: task.example(PAIR, batch, jax.random.split(key, 3)[0]))(batch)
    start = np.asarray(given.start)
    error = 0.5 * start - x0
    assert float(metrics["loss"]) == pytest.approx(float((error**2).mean()), rel=1e-4)
    slope = float((2 * error * start).mean())
    assert float(after.params["a"]) == pytest.approx(0.5 - slope, rel=1e-4)


class Pairs(Enhance):
    """Of a batch's wave, what is heard is its noise."""

    def example(self, representation, batch, key):
        return Example(representation.encode(batch["wave"]), self.given(representation, {"wave": batch["noise"]}))


@pytest.mark.slow
def test_a_bridge_trained_at_its_start_alone_is_the_regression():
    """At t = 1 a bridge of no noise there stands at the noisy features, which is what a regression sees; a network of
    sub-bands takes them for the estimate where it has none."""
    representation = CompressedStft(sample_rate=8000, n_fft=64, hop_length=32, exponent=0.3)

    def apply(params, x_t, t, cond, **_):
        estimate = x_t if cond.estimate is None else cond.estimate
        return jnp.tanh((x_t + 0.5 * estimate) @ params["kernel"]) * (1 + t[:, None, None])

    model = Model(Network(lambda key: {"kernel": noise(66, 66)}, apply), representation, Pairs())
    wave = noise(2, 4096, level=1.0)
    batch = {"wave": wave, "noise": wave[::-1].copy()}
    params, optimizer, key = model.network.init(KEY), optax.sgd(0.0), jax.random.key(1)
    losses = []
    for method in (Regression(), Bridge(at_start=1.0), Bridge()):
        state = init_state(params, params, optimizer.init(params), key, extra=())
        losses.append(float(jax.jit(method.make_step(model, optimizer, 1))(state, batch, key)[1]["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert abs(losses[2] - losses[0]) > 1e-3 * losses[0]

    network = from_nnx(lambda rngs: Subband(66, channels=4, subbands=4, width=4, depth=1, heads=1, rngs=rngs))
    shapes = jax.eval_shape(network.init, KEY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)
    t = jnp.ones(2)
    run = jax.jit(lambda x: [network.apply(params, x, t, Condition(estimate=y)) for y in (None, x, 0 * x)])
    alone, with_estimate, without = run(noise(2, 8, 66, level=1.0))
    assert max_relative(with_estimate, alone) <= 1e-5
    assert max_relative(without, alone) > 1e-2
