"""Tables whose cells are coloured by their value, with a colour bar: layer by head, sample by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from i2am.analysis.drawing.colours import palette, position
from i2am.analysis.report.svg.scale_bar import Scale, css, density_scale, value_scale

DENSE = 16
"""Columns up to which a cell has room for its value."""

SEQUENTIAL = "viridis"
"""matplotlib's name of the colour map of values that have no middle."""


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A cell: CSS colours of its ground and its words, and its value in words, or "–"."""

    colour: str
    ink: str
    words: str


@dataclass(frozen=True, slots=True)
class HeatTable:
    """Rows and columns of coloured cells; `dense` where they are too many for words in the cells."""

    title: str
    unit: str
    corner: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    scale: Scale
    dense: bool


def heat_table(
    title: str,
    unit: str,
    corner: str,
    columns: Sequence[tuple[str, str]],
    rows: Sequence[str],
    values: ArrayLike,
    *,
    end: float | None = None,
) -> HeatTable | None:
    """Colour a table.

    Parameters
    ----------
    title, unit, corner
        Words: of the table, of its values, and over the names of its rows.
    columns
        (short, whole) words.
    rows
        Words.
    values
        (row, column); NaN where there is none.
    end
        End of the diverging scale of densities to colour by; None to colour from the least to the largest
        value.

    Returns
    -------
    HeatTable or None
        None where there is no value at all.
    """
    table = np.asarray(values, dtype=np.float64)
    known = table[np.isfinite(table)]
    if not known.size:
        return None
    if end is not None:
        places, scale, colours = position(table, end), density_scale(end), palette()
    else:
        low, high = float(known.min()), float(known.max())
        places = np.clip((table - low) / (high - low), 0, 1) if high > low else np.full_like(table, 0.5)
        colours = _sequential()
        scale = value_scale(low, high, colours)
    cells = tuple(
        (name, tuple(_cell(value, place, colours) for value, place in zip(own, at, strict=True)))
        for name, own, at in zip(rows, table, places, strict=True)
    )
    return HeatTable(title, unit, corner, tuple(columns), cells, scale, len(columns) > DENSE)


def _cell(value: float, place: float, colours: NDArray[np.uint8]) -> HeatCell:
    if not np.isfinite(value):
        return HeatCell("transparent", "inherit", "–")
    colour = colours[round(float(place) * (len(colours) - 1))]
    bright = float(colour @ np.array([0.299, 0.587, 0.114])) > 140
    return HeatCell(css(colour), "#111" if bright else "#fff", f"{value:.3g}")


def _sequential() -> NDArray[np.uint8]:
    from matplotlib import colormaps

    return np.asarray(np.round(colormaps[SEQUENTIAL](np.linspace(0, 1, 256))[:, :3] * 255), dtype=np.uint8)
