"""What a measurement y = A(x) + noise does to a sound: operators for inverse problems.

An operator is two functions: `apply` is A, and `prox` the point that explains y at the least distance from x,

    prox(x, y, ratio) = argmin_z |A(z) - y|^2 + ratio |z - x|^2 = x + A'(A A' + ratio)^-1 (y - A x)  if A is linear.

So `prox(x, y, 0)` projects x onto {z: A(z) = y}, `prox(0, y, 0)` is the pseudo-inverse of a linear A, and with ratio =
noise variance / r^2 it is the posterior mean of x0 ~ N(x, r^2 I). Adjoints come from `adjoint`, exact for every A.
Arrays are [items, ...]; an operator works along an axis of them and knows no audio: transforms are arguments.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Operator(NamedTuple):
    """A measurement A; `prox` is None where it has no closed form, as of a mel spectrogram in terms of the wave."""

    apply: Callable[[Array], Array]
    prox: Callable[[Array, Array, float | Array], Array] | None = None


def adjoint(operator: Operator, x: Array) -> Callable[[Array], Array]:
    """`v -> A' v`, the adjoint of A's derivative at `x`; for a linear A of A itself, whatever the values of `x`.

    The inner product is the real one, Re sum(conj(a) b).

    >>> adjoint(mixture(jnp.array([1.0, 2.0])), jnp.zeros((1, 2, 1)))(jnp.array([[3.0]])).tolist()
    [[[3.0], [6.0]]]
    """
    _, pullback = jax.vjp(operator.apply, x)
    return lambda v: jnp.conj(pullback(jnp.conj(v))[0])


def conjugate_gradients(matrix: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """Solves `matrix(v) = b`, symmetric and not negative, for each item on its own.

    An item stops once it is solved, or where only directions are left whose eigenvalues are 0 to rounding.
    """
    axes, eps = tuple(range(1, b.ndim)), jnp.finfo(b.dtype).eps
    dot = lambda u, v: jnp.sum(jnp.conj(u) * v, axis=axes, keepdims=True).real  # noqa: E731
    enough = dot(b, b) * eps**2

    def step(state, _):
        v, residual, direction, error, largest = state
        image = matrix(direction)
        bend, length = dot(direction, image), dot(direction, direction)
        largest = jnp.maximum(largest, bend / jnp.where(length > 0, length, 1))
        go = (error > enough) & (bend > 100 * eps * largest * length)
        size = jnp.where(go, error / jnp.where(go, bend, 1), 0)
        v, residual = v + size * direction, residual - size * image
        next_error = dot(residual, residual)
        turn = jnp.where(go, next_error / jnp.where(go, error, 1), 0)
        return (v, residual, residual + turn * direction, jnp.where(go, next_error, error), largest), None

    start = (jnp.zeros_like(b), b, b, dot(b, b), jnp.zeros_like(dot(b, b)))
    return jax.lax.scan(step, start, length=iterations)[0][0]


def minimal_residual(matrix: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """The v of each item with the least |matrix(v) - b| among b, matrix(b) ... `iterations` of them (GCR, Eisenstat et
    al. 1983, algorithm 2.1): any linear `matrix`, and a further iteration never makes the residual larger.

    Keeps two arrays like `b` for each iteration. An item stops once it is solved to rounding.
    """
    axes, eps = tuple(range(1, b.ndim)), 100 * jnp.finfo(b.dtype).eps
    norm = lambda v: jnp.sqrt(jnp.sum(jnp.abs(v) ** 2, axis=axes, keepdims=True))  # noqa: E731
    dot = jax.vmap(lambda u, v: jnp.sum(jnp.conj(u) * v, axis=axes, keepdims=True), (0, None))

    def step(state, i):
        v, residual, directions, images = state
        direction, image = residual, matrix(residual)
        least = eps * norm(image)
        for _ in range(2):  # the second time for what rounding left
            share = dot(images, image)
            direction, image = direction - (share * directions).sum(0), image - (share * images).sum(0)
        size = norm(image)
        go = (size > least) & (norm(residual) > eps * norm(b))
        scale = jnp.where(go, 1 / jnp.where(go, size, 1), 0)
        direction, image = scale * direction, scale * image
        amount = dot(image[None], residual)[0]
        state = v + amount * direction, residual - amount * image, directions.at[i].set(direction)
        return (*state, images.at[i].set(image)), None

    none = jnp.zeros((iterations, *b.shape), b.dtype)
    return jax.lax.scan(step, (jnp.zeros_like(b), b, none, none), jnp.arange(iterations))[0][0]


def linear_operator(apply: Callable[[Array], Array], iterations: int = 50) -> Operator:
    """Any linear `apply` that treats the items of its first axis alone, such as a resampler, a reverb or an STFT.

    `prox` is by conjugate gradients: exact after as many `iterations` as A A' has different eigenvalues.
    """

    def prox(x: Array, y: Array, ratio: float | Array = 0.0) -> Array:
        back = adjoint(Operator(apply), x)
        return x + back(conjugate_gradients(lambda v: apply(back(v)) + ratio * v, y - apply(x), iterations))

    return Operator(apply, prox)


def _tight(apply: Callable[[Array], Array], gram: float | Array) -> Operator:
    """A linear `apply` with A A' = gram on the range of A."""
    return Operator(apply, lambda x, y, ratio=0.0: x + adjoint(Operator(apply), x)(y - apply(x)) / (gram + ratio))


def _towards(x: Array, nearest: Array, ratio: float | Array) -> Array:
    """argmin_z |z - nearest|^2 + ratio |z - x|^2, exactly `nearest` at ratio 0 and `x` at infinity."""
    share = 1 / (1 + jnp.asarray(ratio, x.dtype))
    return share * nearest + (1 - share) * x


def masking(mask: Array | np.ndarray) -> Operator:
    """Keeps x where `mask` is true and is 0 elsewhere: gaps, missing bands, a sound to be continued. A = A' = A^2.

    >>> masking(jnp.array([True, False])).prox(jnp.array([[1.0, 2.0]]), jnp.array([[5.0, 0.0]]), 0.0).tolist()
    [[5.0, 2.0]]
    """
    keep = lambda new, old: jnp.where(mask, new, old)  # noqa: E731
    return Operator(lambda x: keep(x, 0), lambda x, y, ratio=0.0: keep(_towards(x, y, ratio), x))


def clipping(limit: float) -> Operator:
    """Limits x to -limit ... limit: not linear. What y says of a clipped value is only that it lies beyond the limit.

    `prox` takes |A(z) - y| as the distance of z to that set (Kitic et al. 2015, consistent declipping).

    >>> clipping(1.0).prox(jnp.array([[0.2, 0.3, 4.0]]), jnp.array([[0.5, 1.0, 1.0]]), 0.0).tolist()
    [[0.5, 1.0, 4.0]]
    """
    if not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit}")

    def prox(x: Array, y: Array, ratio: float | Array = 0.0) -> Array:
        beyond = jnp.where(y >= limit, jnp.maximum(x, limit), jnp.minimum(x, -limit))
        return _towards(x, jnp.where(jnp.abs(y) < limit, y, beyond), ratio)

    return Operator(lambda x: jnp.clip(x, -limit, limit), prox)


def _filter(x: Array, gain: np.ndarray, axis: int) -> Array:
    """Multiply the rfft of `x` along `axis` by a real `gain` [bins]."""
    x = jnp.moveaxis(x, axis, -1)
    return jnp.moveaxis(jnp.fft.irfft(jnp.fft.rfft(x) * jnp.asarray(gain, x.dtype), x.shape[-1]), -1, axis)


def lowpass(cutoff: float, axis: int = -1) -> Operator:
    """Removes all above `cutoff`, a fraction of half the sample rate in (0, 1], by a brick wall on the FFT.

    A = A' = A^2. The signal is taken as periodic, so the ends of a crop touch.
    """
    if not 0 < cutoff <= 1:
        raise ValueError(f"cutoff must be a fraction of half the sample rate in (0, 1], got {cutoff}")
    gain = lambda length: np.arange(length // 2 + 1) <= cutoff * length / 2  # noqa: E731
    return _tight(lambda x: _filter(x, gain(x.shape[axis]), axis), 1.0)


def decimation(factor: int, axis: int = -1) -> Operator:
    """Every `factor`-th sample after the brick wall at the new half sample rate; the length must be a multiple of it.

    The bin at the new half sample rate has gain sqrt(1/2), which makes A A' = 1 / factor exactly.
    """
    if factor < 2:
        raise ValueError(f"factor must be at least 2, got {factor}")

    def apply(x: Array) -> Array:
        length = x.shape[axis]
        if length % factor:
            crop = length - length % factor
            raise ValueError(f"a length of {length} is no multiple of factor {factor}; crop it to {crop}")
        bins, half = np.arange(length // 2 + 1), length / factor / 2
        gain = np.where(bins == half, np.sqrt(0.5), bins < half)
        return jax.lax.slice_in_dim(_filter(x, gain, axis), 0, length, factor, axis % x.ndim)

    return _tight(apply, 1 / factor)


def mixture(weights: Float[Array, " sources"], axis: int = 1) -> Operator:
    """The weighted sum of the sources along `axis`: separation with a model of each source. A A' = sum of weights^2."""
    weigh = lambda x: jnp.tensordot(x, jnp.asarray(weights, x.dtype), axes=(axis, 0), precision="highest")  # noqa: E731
    return _tight(weigh, (weights**2).sum())


def filterbank(matrix: np.ndarray, axis: int = -1) -> Operator:
    """`matrix` [bands, bins] along `axis`, such as mel filters on a power or magnitude spectrogram.

    Singular values below 1e-6 of the largest count as 0: what they measure is not recovered.
    """
    matrix = np.asarray(matrix, np.float64)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-6 * s[0]).sum())

    def along(factor: np.ndarray, x: Array, gain: Array | float = 1.0) -> Array:
        x = jnp.moveaxis(x, axis, -1)
        return jnp.moveaxis(jnp.matmul(x, jnp.asarray(factor.T, x.dtype), precision="highest") * gain, -1, axis)

    def prox(x: Array, y: Array, ratio: float | Array = 0.0) -> Array:
        gain = jnp.asarray(s[:rank], x.dtype) / (jnp.asarray(s[:rank] ** 2, x.dtype) + ratio)
        return x + along(vt[:rank].T, along(u.T[:rank], y - along(matrix, x), gain))

    return Operator(lambda x: along(matrix, x), prox)


def magnitude(transform: Callable[[Array], Array], inverse: Callable[[Array], Array]) -> Operator:
    """|transform(x)|, such as an STFT without its phase: not linear. `inverse` is the transform's (pseudo-)inverse.

    `prox` takes the phase from x, one step of Griffin & Lim (1984): y is met only as far as it is a real spectrogram.
    """

    def prox(x: Array, y: Array, ratio: float | Array = 0.0) -> Array:
        X = transform(x)
        size = jnp.abs(X)
        phase = jnp.where(size > 0, X / jnp.where(size > 0, size, 1), 1)
        return _towards(x, inverse(y * phase), ratio)

    return Operator(lambda x: jnp.abs(transform(x)), prox)


def represented(operator: Operator, encode: Callable[[Array], Array], decode: Callable[[Array], Array]) -> Operator:
    """An operator on sounds as one on what the model makes of them: A(decode(x)).

    Its `prox` is exact where decode is orthogonal (patches of samples); where it only inverts encode, ratio 0 still
    gives A(decode(z)) = y, but not at the least distance. Otherwise use what needs no prox.
    """
    prox = operator.prox
    if prox is None:
        return Operator(lambda x: operator.apply(decode(x)))
    return Operator(lambda x: operator.apply(decode(x)), lambda x, y, ratio=0.0: encode(prox(decode(x), y, ratio)))
