"""Measures by other packages: values equal direct calls of the libraries, where these are installed; what is decided
for silent, short, long and broken sounds; and the sentence where a package is missing."""

import functools
import sys
import warnings

import numpy as np
import pytest

from jaxdiff.evaluation import external
from jaxdiff.evaluation.external import EXTERNAL, edit_distance, words
from jaxdiff.evaluation.measures import MEASURES

SR = 16_000


def syllables(seconds: float, seed: int = 0, every: float = 0.4) -> np.ndarray:
    """Harmonics of a pitch that wanders, in syllables."""
    t = np.arange(round(seconds * SR)) / SR
    phase = 2 * np.pi * np.cumsum(140 + 20 * seed + 30 * np.sin(2 * np.pi * 0.7 * t)) / SR
    harmonics = sum(np.sin(k * phase + k * k) / (1 + (k * 140 / 700 - 1) ** 2) for k in range(1, 20))
    spoken = np.maximum(0, np.sin(2 * np.pi * t / every)) ** 0.5
    return (0.05 * harmonics * spoken + 1e-4 * np.random.default_rng(seed).standard_normal(len(t))).astype(np.float32)


CLEAN = syllables(2.5)
NOISY = (CLEAN + 0.01 * np.random.default_rng(1).standard_normal(len(CLEAN))).astype(np.float32)
SILENT = np.zeros_like(CLEAN)


def scored(name, reference, estimate, sr=SR, **options):
    """The value, where nothing is warned about or printed."""
    with warnings.catch_warnings(action="error"):
        return EXTERNAL[name].function(reference, estimate, sr, **options)


@pytest.fixture
def quiet(capfd):
    yield
    assert capfd.readouterr() == ("", "")


def test_the_table_is_one_of_its_own_names():
    assert not set(EXTERNAL) & set(MEASURES)
    with pytest.raises(TypeError):
        EXTERNAL["mine"] = EXTERNAL["pesq"]  # pyright: ignore[reportIndexIssue]
    assert {name for name, measure in EXTERNAL.items() if not measure.needs_reference} == {
        "dnsmos_ovrl", "dnsmos_sig", "dnsmos_bak", "lufs",
    }  # fmt: skip


@pytest.mark.parametrize("name", EXTERNAL)
def test_a_missing_package_is_named_and_how_to_get_it(name, monkeypatch):
    for cached in (external._dnsmos_network, external._dnsmos_scores, external._encoder, external._embedded,
                   external._decoder, external._recognised):  # fmt: skip
        cached.cache_clear()
    for module in ("pesq", "pystoi", "onnxruntime", "resemblyzer", "pocketsphinx", "pyloudnorm"):
        monkeypatch.setitem(sys.modules, module, None)
    package = "onnxruntime" if name.startswith("dnsmos") else EXTERNAL[name].package
    with pytest.raises(ModuleNotFoundError) as raised:
        scored(name, SILENT, SILENT)
    assert str(raised.value) == (
        f"the measure needs the package {package}, which cannot be imported; run `pip install 'jaxdiff[eval]'`"
    )


@pytest.mark.parametrize("name", EXTERNAL)
def test_what_is_no_sound_is_refused_and_what_is_not_finite_has_no_score(name):
    broken = CLEAN.copy()
    broken[7] = np.nan
    assert np.isnan(scored(name, CLEAN, broken))
    with pytest.raises(ValueError, match=r"the estimate: expected one channel \[samples\]"):
        scored(name, CLEAN, CLEAN[None])
    with pytest.raises(ValueError, match=r"the estimate: expected .* got the shape \(0,\)"):
        scored(name, CLEAN, CLEAN[:0])
    with pytest.raises(ValueError, match="the estimate lasts 601 s, at most 600 s are measured; cut it"):
        scored(name, CLEAN[:600], np.zeros(601), sr=1)
    if EXTERNAL[name].needs_reference:
        with pytest.raises(ValueError, match="compares with a reference, got None"):
            scored(name, None, CLEAN)
        assert np.isnan(scored(name, broken, CLEAN))


def test_words_of_a_text():
    assert words("“It’s 12 o'clock”, said Zoë -- 'tea?'") == ["it's", "o'clock", "said", "zoë", "tea"]


def test_edit_distance_is_the_least_number_of_edits():
    @functools.cache
    def least(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(least(a[1:], b) + 1, least(a, b[1:]) + 1, least(a[1:], b[1:]) + (a[0] != b[0]))

    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = (tuple("abc"[i] for i in rng.integers(3, size=rng.integers(8))) for _ in range(2))
        assert edit_distance(a, b) == least(a, b)


# Of each package


def test_lufs(quiet):
    pyloudnorm = pytest.importorskip("pyloudnorm")
    for sr in (SR, 44_100):
        expected = pyloudnorm.Meter(sr).integrated_loudness(NOISY.astype(np.float64))
        assert scored("lufs", None, NOISY, sr) == pytest.approx(expected, abs=1e-9)
    assert scored("lufs", None, SILENT) == -70
    padded = np.pad(NOISY[:4000], (0, 2400)).astype(np.float64)
    assert scored("lufs", None, NOISY[:4000]) == pytest.approx(pyloudnorm.Meter(SR).integrated_loudness(padded))


def test_pesq(quiet):
    pesq = pytest.importorskip("pesq").pesq
    soxr = pytest.importorskip("soxr")
    assert scored("pesq", CLEAN, NOISY) == pesq(SR, CLEAN, NOISY, "wb")
    narrow = pesq(8000, *(soxr.resample(y, SR, 8000) for y in (CLEAN, NOISY)), "nb")
    assert scored("pesq_narrow", CLEAN, NOISY) == pytest.approx(narrow, abs=1e-6)
    assert scored("pesq", CLEAN, CLEAN) == pytest.approx(4.644, abs=1e-3)
    assert scored("pesq", CLEAN, SILENT) == 1
    assert np.isnan(scored("pesq", SILENT, CLEAN)) and np.isnan(scored("pesq", SILENT, SILENT))
    assert scored("pesq", CLEAN[:3999], CLEAN[:3999]) == pytest.approx(4.644, abs=1e-3)  # less than it takes


def test_pesq_of_long_sounds_is_the_mean_over_parts(quiet):
    """Of more utterances than the library has room for: it would end the process."""
    pesq = pytest.importorskip("pesq").pesq
    part = syllables(14, every=0.5)
    noisy = part + 0.02 * np.random.default_rng(1).standard_normal(len(part)).astype(np.float32)
    expected = pesq(SR, part, noisy, "wb")
    assert scored("pesq", np.tile(part, 3), np.tile(noisy, 3)) == pytest.approx(expected, abs=1e-6)
    halves = np.concatenate([part, part]), np.concatenate([noisy, 0 * noisy])
    assert scored("pesq", *halves) == pytest.approx((expected + 1) / 2, abs=1e-6)
    assert scored("pesq", np.concatenate([part, 0 * part]), np.tile(noisy, 2)) == pytest.approx(expected, abs=1e-6)


def test_pystoi(quiet):
    stoi = pytest.importorskip("pystoi").stoi
    for name, extended in (("pystoi", False), ("pystoi_extended", True)):
        expected = stoi(CLEAN.astype(np.float64), NOISY.astype(np.float64), 22_050, extended=extended)
        assert scored(name, CLEAN, NOISY, 22_050) == pytest.approx(expected, abs=1e-9)
        ours = float(MEASURES["estoi" if extended else "stoi"].function(CLEAN, NOISY, SR))
        assert scored(name, CLEAN, NOISY) == pytest.approx(ours, abs=2e-6)
        assert scored(name, CLEAN[:300], NOISY[:300]) == 1e-5
        assert np.isnan(scored(name, SILENT, NOISY))
    with pytest.raises(ValueError, match="a reference of 40000 samples and an estimate of 39999"):
        scored("pystoi", CLEAN, NOISY[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2.5, 11.2, 26.0])
def test_dnsmos(seconds, quiet):
    dnsmos = pytest.importorskip("speechmos.dnsmos")
    y = np.resize(4 * NOISY, round(seconds * SR))
    expected = dnsmos.run(np.clip(y, -1, 1), SR)
    for name in ("ovrl", "sig", "bak"):
        assert scored(f"dnsmos_{name}", None, y) == pytest.approx(expected[f"{name}_mos"], abs=1e-5)


@pytest.mark.slow
def test_speaker_similarity(quiet):
    resemblyzer = pytest.importorskip("resemblyzer")
    other = syllables(2.5, seed=4)
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    ours, theirs = (encoder.embed_utterance(resemblyzer.preprocess_wav(y, source_sr=SR)) for y in (CLEAN, other))
    assert scored("speaker_similarity", CLEAN, other) == pytest.approx(float(ours @ theirs), abs=1e-5)
    assert scored("speaker_similarity", CLEAN, CLEAN[:-800]) > 0.97 > float(ours @ theirs)
    assert scored("speaker_similarity", CLEAN, SILENT) == 0
    assert np.isnan(scored("speaker_similarity", SILENT, CLEAN))


@pytest.mark.slow
def test_word_error_rate(quiet):
    pocketsphinx = pytest.importorskip("pocketsphinx")
    decoder = pocketsphinx.Decoder(samprate=SR, loglevel="FATAL")
    decoder.start_utt()
    scaled = CLEAN * (0.5 / np.abs(CLEAN).max())
    decoder.process_raw((scaled * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    found = decoder.hyp().hypstr.split()
    assert found
    assert scored("word_error_rate", CLEAN, CLEAN) == 0
    assert scored("word_error_rate", CLEAN, SILENT) == 1
    assert scored("word_error_rate", None, CLEAN, transcript=" ".join(found).upper()) == 0
    assert scored("word_error_rate", CLEAN, CLEAN, transcript=" ".join(found[:-1] + ["zebra"] * 2)) == pytest.approx(
        2 / (len(found) + 1)
    )
    assert np.isnan(scored("word_error_rate", SILENT, CLEAN)) and np.isnan(
        scored("word_error_rate", None, CLEAN, transcript="1984")
    )
