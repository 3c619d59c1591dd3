"""Repair: what is missing of a sound, given the rest of it: gaps, clipped samples, lost bands, what a coder left out.

`Repair` is learned on damaged sounds. `ZeroShot` uses a model of whole sounds that never saw a damaged one: in every
step of the sampler the estimate is moved towards sounds that would have been damaged to what is there, by the gradient
of the difference (Chung et al. 2023; for sound Moliner et al. 2023, CQTdiff), and what is known is put back.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff.data.files import resample
from jaxdiff.diffusion import Schedule, reconstruction_guidance
from jaxdiff.diffusion.operators import Operator
from jaxdiff.features import CompressedStft, Representation
from jaxdiff.networks import Condition

from .damage import Damage, Damaged, Guess, guess_band, low_pass
from .task import Batch, Estimate, Example, Given, Level, Needs, NoRequest, Task

_FIT = 0.02  # share of a cut-off over which the sound to compare ends
_FILTER_BANDS = 128  # of a fitted filter
_CUT_BANDS = 16  # numbers that tell the network of a cut-off
_SEAM = 0.05  # share of a cut-off below it over which the known band gives way to the made one
_PLACES = 4  # further ones: the shares of a frame that are lost and clipped, the root of the latter, and coding


@dataclass(frozen=True)
class Repair(Task):
    """Known: the damaged sound, guessed where it is missing, and what is missing. Made: the whole sound.

    Sampling begins at the guess that was drawn, and the network sees the expected one beside it. Whatever was not
    missing comes out as it was: samples outside of gaps and below the level of clipping, and the band below a cut-off.
    Training damages the crops as `damage` says; what `data.paired` has as "coded" are the same sounds through lossy
    coders. In use a batch has what `Damaged` has: "wave" (the expected guess), "drawn", "lost", "clipped", "cutoff" and
    "coded".
    """

    needs_sound: ClassVar[bool] = True
    gives_start: ClassVar[bool] = True

    damage: Damage = Damage()
    peak_db: Level = -6.0

    def check(self, representation: Representation) -> None:
        kind = type(representation.inner)
        if kind is not CompressedStft:
            raise ValueError(f"task repair needs representation compressed_stft, got {kind.__name__}; set it")

    def needs(self, representation: Representation) -> Needs:
        return Needs(condition_features=_PLACES + _CUT_BANDS, condition_hop=representation.hop_length)

    def example(self, representation: Representation, batch: Batch, key: PRNGKeyArray) -> Example:
        wave = self.leveled(batch["wave"])
        coded = batch.get("coded")
        if coded is not None and self.peak_db is not None:
            coded = coded * self.gain(jnp.abs(batch["wave"]).max(-1, keepdims=True))
        damaged = self.damage(wave, sr=representation.sample_rate, key=key, coded=coded)
        peak = jnp.abs(jnp.where(damaged.lost > 0, 0, damaged.guess.expected)).max(-1, keepdims=True)
        gain = self.gain(peak)
        guess = Guess(*(gain * y for y in damaged.guess))
        return Example(representation.encode(gain * wave), self._known(representation, damaged._replace(guess=guess)))

    def given(self, representation: Representation, batch: Batch, request: NoRequest = NoRequest()) -> Given:
        return self._known(representation, _damaged(batch, representation.sample_rate))

    def restore(self, sound: np.ndarray, made: np.ndarray, rate: float, sr: float, request: Any) -> np.ndarray:
        return _with_rest(sound, made, rate, sr)

    def _known(self, representation: Representation, damaged: Damaged) -> Given:
        """The condition frames say what share of the samples around each frame is lost and clipped."""
        hop, samples = representation.hop_length, damaged.lost.shape[-1]
        frames = representation.frames(samples)

        def share(y: Array) -> Array:
            y = jnp.pad(y.astype(damaged.lost.dtype), ((0, 0), (hop // 2, hop)))[:, : frames * hop]
            return y.reshape(len(y), frames, hop).mean(-1)

        lost, clipped = share(damaged.lost), share(damaged.clipped)
        bands = jnp.arange(_CUT_BANDS)
        edge = damaged.cutoff[:, None] / (representation.sample_rate / 2) * _CUT_BANDS
        below = jnp.broadcast_to(jnp.clip(edge - bands, 0, 1)[:, None], (len(lost), frames, _CUT_BANDS))
        coded = jnp.broadcast_to(damaged.coded[:, None], lost.shape)
        places = jnp.stack([lost, clipped, jnp.sqrt(clipped), coded.astype(lost.dtype)], -1)
        cond = Condition(frames=jnp.concatenate([places, below], -1))
        cond = cond.with_estimate(representation.encode(damaged.guess.expected))
        return Given(cond, representation.encode(damaged.guess.drawn), damaged)

    def finish(self, representation: Representation, x0: Array, given: Given) -> Float[Array, "batch samples"]:
        damaged: Any = given.kept
        return mended(damaged, representation.decode(x0), representation.sample_rate)


@dataclass(frozen=True)
class ZeroShot(Task):
    """Known and made: as of `Repair`, by a model that generates whole sounds.

    Sampling begins at the guess that was drawn, with methods that take a start. Near a cut-off the filter that took the
    band away is fitted at every step (Moliner & Valimaki 2023, BABE). `scale` is the length of a step along the
    gradient, in deviations of the estimate.
    """

    needs_sound: ClassVar[bool] = True
    gives_start: ClassVar[bool] = True

    classes: tuple[str, ...] = ()
    peak_db: Level = None
    scale: float = 0.5

    def example(self, representation: Representation, batch: Batch, key: PRNGKeyArray) -> Example:
        raise TypeError("repair without training trains nothing; train its model to generate")

    def given(self, representation: Representation, batch: Batch, request: NoRequest = NoRequest()) -> Given:
        label = jnp.full(len(batch["wave"]), len(self.classes))
        cond = Condition(label=label if self.classes else None)
        damaged = _damaged(batch, representation.sample_rate)
        return Given(cond, representation.encode(damaged.guess.drawn), damaged)

    def guide(self, representation: Representation, denoiser: Estimate, schedule: Schedule, given: Given) -> Estimate:
        damaged, sr = given.kept, representation.sample_rate
        known = damaged.guess.expected
        operator = Operator(lambda x: damaged_again(damaged, representation.decode(x), sr))
        there = jnp.where(damaged.lost > 0, 0, known)
        y = jnp.where(_narrow(damaged, sr), low_pass(there, damaged.cutoff, _FIT, sr), there)
        guided = reconstruction_guidance(denoiser, schedule, operator, y, scale=self.scale, normalize=True)

        def consistent(x_t: Array, t: Array, *r: Array) -> Array:
            return representation.encode(mended(damaged, representation.decode(guided(x_t, t)), sr))

        return consistent

    def finish(self, representation: Representation, x0: Array, given: Given) -> Float[Array, "batch samples"]:
        return mended(given.kept, representation.decode(x0), representation.sample_rate)

    def restore(self, sound: np.ndarray, made: np.ndarray, rate: float, sr: float, request: Any) -> np.ndarray:
        return _with_rest(sound, made, rate, sr)


def damaged_again(damaged: Damaged, wave: Float[Array, "batch samples"], sr: int) -> Float[Array, "batch samples"]:
    """Another sound with the same damage: 0 in gaps, cut at the level of clipped samples, without its band."""
    known = damaged.guess.expected
    sign, size = jnp.sign(known), jnp.abs(known)
    cut = jnp.where(damaged.clipped, sign * jnp.minimum(sign * wave, size), wave)
    there = jnp.where(damaged.lost > 0, 0, cut)
    below = low_pass(there, 1.2 * damaged.cutoff, _FIT, sr)
    return jnp.where(_narrow(damaged, sr), _fitted(below, known, damaged.cutoff, sr), there)


def _fitted(wave: Array, known: Array, cutoff: Float[Array, " batch"], sr: int) -> Array:
    """A sound through the falling filter that brings its spectrum to the known one's from 20 % below a cut-off on."""
    samples = wave.shape[-1]
    X, Y = jnp.fft.rfft(wave), jnp.fft.rfft(known)
    band = np.minimum(np.arange(X.shape[-1]) * _FILTER_BANDS // X.shape[-1], _FILTER_BANDS - 1)
    member = jnp.asarray(np.eye(_FILTER_BANDS, dtype=np.float32)[band])
    power = lambda Z: jnp.abs(Z) ** 2 @ member  # noqa: E731
    gain = jnp.sqrt(jnp.minimum(power(Y) / jnp.maximum(power(X), 1e-12), 1.0))
    hz = (np.arange(_FILTER_BANDS) + 0.5) * sr / 2 / _FILTER_BANDS
    gain = jnp.where(hz < 0.8 * cutoff[:, None], 1.0, gain)
    gain = jax.lax.stop_gradient(jax.lax.cummin(gain, axis=1))
    return jnp.fft.irfft(X * gain[:, band], samples)


def _narrow(damaged: Damaged, sr: int) -> Array:
    return (damaged.cutoff < 0.99 * sr / 2)[:, None]


def _damaged(batch: Batch, sr: int) -> Damaged:
    """The damage that a batch tells of; a lost band that is not guessed there is guessed here."""
    cutoff = batch["cutoff"]
    if "drawn" in batch:
        guess = Guess(batch["wave"], batch["drawn"])
        return Damaged(guess, batch["lost"], batch["clipped"], cutoff, batch["coded"])
    wave = batch["wave"]
    band = guess_band(wave, cutoff, sr, jax.random.key(0))
    guess = Guess(*(jnp.where(batch["coded"][:, None], wave, y) for y in band))
    return Damaged(guess, jnp.zeros_like(wave), jnp.zeros(wave.shape, bool), cutoff, batch["coded"])


def _with_rest(sound: np.ndarray, made: np.ndarray, rate: float, sr: float) -> np.ndarray:
    """The sound with what a model of rate `sr` changed of it."""
    if rate == sr:
        return made
    within = resample(resample(sound, rate, sr), sr, rate)[:, : sound.shape[-1]]
    return sound + made - np.pad(within, ((0, 0), (0, sound.shape[-1] - within.shape[-1])))


def mended(damaged: Damaged, made: Float[Array, "batch samples"], sr: int) -> Float[Array, "batch samples"]:
    """The damaged sound with what was `made` of its missing parts: in gaps, beyond the level of clipped samples, above
    the cut-off; a coded sound is made anew."""
    known = damaged.guess.expected
    whole = known + damaged.lost * (made - known)
    beyond = jnp.sign(known) * jnp.maximum(jnp.sign(known) * made, jnp.abs(known))
    whole = jnp.where(damaged.clipped, beyond, whole)
    below = lambda y: low_pass(y, damaged.cutoff, _SEAM, sr)  # noqa: E731
    whole = jnp.where(_narrow(damaged, sr), made + below(known - made), whole)
    return jnp.where(damaged.coded[:, None], made, whole)
