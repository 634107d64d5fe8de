"""The report's page of aggregations: a figure and a small table for each; needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from i2am.analysis.aggregations.tables import Aggregated
from i2am.analysis.drawing.aggregation_charts import draw
from i2am.analysis.drawing.matplotlib_style import save
from i2am.analysis.events import Listener, StageAdvanced, StageStarted
from i2am.analysis.report.templating import environment

PAGE = "aggregations.html"
MOST_ROWS = 80
"""Layers in a table of the page, at most; all are in the Parquet file."""


@dataclass(frozen=True, slots=True)
class Section:
    """One aggregation: words, picture, rows (layer, samples, median, quartiles), and what is left out."""

    name: str
    title: str
    units: str
    over: str
    kind: str
    picture: str
    table: str
    is_map: bool
    rows: tuple[tuple[str, int, float | None, float | None, float | None], ...]
    hidden: int
    left_out: tuple[str, ...]


def write_aggregation_page(
    aggregated: Aggregated, staging: Path, title: str, emit: Listener, pages: Mapping[str, str]
) -> None:
    """Draw every aggregation and write the page; nothing where there is none.

    Parameters
    ----------
    aggregated
        What was computed.
    staging
        Directory with ``tables/``, ``figures/`` and ``report/``.
    title
        Name of the run.
    tell
        Told after each figure.
    pages
        Pages of the report: file name to title.
    """
    if not aggregated.results and not aggregated.absent:
        return
    sections = []
    emit(StageStarted("aggregation page", len(aggregated.results)))
    for number, (name, result) in enumerate(aggregated.results.items(), start=1):
        picture = staging / "figures" / f"aggregation-{name}.png"
        save(draw(result), picture)
        table = staging / "tables" / f"aggregation-{name}.parquet"
        rows, hidden = _rows(table)
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        attrs = result.attrs
        sections.append(
            Section(
                name=name,
                title=attrs["title"],
                units=attrs["units"],
                over=attrs["over"],
                kind=attrs["kind"],
                picture=f"data:image/png;base64,{data}",
                table=table.name,
                is_map="y" in result.dims,
                rows=rows,
                hidden=hidden,
                left_out=tuple(attrs["left_out"]),
            )
        )
        emit(StageAdvanced("aggregation page", number, len(aggregated.results)))
    page = (
        environment()
        .get_template("aggregations.html.j2")
        .render(title=title, sections=sections, absent=aggregated.absent, pages=pages, here=PAGE)
    )
    (staging / "report" / PAGE).write_text(page, encoding="utf-8")


def _rows(table: Path) -> tuple[tuple[tuple[str, int, float | None, float | None, float | None], ...], int]:
    """Median and quartiles over samples of each layer's mean; and how many layers are not listed."""
    value = pl.col("value")
    each = pl.scan_parquet(table).group_by("layer", "sample", maintain_order=True).agg(value.mean())
    found = (
        each.group_by("layer", maintain_order=True)
        .agg(
            value.count().alias("samples"),
            value.median().alias("mid"),
            value.quantile(0.25, "linear").alias("low"),
            value.quantile(0.75, "linear").alias("high"),
        )
        .collect()
    )
    rows = tuple(
        (row["layer"], row["samples"], row["mid"], row["low"], row["high"])
        for row in found.head(MOST_ROWS).iter_rows(named=True)
    )
    return rows, max(0, found.height - MOST_ROWS)
