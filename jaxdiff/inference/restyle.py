"""Style transfer with a model that generates: the pipeline of a clip's way into the model's style, and what it kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np

from jaxdiff.config import ConfigError
from jaxdiff.data import read_audio
from jaxdiff.data.files import resample
from jaxdiff.evaluation.embeddings import EMBEDDING_RATE, log_mel_statistics
from jaxdiff.methods import Diffusion
from jaxdiff.methods.edit import Edit, Origin
from jaxdiff.tasks import Generate, Keep, Restyle

from .contours import Contours

if TYPE_CHECKING:
    from .pipeline import Pipeline

Feature = Literal["melody", "loudness", "onsets"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
HIGHEST_HZ = 2000.0  # of a melody


class Fidelity(NamedTuple):
    """What of a clip is left: the share of its pitched frames whose pitch is within 50 cents, and the correlation of
    the loudness contours."""

    melody: float
    loudness: float


def restyler(
    pipeline: "Pipeline", *, strength: float = 0.5, source: "Pipeline | None" = None, source_label: str | None = None
) -> "Pipeline":
    """A pipeline that brings clips into the style of a model that generates; its request is a `Keep`.

    With `strength` 0 nothing happens, with 1 the clip is forgotten but for what is kept. The clip's features are noised
    as far as that, or where a `source` is given, the model of the style that the clip has, or one of its classes,
    taken there along that model's flow. Raises ConfigError for models that cannot.
    """
    for one, what in ((pipeline, "the model"), *(((source, "the source model"),) if source else ())):
        if not isinstance(one.model.task, Generate) or not isinstance(one.method, Diffusion):
            names = f"task {type(one.model.task).__name__} and method {type(one.method).__name__}"
            raise ConfigError(f"{what} must generate by diffusion to restyle clips, this one has {names}")
    if source_label is not None and source is None:
        source = pipeline
    origin = None
    source = source if strength else None  # a clip that stays needs no way to noise
    if source is not None:
        r, ours = source.model.representation, pipeline.model.representation
        if (r.sample_rate, r.hop_length, r.channels) != (ours.sample_rate, ours.hop_length, ours.channels):
            raise ConfigError("the source model has other features than the model; give two of one representation")
        label = -1 if source_label is None else source.label(source_label, 0)
        origin = Origin(source.model, source.method, source.params, label)  # type: ignore[arg-type]
    own = None if source is None or source is pipeline else source.model.representation
    task = Restyle(classes=pipeline.classes, peak_db=pipeline.model.task.peak_db, origin=own)
    try:
        task.check(pipeline.model.representation)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    made = Edit(pipeline.method, strength, origin)  # type: ignore[arg-type]
    return pipeline.using(pipeline.model._replace(task=task), made)


def keep_of(names: Sequence[str], label: int = -1) -> Keep:
    """What is kept, by names; raises ConfigError for one that nothing has."""
    unknown = [name for name in names if name not in FEATURES]
    if unknown:
        raise ConfigError(f"keep {unknown[0]}: is unknown; use some of {', '.join(FEATURES)}, or none")
    return Keep(**{name: name in names for name in FEATURES}, label=label)


def fidelity(before: Contours, after: Contours) -> Fidelity:
    """What of a clip is left in what was made of it."""
    frames = min(len(before.voiced), len(after.voiced))
    pitched = before.voiced[:frames]
    near = after.voiced[:frames] & (np.abs(before.octaves[:frames] - after.octaves[:frames]) <= 50 / 1200)
    loud = before.loudness[:frames] > before.loudness.max(initial=-100.0) - 50
    a, b = before.loudness[:frames][loud], after.loudness[:frames][loud]
    alike = float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() > 1e-6 and b.std() > 1e-6 else float(len(a) < 2)
    return Fidelity(float(near[pitched].mean()) if pitched.any() else 1.0, alike)


class Likeness:
    """How far results came from a clip towards a style: 0 is the clip's own sound, 1 that of `count` sounds which the
    model makes from noise, along the line between the two in log-mel statistics of pieces of a second."""

    def __init__(self, pipeline: "Pipeline", label: str | None, count: int = 16):
        made = pipeline(count=count, seconds=2.0, labels=label, seed=1)
        self._style = _embedded(made.waves, pipeline.sample_rate)

    def __call__(self, before: Path, after: Path) -> float:
        source, result = (_embedded([read_audio(path, EMBEDDING_RATE)], EMBEDDING_RATE) for path in (before, after))
        way = self._style - source
        return float((result - source) @ way / max(float(way @ way), 1e-9))


def _embedded(waves: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """The mean embedding of the louder half of the pieces of a second."""
    pieces = []
    for wave in waves:
        y = resample(np.asarray(wave, np.float32), rate, EMBEDDING_RATE)
        y = y / max(float(np.abs(y).max(initial=0)), 1e-6)
        pieces += [
            np.pad(p, (0, EMBEDDING_RATE - len(p))) for p in np.split(y, range(EMBEDDING_RATE, len(y), EMBEDDING_RATE))
        ]
    loud = np.argsort([-float((p**2).sum()) for p in pieces], kind="stable")[: max(1, len(pieces) // 2)]
    return np.asarray(log_mel_statistics(jnp.asarray(np.stack([pieces[i] for i in loud])))).mean(0)
