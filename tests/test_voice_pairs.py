"""The alignment of pairs of voices and the measures of voice conversion, on small cases whose answers are known."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # they import each other


def benchmark(name: str) -> ModuleType:
    path = BENCHMARKS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


pairs = benchmark("fetch_voices")
measures = benchmark("measures_voice")


def test_sentences_of_the_splits_differ_and_are_filled():
    made = {}
    for tune in (False, True):
        stream = pairs.sentences(np.random.default_rng(0), tune)
        made[tune] = [next(stream) for _ in range(200)]
        assert len(set(made[tune])) == 200
        assert not any("{" in text for text in made[tune])
    assert not set(made[False]) & set(made[True])


def test_spans_skip_and_insert_pauses_only():
    wave = np.zeros(100, np.float32)
    target = pairs.Speech(wave, ("a", "pau", "b", "c"), (10.0, 20.0, 30.0, 40.0))
    source = pairs.Speech(wave, ("a", "b", "pau", "c"), (20.0, 40.0, 50.0, 70.0))
    found = pairs.spans(target, source)
    assert [part.source for part in found] == [(0.0, 20.0), None, (20.0, 40.0), (50.0, 70.0)]
    assert [(part.start, part.stop) for part in found] == [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, 40.0)]
    assert pairs.spans(target, pairs.Speech(wave, ("a", "b", "d"), (20.0, 40.0, 50.0))) is None
    assert pairs.spans(target, pairs.Speech(wave, ("a", "b"), (20.0, 40.0))) is None
    assert pairs.spans(pairs.Speech(wave, ("a",), (10.0,)), source) is None


def test_warping_in_time_keeps_pitch_and_moves_events():
    rate = pairs.RATE
    times = np.arange(rate) / rate
    source = np.where(times < 0.25, 0.05, 0.5) * np.sin(2 * np.pi * 200 * times)
    parts = [pairs.Span(0, 0.75 * rate, (0, 0.25 * rate)), pairs.Span(0.75 * rate, 1.5 * rate, (0.25 * rate, rate))]
    made = pairs.warped(source, parts, 3 * rate // 2)
    assert made.shape == (3 * rate // 2,)
    for part in (made[2000:10000], made[13000:21000]):
        assert np.argmax(np.abs(np.fft.rfft(part))) * rate / len(part) == pytest.approx(200, abs=2)
    assert np.abs(made[: int(0.71 * rate)]).max() < 0.06
    assert np.abs(made[int(0.79 * rate) : int(0.83 * rate)]).max() > 0.4


def test_warping_onto_itself_changes_nothing():
    y = np.random.default_rng(0).normal(size=4000)
    made = pairs.warped(y, [pairs.Span(0, 4000, (0, 4000))], 4000)
    np.testing.assert_allclose(made, y, atol=1e-5)


def test_errors_are_counted_over_all_sentences():
    assert measures.error_rate([["a", "b"], ["c", "d"]], [["a"], ["c", "e"]]) == 0.5


def test_pitch_accuracy_undoes_a_change_of_range():
    reference = np.array([0, 100, 110, 120, 130, 0.0])
    other = np.where(reference > 0, 2 * 100 * (np.maximum(reference, 1) / 100) ** 1.5, 0)
    assert measures.pitch_accuracy(reference, reference) == 1
    assert measures.pitch_accuracy(reference, other) == 0
    assert measures.pitch_accuracy(reference, other, transposed=True) == 1
    assert measures.pitch_correlation(reference, other) == pytest.approx(1)
    assert measures.semitones(100, 200) == 12


def test_voicing_changes_ignore_short_gaps_and_stretches():
    f0 = np.zeros(100)
    f0[10:30] = f0[33:50] = f0[60:63] = f0[70:90] = 100  # a gap and a stretch of 15 ms
    begins, ends = measures.voicing_changes(f0)
    np.testing.assert_allclose(begins, [0.05, 0.35])
    np.testing.assert_allclose(ends, [0.25, 0.45])
    np.testing.assert_allclose(measures.voicing_distances(f0, np.roll(f0, 2)), 10)
    assert np.isinf(measures.voicing_distances(f0, np.zeros(100))).all()
    assert len(measures.voicing_changes(np.zeros(5))[0]) == 0
