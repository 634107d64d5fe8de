"""The report's page of aggregations: a figure and a small table for each; needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from i2am.analysis.aggregations.tables import Aggregated
from i2am.analysis.drawing.aggregation_charts import draw
from i2am.analysis.drawing.matplotlib_style import save
from i2am.analysis.events import Listener, counter
from i2am.analysis.report.templating import write_page

PAGE = "aggregations.html"
MOST_ROWS = 80
"""Layers in a table of the page, at most; all are in the Parquet file."""


def write_aggregation_page(
    aggregated: Aggregated, staging: Path, title: str, emit: Listener, links: Mapping[str, str]
) -> None:
    """Draw every aggregation into ``figures/`` and write the page; nothing if none was asked for."""
    if not aggregated.results and not aggregated.absent:
        return
    sections = []
    step = counter(emit, "aggregation page", len(aggregated.results))
    for name, result in aggregated.results.items():
        picture = staging / "figures" / f"aggregation-{name}.png"
        save(draw(result), picture)
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        table = staging / "tables" / f"aggregation-{name}.parquet"
        rows = _rows(table)
        sections.append(
            {
                "name": name,
                **{key: result.attrs[key] for key in ("title", "units", "over", "kind", "left_out")},
                "picture": f"data:image/png;base64,{data}",
                "table": table.name,
                "is_map": "y" in result.dims,
                "rows": rows[:MOST_ROWS],
                "hidden": max(0, len(rows) - MOST_ROWS),
            }
        )
        step()
    values = {"title": title, "sections": sections, "absent": aggregated.absent, "pages": links}
    write_page(staging / "report", PAGE, "aggregations.html.j2", values)


def _rows(table: Path) -> list[tuple[Any, ...]]:
    """Layer, samples, and median and quartiles over samples of the layer's mean."""
    value = pl.col("value")
    each = pl.scan_parquet(table).group_by("layer", "sample", maintain_order=True).agg(value.mean())
    quartiles = [value.quantile(q, "linear").alias(f"{q}") for q in (0.5, 0.25, 0.75)]
    return each.group_by("layer", maintain_order=True).agg(value.count(), *quartiles).collect().rows()
