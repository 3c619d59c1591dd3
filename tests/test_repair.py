"""Repair: what was whole stays bit for bit, clipped samples stay beyond their level, and gaps are filled."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from oracles import drawn

from jaxdiff.cli.main import main
from jaxdiff.config import ConfigError, from_dict, model
from jaxdiff.diffusion import EDM
from jaxdiff.features import CompressedStft, Patches
from jaxdiff.inference import Pipeline, export, load
from jaxdiff.inference.faults import Fault
from jaxdiff.inference.interpolation import interpolate
from jaxdiff.inference.load import pipeline_of
from jaxdiff.inference.repair import Repairer, inner_parts, repairable
from jaxdiff.methods import Bridge, Diffusion, Model
from jaxdiff.methods.edit import Edit
from jaxdiff.networks import Network
from jaxdiff.tasks import Damaged, Guess, Repair, ZeroShot
from jaxdiff.tasks.repair import damaged_again, mended

SR = 8000
PAIR = CompressedStft(sample_rate=SR, n_fft=128, hop_length=64, exponent=0.3)
REPAIR = {
    "data": {"sample_rate": SR, "seconds": 0.512},
    "task": {"kind": "repair"},
    "representation": {"kind": "compressed_stft", "n_fft": 64, "hop_length": 32},
    "network": {"kind": "convnext", "width": 8, "depth": 1, "masks": True},
    "method": {"kind": "bridge"},
    "normalize": {"enabled": False},
    "sampling": {"steps": 1},
}
PRIOR = {
    **REPAIR,
    "task": {"kind": "generate", "peak_db": -6},
    "network": {"kind": "convnext", "width": 8, "depth": 1},
    "method": {"kind": "diffusion", "schedule": {"kind": "edm"}, "prediction": "edm"},
    "sampling": {"steps": 2},
}


def untrained(tree):
    """A model that changes what it is given."""
    config = from_dict(tree)
    return pipeline_of(config, (), drawn(model(config, (), None).network, 0.05), None, step=1, fingerprint="f" * 64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return export(untrained(REPAIR), tmp_path_factory.mktemp("model") / "repair.safetensors")


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return export(untrained(PRIOR), tmp_path_factory.mktemp("model") / "prior.safetensors")


def music(samples, channels=1, seed=0, level=0.2, noise=0.2):
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / SR
    tones = sum(np.sin(2 * np.pi * f * t + i) / (i + 1) for i, f in enumerate((220, 331, 447, 1210)))
    return (level * (tones + noise * rng.standard_normal((channels, samples)))).astype(np.float32)


def broken(y, faults):
    y = y.copy()
    for fault in faults:
        place = y[fault.channel, fault.start : fault.stop]
        place[:] = np.sign(place) * fault.value if fault.kind == "clip" else 0
    return y


FAULTS = [
    Fault("gap", 0, 3000, 3400, 0.0),
    Fault("click", 0, 9000, 9012, 0.0),
    Fault("gap", 1, 20_000, 20_100, 0.0),
    Fault("clip", 1, 30_000, 30_004, 0.1),
    Fault("clip", 1, 30_020, 30_025, 0.1),
]

# --- The task ---


def damaged(**changes):
    wave = jnp.asarray(music(1024, 2))
    zeros = jnp.zeros_like(wave)
    plain = Damaged(Guess(wave, wave), zeros, zeros > 0, jnp.full(2, SR / 2), jnp.zeros(2, bool))
    return plain._replace(**changes)


def test_what_is_whole_comes_out_as_it_was_whatever_was_made():
    made = jnp.asarray(music(1024, 2, seed=5))
    whole = damaged()
    assert (mended(whole, made, SR) == whole.guess.expected).all()
    lost = jnp.zeros((2, 1024)).at[:, 300:400].set(1.0)
    out = np.asarray(mended(damaged(lost=lost), made, SR))
    assert np.abs(out[:, 300:400] - np.asarray(made)[:, 300:400]).max() < 1e-6
    outside = np.r_[:300, 400:1024]
    assert (out[:, outside] == np.asarray(whole.guess.expected)[:, outside]).all()


def test_clipped_samples_are_never_below_their_level():
    clipped = jnp.zeros((2, 1024), bool).at[:, 100:140].set(True)
    known = damaged(clipped=clipped)
    for made in (0 * known.lost, 3 * known.guess.expected, -known.guess.expected):
        out = np.asarray(mended(known, made, SR))
        assert (np.abs(out) >= np.abs(np.asarray(known.guess.expected))).all()
        assert (np.sign(out) == np.sign(np.asarray(known.guess.expected))).all()


def test_a_lost_band_is_added_and_the_rest_of_the_spectrum_kept():
    t = np.arange(2048) / SR
    low, high = (np.sin(2 * np.pi * f * t)[None].astype(np.float32) for f in (500, 3000))
    known = Damaged(
        Guess(*2 * [jnp.asarray(low)]),
        jnp.zeros((1, 2048)),
        jnp.zeros((1, 2048), bool),
        jnp.full(1, 1500.0),
        jnp.zeros(1, bool),
    )
    out = mended(known, jnp.asarray(0.3 * low + high), SR)
    assert np.abs(np.asarray(out) - low - high).max() < 2e-3


def test_a_sound_that_fits_would_have_been_damaged_to_what_is_there():
    y = jnp.asarray(music(2048, 1))
    clipped = jnp.abs(y) > 0.15
    lost = jnp.zeros_like(y).at[:, 500:700].set(1.0)
    known = Damaged(Guess(*2 * [jnp.clip(y, -0.15, 0.15)]), lost, clipped, jnp.full(1, SR / 2), jnp.zeros(1, bool))
    there = np.asarray(damaged_again(known, y, SR))
    assert np.abs(there - np.where(np.asarray(lost) > 0, 0, np.clip(y, -0.15, 0.15))).max() < 1e-6


def test_condition_frames_say_what_is_missing_where():
    lost = jnp.zeros((2, 1024)).at[0, 512:576].set(1.0)
    task = Repair()
    given = task._known(PAIR, damaged(lost=lost, cutoff=jnp.array([4000.0, 1000.0])))
    frames = np.asarray(given.cond.frames)
    assert frames.shape == (2, 17, task.needs(PAIR).condition_features)
    assert frames[0, :, 0].tolist() == [0.0] * 8 + [0.5, 0.5] + [0.0] * 7
    assert frames[0, 3, 4:].tolist() == [1.0] * 16
    assert frames[1, 3, 4:].tolist() == [1.0] * 4 + [0.0] * 12


def test_a_bridge_begins_with_the_draw_and_sees_what_is_expected():
    def apply(params, x_t, t, cond, **_):
        return x_t - 2 * cond.estimate

    wave = jnp.asarray(music(1024, 2))
    batch = {
        "wave": wave,
        "drawn": -wave,
        "lost": 0 * wave,
        "clipped": wave > 9,
        "cutoff": jnp.full(2, 4000.0),
        "coded": jnp.zeros(2, bool),
    }
    one = Model(Network(lambda key: {}, apply), PAIR, Repair())
    given = one.task.given(PAIR, batch, None)
    sample = Bridge().make_sample(one, Pipeline(one, Bridge(), {}).sampling, jnp.array([1.0, 0.0]))
    made = sample({}, given, jnp.zeros_like(PAIR.encode(wave)), jax.random.split(jax.random.key(0), 2))
    assert np.abs(np.asarray(made + 3 * PAIR.encode(wave))).max() < 1e-5


@pytest.mark.slow
def test_zero_shot_repair_puts_into_a_gap_what_the_prior_knows():
    """The exact denoiser of a constant with little noise."""
    frames = Patches(sample_rate=SR, size=64)

    def apply(params, x_t, t, cond, **_):
        level = 80.0 * t.reshape(-1, 1, 1) ** 7
        return (0.5 * level**2 + 1e-4 * x_t) / (level**2 + 1e-4)  # the denoiser of N(0.5, 0.01^2)

    method = Diffusion(schedule=EDM(), prediction="x0")
    one = Model(Network(lambda key: {}, apply), frames, ZeroShot())
    wave = jnp.full((1, 1024), 0.5)
    lost = jnp.zeros_like(wave).at[:, 300:500].set(1.0)
    batch = {
        "wave": wave * (1 - lost),
        "drawn": wave * (1 - lost),
        "lost": lost,
        "clipped": wave > 9,
        "cutoff": jnp.full(1, SR / 2),
        "coded": jnp.zeros(1, bool),
    }
    made = Pipeline(one, Edit(method, 1.0), {}).of_batch(batch, steps=16)
    assert np.abs(made - 0.5).max() < 0.06  # noise of deviation 0.01 stays


# --- Sounds ---


def test_parts_hold_every_fault_and_cut_none():
    rng = np.random.default_rng(0)
    starts = np.sort(rng.integers(0, 50_000, 300))
    apart = np.append(np.diff(starts), 300)
    for most_apart in (apart, np.full(300, 290)):  # of one channel, and of several
        lengths = rng.integers(1, most_apart.clip(2, 300))
        faults = [Fault("click", 0, int(a), int(a + n), 0.0) for a, n in zip(starts, lengths, strict=True)]
        parts = list(inner_parts(faults, 2000))
        inside = np.zeros(51_000, bool)
        for low, high in parts:
            inside[low:high] = True
        assert all(inside[f.start : f.stop].all() for f in faults)
        assert all(a[1] <= b[0] for a, b in zip(parts, parts[1:], strict=False))
        assert max(high - low for low, high in parts) <= 2000
        if most_apart is apart:
            assert all(any(low <= f.start and f.stop <= high for low, high in parts) for f in faults)


@pytest.mark.parametrize("method", ["trained", "zero-shot"])
def test_only_faulty_samples_are_changed(method, trained, prior):
    y = broken(music(40_000, 2), FAULTS)
    made = Repairer(method, trained=trained, prior=prior)(y, SR, FAULTS)
    faulty = np.zeros(y.shape, bool)
    for fault in FAULTS:
        faulty[fault.channel, fault.start : fault.stop] = True
    assert made.dtype == np.float32 and (made[~faulty] == y[~faulty]).all()
    for fault in FAULTS:
        place = made[fault.channel, fault.start : fault.stop]
        assert np.isfinite(place).all() and place.any()
        if fault.kind == "clip":
            assert (np.abs(place) >= fault.value).all()
    assert (Repairer(method, trained=trained, prior=prior)(y, SR, []) == y).all()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [11_025, 44_100])
def test_other_rates_keep_all_that_is_whole(rate, trained):
    y = broken(music(rate * 3), [Fault("gap", 0, rate, rate + rate // 10, 0.0)])
    faults = [Fault("gap", 0, rate, rate + rate // 10, 0.0), Fault("clip", 0, 5000, 5004, 0.01)]
    made = Repairer(trained=trained)(y, rate, faults)
    outside = np.ones(y.shape[-1], bool)
    outside[rate : rate + rate // 10] = outside[5000:5004] = False
    assert (made[0, outside] == y[0, outside]).all()
    assert made[0, rate : rate + rate // 10].any()


def test_a_gap_of_a_mono_array_is_filled_as_one_of_channels(trained):
    fault = Fault("gap", 0, 3000, 3400, 0.0)
    y = broken(music(16_000), [fault])
    alone = Repairer(trained=trained)(y[0], SR, [fault])
    assert alone.shape == (16_000,)
    both = Repairer(trained=trained)(np.concatenate([y, y]), SR, [fault, fault._replace(channel=1)])
    assert (both[0] == alone).all() and (both[1] == alone).all()


def test_gaps_of_more_than_a_second_and_bands_above_the_models_are_left():
    faults = [Fault("gap", 0, 0, SR, 0.0), Fault("band", 0, 0, SR, 4000.0)]
    others = [Fault("gap", 0, 2 * SR, 3 * SR + 1, 0.0), Fault("band", 0, 0, SR, 7900.0)]
    assert repairable([*faults, *others], SR) == (tuple(faults), tuple(others))


def test_clicks_in_what_can_be_predicted_vanish():
    y = music(8000, noise=0.02)[0].astype(np.float64)
    clean, missing = y.copy(), np.zeros(8000, bool)
    for start in range(200, 7800, 160):
        missing[start : start + 12] = True
    y[missing] = 5.0
    made = interpolate(y, missing)
    assert (made[~missing] == y[~missing]).all()
    assert np.sqrt(((made - clean)[missing] ** 2).mean()) < 0.1 * clean.std()


def test_a_model_of_another_task_is_refused(trained, prior):
    with pytest.raises(ConfigError, match="give a model of task repair, or method zero-shot and a prior"):
        Repairer("trained", trained=load(prior)).pipeline("gap")
    with pytest.raises(ConfigError, match="is no prior of sound; give a model of task generate"):
        Repairer("zero-shot", prior=load(trained)).pipeline("gap")


# --- Files ---


def repair(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["repair", *map(str, arguments)])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_24"), ("wav", "FLOAT")])
def test_files_are_those_that_they_were_but_for_the_faults(kind, subtype, trained, tmp_path, capsys):
    y = broken(music(40_000, 2), FAULTS[:3])
    soundfile.write(tmp_path / f"a.{kind}", y.T, SR, subtype=subtype)
    gaps = [part for f in FAULTS[:1] for part in ("--gap", f"{f.start / SR}:{f.stop / SR}")]
    options = ["--model", trained, "--out", tmp_path / "o"]
    code, said, error = repair(capsys, tmp_path / f"a.{kind}", *gaps, *options)
    assert (code, error) == (0, "") and "800 of 80000 samples changed" in said
    before, after = (soundfile.read(p, dtype="int32")[0] for p in (tmp_path / f"a.{kind}", tmp_path / "o" / "a.wav"))
    if subtype == "FLOAT":
        before, after = (soundfile.read(p)[0] for p in (tmp_path / f"a.{kind}", tmp_path / "o" / "a.wav"))
    same = np.ones(40_000, bool)
    same[3000:3400] = False
    assert (before[same] == after[same]).all() and (before[~same] != after[~same]).any()
    sidecar = json.loads((tmp_path / "o" / "a.json").read_text())
    assert sidecar["changed"] == 800 and sidecar["others_identical"]
    assert sidecar["models"]["gap"]["checkpoint"]["sha256"] and sidecar["seed"] == 0
    assert soundfile.info(tmp_path / "o" / "a.wav").subtype == subtype
    assert (tmp_path / "o" / "a.png").stat().st_size > 1000


@pytest.mark.slow
def test_faults_are_found_reported_and_repaired_and_a_whole_file_comes_out_identical(trained, tmp_path, capsys):
    y = music(40_000)
    y[0, 12_000:12_400] = 0
    soundfile.write(tmp_path / "a.wav", y.T, SR)
    soundfile.write(tmp_path / "whole.wav", music(40_000).T, SR)
    options = ["--model", trained, "--out", tmp_path / "o"]
    code, said, _ = repair(capsys, tmp_path / "a.wav", "--report", *options)
    assert code == 0 and "1 drop-out" in said and not (tmp_path / "o" / "a.wav").exists()
    assert json.loads((tmp_path / "o" / "a.json").read_text())
    code, said, _ = repair(capsys, tmp_path / "a.wav", tmp_path / "whole.wav", *options, "--overwrite")
    assert code == 0 and "400 of 40000 samples changed" in said and "0 of 40000 samples changed" in said
    files = tmp_path / "whole.wav", tmp_path / "o" / "whole.wav"
    before, after = (soundfile.read(path, dtype="int16")[0] for path in files)
    assert (before == after).all()


@pytest.mark.slow
def test_a_channel_that_has_its_band_is_left_alone(trained):
    y = music(SR * 3, 2)
    made = Repairer(trained=trained)(y, SR, [Fault("band", 1, 0, SR * 3, 2000.0)])
    assert (made[0] == y[0]).all() and (made[1] != y[1]).any()


@pytest.mark.slow
def test_a_lost_band_is_made_for_the_whole_file(trained, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", music(SR * 5, 2).T, SR)
    code, said, error = repair(capsys, tmp_path / "a.wav", "--extend", "2000", "--model", trained, "--out", tmp_path)
    assert code == 2 and "exists" in error
    options = ["--model", trained, "--out", tmp_path / "o"]
    code, said, error = repair(capsys, tmp_path / "a.wav", "--extend", "2000", *options)
    assert (code, error) == (0, "")
    before, after = (soundfile.read(p)[0] for p in (tmp_path / "a.wav", tmp_path / "o" / "a.wav"))
    assert before.shape == after.shape
    spectra = [np.abs(np.fft.rfft(y[:, 0])) for y in (before, after)]
    f = np.fft.rfftfreq(len(before), 1 / SR)
    low = np.abs(spectra[0] - spectra[1])[f < 1800].max() / spectra[0].max()
    assert low < 1e-3 < np.abs(spectra[0] - spectra[1])[f > 2100].max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gap", "1"], "--gap 1: expected START:END in seconds"),
        (["--gap", "2:1"], "--gap 2:1: START must not be below 0 and END must be later"),
        (["--gap", "1:99"], "ends at 2.000 s; give an earlier END"),
        (["--extend", "1000", "2000"], "expected one cut-off in Hz, or none to find it"),
    ],
)
def test_mistakes_are_told_in_one_sentence(arguments, message, trained, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", music(16_000).T, SR)
    code, _, error = repair(capsys, tmp_path / "a.wav", *arguments, "--model", trained, "--out", tmp_path / "o")
    assert code == 2 and message in error and error.count("\n") == 1
