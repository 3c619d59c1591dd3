"""Augmentations against their definitions: SNR, decay times, spectra, levels, masks; one draw per item and key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from oracles import max_relative

from jaxdiff.features.augment import (
    Augmentation,
    add_noise,
    background_noise,
    bit_crush,
    clipping,
    colored_noise,
    compose,
    equalizer,
    frequency_masking,
    gain,
    high_pass,
    low_pass,
    mix_up,
    polarity_inversion,
    reverberation,
    room_response,
    shift,
    sometimes,
    speed,
    time_masking,
)
from jaxdiff.features.resample import change_speed

SR, KEY = 8000, jax.random.key(7)


def waves(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


RECORDINGS = jnp.asarray(waves(4, 900, seed=5))
EVERY = {
    "gain": gain(-12.0, 6.0),
    "polarity": polarity_inversion(),
    "shift": shift(-200, 300),
    "colored_noise": colored_noise(0.0, 20.0, -1.0, 2.0),
    "background_noise": background_noise(RECORDINGS, 0.0, 20.0),
    "reverberation": reverberation(0.05, 0.2, 0.0, 10.0, sr=SR),
    "high_pass": high_pass(50.0, 500.0, sr=SR),
    "equalizer": equalizer(-12.0, 12.0, sr=SR),
    "clipping": clipping(3.0, 20.0),
    "bit_crush": bit_crush(4, 10),
    "speed": speed(0.9, 1.1),
    "sometimes": sometimes(gain(6.0, 12.0), 0.5),
    "compose": compose(gain(-6.0, 6.0), sometimes(polarity_inversion(), 0.5), colored_noise(5.0, 10.0)),
    "time_masking": time_masking(20, count=2, value=-1.0),
}


def example(name: str, *lead: int) -> jnp.ndarray:
    return jnp.asarray(waves(*lead, *((12, 100) if EVERY[name].axes == 2 else (2000,))))


def snr(y, noisy) -> np.ndarray:
    y, noise = np.asarray(y, np.float64), np.asarray(noisy, np.float64) - np.asarray(y, np.float64)
    return 10 * np.log10((y**2).mean(-1) / (noise**2).mean(-1))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_batch_gives_what_its_items_give(name):
    run, y = jax.jit(EVERY[name]), example(name, 3)
    out = run(y, KEY)
    assert out.shape == y.shape and out.dtype == jnp.float32
    assert max_relative(out, np.stack([run(item, jax.random.fold_in(KEY, i)) for i, item in enumerate(y)])) <= 1e-6
    assert (out == run(y, KEY)).all()
    if name != "polarity":
        assert any((out != run(y, jax.random.key(seed))).any() for seed in (8, 9))
        same = run(jnp.broadcast_to(y[0], y.shape), KEY)  # equal sounds, different draws
        assert (same[1:] != same[0]).any()


def test_leading_axes_are_numbered_in_order():
    y, run = np.asarray(example("compose", 2, 3)), jax.jit(EVERY["compose"])
    assert max_relative(run(y, KEY).reshape(6, -1), run(y.reshape(6, -1), KEY)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_finite(name):
    y = example(name, 5) * jnp.array([0, 1e-39, 1e-20, 1, 1]).reshape(5, *[1] * EVERY[name].axes)
    y = y.at[3].set(0.5).at[4, ..., 1:].set(0)
    total, gradient = jax.jit(jax.value_and_grad(lambda y: EVERY[name](y, KEY).sum()))(y)
    assert np.isfinite(total) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["background_noise", "reverberation", "equalizer", "clipping", "speed"])
def test_gradients_equal_finite_differences(name):
    with jax.enable_x64(True):
        y, d = (jnp.asarray(waves(*example(name).shape, seed=seed).astype(np.float64)) for seed in (0, 1))
        f = jax.jit(jax.value_and_grad(lambda y: (jnp.tanh(EVERY[name](y, KEY)) ** 2).sum()))
        slope = (f(y + 1e-6 * d)[0] - f(y - 1e-6 * d)[0]) / 2e-6
        value, gradient = f(y)
        assert value.dtype == jnp.float64
        assert float(jnp.vdot(gradient, d)) == pytest.approx(float(slope), rel=1e-6, abs=1e-6)


def test_gain_and_polarity():
    y = jnp.asarray(waves(200, 50))
    db = 20 * np.log10(np.asarray(gain(-12.0, 6.0)(y, KEY) / y))
    assert np.ptp(db, axis=1).max() <= 1e-4
    assert -12 <= db.min() < -11 and 5 < db.max() <= 6
    assert (polarity_inversion()(y, KEY) == -y).all()


@pytest.mark.parametrize("roll", [False, True])
def test_shift_moves_by_whole_samples(roll):
    y = jnp.asarray(np.tile(np.arange(1.0, 51), (300, 1)), jnp.float32)
    out = np.asarray(shift(-3, 4, roll=roll)(y, KEY))
    seen = set()
    for item in out:
        by = next(b for b in range(-3, 5) if item[10] == y[0, 10 - b])
        expected = np.roll(y[0], by)
        if not roll:
            expected[: max(by, 0)], expected[50 + min(by, 0) :] = 0, 0
        assert (item == expected).all()
        seen.add(by)
    assert seen == set(range(-3, 5))


@pytest.mark.parametrize("snr_db", [-10.0, 25.0])
def test_snr_is_exact(snr_db):
    y = waves(3, 4000) * np.array([[1e-3], [1], [30]], np.float32)
    noise, add = waves(3, 4000, seed=1) + np.float32(0.5), jax.jit(add_noise)
    assert snr(y, add(y, noise, np.float32(snr_db))) == pytest.approx(snr_db, abs=1e-4)
    assert snr(y, jax.jit(colored_noise(snr_db, snr_db, 1.0, 1.0))(y, KEY)) == pytest.approx(snr_db, abs=1e-4)
    assert snr(y, jax.jit(background_noise(RECORDINGS, snr_db, snr_db))(y, KEY)) == pytest.approx(snr_db, abs=1e-4)
    each = np.array([0.0, 5.0, 10.0], np.float32)
    assert snr(y, add(y, noise, each)) == pytest.approx(np.asarray(each), abs=1e-4)


def test_noise_and_silence():
    zero, y = jnp.zeros(100), jnp.asarray(waves(100))
    assert (add_noise(zero, y, jnp.float32(0)) == 0).all()
    assert (add_noise(y, zero, jnp.float32(0)) == y).all()


@pytest.mark.parametrize("exponent", [-1.0, 1.0, 2.0])
def test_noise_has_the_slope_of_its_colour(exponent):
    y = jnp.asarray(waves(40, 4096) * 1e-3)
    noise = np.asarray(colored_noise(-40.0, -40.0, exponent, exponent)(y, KEY) - y, np.float64)
    power = (np.abs(np.fft.rfft(noise)) ** 2).mean(0)[1:-1]
    slope = np.polyfit(np.log(np.arange(1, 2048)), np.log(power), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.03)
    assert np.abs(noise.mean(-1)).max() <= 1e-5


def test_background_noise_repeats_a_recording_from_any_sample():
    y = jnp.ones((30, 2000))
    noise = np.asarray(background_noise(RECORDINGS, 0.0, 0.0)(y, KEY) - y)
    assert max_relative(noise[:, 900:], noise[:, :1100]) <= 1e-6
    spectra = np.abs(np.fft.rfft(noise[:, :900]))
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    bank = np.abs(np.fft.rfft(RECORDINGS))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    match = spectra @ bank.T
    assert match.max(1).min() > 0.9999 and set(match.argmax(1)) == {0, 1, 2, 3}


@pytest.mark.parametrize(("rt60", "drr_db"), [(0.3, 0.0), (0.8, 10.0)])
def test_room_has_its_decay_time_and_ratio(rt60, drr_db):
    make = lambda key: room_response(jnp.float32(rt60), jnp.float32(drr_db), sr=16000, samples=16000, key=key)  # noqa: E731
    h = np.asarray(jax.vmap(make)(jax.random.split(KEY, 20)), np.float64)
    assert (h[:, 0] == 1).all()
    assert -10 * np.log10((h[:, 1:] ** 2).sum(1)) == pytest.approx(drr_db, abs=1e-3)
    energy = (h[:, 1:] ** 2).mean(0)[::-1].cumsum()[::-1]  # Schroeder's backward integration
    decay = 10 * np.log10(energy / energy[0])
    fit = (decay < -5) & (decay > -30)
    slope = np.polyfit(np.flatnonzero(fit) / 16000, decay[fit], 1)[0]
    assert -60 / slope == pytest.approx(rt60, rel=0.02)


def test_reverberation_keeps_the_direct_sound():
    impulse = jnp.zeros((50, 3000)).at[:, 100].set(1.0)
    out = np.asarray(reverberation(0.1, 0.3, 3.0, 9.0, sr=SR)(impulse, KEY), np.float64)
    assert np.abs(out[:, :100]).max() <= 1e-6 and np.abs(out[:, 100] - 1).max() <= 1e-6
    ratio = -10 * np.log10((out[:, 101:] ** 2).sum(1))
    assert 3 <= ratio.min() < 4 and 8 < ratio.max() <= 9 + 1e-3


@pytest.mark.parametrize(("make", "kind"), [(low_pass, "lowpass"), (high_pass, "highpass")])
def test_passes_are_butterworth(make, kind):
    y = waves(4000)
    ours = make(1000.0, 1000.0, sr=SR)(jnp.asarray(y), KEY)
    sos = scipy.signal.butter(2, 1000, kind, fs=SR, output="sos")
    assert max_relative(ours, scipy.signal.sosfilt(sos, y.astype(np.float64))) <= 1e-5
    corners = []
    impulse = jnp.zeros((100, 4000)).at[:, 0].set(1.0)
    for h in np.asarray(make(200.0, 2000.0, sr=SR)(impulse, KEY)):
        inside = np.abs(np.fft.rfft(h)) >= 2**-0.5
        corners.append(2 * (inside if make is low_pass else ~inside).sum())  # bins of 2 Hz
    assert 190 <= min(corners) < 220 and 1800 < max(corners) <= 2010
    assert np.median(corners) == pytest.approx(np.sqrt(200 * 2000), rel=0.3)


def test_equalizer_stays_within_its_gains():
    impulse = np.zeros((50, 8000), np.float32)
    impulse[:, 0] = 1
    out = np.abs(np.fft.rfft(np.asarray(jax.jit(equalizer(-6.0, 6.0, sr=SR, peaks=0))(impulse, KEY), np.float64)))
    db = 20 * np.log10(out)
    assert np.abs(db).max() <= 12 and np.abs(db[:, 0]).max() <= 6.01 and np.abs(db[:, 0]).max() > 4
    flat = jax.jit(equalizer(0.0, 0.0, sr=SR))(impulse, KEY)
    assert max_relative(flat, impulse) <= 1e-6
    bell = jax.jit(equalizer(6.0, 6.0, sr=SR, low_hz=1000.0, high_hz=1000.0, peaks=2))(impulse[0], KEY)
    at = 20 * np.log10(np.abs(np.fft.rfft(bell))[[0, 1000, 4000]])
    assert at == pytest.approx([6, 3 + 12 + 3, 6], abs=0.01)  # at its corner a shelf has half its gain


def test_clipping_is_at_its_level():
    y = jnp.asarray(waves(100, 500))
    out = np.asarray(clipping(3.0, 12.0)(y, KEY))
    db = 20 * np.log10(np.abs(y).max(1) / np.abs(out).max(1))
    assert 3 - 1e-3 <= db.min() < 3.5 and 11.5 < db.max() <= 12 + 1e-3
    limit = np.abs(out).max(1, keepdims=True)
    assert (out == np.clip(y, -limit, limit)).all()


@pytest.mark.parametrize("bits", [1, 4])
def test_bit_crush_has_its_levels(bits):
    y = jnp.asarray(np.linspace(-1.2, 1.2, 5000), jnp.float32)
    out = np.asarray(bit_crush(bits, bits)(y, KEY), np.float64)
    step = 2.0 ** (1 - bits)
    assert (out / step == np.round(out / step)).all() and out.min() == -1 and out.max() == 1 - step
    inside = (y > -1) & (y < 1 - step)
    assert np.abs(out - y)[inside].max() <= step / 2
    if bits == 4:
        assert len(np.unique(out)) == 16
    assert (jax.grad(lambda y: bit_crush(bits, bits)(y, KEY).sum())(y) == 1).all()


def test_speed_is_a_change_of_speed():
    y = jnp.asarray(waves(2000))
    assert max_relative(speed(1.07, 1.07)(y, KEY), change_speed(y, jnp.float32(1.07), fastest=1.07)) <= 1e-6
    assert max_relative(speed(1.0, 1.0)(y * 0 + 1, KEY)[100:-100], np.ones(1800)) <= 1e-5


@pytest.mark.parametrize(("make", "axis", "size"), [(time_masking, 2, 100), (frequency_masking, 1, 40)])
def test_masks_have_their_widths_and_places(make, axis, size):
    S = np.ones((4000, 40, 100), np.float32)
    masked = np.asarray(jax.jit(make(10, value=-7.0))(S, KEY)) == -7
    runs = masked.any(3 - axis)
    assert (runs == masked.all(3 - axis)).all()
    widths = runs.sum(1)
    assert np.bincount(widths, minlength=11) / 4000 == pytest.approx(1 / 11, abs=0.02)
    assert (np.abs(np.diff(np.pad(runs, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1) <= 2).all()
    wide = widths == 10
    starts = runs[wide].argmax(1)
    assert starts.min() == 0 and starts.max() == size - 10
    assert starts.mean() == pytest.approx((size - 10) / 2, rel=0.1)
    twice = (np.asarray(jax.jit(make(10, count=2))(S[:500], KEY)) == 0).any(3 - axis).sum(1)
    assert 10 < twice.max() <= 20


def test_sometimes_has_its_probability_and_compose_its_order():
    y = jnp.ones((2000, 4))
    flipped = np.asarray(sometimes(polarity_inversion(), 0.3)(y, KEY))[:, 0] < 0
    assert flipped.mean() == pytest.approx(0.3, abs=0.03)
    add, double = Augmentation(lambda y, key: y + 1), Augmentation(lambda y, key: 2 * y)
    assert (compose(add, double)(y, KEY) == 4).all() and (compose(double, add)(y, KEY) == 3).all()


def test_channels_can_share_a_draw():
    y = jnp.asarray(waves(5, 2, 300))
    out = jax.vmap(gain(-12.0, 12.0), (1, None), 1)(y, KEY)
    ratio = np.asarray(out / y)
    assert np.ptp(ratio, axis=(1, 2)).max() <= 1e-5 and np.ptp(ratio[:, 0, 0]) > 0.1


@pytest.mark.slow
def test_mix_up_mixes_partners():
    y = waves(1000, 3, 2)
    mix = jax.jit(lambda y: mix_up(y, alpha=0.4, key=KEY))
    mixed = mix(y)
    weight = np.asarray(mixed.weight)
    share = weight[:, None, None]
    assert max_relative(mixed.y, share * y + (1 - share) * y[np.asarray(mixed.partner)]) <= 1e-6
    assert sorted(mixed.partner.tolist()) == list(range(1000))
    assert weight.mean() == pytest.approx(0.5, abs=0.04)
    assert weight.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # of Beta(a, a)
    assert (np.asarray(mix(y[:8]).weight) == weight[:8]).all()


def test_bad_arguments_are_refused():
    for make in (
        lambda: gain(1.0, -1.0),
        lambda: shift(3, 2),
        lambda: colored_noise(3.0, 2.0),
        lambda: reverberation(0.0, 1.0, 0.0, 1.0, sr=SR),
        lambda: low_pass(100.0, 4000.0, sr=SR),
        lambda: equalizer(3.0, 2.0, sr=SR),
        lambda: clipping(-1.0, 2.0),
        lambda: bit_crush(0, 8),
        lambda: speed(0.5, 2.0),
        lambda: time_masking(-1),
    ):
        with pytest.raises(ValueError, match=r"must satisfy .* <= low <= high <= .*, got low|largest must lie"):
            make()
    with pytest.raises(ValueError, match="a mask of up to 30 does not fit into 20"):
        time_masking(30)(jnp.ones((10, 20)), KEY)
    with pytest.raises(ValueError, match=r"sometimes: probability must lie in \[0, 1\], got 1.5"):
        sometimes(gain(0.0, 1.0), 1.5)
    with pytest.raises(ValueError, match=r"equally many axes, got \[1, 2\]"):
        compose(gain(0.0, 1.0), time_masking(3))
    with pytest.raises(ValueError, match=r"mix_up: alpha must lie in \(0, inf\), got 0"):
        mix_up(jnp.ones((2, 2)), alpha=0.0, key=KEY)
    with pytest.raises(TypeError, match="divide by full scale"):
        add_noise(jnp.ones(3, jnp.int16), jnp.ones(3), jnp.ones(()))
