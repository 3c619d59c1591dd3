"""Embeddings against literal NumPy and, where the packages are installed, against the original weights' own runtime;
the readers of foreign weights on small files that are written here, truncated and hostile ones too."""

import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from oracles import max_relative

from jaxdiff.evaluation import embeddings, foreign_weights
from jaxdiff.evaluation.embeddings import EMBEDDINGS, Musicnn, Openwakeword, log_mel_statistics, speech_embedding
from jaxdiff.evaluation.foreign_weights import Graph, Node, package_file, read_onnx, read_tensorflow_checkpoint
from jaxdiff.evaluation.onnx_operators import run_graph, weights_of

RATE = 16_000


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Protocol buffers, tables and graphs, written by hand ---------------------------------------------------------------


def varint(value: int) -> bytes:
    """A negative integer has the 64 bits of its two's complement."""
    value &= (1 << 64) - 1
    low = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([part | 128 for part in low[:-1]] + low[-1:])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Keys and values; each key names how much it shares with the last one."""
    rows, last = b"", b""
    for key, value in entries:
        shared = next((i for i, (x, y) in enumerate(zip(key, last, strict=False)) if x != y), min(len(key), len(last)))
        rows += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return rows + bytes(4) + (1).to_bytes(4, "little")


def table(*blocks: list[tuple[bytes, bytes]], compression: int = 0) -> bytes:
    """Blocks, each with a byte of compression and 4 of a checksum, then an index block and a footer."""
    file, index = b"", []
    for entries in blocks:
        data = block(entries)
        index.append((entries[-1][0], varint(len(file)) + varint(len(data))))
        file += data + bytes([compression]) + b"crc!"
    root = block(index)
    footer = varint(0) + varint(0) + varint(len(file)) + varint(len(root))
    return file + root + bytes(5) + footer.ljust(40, b"\0") + foreign_weights.TABLE_MAGIC.to_bytes(8, "little")


def entry(shape: tuple[int, ...], offset: int, size: int, kind: int = 1) -> bytes:
    sizes = b"".join(field(2, field(1, length)) for length in shape)
    return field(1, kind) + field(2, sizes) + field(4, offset) + field(5, size) + varint(6 << 3 | 5) + b"crc!"


HEADER: tuple[bytes, bytes] = (b"", field(1, 1))


def write_checkpoint(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Two blocks, as more than a few tensors have."""
    folder.mkdir(exist_ok=True)
    entries, data = [HEADER], b""
    for name in sorted(tensors):
        value = tensors[name].astype("<f4")
        entries.append((name.encode(), entry(value.shape, len(data), value.nbytes)))
        data += value.tobytes()
    half = 1 + len(tensors) // 2
    (folder / ".index").write_bytes(table(*[part for part in (entries[:half], entries[half:]) if part]))
    (folder / ".data-00000-of-00001").write_bytes(data)


def tensor(name: str, value: np.ndarray) -> bytes:
    kind = {"f": 1, "i": 7}[value.dtype.kind]
    return (
        b"".join(field(1, size) for size in value.shape) + field(2, kind) + field(8, name) + field(9, value.tobytes())
    )


def attribute(name: str, value: Any) -> bytes:
    match value:
        case float():
            return field(1, name) + varint(2 << 3 | 5) + struct.pack("<f", value) + field(20, 1)
        case int():
            return field(1, name) + field(3, value) + field(20, 2)
        case str():
            return field(1, name) + field(4, value) + field(20, 3)
        case np.ndarray():
            return field(1, name) + field(5, tensor("", value)) + field(20, 4)
        case [float(), *_]:
            return field(1, name) + field(7, struct.pack(f"<{len(value)}f", *value)) + field(20, 6)
    return field(1, name) + b"".join(field(8, one) for one in value) + field(20, 7)


def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> bytes:
    names = b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, operator)
    return names + b"".join(field(5, attribute(name, value)) for name, value in attributes.items())


def model(*parts: bytes, version: int = 13) -> bytes:
    return field(1, 7) + field(7, b"".join(parts)) + field(8, field(2, version))


KERNEL = normal(0, 3, 2, 2)
MODEL = model(
    field(1, node("Conv", ["x", "kernel"], "y", strides=(2,), pads=(1, 0), group=1)),
    field(1, node("LeakyRelu", ["y"], "z", alpha=0.25)),
    field(5, tensor("kernel", KERNEL)),
    field(5, tensor("sizes", np.array([-1, 0], "<i8"))),
    field(11, field(1, "x")),
    field(11, field(1, "kernel")),
    field(12, field(1, "z")),
)


# Readers ------------------------------------------------------------------------------------------------------------


def test_checkpoint_is_read_without_tensorflow(tmp_path: Path):
    tensors = {
        "conv/kernel": normal(0, 2, 3, 50),
        "conv/bias": normal(1, 3),
        "dense": normal(2, 200),
        "step": normal(3),
    }
    write_checkpoint(tmp_path, tensors)
    found = read_tensorflow_checkpoint(tmp_path)
    assert sorted(found) == sorted(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == np.float32 and np.array_equal(found[name], value)


def test_checkpoint_leaves_integers_out(tmp_path: Path):
    write_checkpoint(tmp_path, {"a": normal(0, 2)})
    (tmp_path / ".index").write_bytes(table([HEADER, (b"a", entry((2,), 0, 8)), (b"step", entry((), 0, 8, kind=9))]))
    assert list(read_tensorflow_checkpoint(tmp_path)) == ["a"]


def test_truncated_checkpoint_is_refused_wherever_it_ends(tmp_path: Path):
    write_checkpoint(tmp_path, {"kernel": normal(0, 2, 3), "bias": normal(1, 3)})
    for name in (".index", ".data-00000-of-00001"):
        whole = (tmp_path / name).read_bytes()
        for size in range(len(whole)):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(ValueError, match="checkpoint .* cannot be read: .*; install its package again$"):
                read_tensorflow_checkpoint(tmp_path)
        (tmp_path / name).write_bytes(whole)
    assert len(read_tensorflow_checkpoint(tmp_path)) == 2


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (table([HEADER, (b"a", entry((1 << 40,), 0, 8))]), "needs 4398046511104 bytes, it has 8"),
        (table([HEADER, (b"a", entry((-2,), 0, 8))]), r"the shape \[-2\], which is damaged"),
        (table([HEADER, (b"a", entry((1,) * 9, 0, 4))]), r"which is damaged"),
        (table([HEADER, (b"a", entry((2,), 4, 8))]), "ends at byte 12 of a data file of 8 bytes"),
        (table([HEADER, (b"a", entry((2,), 1 << 63, 8))]), "of a data file of 8 bytes"),
        (table([HEADER, (b"a", entry((2,), 0, 8) + field(3, 1))]), "in slices or in another data file"),
        (table([HEADER, (b"a", entry((2,), 0, 8) + field(7, b""))]), "in slices or in another data file"),
        (table([HEADER, (b"a", field(1, 1) + field(2, 3))]), "a shape is not written as such"),
        (table([HEADER, (b"a", field(1, 1) + field(4, b"12"))]), "bytes where an integer is expected"),
        (table([HEADER, (b"a", b"\xff" * 11)]), "more than 64 bits"),
        (table([HEADER, (b"a", b"\x0b")]), "the unknown kind 3"),
        (table([(b"", field(1, 2))]), "several data files"),
        (table([(b"", field(1, 1) + field(2, 1))]), "byte order"),
        (table([HEADER, (b"b", entry((2,), 0, 8)), (b"a", entry((2,), 0, 8))]), "not in order"),
        (table([HEADER, (b"a", entry((2,), 0, 8))], [(b"a", entry((2,), 0, 8))]), "not in order"),
        (table([HEADER], compression=1), "compressed"),
        (table([(b"k" * 1025, b"")]), "does not fit into its block"),
        (table([HEADER]).replace(b"\1\0\0\0\0crc!", b"\7\7\0\0\0crc!"), "more restart points than bytes"),
        (b"\x05\x01\0" + bytes(4) + (1).to_bytes(4, "little") + table([HEADER])[11:], "does not fit into its block"),
        (bytes(40) + foreign_weights.TABLE_MAGIC.to_bytes(8, "little"), "lies outside"),
        (b"\x80\x02PK" * 30, "does not end as a table does"),
    ],
)  # fmt: skip
def test_hostile_checkpoint_is_refused(tmp_path: Path, index: bytes, sentence: str):
    (tmp_path / ".index").write_bytes(index)
    (tmp_path / ".data-00000-of-00001").write_bytes(bytes(8))
    with pytest.raises(ValueError, match=sentence):
        read_tensorflow_checkpoint(tmp_path)


def test_large_files_are_refused_before_they_are_read(tmp_path: Path, monkeypatch):
    write_checkpoint(tmp_path, {name: normal(0, 2) for name in "abcdef"})
    with monkeypatch.context() as small:
        small.setattr(foreign_weights, "MAXIMUM_TENSORS", 3)
        with pytest.raises(ValueError, match="more than 3 tensors"):
            read_tensorflow_checkpoint(tmp_path)
    monkeypatch.setattr(foreign_weights, "MAXIMUM_BYTES", 40)
    with pytest.raises(ValueError, match="has 48 bytes, at most 40 are expected"):
        read_tensorflow_checkpoint(tmp_path)
    (tmp_path / "a.onnx").write_bytes(MODEL)
    with pytest.raises(ValueError, match="at most 40 are expected"):
        read_onnx(tmp_path / "a.onnx")


def test_onnx_graph_is_read_and_computed(tmp_path: Path):
    (tmp_path / "a.onnx").write_bytes(MODEL)
    graph = read_onnx(tmp_path / "a.onnx")
    assert (graph.inputs, graph.outputs) == (("x",), ("z",))
    assert graph.nodes[0] == Node("Conv", ("x", "kernel"), ("y",), {"strides": (2,), "pads": (1, 0), "group": 1})
    assert graph.nodes[1].attributes == {"alpha": 0.25}
    assert np.array_equal(graph.tensors["kernel"], KERNEL) and graph.tensors["sizes"].tolist() == [-1, 0]
    assert list(weights_of(graph)) == ["kernel"]
    x = normal(1, 1, 2, 5)
    (found,) = jax.jit(lambda weights, x: run_graph(graph, weights, x))(weights_of(graph), x)
    padded = np.pad(x[0], ((0, 0), (1, 0)))
    y = np.array([[(KERNEL[o] * padded[:, i : i + 2]).sum() for i in (0, 2, 4)] for o in range(3)])
    assert max_relative(found[0], np.where(y > 0, y, y / 4)) <= 1e-6


def test_onnx_attributes_of_every_kind(tmp_path: Path):
    value = normal(0, 2, 2)
    part = node("Any", [], "y", a=0.5, b=-3, c="text", d=value, e=[0.5, -1.5], f=[3, -4])
    packed = field(5, field(1, "g") + field(8, varint(5) + varint(-6)) + field(20, 7))
    (tmp_path / "a.onnx").write_bytes(model(field(1, part + packed)))
    found = read_onnx(tmp_path / "a.onnx").nodes[0].attributes
    assert np.array_equal(found.pop("d"), value)
    assert found == {"a": 0.5, "b": -3, "c": "text", "e": (0.5, -1.5), "f": (3, -4), "g": (5, -6)}


def test_truncated_onnx_file_is_refused_wherever_it_ends(tmp_path: Path):
    for size in range(len(MODEL)):
        (tmp_path / "a.onnx").write_bytes(MODEL[:size])
        with pytest.raises(ValueError, match="ONNX file .* cannot be read: .*; install its package again$"):
            read_onnx(tmp_path / "a.onnx")


def test_damaged_bytes_make_a_sentence_or_another_graph(tmp_path: Path):
    """No other error, whatever byte is wrong."""
    write_checkpoint(tmp_path, {"kernel": normal(0, 2, 3), "bias": normal(1, 3)})
    rng = np.random.default_rng(0)
    for name, read in (
        (".index", lambda: read_tensorflow_checkpoint(tmp_path)),
        ("a", lambda: read_onnx(tmp_path / "a")),
    ):
        whole = MODEL if name == "a" else (tmp_path / name).read_bytes()
        refused = 0
        for _ in range(150):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] = rng.integers(256)
            (tmp_path / name).write_bytes(damaged)
            try:
                read()
            except ValueError:
                refused += 1
        assert 15 < refused < 150


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (model(version=12), "only version 13 of ONNX"),
        (field(7, b"") + field(7, b"") + field(8, field(2, 13)), "it has 2 graphs"),
        (field(7, b"") + field(8, field(1, "com.other") + field(2, 13)), "com.other"),
        (model(field(5, field(1, 1 << 40) + field(2, 1) + field(8, "w") + field(9, bytes(8)))), "needs 4398046511104"),
        (model(field(5, field(1, -1) + field(2, 1) + field(8, "w") + field(9, bytes(8)))), "which is damaged"),
        (model(field(5, field(1, 1) + field(2, 8) + field(8, "w") + field(9, b"text"))), "has the type 8"),
        (model(field(5, field(2, 1) + field(8, "w") + field(13, field(1, "location")))), "does not lie in the file"),
        (model(field(5, field(2, 1) + field(8, "w") + field(14, 1) + field(9, bytes(4)))), "does not lie in the file"),
        (model(field(1, field(4, "Any") + field(7, "com.other"))), "the domain com.other"),
        (model(field(1, field(4, "If") + field(5, field(1, "then") + field(6, b"") + field(20, 5)))), "is of kind 5"),
        (model(field(1, field(4, "n" * 2000))), "a name has 2000 bytes"),
        (model(field(1, varint(4 << 3 | 2) + varint(1 << 50))), "runs past the end"),
        (model(field(1, field(5, field(1, "a") + field(2, 3) + field(20, 1)))), "a float is not written as such"),
        (b"\x80\x04\x95", "runs past the end|unknown kind"),
        (b"", "it has 0 graphs"),
    ],
)  # fmt: skip
def test_hostile_onnx_file_is_refused(tmp_path: Path, data: bytes, sentence: str):
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=sentence):
        read_onnx(tmp_path / "a.onnx")


def test_package_that_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match="run `pip install --no-deps no-such-sounds==1.2`"):
        package_file("no-such-sounds", "weights.onnx", "1.2")
    assert package_file("numpy", "numpy/__init__.py", "2").name == "__init__.py"
    with pytest.raises(ModuleNotFoundError, match="the file no-such-file of the package numpy"):
        package_file("numpy", "no-such-file", "2")


# Operators ----------------------------------------------------------------------------------------------------------


def computed(operator: str, *inputs: Any, **attributes: Any) -> np.ndarray:
    """The first input comes from outside, the others lie in the graph."""
    names = [f"v{i}" for i in range(len(inputs))]
    tensors = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    first = tensors.pop("v0")
    used = tuple(name if name in tensors or name == "v0" else "" for name in names)
    graph = Graph(("v0",), ("y",), (Node(operator, used, ("y",), attributes),), tensors)
    return np.asarray(run_graph(graph, weights_of(graph), jnp.asarray(first))[0])


X = normal(0, 2, 3, 6, 5)
SCALE, SHIFT, MEAN, VARIANCE = normal(1, 3), normal(2, 3), normal(3, 3), normal(4, 3) ** 2
WIDE = normal(5, 4, 3, 2)
COLUMN = (slice(None), None, None)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: computed("Add", X, X[0]), X + X[0]),
        (lambda: computed("Sub", X, X[0]), X - X[0]),
        (lambda: computed("Mul", X, X[0]), X * X[0]),
        (lambda: computed("Div", X, X[0]), X / X[0]),
        (lambda: computed("Max", X, X[0], X[1]), np.maximum(np.maximum(X, X[0]), X[1])),
        (lambda: computed("MatMul", X, normal(1, 5, 4)), X.astype(float) @ normal(1, 5, 4)),
        (lambda: computed("Pow", X, np.float32(2).reshape(())), X**2),
        (lambda: computed("Pow", abs(X), np.float32(0.5).reshape(())), abs(X) ** 0.5),
        (lambda: computed("Log", abs(X)), np.log(abs(X))),
        (lambda: computed("Relu", X), np.maximum(X, 0)),
        (lambda: computed("LeakyRelu", X), np.where(X > 0, X, 0.01 * X)),
        (lambda: computed("Clip", X, np.float32(-0.5), None), np.maximum(X, -0.5)),
        (lambda: computed("Clip", X, None, np.float32(0.5)), np.minimum(X, 0.5)),
        (lambda: computed("Cast", X, to=1), X),
        (lambda: computed("ReduceMax", X, keepdims=0), X.max()),
        (lambda: computed("ReduceMax", X, axes=(-1, 1)), X.max((1, 3), keepdims=True)),
        (lambda: computed("Transpose", X, perm=(0, 2, 3, 1)), X.transpose(0, 2, 3, 1)),
        (lambda: computed("Unsqueeze", X, np.array([1, -1])), X[:, None, ..., None]),
        (lambda: computed("Reshape", X, np.array([0, -1, 10])), X.reshape(2, 9, 10)),
        (lambda: computed("Pad", X, np.array([0, 0, 1, 0, 0, 0, 2, 3])), np.pad(X, ((0, 0), (0, 0), (1, 2), (0, 3)))),
        (
            lambda: computed("Pad", X, np.array([0, 0, 0, 1, 0, 0, 0, 0]), np.float32(7)),
            np.pad(X, ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=7),
        ),
        (
            lambda: computed("BatchNormalization", X, SCALE, SHIFT, MEAN, VARIANCE, epsilon=0.1),
            SCALE[COLUMN] * (X - MEAN[COLUMN]) / np.sqrt(VARIANCE + 0.1)[COLUMN] + SHIFT[COLUMN],
        ),
        (
            lambda: computed("MaxPool", X, kernel_shape=(2, 1), strides=(2, 2)),
            np.maximum(X[:, :, 0::2, ::2], X[:, :, 1::2, ::2]),
        ),
        (
            lambda: computed("Conv", X, WIDE[:, :, None], normal(6, 4), dilations=(1, 2), strides=(2, 1)),
            np.einsum("bchwk,ock->bohw", np.stack([X[:, :, ::2, 0:3], X[:, :, ::2, 2:5]], -1), WIDE)
            + normal(6, 4)[COLUMN],
        ),
    ],
)  # fmt: skip
def test_operator_equals_numpy(found, expected):
    assert max_relative(found(), expected) <= 2e-6


def test_constant_stands_for_its_tensor():
    value = normal(0, 2, 2)
    graph = Graph((), ("y",), (Node("Constant", (), ("y",), {"value": value}),), {})
    assert np.array_equal(run_graph(graph, {})[0], value)


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (Node("Softmax", ("x",), ("y",), {}), "the operator Softmax of the graph is unknown"),
        (Node("Relu", ("x",), ("y",), {"alpha": 1.0}), "Relu of the graph cannot be computed: .*alpha"),
        (Node("MaxPool", ("x",), ("y",), {"kernel_shape": (1,), "strides": (1,), "ceil_mode": 1}), "ceil_mode"),
        (Node("Relu", ("x", "x"), ("y",), {}), "Relu of the graph cannot be computed"),
        (Node("Relu", ("later",), ("y",), {}), r"unknown inputs \['later'\]"),
        (Node("Relu", ("x",), ("y", "z"), {}), "needs one output"),
        (Node("Relu", ("x",), ("z",), {}), "no node of the graph makes its outputs y"),
        (Node("Reshape", ("x", "x"), ("y",), {}), "it takes a shape from computed values"),
        (Node("Reshape", ("x", "seven"), ("y",), {}), "Reshape of the graph cannot be computed"),
        (Node("Pad", ("x", "huge"), ("y",), {}), "at most 2147483648 fit|its padding is"),
        (Node("Pad", ("x", "negative"), ("y",), {}), "its padding is"),
        (Node("Pad", ("x", "seven"), ("y",), {}), "its padding is"),
        (Node("Pad", ("x", "negative"), ("y",), {"mode": "reflect"}), "its mode is reflect"),
        (Node("Cast", ("x",), ("y",), {"to": 7}), "its type is 7"),
    ],
)
def test_graph_of_unknown_or_wrong_nodes_is_refused(node: Node, sentence: str):
    tensors = {"seven": np.array([7]), "huge": np.array([0, 0, 0, 1 << 31]), "negative": np.array([0, 0, 0, -1])}
    graph = Graph(("x",), ("y",), (node,), tensors)
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(lambda x: run_graph(graph, {}, x), jnp.ones((2, 3)))


def test_graph_wants_as_many_arrays_as_it_has_inputs():
    with pytest.raises(ValueError, match="the graph has the inputs a, b, got 1 arrays"):
        run_graph(Graph(("a", "b"), (), (), {}), {}, jnp.ones(1))


# musicnn ------------------------------------------------------------------------------------------------------------

EPSILON = 1e-3


def small_weights(name: str) -> dict[str, np.ndarray]:
    """Random weights of the package's layers, with few channels."""
    shapes: dict[str, tuple[int, ...]] = {}
    if name.endswith("vgg"):
        norms = [1, 3, 3, 3, 3, 3]
        shapes |= {f"{i}CNN": (3, 3, 1 if i == 1 else 3, 3) for i in range(1, 6)}
        shapes["dense"] = (6, 5)
    else:
        sizes = [(7, 38, 3), (7, 67, 3), (128, 1, 2), (64, 1, 2), (32, 1, 2), (7, 12, 4), (7, 4, 4), (7, 4, 4)]
        norms = [1, 3, 3, 2, 2, 2, 4, 4, 4, 48, 6]
        for i, (height, width, channels) in enumerate(sizes):
            shapes["conv2d" if i == 0 else f"conv2d_{i}"] = (height, width, 1, channels)
        shapes |= {"dense": (48, 6), "dense_1": (6, 5)}
    weights = {}
    for seed, (layer, shape) in enumerate(shapes.items()):
        weights[f"{layer}/kernel"] = normal(seed, *shape) * 2 / np.sqrt(np.prod(shape[:-1]))
        weights[f"{layer}/bias"] = 0.1 * normal(100 + seed, shape[-1])
    for i, channels in enumerate(norms):
        layer = "batch_normalization" if i == 0 else f"batch_normalization_{i}"
        for seed, part in enumerate(("gamma", "beta", "moving_mean", "moving_variance")):
            values = normal(1000 + 10 * i + seed, channels)
            weights[f"{layer}/{part}"] = values / 3 if part in ("beta", "moving_mean") else 1 / (0.5 + abs(values))
    last = "dense" if name.endswith("vgg") else "dense_1"
    weights[f"{last}/kernel"] *= 0.1  # so that probabilities are far from 0 and 1
    return weights | {"dense/kernel/Adam": np.zeros(1, np.float32)}


def write_package(folder: Path, name: str) -> dict[str, np.ndarray]:
    weights = small_weights(name)
    write_checkpoint(folder / name, weights)
    (folder / "configuration.py").write_text("import nothing\nSR = 16000\nMTT_LABELS = ['a', 'b', 'c', 'd', 'e']\n")
    return weights


def literal_tags(weights: dict[str, np.ndarray], vgg: bool, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The network of the package on one window [187, 96], layer by layer in double precision."""

    def norm(x: np.ndarray, i: int) -> np.ndarray:
        layer = "batch_normalization" if i == 0 else f"batch_normalization_{i}"
        gamma, beta, mean, variance = (
            weights[f"{layer}/{p}"] for p in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return gamma * (x - mean) / np.sqrt(variance.astype(float) + EPSILON) + beta

    def conv(x: np.ndarray, layer: str, before: int, behind: int, sides: int = 0) -> np.ndarray:
        kernel = weights[f"{layer}/kernel"]
        padded = np.pad(x, ((before, behind), (sides, sides), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], (0, 1))  # [h, w, c, kh, kw]
        return np.maximum(np.einsum("hwckl,klco->hwo", windows, kernel, optimize=True) + weights[f"{layer}/bias"], 0)

    def dense(x: np.ndarray, layer: str) -> np.ndarray:
        return x @ weights[f"{layer}/kernel"] + weights[f"{layer}/bias"]

    x = norm(x.astype(float)[..., None], 0)
    if vgg:
        for i, (size, stride) in enumerate([((4, 1), 2), ((2, 2), 2), ((2, 2), 2), ((2, 2), 2), ((4, 4), 4)], 1):
            x = norm(conv(x, f"{i}CNN", 1, 1, 1), i)
            x = np.lib.stride_tricks.sliding_window_view(x, size, (0, 1))[::stride, ::stride].max((-1, -2))
        embedding, last = x.reshape(-1), "dense"
    else:
        front = [norm(conv(x, "conv2d", 3, 3), 1), norm(conv(x, "conv2d_1", 3, 3), 2)]
        front += [norm(conv(x, f"conv2d_{i}", (n - 1) // 2, n // 2), i + 1) for i, n in ((2, 128), (3, 64), (4, 32))]
        layers = [np.concatenate([out.max(1) for out in front], -1)]
        for i in (5, 6, 7):
            out = norm(conv(layers[-1][..., None], f"conv2d_{i}", 3, 3), i + 1)[:, 0]
            layers.append(out if i == 5 else out + layers[-1])
        joined = np.concatenate(layers, -1)
        pooled = np.stack([joined.max(0), joined.mean(0)], -1).reshape(-1)
        embedding, last = norm(np.maximum(dense(norm(pooled, 9), "dense"), 0), 10), "dense_1"
    return 1 / (1 + np.exp(-dense(embedding, last))), embedding


def literal_windows(y: np.ndarray) -> np.ndarray:
    S = librosa.feature.melspectrogram(y=y.astype(float), sr=RATE, n_fft=512, hop_length=256, n_mels=96).T
    frames = np.log10(1 + 10_000 * S)
    frames = frames if len(frames) >= 187 else np.resize(frames, (187, 96))
    return frames[: len(frames) // 187 * 187].reshape(-1, 187, 96)


@pytest.mark.parametrize("name", ["MTT_vgg", pytest.param("MTT_musicnn", marks=pytest.mark.slow)])
def test_tagger_equals_literal_numpy(tmp_path: Path, name):
    """Sounds of one and of two windows, with few channels."""
    weights = write_package(tmp_path, name)
    network = Musicnn(name, tmp_path)
    assert network.labels == ("a", "b", "c", "d", "e")
    y = 0.1 * normal(0, 2, 2 * 187 * 256) * np.array([[1], [0.1]], np.float32)
    tags, embedding = network(y)
    assert tags.shape == (2, 2, 5)
    for i, one in enumerate(y):
        for j, window in enumerate(literal_windows(one)):
            expected = literal_tags(weights, name == "MTT_vgg", window)
            assert np.abs(np.asarray(tags[i, j]) - expected[0]).max() <= 1e-5
            assert max_relative(embedding[i, j], expected[1]) <= 1e-4


def test_tagger_repeats_short_sounds_and_sets_the_level(tmp_path: Path):
    write_package(tmp_path, "MTT_vgg")
    y = 0.1 * normal(0, 1, RATE)
    windows = np.asarray(embeddings._tag_windows(y, None))
    assert windows.shape == (1, 1, 187, 96)
    assert max_relative(windows[0], literal_windows(y[0])) <= 1e-4
    level = Musicnn("MTT_vgg", tmp_path, level=-20.0)
    scaled = y * (0.1 / np.sqrt((y**2).mean()))
    expected = Musicnn("MTT_vgg", tmp_path)(scaled)
    for gain in (1, 0.01):
        assert max_relative(level(gain * y).embedding, expected.embedding) <= 1e-4
    assert np.isfinite(np.asarray(level(0 * y).embedding)).all()


def test_tagger_refuses_what_it_cannot_use(tmp_path: Path):
    with pytest.raises(ValueError, match="musicnn has no network vgg; use one of MTT_vgg"):
        Musicnn("vgg", tmp_path)  # type: ignore[arg-type]
    weights = write_package(tmp_path, "MTT_vgg")
    network = Musicnn("MTT_vgg", tmp_path)
    for y in (np.zeros(RATE), np.zeros((0, RATE)), np.zeros((2, 0))):
        with pytest.raises(ValueError, match=r"sounds \[batch, samples\]"):
            network(y)
    write_checkpoint(tmp_path / "MTT_vgg", {name: value for name, value in weights.items() if name != "3CNN/bias"})
    with pytest.raises(ValueError, match="does not hold the layers of MTT_vgg: '3CNN/bias'"):
        Musicnn("MTT_vgg", tmp_path)
    write_checkpoint(tmp_path / "MTT_vgg", weights | {"dense/kernel": normal(0, 6, 4), "dense/bias": normal(0, 4)})
    with pytest.raises(ValueError, match="has 4 tags, its labels are 5"):
        Musicnn("MTT_vgg", tmp_path)
    for text in ("MSD_LABELS = []", "MTT_LABELS = open('weights')", "MTT_LABELS = ("):
        (tmp_path / "configuration.py").write_text(text)
        with pytest.raises(ValueError, match="has no list MTT_LABELS"):
            Musicnn("MTT_vgg", tmp_path)


def test_weights_read_while_a_program_is_traced_serve_later(tmp_path: Path):
    write_package(tmp_path, "MTT_vgg")
    networks = []

    def embed(y):
        networks.append(Musicnn("MTT_vgg", tmp_path))
        return networks[0](y).embedding

    y = 0.1 * normal(0, 1, RATE)
    traced = jax.jit(embed)(y)
    assert max_relative(networks[0](y).embedding, traced) <= 1e-5


# openwakeword -------------------------------------------------------------------------------------------------------


def write_speech_graphs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A bank of 32 filters of 512 samples every 160, floored at 30 below its maximum, and one product."""
    filters, product = 1e-3 * normal(0, 32, 1, 512), normal(1, 76 * 32, 96) / 50
    mel = [
        node("Unsqueeze", ["x", "axis"], "a"),
        node("Conv", ["a", "filters"], "b", strides=[160]),
        node("Transpose", ["b"], "c", perm=[0, 2, 1]),
        node("Unsqueeze", ["c", "axis"], "d"),
        node("ReduceMax", ["d"], "e", keepdims=0),
        node("Sub", ["e", "range"], "f"),
        node("Clip", ["d", "f"], "y"),
    ]
    network = [
        node("Reshape", ["x", "flat"], "a"),
        node("MatMul", ["a", "product"], "b"),
        node("Reshape", ["b", "four"], "y"),
    ]
    ends = field(11, field(1, "x")) + field(12, field(1, "y"))
    stored = [("axis", np.array([1], "<i8")), ("filters", filters), ("range", np.array([30], "<f4"))]
    for name, nodes, tensors in (
        ("melspectrogram", mel, stored),
        (
            "embedding_model",
            network,
            [("flat", np.array([-1, 2432])), ("four", np.array([-1, 1, 1, 96])), ("product", product)],
        ),
    ):
        parts = [field(1, one) for one in nodes] + [field(5, tensor(*one)) for one in tensors]
        (folder / f"{name}.onnx").write_bytes(model(*parts, ends))
    return filters[:, 0].astype(float), product.astype(float)


def test_speech_windows_equal_literal_numpy(tmp_path: Path):
    """Each sound alone, whatever else is in the batch; one of less than a window is repeated."""
    filters, product = write_speech_graphs(tmp_path)
    network = Openwakeword(tmp_path)

    def literal(y: np.ndarray) -> np.ndarray:
        y = np.resize(y, 12_512) if len(y) < 12_512 else y
        frames = np.stack([filters @ (32768.0 * y[i : i + 512]) for i in range(0, len(y) - 511, 160)])
        frames = np.maximum(frames, frames.max() - 30) / 10 + 2
        return np.stack([frames[i : i + 76].reshape(-1) @ product for i in range(0, len(frames) - 75, 8)])

    y = normal(2, 2, 18_000) * np.array([[0.1], [0.01]], np.float32)
    found = network(y)
    assert found.shape == (2, 5, 96)
    for i in range(2):
        assert max_relative(found[i], literal(y[i])) <= 1e-4
    assert max_relative(network(y[:1, :5000])[0], literal(y[0, :5000])) <= 1e-4
    for wrong in (np.zeros(RATE), np.zeros((0, RATE)), np.zeros((2, 0))):
        with pytest.raises(ValueError, match=r"sounds \[batch, samples\]"):
            network(wrong)


def test_speech_graphs_of_other_shapes_are_refused(tmp_path: Path):
    write_speech_graphs(tmp_path)
    (tmp_path / "embedding_model.onnx").write_bytes(MODEL)
    with pytest.raises(ValueError, match="Conv of the graph cannot be computed"):
        Openwakeword(tmp_path)
    relu = model(field(1, node("Relu", ["x"], "y")), field(11, field(1, "x")), field(12, field(1, "y")))
    (tmp_path / "embedding_model.onnx").write_bytes(relu)
    with pytest.raises(ValueError, match=r"makes \[\(2, 76, 32, 1\)\] of .*, expected \(2, 1, 1, 96\)"):
        Openwakeword(tmp_path)


# The packages' own weights ------------------------------------------------------------------------------------------


def installed(package: str, name: str, version: str) -> Path:
    try:
        return package_file(package, name, version)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def sounds() -> np.ndarray:
    """Noise, a rising tone, silence and short bursts of a buzz, of 1.5 s, in steps of 16 bits."""
    t = np.arange(RATE * 3 // 2) / RATE
    buzz = 0.01 * np.sign(np.sin(2 * np.pi * 150 * t)) * (t % 0.5 < 0.2)
    y = np.stack([0.1 * normal(0, len(t)), 0.5 * np.sin(2 * np.pi * 300 * t * (1 + 0.3 * t)), 0 * t, buzz])
    return (np.round(y * 32768) / 32768).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MTT_vgg", "MTT_musicnn", "MSD_vgg", "MSD_musicnn"])
def test_musicnn_weights_give_what_literal_numpy_gives(name):
    folder = installed("musicnn", "musicnn/configuration.py", "0.1.0").parent
    weights = read_tensorflow_checkpoint(folder / name)
    network, y = Musicnn(name), sounds()[:2]
    tags, embedding = network(y)
    assert len(network.labels) == 50
    for i in range(2):
        expected = literal_tags(weights, name.endswith("vgg"), literal_windows(y[i])[0])
        assert np.abs(np.asarray(tags[i, 0]) - expected[0]).max() <= 1e-5
        assert max_relative(embedding[i, 0], expected[1]) <= 1e-4
    embedded = EMBEDDINGS[name.lower()]
    assert embedded.rate == RATE
    assert embedded.function(y).shape == (2, embedded.dimension)
    assert max_relative(embedded.function(y), embedding.mean(1)) <= 1e-6


@pytest.mark.slow
def test_openwakeword_weights_give_what_onnxruntime_gives():
    onnxruntime = pytest.importorskip("onnxruntime")
    installed("openwakeword", "models/melspectrogram.onnx", "0.4.0")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # its threads wait for one another where the machine is busy
    mel, network = (
        onnxruntime.InferenceSession(package_file("openwakeword", f"models/{name}.onnx", "0.4.0"), options)
        for name in ("melspectrogram", "embedding_model")
    )

    def reference(y: np.ndarray) -> np.ndarray:
        frames = mel.run(None, {"input": (y[None] * 32768).astype(np.float32)})[0].squeeze() / 10 + 2
        windows = np.stack([frames[i : i + 76] for i in range(0, len(frames) - 75, 8)])[..., None].astype(np.float32)
        return network.run(None, {"input_1": windows})[0].reshape(len(windows), 96).mean(0)

    y = sounds()
    found = np.asarray(EMBEDDINGS["openwakeword"].function(jnp.asarray(y)))
    assert found.shape == (4, EMBEDDINGS["openwakeword"].dimension)
    assert np.abs(found - np.stack([reference(one) for one in y])).max() <= 2e-4
    assert np.abs(np.asarray(speech_embedding(y[:1])) - found[:1]).max() <= 2e-4  # whatever else is in the batch
    short = np.asarray(speech_embedding(y[:1, :5000]))
    assert np.abs(short[0] - reference(np.resize(y[0, :5000], 12_512))).max() <= 2e-4


def test_table_names_the_built_in_embedding():
    built_in = EMBEDDINGS["log_mel"]
    y = 0.1 * normal(0, 2, 4000)
    assert built_in.rate == RATE and built_in.function(y).shape == (2, built_in.dimension)
    assert np.array_equal(built_in.function(y), log_mel_statistics(y))
