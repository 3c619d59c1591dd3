"""Mixtures for training: the ratios, levels and shares that are asked for are those that are found in the sound."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.tasks.mixtures import Mixture, active_power

FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these programs run a few times: compiling them is the cost
SR, SAMPLES = 8000, 8000
SPOKEN = 6400  # samples of `speech_like`, whole frames of 100 ms; silence follows
PLAIN = Mixture(  # speech and one recording, added
    noises=1,
    colored=0.0,
    babble=0.0,
    clipped=0.0,
    equalized=0.0,
    rooms=0.0,
    band_limited=0.0,
    noise_only=0.0,
    clean_only=0.0,
)


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def _mixed(mixture, speech, noise, key):
    return mixture(speech, noise, sr=SR, key=key)


def mixed(mixture, speech, noise, seed=0):
    """Noisy and clean sounds; one program for each mixture and shape."""
    pair = _mixed(mixture, jnp.asarray(speech, jnp.float32), jnp.asarray(noise, jnp.float32), jax.random.key(seed))
    return np.asarray(pair.noisy), np.asarray(pair.clean)


def speech_like(count, seed=0):
    """Noise that is 10 dB softer in the second half and silent at the end."""
    speech = 0.1 * np.random.default_rng(seed).standard_normal((count, SAMPLES))
    speech[:, SAMPLES // 2 :] *= 10**-0.5
    speech[:, SPOKEN:] = 0
    return speech


def noise_like(count, seed=1):
    return 0.3 * np.random.default_rng(seed).standard_normal((count, SAMPLES))


def sines(bins, level=0.1):
    return level * np.sin(2 * np.pi * np.outer(bins, np.arange(SAMPLES)) / SAMPLES)


def power(y):
    return (np.asarray(y, np.float64) ** 2).mean(-1)


def db(x):
    return 10 * np.log10(np.maximum(x, 1e-12))


# --- Ratios and levels ---


def test_power_is_that_of_the_frames_in_which_somebody_speaks():
    y = np.zeros((4, SAMPLES))
    y[0] = 0.5
    y[1, :2400] = 0.1  # three frames of 100 ms
    y[2, :800], y[2, 800:1600], y[2, 1600:2400] = 0.1, 1.1e-3, 0.9e-3  # 39.2 dB below the loudest counts, 40.9 does not
    found = active_power(jnp.asarray(y, jnp.float32), SR)[:, 0]
    np.testing.assert_allclose(found, [0.25, 0.01, (0.01 + 1.21e-6) / 2, 0], rtol=1e-5)
    np.testing.assert_allclose(active_power(jnp.full((1, 30), 0.5), SR), [[0.25]])  # shorter than a frame


def test_the_ratio_is_that_of_active_speech_and_noise_and_the_level_the_mixture_s():
    mixture = dataclasses.replace(PLAIN, snr_low=7.0, snr_high=7.0, level_low=-33.0, level_high=-33.0)
    speech, noise = speech_like(6), noise_like(6)
    for louder in (1.0, 0.01):  # the recordings' own levels do not matter
        noisy, clean = mixed(mixture, speech * louder, noise / louder)
        np.testing.assert_allclose(db(power(clean[:, :SPOKEN]) / power(noisy - clean)), 7.0, atol=1e-3)
        np.testing.assert_allclose(db(power(noisy)), -33.0, atol=1e-3)
    for y, x in zip(clean, speech, strict=True):
        assert max_relative(y / np.abs(y).max(), x / np.abs(x).max()) <= 1e-5


def test_nothing_is_louder_than_full_scale():
    mixture = dataclasses.replace(PLAIN, snr_low=7.0, snr_high=7.0, level_low=-3.0, level_high=-3.0)
    noisy, clean = mixed(mixture, speech_like(6), noise_like(6))
    np.testing.assert_allclose(np.abs(noisy).max(-1), 0.99, rtol=1e-5)
    np.testing.assert_allclose(db(power(clean[:, :SPOKEN]) / power(noisy - clean)), 7.0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("silent", ["speech", "noise", "both"])
def test_silence_gives_numbers(silent):
    mixture = Mixture(rooms=0.5)
    speech, noise = speech_like(4) * (silent == "noise"), noise_like(4) * (silent == "speech")
    noisy, clean = mixed(mixture, speech, noise)
    assert np.isfinite(noisy).all() and np.isfinite(clean).all()
    if silent == "both":
        assert not noisy.any() and not clean.any()
    elif silent == "speech":
        assert not clean.any() and (db(power(noisy)) > mixture.level_low - 0.01).sum() >= 2
    else:
        assert noisy.any()


# --- Shares ---


def test_shares_of_noises_are_those_of_many_mixtures():
    """Every voice and recording is a sine of its own, so that a spectrum says what a mixture is made of."""
    shares = dict(further=0.6, colored=0.3, babble=0.2, noise_only=0.2, clean_only=0.3)
    mixture = dataclasses.replace(PLAIN, noises=3, **shares)
    batch = 64
    voice, recording = 500 + 5 * np.arange(batch), 1000 + 5 * np.arange(batch)
    found = {name: [] for name in (*shares, "snr")}
    for seed in range(12):
        noisy, clean = mixed(mixture, sines(voice), sines(recording), seed)
        empty, alone = np.abs(clean).max(-1) == 0, np.abs(noisy - clean).max(-1) == 0
        assert not (empty & alone).any()
        assert ((db(power(noisy)) > -38.01) & (db(power(noisy)) < -13.99)).all()
        found["noise_only"].append(empty)
        found["clean_only"].append(alone)
        both = ~empty & ~alone
        snr = db(power(clean[both]) / power((noisy - clean)[both]))
        assert ((snr > -5.01) & (snr < 20.01)).all()
        found["snr"].append(snr)
        X = np.abs(np.fft.rfft(noisy - clean)) ** 2
        X /= np.maximum(X.max(-1, keepdims=True), 1e-20)
        of = lambda bins, by: X[np.arange(batch), np.roll(bins, by)]  # noqa: E731, B023 - of the item `by` places before
        voices = np.stack([of(voice, by) for by in range(1, 5)])
        crowd = voices.min(0) > 0.1  # all four at one level, and the loudest
        found["babble"].append(crowd[~alone])
        assert (of(voice, 0)[crowd & both] < 1e-3).all()  # none of them the item's own
        flat = np.median(X, -1) > 1e-9
        rest = ~alone & ~crowd
        found["colored"].append(flat[rest])
        pure = rest & ~flat
        for by in (1, 2):
            found["further"].append((of(recording, by) > 1e-6)[pure])
        assert (of(recording, 0)[pure] > 0.003).all()
        assert (of(recording, 3)[pure] < 1e-7).all()
    for name, share in shares.items():
        draws = np.concatenate(found[name])
        assert abs(draws.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(draws)), name
    snr = np.concatenate(found["snr"])
    assert snr.min() < -4 and snr.max() > 19 and abs(snr.mean() - 7.5) < 4 * 25 / np.sqrt(12 * len(snr))


@pytest.mark.slow
def test_shares_of_equalized_and_clipped_and_the_rooms_of_a_batch():
    mixture = dataclasses.replace(PLAIN, equalized=0.3, clipped=0.4, rooms=0.25)
    batch, found = 64, {"equalized": [], "clipped": []}
    speech = sines(np.full(batch, 300)) + sines(np.full(batch, 2000))
    for seed in range(8):
        noisy, clean = mixed(mixture, speech, sines(np.full(batch, 700)), seed)
        later = slice(SAMPLES // 2, None)  # where filters have settled
        X = np.abs(np.fft.rfft(clean[:, later]))
        changed = np.abs(X[:, 150] / X[:, 1000] - 1) > 1e-3
        assert changed[:16].all()  # the first quarter is in rooms
        found["equalized"].append(changed[16:])
        noise = (noisy - clean)[16:]
        found["clipped"].append(np.abs(noise[:, later]).max(-1) / np.sqrt(power(noise[:, later])) < 1.25)
    for name, values in found.items():
        share, draws = getattr(mixture, name), np.concatenate(values)
        assert abs(draws.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(draws)), name


# --- Rooms and bands ---


def test_the_target_is_the_early_part_of_the_room_and_stands_where_the_speech_stands():
    mixture = dataclasses.replace(PLAIN, rooms=1.0, clean_only=1.0)  # so that the mixture is the room alone
    click = np.zeros((8, SAMPLES))
    click[:, 800] = 0.5
    noisy, clean = mixed(mixture, click, noise_like(8))
    for wet, early in zip(noisy, clean, strict=True):
        peak = np.abs(early).max()
        assert np.abs(early).argmax() == 800
        assert np.abs(wet - early)[:1200].max() <= 1e-5 * peak  # all of the first 50 ms
        assert np.abs(early[1600:]).max() <= 1e-5 * peak  # and nothing after 100 ms ...
        assert np.abs(wet[1600:]).max() >= 1e-3 * peak  # ... where the room is still heard
        assert np.abs(early[:800]).max() <= 1e-5 * peak
    speech = speech_like(8)
    noisy, clean = mixed(mixture, speech, noise_like(8))
    for x, wet, early in zip(speech, noisy, clean, strict=True):
        for y in (wet, early):
            peak = np.abs(np.fft.irfft(np.fft.rfft(y, 2 * SAMPLES) * np.conj(np.fft.rfft(x, 2 * SAMPLES)))).argmax()
            assert peak == 0
        assert max_relative(wet, early) > 1e-2


def test_a_band_limit_cuts_both_alike():
    speech, noise = speech_like(8), noise_like(8)
    before = mixed(PLAIN, speech, noise)
    after = mixed(dataclasses.replace(PLAIN, band_limited=1.0), speech, noise)
    gains = [np.fft.rfft(a) / np.fft.rfft(b) for a, b in zip(after, before, strict=True)]
    for ours, clean in zip(*gains, strict=True):
        scale = np.abs(clean).max()  # of the level, which is set afterwards
        close = np.abs(ours - clean) <= 1e-3 * scale
        assert close.mean() > 0.99  # not in the few bins that happen to hold nothing
        gain = clean.real / np.median(clean.real[400:1200])
        assert np.abs(gain[400:1200] - 1).max() <= 0.01
        assert np.abs(gain[-10:]).max() <= 0.02 and abs(gain[0]) <= 0.25
    widths = {int((gain.real > 0.5 * gain.real[800]).sum()) for gain in gains[1]}
    assert len(widths) > 4  # each item has corners of its own


# --- Randomness ---


@pytest.mark.slow
def test_a_key_is_a_mixture():
    mixture, speech, noise = Mixture(rooms=0.5), speech_like(4), noise_like(4)
    first, again, other = (mixed(mixture, speech, noise, seed) for seed in (3, 3, 4))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert all((a != b).any(-1).all() for a, b in zip(first[:1], other[:1], strict=True))


@pytest.mark.slow
def test_an_item_hears_its_own_voice_and_the_noises_of_its_neighbours():
    mixture, speech, noise = dataclasses.replace(PLAIN, noises=3, further=1.0), speech_like(6), noise_like(6)
    noisy, clean = mixed(mixture, speech, noise)
    for other_speech, other_noise, heard in (
        (noise_like(6, seed=5), noise, [2]),
        (speech, noise_like(6, seed=5), [2, 3, 4]),
    ):
        mix = lambda a, b: np.where(np.arange(6)[:, None] == 2, a, b)  # noqa: E731
        changed, target = mixed(mixture, mix(other_speech, speech), mix(other_noise, noise))
        assert np.flatnonzero((np.abs(changed - noisy) > 1e-6).any(-1)).tolist() == heard
        moved = np.abs(target / power(target)[:, None] ** 0.5 - clean / power(clean)[:, None] ** 0.5) > 1e-4
        assert np.flatnonzero(moved.any(-1)).tolist() == ([2] if heard == [2] else [])


@pytest.mark.slow
def test_babble_of_a_small_batch_is_never_the_item_s_own_voice():
    mixture = dataclasses.replace(PLAIN, babble=1.0, snr_low=0.0, snr_high=0.0)
    noisy, clean = mixed(mixture, sines([500, 600]), sines([1000, 1100]))
    X = np.abs(np.fft.rfft(noisy - clean))
    assert X[0, 600] > 100 * X[0, 500] and X[1, 500] > 100 * X[1, 600]
    noisy, clean = mixed(mixture, sines([500]), sines([1000]))  # nobody else is there
    X = np.abs(np.fft.rfft(noisy - clean))
    assert X[0, 1000] > 100 * X[0, 500]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(snr_low=21.0), r"snr_low 21\.0 is above snr_high 20\.0; exchange them"),
        (dict(level_high=-40.0), r"level_low -38\.0 is above level_high -40\.0; exchange them"),
        (dict(rooms=1.5), "rooms: expected .*, got 1.5"),
        (dict(noises=0), "noises: expected .*, got 0"),
        (dict(noise_only=0.7, clean_only=0.5), "noise_only 0.7 and clean_only 0.5 are shares of the same items"),
    ],
)
def test_mistakes_get_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Mixture(**options)
