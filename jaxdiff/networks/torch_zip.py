"""Reads what PyTorch's `torch.save` wrote, without PyTorch and without executing the pickle inside.

The file is a zip of `NAME/data.pkl`, a pickle of the object with a reference for each tensor, and `NAME/data/KEY`, the
raw storages. A pickle is a program for a stack machine; the machine here knows containers, numbers, strings and the
globals that a tensor needs, and refuses every other instruction, so no name is imported and nothing is called.
"""

import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_DTYPES = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2", "Bool": "?"}
_STORAGES = {f"torch {name}Storage": np.dtype(code) for name, code in _DTYPES.items()}
_CALLS = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_VALUES = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")


class _Global(NamedTuple):
    name: str


class _Tensor(NamedTuple):
    key: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_zip(path: str | Path, *, only: str | None = None, limit_bytes: int = 1 << 30) -> Any:
    """The saved object, tensors as NumPy arrays; with `only`, the entry of that name of a saved dict.

    Tensors outside `only` are not read. Raises ValueError for a file of another format, a compressed or cut one, one
    that names anything but containers and tensors, or tensors that claim more than `limit_bytes` in all.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            packed = [info.filename for info in files.values() if info.compress_type != zipfile.ZIP_STORED]
            if "data.pkl" not in files or packed:
                raise ValueError(f"{path} is not a file of torch.save: expected an uncompressed zip with a data.pkl")
            if files["data.pkl"].file_size > 1 << 24:
                raise ValueError(f"{path} holds a data.pkl of over 16 MiB; save the model's state_dict alone")
            if "byteorder" in files and archive.read(files["byteorder"]) != b"little":
                raise ValueError(f"{path} was saved on a big-endian machine; save it again on a little-endian one")
            tree = _unpickled(archive.read(files["data.pkl"]), path)
            tree, budget = tree[only] if isinstance(tree, dict) and only in tree else tree, [limit_bytes]
            return _filled(tree, lambda tensor: _read(archive, files, tensor, budget, path), 0)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a file of torch.save ({error}); files before PyTorch 1.6 are not") from None


def _unpickled(program: bytes, path) -> Any:
    """Runs the stack machine; containers, numbers, strings and `_Tensor` references come out."""
    stack, memo = [], {}

    def since_mark() -> list:
        at = len(stack) - 1 - next(i for i, item in enumerate(reversed(stack)) if item is _MARK)
        _, *items = stack[at:]
        del stack[at:]
        return items

    try:
        for opcode, argument, _ in pickletools.genops(program):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case name if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case name if name in _VALUES:
                    stack.append(argument)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "APPEND" | "APPENDS":
                    items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                    stack[-1].extend(items)
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    stack[-1][key] = value
                case "SETITEMS":
                    items = since_mark()
                    stack[-1].update(zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    if argument not in _CALLS and argument not in _STORAGES:
                        name = str(argument).replace(" ", ".")
                        raise ValueError(f"{path} names {name}, which no tensor needs; refused")
                    stack.append(_Global(argument))
                case "BINPERSID":
                    stack.append(_storage(stack.pop()))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(_call(function, arguments))
                case "BUILD":  # the attributes of an OrderedDict: a state_dict's version numbers
                    stack.pop()
                case name:
                    raise ValueError(f"{path} holds the pickle instruction {name}, which no tensor needs; refused")
    except (LookupError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise ValueError(f"{path} holds a pickle that does not describe tensors: {error!r}") from None
    raise ValueError(f"{path} holds a pickle without an end")


def _storage(reference: tuple) -> tuple[str, np.dtype, int]:
    kind, dtype, key, _, count = reference
    if kind != "storage" or not isinstance(dtype, _Global) or not isinstance(key, str) or not isinstance(count, int):
        raise TypeError(f"storage {reference}")
    return key, _STORAGES[dtype.name], count


def _call(function: _Global, arguments: tuple) -> Any:
    if function.name == "collections OrderedDict" and arguments == ():
        return {}
    if function.name == "torch._utils _rebuild_tensor_v2":
        (key, dtype, count), offset, shape, strides = arguments[:4]
        sizes = (offset, *shape, *strides)
        if not all(type(n) is int and n >= 0 for n in sizes) or len(shape) != len(strides):
            raise TypeError(f"tensor {arguments}")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if math.prod(shape) > count or (math.prod(shape) > 0 and last >= count):
            raise TypeError(f"tensor of shape {shape} in a storage of {count} numbers")
        return _Tensor(key, dtype, offset, tuple(shape), tuple(strides))
    if function.name == "torch._utils _rebuild_parameter" and isinstance(arguments[0], _Tensor):
        return arguments[0]
    raise TypeError(f"call of {function.name}{arguments}")


def _filled(tree: Any, read, depth: int) -> Any:
    if depth > 8:
        raise ValueError("a saved object nested over 8 deep; save the model's state_dict alone")
    if isinstance(tree, _Tensor):
        return read(tree)
    if isinstance(tree, dict):
        return {key: _filled(value, read, depth + 1) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_filled(value, read, depth + 1) for value in tree]
    return tree


def _read(archive: zipfile.ZipFile, files: dict, tensor: _Tensor, budget: list[int], path) -> np.ndarray:
    if (info := files.get(f"data/{tensor.key}")) is None:
        raise ValueError(f"{path} lacks the storage {tensor.key}; it is cut or not a file of torch.save")
    budget[0] -= info.file_size
    if budget[0] < 0:
        raise ValueError(f"{path} holds more tensor bytes than the limit; raise limit_bytes if you trust it")
    size, item = info.file_size, tensor.dtype.itemsize
    needed = tensor.offset + 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if size % item or (math.prod(tensor.shape) and needed * item > size):
        raise ValueError(f"{path}: storage {tensor.key} has {size} bytes, fewer than its tensor needs; it is cut")
    flat = np.frombuffer(archive.read(info), tensor.dtype)[tensor.offset :]
    strides = tuple(s * item for s in tensor.strides)
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False).copy()
