"""Texts that select: indices of steps, heads and layers, patches of a map, the size of a map.

Indices are written ``3``, ``0,4`` or as a slice ``0:10``. They select in the order given, each once, negative
ones from the end: see :func:`i2am.storage.index_selection.select_indices`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import PlainValidator

from i2am.storage.errors import ConfigError

Each = TypeVar("Each", int, str | int)

_SLICE = re.compile(r"-?\d*:-?\d*(:-?\d*)?")
_EXPECTED = "indices such as 3 or 0,4, or a slice such as 0:10 or ::2"


def _indices(value: Any) -> list[int] | str:
    """Indices, or the text of a slice, which JSON can hold; ValueError for anything else."""
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


def _layers(value: Any) -> list[str | int] | str:
    """Names, patterns and numbers, or the text of a slice; ValueError for anything else."""
    if isinstance(value, str):
        return str(_indices(value)) if _SLICE.fullmatch(value.replace(" ", "")) else [value]
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, list) or not value or any(type(v) not in (int, str) or v == "" for v in value):
        raise ValueError("layer names or patterns, numbers in the model's order, or a slice such as 0:10")
    return list(value)


IndexField: TypeAlias = Annotated[list[int] | str, PlainValidator(_indices)]
LayersField: TypeAlias = Annotated[list[str | int] | str, PlainValidator(_layers)]


def selected(selection: list[Each] | str | None) -> list[Each] | slice | None:
    """What a field of a configuration selects, as an index of its axis."""
    if isinstance(selection, str):
        return slice(*(int(part) if part else None for part in selection.split(":")))
    return selection


def parse_indices(option: str, text: str) -> list[int] | slice | None:
    """Indices or a slice, such as ``0,4`` or ``0:10``; `option` names it in the error."""
    try:
        return selected(_indices(text))
    except ValueError as error:
        raise ConfigError(option, expected=str(error), got=repr(text)) from None


def parse_region(option: str, text: str) -> tuple[int, ...] | list[tuple[int, ...]] | str:
    """Patch ``12,8``, box ``2,3,9,12`` (top left, bottom right), ``1,2;1,3``, a mask's name, ``tokens 3``."""
    if re.fullmatch(r"[A-Za-z_]\w*(-\d_mask)?|tokens? \d+(,\d+)*", text):
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
        option,
        expected="row,column such as 12,8, a box 2,3,9,12, patches 12,8;12,9, the name of a mask image, or "
        "tokens 3,5",
        got=repr(text),
    )


def parse_pixels(option: str, text: str) -> list[tuple[int, ...]]:
    """Pixels ``40,52`` or ``40,52;41,52``, each x,y from the upper left corner."""
    if not re.fullmatch(r"\d{1,6},\d{1,6}(;\d{1,6},\d{1,6})*", text):
        raise ConfigError(option, expected="x,y such as 40,52, or several: 40,52;41,52", got=repr(text))
    return [tuple(int(number) for number in part.split(",")) for part in text.split(";")]


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Rows and columns from ``64x48``, or one number for both."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not match or not int(match[1]) or match[2] == "0":
        raise ConfigError(
            option, expected="ROWSxCOLUMNS such as 64x48, or one number for both", got=repr(text)
        )
    return int(match[1]), int(match[2] or match[1])
