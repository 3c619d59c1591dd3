"""Notes: rolls and back, MIDI files that lie, scores of what was found; and a tracker's way from crops to a file."""

import json

import jax
import jax.numpy as jnp
import mido
import numpy as np
import pytest

from jaxdiff.data import AudioError, Corpus, Crop, Further, batches, open_corpus, write_audio
from jaxdiff.data.midi import CROP_NOTES, cut_notes, no_notes, read_midi, write_midi
from jaxdiff.evaluation.notes import frame_scores, matches, note_scores
from jaxdiff.features import KEYS, LOWEST_KEY, PianoRoll, notes_of_roll, piano_roll
from jaxdiff.tasks import Transcribe

rolled = jax.jit(piano_roll, static_argnames=("frames", "frame_seconds"))
SCORE = np.array([[0.10, 0.50, 60, 80], [0.10, 0.30, 64, 40], [0.60, 0.90, 60, 127]], np.float32)


def test_a_roll_says_what_sounds_when_and_since_when():
    roll = rolled(SCORE, frames=100, frame_seconds=0.01)
    column = np.asarray(roll.sounding[:, 60 - LOWEST_KEY])
    expected = np.zeros(100)
    expected[10:50] = expected[60:90] = 1
    np.testing.assert_array_equal(column, expected)
    assert np.flatnonzero(np.asarray(roll.onset[:, 60 - LOWEST_KEY])).tolist() == [10, 60]
    np.testing.assert_allclose(roll.since[30, 60 - LOWEST_KEY], 0.2, atol=1e-4)
    np.testing.assert_allclose(roll.force[20, [39, 43]], [80 / 127, 40 / 127], rtol=1e-6)
    assert float(np.asarray(roll.sounding).sum()) == 40 + 20 + 30


def test_padding_and_pitches_of_no_piano_are_left_out():
    notes = np.concatenate([SCORE, [[0, 1, -1, 90], [0, 1, 20, 90], [0, 1, 109, 90]]]).astype(np.float32)
    for one, other in zip(*(rolled(n, frames=100, frame_seconds=0.01) for n in (SCORE, notes)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_notes_come_back_from_their_roll():
    rng = np.random.default_rng(0)
    onsets = np.sort(rng.integers(0, 900, 40)) / 100
    notes = np.stack(
        [onsets, onsets + rng.integers(6, 50, 40) / 100, 40 + np.arange(40) % 37, rng.integers(1, 128, 40)], 1
    )
    notes = notes.astype(np.float32)
    roll = rolled(notes, frames=1000, frame_seconds=0.01)
    found = notes_of_roll(*(np.asarray(x) for x in roll[:3]), frame_seconds=0.01)
    order = np.lexsort((notes[:, 2], notes[:, 0]))
    np.testing.assert_allclose(found, notes[order], atol=1e-3)


def test_an_onset_inside_a_note_begins_another():
    sounding, onset = np.zeros((30, KEYS)), np.zeros((30, KEYS))
    sounding[5:25, 10], onset[5, 10], onset[15, 10] = 1, 1, 0.9
    found = notes_of_roll(sounding, onset, 0.5 * sounding, frame_seconds=0.1)
    np.testing.assert_allclose(found[:, :2], [[0.5, 1.5], [1.5, 2.5]], rtol=1e-6)
    assert len(notes_of_roll(0 * sounding, onset, sounding, frame_seconds=0.1)) == 0


def test_a_decoded_roll_sounds_at_its_pitch_and_continues_at_its_period():
    r = PianoRoll()
    roll = rolled(np.array([[0.0, 20.0, 69, 127]], np.float32), frames=1601, frame_seconds=0.01)
    x, decode = np.concatenate(roll[:3], axis=-1), jax.jit(r.decode)
    y = np.asarray(decode(x))
    spectrum = np.abs(np.fft.rfft(y[:16000]))
    assert spectrum.argmax() == 440
    later = np.asarray(decode(np.roll(x, -r.phase_period, axis=0)))
    np.testing.assert_allclose(later[:1000], y[r.phase_period * r.hop_length :][:1000], atol=2e-3)
    with pytest.raises(TypeError, match="read off a score"):
        r.encode(jnp.zeros(1600))


# MIDI ---------------------------------------------------------------------------------------------------------------


def test_midi_files_keep_notes_to_a_millisecond(tmp_path):
    write_midi(tmp_path / "a.mid", SCORE, program=40)
    np.testing.assert_allclose(read_midi(tmp_path / "a.mid"), SCORE, atol=1e-3)
    write_midi(tmp_path / "b.mid", no_notes())
    assert read_midi(tmp_path / "b.mid").shape == (0, 4)


def midi(path, *messages, tempo=500_000):
    file = mido.MidiFile(ticks_per_beat=100)
    file.tracks.append(mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=tempo), *messages]))
    file.save(path)
    return path


def test_the_pedal_holds_notes_drums_are_no_notes_and_tempo_counts(tmp_path):
    say = mido.Message
    path = midi(
        tmp_path / "a.mid",
        say("control_change", control=64, value=127),
        say("note_on", note=60, velocity=80),
        say("note_on", note=38, velocity=80, channel=9),
        say("note_off", note=60, time=100),
        say("note_on", note=62, velocity=70),
        say("control_change", control=64, value=0, time=100),
        say("note_on", note=62, velocity=0, time=100),
        tempo=1_000_000,
    )
    np.testing.assert_allclose(read_midi(path), [[0, 2, 60, 80], [1, 3, 62, 70]], atol=1e-6)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be read as MIDI"),
        (b"RIFF" + bytes(40), "cannot be read as MIDI"),
        (b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x00\x60MTrk\x00\x00\xff\xff\x00\x90", "cannot be read as MIDI"),
        (bytes(9 << 20), "at most 8"),
    ],
)
def test_files_that_are_no_midi_get_one_sentence(tmp_path, data, says):
    (tmp_path / "a.mid").write_bytes(data)
    with pytest.raises(AudioError, match=says) as error:
        read_midi(tmp_path / "a.mid")
    assert "\n" not in str(error.value)
    with pytest.raises(AudioError, match="no such MIDI file"):
        read_midi(tmp_path / "b.mid")


def test_midi_of_any_bytes_ends_in_notes_or_a_sentence(tmp_path):
    write_midi(tmp_path / "a.mid", SCORE)
    whole, rng = bytearray((tmp_path / "a.mid").read_bytes()), np.random.default_rng(1)
    for _ in range(200):
        broken = bytearray(whole)
        for at in rng.integers(0, len(broken), 3):
            broken[at] = rng.integers(256)
        (tmp_path / "b.mid").write_bytes(broken[: rng.integers(1, len(broken) + 1)])
        try:
            assert read_midi(tmp_path / "b.mid").shape[1] == 4
        except AudioError as error:
            assert "b.mid" in str(error)


@pytest.mark.parametrize(
    "row", [[0.5, 0.4, 60, 90], [-1, 1, 60, 90], [0, 1, 128, 90], [0, 1, 60, 0], [0, np.nan, 60, 9]]
)
def test_notes_that_cannot_be_are_refused(tmp_path, row):
    with pytest.raises(AudioError, match="expected 0 <= onset < offset"):
        write_midi(tmp_path / "a.mid", np.array([row], np.float32))


def test_a_cut_counts_from_its_beginning_and_loses_the_quietest():
    cut = cut_notes(SCORE, 0.4, 0.4)
    assert cut.shape == (CROP_NOTES, 4)
    np.testing.assert_allclose(cut[:2], [[-0.3, 0.1, 60, 80], [0.2, 0.5, 60, 127]], atol=1e-6)
    assert (cut[2:, 2] == -1).all()
    assert cut_notes(SCORE, 0, 1, most=2)[:, 3].tolist() == [80, 127]


def test_notes_come_with_the_crops_of_their_recordings(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/x", "b/y"):
        for folder in ("sounds", "scores"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_audio(tmp_path / "sounds" / f"{name}.wav", rng.uniform(-0.5, 0.5, 16000).astype(np.float32), 8000)
        write_midi(tmp_path / "scores" / f"{name}.mid", SCORE)
    corpus: Corpus = open_corpus(str(tmp_path / "sounds"))
    further = Further(notes=tmp_path / "scores", reference=True)
    assert further.names == {"notes", "reference"}
    batch = next(batches(corpus, Crop(8000, 8000), 4, 0, further=further))
    assert batch["notes"].shape == (4, CROP_NOTES, 4)
    assert batch["reference"].shape == (4, 8000)
    (tmp_path / "scores/b/y.mid").unlink()
    with pytest.raises(AudioError, match=r"y\.wav: has no score"):
        batches(corpus, Crop(8000, 8000), 4, 0, further=further)


# Scores -------------------------------------------------------------------------------------------------------------


def test_scores_are_those_counted_by_hand():
    late = SCORE + np.array([0.09, 0.09, 0, 0], np.float32)
    assert note_scores(SCORE, late).f1 == 1
    assert note_scores(SCORE, late, tolerance=0.05).f1 == 0
    assert note_scores(SCORE, SCORE[:2]) == (1, 2 / 3, 0.8)
    assert note_scores(SCORE, no_notes()).f1 == 0
    assert note_scores(no_notes(), no_notes()).f1 == 1
    half = np.array([[0.1, 0.3, 60, 80]], np.float32)
    assert frame_scores(SCORE, half) == pytest.approx((1, 20 / 90, 40 / 110))


def test_matching_is_as_large_as_it_can_be():
    from itertools import permutations

    rng = np.random.default_rng(0)
    for _ in range(60):
        one, other = (np.c_[rng.uniform(0, 1, (n, 1)), np.full((n, 1), 2), np.full((n, 2), 60)] for n in (4, 5))
        found = list(matches(one, other, 0.1))
        assert len(found) == len({i for i, _ in found}) == len({j for _, j in found})
        near = np.abs(one[:, :1] - other[:, 0]) <= 0.1
        assert len(found) == max(sum(near[i, j] for i, j in enumerate(p)) for p in permutations(range(5), 4))


def test_a_transcription_example_hears_its_notes_where_they_sound():
    r, task = PianoRoll(), Transcribe(transpose=0, equalizer_db=0.0)
    t = np.arange(16000) / 16000
    wave = np.where((t > 0.2) & (t < 0.7), np.sin(2 * np.pi * 440 * t), 0).astype(np.float32)
    notes = cut_notes(np.array([[0.2, 0.7, 69, 100]], np.float32), 0, 1)
    example = jax.jit(lambda b: task.example(r, b, jax.random.key(0)))({"wave": wave[None], "notes": notes[None]})
    x, heard = np.asarray(example.x0[0]), np.asarray(example.given.cond.frames)[0]
    assert x.shape == (101, 264)
    assert np.flatnonzero(x[:, 69 - LOWEST_KEY]).tolist() == list(range(20, 70))
    assert heard[45].argmax() == 2 * (69 - LOWEST_KEY)
    assert heard[45].max() > 4 * heard[5].max()


def test_transposing_moves_sound_and_notes_alike():
    r, task = PianoRoll(), Transcribe(transpose=5, equalizer_db=0.0)
    wave = np.sin(2 * np.pi * 440 * np.arange(8000) / 16000).astype(np.float32)
    notes = cut_notes(np.array([[0.0, 0.5, 69, 100]], np.float32), 0, 1)
    batch = {"wave": np.tile(wave, (6, 1)), "notes": np.tile(notes, (6, 1, 1))}
    example = jax.jit(lambda b: task.example(r, b, jax.random.key(3)))(batch)
    keys = np.asarray(example.x0)[:, 20, :KEYS].argmax(-1)
    bins = np.asarray(example.given.cond.frames)[:, 20].argmax(-1)
    np.testing.assert_array_equal(bins, 2 * keys)
    assert len(set(keys.tolist())) > 2


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    """A run of one step: its notes mean nothing."""
    from jaxdiff.cli.main import main

    folder = tmp_path_factory.mktemp("tracker")
    for name in ("sounds", "scores"):
        (folder / name).mkdir()
    write_audio(folder / "sounds/a.wav", np.sin(np.arange(32000) / 5).astype(np.float32) / 2, 16000)
    write_midi(folder / "scores/a.mid", SCORE)
    (folder / "c.yaml").write_text(
        f"data: {{path: {folder}/sounds, notes: {folder}/scores, seconds: 0.64}}\n"
        "task: {kind: transcribe}\nrepresentation: {kind: piano_roll}\nnormalize: {enabled: false}\n"
        "network: {kind: convnext, width: 8, depth: 1, timed: false}\n"
        "method: {kind: regression, loss: binary}\n"
        "train: {steps: 1, batch: 2, sample_every: 0}\n"
    )
    with pytest.raises(SystemExit) as done:
        main(["train", str(folder / "c.yaml"), "--workdir", str(folder / "run")])
    assert done.value.code == 0
    return folder


def test_transcribe_writes_midi_picture_and_sidecar(tracker, tmp_path, capsys):
    from jaxdiff.cli.main import main

    with pytest.raises(SystemExit) as done:
        main(["transcribe", f"{tracker}/sounds/a.wav", "--model", f"{tracker}/run", "--out", str(tmp_path)])
    assert done.value.code == 0
    assert "notes" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.mid", "a.png"]
    assert json.loads((tmp_path / "a.json").read_text())["notes"] == len(read_midi(tmp_path / "a.mid"))


def test_features_in_windows_are_those_of_the_whole(tracker):
    from jaxdiff import load

    pipeline = load(tracker / "run")
    y = np.random.default_rng(0).standard_normal(16000 * 30).astype(np.float32) / 5
    pipeline.window_seconds = 16.0
    pieces = list(pipeline.features(y, sr=16000))
    assert len(pieces) > 1
    parts = np.concatenate(pieces)
    assert parts.shape == (3001, 264)
    pipeline.window_seconds = 40.0
    whole = np.concatenate(list(pipeline.features(y, sr=16000)))
    np.testing.assert_allclose(parts, whole, atol=2e-3)


def test_a_configuration_without_scores_says_what_is_missing(tracker, tmp_path, capsys):
    from jaxdiff.cli.main import main

    text = (tracker / "c.yaml").read_text().replace(f"notes: {tracker}/scores, ", "")
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SystemExit) as done:
        main(["train", str(tmp_path / "c.yaml"), "--workdir", str(tmp_path / "run")])
    assert done.value.code == 2
    assert "the task needs notes; add data.notes" in capsys.readouterr().err
