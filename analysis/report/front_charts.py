"""Charts of the report's front page: distributions over samples, means with baselines, and every level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from i2am.analysis.drawing.charts import (
    KINDS,
    LEVEL_TITLES,
    Chart,
    level_series,
    lines,
    ranges,
    strips,
)
from i2am.analysis.drawing.text import FAINT
from i2am.analysis.drawing.units import Units
from i2am.analysis.scores.series import IMACS_MEAN, Series

BASELINES = (
    ("daam", "r2g", "unified", "DAAM, all reference tokens", FAINT),
    ("daam", "r2g", "specific", "DAAM, the object’s tokens", FAINT),
    ("joint", "r2g", "unified", "share of the reference, R2G", FAINT),
    ("joint", "g2r", "unified", "share of the reference, G2R", FAINT),
    ("norm", "r2g", "unified", "times value norms, R2G", FAINT),
    ("norm", "g2r", "unified", "times value norms, G2R", FAINT),
    ("norm", "g2r", "specific", "times value norms, G2R of the painted", FAINT),
    ("contribution", "r2g", "unified", "what the reference adds", FAINT),
)
"""(method, direction, level, name, colour) of what the maps are compared with."""


def one_score_each(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Rows of the levels that have one score for each sample and direction."""
    return pl.concat([tables[level] for level in ("unified", "specific") if level in tables])


def score_strips(scored: pl.DataFrame, units: Units) -> tuple[Chart | None, Chart | None]:
    """Density inside the mask and IMACS over samples, a row for each kind of map."""
    rows = [(name, colour, scored.filter(direction=way, level=level)) for way, level, name, colour in KINDS]
    inside = f"{units.name.capitalize()} inside the mask"
    return (
        strips(inside, f"mean over the mask, {units.unit}", rows, "inside", units.uniform),
        strips("IMACS", "1 is best: all inside the mask, nothing outside", rows, "imacs", 0.0),
    )


def front_charts(
    tables: Mapping[str, pl.DataFrame], scored: pl.DataFrame, units: Units, order: Sequence[str]
) -> dict[str, Any]:
    """Values of the template: `strips`, `lines`, `means` with their `confidence`, whether it has `baselines`.

    `scored` are the rows of the unified and the specific level, `order` the model's layers.
    """
    means, baselines, confidence = _means(tables.get("summary"))
    along = [
        lines(LEVEL_TITLES[level], "", labels, series, units.uniform, sign=units.sign)
        for level, labels, series in level_series(tables, order)
    ]
    return {
        "strips": [chart for chart in score_strips(scored, units) if chart is not None],
        "lines": along,
        "means": means,
        "baselines": baselines,
        "confidence": confidence,
    }


def _means(summary: pl.DataFrame | None) -> tuple[Chart | None, bool, float]:
    """Mean IMACS of the maps and of the baselines; whether there are any; confidence of the intervals."""
    if summary is None or not summary.height:
        return None, False, 0.0
    found, compared = [], False
    for method, way, level, name, colour in (*(("i2am", *kind) for kind in KINDS), *BASELINES):
        own = summary.filter(method=method, direction=way, level=level)
        if own.height and own["imacs_mean"][0] is not None:
            found.append((name, colour, [own[column][0] for column in IMACS_MEAN]))
            compared |= method != "i2am"
    series = []
    for number, (name, colour, ends) in enumerate(found):
        values = np.full((len(found), 3), np.nan)
        values[number] = np.array(ends, dtype=np.float64)  # null: not a number
        series.append(Series(name, colour, values))
    names = [(name, name) for name, _, _ in found]
    chart = ranges("IMACS", "mean over samples with its interval", names, series, 0.0, apart=0)
    return chart, compared, float(summary["confidence"][0])
