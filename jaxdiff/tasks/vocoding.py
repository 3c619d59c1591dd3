"""Vocoding: sound from its mel spectrogram (DiffWave, Kong et al. 2021, section 3.2)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxdiff.data.pipeline import Batch
from jaxdiff.features import Representation, hz_to_mel, mel_filterbank, mel_to_hz, mel_to_stft, melspectrogram
from jaxdiff.networks import Condition

from .examples import Example, Task

_RANGE_DB = 100.0  # of the condition's magnitudes, the largest being 20 dB above 1


def vocoding(
    representation: Representation,
    *,
    sr: float,
    n_fft: int,
    hop_length: int,
    n_mels: int,
    fmax: float | None = None,
    envelope: Callable[[Array], Array] | None = None,
    guess: float | None = None,
) -> Task:
    """Known: log-mel magnitudes, one frame per `hop_length` samples. Made: the waveform.

    Mel magnitudes are scaled as DiffWave's: 20 dB below full scale is the reference, 100 dB the range, so that the
    condition lies in [0, 1]. With `envelope` (`spectral_envelope`) features are divided by what the condition tells of
    their magnitudes, so that the network sees and makes numbers of unit size, and noise is shaped as the sound is
    (PriorGrad, Lee et al. 2022, for the mel's energy). With `guess` the condition also holds, as an estimate, the
    magnitudes of the inverted mel raised to that power: the `magnitude` representation's, for a network to improve.
    """
    mel = dict(sr=sr, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels, fmax=fmax, power=1.0)

    def condition(batch: Batch) -> Condition:
        wave = batch["wave"]
        frames = wave.shape[-1] // hop_length
        if hop_length == representation.hop_length:  # as many as the network's, which may have one at both ends
            frames = jax.eval_shape(representation.encode, wave).shape[-2]
        M = melspectrogram(wave, **mel)
        db = 20 * jnp.log10(jnp.maximum(M, 1e-5)) - 20
        cond = Condition(frames=jnp.clip((db + _RANGE_DB) / _RANGE_DB, 0, 1).mT[:, :frames])
        if guess is None:
            return cond
        estimate = mel_to_stft(M, sr=sr, n_fft=n_fft, fmax=fmax, power=1.0).mT ** guess
        return cond.with_estimate(estimate if envelope is None else estimate / envelope(cond.frames))

    def example(batch: Batch, key: PRNGKeyArray) -> Example:
        cond, x0 = condition(batch), representation.encode(batch["wave"])
        return Example(x0 if envelope is None else x0 / envelope(cond.frames), cond)

    def decode(x0: Array, cond: Condition) -> Array:
        return representation.decode(x0 if envelope is None else x0 * envelope(cond.frames))

    return Task(example, condition, decode)


def spectral_envelope(
    *, sr: float, n_fft: int, n_mels: int, fmax: float | None, stft_n_fft: int, exponent: float, parts: int = 2
) -> Callable[[Float[Array, "batch frames mels"]], Float[Array, "batch frames features"]]:
    """A vocoder's condition to the magnitudes that it implies for spectra of `stft_n_fft` and `exponent`, repeated for
    `parts` 2, real and imaginary: decibels of the mean magnitude in a band, linear between the bands' centres."""
    area = mel_filterbank(sr, n_fft, n_mels, fmax=fmax).sum(1)
    centres = mel_to_hz(np.linspace(0, hz_to_mel(sr / 2 if fmax is None else fmax), n_mels + 2))[1:-1]
    bins = np.arange(stft_n_fft // 2 + 1) * sr / stft_n_fft
    between = np.stack([np.interp(bins, centres, row) for row in np.eye(n_mels)])  # [mels, bins]
    shorter = np.sqrt(stft_n_fft / n_fft)  # noise grows with the root of the window's length
    offset = 20 * np.log10(shorter / np.maximum(area, 1e-10)) + 20 - _RANGE_DB

    def envelope(frames: Array) -> Array:
        db = (_RANGE_DB * frames + offset.astype(np.float32)) @ between.astype(np.float32)
        magnitude = 10 ** (exponent / 20 * db)
        return jnp.concatenate([magnitude] * parts, axis=-1)

    return envelope
