"""STFT, mel and decibels against librosa, which computes in double precision, and the properties a batch relies on."""

import itertools
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.features import (
    amplitude_to_db,
    db_to_amplitude,
    db_to_power,
    istft,
    magphase,
    melspectrogram,
    power_to_db,
    spectral,
    stft,
)

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


PADS = ["constant", "edge", "linear_ramp", "reflect", "symmetric"]
LENGTHS = [1, 2, 100, 1511, 100_000]
LEADS = [(), (3,), (2, 3)]


def grid(count: int) -> list[tuple]:
    """`count` odd cases drawn from all combinations that are legal: sizes, centre, padding, length, leading axes."""
    cases = [
        (sizes, center, mode, length, lead)
        for sizes, center, mode, length, lead in itertools.product(SIZES, [True, False], PADS, LENGTHS, LEADS)
        if (center or (mode == "constant" and length >= sizes[0]))
        and (mode != "reflect" or length > sizes[0] // 2)
        and (length < 100_000 or (mode == "constant" and lead != (2, 3)))
    ]
    return [cases[i] for i in np.random.default_rng(0).choice(len(cases), count, replace=False)]


@pytest.mark.filterwarnings("ignore:n_fft=")
@pytest.mark.parametrize(("sizes", "center", "pad_mode", "length", "lead"), grid(40))
def test_stft_equals_librosa(sizes, center, pad_mode, length, lead):
    """To 2e-7 of the maximum; 2.5e-7 for odd n_fft, whose single-precision FFT has one more kind of butterfly."""
    n_fft, hop_length, win_length = sizes
    y = waves(*lead, length)
    options: dict[str, Any] = dict(
        n_fft=n_fft, hop_length=hop_length, win_length=win_length, center=center, pad_mode=pad_mode
    )
    reference = librosa.stft(y.astype(np.float64), **options)
    assert max_relative(stft(jnp.asarray(y), **options), reference) <= (2.5e-7 if n_fft % 2 else 2e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fft", "matmul"])
@pytest.mark.parametrize("window", ["hann", "hamming", "blackmanharris", ("kaiser", 8.0)])
def test_stft_windows_and_methods(window, method):
    y = waves(2, 1500)
    options: dict[str, Any] = dict(n_fft=400, hop_length=100, win_length=320, window=window)
    reference = librosa.stft(y.astype(np.float64), **options)
    tolerance = 2e-7 if method == "fft" else 1e-6  # a sum of n_fft products against log2(n_fft) stages
    assert max_relative(stft(jnp.asarray(y), **options, method=method), reference) <= tolerance
    back = istft(jnp.asarray(reference, jnp.complex64), **options, method=method, length=1500)
    assert max_relative(back, y) <= 2e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:n_fft=")
def test_double_precision_agrees_to_1e_10():
    with jax.enable_x64(True):
        for sizes, center, pad_mode, length, lead in grid(6):
            n_fft, hop_length, win_length = sizes
            y = waves(*lead, length).astype(np.float64)
            options = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length, center=center)
            reference = librosa.stft(y, **options, pad_mode=pad_mode)
            for method in ("fft", "matmul"):
                ours = stft(jnp.asarray(y), **options, pad_mode=pad_mode, method=method)
                assert max_relative(ours, reference) <= 1e-10


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


@pytest.mark.slow
@pytest.mark.parametrize(("n_fft", "hop_length", "win_length"), [SIZES[i] for i in (3, 5, 8)])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("length", [None, 1900, 700])
def test_istft_equals_librosa(n_fft, hop_length, win_length, center, length):
    options = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length, center=center)
    X = librosa.stft(waves(1511).astype(np.float64), **options)
    reference = librosa.istft(X, **options, length=length)
    ours = np.asarray(istft(jnp.asarray(X, jnp.complex64), **options, length=length))
    assert ours.shape == reference.shape
    # A sample's rounding is divided by its window sum, which falls to nothing at the ends of an uncentred transform.
    squares = librosa.filters.window_sumsquare(
        window="hann",
        n_frames=X.shape[-1],
        win_length=win_length,
        n_fft=n_fft,
        hop_length=hop_length or win_length // 4,
    )[n_fft // 2 if center else 0 :]
    weight = np.zeros(len(ours))
    weight[: len(squares)] = np.minimum(1, squares / np.median(squares))[: len(ours)]
    assert np.abs(weight * (ours - reference)).max() <= 3e-7 * np.abs(reference[weight == 1]).max()
    assert not ours[(X.shape[-1] - 1) * (hop_length or win_length // 4) + n_fft :].any()


@pytest.mark.slow
@pytest.mark.parametrize(("n_fft", "hop_length", "win_length"), [(512, 128, None), (512, 100, 400), (513, 97, 300)])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_istft_inverts_stft(n_fft, hop_length, win_length, lead):
    y = waves(*lead, 1511)
    options = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length)
    back = istft(stft(jnp.asarray(y), **options), **options, length=1511)
    inside = slice(0, 1511 // hop_length * hop_length)  # behind the last frame's centre only part of a window reaches
    assert max_relative(back[..., inside], y[..., inside]) <= 2e-6


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


@pytest.mark.slow
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
    linear = lambda y: (stft(y, n_fft=128, hop_length=33).real * g).sum()  # noqa: E731
    assert float(jnp.vdot(jax.jit(jax.grad(linear))(0 * y), y)) == pytest.approx(float(linear(y)), rel=1e-4)


@pytest.mark.parametrize(
    "sizes", [dict(n_fft=0), dict(n_fft=64, hop_length=0), dict(n_fft=64, win_length=65), dict(n_fft=64, win_length=0)]
)
def test_impossible_sizes_are_refused(sizes):
    sentence = r"must lie in \[1, inf\), got 0|n_fft 64, hop_length 16 and win_length 65 must .* at most n_fft"
    with pytest.raises(ValueError, match=sentence):
        stft(jnp.ones(1000), **sizes)
    with pytest.raises(ValueError, match=sentence):
        istft(jnp.ones((33, 5), jnp.complex64), **sizes)


def test_too_short_a_wave_is_refused():
    with pytest.raises(ValueError, match="100 samples, a frame needs 512; use center"):
        stft(jnp.ones(100), n_fft=512, center=False)


@pytest.mark.parametrize("dtype", [jnp.int16, jnp.int32, jnp.uint8])
def test_integer_wave_is_refused(dtype):
    with pytest.raises(TypeError, match=f"floating point.*{np.dtype(dtype).name}; divide by full scale"):
        stft(jnp.ones(4096, dtype))


def test_a_hop_that_leaves_gaps_is_refused():
    with pytest.raises(ValueError, match="hop_length 256 cannot be inverted.*window of 256 samples.*use at most 128"):
        istft(jnp.ones((129, 5), jnp.complex64), hop_length=256)
    with pytest.raises(ValueError, match="129 bins, n_fft 512 gives 257"):
        istft(jnp.ones((129, 5), jnp.complex64), n_fft=512)


def test_unknown_windows_and_methods_are_refused():
    with pytest.raises(ValueError, match="window 'hahn' is unknown"):
        stft(jnp.ones(4096), window="hahn")
    with pytest.raises(ValueError, match="stft: method must be 'auto', 'fft' or 'matmul', got 'dft'"):
        stft(jnp.ones(4096), method="dft")  # type: ignore


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_magphase_equals_librosa(power):
    X = librosa.stft(waves(3000).astype(np.float64), n_fft=256)
    X[3, 5] = 0
    magnitude, phase = magphase(jnp.asarray(X, jnp.complex64), power=power)
    expected = librosa.magphase(X, power=power)
    assert max_relative(magnitude, expected[0]) <= 2e-7
    assert max_relative(phase, expected[1]) <= 2e-7
    assert phase[3, 5] == 1


@pytest.mark.parametrize("ref", [1.0, 0.2, np.max])
def test_amplitude_to_db_equals_librosa(ref):
    S = np.abs(waves(20, 30))
    ours = amplitude_to_db(jnp.asarray(S), ref=jnp.max if ref is np.max else ref)
    assert max_relative(ours, librosa.amplitude_to_db(S.astype(np.float64), ref=ref)) <= 1e-6


def test_decibels_invert():
    S = jnp.asarray(np.abs(waves(20, 30)) + 0.01)
    assert max_relative(db_to_power(power_to_db(S, ref=0.3, top_db=None), ref=0.3), S) <= 1e-6
    assert max_relative(db_to_amplitude(amplitude_to_db(S, ref=0.3, top_db=None), ref=0.3), S) <= 1e-6


def test_other_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"amin must lie in \(0, inf\), got 0"):
        power_to_db(jnp.ones((2, 2)), amin=0.0)
    with pytest.raises(ValueError, match=r"top_db must lie in \[0, inf\], got -1"):
        power_to_db(jnp.ones((2, 2)), top_db=-1.0)


def test_no_fourier_matrix_is_made_where_the_fft_is_taken():
    """One of the three tables of 4096 frequencies takes 67 MB."""
    tracemalloc.start()
    jax.eval_shape(lambda y: istft(stft(y, n_fft=4096)), jax.ShapeDtypeStruct((20001,), jnp.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e7


@pytest.mark.slow
def test_the_matrix_product_holds_for_any_size():
    @jax.jit
    def there_and_back(y):
        X = spectral.rfft(y, "matmul")
        return X, spectral.irfft(X, y.shape[-1], "matmul")

    for n_fft in (1, 2, 5, 300, 2053):
        y = waves(3, n_fft)
        X, back = there_and_back(y)
        assert max_relative(X, np.fft.rfft(y)) < 1e-6
        assert max_relative(back, y) < 2e-6


@pytest.mark.parametrize("hop_length", [1, 3])
def test_many_frames_per_sample_compile_quickly_and_agree(hop_length):
    """A frame of 256 samples has 256 or 86 blocks, far more than are written out one by one."""
    sizes: dict[str, Any] = dict(n_fft=256, hop_length=hop_length)
    y = waves(2, 400)
    X = stft(jnp.asarray(y), **sizes)
    assert (
        max_relative(X, np.stack([librosa.stft(item.astype(float), pad_mode="constant", **sizes) for item in y])) < 1e-6
    )
    back = lambda X: istft(X, hop_length=hop_length, length=400)  # noqa: E731
    assert max_relative(back(X), y) < 1e-6
    assert len(jax.jit(back).lower(X).as_text().splitlines()) < 400
    assert len(jax.jit(lambda y: stft(y, **sizes)).lower(y).as_text().splitlines()) < 400


@pytest.mark.parametrize("pad_mode", ["reflect", "symmetric", "wrap", "edge"])
@pytest.mark.parametrize("length", [1, 2, 3, 10])
def test_short_waves_are_padded_as_numpy_does(length, pad_mode):
    y = waves(length)
    padded = np.pad(y, 32, mode=pad_mode)
    expected = np.fft.rfft(padded[:64] * np.hanning(65)[:64])
    assert max_relative(stft(jnp.asarray(y), n_fft=64, pad_mode=pad_mode)[:, 0], expected) < 1e-5


def test_no_samples_and_no_bins_are_refused_and_no_items_are_none():
    for shape in ((0,), (3, 0)):
        with pytest.raises(ValueError, match="stft: y has 0 samples, at least 1 is needed"):
            stft(jnp.ones(shape))
    with pytest.raises(ValueError, match="power_to_db: S has 0 frames, at least 1 is needed"):
        power_to_db(jnp.ones((4, 0)))
    assert stft(jnp.ones((0, 2, 800)), n_fft=256).shape == (0, 2, 129, 13)


def test_wrong_arrays_and_options_are_refused_by_name():
    for message, call in {
        r"stft: y must be an array, got list; use jnp.asarray": lambda: stft([0.1, 0.2]),  # type: ignore
        r"stft: y must have the axes \[... samples\], got the shape \(\)": lambda: stft(jnp.ones(())),
        r"istft: stft_matrix must be complex64 or complex128, got float32": lambda: istft(jnp.ones((9, 9))),
        r"power_to_db: S must be float32 or float64, got complex64": lambda: power_to_db(jnp.ones((9, 9)) + 0j),
        r"power_to_db: S must be float32 or float64, got int32": lambda: power_to_db(jnp.ones((9, 9), int)),
        r"stft: hop_length must be an integer or None, got 64.0": lambda: stft(jnp.ones(999), hop_length=64.0),  # type: ignore
        r"stft: window must be a string or a tuple, got \['hann'\]": lambda: stft(jnp.ones(999), window=["hann"]),  # type: ignore
        r"stft: center must be True or False, got 1": lambda: stft(jnp.ones(999), center=1),  # type: ignore
        r"stft: pad_mode .*|pad_mode 'no' is unknown to jax.numpy.pad": lambda: stft(jnp.ones(999), pad_mode="no"),
        r"power_to_db: top_db must lie in \[0, inf\], got nan": lambda: power_to_db(jnp.ones((9, 9)), top_db=np.nan),
    }.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    np.testing.assert_array_equal(stft(jnp.ones(999), n_fft=np.int64(256)), stft(jnp.ones(999), n_fft=256))  # type: ignore
