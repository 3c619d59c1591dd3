"""Foley: cue sheets, patterns composed in the step against literal ones, and a model that keeps to its cues."""

import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff
from jaxdiff import features, methods, networks
from jaxdiff.data import AudioError
from jaxdiff.data.cues import Cue, cut_cues, read_cues, write_cues
from jaxdiff.evaluation.onsets import Onsets, levels_at, onsets, pairs, synchrony
from jaxdiff.tasks import Cued, Foley
from jaxdiff.tasks.foley import LIKE_SECONDS, Pattern, composed, cue_frames, random_pattern

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
fetch_foley, quality_foley = importlib.import_module("fetch_foley"), importlib.import_module("quality_foley")

RATE, HOP = 8000, 64
SOUND = features.Magnitude(RATE, n_fft=128, hop_length=HOP, n_iter=8)


def sheet(tmp_path, text: str):
    path = tmp_path / "cues.csv"
    path.write_bytes(text.encode())
    return path


def test_a_sheet_is_read_as_it_was_written(tmp_path):
    cues = [Cue(3723.5, "wood, hollow", 0.25, -1.0), Cue(0.48, "footstep"), Cue(62.125, 'so "called"', 0.0, 0.5)]
    write_cues(tmp_path / "cues.csv", cues)
    assert read_cues(tmp_path / "cues.csv") == sorted(cues)


@pytest.mark.parametrize(
    "text",
    [
        "time,class,strength,pan\n0.5,knock,1,0\n62.5,knock,.25,-1\n",
        "\ufefftime;class;strength;pan\r\n0,5;knock;;\r\n;;;\r\n1:02,5;knock;0,25;-1\r\n",
        "Class\tPan\tTime\tStrength\nknock\t-1\t0:01:02.50\t0.25\nknock\t\t5e-1\n",
    ],
)
def test_sheets_of_editors_and_spreadsheets(tmp_path, text):
    assert read_cues(sheet(tmp_path, text)) == [Cue(0.5, "knock"), Cue(62.5, "knock", 0.25, -1.0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cues.csv: is empty; a cue sheet begins with the line time,class,strength,pan"),
        ("time,strength\n", "cues.csv, line 1: has no column class; begin the sheet with time,class,strength,pan"),
        ("time,class,strenght\n", "line 1: column 'strenght' is unknown; did you mean strength?"),
        ("time,class,time\n", "line 1: column 'time' stands twice; keep one of them"),
        ("0.5,knock\n", "line 1: column '0.5' is unknown; the columns are time, class, strength, pan"),
        ("time,class\n1,a\n\nx,a\n", "line 4: time: expected 0 to 14400, got 'x'"),
        ("time,class\n-1,a\n", "line 2: time: expected 0 to 14400, got '-1'"),
        ("time,class\n1:60,a\n", "line 2: time: expected 0 to 14400, got '1:60'"),
        ("time,class\nnan,a\n", "line 2: time: expected 0 to 14400, got 'nan'"),
        ("time,class\n,a\n", "line 2: time: expected 0 to 14400, got ''"),
        ("time,class\n1,\n", "line 2: class is empty; say what is to be heard"),
        ("time,class,strength\n1,a,1.5\n", "line 2: strength: expected 0 to 1, got '1.5'"),
        ("time,class,pan\n1,a,-2\n", "line 2: pan: expected -1 to 1, got '-2'"),
        ("time,class\n1,a,9\n", "line 2: has 3 cells for 2 columns"),
        ('time,class\n1,"a\n', "line 2: unexpected end of data"),
    ],
)
def test_what_is_wrong_with_a_sheet_is_said_with_its_line(tmp_path, text, said):
    with pytest.raises(AudioError) as raised:
        read_cues(sheet(tmp_path, text))
    assert said in str(raised.value)


def test_sheets_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(AudioError, match="no such cue sheet"):
        read_cues(tmp_path / "gone.csv")
    (tmp_path / "cues.csv").write_bytes(b"time,class\n1,\xff\n")
    with pytest.raises(AudioError, match="no text in UTF-8"):
        read_cues(tmp_path / "cues.csv")
    monkeypatch.setattr("jaxdiff.data.cues.MOST_CUES", 2)
    with pytest.raises(AudioError, match="line 4: more than 2 cues"):
        read_cues(sheet(tmp_path, "time,class\n" + "1,a\n" * 9))
    monkeypatch.setattr("jaxdiff.data.cues.MOST_BYTES", 8)
    with pytest.raises(AudioError, match="at most"):
        read_cues(tmp_path / "cues.csv")


def test_cues_are_cut_to_windows_and_shared_between_channels():
    cues = [Cue(1.0, "a", 0.5), Cue(5.5, "a", 1.0), Cue(6.0, "a", 0.2, 1.0), Cue(9.0, "a")]
    mono = cut_cues(cues, 5.0, 4.0, most=4)
    np.testing.assert_allclose(mono, [[[-4, 0.5], [0.5, 1], [1, 0.2], [np.inf, 0]]], atol=1e-6)
    left, right = cut_cues(cues, 5.2, 4.0, stereo=True, most=3)
    half = 10 * np.log10(0.5) / 30  # the power of the middle is halved
    np.testing.assert_allclose(left, [[0.3, 1 + half], [3.8, 1 + half], [np.inf, 0]], atol=1e-5)
    np.testing.assert_allclose(right, [[0.3, 1 + half], [0.8, 0.2], [3.8, 1 + half]], atol=1e-5)
    np.testing.assert_allclose(cut_cues(cues, 5.0, 4.0, most=2)[0], [[-4, 0.5], [0.5, 1]], atol=1e-6)


def test_a_pattern_is_composed_of_copies_at_their_samples():
    rng = np.random.default_rng(0)
    wave = rng.standard_normal((2, 4000)).astype(np.float32)
    seconds = np.array([[-1.5, -0.25, 0.1, 0.10006, 0.4], [0.0, 0.2, 0.3, 7.0, np.inf]], np.float32)
    strength = np.array([[1, 1, 0, 0.5, 1], [1 / 3, -np.inf, 1, 1, 1]], np.float32)
    expected = np.zeros((2, 4000))
    for item, k in np.ndindex(2, 5):
        at = seconds[item, k]
        if -1 <= at < 0.5:
            copy = 10 ** (1.5 * (strength[item, k] - 1)) * wave[item]
            for n in range(4000):
                place = n + round(float(at) * RATE)
                if 0 <= place < 4000:
                    expected[item, place] += copy[n]
    made = jax.jit(composed, static_argnums=2)(wave, Pattern(seconds, strength), RATE)
    np.testing.assert_allclose(made, expected, atol=1e-4)
    assert np.abs(expected).max() > 1


def test_cues_stand_in_the_frame_next_to_them():
    frame = HOP / RATE
    cues = jnp.array([[[3.4 * frame, 0.5], [10.0 * frame, 0.2], [10.3 * frame, 0.9], [-2 * frame, 0.7], [np.inf, 0]]])
    x = np.asarray(jax.jit(lambda cues: cue_frames(cues, frames=1000, frame_seconds=frame))(cues))[0]
    assert np.flatnonzero(x[:, 0]).tolist() == [3, 10]
    np.testing.assert_allclose(x[[3, 10], 1:3], [[0.5, 0.4], [0.9, 0.3]], atol=1e-4)
    age = (2 ** (4 * x[:, 3]) - 1) / 16
    np.testing.assert_allclose(age[[0, 2, 3, 4, 9, 20]] / frame, [2, 4, 0, 0.6, 5.6, 9.7], atol=1e-2)
    np.testing.assert_allclose(x[[0, 2, 3, 9, 10, 20, 500], 4], [0.7, 0.7, 0.5, 0.5, 0.9, 0.9, 0.9], atol=1e-6)
    last = 10 + int(4.0 / frame)
    assert x[last, 4] == np.float32(0.9) and x[last + 1, 4] == 0  # 4 s later it is as if there had been none
    assert age[last + 1] == pytest.approx(4, rel=1e-4)


def test_patterns_are_rhythms_and_others_of_all_strengths():
    seconds, strength = jax.jit(random_pattern, static_argnums=0)(512, 2.0, jax.random.key(0))
    steps = np.diff(seconds, axis=1)
    assert (steps > 0.05).all()
    regular = steps.std(1) < 0.06 * steps.mean(1)
    assert 0.4 < regular.mean() < 0.6
    assert strength.min() == pytest.approx(-1 / 3) and strength.max() == 1
    heard = ((seconds > 0) & (seconds < 2)).sum(1)
    assert (heard == 0).any() and (heard > 12).any()


def test_onsets_of_bursts_are_found_where_they_are():
    rng, rate, samples = np.random.default_rng(0), 16_000, 32_000
    at, gain = np.array([0.0, 0.303, 0.36, 0.9, 1.45]), np.array([0.5, 0.05, 0.5, 0.1, 0.02])
    y = 1e-5 * rng.standard_normal(samples)
    for seconds, by in zip(at, gain, strict=True):
        begin = round(seconds * rate)
        burst = rng.standard_normal(samples) * np.exp(-np.arange(samples) / (0.012 * rate))
        y[begin:] += by * burst[: samples - begin]
    found = onsets(y.astype(np.float32), rate)
    assert len(found.seconds) == 5
    np.testing.assert_allclose(found.seconds, at, atol=0.006)
    levels = levels_at(y, rate, at[[0, 3, 4]])
    np.testing.assert_allclose(levels, levels[0] + 20 * np.log10(gain[[0, 3, 4]] / gain[0]), atol=3)
    nothing = onsets(np.zeros(rate, np.float32), rate)
    assert len(nothing.seconds) == 0
    scores = synchrony([at, at[:2]], [found, nothing])
    assert scores.hit_rate == pytest.approx(5 / 7) and scores.average_precision == pytest.approx(5 / 7)


def test_scores_of_synchrony_are_those_of_the_definition():
    found = [
        Onsets(np.array([0.02, 0.5, 1.09, 1.11]), np.array([9.0, 30.0, 20.0, 8.0])),
        Onsets(np.zeros(0), np.zeros(0)),
    ]
    cues = [np.array([0.0, 1.0, 2.0]), np.array([1.0])]
    assert sorted(pairs(cues[0], found[0].seconds)) == [(0, 0), (1, 2)]
    scores = synchrony(cues, found)
    precisions = [1 / 2, 2 / 3]  # the loudest onset is none of the cues'
    np.testing.assert_allclose(scores, [2 / 4, sum(precisions) / 4, 0.055, 0.055], atol=1e-9)
    assert pairs(np.array([0.0, 0.06]), np.array([0.05])) == [(1, 0)]  # the nearest, once
    assert np.isnan(synchrony([np.zeros(0)], found[:1])).all()


def batch(rng, count=256, samples=6400):
    decay = np.exp(-np.arange(samples) / 400)
    wave, other = (rng.standard_normal((2, count, samples)) * decay).astype(np.float32)
    return {"wave": wave, "reference": other, "label": (np.arange(count) % 3 - 1).astype(np.int32)}


@pytest.mark.slow
def test_an_example_is_a_pattern_and_what_is_known_of_it():
    rng = np.random.default_rng(0)
    raw, whole = batch(rng), features.Patches(RATE, HOP)  # whose frames are the sound itself
    task = Foley(("a", "b"), dropped_cues=0.2, dropped_contour=0.5, told=0.5, alone=0.7)
    x0, given = jax.jit(lambda raw, key: task.example(whole, raw, key))(raw, jax.random.key(1))
    made, known = np.asarray(x0).reshape(256, -1), np.asarray(given.cond.frames)
    assert known.shape == (256, 100, task.needs(whole).condition_features)
    assert given.cond.label is not None
    np.testing.assert_array_equal(given.cond.label, np.where(raw["label"] < 0, 2, raw["label"]))
    with_cues, with_contour, told = known[:, 0, 5], known[:, 0, 7], np.asarray(given.cond.token_mask).any(1)
    assert (known[:, :, 5] == with_cues[:, None]).all() and not known[with_cues == 0][..., :5].any()
    assert not known[with_contour == 0][..., 6].any()
    for share, there in ((0.8, with_cues), (0.5, with_contour), (0.35, told)):
        assert abs(there.mean() - share) < 4 * (share * (1 - share) / 256) ** 0.5
    own = 10 ** (-6 / 20) * raw["wave"] / np.abs(raw["wave"]).max(1, keepdims=True)
    checked = 0
    for i in np.flatnonzero((with_cues == 1) & told):  # patterns of one recording: a literal sum explains them
        rest = made[i].astype(np.float64)
        if not known[i, 1:, 0].any() or known[i, 0, 4]:
            continue  # no onset, or one before the start
        for m in np.flatnonzero(known[i, :, 0]):
            at = round((m + float(known[i, m, 2])) * HOP)
            rest[at:] -= 10 ** (1.5 * (known[i, m, 1] - 1)) * own[i, : len(rest) - at]
        assert np.abs(rest).max() < 1e-3 * np.abs(made[i]).max()
        checked += 1
    assert checked >= 3
    i = int(np.argmax(with_contour * np.abs(made).max(1)))
    level = 10 * np.log10(np.mean(made[i].reshape(-1, HOP) ** 2, axis=1) + 1e-12)
    loud = level > -50
    assert loud.any() and np.corrcoef(80 * (known[i, :, 6] - 1)[loud], level[loud])[0, 1] > 0.6


def test_in_use_what_is_not_given_is_unknown():
    rng, task = np.random.default_rng(0), Foley(("a", "b"))
    nothing = {"wave": jnp.zeros((2, 640)), "label": jnp.array([1, -1])}
    cond = jax.jit(lambda batch: task.given(SOUND, batch))(nothing).cond
    assert not np.asarray(cond.frames).any() and not np.asarray(cond.token_mask).any()
    np.testing.assert_array_equal(cond.label, [1, 2])
    like = np.zeros((2, 2 * RATE), np.float32)
    like[0] = rng.standard_normal(2 * RATE)  # the other is silent
    all_of_it = nothing | {
        "cues": jnp.tile(jnp.array([[0.04, 0.5], [np.inf, 0]]), (2, 1, 1)),
        "contour": jnp.full((2, 11), -40.0),
        "like": jnp.asarray(like),
    }
    cond = jax.jit(lambda batch: task.given(SOUND, batch, Cued(0)))(all_of_it).cond
    assert cond.frames is not None and cond.token_mask is not None
    np.testing.assert_array_equal(cond.label, [0, 0])
    np.testing.assert_array_equal(np.flatnonzero(cond.frames[0, :, 0]), [5])
    np.testing.assert_allclose(cond.frames[..., 5:], np.broadcast_to([1, 0.5, 1], (2, 11, 3)))
    np.testing.assert_array_equal(np.asarray(cond.token_mask).any(1), [True, False])
    assert cond.token_mask.shape[1] == 1 + int(LIKE_SECONDS * RATE) // 128
    with pytest.raises(ValueError, match="piano roll"):
        task.check(features.PianoRoll())


@pytest.mark.slow
def test_a_small_model_learns_to_begin_when_cues_say():
    """Bursts of noise: after a few steps the energy of what is made follows the cues."""
    task = Foley(dropped_cues=0.0, dropped_contour=1.0, told=0.0)
    options: dict[str, Any] = dict(
        width=32, depth=3, dilation_cycle=2, condition_features=task.needs(SOUND).condition_features
    )
    network = networks.from_nnx(lambda rngs: networks.ConvNeXt(SOUND.channels, **options, rngs=rngs))
    model = jaxdiff.Model(network, SOUND, task)
    method = methods.Diffusion(prediction="x0", times="uniform", weight="constant")
    raw = batch(np.random.default_rng(1), 16)
    optimizer = optax.adam(3e-3)
    state = jaxdiff.train(model, method, (raw for _ in range(80)), optimizer, steps=80, ema_decay=0.9, log_every=0)
    pipeline = jaxdiff.Pipeline(model, method, state.average, seconds=0.8)
    cues = cut_cues([Cue(0.1, ""), Cue(0.35, ""), Cue(0.6, "", 0.8)], 0.0, 0.8, most=4)
    made = pipeline.of_batch({"wave": np.zeros((1, 6400), np.float32), "cues": cues}, steps=6, sampler="euler")[0]
    energy = np.square(made).reshape(-1, 400).sum(1)  # of 50 ms
    assert set(np.argsort(energy)[-3:]) == {2, 7, 12}, energy.round(3)
    assert energy[[0, 1, 5, 6, 10, 11]].max() < 0.5 * energy[[2, 7, 12]].min()


def test_one_hit_is_told_from_several_and_from_what_rises_slowly():
    rng = np.random.default_rng(0)
    hit = (rng.standard_normal(16_000) * np.exp(-np.arange(16_000) / 800)).astype(np.float32)
    late = np.concatenate([np.full(800, 1e-3, np.float32), hit])
    assert abs(fetch_foley.onset(late) - 800) <= 48  # 3 ms
    assert fetch_foley.is_one(hit)
    assert not fetch_foley.is_one(hit + 0.5 * np.roll(hit, 6400) * (np.arange(16_000) >= 6400))
    assert fetch_foley.is_one(hit + 0.1 * np.roll(hit, 6400) * (np.arange(16_000) >= 6400))
    assert not fetch_foley.is_one(hit[:6400][::-1])
    made = fetch_foley.cut(np.concatenate([hit, hit, hit]))
    assert len(made) == 32_000 and np.abs(made).max() == pytest.approx(0.9, rel=0.05) and abs(made[-1]) < 1e-3


def test_patterns_to_be_scored_and_the_score_of_a_perfect_sound():
    patterns = quality_foley.drawn_patterns(20, 2.5, np.random.default_rng(0))
    assert all((np.diff(p[:, 0]) > 0.249).all() and p[0, 0] >= 0.05 and p[-1, 0] < 2 for p in patterns)
    strengths = np.concatenate([p[:, 1] for p in patterns])
    assert strengths.min() < 0.1 and strengths.max() > 0.9
    clicks = np.zeros((20, 40_000), np.float32)
    for click, pattern in zip(clicks, patterns, strict=True):
        click[np.round(pattern[:, 0] * 16_000).astype(int)] = 10 ** (1.5 * (pattern[:, 1] - 1))
    scores = quality_foley.kept_cues(patterns, clicks, 16_000)
    assert scores["hit"] == 1 and scores["AP"] == 1 and scores["offset"] < 6
    assert scores["strength"] == pytest.approx(1, abs=1e-3)
    late = quality_foley.kept_cues(patterns, np.roll(clicks, 480, axis=1), 16_000)
    assert late["delay"] - scores["delay"] == pytest.approx(30, abs=4)
    even = [np.stack([p[:, 0], np.random.default_rng(i).uniform(size=len(p))], 1) for i, p in enumerate(patterns)]
    assert abs(quality_foley.kept_cues(even, clicks, 16_000)["strength"]) < 0.5
