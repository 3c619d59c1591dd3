"""The checker of annotations in tests: beartype, for all functions but those that another one defines at each call."""

from collections.abc import Callable
from typing import Any

import beartype

_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # PEP 484's rule: an int is a good float


def checked(function: Callable) -> Any:
    """The function, checked; as it is where it is one within another, since making a check takes milliseconds."""
    return function if "<locals>" in getattr(function, "__qualname__", "") else _check(function)
