"""Weights of PyPI's `diffwave`: the same output as independent equations; a pickle that does more is not executed.

The files are written here by hand, as `torch.save` writes them: a protocol-2 pickle with a reference per tensor in an
uncompressed zip beside the raw storages. benchmarks/diffwave.py compares with PyTorch itself.
"""

import io
import os
import pickle
import sys
import types
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import max_relative
from test_networks import call

from jaxdiff.networks import Condition, convert_diffwave
from jaxdiff.networks.torch_zip import read_torch_zip


def rebuild(*_):
    raise AssertionError("a reader called this")


rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = "torch._utils", *["_rebuild_tensor_v2"] * 2
FloatStorage = type("FloatStorage", (), {"__module__": "torch"})


class Tensor:
    def __init__(self, array, key, **wrong):
        self.array, self.key, self.wrong = np.ascontiguousarray(array, np.float32), key, wrong

    def __reduce__(self):
        a = self.array
        found = dict(offset=0, shape=a.shape, strides=tuple(s // 4 for s in a.strides)) | self.wrong
        return rebuild, (Storage(self.key, a.size), *found.values(), False, {})


class Storage:
    def __init__(self, key, size):
        self.key, self.size = key, size


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return ("storage", FloatStorage, obj.key, "cpu", obj.size) if isinstance(obj, Storage) else None


def write(path, obj, arrays, monkeypatch, compression=zipfile.ZIP_STORED):
    torch: Any = types.ModuleType("torch")
    utils: Any = types.ModuleType("torch._utils")
    torch.FloatStorage, utils._rebuild_tensor_v2, torch._utils = FloatStorage, rebuild, utils
    with monkeypatch.context() as patch, zipfile.ZipFile(path, "w", compression) as archive:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        program = io.BytesIO()
        Pickler(program, protocol=2).dump(obj)
        archive.writestr("weights/data.pkl", program.getvalue())
        archive.writestr("weights/byteorder", "little")
        for tensor in arrays:
            archive.writestr(f"weights/data/{tensor.key}", tensor.array.tobytes())
    return path


def small_state(layers=3, channels=4, mels=3):
    """A state_dict with the names and shapes of `diffwave.model.DiffWave`, every number drawn."""
    convolution = lambda n, out, fan_in, taps=1: {f"{n}.weight": (out, fan_in, taps), f"{n}.bias": (out,)}  # noqa: E731
    linear = lambda name, out, fan_in: {f"{name}.weight": (out, fan_in), f"{name}.bias": (out,)}  # noqa: E731
    shapes = convolution("input_projection", channels, 1)
    shapes |= linear("diffusion_embedding.projection1", 8, 128) | linear("diffusion_embedding.projection2", 8, 8)
    for i in (1, 2):
        name = f"spectrogram_upsampler.conv{i}"
        shapes |= {f"{name}.weight": (1, 1, 3, 8), f"{name}.bias": (1,)}
    for i in range(layers):
        name = f"residual_layers.{i}"
        shapes |= convolution(f"{name}.dilated_conv", 2 * channels, channels, 3)
        shapes |= linear(f"{name}.diffusion_projection", channels, 8)
        shapes |= convolution(f"{name}.conditioner_projection", 2 * channels, mels)
        shapes |= convolution(f"{name}.output_projection", 2 * channels, channels)
    shapes |= convolution("skip_projection", channels, channels) | convolution("output_projection", 1, channels)
    rng = np.random.default_rng(3)
    return {name: 0.4 * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_state(path, state, monkeypatch, **beside):
    tensors = {name: Tensor(array, str(i)) for i, (name, array) in enumerate(state.items())}
    return write(path, {"step": 7, "model": tensors, **beside}, tensors.values(), monkeypatch)


def by_hand(state, x, step, mels, dilation_cycle):
    """PyTorch's layout for one item, in float64 loops: convolutions as sums over [out, in, tap]."""
    get = lambda name: state[name].astype(np.float64)  # noqa: E731
    sigmoid, silu = lambda z: 1 / (1 + np.exp(-z)), lambda z: z / (1 + np.exp(-z))

    def convolution(name, y, dilation=1):  # y [in, time]
        weight, bias = get(f"{name}.weight"), get(f"{name}.bias")
        taps, length = weight.shape[2], y.shape[1]
        out = np.repeat(bias[:, None], length, 1)
        for tap in range(taps):
            shift = (tap - taps // 2) * dilation
            for n in range(max(0, -shift), min(length, length - shift)):
                out[:, n] += weight[:, :, tap] @ y[:, n + shift]
        return out

    linear = lambda name, y: get(f"{name}.weight") @ y + get(f"{name}.bias")  # noqa: E731
    exponents = (np.arange(64, dtype=np.float32) * np.float32(4) / np.float32(63)).astype(np.float64)
    angle = (np.float32(step) * (10.0**exponents).astype(np.float32)).astype(np.float64)
    e = np.concatenate([np.sin(angle), np.cos(angle)])
    for i in (1, 2):
        e = silu(linear(f"diffusion_embedding.projection{i}", e))
    c = mels  # [mels, frames]
    for i in (1, 2):
        kernel, bias = get(f"spectrogram_upsampler.conv{i}.weight")[0, 0], get(f"spectrogram_upsampler.conv{i}.bias")
        full = np.zeros((len(c) + 2, (c.shape[1] + 1) * 4))
        for m in range(len(c)):
            for n in range(c.shape[1]):
                full[m : m + 3, 4 * n : 4 * n + 8] += c[m, n] * kernel
        c = full[1:-1, 2:-2] + bias
        c = np.where(c > 0, c, 0.4 * c)
    h, total = np.maximum(convolution("input_projection", x[None]), 0), 0
    layers = sum(name.endswith("dilated_conv.weight") for name in state)
    for i in range(layers):
        name = f"residual_layers.{i}"
        y = h + linear(f"{name}.diffusion_projection", e)[:, None]
        z = convolution(f"{name}.dilated_conv", y, 2 ** (i % dilation_cycle))
        gate, signal = np.split(z + convolution(f"{name}.conditioner_projection", c), 2)
        residual, skip = np.split(convolution(f"{name}.output_projection", sigmoid(gate) * np.tanh(signal)), 2)
        h, total = (h + residual) / np.sqrt(2), total + skip
    total = np.maximum(convolution("skip_projection", total / np.sqrt(layers)), 0)
    return convolution("output_projection", total)[0]


def test_converted_weights_give_the_authors_output(tmp_path, monkeypatch):
    state, rng = small_state(), np.random.default_rng(0)
    beside = {"params": {"dilation_cycle_length": 2, "noise_schedule": [0.1] * 20}}
    network = convert_diffwave(write_state(tmp_path / "weights.pt", state, monkeypatch, **beside))
    x, mels, steps = rng.standard_normal((2, 48)), rng.standard_normal((2, 3, 3)), np.array([19, 6])
    t = (jnp.asarray(steps) + 1) / jnp.float32(20)
    frames = jnp.asarray(mels.transpose(0, 2, 1), jnp.float32)
    ours = call(network, jnp.asarray(x, jnp.float32)[..., None], t, Condition(frames=frames))
    for i in range(2):
        expected = by_hand(state, x[i], steps[i], mels[i], 2)
        assert max_relative(ours[i, :, 0], expected) <= 1e-4
        assert max_relative(ours[i, :, 0], by_hand(state, x[i], steps[i], mels[i], 3)) > 1e-2


def test_a_pickle_that_does_more_is_refused_and_not_executed(tmp_path, monkeypatch):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    class Unknown:
        def __reduce__(self):
            return rebuild, (Malicious(),)

    for i, evil in enumerate((Malicious(), Unknown(), {"model": {}, "other": Malicious()})):
        path = write(tmp_path / f"{i}.pt", evil, [], monkeypatch)
        with pytest.raises(ValueError, match=r"names (posix|nt)\.mkdir, which no tensor needs; refused"):
            convert_diffwave(path)
    assert not (tmp_path / "executed").exists()
    program = (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Malicious())) and (tmp_path / "plain.pkl")
    pickle.loads(program.read_bytes())  # so the test would have seen it
    assert (tmp_path / "executed").exists()
    with pytest.raises(ValueError, match="is not a file of torch.save"):
        convert_diffwave(program)


@pytest.mark.parametrize(
    "wrong",
    [dict(shape=(10**6, 10**6)), dict(offset=9), dict(strides=(10**9, 1)), dict(shape=(-2, 3)), dict(shape=(2,))],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, monkeypatch, wrong):
    tensor = Tensor(np.ones((2, 3)), "0", **wrong)
    path = write(tmp_path / "weights.pt", {"model": {"a": tensor}}, [tensor], monkeypatch)
    with pytest.raises(ValueError, match="does not describe tensors"):
        read_torch_zip(path)


def test_reader_returns_views_and_keeps_its_limits(tmp_path, monkeypatch):
    array = np.arange(6.0).reshape(2, 3)
    tensor = Tensor(array, "0", offset=0, shape=(3, 2), strides=(1, 3))
    path = write(tmp_path / "weights.pt", {"model": {"a": tensor}, "n": (1, 2.5, None, True)}, [tensor], monkeypatch)
    tree = read_torch_zip(path)
    assert (tree["model"]["a"] == array.T).all() and tree["n"] == [1, 2.5, None, True]
    assert read_torch_zip(path, only="n", limit_bytes=0) == tree["n"]
    with pytest.raises(ValueError, match="more tensor bytes than the limit"):
        read_torch_zip(path, limit_bytes=23)
    tensor.array = tensor.array[:1]  # the pickle claims six numbers, the file has three
    monkeypatch.setattr(Tensor, "__reduce__", lambda self: (rebuild, (Storage("0", 6), 0, (6,), (1,))))
    with pytest.raises(ValueError, match="fewer than its tensor needs"):
        read_torch_zip(write(tmp_path / "cut.pt", {"a": tensor}, [tensor], monkeypatch))
    with pytest.raises(ValueError, match="uncompressed zip"):
        read_torch_zip(write(tmp_path / "packed.pt", {}, [], monkeypatch, zipfile.ZIP_DEFLATED))


def test_other_states_are_named(tmp_path, monkeypatch):
    state = small_state()
    missing = {k: v for k, v in state.items() if k != "skip_projection.bias"}
    wrong = state | {"residual_layers.1.output_projection.bias": np.zeros(5)}
    cases = [(missing, "no array skip_projection.bias"), (state | {"lstm.weight": np.ones(1)}, "first lstm.weight")]
    for i, (case, message) in enumerate([*cases, ({}, "no residual_layers"), (wrong, "shape")]):
        with pytest.raises(ValueError, match=message):
            convert_diffwave(write_state(tmp_path / f"{i}.pt", case, monkeypatch))
