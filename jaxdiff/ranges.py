"""Ranges of numbers, said beside their defaults (`layers: Count = 8`) and checked where a value comes from outside."""

import functools
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval

Count = Annotated[int, Ge(1)]
Index = Annotated[int, Ge(0)]  # also an interval of steps, of which 0 is never
Positive = Annotated[float, Gt(0)]
Weight = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Decay = Annotated[float, Interval(ge=0, lt=1)]
Rate = Annotated[int, Interval(ge=100, le=768_000)]  # Hz
Seed = Annotated[int, Interval(ge=0, lt=2**32)]  # what random keys, numpy's too, tell apart

_BOUNDS = {
    "ge": ("at least", lambda value, bound: value >= bound),
    "gt": ("above", lambda value, bound: value > bound),
    "le": ("at most", lambda value, bound: value <= bound),
    "lt": ("below", lambda value, bound: value < bound),
}


def check(name: str, hint: Any, value: Any) -> None:
    """Raise ValueError where a number is outside the range of its type hint; only a range that says so has infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    hint = next((h for h in typing.get_args(hint) if typing.get_origin(h) is Annotated), hint)  # of `Count | None`
    ranges = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
    bounds = {end: bound for r in ranges for end in _BOUNDS if (bound := getattr(r, end, None)) is not None}
    inside = all(_BOUNDS[end][1](value, bound) for end, bound in bounds.items())
    if not inside or not math.isfinite(value) and math.inf not in bounds.values():
        words = " and ".join(f"{_BOUNDS[end][0]} {bound}" for end, bound in bounds.items() if bound != math.inf)
        raise ValueError(f"{name}: expected {words or 'a finite number'}, got {value}")


@functools.cache
def _hints(part: type) -> dict[str, Any]:
    return typing.get_type_hints(part, include_extras=True)


def check_fields(part: Any, say: Callable[[str], str] = str) -> None:
    """`check` for every field of a dataclass, whose name `say` turns into the one that is said."""
    for name, hint in _hints(type(part)).items():
        check(say(name), hint, getattr(part, name, None))
