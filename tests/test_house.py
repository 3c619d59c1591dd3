"""The house is open: a task, a method and networks of a test's own train and generate through the public functions."""

import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxdiff
from jaxdiff import Model, Pipeline
from jaxdiff.features import Patches
from jaxdiff.methods import Context, Diffusion, Method, Regression, gradient_step
from jaxdiff.networks import Condition, Network, from_linen, from_nnx
from jaxdiff.tasks import Example, Generate, Given, Needs, Task
from jaxdiff.training import CheckpointError, Every, TrainingError

RATE, SIZE = 8000, 16
PATCHES = Patches(RATE, SIZE)


@dataclass(frozen=True)
class Louder:
    """What a user may ask of the toy task."""

    gain: float = 1.0


@dataclass(frozen=True)
class Unclip(Task):
    """Known: a sound whose samples are cut at `limit`. Made: the sound as it was."""

    inputs: ClassVar[tuple[str, ...]] = ("offset",)
    needs_sound: ClassVar[bool] = True
    Request: ClassVar[type] = Louder

    limit: float = 0.3
    peak_db: float | None = None

    def needs(self, representation):
        return Needs(condition_features=representation.channels, condition_hop=representation.hop_length)

    def example(self, representation, batch, key):
        wave = batch["wave"] + batch["offset"]
        return Example(representation.encode(wave), self.given(representation, {"wave": wave}, Louder()))

    def given(self, representation, batch, request):
        clipped = jnp.clip(batch["wave"], -self.limit, self.limit)
        return Given(Condition(frames=representation.encode(clipped)), kept=request.gain)

    def finish(self, representation, x0, given):
        return given.kept * representation.decode(x0)


@dataclass(frozen=True)
class Mean(Method):
    """The conditional median, by absolute error: the toy method."""

    power: float = 1.0

    def make_step(self, model, optimizer, steps):
        def loss(network, example: Example, context: Context):
            made = network(0 * example.x0, jnp.ones(len(example.x0)), example.given.cond)
            loss = (jnp.abs(made - example.x0) ** self.power).mean()
            return loss, ({"loss": loss}, context.extra)

        return gradient_step(model, loss, optimizer)

    def make_sample(self, model, sampling, times):
        return lambda params, given, noise, keys: model.network.apply(
            params, 0 * noise, jnp.ones(len(keys)), given.cond
        )


class Tiny(nnx.Module):
    """A network of two layers that sees the condition alone."""

    def __init__(self, channels, rngs):
        self.first, self.second = nnx.Linear(channels, 64, rngs=rngs), nnx.Linear(64, channels, rngs=rngs)

    def __call__(self, x_t, t, cond):
        return self.second(jax.nn.silu(self.first(cond.frames)))


def waves(seed, count=16, samples=512):
    rng = np.random.default_rng(seed)
    angle = np.outer(rng.uniform(0.02, 0.1, count), np.arange(samples)) + rng.uniform(0, 6.28, (count, 1))
    return (0.6 * np.sin(angle)).astype(np.float32)


def batches(start=0):
    for step in range(start, 10_000):
        yield {"wave": waves(step), "offset": np.zeros((16, 512), np.float32)}


def test_a_task_a_method_and_a_network_of_one_s_own(tmp_path):
    model = Model(from_nnx(lambda rngs: Tiny(SIZE, rngs)), PATCHES, Unclip())
    seen = []
    state = jaxdiff.train(
        model, Mean(), batches, optax.adam(1e-2), steps=300, workdir=tmp_path, ema_decay=0.9, log_every=100,
        callbacks=[Every(100, lambda state, metrics: seen.append((int(state.step), metrics["loss"])))],
    )  # fmt: skip
    assert [step for step, _ in seen] == [100, 200, 300] and seen[-1][1] < 0.8 * seen[0][1]
    pipeline = jaxdiff.load(tmp_path, model=model, method=Mean())
    for a, b in zip(jax.tree.leaves(pipeline.params), jax.tree.leaves(state.average), strict=True):
        np.testing.assert_array_equal(a, b)
    y = waves(99_999, count=1, samples=8000)[0]
    made = pipeline(np.clip(y, -0.3, 0.3), sr=RATE).waves[0]
    assert np.abs(made - y).mean() < 0.7 * np.abs(np.clip(y, -0.3, 0.3) - y).mean()
    louder = pipeline(np.clip(y, -0.3, 0.3), sr=RATE, request=Louder(2.0)).waves[0]
    np.testing.assert_allclose(louder, 2 * made, rtol=1e-5)
    with pytest.raises(CheckpointError, match="trained in Python with parts of its own"):
        jaxdiff.load(tmp_path)


class Dense(linen.Module):
    """A denoiser in Linen, with dropout."""

    @linen.compact
    def __call__(self, x_t, t, cond):
        h = linen.Dense(32)(jnp.concatenate([x_t, jnp.broadcast_to(t[:, None, None], (*x_t.shape[:2], 1))], -1))
        h = linen.Dropout(0.1, deterministic=not self.has_rng("dropout"))(jax.nn.silu(h))
        return linen.Dense(SIZE)(h)


def init(key):
    return {"w": 0.1 * jax.random.normal(key, (SIZE, SIZE)), "b": jnp.zeros(SIZE)}


def apply(params, x_t, t, cond, **_):
    return x_t @ params["w"] + params["b"]


NETWORKS = {
    "linen": lambda: from_linen(Dense(), SIZE),
    "function": lambda: Network(init, apply),
    "nnx": lambda: from_nnx(lambda rngs: jaxdiff.networks.LSTM(SIZE, width=16, depth=1, rngs=rngs)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_trains_resumes_bit_for_bit_and_generates(name, tmp_path):
    model, method = Model(NETWORKS[name](), PATCHES, Generate()), Diffusion()
    options: dict[str, Any] = dict(steps=12, log_every=1, save_every=0)
    whole = jaxdiff.train(model, method, batches, optax.adam(1e-2), **options)

    class Stop(Exception):
        pass

    def stop(state, metrics):
        raise Stop

    with pytest.raises(Stop):
        jaxdiff.train(model, method, batches, optax.adam(1e-2), workdir=tmp_path, callbacks=[Every(7, stop)],
                      **{**options, "save_every": 7})  # fmt: skip
    again = jaxdiff.train(model, method, batches, optax.adam(1e-2), workdir=tmp_path, **options)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)
    made = Pipeline(model, method, again.average, seconds=512 / RATE)(count=2, steps=3).waves
    assert [w.shape for w in made] == [(512,)] * 2 and np.isfinite(made).all() and np.std(made) > 0


def test_a_training_off_the_main_thread_leaves_signals_alone():
    import signal

    model = Model(Network(init, apply), PATCHES, Generate())
    before, found = signal.getsignal(signal.SIGTERM), []
    run = lambda: found.append(jaxdiff.train(model, Diffusion(), batches(), steps=2))  # noqa: E731
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert int(found[0].step) == 2 and signal.getsignal(signal.SIGTERM) is before


def test_what_does_not_fit_is_said_before_any_step():
    model = Model(Network(init, apply), PATCHES, Generate())
    lossy = model._replace(representation=jaxdiff.features.LogMel(RATE, 64, 32, n_mels=8))
    with pytest.raises(ValueError, match="needs a representation that decodes exactly"):
        jaxdiff.train(lossy, Regression(auxiliary="stft"), batches(), steps=1)
    broken = Network(init, lambda params, x_t, t, cond, **_: x_t * jnp.nan)
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        jaxdiff.train(model._replace(network=broken), Diffusion(), batches(), steps=3, log_every=1)
