"""Damage to sounds: gaps, clipping, lost bands and lossy coding, made inside a training step; and first guesses.

A guess is what signal processing can say of the missing part, and what a model begins with: its expected value, and a
draw that has noise too. In a gap it is the prediction from both sides, above a cut-off the harmonics that a rectifier
makes and noise. The model decides how much of either there is.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxdiff import ranges
from jaxdiff.features import extrapolate
from jaxdiff.features.filters import fft_convolve

Waves = Float[Array, "batch samples"]

ORDER = 200  # of the prediction into a gap: more than a period of the voice
NOISE = 0.3  # of what is drawn in a gap, against the level of the sound beside it: models hardly take noise away
CONTEXT = 640  # samples on both sides that it is found from; of speech, more tell of other sounds
FADE = 32  # samples at both ends of a gap over which the guess becomes what the model makes
_LINES = 512  # of the coder's transform
_BANDS = 24  # of the coder's steps


class Guess(NamedTuple):
    """A sound with its missing part filled in: as expected, and as drawn from what is likely."""

    expected: Waves
    drawn: Waves


class Damaged(NamedTuple):
    """A sound that is damaged and guessed, and where: `lost` is 1 in gaps and falls to 0 at their ends, `clipped` says
    which samples were cut, nothing lies above `cutoff` Hz (half the rate: all is there), `coded` is whether a lossy
    coder took something."""

    guess: Guess
    lost: Waves
    clipped: Bool[Array, "batch samples"]
    cutoff: Float[Array, " batch"]
    coded: Bool[Array, " batch"]


@dataclass(frozen=True)
class Damage:
    """How training sounds are damaged. Shares are of the items of a batch, in this order; what remains stays whole."""

    gaps: ranges.Share = 0.5
    clipped: ranges.Share = 0.125
    band_limited: ranges.Share = 0.25
    coded: ranges.Share = 0.125
    gap_shortest: ranges.Positive = 0.02  # seconds
    gap_longest: ranges.Positive = 0.5
    gaps_each: ranges.Count = 3
    clipped_least: ranges.Share = 0.003  # share of the samples that are not silent
    clipped_most: ranges.Share = 0.4
    cutoff_low: ranges.Positive = 1500.0  # Hz
    cutoff_high: ranges.Positive = 7000.0

    def __post_init__(self) -> None:
        ranges.check_fields(self)
        for low, high in (
            ("gap_shortest", "gap_longest"),
            ("clipped_least", "clipped_most"),
            ("cutoff_low", "cutoff_high"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} {getattr(self, low)} is above {high} {getattr(self, high)}; exchange them")
        if self.gaps + self.clipped + self.band_limited + self.coded > 1 + 1e-6:
            raise ValueError(
                "gaps, clipped, band_limited and coded are shares of the same items and add up to more than 1; make "
                "them smaller"
            )

    def __call__(self, wave: Waves, *, sr: int, key: PRNGKeyArray, coded: Waves | None = None) -> Damaged:
        """Damaged sounds at `sr` Hz; `coded` is what a lossy coder made of them, in place of an imitation."""
        batch, samples = wave.shape
        ends = np.round(np.cumsum([self.gaps, self.clipped, self.band_limited, self.coded]) * batch).astype(int)
        keys = jax.random.split(key, 6)
        expected, drawn = wave, wave
        lost, clipped = jnp.zeros_like(wave), jnp.zeros(wave.shape, bool)
        cutoff = jnp.full(batch, sr / 2, wave.dtype)
        if ends[0]:
            with_gaps = slice(0, ends[0])
            guess, weight = self._gaps(wave[with_gaps], sr, keys[0])
            expected, drawn = expected.at[with_gaps].set(guess.expected), drawn.at[with_gaps].set(guess.drawn)
            lost = lost.at[with_gaps].set(weight)
        if ends[1] > ends[0]:
            cut = slice(ends[0], ends[1])
            level = self._level(wave[cut], keys[1])
            limited = jnp.clip(wave[cut], -level, level)
            expected, drawn = expected.at[cut].set(limited), drawn.at[cut].set(limited)
            clipped = clipped.at[cut].set(jnp.abs(wave[cut]) >= level)
        if ends[2] > ends[1]:
            narrow = slice(ends[1], ends[2])
            low, high = np.log(self.cutoff_low), np.log(min(self.cutoff_high, 0.95 * sr / 2))
            size = (ends[2] - ends[1],)
            edge = jnp.exp(jax.random.uniform(keys[2], size, minval=low, maxval=max(low, high)))
            limited = low_pass(wave[narrow], edge, 0.02 + 0.1 * jax.random.uniform(keys[3], size), sr)
            guess = guess_band(limited, edge, sr, keys[4])
            expected, drawn = expected.at[narrow].set(guess.expected), drawn.at[narrow].set(guess.drawn)
            cutoff = cutoff.at[narrow].set(edge)
        if ends[3] > ends[2]:
            few = slice(ends[2], ends[3])
            made = _coded(wave[few], keys[5]) if coded is None else coded[few]
            expected, drawn = expected.at[few].set(made), drawn.at[few].set(made)
        through_coder = (jnp.arange(batch) >= ends[2]) & (jnp.arange(batch) < ends[3])
        return Damaged(Guess(expected, drawn), lost, clipped, cutoff, through_coder)

    def _gaps(self, wave: Waves, sr: int, key: PRNGKeyArray) -> tuple[Guess, Waves]:
        """Each part of a sound loses one stretch; lengths are log-uniform."""
        batch, samples = wave.shape
        part = samples // self.gaps_each
        longest = min(round(self.gap_longest * sr), part * 3 // 4)
        shortest = min(round(self.gap_shortest * sr), longest)
        expected, drawn, lost = wave, wave, jnp.zeros_like(wave)
        for i in range(self.gaps_each):
            length_key, place_key, guess_key = jax.random.split(jax.random.fold_in(key, i), 3)
            low, high = np.log(shortest), np.log(longest)
            length = jnp.exp(jax.random.uniform(length_key, (batch,), minval=low, maxval=high)).astype(int)
            start = i * part + (jax.random.uniform(place_key, (batch,)) * (part - length)).astype(int)
            guess = guess_gap(expected, start, length, guess_key, longest=longest)
            inside = _inside(samples, start, length)
            drawn = jnp.where(inside, guess.drawn, drawn)
            expected, lost = guess.expected, lost + gap_weight(samples, start, length)
        return Guess(expected, drawn), lost

    def _level(self, wave: Waves, key: PRNGKeyArray) -> Float[Array, "batch 1"]:
        """The level above which a log-uniform share of the samples lies, of those that are not silent."""
        least, most = np.log(max(self.clipped_least, 1e-4)), np.log(max(self.clipped_most, 1e-4))
        share = jnp.exp(jax.random.uniform(key, (len(wave), 1), minval=least, maxval=most))
        size = jnp.sort(jnp.abs(wave), axis=-1)
        sounding = (size > 0.02 * size[:, -1:]).sum(-1, keepdims=True)
        place = (wave.shape[-1] - 1 - (share * sounding).astype(int)).clip(0)
        return jnp.maximum(jnp.take_along_axis(size, place, axis=-1), 1e-4)


def guess_gap(
    wave: Waves, start: Int[Array, " batch"], length: Int[Array, " batch"], key: PRNGKeyArray, *, longest: int
) -> Guess:
    """One gap of each sound filled by the linear predictions from both sides, cross-faded (Kauppinen & Roth 2002).

    `longest` is the most samples that a gap has; the 640 samples on both sides of it must be whole.
    """
    samples = wave.shape[-1]
    padded = jnp.pad(wave, ((0, 0), (CONTEXT, CONTEXT + longest)))

    def one(y: Array, start: Array, length: Array, key: Array) -> tuple[Array, Array]:
        before = jax.lax.dynamic_slice(y, (start,), (CONTEXT,))
        after = jax.lax.dynamic_slice(y, (start + CONTEXT + length,), (CONTEXT,))[::-1]
        sides = jnp.stack([before, after])
        expected = extrapolate(sides, samples=longest, order=ORDER)
        further = extrapolate(sides, samples=longest, order=ORDER, key=key) - expected
        n = jnp.arange(longest)
        angle = jnp.pi / 2 * jnp.clip((n + 0.5) / length, 0, 1)
        turned = lambda side: jnp.take(side, length - 1 - n, mode="clip")  # noqa: E731
        mean = jnp.cos(angle) ** 2 * expected[0] + jnp.sin(angle) ** 2 * turned(expected[1])
        draw = jnp.cos(angle) * further[0] + jnp.sin(angle) * turned(further[1])
        place = start + CONTEXT
        old = jax.lax.dynamic_slice(y, (place,), (longest,))
        fill = lambda new: jax.lax.dynamic_update_slice(y, jnp.where(n < length, new, old), (place,))  # noqa: E731
        inner = slice(CONTEXT, CONTEXT + samples)
        return fill(mean)[inner], fill(mean + NOISE * draw)[inner]

    keys = jax.random.split(key, len(wave))
    return Guess(*jax.vmap(one)(padded, start, length, keys))


def _inside(samples: int, start: Int[Array, " batch"], length: Int[Array, " batch"]) -> Bool[Array, "batch samples"]:
    n = jnp.arange(samples)
    return (n >= start[:, None]) & (n < (start + length)[:, None])


def gap_weight(samples: int, start: Int[Array, " batch"], length: Int[Array, " batch"]) -> Waves:
    """The weight is 1 in a gap and rises to it from 0 outside by a raised cosine of 32 samples, or of half the gap."""
    n = jnp.arange(samples)
    nearest = jnp.minimum(n - start[:, None] + 0.5, (start + length)[:, None] - n - 0.5)
    fade = jnp.minimum(FADE, length[:, None] / 2)
    return 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.clip(nearest / fade, 0, 1))


def low_pass(wave: Waves, cutoff: Float[Array, " batch"], width: Array | float, sr: int) -> Waves:
    """Each sound without what lies above its cut-off in Hz: the gain falls to nothing there, from 1 at a share `width`
    below it."""
    X = jnp.fft.rfft(wave)
    f = jnp.asarray(np.fft.rfftfreq(wave.shape[-1], 1 / sr), wave.dtype)
    below = (cutoff[:, None] - f) / jnp.asarray(width * cutoff)[:, None]
    return jnp.fft.irfft(X * (0.5 - 0.5 * jnp.cos(jnp.pi * jnp.clip(below, 0, 1))), wave.shape[-1])


def guess_band(wave: Waves, cutoff: Float[Array, " batch"], sr: int, key: PRNGKeyArray) -> Guess:
    """A draw of the band above the cut-off of each sound: the harmonics of the rectified sound, and noise of its
    loudness, both made flat by a first difference.
    """
    bright = jnp.abs(wave) - jnp.abs(jnp.roll(wave, 1, -1))
    noise = _noise(wave, sr, key)
    above = lambda y: y - low_pass(y, cutoff, 0.03, sr)  # noqa: E731
    return Guess(wave + above(bright), wave + above(noise))


def _noise(wave: Waves, sr: int, key: PRNGKeyArray) -> Waves:
    """White noise 20 dB below a sound, as loud as it is within 10 ms."""
    half = round(0.01 * sr)
    smooth = np.hanning(2 * half + 1)
    power = fft_convolve(jnp.pad(wave**2, ((0, 0), (0, half))), jnp.asarray(smooth / smooth.sum(), wave.dtype))
    loudness = jnp.sqrt(jnp.maximum(power[:, half:], 1e-12))
    return 0.1 * loudness * jax.random.normal(key, wave.shape, wave.dtype)


def _coded(wave: Waves, key: PRNGKeyArray) -> Waves:
    """The sound that a transform coder of few bits leaves: lines of an MDCT (Princen & Bradley 1986) in bands of equal
    steps, as in MP3; bands whose lines are all below half a step are holes."""
    samples = wave.shape[-1]
    count = -(-samples // _LINES) + 1
    padded = jnp.pad(wave, ((0, 0), (_LINES, (count + 1) * _LINES - samples - _LINES)))
    n, k = np.arange(2 * _LINES)[:, None], np.arange(_LINES)
    window = np.sin(np.pi / (2 * _LINES) * (n + 0.5))
    matrix = window * np.cos(np.pi / _LINES * (n + 0.5 + _LINES / 2) * (k + 0.5)) * np.sqrt(2 / _LINES)
    basis = jnp.asarray(matrix, wave.dtype)
    blocks = padded.reshape(len(wave), -1, _LINES)
    frames = jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=-1)
    lines = frames @ basis
    band = np.minimum(_BANDS - 1, (_BANDS * (np.log1p(k / 8) / np.log1p(_LINES / 8))).astype(int))
    member = np.eye(_BANDS, dtype=np.float32)[band]
    power = (lines**2 @ jnp.asarray(member)) / jnp.maximum(jnp.asarray(member.sum(0)), 1)
    low, tilt = jax.random.uniform(key, (2, len(wave), 1, 1))
    ratio_db = 4 + 14 * low - (4 + 12 * tilt) * jnp.linspace(0, 1, _BANDS)  # signal to noise of a band
    floor = 1e-3 * jnp.sqrt(power.max((-2, -1), keepdims=True)) + 1e-9
    step = jnp.maximum(jnp.sqrt(12 * power) * 10 ** (-ratio_db / 20), floor)[..., band]
    kept = jnp.round(lines / step) * step
    halves = kept @ basis.T
    whole = halves[:, :-1, _LINES:] + halves[:, 1:, :_LINES]
    return whole.reshape(len(wave), -1)[:, :samples]
