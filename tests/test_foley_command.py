"""Sound for video: pictures copied packet by packet beside made sound that stays in time, where cues come from, and how
well a sound keeps to them."""

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import jax
import mido
import numpy as np
import pytest
import soundfile

import jaxdiff
from jaxdiff.cli.main import main
from jaxdiff.config import from_dict
from jaxdiff.data import AudioError
from jaxdiff.data.cues import Cue, read_cues, read_times, write_cues
from jaxdiff.data.soundtrack import RATE, check_copy, read_track, video_seconds, write_track
from jaxdiff.data.video import video_info
from jaxdiff.evaluation.sync import SHIFTS, Events, hear, kept, shift_of
from jaxdiff.inference.foley import foley, in_pieces
from jaxdiff.inference.load import export, pipeline_of
from jaxdiff.inference.rhythm import events, rhythm

av = pytest.importorskip("av")
SOUND_RATE = 8000
CLICK = np.random.default_rng(0).choice(np.array([-0.8, 0.8], np.float32), 48)


def write_video(path, times, *, codec="libx264", rotation=0, sound=None, size=(32, 48)):
    """A video of changing pictures at times in seconds, to the millisecond, with `sound` [samples] at 16 kHz."""
    clock, rng = Fraction(1, 1000), np.random.default_rng(1)
    options = {"bf": "2", "preset": "ultrafast"} if codec == "libx264" else {"deadline": "realtime", "cpu-used": "8"}
    with av.open(str(path), "w") as file:
        track = file.add_stream(codec, rate=30, options=options)
        track.height, track.width, track.pix_fmt = *size, "yuv420p"
        track.codec_context.time_base = track.time_base = clock
        if rotation:
            track.set_display_rotation(rotation)
        voice = None if sound is None else file.add_stream("aac", rate=16000, layout="mono")
        for seconds in times:
            picture = rng.integers(0, 255, (4, 6), np.uint8).repeat(size[0] // 4, 0).repeat(size[1] // 6, 1)
            frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(seconds * 1000), clock
            file.mux(track.encode(frame))
        file.mux(track.encode())
        if voice is not None and sound is not None:
            for at in range(0, len(sound), 1024):
                part = av.AudioFrame.from_ndarray(sound[None, at : at + 1024].astype(np.float32), "fltp", "mono")
                part.sample_rate, part.pts, part.time_base = 16000, at, Fraction(1, 16000)
                file.mux(voice.encode(part))
            file.mux(voice.encode())
    return path


def packets(path):
    """The hash and the time of each picture packet, and when the file begins and how long it is, by FFmpeg alone."""
    with av.open(str(path)) as file:
        found = [(hashlib.sha256(bytes(p)).digest(), float(p.pts * p.time_base)) for p in file.demux(video=0) if p.size]
        return [h for h, _ in found], np.array([t for _, t in found]), file.start_time / 1e6, file.duration / 1e6


def clicks(seconds, places, block=7001):
    """Clicks at places in seconds, block by block [2, samples]."""
    total = round(seconds * RATE)
    starts = [round(at * RATE) for at in places]
    for low in range(0, total, block):
        y = np.zeros((2, min(block, total - low)), np.float32)
        for start in starts:
            if low - len(CLICK) < start < low + y.shape[1]:
                inside = np.arange(max(start, low), min(start + len(CLICK), low + y.shape[1]))
                y[:, inside - low] = CLICK[inside - start]
        yield y


def lateness(path, places):
    """How many seconds after its place each click of a written video is heard, and the samples and rate there are."""
    track = read_track(path)
    assert track is not None
    wave = np.concatenate([block[0] for block in track.blocks()])
    late = []
    for at in places:
        low = round((at - 0.1) * track.rate)
        part = wave[low : round((at + 0.1) * track.rate)]
        match = np.correlate(part, CLICK, "valid")
        late.append((low + int(np.argmax(match))) / track.rate - at)
    return np.array(late), len(wave) / track.rate


RNG = np.random.default_rng(5)
EVEN, UNEVEN = np.arange(40) / 25, np.cumsum(RNG.integers(15, 120, 30)) / 1000
SOURCES = {
    "b-frames.mp4": dict(times=EVEN),
    "uneven.mp4": dict(times=UNEVEN + 0.4),
    "turned.mov": dict(times=EVEN, rotation=90, sound=np.zeros(16000)),
    "uneven.mkv": dict(times=UNEVEN),
    "vp9.webm": dict(times=EVEN[:12] + 0.2, codec="libvpx-vp9"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_pictures_are_copied_bit_for_bit_and_sound_is_in_time(tmp_path, name):
    source = write_video(tmp_path / name, **SOURCES[name])
    check_copy(source, source)
    hashes, times, start, seconds = packets(source)
    assert len(hashes) == len(SOURCES[name]["times"]) and video_seconds(source) == pytest.approx(seconds, abs=1e-5)
    frame = np.diff(np.sort(times)).max()
    places = np.arange(0.15, seconds - 0.1, 0.2)
    for end in dict.fromkeys((Path(name).suffix, ".mkv")):
        out = tmp_path / f"out{end}"
        done = write_track(source, out, clicks(seconds + 1, places))  # more than is needed
        copied, when, begin, length = packets(out)
        assert copied == hashes and done.packets == len(hashes)
        np.testing.assert_allclose(when - begin, times - start, atol=1e-3)  # to the clock of Matroska
        assert begin == 0 and abs(length - seconds) <= frame
        late, heard = lateness(out, places)
        assert np.abs(late).max() < 0.002 and abs(heard - seconds) <= 0.022
        before, after = video_info(source), video_info(out)
        assert (after.width, after.height, after.sounds) == (before.width, before.height, 1)


def test_what_cannot_be_copied_is_said(tmp_path):
    source = write_video(tmp_path / "a.ts", EVEN[:8])
    with pytest.raises(AudioError, match="bit for bit"):
        write_track(source, tmp_path / "a.mp4", clicks(1, []))
    with pytest.raises(AudioError, match="bit for bit"):
        check_copy(source, tmp_path / "a.mp4")
    with pytest.raises(AudioError, match="webm does not take"):
        write_track(write_video(tmp_path / "b.mp4", EVEN[:8]), tmp_path / "b.webm", clicks(1, []))
    with pytest.raises(ValueError, match=r"written as \.mp4"):
        write_track(source, tmp_path / "a.avi", clicks(1, []))
    assert {path.name for path in tmp_path.iterdir()} == {"a.ts", "b.mp4"}  # nothing half done is left


@pytest.mark.slow
def test_ten_minutes_do_not_drift(tmp_path):
    source = write_video(tmp_path / "long.mp4", np.arange(601.0))
    places = np.array([0.5, 299.7, 599.9])
    seconds = video_seconds(source)
    write_track(source, tmp_path / "out.mp4", clicks(seconds, places, 1 << 16))
    late, heard = lateness(tmp_path / "out.mp4", places)
    assert np.abs(late).max() < 0.005 and np.ptp(late) < 0.001
    assert abs(heard - seconds) < 0.03


def test_a_sound_track_is_read_from_where_the_file_begins(tmp_path):
    y = np.zeros(16000)
    y[8000:8016] = CLICK[:16]
    source = write_video(tmp_path / "a.mp4", EVEN, sound=y)
    track = read_track(source)
    assert track is not None and (track.rate, track.channels) == (16000, 1)
    wave = np.concatenate([block[0] for block in track.blocks()])
    assert abs(int(np.argmax(np.correlate(wave, CLICK[:16], "valid"))) - 8000) <= 1
    assert read_track(write_video(tmp_path / "b.mp4", EVEN[:4])) is None


# Cues ---------------------------------------------------------------------------------------------------------------


def drums(path, hits, channel=9):
    file, track, now = mido.MidiFile(ticks_per_beat=480), mido.MidiTrack(), 0
    for seconds, key, velocity in hits:
        tick = round(seconds * 960)
        track.append(mido.Message("note_on", channel=channel, note=key, velocity=velocity, time=tick - now))
        now = tick
    file.tracks.append(track)
    file.save(path)
    return path


def test_cues_of_a_drum_pattern_and_of_a_melody(tmp_path):
    hits = [(0.0, 36, 127), (0.5, 42, 64), (1.0, 38, 127), (1.25, 81, 1)]
    found = rhythm(drums(tmp_path / "a.mid", hits), "knock", ("hat", "kick", "knock", "snare"))
    assert [(c.seconds, c.label) for c in found.cues] == [(0, "kick"), (0.5, "hat"), (1, "snare"), (1.25, "knock")]
    quiet = 1 + 40 * np.log10(64 / 127) / 30
    np.testing.assert_allclose([c.strength for c in found.cues], [1, quiet, 1, 0], atol=1e-9)
    melody = rhythm(drums(tmp_path / "b.mid", hits, channel=0), "knock")
    assert [c.label for c in melody.cues] == ["knock"] * 4
    np.testing.assert_allclose(events(tmp_path / "a.mid").seconds, [0, 0.5, 1, 1.25], atol=1e-3)


def bursts(places, gains, seconds, rate=16_000):
    rng = np.random.default_rng(0)
    y = 1e-5 * np.random.default_rng(1).standard_normal((round(seconds * rate),))
    for at, gain in zip(places, gains, strict=True):
        begin = round(at * rate)
        burst = gain * rng.standard_normal(rate // 4) * np.exp(-np.arange(rate // 4) / (0.012 * rate))
        y[begin : begin + len(burst)] += burst[: len(y) - begin]
    return y.astype(np.float32)


def test_cues_of_a_sounds_rhythm_also_where_pieces_meet(tmp_path):
    places, gains = (
        np.array([0.3, 0.8, 29.99, 30.25, 30.52, 60.0, 61.0]),
        np.array([0.3, 0.03, 0.3, 0.1, 0.3, 0.3, 0.1]),
    )
    soundfile.write(tmp_path / "a.wav", bursts(places, gains, 63.0), 16_000)
    found = rhythm(tmp_path / "a.wav", "knock")
    assert found.seconds == 63.0 and len(found.cues) == 7
    np.testing.assert_allclose([c.seconds for c in found.cues], places, atol=0.006)
    np.testing.assert_allclose([c.strength for c in found.cues], 1 + 20 * np.log10(gains / 0.3) / 30, atol=0.12)


def test_a_list_of_times_is_read_as_a_sheet_is(tmp_path):
    for text, times in (("0.5\n1:02.5\n", [0.5, 62.5]), ("onset,what\n3,a\n1,b\n", [1, 3]), ("time,class\n2,a\n", [2])):
        (tmp_path / "a.csv").write_text(text)
        assert read_times(tmp_path / "a.csv") == times
    (tmp_path / "a.csv").write_text("onset\nx\n")
    with pytest.raises(AudioError, match="column 'onset' is unknown"):
        read_times(tmp_path / "a.csv")


# Scores -------------------------------------------------------------------------------------------------------------


def test_shifts_are_recovered():
    places = np.cumsum(np.random.default_rng(2).uniform(0.15, 0.9, 20))
    for shift in (0.0, 0.1, 0.5, 1.0, -0.25, 0.0125):
        assert shift_of(places, places + shift) == pytest.approx(shift, abs=1e-6)
        torn = np.sort(np.concatenate([(places + shift)[::2], [0.01, 3.3]]))  # half is missing, some are strange
        assert shift_of(places, torn) == pytest.approx(shift, abs=2e-3)
    assert np.isnan(shift_of(places, np.zeros(0)))
    y = bursts(places, np.full(20, 0.3), places[-1] + 1)
    blocks = lambda y: lambda: (y[None, at : at + 5000] for at in range(0, len(y), 5000))  # noqa: E731
    there = hear(blocks(y), 16_000)
    late = hear(blocks(np.concatenate([1e-5 * np.ones(1600, np.float32), y])), 16_000)
    scores, moved = kept(Events(places, there.levels), there), kept(Events(places, there.levels), late)
    assert scores.hit_rate == 1 and scores.average_precision == 1 and scores.loudness == pytest.approx(1)
    assert scores.offset < 0.006 and abs(scores.shift) < 0.006
    assert moved.shift - scores.shift == pytest.approx(0.1, abs=1e-3) and moved.loudness < 0.5
    np.testing.assert_allclose(scores.recovered, scores.shift + np.array(SHIFTS), atol=1e-6)


# Sound --------------------------------------------------------------------------------------------------------------

CLASSES = ("knock", "wood")


@pytest.fixture(scope="module")
def pipeline():
    """A small model that was never trained: it makes noise that follows from its class and cues."""
    tree = {
        "data": {"sample_rate": SOUND_RATE, "seconds": 1.0},
        "task": {"kind": "foley"},
        "representation": {"kind": "magnitude", "n_fft": 128, "hop_length": 64, "n_iter": 2},
        "network": {"kind": "convnext", "width": 8, "depth": 1},
        "method": {"kind": "diffusion", "prediction": "x0"},
        "sampling": {"sampler": "euler", "steps": 2},
    }
    config = from_dict(tree)
    network = jaxdiff.config.model(config, CLASSES, None).network
    leaves, shape = jax.tree.flatten(jax.eval_shape(network.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = shape.unflatten([(0.2 * rng.standard_normal(leaf.shape)).astype(np.float32) for leaf in leaves])
    return pipeline_of(config, CLASSES, params, None, step=3, fingerprint="f" * 64)


@pytest.mark.slow
def test_each_class_is_made_alone_and_silence_is_between(pipeline):
    cues = [Cue(1.0, "knock"), Cue(1.5, "wood"), Cue(2.0, "strange"), Cue(9.0, "wood", 1.0, -1.0)]
    make = lambda cues, **more: foley(pipeline, cues, 16.0, **more).waves[0]  # noqa: E731
    whole = make(cues, label="knock")
    assert whole.shape == (2, 16 * SOUND_RATE)
    parts = [make([cues[0], cues[2]], label="knock"), make([cues[1], cues[3]])]
    np.testing.assert_allclose(whole, parts[0] + parts[1], atol=1e-6)
    at = lambda seconds: round(seconds * SOUND_RATE)  # noqa: E731
    assert not whole[:, : at(0.9)].any() and not whole[:, at(6.1) : at(8.9)].any() and not whole[:, at(13.1) :].any()
    middle, side = whole[:, at(1) : at(5)], whole[:, at(9) : at(12)]
    assert middle.any() and side.any()
    assert not np.array_equal(*side) and np.array_equal(*parts[0])  # the middle is the same on both sides
    edited = make([*cues[:3], Cue(9.5, "wood")], label="knock")
    np.testing.assert_array_equal(edited[:, : at(8)], whole[:, : at(8)])  # an edit later changes nothing before
    facts, pieces = in_pieces(pipeline, cues, 16.0, label="knock")
    assert facts["cues"] == {"knock": 2, "wood": 2} and len(list(pieces)) > 1
    with pytest.raises(ValueError, match="class 'strange' is none of the model's"):
        make(cues)
    assert not make([]).any()


@pytest.fixture(scope="module")
def model(pipeline, tmp_path_factory):
    return export(pipeline, tmp_path_factory.mktemp("model") / "small.safetensors")


def command(*arguments) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.slow
def test_the_command_makes_sound_and_a_video(tmp_path, model, capsys):
    y = bursts([0.5], [0.5], 1.6)
    source = write_video(tmp_path / "take.mp4", EVEN, sound=y)
    write_cues(tmp_path / "cues.csv", [Cue(0.3, "wood"), Cue(1.0, "step", 0.5, 1.0)])
    out = tmp_path / "out" / "made.mp4"
    made = ("foley", source, "--cues", tmp_path / "cues.csv", "--model", model)
    assert command(*made, "--class", "knock", "--out", out, "--keep-original", "-6") == 0
    assert "40 pictures copied bit for bit" in capsys.readouterr().out
    assert packets(out)[0] == packets(source)[0]
    assert sorted(path.name for path in out.parent.iterdir()) == ["made.json", "made.mp4", "made.png"]
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["cues"] == {"knock": 1, "wood": 1} and about["keep_original_db"] == -6 and about["video"]["identical"]
    assert command(*made, "--class", "knock", "--out", tmp_path / "a.flac") == 0
    sheet = ("foley", tmp_path / "cues.csv", "--model", model, "--class", "knock", "--out", tmp_path / "b.wav")
    assert command(*sheet) == 0
    lengths = [soundfile.info(tmp_path / name) for name in ("a.flac", "b.wav")]
    assert [info.channels for info in lengths] == [2, 2]
    np.testing.assert_allclose([i.duration for i in lengths], [video_seconds(source), 2.0], atol=1e-3)
    alone = soundfile.read(tmp_path / "a.flac")[0]
    track = read_track(out)
    assert track is not None
    both = np.concatenate(list(track.blocks()), 1)[
        :, : 48 * 500
    ]  # before the burst of the original: the made sound alone
    assert np.corrcoef(both[0, ::6], alone[: len(both[0, ::6]), 0])[0, 1] > 0.8
    beat = drums(tmp_path / "beat.mid", [(0.1, 38, 100), (0.4, 60, 50)])
    assert command("foley", beat, "--model", model, "--class", "wood", "--out", tmp_path / "c.wav") == 0
    assert [(c.seconds, c.label) for c in read_cues(tmp_path / "c.csv")] == [(0.1, "wood"), (0.4, "wood")]


@pytest.mark.slow
def test_wrong_commands_are_one_sentence(tmp_path, model, capsys):
    source = write_video(tmp_path / "take.mp4", EVEN[:6])
    beat = drums(tmp_path / "beat.mid", [(0.1, 36, 100)])
    (tmp_path / "bad.csv").write_text("time,class\nx,a\n")
    (tmp_path / "none.mp4").write_bytes(b"nothing")
    write_cues(tmp_path / "cues.csv", [Cue(0.3, "bell")])
    wav = ("--model", model, "--out", tmp_path / "o.wav")
    cases = [
        ((source, *wav), 2, "--class: say what is to be heard, one of knock, wood"),
        ((source, *wav, "--class", "bell"), 2, "--class bell: is unknown; use one of knock, wood"),
        ((tmp_path / "cues.csv", *wav), 2, "--class: bell is none"),
        ((tmp_path / "bad.csv", *wav, "--class", "wood"), 1, "line 2: time"),
        ((tmp_path / "none.mp4", *wav, "--class", "wood"), 1, "cannot be read as a video"),
        ((tmp_path / "gone.mp4", *wav, "--class", "wood"), 1, "no such file"),
        (
            (source, *wav, "--class", "wood", "--cues", tmp_path / "cues.csv", "--keep-original", 0),
            1,
            "no sound to keep",
        ),
        ((beat, *wav, "--class", "wood", "--keep-original", 0), 2, "--keep-original: is for a video"),
        ((beat, "--model", model, "--class", "wood", "--out", tmp_path / "o.mp4"), 2, "has no pictures"),
        ((beat, "--model", model, "--class", "wood", "--out", tmp_path / "o.ogg"), 2, "ends with .wav"),
        ((source, "--model", model, "--class", "wood", "--out", source, "--overwrite"), 2, "is the source itself"),
        ((source, "--model", model, "--class", "wood", "--out", tmp_path / "o.webm"), 1, "webm does not take"),
        ((beat, "--model", "denoise-16k", "--out", tmp_path / "o.wav"), 2, "has the task enhance; give a model of"),
        ((beat, "--model", tmp_path / "no.safetensors", "--class", "wood", "--out", tmp_path / "o.wav"), 1, "no.safet"),
    ]
    there = set(tmp_path.iterdir())
    for arguments, code, said in cases:
        assert command("foley", *arguments) == code, arguments
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    assert set(tmp_path.iterdir()) == there


def test_evaluate_says_how_well_outputs_keep_to_times(tmp_path, capsys):
    places = np.array([0.3, 0.8, 1.1, 1.9, 2.15])
    y = bursts(places, np.full(5, 0.3), 3.0)
    (tmp_path / "outputs").mkdir()
    soundfile.write(tmp_path / "outputs" / "right.wav", y, 16_000)
    soundfile.write(tmp_path / "outputs" / "late.wav", np.concatenate([y[:1] * np.ones(8000), y])[:48_000], 16_000)
    write_cues(tmp_path / "cues.csv", [Cue(at, "a") for at in places])
    video = write_video(tmp_path / "take.mp4", np.arange(30) / 10, sound=y)
    outputs = tmp_path / "outputs"
    assert command("evaluate", "--sync", tmp_path / "cues.csv", outputs, "--out", tmp_path / "scores") == 0
    assert "5 events" in capsys.readouterr().out
    late, right = json.loads((tmp_path / "scores" / "sync.json").read_text())["files"]
    assert right["hit_rate"] == 1 and right["average_precision"] == 1 and right["loudness"] is None
    assert late["shift"] - right["shift"] == pytest.approx(0.5, abs=2e-3)
    assert [right[f"moved_{by:g}"] - right["shift"] for by in SHIFTS] == pytest.approx(SHIFTS, abs=1e-6)
    found = events(video)  # by its own sound
    np.testing.assert_allclose(found.seconds, places, atol=0.006)
    assert found.levels is not None
    assert command("evaluate", "--sync", video, outputs / "right.wav", video) == 0
    for arguments, code, said in (
        (("--sync", tmp_path / "gone.csv", outputs), 1, "no such cue sheet"),
        (("--sync", tmp_path / "cues.csv"), 2, "say what is to be scored"),
        (("--sync", tmp_path / "cues.csv", outputs, "--rate", 8000), 2, "--rate: is not for --sync"),
        (("--sync", tmp_path / "cues.csv", tmp_path / "scores"), 1, "holds no sounds"),
    ):
        capsys.readouterr()
        assert command("evaluate", *arguments) == code
        assert said in capsys.readouterr().err
