"""Damage for training, and the guesses that repair begins with: what is said to be whole is, and the rest fits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.tasks.damage import CONTEXT, NOISE, Damage, _coded, guess_band, guess_gap, low_pass

FAST_COMPILE = {"xla_backend_optimization_level": 0}
SR, SAMPLES = 8000, 8192


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def damaged(damage, wave, key):
    return damage(wave, sr=SR, key=key)


def tones(count, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(SAMPLES) / SR
    parts = [0.1 * np.sin(2 * np.pi * f * t + p) for f, p in zip(rng.uniform(100, 3000, 5), range(5), strict=True)]
    return (np.sum(parts, 0) * np.linspace(0.5, 1, count)[:, None]).astype(np.float32)


ALL = Damage(gaps=0.25, clipped=0.25, band_limited=0.25, coded=0.25, cutoff_high=3500.0)
NONE = Damage(gaps=0.0, clipped=0.0, band_limited=0.0, coded=0.0)


def test_each_share_of_a_batch_has_its_damage_and_nothing_else():
    wave = tones(8)
    found = damaged(ALL, jnp.asarray(wave), jax.random.key(0))
    lost, clipped = np.asarray(found.lost), np.asarray(found.clipped)
    assert (lost.max(-1) > 0).tolist() == [True] * 2 + [False] * 6
    assert clipped.any(-1).tolist() == [False] * 2 + [True] * 2 + [False] * 4
    assert (np.asarray(found.cutoff) < SR / 2).tolist() == [False] * 4 + [True] * 2 + [False] * 2
    assert np.asarray(found.coded).tolist() == [False] * 6 + [True] * 2
    for guess in found.guess:
        assert (np.asarray(guess)[:2][lost[:2] == 0] == wave[:2][lost[:2] == 0]).all()
        assert (np.asarray(guess)[2:4][~clipped[2:4]] == wave[2:4][~clipped[2:4]]).all()


def test_clipped_samples_are_cut_at_one_level_that_none_exceeds():
    found = damaged(dataclasses.replace(NONE, clipped=1.0), jnp.asarray(tones(4)), jax.random.key(1))
    for y, clipped in zip(np.asarray(found.guess.expected), np.asarray(found.clipped), strict=True):
        level = np.abs(y).max()
        assert (np.abs(y[clipped]) == level).all()
        assert 0.003 * 0.5 < clipped.mean() < 0.4


def test_gaps_have_the_lengths_that_are_asked_for():
    damage = dataclasses.replace(NONE, gaps=1.0, gap_shortest=0.01, gap_longest=0.1)
    found = damaged(damage, jnp.asarray(tones(8)), jax.random.key(2))
    for lost in np.asarray(found.lost) > 0:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], lost, [0]])))
        lengths = np.diff(edges)[::2]
        assert len(lengths) == 3
        assert (lengths >= 0.01 * SR - 2).all() and (lengths <= 0.1 * SR).all()


def test_whole_sounds_stay_whole_and_silence_is_no_nan():
    wave = tones(4)
    found = damaged(NONE, jnp.asarray(wave), jax.random.key(0))
    assert (np.asarray(found.guess.expected) == wave).all() and (np.asarray(found.guess.drawn) == wave).all()
    silent = damaged(ALL, jnp.zeros((8, SAMPLES)), jax.random.key(0))
    assert all(np.isfinite(np.asarray(y, np.float64)).all() for y in jax.tree.leaves(silent))


def test_steady_tones_are_guessed_through_a_gap():
    wave = tones(2, seed=3)
    broken = wave.copy()
    broken[:, 3000:3400] = 0
    start, length = jnp.array([3000, 3000]), jnp.array([400, 400])
    guess = guess_gap(jnp.asarray(broken), start, length, jax.random.key(0), longest=512)
    error = np.asarray(guess.expected) - wave
    assert 10 * np.log10((wave[:, 3000:3400] ** 2).sum() / (error[:, 3000:3400] ** 2).sum()) > 15
    assert (np.asarray(guess.expected)[:, :3000] == wave[:, :3000]).all()
    assert (np.asarray(guess.expected)[:, 3400:] == wave[:, 3400:]).all()


def test_a_gap_in_noise_is_drawn_with_noise_of_its_level():
    wave = np.random.default_rng(0).standard_normal((4, SAMPLES)).astype(np.float32)
    start, length = jnp.full(4, 2000), jnp.full(4, 2000)
    guess = guess_gap(jnp.asarray(wave), start, length, jax.random.key(0), longest=2048)
    added = np.asarray(guess.drawn - guess.expected)
    assert 0.8 * NOISE < added[:, 2200:3800].std() < 1.3 * NOISE
    assert np.asarray(guess.expected)[:, 2200:3800].std() < 0.6
    assert CONTEXT < 2000


def test_the_low_pass_takes_what_lies_above_and_leaves_what_lies_below():
    t = np.arange(SAMPLES) / SR
    low, high = np.sin(2 * np.pi * 500 * t), np.sin(2 * np.pi * 2500 * t)
    y = low_pass(jnp.asarray(low + high, jnp.float32)[None], jnp.array([2000.0]), 0.1, SR)
    assert np.abs(np.asarray(y)[0] - low).max() < 1e-3


def test_a_lost_band_is_guessed_above_the_cut_off_only():
    wave = low_pass(jnp.asarray(tones(2)), jnp.array([1000.0, 1000.0]), 0.05, SR)
    guess = guess_band(wave, jnp.array([1000.0, 1000.0]), SR, jax.random.key(0))
    for y in guess:
        added = np.abs(np.fft.rfft(np.asarray(y - wave)))
        f = np.fft.rfftfreq(SAMPLES, 1 / SR)
        assert added[:, f < 960].max() < 1e-2 < added[:, f > 1100].max()


def test_a_coder_of_few_bits_leaves_noise_below_the_sound():
    wave = jnp.asarray(tones(2))
    coded = np.asarray(jax.jit(_coded)(wave, jax.random.key(0)))
    ratio = 10 * np.log10((np.asarray(wave) ** 2).sum() / ((coded - np.asarray(wave)) ** 2).sum())
    assert 3 < ratio < 25
    assert coded.shape == wave.shape


def test_what_a_real_coder_made_takes_the_place_of_the_imitation():
    wave, coded = tones(4), np.random.default_rng(0).standard_normal((4, SAMPLES)).astype(np.float32)
    damage = dataclasses.replace(NONE, coded=0.5)
    found = damage(jnp.asarray(wave), sr=SR, key=jax.random.key(0), coded=jnp.asarray(coded))
    assert (np.asarray(found.guess.expected)[:2] == coded[:2]).all()
    assert (np.asarray(found.guess.expected)[2:] == wave[2:]).all()
    assert (np.asarray(found.guess.drawn) == np.asarray(found.guess.expected)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(gap_shortest=0.6), "gap_shortest 0.6 is above gap_longest 0.5; exchange them"),
        (dict(gaps=0.9), "add up to more than 1"),
        (dict(cutoff_low=9000.0), "cutoff_low 9000.0 is above cutoff_high 7000.0; exchange them"),
    ],
)
def test_damage_that_contradicts_itself_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Damage(**options)
