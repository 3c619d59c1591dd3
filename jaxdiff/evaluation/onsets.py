"""Onsets of a sound, and how well they keep to the times that were asked for.

An onset is a peak of the spectral flux, here the rise over 8 ms of those log-mel bands that rise most, since few sounds
begin in all; of several peaks within 50 ms the highest counts.
Scores are those of CondFoleyGen (Du et al. 2023): an onset and a cue are a pair where they are within 100 ms, each with
at most one partner.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdiff.features import melspectrogram, power_to_db

TOLERANCE = 0.1  # seconds between a cue and its onset
_APART = 0.05  # seconds between two onsets at least
_LAG = 2  # frames over which a rise is measured
_RANGE_DB = 60.0  # below the loudest band at any time, where nothing rises
_BANDS, _RISING = 24, 4  # and of those how many rise most
_RISE_DB = 7.0  # of their mean, at an onset at least
_LEVEL_SECONDS = 0.05  # after a cue, within which its sound is loudest
_FRAME_SECONDS = 0.01  # of a level
_BIAS = 0.005  # seconds by which a centred frame sees an onset early


class Onsets(NamedTuple):
    """Times in seconds, ascending, and how high the flux is there, in dB."""

    seconds: Float[np.ndarray, " onsets"]
    rise: Float[np.ndarray, " onsets"]


class Sync(NamedTuple):
    """Of all cues: the share that has an onset within 100 ms; the mean precision of the onsets, ordered by their rise,
    at each that hits; the median distance of those in seconds, without and with its sign (positive: the sound is
    late)."""

    hit_rate: float
    average_precision: float
    offset: float
    delay: float


def onsets(y: Float[np.ndarray, " samples"], sr: int, *, loudest: float = -np.inf) -> Onsets:
    """The onsets of a sound, of a part of one whose loudest band at any time has `loudest` dB."""
    hop, n_fft = max(1, round(0.004 * sr)), 2 * round(0.016 * sr)
    S = _bands(y, sr, hop, n_fft)
    loudest = max(float(S.max()), loudest)
    if loudest < -90:
        return Onsets(np.zeros(0), np.zeros(0))
    S = np.maximum(S, loudest - _RANGE_DB)
    rise = np.maximum(0, S[:, _LAG:] - S[:, :-_LAG])
    flux = np.pad(np.sort(rise, axis=0)[-_RISING:].mean(0), (_LAG, 0)).astype(np.float64)
    frames = np.flatnonzero(flux >= _RISE_DB)
    kept: list[int] = []
    for frame in frames[np.argsort(-flux[frames], kind="stable")]:
        if all(abs(frame - other) * hop > _APART * sr for other in kept):
            kept.append(int(frame))
    at = np.sort(np.array(kept, int))
    return Onsets((at * hop - n_fft) / sr + _BIAS, flux[at])


def loudest_band(y: Float[np.ndarray, " samples"], sr: int) -> float:
    """The level in dB of the loudest band at any time."""
    return float(_bands(y, sr, max(1, round(0.004 * sr)), 2 * round(0.016 * sr)).max())


def _bands(y: np.ndarray, sr: int, hop: int, n_fft: int) -> np.ndarray:
    y = np.pad(np.asarray(y, np.float32), (n_fft, -len(y) % (sr // 4) + n_fft))  # few lengths, no onset at the start
    options: dict[str, Any] = dict(sr=sr, n_fft=n_fft, hop_length=hop, n_mels=_BANDS)
    return np.asarray(power_to_db(melspectrogram(jnp.asarray(y), **options), top_db=None))


def pairs(
    cues: Float[np.ndarray, " cues"], found: Float[np.ndarray, " onsets"], tolerance: float = TOLERANCE
) -> list[tuple[int, int]]:
    """Indices of cues and onsets that belong together, the nearest first.

    >>> pairs(np.array([0.0, 0.5]), np.array([0.02, 0.04, 0.9]))
    [(0, 0)]
    """
    distance = np.abs(cues[:, None] - found[None])
    near, made = np.argwhere(distance <= tolerance), []
    for i, j in near[np.argsort(distance[tuple(near.T)], kind="stable")]:
        if all(i != a and j != b for a, b in made):
            made.append((int(i), int(j)))
    return made


def synchrony(cues: Sequence[np.ndarray], found: Sequence[Onsets], tolerance: float = TOLERANCE) -> Sync:
    """How well the onsets of some sounds keep to the times of their cues; nan for what there is none of."""
    offsets, rises, hits = [], [], []
    for wanted, (seconds, rise) in zip(cues, found, strict=True):
        hit = np.zeros(len(seconds), bool)
        for i, j in pairs(np.asarray(wanted), seconds, tolerance):
            offsets.append(seconds[j] - wanted[i])
            hit[j] = True
        rises.append(rise)
        hits.append(hit)
    count = sum(map(len, cues))
    if not count:
        return Sync(np.nan, np.nan, np.nan, np.nan)
    hit = np.concatenate(hits)[np.argsort(-np.concatenate(rises), kind="stable")]
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    distance = np.median(np.abs(offsets)) if offsets else np.nan
    delay = np.median(offsets) if offsets else np.nan
    return Sync(hit.sum() / count, float(precision[hit].sum() / count), float(distance), float(delay))


def levels_at(
    y: Float[np.ndarray, " samples"], sr: int, cues: Float[np.ndarray, " cues"]
) -> Float[np.ndarray, " cues"]:
    """The level in dB of full scale of the loudest 10 ms that begin within 50 ms of each cue."""
    size = round(_FRAME_SECONDS * sr)
    power = np.convolve(np.square(np.asarray(y, np.float64)), np.ones(size) / size)[size - 1 :]
    made = []
    for seconds in cues:
        begin = max(0, round((seconds - _FRAME_SECONDS) * sr))
        part = power[begin : round((seconds + _LEVEL_SECONDS) * sr)]
        made.append(10 * np.log10(part.max(initial=1e-10)))
    return np.array(made)
