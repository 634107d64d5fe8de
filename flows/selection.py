"""Selections of steps, heads and positions as users write them, in a file or on the command line."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator

from storage.errors import ConfigError

_SLICE = re.compile(r"-?\d*:-?\d*(:-?\d*)?")
_EXPECTED = "indices such as 3 or 0,4, or a slice such as 0:10 or ::2"


def _checked(value: Any) -> list[int] | str:
    """Read ``3``, ``[0, 4]``, ``"0,4"`` or a slice such as ``"0:10"``; give a list of ints or the slice's text."""
    if isinstance(value, str) and _SLICE.fullmatch(text := value.replace(" ", "")):
        if text.endswith(":0") and text.count(":") == 2:
            raise ValueError(_EXPECTED + " with a step other than 0")
        return text
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        numbers = [int(part) for part in parts if not isinstance(part, (bool, float))]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or len(numbers) != len(parts):
        raise ValueError(_EXPECTED)
    return numbers


Selection: TypeAlias = Annotated[list[int] | str, PlainValidator(_checked)]
"""Indices, or a slice as text; a pydantic field type."""


def selected(selection: list[int] | str | None) -> list[int] | slice | None:
    """Turn a checked selection into what indexes an axis.

    Parameters
    ----------
    selection
        A checked ``Selection``; None selects everything.

    Returns
    -------
    list of int, slice or None
        The index.
    """
    if isinstance(selection, str):
        return slice(*(int(part) if part else None for part in selection.split(":")))
    return selection


def from_option(name: str, text: str | None) -> list[int] | slice | None:
    """Read a selection given on the command line.

    Parameters
    ----------
    name
        The option, for the error: ``--steps``.
    text
        What the user wrote; None where the option is absent.

    Returns
    -------
    list of int, slice or None
        The index.

    Raises
    ------
    ConfigError
        If the text is no selection.
    """
    if text is None:
        return None
    try:
        return selected(_checked(text))
    except ValueError as error:
        raise ConfigError(name, expected=str(error), got=repr(text)) from None


def position(name: str, text: str) -> tuple[int, int]:
    """Read ``row,column`` given on the command line.

    Parameters
    ----------
    name
        The option, for the error: ``--at``.
    text
        What the user wrote.

    Returns
    -------
    tuple of int
        Row and column, neither below 0.

    Raises
    ------
    ConfigError
        If the text is no pair of indices.
    """
    match = re.fullmatch(r"\s*(\d+)\s*[,x]\s*(\d+)\s*", text)
    if not match:
        raise ConfigError(name, expected="row,column such as 12,8", got=repr(text))
    return int(match[1]), int(match[2])
