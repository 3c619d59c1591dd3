"""A stream makes of chunks what the same weights make of the whole sound, a window's length later."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from oracles import drawn

from jaxdiff import shipped
from jaxdiff.cli.main import main
from jaxdiff.config import ConfigError, from_dict, model
from jaxdiff.inference import Pipeline, export, load
from jaxdiff.inference.load import pipeline_of
from jaxdiff.inference.streaming import enhanced_blocks
from jaxdiff.methods import Bridge
from jaxdiff.tasks import Enhance, Generate

RATE = 8000
CONFIG: dict[str, Any] = {
    "data": {"sample_rate": RATE, "seconds": 0.256},
    "task": {"kind": "enhance"},
    "representation": {"kind": "compressed_stft", "n_fft": 64, "hop_length": 32, "exponent": 0.3},
    "network": {
        "kind": "subband", "channels": 4, "width": 4, "subbands": 4, "depth": 1, "heads": 1, "bidirectional": False,
    },
    "method": {"kind": "regression"},
    "normalize": {"enabled": False},
}  # fmt: skip


@functools.cache
def weights(bidirectional):
    """Of an untrained model that takes something away."""
    tree = {**CONFIG, "network": {**CONFIG["network"], "bidirectional": bidirectional}}
    return drawn(model(from_dict(tree), (), None).network, 0.2)


def enhancer(**changed):
    config = from_dict({group: {**keys, **changed.get(group, {})} for group, keys in CONFIG.items()})
    params = weights(changed.get("network", {}).get("bidirectional", False))
    return pipeline_of(config, (), params, None, step=1, fingerprint="f" * 64)


def noisy(*shape):
    return (0.1 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="module")
def stream():
    return enhancer().stream()


def streamed(stream, y, sizes):
    """All outputs for chunks of these sizes, and then the rest, aligned with `y`."""
    state, outputs = stream.init(y.shape[:-1]), []
    for chunk in np.split(y, np.cumsum(sizes), axis=-1):
        state, out = stream.step(state, chunk)
        assert out.shape == chunk.shape
        outputs.append(out)
    return np.concatenate([*outputs, stream.finish(state)], axis=-1)[..., stream.delay :]


@pytest.mark.parametrize(
    ("hop", "request_"),
    [(16, Enhance.Request()), (32, Enhance.Request(strength=0.7, max_reduction=9.0))],
)
def test_chunks_make_what_the_whole_makes(hop, request_):
    pipeline, y = enhancer(representation={"hop_length": hop}), noisy(2, 32 * 40)
    stream, pipeline.window_seconds = pipeline.stream(request_), 32 * 40 / RATE
    assert stream.latency_seconds == 64 / RATE  # the window of the STFT
    whole = pipeline(y, sr=RATE, request=request_).waves[0]
    made = streamed(stream, y, [32, 32, 32 * 37])
    assert made.shape == whole.shape and np.abs(whole - y).max() > 0.02
    np.testing.assert_allclose(made, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.slow
def test_a_step_fits_a_scan_and_any_leading_axes(stream):
    y = noisy(32 * 12)
    state, out = jax.lax.scan(stream.step, stream.init(), jnp.asarray(y).reshape(12, 32))
    made = np.concatenate([out.ravel(), stream.finish(state)])[stream.delay :]
    np.testing.assert_allclose(made, streamed(stream, np.stack([[0 * y], [y]]), [])[1, 0], atol=1e-6)


@pytest.mark.slow
def test_a_stream_works_at_the_level_of_the_sound():
    """Whose peak it cannot know."""
    y = noisy(32 * 12)
    leveled, own = enhancer(task={"peak_db": -6.0}), enhancer()
    leveled.window_seconds = own.window_seconds = 32 * 12 / RATE
    expected = own(y, sr=RATE).waves[0]
    np.testing.assert_allclose(streamed(leveled.stream(), y, []), expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(leveled(y, sr=RATE).waves[0] - expected).max() > 1e-3


def test_blocks_of_any_length_give_as_many_samples(stream):
    for samples in (1, 31, 32, 33, 64 * 32, 64 * 32 + 1, 4500):
        y = noisy(2, samples)
        blocks = np.split(y, [samples // 3, samples // 2], axis=-1)
        made = np.concatenate(list(enhanced_blocks(stream, iter(blocks), samples)), axis=-1)
        padded = np.pad(y, ((0, 0), (0, -samples % 32)))
        expected = streamed(stream, padded, [32] * (padded.shape[-1] // 32 - 1))[:, :samples]
        np.testing.assert_allclose(made, expected, atol=1e-6)


def test_what_cannot_stream_says_so(stream):
    pipeline = enhancer()
    for sentence, other in [
        ("needs a subband network with network.bidirectional no, got one that sees later frames",
         enhancer(network={"bidirectional": True})),
        ("is for method regression, got bridge", Pipeline(pipeline.model, Bridge(), pipeline.params)),
        ("is for models of task enhance on compressed_stft, got generate",
         Pipeline(pipeline.model._replace(task=Generate()), pipeline.method, pipeline.params)),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"^stream: {sentence}.*denoise-16k-streaming"):
            other.stream()
    with pytest.raises(ValueError, match="a chunk of 40 samples is not a multiple of hop_length 32"):
        stream.step(stream.init(), noisy(40))


def command(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["enhance", *map(str, arguments)])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


@pytest.mark.slow
def test_the_command_gives_what_the_stream_gives(tmp_path, capsys):
    pipeline, y = enhancer(task={"peak_db": -6.0}), noisy(2, 1001)
    weights = export(pipeline, tmp_path / "model.safetensors")
    soundfile.write(tmp_path / "a.wav", y.T, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", y.T, 11_025, subtype="FLOAT")
    files, out = [tmp_path / f"{name}.wav" for name in "ab"], tmp_path / "o"
    code, said, error = command(capsys, *files, "--model", weights, "--out", out, "--streaming", "--strength", 0.5)
    assert (code, error) == (0, "")
    assert said.splitlines()[0] == f"{weights}: latency 8 ms, in chunks of 4 ms"
    made, _ = soundfile.read(out / "a.wav")
    expected = streamed(pipeline.stream(Enhance.Request(strength=0.5)), np.pad(y, ((0, 0), (0, 23))), [])[:, :1001]
    np.testing.assert_allclose(made.T, expected, atol=1e-6)
    sidecar = json.loads((out / "a.json").read_text())
    assert (sidecar["streaming"], sidecar["latency_seconds"], sidecar["model"]) == (True, 0.008, str(weights))
    other = soundfile.info(out / "b.wav")
    assert (other.samplerate, other.frames, other.channels) == (11_025, 1001, 2)


def test_the_command_has_a_model_of_its_own(tmp_path, capsys, monkeypatch):
    soundfile.write(tmp_path / "a.wav", noisy(1000), RATE)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "none")
    code, _, error = command(capsys, tmp_path / "a.wav", "--out", tmp_path / "o", "--streaming")
    assert (code, "denoise-16k-streaming: no usable checkpoint" in error) == (1, True)
    both = export(enhancer(network={"bidirectional": True}), tmp_path / "both.safetensors")
    code, _, error = command(capsys, tmp_path / "a.wav", "--model", both, "--out", tmp_path / "o", "--streaming")
    assert (code, len(error.splitlines())) == (2, 1)
    assert "stream: needs a subband network with network.bidirectional no" in error
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_weights_in_a_file_stream(stream, tmp_path):
    y, again = noisy(2, 64), load(export(enhancer(), tmp_path / "model.safetensors")).stream()
    np.testing.assert_array_equal(streamed(again, y, [32]), streamed(stream, y, [32]))
