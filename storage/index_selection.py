"""Indices of an axis, selected the same way wherever steps, heads or layers are chosen by number."""

from __future__ import annotations

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


def _each(kind: str, wanted: Any) -> list[Any]:
    if hasattr(wanted, "__index__") and not hasattr(wanted, "__len__"):  # an array has both
        return [wanted]
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise _not_an_index(kind, wanted)
    return list(wanted)


def _index(kind: str, value: Any, count: int) -> int:
    if type(value).__name__ in ("bool", "bool_") or not hasattr(value, "__index__"):
        raise _not_an_index(kind, value)
    number: int = value.__index__()
    if not -count <= number < count:
        every = [str(n) for n in range(count)]
        raise UnknownName(kind, number, every, remedy=f"there are {count}, from 0 to {count - 1}")
    return number % count


def _not_an_index(kind: str, value: object) -> InputError:
    return InputError(f"{kind}s", expected="an index, a slice, or several indices", got=repr(value))


def _as_written(wanted: object) -> str:
    if not isinstance(wanted, slice):
        return "none"
    ends = [wanted.start, wanted.stop, *([wanted.step] if wanted.step is not None else [])]
    return ":".join("" if end is None else str(end) for end in ends)
