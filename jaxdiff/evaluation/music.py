"""Whether pitch, harmony and rhythm are those of the reference: F0 and voicing, chroma, onsets.

    F0 RMSE = sqrt(mean over frames voiced in both of (1200 log2(f / f'))^2) cents
    onset F1 = 2 hits / (onsets of the reference + onsets of the estimate)

Each function takes a reference and an estimate, `[..., samples]`, and gives one number for each item. What silence,
equal and short sounds have, and what `lengths` are, is decided in `measures`. Only `chroma_similarity` has a gradient;
decisions have none.
"""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from jaxdiff.features import chroma_stft, melspectrogram, onset_strength, power_to_db, resample
from jaxdiff.features.pitch import track_pitch
from jaxdiff.features.resample import resampled_length
from jaxdiff.features.spectral import count_frames, power_of_two
from jaxdiff.features.transform import transform
from jaxdiff.features.windows import frame

from .signals import Count, Lengths, each_pair, first, frame_length, masked_mean

_PITCH_RATE = 16_000
_PYIN: dict[str, Any] = dict(sr=_PITCH_RATE, frame_length=1024, hop_length=_PITCH_RATE // 100, n_thresholds=100)
_PYIN |= dict(beta_parameters=(2.0, 18.0), boltzmann_parameter=2.0, no_trough_prob=0.01, resolution=0.1)
_PYIN |= dict(max_transition_rate=35.92, switch_prob=0.01, center=True, pad_mode="constant")
_LOWEST, _HIGHEST = 60.0, 1000.0  # Hz, of voices and of most melodies


@transform
def f0_rmse(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
    lengths: Lengths = None,
    *,
    sr: float,
    fmin: float = _LOWEST,
    fmax: float = _HIGHEST,
) -> Float[Array, "..."]:
    """The root mean square error of F0 in cents, over the frames that are voiced in both sounds.

    F0 is pYIN's between `fmin` and `fmax` in Hz, every 10 ms at 16 kHz, on a grid of 10 cents. Where neither sound has
    a voiced frame the error is 0; where they have, but none at one time, it is that of the whole range, 1200
    log2(fmax / fmin). Gain and sign leave it.

    >>> y = jnp.sin(2 * jnp.pi * 220 / 16000 * jnp.arange(8000))
    >>> float(f0_rmse(y, -0.5 * y, sr=16000))
    0.0
    """

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        (ours, voiced, _), (theirs, also, _) = (_pitch(y, samples, sr, fmin, fmax) for y in (reference, estimate))
        both = voiced & also
        error = jnp.sqrt(masked_mean((1200 * jnp.log2(theirs / ours)) ** 2, both))
        alone = jnp.where((voiced | also).any(), 1200 * np.log2(fmax / fmin), 0.0)
        return jnp.where(both.any(), error, alone)

    return each_pair(pair, stop_gradient(reference), stop_gradient(estimate), lengths)


@transform
def voicing_error(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
    lengths: Lengths = None,
    *,
    sr: float,
    fmin: float = _LOWEST,
    fmax: float = _HIGHEST,
) -> Float[Array, "..."]:
    """The share of frames, 0 to 1, that are voiced in one sound and not in the other, by the tracker of `f0_rmse`.

    Silence is unvoiced. Gain and sign leave it.

    >>> y = jnp.sin(2 * jnp.pi * 220 / 16000 * jnp.arange(8000))
    >>> float(voicing_error(y, 0 * y, sr=16000))
    1.0
    """

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        (_, voiced, frames), (_, also, _) = (_pitch(y, samples, sr, fmin, fmax) for y in (reference, estimate))
        return (voiced != also).sum() / frames

    return each_pair(pair, stop_gradient(reference), stop_gradient(estimate), lengths)


def _pitch(
    y: Float[Array, " samples"], samples: Count, sr: float, fmin: float, fmax: float
) -> tuple[Float[Array, " frames"], Bool[Array, " frames"], Count]:
    """F0 in Hz and voicing of each frame, and how many frames `samples` have, after which all is unvoiced."""
    ratio = Fraction(_PITCH_RATE) / Fraction(sr)
    samples = resampled_length(samples, ratio.numerator, ratio.denominator)
    y = first(resample(y, orig_sr=sr, target_sr=_PITCH_RATE), samples)
    frames = count_frames(samples, _PYIN["frame_length"], _PYIN["hop_length"])
    f0, voiced, _ = track_pitch(y, frames, fmin=fmin, fmax=fmax, **_PYIN)
    return f0, first(voiced, frames), frames


@transform
def chroma_similarity(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
    lengths: Lengths = None,
    *,
    sr: float,
    top_db: float = 60.0,
) -> Float[Array, "..."]:
    """The mean over frames of the cosine between the chroma of both sounds, 0 to 1.

    Frames are of the power of two nearest to 100 ms and overlap by three quarters. A frame whose chroma is `top_db`
    below that of the sound's loudest frame counts as silent: a frame that is silent in one sound has 0, one that is in
    both is left out. Two silent sounds have 1. Gain and sign leave it.

    >>> t = jnp.arange(16000) / 16000
    >>> a, octave, fifth = (jnp.sin(2 * jnp.pi * f * t) for f in (440, 880, 660))
    >>> float(chroma_similarity(a, octave, sr=16000)) > 0.9 > float(chroma_similarity(a, fifth, sr=16000))
    True
    """
    n_fft = frame_length(sr, 0.1)

    def chroma(y: Array, samples: Count) -> tuple[Array, Array]:
        C = chroma_stft(y / power_of_two(y, -1), sr=sr, n_fft=n_fft, hop_length=n_fft // 4, norm=None)
        C = first(C, count_frames(samples, n_fft, n_fft // 4))
        energy = C.sum(0)
        return C, energy > energy.max() * 10 ** (-top_db / 10)

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        (ours, heard), (theirs, also) = chroma(reference, samples), chroma(estimate, samples)
        both, either = heard & also, heard | also
        ours, theirs = (jnp.where(both, C, 1) for C in (ours, theirs))
        cosine = (ours * theirs).sum(0) * jax.lax.rsqrt((ours**2).sum(0)) * jax.lax.rsqrt((theirs**2).sum(0))
        return jnp.where(either.any(), masked_mean(jnp.where(both, cosine, 0), either), 1)

    return each_pair(pair, reference, estimate, lengths)


@transform
def onset_f1(
    reference: Float[Array, "... samples"],
    estimate: Float[Array, "... samples"],
    lengths: Lengths = None,
    *,
    sr: float,
    tolerance_seconds: float = 0.05,
) -> Float[Array, "..."]:
    """The F1 of the estimate's onsets, 0 to 1: one is right within `tolerance_seconds` of one of the reference, each
    for one other at most.

    Onsets are peaks of the spectral flux of log-mel frames, every 10 ms and down to 80 dB below the loudest (Boeck et
    al. 2012). Sounds without onsets have 1; where only one has none it is 0. Gain and sign leave it.

    >>> y = jnp.zeros(16000).at[jnp.array([4000, 9000])].set(1.0)
    >>> round(float(onset_f1(y, y.at[4000].set(0.0), sr=16000)), 3)
    0.667
    """
    reach = int(tolerance_seconds * sr / _onset_hop(sr) + 1e-6)

    def pair(reference: Array, estimate: Array, samples: Count) -> Array:
        ours, theirs = _onsets(reference, samples, sr), _onsets(estimate, samples, sr)
        count = ours.sum() + theirs.sum()
        return jnp.where(count > 0, 2 * _hits(ours, theirs, reach) / jnp.maximum(count, 1), 1.0)

    return each_pair(pair, stop_gradient(reference), stop_gradient(estimate), lengths)


def _onset_hop(sr: float) -> int:
    return max(1, round(sr / 100))


def _onsets(y: Float[Array, " samples"], samples: Count, sr: float) -> Bool[Array, " frames"]:
    """The frames where notes begin, which are peaks of the spectral flux.

    The flux is scaled to 0 ... 1. A peak is the largest of its last four frames, is 0.07 above the mean of the ten
    frames before and after it, and comes more than three frames after the last one.
    """
    n_fft, hop = frame_length(sr, 0.05), _onset_hop(sr)
    S = melspectrogram(y / power_of_two(y, -1), sr=sr, n_fft=n_fft, hop_length=hop, n_mels=80, norm=None)
    frames = count_frames(samples, n_fft, hop)
    flux = onset_strength(S=power_to_db(first(S, frames)), sr=sr, n_fft=n_fft, hop_length=hop)
    return _peaks(flux, frames)


def _peaks(flux: Float[Array, " times"], frames: Count) -> Bool[Array, " times"]:
    """The peaks of the first frames of a flux that is never below 0, where it begins."""
    times = jnp.arange(len(flux))
    flux = first(flux, frames)
    flux = flux / jnp.where(flux.max() > 0, flux.max(), 1)
    largest = frame(jnp.pad(flux, (3, 0)), 4, 1).max(-1)
    near = frame(jnp.pad(flux, (10, 10)), 21, 1).sum(-1)
    count = jnp.minimum(times + 11, frames) - jnp.maximum(times - 10, 0)
    candidates = (flux == largest) & (flux >= near / jnp.maximum(count, 1) + 0.07)

    def take(wait: Array, candidate: Array) -> tuple[Array, Array]:
        taken = candidate & (wait == 0)
        return jnp.where(taken, 3, jnp.maximum(wait - 1, 0)), taken

    return jax.lax.scan(take, jnp.zeros((), int), candidates)[1]


def _hits(reference: Bool[Array, " frames"], estimate: Bool[Array, " frames"], reach: int) -> Array:
    """The largest number of pairs of onsets at most `reach` frames apart, each in one pair.

    Each onset of the reference in turn takes the earliest free one in its reach, which is never worse than a later one.
    """
    wide = jnp.pad(estimate, reach)

    def take(last: Array, time: Array) -> tuple[Array, Array]:
        times = time + jnp.arange(-reach, reach + 1)
        free = reference[time] & jax.lax.dynamic_slice_in_dim(wide, time, 2 * reach + 1) & (times > last)
        return jnp.where(free.any(), times[free.argmax()], last), free.any()

    return jax.lax.scan(take, jnp.asarray(-1), jnp.arange(len(reference)))[1].sum()
