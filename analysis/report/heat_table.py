"""Tables whose cells are coloured by their value, with a colour bar: sample by layer, head or steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from i2am.analysis.drawing.colours import palette, position
from i2am.analysis.drawing.text import density_ticks
from i2am.analysis.report.scale_bar import ScaleBar, css, scale_bar

DENSE = 16
"""Columns up to which a cell has room for its value."""


@dataclass(frozen=True, slots=True)
class HeatTable:
    """Columns (short, full), and rows (name, cells) of (CSS background, CSS text colour, value in words)."""

    title: str
    unit: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    scale: ScaleBar
    dense: bool  # too many columns for words in the cells


def heat_table(
    title: str,
    unit: str,
    columns: Sequence[tuple[str, str]],
    rows: Sequence[str],
    values: ArrayLike,
    *,
    end: float | None = None,
) -> HeatTable | None:
    """Colour (row, column) densities on the scale that ends at `end`; None colours from least to largest."""
    table = np.asarray(values, dtype=np.float64)
    known = table[np.isfinite(table)]
    if not known.size:
        return None
    if end is not None:
        places, colours, ticks = position(table, end), palette(), density_ticks(end)
    else:
        low, high = float(known.min()), float(known.max())
        places = (table - low) / (high - low) if high > low else np.full_like(table, 0.5)
        colours = _viridis()
        ticks = [(place, f"{low + place * (high - low):.3g}") for place in (0.0, 0.5, 1.0)]
    cells = tuple(
        (name, tuple(_cell(value, place, colours) for value, place in zip(own, at, strict=True)))
        for name, own, at in zip(rows, table, places, strict=True)
    )
    return HeatTable(title, unit, tuple(columns), cells, scale_bar(colours, ticks), len(columns) > DENSE)


def _cell(value: float, place: float, colours: NDArray[np.uint8]) -> tuple[str, str, str]:
    if not np.isfinite(value):
        return "transparent", "inherit", "–"
    colour = colours[round(float(place) * (len(colours) - 1))]
    bright = float(colour @ np.array([0.299, 0.587, 0.114])) > 140
    return css(colour), "#111" if bright else "#fff", f"{value:.3g}"


def _viridis() -> NDArray[np.uint8]:
    from matplotlib import colormaps

    return np.asarray(np.round(colormaps["viridis"](np.linspace(0, 1, 256))[:, :3] * 255), dtype=np.uint8)
