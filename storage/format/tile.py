"""`Tile`: where the patches of a layer lie, when a large picture is denoised in overlapping pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

from i2am.storage.errors import InputError

MAX_CANVAS = 1 << 24
"""Cells of a canvas: a picture of 32,768 pixels a side has as many."""


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """A rectangle on a canvas, in units of the denoiser's input latents.

    Parameters
    ----------
    top, left : int
        Its first row and column.
    rows, columns : int
        Its size.
    canvas_rows, canvas_columns : int
        Size of the whole.
    """

    top: int
    left: int
    rows: int
    columns: int
    canvas_rows: int
    canvas_columns: int

    def __post_init__(self) -> None:
        """Refuse what is no rectangle inside the canvas."""
        for field in fields(self):
            number = getattr(self, field.name)
            if hasattr(number, "__index__") and not isinstance(number, bool):
                object.__setattr__(self, field.name, int(number.__index__()))
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in astuple(self))
        if not whole or not (
            0 <= self.top <= self.top + self.rows <= self.canvas_rows
            and 0 <= self.left <= self.left + self.columns <= self.canvas_columns
            and min(self.rows, self.columns) > 0
            and self.canvas_rows * self.canvas_columns <= MAX_CANVAS
        ):
            raise InputError(
                "tile",
                expected="top, left, rows, columns, canvas rows and columns: a rectangle inside its canvas",
                got=repr(astuple(self)),
            )

    def to_json(self) -> list[int]:
        """Return the six numbers, in the order of the fields."""
        return list(astuple(self))

    @classmethod
    def read(cls, value: Tile | Sequence[int] | None) -> Tile | None:
        """Return the tile of a `value`: a tile, its six numbers, or None. Raises InputError otherwise."""
        if value is None or isinstance(value, Tile):
            return value
        if not isinstance(value, (list, tuple)) or len(value) != 6:
            raise InputError("tile", expected="six integers, or None", got=repr(value))
        return cls(*value)
