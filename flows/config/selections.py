"""Selections of steps, heads and positions as users write them, in a file or on the command line."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator

from i2am.storage.errors import ConfigError

_SLICE = re.compile(r"-?\d*:-?\d*(:-?\d*)?")
_EXPECTED = "indices such as 3 or 0,4, or a slice such as 0:10 or ::2"


def _checked(value: Any) -> list[int] | str:
    """Read ``3``, ``[0, 4]``, ``"0,4"`` or a slice such as ``"0:10"``; give indices or the slice's text."""
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


def _checked_layers(value: Any) -> list[str | int] | str:
    """Read names and patterns, numbers, or a slice such as ``"0:10"``."""
    if isinstance(value, str):
        return str(_checked(value)) if _SLICE.fullmatch(value.replace(" ", "")) else [value]
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    named = isinstance(value, list) and all(type(each) in (int, str) and each != "" for each in value)
    if not named or not value:
        raise ValueError("layer names or patterns, numbers in the model's order, or a slice such as 0:10")
    return list(value)


Layers: TypeAlias = Annotated[list[str | int] | str, PlainValidator(_checked_layers)]
"""Layer names, patterns and numbers, or a slice as text; a pydantic field type."""


def selected_layers(layers: list[str | int] | str | None) -> list[str | int] | slice | None:
    """Turn checked ``Layers`` into what :func:`i2am.pipeline.capture.capture` takes.

    Parameters
    ----------
    layers
        A checked ``Layers``; None selects everything.

    Returns
    -------
    list, slice or None
        Names and numbers, or a slice.
    """
    if isinstance(layers, str):
        return slice(*(int(part) if part else None for part in layers.split(":")))
    return layers


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


Region: TypeAlias = tuple[int, ...] | list[tuple[int, ...]] | str
"""(row, column), (top, left, bottom, right), a list of patches, or the name of a mask image."""


def region(name: str, text: str) -> Region:
    """Read the patches that a specific map is about, as given on the command line.

    Parameters
    ----------
    name
        The option, for the error: ``--at``.
    text
        ``12,8`` a patch; ``2,3,9,12`` a box; ``12,8;12,9`` patches; a word: the name of a mask image of the
        run.

    Returns
    -------
    tuple of int, list of tuple, or str
        The region.

    Raises
    ------
    ConfigError
        If the text is none of these.
    """
    if re.fullmatch(r"[A-Za-z_]\w*", text):
        return text
    try:
        patches = [tuple(int(number) for number in part.split(",")) for part in text.split(";")]
    except ValueError:
        patches = []
    if len(patches) == 1 and len(patches[0]) in (2, 4):
        return patches[0]
    if len(patches) > 1 and all(len(patch) == 2 for patch in patches):
        return patches
    raise ConfigError(
        name,
        expected="row,column such as 12,8, a box 2,3,9,12, patches 12,8;12,9, or the name of a mask image",
        got=repr(text),
    )


def size(name: str, text: str | None) -> tuple[int, int] | None:
    """Read ``ROWSxCOLUMNS`` or one number for both, as given on the command line.

    Parameters
    ----------
    name
        The option, for the error: ``--size``.
    text
        What the user wrote; None where the option is absent.

    Returns
    -------
    tuple of int or None
        Rows and columns.

    Raises
    ------
    ConfigError
        If the text is no size.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not match or not int(match[1]) or match[2] == "0":
        raise ConfigError(name, expected="ROWSxCOLUMNS such as 64x48, or one number for both", got=repr(text))
    return int(match[1]), int(match[2] or match[1])
