"""Which measures can be asked for by name: of a sound, in JAX or of other packages, and of a set of sounds.

A measure of sets is called DISTANCE_EMBEDDING, as `frechet_log_mel`: distances in different embeddings are different
measures. A measure without a better direction describes a sound and ranks nothing.
"""

import difflib
import functools
import importlib.metadata
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.features.loudness import block_power, gated_loudness

from .embeddings import EMBEDDINGS
from .external import EXTERNAL
from .measures import MEASURES, Measure
from .signals import Lengths, at_least, each_pair, first

Kind = Literal["sound", "external", "set"]

DISTANCES = ("frechet", "fad_infinity", "kernel")
DEFAULT = (
    "si_sdr", "estoi", "log_spectral_distance", "mel_distance", "multi_resolution_stft", "mel_cepstral_distortion",
    "loudness_error", "frechet_log_mel",
)  # fmt: skip
ALONE = ("loudness", "peak")  # by default where there is no reference
WHOLE = frozenset({"mel_cepstral_distortion_dtw", "speaker_similarity", "word_error_rate"})  # need no equal lengths


class Metric(NamedTuple):
    """A measure as it is asked for. `package` is what it needs beside jaxdiff."""

    name: str
    unit: str
    higher_is_better: bool | None
    needs_reference: bool
    kind: Kind
    package: str = ""


def _loudness(reference: Array, estimate: Array, sr: float, lengths: Lengths = None) -> Float[Array, "..."]:
    """The integrated loudness of the estimate in LUFS, at least -70 (ITU-R BS.1770-4)."""
    hop = round(sr / 10)

    def item(reference: Array, estimate: Array, ours, samples) -> Array:
        power = block_power(at_least(estimate, 4 * hop), 4, sr)
        return gated_loudness(first(power, jnp.maximum(samples // hop - 3, 1)))

    return each_pair(item, reference, estimate, lengths, cut=False)


def _peak(reference: Array, estimate: Array, sr: float, lengths: Lengths = None) -> Float[Array, "..."]:
    """The largest sample of the estimate in dB relative to full scale, at least -120."""

    def item(reference: Array, estimate: Array, ours, samples) -> Array:
        return 20 * jnp.log10(jnp.maximum(jnp.abs(first(estimate, samples)).max(), 1e-6))

    return each_pair(item, reference, estimate, lengths, cut=False)


IN_JAX: Mapping[str, Measure] = MappingProxyType(
    {
        **MEASURES,
        "loudness": Measure(_loudness, "LUFS", None, needs_reference=False),  # pyright: ignore[reportArgumentType]
        "peak": Measure(_peak, "dB", None, needs_reference=False),  # pyright: ignore[reportArgumentType]
    }
)


@functools.cache
def catalogue() -> Mapping[str, Metric]:
    """All measures by name."""
    of_sounds = [Metric(name, m.unit, m.higher_is_better, m.needs_reference, "sound") for name, m in IN_JAX.items()]
    of_others = [
        Metric(name, m.unit, m.higher_is_better, m.needs_reference, "external", m.package)
        for name, m in EXTERNAL.items()
    ]
    of_sets = [
        Metric(f"{distance}_{name}", _unit(distance, name), False, True, "set", embedding.package)
        for name, embedding in EMBEDDINGS.items()
        for distance in DISTANCES
    ]
    return MappingProxyType({metric.name: metric for metric in (*of_sounds, *of_others, *of_sets)})


def _unit(distance: str, embedding: str) -> str:
    return "dB^2" if embedding == "log_mel" and distance != "kernel" else ""


def distance_and_embedding(name: str) -> tuple[str, str]:
    """The two parts of the name of a measure of sets."""
    distance = next(distance for distance in DISTANCES if name.startswith(f"{distance}_"))
    return distance, name.removeprefix(f"{distance}_")


def installed(package: str) -> bool:
    """Whether a package that a measure needs is there; none ("") always is."""
    try:
        return not package or bool(importlib.metadata.distribution(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def choose(names: Iterable[str] | None, with_reference: bool, with_transcripts: bool = False) -> tuple[Metric, ...]:
    """The measures of these names, each once and ready for use; `default` and `all` stand for several.

    `all` are those whose packages are installed, and None is the default. A transcript is a reference for the measures
    that take one. Raises ValueError for an unknown name and for
    a measure that compares where there is no reference, ModuleNotFoundError where a package is missing.
    """
    known = catalogue()
    usual = DEFAULT if with_reference else ALONE
    wanted: dict[str, Metric] = {}
    for name in usual if names is None else names:
        if name == "default":
            wanted |= {usual_name: known[usual_name] for usual_name in usual}
        elif name == "all":
            wanted |= {
                metric.name: metric
                for metric in known.values()
                if installed(metric.package) and _can(metric, with_reference, with_transcripts)
            }
        elif name in known:
            wanted[name] = known[name]
        else:
            near = difflib.get_close_matches(name, [*known, "all", "default"], 1, 0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"there is no measure {name}; {hint}There are {', '.join(known)}")
    if not wanted:
        raise ValueError("no measure was asked for; name some, or default")
    for metric in wanted.values():
        if not _can(metric, with_reference, with_transcripts):
            alone = ", ".join(one.name for one in known.values() if not one.needs_reference)
            raise ValueError(f"{metric.name} needs references, and none are given; without them there are {alone}")
    _try_packages(wanted.values())
    return tuple(wanted.values())


def _can(metric: Metric, with_reference: bool, with_transcripts: bool) -> bool:
    """Whether there is what a measure compares with."""
    takes_transcript = metric.kind == "external" and EXTERNAL[metric.name].takes_transcript
    return with_reference or not metric.needs_reference or with_transcripts and takes_transcript


def _try_packages(metrics: Iterable[Metric]) -> None:
    """Measure silence by what needs packages, so that a missing one is known before any work."""
    embeddings = {distance_and_embedding(m.name)[1] for m in metrics if m.kind == "set" and m.package}
    second = np.zeros(16_000, np.float32)
    for name in embeddings:
        EMBEDDINGS[name].function(second[None])
    tried = set()
    for metric in metrics:
        if metric.kind == "external" and metric.package not in tried:
            tried.add(metric.package)
            EXTERNAL[metric.name].function(second, second, 16_000)
