"""One number or one small vector per frame that describes sound: level, brightness, width, noisiness, onsets.

librosa's names, defaults and orientation. Each takes a waveform `y` or a magnitude spectrogram `S`; frequencies are in
Hz. Gradients are finite at silence, where a descriptor is 0 (flatness 1). Sources: Peeters 2004, "A large set of audio
features"; Jiang et al. 2002 (contrast); Boeck & Widmer 2013 (onset strength).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .arguments import checked
from .mel import melspectrogram
from .spectral import both_sides, cut_frames, each_spectrum, power_of_two, power_to_db, safe_power
from .transform import each_item, transform
from .windows import Window


@checked
def fft_frequencies(*, sr: float = 22050, n_fft: int = 2048) -> np.ndarray:
    """Centre frequencies of the STFT's bins in Hz (float64), as `librosa.fft_frequencies`.

    >>> fft_frequencies(sr=8000, n_fft=4).tolist()
    [0.0, 2000.0, 4000.0]
    """
    return np.fft.rfftfreq(n_fft, 1 / sr)


def _magnitudes(y: Any, S: Array | None, *options) -> Array:
    """`S`, or the STFT magnitudes of `y`."""
    return jnp.abs(each_spectrum(lambda X: X.mT, y, *options, method="auto")) if S is None else S


def _column(S: Array, sr: float) -> Array:
    """The frequencies of `S`'s bins as a column that broadcasts over frames."""
    return jnp.asarray(fft_frequencies(sr=sr, n_fft=2 * (S.shape[-2] - 1)), S.dtype)[:, None]


def _shares(S: Array) -> Array:
    """`S` divided by its sum over bins; all zero where the sum is."""
    S = S / power_of_two(S, -2)
    total = S.sum(-2, keepdims=True)
    return S / jnp.where(total > 0.25, total, 1)  # at silence it is far less, elsewhere at least a half


@transform
def spectral_centroid(
    y: Float[Array, "... samples"] | None = None,
    S: Float[Array, "... bins frames"] | None = None,
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    pad_mode: str = "constant",
) -> Float[Array, "... 1 frames"]:
    """Mean frequency in Hz, weighted by magnitude: the brightness of each frame.

    >>> tone = jnp.sin(2 * jnp.pi * 1000 / 8000 * jnp.arange(4096))
    >>> abs(float(spectral_centroid(tone, sr=8000)[0, 4]) - 1000) < 2
    True
    """
    S = _magnitudes(y, S, n_fft, hop_length, win_length, window, center, pad_mode)
    return (_column(S, sr) * _shares(S)).sum(-2, keepdims=True)


@transform
def spectral_bandwidth(
    y: Float[Array, "... samples"] | None = None,
    S: Float[Array, "... bins frames"] | None = None,
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    pad_mode: str = "constant",
    norm: bool = True,
    p: float = 2.0,
) -> Float[Array, "... 1 frames"]:
    """Spread around the centroid in Hz, `(sum S |f - centroid|^p)^(1/p)`, with `S` summing to 1 if `norm`.

    >>> float(spectral_bandwidth(S=jnp.array([[1.0], [0.0], [1.0]]), sr=8000)[0, 0])
    2000.0
    """
    S = _magnitudes(y, S, n_fft, hop_length, win_length, window, center, pad_mode)
    deviation = jnp.abs(_column(S, sr) - spectral_centroid(S=S, sr=sr))
    deviation = deviation**2 if p == 2 else safe_power(deviation, p)
    return safe_power(((_shares(S) if norm else S) * deviation).sum(-2, keepdims=True), 1 / p)


@transform
def spectral_rolloff(
    y: Float[Array, "... samples"] | None = None,
    S: Float[Array, "... bins frames"] | None = None,
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    pad_mode: str = "constant",
    roll_percent: float = 0.85,
) -> Float[Array, "... 1 frames"]:
    """The lowest frequency in Hz with at least `roll_percent` of a frame's magnitude at or below it; its gradient is 0.

    >>> float(spectral_rolloff(S=jnp.array([[1.0], [8.0], [1.0]]), sr=8000)[0, 0])
    2000.0
    """
    S = _magnitudes(y, S, n_fft, hop_length, win_length, window, center, pad_mode)
    below = jnp.cumsum(S, axis=-2)
    reached = jnp.argmax(below >= roll_percent * below[..., -1:, :], axis=-2, keepdims=True)
    return _column(S, sr)[:, 0][reached]


@transform
def spectral_flatness(
    y: Float[Array, "... samples"] | None = None,
    S: Float[Array, "... bins frames"] | None = None,
    *,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    pad_mode: str = "constant",
    amin: float = 1e-10,
    power: float = 2.0,
) -> Float[Array, "... 1 frames"]:
    """Geometric over arithmetic mean of `max(amin, S^power)`: 1 for white noise or silence, near 0 for a tone.

    >>> round(float(spectral_flatness(S=jnp.array([[1.0], [1.0], [4.0]]), power=1.0)[0, 0]), 4)
    0.7937
    """
    S = _magnitudes(y, S, n_fft, hop_length, win_length, window, center, pad_mode)

    def one(S: Array) -> Array:
        S = jnp.maximum(amin, S**2 if power == 2 else safe_power(S, power))
        return jnp.exp(jnp.log(S).mean(0, keepdims=True)) / S.mean(0, keepdims=True)

    return each_item(one, S, axes=2)


@transform
def spectral_contrast(
    y: Float[Array, "... samples"] | None = None,
    S: Float[Array, "... bins frames"] | None = None,
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    pad_mode: str = "constant",
    fmin: float = 200.0,
    n_bands: int = 6,
    quantile: float = 0.02,
    linear: bool = False,
) -> Float[Array, "... bands frames"]:
    """Peak minus valley of each octave band, in dB (or `linear`): the mean of its top and bottom `quantile` of bins.

    Bands: below `fmin` Hz, then `n_bands` octaves, the last one up to half of `sr`.

    >>> spectral_contrast(jnp.ones(4096)).shape
    (7, 9)
    """
    edges = fmin * 2.0 ** np.arange(n_bands + 1)
    if fmin <= 0 or edges[-2] >= sr / 2:
        raise ValueError(f"{n_bands} octaves from fmin {fmin} Hz do not fit below {sr / 2} Hz; lower one of them")
    S = _magnitudes(y, S, n_fft, hop_length, win_length, window, center, pad_mode)
    frequencies = fft_frequencies(sr=sr, n_fft=2 * (S.shape[-2] - 1))
    peaks, valleys = [], []
    for band, (low, high) in enumerate(zip([0.0, *edges[:-1]], edges, strict=True)):
        inside = np.flatnonzero((frequencies >= low) & (frequencies <= high))
        if len(inside) == 0:
            raise ValueError(f"the band from {low} to {high} Hz holds no bin; raise fmin or n_fft")
        first = inside[0] - (band > 0)
        stop = len(frequencies) if band == n_bands else inside[-1] + 1
        count = max(1, int(np.rint(quantile * (stop - first))))
        ordered = jnp.sort(S[..., first : stop - (band < n_bands), :], axis=-2)
        valleys.append(ordered[..., :count, :].mean(-2))
        peaks.append(ordered[..., -count:, :].mean(-2))
    peak, valley = jnp.stack(peaks, axis=-2), jnp.stack(valleys, axis=-2)
    return peak - valley if linear else power_to_db(peak) - power_to_db(valley)


@transform
def rms(
    y: Float[Array, "... samples"] | None = None,
    S: Float[Array, "... bins frames"] | None = None,
    *,
    frame_length: int = 2048,
    hop_length: int = 512,
    center: bool = True,
    pad_mode: str = "constant",
) -> Float[Array, "... 1 frames"]:
    """Root mean square of each frame, from samples or (by Parseval) from the magnitudes `S` of unwindowed frames.

    >>> float(rms(jnp.full(4096, 0.5))[0, 4])
    0.5
    """
    if y is not None:
        frames = lambda item: cut_frames(item, frame_length, hop_length, center, pad_mode)  # noqa: E731
        power = each_item(lambda item: (frames(item) ** 2).mean(-1), y)[..., None, :]
    else:
        assert S is not None
        if S.shape[-2] != 1 + frame_length // 2:
            raise ValueError(f"S has {S.shape[-2]} bins, frame_length {frame_length} gives {1 + frame_length // 2}")
        weight = both_sides(frame_length)[:, None] / frame_length**2
        power = (jnp.asarray(weight, S.dtype) * S**2).sum(-2, keepdims=True)
    return safe_power(power, 0.5)


@transform
def zero_crossing_rate(
    y: Float[Array, "... samples"],
    *,
    frame_length: int = 2048,
    hop_length: int = 512,
    center: bool = True,
    threshold: float = 1e-10,
) -> Float[Array, "... 1 frames"]:
    """Share of a frame's samples at which the sign changes; |y| up to `threshold` counts as 0; its gradient is 0.

    >>> round(float(zero_crossing_rate(jnp.tile(jnp.array([1.0, -1.0]), 2048))[0, 4]), 4)
    0.9995
    """

    def one(y: Array) -> Array:
        negative = cut_frames(y, frame_length, hop_length, center, "edge") < -threshold
        return (negative[:, 1:] != negative[:, :-1]).sum(-1) / frame_length

    return each_item(one, y)[..., None, :].astype(y.dtype)


@transform
def onset_strength(
    y: Float[Array, "... samples"] | None = None,
    S: Float[Array, "... bands frames"] | None = None,
    *,
    sr: float = 22050,
    n_fft: int = 2048,
    hop_length: int = 512,
    lag: int = 1,
    max_size: int = 1,
    center: bool = True,
) -> Float[Array, "... frames"]:
    """Spectral flux: the mean rise in dB over mel bands against `lag` frames before (`S`: a log spectrogram in dB).

    With `max_size` > 1 the earlier frame is first widened by a maximum over that many bands (SuperFlux, vibrato
    suppression). `center` shifts the result by half a frame, as the onsets of centred frames are seen early.

    >>> onset_strength(jnp.zeros(8192).at[4096].set(1.0)).argmax().item()
    9
    """
    if S is None:
        S = power_to_db(melspectrogram(y, sr=sr, n_fft=n_fft, hop_length=hop_length))
    lead, bands, frames = [(0, 0)] * (S.ndim - 2), S.shape[-2], S.shape[-1]
    if max_size > bands:
        raise ValueError(f"max_size {max_size} is more than the {bands} bands; use fewer")
    before, after = max_size // 2, max_size - 1 - max_size // 2
    wide = jnp.pad(S, [*lead, (before, after), (0, 0)], mode="symmetric") if max_size > 1 else S
    reference = jnp.stack([wide[..., k : k + bands, :] for k in range(max_size)]).max(0)
    rise = jnp.maximum(0, S[..., lag:] - reference[..., :-lag]).mean(-2)
    rise = jnp.pad(rise, [*lead, (lag + (n_fft // (2 * hop_length) if center else 0), 0)])
    return rise[..., :frames] if center else rise
