"""Edit whole sounds with a model that generates: vary one, or go between two."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdiff.data.files import atomic, printable, resample, write_audio
from jaxdiff.methods.edit import Between, Edit
from jaxdiff.tasks.edit import Clip, Style

from . import chunks
from .edits import MOST_SHOWN, Heard, Tell, check_generates, class_index, heard
from .files import Done, process_file
from .pictures import draw, spectrograms

if TYPE_CHECKING:
    from .pipeline import Pipeline

STEPS_BETWEEN = 32  # of the way to noise and back, which must be exact


def variation(pipeline: "Pipeline", strength: float) -> "Pipeline":
    """A pipeline that makes variations of sounds: noised as far as `strength` says, and from there sampled again
    (SDEdit, Meng et al. 2022). 0 leaves a sound, 1 forgets it. Its request is a `Style`."""
    check_generates(pipeline)
    task = Clip(classes=pipeline.classes, peak_db=pipeline.model.task.peak_db)
    return pipeline.using(pipeline.model._replace(task=task), Edit(pipeline.method, strength))  # type: ignore[arg-type]


def vary(
    pipeline: "Pipeline",
    wave: np.ndarray,
    sr: int,
    strength: float = 0.5,
    *,
    label: str | None = None,
    seed: int = 0,
    **knobs: Any,
) -> np.ndarray:
    """A variation of a sound [samples] or [channels, samples]; see `variation`."""
    request = Style(class_index(pipeline, label))
    return variation(pipeline, strength)(wave, sr=sr, request=request, seed=seed, **knobs).waves[0]


def write_variation(
    pipeline: "Pipeline",
    file: Path,
    target: Path,
    strength: float,
    *,
    label: str | None = None,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    tell: Tell = lambda share: None,
    **knobs: Any,
) -> Done:
    """This is `vary` for a file of any length (`process_file`)."""
    request = Style(class_index(pipeline, label))
    return process_file(
        variation(pipeline, strength), file, target, seed=seed, request=request, about=about, tell=tell, **knobs
    )


def interpolate(
    pipeline: "Pipeline",
    wave: np.ndarray,
    sr: int,
    other: np.ndarray,
    other_sr: int,
    *,
    share: float = 0.5,
    label: str | None = None,
    seed: int = 0,
    steps: int | None = STEPS_BETWEEN,
    **knobs: Any,
) -> np.ndarray:
    """The sound at `share` of the way from one to an `other`, as long as the shorter: 0 is the first and 1 the other,
    to the accuracy of the steps and of the model's features.

    It has the first one's rate and channels, for each of which the other gives its mean where it has not as many. Both
    are held in memory, and the noise between theirs is sampled (`methods.edit.Between`). Nothing depends on the `seed`.
    """
    return _between(pipeline, heard(wave, sr), heard(other, other_sr), share, label, seed, steps, knobs)[0].reshape(
        *np.shape(wave)[:-1], -1
    )


def write_interpolation(
    pipeline: "Pipeline",
    file: Path,
    other: Path,
    target: Path,
    *,
    share: float = 0.5,
    label: str | None = None,
    seed: int = 0,
    steps: int | None = STEPS_BETWEEN,
    about: dict[str, Any] | None = None,
    tell: Tell = lambda share: None,
    **knobs: Any,
) -> float:
    """This is `interpolate` for files: TARGET.wav of 16 bits, TARGET.png of both and what lies between, TARGET.json.
    Returned are the seconds that were made."""
    first, second = heard(file), heard(other)
    made, facts = _between(pipeline, first, second, share, label, seed, steps, knobs, tell)
    seconds = made.shape[-1] / first.rate
    target.parent.mkdir(parents=True, exist_ok=True)
    scale = max(1.0, float(np.abs(made).max()) / 0.999)
    sidecar = {**(about or {}), **facts, "source": str(file), "other": str(other), "share": share}
    sidecar |= {"sample_rate": first.rate, "seconds": seconds}
    sidecar |= {"scaled_db": -round(20 * math.log10(scale), 2)} if scale > 1 else {}
    write_audio(target.with_name(target.name + ".wav"), made.T / np.float32(scale), first.rate)
    with atomic(target.with_name(target.name + ".json")) as temporary:
        temporary.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
    shown = [sound.part(0, min(round(MOST_SHOWN * sound.rate), sound.samples)) for sound in (first, second)]
    shown.insert(1, made[:, : round(MOST_SHOWN * first.rate)])
    titles = [printable(text) for text in (file.name, f"{share:g} of the way", other.name)]
    rates = [first.rate, first.rate, second.rate]
    draw(target.with_name(target.name + ".png"), lambda: spectrograms(shown, titles, rates, columns=1))
    return seconds


def _between(
    pipeline: "Pipeline",
    first: Heard,
    second: Heard,
    share: float,
    label: str | None,
    seed: int,
    steps: int | None,
    knobs: dict[str, Any],
    tell: Tell = lambda share: None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The sound that lies between two sounds, [channels, samples] at the first one's rate, and how it was made."""
    check_generates(pipeline)
    task = Clip(classes=pipeline.classes, peak_db=pipeline.model.task.peak_db)
    model = pipeline.using(pipeline.model._replace(task=task), Between(pipeline.method, share))  # type: ignore[arg-type]
    request, sr = Style(class_index(pipeline, label)), model.sample_rate
    seconds = min(first.seconds, second.seconds)
    a = first.part(0, max(1, round(seconds * first.rate)))
    b = resample(second.part(0, max(1, round(seconds * second.rate))), second.rate, sr)
    if len(b) != len(a):
        b = b.mean(0, keepdims=True).repeat(len(a), axis=0)
    knobs = {"sampler": "heun", "steps": STEPS_BETWEEN if steps is None else steps, **knobs}
    rows, facts = [], {}
    for channel, (one, beside) in enumerate(zip(a, b, strict=True)):
        gains = [float(task.gain(np.abs(y).max())) for y in (resample(one, first.rate, sr), beside)]
        also = _other(beside * np.float32(gains[1]), lambda share, done=channel: tell((done + share) / len(a)))
        made = model(one, sr=first.rate, request=request, seed=seed, also=also, **knobs)
        rows.append(made.waves[0] * np.float32((gains[0] / gains[1]) ** share))  # the level lies between, too
        facts = made.facts[0]
    return np.stack(rows), facts


def _other(wave: np.ndarray, tell: Tell) -> Callable[[int, int], dict[str, np.ndarray]]:
    """The entry of a batch that is a second sound, zero beyond its end; `tell` hears where a window begins."""

    def also(start: int, window: int) -> dict[str, np.ndarray]:
        tell(min(1.0, max(0, start) / wave.shape[-1]))
        return {"other": chunks.cut(wave, start, window)}

    return also
