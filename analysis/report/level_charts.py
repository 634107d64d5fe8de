"""Charts of a level over all samples: density and IMACS along it, and a table of samples by labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from i2am.analysis.drawing.colours import limit
from i2am.analysis.drawing.short_labels import axis_labels
from i2am.analysis.drawing.units import Units
from i2am.analysis.report.svg.heat_table import HeatTable, heat_table
from i2am.analysis.report.svg.line_chart import LineChart, line_chart
from i2am.analysis.report.svg.range_chart import RangeChart, range_chart
from i2am.analysis.report.svg.strip_chart import StripChart, strip_chart
from i2am.analysis.scores.series import (
    IMACS_MEAN,
    IMACS_QUARTILES,
    QUARTILES,
    Series,
    labels_of,
    level_rows,
    series_of,
)
from i2am.analysis.scores.tables import profile

Chart = StripChart | LineChart | RangeChart

COLOURS: Mapping[str, str] = {"r2g": "var(--r2g)", "g2r": "var(--g2r)"}
"""Direction to its colour in pages."""

WIDE = (620, 260)
"""Pixels of a chart that has half a page."""


def level_charts(
    tables: Mapping[str, pl.DataFrame], level: str, units: Units, order: Sequence[str]
) -> Iterator[tuple[str, Chart]]:
    """Charts of a level: (macro, chart), as far as there are numbers.

    Parameters
    ----------
    tables
        Of the study: the level's own, and `summary` for means with intervals; without it IMACS is shown by
        its median and quartiles.
    level
        time, head, layer or specific.
    units
        Of the maps.
    order
        The model's layers.
    """
    rows = level_rows(tables[level], level) if level in tables else None
    if rows is not None and rows["imacs"].count():
        made = _strips(rows, units) if level == "specific" else _along(rows, tables, level, units, order)
        yield from ((macro, chart) for macro, chart in made if chart is not None)


def _strips(rows: pl.DataFrame, units: Units) -> Iterator[tuple[str, Chart | None]]:
    """A dot for each sample."""
    series = [(way.upper(), colour, rows.filter(direction=way)) for way, colour in COLOURS.items()]
    words = f"mean over the mask, {units.unit}"
    yield "strips", strip_chart(_inside(units), words, series, "inside", units.uniform)
    yield "strips", strip_chart("IMACS", "1 is best: all inside, nothing outside", series, "imacs", 0.0)


def _along(
    rows: pl.DataFrame, tables: Mapping[str, pl.DataFrame], level: str, units: Units, order: Sequence[str]
) -> Iterator[tuple[str, Chart | None]]:
    """Density and IMACS along the level: over time as lines, over heads and layers in rows."""
    labels = labels_of(rows, order)
    spread = profile(rows)
    inside = series_of(spread, labels, QUARTILES, COLOURS)
    words = f"median and quartiles over samples, {units.unit}"
    scores, score_words = _scores(spread, tables, level, labels)
    if level == "time":
        yield (
            "lines",
            line_chart(
                _inside(units),
                words,
                axis_labels(level, labels),
                inside,
                units.uniform,
                sign=units.sign,
                size=WIDE,
            ),
        )
        yield "lines", line_chart("IMACS", score_words, axis_labels(level, labels), scores, 0.0, size=WIDE)
        return
    short = axis_labels(level, labels)
    named = list(zip(short if level == "layer" else [f"head {n}" for n in short], labels, strict=True))
    yield "ranges", range_chart(_inside(units), words, named, inside, units.uniform, sign=units.sign)
    yield "ranges", range_chart("IMACS", score_words, named, scores, 0.0)


def _scores(
    spread: pl.DataFrame, tables: Mapping[str, pl.DataFrame], level: str, labels: Sequence[str]
) -> tuple[list[Series], str]:
    """IMACS along the level, and what its interval is: of the mean if there is a summary."""
    if "summary" in tables:
        means = level_rows(tables["summary"], level)
        found = series_of(means, labels, IMACS_MEAN, COLOURS)
        if found:
            percent = 100 * float(means["confidence"][0])
            return found, f"mean over samples with its {percent:g}% bootstrap interval"
    return series_of(spread, labels, IMACS_QUARTILES, COLOURS), "median and quartiles over samples"


def _inside(units: Units) -> str:
    return f"{units.name.capitalize()} inside the mask"


def level_heats(
    tables: Mapping[str, pl.DataFrame],
    level: str,
    units: Units,
    order: Sequence[str],
    samples: Sequence[str],
) -> Iterator[HeatTable]:
    """A table for each direction: values inside the mask, sample by label; for more than one sample.

    Parameters
    ----------
    tables, level, units, order
        As for `level_charts`.
    samples
        Rows.
    """
    if level not in tables or level == "specific" or len(samples) < 2:
        return
    rows = level_rows(tables[level], level).filter(pl.col("sample").is_in(list(samples)))
    end = None if units.uniform is None else limit([rows["inside"].drop_nulls().to_numpy()])
    for way in COLOURS:
        own = rows.filter(direction=way)
        labels = labels_of(own, order)
        found = {(row["sample"], row["label"]): row["inside"] for row in own.iter_rows(named=True)}
        values = [[found.get((sample, label)) for label in labels] for sample in samples]
        table = heat_table(
            way.upper(),
            f"{units.name} inside the mask, sample by {'steps' if level == 'time' else level}",
            "sample",
            list(zip(axis_labels(level, labels), labels, strict=True)),
            list(samples),
            np.array(values, dtype=np.float64).reshape(len(samples), len(labels)),
            end=end,
        )
        if table is not None:
            yield table
