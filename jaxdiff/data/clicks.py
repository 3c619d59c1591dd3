"""Clicks: disturbances of up to some milliseconds that neither the sound before them nor that after them predicts.

A linear prediction is fitted to every frame (autocorrelation method); what it leaves of a sound is small and even, but
for clicks (Godsill & Rayner, Digital Audio Restoration, 1998, chapter 5). Glottal pulses stand out from what it leaves
too, but are not loud; onsets stand out of the past, but not of the future.
"""

import numpy as np
from jaxtyping import Bool, Float

from jaxdiff.data.breaks import STEP, Run, runs_of

_ORDER = 30  # of the linear prediction
_SCORE = 8.0  # the loudness of a residual against that beside it, weighted by its loudness in the sound
_HOP_SECONDS, _MODEL_SECONDS = 0.0005, 0.02  # of a residual's envelope, and of one prediction
_LONGEST_CLICK = 0.005  # seconds
_EDGE_SECONDS = 0.0002  # on both sides of what stands out, where a click is no louder than the sound
_USUAL = 0.55  # rank of the usual envelope among those on one side; up to a third of them may be clicks
_QUIET = 2e-5  # of full scale: below it residuals are rounding


def clicks(x: Float[np.ndarray, " samples"], sr: int) -> list[Run]:
    """Disturbances of at most some milliseconds that neither the sound before them nor that after them predicts.

    The model is fitted anew to the sound without what stuck out, so that many clicks do not pass for the sound.
    """
    hop, frame = max(1, round(_HOP_SECONDS * sr)), max(_ORDER, round(_MODEL_SECONDS * sr))
    count = len(x) // hop
    active = float(np.quantile(np.abs(x[:: 1 + len(x) // 50_000]), 0.99)) if len(x) else 0.0
    if count < 32 or active < 16 * STEP:
        return []
    fitted, ringing = x, _ORDER // hop + 1
    for attempt in range(3):
        models = _predictions(fitted, frame)
        left = _residual(x, models, frame)[: count * hop].reshape(count, hop)
        envelope = np.sqrt(np.mean(left**2, axis=1))
        around = _beside(np.minimum(envelope, 2 * _beside(envelope)))
        score = envelope / around * (envelope / active) ** 0.6
        if attempt == 2 or score.max() < _SCORE / 3:
            break
        out = np.repeat(envelope > 3 * around, hop)
        out = np.pad(out, (0, len(x) - len(out)), constant_values=False)
        out[hop:] |= out[:-hop].copy()
        out[:-hop] |= out[hop:].copy()
        at = np.arange(len(x))
        fitted = np.where(out, np.interp(at, at[~out], x[~out]), x).astype(np.float32)
    found, edge = [], max(2, round(_EDGE_SECONDS * sr))
    first, last = runs_of(np.asarray(score > _SCORE))
    margin = 2 * _ORDER + hop
    for i, j in zip(first.tolist(), last.tolist(), strict=True):
        low, high = i * hop - margin, j * hop + margin
        if low < _ORDER or high > len(x) - _ORDER or (j - i - ringing) * hop > 2 * _LONGEST_CLICK * sr:
            continue
        model = models[(i + j) * hop // 2 // frame]
        forward = np.convolve(x[low - _ORDER : high], model, "valid")
        backward = np.convolve(x[low : high + _ORDER][::-1], model, "valid")[::-1]
        both = np.minimum(np.abs(forward), np.abs(backward))
        level = around[i:j].max()
        mask = both > max(4 * level, 0.1 * both.max())
        for start, stop in zip(*_closed(mask, hop), strict=True):
            rms = np.sqrt(np.sum(both[start:stop] ** 2) / max(hop, stop - start))
            new = not found or low + start >= found[-1].stop
            if new and stop - start <= _LONGEST_CLICK * sr and rms / level * (rms / active) ** 0.6 > _SCORE:
                begin = max(low + int(start) - edge, found[-1].stop if found else 0)
                found.append(Run(begin, min(low + int(stop) + edge, len(x))))
    return found


def _closed(mask: Bool[np.ndarray, " samples"], hole: int) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of True start and stop, those together that are at most `hole` samples apart."""
    start, stop = runs_of(mask)
    apart = start[1:] - stop[:-1] > hole
    return start[np.r_[True, apart][: len(start)]], stop[np.r_[apart, True][: len(stop)]]


def _beside(envelope: Float[np.ndarray, " hops"]) -> Float[np.ndarray, " hops"]:
    """What is usual in the 30 ms before or after each hop, whichever is louder, but for the 4 ms next to it."""
    side, apart = 60, 8
    padded = np.pad(envelope, side + apart)
    rank = int(_USUAL * side)
    usual = np.partition(np.lib.stride_tricks.sliding_window_view(padded, side), rank, axis=1)[:, rank]
    before, after = usual[: len(envelope)], usual[side + 2 * apart + 1 :]
    return np.maximum(before, after) + _QUIET


def _predictions(x: Float[np.ndarray, " samples"], frame: int) -> Float[np.ndarray, "frames taps"]:
    """Prediction-error filters by the autocorrelation method (Levinson-Durbin) for each frame, from Hann windows of
    twice its length around it; the first tap is 1."""
    count, half = -(-len(x) // frame), frame // 2
    padded = np.pad(x, (half, (count + 1) * frame - len(x)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * frame)[::frame][:count]
    windows = windows * np.hanning(2 * frame + 1)[:-1].astype(np.float32)
    size = 2 ** int(np.ceil(np.log2(2 * frame + _ORDER)))
    r = np.fft.irfft(np.abs(np.fft.rfft(windows, size)) ** 2)[:, : _ORDER + 1].astype(np.float64)
    r[:, 0] = r[:, 0] * (1 + 1e-7) + 1e-9
    taps, error = np.zeros_like(r), r[:, 0].copy()
    taps[:, 0] = 1
    for k in range(1, _ORDER + 1):
        reflection = -np.einsum("fk,fk->f", taps[:, :k], r[:, k:0:-1]) / error
        taps[:, 1 : k + 1] += reflection[:, None] * taps[:, k - 1 :: -1][:, :k]
        error *= 1 - reflection**2
    return taps.astype(np.float32)


def _residual(x: Float[np.ndarray, " samples"], models: Float[np.ndarray, "frames taps"], frame: int) -> np.ndarray:
    """What each frame's filter leaves of the sound; as many samples as whole frames cover."""
    size = len(models) * frame
    padded = np.pad(x, (_ORDER, size - len(x)))
    left = np.zeros((len(models), frame), np.float32)
    for k in range(_ORDER + 1):
        left += models[:, k : k + 1] * padded[_ORDER - k : _ORDER - k + size].reshape(-1, frame)
    return left.reshape(-1)[: len(x)]
