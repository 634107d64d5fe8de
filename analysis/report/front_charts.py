"""Charts of the report's front page: distributions over samples, means with baselines, and every level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from i2am.analysis.drawing.short_labels import axis_labels
from i2am.analysis.drawing.units import Units
from i2am.analysis.report.level_charts import COLOURS
from i2am.analysis.report.svg.line_chart import LineChart, line_chart
from i2am.analysis.report.svg.range_chart import RangeChart, range_chart
from i2am.analysis.report.svg.strip_chart import StripChart, strip_chart
from i2am.analysis.scores.series import IMACS_MEAN, QUARTILES, Series, labels_of, level_rows, series_of
from i2am.analysis.scores.tables import profile

SERIES = (
    ("r2g", "unified", "R2G, all reference tokens", "var(--r2g)"),
    ("r2g", "specific", "R2G, the object’s tokens", "var(--r2g2)"),
    ("g2r", "unified", "G2R, all patches", "var(--g2r)"),
    ("g2r", "specific", "G2R, painted patches", "var(--g2r2)"),
)
"""(direction, level, name, colour) of the report's four kinds of map."""

BASELINES = (
    ("daam", "r2g", "unified", "DAAM, all reference tokens"),
    ("daam", "r2g", "specific", "DAAM, the object’s tokens"),
    ("joint", "r2g", "unified", "share of the reference, R2G"),
    ("joint", "g2r", "unified", "share of the reference, G2R"),
)
"""(method, direction, level, name) of what the maps are compared with."""

TITLES = {"time": "by denoiser steps", "head": "by head", "layer": "by layer, in the model’s order"}


@dataclass(frozen=True, slots=True)
class FrontCharts:
    """Charts of the front page; `keys` names the colours of the lines."""

    strips: tuple[StripChart, ...]
    lines: tuple[LineChart, ...]
    keys: tuple[tuple[str, str], ...]
    means: RangeChart | None
    baselines: bool
    confidence: float


def of(scored: pl.DataFrame, direction: str, level: str) -> pl.DataFrame:
    """Rows of one kind of map."""
    return scored.filter((pl.col("direction") == direction) & (pl.col("level") == level))


def front_charts(
    tables: Mapping[str, pl.DataFrame], scored: pl.DataFrame, units: Units, order: Sequence[str]
) -> FrontCharts:
    """Lay out the charts.

    Parameters
    ----------
    tables
        Of the study; without `summary` there are no means.
    scored
        Rows of the unified and the specific level.
    units
        Of the maps.
    order
        The model's layers.
    """
    rows = [(name, colour, of(scored, direction, level)) for direction, level, name, colour in SERIES]
    inside = f"{units.name.capitalize()} inside the mask"
    strips = (
        strip_chart(inside, f"mean over the mask, {units.unit}", rows, "inside", units.uniform),
        strip_chart("IMACS", "1 is best: all inside the mask, nothing outside", rows, "imacs", 0.0),
    )
    lines = []
    for level, title in TITLES.items():
        if level in tables:
            own = level_rows(tables[level], level)
            labels = labels_of(own, order)
            series = series_of(profile(own), labels, QUARTILES, COLOURS)
            lines.append(
                line_chart(title, "", axis_labels(level, labels), series, units.uniform, sign=units.sign)
            )
    means, baselines, confidence = _means(tables.get("summary"))
    return FrontCharts(
        strips=tuple(chart for chart in strips if chart is not None),
        lines=tuple(chart for chart in lines if chart is not None),
        keys=tuple((way.upper(), colour) for way, colour in COLOURS.items()),
        means=means,
        baselines=baselines,
        confidence=confidence,
    )


def _means(summary: pl.DataFrame | None) -> tuple[RangeChart | None, bool, float]:
    """Mean IMACS of the maps and of the baselines; whether there are any; confidence of the intervals."""
    if summary is None or not summary.height:
        return None, False, 0.0
    kinds = [("i2am", way, level, name, colour) for way, level, name, colour in SERIES]
    kinds += [(*baseline, "var(--faint)") for baseline in BASELINES]
    found, compared = [], False
    for method, way, level, name, colour in kinds:
        own = summary.filter(method=method, direction=way, level=level)
        if own.height and own["imacs_mean"][0] is not None:
            ends = [np.nan if own[column][0] is None else own[column][0] for column in IMACS_MEAN]
            found.append((name, colour, ends))
            compared |= method != "i2am"
    names = [(name, name) for name, _, _ in found]
    series = []
    for number, (name, colour, ends) in enumerate(found):
        values = np.full((len(found), 3), np.nan)
        values[number] = ends
        series.append(Series(name, colour, values))
    return _flat(names, series), compared, float(summary["confidence"][0])


def _flat(names: Sequence[tuple[str, str]], series: Sequence[Series]) -> RangeChart | None:
    """One series in each row, all at its middle."""
    return range_chart("IMACS", "mean over samples with its interval", names, series, 0.0, apart=0)
