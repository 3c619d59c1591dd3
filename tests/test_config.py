"""The configuration is strict: every key and type is checked, nothing is guessed."""

import typing
from pathlib import Path

import jax.numpy as jnp
import pytest
import yaml

from jaxdiff import build, diffusion, methods
from jaxdiff.config import (
    Config,
    ConfigError,
    SamplerName,
    SpacingName,
    Transformer,
    crop_samples,
    from_dict,
    load_config,
    to_dict,
    to_yaml,
)

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_round_trips_through_yaml():
    config = from_dict({"network": {"kind": "transformer", "width": 96}, "data": {"peak_db": -3}})
    assert from_dict(yaml.safe_load(to_yaml(config))) == config
    assert from_dict(to_dict(Config())) == Config()


def test_values_are_coerced_by_type(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {learning_rate: 1e-4, steps: 10}\nnormalize: {enabled: no}\ndata: {fancy: 1}\n")
    with pytest.raises(ConfigError, match=r"data\.fancy: unknown key"):
        load_config(path)
    path.write_text("train: {learning_rate: 1e-4, steps: 10}\nnormalize: {enabled: no}\n")
    config = load_config(path, {"network.kind": "transformer", "network.width": "64", "data.peak_db": "none"})
    assert config.train.learning_rate == 1e-4
    assert config.normalize.enabled is False
    assert isinstance(config.network, Transformer)
    assert config.network.width == 64


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
    ],
)
def test_mistakes_get_one_sentence(tree, sentence):
    with pytest.raises(ConfigError, match=sentence):
        from_dict(tree)


def test_a_crop_that_cannot_be_cut_into_frames_is_refused():
    with pytest.raises(ConfigError, match=r"hop of 300 does not divide; use data\.seconds 0\.99375 \(15900 samples\)"):
        crop_samples(from_dict({"representation": {"hop_length": 300}}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_loads_and_says_where_it_comes_from(path):
    load_config(path)
    header = path.read_text().split("\n\n")[0]
    assert header.startswith("#")
    assert "jaxdiff train" in header


def test_names_are_the_toolbox_s():
    assert set(typing.get_args(SamplerName)) == set(diffusion.SAMPLERS)
    assert set(typing.get_args(SpacingName)) - {"searched"} == set(typing.get_args(diffusion.Spacing))


@pytest.mark.parametrize("kind", ["cosine", "sigmoid", "linear_beta", "vp", "ve", "edm", "rectified_flow"])
def test_every_schedule_is_built_with_its_options(kind):
    config = from_dict({"method": {"schedule": {"kind": kind, "shift": 2}}})
    schedule = build.schedule(config)
    assert type(schedule).__name__.lower() == kind.replace("_", "")
    assert schedule.shift == 2


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow", "edm"])
@pytest.mark.parametrize("weight", ["velocity", "snr", "min_snr", "edm", "sigmoid"])
def test_weights_mean_the_same_for_every_prediction(prediction, weight):
    """The weighted error of any prediction is the weighted error of the x0 that it stands for."""
    config = from_dict({"method": {"schedule": {"kind": "cosine"}, "prediction": prediction, "weight": weight}})
    schedule, t = build.schedule(config), jnp.array([0.3])
    if prediction == "flow":  # the factor of flow is stated for straight schedules
        schedule = diffusion.RectifiedFlow()
    x_t, a, b = jnp.array([0.7]), jnp.array([0.4]), jnp.array([-0.2])
    x0 = [diffusion.to_x0(prediction, schedule, t, x_t, out, config.method.sigma_data) for out in (a, b)]
    logsnr = diffusion.logsnr(schedule, t)
    of_x0 = build.weight(from_dict({"method": {"prediction": "x0", "weight": weight}}))
    assert float(build.weight(config)(logsnr)[0] * (a - b)[0] ** 2) == pytest.approx(
        float(of_x0(logsnr)[0] * (x0[0] - x0[1])[0] ** 2), rel=1e-4
    )


def test_an_auxiliary_loss_needs_an_exact_decoder():
    config = from_dict({"representation": {"kind": "log_mel"}, "method": {"auxiliary": "stft"}})
    with pytest.raises(ConfigError, match="use patches or compressed_stft"):
        methods.objective(config, build.task(config, build.representation(config), 0))
