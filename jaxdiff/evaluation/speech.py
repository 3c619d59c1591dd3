"""How near speech is to its reference: the shape of its spectrum (cepstral distortion) and how well it is understood.

    MCD = mean over frames of (10 / ln 10) sqrt(2 sum_d (c_d - c'_d)^2),   d = 1 ... D      (Kubichek 1993)
    STOI, ESTOI = mean correlation of third-octave envelopes over segments of 384 ms

Each function takes a reference and an estimate, `[..., samples]`, and gives one number for each item. What silence,
equal and short sounds have, and what `lengths` are, is decided in `measures`.
"""

import functools
import math
from collections.abc import Iterable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.features import mfcc
from jaxdiff.features.resample import polyphase, resampled_length
from jaxdiff.features.spectral import power_of_two, safe_power
from jaxdiff.features.transform import transform
from jaxdiff.features.windows import frame, overlap_add

from .signals import Count, Lengths, at_least, each_pair, first, log_mel, masked_mean, mean_of_first

_STOI_RATE = 10_000
_STOI_FRAME, _STOI_HOP, _STOI_FFT = 256, 128, 512
_STOI_SEGMENT = 30  # frames
_STOI_WINDOW = np.hanning(_STOI_FRAME + 2)[1:-1]


@transform
def mel_cepstral_distortion(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
    lengths: Lengths = None,
    *,
    sr: float,
    n_fft: int | None = None,
    n_mels: int = 40,
    n_mfcc: int = 13,
    floor: float = 1e-10,
) -> Float[Array, "..."]:
    """The mel-cepstral distortion in dB of frames at equal times, over the coefficients 1 ... `n_mfcc`.

    The coefficients are the cosine series of the log-mel power L_k, c_d = mean over k of L_k cos(pi d (k + 1/2) / K) in
    nepers, so that the distortion is the RMS difference in dB of the spectra that the series draws, without their
    levels: coefficients of other scales or other spectra (WORLD's, say) give other numbers. Frames are of `n_fft`
    samples (None: the power of two nearest to 50 ms) and overlap by three quarters; powers below `floor`, where a sine
    of full scale has 1, count as `floor`. Above it the gain of either sound leaves the distortion; signs never matter.

    >>> y = jnp.sin(jnp.arange(4096.0) ** 2)
    >>> float(mel_cepstral_distortion(y, -0.1 * y, sr=16000)) < 1e-3
    True
    """

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        (ours, frames), (theirs, _) = (
            _cepstra(y, samples, sr, n_fft, n_mels, n_mfcc, floor) for y in (reference, estimate)
        )
        return mean_of_first(_distortion(ours, theirs), frames)

    return each_pair(pair, reference, estimate, lengths)


@transform
def mel_cepstral_distortion_dtw(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... estimated"],
    lengths: Lengths = None,
    *,
    sr: float,
    n_fft: int | None = None,
    n_mels: int = 40,
    n_mfcc: int = 13,
    floor: float = 1e-10,
) -> Float[Array, "..."]:
    """The mel-cepstral distortion in dB along the best alignment of frames, for sounds that may differ in length.

    Of all paths from the first pair of frames to the last, with steps of one frame in either sound or in both, it takes
    that of the least sum and divides the sum by the number of pairs on the path (dynamic time warping, Sakoe & Chiba
    1978, with steps of equal weight). Time grows with the product of both numbers of frames, memory with their sum, or
    for the gradient with the product. Otherwise it is as `mel_cepstral_distortion`.

    >>> y = jnp.sin(jnp.arange(4096.0) ** 2)
    >>> float(mel_cepstral_distortion_dtw(y, y, sr=16000))
    0.0
    """

    def pair(reference: Array, estimate: Array, *samples: Count) -> Array:
        (ours, rows), (theirs, columns) = (
            _cepstra(y, count, sr, n_fft, n_mels, n_mfcc, floor)
            for y, count in zip((reference, estimate), samples, strict=True)
        )
        return _least_mean(ours, theirs, rows, columns)

    return each_pair(pair, reference, estimate, lengths, cut=False)


def _cepstra(
    y: Float[Array, " samples"],
    samples: Count,
    sr: float,
    n_fft: int | None,
    n_mels: int,
    n_mfcc: int,
    floor: float,
) -> tuple[Float[Array, "coefficients frames"], Count]:
    """The cosine series of log-mel powers in nepers, without the mean, and how many frames `samples` have."""
    S, frames = log_mel(y, samples, sr, n_fft, n_mels, floor)  # decibels
    return mfcc(S=S, n_mfcc=n_mfcc + 1)[1:] * (np.log(10) / 10 / np.sqrt(2 * n_mels)), frames


def _distortion(ours: Iterable[Float[Array, " frames"]], theirs: Iterable[Float[Array, " frames"]]) -> Array:
    """The distortion in dB of frames at equal places, whose coefficients are added one by one: on CPU, an array of them
    is summed without vector instructions."""
    square = jnp.asarray(sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)))
    return 10 / np.log(10) * np.sqrt(2) * safe_power(square, 0.5)


def _least_mean(
    ours: Float[Array, "coefficients rows"],
    theirs: Float[Array, "coefficients columns"],
    last_row: Count,
    last_column: Count,
) -> Float[Array, ""]:
    """The least sum of distances on a path from the first pair of frames to the last, divided by the path's length.

    The scan goes over anti-diagonals, whose cells only need the two before. Read backwards, the columns slide along the
    rows, and those that stand beside them make a diagonal; cells after the last pair are worked out and not read.
    """
    rows, columns = ours.shape[-1], theirs.shape[-1]
    passing = [jnp.pad(x, rows - 1) for x in (jnp.ones(columns), *theirs[:, ::-1])]

    def distances(start: Array) -> Array:
        present, *beside = (jax.lax.dynamic_slice_in_dim(x, start, rows) for x in passing)
        return jnp.where(present > 0, _distortion(ours, beside), jnp.inf)

    def from_row_before(cell: tuple[Array, Array]) -> tuple[Array, Array]:
        total, length = cell
        return jnp.pad(total[:-1], (1, 0), constant_values=jnp.inf), jnp.pad(length[:-1], (1, 0))

    def step(cells, start: Array):
        before, last = cells
        total, length = from_row_before(before)
        for other_total, other_length in (from_row_before(last), last):
            nearer = other_total < total
            total, length = jnp.where(nearer, other_total, total), jnp.where(nearer, other_length, length)
        cell = total + distances(start), length + 1
        return (last, cell), tuple(x[last_row - 1] for x in cell)

    starts = jnp.arange(rows + columns - 1)[::-1]
    corner = distances(starts[0])
    nowhere, begin = (jnp.full_like(corner, jnp.inf), jnp.zeros_like(corner)), (corner, jnp.ones_like(corner))
    _, ends = jax.lax.scan(jax.checkpoint(step), (nowhere, begin), starts[1:])
    total, length = (
        jnp.concatenate([x[:1], later])[last_row + last_column - 2] for x, later in zip(begin, ends, strict=True)
    )
    return total / length


@transform
def stoi(
    reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"], lengths: Lengths = None, *, sr: float
) -> Float[Array, "..."]:
    """The short-time objective intelligibility, about 0 (none) to 1 (Taal et al. 2011).

    At 10 kHz, frames of the reference (256 samples, half overlapping) that are 40 dB below its loudest one are cut out
    of both sounds. Of the rest, envelopes in 15 third-octave bands from 150 Hz are compared by their correlation over
    every 30 frames, where the estimate has been given the reference's energy and is clipped at 15 dB of distortion.

    The gain and the sign of either sound leave it. With fewer than 30 frames left (0.4 s) there is nothing to compare:
    equal sounds have 1, others 0, as where only one sound is silent. Where a band is constant it has 1 if it is so in
    both sounds, otherwise 0. The choice of frames has no gradient. Refuses rates whose ratio to 10 kHz has huge terms
    (`ValueError`).

    >>> y = jnp.sin(jnp.arange(16000.0) ** 2) * jnp.sin(jnp.arange(16000) / 900) ** 2
    >>> round(float(stoi(y, -0.1 * y, sr=16000)), 3)
    1.0
    """

    def segments(x: Array, y: Array) -> Array:
        energy, own = ((bands**2).sum(-2, keepdims=True) for bands in (x, y))
        y = y * safe_power(energy / jnp.where(own > 0, own, 1), 0.5)
        return _correlation(x, jnp.minimum(y, x * (1 + 10 ** (15 / 20))), axis=-2).mean(-1)

    return _intelligibility(segments, reference, estimate, lengths, sr)


@transform
def estoi(
    reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"], lengths: Lengths = None, *, sr: float
) -> Float[Array, "..."]:
    """The extended short-time objective intelligibility, about 0 (none) to 1, which also follows noise that fluctuates
    (Jensen & Taal 2016).

    As `stoi`, with the same frames, bands and segments; of a segment first each band is given mean 0 and norm 1 over
    time, then the spectra of its frames are compared by their correlation over bands. Nothing is clipped, so only the
    choice of frames tells the reference from the estimate.

    >>> y = jnp.sin(jnp.arange(16000.0) ** 2) * jnp.sin(jnp.arange(16000) / 900) ** 2
    >>> round(float(estoi(y, -0.1 * y, sr=16000)), 3)
    1.0
    """

    def segments(x: Array, y: Array) -> Array:
        return _correlation(_unit(x, -2)[0], _unit(y, -2)[0], axis=-1).mean(-1)

    return _intelligibility(segments, reference, estimate, lengths, sr)


def _intelligibility(segments, reference: Array, estimate: Array, lengths: Lengths, sr: float) -> Array:
    """The mean of `segments`, a function of the envelopes `[segments, frames, bands]` of both sounds."""
    bands = _third_octaves()

    def envelopes(frames: Float[Array, "frames length"]) -> Float[Array, "segments frames bands"]:
        joined = overlap_add(frames, _STOI_HOP)
        X = jnp.fft.rfft(frame(joined, _STOI_FRAME, _STOI_HOP, _STOI_WINDOW)[:-1], n=_STOI_FFT)
        power = jnp.matmul(X.real**2 + X.imag**2, jnp.asarray(bands, X.real.dtype), precision="highest")
        envelope = safe_power(power, 0.5)
        envelope = jnp.pad(envelope, ((0, max(0, _STOI_SEGMENT - len(envelope))), (0, 0)))
        return envelope[np.arange(len(envelope) - _STOI_SEGMENT + 1)[:, None] + np.arange(_STOI_SEGMENT)]

    ratio = Fraction(_STOI_RATE) / Fraction(sr)

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        equal = (reference == estimate).all()
        waves = (y / power_of_two(y, -1) for y in (reference, estimate))
        samples = resampled_length(samples, ratio.numerator, ratio.denominator)
        waves = (at_least(_at_stoi_rate(y, ratio), _STOI_FRAME + 1) for y in waves)
        # Like the authors' program, this takes the frames that end before the last sample.
        ours, theirs = (frame(y[:-1], _STOI_FRAME, _STOI_HOP, _STOI_WINDOW) for y in waves)
        energy = (ours**2).sum(-1)
        frames = 1 + jnp.maximum(samples - 1 - _STOI_FRAME, 0) // _STOI_HOP
        kept = first(energy, frames) > energy.max() * 1e-4
        order = jnp.argsort(~kept, stable=True)
        x, y = (envelopes(jnp.where(kept[order, None], frames[order], 0)) for frames in (ours, theirs))
        whole = jnp.arange(len(x)) + _STOI_SEGMENT < kept.sum()  # the last of the joined frames is left out again
        return jnp.where(whole.any() & ~equal, masked_mean(segments(x, y), whole), equal.astype(x.dtype))

    return each_pair(pair, reference, estimate, lengths)


def _at_stoi_rate(y: Float[Array, " samples"], ratio: Fraction) -> Float[Array, " resampled"]:
    """`y` at 10 kHz through the filter that the reference programs use.

    They leave the filter to `resample` of Matlab or Octave, which is 6 dB down at the lower Nyquist frequency and 60 dB
    a twentieth above it. A steeper one changes which hissing frames count as silent, and ESTOI by up to 0.03.
    """
    if ratio == 1:
        return y
    up, down = ratio.numerator, ratio.denominator
    taps = math.ceil((60 - 8) / 28.714 * 20 * max(up, down))
    half = (taps + 1e-6) / up  # rounding must not lose the outermost weights
    return polyphase(y, up, down, half=half, cutoff=min(1.0, up / down), beta=0.1102 * (60 - 8.7))


def _unit(x: Array, axis: int) -> tuple[Array, Array]:
    """`x` with mean 0 and norm 1 along `axis`, and where it is not constant there; zeros where it is."""
    x = x - x.mean(axis, keepdims=True)
    x = x / power_of_two(x, axis)
    energy = (x**2).sum(axis, keepdims=True)
    varies = energy > 0
    return x * jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, energy, 1)), 0), varies.squeeze(axis)


def _correlation(x: Array, y: Array, axis: int) -> Array:
    """The correlation along `axis`; where both are constant it is 1, where one is it is 0."""
    (x, x_varies), (y, y_varies) = _unit(x, axis), _unit(y, axis)
    return jnp.where(x_varies | y_varies, (x * y).sum(axis), 1)


@functools.cache
def _third_octaves() -> np.ndarray:
    """Ones `[bins, 15]` where a bin belongs to a third of an octave, whose centres begin at 150 Hz and whose edges are
    the nearest bins."""
    frequencies = np.arange(1 + _STOI_FFT // 2) * _STOI_RATE / _STOI_FFT
    edges = 150 * 2.0 ** ((2 * np.arange(16) - 1) / 6)
    nearest = np.abs(frequencies[:, None] - edges).argmin(0)
    bins = np.arange(len(frequencies))[:, None]
    return ((bins >= nearest[:-1]) & (bins < nearest[1:])).astype(np.float64)
