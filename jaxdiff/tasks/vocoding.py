"""Vocoding: sound from its mel spectrogram (DiffWave, Kong et al. 2021, section 3.2)."""

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxdiff.data.pipeline import Batch
from jaxdiff.features import Representation, melspectrogram
from jaxdiff.networks import Condition

from .examples import Example, Task


def vocoding(
    representation: Representation, *, sr: float, n_fft: int, hop_length: int, n_mels: int, fmax: float | None = None
) -> Task:
    """Known: log-mel magnitudes, one frame per `hop_length` samples. Made: the waveform.

    Mel magnitudes are scaled as DiffWave's: 20 dB below full scale is the reference, 100 dB the range, so that the
    condition lies in [0, 1].
    """

    def condition(batch: Batch) -> Condition:
        wave = batch["wave"]
        M = melspectrogram(wave, sr=sr, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels, fmax=fmax, power=1.0)
        db = 20 * jnp.log10(jnp.maximum(M, 1e-5)) - 20
        return Condition(frames=jnp.clip((db + 100) / 100, 0, 1).mT[:, : wave.shape[-1] // hop_length])

    def example(batch: Batch, key: PRNGKeyArray) -> Example:
        return Example(representation.encode(batch["wave"]), condition(batch))

    return Task(example, condition)
