"""The summary of a study: means over samples with bootstrap intervals, one row for each kind of map.

Columns: those that name a kind of map (KEYS); ``samples``, and how many are ``scored`` or ``missing``; for
each of imacs, inside and share the mean over samples (``imacs_mean``), its interval (``imacs_mean_low``,
``imacs_mean_high``; null for fewer than two samples) and quartiles (``imacs_q25``, ``imacs_median``,
``imacs_q75``); and the ``confidence`` of the intervals. Samples are sorted by id, so that their order in the
tables changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from i2am.analysis.scores.bootstrap import CONFIDENCE, mean_intervals

KEYS = ("direction", "region", "level", "label", "method", "protocol")
METRICS = ("imacs", "inside", "share")
QUARTILES = (("q25", 0.25), ("median", 0.5), ("q75", 0.75))


def summarise(tables: Mapping[str, pl.DataFrame], confidence: float = CONFIDENCE) -> pl.DataFrame:
    """Summarise tables with the columns of `i2am.analysis.scores.tables.SCHEMA` over samples."""
    parts = [_summary(table, confidence) for table in tables.values() if table.height]
    return pl.concat(parts) if parts else pl.DataFrame()


def _summary(table: pl.DataFrame, confidence: float) -> pl.DataFrame:
    groups = table.select(KEYS).unique(maintain_order=True).with_row_index("column")
    names = table.select("sample").unique().sort("sample").with_row_index("row")
    cells = table.join(groups, on=list(KEYS), nulls_equal=True).join(names, on="sample")
    rows, columns = cells["row"].to_numpy(), cells["column"].to_numpy()
    counts = np.bincount(columns, minlength=groups.height)
    found = groups.drop("column").with_columns(pl.Series("samples", counts))
    for metric in METRICS:
        values = np.full((names.height, groups.height), np.nan)
        values[rows, columns] = cells[metric].cast(pl.Float64).fill_null(np.nan).to_numpy()
        ends = mean_intervals(values, confidence)
        if metric == METRICS[0]:
            missing = pl.Series("missing", counts - ends.count)
            found = found.with_columns(pl.Series("scored", ends.count), missing)
        means = {"mean": ends.mean, "mean_low": ends.low, "mean_high": ends.high}
        found = found.with_columns(
            pl.Series(f"{metric}_{name}", numbers).fill_nan(None)
            for name, numbers in (means | _quartiles(values)).items()
        )
    return found.with_columns(pl.lit(confidence).alias("confidence"))


def _quartiles(values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Quartiles over samples of each column of (sample, column); NaN is left out."""
    found = np.full((len(QUARTILES), values.shape[1]), np.nan)
    scored = np.isfinite(values).any(axis=0)
    if scored.any():
        found[:, scored] = np.nanquantile(values[:, scored], [part for _, part in QUARTILES], axis=0)
    return {name: row for (name, _), row in zip(QUARTILES, found, strict=True)}
