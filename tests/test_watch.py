"""Watching: pictures at the times at which they are shown, curves of motion, and impacts found in them."""

import csv
import gc
import importlib
import json
import sys
import warnings
import weakref
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxdiff.cli.main import main
from jaxdiff.data import AudioError, write_audio
from jaxdiff.data.cues import read_cues
from jaxdiff.data.video import Frame, read_frames, video_info
from jaxdiff.evaluation.onsets import Onsets, synchrony
from jaxdiff.features.motion import even_out, match_blocks
from jaxdiff.inference import watch as watching
from jaxdiff.inference.watch import gridded, onsets_of, see, watch, watch_file

av = pytest.importorskip("av")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
watch_scenes = importlib.import_module("watch_scenes")


def write_video(path, times, pictures, *, rotation=0, flip=False, sound=False):
    """A video of pictures [height, width] at times in seconds, to the millisecond."""
    clock = Fraction(1, 1000)
    with av.open(str(path), "w") as file:
        track = file.add_stream("libx264", rate=30, options={"crf": "12", "preset": "ultrafast", "bf": "2"})
        track.height, track.width, track.pix_fmt = *pictures[0].shape, "yuv420p"
        track.codec_context.time_base = track.time_base = clock
        if rotation or flip:
            track.set_display_rotation(rotation, hflip=flip)
        voice = file.add_stream("aac", rate=16000) if sound else None
        for seconds, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(seconds * 1000), clock
            file.mux(track.encode(frame))
        file.mux(track.encode())
        if voice is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16000
            file.mux(voice.encode(silence))
            file.mux(voice.encode())
    return path


def texture(seed, height=54, width=96):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 1.5, mode="wrap")
    return (128 + 30 * noise / noise.std()).clip(0, 255).astype(np.uint8)


def disc(x, y, radius=0.05, level=240.0, back=100.0):
    """A grey disc, lengths in widths of the picture."""
    px, py = ((np.arange(n) + 0.5) / 96 for n in (96, 54))
    distance = np.hypot(px[None] - x, py[:, None] - y)
    return np.round(back + (level - back) * np.clip((radius - distance) * 96 + 0.5, 0, 1)).astype(np.uint8)


def bounces(t, floor=0.45, gravity=3.0, period=0.8):
    """Heights of a ball without loss, which strikes at period, 2 period ...; `floor` is where its centre turns."""
    part = t % period
    return floor - 0.5 * gravity * part * (period - part)


# Pictures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_times_are_those_at_which_pictures_are_shown(tmp_path, kind):
    times = np.cumsum(np.random.default_rng(0).integers(10, 200, 24)) / 1000
    levels = np.linspace(30, 220, 24).round().astype(np.uint8)
    path = write_video(tmp_path / f"a.{kind}", times, [np.full((108, 192), level, np.uint8) for level in levels])
    found = list(read_frames(path))
    np.testing.assert_allclose([frame.seconds for frame in found], times - times[0], atol=1e-6)
    assert np.abs([frame.picture.mean() for frame in found] - levels.astype(float)).max() < 3  # and in their order
    info = video_info(path)
    assert info.start == pytest.approx(times[0], abs=2e-3 if kind != "ts" else 2) and info.sounds == 0


@pytest.mark.parametrize(("rotation", "flip"), [(0, False), (90, False), (180, False), (-90, False), (0, True)])
def test_pictures_stand_as_the_file_says(tmp_path, rotation, flip):
    picture = np.full((128, 192), 128, np.uint8)
    picture[:64, :96], picture[:64, 96:] = 30, 220
    path = write_video(tmp_path / "a.mp4", [0, 0.1], [picture] * 2, rotation=rotation, flip=flip)
    upright = np.rot90(picture[:, ::-1] if flip else picture, rotation // 90)  # counterclockwise
    info = video_info(path)
    assert (info.height, info.width) == upright.shape
    small = next(read_frames(path)).picture
    assert small.shape == (54, 96)
    for y, x in ((0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8)):
        wanted = int(upright[int(y * upright.shape[0]), int(x * upright.shape[1])])
        assert abs(int(small[int(54 * y), int(96 * x)]) - wanted) < 6


def test_what_the_file_says_of_itself(tmp_path):
    info = video_info(write_video(tmp_path / "a.mp4", np.arange(20) / 20, [disc(0.5, 0.2)] * 20, sound=True))
    assert (info.width, info.height, info.sounds, info.start) == (96, 54, 1, 0.0)
    assert info.rate == pytest.approx(20, rel=0.05) and info.seconds == pytest.approx(1.0, abs=0.1)


def test_few_pictures_are_kept_at_a_time(tmp_path):
    alive, most = set(), 0

    def pictures(frames):
        nonlocal most
        for frame in frames:
            alive.add(number := id(frame.picture))
            weakref.finalize(frame.picture, alive.discard, number)
            most = max(most, len(alive))
            yield frame
            del frame

    rng = np.random.default_rng(0)
    see(pictures(Frame(i / 30, rng.integers(0, 255, (54, 96), np.uint8)) for i in range(70)))
    assert 2 <= most <= watching._TOGETHER + 4
    most = 0
    path = write_video(tmp_path / "a.mp4", np.arange(70) / 30, [disc(0.1 + i / 100, 0.3) for i in range(70)])
    see(pictures(read_frames(path)))
    gc.collect()
    assert 2 <= most <= watching._TOGETHER + 4 and len(alive) <= 2


# Curves -------------------------------------------------------------------------------------------------------------


def test_blocks_are_matched_whatever_the_light_and_parts_of_pixels_found():
    whole = texture(0, 80, 120).astype(np.float32)
    before, after = whole[10:64, 10:106], whole[7:61, 12:108]  # content moves down by 3 and left by 2
    bright = 0.8 * before + 30
    evened = even_out(jnp.asarray(bright)[None], jnp.asarray(after)[None])
    found = jax.jit(match_blocks)(evened, jnp.asarray(after)[None])
    inside = np.asarray(found.shift)[0, 1:-1, 1:-1]
    np.testing.assert_array_equal(np.round(inside), np.broadcast_to([-2.0, 3.0], inside.shape))
    assert np.abs(inside - [-2, 3]).mean() < 0.1
    np.testing.assert_allclose(found.camera, [[-2, 3]], atol=0.1)
    assert np.asarray(found.sure)[0, 1:-1, 1:-1].max() < 0.1  # all move with the camera
    still = whole[10:64, 10:106].copy()
    moved = still.copy()
    still[20:36, 40:56], moved[20:36, 43:59] = 250, 250
    found = jax.jit(match_blocks)(jnp.asarray(still)[None], jnp.asarray(moved)[None])
    sure = np.asarray(found.sure)[0]
    assert sure.max() > 0.9 and sure[:, :4].max() == 0 and sure[:, 9:].max() == 0
    np.testing.assert_allclose(np.asarray(found.camera), 0, atol=0.05)


def test_the_grid_keeps_what_was_moved_whatever_the_rate():
    t = np.cumsum(np.random.default_rng(1).choice([1 / 60, 1 / 30, 1 / 24], 90))
    seen = see(Frame(float(s), disc(0.1 + 0.25 * s, 0.27)) for s in t)
    seconds, curves, pan = gridded(seen)
    held = np.diff(t)
    for name in ("right_going", "difference"):
        assert curves[name].sum() / watching.RATE == pytest.approx((seen.curves[name][1:] * held).sum(), rel=1e-3)
    speed = curves["right_going"][30:-30]
    assert speed.std() < 0.35 * speed.mean() and curves["left_going"].max() < 0.2 * speed.mean()
    assert np.corrcoef(pan[30:-30], seconds[30:-30])[0, 1] > 0.98 and pan[30] < -0.2 and pan[-30] > 0.2


# Impacts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [24, 30, 60])
@pytest.mark.parametrize("rules", [True, False])
def test_a_ball_is_found_where_it_strikes(tmp_path, rate, rules):
    t = np.arange(round(4 * rate)) / rate
    path = write_video(tmp_path / "ball.mp4", t.round(3), [disc(0.25, bounces(now + 0.4)) for now in t], sound=True)
    found = watch_file(path, rules=rules)
    times = np.array([cue.seconds for cue in found.cues])
    np.testing.assert_allclose(times, [0.4, 1.2, 2.0, 2.8, 3.6], atol=1.2 / rate)
    assert all(cue.pan < -0.3 and cue.label == "impact" and cue.strength > 0.6 for cue in found.cues)
    assert not len(found.cuts)


def test_pan_follows_the_place_and_strength_the_speed():
    t = np.arange(0, 4, 1 / 30)

    def picture(now):
        left = disc(0.2, bounces(now + 0.75, period=1.0))
        return np.maximum(left, disc(0.8, bounces(now + 0.25, gravity=1.5, period=1.0)))

    cues = watch((Frame(s, picture(s)) for s in t), rules=True).cues
    left, right = ([c for c in cues if sign * c.pan > 0.3] for sign in (-1, 1))
    assert len(left) == len(right) == 4 and len(cues) == 8
    assert min(c.strength for c in left) > max(c.strength for c in right)


def test_a_cut_is_no_impact_and_a_flash_is_none():
    """Something moves up to the cut: it did not stop there. A picture lit up has the same things in it."""
    t = np.arange(90) / 30
    for rules in (True, False):
        shots = [
            np.maximum(texture(1 if i < 45 else 2) // 2, disc(0.1 + 0.5 * s, 0.3, back=0)) for i, s in enumerate(t)
        ]
        found = watch((Frame(s, p) for s, p in zip(t, shots, strict=True)), rules=rules)
        np.testing.assert_allclose(found.cuts, [1.5], atol=1e-6)
        assert not [cue for cue in found.cues if abs(cue.seconds - 1.5) < 0.15], found.cues
        lit = [(texture(1) // 2 + 70 * (i == 30)).astype(np.uint8) for i in range(90)]
        found = watch((Frame(s, p) for s, p in zip(t, lit, strict=True)), rules=rules)
        assert not found.cues and not len(found.cuts)


def test_pictures_that_are_repeated_are_left_out():
    """Every sixth picture is a copy, once more with noise: what moves evenly does not stop there."""
    rng, t = np.random.default_rng(0), np.arange(72) / 30
    for noise in (0, 1):
        shown = [disc(0.1 + 0.01 * (i - i // 6), 0.3) for i in range(72)]
        shown = [
            (p + rng.integers(0, noise + 1, p.shape) * (rng.random(p.shape) < 0.05)).astype(np.uint8) for p in shown
        ]
        seen = see(Frame(float(s), p) for s, p in zip(t, shown, strict=True))
        np.testing.assert_allclose(seen.seconds, np.delete(t, np.arange(6, 72, 6)))
        assert seen.curves["most_ceased"][3:-3].max() < 0.05


def test_pictures_that_stand_still_or_are_alone_have_no_impacts():
    assert watch(Frame(i / 25, disc(0.5, 0.3)) for i in range(40)).cues == []
    assert watch([Frame(0.0, disc(0.5, 0.3))]).cues == []
    with pytest.raises(ValueError, match="no pictures"):
        watch([])


@pytest.mark.slow
def test_the_network_that_ships_finds_what_it_never_saw(optimised):
    """Ten scenes of seeds that neither training nor the scores of the benchmarks draw."""
    contacts, found, near = [], [], 0
    kinds = [*watch_scenes.STRIKING, "none", "ball"]
    for i, kind in enumerate(kinds):
        scene = watch_scenes.draw_scene(np.random.default_rng([77, i]), kind, seconds=4.0, cuts=i % 2)
        seen = watch(scene.frames)
        contacts.append(scene.contacts)
        found.append(Onsets(*onsets_of(seen.curves["impact"], seen.seconds, 0.02)))
        near += sum(abs(cue.seconds - cut) < 0.03 for cue in seen.cues for cut in scene.cuts)
    assert synchrony(contacts, found).average_precision >= 0.9
    assert near == 0 and watching.WEIGHTS.stat().st_size < 200_000


# The command --------------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_the_command_writes_a_sheet_a_picture_and_a_sidecar(tmp_path, capsys):
    t = np.arange(60) / 30 + 0.4
    video = write_video(tmp_path / "ball.mp4", t.round(3), [disc(0.75, bounces(now)) for now in t])
    out = tmp_path / "new" / "cues.csv"
    code, said, _ = run(capsys, "watch", video, "--out", out, "--class", "ball", "--rules")
    assert code == 0 and "2 impacts in 2.0 s of video" in said
    assert [cue.label for cue in read_cues(out)] == ["ball", "ball"] and read_cues(out)[0].pan > 0.3
    with out.open() as file:
        assert next(csv.reader(file)) == ["time", "class", "strength", "pan"]
    about = json.loads(out.with_suffix(".json").read_text())
    assert (about["detector"], about["cues"], about["class"], about["video"]["width"]) == ("rules", 2, "ball", 96)
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    code, _, error = run(capsys, "watch", video, "--out", out)
    assert code == 2 and "exists" in error and read_cues(out)[0].label == "ball"
    assert run(capsys, "watch", video, "--out", out, "--overwrite")[0] == 0 and read_cues(out)[0].label == "impact"


def test_what_is_no_video_gets_one_sentence(tmp_path, capsys, monkeypatch):
    def made(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    write_audio(tmp_path / "a.wav", np.zeros(8000, np.float32), 8000)
    pictures = [texture(i, 108, 192) for i in range(60)]
    whole = write_video(tmp_path / "whole.mkv", np.arange(60) / 20, pictures).read_bytes()
    moved = write_video(tmp_path / "whole.mp4", np.arange(60) / 20, pictures).read_bytes()
    one = write_video(tmp_path / "one.mp4", [0.0], pictures[:1])
    with av.open(str(tmp_path / "cover.m4a"), "w", format="ipod") as file:
        voice = file.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        file.mux(voice.encode(silence))
        file.mux(voice.encode())
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{tmp_path}/whole.mkv\n#EXT-X-ENDLIST\n"
    cases = [
        (tmp_path / "gone.mp4", "gone.mp4: no such file"),
        (tmp_path, "no such file"),
        (made("empty.mp4", b""), "is empty"),
        (made("text.mp4", b"no video at all\n" * 50), "cannot be read as a video"),
        (tmp_path / "a.wav", "has no video track, only sound; give a video"),
        (tmp_path / "cover.m4a", "has no video track, only sound; give a video"),
        (one, "holds 1 picture, a video has two at least"),
        (made("cut.mp4", moved[: len(moved) // 2]), "cannot be read as a video"),
        (made("cut.mkv", whole[: len(whole) // 2]), "truncated, 3.0 s promised and"),
        (made("list.mp4", playlist.encode()), "list.mp4: "),
        (made("list.m3u8", playlist.encode()), "list.m3u8: "),
    ]
    for path, said in cases:
        code, _, error = run(capsys, "watch", path, "--out", tmp_path / "out" / "cues.csv")
        assert (code, error.count("\n")) == (1, 1) and error.startswith("jaxdiff: error: ") and said in error, error
        assert "Traceback" not in error and not (tmp_path / "out").exists()
    video = tmp_path / "whole.mkv"
    for arguments, said in [
        ((video, "--out", tmp_path), "expected a file that ends with .csv"),
        ((video, "--out", tmp_path / "cues.txt"), "expected a file that ends with .csv"),
        ((video, "--out", tmp_path / "cues.csv", "--class", " "), "--class ' ': expected a name"),
        ((video, "--out", tmp_path / "cues.csv", "--threshold", 1.5), "--threshold: expected at least 0 and at most 1"),
    ]:
        code, _, error = run(capsys, "watch", *arguments)
        assert code == 2 and said in error, error
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, error = run(capsys, "watch", video, "--out", tmp_path / "cues.csv")
    assert code == 2 and "pip install 'jaxdiff[video]'" in error and error.count("\n") == 1


def test_damage_anywhere_is_read_or_refused(tmp_path):
    """Twelve files, each with 60 bytes of noise somewhere, and what is left of them: pictures, or one error."""
    path, rng, read = tmp_path / "a.mkv", np.random.default_rng(0), 0
    whole = write_video(path, np.arange(30) / 20, [texture(i) for i in range(30)]).read_bytes()
    for _ in range(12):
        data, at = bytearray(whole), rng.integers(0, len(whole) - 60)
        data[at : at + 60] = rng.bytes(60)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = list(read_frames(path))
            except AudioError as error:
                assert str(path) in str(error)
            else:
                read += 1
                assert len(found) > 1 and (np.diff([frame.seconds for frame in found]) > 0).all()
    assert read > 2
