"""Transfer: frozen weights stay bit for bit, low-rank updates are those of the factors, optimisers are optax's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxdiff
from jaxdiff import config as configuration
from jaxdiff.config import ConfigError, flatten, from_dict, to_dict
from jaxdiff.features import Normalization, Patches
from jaxdiff.inference.begin import begin_with
from jaxdiff.inference.load import pipeline_of
from jaxdiff.methods import Diffusion, Model
from jaxdiff.networks import Network, count_params
from jaxdiff.tasks import Generate
from jaxdiff.training import Every, Lora, learning_rates, make_optimizer, restricted, transfer

SHAPES = {"first": {"kernel": (6, 5), "bias": (5,)}, "stack": {"kernel": (2, 5, 4), "bias": (2, 4)}, "last": (4,)}


def tree(seed=0, scale=1.0):
    """Weights, one of them a negative zero, which a careless addition would turn into a positive one."""
    rng = np.random.default_rng(seed)
    make = lambda shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)  # noqa: E731
    made = jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    return {**made, "last": made["last"].at[0].set(-0.0)}


def names(tree):
    return list(transfer.named(tree))


def bits(leaf):
    return np.asarray(leaf).view(np.uint32)


def steps_of(optimizer, params, gradients):
    """All parameters on the way, stacked, and all states, as one program."""

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    run = lambda params, stacked: jax.lax.scan(step, (params, optimizer.init(params)), stacked)[1]  # noqa: E731
    return jax.jit(run)(params, stacked)


def at(tree, step):
    return jax.tree.map(lambda leaf: leaf[step], tree)


GRADIENTS = [tree(seed, 0.1) for seed in (1, 2, 3)]


# --- optimisers and learning rates ---


def by_hand(kind, rate):
    """The optimiser that a name stands for, from optax alone."""
    if kind == "adamw":
        made = optax.adamw(rate, b1=0.8, b2=0.99, weight_decay=0.1)
    elif kind == "muon":
        axes = jax.tree.map(lambda _: None, tree())
        axes["first"]["kernel"] = axes["stack"]["kernel"] = contrib.MuonDimensionNumbers(-2, -1)
        options: Any = dict(adam_b1=0.8, adam_b2=0.99, adam_weight_decay=0.1, weight_decay=0.1, consistent_rms=0.2)
        made = contrib.muon(rate, muon_weight_dimension_numbers=lambda _: axes, **options)
    else:
        made = contrib.schedule_free_adamw(rate, b1=0.8, b2=0.99, weight_decay=0.1)  # type: ignore
    return optax.chain(optax.clip_by_global_norm(1.0), made)


@pytest.mark.parametrize("kind", ["adamw", "muon", "schedule_free"])
def test_each_name_is_the_optimiser_of_optax(kind):
    schedule: Any = "constant" if kind == "schedule_free" else "cosine"
    rate = learning_rates(0.01, 10, warmup=2, schedule=schedule)
    choice: dict[str, Any] = {} if kind == "adamw" else dict(kind=kind, schedule=schedule)  # the default
    made, states = steps_of(make_optimizer(0.01, 10, warmup=2, weight_decay=0.1, b1=0.8, **choice), tree(), GRADIENTS)
    expected, _ = steps_of(by_hand(kind, rate), tree(), GRADIENTS)
    jax.tree.map(np.testing.assert_array_equal, made, expected)
    if kind == "muon":  # the momentum of each matrix becomes nearly orthogonal, of each in a stack apart
        change = np.asarray(made["stack"]["kernel"][0] - tree()["stack"]["kernel"] * (1 - 0.1 * 0.005))
        for singular in np.linalg.svd(change, compute_uv=False) / (0.2 * 5**0.5 * 0.005):
            assert (singular > 0.5).all() and (singular < 1.3).all()
    last = at(made, -1)
    assert kind == "schedule_free" or transfer.evaluated(at(states, -1), last) is last


def test_schedule_free_weights_are_the_means_of_the_fast_ones():
    """With a constant learning rate x is the plain mean of z after each update (Defazio et al. 2024, eq. 5).

    Under a restriction that is so of what is trained: of a and b of a low-rank update.
    """
    optimizer = make_optimizer(0.01, 10, warmup=0, kind="schedule_free", schedule="constant")
    made, states = steps_of(restricted(optimizer, ["last"], Lora(2, ("stack/*",))), tree(), GRADIENTS)
    last, state = at(made, -1), at(states, -1)
    x, z = transfer.evaluated(state, last), jax.tree.map(lambda z: z.mean(0), states.inner[1].z)
    pair, base = z["stack"]["kernel"], tree()
    expected = {
        "first": z["first"],
        "stack": {"kernel": base["stack"]["kernel"] + pair["a"] @ pair["b"], "bias": z["stack"]["bias"]},
        "last": base["last"],
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), x, expected)
    assert float(jnp.abs(x["stack"]["kernel"] - last["stack"]["kernel"]).max()) > 1e-4


def test_learning_rates_rise_and_fall_as_they_say():
    rate = lambda name, **o: learning_rates(2.0, 100, warmup=10, schedule=name, **o)(jnp.arange(101))  # noqa: E731
    rise = np.linspace(0.2, 2.0, 11)[:10]
    k = np.arange(10, 101)
    expected = {
        "cosine": 1 + np.cos(np.pi * (k - 10) / 90),
        "linear": 2 * (100 - k) / 90,
        "constant": 2 + 0 * k,
        "wsd": 2 * np.minimum(1, (100 - k) / 20),
    }
    for name, after in expected.items():
        np.testing.assert_allclose(rate(name), [*rise, *after], atol=1e-6)
    np.testing.assert_allclose(rate("wsd", decay_share=1.0), rate("linear"), atol=1e-6)
    np.testing.assert_allclose(rate("wsd", decay_share=0.0), rate("constant"), atol=1e-6)
    short = learning_rates(1.0, 4, warmup=500, schedule="wsd", decay_share=0.5)  # the warm-up takes half at most
    np.testing.assert_allclose(short(jnp.arange(5)), [0.5, 0.75, 1, 0.5, 0], atol=1e-6)


# --- frozen parameters and low-rank updates ---


def test_frozen_parameters_stay_bit_for_bit_and_the_rest_is_trained_as_alone():
    ours = restricted(make_optimizer(0.01, 10, warmup=0, weight_decay=0.1), ["first/*", "last"])
    seen, states = steps_of(ours, tree(), GRADIENTS)
    for name in ("first/kernel", "first/bias", "last"):
        assert (bits(transfer.named(seen)[name]) == bits(transfer.named(tree())[name])).all()
    alone = [{"stack": g["stack"]} for g in (tree(), *GRADIENTS)]
    expected, plain = steps_of(make_optimizer(0.01, 10, warmup=0, weight_decay=0.1), alone[0], alone[1:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), seen["stack"], expected["stack"])
    sizes = sorted(leaf.shape for leaf in jax.tree.leaves(at(states, -1)) if leaf.ndim)
    assert sizes == sorted(2 * [(2, 5, 4), (2, 4)])  # moments of what is trained alone
    assert transfer.trained_numbers(at(states, -1), tree()) == 48
    assert transfer.trained_numbers(plain, tree()) is None


def test_low_rank_updates_are_those_of_the_factors():
    """Beside optax on a and b themselves, whose gradient comes through W_0 + a b by automatic differentiation."""
    target, start, lora = tree(9), tree(), Lora(rank=2, patterns=("first/kernel", "stack/*"))
    inner = make_optimizer(0.05, 10, warmup=0, weight_decay=0.1)
    apart = lambda a, b: ((jnp.sin(a) - b) ** 2).sum()  # noqa: E731
    loss = lambda params: sum(jax.tree.leaves(jax.tree.map(apart, params, target)))  # noqa: E731
    optimizer = restricted(inner, ["*"], lora, seed=3)

    def merged(factors):
        low = {n: {**start[n], "kernel": start[n]["kernel"] + f["a"] @ f["b"]} for n, f in factors.items()}
        return {**start, **low}

    @jax.jit
    def both():
        params, state = start, optimizer.init(start)
        assert isinstance(state, transfer.RestrictedState)
        places = {name: state.places[name]["kernel"] for name in ("first", "stack")}
        factors = {name: {"a": place.a, "b": place.b} for name, place in places.items()}
        begun = merged(factors)
        theirs, seen = inner.init(factors), []
        for _ in range(4):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            updates, theirs = inner.update(jax.grad(lambda f: loss(merged(f)))(factors), theirs, factors)
            factors = optax.apply_updates(factors, updates)
            seen.append((params, merged(factors)))
        return begun, seen, loss(params), places

    begun, seen, after, places = both()
    jax.tree.map(np.testing.assert_array_equal, begun, start)  # an update that is zero changes nothing
    assert places["stack"].a.shape == (2, 5, 2)
    for params, expected in seen:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected)
        for layer in ("first", "stack"):
            change = np.asarray(params[layer]["kernel"] - start[layer]["kernel"])
            assert (np.linalg.matrix_rank(change, tol=1e-5) == 2).all()
        for name in ("first/bias", "stack/bias", "last"):
            assert (bits(transfer.named(params)[name]) == bits(transfer.named(start)[name])).all()
    assert float(after) < float(loss(start))


def test_updates_of_full_rank_reach_any_change():
    base, wanted = tree()["first"]["kernel"], tree(5)["first"]["kernel"]
    u, s, v = np.linalg.svd(wanted - base, full_matrices=False)
    place = transfer.LowRank(base, jnp.asarray(u * s), jnp.asarray(v))
    np.testing.assert_allclose(place.merged, wanted, atol=1e-5)


def test_patterns_that_match_nothing_are_told_the_nearest_names():
    with pytest.raises(ValueError, match=r"freeze blocks/\*: matches no parameter; the nearest are stack/bias, "):
        transfer.kinds(tree(), ["last", "blocks/*"], None)
    with pytest.raises(ValueError, match=r"lora.patterns last: matches no matrix .*; the nearest are .*kernel"):
        transfer.kinds(tree(), [], Lora(2, ("last",)))
    with pytest.raises(ValueError, match="makes smaller|use a lower rank"):
        transfer.kinds(tree(), [], Lora(64))
    with pytest.raises(ValueError, match="leaves nothing to train"):
        transfer.kinds(tree(), ["*"], None)
    found = transfer.kinds(tree(), ["*bias"], Lora(1))
    assert [name for name, kind in found.items() if kind is transfer.LowRank] == ["first/kernel", "stack/kernel"]
    assert [name for name, kind in found.items() if kind is transfer.Full] == ["last"]


SIZE = 8


def network():
    """Two layers as plain functions; the second is frozen below."""

    def init(key):
        first, second = jax.random.split(key)
        return {
            "first": {"kernel": 0.3 * jax.random.normal(first, (SIZE, 16)), "bias": jnp.zeros(16)},
            "second": {"kernel": 0.3 * jax.random.normal(second, (16, SIZE)), "bias": -0.0 * jnp.ones(SIZE)},
        }

    def apply(params, x_t, t, cond, **_):
        h = jax.nn.silu(x_t @ params["first"]["kernel"] + params["first"]["bias"])
        return h @ params["second"]["kernel"] + params["second"]["bias"]

    return Network(init, apply)


def batches(start=0):
    for step in range(start, 100):
        yield {"wave": np.random.default_rng(step).normal(size=(2, 64)).astype(np.float32)}


def train(params, workdir=None, callbacks=()):
    base = make_optimizer(0.05, 8, warmup=0, weight_decay=0.1, kind="muon")
    optimizer = restricted(base, ["second/*"], Lora(rank=2, patterns=("first/kernel",)))
    model, save_every = Model(network(), Patches(8000, SIZE), Generate()), 0 if workdir is None else 3
    return jaxdiff.train(
        model, Diffusion(), batches, optimizer, steps=8, params=params, workdir=workdir, callbacks=callbacks,
        log_every=1, save_every=save_every,
    )  # fmt: skip


@pytest.mark.slow
def test_a_training_keeps_frozen_weights_in_its_averages_and_resumes_exactly(tmp_path):
    states, start = [], network().init(jax.random.key(0))
    whole = train(start, callbacks=[Every(1, lambda state, metrics: states.append(jax.device_get(state.params)))])
    for made in (whole.params, whole.average):
        for name in ("second/kernel", "second/bias"):
            assert (bits(transfer.named(made)[name]) == bits(transfer.named(start)[name])).all()
    change = np.asarray(whole.params["first"]["kernel"] - start["first"]["kernel"])
    assert np.linalg.matrix_rank(change, tol=1e-5) == 2
    mean = jax.device_get(start)
    for step, params in enumerate(states):
        decay = min(0.999, (1 + step) / (10 + step))
        mean = jax.tree.map(lambda m, p, d=decay: d * m + (1 - d) * p, mean, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mean, whole.average)

    def stop(state, metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(start, tmp_path, callbacks=[Every(5, stop)])
    again = train(start, tmp_path)
    assert [int(whole.step), int(again.step)] == [8, 8]
    for a, b in zip(*map(jax.tree.leaves, (whole._replace(key=0), again._replace(key=0))), strict=True):
        np.testing.assert_array_equal(a, b)


# --- what is taken ---


def test_a_match_says_what_is_taken_new_and_left():
    theirs = {"a": jnp.ones((2, 3)), "b": jnp.ones(4), "gone": jnp.ones(7), "c": {"0": jnp.ones((2, 2))}}
    ours = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(5), "c": {"0": jnp.zeros((2, 2)), "1": jnp.zeros(3)}}
    match = transfer.match(theirs, ours)
    assert match == ({"a": (2, 3), "c/0": (2, 2)}, {"b": ((4,), (5,))}, {"c/1": (3,)}, {"gone": (7,)})
    assert list(match.report()) == [
        "2 of 4 parameters are taken (10 numbers)",
        "2 begin anew (8 numbers): b, c/1",
        "2 are left (11 numbers): b, gone",
    ]
    filled = {name: float(leaf.sum()) for name, leaf in transfer.named(transfer.fill(ours, theirs)).items()}
    assert filled == {"a": 6, "b": 0, "c/0": 4, "c/1": 0}
    assert transfer.shortened([str(i) for i in range(9)]) == "0, 1, 2, 3 and 5 more"


# --- train.init ---

TINY = {
    "data": {"path": "nowhere", "seconds": 0.256},
    "representation": {"kind": "patches", "size": 64},
    "network": {"kind": "transformer", "width": 16, "depth": 2, "heads": 2},
}


def tiny(network=(), train=(), whole=None, **groups):
    """The configuration with some other keys of its network, or a whole other one."""
    network = {**TINY["network"], **dict(network)} if whole is None else whole
    return from_dict({**TINY, **groups, "network": network, "train": dict(train)})


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """A file of a model with classes whose weights are all different numbers, and its pipeline."""
    model = configuration.model(tiny(), ("a", "b"), None)
    shapes = model.network.shapes()
    leaves = [
        jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape) + 1e3 * k for k, x in enumerate(jax.tree.leaves(shapes))
    ]
    ones = jnp.ones(model.representation.channels)
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    pipeline = pipeline_of(tiny(), ("a", "b"), params, Normalization(0.5 * ones, 2 * ones), step=3)
    return jaxdiff.export(pipeline, tmp_path_factory.mktemp("older") / "m.safetensors"), pipeline


def begun(older, classes=("a", "b"), **options):
    """What a training begins with, and what is said."""
    said: list[str] = []
    options = {**options, "train": {"init": str(older[0]), **options.get("train", {})}}
    return *begin_with(tiny(**options), classes, said.append), [line.removeprefix(f"{older[0]}: ") for line in said]


def test_all_of_a_model_is_taken_whatever_its_classes(older):
    params, normalization, said = begun(older)
    jax.tree.map(np.testing.assert_array_equal, params, older[1].params)
    assert normalization is not None and float(normalization.mean[0]) == 0.5
    assert said == [
        f"{len(names(params))} of {len(names(params))} parameters are taken ({count_params(params):,} numbers)"
    ]
    params, _, said = begun(older, ("b", "new"))
    table = np.asarray(older[1].params["label"]["table"])
    np.testing.assert_array_equal(params["label"]["table"], table[[1, 2, 2]])
    assert any("begin as none told: new" in line for line in said)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"network": {"width": 32}}, r"has the shape \(2, 16\), here it has \(2, 32\); network.width was 16 and is"),
        ({"network": {"depth": 3}}, r"has the shape \(2, 16\), here it has \(3, 16\); network.depth was 2 and is 3;"),
        ({"method": {"kind": "shortcut"}}, r"lacks jump_1/bias \(16,\), which this network has; method.kind was"),
        ({"method": {"self_conditioning": True}}, "the shape .* method.self_conditioning was False and is True;"),
        ({"whole": {"kind": "lstm", "width": 16, "depth": 1}}, "was trained with network .*train.init_partial yes"),
        ({"representation": {"kind": "patches", "size": 32}}, "was trained with representation .*init_partial"),
        ({"classes": ()}, "was trained on classes a, b, here are none"),
        ({"train": {"freeze": ["blocks/*", "heads/*"]}}, "train.freeze heads/.*: matches no parameter; the nearest"),
        ({"train": {"lora": {"rank": 1000}}}, r"train.lora.patterns \*: matches no matrix .* lower rank"),
        ({"train": {"init_partial": True, "freeze": ["in*"]}, "network": {"width": 32}},
         r"train.freeze: matches input/bias.*begins anew; use patterns"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_sentence(older, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        begun(older, **options)


@pytest.mark.slow
def test_a_partial_beginning_takes_what_fits_and_says_what_is_new(older):
    other: dict[str, Any] = {"network": {"depth": 3}, "representation": {"kind": "patches", "size": 32}}
    params, normalization, said = begun(older, (), train={"init_partial": True, "seed": 7}, **other)
    fresh = configuration.model(tiny(**other), (), None).network
    fresh = transfer.named(jax.jit(fresh.init)(jax.random.key(7)))
    there, new = transfer.named(older[1].params), ("blocks/", "input/kernel", "output/")
    for name, leaf in transfer.named(params).items():
        np.testing.assert_array_equal(leaf, (fresh if name.startswith(new) else there)[name])
    begin = {name: leaf for name, leaf in fresh.items() if name.startswith(new)}
    left = {name: leaf for name, leaf in there.items() if name.startswith((*new, "label"))}
    taken = count_params(fresh) - count_params(begin)
    assert said[0] == f"{len(fresh) - len(begin)} of {len(fresh)} parameters are taken ({taken:,} numbers)"
    for line, names in ((said[1], begin), (said[2], left)):
        assert line.startswith(
            f"{len(names)} {'begin anew' if names is begin else 'are left'} ({count_params(names):,} "
        )
        assert line.endswith(f"{', '.join(sorted(names)[:4])} and {len(names) - 4} more")
    assert f"{older[0]} was trained with network.depth 2, here it is 3" in said
    assert normalization is None and said[-1].endswith("their normalisation is measured anew")


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"freeze": ["a"]}, "train: freeze, lora and init_partial are for weights of an older model; set init"),
        (
            {"optimizer": "schedule_free"},
            "train: optimizer schedule_free .* got schedule cosine; set schedule constant",
        ),
        (
            {"optimizer": "adam"},
            "train.optimizer: expected one of adamw, muon, schedule_free, got 'adam'; did you mean adamw",
        ),
        ({"init": "m", "freeze": {"a": 1}}, "train.freeze: expected a list of texts"),
        ({"init": "m", "lora": {"rank": 0}}, "train.lora.rank: expected at least 1, got 0"),
        ({"init": "m", "lora": {"ranks": 2}}, "train.lora.ranks: unknown key; did you mean train.lora.rank"),
    ],
)
def test_keys_of_transfer_are_checked(train, sentence):
    with pytest.raises(ConfigError, match=sentence):
        tiny(train=train)


def test_keys_of_transfer_are_read_and_written():
    config = tiny(train={"init": "m", "freeze": "blocks/*,input/*", "lora": {"patterns": ["output/*"]}})
    assert config.train.freeze == ("blocks/*", "input/*") and config.train.lora == Lora(8, ("output/*",))
    assert from_dict(to_dict(config)) == config
    assert dict(flatten(config))["train.lora.rank"] == 8 and dict(flatten(tiny()))["train.lora"] is None
