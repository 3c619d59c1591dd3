"""`jaxdiff edit`: what is made fits what is around it, exactly where that is known; the rest keeps every bit."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from gaussians import posterior

from jaxdiff.cli.edit import _seconds
from jaxdiff.cli.main import main
from jaxdiff.config import ConfigError, from_dict
from jaxdiff.config import model as build_model
from jaxdiff.diffusion import RectifiedFlow, spaced_times
from jaxdiff.features import CompressedStft, Magnitude, Patches
from jaxdiff.inference import Pipeline, edits, export, variations
from jaxdiff.inference.load import pipeline_of
from jaxdiff.methods import Diffusion, Model, Regression, Sampling
from jaxdiff.methods.edit import slerp
from jaxdiff.networks import Network
from jaxdiff.tasks import Generate, Vocode
from jaxdiff.tasks.edit import Fill, Filling, known_frames

D, RATE = 64, 1000  # samples of a window, and their rate in Hz
COVARIANCE = 0.9 ** np.abs(np.subtract.outer(np.arange(D), np.arange(D)))  # an autoregressive process
TREE = {
    "data": {"seconds": 0.256, "sample_rate": 8000},
    "network": {"kind": "convnext", "width": 8, "depth": 1},
    "sampling": {"steps": 2},
}
STFT, MAGNITUDE = (
    {"kind": "compressed_stft", "n_fft": 128, "hop_length": 32},
    {"kind": "magnitude", "n_fft": 128, "hop_length": 32, "n_iter": 4, "phase_period": 16},
)


def gaussian(steps=12):
    """A pipeline whose network is the exact denoiser of a Gaussian process: what it makes of a place is known."""
    schedule = RectifiedFlow()
    values, axes = np.linalg.eigh(COVARIANCE)

    def apply(params, x_t, t, cond, *, r=None, key=None):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        c, axes_ = jnp.asarray(values, x_t.dtype), jnp.asarray(axes, x_t.dtype)
        return ((x_t[..., 0] @ axes_ * (alpha * c / (alpha**2 * c + sigma**2))) @ axes_.T)[..., None]

    model = Model(Network(lambda key: {}, apply), Patches(RATE, 1), Generate())
    method = Diffusion(schedule=schedule, prediction="x0")
    return Pipeline(model, method, {}, seconds=D / RATE, sampling=Sampling(steps=steps))


def white():
    """The same for white noise, in windows of any length."""
    schedule = RectifiedFlow()

    def apply(params, x_t, t, cond, *, r=None, key=None):
        alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
        return alpha / (alpha**2 + sigma**2) * x_t

    model = Model(Network(lambda key: {}, apply), Patches(RATE, 10), Generate(peak_db=-6.0))
    return Pipeline(model, Diffusion(schedule=schedule), {}, seconds=0.1, sampling=Sampling(steps=12))


def network(representation, classes=()):
    """A pipeline with random weights, which makes noise."""
    config = from_dict({**TREE, "representation": representation, "normalize": {"enabled": False}})
    params = jax.jit(build_model(config, classes, None).network.init)(jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(x + 0.1 * rng.standard_normal(x.shape), x.dtype), params)
    return pipeline_of(config, classes, params, None, step=3, fingerprint="f" * 64)


@pytest.fixture(scope="module")
def process():
    return gaussian()


kept_filler = functools.cache(edits._filler)  # its program is compiled once for many places


@pytest.fixture(scope="module")
def stft():
    return network(STFT)


@pytest.fixture(scope="module")
def magnitude():
    return network(MAGNITUDE, ("bell", "drum"))


def drawn(samples, *, seed=0, channels=None):
    """The process, of any length."""
    rng = np.random.default_rng(seed)
    y = np.zeros((samples, channels or 1))
    e = rng.standard_normal(y.shape)
    y[0] = e[0]
    for n in range(1, samples):
        y[n] = 0.9 * y[n - 1] + np.sqrt(1 - 0.81) * e[n]
    return (y.T if channels else y[:, 0]).astype(np.float32)


# What is made -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit, tolerance", [pytest.param(8, 0.1, marks=pytest.mark.slow), (4, 0.17), (0, 0.5)])
def test_a_place_has_the_posterior_of_a_gaussian_process_given_both_sides(fit, tolerance, process):
    y, unknown, count = drawn(D), np.zeros(D, bool), 1000
    unknown[24:40] = True
    filler = edits._filler(process, 1.0, fit)
    alike = lambda row: jnp.broadcast_to(row, (count, D))  # noqa: E731
    batch = {"wave": alike(y), "unknown": alike(unknown), "label": jnp.full(count, -1)}
    given = filler.model.task.given(filler.model.representation, batch, Filling())
    sample = filler.method.make_sample(filler.model, filler.sampling, spaced_times(RectifiedFlow(), 12))
    noise, keys = jax.random.normal(jax.random.key(0), (count, D, 1)), jax.random.split(jax.random.key(1), count)
    made = np.asarray(jax.jit(lambda given: sample({}, given, noise, keys))(given))[..., 0]
    np.testing.assert_allclose(made[:, ~unknown], np.broadcast_to(y[~unknown], (count, D - 16)), atol=1e-6)
    known = np.eye(D)[~unknown]
    mean, covariance = posterior(np.zeros(D), COVARIANCE, known, (known @ y)[None], np.zeros((D - 16, D - 16)))
    deviation = np.sqrt(np.diag(covariance)[unknown])
    error = (made[:, unknown].mean(0) - mean[0, unknown]) / deviation
    assert np.sqrt((error**2).mean()) <= tolerance
    if fit:
        np.testing.assert_allclose(made[:, unknown].std(0) / deviation, 1, atol=tolerance)
        ours = np.corrcoef(made[:, unknown].T)
        theirs = covariance[np.ix_(unknown, unknown)] / np.outer(deviation, deviation)
        np.testing.assert_allclose(ours, theirs, atol=tolerance)


@pytest.mark.parametrize("exact", [True, False])
def test_known_features_are_set_right_in_every_estimate(exact):
    r = CompressedStft(8000, 128, 32) if exact else Magnitude(8000, 128, 32, n_iter=4, phase_period=16)
    y = (0.1 * np.random.default_rng(0).standard_normal((2, 2048))).astype(np.float32)
    unknown = np.zeros((2, 2048), bool)
    unknown[:, 700:1000], unknown[1, :30] = True, True
    task = Fill(iterations=2)

    @jax.jit
    def guided(y, unknown, noise):
        given = task.given(r, {"wave": y, "unknown": unknown, "label": np.array([-1, -1])})
        other = r.encode(noise)
        estimate = task.guide(r, lambda x_t, t: other + 0.1 * x_t, RectifiedFlow(), given)(given.start, jnp.array(0.5))
        return known_frames(r, unknown)[..., 0], r.encode(y), estimate, r.decode(estimate) if exact else y

    noise = np.random.default_rng(1).standard_normal((2, 2048), np.float32)
    frames, features, estimate, decoded = map(np.asarray, guided(y, unknown, noise))
    first, last = np.flatnonzero(~frames[0])[[0, -1]]
    assert (32 * first - 64 < 700 < 32 * first + 64) and (32 * last - 64 < 999 < 32 * last + 64)
    assert 32 * (first - 1) + 64 <= 700 and 32 * (last + 1) - 64 >= 999 and not frames[1, 0] and frames[0, 0]
    np.testing.assert_allclose(estimate[frames], features[frames], atol=2e-5)
    if exact:
        np.testing.assert_allclose(decoded[~unknown], y[~unknown], atol=2e-5)


def test_phases_of_magnitudes_go_on_from_what_is_known():
    """Two sines of which the magnitudes are known and a part of the samples is not."""
    r, t = Magnitude(8000, 256, 64, n_iter=8, phase_period=16), np.arange(8192) / 8000
    y = jnp.asarray(np.sin(2 * np.pi * 440 * t) + 0.5 * np.sin(2 * np.pi * 1234 * t), jnp.float32)[None]
    unknown = jnp.zeros((1, 8192), bool).at[:, 3000:3400].set(True)
    task = Fill()
    batch = {"wave": y, "unknown": unknown, "label": jnp.array([-1])}
    made = jax.jit(lambda x0: task.finish(r, x0, task.given(r, batch)))(r.encode(y))
    errors, without = (np.abs(np.asarray(z - y))[0] for z in (made, jax.jit(r.decode)(r.encode(y))))
    for end in (slice(2990, 3050), slice(3350, 3410)):
        assert errors[end].mean() < 0.4 * without[end].mean(), (errors[end].mean(), without[end].mean())
    assert errors[[2999, 3400]].max() < 0.2


@pytest.mark.parametrize("channels", [None, 2])
@pytest.mark.parametrize("place", [(0.5, 0.52), (0.0, 0.03), (0.97, 1.0), (0.3, 0.7), (0.0, 1.0), (0.5, 0.501)])
def test_samples_outside_a_place_keep_their_bits(place, channels, process, monkeypatch):
    monkeypatch.setattr(edits, "_filler", kept_filler)
    y = drawn(1000, channels=channels)
    made = edits.replace(process, y, RATE, *place, seed=4)
    inside = np.zeros(1000, bool)
    inside[round(place[0] * RATE) : round(place[1] * RATE)] = True
    assert made.shape == y.shape and made.dtype == y.dtype
    np.testing.assert_array_equal(made[..., ~inside], y[..., ~inside])
    assert (made[..., inside] != y[..., inside]).all()
    np.testing.assert_array_equal(edits.replace(process, y, RATE, *place, seed=4), made)
    assert (edits.replace(process, y, RATE, *place, seed=5)[..., inside] != made[..., inside]).all()


def test_a_place_of_many_windows_is_like_the_process(process):
    """The spread, and how neighbours hang together, of what was made window by window."""
    y = drawn(1000)
    made = edits.replace(process, y, RATE, 0.1, 0.9)[100:900]
    longer = edits.extend(process, y, RATE, 4.0)[1000:]
    for part in (made, longer):
        assert part.std() == pytest.approx(1, rel=0.35)
        assert np.corrcoef(part[:-1], part[1:])[0, 1] == pytest.approx(0.9, abs=0.07)
        assert np.abs(np.diff(part)).max() < 8 * np.sqrt(1 - 0.81)
    assert abs(longer[0] - y[-1]) < 4 * np.sqrt(1 - 0.81)


@pytest.mark.parametrize("seconds", [0.001, 0.0304, 0.5])
def test_a_sound_goes_on_for_exactly_so_long(seconds, process):
    y = drawn(333, channels=2)
    longer = edits.extend(process, y, RATE, seconds)
    assert longer.shape == (2, 333 + round(seconds * RATE))
    np.testing.assert_array_equal(longer[:, :333], y)
    assert (longer[:, 333:] != 0).all()


def test_a_loop_has_no_seam(process):
    y = drawn(1001) + np.linspace(-3, 3, 1001, dtype=np.float32)  # which jumps by 6 at its seam
    made = edits.loop(process, y, RATE, seam=0.02)
    np.testing.assert_array_equal(made[20:-20], y[20:-20])
    whole = np.concatenate([made, made])
    steps = np.abs(np.diff(whole))
    assert np.abs(y[0] - y[-1]) > 5 and steps[1000] <= steps[:1000].max()
    assert edits.loop(process, drawn(8), RATE, seam=9.0).shape == (8,)


@pytest.mark.parametrize("name, rate", [("stft", 8000), ("stft", 44_100), ("magnitude", 6000)])
def test_any_rate_is_edited_without_a_step_at_the_ends(name, rate, request):
    pipeline, fade = request.getfixturevalue(name), round(edits.FADE_SECONDS * rate)
    t = np.arange(rate) / rate
    y = (0.1 * np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 0.4 * rate * t)])).astype(np.float32)
    made = edits.replace(pipeline, y, rate, 0.5, 0.6, label="drum" if pipeline.classes else None, fit=0)
    first, last = rate // 2, round(0.6 * rate)
    np.testing.assert_array_equal(made[:, :first], y[:, :first])
    np.testing.assert_array_equal(made[:, last:], y[:, last:])
    assert np.abs(made[:, first:last] - y[:, first:last]).max() > 0.01
    for edge in (first, last):
        around = np.diff(made[:, edge - fade : edge + fade])
        assert (np.abs(around[:, fade - 1]) <= 1.5 * np.sort(np.abs(around))[:, -4]).all()


def test_what_is_beside_a_place_fades_out_inside_it():
    piece, beside = np.zeros((1, 8), np.float32), np.array([[1.0, 1.0, 1.0]])
    edits._fade_out(piece, beside)
    np.testing.assert_allclose(piece[0], [1, 0.75, 0.25, 0, 0, 0, 0, 0], atol=1e-6)
    edits._fade_out(piece[:, ::-1], np.ones((1, 100)))
    assert piece[0, -1] == 1 and piece[0, 4] > 0 and piece[0, 3] == 0


def test_a_place_that_begins_with_a_clip_is_like_it_as_far_as_the_strength_says(process):
    y, clip = np.zeros(400, np.float32), drawn(50, seed=9)
    distances = []
    for strength in (0.0, 0.3, 1.0):
        like = edits.heard(clip, RATE)
        made = edits.replace(process, y, RATE, 0.1, 0.3, like=like, strength=strength, fit=0)[100:300]
        distances.append(np.abs(made - np.tile(clip, 4))[20:-20].mean())
    assert distances[0] < 1e-6 < distances[1] < distances[2]
    stereo = edits._laid(edits.heard(np.stack([clip, -clip]), 2 * RATE), edits.heard(drawn(400), RATE), 70)
    assert stereo.shape == (1, 70) and np.abs(stereo).max() == 0


def test_silence_is_filled_at_the_model_s_own_level(process):
    task = Fill(peak_db=-6.0)
    assert float(task.gain(0.0)) == 1 and float(Fill().gain(0.0)) == 1
    assert float(task.gain(0.25)) == pytest.approx(10 ** (-6 / 20) / 0.25)


def test_a_variation_of_strength_0_is_the_sound_and_of_1_another():
    y = drawn(300, channels=2)
    pipeline = white()
    same, near, far = (variations.vary(pipeline, y, RATE, strength) for strength in (0.0, 0.3, 1.0))
    np.testing.assert_allclose(same, y, atol=1e-6)
    assert same.shape == near.shape == far.shape == y.shape
    assert 1e-3 < np.abs(near - y).mean() < np.abs(far - y).mean()


def test_between_two_sounds_lie_both_at_the_ends():
    a, b = drawn(300, channels=2), 0.5 * drawn(500, seed=1, channels=2)
    for share, end in ((0.0, a), (1.0, b[:, :300])):
        errors = [
            np.abs(variations.interpolate(white(), a, RATE, b, RATE, share=share, steps=steps) - end).max()
            for steps in (16, 64)
        ]
        assert errors[1] < 0.01 and errors[1] < errors[0] / 3, errors
    middle = variations.interpolate(white(), a, RATE, b, RATE)
    assert middle.shape == (2, 300)
    assert middle.std() == pytest.approx(np.sqrt(a.std() * b[:, :300].std()), rel=0.2)
    mono = variations.interpolate(white(), a, RATE, b.mean(0), RATE, share=1.0)
    np.testing.assert_allclose(mono[0], mono[1], atol=0.01)


def test_the_noises_are_mixed_on_the_sphere():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4000, 2), np.float32)
    mix = jax.jit(slerp)
    for share in (0.0, 0.25, 0.5, 1.0):
        mixed = np.asarray(mix(a, b, share))
        assert mixed.std() == pytest.approx(1, abs=0.02)
        angles = [np.arccos(np.corrcoef(mixed.ravel(), end.ravel())[0, 1]) for end in (a, b)]
        np.testing.assert_allclose(angles, [share * np.pi / 2, (1 - share) * np.pi / 2], atol=0.03)
    np.testing.assert_allclose(mix(a, a, 0.5), a, atol=1e-3)


# Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [(0.3, 0.3), (0.4, 0.3), (-0.1, 0.3), (0.5, 1.5)])
def test_a_place_must_be_inside_the_sound(place, process):
    with pytest.raises(ConfigError, match="expected a beginning before an end inside the sound of 1 s"):
        edits.replace(process, drawn(1000), RATE, *place)


def test_models_and_sounds_that_cannot_be_edited_are_refused(process, magnitude):
    y = drawn(300)
    for task, method in ((Vocode(), process.method), (Generate(), Regression())):
        other = Pipeline(process.model._replace(task=task), method, {})
        with pytest.raises(ConfigError, match="the model must generate by diffusion to edit sounds"):
            edits.replace(other, y, RATE, 0.1, 0.2)
    with pytest.raises(ConfigError, match="label 'oboe' is unknown; use one of bell, drum"):
        edits.extend(magnitude, y, RATE, 1.0, label="oboe")
    with pytest.raises(ConfigError, match="temperature: method Edit has no such option"):
        edits.loop(process, y, RATE, temperature=2.0)
    with pytest.raises(ConfigError, match="expected a length of at least one sample"):
        edits.extend(process, y, RATE, 1e-6)
    with pytest.raises(ConfigError, match="give a longer one"):
        edits.loop(process, y[:3], RATE)
    for wrong in (np.zeros((0,), np.float32), np.zeros(9, int), np.zeros((1, 2, 3)), np.full(9, np.nan)):
        with pytest.raises(ConfigError, match="sound: "):
            edits.heard(wrong, RATE)
    with pytest.raises(ConfigError, match="sr: say"):
        edits.heard(y)


def test_only_start_and_end_make_a_place():
    assert _seconds(" 1.5:2.25 ") == (1.5, 2.25) and _seconds("0:.5") == (0, 0.5)
    for wrong in ("1", "1:", ":1", "2:1", "1:1", "a:b", "-1:2", "1:2:3", "nan:1", "1e3:2e3", ""):
        with pytest.raises(ValueError, match="--replace .*: expected START:END in seconds"):
            _seconds(wrong)


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(magnitude, tmp_path_factory):
    """A model and two sounds."""
    path = tmp_path_factory.mktemp("edit")
    export(magnitude, path / "m.safetensors")
    rng = np.random.default_rng(0)
    soundfile.write(path / "a.flac", rng.uniform(-0.3, 0.3, (16_000, 2)), 16_000, subtype="PCM_24")
    soundfile.write(path / "b.wav", rng.uniform(-0.3, 0.3, 9000), 8000)
    return path


def edit(folder, out, *options):
    with pytest.raises(SystemExit) as done:
        main(["edit", str(folder / "a.flac"), "--out", str(out), "--model", str(folder / "m.safetensors"), *options])
    return done.value.code


@pytest.mark.parametrize(
    "options, places, longer",
    [
        (["--replace", "0.4:0.5", "--like", "bell", "--steps", "3", "--fit", "1"], [[0.4, 0.5]], 0),
        (["--extend-by", "0.25", "--seed", "7", "--fit", "0"], [[1.0, 1.25]], 4000),
        (["--loop", "--seam", "0.05", "--fit", "0"], [[0.0, 0.05], [0.95, 1.0]], 0),
    ],
)
def test_the_command_changes_its_places_and_nothing_else(options, places, longer, folder, tmp_path, capsys):
    assert edit(folder, tmp_path / "o", *options) == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["a.json", "a.png", "a.wav"]
    before, after = (soundfile.read(p, dtype="int32")[0] for p in (folder / "a.flac", tmp_path / "o" / "a.wav"))
    assert len(after) == 16_000 + longer and soundfile.info(tmp_path / "o" / "a.wav").subtype == "PCM_24"
    changed = np.zeros(len(after), bool)
    for start, stop in places:
        changed[round(start * 16_000) : round(stop * 16_000)] = True
    np.testing.assert_array_equal(after[: len(before)][~changed[: len(before)]], before[~changed[: len(before)]])
    assert (after[: len(before)] != before)[changed[: len(before)]].mean() > 0.9 or longer
    about = json.loads((tmp_path / "o" / "a.json").read_text())
    assert about["places"] == places and about["seed"] == (7 if longer else 0)
    assert about["steps"] == (3 if "--steps" in options else 2) and about["checkpoint"]["sha256"]
    assert about["model_rate"] == 8000 and about["sample_rate"] == 16_000
    assert about["changed_samples"] == 2 * changed.sum() and about["unchanged_samples"] == 2 * (~changed).sum()
    assert about["unchanged_verified"] is True and about["subtype"] == "PCM_24"
    said = capsys.readouterr().out
    assert "samples are the file's, bit for bit (PCM_24, checked)" in said and "which holds up to 4000 Hz" in said


def test_the_command_varies_and_goes_between(folder, tmp_path):
    assert edit(folder, tmp_path / "v", "--variation", "0.5", "--like", "drum") == 0
    assert soundfile.info(tmp_path / "v" / "a.wav").frames == 16_000
    assert json.loads((tmp_path / "v" / "a.json").read_text())["strength"] == 0.5
    assert edit(folder, tmp_path / "i", "--interpolate", str(folder / "b.wav"), "--share", "0.25", "--steps", "2") == 0
    info, about = soundfile.info(tmp_path / "i" / "a.wav"), json.loads((tmp_path / "i" / "a.json").read_text())
    assert (info.frames, info.channels, info.samplerate) == (16_000, 2, 16_000)
    assert about["share"] == 0.25 and about["steps"] == 2 and about["other"].endswith("b.wav")
    assert (tmp_path / "i" / "a.png").exists() and (tmp_path / "v" / "a.png").exists()


def test_a_place_can_begin_with_a_sound_file(folder, tmp_path):
    options = ["--replace", "0.2:0.4", "--like", str(folder / "b.wav"), "--strength", "0", "--fit", "0"]
    assert edit(folder, tmp_path, *options) == 0
    assert json.loads((tmp_path / "a.json").read_text())["strength"] == 0


def test_a_folder_is_no_sound(folder, capsys):
    with pytest.raises(SystemExit) as done:
        main(["edit", str(folder), "--out", str(folder / "o"), "--model", str(folder / "m.safetensors"), "--loop"])
    assert done.value.code == 2 and "is a folder; give one sound file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message, code",
    [
        ([], "give one of --replace, --extend-by, --loop, --variation, --interpolate, got none", 2),
        (["--loop", "--variation", "0"], "got --loop and --variation", 2),
        (["--replace", "5"], "--replace 5: expected START:END in seconds", 2),
        (["--replace", "0.5:7"], "place 0.5 to 7 s: expected a beginning before an end inside the sound of 1 s", 2),
        (["--loop", "--like", "oboe"], "--like oboe: is no class of the model; its classes are one of bell, drum", 2),
        (["--replace", "0:1", "--like", "no.wav"], "--like no.wav: is no class of the model and no sound file", 2),
        (["--interpolate", "no.wav"], "no.wav: no such file", 1),
        (["--interpolate", "{b}", "--guidance", "2"], "guidance: method Between has no such option", 2),
        (["--variation", "1.5"], "--variation: expected at least 0 and at most 1, got 1.5", 2),
    ],
)
def test_mistakes_are_said_in_one_sentence(options, message, code, folder, tmp_path, capsys):
    options = [option.format(b=folder / "b.wav") for option in options]
    assert edit(folder, tmp_path / "o", *options) == code
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said
    assert not (tmp_path / "o").exists() or not list((tmp_path / "o").iterdir())
