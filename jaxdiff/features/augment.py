"""Random changes of sound for training: pure functions of (sound, key) that run inside the training step.

An `Augmentation` changes each item on its own: item i of a batch draws from `fold_in(key, i)`, so a batch gives what
its items give alone with those keys. `compose` and `sometimes` make larger ones. Decibels, seconds and Hz are drawn
uniformly from [low, high] (corner frequencies log-uniformly), shapes are static and gradients flow to the sound.

All leading axes are items. To give the channels of `[batch, channels, samples]` one draw, map over them with one key:
`jax.vmap(augmentation, (1, None), 1)(y, key)`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .arguments import check_array, checked
from .filters import Kind, biquad_response, fft_convolve, shape_spectrum
from .resample import change_speed
from .spectral import power_of_two, safe_power
from .transform import each_item, transform

_DECAYED = 16.0  # time constants until an impulse response has fallen by 1e-7


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """`item(sound, key)` for one sound of `axes` axes (1: `[samples]`, 2: `[bins, frames]`), callable on any batch."""

    item: Callable[[Array, PRNGKeyArray], Array]
    axes: int = 1

    def __call__(self, y: Float[Array, "..."], key: PRNGKeyArray) -> Float[Array, "..."]:
        check_array("augmentation", "y", y, Float[Array, "... samples" if self.axes == 1 else "... bins frames"])
        lead = y.shape[: y.ndim - self.axes]
        if not lead:
            return self.item(y, key)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(math.prod(lead)))
        return each_item(self.item, y, keys.reshape(lead), axes=self.axes)


def compose(*augmentations: Augmentation) -> Augmentation:
    """One after the other, the j-th with `fold_in(key, j)`; all for waveforms or all for spectrograms.

    >>> compose(polarity_inversion(), polarity_inversion())(jnp.ones(3), jax.random.key(0)).tolist()
    [1.0, 1.0, 1.0]
    """
    kinds = {a.axes for a in augmentations}
    if len(kinds) != 1:
        raise ValueError(f"compose needs augmentations of items with equally many axes, got {sorted(kinds)}")

    def item(y, key):
        for j, augmentation in enumerate(augmentations):
            y = augmentation.item(y, jax.random.fold_in(key, j))
        return y

    return Augmentation(item, *kinds)


@checked
def sometimes(augmentation: Augmentation, probability: float) -> Augmentation:
    """With `probability` the augmentation, else the sound as it is.

    >>> sometimes(polarity_inversion(), 0.0)(jnp.ones(3), jax.random.key(0)).tolist()
    [1.0, 1.0, 1.0]
    """

    def item(y, key):
        choice, key = jax.random.split(key)
        return jax.lax.cond(jax.random.bernoulli(choice, probability), augmentation.item, lambda y, _: y, y, key)

    return Augmentation(item, augmentation.axes)


def _uniform(key: PRNGKeyArray, low: float, high: float, y: Array, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, y.dtype, low, high)


def _log_uniform(key: PRNGKeyArray, low: float, high: float, y: Array, shape: tuple[int, ...] = ()) -> Array:
    return jnp.exp(_uniform(key, math.log(low), math.log(high), y, shape))


def _check_range(what: str, low: float, high: float, least: float = -math.inf, most: float = math.inf) -> None:
    if not least <= low <= high <= most:
        raise ValueError(f"{what} must satisfy {least} <= low <= high <= {most}, got low {low} and high {high}")


@checked
def gain(low_db: float, high_db: float) -> Augmentation:
    """Louder or softer by a random gain in dB.

    >>> gain(20.0, 20.0)(jnp.array([0.5]), jax.random.key(0)).tolist()
    [5.0]
    """
    _check_range("gain in dB", low_db, high_db)
    return Augmentation(lambda y, key: y * 10 ** (_uniform(key, low_db, high_db, y) / 20))


def polarity_inversion() -> Augmentation:
    """Upside down, always; `sometimes(polarity_inversion(), 0.5)` for every second sound.

    >>> abs(polarity_inversion()(jnp.array([0.5, -1.0]), jax.random.key(0))).tolist()
    [0.5, 1.0]
    """
    return Augmentation(lambda y, key: -y)


@checked
def shift(low: int, high: int, *, roll: bool = False) -> Augmentation:
    """Later by a random whole number of samples (earlier if negative), with silence or, if `roll`, the other end.

    >>> shift(2, 2)(jnp.array([1.0, 2.0, 3.0]), jax.random.key(0)).tolist()
    [0.0, 0.0, 1.0]
    """
    _check_range("shift in samples", low, high)

    def item(y, key):
        by = jax.random.randint(key, (), low, high + 1)
        source = jnp.arange(len(y)) - by
        rolled = jnp.roll(y, by)
        return rolled if roll else jnp.where((source >= 0) & (source < len(y)), rolled, 0)

    return Augmentation(item)


@transform
def add_noise(
    y: Float[Array, "... samples"], noise: Float[Array, "... samples"], snr_db: Float[Array, "..."]
) -> Float[Array, "... samples"]:
    """`y` plus `noise` scaled to a signal-to-noise ratio in dB, one for all or one for each leading axis.

    Powers are means over all samples. A silent `y` stays silent, and silent noise adds nothing.

    >>> print(add_noise(jnp.array([1.0, -1.0]), jnp.array([3.0, 3.0]), jnp.array(20.0)))
    [ 1.1 -0.9]
    """
    own, other = power_of_two(y, -1), power_of_two(noise, -1)
    power = lambda x: jnp.mean(x**2, axis=-1, keepdims=True)  # noqa: E731
    loudness = power(noise / other)
    heard = loudness > 1e-20  # otherwise the noise is silent
    ratio = jnp.where(heard, power(y / own) / jnp.where(heard, loudness, 1), 0)
    scale = safe_power(ratio, 0.5) * (own / other)
    return y + scale * 10 ** (-jnp.asarray(snr_db, y.dtype)[..., None] / 20) * noise


@checked
def colored_noise(
    low_snr_db: float, high_snr_db: float, low_exponent: float = 0.0, high_exponent: float = 0.0
) -> Augmentation:
    """Gaussian noise at a random SNR whose power falls as frequency^-exponent: 0 white, 1 pink, 2 brown, -1 blue.

    >>> colored_noise(10.0, 20.0, 1.0, 2.0)(jnp.ones((2, 64)), jax.random.key(0)).shape
    (2, 64)
    """
    _check_range("SNR in dB", low_snr_db, high_snr_db)
    _check_range("exponent", low_exponent, high_exponent)

    def item(y, key):
        snr, exponent, noise = jax.random.split(key, 3)
        white = jax.random.normal(noise, y.shape, y.dtype)
        octaves = jnp.log(jnp.arange(1, len(y) // 2 + 1, dtype=y.dtype) / len(y))
        slope = jnp.exp(-_uniform(exponent, low_exponent, high_exponent, y) / 2 * octaves)
        noise = jnp.fft.irfft(jnp.fft.rfft(white) * jnp.pad(slope, (1, 0)), len(y))
        return add_noise(y, noise, _uniform(snr, low_snr_db, high_snr_db, y))

    return Augmentation(item)


@checked
def background_noise(noise: Float[Array, "count length"], low_snr_db: float, high_snr_db: float) -> Augmentation:
    """A random recording out of `noise`, from a random sample on and repeated as needed, at a random SNR.

    Under `jax.jit` build this inside the compiled function from an argument, or the recordings become constants of it.

    >>> background_noise(jnp.ones((1, 9)), 0.0, 0.0)(jnp.ones(4), jax.random.key(0)).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    _check_range("SNR in dB", low_snr_db, high_snr_db)

    def item(y, key):
        snr, which, start = jax.random.split(key, 3)
        recording = jnp.asarray(noise)[jax.random.randint(which, (), 0, noise.shape[0])]
        start = jax.random.randint(start, (), 0, noise.shape[1])
        excerpt = jnp.resize(jnp.roll(recording, -start), y.shape)
        return add_noise(y, excerpt, _uniform(snr, low_snr_db, high_snr_db, y))

    return Augmentation(item)


@transform
def room_response(
    rt60: Float[Array, ""], drr_db: Float[Array, ""], *, sr: float, samples: int, key: PRNGKeyArray
) -> Float[Array, " samples"]:
    """A synthetic room: a unit impulse, then Gaussian noise that decays by 60 dB in `rt60` seconds (Moorer 1979).

    `drr_db` is the energy of the impulse over that of the noise in dB.

    >>> room_response(jnp.array(0.2), jnp.array(6.0), sr=8000, samples=1600, key=jax.random.key(0))[0].item()
    1.0
    """
    seconds = jnp.arange(1, samples, dtype=rt60.dtype) / sr
    tail = jax.random.normal(key, (samples - 1,), rt60.dtype) * 10 ** (-3 * seconds / rt60)
    tail *= 10 ** (-drr_db / 20) * jax.lax.rsqrt(jnp.maximum(jnp.sum(tail**2), jnp.finfo(rt60.dtype).tiny))
    return jnp.concatenate([jnp.ones(1, rt60.dtype), tail])


@checked
def reverberation(
    low_rt60: float, high_rt60: float, low_drr_db: float, high_drr_db: float, *, sr: float
) -> Augmentation:
    """A random `room_response` with RT60 in seconds and direct-to-reverberant ratio in dB; the direct sound is kept.

    >>> reverberation(0.1, 0.2, 0.0, 6.0, sr=8000)(jnp.ones((2, 400)), jax.random.key(0)).shape
    (2, 400)
    """
    _check_range("RT60 in seconds", low_rt60, high_rt60, least=1e-3)
    _check_range("direct-to-reverberant ratio in dB", low_drr_db, high_drr_db)
    samples = 1 + math.ceil(high_rt60 * sr)

    def item(y, key):
        rt60, drr, room = jax.random.split(key, 3)
        rt60, drr = _uniform(rt60, low_rt60, high_rt60, y), _uniform(drr, low_drr_db, high_drr_db, y)
        return fft_convolve(y, room_response(rt60, drr, sr=sr, samples=samples, key=room))

    return Augmentation(item)


def _pass(kind: Kind, low_hz: float, high_hz: float, sr: float) -> Augmentation:
    _check_range("corner frequency in Hz", low_hz, high_hz, least=1.0, most=0.49 * sr)
    tail = math.ceil(_DECAYED * sr / (np.pi * low_hz))

    def item(y, key):
        corner = _log_uniform(key, low_hz, high_hz, y) / sr
        return shape_spectrum(y, lambda f: biquad_response(f, corner, jnp.zeros_like(corner), kind=kind, sr=1.0), tail)

    return Augmentation(item)


@checked
def low_pass(low_hz: float, high_hz: float, *, sr: float) -> Augmentation:
    """A second-order Butterworth low-pass (12 dB per octave) with a random corner frequency.

    >>> low_pass(1000.0, 4000.0, sr=16000)(jnp.ones((2, 512)), jax.random.key(0)).shape
    (2, 512)
    """
    return _pass("low_pass", low_hz, high_hz, sr)


@checked
def high_pass(low_hz: float, high_hz: float, *, sr: float) -> Augmentation:
    """A second-order Butterworth high-pass (12 dB per octave) with a random corner frequency.

    >>> high_pass(100.0, 200.0, sr=16000)(jnp.ones((2, 512)), jax.random.key(0)).shape
    (2, 512)
    """
    return _pass("high_pass", low_hz, high_hz, sr)


@checked
def equalizer(
    low_db: float, high_db: float, *, sr: float, low_hz: float = 60.0, high_hz: float | None = None, peaks: int = 3
) -> Augmentation:
    """A parametric equalizer of a low shelf, `peaks` bells (q = 1) and a high shelf with random corners and gains.

    >>> equalizer(-6.0, 6.0, sr=16000)(jnp.ones((2, 512)), jax.random.key(0)).shape
    (2, 512)
    """
    high_hz = 0.4 * sr if high_hz is None else high_hz
    _check_range("gain in dB", low_db, high_db)
    _check_range("corner frequency in Hz", low_hz, high_hz, least=1.0, most=0.49 * sr)
    bells: list[Kind] = ["peaking"] * peaks
    kinds: list[Kind] = ["low_shelf", *bells, "high_shelf"]
    sharpest = 10 ** (max(abs(low_db), abs(high_db)) / 40)  # a bell's poles have the quality q 10^(dB / 40)
    tail = math.ceil(_DECAYED * sharpest * sr / (np.pi * low_hz))

    def item(y, key):
        corners, gains = jax.random.split(key)
        corners = _log_uniform(corners, low_hz, high_hz, y, (len(kinds),)) / sr
        gains = _uniform(gains, low_db, high_db, y, (len(kinds),))

        def response(f):
            bands = zip(kinds, corners, gains, strict=True)
            qualities = dict(low_shelf=2**-0.5, peaking=1.0, high_shelf=2**-0.5)
            return math.prod(biquad_response(f, c, g, kind=kind, sr=1.0, q=qualities[kind]) for kind, c, g in bands)

        return shape_spectrum(y, response, tail)

    return Augmentation(item)


@checked
def clipping(low_db: float, high_db: float) -> Augmentation:
    """Hard clipping at a random number of dB below the peak.

    >>> clipping(6.0206, 6.0206)(jnp.array([1.0, 0.1]), jax.random.key(0))[0].round(3).item()
    0.5
    """
    _check_range("clipping in dB below the peak", low_db, high_db, least=0.0)

    def item(y, key):
        limit = jnp.abs(y).max() * 10 ** (-_uniform(key, low_db, high_db, y) / 20)
        return jnp.clip(y, -limit, limit)

    return Augmentation(item)


@checked
def bit_crush(low_bits: int, high_bits: int) -> Augmentation:
    """Rounded to a random number of bits per sample for full scale [-1, 1); the gradient passes straight through.

    >>> bit_crush(2, 2)(jnp.array([0.1, 0.6]), jax.random.key(0)).tolist()
    [0.0, 0.5]
    """
    _check_range("bits", low_bits, high_bits, least=1, most=24)

    def item(y, key):
        steps = 2.0 ** (jax.random.randint(key, (), low_bits, high_bits + 1) - 1).astype(y.dtype)
        rounded = jnp.clip(jnp.round(y * steps), -steps, steps - 1) / steps
        return jax.lax.stop_gradient(rounded) + (y - jax.lax.stop_gradient(y))

    return Augmentation(item)


@checked
def speed(low: float, high: float) -> Augmentation:
    """Played faster by a random factor, tempo and pitch together (`change_speed`); cut or filled with silence.

    >>> speed(0.9, 1.1)(jnp.ones((2, 400)), jax.random.key(0)).shape
    (2, 400)
    """
    _check_range("speed", low, high, least=0.1, most=1.99)
    fastest = max(1.0, high)
    return Augmentation(lambda y, key: change_speed(y, _uniform(key, low, high, y), fastest=fastest))


def _masking(axis: int, largest: int, count: int, value: float) -> Augmentation:
    _check_range("mask width", 0, largest)

    def item(S, key):
        size = S.shape[axis]
        if largest > size:
            raise ValueError(f"a mask of up to {largest} does not fit into {size}; give a smaller largest width")
        width, start = jax.random.split(key)
        width = jax.random.randint(width, (count, 1), 0, largest + 1)
        start = jax.random.randint(start, (count, 1), 0, size - width + 1)
        masked = ((jnp.arange(size) >= start) & (jnp.arange(size) < start + width)).any(0)
        return jnp.where(jnp.expand_dims(masked, -1 - axis), value, S)

    return Augmentation(item, axes=2)


@checked
def time_masking(largest: int, *, count: int = 1, value: float = 0.0) -> Augmentation:
    """SpecAugment: `count` runs of 0 to `largest` frames of `[..., bins, frames]` become `value` (Park et al. 2019).

    >>> time_masking(4)(jnp.ones((2, 20, 9)), jax.random.key(0)).shape
    (2, 20, 9)
    """
    return _masking(1, largest, count, value)


@checked
def frequency_masking(largest: int, *, count: int = 1, value: float = 0.0) -> Augmentation:
    """SpecAugment: `count` runs of 0 to `largest` bins of `[..., bins, frames]` become `value` (Park et al. 2019).

    >>> frequency_masking(4)(jnp.ones((2, 20, 9)), jax.random.key(0)).shape
    (2, 20, 9)
    """
    return _masking(0, largest, count, value)


class Mixed(NamedTuple):
    """`y = weight * own + (1 - weight) * y[partner]`, for mixing labels in the same way."""

    y: Float[Array, "batch ..."]
    partner: Int[Array, " batch"]
    weight: Float[Array, " batch"]


@transform
def mix_up(y: Float[Array, "batch ..."], *, alpha: float = 0.4, key: PRNGKeyArray) -> Mixed:
    """Each item mixed with another of the batch, with a weight from Beta(alpha, alpha) (mixup: Zhang et al. 2018).

    Partners are a permutation of the batch by `key`, the weight of item i is drawn from `fold_in(key, i)`.

    >>> mix_up(jnp.ones((4, 8)), key=jax.random.key(0)).weight.shape
    (4,)
    """
    count = y.shape[0]
    partner = jax.random.permutation(key, count)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    weight = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha, dtype=y.dtype))(keys)
    share = weight.reshape(-1, *[1] * (y.ndim - 1))
    return Mixed(share * y + (1 - share) * y[partner], partner, weight)


# what a configuration can name: changes of waveforms that a few numbers describe
AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "gain": gain,
    "polarity_inversion": polarity_inversion,
    "shift": shift,
    "colored_noise": colored_noise,
    "reverberation": reverberation,
    "low_pass": low_pass,
    "high_pass": high_pass,
    "equalizer": equalizer,
    "clipping": clipping,
    "bit_crush": bit_crush,
    "speed": speed,
}
