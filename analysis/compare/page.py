"""The page of a comparison: one HTML file that needs neither network nor script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from i2am.analysis.compare.colours import DENSITY_END, difference_bar, difference_limit, to_density
from i2am.analysis.compare.figures import difference_words
from i2am.analysis.compare.panels import (
    MeanPanels,
    PairPanels,
    levels_of,
    mean_end,
    pair_panels,
    titles,
)
from i2am.analysis.drawing.charts import Chart, ranges, strips
from i2am.analysis.drawing.colours import limit
from i2am.analysis.drawing.matplotlib_style import DIRECTION_COLOURS
from i2am.analysis.drawing.panels import Panel
from i2am.analysis.drawing.units import Units
from i2am.analysis.events import Listener, counter
from i2am.analysis.report.front_page import provenance
from i2am.analysis.report.scale_bar import density_bar
from i2am.analysis.report.templating import write_page
from i2am.analysis.report.thumbnails import (
    Thumbnail,
    ThumbnailGrid,
    image_thumbnail,
    map_thumbnail,
    thumbnail_size,
)
from i2am.analysis.scores.series import series_of
from i2am.storage.reading.witness import summarise_witness

if TYPE_CHECKING:
    from i2am.analysis.compare.result import Comparison

MOST, MOST_ROWS = 200, 500
"""Longer side of a picture, at most (pixels), and rows of the table of pairs."""

LEVEL_TITLES = {"unified": "Unified", "time": "By denoiser steps", "head": "By head", "layer": "By layer"}


def write_compare_page(
    found: Comparison, stores: tuple[Path, Path], out: Path, details: int, emit: Listener
) -> None:
    """Write ``index.html`` into a new directory, with `details` pairs; `stores` hold the maps of A and B."""
    step = counter(emit, "report", 1)
    out.mkdir()
    levels = levels_of(found)
    units = next(iter(levels.values()))[0].units
    attrs = next(iter(found.maps.values())).attrs
    values = {
        "title": f"{found.names[0]} and {found.names[1]}",
        "pages": {},
        "names": found.names,
        "total": len(found.pairing.samples),
        "alone": found.pairing.alone,
        "refusals": found.refusals,
        "absent": found.absent,
        "units": units,
        "confidence": attrs["confidence"],
        "protocol": attrs["protocol"],
        "headline": _headline(found, units),
        "strip_charts": _strips(found, units),
        "range_charts": _ranges(found),
        "levels": _levels(found, levels),
        "provenance": _facts(found),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    values |= _pairs(found, stores, details, units) | _table(found)
    write_page(out, "index.html", "compare.html.j2", values)
    step()


def _headline(found: Comparison, units: Units) -> list[dict[str, str]]:
    """Mean differences of IMACS and of the density inside, of each direction."""
    summary = found.tables["summary"].filter(level="unified").drop_nulls("difference")
    items = []
    for row in summary.filter(pl.col("metric").is_in(["imacs", "inside"])).iter_rows(named=True):
        sign = units.sign if row["metric"] == "inside" else ""
        what = "IMACS" if row["metric"] == "imacs" else f"mean {units.name} inside the mask"
        ends = "" if row["low"] is None else f" [{row['low']:+.2g}, {row['high']:+.2g}]"
        items.append(
            {
                "value": f"{row['difference']:+.3g}{sign}",
                "name": row["direction"].upper(),
                "words": f"{what}, B less A{ends}",
                "more": f"A {row['mean_a']:.3f}, B {row['mean_b']:.3f}; rose in {100 * row['rose']:.0f}% "
                f"of {row['pairs']} pairs",
                "colour": f"var(--{row['direction']})",
            }
        )
    return items


def _strips(found: Comparison, units: Units) -> list[Chart]:
    table = found.tables["scores"].filter(level="unified")
    rows = [(way.upper(), colour, table.filter(direction=way)) for way, colour in DIRECTION_COLOURS.items()]
    inside = f"{units.name.capitalize()} inside the mask, B − A"
    charts = [
        strips("IMACS, B − A", "of each pair", rows, "imacs_difference", 0.0),
        strips(inside, units.unit, rows, "inside_difference", 0.0),
    ]
    return [chart for chart in charts if chart is not None]


def _ranges(found: Comparison) -> list[Chart]:
    """Mean difference of IMACS along every level."""
    summary = found.tables["summary"].filter(metric="imacs")
    charts = []
    for level in LEVEL_TITLES:
        own = summary.filter(level=level).with_columns(pl.col("label").fill_null("unified"))
        labels = list(dict.fromkeys(own["label"]))
        series = series_of(own, labels, ("low", "difference", "high"), DIRECTION_COLOURS)
        short = labels if level == "unified" else titles(level, labels)
        names = list(zip(short, labels, strict=True))
        charts.append(ranges(LEVEL_TITLES[level], "IMACS, B − A", names, series, 0.0))
    return [chart for chart in charts if chart is not None]


def _levels(found: Comparison, levels: Mapping[str, Sequence[MeanPanels]]) -> list[dict[str, Any]]:
    """Thumbnails of the mean maps of every level."""
    count = sum(3 * len(each.labels) for some in levels.values() for each in some)
    longest = thumbnail_size(0, count, 1, MOST)[0]
    shares = found.tables["map_summary"]
    shown = []
    for level, some in levels.items():
        end = mean_end(some)
        ways = []
        for (way, own), each in zip((key for key in found.maps if key[1] == level), some, strict=True):
            sign = each.units.sign
            share = shares.filter(direction=way, level=own)["excluding_zero"].mean()
            words = "" if share is None else f": {100 * float(share):.0f}% of the pixels outlined"  # type: ignore[arg-type]
            means = {
                which: _grid(
                    [map_thumbnail(panel, end, longest, sign) for panel in each.means(which)], longest
                )
                for which in "ab"
            }
            differences = [
                _difference_thumbnail(panel, values, longest, sign)
                for panel, values in zip(each.differences(), each.difference, strict=True)
            ]
            ways.append(
                means
                | {
                    "title": each.title,
                    "difference": _grid(differences, longest),
                    "excluding": words,
                    "difference_scale": difference_bar(
                        each.difference_end, sign, difference_words(each.units)
                    ),
                }
            )
        scale, narrow = density_bar(end, some[0].units.bar), level == "unified"
        shown.append({"title": LEVEL_TITLES[level], "ways": ways, "scale": scale, "narrow": narrow})
    return shown


def _grid(thumbnails: Sequence[Thumbnail], longest: int, columns: int | None = None) -> ThumbnailGrid:
    """Rows of at most eight, unless told otherwise."""
    even = -(-len(thumbnails) // -(-len(thumbnails) // 8))
    return ThumbnailGrid("", tuple(thumbnails), None, columns or even, longest)


def _difference_thumbnail(panel: Panel, values: NDArray[np.float64], longest: int, sign: str) -> Thumbnail:
    """A difference, in words of its own values."""
    known = values[np.isfinite(values)]
    words = f"{known.min():+.3g}{sign} to {known.max():+.3g}{sign}" if known.size else "no numbers"
    drawn = image_thumbnail(panel, DENSITY_END, longest, sign)
    return replace(drawn, words=f"{drawn.full_title}: {words}")


def _pairs(found: Comparison, stores: tuple[Path, Path], details: int, units: Units) -> dict[str, Any]:
    """Thumbnails of the pairs that differ most, on common scales."""
    some = list(pair_panels(found, stores, details))
    if not some:
        return {"pairs": [], "pair_scale": None, "pair_difference_scales": []}
    end = limit(
        panel.values for one in some for a, b, _ in one.maps for panel in (a, b) if panel.values is not None
    )
    ways = [a.title.split()[0] for a, _, _ in some[0].maps]
    ends = {way: difference_limit(one.maps[n][2] for one in some) for n, way in enumerate(ways)}
    longest = thumbnail_size(0, sum(len(one.images) + 3 * len(one.maps) for one in some), 1, MOST)[0]
    grids = [_pair_grid(one, end, ends, longest, units) for one in some]
    return {
        "pairs": [
            {"sample": one.sample, "distance": one.distance, "grid": grid}
            for one, grid in zip(some, grids, strict=True)
        ],
        "pair_scale": density_bar(end, units.bar),
        "pair_difference_scales": [
            difference_bar(far, units.sign, f"{way}: {difference_words(units)}") for way, far in ends.items()
        ],
    }


def _pair_grid(
    one: PairPanels, end: float, ends: Mapping[str, float], longest: int, units: Units
) -> ThumbnailGrid:
    shown = [image_thumbnail(panel, end, longest, units.sign) for panel in one.images]
    for a, b, difference in one.maps:
        shown += [image_thumbnail(panel, end, longest, units.sign) for panel in (a, b)]
        way = a.title.split()[0]
        panel = Panel(f"{way} B − A", None, to_density(difference, ends[way]))
        shown.append(_difference_thumbnail(panel, difference, longest, units.sign))
    return _grid(shown, longest, len(shown) if len(shown) <= 10 else (len(shown) + 1) // 2)


def _table(found: Comparison) -> dict[str, Any]:
    """Rows of the table of all pairs: texts by direction."""
    scores = found.tables["scores"].filter(level="unified")
    pairs = found.tables["maps"].filter(level="unified")
    both = pairs.join(scores, on=["sample", "direction"], how="left", maintain_order="left")
    columns = ("imacs_a", "imacs_b", "imacs_difference", "distance", "correlation")
    rows: dict[str, dict[str, Any]] = {}
    ways = [way for way in DIRECTION_COLOURS if (way, "unified") in found.maps]
    for row in both.iter_rows(named=True):
        if row["sample"] not in rows and len(rows) == MOST_ROWS:
            continue
        empty = {
            "sample": row["sample"],
            "cells": {way.upper(): ["–"] * len(columns) for way in ways},
            "notes": [],
        }
        entry = rows.setdefault(row["sample"], empty)
        entry["cells"][row["direction"].upper()] = [
            "–" if row[name] is None else f"{row[name]:+.2g}" if "diff" in name else f"{row[name]:.3f}"
            for name in columns
        ]
        for which in "ab":
            note = row[f"note_{which}"]
            if note and "no image" not in note and note not in entry["notes"]:
                entry["notes"].append(f"{which.upper()}: {note}")
    return {
        "ways": [{"name": way.upper(), "colour": f"var(--{way})"} for way in ways],
        "rows": list(rows.values()),
        "hidden": len(found.pairing.samples) > len(rows),
    }


def _facts(found: Comparison) -> list[tuple[str, str, str]]:
    """What the runs say about themselves, side by side."""
    compared = found.pairing.samples, found.pairing.every_layer
    one, other = (
        {**dict(provenance(run)), "witness": summarise_witness(run, *compared).words}
        for run in (found.a, found.b)
    )
    return [(key, one.get(key, "–"), other.get(key, "–")) for key in {**one, **other}]
