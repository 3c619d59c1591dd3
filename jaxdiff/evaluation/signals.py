"""How far a sound is from its reference, in samples, in energies and in short-time spectra.

    SNR = 10 log10(|r|^2 / |r - e|^2),      SI-SDR = 10 log10(|a r|^2 / |e - a r|^2),  a = <r, e> / |r|^2
    LSD = mean over frames of sqrt(mean over bins of (R - E)^2),      R and E power spectra in dB

Each function takes a reference r and an estimate e, `[..., samples]`, and gives one number for each item. What silence,
equal and short sounds have is decided in `measures`. Levels are in dB relative to a sine of full scale (amplitude 1).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdiff.features import integrated_loudness, melspectrogram, multi_resolution_stft_loss, power_to_db, stft
from jaxdiff.features.spectral import power_of_two, safe_power
from jaxdiff.features.transform import each_item, transform
from jaxdiff.features.windows import fft_window, frame

LIMIT_DB = 100.0  # of every ratio: about what rounding to float32 leaves of a sound
_BLOCK = 256  # samples of which the products are added first, so that rounding does not grow with the length


def each_pair(function: Callable[[Array, Array], Array], reference: Array, estimate: Array) -> Array:
    """`function` of each pair of waveforms, of which the leading axes broadcast; NaN where a sample is not finite."""
    lead = jnp.broadcast_shapes(reference.shape[:-1], estimate.shape[:-1])

    def pair(reference: Array, estimate: Array) -> Array:
        finite = jnp.isfinite(reference).all() & jnp.isfinite(estimate).all()
        return jnp.where(finite, function(reference, estimate), jnp.nan)

    return each_item(pair, *(jnp.broadcast_to(wave, (*lead, wave.shape[-1])) for wave in (reference, estimate)))


def at_least(y: Float[Array, " samples"], length: int) -> Float[Array, " padded"]:
    """`y`, followed by silence up to `length` samples if it is shorter."""
    return jnp.pad(y, (0, max(0, length - len(y))))


def frame_length(sr: float, seconds: float) -> int:
    """The power of two that is nearest to so many seconds in ratio, in samples."""
    return 2 ** max(1, round(float(np.log2(seconds * sr))))


@transform
def mse(reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"]) -> Float[Array, "..."]:
    """The mean squared difference. It grows with the square of a common gain and is symmetric.

    >>> float(mse(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])))
    0.25
    """
    return each_pair(lambda r, e: ((r - e) ** 2).mean(), reference, estimate)


@transform
def mae(reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"]) -> Float[Array, "..."]:
    """The mean absolute difference. It grows with a common gain and is symmetric.

    >>> float(mae(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5])))
    0.5
    """
    return each_pair(lambda r, e: jnp.abs(r - e).mean(), reference, estimate)


@transform
def snr(reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"]) -> Float[Array, "..."]:
    """The energy of the reference over that of the difference, in dB within +-100.

    A common gain or a common change of sign leaves it. Equal sounds have 100, a silent estimate 0, a silent reference
    -100.

    >>> round(float(snr(jnp.array([1.0, 1.0]), jnp.array([1.1, 0.9]))), 3)
    20.0
    """

    def pair(reference: Array, estimate: Array) -> Array:
        reference, estimate = _scaled(reference, estimate)
        return _decibels(_inner(reference, reference), _inner(reference - estimate, reference - estimate))

    return each_pair(pair, reference, estimate)


@transform
def si_sdr(
    reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"], *, zero_mean: bool = False
) -> Float[Array, "..."]:
    """The scale-invariant ratio of signal to distortion, in dB within +-100 (Le Roux et al. 2019, eq. 3 and 5).

    The gain and the sign of either sound leave it. The equations take no mean away, and neither does this; with
    `zero_mean` the mean of each sound is taken away first, and then an offset leaves it too. Scaled copies have 100,
    hence two sounds of one sample too; where only one sound is silent it is -100.

    >>> round(float(si_sdr(jnp.array([1.0, 1.0]), jnp.array([-2.2, -1.8]))), 3)
    20.0
    """

    def pair(reference: Array, estimate: Array) -> Array:
        if zero_mean:
            reference, estimate = reference - reference.mean(), estimate - estimate.mean()
        reference, estimate = (y / power_of_two(y, -1) for y in (reference, estimate))
        energy, own = _inner(reference, reference), _inner(estimate, estimate)
        target = _inner(reference, estimate) / jnp.where(energy > 0, energy, 1) * reference
        ratio = _decibels(_inner(target, target), _inner(estimate - target, estimate - target))
        return jnp.where((energy > 0) == (own > 0), ratio, -LIMIT_DB)

    return each_pair(pair, reference, estimate)


@transform
def segmental_snr(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
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

    def pair(reference: Array, estimate: Array) -> Array:
        reference, estimate = (at_least(y, 4 * hop) for y in _scaled(reference, estimate))
        signal, error = ((frame(y, 4 * hop, hop, window) ** 2).sum(-1) for y in (reference, reference - estimate))
        heard = signal > signal.max() * 10 ** (-top_db / 10)
        ratios = jnp.clip(_decibels(signal, error), -10.0, 35.0)
        alone = jnp.where((error == 0).all(), 35.0, -10.0)
        return jnp.where(heard.any(), masked_mean(ratios, heard), alone)

    return each_pair(pair, reference, estimate)


@transform
def log_spectral_distance(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
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

    def pair(reference: Array, estimate: Array) -> Array:
        return safe_power(((levels(reference) - levels(estimate)) ** 2).mean(-2), 0.5).mean(-1)

    return each_pair(pair, reference, estimate)


@transform
def multi_resolution_stft(
    reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"]
) -> Float[Array, "..."]:
    """`multi_resolution_stft_loss` of the features, whose convergence is relative to the reference (Yamamoto et al.
    2020). Signs never matter, and a common gain leaves it as long as bins are above the floor of -70 dB.

    >>> y = jnp.sin(jnp.arange(4096.0))
    >>> float(multi_resolution_stft(y, -y)) < 1e-6 < float(multi_resolution_stft(y, 0.5 * y))
    True
    """
    return each_pair(lambda r, e: multi_resolution_stft_loss(e, r), reference, estimate)


def log_mel(y: Float[Array, " samples"], sr: float, n_fft: int | None, n_mels: int, floor: float) -> Array:
    """Mel energies `[mels, frames]` in dB of frames that overlap by three quarters, at least `floor`, a power.

    `n_fft` None is the power of two nearest to 50 ms: 1024 samples from 16 to 28 kHz, 2048 at 44.1 and 48 kHz.
    """
    n_fft = frame_length(sr, 0.05) if n_fft is None else n_fft
    scale = (2 / fft_window("hann", n_fft, n_fft).sum()) ** 2
    S = melspectrogram(y, sr=sr, n_fft=n_fft, hop_length=max(1, n_fft // 4), n_mels=n_mels, norm=None)
    return power_to_db(scale * S, amin=floor, top_db=None)


@transform
def mel_distance(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
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

    def pair(reference: Array, estimate: Array) -> Array:
        ours, theirs = (log_mel(y, sr, n_fft, n_mels, floor) for y in (reference, estimate))
        return jnp.abs(ours - theirs).mean()

    return each_pair(pair, reference, estimate)


@transform
def loudness_error(
    reference: Float[Array, "... samples"], estimate: Float[Array, "... samples"], *, sr: float
) -> Float[Array, "..."]:
    """The absolute difference of integrated loudness in LU (ITU-R BS.1770-4).

    Each item is one mono programme. A sound shorter than one block of 400 ms is followed by silence up to it, which
    lowers both sounds alike; silence has -70 LUFS. A common gain leaves the error as long as the gate of -70 LUFS drops
    the same blocks; signs never matter. Refuses rates below 4 kHz (`ValueError`).

    >>> y = jnp.sin(jnp.arange(48000) / 8)
    >>> round(float(loudness_error(y, 0.5 * y, sr=48000)), 2)
    6.02
    """
    length = 4 * round(sr / 10)

    def pair(reference: Array, estimate: Array) -> Array:
        ours, theirs = (integrated_loudness(at_least(y, length), sr=sr) for y in (reference, estimate))
        return jnp.abs(ours - theirs)

    return each_pair(pair, reference, estimate)


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
