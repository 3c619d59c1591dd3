"""`jaxdiff enhance`: any file in, one of its length, rate and channels out, and mistakes lose nothing."""

import functools
import gc
import json
import resource
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from oracles import drawn

from jaxdiff import inference
from jaxdiff.cli.main import main
from jaxdiff.config import from_dict, model
from jaxdiff.data import read_audio
from jaxdiff.features import integrated_loudness, true_peak
from jaxdiff.inference import export, load, pictures, sounds
from jaxdiff.inference import files as inference_files
from jaxdiff.inference import pipeline as module
from jaxdiff.inference.files import Target, process_file
from jaxdiff.inference.load import pipeline_of
from jaxdiff.inference.meter import LoudnessMeter, PeakMeter
from jaxdiff.tasks import Enhance

CONFIG = {
    "data": {"sample_rate": 8000, "seconds": 0.256},
    "task": {"kind": "enhance", "peak_db": -6},
    "representation": {"kind": "compressed_stft", "n_fft": 64, "hop_length": 32},
    "network": {"kind": "subband", "channels": 4, "width": 4, "subbands": 4, "depth": 1, "heads": 1},
    "method": {"kind": "regression"},
    "normalize": {"enabled": False},
}


def enhancer():
    """An untrained model that takes something away."""
    config, passing = from_dict(CONFIG), np.zeros((8, 4), np.float32)
    passing[2:6, 0] = 1  # the mask that leaves all as it is
    params = drawn(model(config, (), None).network, 0.15)
    params["output"]["bias"] += passing.ravel()
    return pipeline_of(config, (), params, None, step=1, fingerprint="f" * 64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return export(enhancer(), tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """`load`, of each file once: the commands of a file of weights share their programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "load", once := functools.cache(load))
        yield lambda path: once(path, ema=None)


@pytest.fixture(scope="module")
def pipeline(weights, loaded):
    return loaded(weights)


def noisy(samples, channels=1, seed=0, level=0.1):
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 8000
    return (level * (np.sin(2 * np.pi * 300 * t) + 0.3 * rng.standard_normal((channels, samples)))).T


def enhance(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["enhance", *map(str, arguments)])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


ODD = {
    "one_sample": (44_100, 1, 1, "PCM_16"),
    "five_ms": (16_000, 80, 2, "PCM_16"),
    "surround": (48_000, 3001, 6, "PCM_16"),
    "high_rate": (96_000, 9001, 1, "PCM_24"),
    "low_rate": (8000, 4001, 1, "PCM_16"),
    "floats": (22_050, 7000, 2, "FLOAT"),
}


@pytest.mark.slow
def test_odd_files_keep_their_length_rate_and_channels(weights, tmp_path, capsys):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i, (name, (rate, samples, channels, subtype)) in enumerate(ODD.items()):
        soundfile.write(tmp_path / "in" / "deep" / f"{name}.wav", noisy(samples, channels, i), rate, subtype=subtype)
    for name, y in (("silence", np.zeros(4000)), ("dc", np.full(4000, 0.5))):
        soundfile.write(tmp_path / "in" / f"{name}.wav", y, 8000)
    code, said, error = enhance(capsys, tmp_path / "in", "--model", weights, "--out", tmp_path / "out")
    assert (code, error) == (0, "")
    assert len(said.splitlines()) == len(ODD) + 2
    for name, (rate, samples, channels, subtype) in ODD.items():
        made = soundfile.info(tmp_path / "out" / "deep" / f"{name}.wav")
        kept = "PCM_16" if subtype == "PCM_16" else "PCM_24"
        assert (made.samplerate, made.frames, made.channels, made.subtype) == (rate, samples, channels, kept)
        assert (tmp_path / "out" / "deep" / f"{name}.png").stat().st_size > 1000
    for name in ("silence", "dc"):
        y, rate = soundfile.read(tmp_path / "out" / f"{name}.wav")
        assert (len(y), rate) == (4000, 8000) and np.isfinite(y).all()
        assert name == "dc" or not y.any()


@pytest.mark.slow
def test_what_is_left_and_what_was_removed_add_up_to_the_file(weights, tmp_path, capsys):
    rate, y = 16_000, noisy(16_000 * 2, 2)
    soundfile.write(tmp_path / "a.wav", y, rate, subtype="FLOAT")
    code, said, _ = enhance(
        capsys, tmp_path / "a.wav", "--model", weights, "--out", tmp_path / "o", "--residual", "--seed", 3
    )
    left, removed = (soundfile.read(tmp_path / "o" / f"a{end}.wav")[0] for end in ("", ".residual"))
    np.testing.assert_allclose(left + removed, y, atol=2 / 2**23)
    assert np.abs(removed).max() > 1e-3 and np.abs(left).max() > 1e-3
    snr = 10 * np.log10((left**2).sum() / (removed**2).sum())
    sidecar = json.loads((tmp_path / "o" / "a.json").read_text())
    assert (sidecar["snr_db"], sidecar["seed"]) == (pytest.approx(snr, abs=0.02), 3)
    assert sidecar["request"] == {"strength": 1.0, "max_reduction": None}
    assert sidecar["checkpoint"]["sha256"] == load(weights).fingerprint
    before, after = (
        float(integrated_loudness(jnp.asarray(x.T, jnp.float32), sr=rate, channels_axis=-2)) for x in (y, left)
    )
    assert (
        code,
        f"a.wav: 2.0 s, noise removed (SNR about {snr:.0f} dB), {before:.1f} -> {after:.1f} LUFS" in said,
    ) == (0, True)


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_strength_0_gives_the_file_back_in_place(rate, weights, tmp_path, capsys):
    """To the sample: nothing is late, and nothing above the model's band is lost."""
    y = noisy(20_000)
    soundfile.write(tmp_path / "a.wav", y, rate, subtype="PCM_24")
    code, said, _ = enhance(capsys, tmp_path / "a.wav", "--model", weights, "--out", tmp_path / "o", "--strength", 0)
    made, _ = soundfile.read(tmp_path / "o" / "a.wav", always_2d=True)
    assert code == 0
    np.testing.assert_allclose(made, y, atol=1e-5)


@pytest.mark.parametrize(("wanted", "limit", "held"), [(-30.0, -1.0, False), (-8.0, -3.0, True)])
def test_loudness_is_reached_as_far_as_the_true_peak_allows(wanted, limit, held, weights, tmp_path, capsys):
    y = np.concatenate([noisy(16_000), noisy(16_000, level=0.02)]) * np.array([1.0, 0.5])
    soundfile.write(tmp_path / "a.wav", y, 16_000)
    aim = ["--loudness", wanted, "--true-peak", limit, "--residual"]
    code, said, _ = enhance(capsys, tmp_path / "a.wav", "--model", weights, "--out", tmp_path / "o", *aim)
    made = jnp.asarray(read_audio(tmp_path / "o" / "a.wav", channels="all"))
    loudness, peak = float(integrated_loudness(made, sr=16_000, channels_axis=-2)), float(true_peak(made).max())
    sidecar = json.loads((tmp_path / "o" / "a.json").read_text())
    assert (code, "held back by its true peak" in said) == (0, held)
    assert sidecar["loudness_after"] == pytest.approx(loudness, abs=0.05)
    assert peak <= limit + 0.02
    if held:
        assert loudness < wanted - 1 and peak == pytest.approx(limit, abs=0.05)
    else:
        assert loudness == pytest.approx(wanted, abs=0.2)
    rest, _ = soundfile.read(tmp_path / "o" / "a.residual.wav")
    gain = 10 ** (sidecar["gain_db"] / 20)
    np.testing.assert_allclose(np.asarray(made).T + rest, gain * y, atol=2e-3 * gain)  # gain_db has two digits


@pytest.mark.slow
def test_steps_are_those_after_the_first_estimate(loaded, tmp_path, capsys):
    tree = {**CONFIG, "method": {"kind": "bridge"}, "network": {**CONFIG["network"], "heads": 2}}
    config = from_dict(tree)
    params = drawn(model(config, (), None).network, 0.2)
    bridge = pipeline_of(config, (), params, None, step=1, fingerprint="f" * 64)
    weights = export(bridge, tmp_path / "bridge.safetensors")
    soundfile.write(tmp_path / "a.wav", noisy(3000), 8000)
    made = []
    for refining in (0, 2):
        out = tmp_path / str(refining)
        code, _, error = enhance(capsys, tmp_path / "a.wav", "--model", weights, "--out", out, "--steps", refining)
        assert (code, error) == (0, "")
        assert json.loads((out / "a.json").read_text())["steps"] == 1 + refining
        made.append(soundfile.read(out / "a.wav")[0])
        expected = loaded(weights)(tmp_path / "a.wav", steps=1 + refining).waves[0]
        np.testing.assert_allclose(made[-1], expected, atol=1e-4)
    assert np.abs(made[0] - made[1]).max() > 1e-2


def test_silence_has_no_loudness_to_raise(weights, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    code, said, error = enhance(
        capsys, tmp_path / "a.wav", "--model", weights, "--out", tmp_path / "o", "--loudness", -16
    )
    assert (code, error) == (0, "")
    assert "a.wav: 1.0 s, nothing removed, -70.0 -> -70.0 LUFS" in said


def test_a_bad_file_amid_a_batch_is_reported_and_the_rest_are_done(weights, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a", "c"):
        soundfile.write(tmp_path / "in" / f"{name}.wav", noisy(3000), 8000)
    (tmp_path / "in" / "b.wav").write_bytes((tmp_path / "in" / "a.wav").read_bytes()[:2000])
    soundfile.write(tmp_path / "in" / "d.wav", np.array([0.1, np.nan] * 500), 8000, subtype="FLOAT")
    code, said, error = enhance(capsys, tmp_path / "in", "--model", weights, "--out", tmp_path / "o")
    assert (code, len(said.splitlines()), len(error.splitlines())) == (1, 2, 3)
    assert "b.wav: truncated" in error and "d.wav: holds samples that are not finite" in error
    assert "2 of 4 files could not be used, the others are done" in error
    ends = ("wav", "png", "json")
    assert {p.name for p in (tmp_path / "o").iterdir()} == {f"{n}.{end}" for n in "ac" for end in ends}
    code, *_ = enhance(capsys, tmp_path / "in" / "b.wav", "--model", weights, "--out", tmp_path / "new")
    assert code == 1 and not (tmp_path / "new").exists()


def test_mistakes_are_said_before_any_work(weights, tmp_path, capsys):
    for name in ("a", "a.residual"):
        soundfile.write(tmp_path / f"{name}.wav", noisy(3000), 8000)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.residual.wav").write_text("precious")
    file, out = tmp_path / "a.wav", tmp_path / "o"
    for sentence, arguments in [
        ("a.residual.wav: exists", [file, "--model", weights, "--out", tmp_path / "there", "--residual"]),
        ("a.residual.wav: would be the result of two files",
         [file, tmp_path / "a.residual.wav", "--model", weights, "--out", out, "--residual"]),
        ("--strength: expected at least 0", [file, "--model", weights, "--out", out, "--strength", 2]),
        ("--max-reduction: expected above 0", [file, "--model", weights, "--out", out, "--max-reduction", 0]),
        ("--true-peak: is a limit to --loudness", [file, "--model", weights, "--out", out, "--true-peak", -1]),
        ("--device tpu: jax finds no such device", [file, "--model", weights, "--out", out, "--device", "tpu"]),
        ("makes one estimate and has no steps", [file, "--model", weights, "--out", out, "--steps", 2]),
    ]:  # fmt: skip
        code, _, error = enhance(capsys, *arguments)
        assert (code, sentence in error) == (2, True), error
        assert len(error.strip().splitlines()) == 1
    assert not out.exists()
    assert [p.read_text() for p in (tmp_path / "there").iterdir()] == ["precious"]


def test_a_full_disk_loses_nothing_that_was_there(pipeline, tmp_path):
    soundfile.write(tmp_path / "a.wav", noisy(200_000), 8000)
    (tmp_path / "o").mkdir()
    before = {f"a.{end}": f"of before: {end}" for end in ("wav", "png", "json")}
    for name, text in before.items():
        (tmp_path / "o" / name).write_text(text)
    for limit in (100_000, 900_000 - 600_000):  # bytes that a file may have: what waits, and what is written
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large|could not be written"):
                process_file(pipeline, tmp_path / "a.wav", tmp_path / "o" / "a")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {p.name: p.read_text() for p in (tmp_path / "o").iterdir()} == before


def test_a_disk_that_is_full_for_the_wav_alone_is_said_too(tmp_path):
    from jaxdiff.data.files import atomic, sound_writer

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with (
            pytest.raises(OSError, match="could not be written"),
            atomic(tmp_path / "a.wav") as temporary,
            sound_writer(temporary, tmp_path / "a.wav", 8000, 1, "PCM_16", 50_000) as file,
        ):
            for _ in range(5):
                file.write(np.zeros(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_pieces_are_what_the_whole_at_once_would_be(rate, pipeline, tmp_path, monkeypatch):
    """Short pieces and windows against one window and one piece; the upper band is put back in each."""
    y = noisy(rate * 6, 2).T.astype(np.float32)
    monkeypatch.setattr(pipeline, "window_seconds", 7.0)
    whole = pipeline(y, sr=rate).waves[0]
    monkeypatch.setattr(pipeline, "window_seconds", 1.5)
    monkeypatch.setattr(module, "OVERLAP_SECONDS", 0.5)
    monkeypatch.setattr(sounds, "PIECE_SECONDS", 1.0)
    soundfile.write(tmp_path / "a.wav", y.T, rate, subtype="FLOAT")
    facts, pieces = pipeline.in_pieces(tmp_path / "a.wav")
    given, made = (np.concatenate(parts, axis=-1) for parts in zip(*pieces, strict=True))
    assert facts["source"] == str(tmp_path / "a.wav")
    np.testing.assert_array_equal(given, y)
    inner = slice(rate // 2, -rate // 2)
    difference = np.abs(made - whole)[:, inner].max()
    assert 20 * np.log10(difference / np.sqrt((whole**2).mean())) < -60


def test_a_command_wants_a_model_of_its_task(weights, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", noisy(1000), 8000)
    with pytest.raises(SystemExit) as stop:
        main(["vocode", str(tmp_path / "a.wav"), "--model", str(weights), "--out", str(tmp_path / "o")])
    assert (stop.value.code, (tmp_path / "o").exists()) == (2, False)
    assert "has the task enhance; give a model of task vocode" in capsys.readouterr().err


def test_before_and_after_are_pictured_under_each_other_on_one_scale():
    y = noisy(8000)[:, 0].astype(np.float32)
    figure = pictures.spectrograms([y, 0.1 * y], ["before", "after"], [8000, 8000], columns=1)
    before, after = figure.axes[:2]
    assert (before.get_title(), after.get_title()) == ("before", "after")
    assert before.get_position().y0 > after.get_position().y1
    for axis in (before, after):
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("time (s)", "frequency (Hz)")
    images = [axis.collections[0] for axis in (before, after)]
    assert images[0].get_clim() == images[1].get_clim()
    assert float(np.median(images[0].get_array() - images[1].get_array())) == pytest.approx(20, abs=0.1)


@pytest.mark.slow
def test_meters_of_blocks_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    for rate, channels in ((16_000, 1), (48_000, 2), (8000, 5)):
        y = (0.1 * rng.standard_normal((channels, 3 * rate)) * np.linspace(0, 1, 3 * rate)).astype(np.float32)
        loudness, peaks = LoudnessMeter(rate, channels), PeakMeter(channels)
        for block in np.split(y, [10, 11, rate, rate + 777], axis=-1):
            loudness.add(block)
            peaks.add(block)
        assert loudness.loudness == pytest.approx(
            float(integrated_loudness(jnp.asarray(y), sr=rate, channels_axis=-2)), abs=0.01
        )
        assert peaks.true_peak == pytest.approx(float(true_peak(jnp.asarray(y)).max()), abs=0.001)
    assert LoudnessMeter(16_000, 1).loudness is None


def test_a_result_above_full_scale_is_scaled_as_a_whole_and_that_is_said(pipeline, tmp_path):
    y = noisy(8000, 2, level=2.0)
    soundfile.write(tmp_path / "a.wav", y, 8000, subtype="FLOAT")
    with pytest.warns(UserWarning, match=r"a\.wav: exceeded full scale and was scaled down as a whole by"):
        process_file(pipeline, tmp_path / "a.wav", tmp_path / "o" / "a", request=Enhance.Request(strength=0.0))
    made, _ = soundfile.read(tmp_path / "o" / "a.wav")
    scaled = json.loads((tmp_path / "o" / "a.json").read_text())["scaled_db"]
    np.testing.assert_allclose(made, y * 10 ** (scaled / 20), atol=2e-3)
    assert np.abs(made).max() == pytest.approx(0.999, abs=1e-4)


def test_the_sentence_of_a_file_that_lost_nothing():
    from jaxdiff.cli.enhance import told

    done = inference_files.Done(3.0, None, None, None, 0.0, False)
    assert told(Path("o/a.wav"), done) == "o/a.wav: 3.0 s, nothing removed"


@pytest.mark.slow
def test_a_sound_four_times_as_long_takes_no_more_memory(pipeline, tmp_path, monkeypatch):
    """All that NumPy and JAX hold at most, in short pieces: less than a byte for each further sample."""
    monkeypatch.setattr(pipeline, "window_seconds", 1.5)
    monkeypatch.setattr(module, "OVERLAP_SECONDS", 0.5)
    monkeypatch.setattr(sounds, "PIECE_SECONDS", 1.0)
    monkeypatch.setattr(inference_files, "PICTURE_SECONDS", 2.0)
    rate, seconds, most = 16_000, (16, 4, 16), []
    for i, length in enumerate(seconds):  # the first compiles
        soundfile.write(tmp_path / f"{i}.wav", noisy(rate * length), rate)
        on_device = []
        if i == 1:
            tracemalloc.start()
        gc.collect()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        process_file(
            pipeline,
            tmp_path / f"{i}.wav",
            tmp_path / "o" / str(i),
            aim=Target(-23.0, residual=True),
            tell=lambda _, held=on_device: held.append(sum(x.nbytes for x in jax.live_arrays())),
        )
        most.append(tracemalloc.get_traced_memory()[1] - before + max(on_device))
        assert len(on_device) > length / 2 and soundfile.info(tmp_path / "o" / f"{i}.wav").frames == rate * length
    tracemalloc.stop()
    assert most[2] - most[1] < rate * (seconds[2] - seconds[1])


def test_a_target_says_what_is_wanted():
    assert Target() == (None, -1.0, False)
