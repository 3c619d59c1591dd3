"""Pictures and files for people: names in any script, levels above full scale, pictures that never cost a sound."""

import gc
import json
import tracemalloc
import warnings

import numpy as np
import pytest
import soundfile
from PIL import Image

from jaxdiff.inference import Output, outputs, pictures

RATE = 8000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(2000) / RATE)).astype(np.float32)
NAMES = ["ca$$h", "a$_1^$", "été", "барабан", "太鼓", "take.1", "x" * 255, "-rf", "tab\there"]


def output(waves, labels):
    facts = [{"item": i, "label": label, "seed": 0} for i, label in enumerate(labels)]
    return Output(list(waves), [RATE] * len(labels), facts)


@pytest.mark.filterwarnings("ignore:no font of this machine")
def test_any_name_becomes_files_and_a_picture(tmp_path):
    made = output([TONE] * len(NAMES), NAMES)
    made.save(tmp_path)
    assert len(set(made.names)) == len(NAMES)
    for end in (".wav", ".png", ".json"):
        assert {p.stem for p in tmp_path.glob(f"*{end}")} - {"sheet"} == set(made.names)
    assert np.std(np.asarray(Image.open(tmp_path / f"{made.names[0]}.png").convert("L"))) > 20


@pytest.mark.parametrize("label", ["/x/y", "../../x", "..", "a/b", "con", ".hidden", "a\\b"])
def test_a_label_is_no_path(label, tmp_path):
    inside = tmp_path / "inside"
    output([TONE], [label]).save(inside, sheet=False)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.parent != inside] == []
    assert len(list(inside.iterdir())) == 3


def test_sounds_of_one_name_do_not_overwrite_each_other(tmp_path):
    made = Output([TONE, TONE], [RATE] * 2, [{"item": i, "source": f"{i}/x.wav"} for i in range(2)])
    with pytest.raises(ValueError, match="x: is the name of several sounds"):
        made.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made.save(tmp_path / "out", ["a", "b"], sheet=False)
    assert len(list((tmp_path / "out").glob("*.wav"))) == 2


def test_letters_that_no_font_has_are_escaped_and_the_others_shown():
    assert pictures._legible("тон 1") == ("тон 1", ("DejaVu Sans",))
    with pytest.warns(UserWarning, match="no font of this machine"):
        assert pictures._legible("a\U00013000\n")[0] == "a\\U00013000\\n"


def test_a_picture_that_fails_costs_a_warning(tmp_path):
    def fails():
        raise RuntimeError("no ink")

    with pytest.warns(UserWarning, match=r"a\.png: no picture was drawn \(RuntimeError: no ink\)"):
        pictures.draw(tmp_path / "a.png", fails)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="absent"):  # a disk that is full or gone is another matter
        pictures.draw(tmp_path / "absent" / "a.png", lambda: pictures.spectrograms([TONE], ["a"], [RATE]))


def test_what_was_drawn_waits_for_no_collector(tmp_path):
    wave = np.random.default_rng(0).standard_normal(160_000).astype(np.float32)
    make = lambda: pictures.spectrograms([wave], ["a"], [16_000])  # noqa: E731
    pictures.draw(tmp_path / "a.png", make)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        held = []
        for _ in range(4):
            pictures.draw(tmp_path / "a.png", make)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        gc.enable()
        tracemalloc.stop()
    assert held[-1] - held[0] < 3 * 2**20  # three figures hold 20


def test_a_sound_above_full_scale_is_scaled_as_a_whole_and_that_is_said(tmp_path):
    loud = np.stack([4 * TONE, TONE])  # two channels: their balance stays
    with pytest.warns(UserWarning, match="1 of 2 sounds exceeded full scale .* by up to 6.0 dB"):
        output([TONE, loud], ["a", "b"]).save(tmp_path)
    for name, wave, gain in (("0000-a", TONE[None], 1), ("0001-b", loud, 0.999 / np.abs(loud).max())):
        y, _ = soundfile.read(tmp_path / f"{name}.wav", always_2d=True)
        np.testing.assert_allclose(y.T, gain * wave, atol=1 / 32768)
        sidecar = json.loads((tmp_path / f"{name}.json").read_text())
        assert sidecar.get("scaled_db", 0) == pytest.approx(20 * np.log10(gain), abs=0.01)
    with warnings.catch_warnings(action="error"):
        output([TONE], ["a"]).save(tmp_path)


def test_frequencies_are_where_the_axis_says():
    """The brightest row of a pure tone's picture lies at its frequency in Hz, in mel and in linear pictures."""
    figure = pictures.spectrograms([TONE], ["tone"], [RATE])
    mesh = figure.axes[0].collections[0]
    assert figure.axes[0].get_xlabel() == "time (s)" and figure.axes[0].get_ylabel() == "frequency (Hz)"
    brightest(mesh, 440, 60)
    spectrum = np.abs(np.fft.rfft(TONE.reshape(10, 200))).T
    figure = pictures.frames([spectrum], ["frequency (Hz)"], [dict(sr=RATE, y_axis="linear")], 0.25, "tone")
    brightest(figure.axes[0].collections[0], 440, 40)
    times = figure.axes[0].collections[0].get_coordinates()[0, :, 0]
    assert times[-1] == pytest.approx(0.25, abs=0.03)


def brightest(mesh, frequency, tolerance):
    rows = mesh.get_coordinates()[:, 0, 1]
    values = np.asarray(mesh.get_array())
    row = values.reshape(len(rows) - 1, -1).mean(1).argmax()
    assert rows[row] - tolerance <= frequency <= rows[row + 1] + tolerance


def test_an_output_shows_its_names_in_a_shell_and_plays_in_a_notebook():
    made = output([TONE, TONE], ["a", None])
    assert repr(made) == "0000-a: 0.25 s at 8000 Hz\n0001: 0.25 s at 8000 Hz"
    assert made._repr_html_().count("<audio controls") == 2
    assert outputs.item_name(3, "../x") != "0003-../x"
