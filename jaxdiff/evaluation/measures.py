"""Which measures there are, by name, and what all of them give where their formulas have no value.

A measure takes a reference, an estimate, both `[..., samples]`, and their sampling rate, and gives one number for each
item. Every measure is finite for finite sounds, and NaN where a sample is not finite, by four rules:

1. Sounds that are equal in what a measure looks at have its best value: 0 for errors and distances, 1 for similarities,
   100 dB for ratios (35 for the segmental one). Two silences are equal, and so are two sounds without pitch for F0, or
   without onsets for `onset_f1`.
2. Where only one of them has what a measure looks at, or they cannot be compared (too little speech for `stoi`, no
   moment at which both are voiced for `f0_rmse`), it has its worst value: 0 for similarities, -100 dB for ratios (-10
   for the segmental one), the whole range of the tracker for F0. A formula that has a value there keeps it: the SNR of
   a silent estimate is 0 dB.
3. A level has a floor and a ratio two limits, both stated by the measure. The gradient beyond them is 0.
4. A sound that is shorter than a frame is followed by silence, so one sample is a sound too.

Sounds of many lengths are measured by one program: rows are filled up with anything, and `lengths` `[..., 2]` tell how
many samples of the reference and of the estimate are sound. The value is that of the sounds alone, both cut to the
smaller of their lengths, or each to its own by `mel_cepstral_distortion_dtw`. A length beyond the row is that of the
row, and a length of 0 is one sample of silence.

A sound counts as silent where all samples are 0 (below 1e-30). What a common gain, the gain of one sound, its sign or
an offset changes is said by each measure.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxtyping import Array, Float

from . import music, signals, speech
from .signals import Lengths


class Measure(NamedTuple):
    """A measure as the command knows it. It is a function of (reference, estimate, sampling rate in Hz, lengths), of
    which the lengths may be left out; the rate is static under `jax.jit`."""

    function: Callable[..., Float[Array, "..."]]
    unit: str  # empty where it is a share, a correlation or a number relative to full scale
    higher_is_better: bool
    needs_reference: bool = True


def _with_rate(measure: Callable, unit: str, higher_is_better: bool) -> Measure:
    def function(reference: Array, estimate: Array, sr: float, lengths: Lengths = None) -> Array:
        return measure(reference, estimate, lengths, sr=sr)

    return Measure(function, unit, higher_is_better)


def _without_rate(measure: Callable, unit: str, higher_is_better: bool) -> Measure:
    def function(reference: Array, estimate: Array, sr: float, lengths: Lengths = None) -> Array:
        return measure(reference, estimate, lengths)

    return Measure(function, unit, higher_is_better)


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "mse": _without_rate(signals.mse, "", False),
        "mae": _without_rate(signals.mae, "", False),
        "snr": _without_rate(signals.snr, "dB", True),
        "si_sdr": _without_rate(signals.si_sdr, "dB", True),
        "segmental_snr": _with_rate(signals.segmental_snr, "dB", True),
        "log_spectral_distance": _without_rate(signals.log_spectral_distance, "dB", False),
        "mel_distance": _with_rate(signals.mel_distance, "dB", False),
        "multi_resolution_stft": _without_rate(signals.multi_resolution_stft, "", False),
        "loudness_error": _with_rate(signals.loudness_error, "LU", False),
        "mel_cepstral_distortion": _with_rate(speech.mel_cepstral_distortion, "dB", False),
        "mel_cepstral_distortion_dtw": _with_rate(speech.mel_cepstral_distortion_dtw, "dB", False),
        "stoi": _with_rate(speech.stoi, "", True),
        "estoi": _with_rate(speech.estoi, "", True),
        "f0_rmse": _with_rate(music.f0_rmse, "cents", False),
        "voicing_error": _with_rate(music.voicing_error, "", False),
        "chroma_similarity": _with_rate(music.chroma_similarity, "", True),
        "onset_f1": _with_rate(music.onset_f1, "", True),
    }
)
