"""Corpora at scale: the index of headers, manifests, mixtures, shards, clouds, damage that is found in training, and
parts of long files."""

import hashlib
import json
import os
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from jaxdiff.cli.main import main
from jaxdiff.data import AudioError, Crop, Further, batches, hold_out, open_corpus, read_audio, write_audio
from jaxdiff.data.files import audio_blocks, check_audio
from jaxdiff.data.index import cache_directory
from jaxdiff.data.packing import pack

RATE = 8000


def constant(path, value, seconds=0.1, rate=RATE, channels=1, **options):
    """A recording whose samples all have one value, by which a crop of it is known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = round(seconds * rate) if channels == 1 else (round(seconds * rate), channels)
    soundfile.write(path, np.full(shape, value, np.float32), rate, **{"subtype": "FLOAT", **options})


def noise(seconds, rate=RATE, seed=0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate)), np.float32)


def names(corpus):
    return [r.name for r in corpus.recordings]


def first(iterator, count, name="wave"):
    """The first sample of each item of so many batches."""
    return np.concatenate([next(iterator)[name][..., 0] for _ in range(count)])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- the index ---


def index_of(root):
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]
    return cache_directory() / "indexes" / f"{name}.json"


def spoil(path):
    """The file with other contents, but of the same size and time."""
    there = path.stat()
    path.write_bytes(b"x" * there.st_size)
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns))


def test_headers_are_read_once_and_again_when_a_file_changes(tmp_path):
    root = tmp_path / "sounds"
    for i in range(4):
        constant(root / "ab"[i % 2] / f"{i}.wav", 0.1 * (i + 1), 0.1 * (i + 1))
    (root / "a" / "bad.wav").write_text("no audio")
    corpus = open_corpus(str(root))
    entries = json.loads(index_of(root).read_text())["files"]
    assert sorted(entries) == names(corpus) == ["a/0.wav", "a/2.wav", "b/1.wav", "b/3.wav"]
    assert entries["b/1.wav"][2:] == [RATE, 1600, 1, "FLOAT", pytest.approx(0.2)]
    spoil(root / "a" / "2.wav")
    again = open_corpus(str(root))
    assert again.recordings == corpus.recordings and again.rejected == corpus.rejected  # it was not looked at ...
    assert again.peak == corpus.peak == pytest.approx(0.4)
    os.utime(root / "a" / "2.wav")
    (root / "b" / "1.wav").unlink()
    changed = open_corpus(str(root))
    assert names(changed) == ["a/0.wav", "b/3.wav"] and len(changed.rejected) == 2  # ... before it changed
    assert sorted(json.loads(index_of(root).read_text())["files"]) == names(changed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: "{",
        lambda stored: json.dumps({**stored, "format": 99}),
        lambda stored: json.dumps({**stored, "root": "/elsewhere"}),
        lambda stored: json.dumps({**stored, "files": ["a.wav"]}),
        lambda stored: json.dumps(
            {**stored, "files": {k: [*v[:3], 10**15, *v[4:]] for k, v in stored["files"].items()}}
        ),
        lambda stored: json.dumps({**stored, "files": {k: [*v[:3], "1", *v[4:]] for k, v in stored["files"].items()}}),
        lambda stored: "[" * 100_000,
    ],
)
def test_a_damaged_index_is_made_anew(tmp_path, damage):
    constant(tmp_path / "in" / "a.wav", 0.5)
    corpus = open_corpus(str(tmp_path / "in"))
    stored = json.loads(index_of(tmp_path / "in").read_text())
    index_of(tmp_path / "in").write_text(damage(stored))
    assert open_corpus(str(tmp_path / "in")).recordings == corpus.recordings
    assert json.loads(index_of(tmp_path / "in").read_text()) == stored


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    constant(tmp_path / "in" / "a.wav", 0.5)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("JAXDIFF_CACHE", str(tmp_path / "file"))
    assert len(open_corpus(str(tmp_path / "in")).recordings) == 1


# --- what is malformed ---


def wav_header(rate, channels, samples):
    size = samples * channels * 2
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, (rate * channels * 2) % 2**32, channels * 2, 16)
    return b"RIFF" + struct.pack("<I", (36 + size) % 2**32) + b"WAVE" + fmt + b"data" + struct.pack("<I", size)


def malformed(root):
    """One file for each way in which files lie."""
    root.mkdir(parents=True)
    headers = {"rate": (2**31 - 1, 1, 100, 200), "channels": (RATE, 1000, 4, 8000), "none": (RATE, 1, 0, 0),
               "promises": (RATE, 1, 16000, 956), "tenhours": (RATE, 1, 36000 * RATE, 72000 * RATE)}  # fmt: skip
    for name, (rate, channels, samples, there) in headers.items():
        with (root / f"{name}.wav").open("wb") as file:
            file.write(wav_header(rate, channels, samples))
            file.truncate(44 + there)
    soundfile.write(root / "nan.wav", np.array([0.1, np.nan, 0.2], np.float32), RATE, subtype="FLOAT")
    write_audio(root / "cut.flac", noise(2), RATE)
    (root / "cut.flac").write_bytes((root / "cut.flac").read_bytes()[:9000])
    (root / "text.wav").write_text("no audio")
    (root / "empty.wav").touch()
    return 9


def test_malformed_files_are_left_out_listed_and_counted(tmp_path):
    count = malformed(tmp_path / "in")
    with pytest.raises(
        AudioError, match=rf"none of its {count} sound files can be used; the first: .*channels\.wav: 1000"
    ):
        open_corpus(str(tmp_path / "in"))
    with soundfile.SoundFile(tmp_path / "in" / "bomb.flac", "w", RATE, 8) as bomb:  # a few kilobytes that become many
        bomb.write(np.zeros((RATE * 100, 8), np.float32))
    constant(tmp_path / "in" / "good.wav", 0.5)
    corpus = open_corpus(str(tmp_path / "in"))
    assert names(corpus) == ["bomb.flac", "good.wav"] and len(corpus.rejected) == count
    drawn = first(batches(corpus, Crop(400, RATE), 4, 0), 4)
    assert set(drawn.tolist()) == {0.0, 0.5}


def test_damage_that_opening_does_not_hear_is_found_in_training(tmp_path):
    """A FLAC that is damaged between the places that are listened to, among healthy ones."""
    for i in range(3):
        constant(tmp_path / "in" / f"{i}.flac", (i + 1) / 8, 0.5, subtype="PCM_16")
    path = tmp_path / "in" / "long.flac"
    write_audio(path, noise(60), RATE)
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 4 + 20_000] = bytes(20_000)
    path.write_bytes(content)
    corpus = open_corpus(str(tmp_path / "in"))
    assert len(corpus.recordings) == 4 and not corpus.rejected
    with pytest.warns(UserWarning, match=r"long\.flac: damaged"):
        made = batches(corpus, Crop(4 * RATE, RATE), 4, 1)
        waves = [next(made)["wave"] for _ in range(40)]
    assert len(corpus.rejected) == 1 and "long.flac" in corpus.rejected[0]
    assert np.isfinite(waves).all()
    later = batches(corpus, Crop(4 * RATE, RATE), 4, 1, start=30)
    np.testing.assert_array_equal(next(later)["wave"], waves[30])


def test_a_sample_of_a_large_corpus_is_listened_to(tmp_path):
    for i in range(70):
        constant(tmp_path / "in" / f"{i:02d}.wav", 0.0)
    with pytest.raises(AudioError, match="all of the 64 that were listened to, of its 70 recordings, are silent"):
        open_corpus(str(tmp_path / "in"))
    entries = json.loads(index_of(tmp_path / "in").read_text())["files"]
    unheard = [name for name, entry in entries.items() if entry[-1] is None]
    assert len(unheard) == 6
    constant(tmp_path / "in" / unheard[0], 1000.0)
    constant(tmp_path / "in" / "00.wav", 0.5)
    corpus = open_corpus(str(tmp_path / "in"))
    assert corpus.peak == 0.5
    with pytest.warns(UserWarning, match=rf"{unheard[0]}: peaks at 1000, and full scale is 1") as noticed:
        first(batches(corpus, Crop(400, RATE), 70, 0), 2)
    assert len(noticed) == 1


# --- manifests ---


@pytest.fixture
def ramp(tmp_path):
    """Ten seconds in which a sample is its own time, in seconds / 16."""
    (tmp_path / "in").mkdir()
    time = np.arange(10 * RATE) / RATE / 16
    soundfile.write(tmp_path / "in" / "ramp.wav", time.astype(np.float32), RATE, subtype="FLOAT")
    constant(tmp_path / "in" / "sub" / "x.wav", -0.5)
    return tmp_path / "in"


@pytest.mark.parametrize("memory", [0, 2**30])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_gives_parts_of_files(ramp, kind, memory):
    if kind == "csv":
        text = "file,label,offset,seconds,more\nramp.wav,a,2,1.5,x\nramp.wav,b,7.25,,x\nsub/x.wav,,,,\n"
    else:
        rows = [{"file": "ramp.wav", "label": "a", "offset": 2, "seconds": 1.5, "more": [1]},
                {"file": "ramp.wav", "label": "b", "offset": "7.25"}, {"file": "sub/x.wav", "label": None}]  # fmt: skip
        text = "\n\n".join(map(json.dumps, rows))
    table = ramp / f"list.{kind}"
    table.write_text(text)
    corpus = open_corpus(str(table))
    assert corpus.recordings == open_corpus(str(ramp), str(table)).recordings
    assert corpus.classes == ("a", "b") and not corpus.rejected
    told = [(r.name, r.label, r.offset, r.until, pytest.approx(r.seconds)) for r in corpus.recordings]
    assert told == [
        ("ramp.wav", 0, 2.0, 3.5, 1.5),
        ("ramp.wav", 1, 7.25, np.inf, 2.75),
        ("sub/x.wav", None, 0, np.inf, 0.1),
    ]
    made = batches(corpus, Crop(RATE // 2, RATE), 3, 0, memory=memory)
    starts: dict[int, list[float]] = {0: [], 1: []}
    for batch in (next(made) for _ in range(40)):
        for wave, label in zip(batch["wave"], batch["label"], strict=True):
            if label >= 0:
                np.testing.assert_allclose(np.diff(wave), 1 / RATE / 16, atol=1e-6)
                starts[label].append(16 * wave[0])
    assert 2 <= min(starts[0]) < 2.2 and 2.8 < max(starts[0]) <= 3.001
    assert 7.25 <= min(starts[1]) < 7.6 and 9.1 < max(starts[1]) <= 9.501
    longer = next(batches(corpus, Crop(2 * RATE, RATE), 3, 0, memory=memory))  # than a part, which ends where it ends
    (wave,) = longer["wave"][longer["label"] == 0]
    assert 16 * wave[: 3 * RATE // 2].max() == pytest.approx(3.5, abs=0.001) and not wave[3 * RATE // 2 :].any()


def test_partners_and_crops_of_parts_are_at_the_same_place(ramp, tmp_path):
    constant(tmp_path / "target" / "sub" / "x.wav", 0.5)
    time = -np.arange(10 * RATE) / RATE / 16
    soundfile.write(tmp_path / "target" / "ramp.flac", time.astype(np.float32), RATE, subtype="PCM_24")
    (ramp / "list.csv").write_text("file,offset,seconds\nramp.wav,2,1\nramp.wav,5,2\nsub/x.wav,,\n")
    further = Further(paired={"target": open_corpus(str(tmp_path / "target"))})
    for memory in (0, 2**30):
        made = batches(open_corpus(str(ramp / "list.csv")), Crop(2000, RATE), 3, 0, further=further, memory=memory)
        for batch in (next(made) for _ in range(5)):
            np.testing.assert_allclose(batch["target"], -batch["wave"], atol=1e-6)


def test_a_manifest_that_cannot_be_used_says_the_line(ramp, tmp_path):
    constant(tmp_path / "secret.wav", 0.5)
    (ramp / "link.wav").symlink_to(tmp_path / "secret.wav")
    (ramp / "linked").symlink_to(tmp_path)
    fatal = {
        '{"file": "../secret.wav"}': "line 1: names '../secret.wav', which lies outside",
        f'{{"file": "{tmp_path}/secret.wav"}}': "line 1: names .*which lies outside",
        '{"file": "sub/../../secret.wav"}': "line 1: names .*which lies outside",
        '{"file": "link.wav"}': "line 1: names .*which lies outside",
        '{"file": "linked/secret.wav"}': "line 1: names .*which lies outside",
        '{"file": ".."}': "line 1: names .*which lies outside",
        '{"file": "a\\u0000b"}': "line 1: names no file",
        '{"file": 3}': "line 1: names no file",
        '\n["ramp.wav"]': "line 2: expected an object",
        '{"file": "ramp.wav", "offset": -1}': "line 1: expected offset in seconds, at least 0, got -1",
        '{"file": "ramp.wav", "offset": "1e999"}': "line 1: expected offset in seconds",
        '{"file": "ramp.wav", "seconds": NaN}': "line 1: expected seconds in seconds",
        '{"file": "ramp.wav", "seconds": true}': "line 1: expected seconds in seconds",
        '{"file": "ramp.wav", "seconds": 0}': "line 1: seconds is 0",
        '{"file": "ramp.wav", "label": {}}': "line 1: expected label as text",
        2 * '{"file": "ramp.wav", "offset": 1}\n': "line 2: names .* again, as line 1 does",
        "{": "line 1: not JSON in UTF-8",
        "[" * 70_000: "line 1: not JSON in UTF-8",
        "": "lists no files",
        '{"file": "ramp.wav"}\n{"file": "caf\udce9.wav"}': r"line \d: not JSON in UTF-8",
    }
    for text, reason in fatal.items():
        (ramp / "list.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(AudioError, match=rf"list\.jsonl(, |: ){reason}"):
            open_corpus(str(ramp / "list.jsonl"))
    lines = ["file,offset,seconds", "ramp.wav,11,", "ramp.wav,9,2", "ramp.wav,9,1.02", "gone.wav,,"]
    (ramp / "list.csv").write_text("\n".join(lines))
    corpus = open_corpus(str(ramp / "list.csv"))
    assert [(r.offset, r.until) for r in corpus.recordings] == [(9, np.inf)]
    assert [line.partition("/in/")[2] for line in corpus.rejected] == [
        "gone.wav: no such file",
        f"list.csv, line 3: 9 to 11 s of {ramp}/ramp.wav, which lasts 10 s",
        f"list.csv, line 2: 11 to 10 s of {ramp}/ramp.wav, which lasts 10 s",
    ]


# --- mixtures ---


def test_a_mixture_hears_its_corpora_as_they_weigh_and_each_recording_in_turn(tmp_path):
    for i in range(6):
        constant(tmp_path / "one" / "kick" / f"{i}.wav", (i + 1) / 16)
        constant(tmp_path / "two" / "any" / f"{i}.wav", -(i + 1) / 16)
    constant(tmp_path / "two" / "kick" / "6.wav", -7 / 16)
    corpus = open_corpus({str(tmp_path / "one"): 3, str(tmp_path / "two"): 1})
    assert corpus.classes == ("any", "kick") and corpus.parts == ((6, 3), (7, 1)) and len(corpus.recordings) == 13
    assert [r.label for r in corpus.recordings] == [1] * 6 + [0] * 6 + [1]
    made = batches(corpus, Crop(100, RATE, "start"), 8, 0)
    seen = [next(made)["wave"][:, 0] for _ in range(21)]
    drawn = np.concatenate(seen)
    one, two = drawn[drawn > 0], drawn[drawn < 0]
    assert len(one) == 3 * len(two)  # to the item
    for part, count in ((one, 6), (two, 7)):
        epochs = part[: len(part) // count * count].reshape(-1, count)
        assert (np.sort(epochs, 1) == np.sort(np.unique(part))).all()  # every recording once before any comes twice
    assert len({tuple(epoch) for epoch in one.reshape(-1, 6).tolist()}) > 5
    later = [batches(corpus, Crop(100, RATE, "start"), 8, 0, start=9, process=(i, 2)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate([next(part)["wave"][:, 0] for part in later]), seen[9])
    options: dict[str, Any] = dict(evenness=1.0, further=Further({"other": corpus}), memory=2**30)
    even = first(batches(corpus, Crop(100, RATE), 20, 0, **options), 10, "other")
    assert (even > 0).mean() == pytest.approx(0.75, abs=0.12)  # what is drawn beside it, too
    assert (even == -7 / 16).mean() == pytest.approx(0.125, abs=0.1)  # and half of the quarter is the rare class
    with pytest.raises(AudioError, match="labels are those of one folder"):
        open_corpus({str(tmp_path / "one"): 1.0}, "labels.csv")
    with pytest.raises(AudioError, match="names no corpora"):
        open_corpus({})


# --- held out ---


def test_a_share_of_each_class_is_held_out_by_the_names_of_files(tmp_path):
    for name, count in {"kick": 20, "tom": 5, "bell": 2, "gong": 1}.items():
        for i in range(count):
            constant(tmp_path / "in" / name / f"{i}.wav", 0.1)
    whole = open_corpus(str(tmp_path / "in"))
    kept = hold_out(whole, 0.1)
    held = kept.held_out
    assert held is not None and kept.classes == held.classes == whole.classes
    counts = {name: (kept.count(name), held.count(name)) for name in whole.classes}
    assert counts == {"kick": (18, 2), "tom": (4, 1), "bell": (1, 1), "gong": (1, 0)}
    assert sorted(names(kept) + names(held)) == sorted(names(whole))
    shutil.move(tmp_path / "in", tmp_path / "elsewhere")
    assert names(hold_out(open_corpus(str(tmp_path / "elsewhere")), 0.1)) == names(kept)
    more = hold_out(whole, 0.5)
    assert more.held_out is not None and {*names(held)} <= {*names(more.held_out)}  # a larger share takes further ones


def test_parts_of_a_file_are_held_out_together_and_of_every_corpus_of_a_mixture_some(tmp_path):
    for name in ("one", "two"):
        for i in range(6):
            constant(tmp_path / name / f"{i}.wav", 0.1)
    (tmp_path / "one" / "list.csv").write_text(
        "file,label,offset,seconds\n" + "".join(f"{i}.wav,{k},0.0{k},0.01\n" for i in range(6) for k in (1, 2, 3))
    )
    kept = hold_out(open_corpus({str(tmp_path / "one" / "list.csv"): 3, str(tmp_path / "two"): 1}), 0.2)
    held = kept.held_out
    assert held is not None
    assert kept.parts == ((len(kept.recordings) - 5, 3), (5, 1)) and not held.parts
    assert not {r.path for r in kept.recordings} & {r.path for r in held.recordings}
    assert {len([r for r in held.recordings if r.path == path]) for path in {r.path for r in held.recordings}} == {1, 3}
    drawn = next(batches(kept, Crop(8, RATE), 8, 0))
    assert drawn["wave"].shape == (8, 8)


def test_a_single_file_cannot_be_held_out(tmp_path):
    constant(tmp_path / "in" / "a" / "0.wav", 0.1)
    constant(tmp_path / "in" / "b" / "0.wav", 0.1)
    with pytest.raises(AudioError, match="has one file of each class and can spare none"):
        hold_out(open_corpus(str(tmp_path / "in")), 0.5)


# --- stereo ---


@pytest.mark.parametrize("memory", [0, 2**30])
def test_stereo_crops_have_two_channels(tmp_path, memory):
    (tmp_path / "in").mkdir()
    both = np.stack([noise(1, 2 * RATE), noise(1, 2 * RATE, 1)], 1)
    soundfile.write(tmp_path / "in" / "stereo.wav", both, 2 * RATE)
    soundfile.write(tmp_path / "in" / "mono.wav", both[:, 0], 2 * RATE)
    soundfile.write(tmp_path / "in" / "surround.wav", np.repeat(both, 3, 1), 2 * RATE)
    crop, further = Crop(1000, RATE, channels="stereo"), Further(paired={"target": open_corpus(str(tmp_path / "in"))})
    corpus = open_corpus(str(tmp_path / "in"))
    with pytest.warns(UserWarning, match=r"surround\.wav: has 6 channels, where stereo is made of one or two"):
        made = batches(corpus, crop, 4, 0, memory=memory, further=further)
        found = [next(made) for _ in range(4)]
    waves = np.concatenate([batch["wave"] for batch in found])
    assert waves.shape == (16, 2, 1000) and waves.dtype == np.float32
    np.testing.assert_array_equal(waves, np.concatenate([batch["target"] for batch in found]))
    same = np.array([np.array_equal(*wave) for wave in waves])
    assert 0 < same.sum() < 16
    left = batches(corpus, crop._replace(channels="left"), 4, 0, memory=memory)
    lefts = np.concatenate([next(left)["wave"] for _ in range(3)])
    assert any(np.allclose(wave[0], one, atol=1e-6) for wave in waves for one in lefts)


# --- parts of long files ---


@pytest.mark.parametrize(("rate", "mode"), [(22050, "VARIABLE"), (44100, "VARIABLE"), (16000, "CONSTANT")])
def test_a_part_of_an_mp3_is_the_part_of_the_whole(tmp_path, rate, mode):
    """Of one whose small frames refer to many before; soundfile, which seeks after every block, hears other sounds."""
    path, wave = tmp_path / "a.mp3", noise(12, rate) * np.abs(np.sin(np.arange(12 * rate) / rate)).astype(np.float32)
    with soundfile.SoundFile(path, "w", rate, 1, compression_level=0.6, bitrate_mode=mode) as file:
        for i in range(0, len(wave), 65536):
            file.write(wave[i : i + 65536])
    path.write_bytes(b"ID3\3\0\0\0\0\2\0" + bytes(256) + path.read_bytes())
    whole, _ = soundfile.read(path, dtype="float32")  # in one piece
    np.testing.assert_allclose(np.concatenate([block[:, 0] for block in audio_blocks(path)]), whole, atol=2e-7)
    for offset in (0.3, 2.4, 5.17, 8.888, 11.5):
        start = round(offset * rate)
        part = read_audio(path, offset=offset, seconds=0.75)
        np.testing.assert_allclose(part, whole[start : start + round(0.75 * rate)], atol=2e-7)
    assert check_audio(path, 3.0).samples == len(whole)


def test_a_crop_takes_no_more_memory_than_itself(tmp_path):
    """Three hours of twelve channels that are hardly there, and a FLAC bomb: both are read in place."""
    samples = 3 * 3600 * RATE
    with (tmp_path / "long.wav").open("wb") as file:
        file.write(wav_header(RATE, 12, samples))
        file.truncate(44 + 24 * samples)
    with soundfile.SoundFile(tmp_path / "bomb.flac", "w", RATE, 8) as bomb:
        for _ in range(12):
            bomb.write(np.zeros((RATE * 30, 8), np.float32))
    tracemalloc.start()
    for path, seconds in (tmp_path / "long.wav", 3 * 3600), (tmp_path / "bomb.flac", 360):
        assert check_audio(path, 3.0).seconds == seconds
        for offset in (1.0, seconds / 2, seconds - 1.5):
            assert len(read_audio(path, 2 * RATE, offset=offset, seconds=1.0)) == 2 * RATE
    assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    tracemalloc.stop()


# --- shards ---


@pytest.fixture
def kinds(tmp_path):
    """Recordings of several rates, depths and channels; one is long."""
    root = tmp_path / "in"
    (root / "low").mkdir(parents=True)
    soundfile.write(root / "low" / "a.wav", noise(0.5), RATE, subtype="PCM_16")
    soundfile.write(
        root / "low" / "b.wav", np.stack([noise(0.3, 16000), noise(0.3, 16000, 1)], 1), 16000, subtype="PCM_24"
    )
    soundfile.write(root / "c.flac", noise(7.0, seed=2), RATE, subtype="PCM_16")
    return root


def test_a_corpus_of_shards_is_the_corpus_of_its_files(kinds, tmp_path, capsys):
    folder = open_corpus(str(kinds))
    assert pack(folder, tmp_path / "one", shard_bytes=1).shards == 3
    with pytest.raises(SystemExit) as done:
        main(["pack", str(kinds), "--out", str(tmp_path / "two")])
    assert done.value.code == 0 and "two: 3 recordings, 0.1 minutes, 1 shard of" in capsys.readouterr().out
    for name in ("one", "two"):
        shards = open_corpus(str(tmp_path / name))
        assert names(shards) == names(folder) == ["c.flac", "low/a.wav", "low/b.wav"]
        assert shards.classes == ("low",) and not shards.rejected
        assert [(r.label, r.seconds) for r in shards.recordings] == [(r.label, r.seconds) for r in folder.recordings]
        crop = Crop(900, RATE, channels="stereo", speed=0.2)
        kept, packed = (batches(corpus, crop, 3, 0, further=Further({"n": corpus})) for corpus in (folder, shards))
        for a, b in ((next(kept), next(packed)) for _ in range(3)):
            assert set(a) == set(b) and all((a[key] == b[key]).all() for key in a)
    pairs = Further(paired={"target": open_corpus(str(tmp_path / "one"))})
    batch = next(batches(folder, Crop(500, RATE), 3, 0, further=pairs))
    np.testing.assert_array_equal(batch["target"], batch["wave"])
    assert {p.suffix for p in (tmp_path / "one").iterdir()} == {".array_record"}


def test_long_recordings_are_packed_in_pieces_and_what_is_bad_is_listed(kinds, tmp_path):
    (kinds / "bad.wav").write_text("no audio")
    constant(kinds / "many.wav", 0.1, channels=9)
    constant(kinds / "loud.wav", 1.5)
    (kinds / "list.csv").write_text(
        "file,offset,seconds\nc.flac,1,3\nc.flac,1,3.5\nbad.wav,,\nmany.wav,,\nloud.wav,,\n"
    )
    with pytest.raises(SystemExit) as done:
        arguments = ["--out", str(tmp_path / "out"), "--sample-rate", "16000", "--seconds", "2", "--shard-mb", "1"]
        main(["pack", str(kinds / "list.csv"), *arguments])
    assert done.value.code == 0
    packed = open_corpus(str(tmp_path / "out"))
    assert names(packed) == ["c@1.flac", "c@2.5.flac", "c@1~2.flac", "c@2.75.flac", "loud.wav"]
    assert [r.seconds for r in packed.recordings] == [1.5, 1.5, 1.75, 1.75, 0.1]
    whole = read_audio(kinds / "c.flac", 16000)
    for r, start in zip(packed.recordings, (1, 2.5, 1, 2.75), strict=False):
        piece = whole[round(start * 16000) :][: round(r.seconds * 16000)]
        np.testing.assert_allclose(read_audio(r.path), piece, atol=2 / 32768)
    bad, many = sorted((tmp_path / "out" / "rejected.txt").read_text().splitlines())
    assert "bad.wav: not a sound file" in bad and "many.wav: has 9 channels, a shard keeps at most 8" in many
    with pytest.raises(AudioError, match="out: is there already"):
        pack(packed, tmp_path / "out")
    with pytest.raises(SystemExit) as done:
        main(["pack", str(kinds), "--out", str(tmp_path / "out")])
    assert done.value.code == 2
    assert not list(tmp_path.glob(".*"))


def test_shards_that_lie_are_refused(kinds, tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    pack(open_corpus(str(kinds)), tmp_path / "good")
    (good,) = (tmp_path / "good").glob("*.array_record")

    def shard(name, *records, options="group_size:1,uncompressed"):
        (tmp_path / "bad").mkdir(exist_ok=True)
        writer = ArrayRecordWriter(str(tmp_path / "bad" / name), options)
        for record in records:
            writer.write(record)
        writer.close()

    def contents(*rows):
        return json.dumps({"format": 1, "recordings": rows}).encode()

    row = ["a.wav", "x", RATE, 800, 1]
    shard("0.array_record", b"", contents(["../../a.wav", *row[1:]]))
    shard("1.array_record", b"", contents(["/a.wav", *row[1:]]))
    shard("2.array_record", b"", contents([*row[:3], 10**15, 1]))
    shard("3.array_record", b"", contents([*row[:4], "1"]))
    shard("4.array_record", b"", contents(row), options="group_size:1")
    shard("5.array_record", b"", b"{")
    shard("6.array_record", b"", json.dumps({"format": 7, "recordings": []}).encode())
    (tmp_path / "bad" / "7.array_record").write_bytes(good.read_bytes()[:70_000])
    (tmp_path / "bad" / "8.array_record").touch()
    with pytest.raises(
        AudioError, match="none of its 9 sound files can be used; the first: .*0.array_record: names '../"
    ):
        open_corpus(str(tmp_path / "bad"))
    shutil.copy(good, tmp_path / "bad" / "x.array_record")
    shard("9.array_record", b"no audio", contents(row))  # which is found when it is read
    corpus = open_corpus(str(tmp_path / "bad"))
    reasons = [line.partition(".array_record: ")[2] for line in corpus.rejected]
    starts = ["names '../", "names '/a", "", "has no table", "is not as jaxdiff pack", "has no table", "is of format 7"]
    assert all(reason.startswith(start) for reason, start in zip(reasons, [*starts, "", ""], strict=True))
    assert "hours long" in reasons[2]
    with pytest.warns(UserWarning, match=r"9\.array_record: a\.wav: not a sound file"):
        made = batches(corpus, Crop(100, RATE), 4, 0)
        assert all(np.isfinite(next(made)["wave"]).all() for _ in range(3))


# --- clouds ---


def test_a_corpus_of_a_cloud_is_copied_once_and_follows_it(kinds, tmp_path, monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    asked = []

    class Bucket(MemoryFileSystem):
        protocol, store, pseudo_dirs = "gs", {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.removeprefix("gs://").strip("/")

        def get_file(self, rpath, lpath, **options):
            asked.append(rpath)
            return super().get_file(rpath, lpath, **options)

    fsspec.register_implementation("gs", Bucket, clobber=True)
    cloud: Any = fsspec.filesystem("gs")
    for path in kinds.rglob("*.*"):
        cloud.pipe(f"gs://bucket/in/{path.relative_to(kinds)}", path.read_bytes())
    cloud.pipe("gs://bucket/in/list.csv", b"file,label\nlow/a.wav,x\n")
    cloud.pipe("gs://bucket/in/../../out.wav", b"x")
    cloud.pipe("gs://bucket/in/notes.txt", b"x")
    here, there = open_corpus(str(kinds)), open_corpus("gs://bucket/in")
    assert names(there) == names(here) and not list(tmp_path.rglob("out.wav")) and not list(tmp_path.rglob("notes.txt"))
    ours, theirs = (next(batches(corpus, Crop(900, RATE), 3, 0)) for corpus in (here, there))
    np.testing.assert_array_equal(ours["wave"], theirs["wave"])
    assert sorted(asked) == [f"/bucket/in/{name}" for name in (*names(here)[:1], "list.csv", *names(here)[1:])]
    asked.clear()
    assert open_corpus("gs://bucket/in/list.csv").classes == ("x",) and not asked
    cloud.rm("gs://bucket/in/c.flac")
    cloud.pipe("gs://bucket/in/low/a.wav", (kinds / "c.flac").read_bytes())
    assert [(r.name, r.seconds) for r in open_corpus("gs://bucket/in").recordings] == [
        ("low/a.wav", 7),
        ("low/b.wav", 0.3),
    ]
    assert asked == ["/bucket/in/low/a.wav"]
    for url in ("gs://none/there", "gs://", "gs://../x", "ftp://host/x", "s3://bucket/x"):
        with pytest.raises(
            AudioError, match="holds no sound files|one that begins with gs://|needs a package|be listed"
        ):
            open_corpus(url)
    assert not Path("gs:").exists()
