"""Sounds that come with a crop: partners are cut at its place, drawn ones follow from seed and step."""

from typing import Any

import numpy as np
import pytest
import soundfile

from jaxdiff.data import AudioError, Crop, Further, batches, open_corpus

RATE, COUNT = 8000, 5


def write(path, wave, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.astype(np.float32), rate, subtype="FLOAT")


def waves(seed):
    """Noise of 0.1 to 0.3 seconds: no two crops are alike."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(-0.5, 0.5, 800 + 400 * i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`wave` in two classes; `target` is -0.5 times it and in other formats of file; `room` are other sounds."""
    root = tmp_path_factory.mktemp("further")
    for i, wave in enumerate(waves(0)):
        write(root / "wave" / "ab"[i % 2] / f"{i}.wav", wave)
        write(root / "target" / "ab"[i % 2] / f"{i}.aiff", -0.5 * wave)
    for i, wave in enumerate(waves(1)):
        write(root / "room" / f"{i}.wav", wave)
    return root


def corpus(folders, name):
    return open_corpus(str(folders / name))


def read(folders, crop, count, *, memory: float = 0, seed=3, start=0, drawn=(), paired=()):
    drawn, paired = ({name: corpus(folders, path) for name, path in dict(part).items()} for part in (drawn, paired))
    further = Further(drawn, paired)
    made = batches(corpus(folders, "wave"), crop, 4, seed, start=start, memory=memory, further=further)
    return [next(made) for _ in range(count)]


@pytest.mark.parametrize("memory", [0, 1e6], ids=["files", "memory"])
@pytest.mark.parametrize("speed", [0.0, 0.3])
@pytest.mark.parametrize("samples", [400, 2000], ids=["inside", "padded"])
def test_partners_are_cut_at_the_place_of_the_crop(folders, samples, speed, memory):
    made = read(folders, Crop(samples, RATE, speed=speed), 5, memory=memory, paired={"target": "target"})
    wave, target = (np.concatenate([batch[name] for batch in made]) for name in ("wave", "target"))
    assert wave.shape == target.shape == (20, samples) and target.dtype == np.float32
    np.testing.assert_allclose(target, -0.5 * wave, atol=1e-6)
    assert wave.std() > 0.1
    assert len({tuple(w[:9]) for w in wave}) > COUNT  # cut at many places


def test_a_crop_is_the_same_with_and_without_partners(folders):
    crop = Crop(400, RATE, speed=0.3)
    for alone, beside in zip(read(folders, crop, 3), read(folders, crop, 3, paired={"target": "target"}), strict=True):
        assert set(beside) == {*alone, "target"}
        np.testing.assert_array_equal(alone["wave"], beside["wave"])
        np.testing.assert_array_equal(alone["label"], beside["label"])


@pytest.mark.parametrize("memory", [0, 1e6], ids=["files", "memory"])
def test_drawn_sounds_are_a_function_of_seed_and_step_alone(folders, memory):
    crop, drawn = Crop(400, RATE), {"room": "room", "other": "room"}
    whole = read(folders, crop, 6, memory=memory, drawn=drawn)
    for expected, got in zip(whole[4:], read(folders, crop, 2, memory=memory, start=4, drawn=drawn), strict=True):
        for name in ("wave", "room", "other", "label"):
            np.testing.assert_array_equal(got[name], expected[name])
    (another,) = read(folders, crop, 1, seed=4, drawn=drawn)
    rooms = np.concatenate([batch["room"] for batch in whole])
    assert not any((a == b).all() for a in another["room"] for b in rooms)
    assert len({tuple(room) for room in rooms}) >= len(rooms) - 2  # a new place every time, but by chance
    places = [np.lib.stride_tricks.sliding_window_view(w.astype(np.float32), 400) for w in waves(1)]
    found = [[(abs(p - room).max(-1) < 1e-6).any() for p in places] for room in rooms]
    assert (np.sum(found, axis=1) == 1).all()  # each of one recording of the other corpus
    assert np.any(found, axis=0).sum() >= 4  # whichever the crop is of
    assert not any((batch["room"] == batch["other"]).all(-1).any() for batch in whole)


def test_partners_and_drawn_sounds_come_together(folders):
    (made,) = read(folders, Crop(400, RATE), 1, drawn={"room": "room"}, paired={"target": "target"})
    assert {name: part.shape for name, part in made.items()} == {
        "wave": (4, 400), "label": (4,), "room": (4, 400), "target": (4, 400),
    }  # fmt: skip
    np.testing.assert_allclose(made["target"], -0.5 * made["wave"], atol=1e-6)


def test_all_corpora_must_fit_in_memory_together(folders):
    of_wave = 4 * RATE * corpus(folders, "wave").seconds
    further = Further({"room": corpus(folders, "room")}, {"target": corpus(folders, "target")})
    assert further.seconds == pytest.approx(2 * corpus(folders, "wave").seconds)
    options: dict[str, Any] = dict(drawn={"room": "room"}, paired={"target": "target"})
    kept, from_files = (read(folders, Crop(400, RATE), 3, memory=m * of_wave, **options) for m in (3.1, 1.1))
    for a, b in zip(kept, from_files, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=1e-6)


def test_a_shorter_partner_ends_in_silence_and_one_of_another_rate_is_resampled(tmp_path):
    t = np.arange(1600) / RATE
    sine = lambda t: 0.5 * np.sin(2 * np.pi * 300 * t)  # noqa: E731
    write(tmp_path / "wave" / "x.wav", sine(t))
    write(tmp_path / "short" / "x.wav", sine(t)[:700])
    write(tmp_path / "fine" / "x.wav", sine(np.arange(3200) / (2 * RATE)), 2 * RATE)
    further = Further(paired={name: corpus(tmp_path, name) for name in ("short", "fine")})
    made = next(batches(corpus(tmp_path, "wave"), Crop(1000, RATE, "start"), 1, 0, further=further))
    np.testing.assert_array_equal(made["short"][0, :700], made["wave"][0, :700])
    assert not made["short"][0, 700:].any()
    np.testing.assert_allclose(made["fine"][0, 50:950], made["wave"][0, 50:950], atol=1e-3)


def test_a_missing_partner_is_refused_by_name(folders, tmp_path):
    write(tmp_path / "other" / "a" / "0.wav", np.ones(9))
    further = Further(paired={"target": corpus(tmp_path, "other")})
    with pytest.raises(AudioError, match=r"wave/a/2\.wav: has no partner of the same name in .*other \(4 have none\)"):
        batches(corpus(folders, "wave"), Crop(400, RATE), 4, 0, further=further)


def test_the_partner_of_the_same_extension_is_taken_and_others_must_be_one(tmp_path):
    for name in ("wave/x.wav", "target/x.wav", "target/x.flac", "wave/y.wav", "target/y.aiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.full(800, 0.25 if name.endswith("x.flac") else 0.5), RATE)
    options: dict[str, Any] = dict(further=Further(paired={"target": corpus(tmp_path, "target")}))
    made = next(batches(corpus(tmp_path, "wave"), Crop(400, RATE), 2, 0, **options))
    np.testing.assert_array_equal(made["target"], made["wave"])
    soundfile.write(tmp_path / "target" / "y.flac", np.ones(800), RATE)
    options = dict(further=Further(paired={"target": corpus(tmp_path, "target")}))
    with pytest.raises(AudioError, match=r"wave/y\.wav: has several partners, .*y\.aiff and y\.flac; keep one"):
        batches(corpus(tmp_path, "wave"), Crop(400, RATE), 2, 0, **options)


def test_a_drawn_sound_that_goes_bad_is_replaced_and_listed_in_its_corpus(folders, tmp_path):
    for i, wave in enumerate(waves(2)):
        write(tmp_path / "noise" / f"{i}.wav", wave)
    noise = corpus(tmp_path, "noise")
    noise.recordings[1].path.unlink()
    wave = corpus(folders, "wave")
    with pytest.warns(UserWarning, match="1.wav: no such file"):
        made = batches(wave, Crop(400, RATE), 4, 0, further=Further(drawn={"noise": noise}))
        assert all(np.abs(next(made)["noise"]).max(-1).all() for _ in range(8))
    assert [line.partition(": ")[2] for line in noise.rejected] == ["no such file"]
    assert not wave.rejected


@pytest.mark.parametrize(("evenness", "rare"), [(0.0, 1 / 17), (0.5, 1 / 5), (1.0, 1 / 2)])
def test_a_class_of_few_recordings_is_heard_as_often_as_wanted(tmp_path, evenness, rare):
    """Of 16 recordings and one, in the corpus and in what is drawn beside it."""
    for i in range(16):
        write(tmp_path / "often" / f"{i}.wav", np.full(100, 0.1))
    write(tmp_path / "rare" / "0.wav", np.full(100, 0.5))
    both = open_corpus(str(tmp_path))
    more = Further({"other": both})
    options: dict[str, Any] = dict(memory=1e6, further=more, evenness=evenness)  # 4,000 sounds, decoded once
    made = batches(both, Crop(100, RATE), 100, 0, **options)
    later = batches(both, Crop(100, RATE), 100, 0, start=5, **options)
    seen = [next(made) for _ in range(20)]
    for name in ("wave", "other"):
        share = np.mean([(batch[name][:, 0] > 0.3).mean() for batch in seen])
        assert share == pytest.approx(rare, abs=4 * (rare * (1 - rare) / 2000) ** 0.5)
    for name, sounds in next(later).items():
        np.testing.assert_array_equal(sounds, seen[5][name])
    assert evenness == 0 or np.mean([(b["wave"][:, 0] > 0.3) == (b["other"][:, 0] > 0.3) for b in seen]) < 0.9
