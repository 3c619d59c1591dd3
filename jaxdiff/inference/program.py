"""A trained model as one program that needs nothing but jax: StableHLO with the weights inside (`jax.export`).

    program(seed, label [batch])                   -> wave [batch, samples]      of a model that generates
    program(seed, wave [batch, samples])           -> wave [batch, samples]      of one that works on sounds
    program(seed, mel [batch, mels, frames])       -> wave [batch, samples]      of a vocoder

Item i draws from `fold_in(key(seed), i)`, so that the program makes the sounds that the pipeline makes. The length is
fixed and the number of items is free: the items of a batch are computed apart (`jax.vmap`). Products are of float32 on
every platform, so that a test vector made on one holds on all.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff.config import ConfigError
from jaxdiff.data.files import atomic
from jaxdiff.diffusion import noise
from jaxdiff.tasks import Vocode

from .pipeline import Pipeline

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
_LEAST = 1e-3  # of the peak: the smallest tolerance of a test vector
_MARGIN = 10.0  # a tolerance is so many times what the program and the pipeline differ by


class Exported(NamedTuple):
    """Files that were written, what the program takes, and by how much its sound may differ elsewhere."""

    path: Path
    vector: Path
    takes: str
    peak: float
    tolerance: float


def export_program(
    pipeline: Pipeline,
    path: str | Path,
    *,
    seconds: float | None = None,
    platforms: Sequence[str] = PLATFORMS,
    request: Any = None,
    **knobs: Any,
) -> Exported:
    """Write NAME.stablehlo, and beside it NAME.npz: a test vector of two items, its tolerance and what it is about.

    `seconds` is the length of each sound (the training crop's), `request` and `knobs` are those of a pipeline's call.
    The file that was written is read again and run on this machine, beside the pipeline. Raises ConfigError for another
    extension, for a length that cannot be, and for a task that needs to know more than a sound.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path}: an exported program is a {SUFFIX} file; give it that extension")
    samples = _samples(pipeline, seconds)
    name, shape, run, direct, facts = _functions(pipeline, samples, request, knobs)
    given = _example(pipeline, name, shape)
    (batch,) = jax.export.symbolic_shape("batch")
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    spec = jax.ShapeDtypeStruct((batch, *shape), given.dtype)
    try:
        with jax.default_matmul_precision("float32"):
            exported = jax.export.export(jax.jit(run), platforms=list(platforms))(seed, spec)
    except KeyError as missing:
        task = type(pipeline.model.task).__name__.lower()
        raise ConfigError(f"task {task} needs {missing} beside the sound, which a program is not given") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_bytes(exported.serialize())
    there = jax.export.deserialize(bytearray(path.read_bytes()))
    made, expected = (np.asarray(f(np.uint32(1), given)) for f in (there.call, direct))
    peak, apart = float(np.abs(expected).max()), float(np.abs(made - expected).max())
    tolerance = max(_LEAST * peak, _MARGIN * apart)
    about = {
        "input": name,
        "sample_rate": pipeline.sample_rate,
        "classes": list(pipeline.classes),
        "platforms": list(platforms),
        **facts,
    }
    about.pop("seed")
    vector = path.with_suffix(".npz")
    with atomic(vector) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            seed=np.uint32(1),
            input=given,
            output=made,
            tolerance=np.float32(tolerance),
            about=np.array(json.dumps(about)),
        )
    takes = f"program(seed, {name} [{', '.join(['batch', *map(str, shape)])}]) -> wave [batch, {made.shape[-1]}]"
    return Exported(path, vector, takes, peak, tolerance)


def _samples(pipeline: Pipeline, seconds: float | None) -> int:
    """The length of a sound in whole frames."""
    hop, crop = pipeline._hop, round(pipeline.seconds * pipeline.sample_rate)
    wanted = crop if seconds is None else round(seconds * pipeline.sample_rate)
    if not pipeline.model.task.needs_sound and wanted > crop:
        raise ConfigError(
            f"seconds {seconds}: a program that generates makes at most the {pipeline.seconds:g} s of the training crop"
        )
    if wanted < hop:
        raise ConfigError(f"seconds {seconds}: expected at least {hop / pipeline.sample_rate:g}, a frame")
    return wanted // hop * hop


def _functions(
    pipeline: Pipeline, samples: int, request: Any, knobs: dict[str, Any]
) -> tuple[str, tuple[int, ...], Callable[..., Array], Callable[..., Any], dict[str, Any]]:
    """The name and shape of an item's input, the function to export, the same by the pipeline's own program, and what a
    sidecar says of them."""
    task, r, params = pipeline.model.task, pipeline.model.representation, pipeline.params
    asked, facts = pipeline._asked(task.needs_sound, 0, request, knobs)
    sample = pipeline.method.make_sample(pipeline.model, asked.sampling, jnp.asarray(asked.times, jnp.float32))
    if isinstance(task, Vocode):
        name, shape = "mel", (task.n_mels, task.frames(r, samples))
    else:
        name, shape = ("wave", (samples,)) if task.needs_sound else ("label", ())

    def batch_of(items: Any) -> dict[str, Any]:
        wave, label = jnp.zeros((len(items), *r.sound_shape(samples))), jnp.full(len(items), -1, jnp.int32)
        return {"wave": wave, "label": label, name: items}

    def one(key: Array, item: Array) -> Array:
        gain = task.gain(jnp.abs(item).max()) if name == "wave" else jnp.ones(())
        given = task.given(r, batch_of((gain * item)[None] if name == "wave" else item[None]), asked.request)
        start = noise(key[None], (1, r.frames(samples), r.channels))
        return task.finish(r, sample(params, given, start, key[None]), given)[0] / gain

    def run(seed: Array, items: Array) -> Array:
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(items.shape[0]))
        return jax.vmap(one)(keys, items)

    def direct(seed: np.uint32, items: np.ndarray) -> np.ndarray:
        if name == "label":
            labels = [int(k) for k in items] if pipeline.classes else None
            seconds = samples / pipeline.sample_rate
            return np.stack(pipeline(count=len(items), seconds=seconds, labels=labels, seed=int(seed), **knobs).waves)
        gain = task.gain(np.abs(items).max(-1, keepdims=True)) if name == "wave" else np.float32(1)
        batch = batch_of(gain * items if name == "wave" else items)
        return pipeline.of_batch(batch, seed=int(seed), request=request, **knobs) / np.asarray(gain)

    return name, shape, run, direct, facts


def _example(pipeline: Pipeline, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Two items: the first classes, or gliding tones in noise."""
    if name == "label":
        return np.array([pipeline.label(None, i) for i in range(2)], np.int32)
    task, r = pipeline.model.task, pipeline.model.representation
    samples = shape[0] if name == "wave" else shape[1] * task.hop_length  # type: ignore
    rng, time = np.random.default_rng(0), np.arange(samples) / pipeline.sample_rate
    pitch = np.array([[220.0], [330.0]]) * (1 + 0.2 * np.sin(2 * np.pi * time))
    tones = sum(np.sin(k * 2 * np.pi * np.cumsum(pitch, -1) / pipeline.sample_rate) / k for k in (1, 2, 3))
    wave = (0.2 * tones + 0.02 * rng.normal(size=(2, samples))).astype(np.float32)
    return wave if name == "wave" else np.asarray(task.mel(r, jnp.asarray(wave)))[..., : shape[1]]  # type: ignore
