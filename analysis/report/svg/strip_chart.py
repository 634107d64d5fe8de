"""Geometry of the report's charts: where marks go, in pixels; the template draws them as inline SVG.

Rows of dots over samples are here; lines over steps in `line_chart`, intervals by row in `range_chart`,
coloured tables in `heat_table`. `templates/macros.html.j2` has a macro for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl


@dataclass(frozen=True, slots=True)
class Mark:
    """A dot: its place (pixels), its value in words, and the sample it stands for."""

    x: float
    y: float
    words: str
    sample: str


@dataclass(frozen=True, slots=True)
class Strip:
    """A row of dots with median and quartiles (pixels)."""

    name: str
    colour: str
    y: float
    marks: tuple[Mark, ...]
    quartiles: tuple[float, float, float]
    median: str


@dataclass(frozen=True, slots=True)
class StripChart:
    """Rows of dots over one axis; `reference` marks a value (pixels) or is None."""

    title: str
    unit: str
    width: int
    height: int
    left: int
    ticks: tuple[tuple[float, str], ...]
    reference: float | None
    strips: tuple[Strip, ...]


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values that cover low to high in about `count` equal steps."""
    span = max(high - low, 1e-9)
    raw = span / max(count - 1, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def axis(
    values: Sequence[float], reference: float | None, start: float, end: float, count: int = 6
) -> tuple[Callable[[float], float], tuple[tuple[float, str], ...]]:
    """Place values on an axis of pixels.

    Parameters
    ----------
    values
        What it must hold, finite; at least one.
    reference
        A value that it must hold too, or None.
    start, end
        Pixels of its least and its largest tick; start may be the larger, for an axis that goes up.
    count
        Ticks, about.

    Returns
    -------
    callable, tuple
        Value to pixel, and (pixel, words) of the ticks.
    """
    every = [*values, *([] if reference is None else [reference])]
    ticks = nice_ticks(min(every), max(every), count)
    span = ticks[-1] - ticks[0] or 1.0

    def place(value: float) -> float:
        return round(start + (value - ticks[0]) / span * (end - start), 2)

    return place, tuple((place(tick), f"{tick:g}") for tick in ticks)


def strip_chart(
    title: str,
    unit: str,
    rows: Sequence[tuple[str, str, pl.DataFrame]],
    column: str,
    reference: float | None = None,
    width: int = 620,
) -> StripChart | None:
    """Lay out a column of a table as rows of dots.

    Parameters
    ----------
    title, unit
        Words.
    rows
        (name, colour, table with the columns sample and `column`) from top to bottom.
    column
        What to show.
    reference
        A value to mark.
    width
        Pixels.

    Returns
    -------
    StripChart or None
        None where there is no value at all.
    """
    kept = [(name, colour, table.drop_nulls(column)) for name, colour, table in rows]
    kept = [(name, colour, table) for name, colour, table in kept if table.height]
    if not kept:
        return None
    every = np.concatenate([table[column].to_numpy() for _, _, table in kept]).tolist()
    left, right, row_height = 170, 20, 54
    place, ticks = axis(every, reference, left, width - right)
    strips = tuple(
        _strip(name, colour, table.sort(column), column, 20.0 + row_height * number, place)
        for number, (name, colour, table) in enumerate(kept)
    )
    return StripChart(
        title,
        unit,
        width,
        round(24 + row_height * len(kept) + 20),
        left,
        ticks,
        None if reference is None else place(reference),
        strips,
    )


def _strip(
    name: str, colour: str, ordered: pl.DataFrame, column: str, y: float, place: Callable[[float], float]
) -> Strip:
    """One row of dots; neighbours in value are set apart in height."""
    values = ordered[column].to_numpy()
    marks = tuple(
        Mark(
            place(value), y + (-1, 1)[index % 2] * (index % 4 // 2 + index % 2) * 3.5, f"{value:.3g}", sample
        )
        for index, (value, sample) in enumerate(zip(ordered[column], ordered["sample"], strict=True))
    )
    low, middle, high = (float(np.quantile(values, q)) for q in (0.25, 0.5, 0.75))
    return Strip(name, colour, y, marks, (place(low), place(middle), place(high)), f"{middle:.2f}")
