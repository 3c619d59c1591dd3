"""How far one set of sounds is from another: distances between two sets of embeddings, [n, d] and [m, d].

The Frechet distance is that of Gaussians fitted to the sets,

    d^2 = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1^(1/2) S_2 S_1^(1/2))^(1/2))      (Dowson & Landau 1982, eq. 4)

and the kernel distance is the squared maximum mean discrepancy, which assumes no Gaussians (Gretton et al. 2012). All
is computed in double precision. Few sounds make a Frechet distance too large, by about a constant over their number:
`fad_infinity` takes that away, and distances of sets of different sizes are compared by it alone. The kernel distance
is unbiased for any number. Embeddings of sounds are in `embeddings.py`.
"""

from collections.abc import Callable
from statistics import NormalDist
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist

from .interval import Interval

Kernel = Literal["polynomial", "gaussian"]
KERNEL_ROWS = 1024  # of a kernel matrix that are computed at once
MEDIAN_SOUNDS = 2000  # between which, at most, the median distance is sought


class Extrapolation(NamedTuple):
    """A Frechet distance of infinitely many sounds, and the line that gave it: distance = value + slope / size.

    `sizes` and `distances` are the points of the line. `fit` is the share of the variance of the distances that it
    explains (R^2), and `residual` their root-mean-square distance from it. A fit near 1 tells a bias that a line
    describes; it is low where the distances hardly depend on the size, and then a small `residual` is what counts.
    """

    value: float
    slope: float
    fit: float
    residual: float
    sizes: Int[np.ndarray, " points"]
    distances: Float[np.ndarray, " points"]


class KernelDistance(NamedTuple):
    """An unbiased squared distance and its standard error."""

    value: float
    error: float


def frechet_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """The squared Frechet distance between two sets of embeddings, in the embedding's unit squared (dB^2 for log-mel).

    Covariances are those of samples (divided by n - 1); they may be singular, so there may be fewer sounds than
    dimensions. With roots S = R^T R the distance between covariances is the least |R_1 - U R_2|^2 over orthogonal U
    (Bhatia et al. 2019, Theorem 1): a sum of squares, so equal sets are at zero and no distance is below it.

    Raises ValueError when a set has fewer than two sounds, for it has no covariance, and for sets that are no finite
    matrices of as many columns.

    >>> a = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    >>> frechet_distance(a, a + [3.0, 4.0])
    25.0
    """
    a, b = _checked(a, b, 2, "a Frechet distance")
    return _between(_fitted(a), _fitted(b))


class _Gaussian(NamedTuple):
    mean: np.ndarray  # [d]
    root: np.ndarray  # [r, d] with r = min(n, d); root.T @ root is the covariance


def _fitted(x: np.ndarray) -> _Gaussian:
    mean = x.mean(0)
    root = (x - mean) / np.sqrt(len(x) - 1)
    if len(root) > root.shape[1]:
        root = np.asarray(np.linalg.qr(root, mode="r"))
    return _Gaussian(mean, root)


def _between(a: _Gaussian, b: _Gaussian) -> float:
    rows = max(len(a.root), len(b.root))
    one, other = (np.pad(g.root, ((0, rows - len(g.root)), (0, 0))) for g in (a, b))
    left, _, right = np.linalg.svd(one @ other.T)
    return float(((a.mean - b.mean) ** 2).sum() + ((one - left @ right @ other) ** 2).sum())


def fad_infinity(
    reference: Float[np.ndarray, "n d"],
    made: Float[np.ndarray, "m d"],
    *,
    points: int = 15,
    smallest: int | None = None,
    repeats: int = 8,
    both: bool = False,
    seed: int = 0,
) -> Extrapolation:
    """The Frechet distance of infinitely many sounds: that of subsets of `made`, extrapolated over 1 / size to zero.

    The subsets have `points` sizes from `smallest` (by default half of the sounds) to all of them, evenly spaced in
    1 / size; for each size the mean over `repeats` random subsets counts. The line is that of least squares (Chong &
    Forsyth 2020; for audio Gui et al. 2024). The bias of a small reference stays, unless `both` is set: then subsets of
    equal shares are taken of both sets. An estimate without bias may be negative where the sets are alike. The bias is
    a line only where subsets have more sounds than dimensions: with fewer, much of it stays.

    Raises ValueError for sets that `frechet_distance` refuses, for fewer than 8 sounds, and for numbers that make no
    line.
    """
    reference, made = _checked(reference, made, 8 if both else 2, "FAD-infinity")
    count = len(made)
    if count < 8:
        raise ValueError(f"FAD-infinity needs at least 8 sounds that were made, got {count}; give more")
    smallest = count // 2 if smallest is None else smallest
    if not 2 <= smallest < count:
        raise ValueError(f"the smallest subset of {count} sounds must have 2 to {count - 1} of them, got {smallest}")
    if points < 2 or repeats < 1:
        raise ValueError(f"FAD-infinity needs at least 2 points and 1 repeat, got {points} and {repeats}")
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.round(1 / np.linspace(1 / smallest, 1 / count, points)).astype(int))
    whole = _fitted(reference)
    sums = np.zeros(len(sizes))
    for _ in range(repeats):
        ours, theirs = rng.permutation(count), rng.permutation(len(reference))
        for i, size in enumerate(sizes):
            other = _fitted(reference[theirs[: max(2, round(size / count * len(reference)))]]) if both else whole
            sums[i] += _between(_fitted(made[ours[:size]]), other)
    distances = sums / repeats
    slope, value = np.polyfit(1 / sizes, distances, 1)
    spread = ((distances - distances.mean()) ** 2).sum()
    left = ((distances - value - slope / sizes) ** 2).sum()
    fit = 1 - left / spread if spread > 0 else 1.0
    residual = np.sqrt(left / len(sizes))
    return Extrapolation(float(value), float(slope), float(fit), float(residual), sizes, distances)


def bootstrap_interval(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    distance: Callable[[np.ndarray, np.ndarray], float] = frechet_distance,
    *,
    level: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> Interval:
    """The interval that covers the distance between what the sets were drawn from, in a share `level` of all cases.

    Both sets are drawn again with replacement `resamples` times. Drawing again adds to a distance what drawing once
    added, so percentiles of the new distances would lie too high. Their mean tells that bias and their standard
    deviation the error: the interval is the normal one around the distance less the bias (Davison & Hinkley 1997,
    chapter 5), so where few sounds make the measured distance too large, that may lie above its interval. Limits below
    zero become zero, as no true distance is negative. The rate holds where a set has several times more sounds than
    dimensions; with fewer, a part of the bias stays and the interval misses too often.

    Raises ValueError for sets that `frechet_distance` refuses, for a level that is not between 0 and 1 and for fewer
    than 20 resamples.
    """
    a, b = _checked(a, b, 2, "an interval")
    if not 0 < level < 1 or resamples < 20:
        raise ValueError(f"an interval needs a level between 0 and 1 and 20 resamples, got {level} and {resamples}")
    measured = float(distance(a, b))
    rng = np.random.default_rng(seed)
    again = np.empty(resamples)
    for i in range(resamples):
        again[i] = distance(a[rng.integers(len(a), size=len(a))], b[rng.integers(len(b), size=len(b))])
    corrected = float(2 * measured - again.mean())
    half = NormalDist().inv_cdf((1 + level) / 2) * float(again.std(ddof=1))
    return Interval(measured, max(corrected - half, 0.0), max(corrected + half, 0.0))


def kernel_distance(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    kernel: Kernel = "polynomial",
    *,
    bandwidth: float | None = None,
) -> KernelDistance:
    """The squared maximum mean discrepancy without bias, and its standard error by the jackknife.

        mean of k(a_i, a_j) over i != j + mean of k(b_i, b_j) over i != j - 2 mean of k(a_i, b_j)

    (Gretton et al. 2012, eq. 3). The kernel "polynomial" is (x . y / d + 1)^3, that of KID (Binkowski et al. 2018):
    means, variances and skews count. "gaussian" is exp(-|x - y|^2 / (2 bandwidth^2)) and sees any difference, best
    those of the size of the bandwidth, which is by default the median distance between sounds of both sets. An estimate
    without bias may be negative where the sets are alike; for equal sets it is. The error is somewhat too large there.

    Raises ValueError for an unknown kernel, for a bandwidth that is not positive, when a set has fewer than three
    sounds, and for sets that are no finite matrices of as many columns.
    """
    if kernel not in get_args(Kernel):
        raise ValueError(f"the kernel {kernel} is unknown; use one of {', '.join(get_args(Kernel))}")
    if bandwidth is not None and not 0 < bandwidth < np.inf:
        raise ValueError(f"the bandwidth of a kernel must be positive and finite, got {bandwidth}")
    a, b = _checked(a, b, 3, "a kernel distance")
    if kernel == "gaussian":
        scale = _median_distance(a, b) if bandwidth is None else bandwidth
        center = a.mean(0)  # distances of points near zero lose fewer digits
        a, b = (a - center) / scale, (b - center) / scale
    within_a, within_b = _row_sums(a, a, kernel) - _own(a, kernel), _row_sums(b, b, kernel) - _own(b, kernel)
    across_a, across_b = _row_sums(a, b, kernel), _row_sums(b, a, kernel)
    n, m = len(a), len(b)
    mean_a, mean_b = within_a.sum() / (n * (n - 1)), within_b.sum() / (m * (m - 1))
    across = across_a.sum()
    without_a = (within_a.sum() - 2 * within_a) / ((n - 1) * (n - 2)) + mean_b - 2 * (across - across_a) / ((n - 1) * m)
    without_b = (within_b.sum() - 2 * within_b) / ((m - 1) * (m - 2)) + mean_a - 2 * (across - across_b) / (n * (m - 1))
    variance = (n - 1) * without_a.var() + (m - 1) * without_b.var()
    return KernelDistance(float(mean_a + mean_b - 2 * across / (n * m)), float(np.sqrt(variance)))


def _row_sums(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> np.ndarray:
    """For each row of x the sum of the kernel over the rows of y, in bounded memory."""
    sums = []
    for first in range(0, len(x), KERNEL_ROWS):
        rows = x[first : first + KERNEL_ROWS]
        if kernel == "polynomial":
            values = (rows @ y.T / x.shape[1] + 1) ** 3
        else:
            squares = (rows**2).sum(1)[:, None] + (y**2).sum(1) - 2 * rows @ y.T
            values = np.exp(-np.maximum(squares, 0) / 2)
        sums.append(values.sum(1))
    return np.concatenate(sums)


def _own(x: np.ndarray, kernel: Kernel) -> np.ndarray:
    """The kernel of each row with itself."""
    return ((x**2).mean(1) + 1) ** 3 if kernel == "polynomial" else np.ones(len(x))


def _median_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The median distance between sounds of both sets; their mean distance where most are equal, 1 where all are."""
    pooled = np.concatenate([a, b])
    evenly = np.linspace(0, len(pooled) - 1, min(len(pooled), MEDIAN_SOUNDS)).astype(int)
    distances = pdist(pooled[evenly])
    return float(np.median(distances)) or float(distances.mean()) or 1.0


def _checked(a: np.ndarray, b: np.ndarray, least: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in double precision; ValueError where they are no two finite matrices of as many columns."""
    sets = []
    for which, x in (("first", a), ("second", b)):
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(f"{name} needs embeddings [sounds, dimensions], the {which} set has the shape {x.shape}")
        if x.dtype.kind not in "fiu":
            raise ValueError(f"{name} needs embeddings of real numbers, the {which} set is of type {x.dtype}")
        sets.append(x.astype(np.float64))
    a, b = sets
    if min(len(a), len(b)) < least:
        raise ValueError(f"{name} needs at least {least} sounds on each side, got {len(a)} and {len(b)}")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{name} needs as many dimensions on each side, got {a.shape[1]} and {b.shape[1]}; embed both alike"
        )
    for which, x in (("first", a), ("second", b)):
        if not (finite := np.isfinite(x).all(1)).all():
            raise ValueError(
                f"{name} needs finite embeddings, that of sound {int(finite.argmin())} in the {which} set is not; "
                "leave it out"
            )
    return a, b
