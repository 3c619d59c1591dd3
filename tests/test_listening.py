"""Listening tests: the design is balanced, blind and equally loud, every mistake has its sentence, and the server keeps
every rating and gives nothing to a client that is not friendly."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import scipy.signal
import soundfile
import tyro

from jaxdiff.cli.listen import Listen
from jaxdiff.data import AudioError
from jaxdiff.evaluation.listening import anchors, checks, design, make, orders, plan, store

ROOT = Path(__file__).parent.parent
RATE = 16_000


def write_folders(folder: Path, files: int = 4, seconds: float = 1.0, rate: int = RATE) -> dict[str, Path]:
    """A reference and two systems that add noise and play at other levels."""
    rng, t = np.random.default_rng(3), np.arange(round(seconds * rate)) / rate
    folders = {name: folder / name for name in ("clean", "ours", "theirs")}
    for k in range(files):
        y = np.sum([np.sin(2 * np.pi * 220 * h * (1 + k / 5) * t + h) / h for h in range(1, 30)], 0)
        for noise, level, inside in zip((0, 0.01, 0.1), (0.1, 0.2, 0.03), folders.values(), strict=True):
            inside.mkdir(exist_ok=True, parents=True)
            soundfile.write(inside / f"take {k}.wav", level * (y + noise * rng.standard_normal(len(y))), rate)
    return folders


def tree(folders: dict[str, Path], **changes):
    """What the YAML of a small test holds; a change to None takes a key away."""
    whole = {
        "kind": "mushra",
        "reference": str(folders["clean"]),
        "systems": {name: str(folders[name]) for name in ("ours", "theirs")},
        "excerpts": {"count": "2", "seconds": "1"},
        "seed": "5",
    } | changes
    return {key: value for key, value in whole.items() if value is not None}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("systems"))


@pytest.fixture(scope="module")
def mushra(folders, tmp_path_factory):
    """A folder with a made test; what the tests do with it they do with a copy of its database only."""
    folder = tmp_path_factory.mktemp("made") / "test"
    make.make_test(design.parse_design(tree(folders)), folder)
    return folder


# Anchors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("cutoff", [3500, 7000])
def test_anchors_have_the_recommended_response(cutoff, rate):
    frequencies = np.linspace(0, rate / 2, 20_001)
    _, response = scipy.signal.freqz(anchors.anchor_filter(cutoff, rate), worN=frequencies, fs=rate)
    db = 20 * np.log10(np.maximum(np.abs(response), 1e-9))
    assert np.abs(db[frequencies <= cutoff]).max() <= 0.1
    assert db[frequencies >= cutoff * 8 / 7].max() <= -25  # 4 kHz for the 3.5 kHz anchor
    assert db[frequencies >= cutoff * 9 / 7].max(initial=-99) <= -50  # 4.5 kHz


def test_an_anchor_is_aligned_with_its_reference():
    t = np.arange(4000) / RATE
    low, high = np.sin(2 * np.pi * 1000 * t), np.sin(2 * np.pi * 5000 * t)
    y = anchors.anchor(np.stack([low, low + high]), 3500, RATE)
    np.testing.assert_allclose(y[:, 500:-500], np.stack([low, low])[:, 500:-500], atol=2e-3)
    with pytest.raises(ValueError, match="an anchor of 7000 Hz needs sounds of at least 16000 Hz, got 8000 Hz"):
        anchors.anchor(low, 7000, 8000)


# Orders -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_orders_are_balanced_in_place_and_in_what_follows_what(count):
    rows = [orders.balanced_order(count, session, (9, 4)) for session in range(2 * count if count % 2 else count)]
    for first in range(0, len(rows), count):  # every number stands once in every place of each Latin square
        for place in zip(*rows[first : first + count], strict=True):
            assert sorted(place) == list(range(count))
    follows = Counter(pair for row in rows for pair in pairwise(row))
    assert len(follows) == count * (count - 1) and len(set(follows.values())) <= 1
    many = [tuple(orders.balanced_order(count, session, (9, 4))) for session in range(20 * count)]
    assert many[: len(rows)] == [tuple(row) for row in rows]
    if count > 3:
        assert len(set(many)) > 4 * count  # the next square is another one
        assert many != [tuple(orders.balanced_order(count, session, (9, 5))) for session in range(20 * count)]


@pytest.mark.parametrize(("count", "checked"), [(1, 1), (7, 7), (9, 2), (20, 3), (4, 0)])
def test_checks_stand_apart_and_never_first(count, checked):
    others, among = list(range(count)), list(range(100, 100 + checked))
    rows = [orders.interspersed(others, among, session, (9, 4)) for session in range(200)]
    for row in rows:
        assert [i for i in row if i < 100] == others and sorted(i for i in row if i >= 100) == among
        places = [place for place, i in enumerate(row) if i >= 100]
        assert all(after - before > 1 for before, after in pairwise([-1, *places]))
    assert rows == [orders.interspersed(others, among, session, (9, 4)) for session in range(200)]
    if checked > 1:  # each check stands in each part
        assert {row.index(among[0]) * checked // len(row) for row in rows} == set(range(checked))


# The YAML -----------------------------------------------------------------------------------------------------------


def mistakes(folders):
    ours = str(folders["ours"])
    clip = str(folders["ours"] / "take 0.wav")
    many = {f"system {k}": str(folders["clean"].parent / str(k)) for k in range(9)}
    for folder in many.values():
        Path(folder).mkdir(exist_ok=True)
    return [
        ([], "the file: expected keys and values, got a list"),
        ("mushra", "the file: expected keys and values, got 'mushra'"),
        (tree(folders, kind=None), "kind: is missing; give one of mushra, mos, cmos, abx, preference"),
        (tree(folders, kind="mushro"), "kind: expected one of .* got 'mushro'; did you mean mushra"),
        (tree(folders, refrence=ours), "refrence: unknown key; did you mean reference"),
        (tree(folders, zzz="1"), "zzz: unknown key; valid here: kind, systems"),
        (tree(folders, systems=None), "systems: is missing; give names and folders"),
        (tree(folders, systems="out"), "systems: expected names and folders, .* got 'out'"),
        (tree(folders, systems={"ours": "nowhere"}), "systems.ours: nowhere is no folder"),
        (tree(folders, systems={"ours": ours, "same": ours}), "systems.same: is the folder of ours too"),
        (tree(folders, systems={"anchor35": ours}), "systems.anchor35: this name stands for something else"),
        (tree(folders, systems={"a>b": ours}), "systems: the name 'a>b' must have 1 to 40 printable characters"),
        (tree(folders, systems=many), "systems: a screen of 13 signals .* more than the 12 of BS.1534; leave out 1"),
        (tree(folders, reference=None), "reference: is missing; a mushra test compares with a reference"),
        (tree(folders, kind="cmos", reference=None), "reference: is missing; a cmos test compares"),
        (tree(folders, reference=["a"]), "reference: expected a text, got a list"),
        (tree(folders, kind="mos", anchors=["3500"]), "anchors: belong to a mushra test, got kind mos"),
        (tree(folders, anchors=["5000"]), "anchors: expected a list of 3500 and 7000 in Hz, got '5000'"),
        (tree(folders, anchors=["3500", "3500"]), "anchors: each stands once in the list"),
        (tree(folders, kind="preference", systems={"ours": ours}), "systems: a preference test needs at least two"),
        (tree(folders, kind="abx", reference=None, systems={"ours": ours}), "systems: an abx test without a reference"),
        (tree(folders, excerpts={"count": "0"}), "excerpts.count: expected a whole number from 1 to 100, got '0'"),
        (tree(folders, excerpts={"seconds": "0.2"}), "excerpts.seconds: expected a number from 0.5 to 60, got '0.2'"),
        (tree(folders, excerpts={"second": "2"}), "excerpts.second: unknown key; did you mean excerpts.seconds"),
        (tree(folders, excerpts={"start": "nan"}), "excerpts.start: expected a number from 0 to 14400, got 'nan'"),
        (tree(folders, excerpts="4"), "excerpts: expected keys and values, got '4'"),
        (tree(folders, repeats="0"), "repeats: expected a whole number from 1 to 50, got '0'"),
        (tree(folders, repeats="3"), "repeats: at most the 2 screens of the test can be shown twice, got 3"),
        (tree(folders, kind="mos", excerpts={"count": "99"}), "the test would have 361 screens, at most 200"),
        (tree(folders, traps="2"), "traps: belong to a mos test, got kind mushra; leave them out"),
        (tree(folders, kind="abx", gold="1"), "gold: belong to a mos test, got kind abx; leave them out"),
        (tree(folders, kind="mos", traps="-1"), "traps: expected a whole number from 0 to 50, or files .* got '-1'"),
        (tree(folders, kind="mos", gold=["1"]), "gold: expected a whole number from 0 to 50, or files .* got a list"),
        (tree(folders, kind="mos", traps="51"), "traps: expected a whole number from 0 to 50, got '51'"),
        (tree(folders, kind="mos", traps="6", gold="2"), "traps: 6 trap and 2 gold clips .* between 7 screens; take"),
        (tree(folders, kind="mos", gold="2", reference=None), "gold: is made from the reference, which is missing"),
        (tree(folders, kind="mos", traps={"two.wav": "2"}), "traps: two.wav is no file; give a sound file and its"),
        (tree(folders, kind="mos", gold={clip: "6"}), "gold.take 0.wav: expected a whole number from 1 to 5, got '6'"),
        (tree(folders, kind="mos", traps={}), "traps: expected 1 to 50 files, got 0"),
        (tree(folders, loudness="-3"), "loudness: expected a number from -50 to -10, got '-3'"),
        (tree(folders, seed="-1"), r"seed: expected a whole number from 0 to 2\^32 - 1, got '-1'"),
        (tree(folders, title=""), "title: expected a text, got nothing"),
        (tree(folders, title="a" * 101), "title: expected at most 100 characters, got 101; shorten it"),
        (
            tree(folders, questions=["Age?"]),
            "questions: expected at most 20 questions with lists of choices, got a list",
        ),
        (tree(folders, questions={"Age?": ["old"]}), "questions: Age. expected a list of 2 to 20 different choices"),
        (tree(folders, questions={"Age?": "old"}), "questions: Age. expected a list of 2 to 20 different choices"),
    ]


def test_every_mistake_has_one_sentence(folders, tmp_path):
    for wrong, sentence in mistakes(folders):
        with pytest.raises(design.DesignError, match=sentence) as said:
            design.parse_design(wrong)
        assert "\n" not in str(said.value)
    for text, sentence in [
        ("kind: mos\nkind: abx", "the key kind stands twice"),
        ("kind: [", "cannot be read as YAML"),
        ("kind: mushri", "test.yaml: kind: expected one of"),
    ]:
        (tmp_path / "test.yaml").write_text(text)
        with pytest.raises(design.DesignError, match=sentence):
            design.read_design(tmp_path / "test.yaml")
    with pytest.raises(design.DesignError, match="nowhere.yaml: cannot be read"):
        design.read_design(tmp_path / "nowhere.yaml")


def test_the_examples_can_be_read_where_its_folders_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data/clean", "data/noisy", "out/denoise-16k"):
        (tmp_path / folder).mkdir(parents=True)
    found = design.read_design(ROOT / "configs" / "listen" / "mushra.yaml")
    assert found.screens() == [("reference", "anchor35", "noisy", "denoise-16k")]
    assert (found.excerpts.count, found.seed, found.loudness) == (8, 2026, -23.0)
    found = design.read_design(ROOT / "configs" / "listen" / "mos.yaml")
    assert (found.kind, found.traps, found.gold) == ("mos", 3, 3)
    usual = design.parse_design({"kind": "mos", "systems": {"noisy": "data/noisy"}, "reference": "data/clean"})
    assert (usual.traps, usual.gold) == (2, 2)  # of 17 screens


def test_values_are_read_as_their_keys_say(folders, tmp_path):
    path = tmp_path / "test.yaml"
    path.write_text(f"kind: mos\nsystems:\n  no: {folders['ours']}\n  010: {folders['theirs']}\ntitle: no\n")
    found = design.read_design(path)
    assert (list(found.systems), found.title, found.anchors) == (["no", "010"], "no", ())
    assert found.screens() == [("no",), ("010",)]
    assert design.read_design(path).seed != found.seed  # a random one each time


# Sounds -------------------------------------------------------------------------------------------------------------


def heard(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: soundfile.read(path)[0] for path in (folder / "sounds").iterdir()}


def test_all_copies_of_a_screen_are_equally_loud_and_nothing_else_is_changed(mushra, folders):
    test, sounds = plan.load_test(mushra), heard(mushra)
    meter = pyloudnorm.Meter(RATE)
    for page in test.key["pages"]:
        copies = {system: sounds[name] for name, system in page["sounds"].items()}
        assert set(copies) == {"reference", "anchor35", "anchor70", "ours", "theirs"}
        levels = [meter.integrated_loudness(y) for y in copies.values()]
        np.testing.assert_allclose(levels, -23, atol=0.1)
        (opened,) = page["open"]
        assert np.abs(sounds[opened] - copies["reference"]).max() <= 4 / 2**15  # dither of two copies
        clean = soundfile.read(folders["clean"] / f"{page['item']}.wav")[0][80:-80]
        ours = copies["reference"][80:-80]
        gain = np.vdot(clean, ours) / np.vdot(clean, clean)
        np.testing.assert_allclose(ours, gain * clean, atol=3 / 2**15)
        for cutoff, system in ((3500, "anchor35"), (7000, "anchor70")):
            spectrum = np.abs(np.fft.rfft(copies[system] * np.hanning(RATE)))  # 1 s: a bin is 1 Hz
            whole = np.abs(np.fft.rfft(copies["reference"] * np.hanning(RATE)))
            above = slice(round(cutoff * 8 / 7) + 5, None)
            assert spectrum[above].sum() < 0.05 * max(whole[above].sum(), 1)


def test_files_tell_nothing_of_their_systems(mushra, folders, tmp_path):
    files = sorted((mushra / "sounds").iterdir())
    test = plan.load_test(mushra)
    assert {path.stem for path in files} == set(test.sounds)
    assert len(files) == 4 * 6  # training, two excerpts and a repeated one, each with its own copies
    assert all(re.fullmatch(r"[0-9a-f]{16}\.wav", path.name) for path in files)
    assert len({path.stat().st_size for path in files}) == 1
    assert len({path.read_bytes()[:44] for path in files}) == 1  # the headers
    assert len({path.read_bytes() for path in files}) == len(files)  # even of the open and the hidden reference
    assert {soundfile.info(path).subtype for path in files} == {"PCM_16"}
    for page in test.key["pages"]:  # even when they were written says no more than their names
        written = [path for path in files if path.stem in page["sounds"] | page["open"]]
        assert sorted(written, key=lambda path: path.stat().st_mtime_ns) == written
    public = (mushra / "test.json").read_text()
    assert not any(word in public for word in ("ours", "theirs", "anchor", "take", "seed", "secret", "clean"))
    assert json.loads(public)["pages"] == sorted(json.loads(public)["pages"], key=lambda page: page["page"])
    assert (mushra / "key.json").stat().st_mode & 0o077 == 0
    again, other = tmp_path / "again", tmp_path / "other"
    make.make_test(design.parse_design(tree(folders)), again)
    make.make_test(design.parse_design(tree(folders, seed="6")), other)
    assert {p.name: p.read_bytes() for p in (again / "sounds").iterdir()} == {p.name: p.read_bytes() for p in files}
    assert not {p.name for p in (other / "sounds").iterdir()} & {p.name for p in files}


def test_the_training_has_its_own_excerpt_and_screens_come_twice(mushra):
    pages = plan.load_test(mushra).key["pages"]
    (training,) = {page["item"] for page in pages if page["training"]}
    others = Counter(page["item"] for page in pages if not page["training"])
    assert training not in others
    assert sorted(others.values()) == [1, 2]


def test_sounds_of_other_rates_channels_and_lengths_are_made_alike(tmp_path):
    folders = write_folders(tmp_path, files=2, seconds=0.8)
    t = np.arange(round(0.76 * 8000)) / 8000
    for k in range(2):
        y = 0.1 * np.sin(2 * np.pi * 440 * t)
        soundfile.write(folders["ours"] / f"take {k}.wav", y, 8000)  # 40 ms shorter, at half the rate
        clean, _ = soundfile.read(folders["clean"] / f"take {k}.wav")
        soundfile.write(folders["clean"] / f"take {k}.wav", np.stack([clean, 0.5 * clean], 1), RATE)
    with pytest.warns(UserWarning, match="its one channel is played on both sides"):
        make.make_test(design.parse_design(tree(folders, excerpts={"count": "1"}, anchors=["3500"])), tmp_path / "test")
    infos = [soundfile.info(path) for path in (tmp_path / "test" / "sounds").iterdir()]
    assert {(info.samplerate, info.channels, info.frames) for info in infos} == {(RATE, 2, 12_800)}


def test_high_peaks_make_the_whole_screen_quieter(tmp_path):
    folders = write_folders(tmp_path, files=2, seconds=0.8)
    for k in range(2):
        y, _ = soundfile.read(folders["theirs"] / f"take {k}.wav")
        y[6000] = 0.9  # far above the rest
        soundfile.write(folders["theirs"] / f"take {k}.wav", y, RATE)
    made = make.make_test(
        design.parse_design(tree(folders, kind="cmos", excerpts={"count": "1"}, loudness="-15")), tmp_path / "test"
    )
    sounds = heard(tmp_path / "test")
    assert made.quietest < -20
    assert max(np.abs(y).max() for y in sounds.values()) <= 10 ** (-0.9 / 20)
    levels = [pyloudnorm.Meter(RATE).integrated_loudness(y) for y in sounds.values()]
    assert np.ptp(levels) < 1.5  # each excerpt has a level of its own
    for page in plan.load_test(tmp_path / "test").key["pages"]:
        one, two = (pyloudnorm.Meter(RATE).integrated_loudness(sounds[name]) for name in page["sounds"])
        assert abs(one - two) < 0.1


def spoil(folders, name, change):
    for path in folders[name].iterdir():
        y, rate = soundfile.read(path)
        y, rate = change(y, rate)
        soundfile.write(path, y, rate)


@pytest.mark.parametrize(
    ("options", "change", "sentence"),
    [
        ({}, lambda y, rate: (0 * y, rate), "the excerpt of theirs is silent"),
        ({}, lambda y, rate: (y[:12_000], rate), r"ends 0.25 s before its reference, at most 0.1 s are passed over"),
        (
            {"excerpts": {"count": "2", "start": "0.6"}},
            None,
            "the excerpt from 0.6 s has 0.40 s, at least 0.5 s are needed",
        ),
        ({"excerpts": {"count": "3"}}, None, "3 and one for the training are 4 excerpts, and only 3 names"),
    ],
)
def test_sounds_that_do_not_fit_are_refused_in_one_sentence(options, change, sentence, tmp_path):
    folders = write_folders(tmp_path, files=3)
    if change:
        spoil(folders, "theirs", change)
    with pytest.raises(design.DesignError, match=sentence):
        make.make_test(design.parse_design(tree(folders, **options)), tmp_path / "test")
    assert {path.name for path in tmp_path.iterdir()} == set(folders), "half a test is left"


def test_files_that_are_not_there_are_told(tmp_path):
    folders = write_folders(tmp_path, files=3, rate=8000)
    (folders["ours"] / "take 0.wav").rename(folders["ours"] / "other.wav")
    options = tree(folders, excerpts={"count": "1"})
    with (
        pytest.warns(UserWarning, match="1 files are not in all folders, such as"),
        pytest.raises(
            design.DesignError, match="anchors: one of 7000 Hz needs sounds of at least 16000 Hz, got .* 8000"
        ),
    ):
        make.make_test(design.parse_design(options), tmp_path / "test")
    soundfile.write(folders["clean"] / "take 1.flac", np.ones(8000), 8000)
    with pytest.raises(design.DesignError, match="have the same name; keep one"):
        make.make_test(design.parse_design(options), tmp_path / "test2")
    (folders["clean"] / "take 1.flac").unlink()
    spoil(folders, "clean", lambda y, rate: (np.stack([y] * 3, 1), rate))
    with pytest.warns(UserWarning), pytest.raises(AudioError, match="has 3 channels, at most 2 can be played"):
        make.make_test(design.parse_design(options), tmp_path / "test3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(design.DesignError, match="is there already and not an empty folder"):
        make.make_test(design.parse_design(options), tmp_path / "full")


# Clips whose right score is known -----------------------------------------------------------------------------------


def beeps(y: np.ndarray, rate: int) -> int:
    """How many sounds follow the last silence of 0.4 s, counted by the envelope."""
    envelope = np.sqrt(np.convolve(y**2, np.ones(rate // 50) / (rate // 50), "same"))
    loud = envelope > 0.1 * envelope.max()
    edges = np.diff(np.concatenate([[0], loud, [0]]))
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return len(begins) - 1 - np.flatnonzero(begins[1:] - ends[:-1] > 0.4 * rate)[-1]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_beeps_are_counted_in_clips_of_any_length(count):
    rng = np.random.default_rng(count)
    for seconds, length in ((10.0, 10.0), (1.0, 0.5 + 0.5 + 0.5 * count)):  # a short one keeps its half and grows
        y = 0.05 * rng.standard_normal((2, round(seconds * RATE)))
        made = checks.with_beeps(y, count, RATE, -23.0)
        assert made.shape == (2, round(length * RATE))
        np.testing.assert_array_equal(made[:, : RATE // 3], y[:, : RATE // 3])
        assert beeps(made[0], RATE) == count
        tone = made[:, -RATE // 2 :][:, : RATE // 4]
        meter = pyloudnorm.Meter(RATE)
        assert meter.integrated_loudness(np.tile(tone, 8).T) == pytest.approx(-23, abs=0.5)
        assert np.abs(np.fft.rfft(tone[0])).argmax() == 250  # 4 Hz each


@pytest.fixture(scope="module")
def mos(tmp_path_factory):
    """A made MOS test of 6 s clips at 8 kHz with five traps and two gold clips."""
    folder = tmp_path_factory.mktemp("mos")
    folders = write_folders(folder, files=3, seconds=6.0, rate=8000)
    wanted = tree(folders, kind="mos", excerpts={"count": "2", "seconds": "6"}, traps="5", gold="2")
    make.make_test(design.parse_design(wanted), folder / "test")
    return folder / "test", folders


@pytest.mark.slow
def test_traps_say_their_score_and_gold_has_it(mos):
    folder, folders = mos
    test, sounds = plan.load_test(folder), heard(folder)
    known = [page for page in test.key["pages"] if "expected" in page]
    assert len(known) == 7 and {page["item"]: page["expected"] for page in known} == test.expected
    traps, gold = {}, {}
    for page in known:
        ((name, system),) = page["sounds"].items()
        y = sounds[name]
        assert pyloudnorm.Meter(8000).integrated_loudness(y) == pytest.approx(-23, abs=0.1)
        assert page["seconds"] == len(y) / 8000 == 6.0 and not page["training"]  # as long as all others
        (traps if system == "trap" else gold)[page["expected"]] = y, page["item"]
    assert {score: beeps(y, 8000) for score, (y, _) in traps.items()} == {score: score for score in range(1, 6)}
    assert set(gold) == {1, 5}
    for score, (y, item) in gold.items():
        (source,) = re.findall(r"\((.*)\)", item)
        clean, _ = soundfile.read(folders["clean"] / f"{source}.wav")
        if score == 1:  # what is left of the sound below 1 kHz, and noise as strong as that
            sos = scipy.signal.butter(12, 1070, fs=8000, output="sos")
            clean = scipy.signal.sosfiltfilt(sos, clean)
        clean, y = clean[80:-80], y[80:-80]  # between the fades
        gain = np.vdot(clean, y) / np.vdot(clean, clean)
        noise = np.sum((y - gain * clean) ** 2) / np.sum((gain * clean) ** 2)
        assert noise == pytest.approx(1, abs=0.1) if score == 1 else noise < 1e-4
        high = np.sum(np.abs(np.fft.rfft(y))[9000:] ** 2) / np.sum(np.abs(np.fft.rfft(y)) ** 2)  # above 1.5 kHz
        assert score == 5 or 0.25 < high < 0.4  # half the power is noise, which is white: 0.5 x 2.5 kHz / 4 kHz
    (training,) = {page["item"] for page in test.key["pages"] if page["training"]}
    assert not any(training in item for item in test.expected)
    public = json.loads((folder / "test.json").read_text())
    assert "count them" in public["traps"]
    assert {frozenset(page) for page in public["pages"]} == {frozenset({"page", "training", "sounds"})}
    assert len({len(page["sounds"]) for page in public["pages"]}) == 1
    for number in range(10):
        pages = [page for page in test.plan(number) if not page.training]
        places = [k for k, page in enumerate(pages) if page.page in {page["page"] for page in known}]
        assert len(pages) == 14 and len(places) == 7
        assert all(after - before > 1 for before, after in pairwise([-1, *places]))


@pytest.mark.slow
def test_who_ignores_the_beeps_is_left_out(mos, tmp_path, capsys):
    folder = shutil.copytree(mos[0], tmp_path / "test")
    test = plan.load_test(folder)
    keys = {page["page"]: page for page in test.key["pages"]}

    def vote(who: str, page: plan.Page) -> int:
        key = keys[page.page]
        (system,) = key["sounds"].values()
        honest = {"reference": 5, "ours": 4, "theirs": 2, "gold": key.get("expected")}
        if system == "trap":
            return 3 if who == "deaf to beeps" else key["expected"]
        return 4 if who == "easily pleased" and system == "gold" else honest[system]

    with contextlib.closing(store.Store(folder / store.DATABASE)) as kept:
        for k, who in enumerate(("careful", "deaf to beeps", "easily pleased", "attentive")):
            name = f"{k:032x}"
            kept.begin(name, who)
            for page in test.plan(k):
                kept.leave(name, page.page, {page.sounds[0]: store.Answer(vote(who, page), 7.0, 1)}, 7.0)
            kept.finish(name, {})
    assert command("report", folder) == 0
    facts = json.loads((folder / "report.json").read_text())
    assert {row["listener"]: row["reasons"] for row in facts["listeners"]} == {
        "careful": [],
        "attentive": [],
        "deaf to beeps": ["answered 4 trap clips with another score than the one that was asked for"],
        "easily pleased": ["missed the known score of 1 gold clip by more than 1"],
    }
    means = {row["system"]: row["mean"]["estimate"] for row in facts["systems"]}
    assert means == {"reference": 5, "ours": 4, "theirs": 2}
    assert len(facts["items"]) == 2
    assert {(row["system"], row["expected"], row["ratings"], row["missed"]) for row in facts["checks"]} == {
        *(("trap", score, 4, int(score != 3)) for score in range(1, 6)),
        *(("gold", score, 4, int(score == 1)) for score in (1, 5)),
    }
    assert not any("No right score" in note for note in facts["notes"])
    html = (folder / "report.html").read_text()
    assert "5 trap and 2 gold clips" in html and "Traps and gold" in html


@pytest.mark.slow
def test_own_traps_and_usual_numbers(tmp_path):
    folders = write_folders(tmp_path, files=2, seconds=0.8)
    rng = np.random.default_rng(1)
    said = 0.3 * rng.standard_normal((9600, 2)) * np.linspace(0, 1, 9600)[:, None]
    soundfile.write(tmp_path / "say two.wav", said, 12_000)
    options = tree(folders, kind="mos", excerpts={"count": "1"}, traps={str(tmp_path / "say two.wav"): "2"}, gold="0")
    made = make.make_test(design.parse_design(options), tmp_path / "test")
    assert (made.screens, made.sounds, made.traps, made.gold) == (3 + 4 + 1, 8, 1, 0)
    test, sounds = plan.load_test(tmp_path / "test"), heard(tmp_path / "test")
    assert test.expected == {"trap 1 (say two)": 2.0} and test.seconds["trap 1 (say two)"] == 0.8
    assert "tells you which answer" in test.public["traps"]
    (name,) = test.key["pages"][-1]["sounds"]
    assert soundfile.info(tmp_path / "test" / "sounds" / f"{name}.wav").samplerate == 12_000
    assert np.corrcoef(sounds[name][100:-100, 0], said[100:-100, 0])[0, 1] > 0.999
    assert pyloudnorm.Meter(12_000).integrated_loudness(sounds[name]) == pytest.approx(-23, abs=0.1)
    for seconds, channels, sentence in ((0.3, 1, "has 0.30 s, 0.5 to 60 s are played"), (1, 3, "has 3 channels")):
        soundfile.write(tmp_path / "say two.wav", np.ones((round(12_000 * seconds), channels)), 12_000)
        with pytest.raises((design.DesignError, AudioError), match=sentence):
            make.make_test(design.parse_design(options), tmp_path / "refused")
    for changes, numbers in (
        ({"kind": "mos"}, (1, 1)),  # of 2 x 3 + 1 screens
        ({"kind": "mos", "excerpts": {"count": "8"}}, (3, 3)),  # of 25
        ({"kind": "mos", "reference": None}, (1, 0)),
        ({"kind": "mos", "traps": "0", "gold": "0"}, (0, 0)),
        ({"kind": "mushra"}, (0, 0)),
    ):
        found = design.parse_design(tree(folders, **changes))
        assert (found.traps, found.gold) == numbers


# Plans and what answers mean ----------------------------------------------------------------------------------------


def test_sessions_are_balanced_and_begin_with_the_training(mushra):
    test = plan.load_test(mushra)
    plans = [test.plan(number) for number in range(15)]
    keys = {page["page"]: page for page in test.key["pages"]}
    for pages in plans:
        assert [page.training for page in pages] == [True, False, False, False]
        assert {page.page for page in pages} == set(keys)
        for page in pages:
            assert set(page.sounds) == set(keys[page.page]["sounds"])
            assert page.rated == page.sounds
            assert {page.open} == set(keys[page.page]["open"])
            assert page.heard == {*page.sounds, page.open}
    orders_of_pages = {  # no page has the order of another
        tuple(keys[p.page]["sounds"][s] for pages in plans for p in pages if p.page == name for s in p.sounds)
        for name in keys
    }
    assert len(orders_of_pages) == len(keys)
    for place in range(1, 4):  # every page comes as often in every place
        assert set(Counter(pages[place].page for pages in plans).values()) == {5}
    for name, key in keys.items():  # and every system, on every page
        shown = [next(page for page in pages if page.page == name).sounds for pages in plans]
        for place in zip(*shown, strict=True):
            assert set(Counter(key["sounds"][sound] for sound in place).values()) == {3}


def fake_test(kind: str, pages: list[dict]) -> plan.ListeningTest:
    scale = [[value, label] for value, label in make._SCALES[kind].items()]
    return plan.ListeningTest({"kind": kind, "scale": scale}, {"seed": 1, "secret": "s", "pages": pages}, {})


def answered(test: plan.ListeningTest, number: int, value) -> store.Session:
    answers = {(p.page, s): store.Answer(value(p, s), 2.0) for p in test.plan(number) for s in p.rated}
    return store.Session("0" * 32, number, "eve", answers, {}, {}, True)


def pair_page(page: str, item: str, training: bool = False) -> dict:
    """A page that compares systems a and b, whose names end with 1 and 2, and of X with 3 and 4."""
    opened = {f"{page}3": "a", f"{page}4": "b"}
    sounds = {f"{page}1": "a", f"{page}2": "b"}
    return {"page": page, "item": item, "training": training, "seconds": 1, "sounds": sounds, "open": opened}


PAIRS = [pair_page("t", "z", training=True), pair_page("p", "x"), pair_page("q", "x")]


def test_every_order_of_a_pair_gives_the_same_score():
    """A listener who prefers a, whichever comes first, and one who always knows X."""
    for kind, score in (("cmos", 3.0), ("preference", 1.0), ("abx", 1.0)):
        test = fake_test(kind, PAIRS)
        seen = set()
        for number in range(8):

            def value(page, sound, kind=kind, score=score):
                second_is_a = page.sounds[1].endswith("1")
                if kind == "abx":
                    x_is_a = sound.endswith("3")
                    return int(second_is_a == x_is_a)
                return int(score) if second_is_a else -int(score)

            rows = test.ratings([answered(test, number, value)])
            seen |= {(page.sounds, page.open if kind == "abx" else None) for page in test.plan(number)}
            assert {(r.item, r.system, r.score) for r in rows} == {("x", "a>b", score)}  # nothing of the training
            assert [(r.order, r.repeated) for r in rows] == [(1, False), (2, True)]  # whichever of the two came first
            assert {r.session for r in rows} == {test.code("0" * 32)}
        assert len(seen) == 3 * (4 if kind == "abx" else 2)  # each page in each order, with each X


def test_answers_that_are_missing_are_no_ratings():
    test = fake_test("cmos", PAIRS)
    session = answered(test, 0, lambda page, sound: 0)
    del session.answers[next(key for key in session.answers if key[0] == "q")]
    assert [(r.page, r.score, r.seconds) for r in test.ratings([session])] == [("p", 0.0, 2.0)]


# The database -------------------------------------------------------------------------------------------------------


def test_the_latest_change_stays_and_what_is_closed_is_closed(tmp_path):
    with (
        contextlib.closing(store.Store(tmp_path / "r.sqlite")) as kept,
        contextlib.closing(store.Store(tmp_path / "r.sqlite")) as other,
    ):
        kept.begin("s", "Ada'); DROP TABLE answers; --")
        other.begin("s", "somebody else")
        other.begin("t", "Bob")
        for value, change in ((10, 5), (20, 7), (15, 6), (99, 7)):
            kept.answer("s", "p", {"a": store.Answer(value, 1.5, change)})
        session = other.session("s")
        assert session is not None and session.listener.startswith("Ada'); DROP")
        assert session.answers == {("p", "a"): store.Answer(20, 1.5, 7)}
        kept.leave("s", "p", {"b": store.Answer(1, 2.0, 8)}, 9.0)
        kept.leave("s", "p", {"b": store.Answer(50, 2.0, 9)}, 99.0)
        with pytest.raises(store.Closed):
            other.answer("s", "p", {"a": store.Answer(0, 1.0, 100)})
        assert kept.finish("s", {"q": "yes"}) and not kept.finish("s", {"q": "no"})
        (session,) = other.sessions(finished_only=True)
        assert session.answers == {("p", "a"): store.Answer(20, 1.5, 7), ("p", "b"): store.Answer(1, 2.0, 8)}
        assert (session.left, session.choices) == ({"p": 9.0}, {"q": "yes"})
        assert [(s.session, s.number) for s in kept.sessions()] == [("s", 0), ("t", 1)]
        assert kept.finished() == 1


# The server ---------------------------------------------------------------------------------------------------------

TOKEN = "a-token-of-the-test"


@contextlib.contextmanager
def running(folder: Path, **options):
    """The port of a real server of a made test."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    from jaxdiff.evaluation.listening.serve import make_app, make_server

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = make_server(make_app(folder, **options))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def ask(port: int, method: str, path: str, body=None, headers=None) -> tuple[int, dict, bytes]:
    """Status, headers and content of a request whose path is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    given = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body, given = json.dumps(body).encode(), {"Content-Type": "application/json"} | given
    with contextlib.closing(connection):
        connection.request(method, path, body, given)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


def told(port: int, method: str, path: str, body=None, headers=None) -> tuple[int, dict]:
    status, _, content = ask(port, method, path, body, headers)
    return status, json.loads(content)


@pytest.fixture
def copied(mushra, tmp_path):
    """A made test of its own, with nobody's ratings."""
    return shutil.copytree(mushra, tmp_path / "test")


SESSION = "0123456789abcdef" * 2


def rated(page: dict, value: int = 50, change: int = 1) -> dict:
    """The body that leaves a page."""
    answers = {sound: {"value": value, "seconds": 3.5, "change": change} for sound in page["rated"]}
    return {"page": page["page"], "answers": answers, "seconds": 20, "heard": [*page["sounds"], page["open"]]}


def test_a_session_is_kept_and_exported(copied):
    finished = []
    with running(copied, on_finished=finished.append) as port:
        assert told(port, "GET", "/test") == (200, {"title": "Listening test", "screens": 4})
        assert told(port, "GET", f"/sessions/{SESSION}")[0] == 404
        for _ in range(2):  # a submission that comes twice begins one session
            status, begun = told(port, "PUT", f"/sessions/{SESSION}", {"listener": " Ada "})
            assert (status, begun["listener"], len(begun["pages"]), begun["code"]) == (200, "Ada", 4, None)
        first, second = begun["pages"][:2]
        sound = first["rated"][0]
        for value, change in ((30, 4), (31, 6), (30, 5), (31, 6)):
            body = {"page": first["page"], "answers": {sound: {"value": value, "seconds": 1.25, "change": change}}}
            assert told(port, "POST", f"/sessions/{SESSION}/answers", body) == (200, {"saved": True})
        again = told(port, "GET", f"/sessions/{SESSION}")[1]
        assert again["pages"][0]["answers"] == {sound: {"value": 31, "seconds": 1.25, "change": 6}}
        assert again["pages"][0]["left"] is False
        path = f"/sessions/{SESSION}/pages"
        assert told(port, "POST", path, rated(second))[0] == 409  # the training comes first
        assert told(port, "POST", path, rated(first) | {"heard": first["sounds"]})[0] == 422  # not the reference
        unrated = rated(first)
        del unrated["answers"][first["rated"][1]]
        status, said = told(port, "POST", path, unrated)
        assert (status, said) == (422, {"error": "every sound of the page must be rated before it is left"})
        assert told(port, "POST", f"/sessions/{SESSION}/finish", {"choices": {}})[0] == 409
        for page in begun["pages"]:
            for _ in range(2):
                assert told(port, "POST", path, rated(page, 60 if page is first else 70, change=9))[0] == 200
        assert told(port, "POST", f"/sessions/{SESSION}/answers", rated(first, 99, change=99))[0] == 409
        status, done = told(port, "POST", f"/sessions/{SESSION}/finish", {"choices": {}})
        assert told(port, "POST", f"/sessions/{SESSION}/finish", {"choices": {}}) == (200, done)
        assert told(port, "GET", f"/sessions/{SESSION}")[1]["code"] == done["code"]
        status, headers, content = ask(port, "GET", "/export.csv")
    assert finished == [1]
    rows = content.decode().splitlines()
    assert (status, headers["content-type"], len(rows)) == (200, "text/csv; charset=utf-8", 1 + 3 * 5)
    assert all(",70," in row and done["code"] in row for row in rows[1:])
    with contextlib.closing(store.Store(copied / store.DATABASE)) as kept:
        (session,) = kept.sessions(finished_only=True)
    assert Counter(answer.value for answer in session.answers.values()) == {60: 5, 70: 15}
    assert (session.listener, set(session.left.values())) == ("Ada", {20.0})


def test_the_page_and_sounds_are_served_with_headers_that_forbid_the_rest(copied):
    test = plan.load_test(copied)
    with running(copied) as port:
        for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
            status, headers, content = ask(port, "GET", path)
            assert status == 200 and headers["content-type"].startswith(kind)
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
            outside = re.sub(rb"http://www.w3.org/2000/svg", b"", content)
            assert b"http:" not in outside and b"https:" not in outside and b"//cdn" not in outside
        page = ask(port, "GET", "/")[2]
        assert not re.search(rb"<script(?![^>]*src=)|\son\w+=|style=", page)
        name, path = next(iter(test.sounds.items()))
        status, headers, content = ask(port, "GET", f"/sounds/{name}.wav")
        assert (status, content) == (200, path.read_bytes())
        assert not {"last-modified", "etag"} & set(headers)


def test_a_hostile_client_gets_in_nowhere_and_loses_nothing(copied):
    key = (copied / "key.json").read_bytes()
    begin = f"/sessions/{SESSION}"
    secret = "ours"
    with running(copied) as port:
        assert told(port, "PUT", begin, {"listener": "Ada"})[0] == 200
        page = told(port, "GET", begin)[1]["pages"][0]
        assert told(port, "POST", f"{begin}/answers", {**rated(page), "heard": None})[0] == 200
        before = told(port, "GET", begin)[1]
        for path in (
            "/key.json", "/test.json", "/ratings.sqlite", "/sounds/../key.json", "/sounds/..%2fkey.json",
            "/sounds/%2e%2e/key.json", "/sounds/..%2f..%2f..%2fetc%2fpasswd.wav", "/../key.json", "//key.json",
            "/sounds/....//key.json", "/page/index.html", "/sounds/", "/serve.py", "/sounds/%00.wav", "/export.csv/..",
            f"/sessions/{SESSION}/../../key.json", "/sounds/..%5c..%5ckey.json", "/sessions/'%20OR%201=1%20--",
        ):  # fmt: skip
            status, _, content = ask(port, "GET", path)
            assert status in (400, 404) and secret.encode() not in content, path
        for method in ("DELETE", "PATCH", "PUT", "POST"):
            assert ask(port, method, "/test", {})[0] == 405
        for listener in (
            "'; DROP TABLE answers; --", "<script>alert(1)</script>", "=cmd|' /C calc'!A0", "", " ", "a" * 41, None, 7,
            ["Ada"], "a\nb", "a\x00b", '"onload="x', "../../x",
        ):  # fmt: skip
            assert told(port, "PUT", f"/sessions/{'f' * 32}", {"listener": listener})[0] == 422, listener
        for name in ("x", SESSION.upper().replace("0", "G"), SESSION + "0", "1;DROP"):
            assert ask(port, "PUT", f"/sessions/{name}", {"listener": "Eve"})[0] in (404, 422)
        post = f"{begin}/answers"
        sound = page["rated"][0]
        good = {"value": 1, "seconds": 1, "change": 99}
        for answers in (
            {sound: good | {"value": 101}}, {sound: good | {"value": -1}}, {sound: good | {"value": 1.5}},
            {sound: good | {"value": True}}, {sound: good | {"value": "1; DROP TABLE answers"}}, {sound: 5},
            {sound: good | {"change": 2**60}}, {sound: good | {"seconds": float("nan")}},
            {sound: good | {"seconds": -1}}, {page["open"]: good}, {"../key": good}, {"0" * 16: good}, [], None, "x",
        ):  # fmt: skip
            assert told(port, "POST", post, {"page": page["page"], "answers": answers})[0] == 422, answers
        for wrong in ("x", None, {}, [page["page"]]):
            assert told(port, "POST", post, {"page": wrong, "answers": {}})[0] == 422
        json_type = {"Content-Type": "application/json"}
        for body in (b"{", b"[]", b"\xff\xfe", b"[" * 10_000, b""):
            assert ask(port, "POST", post, body, json_type)[0] == 422
        assert ask(port, "POST", post, b"{}", {"Content-Type": "text/plain"})[0] == 415  # as a form of another site
        assert ask(port, "POST", post, b"x" * 20_000, json_type)[0] == 413
        assert ask(port, "POST", post, b"{}", {**json_type, "Origin": "http://evil.example"})[0] == 403
        assert ask(port, "GET", "/export.csv", None, {"Host": "evil.example"})[0] == 403  # a name that was rebound
        assert ask(port, "GET", "/export.csv", None, {"X-Forwarded-For": "1.2.3.4"})[0] == 404
        with socket.create_connection(("127.0.0.1", port), 20) as raw:  # a length that is a lie, and chunks without end
            raw.sendall(
                f"POST {post} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode()
            )
            with contextlib.suppress(OSError):
                for _ in range(40):
                    raw.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
            assert b" 413 " in raw.recv(100)
        assert told(port, "GET", begin)[1] == before
    assert (copied / "key.json").read_bytes() == key
    with contextlib.closing(store.Store(copied / store.DATABASE)) as kept:
        assert [s.listener for s in kept.sessions()] == ["Ada"]


def test_without_the_token_nobody_sees_more_than_the_page(copied):
    name = next(iter(plan.load_test(copied).sounds))
    right = {"Authorization": f"Bearer {TOKEN}", "Host": "listen.example"}
    with running(copied, token=TOKEN) as port:
        assert ask(port, "GET", "/", None, {"Host": "listen.example"})[0] == 200
        for path in ("/test", f"/sounds/{name}.wav", f"/sessions/{SESSION}", "/export.csv", "/key.json"):
            for wrong in (
                None,
                "",
                "Bearer ",
                "Bearer x",
                f"Bearer {TOKEN}x",
                TOKEN,
                f"Bearer {TOKEN[:-1]}",
                "Bearer \xe9",
            ):
                headers = {} if wrong is None else {"Authorization": wrong}
                status, said = told(port, "GET", path, None, headers)
                assert status == 401 and "token" in said["error"]
        assert ask(port, "PUT", f"/sessions/{SESSION}", {"listener": "Eve"})[0] == 401
        assert ask(port, "GET", "/test", None, right)[0] == 200
        assert ask(port, "GET", f"/sounds/{name}.wav", None, right)[0] == 200
        assert ask(port, "PUT", f"/sessions/{SESSION}", {"listener": "Ada"}, right)[0] == 200
        assert ask(port, "GET", "/export.csv", None, right)[0] == 404  # on this machine only


def test_200_parallel_posts_lose_nothing(copied):
    with running(copied) as port:
        names = [f"{k:032x}" for k in range(10)]
        for name in names:
            assert told(port, "PUT", f"/sessions/{name}", {"listener": "Ada"})[0] == 200
        pages = {name: told(port, "GET", f"/sessions/{name}")[1]["pages"][0] for name in names}

        def post(k: int) -> int:
            name, page = names[k % 10], pages[names[k % 10]]
            sound, change = page["rated"][k // 10 % 5], k // 50
            body = {"page": page["page"], "answers": {sound: {"value": k // 2, "seconds": 1, "change": change}}}
            while (status := told(port, "POST", f"/sessions/{name}/answers", body)[0]) == 429:
                time.sleep(0.5)
            return status

        with ThreadPoolExecutor(50) as pool:
            assert set(pool.map(post, range(200))) == {200}
    with contextlib.closing(store.Store(copied / store.DATABASE)) as kept:
        sessions = {session.session: session for session in kept.sessions()}
    assert sorted(session.number for session in sessions.values()) == list(range(10))
    for k in range(150, 200):  # the last change of each, in whichever order they came
        page = pages[names[k % 10]]
        answer = sessions[names[k % 10]].answers[page["page"], page["rated"][k // 10 % 5]]
        assert answer == store.Answer(k // 2, 1.0, 3)


def test_clients_are_limited_one_by_one():
    serve = pytest.importorskip("jaxdiff.evaluation.listening.serve")
    now = [0.0]
    limit = serve.Limit(3, 2, clock=lambda: now[0])
    assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert limit.wait("b") == 0
    now[0] = 0.5
    assert [limit.wait("a") for _ in range(2)] == [0, 0.5]
    now[0] = 100.0
    assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    for k in range(10_000):
        limit.wait(str(k))
    assert len(limit._clients) <= 4096


def test_a_flood_is_answered_with_429(copied, monkeypatch):
    serve = pytest.importorskip("jaxdiff.evaluation.listening.serve")
    monkeypatch.setattr(serve, "_BURST", 50)
    monkeypatch.setattr(serve, "_PER_SECOND", 1e-3)  # so that a slow machine does not wait it out
    with running(copied) as port:
        statuses = [ask(port, "GET", "/icon.svg")[0] for _ in range(60)]
    assert statuses == [200] * 50 + [429] * 10


# The command --------------------------------------------------------------------------------------------------------


def command(*arguments) -> int:
    return tyro.cli(Listen, args=[str(a) for a in arguments]).run()


def test_the_command_makes_serves_and_reports(folders, tmp_path, capsys):
    pytest.importorskip("uvicorn")
    config, out = tmp_path / "test.yaml", tmp_path / "a test"
    config.write_text(json.dumps(tree(folders, questions={"Age?": ["old", "young"]})))
    assert command("make", config, "--out", out) == 0
    said = capsys.readouterr().out
    assert "a mushra test of 4 screens, 24 sounds of -23.0 LUFS" in said and "jaxdiff listen serve '" in said
    with pytest.raises(ValueError, match="nobody has taken this test"):
        command("report", out)
    code = "import tyro; from jaxdiff.cli.listen import Listen; raise SystemExit(tyro.cli(Listen).run())"
    arguments = [sys.executable, "-c", code, "serve", out, "--port", "0"]
    served = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert served.stdout is not None
    (port,) = re.findall(r"listen at http://127\.0\.0\.1:(\d+)/$", served.stdout.readline().strip())
    assert served.stdout.readline() == "0 finished sessions\n"
    while True:
        with contextlib.suppress(OSError):
            begun = told(int(port), "PUT", f"/sessions/{SESSION}", {"listener": "Ada"})[1]
            break
    for page in begun["pages"]:
        assert told(port, "POST", f"/sessions/{SESSION}/pages", rated(page, 80))[0] == 200
    assert told(port, "POST", f"/sessions/{SESSION}/finish", {"choices": {"Age?": "tall"}})[0] == 422
    status, done = told(port, "POST", f"/sessions/{SESSION}/finish", {"choices": {"Age?": "young"}})
    assert (status, served.stdout.readline()) == (200, "1 finished session\n")
    served.send_signal(signal.SIGINT)
    assert served.wait(60) == 0
    assert served.stdout.read() == "stopped; every rating is saved\n"
    assert command("report", out, "--webmushra") == 0
    rows = (out / "ratings.csv").read_text().splitlines()
    assert rows[0] == "session,listener,page,item,system,score,seconds,order,repeated"
    assert len(rows) == 1 + 15 and all(row.startswith(f"{done['code']},Ada,") for row in rows[1:])
    assert (out / "answers.csv").read_text() == f"session,listener,question,choice\n{done['code']},Ada,Age?,young\n"
    assert len((out / "webmushra.csv").read_text().splitlines()) == 16
    assert json.loads((out / "report.json").read_text())["kind"] == "mushra"
    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_serving_elsewhere_needs_a_token(copied):
    pytest.importorskip("uvicorn")
    with pytest.raises(ValueError, match="--token: expected 16 to 200 letters"):
        command("serve", copied, "--host", "0.0.0.0", "--token", "short")
    with pytest.raises(design.DesignError, match="test.json: cannot be read .* give a folder that listen make made"):
        command("serve", copied / "sounds")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="give another --port or --host"):
            command("serve", copied, "--port", taken.getsockname()[1])
    (next((copied / "sounds").iterdir())).unlink()
    with pytest.raises(design.DesignError, match="is missing; make the test again"):
        command("serve", copied)


def test_a_token_is_made_for_other_machines(copied, monkeypatch):
    uvicorn = pytest.importorskip("uvicorn")
    from jaxdiff.evaluation.listening.serve import serve

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    said = []
    for _ in range(2):
        serve(copied, "0.0.0.0", 0, say=said.append)
    tokens = re.findall(r" http://[^/]+:\d+/#token=([A-Za-z0-9_-]{32})\n", "\n".join(said))
    assert len(set(tokens)) == 2
