"""What the page of a level says about scores: charts over all samples, and a table of samples by labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from i2am.analysis.drawing.charts import HALF, Chart, lines, ranges, strips
from i2am.analysis.drawing.colours import limit
from i2am.analysis.drawing.matplotlib_style import DIRECTION_COLOURS
from i2am.analysis.drawing.short_labels import axis_labels
from i2am.analysis.drawing.units import Units
from i2am.analysis.report.heat_table import HeatTable, heat_table
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


def level_charts(
    tables: Mapping[str, pl.DataFrame], level: str, units: Units, order: Sequence[str]
) -> list[Chart]:
    """Density and IMACS of a level, as far as there are numbers; `order`: the model's layers.

    IMACS is shown by its mean with the interval if `tables` has the summary, else by median and quartiles.
    """
    rows = level_rows(tables[level], level) if level in tables else None
    if rows is None or not rows["imacs"].count():
        return []
    found = _over_samples(rows, units) if level == "specific" else _along(rows, tables, level, units, order)
    return [chart for chart in found if chart is not None]


def _over_samples(rows: pl.DataFrame, units: Units) -> list[Chart | None]:
    named = [(way.upper(), colour, rows.filter(direction=way)) for way, colour in DIRECTION_COLOURS.items()]
    return [
        strips(_inside(units), f"mean over the mask, {units.unit}", named, "inside", units.uniform),
        strips("IMACS", "1 is best: all inside, nothing outside", named, "imacs", 0.0),
    ]


def _along(
    rows: pl.DataFrame, tables: Mapping[str, pl.DataFrame], level: str, units: Units, order: Sequence[str]
) -> list[Chart | None]:
    """Lines over time; rows of heads and layers."""
    labels = labels_of(rows, order)
    spread = profile(rows)
    inside = series_of(spread, labels, QUARTILES, DIRECTION_COLOURS)
    words = f"median and quartiles over samples, {units.unit}"
    scores, score_words = _scores(spread, tables, level, labels)
    short = axis_labels(level, labels)
    if level == "time":
        return [
            lines(_inside(units), words, short, inside, units.uniform, sign=units.sign, size=HALF),
            lines("IMACS", score_words, short, scores, 0.0, size=HALF),
        ]
    named = list(zip(short if level == "layer" else [f"head {n}" for n in short], labels, strict=True))
    return [
        ranges(_inside(units), words, named, inside, units.uniform, sign=units.sign),
        ranges("IMACS", score_words, named, scores, 0.0),
    ]


def _scores(
    spread: pl.DataFrame, tables: Mapping[str, pl.DataFrame], level: str, labels: Sequence[str]
) -> tuple[list[Series], str]:
    """IMACS along the level, and what its interval is."""
    if "summary" in tables:
        means = level_rows(tables["summary"], level)
        found = series_of(means, labels, IMACS_MEAN, DIRECTION_COLOURS)
        if found:
            percent = 100 * float(means["confidence"][0])
            return found, f"mean over samples with its {percent:g}% bootstrap interval"
    quartiles = series_of(spread, labels, IMACS_QUARTILES, DIRECTION_COLOURS)
    return quartiles, "median and quartiles over samples"


def _inside(units: Units) -> str:
    return f"{units.name.capitalize()} inside the mask"


def level_heats(
    tables: Mapping[str, pl.DataFrame], level: str, units: Units, order: Sequence[str], samples: Sequence[str]
) -> Iterator[HeatTable]:
    """Values inside the mask, sample by label, a table for each direction; for more than one sample."""
    if level not in tables or level == "specific" or len(samples) < 2:
        return
    rows = level_rows(tables[level], level).filter(pl.col("sample").is_in(list(samples)))
    end = None if units.uniform is None else limit([rows["inside"].drop_nulls().to_numpy()])
    words = f"{units.name} inside the mask, sample by {'steps' if level == 'time' else level}"
    for way in DIRECTION_COLOURS:
        own = rows.filter(direction=way)
        labels = labels_of(own, order)
        found = {(row["sample"], row["label"]): row["inside"] for row in own.iter_rows(named=True)}
        values = [[found.get((sample, label)) for label in labels] for sample in samples]
        columns = list(zip(axis_labels(level, labels), labels, strict=True))
        array = np.array(values, dtype=np.float64).reshape(len(samples), len(labels))
        table = heat_table(way.upper(), words, columns, list(samples), array, end=end)
        if table is not None:
            yield table
