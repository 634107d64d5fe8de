"""Lines over one axis with a band around each: medians over steps, heads or layers and their quartiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.report.svg.strip_chart import Mark, axis
from i2am.analysis.scores.series import Series

LABELS = 8
"""Labels along the axis, about, at most; all are in the words of the dots."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series: lines and bands as SVG coordinates, broken where a value is missing, and its dots."""

    name: str
    colour: str
    lines: tuple[str, ...]
    bands: tuple[str, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines over one axis; `reference` marks a value (pixels) or is None."""

    title: str
    unit: str
    width: int
    height: int
    left: int
    x_ticks: tuple[tuple[float, str, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    reference: float | None
    lines: tuple[Line, ...]


def line_chart(
    title: str,
    unit: str,
    labels: Sequence[str],
    series: Sequence[Series],
    reference: float | None = None,
    *,
    sign: str = "",
    size: tuple[int, int] = (400, 230),
) -> LineChart | None:
    """Lay out series over labels.

    Parameters
    ----------
    title, unit
        Words.
    labels
        What stands along the axis, from left to right.
    series
        Lines, one behind the other.
    reference
        A value to mark.
    sign
        Behind a value in words.
    size
        (width, height) in pixels.

    Returns
    -------
    LineChart or None
        None where there is no value at all.
    """
    values = [float(value) for one in series for value in one.values.ravel() if math.isfinite(value)]
    if not values:
        return None
    width, height = size
    left, right, top, bottom = 40, 12, 12, 30
    up, y_ticks = axis(values, reference, height - bottom, top, 5)

    def across(number: int) -> float:
        return round(left + (number + 0.5) / len(labels) * (width - left - right), 2)

    every = max(1, math.ceil(len(labels) / LABELS))
    short = all(len(label) < 8 for label in labels)
    return LineChart(
        title,
        unit,
        width,
        height,
        left,
        tuple(
            (across(n), labels[n] if short else str(n + 1), labels[n]) for n in range(0, len(labels), every)
        ),
        y_ticks,
        None if reference is None else up(reference),
        tuple(_line(one, labels, across, up, sign) for one in series),
    )


def _line(
    series: Series,
    labels: Sequence[str],
    across: Callable[[int], float],
    up: Callable[[float], float],
    sign: str,
) -> Line:
    marks = tuple(
        Mark(across(n), up(middle), f"{series.name}, {labels[n]}: {middle:.3g}{sign}", "")
        for n, (_, middle, _) in enumerate(series.values.tolist())
        if math.isfinite(middle)
    )
    lines, bands = [], []
    for run in _runs(series.values[:, 1:2]):
        lines.append(_path([(across(n), up(series.values[n, 1])) for n in run]))
    for run in _runs(series.values):
        upper = [(across(n), up(series.values[n, 2])) for n in run]
        bands.append(_path([*upper, *((across(n), up(series.values[n, 0])) for n in reversed(run))]))
    return Line(series.name, series.colour, tuple(lines), tuple(bands), marks)


def _runs(values: NDArray[np.float64]) -> list[list[int]]:
    """Indices of neighbours whose values (label, k) are all known."""
    places = np.flatnonzero(np.isfinite(values).all(axis=1))
    return [part.tolist() for part in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if part.size]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
