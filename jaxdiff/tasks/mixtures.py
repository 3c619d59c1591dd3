"""Noisy and reverberant speech from clean speech and recordings of noise, inside the training step.

The noises of a batch are shared: item i hears those of a few other items too, each filtered anew, so that a few hundred
recordings become a new noise every time. Choices and ranges follow the DNS challenge (Reddy et al. 2020) and
DeepFilterNet (Schroeter et al. 2022).
"""

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff import ranges
from jaxdiff.features import fft_convolve, room_response
from jaxdiff.features.augment import equalizer

Waves = Float[Array, "batch samples"]
_FRAME = 0.1  # seconds of the frames in which speech is active or not
_ACTIVE_DB = -40.0  # of the loudest frame
_EARLY = 0.05  # seconds of a room that stay in the target
_ROOM = 0.8  # seconds of a room at most
_VOICES = 4  # of a babble


class Pair(NamedTuple):
    """What is heard and what is wanted, aligned."""

    noisy: Waves
    clean: Waves


@dataclass(frozen=True)
class Mixture:
    """How mixtures are made. Decibels are drawn uniformly between low and high; shares are of the items of a batch."""

    snr_low: float = -5.0  # dB, of the frames in which somebody speaks
    snr_high: float = 20.0
    level_low: float = -38.0  # dB of full scale of the mixture's root mean square
    level_high: float = -14.0
    noises: ranges.Count = 3  # recordings summed at most
    further: ranges.Share = 0.5  # how often each after the first is there
    colored: ranges.Share = 0.15  # noise whose power falls with frequency, or rises
    babble: ranges.Share = 0.15  # other voices of the batch, summed
    clipped: ranges.Share = 0.1  # noise that is clipped
    equalized: ranges.Share = 0.6  # speech and noise each
    equalizer_db: ranges.Weight = 12.0
    rooms: ranges.Share = 0.4  # reverberation; the target keeps its first 50 ms
    band_limited: ranges.Share = 0.15  # speech and noise together
    noise_only: ranges.Share = 0.05
    clean_only: ranges.Share = 0.05

    def __post_init__(self) -> None:
        ranges.check_fields(self)
        for name in ("snr", "level"):
            low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            if low > high:
                raise ValueError(f"{name}_low {low} is above {name}_high {high}; exchange them")
        if self.noise_only + self.clean_only > 1:
            raise ValueError(
                f"noise_only {self.noise_only} and clean_only {self.clean_only} are shares of the same items and add "
                f"up to more than 1; make them smaller"
            )

    def __call__(self, speech: Waves, noise: Waves, *, sr: int, key: PRNGKeyArray) -> Pair:
        """Mixtures of `speech` with `noise` at `sr` Hz, and what is to be heard of them."""
        keys = map(functools.partial(jax.random.fold_in, key), itertools.count())
        batch, samples = speech.shape
        draw = lambda low, high, *size: jax.random.uniform(next(keys), (batch, *size), minval=low, maxval=high)  # noqa: E731
        some = lambda share: jax.random.bernoulli(next(keys), share, (batch, 1))  # noqa: E731
        tune = equalizer(-self.equalizer_db, self.equalizer_db, sr=sr)
        voices = _unit(speech)
        other = self._noise(voices, noise, draw, some, next(keys))
        other = jnp.where(some(self.equalized), tune(other, next(keys)), other)
        limit = jnp.abs(other).max(-1, keepdims=True) * 10 ** (-draw(6.0, 18.0, 1) / 20)
        other = jnp.where(some(self.clipped), jnp.clip(other, -limit, limit), other)
        speech = jnp.where(some(self.equalized), tune(voices, next(keys)), voices)
        heard, clean = self._room(speech, draw, next(keys), sr)
        share = draw(0.0, 1.0, 1)
        spoken = share >= self.noise_only
        quiet = (share < self.noise_only + self.clean_only) & spoken
        power, loudness = active_power(heard, sr), (other**2).mean(-1, keepdims=True)
        ratio = jnp.sqrt(power / jnp.maximum(loudness, 1e-10)) * 10 ** (-draw(self.snr_low, self.snr_high, 1) / 20)
        noisy = spoken * heard + jnp.where(quiet, 0.0, jnp.where(power > 1e-10, ratio, 1.0)) * other
        noisy, clean = self._band(noisy, spoken * clean, draw, some, sr)
        root = jnp.sqrt((noisy**2).mean(-1, keepdims=True))
        gain = 10 ** (draw(self.level_low, self.level_high, 1) / 20) / jnp.maximum(root, 1e-5)
        gain = jnp.minimum(gain, 0.99 / jnp.maximum(jnp.abs(noisy).max(-1, keepdims=True), 1e-5))
        return Pair(gain * noisy, gain * clean)

    def _noise(self, voices: Waves, noise: Waves, draw, some, key: PRNGKeyArray) -> Waves:
        """Filtered recordings, coloured noise and babble, added in random proportions."""
        batch, samples = noise.shape
        X, total = jnp.fft.rfft(_unit(noise)), 0
        z = jnp.exp(-2j * np.pi * jnp.arange(X.shape[1]) / samples)
        for k in range(self.noises):
            r = draw(-3 / 8, 3 / 8, 4)[..., None]
            response = (1 + r[:, 0] * z + r[:, 1] * z**2) / (1 + r[:, 2] * z + r[:, 3] * z**2)
            there = 1.0 if k == 0 else some(self.further) * 10 ** (-draw(0.0, 15.0, 1) / 20)
            total = total + there * response * jnp.roll(X, k, axis=0)
        octaves = jnp.log2(jnp.maximum(jnp.arange(X.shape[1]), 1) / samples)
        parts = jax.random.normal(key, (2, *X.shape))
        tint = jax.lax.complex(*parts) * 2 ** (-draw(-1.0, 2.0, 1) / 2 * octaves)
        size = lambda X: jnp.maximum(jnp.linalg.norm(X, axis=-1, keepdims=True), 1e-9)  # noqa: E731
        tint *= size(X) / size(tint)
        total = jnp.where(some(self.colored), tint + 10 ** (-draw(0.0, 30.0, 1) / 20) * total, total)
        others = min(_VOICES, batch - 1)  # a small batch has fewer voices; an item's own is never among them
        crowd = sum(jnp.roll(voices, k + 1, axis=0) for k in range(others)) / max(1, others) ** 0.5
        recorded = jnp.fft.irfft(total, samples)
        return jnp.where(some(self.babble), crowd + 10 ** (-draw(0.0, 30.0, 1) / 20) * recorded, recorded)

    def _room(self, speech: Waves, draw, key: PRNGKeyArray, sr: int) -> tuple[Waves, Waves]:
        """The first items of the batch in rooms, and with what is early of them; the others as they are."""
        count = round(self.rooms * len(speech))
        if not count:
            return speech, speech
        rt60, drr = draw(0.15, _ROOM)[:count], draw(-3.0, 15.0)[:count]
        samples = round(_ROOM * sr)
        make = lambda rt60, drr, key: room_response(rt60, drr, sr=sr, samples=samples, key=key)  # noqa: E731
        response = jax.vmap(make)(rt60, drr, jax.random.split(key, count))
        early = jnp.asarray(np.clip(2 - np.arange(samples) / (_EARLY * sr), 0, 1), speech.dtype)
        wet, near = fft_convolve(speech[:count], response), fft_convolve(speech[:count], response * early)
        return jnp.concatenate([wet, speech[count:]]), jnp.concatenate([near, speech[count:]])

    def _band(self, noisy: Waves, clean: Waves, draw, some, sr: int) -> Pair:
        """Some items through a steep low-pass, and a high-pass, of random corners."""
        samples = noisy.shape[-1]
        f = jnp.asarray(np.fft.rfftfreq(samples, 1 / sr), noisy.dtype)
        high = sr / 2 * 2 ** -draw(0.1, 1.3, 1)
        low = draw(20.0, 300.0, 1)
        gain = jax.nn.sigmoid((high - f) / 60) * jax.nn.sigmoid((f - low) / 15)
        through = lambda y: jnp.fft.irfft(gain * jnp.fft.rfft(y), samples)  # noqa: E731
        limited = some(self.band_limited)
        return Pair(jnp.where(limited, through(noisy), noisy), jnp.where(limited, through(clean), clean))


def active_power(y: Waves, sr: int) -> Float[Array, "batch 1"]:
    """Mean square over frames of 100 ms that are at most 40 dB below the loudest."""
    size = min(round(_FRAME * sr), y.shape[-1])
    frames = y[:, : y.shape[-1] // size * size].reshape(len(y), -1, size)
    power = (frames**2).mean(-1)
    active = power > 10 ** (_ACTIVE_DB / 10) * power.max(-1, keepdims=True)
    return (power * active).sum(-1, keepdims=True) / jnp.maximum(active.sum(-1, keepdims=True), 1)


def _unit(y: Waves) -> Waves:
    """Each sound at a root mean square of 1; silence stays."""
    return y / jnp.maximum(jnp.sqrt((y**2).mean(-1, keepdims=True)), 1e-4)
