"""How loud a sound is: per frame with a weighting curve, and by the broadcasting standards.

    K-weighted power z of a block,   L = -0.691 + 10 log10(sum_channels G z)   LUFS     (ITU-R BS.1770-4, Annex 1)

Waveforms are `[..., samples]`, each a mono programme. With `channels_axis` (say -2) that axis holds the channels of one
programme, whose powers are added with the weights G: 1 for up to three channels; 1, 1, 1, 1.41, 1.41 for five (left,
right, centre, surrounds; leave out the LFE); `channel_weights` for any other layout. Levels end at a floor instead of
minus infinity, and their gradient there is zero: -70 LUFS, the absolute gate, for `integrated_loudness`, and -120 for
everything else. Gates are masks, so no shape depends on the sound.
"""

import functools
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .filters import A_weighting, C_weighting, K_weighting, k_sections, sosfilt
from .resample import polyphase
from .spectral import both_sides, frame_sizes, stft
from .transform import each_item, transform
from .windows import Window, fft_window

_GATE, _FLOOR = -70.0, -120.0


@transform
def frame_loudness(
    y: Float[Array, "... samples"],
    *,
    sr: float = 22050,
    weighting: Literal["A", "C", "K"] | None = "A",
    n_fft: int = 2048,
    hop_length: int = 512,
    win_length: int | None = None,
    window: Window = "hann",
    center: bool = True,
    pad_mode: str = "constant",
    min_db: float = -120.0,
) -> Float[Array, "... frames"]:
    """The weighted level of each frame in dB, at least `min_db`, where a full-scale square wave has 0 dB.

    The power of a frame is sum_k w[k] |X[k]|^2, scaled (Parseval) such that `weighting=None` gives the RMS level of the
    windowed frame; sizes in samples and framing as in `stft`, `sr` in Hz. With A-weighting this is the loudness that
    controls DDSP's synthesizers (Engel et al. 2020) up to their reference level.

    >>> f"{frame_loudness(jnp.sin(jnp.arange(8192) * 2 * jnp.pi / 16), sr=16000)[8]:.1f}"
    '-3.0'
    """
    hop_length, win_length = frame_sizes(n_fft, hop_length, win_length)
    sizes: dict[str, Any] = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length)
    frequencies = jnp.asarray(np.fft.rfftfreq(n_fft, 1 / sr), y.dtype)
    curves = {
        "A": functools.partial(A_weighting, min_db=None),
        "C": functools.partial(C_weighting, min_db=None),
        "K": functools.partial(K_weighting, sr=sr, min_db=None),
        None: jnp.zeros_like,
    }
    scale = both_sides(n_fft) / (n_fft * np.sum(fft_window(window, win_length, n_fft) ** 2))
    weights = jnp.asarray(scale, y.dtype) * 10 ** (curves[weighting](frequencies) / 10)

    def item(y):
        X = stft(y, **sizes, window=window, center=center, pad_mode=pad_mode)
        power = jnp.einsum("kn,k->n", X.real**2 + X.imag**2, weights, precision="highest")
        return _decibels(power, min_db)

    return each_item(item, y)


@transform
def integrated_loudness(
    y: Float[Array, "... samples"],
    *,
    sr: float,
    channels_axis: int | None = None,
    channel_weights: tuple[float, ...] | None = None,
) -> Float[Array, "..."]:
    """The gated loudness of a whole programme in LUFS, -70 where nothing passes the gate (BS.1770-4, Annex 1, eq. 3-7).

    `sr` in Hz. Blocks of 400 ms that overlap by 75 % count if they are above -70 LUFS and above 10 LU below the mean of
    those. Refuses waveforms shorter than one block, rates below 4 kHz and unknown layouts (`ValueError`).

    >>> y = 10 ** (-20 / 20) * jnp.sin(jnp.arange(48000) * 2 * jnp.pi * 997 / 48000)
    >>> f"{integrated_loudness(y, sr=48000):.2f}"
    '-23.01'
    """
    return gated_loudness(block_power(y, 4, sr, channels_axis, channel_weights))


@transform
def momentary_loudness(
    y: Float[Array, "... samples"],
    *,
    sr: float,
    channels_axis: int | None = None,
    channel_weights: tuple[float, ...] | None = None,
) -> Float[Array, "... blocks"]:
    """The loudness of blocks of 400 ms in LUFS, one every 100 ms, the first from sample 0 (EBU Tech 3341, section 2.2).

    >>> momentary_loudness(jnp.ones(16000), sr=16000).shape
    (7,)
    """
    return _loudness(block_power(y, 4, sr, channels_axis, channel_weights), _FLOOR)


@transform
def short_term_loudness(
    y: Float[Array, "... samples"],
    *,
    sr: float,
    channels_axis: int | None = None,
    channel_weights: tuple[float, ...] | None = None,
) -> Float[Array, "... blocks"]:
    """The loudness of blocks of 3 s in LUFS, one every 100 ms, the first from sample 0 (EBU Tech 3341, section 2.2).

    >>> short_term_loudness(jnp.ones(16000 * 4), sr=16000).shape
    (11,)
    """
    return _loudness(block_power(y, 30, sr, channels_axis, channel_weights), _FLOOR)


@transform
def loudness_range(
    y: Float[Array, "... samples"],
    *,
    sr: float,
    channels_axis: int | None = None,
    channel_weights: tuple[float, ...] | None = None,
) -> Float[Array, "..."]:
    """The spread of short-term loudness in LU: 95th minus 10th percentile of what passes the gate (EBU Tech 3342).

    Blocks count if they are above -70 LUFS and above 20 LU below the mean of those; 0 where none is.

    >>> f"{loudness_range(jnp.sin(jnp.arange(16000 * 4) / 3), sr=16000):.1f}"
    '0.0'
    """
    power = block_power(y, 30, sr, channels_axis, channel_weights)
    mask = _gated(power, 20.0)
    levels = jnp.sort(jnp.where(mask, _loudness(power, _FLOOR), jnp.inf), axis=-1)
    count = mask.sum(-1, keepdims=True)
    ranks = [jnp.floor(jnp.maximum(count - 1, 0) * share + 0.5).astype(int) for share in (0.1, 0.95)]
    low, high = (jnp.take_along_axis(jnp.where(count > 0, levels, 0.0), rank, axis=-1)[..., 0] for rank in ranks)
    return high - low


@transform
def true_peak(y: Float[Array, "... samples"], *, oversampling: int = 4) -> Float[Array, "..."]:
    """The peak of the band-limited waveform between its samples, in dBTP, at least -120 (after BS.1770-4, Annex 2).

    Each waveform alone: take the maximum over channels. The standard's four-fold interpolation reads up to 0.69 dB too
    low; 64 taps per phase instead of its 12 and a parabola through each maximum and its neighbours leave 0.02 dB up to
    90 % of the Nyquist frequency.

    >>> y = 0.5 * jnp.hanning(1000) * jnp.cos(jnp.pi / 2 * jnp.arange(1000) + jnp.pi / 4)
    >>> f"{jnp.abs(y).max():.2f}, {true_peak(y):.2f} dBTP"
    '0.35, -6.02 dBTP'
    """

    def item(y):
        fine = jnp.pad(jnp.abs(polyphase(y, oversampling, 1, half=32.0, cutoff=1.0, beta=5.65)), 1)
        left, top, right = fine[:-2], fine[1:-1], fine[2:]
        above = (left - right) ** 2 / (8 * jnp.maximum(2 * top - left - right, 1e-12))
        peaks = jnp.where((top >= left) & (top >= right), top + above, top)
        return _decibels(peaks.max() ** 2, _FLOOR)

    return each_item(item, y)


@transform
def normalize_loudness(
    y: Float[Array, "... samples"],
    *,
    sr: float,
    target: float = -23.0,
    max_true_peak: float | None = None,
    channels_axis: int | None = None,
    channel_weights: tuple[float, ...] | None = None,
) -> Float[Array, "... samples"]:
    """`y` times the one gain per programme that brings its integrated loudness to `target` LUFS (EBU R 128: -23).

    Where nothing passes the gate (-70 LUFS) the gain is 1: silence stays silence and its noise is not raised.
    `max_true_peak` in dBTP (EBU R 128: -1) lowers the gain where the peaks would exceed it.

    >>> y = normalize_loudness(jnp.sin(jnp.arange(48000) / 8), sr=48000, target=-16.0)
    >>> f"{integrated_loudness(y, sr=48000):.2f}"
    '-16.00'
    """
    options: dict[str, Any] = dict(sr=sr, channels_axis=channels_axis, channel_weights=channel_weights)
    level = integrated_loudness(y, **options)
    gain = target - level
    channels = _channels(y, channels_axis)
    if max_true_peak is not None:
        gain = jnp.minimum(gain, max_true_peak - true_peak(channels).max(-1))
    gain = jnp.where(level > _GATE, 10 ** (gain / 20), 1.0)
    scaled = channels * gain[..., None, None]
    return scaled[..., 0, :] if channels_axis is None else jnp.moveaxis(scaled, -2, channels_axis)


def _channels(y: Array, channels_axis: int | None) -> Float[Array, "... channels samples"]:
    if channels_axis is None:
        return y[..., None, :]
    if not -y.ndim <= channels_axis < y.ndim - 1 or channels_axis == -1:
        raise ValueError(
            f"channels_axis {channels_axis} is no axis before the samples of a waveform of shape {y.shape}; use -2, "
            f"or None for mono"
        )
    return jnp.moveaxis(y, channels_axis, -2)


def block_power(
    y: Array,
    segments: int,
    sr: float,
    channels_axis: int | None = None,
    channel_weights: tuple[float, ...] | None = None,
) -> Float[Array, "... blocks"]:
    """The weighted sum of the channels' K-weighted mean squares in blocks of `segments` x 100 ms, one every 100 ms."""
    sections = k_sections(sr)
    y = _channels(y, channels_axis)
    layouts = {1: (1.0,), 2: (1.0,) * 2, 3: (1.0,) * 3, 5: (1.0, 1.0, 1.0, 1.41, 1.41)}
    weights = layouts.get(y.shape[-2]) if channel_weights is None else channel_weights
    if weights is None or len(weights) != y.shape[-2]:
        raise ValueError(f"{y.shape[-2]} channels need as many channel_weights (0 for an LFE channel), got {weights}")
    hop = round(sr / 10)
    count = y.shape[-1] // hop
    if count < segments:
        raise ValueError(
            f"the waveform has {y.shape[-1]} samples, one block of {segments / 10} s at {sr} Hz has {segments * hop}; "
            "give a longer one"
        )

    def item(y):
        return (sosfilt(y, sos=sections)[: count * hop].reshape(count, hop) ** 2).mean(-1)

    power = jnp.einsum("...cn,c->...n", each_item(item, y), jnp.asarray(weights, y.dtype), precision="highest")
    blocks = count - segments + 1
    return jnp.asarray(sum(power[..., k : k + blocks] for k in range(segments))) / segments


def gated_loudness(power: Float[Array, "... blocks"]) -> Float[Array, "..."]:
    """The integrated loudness of blocks of 400 ms, of which those without power do not count."""
    return _loudness(_mean(power, _gated(power, 10.0)), _GATE)


def _gated(power: Float[Array, "... blocks"], below: float) -> Bool[Array, "... blocks"]:
    """Which blocks pass the absolute gate and the relative one, `below` LU under the mean of those."""
    gate = 10 ** ((_GATE + 0.691) / 10)
    mean = _mean(power, power > gate)
    return (power > gate) & (power > mean[..., None] * 10 ** (-below / 10))


def _mean(power: Array, mask: Array) -> Array:
    return jnp.where(mask, power, 0).sum(-1) / jnp.maximum(mask.sum(-1), 1)


def _loudness(power: Array, floor: float) -> Array:
    return _decibels(10**-0.0691 * power, floor)


def _decibels(power: Array, floor: float) -> Array:
    least = max(10 ** (floor / 10), float(jnp.finfo(power.dtype).tiny) ** 0.8)  # whose reciprocal has room for sums
    return jnp.where(power > least, 10 * jnp.log10(jnp.maximum(power, least)), floor)
