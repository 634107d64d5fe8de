"""The summary of a study: means over samples with bootstrap intervals, one row for each kind of map.

================== =====================================================================================
direction, region, as in `analysis.tables`; a row for each
level, label,
method, protocol
samples            samples that the row has, with or without a score
scored             samples with a number
imacs_mean         mean over samples of IMACS; imacs_mean_low, imacs_mean_high: its interval, null for
                   fewer than two samples
inside_mean, ...   the same of the density inside the mask
share_mean, ...    the same of the share inside the mask
confidence         of the intervals, 0 to 1
================== =====================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from analysis.bootstrap import CONFIDENCE, mean_intervals

KEYS = ("direction", "region", "level", "label", "method", "protocol")
METRICS = ("imacs", "inside", "share")


def summarise(tables: Mapping[str, pl.DataFrame], confidence: float = CONFIDENCE) -> pl.DataFrame:
    """Summarise tables of scores over samples.

    Parameters
    ----------
    tables
        Tables with the columns of `analysis.tables.SCHEMA`.
    confidence
        Of the intervals.

    Returns
    -------
    polars.DataFrame
        In the tables' order.

    Raises
    ------
    InputError
        If the confidence is out of range.
    """
    parts = [_summary(table, confidence) for table in tables.values() if table.height]
    return pl.concat(parts) if parts else pl.DataFrame()


def _summary(table: pl.DataFrame, confidence: float) -> pl.DataFrame:
    groups = table.select(KEYS).unique(maintain_order=True).with_row_index("column")
    names = table.select("sample").unique(maintain_order=True).with_row_index("row")
    placed = table.join(groups, on=list(KEYS), nulls_equal=True).join(names, on="sample")
    rows, columns = placed["row"].to_numpy(), placed["column"].to_numpy()
    counts = np.bincount(columns, minlength=groups.height)
    found = groups.drop("column").with_columns(pl.Series("samples", counts))
    for metric in METRICS:
        values = np.full((names.height, groups.height), np.nan)
        values[rows, columns] = placed[metric].cast(pl.Float64).fill_null(np.nan).to_numpy()
        ends = mean_intervals(values, confidence)
        if metric == METRICS[0]:
            found = found.with_columns(pl.Series("scored", ends.count))
        found = found.with_columns(
            pl.Series(f"{metric}_mean", ends.mean).fill_nan(None),
            pl.Series(f"{metric}_mean_low", ends.low).fill_nan(None),
            pl.Series(f"{metric}_mean_high", ends.high).fill_nan(None),
        )
    return found.with_columns(pl.lit(confidence).alias("confidence"))
