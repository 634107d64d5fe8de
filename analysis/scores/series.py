"""Values along a level's axis, with their spread, from tables into the order of a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

# Columns of `i2am.analysis.scores.tables.profile`: quartiles and median of the density inside the mask.
QUARTILES = ("inside_low", "inside_mid", "inside_high")
IMACS_QUARTILES = ("imacs_low", "imacs_mid", "imacs_high")  # likewise of IMACS
# Columns of the summary table: mean IMACS and the interval of its mean.
IMACS_MEAN = ("imacs_mean_low", "imacs_mean", "imacs_mean_high")


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart."""

    name: str
    colour: str  # as CSS and matplotlib write it
    values: NDArray[np.float64]  # (label, 3): low, middle and high; NaN where there is none


def labels_of(table: pl.DataFrame, order: Sequence[str] = ()) -> list[str]:
    """Labels of a table, sorted by `order` (the model's layers) where it has them."""
    found = list(dict.fromkeys(str(label) for label in table["label"] if label is not None))
    place = {name: number for number, name in enumerate(order)}
    return sorted(found, key=lambda label: place.get(label, len(place)))


def series_of(
    table: pl.DataFrame, labels: Sequence[str], columns: tuple[str, str, str], colours: Mapping[str, str]
) -> list[Series]:
    """One series for each direction that has a value, from columns of (low, middle, high)."""
    found = []
    for direction, colour in colours.items():
        rows = {str(row["label"]): row for row in table.filter(direction=direction).iter_rows(named=True)}
        values = np.array([[_number(rows.get(label, {}), name) for name in columns] for label in labels])
        if values.size and np.isfinite(values[:, 1]).any():
            found.append(Series(direction.upper(), colour, values))
    return found


def _number(row: Mapping[str, Any], column: str) -> float:
    value = row.get(column)
    return np.nan if value is None else float(value)


def level_rows(table: pl.DataFrame, level: str) -> pl.DataFrame:
    """Rows of I²AM's own maps of a level: over all tokens; of the specific level, over its regions."""
    rows = table.filter(level=level)
    if "method" in table.columns:
        rows = rows.filter(method="i2am")
    return rows if level == "specific" else rows.filter(region="all")
