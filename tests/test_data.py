"""Files that lie are refused by name, corpora are sorted and complete, batches depend on (seed, step) alone."""

import os
import re
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
    write_report,
)
from jaxdiff.data.files import atomic, check_audio, expand, resample, safe_name
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


@pytest.mark.parametrize("kind", ["wav", "aiff", "au", "w64", "mp3"])
def test_half_a_file_is_refused_by_the_check_and_the_reader(tmp_path, kind):
    path = tmp_path / f"half.{kind}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE), RATE, format=kind.upper())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for check in (read_audio, check_audio):
        with pytest.raises(AudioError, match=rf"half\.{kind}: truncated"):
            check(path)


def test_a_stream_that_does_not_know_its_size_is_read(tmp_path):
    write_audio(tmp_path / "a.wav", tone(), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4  # as ffmpeg writes into a pipe
    (tmp_path / "a.wav").write_bytes(content)
    assert check_audio(tmp_path / "a.wav").samples == len(read_audio(tmp_path / "a.wav")) == len(tone())


def mp3_frames(content):
    """Where the frames of an MP3 of MPEG 1 begin: its headers hold bit rate, sample rate and padding."""
    rates = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    place = 0
    while place < len(content):
        yield place
        third = content[place + 2]
        place += 144_000 * rates[third >> 4] // (44100, 48000, 32000)[third >> 2 & 3] + (third >> 1 & 1)


@pytest.mark.parametrize("loud", [slice(0, 44100), slice(44100, None)], ids=["guessed short", "guessed long"])
def test_an_mp3_that_does_not_say_its_length_is_read_to_its_end(tmp_path, loud):
    wave = np.zeros(5 * 44100)
    wave[loud] = np.random.default_rng(0).uniform(-0.3, 0.3, len(wave[loud]))
    path = tmp_path / "a.mp3"
    soundfile.write(path, wave, 44100, compression_level=0.5, bitrate_mode="VARIABLE")
    content = path.read_bytes()
    frames = list(mp3_frames(content))
    path.write_bytes(content[frames[1] :])  # without the first, which says how many follow
    samples = 1152 * (len(frames) - 1)
    assert audio_info(path).samples != samples
    assert check_audio(path).samples == samples
    whole = read_audio(path)
    assert len(whole) == samples
    for offset in (0.5, 2.5, 4.9):
        start = round(offset * 44100)
        np.testing.assert_allclose(
            read_audio(path, offset=offset, seconds=0.5), whole[start : start + 22050], atol=1e-6
        )
    path.write_bytes(2 * content[frames[1] :])
    assert check_audio(path).samples == 2 * samples
    path.write_bytes(2 * content)  # the first says that it ends
    with pytest.raises(AudioError, match=r"a\.mp3: several MP3 files in one"):
        check_audio(path)


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "MS_ADPCM"])
def test_a_part_of_a_compressed_wav_is_the_part_of_the_whole(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(20.0), RATE, subtype=subtype)  # the first two cannot seek
    check_audio(tmp_path / "a.wav")
    part, whole = read_audio(tmp_path / "a.wav", offset=12.5, seconds=0.25), read_audio(tmp_path / "a.wav")
    np.testing.assert_array_equal(part, whole[100000:102000])


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path):
    folder, name = os.fsencode(tmp_path) + b"/caf\xe9", b"/\xff.wav"
    os.mkdir(folder)
    write_audio(tmp_path / "x.wav", tone(), RATE)
    os.rename(tmp_path / "x.wav", folder + name)
    with open(folder + b"/bad\xe9.wav", "w") as bad:
        bad.write("no audio")
    corpus = open_corpus(str(tmp_path))
    assert corpus.classes == ("caf\\udce9",)
    assert [os.fsencode(r.path) for r in corpus.recordings] == [folder + name]
    assert next(batches(corpus, Crop(400, RATE), 1, 0))["wave"].shape == (1, 400)
    write_audio(corpus.recordings[0].path, tone(), RATE)
    (told,) = corpus.rejected
    assert r"caf\udce9/bad\udce9.wav: not a sound file" in told
    write_report(tmp_path / "rejected.txt", [os.fsdecode(name), told])
    assert (tmp_path / "rejected.txt").read_text(encoding="utf-8").splitlines() == [r"/\udcff.wav", told]


def test_sounds_above_full_scale_are_noticed(tmp_path):
    write_audio(tmp_path / "a.wav", tone(), RATE)
    for name, peak in (("loud", 20000.0), ("huge", 3.3e38)):
        soundfile.write(tmp_path / f"{name}.wav", np.float32(2 * peak) * tone(), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"huge\.wav: holds samples that are not finite"):
        square = np.where(tone() > 0, np.float32(3.3e38), np.float32(-3.3e38))
        soundfile.write(tmp_path / "huge.wav", square, RATE, subtype="FLOAT")
        read_audio(tmp_path / "huge.wav", RATE // 2)  # the filter overshoots
    (tmp_path / "huge.wav").unlink()
    with pytest.warns(UserWarning, match=r"loud\.wav: peaks at 20000, and full scale is 1") as noticed:
        open_corpus(str(tmp_path))
    assert len(noticed) == 1
    with pytest.warns(UserWarning, match=r"b\.wav: 2 of 4 samples outside \[-1, 1\] were clipped"):
        assert write_audio(tmp_path / "b.wav", np.array([1.5, -1, 0.2, -2]), RATE) == 2
    assert write_audio(tmp_path / "b.wav", tone(), RATE) == 0
    with pytest.raises(TypeError, match="int16; divide by full scale"):
        write_audio(tmp_path / "b.wav", np.array([100, 200], np.int16), RATE)


def test_silence_is_noticed(tmp_path, recwarn):
    soundfile.write(tmp_path / "s.wav", np.stack([tone(), -0.9 * tone()], 1), RATE)
    soundfile.write(tmp_path / "fine.wav", np.stack([tone(), -0.5 * tone()], 1), RATE)
    for channels in ("left", "all"):
        read_audio(tmp_path / "s.wav", channels=channels)
    read_audio(tmp_path / "fine.wav")
    assert not recwarn
    with pytest.warns(UserWarning, match=r"s\.wav: its channels cancel"):
        read_audio(tmp_path / "s.wav")
    (tmp_path / "none").mkdir()
    soundfile.write(tmp_path / "none" / "0.wav", np.zeros(100), RATE)
    with pytest.raises(AudioError, match="all of its 1 recordings are silent"):
        open_corpus(str(tmp_path / "none"))


def test_names_of_any_length_are_written(tmp_path):
    for name in ("é" * 120 + ".wav", "a" * 251 + ".wav"):
        write_audio(tmp_path / name, tone(), RATE)
        assert [p.name for p in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
    with atomic(tmp_path / f"a.{'b' * 253}") as temporary:
        temporary.write_text("x")


@pytest.mark.parametrize("name", ["0001-kick", "été", "Ça va, no", "日本語", "v1.5 mix", "ca$h_$1", "a" * 200])
def test_ordinary_names_are_safe(name):
    assert safe_name(name) == name


def test_every_text_has_a_safe_name_of_its_own(tmp_path):
    texts = ["", ".", "..", "../../etc/passwd", "a/b", "a\\b", "a_b", "/", ".hidden", "nul.txt", "NUL", "com1", "a\0b"]
    texts += ["a\nb", "x ", "x", "x.", "C:x", "я" * 300, "я" * 299, "a" * 400, "caf\udce9", "con.", "a\u2028b", ". .x"]
    names = [safe_name(text) for text in texts]
    assert names == [safe_name(text) for text in texts] == [safe_name(name) for name in names]
    assert len({name.lower() for name in names}) == len(texts)
    for name in names:
        assert 0 < len(name.encode()) <= 200
        assert not re.search(r"[/\\:\x00-\x1f]|^\.|[. ]$", name)
        assert name.split(".")[0].upper() not in ("NUL", "CON", "COM1")
        (tmp_path / f"0000-{name}.json").write_text("there")
    assert len(list(tmp_path.iterdir())) == len(texts)


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
    with pytest.raises(AudioError, match="needs a column file"):
        open_corpus(str(folder), str(table))


def test_a_folder_with_links_and_strange_names(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_audio(elsewhere / "0.wav", tone(), RATE)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "low" / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder / "high")
    (folder / "low" / "gone.wav").symlink_to(folder / "nowhere")
    (folder / "low" / "x.m4a").write_bytes(b"m4a")
    (folder / "low" / "notes.txt").write_text("no sound")
    (folder / "named.wav").mkdir()
    for name in ("low/._0.wav", ".hidden/0.wav", "named.wav/0.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        write_audio(folder / name, tone(), RATE)
    (folder / "low" / "._1.wav").write_text("of a Mac")
    expected = [f"high/{i}.wav" for i in range(3)] + [
        "linked/0.wav",
        *(f"low/{i}.wav" for i in range(3)),
        "named.wav/0.wav",
    ]
    corpus = open_corpus(str(folder))
    assert [r.path.relative_to(folder).as_posix() for r in corpus.recordings] == expected
    assert corpus.classes == ("high", "linked", "low", "named.wav")
    told = sorted(line.removeprefix(f"{folder}/") for line in corpus.rejected)
    assert told == [
        "again: a link to a folder that is read already",
        "low/gone.wav: a link to nothing",
        "low/loop: a link to a folder that is read already",
        "low/x.m4a: .m4a is not read; convert it, for example to .flac",
    ]
    with pytest.warns(UserWarning, match="left out: ") as noticed:
        found = sound_files([folder])
    assert [p.relative_to(folder).as_posix() for p in found] == expected
    assert len(noticed) == 4


def test_paths_are_expanded_once_and_never_empty(folder, monkeypatch):
    monkeypatch.setenv("SOUNDS", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("UNSET", raising=False)
    for path in ("$SOUNDS/low", "${SOUNDS}/low", "~/low"):
        assert expand(path) == folder / "low"
        assert len(open_corpus(path).recordings) == 3
    (folder / "$SOUNDS").mkdir()
    assert expand(folder / "$SOUNDS") == folder / "$SOUNDS"  # the name of what is there
    for path in ("", " "):
        with pytest.raises(AudioError, match="is empty"):
            open_corpus(path)
    with pytest.raises(AudioError, match=r"\$UNSET: no such folder"):
        open_corpus("$UNSET")


def test_labels_from_excel_are_read_and_errors_name_the_line(folder):
    table = folder / "labels.csv"
    table.write_text("\ufeff file , label,note\r\nlow/0.wav, a ,x\r\n\r\n high/1.wav,,y\r\n", encoding="utf-8")
    corpus = open_corpus(str(folder), str(table))
    assert [(r.path.name, r.label) for r in corpus.recordings] == [("1.wav", None), ("0.wav", 0)]
    assert corpus.classes == ("a",)
    cases = {
        "low/0.wav,a\n./low/0.wav,\n": r"labels\.csv, line 3: names .*low/0\.wav again, as line 2 does",
        "": r"labels\.csv: lists no files",
        "low/0.wav,a\nlow\0,b\n": r"labels\.csv, line 3: (names no file|not CSV)",
        ",b\n": r"line 2: names no file",
        "low/0.wav\nkick, hard.wav,b\n": r"line 3: has more fields",
        "caf\udce9.wav,a\n": r"labels\.csv, line \d: not CSV in UTF-8",
    }
    for lines, reason in cases.items():
        table.write_bytes(f"file,label\n{lines}".encode("utf-8", "surrogateescape"))
        with pytest.raises(AudioError, match=reason):
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


@pytest.mark.parametrize(("source", "target"), [(44100, 16000), (8000, 6000), (11025, 16000), (48000, 8000)])
def test_crops_at_another_rate_are_cut_after_resampling(tmp_path, source, target):
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "0.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 3 * source), source)
    soundfile.write(tmp_path / "1.flac", tone(3.0, 1000, source), source, subtype="PCM_24")
    corpus, crop = open_corpus(str(tmp_path)), Crop(round(0.3 * target), target)
    read, kept = (batches(corpus, crop, 4, seed=1, memory=memory) for memory in (0, 2**30))
    for _ in range(4):
        np.testing.assert_allclose(next(read)["wave"], next(kept)["wave"], atol=1e-5)
    ends = Crop(5 * target, target)  # the beginning and the end of the file are in it
    a, b = (next(batches(corpus, ends, 2, seed=1, memory=memory))["wave"] for memory in (0, 2**30))
    np.testing.assert_allclose(a, b, atol=1e-5)
    sine = next(r for r in corpus.recordings if r.label is None)
    t = np.arange(crop.samples) / target
    for seed, speed in enumerate((0, 0.5, 0.5, 0.5)):
        faster = 2 ** np.random.default_rng(seed).uniform(-speed, speed) if speed else 1.0
        rate = round(target / faster)
        y = crop._replace(speed=speed).read(sine, np.random.default_rng(seed))["wave"]
        basis = np.stack([f(2 * np.pi * 1000 * t * target / rate) for f in (np.sin, np.cos)], 1)
        np.testing.assert_allclose(y, basis @ np.linalg.lstsq(basis, y, rcond=None)[0], atol=1e-3)


def many(tmp_path, count=24):
    for i in range(count):
        write_audio(tmp_path / f"{i:02d}.wav", np.full(800, (i + 1) / 32, np.float32), RATE)
    return open_corpus(str(tmp_path))


@pytest.mark.parametrize("memory", [0, 2**30])
def test_recordings_that_go_bad_are_replaced_and_listed(tmp_path, memory):
    corpus, crop = many(tmp_path), Crop(400, RATE)
    other = open_corpus(str(tmp_path))  # whose threads read ahead, while files go bad
    healthy = [next(made)["wave"] for made in [batches(other, crop, 6, 0, memory=memory)] for _ in range(8)]
    corpus.recordings[3].path.unlink()
    corpus.recordings[7].path.write_bytes(corpus.recordings[7].path.read_bytes()[:500])
    with pytest.warns(UserWarning, match="left out from here on: ") as noticed:
        made = batches(corpus, crop, 6, 0, memory=memory)
        waves = [next(made)["wave"] for _ in range(8)]
        later = batches(corpus, crop, 6, 0, start=5, memory=memory)
        for expected in waves[5:]:
            np.testing.assert_array_equal(next(later)["wave"], expected)  # a resumed run draws the same
    assert len(noticed) >= 2
    assert {line.partition(": ")[2].partition(",")[0] for line in corpus.rejected} == {"no such file", "truncated"}
    drawn = np.concatenate(waves)[:, 0]
    bad = np.isin(np.concatenate(healthy)[:, 0], [4 / 32, 8 / 32])
    assert bad.sum() == 4  # of two epochs
    np.testing.assert_array_equal(drawn[~bad], np.concatenate(healthy)[~bad, 0])
    assert not np.isin(drawn, [4 / 32, 8 / 32]).any()


def test_too_many_bad_recordings_end_the_run(tmp_path):
    corpus = many(tmp_path)
    for recording in corpus.recordings[:12]:  # a half may be bad
        recording.path.unlink()
    with pytest.warns(UserWarning, match="left out from here on: ") as noticed:
        made = batches(corpus, Crop(400, RATE), 6, 0)
        waves = np.concatenate([next(made)["wave"] for _ in range(8)])
        assert len(corpus.rejected) == 12 and np.unique(waves[:, 0]).tolist() == [i / 32 for i in range(13, 25)]
        assert len(noticed) == 5 and "further ones are listed only" in str(noticed[4].message)
        corpus.recordings[12].path.unlink()
        with pytest.raises(AudioError, match=r"\d+\.wav: no such file; 13 of 24 recordings cannot be read"):
            made = batches(corpus, Crop(400, RATE), 6, 0)
            for _ in range(8):
                next(made)


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


@pytest.mark.parametrize(("evenness", "memory"), [(0.0, 0), (1.0, 2**30)])
def test_the_rows_of_all_processes_are_the_batch_of_one(folder, evenness, memory):
    (folder / "low" / "2.wav").unlink()
    corpus, crop = open_corpus(str(folder)), Crop(400, RATE, speed=0.2 if not memory else 0.0)
    options: dict[str, Any] = dict(evenness=evenness, memory=memory, further=Further({"noise": corpus}))
    alone = batches(corpus, crop, 8, seed=4, **options)
    whole = [next(alone) for _ in range(5)]
    for count in (2, 8):
        begun = [batches(corpus, crop, 8, seed=4, start=2, process=(i, count), **options) for i in range(count)]
        for expected in whole[2:]:
            rows = [next(iterator) for iterator in begun]
            for name, value in expected.items():
                np.testing.assert_array_equal(np.concatenate([row[name] for row in rows]), value)
    with pytest.raises(ValueError, match="a batch of 8 does not divide over 3 processes"):
        batches(corpus, crop, 8, seed=4, process=(0, 3))


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
