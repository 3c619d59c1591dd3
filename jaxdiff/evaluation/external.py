"""Measures by the libraries of other packages, for numbers that must be those of published tables.

`EXTERNAL` is the table of all. A function takes one reference (None where the measure needs none) and one estimate,
mono `[samples]` at their true length, and their sampling rate, and gives one number; it brings the sounds to the rate
at which the measure listens (soxr). The packages come with `pip install 'jaxdiff[eval]'` and are imported when a
measure is first used; without its package a measure raises ModuleNotFoundError, whose sentence says so. What they warn
about is kept away, and what their libraries leave open is decided here:

1. NaN where a sample is not finite, and where the reference has nothing to compare with: no speech that PESQ or the
   speaker's encoder finds, no words, nothing but zeros for STOI.
2. The worst value where the estimate alone has none: 1 for PESQ, 0 for the similarity of speakers.
3. A sound that is shorter than a library takes is followed by silence, and one above 10 minutes is refused
   (ValueError), for several libraries hold much more than the sound in memory.

- `pesq` (P.862.2, wide-band, 16 kHz) and `pesq_narrow` (P.862.1, 8 kHz), of the package pesq: about 1 to 4.6. Sounds
  above 20 s are cut into equal parts of at most that, and the mean of those that have speech in the reference counts:
  the library has room for 50 utterances and ends the process beyond.
- `pystoi`, `pystoi_extended`: STOI and ESTOI of the package pystoi, which resamples to 10 kHz itself and needs sounds
  of one length. They are here for comparison: `stoi` and `estoi` of `MEASURES` are the same within 2e-6 and run in JAX.
  Where pystoi finds too little speech it gives 1e-5.
- `dnsmos_ovrl`, `dnsmos_sig`, `dnsmos_bak`: DNSMOS P.835, overall, speech and background, 1 to 5, by the network of the
  package speechmos. As that package does, it takes the mean over windows of 9.01 s, one a second, for which a shorter
  sound is doubled until it fills one. Windows that begin at 7 to 23 s are left out, by a rounding error of the package
  that its published numbers share. Samples beyond full scale are clipped. One run gives all three.
- `speaker_similarity`: the cosine of the embeddings of both voices, 0 to 1, by the package resemblyzer, which cuts
  pauses and needs PyTorch.
- `word_error_rate`: insertions, deletions and substitutions over the number of words, in what the American model of the
  package pocketsphinx hears. The words are those that it hears in the reference, or those of a `transcript`. The
  recogniser is old and errs with clean voices too, so compare only within one set of sentences.
- `lufs`: the integrated loudness (BS.1770-4) of the package pyloudnorm, at least -70, the gate.
"""

import functools
import importlib
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import soxr

from .foreign_weights import package_file

MAXIMUM_SECONDS = 600.0
PESQ_SECONDS = 20.0, 0.25  # the most in which 50 utterances of 0.2 s and pauses of 0.2 s fit, and the least
DNSMOS_SAMPLES = int(9.01 * 16_000)
LOUDNESS_SECONDS, SILENT_LUFS = 0.4, -70.0  # of a block, and of the gate

# From the network's numbers to opinion scores, as the DNS challenge fits them, the highest power first.
DNSMOS_POLYNOMIALS = {
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}


class ExternalMeasure(NamedTuple):
    """A measure of another package. It is a function of (reference or None, estimate, sampling rate in Hz)."""

    function: Callable[..., float]
    unit: str  # empty where it is a share, a correlation or an opinion score
    higher_is_better: bool | None  # None: neither is
    needs_reference: bool
    package: str  # its name on the package index
    rate: int | None  # Hz, at which it listens; None: the sound's own
    takes_transcript: bool = False  # the function also takes `transcript`, the words that are said, for a reference


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(package, error) from None


def _missing(package: str, error: ImportError) -> ModuleNotFoundError:
    lacks = "" if error.name in (None, package) else f" (there is no module {error.name})"
    return ModuleNotFoundError(
        f"the measure needs the package {package}, which cannot be imported{lacks}; run `pip install 'jaxdiff[eval]'`",
        name=package,
    )


# Opinion scores -----------------------------------------------------------------------------------------------------


def _pesq(reference: np.ndarray, estimate: np.ndarray, sr: int) -> float:
    package = _module("pesq", "pesq")
    most, least = (round(seconds * sr) for seconds in PESQ_SECONDS)

    def score(reference: np.ndarray, estimate: np.ndarray) -> float:
        """NaN where there is no speech."""
        try:
            return float(package.pesq(sr, reference, estimate, "wb" if sr == 16_000 else "nb"))
        except package.NoUtterancesError:
            return math.nan

    length = max(len(reference), len(estimate), least)
    parts = math.ceil(length / most)
    bounds = np.linspace(0, length, parts + 1).round().astype(int)
    scores = []
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        ours, theirs = (_padded(y[first:last], least) for y in (reference, estimate))
        if not ours.any():
            continue
        found = score(ours, theirs) if theirs.any() else math.nan
        if not math.isnan(found):
            scores.append(found)
        elif not math.isnan(score(ours, ours)):
            scores.append(1.0)
    return float(np.mean(scores)) if scores else math.nan


def _pystoi(reference: np.ndarray, estimate: np.ndarray, sr: int, *, extended: bool) -> float:
    if len(reference) != len(estimate):
        raise ValueError(
            f"pystoi compares sounds of one length, got a reference of {len(reference)} samples and an estimate of "
            f"{len(estimate)}; cut or pad one of them"
        )
    package = _module("pystoi", "pystoi")
    ours, theirs = (_padded(y, math.ceil(0.1 * sr)).astype(np.float64) for y in (reference, estimate))
    return float(package.stoi(ours, theirs, sr, extended=extended)) if ours.any() else math.nan


def _dnsmos(reference: np.ndarray | None, estimate: np.ndarray, sr: int, *, score: str) -> float:
    return _dnsmos_scores(estimate.tobytes())[score]


@functools.lru_cache(maxsize=1)
def _dnsmos_scores(samples: bytes) -> dict[str, float]:
    network, y = _dnsmos_network(), np.clip(np.frombuffer(samples, np.float32), -1, 1)
    while len(y) < DNSMOS_SAMPLES:
        y = np.append(y, y)
    starts = range(int(len(y) // 16_000 - 9.01) + 1)
    windows = [y[16_000 * start : int((start + 9.01) * 16_000)] for start in starts]
    windows = [window[None] for window in windows if len(window) == DNSMOS_SAMPLES]
    raw = np.concatenate([network.run(None, {"input_1": window})[0] for window in windows])
    return {
        name: float(np.polyval(polynomial, raw[:, column].astype(np.float64)).mean())
        for column, (name, polynomial) in enumerate(DNSMOS_POLYNOMIALS.items())
    }


@functools.cache
def _dnsmos_network() -> Any:
    runtime = _module("onnxruntime", "onnxruntime")
    try:
        path = package_file("speechmos", "speechmos/dnsmos_models/sig_bak_ovr.onnx", "")
    except ModuleNotFoundError as error:
        raise _missing("speechmos", error) from None
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # several wait for each other beside other work
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


# Voices and words ---------------------------------------------------------------------------------------------------


def speaker_embedding(y: np.ndarray, sr: float) -> np.ndarray:
    """The voice of a sound [samples] as 256 numbers of unit length, by resemblyzer; NaN where it finds no speech."""
    with _quiet():
        return _embedded(_sound("the sound", y, sr, 16_000).tobytes()).copy()


@functools.lru_cache(maxsize=2)  # the reference and the estimate
def _embedded(samples: bytes) -> np.ndarray:
    y = np.frombuffer(samples, np.float32)
    package, encoder, torch = _module("resemblyzer", "resemblyzer"), _encoder(), _module("torch", "resemblyzer")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other beside other work, for up to 40 times as long
    try:
        spoken = package.preprocess_wav(y) if y.any() else y[:0]
        return encoder.embed_utterance(spoken) if len(spoken) else np.full(256, np.nan, np.float32)
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _encoder() -> Any:
    return _module("resemblyzer", "resemblyzer").VoiceEncoder("cpu", verbose=False)


def _speaker_similarity(reference: np.ndarray, estimate: np.ndarray, sr: int) -> float:
    ours, theirs = (_embedded(y.tobytes()) for y in (reference, estimate))
    if np.isnan(ours).any():
        return math.nan
    return 0.0 if np.isnan(theirs).any() else float(ours @ theirs)


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; what is written in digits is left out.

    >>> words("It's 5 o'clock -- 'Tea'?")
    ["it's", "o'clock", 'tea']
    """
    plain = text.lower().replace("\u2019", "'")
    return [word for word in (found.strip("'") for found in re.findall(r"(?:[^\W\d_]|')+", plain)) if word]


def recognised_words(y: np.ndarray, sr: float) -> list[str]:
    """The words that pocketsphinx's American model hears in a sound [samples], whose level does not matter."""
    with _quiet():
        return words(_recognised(_sound("the sound", y, sr, 16_000).tobytes()))


@functools.lru_cache(maxsize=2)
def _recognised(samples: bytes) -> str:
    y, decoder = np.frombuffer(samples, np.float32), _decoder()
    if not y.any():  # the recogniser hears words in silence too
        return ""
    found = heard(decoder, y).hyp()
    return found.hypstr if found else ""


def heard(decoder: Any, y: np.ndarray) -> Any:
    """A decoder of pocketsphinx after it has heard a sound [samples] at its rate, from which alone it adapts."""
    decoder.reinit_feat()
    decoder.start_utt()
    scaled = y * (0.5 / max(float(np.abs(y).max()), 1e-9))
    decoder.process_raw((scaled * 32767).astype("<i2").tobytes(), no_search=False, full_utt=True)
    decoder.end_utt()
    return decoder


@functools.cache
def _decoder() -> Any:
    return _module("pocketsphinx", "pocketsphinx").Decoder(samprate=16_000, loglevel="FATAL")


def edit_distance(reference: Sequence[str], found: Sequence[str]) -> int:
    """The least number of insertions, deletions and substitutions that make one sequence the other (Levenshtein 1966).

    >>> edit_distance("kitten", "sitting")
    3
    """
    places, column = np.arange(len(found) + 1), np.array(list(found), dtype=object)
    row = places
    for i, wanted in enumerate(reference, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (column != wanted))
        # An insertion adds 1 for each place to the right, so what is left without these is a running least.
        row = np.minimum.accumulate(np.concatenate([[i], best]) - places) + places
    return int(row[-1])


def _word_error_rate(
    reference: np.ndarray | None, estimate: np.ndarray, sr: int, *, transcript: str | None = None
) -> float:
    if transcript is None:
        transcript = "" if reference is None else _recognised(reference.tobytes())
    said = words(transcript)
    return edit_distance(said, words(_recognised(estimate.tobytes()))) / len(said) if said else math.nan


# Loudness -----------------------------------------------------------------------------------------------------------


def _lufs(reference: np.ndarray | None, estimate: np.ndarray, sr: float) -> float:
    meter = _module("pyloudnorm", "pyloudnorm").Meter(sr)
    y = _padded(estimate, math.ceil(LOUDNESS_SECONDS * sr)).astype(np.float64)
    return max(SILENT_LUFS, float(meter.integrated_loudness(y)))


# The table ----------------------------------------------------------------------------------------------------------


def _padded(y: np.ndarray, least: int) -> np.ndarray:
    return np.pad(y, (0, max(0, least - len(y))))


def _sound(which: str, y: np.ndarray, sr: float, rate: int | None) -> np.ndarray:
    """A sound at the rate, in float32; raises ValueError for one that is not mono, empty or too long."""
    if np.ndim(y) != 1 or not len(y):
        raise ValueError(f"{which}: expected one channel [samples] with samples, got the shape {np.shape(y)}")
    if len(y) > MAXIMUM_SECONDS * sr:
        raise ValueError(f"{which} lasts {len(y) / sr:.0f} s, at most {MAXIMUM_SECONDS:.0f} s are measured; cut it")
    y = np.asarray(y, np.float32)
    return y if rate in (None, sr) else _padded(np.asarray(soxr.resample(y, sr, rate), np.float32), 1)


def _quiet() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore")


def _external(
    function: Callable[..., float],
    unit: str,
    higher_is_better: bool | None,
    package: str,
    rate: int | None,
    *,
    needs_reference: bool = True,
    takes_transcript: bool = False,
) -> ExternalMeasure:
    def measure(reference: np.ndarray | None, estimate: np.ndarray, sr: float, **transcript: str | None) -> float:
        if needs_reference and reference is None and transcript.get("transcript") is None:
            raise ValueError("the measure compares with a reference, got None; give the sound, or leave it out")
        sounds = {"the reference": reference if needs_reference else None, "the estimate": estimate}
        if not all(np.isfinite(y).all() for y in sounds.values() if y is not None):
            return math.nan
        ours, theirs = (None if y is None else _sound(name, y, sr, rate) for name, y in sounds.items())
        with _quiet():
            return function(ours, theirs, sr if rate is None else rate, **transcript)

    return ExternalMeasure(measure, unit, higher_is_better, needs_reference, package, rate, takes_transcript)


def _dnsmos_of(score: str) -> ExternalMeasure:
    return _external(functools.partial(_dnsmos, score=score), "", True, "speechmos", 16_000, needs_reference=False)


EXTERNAL: Mapping[str, ExternalMeasure] = MappingProxyType(
    {
        "pesq": _external(_pesq, "", True, "pesq", 16_000),
        "pesq_narrow": _external(_pesq, "", True, "pesq", 8_000),
        "pystoi": _external(functools.partial(_pystoi, extended=False), "", True, "pystoi", None),
        "pystoi_extended": _external(functools.partial(_pystoi, extended=True), "", True, "pystoi", None),
        "dnsmos_ovrl": _dnsmos_of("ovrl"),
        "dnsmos_sig": _dnsmos_of("sig"),
        "dnsmos_bak": _dnsmos_of("bak"),
        "speaker_similarity": _external(_speaker_similarity, "", True, "resemblyzer", 16_000),
        "word_error_rate": _external(_word_error_rate, "", False, "pocketsphinx", 16_000, takes_transcript=True),
        "lufs": _external(_lufs, "LUFS", None, "pyloudnorm", None, needs_reference=False),
    }
)
