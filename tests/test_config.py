"""The configuration is strict: every key and type is checked, nothing is guessed."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jaxdiff import config as configuration
from jaxdiff import diffusion, ranges
from jaxdiff.config import (
    TABLES,
    Change,
    Config,
    ConfigError,
    Options,
    from_dict,
    load_config,
    schema,
    to_dict,
    to_yaml,
)
from jaxdiff.diffusion import BRIDGES, SCHEDULES, Bridge, Schedule
from jaxdiff.features import REPRESENTATIONS, Normalization, Normalized, Representation
from jaxdiff.methods import Method
from jaxdiff.methods.method import SamplerName, SpacingName, WeightName, x0_weight
from jaxdiff.networks import NETWORKS, Condition, ConvNeXt, Transformer
from jaxdiff.tasks import TASKS, Task

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
GROUPS = {Task: "task", Representation: "representation", Options: "network", Method: "method"}
TABLED = [(family, kind) for family, (table, _) in TABLES.items() for kind in table if family is not Change]
TINY = {  # of every network, so that what must fit is checked in no time
    "convnext": {"width": 8, "depth": 1},
    "transformer": {"width": 8, "depth": 1, "heads": 2},
    "unet": {"width": 8, "levels": 2, "blocks": 1, "heads": 2},
    "wavenet": {"channels": 8, "layers": 1, "embedding": 8},
    "lstm": {"width": 8, "depth": 1},
    "causal_wavenet": {"channels": 8, "layers": 1},
    "subband": {"channels": 4, "subbands": 4, "width": 4, "depth": 1, "heads": 1},
}


def unlike(hint, default):
    """A value of a field's type that is not its default, as YAML holds it."""
    if hint in TABLES:
        table, _ = TABLES[hint]
        kind = next(name for name in reversed(list(table)) if table[name] is not type(default))
        return changed(hint, table[kind], kind)
    if dataclasses.is_dataclass(hint):
        return changed(None, hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return unlike(next(h for h in typing.get_args(hint) if h is not types.NoneType), default)
    if typing.get_origin(hint) is typing.Annotated:
        kind = typing.get_args(hint)[0]
        return next(v for v in (unlike(kind, default), kind(1), kind(2), 0.5) if v != default and fits(hint, v))
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != default)
    if hint is bool:
        return not default
    if hint is int:
        return 34 if default is None else default + 2  # an n_fft must stay even
    if hint is float:
        return 9.25 if default == float("inf") else 7.25 if default in (None, 0) else 0.75 * default
    if hint is str:
        return f"{default} or another"
    if typing.get_origin(hint) is tuple:
        return [*default, "blocks/0/*"]
    assert typing.get_origin(hint) is not None and issubclass(typing.get_origin(hint), typing.Mapping), hint
    return {"noise": "data/noise" if typing.get_args(hint)[1] is str else 7.25}


def fits(hint, value):
    try:
        return ranges.check("value", hint, value) is None
    except ValueError:
        return False


def changed(family, part, kind=None):
    """Every key of a part, none with its default value."""
    keys = schema(part, family)
    default = dict(keys) if family is not None else {n: k._replace(default=getattr(part(), n)) for n, k in keys.items()}
    values = {name: unlike(*key) for name, key in default.items()}
    return values if kind is None else {"kind": kind, **values}


def through_yaml(config):
    return from_dict(yaml.safe_load(to_yaml(config)))


def test_round_trips_through_yaml():
    config = from_dict({"network": {"kind": "transformer", "width": 96}, "task": {"peak_db": -3}})
    assert through_yaml(config) == config
    assert from_dict(to_dict(Config())) == Config()


@pytest.mark.parametrize(("family", "kind"), TABLED, ids=[f"{f.__name__}-{k}" for f, k in TABLED])
def test_every_part_with_other_values_goes_through_yaml(family, kind):
    part = TABLES[family][0][kind]
    tree = changed(family, part, kind)
    holder = {Schedule: "diffusion", Bridge: "bridge"}.get(family)
    config = from_dict({GROUPS[family]: tree} if holder is None else {"method": {"kind": holder, "schedule": tree}})
    made: Any = getattr(config, GROUPS[family]) if holder is None else config.method.schedule
    assert to_dict(made) == tree
    for name, value in tree.items():
        if name == "kind" or isinstance(value, dict):
            continue
        assert (made.values[name] if family is Options else getattr(made, name)) == value
        assert value != schema(part, family)[name].default
    assert (NETWORKS[made.kind] if family is Options else type(made)) is part
    again = through_yaml(config)
    assert again == config
    assert to_dict(again) == to_dict(config)


def test_every_key_that_has_no_kind_goes_through_yaml():
    groups = {"data", "normalize", "train", "sampling"}
    assert {f.name for f in dataclasses.fields(Config)} == groups | set(GROUPS.values()) | {"augment"}
    tree = {name: changed(None, type(getattr(Config(), name))) for name in sorted(groups)}
    config = from_dict(tree)
    for name in groups:
        assert to_dict(getattr(config, name)) == tree[name]
    assert through_yaml(config) == config
    assert config.representation.sample_rate == tree["data"]["sample_rate"]


CHANGES = [
    {"kind": "gain", "low_db": -6.0, "high_db": 6.0, "probability": 0.5},
    {"kind": "polarity_inversion", "probability": 0.25},
    {"kind": "shift", "low": -9, "high": 9, "roll": True, "probability": 1.0},
    {"kind": "colored_noise", "low_snr_db": 9.0, "high_snr_db": 30.0, "low_exponent": 0.5, "high_exponent": 1.0,
     "probability": 1.0},
    {"kind": "reverberation", "low_rt60": 0.1, "high_rt60": 0.2, "low_drr_db": 0.0, "high_drr_db": 6.0,
     "probability": 1.0},
    {"kind": "low_pass", "low_hz": 1000.0, "high_hz": 4000.0, "probability": 1.0},
    {"kind": "high_pass", "low_hz": 50.0, "high_hz": 100.0, "probability": 1.0},
    {"kind": "equalizer", "low_db": -3.0, "high_db": 3.0, "low_hz": 80.0, "high_hz": 2000.0, "peaks": 2,
     "probability": 1.0},
    {"kind": "clipping", "low_db": 0.0, "high_db": 6.0, "probability": 1.0},
    {"kind": "bit_crush", "low_bits": 8, "high_bits": 12, "probability": 1.0},
    {"kind": "speed", "low": 0.9, "high": 1.1, "probability": 1.0},
]  # fmt: skip


def test_changes_of_crops_go_through_yaml_and_are_built():
    assert [change["kind"] for change in CHANGES] == list(TABLES[Change][0])
    config = from_dict({"augment": CHANGES})
    assert to_dict(config)["augment"] == CHANGES and dict(configuration.flatten(config))["augment"] == CHANGES
    assert through_yaml(config) == config
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 400)).astype(np.float32)
    one = from_dict({"augment": [{"kind": "gain", "low_db": 20, "high_db": 20}, {"kind": "polarity_inversion"}]})
    made = configuration.augmentation(one)
    assert made is not None
    np.testing.assert_allclose(made(jnp.asarray(wave), jax.random.key(0)), -10 * wave, rtol=1e-6)
    assert configuration.augmentation(from_dict({"augment": None})) is None
    assert (
        from_dict({"augment": [{"kind": "equalizer", "low_db": -1, "high_db": 1}]}).augment[0].values["high_hz"] is None
    )


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"augment": {"kind": "gain"}}, "augment: expected a list of groups that say their kind, got"),
        ({"augment": ["gain"]}, r"augment\.0: expected a group with kind"),
        ({"augment": [CHANGES[0], {"kind": "gian"}]}, r"augment\.1\.kind: expected one of .*did you mean gain\?"),
        ({"augment": [{"kind": "gain", "low_db": 1}]}, r"augment\.0\.high_db: is missing and has no default"),
        ({"augment": [{"kind": "gain", "low_db": 1, "high_db": 0}]}, r"augment\.0: gain in dB must satisfy"),
        (
            {"augment": [{**CHANGES[0], "high_bd": 0}]},
            r"augment\.0\.high_bd: unknown key; did you mean augment\.0\.high_db",
        ),
        (
            {"augment": [{**CHANGES[0], "probability": 2}]},
            r"augment\.0\.probability: expected at least 0 and at most 1",
        ),
        ({"augment": [CHANGES[5]], "data": {"sample_rate": 8000}}, r"augment\.0: corner frequency .* 3920"),
        ({"augment": [CHANGES[10]], "data": {"notes": "scores"}}, r"augment\.0: speed moves sounds and data\.notes"),
        ({"data": {"path": {"a": 0}}}, r"data\.path\.a: expected above 0, got 0"),
        ({"data": {"path": None}}, r"data\.path: expected str, got None"),
    ],
)
def test_changes_and_mixtures_that_cannot_be_are_refused(tree, reason):
    with pytest.raises(ConfigError, match=reason):
        from_dict(tree)


def test_a_mixture_of_folders_goes_through_yaml():
    config = from_dict({"data": {"path": {"a/b": "3", "c.d": 0.5}}})
    assert config.data.path == {"a/b": 3.0, "c.d": 0.5}
    assert through_yaml(config) == config


@pytest.mark.parametrize(
    ("group", "table", "supplied"),
    [
        ("task", TASKS, ["classes"]),
        ("representation", REPRESENTATIONS, ["sample_rate"]),
        (
            "network",
            NETWORKS,
            ["condition_features", "condition_hop", "num_classes", "self_conditioning", "second_time", "zero_output",
             "input_classes", "token_features", "rngs", "features", "outputs"],
        ),
    ],
)  # fmt: skip
def test_what_others_supply_is_no_key(group, table, supplied):
    for kind in table:
        for name in supplied:
            with pytest.raises(ConfigError, match=rf"{group}\.{name}: unknown key"):
                from_dict({group: {"kind": kind, name: 3}})
        made = from_dict({group: {"kind": kind}})
        assert not set(to_dict(getattr(made, group))) & set(supplied)


def test_a_network_s_defaults_are_its_constructor_s():
    config = from_dict({})
    assert config.network.kind == "convnext"
    defaults = {n: key.default for n, key in schema(ConvNeXt, Options).items()}
    assert config.network.values == defaults
    assert schema(Transformer, Options)["width"] == (ranges.Count, 256)


def test_values_are_coerced_by_type(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {learning_rate: 1e-4, steps: 10}\nnormalize: {enabled: no}\ndata: {fancy: 1}\n")
    with pytest.raises(ConfigError, match=r"data\.fancy: unknown key"):
        load_config(path)
    path.write_text("train: {learning_rate: 1e-4, steps: 10}\nnormalize: {enabled: no}\n")
    config = load_config(path, {"network.kind": "transformer", "network.width": "64", "task.peak_db": "none"})
    assert config.train.learning_rate == 1e-4
    assert config.normalize.enabled is False
    assert config.task.peak_db is None
    assert config.network.kind == "transformer"
    assert config.network.values["width"] == 64


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"train": {"stps": 3}}, r"train\.stps: unknown key; did you mean train\.steps\?"),
        ({"trian": {"steps": 3}}, r"trian: unknown key; did you mean train\?"),
        ({"train": {"steps": "many"}}, r"train\.steps: expected int, got 'many'"),
        ({"train": {"steps": 1.5}}, r"train\.steps: expected int, got 1\.5"),
        ({"train": {"steps": True}}, r"train\.steps: expected int, got True"),
        ({"train": 3}, r"train: expected a group of keys, got 3"),
        ({"network": {"kind": "wavnet"}}, r"network\.kind: expected one of .*did you mean wavenet\?"),
        ({"network": "wavenet"}, r"network: expected a group with kind"),
        ({"network": {"kind": "wavenet", "heads": 2}}, r"network\.heads: unknown key"),
        ({"sampling": {"sampler": "hern"}}, r"sampling\.sampler: expected one of .*did you mean heun\?"),
        ({"normalize": {"enabled": 2}}, r"normalize\.enabled: expected bool, got 2"),
        ({"task": {"kind": "vocoding"}}, r"task\.kind: expected one of generate, vocode, enhance, .*, got 'vocoding'"),
        ({"task": {"kind": "enhance", "mixture": {"snr": 3}}}, r"mixture\.snr: unknown key; did you mean task\.mix"),
        ({"task": {"kind": "enhance", "mixture": {"rooms": 2}}}, r"task\.mixture\.rooms: expected .*, got 2"),
        ({"task": {"kind": "enhance", "mixture": {"snr_low": 30}}}, r"task\.mixture: snr_low 30\.0 is above"),
        ({"task": {"kind": "vocode", "flip_polarity": True}}, r"task\.flip_polarity: unknown key"),
        ({"method": {"schedule": {"kind": "cosine", "rho": 7}}}, r"method\.schedule\.rho: unknown key"),
        ({"method": {"schedule": {"kind": "flow"}}}, r"method\.schedule\.kind: expected one of cosine"),
        ({"method": {"kind": "bridge", "schedule": {"kind": "cosine"}}}, r"kind: expected one of ve, vp, flow"),
        ({"data": {"drawn": "noise"}}, r"data\.drawn: expected names and folders, got 'noise'"),
        ({"representation": {"n_fft": 511}}, r"representation: n_fft 511 must be even"),
        ({"representation": {"kind": "log_mel", "floor_db": 3}}, r"representation: floor_db must be below 0 dB"),
        ({"format": 99}, r"format 99: this jaxdiff knows formats 1 to"),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence(tree, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        from_dict(tree)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "sentence"), [("a: [1", "read as YAML"), ("- 1", "must hold keys and values")])
def test_files_that_are_no_configuration_are_refused(tmp_path, content, sentence):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=sentence) as error:
        load_config(tmp_path / "c.yaml")
    assert "\n" not in str(error.value)
    (tmp_path / "c.yaml").write_text("train: 3")
    with pytest.raises(ConfigError, match=r"train\.steps: train in .* is a single value, not a group"):
        load_config(tmp_path / "c.yaml", {"train.steps": "3"})


def test_a_crop_that_cannot_be_cut_into_frames_is_refused():
    with pytest.raises(ConfigError, match=r"hop of 300 .* divide; use data\.seconds 0\.99375 \(15900 samples\)"):
        configuration.crop(from_dict({"representation": {"n_fft": 600, "hop_length": 300}}))
    with pytest.raises(ConfigError, match=r"the hop of 9600 .* does not divide"):
        configuration.crop(from_dict({"task": {"kind": "vocode", "hop_length": 300}}))
    crop = configuration.crop(
        from_dict({"data": {"seconds": 0.256, "crop": "start", "channels": "left", "speed": 0.5}})
    )
    assert crop == (4096, 16000, "start", "left", 0.5)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_fits_and_says_where_it_comes_from(path):
    config = load_config(path)
    configuration.crop(config)
    model = configuration.model(config, ("a", "b"), None)
    classless = ("enhance", "vocode", "transcribe", "repair")
    assert model.task.classes == (() if to_dict(config)["task"]["kind"] in classless else ("a", "b"))
    header = path.read_text().split("\n\n")[0]
    assert header.startswith("#")
    assert "jaxdiff train" in header


def test_names_are_the_toolbox_s():
    assert set(typing.get_args(SamplerName)) == set(diffusion.SAMPLERS) | set(diffusion.BRIDGE_SAMPLERS)
    assert set(typing.get_args(SpacingName)) - {"searched"} == set(typing.get_args(diffusion.Spacing))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_is_built_with_its_options(kind):
    schedule: Any = from_dict({"method": {"schedule": {"kind": kind, "shift": 2}}}).method.schedule
    assert type(schedule).__name__.lower() == kind.replace("_", "")
    assert schedule.shift == 2


@pytest.mark.parametrize("kind", BRIDGES)
def test_every_bridge_is_built(kind):
    assert from_dict({"method": {"kind": "bridge", "schedule": {"kind": kind}}}).method.schedule == BRIDGES[kind]()


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow", "edm"])
@pytest.mark.parametrize("name", typing.get_args(WeightName))
def test_weights_mean_the_same_for_every_prediction(prediction, name):
    """The weighted error of any prediction is the weighted error of the x0 that it stands for."""
    tree = {"schedule": {"kind": "cosine"}, "prediction": prediction, "weight": name, "sigma_data": 0.7}
    method: Any = from_dict({"method": tree}).method
    schedule, t = method.schedule, jnp.array([0.2, 0.7])
    x0 = jax.random.normal(jax.random.key(0), (2, 3, 4))

    def outputs(x, t, cond):
        return 0.4 * jnp.ones_like(x)

    def stands_for(x_t, t, cond):
        return diffusion.to_x0(prediction, schedule, t, x_t, outputs(x_t, t, cond), method.sigma_data)

    def losses(network, prediction, weight):
        options = dict(weight=weight, prediction=prediction, sigma_data=method.sigma_data)
        return np.asarray(diffusion.item_losses(network, schedule, x0, None, t, jax.random.key(1), **options)[0])

    weight = x0_weight(method.weight, method.sigma_data)
    if name == "constant":  # the network's own error: of x0, what it is in the terms of log-SNR
        assert weight is None
        snr = jnp.exp(diffusion.logsnr(schedule, t))
        weight = {"x0": lambda _: 1.0, "eps": lambda _: snr, "v": lambda _: 1 + snr,
                  "flow": lambda _: (1 + jnp.sqrt(snr)) ** 2, "edm": lambda _: snr + 0.7**-2}[prediction]  # fmt: skip
        expected = losses(stands_for, "x0", None) * weight(None)
        np.testing.assert_allclose(losses(outputs, prediction, None), expected, rtol=1e-4)
        return
    np.testing.assert_allclose(losses(outputs, prediction, weight), losses(stands_for, "x0", weight), rtol=1e-4)


# Parts that do not fit each other -----------------------------------------------------------------------------------


def build(network="convnext", classes=(), **groups):
    """The model of a configuration with a tiny network."""
    tree = {"network": {"kind": network, **TINY[network]}, **groups}
    return configuration.model(from_dict(tree), classes, None)


MAGNITUDE = {"kind": "magnitude", "n_fft": 256, "hop_length": 64}
COMPRESSED = {**MAGNITUDE, "kind": "compressed_stft"}
VOCODE = {"kind": "vocode", "n_fft": 256, "hop_length": 64, "n_mels": 20}
PLAIN = {"enabled": False}
PATCHES = {"kind": "patches", "size": 1}


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (
            dict(network="wavenet", method={"kind": "shortcut"}),
            "network.kind wavenet has no second_time.*use convnext, transformer, unet, subband, lstm",
        ),
        (dict(network="wavenet", method={"kind": "adversarial", "jumps": True}), "wavenet has no second_time"),
        (
            dict(network="causal_wavenet", method={"kind": "diffusion"}),
            "method autoregression, network causal_wavenet, representation patches of size 1 and normalize.enabled no "
            "belong together, got method diffusion and network causal_wavenet; set all four",
        ),
        (
            dict(network="wavenet", method={"kind": "autoregression"}, representation=PATCHES, normalize=PLAIN),
            "belong together, got method autoregression and network wavenet",
        ),
        (
            dict(network="causal_wavenet", method={"kind": "autoregression"}, representation=PATCHES),
            "belong together|needs network causal_wavenet, .*normalize.enabled no, got Normalized",
        ),
        (
            dict(network="causal_wavenet", method={"kind": "autoregression"}, normalize=PLAIN),
            "representation patches of size 1 and normalize.enabled no, got CompressedStft of hop 128",
        ),
        (
            dict(network="transformer", task={**VOCODE, "hop_length": 128}, representation=MAGNITUDE),
            r"network.kind transformer has no condition_hop, which the task or method needs to be 2; use wavenet",
        ),
        (
            dict(network="transformer", task={**VOCODE, "hop_length": 32}, representation=MAGNITUDE),
            "the task's hop of 32 samples is no multiple of the representation's hop of 64",
        ),
        (
            dict(network="wavenet", task={**VOCODE, "hop_length": 96}, representation=MAGNITUDE),
            "the task's hop of 96 samples is no multiple of the representation's hop of 64",
        ),
        (
            dict(network="wavenet", task={**VOCODE, "hop_length": 192}, representation=MAGNITUDE),
            "condition_hop 3 has no upsampler; use 1",
        ),
        (
            dict(task={**VOCODE, "envelope": True}, representation=MAGNITUDE),
            "task.envelope needs .* and normalize.enabled no, got Normalized of hop 64; set all three",
        ),
        (
            dict(task={**VOCODE, "envelope": True, "hop_length": 128}, representation=MAGNITUDE, normalize=PLAIN),
            "task.envelope needs .* magnitude of the task's hop 128 .*Magnitude of hop 64",
        ),
        (
            dict(task={**VOCODE, "envelope": True}, representation={**MAGNITUDE, "kind": "log_mel"}, normalize=PLAIN),
            "task.envelope needs representation compressed_stft or magnitude .* got LogMel",
        ),
        (
            dict(task={**VOCODE, "envelope": True}, representation={"kind": "patches", "size": 64}, normalize=PLAIN),
            "task.envelope needs .* got Patches of hop 64",
        ),
        (
            dict(task={**VOCODE, "guess": True}, representation={**MAGNITUDE, "kind": "log_mel"}, normalize=PLAIN),
            "task.guess needs representation magnitude of the task's n_fft and .* got LogMel",
        ),
        (
            dict(task={**VOCODE, "guess": True, "n_fft": 512}, representation=MAGNITUDE, normalize=PLAIN),
            "task.guess needs representation magnitude of the task's n_fft",
        ),
        (
            dict(task={**VOCODE, "guess": True}, representation=MAGNITUDE),
            "task.guess needs .* normalize.enabled no, got Normalized of hop 64; set all three, or task.guess no",
        ),
        (
            dict(
                task={**VOCODE, "guess": True, "envelope": True, "n_fft": 512},
                representation=COMPRESSED,
                normalize=PLAIN,
            ),
            "task.guess needs",
        ),
        (
            dict(task={**VOCODE, "guess": True}, representation=MAGNITUDE, normalize=PLAIN),
            "task says where sampling begins, which diffusion ignores; use method regression, bridge or adversarial",
        ),
        (
            dict(task={"kind": "enhance"}, representation=MAGNITUDE, normalize=PLAIN, method={"kind": "regression"}),
            "task enhance needs representation compressed_stft and normalize.enabled no, got Magnitude; set both",
        ),
        (
            dict(task={"kind": "enhance"}, representation=COMPRESSED, method={"kind": "regression"}),
            "task enhance needs .* got Normalized; set both",
        ),
        (
            dict(network="subband", task=VOCODE, representation=COMPRESSED, normalize=PLAIN),
            "network.kind subband has no condition_features, which the task or method needs to be 20; use ",
        ),
        (
            dict(network="subband", representation={"kind": "patches", "size": 65}),
            "^subband sees real and imaginary parts, an even number of features, got 65",
        ),
        (
            dict(representation={"kind": "log_mel"}, method={"auxiliary": "stft"}),
            "method.auxiliary stft needs a representation that decodes exactly, .*; use patches or compressed_stft, or",
        ),
        (
            dict(representation={"kind": "magnitude"}, method={"kind": "regression", "auxiliary": "mel"}),
            "method.auxiliary mel needs a representation that decodes exactly",
        ),
        (
            dict(representation={"kind": "log_mel"}, method={"kind": "bridge", "auxiliary": "mel"}),
            "method.auxiliary mel needs a representation that decodes exactly",
        ),
    ],
)
def test_parts_that_do_not_fit_get_one_sentence(groups, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        build(**groups)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("network", sorted(set(NETWORKS) - {"causal_wavenet", "subband"}))
def test_networks_are_built_for_task_method_and_representation(network):
    """Classes, channels of the condition and what a method adds are in the shapes of the parameters."""

    def count(**groups):
        return sum(x.size for x in jax.tree.leaves(build(network, representation=MAGNITUDE, **groups).network.shapes()))

    plain, vocoder = count(), count(task=VOCODE, classes=("a", "b"))
    assert count(classes=("a", "b")) > plain
    assert count(method={"kind": "shortcut"} if network != "wavenet" else {"self_conditioning": True}) > plain
    model = build(network, representation=MAGNITUDE, task=VOCODE, normalize=PLAIN)
    assert sum(x.size for x in jax.tree.leaves(model.network.shapes())) == vocoder > plain

    task: Any = model.task

    def output(params, x, wave):
        given = task.given(model.representation, {"wave": wave, "label": jnp.full(2, -1)})
        return model.network.apply(params, x, jnp.ones(2), given.cond)

    x, wave = jnp.ones((2, 5, 129)), jnp.ones((2, 256))
    assert jax.eval_shape(output, model.network.shapes(), x, wave).shape == x.shape


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["x0", "flow"])
def test_a_generator_that_makes_x0_begins_with_sound(prediction):
    """At silence spectral distances have no gradient; one that predicts the flow begins by changing nothing."""
    method = {"kind": "adversarial", "prediction": prediction}
    model = build(representation=MAGNITUDE, normalize=PLAIN, method=method)
    run = lambda x: model.network.apply(model.network.init(jax.random.key(0)), x, jnp.ones(1), Condition())  # noqa: E731
    assert (float(jnp.abs(jax.jit(run)(jnp.ones((1, 4, 129)))).max()) == 0) == (prediction == "flow")


def test_what_fits_is_built():
    for representation in (COMPRESSED, MAGNITUDE):
        task: Any = build(task={**VOCODE, "envelope": True}, representation=representation, normalize=PLAIN).task
        assert task.envelope
    options: dict[str, Any] = dict(representation=MAGNITUDE, normalize=PLAIN)
    both: Any = build(task={**VOCODE, "envelope": True, "guess": True}, **options, method={"kind": "adversarial"}).task
    assert both.envelope and both.guess
    options = dict(normalize=PLAIN, method={"kind": "regression", "auxiliary": "speech"})
    assert build("subband", task={"kind": "enhance"}, representation=COMPRESSED, **options).task.gives_start
    with pytest.raises(ConfigError, match="which diffusion ignores; use method regression, bridge or adversarial"):
        build(task={**VOCODE, "guess": True}, representation=MAGNITUDE, normalize=PLAIN)
    assert build(method={"auxiliary": "stft"}).representation.exact
    method = {"kind": "autoregression"}
    patches: Any = build("causal_wavenet", method=method, representation=PATCHES, normalize=PLAIN).representation
    assert patches.size == 1


def test_a_model_has_the_corpus_s_classes_and_normalisation():
    config = from_dict({"network": {"kind": "convnext", **TINY["convnext"]}, "data": {"sample_rate": 8000}})
    normalization = Normalization(jnp.zeros(514), jnp.ones(514))
    model = configuration.model(config, ("a", "b"), normalization)
    assert model.task.classes == ("a", "b")
    assert isinstance(model.representation, Normalized)
    assert model.representation.normalization is normalization
    assert model.representation.sample_rate == config.representation.sample_rate == 8000


OUTSIDE = {  # key: values that no training or sampling can use
    "train.batch": ["0", "-4"],
    "train.steps": ["-5", "0"],
    "train.learning_rate": ["nan", "inf", "-1", "0"],
    "train.ema_decay": ["2", "nan", "1"],
    "train.warmup": ["-3"],
    "train.weight_decay": ["-1"],
    "train.log_every": ["-1"],
    "train.seed": ["-1", str(2**32), str(2**64)],
    "normalize.crops": ["-5", "0"],
    "task.peak_db": ["nan", "900"],
    "data.speed": ["-1", "9", "nan", "40"],
    "data.seconds": ["0", "-1", "nan", "inf"],
    "data.sample_rate": ["0", "-8000", ".inf"],
    "data.memory_mb": ["-1"],
    "method.sigma_data": ["0", "-1"],
    "method.times_std": ["0"],
    "sampling.steps": ["0", "-1"],
    "sampling.guidance": ["nan", "inf"],
    "sampling.guidance_rescale": ["3", "-1"],
    "sampling.guidance_low": ["-1", "nan"],
    "sampling.guidance_high": ["0", "nan"],
    "sampling.temperature": ["-1", "0"],
}


@pytest.mark.parametrize("key", OUTSIDE)
def test_numbers_have_ranges(key, tmp_path):
    (tmp_path / "c.yaml").write_text("")
    for value in OUTSIDE[key]:
        with pytest.raises(ConfigError, match=rf"^{key}: expected ") as error:
            load_config(tmp_path / "c.yaml", {key: value})
        assert f"got {value.removeprefix('.')}" in str(error.value).replace("'.", "") or float(value)  # as it was read


def test_a_range_that_guides_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"sampling: guidance_low 5\.0 must be below guidance_high 1\.0"):
        from_dict({"sampling": {"guidance": 2, "guidance_low": 5, "guidance_high": 1}})
    assert from_dict({"sampling": {"guidance_low": 5}}).sampling.guidance_high == float("inf")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {steps: 3}\ntrain: {steps: 4}", "the key train stands twice.*line 2"),
        ("train: {steps: 3, steps: 4}", "the key steps stands twice"),
        ("train: {steps: 1:30}", r"train\.steps: expected int, got '1:30'"),
        ("train: {steps: [1]}", r"train\.steps: expected int, got \['1'\]"),
        ("representation: {kind: [log_mel]}", r"representation\.kind: expected one of .*did you mean log_mel"),
        ("data: {path: ~}", r"data\.path: expected str, got None"),
        ("data: {sample_rate: .inf}", r"data\.sample_rate: expected int, got '\.inf'"),
    ],
)
def test_yaml_is_read_as_it_is_written(text, sentence, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load_config(tmp_path / "c.yaml")


def test_yaml_values_are_read_by_the_type_of_their_field(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfdata:\ntrain: {steps: 010, learning_rate: 1e-4}\nsampling: {guidance_high: .inf}\n")
    config = load_config(path)
    assert (config.data, config.train.steps, config.train.learning_rate) == (Config().data, 10, 1e-4)
    path.write_text("data:\n  # all as it is\n")
    assert load_config(path, {"data.path": "sounds"}).data.path == "sounds"
    path.write_text("[" * 5000)
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_config(path)
    path.write_bytes("data: {path: Café}".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot be read as YAML in UTF-8"):
        load_config(path)


def test_the_advice_for_a_crop_that_does_not_fit_can_be_followed():
    """Every sentence that says `use data.seconds X` is parsed and followed, over rates, lengths and hops."""
    tried = 0
    for rate in (8000, 11025, 16000, 22050, 44100, 48000):
        for seconds in (0.4, 1.0, 3.7, 20.0, 47.55, 300.0):
            for hop, n_fft in ((64, 256), (100, 400), (441, 1764), (1024, 4096), (2048, 8192)):
                data = {"sample_rate": rate, "seconds": seconds}
                for task in ({"kind": "generate"}, {"kind": "vocode", "hop_length": 300}):
                    tree = {"task": task, "representation": {"n_fft": n_fft, "hop_length": hop}, "data": data}
                    try:
                        configuration.crop(from_dict(tree))
                    except ConfigError as error:
                        advice = str(error).partition("use data.seconds ")[2].split()[0]
                        configuration.crop(from_dict({**tree, "data": {**data, "seconds": advice}}))
                        tried += 1
    assert tried > 200


def test_a_configuration_shows_itself_as_its_yaml():
    assert repr(Config()) == to_yaml(Config())
