"""Indices of an axis, selected the same way wherever steps, heads or layers are chosen by number."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, TypeAlias

from i2am.storage.errors import InputError, UnknownName

Indices: TypeAlias = int | slice | Iterable[int] | None
"""An index, a slice or several indices, 0-based; negative ones count from the end; None is all."""


def select_indices(kind: str, wanted: Indices, count: int) -> tuple[int, ...]:
    """Return the indices below `count` that `wanted` names: in the order given, each once, at least one.

    Raises `UnknownName` for an index out of range, and `InputError` for what is no index (booleans too: a
    mask of them would be read as 0 and 1) or where nothing is selected.
    """
    if wanted is None:
        return tuple(range(count))
    if isinstance(wanted, slice):
        found = list(range(count)[wanted])
    else:
        found = [_index(kind, each, count) for each in _each(kind, wanted)]
    if not found:
        raise InputError(
            f"{kind}s selects nothing",
            expected=f"at least one {kind} of {count}",
            got=_as_written(wanted),
            remedy="a slice runs from its first index to the one before its last",
        )
    return tuple(dict.fromkeys(found))


def listed(kind: str, wanted: Any) -> list[Any] | slice | None:
    """A selection that can be read more than once, with Python's own integers; the rest as it is.

    Raises `InputError` for what is no selection of an axis, whatever its length.
    """
    if wanted is None:
        return None
    if isinstance(wanted, slice):
        ends = (wanted.start, wanted.stop, wanted.step)
        return slice(*(None if end is None else _integer(kind, end) for end in ends))
    return [each if isinstance(each, str) else _integer(kind, each) for each in _each(kind, wanted)]


def listed_indices(kind: str, wanted: Any) -> list[int] | slice | None:
    """As `listed`, of indices alone."""
    each = listed(kind, wanted)
    for value in each if isinstance(each, list) else ():
        _integer(kind, value)
    return each


def _each(kind: str, wanted: Any) -> list[Any]:
    if hasattr(wanted, "__index__") and not hasattr(wanted, "__len__"):  # an array has both
        return [wanted]
    try:
        if not isinstance(wanted, str):
            return list(wanted)
    except TypeError:  # no iterable, or a tensor without axes
        pass
    raise _not_an_index(kind, wanted)


def _index(kind: str, value: Any, count: int) -> int:
    number = _integer(kind, value)
    if not -count <= number < count:
        every = [str(n) for n in range(count)]
        raise UnknownName(kind, number, every, remedy=f"there are {count}, from 0 to {count - 1}")
    return number % count


def _integer(kind: str, value: Any) -> int:
    if type(value).__name__ in ("bool", "bool_") or not hasattr(value, "__index__"):
        raise _not_an_index(kind, value)
    try:
        return operator.index(value)
    except TypeError:  # an array of several, or a float tensor
        raise _not_an_index(kind, value) from None


def _not_an_index(kind: str, value: object) -> InputError:
    remedy = None
    if isinstance(value, str) and ":" in value:
        remedy = f"write slice({', '.join(part or 'None' for part in value[:60].split(':'))})"
    expected = "an index, a slice, or several indices"
    return InputError(f"{kind}s", expected=expected, got=repr(value)[:200], remedy=remedy)


def _as_written(wanted: object) -> str:
    if not isinstance(wanted, slice):
        return "none"
    ends = [wanted.start, wanted.stop, *([wanted.step] if wanted.step is not None else [])]
    return ":".join("" if end is None else str(end) for end in ends)
