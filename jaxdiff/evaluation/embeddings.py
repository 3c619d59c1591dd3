"""Embeddings: the numbers by which sets of sounds are compared, [batch, samples] -> [batch, d].

`EMBEDDINGS` is the table of all. `log_mel` needs no trained network and is the same everywhere: it hears spectrum,
level and movement, not melody. The others are trained networks, computed in JAX from the weights that lie in other
packages, which need not be importable and are read as they are (`foreign_weights.py`):

- `mtt_vgg`, `mtt_musicnn`, `msd_vgg`, `msd_musicnn`: taggers of music (Pons & Serra 2019) of the package musicnn 0.1.0,
  trained on MagnaTagATune (MTT) or the Million Song Dataset (MSD).
- `openwakeword`: Google's speech embedding (Lin et al. 2020) of the package openwakeword 0.4.0.

Distances in one embedding are not to be compared with distances in another.
"""

import ast
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.features import melspectrogram, power_to_db

from .foreign_weights import package_file, read_onnx, read_tensorflow_checkpoint
from .onnx_operators import run_graph, weights_of

EMBEDDING_RATE = 16_000  # Hz, of all embeddings

# These numbers are fixed by the configuration and the extractor of musicnn.
TAG_FRAMES = 187  # of a window: 3 s
TAG_HOP = 256
TAG_MELS = 96
TAG_BATCH = 8  # windows that are computed at once
BATCH_NORM_EPSILON = 1e-3  # the default of TensorFlow's layer

# These numbers are fixed by the features of openwakeword.
SPEECH_FRAMES = 76  # of a window, 10 ms each
SPEECH_MELS = 32
SPEECH_SIZE = 96
SPEECH_STEP = 8
SPEECH_SAMPLES = 512 + 160 * (SPEECH_FRAMES - 1)  # of which a window is made: 0.78 s
SPEECH_BATCH = 32

MusicnnName = Literal["MTT_vgg", "MTT_musicnn", "MSD_vgg", "MSD_musicnn"]


@functools.partial(jax.jit, static_argnames="sr")
def log_mel_statistics(
    y: Float[Array | np.ndarray, "batch samples"],
    sr: int = EMBEDDING_RATE,
    lengths: Int[Array | np.ndarray, " batch"] | None = None,
) -> Float[Array, "batch 64"]:
    """The mean and the standard deviation over time of 32 log-mel bands, in dB.

    The bands are power in triangles (n_fft 1024, hop 256) relative to a full-scale sine, floored at -60 dB. Where
    `lengths` tell how many samples of each row are sound, zeros must follow them; they count for nothing.
    """
    y = jnp.asarray(y)
    S = melspectrogram(y, sr=sr, n_fft=1024, hop_length=256, n_mels=32, norm=None)
    S = S / 256**2  # a full-scale sine is 1
    db = power_to_db(S, amin=1e-6, top_db=None)
    frames = None if lengths is None else jnp.arange(db.shape[-1]) <= jnp.asarray(lengths)[:, None, None] // 256
    return jnp.concatenate([db.mean(-1, where=frames), db.std(-1, where=frames)], axis=-1)


def _sounds(y: Any) -> Float[Array, "batch samples"]:
    if np.ndim(y) != 2 or 0 in np.shape(y):
        raise ValueError(f"an embedding needs sounds [batch, samples] with samples, got the shape {np.shape(y)}")
    return jnp.asarray(y, jnp.float32)


def _on_device(weights: dict[str, np.ndarray]) -> dict[str, Array]:
    """The weights as JAX's arrays, also where they are first needed while a program is traced."""
    with jax.ensure_compile_time_eval():
        return {name: jnp.asarray(value) for name, value in weights.items()}


def _in_batches(function: Callable[[Array], tuple[Array, ...]], x: Array, size: int) -> list[Array]:
    """The outputs for the rows of `x`, `size` at a time: one program for any number of rows, in bounded memory."""
    parts = []
    for first in range(0, len(x), size):
        part = x[first : first + size]
        padded = jnp.pad(part, [(0, size - len(part)), *[(0, 0)] * (x.ndim - 1)])
        parts.append([out[: len(part)] for out in function(padded)])
    return [jnp.concatenate(outs) for outs in zip(*parts, strict=True)]


# Music --------------------------------------------------------------------------------------------------------------


class Tagged(NamedTuple):
    """Windows of 3 s: the probabilities of the 50 tags, and the numbers that the output layer sees."""

    tags: Float[Array, "batch windows 50"]
    embedding: Float[Array, "batch windows d"]


class Musicnn:
    """A network of the musicnn package: `network(y)` gives tags and an embedding for each window of 3 s.

    The vgg networks embed in the 256 numbers of their last pooling layer, the musicnn networks in the 200 of their
    penultimate layer. `labels` are the names of the tags. `folder` is the package's folder `musicnn`, by default that
    of the installed distribution.

    The input is log10(1 + 10000 S) of the mel energies S, so all depends on the level: with `level` a sound is first
    brought to that RMS, in dB relative to full scale. The package takes the logarithm in half precision, which
    overflows where S exceeds 6.5; here all is single precision. Raises ValueError for an unknown name and for weights
    that cannot be read, ModuleNotFoundError where the package is missing.
    """

    def __init__(self, name: MusicnnName = "MTT_vgg", folder: Path | None = None, level: float | None = None):
        if name not in get_args(MusicnnName):
            raise ValueError(f"musicnn has no network {name}; use one of {', '.join(get_args(MusicnnName))}")
        if folder is None:
            folder = package_file("musicnn", "musicnn/configuration.py", "0.1.0").parent
        tensors = read_tensorflow_checkpoint(folder / name)
        self.labels = _musicnn_labels(folder / "configuration.py", f"{name[:3]}_LABELS")
        self.level = level
        self._weights = _on_device({key: value for key, value in tensors.items() if "Adam" not in key})
        self._network = _vgg if name.endswith("vgg") else _musicnn
        try:
            tags, _ = jax.eval_shape(self._network, self._weights, jnp.zeros((1, TAG_FRAMES, TAG_MELS)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / name} does not hold the layers of {name}: {error}") from None
        if tags.shape != (1, len(self.labels)):
            raise ValueError(f"{folder / name} has {tags.shape[1]} tags, its labels are {len(self.labels)}")

    def __call__(self, y: Float[Array | np.ndarray, "batch samples"]) -> Tagged:
        """The windows follow one another without overlap; a sound of less than 3 s is repeated."""
        y = _sounds(y)
        if self.level is None:  # what follows the last window changes nothing, and fewer lengths are fewer programs
            count = (1 + y.shape[1] // TAG_HOP) // TAG_FRAMES
            y = y[:, : count * TAG_FRAMES * TAG_HOP or None]
        windows = _tag_windows(y, self.level)
        flat = windows.reshape(-1, *windows.shape[2:])
        outs = _in_batches(functools.partial(self._network, self._weights), flat, TAG_BATCH)
        return Tagged(*(out.reshape(*windows.shape[:2], -1) for out in outs))


def musicnn_embedding(
    y: Float[Array | np.ndarray, "batch samples"], name: MusicnnName = "MTT_vgg"
) -> Float[Array, "batch d"]:
    """The mean over windows of a network's embedding, of sounds at 16 kHz as loud as they are."""
    return _network_of_musicnn(name)(y).embedding.mean(1)


@functools.cache
def _network_of_musicnn(name: MusicnnName) -> Musicnn:
    return Musicnn(name)


def _musicnn_labels(path: Path, name: str) -> tuple[str, ...]:
    """A list of the package's configuration, which is read and not run."""
    try:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return tuple(ast.literal_eval(node.value))
    except (SyntaxError, TypeError, ValueError):
        pass
    raise ValueError(f"{path} has no list {name}; install musicnn 0.1.0")


@functools.partial(jax.jit, static_argnames="level")
def _tag_windows(y: Float[Array, "batch samples"], level: float | None) -> Float[Array, "batch windows 187 96"]:
    if level is not None:
        rms = jnp.sqrt(jnp.square(y).mean(-1, keepdims=True))
        y = jnp.where(rms > 0, y * (10 ** (level / 20) / jnp.maximum(rms, 1e-30)), y)
    S = melspectrogram(y, sr=EMBEDDING_RATE, n_fft=512, hop_length=TAG_HOP, n_mels=TAG_MELS).swapaxes(1, 2)
    frames = jnp.log10(1 + 10_000 * S)
    frames = jnp.tile(frames, (1, -(-TAG_FRAMES // frames.shape[1]), 1))
    count = max(1, S.shape[1] // TAG_FRAMES)
    return frames[:, : count * TAG_FRAMES].reshape(len(y), count, TAG_FRAMES, TAG_MELS)


def _numbered(name: str, index: int) -> str:
    """TensorFlow's name for the `index`-th layer of a kind."""
    return name if index == 0 else f"{name}_{index}"


def _normalise(weights: dict[str, Array], index: int, x: Array) -> Array:
    """Batch normalisation of the last axis by the moving moments."""
    name = _numbered("batch_normalization", index)
    scale = weights[f"{name}/gamma"] / jnp.sqrt(weights[f"{name}/moving_variance"] + BATCH_NORM_EPSILON)
    return (x - weights[f"{name}/moving_mean"]) * scale + weights[f"{name}/beta"]


def _convolve(weights: dict[str, Array], name: str, x: Array, padding: Any) -> Array:
    """ReLU of a convolution over time and frequency of x [windows, frames, bands, channels]."""
    kernel, layout = weights[f"{name}/kernel"], ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout, precision="highest")
    return jax.nn.relu(out + weights[f"{name}/bias"])


def _dense(weights: dict[str, Array], name: str, x: Array) -> Array:
    return jnp.matmul(x, weights[f"{name}/kernel"], precision="highest") + weights[f"{name}/bias"]


@jax.jit
def _vgg(weights: dict[str, Array], x: Array) -> tuple[Array, Array]:
    """Probabilities and last pooling layer: five 3 x 3 convolutions, each normalised and pooled."""
    pools = [((4, 1), (2, 2)), ((2, 2), (2, 2)), ((2, 2), (2, 2)), ((2, 2), (2, 2)), ((4, 4), (4, 4))]
    x = _normalise(weights, 0, x[..., None])
    for index, (size, stride) in enumerate(pools, 1):
        x = _normalise(weights, index, _convolve(weights, f"{index}CNN", x, "SAME"))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *size, 1), (1, *stride, 1), "VALID")
    embedding = x.reshape(len(x), -1)
    return jax.nn.sigmoid(_dense(weights, "dense", embedding)), embedding


@jax.jit
def _musicnn(weights: dict[str, Array], x: Array) -> tuple[Array, Array]:
    """Probabilities and penultimate layer.

    Two convolutions over timbre (7 frames by much of the spectrum) and three over time (128, 64 and 32 frames), of each
    the maximum over frequency; three residual layers over 7 frames; maximum and mean over time; a dense layer.
    """
    along_time = ((3, 3), (0, 0))
    x = _normalise(weights, 0, x[..., None])
    front = []
    for index in range(5):
        out = _convolve(weights, _numbered("conv2d", index), x, along_time if index < 2 else "SAME")
        front.append(_normalise(weights, index + 1, out).max(2))
    hidden = jnp.concatenate(front, -1)
    features = [hidden]
    for index in (5, 6, 7):
        out = _convolve(weights, _numbered("conv2d", index), hidden[..., None], along_time)[:, :, 0]
        out = _normalise(weights, index + 1, out)
        hidden = out if index == 5 else out + hidden
        features.append(hidden)
    joined = jnp.concatenate(features, -1)
    pooled = jnp.stack([joined.max(1), joined.mean(1)], -1).reshape(len(joined), -1)
    hidden = jax.nn.relu(_dense(weights, "dense", _normalise(weights, 9, pooled)))
    embedding = _normalise(weights, 10, hidden)
    return jax.nn.sigmoid(_dense(weights, "dense_1", embedding)), embedding


# Speech -------------------------------------------------------------------------------------------------------------


class Openwakeword:
    """The speech embedding of the openwakeword package: `network(y)` gives 96 numbers for each window of 0.78 s.

    Windows are 80 ms apart; a sound of less than one is repeated. The log-mel bands of a sound reach down to 80 dB
    below its loudest one, so each sound is computed alone. `folder` holds `melspectrogram.onnx` and
    `embedding_model.onnx`, by default it is that of the installed package. Raises ValueError for files that cannot be
    read or are other graphs, ModuleNotFoundError where the package is missing.
    """

    def __init__(self, folder: Path | None = None):
        if folder is None:
            folder = package_file("openwakeword", "resources/models/embedding_model.onnx", "0.4.0").parent
        mel, network = (read_onnx(folder / f"{name}.onnx") for name in ("melspectrogram", "embedding_model"))
        self._weights = _on_device(weights_of(mel)), _on_device(weights_of(network))
        self._mel = jax.jit(lambda weights, y: jax.vmap(lambda one: run_graph(mel, weights, one[None]))(y))
        self._network = jax.jit(lambda weights, x: run_graph(network, weights, x))
        for function, weights, given, shape in (
            (self._mel, self._weights[0], (2, SPEECH_SAMPLES), (2, 1, 1, SPEECH_FRAMES, SPEECH_MELS)),
            (self._network, self._weights[1], (2, SPEECH_FRAMES, SPEECH_MELS, 1), (2, 1, 1, SPEECH_SIZE)),
        ):
            made = [out.shape for out in jax.eval_shape(function, weights, jnp.zeros(given))]
            if made != [shape]:
                raise ValueError(f"a graph in {folder} makes {made} of {given}, expected {shape}")

    def __call__(self, y: Float[Array | np.ndarray, "batch samples"]) -> Float[Array, "batch windows 96"]:
        y = _sounds(y)
        y = jnp.tile(y, (1, -(-SPEECH_SAMPLES // y.shape[1])))[:, : max(SPEECH_SAMPLES, y.shape[1])]
        mel, network = self._weights
        (db,) = self._mel(mel, y * 32768)
        db = db[:, 0, 0]  # [batch, frames, 32]
        first = np.arange(0, db.shape[1] - SPEECH_FRAMES + 1, SPEECH_STEP)
        windows = (db / 10 + 2)[:, first[:, None] + np.arange(SPEECH_FRAMES), :, None]
        flat = windows.reshape(-1, *windows.shape[2:])
        (out,) = _in_batches(functools.partial(self._network, network), flat, SPEECH_BATCH)
        return out.reshape(len(y), len(first), SPEECH_SIZE)


def speech_embedding(y: Float[Array | np.ndarray, "batch samples"]) -> Float[Array, "batch 96"]:
    """The mean over windows of the speech embedding of openwakeword, of sounds at 16 kHz as loud as they are."""
    return _network_of_openwakeword()(y).mean(1)


@functools.cache
def _network_of_openwakeword() -> Openwakeword:
    return Openwakeword()


# All ----------------------------------------------------------------------------------------------------------------


class Embedding(NamedTuple):
    """How sounds are embedded: `function` takes sounds [batch, samples] at `rate` (Hz) to [batch, dimension].

    `package` is what it needs beside jaxdiff. With `takes_lengths` the function also takes `lengths`, the samples of
    each row that are sound and not the zeros that follow.
    """

    rate: int
    dimension: int
    function: Callable[..., Float[Array, "batch d"]]
    package: str = ""
    takes_lengths: bool = False


EMBEDDINGS: dict[str, Embedding] = {
    "log_mel": Embedding(EMBEDDING_RATE, 64, log_mel_statistics, takes_lengths=True),
    "mtt_vgg": Embedding(EMBEDDING_RATE, 256, functools.partial(musicnn_embedding, name="MTT_vgg"), "musicnn"),
    "mtt_musicnn": Embedding(EMBEDDING_RATE, 200, functools.partial(musicnn_embedding, name="MTT_musicnn"), "musicnn"),
    "msd_vgg": Embedding(EMBEDDING_RATE, 256, functools.partial(musicnn_embedding, name="MSD_vgg"), "musicnn"),
    "msd_musicnn": Embedding(EMBEDDING_RATE, 200, functools.partial(musicnn_embedding, name="MSD_musicnn"), "musicnn"),
    "openwakeword": Embedding(EMBEDDING_RATE, 96, speech_embedding, "openwakeword"),
}
