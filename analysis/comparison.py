"""The report's table of methods: I²AM's maps on the generated image beside DAAM's and the joint shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

ROWS = (
    ("i2am", "r2g", "unified", "I²AM, R2G of all reference tokens", "× uniform"),
    ("i2am", "r2g", "specific", "I²AM, R2G of the object’s tokens", "× uniform"),
    ("daam", "r2g", "specific", "DAAM, the object’s tokens", "× uniform"),
    ("daam", "r2g", "unified", "DAAM, all tokens", "× uniform"),
    ("joint", "r2g", "unified", "share of the reference in joint attention", "0 to 1"),
)
"""(method, direction, level, name, unit), from top to bottom."""


def compared(tables: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """Rows of the table; none where the study has no baselines.

    Parameters
    ----------
    tables
        Of a study, with its summary.

    Returns
    -------
    list of dict
        name, unit, scored, and inside and imacs with their _low and _high; numbers may be None.
    """
    if "baselines" not in tables or "summary" not in tables:
        return []
    found = []
    for method, direction, level, name, unit in ROWS:
        rows = tables["summary"].filter(
            (pl.col("method") == method) & (pl.col("direction") == direction) & (pl.col("level") == level)
        )
        for row in rows.to_dicts():
            numbers = {
                f"{key}{short}": row[f"{key}_mean{short}"]
                for key in ("inside", "imacs")
                for short in ("", "_low", "_high")
            }
            found.append({"name": name, "unit": unit, "scored": row["scored"], "method": method} | numbers)
    return found
