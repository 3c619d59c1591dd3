"""Short-time Fourier transform, its inverse, and decibels: librosa's names, defaults and orientation.

    X[k, m] = sum_n w[n] y[n + m hop] exp(-2 pi i k n / n_fft),      dB = 10 log10(S / ref)

Every function takes any leading axes, is pure `jax.numpy` and works under jit, vmap and grad. Gradients stay finite at
silence. Windows are computed in double precision on the host and cast to the signal's dtype.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int, Num

from .transform import each_item, transform
from .windows import Window, cut_blocks, fft_window, frame, join_blocks, overlap_add, pad, squared_envelope

Method = Literal["auto", "fft", "matmul"]


def frame_sizes(n_fft: int, hop_length: int | None, win_length: int | None) -> tuple[int, int]:
    """Resolve librosa's defaults (window as long as the frame, a quarter of it as hop) and refuse impossible sizes."""
    win_length = n_fft if win_length is None else win_length
    hop_length = win_length // 4 if hop_length is None else hop_length
    if n_fft < 1 or hop_length < 1 or not 1 <= win_length <= n_fft:
        raise ValueError(
            f"n_fft {n_fft}, hop_length {hop_length} and win_length {win_length} must be positive, "
            f"and win_length at most n_fft"
        )
    return hop_length, win_length


def cut_frames(
    y: Float[Array, "... samples"],
    frame_length: int,
    hop_length: int,
    center: bool,
    pad_mode: str,
) -> Float[Array, "... frames length"]:
    """Frames of a waveform, with `center` around the samples 0, hop_length, 2 hop_length ..."""
    return frame(center_frames(y, frame_length, center, pad_mode), frame_length, hop_length)


def center_frames(
    y: Num[Array, "... samples"], frame_length: int, center: bool, pad_mode: str
) -> Float[Array, "... padded"]:
    """A waveform, with `center` padded by half a frame on both sides."""
    if center:
        y = pad(y, frame_length // 2, frame_length // 2, pad_mode)
    if y.shape[-1] < frame_length:
        raise ValueError(
            f"the waveform has {y.shape[-1]} samples, a frame needs {frame_length}; use center or shorter frames"
        )
    return y


def count_frames(samples: Int[Array, ""] | int, frame_length: int, hop_length: int) -> Int[Array, ""] | int:
    """How many frames of `cut_frames` a waveform of so many samples has with `center`."""
    return 1 + (samples - frame_length % 2) // hop_length


def _fourier_basis(n_fft: int, dtype) -> tuple[Array, Array]:
    """cos and -sin of 2 pi k n / n_fft, both `[n_fft, 1 + n_fft // 2]`, made where they are used.

    As constants of the program they would burden every platform that takes the FFT. Of k n, which wraps around in 32
    bits where n_fft is above 92681 and no power of 2, only the remainder matters; the angle is at most pi.
    """
    shape = (n_fft, 1 + n_fft // 2)
    k, n = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (1, 0))
    turns = (k * n % n_fft).astype(jnp.int32)
    angle = jnp.where(turns > n_fft // 2, turns - n_fft, turns).astype(dtype) * (2 * np.pi / n_fft)
    return jnp.cos(angle), -jnp.sin(angle)


def rfft(frames: Float[Array, "... length"], method: Method = "auto") -> Complex[Array, "... bins"]:
    """Real Fourier transform by FFT or by one matrix product in full precision (a TPU's FFT cannot be given one)."""

    def matmul(x):
        real, imag = (jnp.matmul(x, b, precision="highest") for b in _fourier_basis(x.shape[-1], x.dtype))
        return jax.lax.complex(real, imag)

    return _by_method(method, jnp.fft.rfft, matmul, frames)


def irfft(bins: Complex[Array, "... bins"], n_fft: int, method: Method = "auto") -> Float[Array, "... length"]:
    """The inverse of `rfft`."""

    def matmul(X):
        cos, sin = _fourier_basis(n_fft, X.real.dtype)
        weight = jnp.asarray(both_sides(n_fft) / n_fft, X.real.dtype)
        real, imag = (jnp.matmul(p * weight, b.T, precision="highest") for p, b in ((X.real, cos), (X.imag, sin)))
        return real + imag

    return _by_method(method, lambda X: jnp.fft.irfft(X, n=n_fft), matmul, bins)


def both_sides(n_fft: int) -> np.ndarray:
    """How often each bin of a real signal's spectrum stands in the whole one: twice but for 0 and half of the rate."""
    weights = np.full(1 + n_fft // 2, 2.0)
    weights[[0] if n_fft % 2 else [0, -1]] = 1.0
    return weights


def _by_method(method: Method, fft: Callable, matmul: Callable, x: Array) -> Array:
    if method == "auto":
        return jax.lax.platform_dependent(x, tpu=matmul, default=fft)
    return fft(x) if method == "fft" else matmul(x)


def each_spectrum(
    function: Callable[[Complex[Array, "frames bins"]], Array],
    y: Num[Array, "... samples"],
    n_fft: int,
    hop_length: int | None,
    win_length: int | None,
    window: Window,
    center: bool,
    pad_mode: str,
    method: Method,
) -> Array:
    """`function` of the STFT of each waveform, frames first: what every spectral transform starts from."""
    hop_length, win_length = frame_sizes(n_fft, hop_length, win_length)
    weights = fft_window(window, win_length, n_fft)

    def blocks(y: Array) -> Array:
        return cut_blocks(center_frames(y, n_fft, center, pad_mode), n_fft, hop_length)

    frames = jax.eval_shape(blocks, y).shape[-2] + 1 - -(-n_fft // hop_length)

    def one(y: Array, scratch: Array | None) -> tuple[Array, Array]:
        cut = join_blocks(blocks(y), n_fft, weights, scratch)
        return function(rfft(cut, method)), cut

    return each_item(one, y, scratch=(frames, n_fft))


@transform
def stft(
    y: Float[Array, "... samples"],
    *,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    pad_mode: str = "constant",
    method: Method = "auto",
) -> Complex[Array, "... bins frames"]:
    """Short-time Fourier transform, as `librosa.stft`.

    `n_fft`, `hop_length` and `win_length` are in samples; `window` is a name or (name, parameter) tuple of
    `scipy.signal.get_window`. With `center`, `n_fft // 2` samples of padding on each side put frame m around sample
    `m * hop_length`; `pad_mode` is any mode of `jax.numpy.pad`. `method` is "fft", "matmul" or "auto" (a matrix product
    on TPU, whose FFT is imprecise).

    >>> stft(jnp.ones(1024), n_fft=256, hop_length=64).shape
    (129, 17)
    """
    return each_spectrum(lambda X: X.mT, y, n_fft, hop_length, win_length, window, center, pad_mode, method)


@transform
def istft(
    stft_matrix: Complex[Array, "... bins frames"],
    *,
    hop_length: int | None = None,
    win_length: int | None = None,
    n_fft: int | None = None,
    window: Window = "hann",
    center: bool = True,
    length: int | None = None,
    method: Method = "auto",
) -> Float[Array, "... samples"]:
    """Inverse STFT by weighted overlap-add, the least-squares inverse (Griffin & Lim 1984, eq. 6), as `librosa.istft`.

    `length` in samples trims or zero-pads the result; without it a centred transform of m frames gives
    `(m - 1) * hop_length` samples (for even `n_fft`). A hop that leaves samples outside every window is refused.

    >>> y = jnp.sin(jnp.arange(1024.0))
    >>> bool(jnp.allclose(istft(stft(y, n_fft=256), length=1024), y, atol=1e-5))
    True
    """
    n_fft = 2 * (stft_matrix.shape[-2] - 1) if n_fft is None else n_fft
    hop_length, win_length = frame_sizes(n_fft, hop_length, win_length)
    check_invertible(stft_matrix.shape[-2], window, win_length, n_fft, hop_length)
    count = stft_matrix.shape[-1]
    envelope = squared_envelope(window, win_length, n_fft, hop_length, count)
    inverse = 1 / np.where(envelope > np.finfo(np.float32).tiny, envelope, 1.0)
    start = n_fft // 2 if center else 0
    stop = start + length if length is not None else (count - 1) * hop_length + n_fft - start

    def one(X: Array) -> Array:
        frames = irfft(X.mT, n_fft, method)
        y = overlap_add(frames * jnp.asarray(fft_window(window, win_length, n_fft), frames.dtype), hop_length)
        y = (y * jnp.asarray(inverse, y.dtype))[start:stop]
        return jnp.pad(y, (0, stop - start - len(y)))  # a length beyond the last frame

    return each_item(one, stft_matrix, axes=2)


def check_invertible(bins: int, window: Window, win_length: int, n_fft: int, hop_length: int) -> None:
    """Refuse another number of bins than `n_fft` gives, and a hop at which some sample has no weight in any window."""
    if bins != 1 + n_fft // 2:
        raise ValueError(f"the STFT has {bins} bins, n_fft {n_fft} gives {1 + n_fft // 2}")
    squared = fft_window(window, win_length, n_fft) ** 2
    if hop_length > win_length or min(squared[i::hop_length].sum() for i in range(hop_length)) <= 1e-10 * squared.max():
        raise ValueError(
            f"hop_length {hop_length} cannot be inverted: with a {window} window of {win_length} samples some samples "
            f"have no weight; use at most {win_length // 2}"
        )


@transform
def magphase(D: Complex[Array, "... bins frames"], *, power: float = 1.0) -> tuple[Array, Array]:
    """Magnitude to `power` and phase `exp(i angle)` of a complex spectrogram, as `librosa.magphase`; phase 1 at zero.

    >>> [float(x[0, 0].real) for x in magphase(jnp.full((1, 1), -3 + 0j), power=2.0)]
    [9.0, -1.0]
    """
    magnitude = jnp.abs(D)
    return magnitude if power == 1 else safe_power(magnitude, power), unit_phase(D)


def magnitude_power(X: Complex[Array, "..."], power: float) -> Float[Array, "..."]:
    """`|X|^power`, with gradient 0 at 0."""
    if power == 2:
        return X.real**2 + X.imag**2
    return jnp.abs(X) if power == 1 else safe_power(jnp.abs(X), power)


def safe_power(x: Float[Array, "..."], exponent: float) -> Float[Array, "..."]:
    """`x ** exponent` of non-negative `x`, with gradient 0 at 0."""
    positive = x > jnp.finfo(x.dtype).tiny
    return jnp.where(positive, jnp.where(positive, x, 1) ** exponent, 0)


def power_of_two(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """A power of two just above the largest magnitude of `x` along `axis`, or 1 at silence (below 1e-30).

    Dividing by it rounds nothing and keeps squares and their reciprocals in range. It counts as constant: use it where
    a scale cancels.
    """
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axis=axis, keepdims=True))
    return jnp.where(largest < 1e-30, 1, jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1]))


def unit_phase(D: Complex[Array, "..."]) -> Complex[Array, "..."]:
    """`D / |D|`, and 1 where `|D|` is below 1e-12, too small to have a phase; the gradient there is 0."""
    D = jnp.where(D.real**2 + D.imag**2 < 1e-24, 1, D)
    return D * jax.lax.rsqrt(D.real**2 + D.imag**2)


@transform
def power_to_db(
    S: Float[Array, "... bins frames"],
    *,
    ref: float | Callable[..., Array] = 1.0,
    amin: float = 1e-10,
    top_db: float | None = 80.0,
) -> Float[Array, "... bins frames"]:
    """A power spectrogram in decibels, `10 log10(max(S, amin) / ref)`, as `librosa.power_to_db` 1.0.

    `ref` is a power or a reduction such as `jnp.max`; `top_db` limits the range below the loudest bin. Both look at
    each `[bins, frames]` item alone, so a batch gives what its items give.

    >>> power_to_db(jnp.array([[1.0, 0.1, 1e-20]])).round(3).tolist()
    [[0.0, -10.0, -80.0]]
    """
    return _decibels(S, jnp.abs(ref(S, axis=(-2, -1), keepdims=True)) if callable(ref) else abs(ref), amin, top_db)


@transform
def amplitude_to_db(
    S: Float[Array, "... bins frames"],
    *,
    ref: float | Callable[..., Array] = 1.0,
    amin: float = 1e-5,
    top_db: float | None = 80.0,
) -> Float[Array, "... bins frames"]:
    """Magnitudes in decibels, `20 log10(max(S, amin) / ref)`, as `librosa.amplitude_to_db`; see `power_to_db`.

    >>> amplitude_to_db(jnp.array([[1.0, 0.1]])).round(3).tolist()
    [[0.0, -20.0]]
    """
    reference = jnp.abs(ref(S, axis=(-2, -1), keepdims=True)) if callable(ref) else abs(ref)
    return _decibels(S**2, reference**2, amin**2, top_db)


def _decibels(power: Array, reference: Array | float, amin: float, top_db: float | None) -> Array:
    amin = max(amin, float(jnp.finfo(power.dtype).tiny) ** 0.8)  # whose reciprocal has room for sums
    db = 10.0 * (jnp.log10(jnp.maximum(power, amin)) - jnp.log10(jnp.maximum(reference, amin)))
    return db if top_db is None else jnp.maximum(db, db.max(axis=(-2, -1), keepdims=True) - top_db)


@transform
def db_to_power(S_db: Float[Array, "..."], *, ref: float = 1.0) -> Float[Array, "..."]:
    """`ref * 10^(S_db / 10)`, the inverse of `power_to_db` above its floor.

    >>> round(float(db_to_power(jnp.array(-10.0), ref=2.0)), 6)
    0.2
    """
    return ref * 10.0 ** (0.1 * S_db)


@transform
def db_to_amplitude(S_db: Float[Array, "..."], *, ref: float = 1.0) -> Float[Array, "..."]:
    """`ref * 10^(S_db / 20)`, the inverse of `amplitude_to_db` above its floor.

    >>> round(float(db_to_amplitude(jnp.array(-20.0), ref=3.0)), 6)
    0.3
    """
    return ref * 10.0 ** (0.05 * S_db)
