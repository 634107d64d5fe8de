"""Rows of the experiments' tables, and numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

Row = Mapping[str, Any]


def interval(row: Row | None, digits: int = 3) -> str:
    """A value with its interval."""
    if row is None or row["value"] is None:
        return "–"
    ends = "" if row["low"] is None else f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
    return f"{row['value']:.{digits}f}{ends}"


def one_row(table: pl.DataFrame, **keys: Any) -> Row | None:
    """The first row whose columns have these values."""
    rows = table.filter(*(pl.col(k).is_null() if v is None else pl.col(k) == v for k, v in keys.items()))
    return rows.row(0, named=True) if rows.height else None


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
