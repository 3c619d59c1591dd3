"""STFT, mel and decibels against librosa, which computes in double precision, and the properties a batch relies on."""

import inspect

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.features import hz_to_mel, mel_filterbank, mel_to_hz, power_to_db
from jaxdiff.features import istft as plain_istft
from jaxdiff.features import melspectrogram as plain_melspectrogram
from jaxdiff.features import stft as plain_stft


def compiled(f):
    """`f` under jit, which one program at a time compiles faster than its many operations do alone."""
    return jax.jit(
        f, static_argnames=[n for n, p in inspect.signature(f).parameters.items() if p.kind == p.KEYWORD_ONLY]
    )


stft, istft, melspectrogram = compiled(plain_stft), compiled(plain_istft), compiled(plain_melspectrogram)

SIZES = [  # n_fft, hop_length, win_length
    (512, 128, None),
    (512, 100, None),
    (512, 100, 400),
    (512, 150, 301),
    (513, 128, None),
    (513, 97, 300),
    (256, 300, None),
    (64, 7, 33),
    (400, None, 320),
]


def waves(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_error_measure_sees_errors():
    reference = np.array([[0.0, 4.0], [-8.0, 1.0]])
    assert max_relative(reference, reference) == 0
    assert max_relative(np.array([[0.0, 4.0], [-8.0, -1.0]]), reference) == 0.25
    assert not max_relative(-reference, reference) < 1
    assert not max_relative(np.where(reference == 4, np.nan, reference), reference) < 1e9
    with pytest.raises(ValueError, match="shapes differ"):
        max_relative(reference[0], reference)


@pytest.mark.parametrize(
    ("sizes", "center", "pad_mode"),
    [(sizes, True, "constant") for sizes in SIZES]
    + [(sizes, False, "constant") for sizes in SIZES[::2]]
    + [(sizes, True, mode) for sizes in SIZES[1:6:4] for mode in ("reflect", "edge")],
)
def test_stft_equals_librosa(sizes, center, pad_mode):
    n_fft, hop_length, win_length = sizes
    y = waves(1511)
    options = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length, center=center, pad_mode=pad_mode)
    assert max_relative(stft(jnp.asarray(y), **options), librosa.stft(y.astype(np.float64), **options)) <= 3e-7


def test_stft_of_a_wave_shorter_than_a_frame():
    y = waves(100)
    assert max_relative(stft(jnp.asarray(y), n_fft=512), librosa.stft(y.astype(np.float64), n_fft=512)) <= 3e-7


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_stft_leading_axes(lead):
    y = waves(*lead, 1000)
    ours = stft(jnp.asarray(y), n_fft=256, hop_length=100)
    assert max_relative(ours, librosa.stft(y.astype(np.float64), n_fft=256, hop_length=100)) <= 3e-7


@pytest.mark.parametrize("lead", [(2, 3)])
def test_batch_equals_items(lead):
    y = jnp.asarray(waves(*lead, 1200) * np.arange(1, 1 + lead[-1])[:, None], jnp.float32)
    each = y.reshape(-1, 1200)

    def db(y):
        return power_to_db(melspectrogram(y, sr=8000, n_fft=256, hop_length=100, n_mels=20), ref=jnp.max, top_db=20.0)

    def back(y):
        return istft(stft(y, n_fft=256, hop_length=60), hop_length=60)

    for f in (lambda y: stft(y, n_fft=256, hop_length=100), jax.jit(db), jax.jit(back)):
        items = np.stack([f(item) for item in each])
        assert max_relative(f(y), items.reshape(*lead, *items.shape[1:])) <= 3e-7


def test_jit_and_vmap_equal_plain():
    y = jnp.asarray(waves(4, 1200))
    mel = lambda y: plain_melspectrogram(y, sr=8000, n_fft=256, hop_length=100, n_mels=20)  # noqa: E731
    assert max_relative(jax.jit(mel)(y), mel(y)) <= 1e-6
    assert max_relative(jax.vmap(mel)(y), mel(y)) <= 1e-6


@pytest.mark.parametrize(("n_fft", "hop_length", "win_length"), [SIZES[i] for i in (3, 5, 8)])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("length", [None, 1900, 700])
def test_istft_equals_librosa(n_fft, hop_length, win_length, center, length):
    options = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length, center=center)
    X = librosa.stft(waves(1511).astype(np.float64), **options)
    reference = librosa.istft(X, **options, length=length)
    ours = np.asarray(istft(jnp.asarray(X, jnp.complex64), **options, length=length))
    assert ours.shape == reference.shape
    # Near its ends an uncentred transform divides by a window near zero, which magnifies the rounding of X.
    end = min(len(ours), (X.shape[-1] - 1) * (hop_length or win_length // 4) + n_fft * (not center))
    inside = slice(0, end) if center else slice(n_fft // 2, end - n_fft // 2)
    assert max_relative(ours[inside], reference[inside]) <= 3e-6
    assert not ours[(X.shape[-1] - 1) * (hop_length or win_length // 4) + n_fft :].any()


@pytest.mark.parametrize(("n_fft", "hop_length", "win_length"), [(512, 128, None), (512, 100, 400), (513, 97, 300)])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_istft_inverts_stft(n_fft, hop_length, win_length, lead):
    y = waves(*lead, 1511)
    options = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length)
    back = istft(stft(jnp.asarray(y), **options), **options, length=1511)
    inside = slice(0, 1511 // hop_length * hop_length)  # behind the last frame's centre only part of a window reaches
    assert max_relative(back[..., inside], y[..., inside]) <= 2e-6


@pytest.mark.parametrize(
    ("n_fft", "n_mels", "fmin", "fmax"), [(512, 40, 0.0, None), (1024, 80, 50.0, 7600.0), (2048, 128, 0.0, None)]
)
@pytest.mark.parametrize("htk", [False, True])
@pytest.mark.parametrize("norm", ["slaney", None])
def test_mel_filterbank_equals_librosa(n_fft, n_mels, fmin, fmax, htk, norm):
    ours = mel_filterbank(16000, n_fft, n_mels, fmin, fmax, htk, norm)
    options = dict(sr=16000, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax, htk=htk, norm=norm, dtype=np.float64)
    assert max_relative(ours, librosa.filters.mel(**options)) <= 1e-12


@pytest.mark.parametrize("htk", [False, True])
def test_mel_scale_equals_librosa(htk):
    frequencies = np.array([0.0, 60.0, 999.0, 1000.0, 1001.0, 4000.0, 11025.0])
    assert max_relative(hz_to_mel(frequencies, htk), librosa.hz_to_mel(frequencies, htk=htk)) <= 1e-14
    assert max_relative(mel_to_hz(hz_to_mel(frequencies, htk), htk), frequencies) <= 1e-14


@pytest.mark.parametrize(
    ("n_fft", "hop_length", "win_length"), [(512, 100, 400), (513, 128, None), (512, 200, 301), (512, None, None)]
)
@pytest.mark.parametrize(("power", "pad_mode"), [(1.0, "constant"), (2.0, "reflect"), (1.5, "constant")])
def test_melspectrogram_equals_librosa(n_fft, hop_length, win_length, power, pad_mode):
    y = waves(2, 3000)
    options = dict(sr=16000, n_fft=n_fft, win_length=win_length, power=power, pad_mode=pad_mode, n_mels=40)
    reference = librosa.feature.melspectrogram(y=y.astype(np.float64), hop_length=hop_length or 512, **options)
    assert max_relative(melspectrogram(jnp.asarray(y), hop_length=hop_length, **options), reference) <= 1e-6


def test_melspectrogram_passes_band_and_norm():
    y = waves(3000)
    options = dict(
        sr=16000, n_fft=512, hop_length=128, n_mels=30, fmin=100.0, fmax=6000.0, htk=True, norm=None, center=False
    )
    reference = librosa.feature.melspectrogram(y=y.astype(np.float64), **options)
    assert max_relative(melspectrogram(jnp.asarray(y), **options), reference) <= 1e-6


@pytest.mark.parametrize("ref", [1.0, 0.01, -3.0])
@pytest.mark.parametrize(("amin", "top_db"), [(1e-10, 80.0), (1e-3, None), (1e-10, 10.0), (1e-10, None)])
def test_power_to_db_equals_librosa(ref, amin, top_db):
    S = waves(20, 30) ** 2 * np.logspace(-12, 2, 30, dtype=np.float32)
    ours = power_to_db(jnp.asarray(S), ref=ref, amin=amin, top_db=top_db)
    reference = librosa.power_to_db(S.astype(np.float64), ref=abs(ref), amin=amin, top_db=top_db)
    assert max_relative(ours, reference) <= 1e-6


def test_power_to_db_of_each_item():
    S = waves(3, 20, 30) ** 2 * np.array([1, 1e-4, 1e4], np.float32)[:, None, None]
    ours = power_to_db(jnp.asarray(S), ref=jnp.max, top_db=20.0)
    each = np.stack([librosa.power_to_db(item.astype(np.float64), ref=np.max, top_db=20.0) for item in S])
    assert max_relative(ours, each) <= 1e-6


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("scale", [1e-20, 1.0])
def test_gradients_at_silence_are_finite(power, scale):
    def loudness(y):
        return power_to_db(melspectrogram(y, sr=8000, n_fft=128, hop_length=32, n_mels=10, power=power)).sum()

    def rebuilt(y):
        return (istft(stft(y, n_fft=128, hop_length=50), hop_length=50) ** 2).sum()

    y = jnp.asarray(scale * waves(600))
    half = y.at[300:].set(0)
    for f in (loudness, rebuilt):
        assert np.isfinite(jax.jit(jax.grad(f))(half)).all()
    assert (np.abs(jax.jit(jax.grad(loudness))(half)).max() > 0) == (scale == 1.0)


def test_stft_gradient_is_its_adjoint():
    y, g = jnp.asarray(waves(500)), jnp.asarray(waves(65, 16, seed=1))
    linear = lambda y: (plain_stft(y, n_fft=128, hop_length=33).real * g).sum()  # noqa: E731
    assert float(jnp.vdot(jax.jit(jax.grad(linear))(0 * y), y)) == pytest.approx(float(linear(y)), rel=1e-4)


@pytest.mark.parametrize(
    "sizes", [dict(n_fft=0), dict(n_fft=64, hop_length=0), dict(n_fft=64, win_length=65), dict(n_fft=64, win_length=0)]
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=r"n_fft -?\d+, hop_length -?\d+ and win_length -?\d+ must be positive"):
        stft(jnp.ones(1000), **sizes)
    with pytest.raises(ValueError, match="must be positive"):
        istft(jnp.ones((33, 5), jnp.complex64), **sizes)


def test_too_short_a_wave_is_refused():
    with pytest.raises(ValueError, match="100 samples, n_fft 512 needs at least as many; use center"):
        stft(jnp.ones(100), n_fft=512, center=False)


@pytest.mark.parametrize("dtype", [jnp.int16, jnp.int32, jnp.uint8])
def test_integer_wave_is_refused(dtype):
    with pytest.raises(TypeError, match=f"floating point.*{np.dtype(dtype).name}; divide by full scale"):
        inspect.unwrap(plain_stft)(
            jnp.ones(4096, dtype)
        )  # unwrapped: the tests' annotation checks would refuse it first


@pytest.mark.parametrize("band", [(-1.0, 4000.0), (4000.0, 4000.0), (0.0, 9000.0)])
def test_impossible_mel_bands_are_refused(band):
    with pytest.raises(ValueError, match=r"must satisfy 0 <= fmin < fmax <= 8000.0 Hz"):
        mel_filterbank(16000, 512, 40, *band)


def test_other_bad_options_are_refused():
    with pytest.raises(ValueError, match="norm 'area' is unknown; use 'slaney' or None"):
        mel_filterbank(16000, 512, 40, norm="area")
    with pytest.raises(ValueError, match="amin must be positive, got 0"):
        power_to_db(jnp.ones((2, 2)), amin=0.0)
    with pytest.raises(ValueError, match="top_db must not be negative, got -1"):
        power_to_db(jnp.ones((2, 2)), top_db=-1.0)
