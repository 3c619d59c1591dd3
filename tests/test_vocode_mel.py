"""Vocoding from mel spectrograms that `jaxdiff features` or another program wrote."""

import functools
import io
import json
import zipfile
from typing import Any

import jax
import numpy as np
import pytest
import soundfile

from jaxdiff.cli.main import main
from jaxdiff.config import ConfigError, from_dict, model
from jaxdiff.data import AudioError
from jaxdiff.features import mel_filterbank, melspectrogram
from jaxdiff.inference import Pipeline, export
from jaxdiff.inference import pipeline as module
from jaxdiff.inference.load import pipeline_of
from jaxdiff.inference.mels import read_mel
from jaxdiff.tasks import Enhance, Vocode

RATE, N_FFT, HOP, BANDS = 8000, 128, 32, 20
SIZES: dict[str, Any] = {"n_fft": N_FFT, "hop_length": HOP}
TASK = Vocode(n_mels=BANDS, envelope=True, guess=True, **SIZES)
CONFIG: dict[str, Any] = {
    "data": {"sample_rate": RATE, "seconds": 0.256},
    "task": {"kind": "vocode", "n_mels": BANDS, "envelope": True, "guess": True, **SIZES},
    "representation": {"kind": "magnitude", "n_iter": 4, **SIZES},
    "normalize": {"enabled": False},
    "network": {"kind": "convnext", "width": 8, "depth": 1},
    "method": {"kind": "adversarial", "prediction": "flow", "begin": 0.5, "segment": 0.128},
}


@functools.cache
def vocoder():
    """An untrained model that changes what it begins with."""
    config, rng = from_dict(CONFIG), np.random.default_rng(1)
    params = jax.jit(model(config, (), None).network.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32), params)
    return pipeline_of(config, (), params, None, step=1, fingerprint="f" * 64)


def tones(samples):
    rng, t = np.random.default_rng(0), np.arange(samples) / RATE
    return (0.2 * np.sin(2 * np.pi * 400 * t * (1 + t)) + 0.02 * rng.standard_normal(samples)).astype(np.float32)


def mel(samples=3000):
    y = tones(samples)
    return np.array(melspectrogram(y, sr=RATE, n_mels=BANDS, power=1.0, **SIZES))


def command(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


def features(capsys, folder, out, *more):
    sizes = ["--n-fft", N_FFT, "--hop-length", HOP, "--n-mels", BANDS]
    assert command(capsys, "features", folder, "--out", out, *sizes, *more)[0] == 0


@pytest.mark.slow
def test_features_of_a_sound_make_what_the_sound_makes(tmp_path, capsys, monkeypatch):
    """In three windows, which see their neighbours' frames where the sound's own are cut. Griffin-Lim amplifies the
    rounding of the mel in a few samples."""
    y, pipeline = tones(26_423), vocoder()
    monkeypatch.setattr(module, "OVERLAP_SECONDS", 0.5)
    monkeypatch.setattr(pipeline, "window_seconds", 1.5)
    soundfile.write(tmp_path / "a.wav", y, RATE, subtype="FLOAT")
    features(capsys, tmp_path / "a.wav", tmp_path / "f", "--power", 1)
    made, sound = pipeline.from_mel(tmp_path / "f" / "a.npz"), pipeline(y, sr=RATE)
    assert made.waves[0].shape == sound.waves[0].shape == y.shape
    assert (made.sample_rate, made.names) == (RATE, ["a"])
    inner, size = slice(N_FFT * 8, -N_FFT * 8), np.std(sound.waves[0])
    difference = (made.waves[0] - sound.waves[0])[inner]
    assert np.std(difference) <= 1e-4 * size and np.abs(difference).max() <= 1e-3 * size
    other = pipeline.from_mel(mel(26_423) * 0.9, scale="magnitude").waves[0]
    assert np.std((other[: len(y)] - sound.waves[0])[inner]) > 0.01 * size


SCALES = {
    "ln": lambda M: np.log(np.maximum(M, 1e-5)),
    "log10": lambda M: np.log10(np.maximum(M, 1e-10)),
    "db": lambda M: 20 * np.log10(np.maximum(M, 1e-5)),
    "magnitude": lambda M: M,
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("turned", [False, True])
def test_scales_and_orientations_are_one_mel(scale, turned, tmp_path):
    M = mel()
    M[:, :3] = 0  # where logarithms are clipped
    values = SCALES[scale](M)[None]
    np.save(tmp_path / "a.npy", values.mT if turned else values)
    np.savez(tmp_path / "a.npz", anything=values.mT if turned else values, other=np.arange(3))
    for given in (tmp_path / "a.npy", tmp_path / "a.npz", values[0].T if turned else values[0]):
        read = read_mel(given, TASK, RATE, scale if scale == "magnitude" else "auto")
        assert (read.scale, read.samples) == (scale, M.shape[-1] * HOP)
        assert ("[frames, bands]" in read.said, "assumed to be 20 Slaney" in read.said) == (turned, True)
        np.testing.assert_allclose(read.part(0, M.shape[-1]), np.maximum(M, 0), rtol=1e-4, atol=1.1e-5)
        np.testing.assert_array_equal(read.part(40, 7), read.part(0, 60)[:, 40:47])


def test_energies_of_flat_bands_are_their_magnitudes(tmp_path, capsys):
    area = mel_filterbank(RATE, N_FFT, BANDS).sum(1, keepdims=True)
    level = np.array([[0.1, 3.0, 0.0]])
    read = read_mel(level**2 * area, TASK, RATE, "power")
    np.testing.assert_allclose(read.part(0, 3), level * area, rtol=1e-6)
    soundfile.write(tmp_path / "a.wav", tones(900), RATE)
    features(capsys, tmp_path / "a.wav", tmp_path)
    assert read_mel(tmp_path / "a.npz", TASK, RATE).scale == "power"


def test_after_the_last_frame_comes_that_frame_and_then_silence():
    M = mel()
    read, frames = read_mel(M, TASK, RATE, "magnitude"), M.shape[-1]
    part = read.part(frames - 2, 6)
    np.testing.assert_allclose(part[:, :3], M[:, [-2, -1, -1]])
    assert not part[:, 3:].any() and not read.part(frames + 1, 4).any()
    np.testing.assert_allclose(read.part(frames, 2), np.stack([M[:, -1], 0 * M[:, -1]], 1))


def test_what_cannot_be_used_is_one_sentence():
    M, pipeline = mel(), vocoder()
    for sentence, values, scale in [
        (r"expected one mel spectrogram \[20, frames\] or \[frames, 20\], got \[80, 40\]", np.ones((80, 40)), "ln"),
        (r"got \[2, 20, 40\]", np.ones((2, 20, 40)), "ln"),
        (r"got \[20\]", np.ones(20), "ln"),
        (r"is empty, its shape is \[20, 0\]", np.ones((20, 0)), "auto"),
        ("expected floating point numbers, got int64", np.ones((20, 4), np.int64), "ln"),
        ("holds numbers that are not finite", np.where(M > 0.05, np.nan, M), "auto"),
        ("holds numbers that are not finite", np.full((20, 4), -np.inf), "ln"),
        ("its largest number 61 is 61 dB as decibels, and no sound", np.full((20, 4), 61.0), "db"),
        ("its largest number 9000 is 7.82e[+]04 dB as natural logarithms of magnitudes", np.full((20, 4), 9e3), "ln"),
        ("its largest number 1e[+]30 is 600 dB as magnitudes", np.full((20, 4), 1e30), "magnitude"),
        ("holds the number -1, and energies are never negative", np.full((20, 4), -1.0), "power"),
        ("may be magnitudes or powers; say which with --mel-scale", M, "auto"),
        ("may be natural or decimal logarithms; say which with --mel-scale", np.full((20, 4), -3.0), "auto"),
    ]:
        with pytest.raises(ConfigError, match=f"^mel: .*{sentence}"):
            pipeline.from_mel(values, scale=scale)
    with pytest.raises(ConfigError, match="mel scale 'loud' is unknown; use one of auto, ln"):
        pipeline.from_mel(M, scale="loud")  # type: ignore[arg-type]
    other = Pipeline(pipeline.model._replace(task=Enhance()), pipeline.method, pipeline.params)
    with pytest.raises(ConfigError, match="is for a model of task vocode, this one has Enhance"):
        other.from_mel(M)


def header(shape, dtype="<f4"):
    """A NPY file that ends after its header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_files_that_lie_or_hold_no_mel_are_refused_before_memory_is_taken(tmp_path):
    def npz(**members):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                archive.writestr(f"{name}.npy", data)
        return file.getvalue()

    def saved(save, *args, **arrays):
        file = io.BytesIO()
        save(file, *args, **arrays)
        return file.getvalue()

    M = mel()
    whole = saved(np.savez_compressed, mel=M)
    for i, (sentence, data) in enumerate([
        ("10000000000 frames are 11111.1 hours of sound, at most 4 are made", npz(mel=header((20, 10**10)))),
        ("not a NPY or NPZ file", header((20, 10**10))),
        ("not a NPY or NPZ file", npz(mel=header((20, 10**4)))),
        ("not a NPY or NPZ file", b""),
        ("not a NPY or NPZ file", b"\x93NUMPY\x01\x00"),
        ("not a NPY or NPZ file", b"RIFF and no array"),
        ("not a NPY or NPZ file", whole[: len(whole) // 2]),
        ("not a NPY or NPZ file", whole[:200] + bytes(100) + whole[300:]),
        ("not a NPY or NPZ file", npz(mel=b"text")),
        ("not a NPY or NPZ file", saved(np.save, np.array([{}]))),
        ("expected floating point numbers, got object", saved(np.savez, mel=np.array([{}]))),
        (r"holds several arrays that fit, got a \[20, 94\], b \[20, 94\]", saved(np.savez, a=M, b=M)),
        (r"holds no mel spectrogram of 20 bands, got a \[4, 94\]", saved(np.savez, a=M[:4])),
        ("holds no mel spectrogram of 20 bands, got no arrays", npz()),
        ("holds mfcc features, expected those of kind mel", saved(np.savez, mfcc=M, kind="mfcc")),
        ("has hop_length 512, and this model wants 20 Slaney", saved(np.savez, mel=M, kind="mel", hop_length=512)),
        ("has sample_rate 22050, and this model wants", saved(np.savez, mel=M, kind="mel", sample_rate=22050)),
    ]):  # fmt: skip
        path = tmp_path / f"{i}.{'npz' if data[:2] == b'PK' else 'npy'}"
        path.write_bytes(data)
        with pytest.raises(AudioError, match=sentence) as refused:
            read_mel(path, TASK, RATE)
        assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)
    with pytest.raises(AudioError, match="no such file"):
        read_mel(tmp_path / "none.npy", TASK, RATE)


def test_a_npy_file_stays_on_disk(tmp_path):
    np.save(tmp_path / "a.npy", np.log(np.maximum(mel(), 1e-5)).T)
    values = read_mel(tmp_path / "a.npy", TASK, RATE).values
    while not isinstance(values, np.memmap):
        assert values.base is not None
        values = values.base


def test_the_command_takes_sounds_and_mels_together(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "o"
    (source / "deep").mkdir(parents=True)
    soundfile.write(source / "sound.wav", tones(1600), RATE)
    features(capsys, source / "sound.wav", source, "--power", 1)
    (source / "sound.npz").rename(source / "deep" / "own.npz")
    (source / "sound.png").unlink()
    M = mel(1600)
    np.save(source / "tts.npy", SCALES["ln"](M).T)
    np.save(source / "bad.npy", np.full((20, 4), np.nan))
    weights = export(vocoder(), tmp_path / "model.safetensors")
    code, said, error = command(capsys, "vocode", source, "--model", weights, "--out", out)
    lines = said.splitlines()
    assert (code, len(lines)) == (1, 3), error
    assert "bad.npy: holds numbers that are not finite" in error and "1 of 4 files could not be used" in error
    assert lines[0] == (
        f"{out}/deep/own.wav: 0.2 s, mel [bands, frames] of 51 frames, taken as magnitudes; 20 Slaney mel bands from 0 "
        f"to 4000 Hz of STFT magnitudes, n_fft 128 and hop_length 32 at 8000 Hz"
    )
    assert lines[1] == f"{out}/sound.wav: 0.2 s"
    assert "tts.wav: 0.2 s, mel [frames, bands] of 51 frames, taken as natural logarithms of magnitudes; " in lines[2]
    assert "; assumed to be 20 Slaney mel bands" in lines[2]
    for name, samples in (("deep/own", 1600), ("sound", 1600), ("tts", 51 * HOP)):
        assert soundfile.info(out / f"{name}.wav").frames == samples
        assert (out / f"{name}.png").stat().st_size > 1000
    sidecar = json.loads((out / "tts.json").read_text())
    assert (sidecar["source"], sidecar["sample_rate"], sidecar["seed"]) == (str(source / "tts.npy"), RATE, 0)
    assert sidecar["mel"] == {
        "bands": 20, "frames": 51, "orientation": "[frames, bands]", "scale": "ln", "scale_found": True,
        "sample_rate": RATE, "n_fft": N_FFT, "hop_length": HOP, "fmin": 0.0, "fmax": 4000.0, "norm": "slaney",
        "assumed": ["sample_rate", "hop_length", "n_fft"],
    }  # fmt: skip
    assert json.loads((out / "deep" / "own.json").read_text())["mel"]["assumed"] == []
    made, _ = soundfile.read(out / "tts.wav")
    np.testing.assert_allclose(made, vocoder().from_mel(source / "tts.npy").waves[0], atol=2 / 2**15)
    loud = command(
        capsys, "vocode", source / "tts.npy", "--model", weights, "--out", tmp_path / "p", "--mel-scale", "power"
    )
    assert (loud[0], "never negative" in loud[2]) == (1, True)
