"""Files that lie are refused by name, corpora are sorted and complete, batches depend on (seed, step) alone."""

import struct
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from jaxdiff.data import (
    AudioError,
    Crop,
    Further,
    audio_info,
    batches,
    open_corpus,
    read_audio,
    sound_files,
    write_audio,
)
from jaxdiff.data.files import check_audio, resample
from jaxdiff.data.orchestra import INSTRUMENTS, synthesize, write_orchestra
from jaxdiff.tasks import Generate

RATE = 8000


def tone(seconds=0.5, frequency=440.0, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    for label, frequency in [("low", 200), ("high", 900)]:
        (tmp_path / label).mkdir()
        for i in range(3):
            write_audio(tmp_path / label / f"{i}.wav", tone(0.2 + 0.2 * i, frequency), RATE)
    return tmp_path


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_writing_and_reading_agree_to_16_bits(tmp_path, name):
    write_audio(tmp_path / name, tone(), RATE)
    np.testing.assert_allclose(read_audio(tmp_path / name), tone(), atol=1 / 32768)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("format", "subtype"), [("OGG", "VORBIS"), ("MP3", None), ("AIFF", "PCM_24"), ("CAF", "FLOAT")]
)
def test_other_formats_are_read(tmp_path, format, subtype):
    path = tmp_path / f"a.{format.lower()}"
    soundfile.write(path, tone(), RATE, format=format, subtype=subtype)
    y = read_audio(path)
    peak = np.abs(np.fft.rfft(y[:2000], 8000)).argmax()
    assert abs(peak - 440) <= 2


def test_resampling_keeps_the_tone(tmp_path):
    write_audio(tmp_path / "a.wav", tone(1.0), RATE)
    y = read_audio(tmp_path / "a.wav", 16000)
    expected = tone(1.0, rate=16000)
    assert len(y) == 16000
    np.testing.assert_allclose(y[800:-800], expected[800:-800], atol=1e-3)


def test_channels_are_chosen_explicitly(tmp_path):
    stereo = np.stack([tone(), -0.5 * tone()], axis=1)
    soundfile.write(tmp_path / "s.wav", stereo, RATE, subtype="FLOAT")
    read = {c: read_audio(tmp_path / "s.wav", channels=c) for c in ("mix", "left", "right", 1)}
    np.testing.assert_allclose(read["mix"], 0.25 * tone(), atol=1e-6)
    np.testing.assert_allclose(read["left"], tone(), atol=1e-6)
    np.testing.assert_array_equal(read["right"], read[1])
    both = read_audio(tmp_path / "s.wav", channels="all")
    np.testing.assert_array_equal(both, [read["left"], read["right"]])
    twice = read_audio(tmp_path / "s.wav", 2 * RATE, channels="all")
    assert twice.shape == (2, 2 * len(tone()))
    np.testing.assert_array_equal(twice[1], read_audio(tmp_path / "s.wav", 2 * RATE, channels="right"))
    np.testing.assert_array_equal(resample(both, RATE, 2 * RATE), twice)
    with pytest.raises(AudioError, match=r"s\.wav: has 2 channels, channel 5 was asked for"):
        read_audio(tmp_path / "s.wav", channels=5)


def wav_header(rate, channels, samples):
    size = samples * channels * 2
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, (rate * channels * 2) % 2**32, channels * 2, 16)
    return b"RIFF" + struct.pack("<I", 36 + size) + b"WAVE" + fmt + b"data" + struct.pack("<I", size)


def test_files_that_lie_are_refused_by_name(tmp_path):
    cases = {
        "text.wav": (b"this is not audio\n" * 50, "not a sound file"),
        "empty.wav": (b"", "not a sound file"),
        "none.wav": (wav_header(RATE, 1, 0), "holds no samples"),
        "rate.wav": (wav_header(2**31 - 1, 1, 100) + bytes(200), "sample rate"),
        "channels.wav": (wav_header(RATE, 1000, 4) + bytes(8000), "1000 channels"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError, match=reason) as caught:
            audio_info(tmp_path / name)
        assert name in str(caught.value)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan, 0.2], np.float32), RATE, subtype="FLOAT")
    for check in (read_audio, check_audio):
        with pytest.raises(AudioError, match=r"nan\.wav: holds samples that are not finite"):
            check(tmp_path / "nan.wav")
    with pytest.raises(AudioError, match=r"gone\.wav: no such file"):
        read_audio(tmp_path / "gone.wav")


def test_a_truncated_flac_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    write_audio(tmp_path / "t.flac", rng.uniform(-0.5, 0.5, 20000).astype(np.float32), RATE)
    whole = (tmp_path / "t.flac").read_bytes()
    (tmp_path / "t.flac").write_bytes(whole[: len(whole) // 3])
    for check in (read_audio, check_audio):
        with pytest.raises(AudioError, match=r"t\.flac: (truncated|damaged)"):
            check(tmp_path / "t.flac")


def test_nothing_half_written_and_nothing_infinite(tmp_path):
    with pytest.raises(AudioError, match="not finite"):
        write_audio(tmp_path / "a.wav", np.array([np.inf], np.float32), RATE)
    with pytest.raises(AudioError, match=r"\.wav or \.flac"):
        write_audio(tmp_path / "a.mp3", tone(), RATE)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_sorted_labelled_and_reports_what_it_leaves_out(folder):
    (folder / "low" / "bad.wav").write_text("no audio")
    corpus = open_corpus(str(folder))
    assert corpus.classes == ("high", "low")
    assert [r.path.relative_to(folder).as_posix() for r in corpus.recordings] == [
        f"{c}/{i}.wav" for c in ("high", "low") for i in range(3)
    ]
    assert len(corpus.rejected) == 1
    assert "bad.wav" in corpus.rejected[0]
    assert corpus.seconds == pytest.approx(2.4)


def test_labels_from_csv_stay_inside_the_folder(folder, tmp_path):
    table = folder / "labels.csv"
    table.write_text("file,label\nlow/0.wav,a\nhigh/1.wav,b\n")
    corpus = open_corpus(str(folder), str(table))
    labels = [(r.path.name, None if r.label is None else corpus.classes[r.label]) for r in corpus.recordings]
    assert labels == [("1.wav", "b"), ("0.wav", "a")]
    table.write_text("file,label\n../../etc/passwd,a\n")
    with pytest.raises(AudioError, match="lies outside"):
        open_corpus(str(folder), str(table))
    table.write_text("name\nx\n")
    with pytest.raises(AudioError, match="needs the columns"):
        open_corpus(str(folder), str(table))


@pytest.mark.parametrize("content", [None, "text"])
def test_a_folder_without_sound_is_refused(tmp_path, content):
    if content:
        (tmp_path / "a.wav").write_text(content)
    with pytest.raises(AudioError, match=r"holds no sound files|none of its 1 sound files"):
        open_corpus(str(tmp_path))


def test_batches_are_a_function_of_seed_and_step(folder):
    corpus, crop = open_corpus(str(folder)), Crop(800, RATE, "random", speed=0.3)
    straight = batches(corpus, crop, 4, seed=1)
    ten = [next(straight) for _ in range(10)]
    later = batches(corpus, crop, 4, seed=1, start=6)
    for expected in ten[6:]:
        got = next(later)
        np.testing.assert_array_equal(got["wave"], expected["wave"])
        np.testing.assert_array_equal(got["label"], expected["label"])
    other = next(batches(corpus, crop, 4, seed=2))
    assert not np.array_equal(other["wave"], ten[0]["wave"])


@pytest.mark.parametrize("position", ["start", "random"])
def test_a_corpus_that_fits_in_memory_is_decoded_once(folder, position):
    corpus, crop = open_corpus(str(folder)), Crop(800, RATE, position)
    size = 4 * RATE * corpus.seconds
    read, kept = (batches(corpus, crop, 6, seed=3, memory=memory) for memory in (size - 100, size + 100))
    for _ in range(4):
        a, b = next(read), next(kept)
        np.testing.assert_allclose(a["wave"], b["wave"], atol=1e-6)
        np.testing.assert_array_equal(a["label"], b["label"])
    for recording in corpus.recordings:
        recording.path.unlink()
    assert [next(kept)["wave"].shape for _ in range(9)] == [(6, 800)] * 9
    with pytest.raises(AudioError, match="no such file|System error"):
        for _ in range(9):
            next(read)


def test_an_epoch_shows_every_recording_once_and_short_ones_are_padded(folder):
    corpus, crop = open_corpus(str(folder)), Crop(RATE, RATE, "start")
    batch = next(batches(corpus, crop, 6, seed=0))
    assert sorted(batch["label"]) == [0, 0, 0, 1, 1, 1]
    lengths = sorted(int(np.flatnonzero(w)[-1]) + 1 for w in batch["wave"])
    assert lengths == pytest.approx([1600, 1600, 3200, 3200, 4800, 4800], abs=2)
    np.testing.assert_allclose(np.abs(batch["wave"]).max(axis=1), 0.5, rtol=1e-2)  # as it is in the file
    leveled = Generate(peak_db=20 * np.log10(0.25)).leveled(jnp.asarray(batch["wave"]))  # the level is the task's
    np.testing.assert_allclose(np.abs(leveled).max(axis=1), 0.25, rtol=1e-5)


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """Recordings that rise from 0 to 1 over a second or two, partners that fall from 0 to -1, and one-valued noises."""
    root = tmp_path_factory.mktemp("paired")
    for name in ("wet", "dry", "noise"):
        (root / name / "a").mkdir(parents=True)
    for i, seconds in enumerate((1, 2, 2)):
        ramp = (np.arange(seconds * RATE) / (seconds * RATE)).astype(np.float32)
        write_audio(root / "wet" / "a" / f"{i}.wav", ramp, RATE)
        write_audio(root / "dry" / "a" / f"{i}.flac", -ramp, RATE)  # another format, the same name
        write_audio(root / "noise" / "a" / f"n{i}.wav", np.full(RATE, (i + 1) / 8, np.float32), RATE)
    return root


def corpora(root, *names):
    return [open_corpus(str(root / name)) for name in names]


@pytest.mark.parametrize("memory", [0, 2**30])
def test_partners_come_from_the_same_place_and_noises_are_drawn(paired, memory):
    wet, dry, noise = corpora(paired, "wet", "dry", "noise")
    further = Further(drawn={"noise": noise}, paired={"target": dry})
    assert further.seconds == pytest.approx(5 + 3)
    made = batches(wet, Crop(800, RATE), 3, seed=5, memory=memory, further=further)
    drawn, starts = set(), set()
    for batch in (next(made) for _ in range(8)):
        assert set(batch) == {"wave", "label", "target", "noise"}
        np.testing.assert_allclose(batch["target"], -batch["wave"], atol=1 / 16384)
        assert (np.ptp(batch["noise"], axis=1) <= 1e-6).all()
        drawn |= set((8 * batch["noise"][:, 0]).round(2).tolist())
        starts |= set(batch["wave"][:, 0].round(4).tolist())
    assert drawn == {1, 2, 3}
    assert len(starts) > 20


def test_further_sounds_are_a_function_of_seed_and_step_and_the_same_from_memory(paired):
    wet, dry, noise = corpora(paired, "wet", "dry", "noise")
    options: dict[str, Any] = dict(further=Further(drawn={"noise": noise}, paired={"target": dry}))
    straight = batches(wet, Crop(800, RATE), 2, seed=6, **options)
    later = batches(wet, Crop(800, RATE), 2, seed=6, start=2, **options)
    kept = batches(wet, Crop(800, RATE), 2, seed=6, start=2, memory=2**30, **options)
    for expected in [next(straight) for _ in range(5)][2:]:
        for got, closeness in ((next(later), 0), (next(kept), 1e-6)):
            assert set(got) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(got[name], value, atol=closeness)
    speed = batches(wet, Crop(800, RATE, speed=0.5), 3, seed=6, **options)  # partners are played at the same speed
    batch = next(speed)
    np.testing.assert_allclose(batch["target"], -batch["wave"], atol=1e-3)


def test_a_recording_without_a_partner_is_named(paired):
    wet, noise = corpora(paired, "wet", "noise")
    with pytest.raises(AudioError, match=r"wet/a/0\.wav: has no partner of the same name in .*noise \(3 have none\)"):
        next(batches(wet, Crop(800, RATE), 2, seed=0, further=Further(paired={"target": noise})))


def test_sound_files_are_those_named_and_those_in_folders(folder):
    (folder / "notes.txt").write_text("no sound")
    found = sound_files([folder / "low" / "1.wav", folder / "high"])
    assert [p.relative_to(folder).as_posix() for p in found] == ["low/1.wav", "high/0.wav", "high/1.wav", "high/2.wav"]
    with pytest.raises(AudioError, match=r"gone\.wav: no such file"):
        sound_files([folder / "gone.wav"])
    (folder / "empty").mkdir()
    with pytest.raises(AudioError, match="holds no sound files"):
        sound_files([folder / "empty"])


def test_hosts_share_the_recordings(folder):
    corpus, crop = open_corpus(str(folder)), Crop(400, RATE, "start")
    seen = [next(batches(corpus, crop, 3, seed=0, process=(i, 2)))["wave"] for i in range(2)]
    rows = np.concatenate(seen)
    assert len(np.unique(rows.round(4), axis=0)) >= 2
    assert not any(np.array_equal(a, b) for a in seen[0] for b in seen[1] if not np.allclose(a, b))


def test_speed_moves_pitch(folder):
    write_audio(folder / "low" / "long.wav", tone(2.0, 500), RATE)
    corpus = open_corpus(str(folder))
    long = next(r for r in corpus.recordings if r.path.name == "long.wav")
    pitches = set()
    for seed in range(6):
        y = Crop(RATE, RATE, "start", speed=0.5).read(long, np.random.default_rng(seed))["wave"]
        octaves = np.random.default_rng(seed).uniform(-0.5, 0.5)
        pitch = np.abs(np.fft.rfft(y * np.hanning(len(y)))).argmax()
        assert pitch == pytest.approx(500 * 2**octaves, abs=2)
        pitches.add(int(pitch))
    assert len(pitches) > 3


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_instruments_are_reproducible_finite_and_distinct(instrument):
    a, b = synthesize(instrument, "train", 0), synthesize(instrument, "train", 0)
    np.testing.assert_array_equal(a, b)
    assert np.isfinite(a).all()
    assert 10 ** (-7 / 20) <= np.abs(a).max() <= 10 ** (-1 / 20)
    for other in (synthesize(instrument, "train", 1), synthesize(instrument, "test", 0)):
        assert np.abs(a - other).max() > 0.01


def test_the_orchestra_is_a_folder_of_flac(tmp_path):
    corpus = open_corpus(str(write_orchestra(tmp_path, count=2)))
    assert corpus.classes == tuple(sorted(INSTRUMENTS))
    assert len(corpus.recordings) == 16
    np.testing.assert_allclose(
        read_audio(tmp_path / "train" / "kick" / "0001.flac"), synthesize("kick", "train", 1), atol=1 / 32768
    )
