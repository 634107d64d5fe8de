"""A row for each label with a dot and its interval, for each of a few series."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from i2am.analysis.report.svg.strip_chart import axis
from i2am.analysis.scores.series import Series

ROW, TOP, FOOT = 20, 6, 24
"""Heights in pixels."""


@dataclass(frozen=True, slots=True)
class Range:
    """A dot with its interval (pixels; None where there is none), and all of it in words."""

    colour: str
    x: float
    y: float
    ends: tuple[float, float] | None
    words: str


@dataclass(frozen=True, slots=True)
class RangeChart:
    """Rows of dots with intervals over one axis; `reference` marks a value (pixels) or is None."""

    title: str
    unit: str
    width: int
    height: int
    left: int
    ticks: tuple[tuple[float, str], ...]
    rows: tuple[tuple[float, str, str], ...]
    reference: float | None
    ranges: tuple[Range, ...]


def range_chart(
    title: str,
    unit: str,
    labels: Sequence[tuple[str, str]],
    series: Sequence[Series],
    reference: float | None = None,
    *,
    sign: str = "",
    width: int = 620,
    apart: float = 6,
) -> RangeChart | None:
    """Lay out series over rows.

    Parameters
    ----------
    title, unit
        Words.
    labels
        (short, whole) words of the rows, from top to bottom.
    series
        In every row one above the other.
    reference
        A value to mark.
    sign
        Behind a value in words.
    width
        Pixels.
    apart
        Pixels between the series of a row.

    Returns
    -------
    RangeChart or None
        None where there is no value at all.
    """
    values = [float(value) for one in series for value in one.values.ravel() if math.isfinite(value)]
    if not values:
        return None
    left = 16 + round(6.6 * max(len(short) for short, _ in labels))
    place, ticks = axis(values, reference, left, width - 16)
    found = []
    for number, one in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * apart
        for row, (_, whole) in enumerate(labels):
            if math.isfinite(one.values[row, 1]):
                found.append(_range(one, row, whole, TOP + ROW * (row + 0.5) + shift, place, sign))
    return RangeChart(
        title,
        unit,
        width,
        TOP + ROW * len(labels) + FOOT,
        left,
        ticks,
        tuple((TOP + ROW * (row + 0.5), short, whole) for row, (short, whole) in enumerate(labels)),
        None if reference is None else place(reference),
        tuple(found),
    )


def _range(
    series: Series, row: int, label: str, y: float, place: Callable[[float], float], sign: str
) -> Range:
    low, middle, high = (float(value) for value in series.values[row])
    words = f"{series.name}{'' if label == series.name else f', {label}'}: {middle:.3g}{sign}"
    if not (math.isfinite(low) and math.isfinite(high)):
        return Range(series.colour, place(middle), y, None, words)
    ends = (place(low), place(high))
    return Range(series.colour, place(middle), y, ends, f"{words} ({low:.3g} to {high:.3g})")
