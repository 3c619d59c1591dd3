"""Features of files: what the NPZ holds is what the transforms give, and the sound comes back from it."""

import jax.numpy as jnp
import librosa
import matplotlib.image
import numpy as np
import pytest
import soundfile

from jaxdiff import features
from jaxdiff.cli.main import main
from jaxdiff.data import read_audio

SR = 16000
SIZES = ["--n-fft", "512", "--hop-length", "128"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds")
    t = np.arange(9001) / SR
    for name, f in (("low", 220), ("high", 440)):
        y = 0.3 * np.sin(2 * np.pi * f * t) + 0.1 * np.sin(2 * np.pi * 3 * f * t)
        soundfile.write(path / f"{name}.wav", y, SR, subtype="FLOAT")
    return path


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["features", *map(str, arguments)])
    code = stop.value.code
    assert isinstance(code, int)
    return code


def test_a_file_of_any_length_gives_its_own_frames(folder, tmp_path):
    assert run(folder / "low.wav", "--out", tmp_path, "--kind", "mel", *SIZES) == 0
    saved = np.load(tmp_path / "low.npz")
    y = read_audio(folder / "low.wav")
    reference = librosa.feature.melspectrogram(y=y.astype(np.float64), sr=SR, n_fft=512, hop_length=128)
    np.testing.assert_allclose(saved["mel"], reference, atol=1e-6 * reference.max())
    assert (str(saved["kind"]), int(saved["sample_rate"]), int(saved["samples"])) == ("mel", SR, 9001)
    picture = matplotlib.image.imread(tmp_path / "low.png")
    assert picture.shape[0] > 200 and picture.std() > 0.1


@pytest.mark.parametrize(("kind", "closeness"), [("stft", 1e-5), ("cqt", 1e-4)])
def test_exact_kinds_bring_the_sound_back(folder, tmp_path, kind, closeness):
    assert run(folder / "low.wav", "--out", tmp_path, "--kind", kind, "--invert", *SIZES) == 0
    y = read_audio(folder / "low.wav")
    assert np.abs(read_audio(tmp_path / "low.wav") - y).max() <= closeness + 2**-15  # written with 16 bits


@pytest.mark.parametrize("kind", ["mel", "mfcc"])
def test_mel_features_bring_back_the_pitch(folder, tmp_path, kind):
    assert run(folder / "high.wav", "--out", tmp_path, "--kind", kind, "--invert", "--n-mfcc", 40, *SIZES) == 0
    f0 = features.yin(jnp.asarray(read_audio(tmp_path / "high.wav")), fmin=100.0, fmax=1000.0, sr=SR)
    assert abs(float(np.median(f0)) - 440) < 15


@pytest.mark.slow
def test_pitch_chroma_and_loudness(folder, tmp_path):
    for kind in ("pitch", "chroma", "loudness"):
        assert run(folder, "--out", tmp_path / kind, "--kind", kind) == 0
    for name, pitch in (("low", 220), ("high", 440)):
        assert abs(np.nanmedian(np.load(tmp_path / "pitch" / f"{name}.npz")["f0"]) - pitch) < 2
        chroma = np.load(tmp_path / "chroma" / f"{name}.npz")["chroma"]
        assert chroma.mean(-1).argmax() == 9  # A
        level = np.load(tmp_path / "loudness" / f"{name}.npz")["loudness"]
        assert np.isfinite(level).all()


def test_what_is_wrong_is_said_in_one_sentence(folder, tmp_path, capsys):
    broken = tmp_path / "in"
    broken.mkdir()
    (broken / "text.wav").write_text("no sound")
    for code, message, arguments in (
        (1, "no such file", ["absent.wav", "--out", tmp_path / "o"]),
        (1, "not a sound file", [broken, "--out", tmp_path / "o"]),
        (
            2,
            "chroma cannot be turned back into sound",
            [folder, "--out", tmp_path / "o", "--kind", "chroma", "--invert"],
        ),
        (2, "would have the same results", [folder, folder / "low.wav", "--out", tmp_path / "o"]),
        (2, "is a file; give a folder", [folder, "--out", folder / "low.wav"]),
        (2, "--hop-length: expected at least 1, got 0", [folder, "--out", tmp_path / "o", "--hop-length", "0"]),
    ):
        assert run(*arguments) == code
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("o/*"))


def test_nothing_is_overwritten_unasked(folder, tmp_path, capsys):
    assert run(folder / "low.wav", "--out", tmp_path, *SIZES) == 0
    before = (tmp_path / "low.npz").stat().st_mtime_ns
    assert run(folder / "low.wav", "--out", tmp_path, *SIZES) == 2
    assert "exists; give another --out, or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "low.npz").stat().st_mtime_ns == before
    assert run(folder / "low.wav", "--out", tmp_path, *SIZES, "--overwrite") == 0


def test_names_are_kept_whatever_they_are_and_a_bad_file_costs_itself_only(tmp_path, capsys):
    names = ["take.1.wav", "take.2.wav", "ca$$h.wav", "v1.5 mix.wav", "a/x.wav", "b/x.wav", "тон.wav"]
    for i, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "in" / name, 0.1 * np.sin(np.arange(1000 + i) / 9), SR)
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF")
    (tmp_path / "in" / "._take.1.wav").write_bytes(b"no sound")
    assert run(tmp_path / "in", "--out", tmp_path / "out", *SIZES) == 1
    error = capsys.readouterr().err
    assert "bad.wav: not a sound file" in error and "1 of 8 files could not be used, the others are done" in error
    made = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert made == {f"{name.removesuffix('.wav')}{end}" for name in names for end in (".npz", ".png")}
    for i, name in enumerate(names):
        assert np.load(tmp_path / "out" / f"{name.removesuffix('.wav')}.npz")["samples"] == 1000 + i


def test_home_and_variables_are_filled_in_unless_that_very_name_is_there(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOUNDS", str(folder))
    monkeypatch.chdir(tmp_path)
    assert run("$SOUNDS/low.wav", "--out", "~/out", *SIZES) == 0
    assert (tmp_path / "out" / "low.npz").is_file()
    (tmp_path / "$SOUNDS.wav").write_bytes((folder / "high.wav").read_bytes())
    assert run("$SOUNDS.wav", "--out", "out", *SIZES) == 0
    assert (tmp_path / "out" / "$SOUNDS.npz").is_file()
