"""Trained models from disk: a run's folder, an exported file, or the name of a model that ships with the package."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import config as configuration
from jaxdiff import shipped
from jaxdiff.config import Config, ConfigError, from_dict, to_dict
from jaxdiff.data.cloud import url_of
from jaxdiff.data.files import atomic
from jaxdiff.features import LogMel, Normalization, Normalized, Stereo, Vocoded
from jaxdiff.methods import Method, Model
from jaxdiff.tasks import Vocode
from jaxdiff.training import CheckpointError, checkpoints, remote
from jaxdiff.training.ema import reconstruct
from jaxdiff.training.optimizers import named

from .pipeline import Pipeline

_LARGEST_HALF = float(np.finfo(np.float16).max)


def load(
    name: str | Path, *, ema: float | None = None, model: Model | None = None, method: Method | None = None
) -> Pipeline:
    """A model ready for use: the newest undamaged checkpoint of a run's folder, that of a step (RUN/checkpoints/400), a
    file that `export` wrote, or the name of a shipped model. Of a run of a cloud (gs://BUCKET/RUN) a copy is kept.

    `ema` takes instead of the weights averaged in training the average of relative width `ema` (0.04 to 0.2) as of the
    last snapshot, for runs with `train.posthoc_ema`. A run that was trained in Python with parts of one's own needs its
    `model` and `method` again. Raises CheckpointError when there is no checkpoint or snapshot, and for a shipped model
    whose sha256 is another than the package says.
    """
    path = _file(name)
    return _load_run(_here(name, ema), ema, model, method) if path is None else _load_file(path)


def classes_of(name: str | Path) -> tuple[str, ...]:
    """The classes of a model, without its weights; raises as `load` does."""
    path = _file(name)
    if path is not None:
        return tuple(_header(path)["classes"])
    directory, step, _ = _checkpoint(_here(name))
    return tuple(checkpoints.read_meta(directory / "checkpoints", step)["classes"])


def _file(name: str | Path) -> Path | None:
    """The file of an exported or shipped model; None: `name` is a run's folder.

    A run of the name of a shipped model comes first. Raises CheckpointError for shipped weights that are damaged, and
    for a name that neither a shipped model nor anything on disk has.
    """
    path = Path(name)
    if url_of(path) is not None:
        return None
    if path.suffix == ".safetensors" or path.is_file():
        return path
    if (path / "checkpoints").exists():
        return None
    if str(path) in shipped.names():
        problem = shipped.damage(str(path))
        if problem is not None:
            raise CheckpointError(problem)
        return shipped.FOLDER / path / shipped.WEIGHTS
    if not path.exists() and path.name == str(path):
        names = shipped.unknown(path.name)
        raise CheckpointError(f"{path}: no usable checkpoint (there is no such folder, and {names})")
    return None


def _here(name: str | Path, ema: float | None = None) -> Path:
    """The run, or the step of one, as a folder of this machine: a copy of what is needed of one of a cloud."""
    path = Path(name)
    wanted = ("checkpoints", "grids") if ema is None else ("checkpoints", "grids", "snapshots")
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return remote.fetched(path.parent.parent, wanted) / "checkpoints" / path.name
    return remote.fetched(path, wanted)


def shapes(model: Model) -> dict[str, Any]:
    """The model part of a checkpoint holds these: averaged weights and the fitted normalisation (None without)."""
    vector: Any = jax.ShapeDtypeStruct((model.representation.channels,), jnp.float32)
    return {
        "ema_params": model.network.shapes(),
        "normalization": Normalization(vector, vector) if isinstance(model.representation, Normalized) else None,
    }


def _checkpoint(path: Path) -> tuple[Path, int, list[str]]:
    """A run's folder, the step of its newest undamaged checkpoint or of the one that `path` is, and what was passed
    over."""
    if path.parent.name == "checkpoints" and path.name.isdigit():
        checkpoints.check(path.parent, int(path.name))
        return path.parent.parent, int(path.name), []
    return path, *checkpoints.latest(path / "checkpoints")


def _load_run(directory: Path, ema: float | None, model: Model | None, method: Method | None) -> Pipeline:
    directory, step, problems = _checkpoint(directory)
    meta = checkpoints.read_meta(directory / "checkpoints", step)
    config = None if meta["config"] is None else from_dict({"format": 1, **meta["config"]})
    if config is not None:
        model, method = configuration.model(config, tuple(meta["classes"]), None), config.method
    if model is None or method is None:
        raise CheckpointError(
            f"{directory}: was trained in Python with parts of its own; give load(..., model=, method=) as in train"
        )
    like = shapes(model)
    found = checkpoints.restore_model(directory / "checkpoints", step, like)
    params, fingerprint = found["ema_params"], checkpoints.fingerprint(directory / "checkpoints", step)
    if ema is not None:
        snapshots = checkpoints.read_averages(directory / "snapshots", like["ema_params"])
        step = snapshots[-1].step
        params = jax.tree.map(jnp.asarray, reconstruct(snapshots, step, ema))
        fingerprint = f"{fingerprint} ema {ema:g} at {step}"
    about: dict[str, Any] = dict(step=step, fingerprint=fingerprint, directory=directory, warnings=tuple(problems))
    if config is None:
        return Pipeline(model, method, params, seconds=meta["seconds"], **about)
    return pipeline_of(config, tuple(meta["classes"]), params, found["normalization"], **about)


def pipeline_of(
    config: Config, classes: tuple[str, ...], params: Any, normalization: Normalization | None, **about: Any
) -> Pipeline:
    """The pipeline of a configuration with trained weights; one whose features name a vocoder decodes by it."""
    model = _with_vocoder(configuration.model(config, classes, normalization))
    return Pipeline(
        model,
        config.method,
        params,
        seconds=config.data.seconds,
        sampling=config.sampling,
        config=config,
        **about,
    )


def _with_vocoder(model: Model) -> Model:
    """The model, of which log-mel features that name a vocoder are decoded by the shipped one of that name, and by no
    other file.

    Raises ConfigError where there is none of the name or it was trained on other mel bands.
    """
    own = model.representation
    mel = own.inner
    if not isinstance(mel, LogMel) or mel.vocoder is None:
        return model
    name = mel.vocoder
    if name not in shipped.names():
        raise ConfigError(f"representation.vocoder {name}: {shipped.unknown(name)}")
    there = _load_file(Path(_file(name) or name))
    task, r = there.model.task, there.model.representation
    ours = (mel.sample_rate, mel.n_fft, mel.hop_length, mel.n_mels, mel.fmin, mel.fmax)
    theirs = (
        (there.sample_rate, task.n_fft, task.hop_length, task.n_mels, 0.0, task.fmax)
        if isinstance(task, Vocode)
        else ()
    )
    if ours != theirs:
        raise ConfigError(
            f"representation.vocoder {name}: was trained on mel bands of {theirs}, here are {ours} (rate, n_fft, "
            f"hop_length, n_mels, fmin, fmax); set those of the representation alike"
        )
    whole = Vocoded(mel, there.of_magnitudes, r.phase_period)
    whole = Stereo(whole) if own.stereo else whole
    whole = Normalized(whole, own.normalization) if isinstance(own, Normalized) else whole
    return model._replace(representation=whole)


def export(pipeline: Pipeline, path: str | Path, *, half: bool = False) -> Path:
    """Write a model as one safetensors file with its configuration and a sum inside, which `load` reads anywhere.

    `half` stores weights as float16; they are float32 again when loaded. Raises ConfigError for models of one's own
    parts, which no configuration describes, for another extension than .safetensors, and for weights beyond float16.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: an exported model is a .safetensors file; give it that extension")
    if pipeline.config is None:
        raise ConfigError("a model of parts of its own has no configuration to export; keep its run's folder")
    representation = pipeline.model.representation
    normalization = representation.normalization if isinstance(representation, Normalized) else None
    tensors = {f"params/{name}": np.asarray(leaf) for name, leaf in named(pipeline.params).items()}
    if half:
        large = next((name for name, leaf in tensors.items() if np.abs(leaf).max(initial=0) > _LARGEST_HALF), None)
        if large is not None:
            raise ConfigError(f"{path}: {large} holds numbers beyond float16's {_LARGEST_HALF:g}; export without half")
        tensors = {name: leaf.astype(np.float16) for name, leaf in tensors.items()}
    if normalization is not None:
        tensors |= {f"normalization/{name}": np.asarray(v) for name, v in normalization._asdict().items()}
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in tensors.items()}
    about = {"config": to_dict(pipeline.config), "classes": list(pipeline.classes), "step": pipeline.step}
    about["sha256"] = _digest(tensors)
    with atomic(path) as temporary:
        save_file(tensors, temporary, {shipped.HEADER: json.dumps(about)})
    return path


def _header(path: Path, tensors: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
    """The metadata of an exported file; its tensors are put into `tensors`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    try:
        with safe_open(path, framework="numpy") as file:
            if tensors is not None:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return json.loads((file.metadata() or {})[shipped.HEADER])
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a model that jaxdiff export wrote ({error})") from None


def _load_file(path: Path) -> Pipeline:
    tensors: dict[str, np.ndarray] = {}
    about = _header(path, tensors)
    if about.get("sha256", "") not in ("", _digest(tensors)):
        raise CheckpointError(f"{path}: is damaged, its weights are not those that were exported; export them again")
    config, classes = from_dict({"format": 1, **about["config"]}), tuple(about["classes"])
    like = shapes(configuration.model(config, classes, None))

    def take(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if name not in tensors or tensors[name].shape != leaf.shape:
            got = tensors[name].shape if name in tensors else "nothing"
            raise CheckpointError(f"{path}: {name} should have the shape {leaf.shape}, got {got}")
        return jnp.asarray(tensors[name], leaf.dtype)

    leaves = [take(f"params/{name}", leaf) for name, leaf in named(like["ema_params"]).items()]
    params = jax.tree.unflatten(jax.tree.structure(like["ema_params"]), leaves)
    normalization = None
    if config.normalize.enabled:
        fields = like["normalization"]._asdict().items()
        normalization = Normalization(**{name: take(f"normalization/{name}", leaf) for name, leaf in fields})
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
    return pipeline_of(
        config, classes, params, normalization, step=about["step"], fingerprint=fingerprint, directory=path.parent
    )


def _digest(tensors: dict[str, np.ndarray]) -> str:
    """The sha256 of tensors with their names, types and shapes."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        total.update(tensor.tobytes())
    return total.hexdigest()
