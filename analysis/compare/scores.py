"""Paired scores: IMACS and the densities inside and outside the masks of two runs, pair by pair.

==================== ==================================================================================
sample, direction,   one row for each pair of maps; the label of time groups is that of both runs where
level, label         their steps differ
X_a, X_b             imacs, inside, outside and share of A and of B, as in `i2am.analysis.scores.tables`
X_difference         B - A; null where either is missing
kind_a, kind_b       attention, similarity or mixed
note_a, note_b       why a number is missing
==================== ==================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from i2am.analysis.scores.bootstrap import Intervals, mean_intervals

METRICS = ("imacs", "inside", "outside", "share")
"""What is compared of each pair of maps."""

PAIR = ("sample", "direction", "level", "place")
KEYS = ("direction", "level", "label")


def paired_scores(a: Mapping[str, pl.DataFrame], b: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Set the tables of two runs side by side."""
    first, second = (pl.concat([_placed(table) for table in tables.values()]) for tables in (a, b))
    both = first.join(second, on=PAIR, suffix="_b", how="inner", maintain_order="left")
    label = (
        pl.when(pl.col("label").eq_missing(pl.col("label_b")))
        .then(pl.col("label"))
        .otherwise(pl.format("{} | {}", "label", "label_b"))
    )
    columns: list[Any] = ["sample", "direction", "level", label.alias("label")]
    for metric in METRICS:
        columns += [pl.col(metric).alias(f"{metric}_a"), pl.col(f"{metric}_b")]
        columns += [(pl.col(f"{metric}_b") - pl.col(metric)).alias(f"{metric}_difference")]
    for fact in ("kind", "note"):
        columns += [pl.col(fact).alias(f"{fact}_a"), pl.col(f"{fact}_b")]
    return both.select(columns)


def _placed(table: pl.DataFrame) -> pl.DataFrame:
    """Rows with their place along the level, by which labels of different steps are paired."""
    place = pl.int_range(pl.len()).over("sample", "direction", "level").alias("place")
    return table.with_columns(place).select(*PAIR, "label", *METRICS, "kind", "note")


def summarise_scores(table: pl.DataFrame, confidence: float) -> pl.DataFrame:
    """Summarise paired scores over the pairs."""
    found = [
        _of_metric(table, metric, confidence).with_columns(
            pl.lit(metric).alias("metric"), pl.lit(confidence).alias("confidence")
        )
        for metric in METRICS
    ]
    order = [*KEYS, "metric", "pairs", "mean_a", "mean_b", "difference", "low", "high", "rose", "confidence"]
    return pl.concat(found).select(order)


def _of_metric(table: pl.DataFrame, metric: str, confidence: float) -> pl.DataFrame:
    groups = table.select(KEYS).unique(maintain_order=True)
    both = pl.col(f"{metric}_difference").is_not_null()
    means = table.group_by(KEYS, maintain_order=True).agg(
        both.sum().cast(pl.Int64).alias("pairs"),
        pl.col(f"{metric}_a").filter(both).mean().alias("mean_a"),
        pl.col(f"{metric}_b").filter(both).mean().alias("mean_b"),
        (pl.col(f"{metric}_difference") > 0).mean().alias("rose"),
    )
    ends = intervals(table, f"{metric}_difference", confidence)
    columns = {"difference": ends.mean, "low": ends.low, "high": ends.high}
    numbers = groups.with_columns(pl.Series(name, values).fill_nan(None) for name, values in columns.items())
    return means.join(numbers, on=list(KEYS), nulls_equal=True, maintain_order="left")


def intervals(table: pl.DataFrame, column: str, confidence: float) -> Intervals:
    """Bootstrap intervals of the mean over samples of a column, for each direction, level and label."""
    groups = table.select(KEYS).unique(maintain_order=True).with_row_index("column")
    names = table.select("sample").unique().sort("sample").with_row_index("row")
    placed = table.join(groups, on=list(KEYS), nulls_equal=True).join(names, on="sample")
    values = np.full((names.height, groups.height), np.nan)
    numbers = placed[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
    values[placed["row"].to_numpy(), placed["column"].to_numpy()] = numbers
    return mean_intervals(values, confidence)


def summarise_pairs(
    pairs: pl.DataFrame, excluding: Mapping[tuple[str, str, str | None], float | None], confidence: float
) -> pl.DataFrame:
    """Summarise how far the maps of pairs are apart."""
    found = pairs.group_by(KEYS, maintain_order=True).agg(pl.len().cast(pl.Int64).alias("pairs"))
    for column in ("distance", "correlation"):
        ends = intervals(pairs, column, confidence)
        found = found.with_columns(
            pl.Series(f"{column}{end}", values).fill_nan(None)
            for end, values in (("", ends.mean), ("_low", ends.low), ("_high", ends.high))
        )
    shares = [excluding[key] for key in found.select(KEYS).iter_rows()]
    return found.with_columns(
        pl.Series("excluding_zero", shares, dtype=pl.Float64), pl.lit(confidence).alias("confidence")
    )
