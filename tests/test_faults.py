"""Every kind of fault is found where it was put, and clean sounds have none."""

import json

import numpy as np
import pytest
import soundfile

from jaxdiff.data import AudioError
from jaxdiff.data.breaks import quantisation
from jaxdiff.inference.chunks import blocks
from jaxdiff.inference.faults import ALL_KINDS, Fault, Found, _find, find_faults, find_in

SR = 16_000


def rounded(y):
    """What 16 bits keep."""
    return (np.rint(np.clip(y, -1, 32767 / 32768) * 32768) / 32768).astype(np.float32)


def sound(seconds=2.0, sr=SR, seed=0):
    """A sum of tones with noise 40 dB below, 16 bits; no sample is zero, so that an injected gap has exact ends."""
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * sr)) / sr
    tones = sum(np.sin(2 * np.pi * hz * at + rng.uniform(0, 6)) / k for k, hz in enumerate((187.0, 523.0, 1310.0), 1))
    y = rounded(0.25 * tones + 0.003 * rng.standard_normal(len(at)))
    y[np.abs(y) < 4 / 32768] = 4 / 32768
    return y


def places(found, kind):
    return [(fault.start, fault.stop) for fault in found.of(kind)]


def noise(seconds=3.0, seed=1):
    return rounded(0.1 * np.random.default_rng(seed).standard_normal(round(seconds * SR)))


# Drop-outs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["zeros", "hold", "repeat"])
@pytest.mark.parametrize("sr", [SR, 44_100])
def test_gaps_are_found_to_the_sample(how, sr):
    y = sound(sr=sr)
    put = [(sr // 2, sr // 2 + sr // 400), (sr, sr + sr // 50), (3 * sr // 2, 3 * sr // 2 + sr // 5)]
    for a, b in put:
        if how == "repeat":
            packet = (b - a) if b - a <= sr // 50 else (b - a) // 5
            y[a:b] = np.tile(y[a - packet : a], (b - a) // packet + 1)[: b - a]
        else:
            y[a:b] = y[a - 1] if how == "hold" else 0.0
    found = find_in(y[None], sr)
    held = 1 if how == "hold" else 0  # the last good sample has the value that is held
    assert places(found, "gap") == [(a - held, b) for a, b in put]
    assert {fault.kind for fault in found.faults} == {"gap"}


@pytest.mark.parametrize("how", ["dither", "fade"])
def test_gaps_that_are_not_plain_zeros_are_found(how):
    y = sound()
    y[8000:9000] = np.random.default_rng(0).integers(-1, 2, 1000) / 32768 if how == "dither" else 0.0
    if how == "fade":
        y[7984:8000] *= np.linspace(1, 0, 17)[:-1]
        y[9000:9016] *= np.linspace(0, 1, 17)[1:]
        y = rounded(y)
    [(a, b)] = places(find_in(y[None], SR), "gap")
    assert abs(a - 8000) <= 2 and abs(b - 9000) <= 2


def test_silence_at_the_ends_and_pauses_are_no_gaps():
    y = sound()
    fade = np.linspace(1, 0, SR // 10) ** 2
    y[SR // 2 : SR // 2 + len(fade)] *= fade
    y[SR // 2 + len(fade) : SR] = 0
    y[SR : SR + len(fade)] *= fade[::-1]
    whole = np.concatenate([np.zeros(3000), rounded(y), np.zeros(5000)]).astype(np.float32)
    assert find_in(whole[None], SR).faults == ()


def test_steps_of_eight_bits_are_no_gaps():
    at = np.arange(2 * SR) / SR
    y = np.rint(100 * np.sin(2 * np.pi * 20 * at)) / 128  # stays at one value for several milliseconds
    y = y.astype(np.float32)
    assert quantisation(y) == 2**-7 and not find_in(y[None], SR, ["gap"]).of("gap")


# Clipped peaks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(-0.3, 0.3), (-0.25, 0.31), (-1.0, 0.2)])
def test_clipped_runs_and_their_levels(low, high):
    low, high = (np.float32(np.rint(level * 32768) / 32768) for level in (low, high))
    y = np.clip(sound(), low, high)
    found = find_in(y[None], SR)
    for sign, level in ((1, high), (-1, -low)):
        edges = np.flatnonzero(np.diff(sign * y >= level, prepend=False, append=False))
        there = [tuple(pair) for pair in edges.reshape(-1, 2).tolist()]
        runs = [fault for fault in found.faults if np.sign(y[fault.start]) == sign]
        assert [(fault.start, fault.stop) for fault in runs] == there
        assert all(fault.value == level for fault in runs)
    assert len(found.of("clip")) > 50 and {fault.kind for fault in found.faults} == {"clip"}


def test_peaks_that_only_touch_full_scale_are_not_clipped():
    y = sound()
    assert find_in(rounded(y / np.abs(y).max())[None], SR).faults == ()
    limited = np.tanh(3 * y)  # a soft limiter
    assert find_in(rounded(limited / np.abs(limited).max())[None], SR, ["clip"]).faults == ()


# Clicks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_second", [2, 50])
def test_clicks_are_found(per_second):
    rng, y, put = np.random.default_rng(0), sound(4.0), []
    for at in np.arange(0.02, 3.97, 1 / per_second):
        length = int(rng.integers(16, 65))
        a = round(at * SR) + int(rng.integers(0, 100))
        y[a : a + length] += rng.uniform(-0.5, 0.5, length).astype(np.float32)
        put.append((a, a + length))
    found = places(find_in(rounded(y)[None], SR), "click")
    assert all(any(a < d and b > c for c, d in put) for a, b in found)
    hits = [min((abs(a - c) + abs(b - d) for a, b in found), default=99) <= 8 + 2 * EDGE for c, d in put]
    assert np.mean(hits) >= 0.95


EDGE = round(0.0002 * SR)  # on both sides of what stands out


@pytest.mark.parametrize("length", [1, 3, 10])
def test_clicks_of_a_few_samples(length):
    y = sound()
    y[SR : SR + length] += 0.4 * (-1) ** np.arange(length).astype(np.float32)
    assert places(find_in(y[None], SR), "click") == [(SR - EDGE, SR + length + EDGE)]


# Bands and codecs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoff", [2000.0, 3900.0, 6000.0])
def test_a_lost_band_has_its_cutoff(cutoff):
    spectrum = np.fft.rfft(noise())
    spectrum[np.fft.rfftfreq(3 * SR, 1 / SR) > cutoff] = 0
    y = rounded(np.fft.irfft(spectrum))
    [fault] = find_in(y[None], SR).faults
    assert fault[:4] == ("band", 0, 0, len(y)) and fault.value == pytest.approx(cutoff, rel=0.03)


def test_a_steep_spectrum_lacks_no_band():
    spectrum = np.fft.rfft(noise())
    hz = np.fft.rfftfreq(3 * SR, 1 / SR)
    y = np.fft.irfft(spectrum / (1 + (hz / 1000) ** 4))  # 24 dB per octave
    assert find_in(rounded(y)[None], SR).faults == ()


def test_the_holes_of_a_codec(tmp_path):
    y = noise(6.0) * (0.55 + 0.45 * np.sin(2 * np.pi * np.arange(6 * SR) / SR)).astype(np.float32)
    y = np.cumsum(y).astype(np.float32)  # falls by 6 dB per octave, as much sound does
    y = y - np.convolve(y, np.ones(101) / 101, "same")
    y = rounded(0.2 * y / np.sqrt(np.mean(y**2)))
    assert not find_in(y[None], SR).of("codec")
    file = tmp_path / "coded.mp3"
    soundfile.write(file, y, SR, "MPEG_LAYER_III", compression_level=0.947, bitrate_mode="CONSTANT")  # 16 kbit/s
    [fault] = find_faults(file).of("codec")
    assert fault.start == 0 and 3000 < fault.value <= 8000


# Clean sounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sine", "low sine", "noise", "decaying tone", "silence", "short", "empty"])
def test_clean_sounds_have_no_faults(name):
    at = np.arange(3 * SR) / SR
    clean = {
        "sine": 0.5 * np.sin(2 * np.pi * 1000 * at),
        "low sine": 0.9 * np.sin(2 * np.pi * 31 * at),
        "noise": noise(),
        "decaying tone": 0.8 * np.exp(-4 * (at % 1)) * np.sin(2 * np.pi * 440 * at),
        "silence": np.zeros(3 * SR),
        "short": sound()[:5],
        "empty": np.zeros(0),
    }[name]
    assert find_in(rounded(clean)[None], SR).faults == ()
    assert find_in(clean[None].astype(np.float32), SR).faults == ()


# Files, channels, blocks --------------------------------------------------------------------------------------------


def faulty():
    """23 s: two and a half pieces with a fault of each kind that has a place, some where pieces meet."""
    y = sound(23.0)
    y[8 * SR - 100 : 8 * SR + 200] = 0
    y[15 * SR : 15 * SR + 4000] = 0
    y[16 * SR - 20 : 16 * SR + 20] += np.random.default_rng(2).uniform(-0.5, 0.5, 40).astype(np.float32)
    y[:SR] = np.clip(y[:SR], -0.25, 0.25)
    return rounded(y)


@pytest.mark.parametrize("size", [1009, 77_777])
def test_blocks_of_any_size_give_the_same(size):
    y = np.stack([faulty(), sound(23.0, seed=3)])
    whole = find_in(y, SR)
    assert _find(blocks(y, size), 2, SR, ALL_KINDS) == whole
    assert {fault.kind for fault in whole.faults} >= {"gap", "click"} and {f.channel for f in whole.faults} == {0}
    assert places(whole, "gap") == [(8 * SR - 100, 8 * SR + 200), (15 * SR, 15 * SR + 4000)]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_file_with_a_fault_in_one_channel(tmp_path, subtype):
    y = np.stack([sound(), sound(seed=4)], axis=1)
    y[9000:9500, 1] = 0
    soundfile.write(tmp_path / "x.wav", y, SR, subtype)
    told = []
    found = find_faults(tmp_path / "x.wav", tell=told.append)
    assert found == Found(SR, 2, 2 * SR, (Fault("gap", 1, 9000, 9500),))
    assert told == sorted(told) and told[-1] == 1


def test_what_is_said_and_written():
    half = 10 ** (-6 / 20)
    faults = (
        Fault("band", 0, 0, 32_000, 3900.0),
        Fault("gap", 0, 160, 352),
        Fault("gap", 0, 8000, 12_960),
        Fault("clip", 0, 14_000, 14_003, half),
        Fault("click", 0, 15_000, 15_020),
    )
    found = Found(SR, 1, 32_000, faults)
    assert found.said() == ("2 drop-outs (12 to 310 ms), 1 clipped run at -6.0 dBFS, nothing above 3.9 kHz, 1 click")
    said = json.loads(json.dumps(found.to_json()))
    assert said["seconds"] == 2 and said["faults"]["gap"]["count"] == 2
    assert said["faults"]["clip"]["places"] == [{"channel": 0, "start": 0.875, "stop": 0.875188, "level_db": -6.0}]
    assert said["faults"]["band"]["places"][0]["cutoff_hz"] == 3900
    assert Found(SR, 1, 32_000, ()).said() == "no faults"


def test_mistakes_end_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="known are gap, clip, click, band, codec"):
        find_in(sound()[None], SR, ["hum"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="add an axis"):
        find_in(sound(), SR)
    with pytest.raises(AudioError, match="no such file"):
        find_faults(tmp_path / "x.wav")
