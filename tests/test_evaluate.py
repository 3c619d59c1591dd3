"""`jaxdiff evaluate` and its Python side: scores of files with known distortions, what is matched and reported, what is
written, and every mistake in one sentence."""

import csv
import json
import re
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import soundfile

from jaxdiff.cli.main import main
from jaxdiff.data import AudioError, read_audio
from jaxdiff.evaluation import EMBEDDINGS, MEASURES, batches, evaluate, frechet_distance
from jaxdiff.evaluation.metrics import catalogue
from jaxdiff.evaluation.remarks import left_out
from jaxdiff.evaluation.scoring import Interrupted

RATE = 8000
NAMES = ("a", "b.1", "deep/c", "deep/d", "e", "f")
LENGTHS = (4800, 3000, 4800, 3000, 3000, 5200)
DECIBELS = {"noisy": 5.0, "better": 20.0}  # the SI-SDR of each system


def voice(seed, samples):
    """Harmonics of a gliding pitch in syllables."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / RATE
    phase = 2 * np.pi * np.cumsum(rng.uniform(100, 220) * 2 ** (0.3 * np.sin(2 * np.pi * t))) / RATE
    return 0.1 * sum(np.sin(k * phase + k * k) / k for k in range(1, 12)) * (0.1 + np.abs(np.sin(2 * np.pi * 3 * t)))


def with_noise(reference, decibels, seed):
    """The reference and noise that is orthogonal to it: its SI-SDR is exactly so many dB."""
    noise = np.random.default_rng(seed).standard_normal(len(reference))
    noise -= reference * (noise @ reference) / (reference @ reference)
    return reference + noise * np.sqrt(reference @ reference / (noise @ noise)) * 10 ** (-decibels / 20)


def write(path, y, rate=RATE, subtype="FLOAT"):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, y, rate, subtype=subtype)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of references, `clean`, and one of each system."""
    root = tmp_path_factory.mktemp("evaluate")
    for i, (name, samples) in enumerate(zip(NAMES, LENGTHS, strict=True)):
        clean = voice(i, samples)
        write(root / f"clean/{name}.wav", clean)
        for system, decibels in DECIBELS.items():
            write(root / f"{system}/{name}.wav", 0.5 * with_noise(clean, decibels, 10 * i + len(system)))
    return root


def command(capsys, *arguments):
    """Exit code, standard output and error of `jaxdiff evaluate` in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, arguments)])
    return stop.value.code, *capsys.readouterr()


def rows_of(path):
    return {(row["file"], row["system"]): row for row in csv.DictReader(path.open(encoding="utf-8", newline=""))}


def strict_json(path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


METRICS = ["si_sdr", "mel_distance", "mel_cepstral_distortion_dtw", "loudness", "frechet_log_mel", "kernel_log_mel"]


@pytest.fixture(scope="module")
def made(folders):
    """The results of both systems, as the command writes them."""
    with pytest.raises(SystemExit) as stop:
        main([
            "evaluate", *(str(folders / name) for name in ("clean", "noisy", "better")), "--out", str(folders / "out"),
            "--metrics", *METRICS,
        ])  # fmt: skip
    assert stop.value.code == 0
    return folders / "out"


def test_scores_of_files_are_the_known_ones_and_those_of_direct_calls(folders, made):
    rows = rows_of(made / "scores.csv")
    assert len(rows) == 12 and set(rows) == {(name, system) for name in NAMES for system in DECIBELS}
    direct = {metric: jax.jit(MEASURES[metric].function, static_argnums=2) for metric in METRICS[:3]}
    for (name, system), row in rows.items():
        assert abs(float(row["si_sdr"]) - DECIBELS[system]) < 1e-3
        r, e = (read_audio(folders / f"{which}/{name}.wav") for which in ("clean", system))
        for metric in METRICS[:3] if name != "f" else ():
            expected = float(direct[metric](r, e, RATE))
            assert abs(float(row[metric]) - expected) < 2e-4 * max(1, abs(expected)), (metric, name)
        assert float(row["seconds"]) == float(row["reference_seconds"]) == len(r) / RATE
        assert (row["late_seconds"], row["channels"], row["silent"], row["problem"]) == ("0", "1", "0", "")


def test_one_program_for_each_length_that_sounds_are_filled_up_to(folders, made):
    """What is shorter than 4096 is filled up to it, and what is longer to the longest."""
    assert {batches.bucket(samples, max(LENGTHS)) for samples in LENGTHS} == {4096, 5200}
    assert batches.bucket(7, 7) == 7 and batches.bucket(70_000, 10**6) == 2**17
    program: Any = batches._program("snr")
    evaluate(folders / "clean", folders / "noisy", ["snr"])
    once = program._cache_size()
    evaluate(folders / "clean", {"x": folders / "better"}, ["snr"])
    assert program._cache_size() == once == 2


def test_means_and_comparisons_know_the_order_of_the_systems(made):
    facts = strict_json(made / "scores.json")
    assert facts["settings"]["seed"] == 0 and facts["files"] == {"reference": 6, "noisy": 6, "better": 6}
    means = {(mean["measure"], mean["system"]): mean for mean in facts["means"]}
    for system, decibels in DECIBELS.items():
        mean = means["si_sdr", system]
        assert abs(mean["estimate"] - decibels) < 1e-3 and mean["low"] <= mean["estimate"] <= mean["high"]
        assert mean["files"] == 6
    for measure in METRICS:
        best = [system for system in DECIBELS if means[measure, system]["best"]]
        assert best == ([] if measure == "loudness" else ["better"]), measure
    (pair,) = facts["comparisons"]["si_sdr"]
    assert (pair["first"], pair["second"], pair["higher"], pair["lower"]) == ("better", "noisy", 6, 0)
    assert abs(pair["difference"]["estimate"] - 15) < 2e-3 and pair["wilcoxon"] == pair["sign"] == 2**-5
    assert set(facts["comparisons"]) == set(METRICS[:4])


def test_distances_of_sets_are_those_of_direct_calls_on_whole_sounds(folders, made):
    embedding = EMBEDDINGS["log_mel"]

    def embed(system):
        waves = (read_audio(folders / f"{system}/{name}.wav", embedding.rate) for name in NAMES)
        return np.concatenate([np.asarray(embedding.function(wave[None])) for wave in waves])

    means = {(mean["measure"], mean["system"]): mean for mean in strict_json(made / "scores.json")["means"]}
    for system in DECIBELS:
        mean = means["frechet_log_mel", system]
        assert abs(mean["estimate"] / frechet_distance(embed("clean"), embed(system)) - 1) < 1e-3
        assert mean["low"] < mean["high"] and mean["files"] == 6
        assert -0.5 < means["kernel_log_mel", system]["estimate"] < 2


def test_markdown_is_a_table_with_the_best_in_bold(made):
    text = (made / "scores.md").read_text(encoding="utf-8")
    head, rule, *lines = text.split("\n\n")[0].splitlines()
    assert "si_sdr ↑ (dB)" in head and "mel_distance ↓ (dB)" in head and "loudness (LUFS)" in head
    assert len({line.count("|") for line in (head, rule, *lines)}) == 1 and len(lines) == 2
    better = next(line for line in lines if "better" in line)
    assert better.count("**") == 10 and "| **20.000** [20.000, 20.000] |" in better and "**" not in lines[0]


def test_picture(made):
    data = (made / "scores.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 20_000


def test_equal_runs_write_equal_files(folders, made, tmp_path):
    scores = evaluate(folders / "clean", [folders / "noisy", folders / "better"], METRICS)
    scores.save(tmp_path)
    for name in ("scores.csv", "scores.json", "scores.md"):
        assert (tmp_path / name).read_text() == (made / name).read_text()
    assert str(scores) in (made / "scores.md").read_text()
    with pytest.raises(ValueError, match="scores.csv: exists"):
        scores.save(tmp_path)


def test_rates_channels_lengths_delays_and_silence_are_reported(folders, tmp_path, capsys):
    """The score of each is that of the sounds as they were before, where that can be."""
    clean = voice(1, 12_000)
    other = with_noise(clean, 15, 7)
    for name in ("rate", "channels", "longer", "late", "silent"):
        write(tmp_path / f"clean/{name}.wav", clean)
    from jaxdiff.data.files import resample

    write(tmp_path / "ours/rate.wav", resample(other.astype(np.float32), RATE, 2 * RATE), 2 * RATE)
    write(tmp_path / "ours/channels.wav", np.stack([other + 0.01, other - 0.01], -1))
    write(tmp_path / "ours/longer.wav", np.concatenate([other, np.ones(1000)]))
    write(tmp_path / "ours/late.wav", np.concatenate([np.zeros(40), -other])[: len(other)])
    write(tmp_path / "ours/silent.wav", np.zeros(len(clean)))
    code, out, err = command(
        capsys, tmp_path / "clean", tmp_path / "ours", "--metrics", "si_sdr", "snr", "--out", tmp_path / "out"
    )
    assert code == 0 and not err
    rows = {name: row for (name, _), row in rows_of(tmp_path / "out/scores.csv").items()}
    for name, tolerance in (("channels", 1e-3), ("longer", 1e-3), ("rate", 0.6)):
        assert abs(float(rows[name]["snr"]) - 15) < tolerance, name
    assert rows["rate"]["sample_rate"] == "16000" and rows["rate"]["compared_rate"] == "8000"
    assert rows["channels"]["channels"] == "2" and rows["channels"]["reference_channels"] == "1"
    assert (rows["longer"]["seconds"], rows["longer"]["reference_seconds"]) == ("1.625", "1.5")
    assert rows["late"]["late_seconds"] == "0.005" and float(rows["late"]["si_sdr"]) < 0
    assert [name for name in rows if float(rows[name]["late_seconds"])] == ["late"]
    assert rows["silent"]["silent"] == "1" and float(rows["silent"]["si_sdr"]) == -100
    counts = strict_json(tmp_path / "out/scores.json")["sounds"]["ours"]
    assert counts == {
        "resampled": 1, "mixed_to_mono": 1, "longer": 1, "longer_by_seconds": 0.125, "shorter": 0,
        "shorter_by_seconds": 0, "late_or_early": 1, "silent": 1, "silent_references": 0,
    }  # fmt: skip
    for told in (
        "ours: 1 file resampled from 16000 Hz to 8000 Hz", "ours: 1 file of 5 with 2 channels", "by 125 ms",
        "1 file of 5 late by 5 ms", "1 file of 5 silent",
    ):  # fmt: skip
        assert told in out and told in (tmp_path / "out/scores.md").read_text(), told
    both = evaluate(tmp_path / "clean", tmp_path / "ours", ["snr"], rate=4000)
    assert {row.pair.rate for row in both.rows} == {4000}
    assert "reference: 5 files resampled from 8000 Hz to 4000 Hz." in both.notes()


def test_what_does_not_fit_is_listed_and_the_rest_is_scored(folders, tmp_path, capsys):
    shutil.copytree(folders / "clean", tmp_path / "clean")
    shutil.copytree(folders / "noisy", tmp_path / "noisy")
    shutil.copytree(folders / "better", tmp_path / "better")
    (tmp_path / "noisy/a.wav").unlink()
    write(tmp_path / "noisy/alone.wav", voice(3, 3000))
    (tmp_path / "better/b.1.wav").write_bytes(b"RIFF and no more")
    write(tmp_path / "better/e.wav", np.array([0.1, np.nan, 0.1]))
    soundfile.write(tmp_path / "noisy/deep/c.flac", voice(3, 3000), RATE)
    (tmp_path / "clean/deep/d.wav").write_bytes((tmp_path / "clean/deep/d.wav").read_bytes()[:5000])
    code, out, err = command(
        capsys, *(tmp_path / name for name in ("clean", "noisy", "better")), "--metrics", "si_sdr", "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert code == 1
    problems = {(p["system"], p["name"]): p["reason"] for p in strict_json(tmp_path / "out/scores.json")["problems"]}
    told = {
        ("noisy", "a"): "is missing",
        ("noisy", "alone"): "has no reference",
        ("noisy", "deep/c"): "c.flac and c.wav have one name",
        ("better", "b.1"): "not a sound file",
        ("better", "e"): "not finite",
        ("reference", "deep/d"): "truncated",
    }
    assert set(problems) == set(told) and all(word in problems[key] for key, word in told.items()), problems
    assert all(f"jaxdiff: error: {system}: {name}: " in err for system, name in told)
    rows = rows_of(tmp_path / "out/scores.csv")
    scored = {key for key, row in rows.items() if row["si_sdr"]}
    assert scored == {
        ("a", "better"), ("b.1", "noisy"), ("deep/c", "better"), ("e", "noisy"), ("f", "noisy"), ("f", "better")
    }  # fmt: skip
    assert {key for key, row in rows.items() if row["problem"]} == {(name, system) for system, name in told}
    means = strict_json(tmp_path / "out/scores.json")["means"]
    assert [mean["files"] for mean in means] == [1, 1] and means[0]["low"] is None
    assert "One file that all systems have in common: there are no intervals." in out


def test_names_of_any_kind(tmp_path, capsys):
    """Accents are composed or not, and what Markdown, a spreadsheet or a terminal reads as its own is escaped."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    names = ["=1+1", "a|b", "*x*_y_", composed, "太鼓", "-\x1b[31m", "x.y.z"]
    for name in names:
        write(tmp_path / f"clean/{name}.wav", voice(1, 500))
        theirs = decomposed if name == composed else name
        soundfile.write(tmp_path / f"{theirs}.flac", voice(1, 500), RATE)
        (tmp_path / "=o|u*rs").mkdir(exist_ok=True)
        shutil.move(tmp_path / f"{theirs}.flac", tmp_path / "=o|u*rs")
    write(tmp_path / "clean/|lost|.wav", voice(1, 500))
    code, out, err = command(
        capsys, tmp_path / "clean", tmp_path / "=o|u*rs", tmp_path / "=o|u*rs/../clean", "--names", "=o|u*rs", "太",
        "--metrics", "mse", "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 1 and "=o|u*rs: |lost|: is missing" in err and "\x1b" not in out + err
    rows = rows_of(tmp_path / "out/scores.csv")
    assert {name for name, _ in rows} == {"'=1+1", "'-\x1b[31m", *names[1:5], "x.y.z", "|lost|"}
    assert {system for _, system in rows} == {"'=o|u*rs", "太"}
    assert strict_json(tmp_path / "out/scores.json")["systems"] == ["=o|u*rs", "太"]
    text = (tmp_path / "out/scores.md").read_text(encoding="utf-8")
    table = text.split("\n\n")[0].splitlines()
    assert "| =o\\|u\\*rs |" in table[2] and len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "\x1b" not in text and (tmp_path / "out/scores.png").stat().st_size > 5000


def test_systems_that_do_not_differ_are_marked(folders, tmp_path):
    for i, name in enumerate("abcdefgh"):
        clean = voice(i, 1000)
        write(tmp_path / f"clean/{name}.wav", clean)
        for system, decibels in (("one", 10 + i % 2), ("other", 10.1 + (i + 1) % 2), ("bad", i % 3)):
            write(tmp_path / f"{system}/{name}.wav", with_noise(clean, decibels, i))
    scores = evaluate(tmp_path / "clean", [tmp_path / name for name in ("bad", "one", "other")], ["si_sdr"])
    assert [(mean.system, mean.best, mean.tied) for mean in scores.means()] == [
        ("bad", False, False), ("one", False, True), ("other", True, False),
    ]  # fmt: skip
    assert "†" in scores.table() and "Bold: the best mean; †" in scores.table()
    pairs = scores.comparisons()["si_sdr"]
    assert [(pair.first, pair.second) for pair in pairs] == [("other", "one"), ("other", "bad"), ("one", "bad")]
    assert pairs[1].wilcoxon_holm == pytest.approx(3 * 2**-7)


def test_one_folder_single_files_and_packages_beside(folders, tmp_path, capsys):
    """Loudness in JAX and by pyloudnorm, without a reference; and two files of other names."""
    scores = evaluate(None, folders / "noisy", ["loudness", "peak", "lufs"])
    for row in scores.rows:
        assert abs(row.scores["loudness"] - row.scores["lufs"]) < 0.05
        peak = 20 * np.log10(np.abs(read_audio(row.pair.estimate)).max())
        assert abs(row.scores["peak"] - peak) < 1e-4
    code, out, _ = command(capsys, folders / "noisy")
    assert code == 0 and "loudness (LUFS)" in out and "peak (dB)" in out and "si_sdr" not in out
    code, out, _ = command(capsys, folders / "noisy", folders / "better", "--reference-free", "--metrics", "peak")
    assert code == 0 and "better - noisy" in out
    one = evaluate(folders / "clean/a.wav", folders / "noisy/b.1.wav", ["si_sdr", "frechet_log_mel"])
    assert one.rows[0].pair.name == "a" and one.systems == ("b.1.wav",) and np.isnan(one.means()[0].interval.low)
    assert "at least 2 sounds" in one.distances[0].reason and "frechet_log_mel is not known" in str(one)


@pytest.mark.slow
def test_processes_give_what_one_gives(folders):
    alone = evaluate(folders / "clean", folders / "noisy", ["lufs", "snr"])
    beside = evaluate(folders / "clean", folders / "noisy", ["lufs", "snr"], workers=2)
    assert [row.scores for row in alone.rows] == [row.scores for row in beside.rows]


def test_mistakes_are_said_in_one_sentence(folders, tmp_path, capsys):
    clean, noisy = folders / "clean", folders / "noisy"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "others/z.wav", voice(1, 500))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scores.md").touch()
    for code, arguments, told in (
        (2, (clean, noisy, "--metrics", "si_sdrr"), "there is no measure si_sdrr; did you mean si_sdr? There are mse,"),
        (2, ("--metrics", "snr", clean, noisy), "give the folders before --metrics"),
        (2, (), "no folders"),
        (2, (noisy, "--metrics", "snr"), "snr needs references, and none are given; without them there are loudness"),
        (2, (clean, noisy, "--metrics", "frechet_mtt_vgg"), "musicnn"),
        (2, (clean, tmp_path / "gone"), "gone: no such file or folder"),
        (2, (clean, noisy, "--out", tmp_path / "out"), "scores.md: exists"),
        (2, (clean, noisy, "--out", clean / "a.wav"), "a.wav: is a file"),
        (2, (clean, noisy, noisy), "is given twice"),
        (2, (clean, noisy, "--names", "a", "b"), "expected one for each of 1 systems, got 2"),
        (2, (clean, noisy, "--names", "reference"), "cannot be called reference"),
        (2, (clean, noisy / "a.wav"), "is a file beside folders"),
        (2, (clean, noisy, "--transcripts", tmp_path / "gone"), "is no folder"),
        (2, (clean, noisy, "--rate", "3"), "--rate: expected at least 100"),
        (1, (clean, tmp_path / "empty"), "holds no sound files"),
        (1, (clean, tmp_path / "others"), "none of its files has the name of a reference"),
    ):
        got, _, err = command(capsys, *arguments)
        assert got == code and told in err and err.count("\n") == 1, (arguments, err)
    code, out, _ = command(capsys, "--list")
    assert code == 0 and all(name in out for name in catalogue())
    assert evaluate(clean, tmp_path / "others", ["kernel_log_mel"]).distances[0].reason  # sets need no names


def test_a_measure_that_cannot_be_is_a_problem_of_its_files_alone(folders, monkeypatch):
    """Below 4 kHz no loudness is defined; and sounds may be too long for memory."""
    scores = evaluate(folders / "clean", folders / "noisy", ["mse", "loudness_error"], rate=3000)
    assert all("loudness_error" in row.failed and row.scores["mse"] > 0 for row in scores.rows)
    assert len(scores.problems) == 6 and "loudness_error: " in scores.problems[0].reason
    (line,) = left_out(scores)
    assert line.startswith("noisy: 6 files, such as a: loudness_error: ")
    assert "loudness_error ↓ (LU)" in scores.table() and "| - |" in scores.table()
    monkeypatch.setattr(batches, "LONGEST", 4096)
    scores = evaluate(folders / "clean", folders / "noisy", ["mse"])
    assert {problem.name for problem in scores.problems} == {"a", "deep/c", "f"} and len(scores.rows) == 3
    assert "at most 1 s are compared; cut it" in scores.problems[0].reason


def test_an_interruption_keeps_what_is_done(folders, tmp_path, capsys, monkeypatch):
    def stop(done, steps):
        assert steps == 12
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        evaluate(folders / "clean", [folders / "noisy", folders / "better"], ["snr"], tell=stop)
    scores = stopped.value.scores
    assert len(scores.rows) == 4 and not scores.settings["complete"]
    from rich.progress import Progress

    monkeypatch.setattr(Progress, "update", lambda self, task, **options: stop(options["completed"], options["total"]))
    code, _, err = command(
        capsys, folders / "clean", folders / "noisy", folders / "better", "--metrics", "snr", "--out", tmp_path
    )
    assert code == 130 and "4 are in" in err and [path.name for path in tmp_path.iterdir()] == ["scores.csv"]
    assert len(rows_of(tmp_path / "scores.csv")) == 4


def test_delays():
    y = voice(1, 6000)
    late = np.concatenate([np.zeros(123), y])[:6000]
    assert batches.lag(y, late, RATE) == 123 and batches.lag(late, y, RATE) == -123
    assert batches.lag(y, -late, RATE) == 123 and batches.lag(y, with_noise(y, 0, 1), RATE) == 0
    assert batches.lag(y, np.random.default_rng(1).standard_normal(6000), RATE) == 0
    assert batches.lag(y[:1], y[:1], RATE) == 0 and batches.lag(y, np.zeros(6000), RATE) == 0


def test_the_tables_of_the_document_are_all_measures():
    from pathlib import Path

    text = (Path(__file__).parent.parent / "docs/evaluate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|", text, re.MULTILINE)
    found = {name: tuple(map(str.strip, cells)) for name, *cells in rows}
    better = {True: "higher", False: "lower", None: "neither"}
    told = {
        name: (metric.unit, better[metric.higher_is_better], metric.package)
        for name, metric in catalogue().items()
        if metric.kind != "set"
    }
    assert found == told


def test_a_folder_without_any_pair_says_why(folders, tmp_path):
    (tmp_path / "ours").mkdir()
    for name in ("a", "f"):
        (tmp_path / f"ours/{name}.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match="ours: none of its files can be compared .*not a sound file"):
        evaluate(folders / "clean", tmp_path / "ours", ["mse"])


def test_measures_of_packages_get_whole_or_common_sounds_and_transcripts(folders, tmp_path, monkeypatch):
    """The length that a measure is given, the words, and what it raises: a fault costs one score."""
    from jaxdiff.evaluation import folders as matching
    from jaxdiff.evaluation.external import ExternalMeasure

    def fail(reference, estimate, sr):
        raise RuntimeError("no luck")

    def toy(function, transcript=False):
        return ExternalMeasure(function, "", True, True, "toy", None, transcript)

    toys = {
        "pesq": toy(lambda r, e, sr: len(r) + len(e) / 1e6),
        "speaker_similarity": toy(lambda r, e, sr: len(r) + len(e) / 1e6),
        "word_error_rate": toy(lambda r, e, sr, transcript="none": len(transcript), True),
        "fails": toy(fail),
    }
    monkeypatch.setattr(batches, "EXTERNAL", toys)
    write(tmp_path / "a/x.wav", voice(1, 900))
    write(tmp_path / "b/x.wav", voice(1, 1000))
    (tmp_path / "x.txt").write_text("nine words", encoding="utf-8")
    files = matching.find(tmp_path / "a", {"b": tmp_path / "b"})
    (pair,) = matching.match(files, None, tmp_path).pairs
    scores, failed = batches._outside([*toys], pair)
    assert scores == {"pesq": 900.0009, "speaker_similarity": 900.001, "word_error_rate": 10}
    assert failed == {"fails": "RuntimeError: no luck"}
    scores, failed = batches._outside(["word_error_rate"], pair._replace(transcript=tmp_path / "y.txt"))
    assert not scores and "y.txt cannot be read" in failed["word_error_rate"]
    assert batches._outside(["word_error_rate"], pair._replace(transcript=None))[0] == {"word_error_rate": 4}
