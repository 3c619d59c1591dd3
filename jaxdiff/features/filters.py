"""Recursive filters, filter responses and long convolutions without a step per sample.

A recursive filter is linear in its last `L` inputs x and in its state s before them,

    y = T x + O s,      s' = P s + R x,      T[i, j] = h[i - j]   (h the impulse response),

so a block of `L` samples costs one matrix product. The state is carried from block to block by doubling:
`s_k += P^(2^j) s_(k - 2^j)` for j = 0, 1, ... ends after log2(blocks) steps, or sooner when the power has decayed below
the dtype's precision. The matrices are computed in float64, hence the result is exact to the dtype's rounding.

Filters whose parameters are drawn at run time are applied in the frequency domain (`shape_spectrum`): their responses
are those of the second-order sections of R. Bristow-Johnson's Audio EQ Cookbook.
"""

import functools
from typing import Literal, cast

import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.linalg
from jaxtyping import Array, Complex, Float

from .transform import each_item, transform

Sections = tuple[tuple[float, ...], ...]
Kind = Literal["low_pass", "high_pass", "peaking", "low_shelf", "high_shelf"]
_BLOCK = 128  # samples: the matrix product is large enough to be fast, and the number of blocks small
# BS.1770-4, Annex 1, tables 1 and 2: numerators and denominators at 48 kHz of the head's shelf and of the high-pass.
_K_FILTERS = (
    ((1.53512485958697, -2.69169619838640, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585)),
    ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)),
)
# Takes the coefficients of 1, z^-1, z^-2 to those of 1, s, s^2 with s = (1 - z^-1) / (1 + z^-1), and back (times 4).
_BILINEAR = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, -2.0], [1.0, -1.0, 1.0]])


@transform
def sosfilt(y: Float[Array, "... samples"], *, sos: Sections) -> Float[Array, "... samples"]:
    """`y` through a cascade of second-order sections that starts at rest, as `scipy.signal.sosfilt`.

    `sos` holds one tuple (b0, b1, b2, 1, a1, a2) per section, in scipy's order. Refuses sections of another form and
    poles on or outside the unit circle (`ValueError`).

    >>> sosfilt(jnp.array([1.0, 0.0, 0.0]), sos=((1.0, 0.0, 0.0, 1.0, -0.5, 0.0),)).tolist()
    [1.0, 0.5, 0.25]
    """
    if not sos or any(len(section) != 6 or section[3] != 1 for section in sos):
        raise ValueError(f"sos {sos} must hold tuples of six numbers (b0, b1, b2, 1, a1, a2); divide each by its a0")
    inward, outward, powers = _blocked(sos)
    length = y.shape[-1]
    blocks = -(-length // _BLOCK)
    steps = [p for j, p in enumerate(powers) if 2**j < blocks]

    def item(y):
        x = jnp.pad(y, (0, blocks * _BLOCK - length)).reshape(blocks, _BLOCK)
        mixed = jnp.matmul(x, jnp.asarray(inward, y.dtype), precision="highest")
        own, state = mixed[:, :_BLOCK], mixed[:, _BLOCK:]
        for j, power in enumerate(steps):
            earlier = jnp.pad(state, ((2**j, 0), (0, 0)))[:blocks]
            state = state + jnp.matmul(earlier, jnp.asarray(power, y.dtype), precision="highest")
        before = jnp.pad(state, ((1, 0), (0, 0)))[:blocks]
        own = own + jnp.matmul(before, jnp.asarray(outward, y.dtype), precision="highest")
        return own.reshape(-1)[:length]

    return each_item(item, y)


@functools.lru_cache(maxsize=32)
def _blocked(sos: Sections) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The matrices `[T' R']`, `O'` and the powers `P'`, `P'^2`, `P'^4`, ... of a block, all transposed, in float64."""
    states = 2 * len(sos)
    x = np.eye(states + 1)[-1]  # every signal is a row of coefficients of (the states, the input)
    after = []
    for i, (b0, b1, b2, _, a1, a2) in enumerate(np.asarray(sos, np.float64)):
        first, second = np.eye(states + 1)[2 * i : 2 * i + 2]
        y = b0 * x + first
        after += [b1 * x - a1 * y + second, b2 * x - a2 * y]
        x = y
    A, B, C, D = np.stack(after)[:, :-1], np.stack(after)[:, -1], x[:-1], x[-1]
    if np.abs(np.linalg.eigvals(A)).max() >= 1 - 1e-12:
        raise ValueError(f"sos {sos} is unstable; every pole must lie inside the unit circle")
    # States that white noise drives to unit covariance: A A' + B B' = 1, so no power of A amplifies rounding errors.
    covariance = scipy.linalg.solve_discrete_lyapunov(A, np.outer(B, B))
    scale = np.linalg.cholesky(covariance + 1e-14 * np.trace(covariance) * np.eye(states))
    A, B, C = np.linalg.solve(scale, A @ scale), np.linalg.solve(scale, B), C @ scale
    observed, reached = [C], [B]  # C A^i and A^i B
    for _ in range(_BLOCK - 1):
        observed, reached = [*observed, observed[-1] @ A], [*reached, A @ reached[-1]]
    response = np.array([D, *(C @ column for column in reached[:-1])])
    lag = np.subtract.outer(np.arange(_BLOCK), np.arange(_BLOCK))
    toeplitz = np.where(lag >= 0, response[np.abs(lag)], 0.0)
    powers = [np.linalg.matrix_power(A, _BLOCK)]
    while len(powers) < 31 and np.abs(powers[-1]).max() > 1e-20:
        powers.append(powers[-1] @ powers[-1])
    return np.concatenate([toeplitz, np.stack(reached[::-1], 1)]).T, np.stack(observed).T, [p.T for p in powers]


@transform
def fft_convolve(y: Float[Array, "... samples"], response: Float[Array, "... taps"]) -> Float[Array, "... samples"]:
    """`y` convolved with an impulse response, cut to the length of `y`; the leading axes of both broadcast.

    >>> fft_convolve(jnp.array([1.0, 2.0, 0.0]), jnp.array([1.0, 0.5])).round(3).tolist()
    [1.0, 2.5, 1.0]
    """
    lead = jnp.broadcast_shapes(y.shape[:-1], response.shape[:-1])
    length = y.shape[-1]
    size = scipy.fft.next_fast_len(length + response.shape[-1] - 1, real=True)
    item = lambda y, h: jnp.fft.irfft(jnp.fft.rfft(y, size) * jnp.fft.rfft(h, size), size)[:length]  # noqa: E731
    return each_item(item, *(jnp.broadcast_to(a, (*lead, a.shape[-1])) for a in (y, response)))


@transform
def biquad_response(
    frequencies: Float[Array, "*bins"],
    corner: Float[Array, ""],
    gain_db: Float[Array, ""],
    *,
    kind: Kind,
    sr: float,
    q: float = 2**-0.5,
) -> Complex[Array, "*bins"]:
    """The complex response of a second-order Cookbook filter at `frequencies` (all frequencies in Hz).

    `gain_db` is the gain at the corner of "peaking" and beyond the corner of a shelf; the passes ignore it. The
    bilinear transform is written with sines and cosines of half angles, so that float32 resolves corners of a few Hz.

    >>> frequencies, corner, gain_db = jnp.array([0.0, 1000.0]), jnp.array(1000.0), jnp.array(6.02)
    >>> print(abs(biquad_response(frequencies, corner, gain_db, kind="peaking", sr=16000)).round(2))
    [1. 2.]
    """
    a = 10 ** (gain_db / 40)
    slope = jnp.sqrt(a) / q
    above, below = {  # coefficients of 1, s and s^2, where s = j at the corner
        "low_pass": ((1.0, 0.0, 0.0), (1.0, 1 / q, 1.0)),
        "high_pass": ((0.0, 0.0, 1.0), (1.0, 1 / q, 1.0)),
        "peaking": ((1.0, a / q, 1.0), (1.0, 1 / (a * q), 1.0)),
        "low_shelf": ((a * a, a * slope, a), (1.0, slope, a)),
        "high_shelf": ((a, a * slope, a * a), (a, slope, 1.0)),
    }[kind]
    angle, centre = np.pi / sr * frequencies, np.pi / sr * corner
    unit, s = jnp.cos(angle) * jnp.sin(centre), jnp.sin(angle) * jnp.cos(centre)
    polynomial = lambda c: (c[0] * unit**2 - c[2] * s**2) + 1j * (c[1] * s * unit)  # noqa: E731
    return polynomial(above) / polynomial(below)


def shape_spectrum(y: Float[Array, " samples"], response, tail: int) -> Float[Array, " samples"]:
    """`y` through the filter whose response at normalised frequencies [0, 1/2] `response` computes.

    `tail` is the number of samples in which the filter's impulse response decays; it is cut off.
    """
    size = cast(int, scipy.fft.next_fast_len(y.shape[-1] + tail, real=True))  # inferred as None
    frequencies = jnp.asarray(np.fft.rfftfreq(size), y.dtype)
    return jnp.fft.irfft(jnp.fft.rfft(y, size) * response(frequencies), size)[: y.shape[-1]]


@transform
def A_weighting(frequencies: Float[Array, "..."], *, min_db: float | None = -80.0) -> Float[Array, "..."]:
    """The A-weighting curve in dB at `frequencies` in Hz, at least `min_db` (IEC 61672-1, E.1), as librosa.

    >>> print(A_weighting(jnp.array([100.0, 1000.0])).round(1))
    [-19.1 0. ]
    """
    squared = jnp.maximum(frequencies**2, 1e-20)
    low = 10 * jnp.log10(squared / (squared + 107.65265**2)) + 10 * jnp.log10(squared / (squared + 737.86223**2))
    weights = 2.0 + _both_ends(squared) + low
    return weights if min_db is None else jnp.maximum(weights, min_db)


@transform
def C_weighting(frequencies: Float[Array, "..."], *, min_db: float | None = -80.0) -> Float[Array, "..."]:
    """The C-weighting curve in dB at `frequencies` in Hz, at least `min_db` (IEC 61672-1, E.1), as librosa.

    >>> print(C_weighting(jnp.array([31.5, 1000.0])).round(1))
    [-3. 0.]
    """
    weights = 0.062 + _both_ends(jnp.maximum(frequencies**2, 1e-20))
    return weights if min_db is None else jnp.maximum(weights, min_db)


def _both_ends(squared: Array) -> Array:
    """The double poles that A and C share, at 20.6 Hz and 12.2 kHz, in dB."""
    return 20 * jnp.log10(squared / (squared + 20.598997**2)) - 20 * jnp.log10(1 + squared / 12194.217**2)


@transform
def K_weighting(
    frequencies: Float[Array, "..."], *, sr: float = 48000.0, min_db: float | None = -80.0
) -> Float[Array, "..."]:
    """The K-weighting curve in dB at `frequencies` in Hz, at least `min_db`: the two filters of BS.1770-4 at rate `sr`.

    Refuses rates below 4 kHz (`ValueError`).

    >>> print(K_weighting(jnp.array([997.0, 10000.0])).round(2))
    [0.69 4.04]
    """
    angle = np.pi / sr * frequencies
    s, unit = jnp.sin(angle), jnp.cos(angle)
    power = lambda c: (c[0] * unit**2 - c[2] * s**2) ** 2 + (c[1] * s * unit) ** 2  # noqa: E731
    weights = jnp.zeros_like(frequencies)
    for above, below in _k_prototypes(sr):
        above, below = above.tolist(), below.tolist()
        weights += 10 * jnp.log10(jnp.maximum(power(above), 1e-30) / power(below))
    return weights if min_db is None else jnp.maximum(weights, min_db)


@functools.lru_cache(maxsize=32)
def _k_prototypes(sr: float) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Numerator and denominator in 1, s, s^2 of each K filter at rate `sr`, equal to the 48 kHz one at its corner."""
    if not sr >= 4000:
        raise ValueError(f"sr {sr} Hz is too low for K-weighting, whose shelf begins at 1.7 kHz; use at least 4000 Hz")
    prototypes = []
    for numerator, denominator in _K_FILTERS:
        above, below = _BILINEAR @ numerator, _BILINEAR @ denominator
        corner = np.sqrt(below[0] / below[2])  # tan(pi f / 48000)
        stretch = (np.tan(np.arctan(corner) * 48000 / sr) / corner) ** np.arange(3)
        prototypes.append((above / stretch, below / stretch))
    return tuple(prototypes)


def k_sections(sr: float) -> Sections:
    """The K-weighting filters at any rate from 4 kHz, for `sosfilt`."""
    pairs = [(_BILINEAR @ above, _BILINEAR @ below) for above, below in _k_prototypes(sr)]
    return tuple(tuple((np.concatenate([b, a]) / a[0]).tolist()) for b, a in pairs)
