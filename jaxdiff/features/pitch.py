"""Fundamental frequency: YIN, and pYIN with its hidden Markov model.

YIN (de Cheveigne & Kawahara 2002) divides the difference function by its running mean (eq. 8) and takes the first dip
below a threshold, refined by a parabola:

    d(tau) = sum_n (y[n] - y[n + tau])^2,      d'(tau) = d(tau) tau / sum_{j <= tau} d(j)

pYIN (Mauch & Dixon 2014) asks for every threshold of a beta prior which dip YIN would take, which gives each dip a
probability, and decodes the most likely path over (voiced, unvoiced) x pitch with Viterbi. Names, defaults and numbers
follow `librosa.yin` and `librosa.pyin`. The thresholds are summed over in one scan along the lags; Viterbi is a scan
along frames whose banded transition is a maximum of shifted copies, and back-pointers are only worked out along the
path that is taken.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .spectral import cut_frames, power_of_two
from .transform import each_item, transform
from .windows import MAX_COPIES

_NEVER = float(np.log(np.finfo(np.float64).tiny))  # log probability that librosa gives to what is impossible


def _periods(fmin: float, fmax: float, sr: float, frame_length: int) -> tuple[int, int]:
    """The shortest and the longest period in samples, checked."""
    if not 0 < fmin < fmax <= sr / 2:
        raise ValueError(f"fmin {fmin} Hz and fmax {fmax} Hz must satisfy 0 < fmin < fmax <= {sr / 2} Hz (half of sr)")
    if sr / fmin >= frame_length - 1:
        need = int(np.ceil(sr / fmin)) + 2
        raise ValueError(f"a period of fmin {fmin} Hz does not fit frame_length {frame_length}; use {need} or more")
    return int(np.floor(sr / fmax)), min(int(np.ceil(sr / fmin)), frame_length - 1)


def _dips(frames: Float[Array, "frames length"], shortest: int, longest: int) -> tuple[Array, Array, Array]:
    """The normalised difference at each period, the parabola's offset there, and where it has a dip.

    d = 2 (r(0) - r(tau)) - sum_{n < tau} y[n]^2 with r the autocorrelation, which is exact for a signal that is zero
    outside its frame, as librosa has it.
    """
    size = frames.shape[-1]
    frames = frames / power_of_two(frames, -1)  # d does not depend on it
    spectra = jnp.fft.rfft(frames, n=int(2 ** np.ceil(np.log2(size + longest))))
    correlation = jnp.fft.irfft(spectra.real**2 + spectra.imag**2)[:, : longest + 1]
    energy = jnp.cumsum(frames[:, :longest] ** 2, axis=-1)
    difference = 2 * (correlation[:, :1] - correlation[:, 1:]) - energy
    mean = jnp.cumsum(difference, axis=-1) / jnp.arange(1, longest + 1, dtype=frames.dtype)
    mean, difference = mean[:, shortest - 1 :], difference[:, shortest - 1 :]
    silent = jnp.abs(mean) < 1e-18
    d = jnp.where(silent, 0, difference / jnp.where(silent, 1, mean))
    before, here, after = d[:, :-2], d[:, 1:-1], d[:, 2:]
    slope, bend = (after - before) / 2, after + before - 2 * here
    inside = jnp.abs(slope) < jnp.abs(bend)  # the parabola's vertex lies within one sample
    offset = jnp.pad(jnp.where(inside, -slope / jnp.where(inside, bend, 1), 0), ((0, 0), (1, 1)))
    dip = jnp.concatenate([d[:, :1] < d[:, 1:2], (here < before) & (here <= after), d[:, -1:] < d[:, -2:-1]], axis=-1)
    return d, offset, dip


@transform
def yin(
    y: Float[Array, "... samples"],
    *,
    fmin: float,
    fmax: float,
    sr: float = 22050,
    frame_length: int = 2048,
    hop_length: int | None = None,
    trough_threshold: float = 0.1,
    center: bool = True,
    pad_mode: str = "constant",
) -> Float[Array, "... frames"]:
    """Fundamental frequency in Hz of each frame by YIN, between `fmin` and `fmax`, whether voiced or not.

    `frame_length` and `hop_length` (a quarter of it by default) in samples; a frame should hold two periods of `fmin`.
    The gradient is that of the parabola through the chosen dip.

    >>> tone = jnp.sin(2 * jnp.pi * 220 / 22050 * jnp.arange(8192))
    >>> abs(float(yin(tone, fmin=65.0, fmax=2093.0)[8]) - 220) < 0.5
    True
    """
    hop_length = frame_length // 4 if hop_length is None else hop_length
    shortest, longest = _periods(fmin, fmax, sr, frame_length)

    def one(y: Array) -> Array:
        d, offset, dip = _dips(cut_frames(y, frame_length, hop_length, center, pad_mode), shortest, longest)
        deep = dip & (d < trough_threshold)
        index = jnp.where(deep.any(-1), jnp.argmax(deep, axis=-1), jnp.argmin(d, axis=-1))[:, None]
        return sr / (shortest + index + jnp.take_along_axis(offset, index, axis=-1))[:, 0]

    return each_item(one, y)


@transform
def pyin(
    y: Float[Array, "... samples"],
    *,
    fmin: float,
    fmax: float,
    sr: float = 22050,
    frame_length: int = 2048,
    hop_length: int | None = None,
    n_thresholds: int = 100,
    beta_parameters: tuple[float, float] = (2.0, 18.0),
    boltzmann_parameter: float = 2.0,
    resolution: float = 0.1,
    max_transition_rate: float = 35.92,
    switch_prob: float = 0.01,
    no_trough_prob: float = 0.01,
    fill_na: float | None = float("nan"),
    center: bool = True,
    pad_mode: str = "constant",
) -> tuple[Float[Array, "... frames"], Bool[Array, "... frames"], Float[Array, "... frames"]]:
    """Fundamental frequency in Hz, voicing flag and voicing probability of each frame, by pYIN.

    `resolution` is in semitones, `max_transition_rate` in octaves per second; F0 is `fill_na` where unvoiced (None: the
    decoded pitch is kept there). The result is discrete: F0 and flag have no gradient, the probability has.

    >>> tone = jnp.sin(2 * jnp.pi * 220 / 22050 * jnp.arange(8192))
    >>> f0, voiced, probability = pyin(tone, fmin=65.0, fmax=2093.0)
    >>> abs(float(f0[8]) - 220) < 0.7, bool(voiced[8])
    (True, True)
    """
    hop_length = frame_length // 4 if hop_length is None else hop_length
    options: dict[str, Any] = dict(sr=sr, fmin=fmin, fmax=fmax, frame_length=frame_length, hop_length=hop_length)
    options |= dict(n_thresholds=n_thresholds, beta_parameters=beta_parameters, no_trough_prob=no_trough_prob)
    options |= dict(boltzmann_parameter=boltzmann_parameter, resolution=resolution, switch_prob=switch_prob)
    options |= dict(max_transition_rate=max_transition_rate, center=center, pad_mode=pad_mode)

    def one(y: Array) -> tuple[Array, Array, Array]:
        f0, flag, probability = track_pitch(y, None, **options)
        return f0 if fill_na is None else jnp.where(flag, f0, fill_na), flag, probability

    return each_item(one, y)


def track_pitch(
    y: Float[Array, " samples"],
    count: Int[Array, ""] | int | None,
    *,
    fmin: float,
    fmax: float,
    sr: float,
    frame_length: int,
    hop_length: int,
    n_thresholds: int,
    beta_parameters: tuple[float, float],
    boltzmann_parameter: float,
    resolution: float,
    max_transition_rate: float,
    switch_prob: float,
    no_trough_prob: float,
    center: bool,
    pad_mode: str,
) -> tuple[Float[Array, " frames"], Bool[Array, " frames"], Float[Array, " frames"]]:
    """`pyin` of one waveform, decoded from its first `count` frames; those after them keep the last pitch and flag."""
    shortest, longest = _periods(fmin, fmax, sr, frame_length)
    per_semitone = int(np.ceil(1 / resolution))
    bins = int(np.floor(12 * per_semitone * np.log2(fmax / fmin))) + 1
    reach = round(max_transition_rate * 12 * hop_length / sr) * per_semitone // 2
    import scipy.stats  # takes a third of a second, which nothing else needs

    weights = np.diff(scipy.stats.beta.cdf(np.linspace(0, 1, n_thresholds + 1), *beta_parameters))
    pitches = fmin * 2.0 ** (np.arange(bins) / (12 * per_semitone))
    d, offset, dip = _dips(cut_frames(y, frame_length, hop_length, center, pad_mode), shortest, longest)
    share = _dip_probabilities(d, dip, weights, boltzmann_parameter, no_trough_prob)
    candidates = sr / (shortest + jnp.arange(d.shape[-1]) + offset)
    index = jnp.round(12 * per_semitone * jnp.log2(candidates / fmin)).astype(int)
    rows = jnp.arange(len(d))[:, None]
    index = jnp.where(share > 0, jnp.maximum(index, 0), bins)  # what lies above the highest pitch is dropped
    voiced = jnp.zeros((len(d), bins), d.dtype).at[rows, index].max(share, mode="drop")
    probability = jnp.clip(voiced.sum(-1), 0, 1)
    state = _viterbi(jax.lax.stop_gradient(voiced), jax.lax.stop_gradient(probability), reach, switch_prob, count)
    return jnp.asarray(pitches, d.dtype)[state % bins], state < bins, probability


def _dip_probabilities(
    d: Float[Array, "frames periods"],
    dip: Bool[Array, "frames periods"],
    weights: np.ndarray | Array,
    decay: float,
    no_trough_prob: float,
) -> Float[Array, "frames periods"]:
    """The probability that each dip is the period (Mauch & Dixon 2014, eq. 4), over all thresholds of the prior.

    At one threshold the k-th of the n dips below it has the truncated geometric prior
    (1 - e^-decay) e^(-decay k) / (1 - e^(-decay n)); a threshold below every dip gives `no_trough_prob` to the deepest.
    """
    thresholds = jnp.asarray(np.linspace(0, 1, len(weights) + 1)[1:], d.dtype)
    weights = jnp.asarray(weights, d.dtype)
    heights = jnp.where(dip, d, jnp.inf).T[..., None]  # [periods, frames, 1]
    none = jnp.zeros((len(d), len(weights)), d.dtype)
    count, _ = jax.lax.scan(lambda n, h: (n + (h < thresholds), None), none, heights)
    scale = weights * (1 - np.exp(-decay)) / (1 - jnp.exp(-decay * jnp.maximum(count, 1)))

    def take(prior, h):
        below = h < thresholds
        return jnp.where(below, prior * float(np.exp(-decay)), prior), jnp.where(below, prior, 0).sum(-1)

    _, share = jax.lax.scan(take, scale, heights)
    lowest = jnp.argmin(heights[..., 0], axis=0)
    missed = (weights * (heights[..., 0].min(0)[:, None] >= thresholds)).sum(-1)
    extra = no_trough_prob * missed * dip.any(-1)
    return share.T + jax.nn.one_hot(lowest, d.shape[-1], dtype=d.dtype) * extra[:, None]


@functools.lru_cache(maxsize=16)
def _log_transition(bins: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Log of the triangular transition: its kernel over `-reach ... reach` and the log of each start's sum."""
    kernel = 1 - np.abs(np.arange(-reach, reach + 1)) / (reach + 1)
    sums = np.convolve(np.ones(bins), kernel)[reach : reach + bins]
    return np.log(kernel), np.log(sums)


def _viterbi(
    voiced: Float[Array, "frames bins"],
    probability: Float[Array, " frames"],
    reach: int,
    switch_prob: float,
    count: Int[Array, ""] | int | None,
) -> Int[Array, " frames"]:
    """The most likely path through 2 x `bins` states, voiced ones first, over the first `count` frames (None: all),
    which then stays where it is.

    Only the forward scores are stored; the state before a state is the best of its 2 (2 reach + 1) predecessors, looked
    up while walking back.
    """
    bins = voiced.shape[-1]
    kernel, sums = _log_transition(bins, reach)
    stay, switch = (float(np.log(max(p, np.finfo(np.float64).tiny))) for p in (1 - switch_prob, switch_prob))
    sums = jnp.asarray(sums, voiced.dtype)

    def log(p):
        return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), _NEVER)

    unvoiced = jnp.broadcast_to(log((1 - probability) / bins)[:, None], voiced.shape)
    observed = jnp.stack([log(voiced), unvoiced], axis=1)  # [frames, 2, bins]

    def padded(score):
        return jnp.pad(score - sums, ((0, 0), (reach, reach)), constant_values=-jnp.inf)

    weights = jnp.asarray(kernel, voiced.dtype)

    frames = len(voiced)
    heard = jnp.arange(1, frames) < (frames if count is None else count)

    def forward(last, at):
        seen, heard = at
        wide = padded(last)
        moved = lambda k: jax.lax.dynamic_slice_in_dim(wide, k, bins, axis=1) + weights[k]  # noqa: E731
        if len(kernel) <= 4 * MAX_COPIES:
            best = functools.reduce(jnp.maximum, [wide[:, k : k + bins] + float(kernel[k]) for k in range(len(kernel))])
        else:
            best = jax.lax.fori_loop(1, len(kernel), lambda k, best: jnp.maximum(best, moved(k)), moved(0))
        score = jnp.maximum(best + stay, best[::-1] + switch) + seen
        return (score := jnp.where(heard, score - score.max(), last)), score

    first = observed[0] - float(np.log(2 * bins))
    _, scores = jax.lax.scan(forward, first - first.max(), (observed[1:], heard))
    scores = jnp.concatenate([(first - first.max())[None], scores])

    def back(state, at):
        score, heard = at
        kind, pitch = state // bins, state % bins
        near = jax.lax.dynamic_slice(padded(score), (0, pitch), (2, 2 * reach + 1)) + weights
        near = near + jnp.where(jnp.arange(2) == kind, stay, switch)[:, None]
        best = jnp.argmax(near)
        before = (best // (2 * reach + 1)) * bins + pitch + best % (2 * reach + 1) - reach
        return (before := jnp.where(heard, before, state)), before

    last = jnp.argmax(scores[-1])
    _, path = jax.lax.scan(back, last, (scores[:-1], heard), reverse=True)
    return jnp.concatenate([path, last[None]])
