"""How far a sound is from its reference, in samples, in energies and in short-time spectra.

    SNR = 10 log10(|r|^2 / |r - e|^2),      SI-SDR = 10 log10(|a r|^2 / |e - a r|^2),  a = <r, e> / |r|^2
    LSD = mean over frames of sqrt(mean over bins of (R - E)^2),      R and E power spectra in dB

Each function takes a reference r and an estimate e, `[..., samples]`, and gives one number for each item. What silence,
equal and short sounds have, and what `lengths` are, is decided in `measures`. Levels are in dB relative to a sine of
full scale (amplitude 1).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.features import melspectrogram, power_to_db, stft
from jaxdiff.features.losses import mean_stft_distance
from jaxdiff.features.loudness import block_power, gated_loudness
from jaxdiff.features.spectral import count_frames, power_of_two, safe_power
from jaxdiff.features.transform import each_item, transform
from jaxdiff.features.windows import fft_window, frame

LIMIT_DB = 100.0  # of every ratio: about what rounding to float32 leaves of a sound
_BLOCK = 256  # samples of which the products are added first, so that rounding does not grow with the length

Lengths = Int[Array, "... 2"] | None  # how many samples of the reference and of the estimate are sound; None: all
Count = Int[Array, ""] | int


def each_pair(
    function: Callable[..., Array], reference: Array, estimate: Array, lengths: Lengths, *, cut: bool = True
) -> Array:
    """`function(reference, estimate, samples)` of each pair of waveforms, of which the leading axes broadcast.

    `samples` is how many of both are compared, which is the smaller of their lengths and at least 1; those that follow
    are 0. Without `cut` the function takes the numbers of both. NaN where a sample that is compared is not finite.
    """
    arrays = (reference, estimate) if lengths is None else (reference, estimate, lengths)
    lead = jnp.broadcast_shapes(*(array.shape[:-1] for array in arrays))

    def pair(reference: Array, estimate: Array, *lengths: Array) -> Array:
        waves, counts = (reference, estimate), [len(reference), len(estimate)]
        if lengths:
            ends = [jnp.clip(end, 0, count) for end, count in zip(*lengths, counts, strict=True)]
            counts = [jnp.maximum(end, 1) for end in ends]
            counts = 2 * [jnp.minimum(*counts)] if cut else counts
            waves = [first(y, jnp.minimum(end, count)) for y, end, count in zip(waves, ends, counts, strict=True)]
        finite = jnp.isfinite(waves[0]).all() & jnp.isfinite(waves[1]).all()
        value = function(*waves, counts[0]) if cut else function(*waves, *counts)
        return jnp.where(finite, value, jnp.nan)

    return each_item(pair, *(jnp.broadcast_to(array, (*lead, array.shape[-1])) for array in arrays))


def first(x: Float[Array, "... n"], count: Count) -> Float[Array, "... n"]:
    """`x`, of which all but the first `count` entries of the last axis are 0."""
    return jnp.where(jnp.arange(x.shape[-1]) < count, x, 0)


def mean_of_first(x: Float[Array, " n"], count: Count) -> Float[Array, ""]:
    """The mean of the first `count` entries."""
    return first(x, count).sum() / count


def at_least(y: Float[Array, " samples"], length: int) -> Float[Array, " padded"]:
    """`y`, followed by silence up to `length` samples if it is shorter."""
    return jnp.pad(y, (0, max(0, length - len(y))))


def frame_length(sr: float, seconds: float) -> int:
    """The power of two that is nearest to so many seconds in ratio, in samples."""
    return 2 ** max(1, round(float(np.log2(seconds * sr))))


@transform
def mse(
    reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"], lengths: Lengths = None
) -> Float[Array, "..."]:
    """The mean squared difference. It grows with the square of a common gain and is symmetric.

    >>> float(mse(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])))
    0.25
    """
    return each_pair(lambda r, e, n: mean_of_first((r - e) ** 2, n), reference, estimate, lengths)


@transform
def mae(
    reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"], lengths: Lengths = None
) -> Float[Array, "..."]:
    """The mean absolute difference. It grows with a common gain and is symmetric.

    >>> float(mae(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])))
    0.5
    """
    return each_pair(lambda r, e, n: mean_of_first(jnp.abs(r - e), n), reference, estimate, lengths)


@transform
def snr(
    reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"], lengths: Lengths = None
) -> Float[Array, "..."]:
    """The energy of the reference over that of the difference, in dB within +-100.

    A common gain or a common change of sign leaves it. Equal sounds have 100, a silent estimate 0, a silent reference
    -100.

    >>> round(float(snr(jnp.array([1.0, 1.0]), jnp.array([1.1, 0.9]))), 3)
    20.0
    """

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        reference, estimate = _scaled(reference, estimate)
        return _decibels(_inner(reference, reference), _inner(reference - estimate, reference - estimate))

    return each_pair(pair, reference, estimate, lengths)


@transform
def si_sdr(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
    lengths: Lengths = None,
    *,
    zero_mean: bool = False,
) -> Float[Array, "..."]:
    """The scale-invariant ratio of signal to distortion, in dB within +-100 (Le Roux et al. 2019, eq. 3 and 5).

    The gain and the sign of either sound leave it. The equations take no mean away, and neither does this; with
    `zero_mean` the mean of each sound is taken away first, and then an offset leaves it too. Scaled copies have 100,
    hence two sounds of one sample too; where only one sound is silent it is -100.

    >>> round(float(si_sdr(jnp.array([1.0, 1.0]), jnp.array([-2.2, -1.8]))), 3)
    20.0
    """

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        if zero_mean:
            reference, estimate = (first(y - mean_of_first(y, samples), samples) for y in (reference, estimate))
        reference, estimate = (y / power_of_two(y, -1) for y in (reference, estimate))
        energy, own = _inner(reference, reference), _inner(estimate, estimate)
        target = _inner(reference, estimate) / jnp.where(energy > 0, energy, 1) * reference
        ratio = _decibels(_inner(target, target), _inner(estimate - target, estimate - target))
        return jnp.where((energy > 0) == (own > 0), ratio, -LIMIT_DB)

    return each_pair(pair, reference, estimate, lengths)


@transform
def segmental_snr(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
    lengths: Lengths = None,
    *,
    sr: float,
    frame_seconds: float = 0.03,
    top_db: float = 40.0,
) -> Float[Array, "..."]:
    """The mean over frames of the SNR in dB, of which each is limited to -10 ... 35 (Hansen & Pellom 1998).

    Frames of `frame_seconds` under a Hann window overlap by three quarters. Frames of the reference that are `top_db`
    below its loudest one count as silent and are left out. A common gain or a common change of sign leaves it. Equal
    sounds have 35, a silent estimate 0, a silent reference -10.

    >>> y = jnp.sin(jnp.arange(4000.0))
    >>> round(float(segmental_snr(y, 0.9 * y, sr=16000)), 3)
    20.0
    """
    hop = max(1, round(frame_seconds * sr / 4))
    window = fft_window("hann", 4 * hop, 4 * hop)

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        reference, estimate = (at_least(y, 4 * hop) for y in _scaled(reference, estimate))
        signal, error = ((frame(y, 4 * hop, hop, window) ** 2).sum(-1) for y in (reference, reference - estimate))
        frames = 1 + jnp.maximum(samples - 4 * hop, 0) // hop
        signal, error = first(signal, frames), first(error, frames)
        heard = signal > signal.max() * 10 ** (-top_db / 10)
        ratios = jnp.clip(_decibels(signal, error), -10.0, 35.0)
        alone = jnp.where((error == 0).all(), 35.0, -10.0)
        return jnp.where(heard.any(), masked_mean(ratios, heard), alone)

    return each_pair(pair, reference, estimate, lengths)


@transform
def log_spectral_distance(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
    lengths: Lengths = None,
    *,
    n_fft: int = 2048,
    hop_length: int = 512,
    floor: float = 1e-10,
) -> Float[Array, "..."]:
    """The root mean square over bins of the difference of power spectra in dB, averaged over frames (Gray & Markel
    1976, between frames of a Hann window).

    Powers below `floor`, where a sine of full scale has 1, count as `floor`. Above it a common gain leaves the distance
    and a gain of one sound alone adds its dB; signs never matter.

    >>> y = jnp.sin(jnp.arange(4096.0) ** 2)
    >>> round(float(log_spectral_distance(y, 0.1 * y)), 2)
    20.0
    """
    scale = 2 / fft_window("hann", n_fft, n_fft).sum()

    def levels(y: Array) -> Array:
        X = scale * stft(y, n_fft=n_fft, hop_length=hop_length)
        return power_to_db(X.real**2 + X.imag**2, amin=floor, top_db=None)

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        distances = safe_power(((levels(reference) - levels(estimate)) ** 2).mean(-2), 0.5)
        return mean_of_first(distances, count_frames(samples, n_fft, hop_length))

    return each_pair(pair, reference, estimate, lengths)


@transform
def multi_resolution_stft(
    reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"], lengths: Lengths = None
) -> Float[Array, "..."]:
    """`multi_resolution_stft_loss` of the features, whose convergence is relative to the reference (Yamamoto et al.
    2020). Signs never matter, and a common gain leaves it as long as bins are above the floor of -70 dB.

    >>> y = jnp.sin(jnp.arange(4096.0))
    >>> float(multi_resolution_stft(y, -y)) < 1e-6 < float(multi_resolution_stft(y, 0.5 * y))
    True
    """
    return each_pair(lambda r, e, n: mean_stft_distance(e, r, n), reference, estimate, lengths)


def log_mel(
    y: Float[Array, " samples"], samples: Count, sr: float, n_fft: int | None, n_mels: int, floor: float
) -> tuple[Float[Array, "mels frames"], Count]:
    """Mel energies in dB of frames that overlap by three quarters, at least `floor`, a power; how many frames `samples`
    have.

    `n_fft` None is the power of two nearest to 50 ms: 1024 samples from 16 to 28 kHz, 2048 at 44.1 and 48 kHz.
    """
    n_fft = frame_length(sr, 0.05) if n_fft is None else n_fft
    hop = max(1, n_fft // 4)
    scale = (2 / fft_window("hann", n_fft, n_fft).sum()) ** 2
    S = melspectrogram(y, sr=sr, n_fft=n_fft, hop_length=hop, n_mels=n_mels, norm=None)
    return power_to_db(scale * S, amin=floor, top_db=None), count_frames(samples, n_fft, hop)


@transform
def mel_distance(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
    lengths: Lengths = None,
    *,
    sr: float,
    n_fft: int | None = None,
    n_mels: int = 80,
    floor: float = 1e-10,
) -> Float[Array, "..."]:
    """The mean absolute difference of log-mel spectra in dB: the spectral distance that vocoders report.

    Frames are of `n_fft` samples (None: the power of two nearest to 50 ms) and overlap by three quarters; powers below
    `floor`, where a sine of full scale has 1, count as `floor`. Above it a common gain leaves the distance and a gain
    of one sound alone adds its dB; signs never matter.

    >>> y = jnp.sin(jnp.arange(4096.0) ** 2)
    >>> round(float(mel_distance(y, -0.1 * y, sr=16000)), 2)
    20.0
    """

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        (ours, frames), (theirs, _) = (log_mel(y, samples, sr, n_fft, n_mels, floor) for y in (reference, estimate))
        return mean_of_first(jnp.abs(ours - theirs).mean(0), frames)

    return each_pair(pair, reference, estimate, lengths)


@transform
def loudness_error(
    reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"], lengths: Lengths = None, *, sr: float
) -> Float[Array, "..."]:
    """The absolute difference of integrated loudness in LU (ITU-R BS.1770-4).

    Each item is one mono programme. A sound shorter than one block of 400 ms is followed by silence up to it, which
    lowers both sounds alike; silence has -70 LUFS. A common gain leaves the error as long as the gate of -70 LUFS drops
    the same blocks; signs never matter. Refuses rates below 4 kHz (`ValueError`).

    >>> y = jnp.sin(jnp.arange(48000) / 8)
    >>> round(float(loudness_error(y, 0.5 * y, sr=48000)), 2)
    6.02
    """
    hop = round(sr / 10)

    def loudness(y: Array, samples: Count) -> Array:
        power = block_power(at_least(y, 4 * hop), 4, sr)
        return gated_loudness(first(power, jnp.maximum(samples // hop - 3, 1)))

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        return jnp.abs(loudness(reference, samples) - loudness(estimate, samples))

    return each_pair(pair, reference, estimate, lengths)


def masked_mean(values: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """The mean of the values where the mask is true, 0 where it nowhere is."""
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def _scaled(reference: Array, estimate: Array) -> tuple[Array, Array]:
    """Both sounds divided by one power of two, so that no energy leaves the range of float32."""
    scale = power_of_two(jnp.concatenate([reference, estimate]), -1)
    return reference / scale, estimate / scale


def _inner(a: Array, b: Array) -> Array:
    """The inner product of two waveforms, summed block by block."""
    blocks = -(-len(a) // _BLOCK)
    a, b = (at_least(x, blocks * _BLOCK).reshape(blocks, _BLOCK) for x in (a, b))
    return jnp.einsum("bn,bn->b", a, b, precision="highest").sum()


def _decibels(signal: Array, error: Array) -> Array:
    """10 log10(signal / error) of two energies, within the limit; the limit where both are 0. Its gradient beyond the
    limits is 0."""
    least = 10 ** (-LIMIT_DB / 10)
    best, worst = error <= least * signal, signal <= least * error
    inside = ~(best | worst)
    ratio = 10 * (jnp.log10(jnp.where(inside, signal, 1)) - jnp.log10(jnp.where(inside, error, 1)))
    return jnp.where(best, LIMIT_DB, jnp.where(worst, -LIMIT_DB, ratio))
