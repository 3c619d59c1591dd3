"""Files with some samples replaced: every other sample keeps its bits, whatever the format, and the program sees it."""

import tracemalloc

import numpy as np
import pytest
import soundfile

from jaxdiff.data import AudioError, files
from jaxdiff.inference import patches as module
from jaxdiff.inference.patches import Patch, write_patched

SUBTYPES = {  # container, subtype -> the WAV's
    ("WAV", "PCM_U8"): "PCM_U8",
    ("WAV", "PCM_16"): "PCM_16",
    ("WAV", "PCM_24"): "PCM_24",
    ("WAV", "PCM_32"): "PCM_32",
    ("WAV", "FLOAT"): "FLOAT",
    ("WAV", "DOUBLE"): "DOUBLE",
    ("WAV", "ULAW"): "PCM_16",
    ("WAV", "ALAW"): "PCM_16",
    ("WAV", "IMA_ADPCM"): "PCM_16",
    ("WAV", "MS_ADPCM"): "PCM_16",
    ("RF64", "PCM_24"): "PCM_24",
    ("W64", "PCM_16"): "PCM_16",
    ("FLAC", "PCM_S8"): "PCM_16",
    ("FLAC", "PCM_16"): "PCM_16",
    ("FLAC", "PCM_24"): "PCM_24",
    ("AIFF", "PCM_S8"): "PCM_16",
    ("AIFF", "PCM_16"): "PCM_16",
    ("AIFF", "PCM_24"): "PCM_24",
    ("AIFF", "FLOAT"): "FLOAT",
    ("CAF", "ALAC_20"): "PCM_24",
    ("CAF", "ALAC_32"): "PCM_32",
    ("MP3", "MPEG_LAYER_III"): "FLOAT",
    ("OGG", "VORBIS"): "FLOAT",
    ("OGG", "OPUS"): "FLOAT",
}
INTEGERS = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")


@pytest.fixture(autouse=True)
def odd_blocks(monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 997)


def noise(samples, channels, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (samples, channels))


def sound(path, samples=5000, channels=1, kind="WAV", subtype="PCM_16"):
    soundfile.write(path, noise(samples, channels), 16_000, format=kind, subtype=subtype)
    return path


def patch(start, samples, channels=1, seed=1, every=1):
    changed = np.zeros((channels, samples), bool)
    changed[:, ::every] = True
    return Patch(start, noise(samples, channels, seed).T, changed)


def read(path, subtype):
    kind = "int32" if subtype in INTEGERS else "float64" if subtype == "DOUBLE" else "float32"
    if soundfile.info(path).format == "MP3":  # the last bit depends on how many samples are decoded at once
        return np.concatenate(list(files.audio_blocks(path)))
    return soundfile.read(path, dtype=kind, always_2d=True)[0]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind, subtype", SUBTYPES)
def test_all_samples_outside_patches_keep_their_bits_in_every_format(kind, subtype, channels, tmp_path):
    file, wanted = sound(tmp_path / "a.sound", 5000, channels, kind, subtype), SUBTYPES[kind, subtype]
    before = read(file, wanted)
    end = len(before)
    made = [
        patch(0, 10, channels),  # the very beginning
        patch(10, 1500, channels, every=3),  # across blocks, directly after another
        patch(1993, 1, channels),  # the last sample of a block
        patch(end - 20, 20, channels),
    ]
    done = write_patched(file, tmp_path / "o" / "a.wav", iter(made))
    after, info = read(tmp_path / "o" / "a.wav", wanted), soundfile.info(tmp_path / "o" / "a.wav")
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", wanted, 16_000, channels)
    assert done[:1] + done[1:4] == (end / 16_000, wanted, channels * (10 + 500 + 1 + 20), end * channels)
    assert done.verified and done.peak == pytest.approx(np.abs(soundfile.read(tmp_path / "o" / "a.wav")[0]).max())
    expected = before.copy()
    for p in made:
        bits = {"PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}.get(wanted)
        new = p.made if bits is None else np.rint(p.made * 2 ** (bits - 1)) * 2.0 ** (32 - bits)
        place = expected[p.start : p.stop]
        place[p.changed.T] = new.T.astype(before.dtype)[p.changed.T]
    assert after.tobytes() == expected.tobytes()


def test_a_file_without_patches_comes_out_as_it_is(tmp_path):
    file = sound(tmp_path / "a.flac", 5000, 2, "FLAC", "PCM_24")
    done = write_patched(file, tmp_path / "b.wav", [])
    assert done == (5000 / 16_000, "PCM_24", 0, 10_000, done.peak, True)
    np.testing.assert_array_equal(read(file, "PCM_24"), read(tmp_path / "b.wav", "PCM_24"))


def test_negative_zeros_and_faint_floats_are_kept(tmp_path):
    y = np.array([0.0, -0.0, 1e-42, -1.5, 3.0], np.float32)
    soundfile.write(tmp_path / "a.wav", y, 8000, subtype="FLOAT")
    write_patched(tmp_path / "a.wav", tmp_path / "b.wav", [])
    assert read(tmp_path / "b.wav", "FLOAT").tobytes() == y.tobytes()


@pytest.mark.parametrize(
    "subtype, wanted", [("PCM_U8", "FLOAT"), ("PCM_16", "FLOAT"), ("PCM_24", "FLOAT"), ("PCM_32", "DOUBLE")]
)
def test_what_exceeds_full_scale_is_neither_clipped_nor_scaled(subtype, wanted, tmp_path):
    file = sound(tmp_path / "a.wav", subtype=subtype)
    least = 2.0 ** (1 - {"PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}[subtype])
    for loud in (1.7, -1 - 0.6 * least, 1 - 0.4 * least):
        made = Patch(40, np.full((1, 3), loud), np.array([[True, False, True]]))
        done = write_patched(file, tmp_path / "b.wav", [patch(1, 5), made])
        assert done.subtype == wanted and done.peak == pytest.approx(abs(loud))
        before, after = read(file, wanted), read(tmp_path / "b.wav", wanted)
        np.testing.assert_array_equal(after[[40, 42]], before.dtype.type(loud))
        np.testing.assert_array_equal(
            np.delete(after, [1, 2, 3, 4, 5, 40, 42]), np.delete(before, [1, 2, 3, 4, 5, 40, 42])
        )
    for fits in (-1 - 0.4 * least, 1 - 0.6 * least):
        made = Patch(40, np.full((1, 3), fits), np.ones((1, 3), bool))
        assert write_patched(file, tmp_path / "b.wav", [made]).subtype == subtype


def test_a_sound_becomes_longer_by_what_patches_make(tmp_path):
    file = sound(tmp_path / "a.wav", channels=2)
    new = [patch(4990, 1000, 2), patch(5990, 1510, 2, seed=2)]
    done = write_patched(file, tmp_path / "b.wav", new, longer=2500)
    before, after = read(file, "PCM_16"), read(tmp_path / "b.wav", "PCM_16")
    assert (done.samples, len(after)) == (15_000, 7500)
    np.testing.assert_array_equal(after[:4990], before[:4990])
    made = np.concatenate([p.made.T for p in new])
    np.testing.assert_array_equal(after[4990:], np.rint(made * 2**15) * 2**16)
    with pytest.raises(ValueError, match="the 2600 samples after the sound's end must all be made, 5000 were"):
        write_patched(file, tmp_path / "c.wav", new, longer=2600)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ([patch(100, 10), patch(50, 10)], "in order and apart; one begins at 50, before sample 110"),
        ([patch(100, 10), patch(109, 10)], "one begins at 109"),
        ([patch(-1, 10)], "one begins at -1, before sample 0"),
        ([patch(4991, 10)], "a patch reaches to sample 5001, the sound ends at 5000"),
        ([patch(6000, 10)], "a patch reaches to sample 6010"),
        ([patch(0, 10, 2)], r"as \[1, samples\], got \[2, 10\] and \[2, 10\]"),
        ([patch(0, 10)._replace(changed=np.ones((1, 9), bool))], r"got \[1, 10\] and \[1, 9\]"),
        ([patch(0, 10)._replace(made=np.ones((1, 10), int))], "got int64 and bool"),
        ([patch(0, 10)._replace(made=np.full((1, 10), np.nan))], "the patch at sample 0 holds .* not finite"),
    ],
)
def test_patches_that_do_not_fit_are_refused_and_leave_no_file(wrong, message, tmp_path):
    file = sound(tmp_path / "a.wav")
    with pytest.raises(ValueError, match=message):
        write_patched(file, tmp_path / "o" / "b.wav", iter(wrong))
    assert not list((tmp_path / "o").iterdir())


def test_what_a_patch_holds_beside_its_changes_does_not_matter(tmp_path):
    file = sound(tmp_path / "a.wav")
    made = Patch(7, np.array([[np.nan, 0.5, 9.0]]), np.array([[False, True, False]]))
    assert write_patched(file, tmp_path / "b.wav", [made])[1:3] == ("PCM_16", 1)


@pytest.mark.parametrize("at", [0, 3000, 4999])
@pytest.mark.parametrize("fault", ["a bit", "one more", "one less"])
def test_a_writer_that_errs_is_noticed(fault, at, tmp_path, monkeypatch):
    """The fault is in what is written, after all that chooses the samples; the check reads the file itself."""
    file, written = sound(tmp_path / "a.wav", channels=2), 0
    original = soundfile.SoundFile.write

    def write(self, block):
        nonlocal written
        if written <= at < written + len(block):
            block = block.copy()
            if fault == "a bit":
                block[at - written, 1] ^= 1 << 16
            elif fault == "one more":
                block = np.insert(block, at - written, 0, axis=0)
            else:
                block = np.delete(block, at - written, axis=0)
        written += len(block)
        original(self, block)

    monkeypatch.setattr(soundfile.SoundFile, "write", write)
    with pytest.raises((AudioError, OSError), match="not written, |could not be written"):
        write_patched(file, tmp_path / "b.wav", [patch(100, 10, 2)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav"]


def test_samples_that_are_moved_on_their_way_are_noticed(tmp_path, monkeypatch):
    file, original, readings = sound(tmp_path / "a.wav"), module.audio_blocks, []

    def wrong_once(path, kind):
        readings.append(path)
        moved = len(readings) == 1
        yield from (np.roll(block, moved, axis=0) for block in original(path, kind))

    monkeypatch.setattr(module, "audio_blocks", wrong_once)
    with pytest.raises(AudioError, match="not written, .* samples after sample 0 were to be left"):
        write_patched(file, tmp_path / "b.wav", [patch(100, 10)])
    assert write_patched(file, tmp_path / "b.wav", [patch(100, 10)]).verified


def test_memory_does_not_grow_with_the_length(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 1 << 15)
    peaks = []
    for seconds in (20, 200):
        sound(tmp_path / "a.wav", seconds * 16_000)
        tracemalloc.start()
        write_patched(tmp_path / "a.wav", tmp_path / "b.wav", (patch(i * 16_000, 8000) for i in range(seconds)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]  # in cycles until they are collected, np.load leaves 5 kB a patch: 1 MB of 13


def test_the_share_that_is_done_is_told(tmp_path):
    told = []
    write_patched(sound(tmp_path / "a.wav"), tmp_path / "b.wav", [patch(0, 10), patch(4000, 1000)], tell=told.append)
    assert told == [10 / 5000, 1.0]
