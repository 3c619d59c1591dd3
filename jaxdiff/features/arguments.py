"""Arguments of the functions of this package are checked here, from their annotations.

`Float[Array, "... samples"]` asks for a real array of at least one axis, which is not empty; an option of one name has
one range in all functions, and is NaN only where that is its default. What does not fit is refused in one sentence: a
wrong type or dtype with TypeError, a wrong shape or value with ValueError. NaN in an array passes through.
"""

import collections.abc
import functools
import inspect
import numbers
import reprlib
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_Function = TypeVar("_Function", bound=Callable)

_RANGES = {  # of numbers, by the names of the options; others take any finite number
    "[1, inf)": "bins_per_octave frame_length frames hop_length kernel_size lag margin max_size n_bands n_bins "
    "n_chroma n_fft n_input n_mels n_mfcc n_octaves n_thresholds order oversampling phase_period sample_rate samples "
    "size width win_length",
    "[0, inf)": "count fmin gamma largest length lifter max_transition_rate n_iter peaks",
    "(0, inf)": "alpha amin boltzmann_parameter exponent filter_scale floor fmax frame_seconds high_hz low_hz octwidth "
    "orig_sr p q sr target_sr",
    "(0, inf]": "mel_norm norm power",
    "[0, inf]": "top_db",
    "(0, 1)": "quantile resolution roll_percent rolloff",
    "[0, 1)": "momentum sparsity",
    "[0, 1]": "no_trough_prob probability switch_prob",
    "[1, 2)": "fastest",
    "[21, 200]": "stopband_db",
    "[0.01, 100]": "rate",
    "[-inf, inf]": "fill_na min_db ref threshold trough_threshold value",
}
_RANGE_OF = {name: interval for interval, names in _RANGES.items() for name in names.split()}
_WORDS = {bool: "True or False", int: "an integer", float: "a number", str: "a string", tuple: "a tuple"}
_WORDS |= {collections.abc.Callable: "a function", types.NoneType: "None"}
_CLASSES = {bool: (bool, np.bool_), int: numbers.Integral, float: numbers.Real}  # numpy's numbers count as Python's


def checked(function: _Function) -> _Function:
    """`function`, whose arguments are checked first and of which numpy's numbers become Python's."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*values, **options):
        for name, value in signature.bind(*values, **options).arguments.items():
            parameter = signature.parameters[name]
            check_argument(function.__name__, name, parameter.annotation, value, parameter.default)
        return function(*map(plain, values), **{name: plain(value) for name, value in options.items()})

    return call  # type: ignore[return-value]


def plain(value: Any) -> Any:
    """A number of numpy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def check_argument(function: str, name: str, kind: Any, value: Any, default: Any = None) -> None:
    """Refuse a `value` that does not fit the annotation `kind` of the parameter `name`."""
    if value is default:
        return
    array = array_kind(kind)
    if name == "key":
        _check_key(function, value)
    elif array is not None:
        check_array(function, name, np.float32(value) if type(value) in (int, float) else value, array)
    elif isinstance(value, str | int | float):  # others may have no hash
        _check_option(function, name, kind, value, default)
    else:
        _check_option.__wrapped__(function, name, kind, value, default)


@functools.lru_cache(maxsize=4096, typed=True)
def _check_option(function: str, name: str, kind: Any, value: Any, default: Any) -> None:
    if not _fits(value, kind):
        shown = reprlib.repr(value) if isinstance(value, str | int | float | tuple | list) else type(value).__name__
        *words, last = _words(kind)
        expected = f"{', '.join(words)} or {last}" if words else last
        choices = [part for k in (kind, *get_args(kind)) if get_origin(k) is Literal for part in get_args(k)]
        error = ValueError if type(value) in map(type, choices) else TypeError
        raise error(f"{function}: {name} must be {expected}, got {shown}")
    elif _is_number(value) and not (value != value and default != default):
        interval = _RANGE_OF.get(name, "(-inf, inf)")
        low, high = map(float, interval[1:-1].split(","))
        if not low <= value <= high or value == low and interval[0] == "(" or value == high and interval[-1] == ")":
            raise ValueError(f"{function}: {name} must lie in {interval}, got {value}")


def check_wave(y: Any, function: str) -> None:
    """Refuse what is no waveform, such as integer samples, whose full scale is unknown."""
    check_array(function, "y", y, Float[Array, "... samples"])


def check_array(function: str, name: str, value: Any, kind: Any) -> None:
    """Refuse a `value` without the dtype and the axes of the array type `kind`, or with an empty axis."""
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        raise TypeError(f"{function}: {name} must be an array, got {type(value).__name__}; use jnp.asarray")
    _check_form(function, name, kind, value.dtype, value.shape)


@functools.lru_cache(maxsize=4096)
def _check_form(function: str, name: str, kind: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    axes, own = kind.dim_str.split(), _own_axes(kind)
    known = ("float32", "float64", "complex64", "complex128", "int32", "int64")
    accepted = [dtype for dtype in known if dtype in kind.dtypes]
    if str(dtype) not in accepted:
        wave = own == ["samples"]
        expected = ("floating point in [-1, 1], " if wave else "") + " or ".join(accepted)
        advice = "divide by full scale" if wave else "convert it"
        raise TypeError(f"{function}: {name} must be {expected}, got {dtype}; {advice} first")
    fixed = len([axis for axis in axes if axis != "..." and axis[0] != "*"])
    fits = all(size == int(axis) for axis, size in zip(own[::-1], shape[::-1], strict=False) if axis.isdigit())
    if len(shape) < fixed or len(shape) > fixed == len(axes) or not fits:
        raise ValueError(f"{function}: {name} must have the axes [{' '.join(axes)}], got the shape {shape}")
    empty = [axis for axis, size in zip(own[::-1], shape[::-1], strict=False) if size == 0]
    if empty:
        raise ValueError(f"{function}: {name} has 0 {empty[0]}, at least 1 is needed")


def check_together(function: str, arrays: dict[str, tuple[Any, Any]]) -> None:
    """Refuse checked arrays, given as (kind, value), that differ in an axis of one name or in their leading axes."""
    lengths, leads = {}, []
    for kind, value in arrays.values():
        own, shape = _own_axes(kind), np.shape(value)
        for axis, length in zip(own, shape[len(shape) - len(own) :], strict=True):
            if lengths.setdefault(axis, length) != length:
                names = " and ".join(name for name, (kind, _) in arrays.items() if axis in _own_axes(kind))
                raise ValueError(f"{function}: {names} must have equally many {axis}, got {lengths[axis]} and {length}")
        leads.append(shape[: len(shape) - len(own)] if kind.dim_str.startswith("...") else ())
    try:
        np.broadcast_shapes(*leads)
    except ValueError:
        raise ValueError(f"{function}: the leading axes {leads} of {' and '.join(arrays)} must broadcast") from None


def _own_axes(kind: Any) -> list[str]:
    """The named axes of an array type that are not leading ones."""
    axes = kind.dim_str.split()
    return axes[axes.index("...") + 1 :] if "..." in axes else [axis for axis in axes if axis[0] != "*"]


@functools.cache
def array_kind(annotation: Any) -> Any:
    """The array type in an annotation such as `Float[Array, "... samples"] | None`; None if there is none."""
    return next((kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "dim_str")), None)


def _check_key(function: str, key: Any) -> None:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and not (isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32):
        raise TypeError(f"{function}: key must be a random key, got {type(key).__name__}; use jax.random.key(0)")
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"{function}: key must be one random key, got an array of shape {key.shape}")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _fits(value: Any, kind: Any) -> bool:
    """Whether `value` is of the annotated type."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str | int) and value in parts
    if origin is tuple:
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is not None:
        return isinstance(value, origin)
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, _CLASSES.get(kind, kind))


def _words(kind: Any) -> list[str]:
    """The words for what an annotation accepts."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return [word for part in parts for word in _words(part)]
    if origin is Literal:
        return [repr(part) for part in parts]
    return [_WORDS.get(origin or kind) or kind.__name__]
