"""The peers of repair and its measures on small cases whose answers are known; no package beyond those of the tests."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
scores = importlib.import_module("measures")
measures = importlib.import_module("measures_repair")
peers = importlib.import_module("peers_repair")
quality = importlib.import_module("quality_repair")
RATE = measures.RATE


def tones(samples: int) -> np.ndarray:
    """Three sines, whose samples an autoregressive model of order 6 or more predicts exactly."""
    seconds = np.arange(samples) / RATE
    parts = [a * np.sin(2 * np.pi * f * seconds + f) for f, a in ((441.0, 0.3), (1234.5, 0.2), (3210.0, 0.1))]
    return np.sum(parts, axis=0)


def sdr(target: np.ndarray, made: np.ndarray, gaps: list[tuple[int, int]] | None = None) -> float:
    """In dB, of the whole sound or of the gaps, as the benchmark has it."""
    pair = (target, made) if gaps is None else (measures.only(target, gaps), measures.only(made, gaps))
    return float(scores.in_jax("snr", [pair])[0])


def autoregressive(samples: int, model: list[float]) -> np.ndarray:
    return np.asarray(lfilter([1.0], model, np.random.default_rng(0).standard_normal(samples)))


def predictor(frequencies: tuple[float, ...]) -> np.ndarray:
    """The prediction-error filter of sines, with its zeros on the unit circle."""
    zeros = np.exp(2j * np.pi * np.array(frequencies) / RATE)
    return np.poly(np.append(zeros, zeros.conj())).real


# Autoregressive models ----------------------------------------------------------------------------------------------


def test_burg_finds_the_process_of_one_or_several_stretches():
    model = [1.0, -1.6, 1.2, -0.3]
    y = autoregressive(40_000, model)
    assert np.allclose(peers.burg([y], 3), model, atol=0.02)
    assert np.allclose(peers.burg([y[:9000], y[20_000:]], 3), model, atol=0.02)
    assert np.allclose(peers.burg([y], 6), [*model, 0, 0, 0], atol=0.03)


def test_burg_is_stable_and_stops_where_nothing_is_left():
    found = peers.burg([np.random.default_rng(1).standard_normal(60)], 50)
    assert np.abs(np.roots(found)).max() < 1
    assert peers.burg([np.zeros(20)], 4).tolist() == [1, 0, 0, 0, 0]
    assert peers.burg([np.ones(3)], 8).shape == (9,)


def test_extrapolation_of_sines_is_exact():
    y = tones(1000)
    assert np.allclose(peers.extrapolate(y[:700], predictor((441.0, 1234.5, 3210.0)), 300), y[700:], atol=1e-7)


def test_interpolation_of_sines_is_exact():
    y = tones(1000)
    missing = np.r_[300:312, 401, 500:503]
    given = y.copy()
    given[missing] = 9
    assert np.allclose(peers.interpolate(given, missing, predictor((441.0, 1234.5, 3210.0))), y, atol=1e-6)


def test_interpolation_makes_the_prediction_errors_least():
    model = np.array([1.0, -1.6, 1.2, -0.3])
    y = autoregressive(120, model.tolist())
    missing = np.r_[20:31, 50, 52, 53, 80:85]
    made = peers.interpolate(y, missing, model)
    errors = np.stack([np.convolve(model, one) for one in np.eye(120)], axis=1)  # [123, 120], of every sample
    known = np.setdiff1d(np.arange(120), missing)
    least = np.linalg.lstsq(errors[:, missing], -errors[:, known] @ y[known], rcond=None)[0]
    assert np.allclose(made[missing], least, atol=1e-9)
    assert np.array_equal(made[known], y[known])


# Gaps ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zeros", "linear", "ar_extrapolation", "ar_extrapolation_near", "ar_interpolation"])
def test_gaps_leave_the_rest(name: str):
    y = np.random.default_rng(2).standard_normal(6000).astype(np.float32)
    gaps = [(2000, 2100), (4000, 4050)]
    made = getattr(peers, name)(y, gaps)
    outside = np.setdiff1d(np.arange(len(y)), peers.indices(gaps))
    assert made.dtype == np.float32 and np.array_equal(made[outside], y[outside])
    assert not np.array_equal(made, y) and np.isfinite(made).all()
    assert np.array_equal(peers.zeros(made, gaps), peers.zeros(y, gaps))


@pytest.mark.parametrize("name", ["ar_extrapolation", "ar_extrapolation_near", "ar_interpolation"])
def test_gaps_in_tones_are_filled(name: str):
    y, gaps = tones(9000), [(2000, 2300), (6000, 6800)]
    y += 1e-4 * np.random.default_rng(10).standard_normal(len(y))
    given = peers.zeros(y, gaps)
    assert sdr(y, given, gaps) == pytest.approx(0)
    assert sdr(y, getattr(peers, name)(given, gaps), gaps) > 25


def test_linear_is_a_line():
    assert np.allclose(peers.linear(np.array([0.0, 1, 9, 9, 9, 5, 6]), [(2, 5)]), [0, 1, 2, 3, 4, 5, 6])


def test_contexts_end_at_other_gaps():
    y, gaps = np.zeros(1000), [(100, 200), (250, 300), (900, 950)]
    assert [peers.contexts(y, gaps, i, 80) for i in range(3)] == [(20, 250), (200, 380), (820, 1000)]


# Clipping -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [("ar_declip", {"order": 32, "rounds": 2}), ("a_spade", {})])
def test_declipped_sounds_agree_with_the_clipped(name: str, options: dict):
    y = (tones(6000) * np.sin(np.pi * np.arange(6000) / 6000)).astype(np.float32)
    level = measures.clip_level(y, 7.0)
    given = np.clip(y, -level, level)
    assert sdr(y, given) == pytest.approx(7, abs=1e-3)
    made = getattr(peers, name)(given, level, **options)
    clipped = np.abs(given) >= level
    assert 600 < clipped.sum() < 3000 and made.dtype == np.float32
    assert np.array_equal(made[~clipped], given[~clipped])
    assert (np.sign(given[clipped]) * made[clipped] >= np.float32(level)).all()
    assert sdr(y, made) > 25


@pytest.mark.parametrize("name", ["ar_declip", "a_spade"])
def test_nothing_is_done_below_the_level(name: str):
    y = tones(3000).astype(np.float32)
    assert np.array_equal(getattr(peers, name)(y, 2.0), y)


# Clicks -------------------------------------------------------------------------------------------------------------


def test_clicks_are_found_and_mended():
    rng = np.random.default_rng(3)
    y = (0.1 * tones(8000) + 1e-4 * rng.standard_normal(8000)).astype(np.float32)
    given, clicks = measures.clicked(y, 10, rng)
    assert len(clicks) == 5 and np.array_equal(given[: clicks[0][0]], y[: clicks[0][0]])
    known = peers.ar_declick(given, clicks)
    assert np.array_equal(peers.zeros(known, clicks), peers.zeros(y, clicks))
    found = peers.find_clicks(given)
    assert len(found) >= 5
    assert all(any(a <= stop and start <= b for a, b in found) for start, stop in clicks)
    before = sdr(y, given)
    assert sdr(y, known) > before + 25
    assert sdr(y, peers.ar_find_and_declick(given, rounds=1)) > before + 10


# Measures -----------------------------------------------------------------------------------------------------------


def test_log_spectral_distance_of_equal_sounds_and_of_a_factor():
    y = np.random.default_rng(4).standard_normal(8000)
    assert measures.lsd(y, y) == 0
    assert measures.lsd(y, 2 * y) == pytest.approx(20 * np.log10(2))
    assert measures.gap_lsd(y, y / 2, [(1000, 1800), (4000, 4800)]) == pytest.approx(20 * np.log10(2))
    assert measures.lsd(y, y / 2, above=4000) == pytest.approx(20 * np.log10(2))
    assert measures.lsd(y, 0 * y) < 60 < measures.lsd(y, 0 * y, floor_db=-120)


def test_only_the_gap_and_only_the_band_count():
    y = np.random.default_rng(5).standard_normal(8000)
    made = y.copy()
    made[6000:] *= 2
    assert measures.gap_lsd(y, made, [(1000, 1800)]) == 0
    assert measures.gap_lsd(y, made, [(6500, 7300)]) == pytest.approx(20 * np.log10(2))
    low = measures.low_passed(y, 2000)
    assert measures.lsd(y, low, above=2200) > 30
    spectra = [np.abs(np.fft.rfft(part)) for part in (y, low)]
    assert spectra[1][2500:].max() < 1e-2 * spectra[0].max()
    assert measures.lsd(low, measures.resampled(low.astype(np.float32), 4000)) < 0.5


def test_sdr():
    y = np.ones(100)
    assert sdr(y, y) == 100
    assert sdr(y, 1.1 * y) == pytest.approx(20)
    assert sdr(y, np.where(np.arange(100) < 50, y, 0), [(50, 60)]) == pytest.approx(0)


@pytest.mark.parametrize("late", [0, 7, 1105, -30])
def test_the_delay_of_a_codec_is_taken_out(late: int):
    y = np.random.default_rng(6).standard_normal(8000).astype(np.float32)
    shifted = np.pad(y, (late, 0)) if late >= 0 else y[-late:]
    made = measures.in_place(y, np.pad(shifted, (0, 500)))
    assert len(made) == len(y)
    assert np.array_equal(made[30:], y[30:])


def test_gaps_lie_apart_where_the_sound_is():
    y = np.random.default_rng(7).standard_normal(6 * RATE).astype(np.float32)
    y[: 2 * RATE] *= 1e-4
    gaps = measures.gap_places(y, 4800, np.random.default_rng(8))
    assert 3 <= len(gaps) <= 6 and gaps[0][0] > 2 * RATE - 4800
    edges = [0, *(edge for gap in gaps for edge in gap), len(y)]
    assert all(b - a >= RATE // 5 for a, b in zip(edges[::2], edges[1::2], strict=True))
    assert all(stop - start == 4800 for start, stop in gaps)


def test_kept_share_sees_every_changed_sample():
    y = np.random.default_rng(9).uniform(-1, 1, 1000).astype(np.float32)
    item = quality.Item(y, peers.zeros(y, [(100, 200)]), ((100, 200),))
    assert quality.kept_share(item, y) == 1
    other = y.copy()
    other[50] = np.nextafter(other[50], np.float32(2))
    assert quality.kept_share(item, other) == pytest.approx(1 - 1 / 900)
    clipped = quality.Item(y, np.clip(y, -0.5, 0.5), level=0.5)
    assert quality.kept_share(clipped, y) == 1
    lower = np.where(y > 0.5, np.float32(0.49), y)
    assert quality.kept_share(clipped, lower) == pytest.approx(1 - (y > 0.5).mean())
