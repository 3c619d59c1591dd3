"""What the benchmarks of music conversion measure beside jaxdiff.evaluation, on small cases whose answers are known: no
package beyond those of the tests."""

import importlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
music = importlib.import_module("measures_music")
real_piano = importlib.import_module("real_piano")
RATE = music.RATE


def test_frechet_sees_the_reference_components_only():
    rng = np.random.default_rng(0)
    reference = np.concatenate([rng.normal(size=(200, 3)), np.zeros((200, 2))], 1)
    assert music.frechet(reference, reference, 3) == pytest.approx(0, abs=1e-9)
    assert music.frechet(reference + [2, 0, 0, 0, 0], reference, 3) == pytest.approx(4)
    assert music.frechet(reference + [0, 0, 0, 9, 0], reference, 3) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="more windows"):
        music.frechet(reference, reference[:16])


@pytest.mark.slow
def test_f0_agreement_is_of_50_cents():
    times, partials = np.arange(RATE) / RATE, np.arange(1, 6)[:, None]
    tone = lambda f: (np.sin(2 * np.pi * f * partials * times) / partials).sum(0).astype(np.float32)  # noqa: E731
    assert music.f0_agreement(tone(220), 0.1 * tone(220 * 2 ** (0.3 / 12))) > 0.95
    assert music.f0_agreement(tone(220), tone(220 * 2 ** (0.7 / 12))) < 0.05
    assert music.f0_agreement(tone(220), np.zeros(RATE, np.float32)) == 0


def test_average_filter_finds_a_filter():
    rng = np.random.default_rng(0)
    source = [rng.normal(size=2 * RATE).astype(np.float32) for _ in range(2)]
    target = [0.5 * np.convolve(y, [1, 0.9], "same").astype(np.float32) for y in source]
    made = music.AverageFilter(source, target)(source[0])
    spectra = [np.abs(np.fft.rfft(y)).reshape(-1)[:16000].reshape(10, -1) ** 2 for y in (made, target[0])]
    ratio = spectra[0].mean(1) / spectra[1].mean(1)
    assert np.abs(10 * np.log10(ratio[:9])).max() < 0.5


def test_real_piano_lays_notes(tmp_path: Path):
    times = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * times)
    soundfile.write(tmp_path / "Piano.ff.A4.flac", np.stack([tone, tone], 1), 44_100)
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.write(tmp_path / "Piano.ff.A4.flac", "Piano.ff.A4.flac")
    piano = real_piano.RealPiano(tmp_path / "notes.zip")
    y = piano(np.array([[0.5, 0.7, 69, 127], [1.0, 1.2, 69, 63.5]]))
    assert len(y) == round(1.32 * RATE) and y.dtype == np.float32
    level = lambda first, last: np.sqrt((y[round(first * RATE) : round(last * RATE)] ** 2).mean())  # noqa: E731
    assert level(0, 0.49) < 1e-3 and level(0.83, 0.99) < 1e-3
    assert level(0.52, 0.69) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    assert level(1.02, 1.19) / level(0.52, 0.69) == pytest.approx(0.25, rel=0.02)
    with pytest.raises(ValueError, match="21 to 108"):
        piano(np.array([[0, 1, 20, 80.0]]))
