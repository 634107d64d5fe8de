"""Geometry of the report's charts: where marks go, in pixels; the template draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    """A row of dots with median and quartiles (pixels), or without if there are no values."""

    name: str
    colour: str
    y: float
    marks: tuple[Mark, ...]
    quartiles: tuple[float, float, float] | None
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


@dataclass(frozen=True, slots=True)
class Line:
    """A series of a profile: points and band as SVG coordinates, and its dots."""

    name: str
    colour: str
    points: str
    band: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """Medians over one level axis, with quartiles as a band."""

    title: str
    width: int
    height: int
    left: int
    x_ticks: tuple[tuple[float, str, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    reference: float
    lines: tuple[Line, ...]


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round values that cover low to high in about `count` equal steps."""
    span = max(high - low, 1e-9)
    raw = span / max(count - 1, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


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
    every = np.concatenate([table[column].to_numpy() for _, _, table in kept])
    if reference is not None:
        every = np.append(every, reference)
    ticks = nice_ticks(float(every.min()), float(every.max()))
    left, right, row_height = 170, 20, 54

    def place(value: float) -> float:
        return round(left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (width - left - right), 2)

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
        tuple((place(tick), f"{tick:g}") for tick in ticks),
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


def profile_chart(
    title: str, series: Sequence[tuple[str, str, list[dict[str, Any]]]], width: int = 400, height: int = 230
) -> Profile | None:
    """Lay out medians of the density inside the mask over one level axis.

    Parameters
    ----------
    title
        Words.
    series
        (name, colour, rows of `analysis.tables.profile`) of one level.
    width, height
        Pixels.

    Returns
    -------
    Profile or None
        None where there is no value at all.
    """
    kept = [
        (name, colour, [row for row in rows if row["inside_mid"] is not None])
        for name, colour, rows in series
    ]
    kept = [(name, colour, rows) for name, colour, rows in kept if rows]
    if not kept:
        return None
    values = [row[key] for _, _, rows in kept for row in rows for key in ("inside_low", "inside_high")] + [
        1.0
    ]
    ticks = nice_ticks(min(values), max(values), 5)
    left, right, top, bottom = 40, 12, 12, 30
    labels = max((rows for _, _, rows in kept), key=len)

    def across(index: int) -> float:
        return round(left + (index + 0.5) / len(labels) * (width - left - right), 2)

    def up(value: float) -> float:
        return round(top + (ticks[-1] - value) / (ticks[-1] - ticks[0]) * (height - top - bottom), 2)

    lines = tuple(_line(name, colour, rows, across, up) for name, colour, rows in kept)
    every = max(1, math.ceil(len(labels) / 8))
    x_ticks = tuple(
        (
            across(index),
            str(row["label"]) if len(str(row["label"])) < 8 else str(index + 1),
            str(row["label"]),
        )
        for index, row in enumerate(labels)
        if index % every == 0
    )
    return Profile(
        title,
        width,
        height,
        left,
        x_ticks,
        tuple((up(tick), f"{tick:g}") for tick in ticks),
        up(1.0),
        lines,
    )


def _line(
    name: str,
    colour: str,
    rows: list[dict[str, Any]],
    across: Callable[[int], float],
    up: Callable[[float], float],
) -> Line:
    """One series: its medians, and the band between its quartiles."""
    middle = [(across(index), up(row["inside_mid"])) for index, row in enumerate(rows)]
    upper = [(across(index), up(row["inside_high"])) for index, row in enumerate(rows)]
    lower = [(across(index), up(row["inside_low"])) for index, row in enumerate(rows)]
    marks = tuple(
        Mark(x, y, f"{name}, {row['label']}: {row['inside_mid']:.2f}×", "")
        for (x, y), row in zip(middle, rows, strict=True)
    )
    return Line(name, colour, _path(middle), _path([*upper, *reversed(lower)]), marks)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
