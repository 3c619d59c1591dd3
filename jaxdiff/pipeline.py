"""From a trained run to sounds: `load(directory).generate(...)`.

`methods.generate` compiles condition, noise, the sampler's scan and decoding into one program. The pipeline runs it in
chunks of fixed size; item i draws from `fold_in(key(seed), i)` alone, so it is the same sound in any batch.
"""

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxdiff import build, methods
from jaxdiff import config as configuration
from jaxdiff.config import Config, ConfigError
from jaxdiff.data import open_corpus, read_audio
from jaxdiff.data.pipeline import Batch
from jaxdiff.diffusion import Denoiser, time_grid
from jaxdiff.features import Normalization, chain, normalize
from jaxdiff.grids import read_grid
from jaxdiff.methods import Model
from jaxdiff.networks import Summary, summarize
from jaxdiff.training import checkpoints
from jaxdiff.training.ema import reconstruct

MAX_CHUNK = 16


def build_model(config: Config, num_classes: int, normalization: Normalization | None) -> Model:
    """The objects of a configuration; the network is described, its parameters are not made."""
    representation = build.representation(config)
    if normalization is not None:
        representation = chain(representation, normalize(normalization))
    samples = configuration.crop_samples(config)
    features = jax.eval_shape(representation.encode, jax.ShapeDtypeStruct((1, samples), jnp.float32)).shape[-1]
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: _network(config, features, num_classes, jax.random.key(0))))
    task = build.task(config, representation, num_classes)
    return Model(graphdef, representation, task, build.schedule(config), features)


def _network(config: Config, features: int, num_classes: int, key: Array) -> nnx.Module:
    return build.network(config, features, num_classes, nnx.Rngs(key))


def init_params(config: Config, features: int, num_classes: int, key: Array) -> Any:
    """Fresh network parameters as a nested dict."""
    return nnx.to_pure_dict(nnx.split(_network(config, features, num_classes, key))[1])


def abstract_params(config: Config, features: int, num_classes: int) -> Any:
    """The shapes of `init_params`."""
    network = nnx.eval_shape(lambda: _network(config, features, num_classes, jax.random.key(0)))
    return nnx.to_pure_dict(nnx.split(network)[1])


class Sampling(NamedTuple):
    """How sounds are made, in the terms the method has; the others are None."""

    sampler: str | None
    steps: int | None
    spacing: str | None
    guidance: float | None
    temperature: float | None


class Pipeline:
    """A trained model: configuration, class names, averaged weights.

    Attributes: `config`, `classes`, `sample_rate` (Hz), `step` (training steps of the checkpoint), `fingerprint`
    (sha256 that names its bytes), `directory` of the run, `warnings` (newer checkpoints passed over as damaged).
    """

    def __init__(
        self,
        config: Config,
        classes: tuple[str, ...],
        params: Any,
        normalization: Normalization | None,
        *,
        step: int,
        fingerprint: str,
        directory: Path = Path(),
        warnings: tuple[str, ...] = (),
    ):
        self.config, self.classes, self.params = config, classes, params
        self.normalization = normalization
        self.step, self.fingerprint, self.directory, self.warnings = step, fingerprint, directory, warnings
        self.sample_rate = config.data.sample_rate
        self.model = build_model(config, len(classes), normalization)
        self._program = functools.lru_cache(maxsize=16)(self._make)

    def _make(self, sampler: str | None, guided: bool) -> methods.Generate:
        return methods.generate(self.config, self.model, sampler, guided)

    def make_denoiser(self, guidance: float) -> Callable[[Any, Batch, Array], Denoiser]:
        """`(params, batch, scale) -> denoiser`, with classifier-free guidance in it unless the scale is to be 1."""
        return methods.make_denoiser(self.config, self.model, self._guided(guidance))

    def _guided(self, guidance: float) -> bool:
        return guidance != 1.0 and len(self.classes) > 0

    def items(self, seed: int, index: np.ndarray, samples: int) -> tuple[Array, Batch]:
        """Keys and batch of the items `index` of a seed: classes, or sounds to condition on, in turn."""
        labels = np.array([self.label_index(None, i) for i in index], np.int32)
        waves = self._waves(self.sources(None, int(max(index)) + 1), samples)[index]
        return _item_keys(jax.random.key(seed), index), {"wave": waves, "label": labels}

    def summary(self) -> Summary:
        """Layers, parameters, receptive field and operations of the network, on one training crop."""
        samples = configuration.crop_samples(self.config)
        batch = {
            "wave": jax.ShapeDtypeStruct((1, samples), jnp.float32),
            "label": jax.ShapeDtypeStruct((1,), jnp.int32),
        }
        cond = jax.eval_shape(self.model.task.condition, batch)
        frames = jax.eval_shape(self.model.representation.encode, batch["wave"]).shape[1]
        inputs = None
        if isinstance(self.config.method, configuration.Autoregression):
            inputs = (jax.eval_shape(build.output(self.config).encode, batch["wave"]), cond)
        rate, network = frames / samples * self.sample_rate, nnx.merge(self.model.graphdef, self.params)
        return summarize(network, self.model.features, frames, rate, cond, inputs=inputs)

    def sampling(self, **wanted: str | int | float | None) -> Sampling:
        """The values `wanted`, the configuration's where they are None; raises ConfigError for those without a use."""
        method = self.config.method.kind
        known = methods.OPTIONS[method]
        for name, value in wanted.items():
            if value is not None and name not in known:
                raise ConfigError(f"{name} {value}: a model of method {method} has none; leave it away")
        values = {name: getattr(self.config.sampling, name) for name in known}
        values |= {name: value for name, value in wanted.items() if value is not None}
        return Sampling(**{name: values.get(name) for name in Sampling._fields})

    def times(self, sampling: Sampling) -> Array:
        """The grid of times; raises ConfigError when it must have been searched for and was not."""
        if sampling.steps is None:
            return jnp.zeros(0)
        if sampling.spacing == "searched":
            found = read_grid(self.directory, sampling.sampler, sampling.steps, self.fingerprint)
            return jnp.asarray(found.times, jnp.float32)
        return time_grid(self.model.schedule, sampling.steps, sampling.spacing or "uniform")

    def generate(
        self,
        *,
        count: int = 1,
        seconds: float | None = None,
        label: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        source: Path | list[Path | None] | None = None,
    ) -> np.ndarray:
        """`count` sounds [count, samples], float32, at `sample_rate`.

        `label` None gives item i class i modulo the number of classes. None elsewhere means the configuration's value
        (for `seconds`, the training crop). A vocoder is conditioned on the sounds of `source` (a file or folder; None:
        the corpus it was trained on), item i on the i-th, in turn, or on the files that `sources` named. Raises
        ConfigError for values that cannot be met.
        """
        wanted = Sampling(sampler, steps, spacing, guidance, temperature)
        sampling = self.sampling(**wanted._asdict())
        seconds = self.config.data.seconds if seconds is None else seconds
        if min(count, 1 if sampling.steps is None else sampling.steps) < 1 or not 0 < seconds <= 600:
            raise ConfigError(
                f"count {count} and steps {sampling.steps} must be at least 1 and seconds {seconds} in 0 to 600; "
                f"change them"
            )
        hop = max(configuration.hop_length(self.config), getattr(self.config.task, "hop_length", 1))
        wanted = max(1, round(seconds * self.sample_rate))
        samples = math.ceil(wanted / hop) * hop
        labels = np.array([self.label_index(label, i) for i in range(count)], np.int32)
        waves = self._waves(source if isinstance(source, list) else self.sources(source, count), samples)
        guided = sampling.guidance is not None and self._guided(sampling.guidance)
        scale = next((s for s in (sampling.guidance, sampling.temperature) if s is not None), 1.0)
        program, times = self._program(sampling.sampler, guided), self.times(sampling)
        chunk = min(MAX_CHUNK, 1 << (count - 1).bit_length())
        made = []
        for first in range(0, count, chunk):
            index = np.arange(first, first + chunk)
            at = np.minimum(index, count - 1)  # the last chunk is filled up with copies
            batch: Batch = {"wave": waves[at], "label": labels[at]}
            keys = _item_keys(jax.random.key(seed), index)
            made.append(np.asarray(program(self.params, keys, batch, times, jnp.float32(scale))))
        return np.concatenate(made)[:count, :wanted]

    def label_index(self, label: str | None, item: int) -> int:
        """The class index of an item; -1 when the model has no classes. Raises ConfigError for an unknown name."""
        if label is None:
            return item % len(self.classes) if self.classes else -1
        if label not in self.classes:
            known = f"one of {', '.join(self.classes)}" if self.classes else "none, this model has no classes"
            raise ConfigError(f"label {label!r} is unknown; use {known}")
        return self.classes.index(label)

    def sources(self, source: Path | None, count: int) -> list[Path | None]:
        """The file that each of `count` items is conditioned on, None for generation from noise and a class alone."""
        if isinstance(self.config.task, configuration.Vocoding):
            return [*itertools.islice(itertools.cycle(source_files(source, self.config)), count)]
        if source is not None:
            raise ConfigError("a source is for vocoders; this model generates from noise and a class alone")
        return [None] * count

    def _waves(self, sources: list[Path | None], samples: int) -> np.ndarray:
        """What the items are conditioned on; silence for generation."""
        waves, seconds = np.zeros((len(sources), samples), np.float32), samples / self.sample_rate
        for wave, path in zip(waves, sources, strict=True):
            if path is not None:
                y = read_audio(path, self.sample_rate, channels=self.config.data.channels, seconds=seconds)[:samples]
                wave[: len(y)] = y
        return waves


@jax.jit
def _item_keys(key: Array, index: Array) -> Array:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def source_files(source: Path | None, config: Config) -> list[Path]:
    """The sounds to condition on, sorted: one file, a folder's, or the training corpus's."""
    if source is not None and Path(source).is_file():
        return [Path(source)]
    corpus = open_corpus(str(source) if source is not None else config.data.path)
    return [r.path for r in corpus.recordings]


def load(directory: str | Path, *, ema: float | None = None) -> Pipeline:
    """The newest undamaged checkpoint of a run, ready to make sounds; the run's folder is all it needs.

    `ema` takes instead of the weights averaged in training the average of relative width `ema` (0.04 to 0.2) as of the
    last snapshot, for runs with `train.posthoc_ema`. Raises CheckpointError when there is no checkpoint or snapshot.
    """
    directory = Path(directory) / "checkpoints"
    step, problems = checkpoints.latest(directory)
    meta = checkpoints.read_meta(directory, step)
    config, classes = configuration.from_dict(meta["config"]), tuple(meta["classes"])
    features = meta["features"]
    like = {
        "ema_params": abstract_params(config, features, len(classes)),
        "normalization": abstract_normalization(config, features),
    }
    model = checkpoints.restore_model(directory, step, like)
    params, fingerprint = model["ema_params"], checkpoints.fingerprint(directory, step)
    if ema is not None:
        snapshots = checkpoints.read_averages(directory.parent / "snapshots", like["ema_params"])
        step = snapshots[-1].step
        params = jax.tree.map(jnp.asarray, reconstruct(snapshots, step, ema))
        fingerprint = f"{fingerprint} ema {ema:g} at {step}"
    return Pipeline(
        config,
        classes,
        params,
        model["normalization"],
        step=step,
        fingerprint=fingerprint,
        directory=directory.parent,
        warnings=tuple(problems),
    )


def abstract_normalization(config: Config, features: int) -> Normalization | None:
    """The shapes of the fitted normalisation, None when the configuration has none."""
    if not config.normalize.enabled:
        return None
    vector = jax.ShapeDtypeStruct((features,), jnp.float32)
    return Normalization(vector, vector)
