"""Constant-Q transforms against librosa, against their definition and closed forms, and the exact round trip."""

import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.features.constantq import cqt, cqt_frequencies, vqt
from jaxdiff.features.gabor import icqt, invertible_cqt

SR = 22050


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def music(samples: int) -> np.ndarray:
    """Twelve decaying notes of eight harmonics."""
    rng, time = np.random.default_rng(1), np.arange(samples) / SR
    y = np.zeros(samples)
    for note in rng.integers(30, 80, 12):
        start = time[rng.integers(samples // 2)]
        envelope = np.where(time < start, 0, np.exp(-3 * (time - start)))
        y += envelope * sum(np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * h * time) / h for h in range(1, 9))
    return y.astype(np.float32)


def speech(samples: int) -> np.ndarray:
    """Pulses of falling pitch through two resonances, with a pause."""
    time = np.arange(samples) / SR
    pulses = np.diff(np.floor(140 * time - 15 * time**2), prepend=0)
    decay = np.exp(-300 * time[:400])
    y = np.sum([np.convolve(pulses, decay * np.sin(2 * np.pi * f * time[:400])) for f in (700, 1800)], axis=0)
    return (y[:samples] * (np.sin(9 * time) > -0.3)).astype(np.float32)


def chosen(options: dict) -> str:
    return ",".join(f"{k}={v}" for k, v in options.items()) or "defaults"


SAME_RATE = [  # an odd hop cannot be halved: no resampling on either side
    dict(hop_length=441, n_bins=36, fmin=110.0),
    dict(hop_length=255, n_bins=50, bins_per_octave=24, fmin=220.0, sparsity=0.0, norm=2.0, window="hamming"),
    dict(hop_length=333, n_bins=20, fmin=200.0, tuning=0.3, filter_scale=0.5, scale=False, pad_mode="reflect"),
]
LOWER_RATES = [
    dict(),
    dict(hop_length=200),
    dict(bins_per_octave=36, n_bins=200, filter_scale=0.7, tuning=-0.4, sparsity=0.1),
    dict(bins_per_octave=24, n_bins=165, hop_length=256, norm=None, window="blackmanharris", scale=False),
    dict(fmin=100.0, n_bins=55, pad_mode="reflect"),
    *(
        [dict(n_bins=100)] if int(importlib.metadata.version("librosa").split(".")[0]) >= 1 else []
    ),  # before, the second octave aliases
]
HARD_EDGES = [  # the top octave is already at a lower rate, or a filter reaches the resampler's roll-off
    dict(n_bins=24, fmin=55.0),
    dict(n_bins=7, fmin=440.0, scale=False),
    dict(n_bins=1, fmin=440.0),
]
CASES = [
    (o, e) for group, e in [(SAME_RATE, 3e-6), (LOWER_RATES, 5e-4), (HARD_EDGES, 8e-3)] for o in group for e in [e]
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "tolerance"), CASES, ids=[chosen(o) for o, _ in CASES])
def test_cqt_equals_librosa(options, tolerance):
    y = np.stack([noise(20011), music(20011)])
    for ours, reference in zip(
        cqt(jnp.asarray(y), **options), librosa.cqt(y.astype(np.float64), **options), strict=True
    ):
        assert max_relative(ours, reference) <= tolerance


def test_octaves_near_half_the_rate_equal_librosas_of_each_octave_alone():
    y, frequencies = music(20011) + noise(20011), librosa.cqt_frequencies(100, fmin=float(librosa.note_to_hz("C1")))
    ours = cqt(jnp.asarray(y), n_bins=100)
    for stop in (100, 88):
        low = stop - 12
        alone = librosa.cqt(y.astype(np.float64), fmin=frequencies[low], n_bins=stop - low)
        assert max_relative(ours[low:stop], alone) <= 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [None, 0.0, 20.0])
@pytest.mark.parametrize(
    "options", [dict(), dict(bins_per_octave=24, n_bins=100, fmin=110.0, hop_length=320)], ids=chosen
)
def test_vqt_equals_librosa(gamma, options):
    y = music(20011) + 0.1 * noise(20011)
    reference = librosa.vqt(y.astype(np.float64), gamma=gamma, **options)
    assert max_relative(vqt(jnp.asarray(y), gamma=gamma, **options), reference) <= 5e-4


def test_double_precision_equals_librosa():
    y = noise(9000).astype(np.float64)
    options: dict[str, Any] = dict(hop_length=441, n_bins=30, fmin=200.0)
    with jax.enable_x64(True):
        ours = cqt(jnp.asarray(y), **options)
        assert ours.dtype == jnp.complex128
        assert max_relative(ours, librosa.cqt(y, **options)) <= 2e-7  # librosa keeps its filters in single


@pytest.mark.parametrize("hop_length", [255, 256])
def test_cqt_is_its_definition(hop_length):
    """The sum over time in double precision and at the full rate; an odd hop leaves every octave there.

    A taper is sampled at the rate of its octave, so at a lower rate it is rounded to longer steps. Librosa's filters,
    and hence ours, have no negative frequencies, which changes them by 5e-5.
    """
    y = noise(8000) * np.hanning(8000).astype(np.float32)
    f, alpha = cqt_frequencies(30, 700.0), (2 ** (1 / 6) - 1) / (2 ** (1 / 6) + 1)
    expected = np.zeros((30, 1 + 8000 // hop_length), complex)
    for k in range(30):
        step = 1 if hop_length % 2 else 2 ** ((29 - k) // 12)
        length = SR / alpha / f[k]
        half, count = np.ceil(length / step / 2), np.ceil(length / step / 2) + np.floor(length / step / 2)
        for m in range(expected.shape[1]):
            n = np.arange(8000) - m * hop_length
            phase = (half - n / step) / count
            taper = np.where((phase >= 0) & (phase < 1), np.sin(np.pi * phase) ** 2, 0) * 2 / count / step
            expected[k, m] = np.sqrt(length) * (y * taper * np.exp(-2j * np.pi * f[k] / SR * n)).sum()
    ours = cqt(jnp.asarray(y), fmin=700.0, n_bins=30, hop_length=hop_length, sparsity=0.0)
    assert max_relative(ours, expected) <= 2e-4


@pytest.mark.parametrize("k", [0, 13, 40, 83])
@pytest.mark.parametrize("scale", [True, False])
def test_a_sine_at_a_centre_peaks_there(k, scale):
    f, alpha = cqt_frequencies(84)[k], (2 ** (1 / 6) - 1) / (2 ** (1 / 6) + 1)
    magnitude = np.abs(cqt(jnp.asarray(3 * np.sin(2 * np.pi * f / SR * np.arange(33000))), scale=scale))[:, 32]
    length = SR / (alpha * f)
    assert magnitude[k] == pytest.approx(1.5 * (np.sqrt(length) if scale else length), rel=1e-3)
    assert np.argmax(magnitude * (1 if scale else cqt_frequencies(84))) == k


@pytest.mark.slow
@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_batch_equals_items(lead):
    y = jnp.asarray(noise(*lead, 4001))
    each = y.reshape(-1, 4001)
    C = invertible_cqt(y, fmin=100.0)
    pairs = [
        (cqt(y, fmin=100.0, n_bins=40), [cqt(item, fmin=100.0, n_bins=40) for item in each]),
        (C, [invertible_cqt(item, fmin=100.0) for item in each]),
        (icqt(C, length=4001, fmin=100.0), list(each)),
    ]
    for together, items in pairs:
        assert max_relative(together, np.stack(items).reshape(together.shape)) <= 1e-6
        assert together.shape[:-2] == lead or together.shape == y.shape


def test_librosa_takes_a_batch_alike():
    y = noise(2, 3, 9000)
    assert max_relative(cqt(jnp.asarray(y)), librosa.cqt(y.astype(np.float64))) <= 5e-4


def test_vmap_and_jit_equal_plain():
    y = jnp.asarray(noise(3, 4001))
    for f in (lambda y: cqt(y, n_bins=30, fmin=100.0), lambda y: invertible_cqt(y, fmin=100.0)):
        assert max_relative(jax.vmap(f)(y), f(y)) <= 1e-6
        assert max_relative(jax.jit(f)(y), f(y)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 100, 511, 512])
def test_short_waves(samples):
    y = noise(samples)
    ours = cqt(jnp.asarray(y), n_bins=36, fmin=65.0)
    assert ours.shape == (36, 1 + samples // 512) and ours.dtype == jnp.complex64
    if samples >= 100:  # librosa may count one frame more, beyond the end
        reference = librosa.cqt(y.astype(np.float64), n_bins=36, fmin=65.0)[:, : 1 + samples // 512]
        assert max_relative(ours, reference) <= 1e-2


IMPULSES = np.zeros(6001, np.float32)
IMPULSES[[0, 1, 2500, 6000]] = 1, -1, 0.5, 1


@pytest.mark.parametrize(
    "options",
    [dict(), dict(bins_per_octave=48), dict(hop_length=5, fmin=300.0), dict(sr=16000, fmin=7900.0)],
    ids=chosen,
)
def test_icqt_inverts_exactly(options):
    y = np.stack([noise(6001), speech(6001), IMPULSES, np.ones(6001, np.float32)])
    C = invertible_cqt(jnp.asarray(y), **options)
    back = np.asarray(icqt(C, length=6001, **options))
    assert C.dtype == jnp.complex64 and back.dtype == np.float32
    for ours, sound in zip(back, y, strict=True):
        assert max_relative(ours, sound) <= 2e-6


@pytest.mark.parametrize("samples", [1, 2, 17, 640, 16384])
def test_icqt_gives_any_length(samples):
    y = noise(samples)
    assert max_relative(icqt(invertible_cqt(jnp.asarray(y)), length=samples), y) <= 2e-6
    assert not np.asarray(icqt(invertible_cqt(jnp.zeros(samples)), length=samples)).any()


def test_invertible_cqt_keeps_energy():
    """A tight frame: the energy of the coefficients is 2 / hop of the waveform's, whatever the waveform."""
    y = noise(18000, seed=3)
    C = np.asarray(invertible_cqt(jnp.asarray(y), hop_length=15))
    assert (np.abs(C) ** 2).sum() * 15 / 2 == pytest.approx((y**2).sum(), rel=1e-3)  # 0 Hz counts once


@pytest.mark.parametrize("octave", [0, 1, 3])
def test_a_sine_at_an_invertible_centre_has_its_amplitude(octave):
    sr, samples = 8000, 8640  # 16 x 540: nothing is padded
    fmin = 108 * sr / samples  # a whole number of periods
    y = 0.7 * np.cos(2 * np.pi * 2**octave * 108 / samples * np.arange(samples))
    magnitude = np.abs(invertible_cqt(jnp.asarray(y, jnp.float32), sr=sr, fmin=fmin, hop_length=16))
    assert magnitude.shape[-1] == 540
    assert max_relative(magnitude[1 + 12 * octave], np.full(540, 0.7)) <= 1e-5
    assert np.delete(magnitude, 1 + 12 * octave, axis=0).max() <= 1e-5


def test_invertible_bins_are_local():
    """An impulse is heard around its frame only: within a few reciprocal bandwidths."""
    magnitude = np.abs(invertible_cqt(jnp.zeros(9000).at[4500].set(1.0), hop_length=18, fmin=200.0))[40:-1]
    assert (magnitude.argmax(axis=1) == 250).all()
    assert (magnitude[:, :150] < 1e-4 * magnitude.max(axis=1, keepdims=True)).all()


def test_gradients_are_finite_where_magnitudes_vanish():
    inputs = [
        jnp.zeros(3000),
        jnp.full(3000, 1e-41),
        jnp.full(3000, 1e-20),
        jnp.ones(3000),
        jnp.zeros(3000).at[9].set(1),
    ]
    for f in (lambda y: cqt(y, n_bins=30, fmin=100.0), lambda y: invertible_cqt(y, bins_per_octave=24, fmin=100.0)):
        gradient = jax.jit(jax.grad(lambda y, f=f: jnp.abs(f(y)).sum()))
        assert all(np.isfinite(gradient(y)).all() for y in inputs)
        assert np.abs(gradient(inputs[3])).max() > 0


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        y, direction = (jnp.asarray(noise(1500, seed=s), jnp.float64) for s in (4, 5))

        def there_and_back(y):
            return icqt(jnp.tanh(jnp.abs(invertible_cqt(y, fmin=500.0))) + 0j, length=1500, fmin=500.0)

        for f in (lambda y: jnp.abs(cqt(y, n_bins=24, fmin=300.0, hop_length=64)), there_and_back):
            loss = jax.jit(lambda y, f=f: (f(y) ** 2).sum())
            slope = (loss(y + 1e-5 * direction) - loss(y - 1e-5 * direction)) / 2e-5
            assert float(jnp.vdot(jax.jit(jax.grad(loss))(y), direction)) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hop_length=0), r"hop_length must lie in \[1, inf\), got 0"),
        (dict(n_bins=0), r"n_bins must lie in \[1, inf\), got 0"),
        (dict(bins_per_octave=0), r"bins_per_octave must lie in \[1, inf\), got 0"),
        (dict(fmin=-1.0), r"fmin must lie in \[0, inf\), got -1.0"),
        (dict(fmin=12000.0, n_bins=1), r"above half of sr \(11025 Hz\); use fewer bins or a lower fmin"),
        (dict(n_bins=120), "the highest of 120 bins from fmin 32.7 Hz reaches .* above half of sr"),
        (dict(filter_scale=0.0), r"filter_scale must lie in \(0, inf\), got 0.0"),
        (dict(sparsity=1.0), r"sparsity must lie in \[0, 1\), got 1.0"),
        (dict(window="square"), "window 'square' is unknown"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cqt(jnp.ones(1000), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hop_length=20), "hop_length 20 must be from 1 to 19 samples.*use more bins per octave for a longer hop"),
        (dict(hop_length=0), r"hop_length must lie in \[1, inf\), got 0"),
        (dict(fmin=0.0), "fmin 0.0 Hz between 0 and 11025.0 Hz"),
        (dict(fmin=11025.0), "fmin 11025.0 Hz between 0 and 11025.0 Hz"),
        (dict(bins_per_octave=0), r"bins_per_octave must lie in \[1, inf\), got 0"),
    ],
)
def test_impossible_bands_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        invertible_cqt(jnp.ones(1000), **options)


def test_icqt_refuses_what_invertible_cqt_did_not_make():
    with pytest.raises(ValueError, match=r"C has 84 bins and 2 frames.*pass what invertible_cqt \(not cqt\) returned"):
        icqt(cqt(jnp.ones(1000)), length=1000)


@pytest.mark.parametrize("function", [vqt, invertible_cqt])
def test_unusable_waves_are_refused(function):
    with pytest.raises(ValueError, match="y has 0 samples, at least 1 is needed"):
        function(jnp.ones((2, 0)))
    with pytest.raises(TypeError, match="floating point.*int16; divide by full scale"):
        function(jnp.ones(1000, jnp.int16))
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, inf\), got -1.0"):
        vqt(jnp.ones(1000), gamma=-1.0)
