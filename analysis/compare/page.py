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

from i2am.analysis.compare import colours
from i2am.analysis.compare.figures import difference_words
from i2am.analysis.compare.panels import Drawn, DrawnPair, drawn_pairs, levels_of, mean_end, titles
from i2am.analysis.drawing.colours import limit
from i2am.analysis.drawing.panels import Panel
from i2am.analysis.drawing.units import Units
from i2am.analysis.events import Listener, StageAdvanced, StageStarted
from i2am.analysis.report.front_page import provenance
from i2am.analysis.report.level_charts import COLOURS
from i2am.analysis.report.svg.range_chart import RangeChart, range_chart
from i2am.analysis.report.svg.scale_bar import density_scale
from i2am.analysis.report.svg.strip_chart import StripChart, strip_chart
from i2am.analysis.report.templating import environment
from i2am.analysis.report.thumbnails import Tile, TileGrid, image_tile, map_tile, tile_size
from i2am.analysis.scores.series import Series

if TYPE_CHECKING:
    from i2am.analysis.compare.result import Comparison
    from i2am.analysis.options import StudyOptions

MOST, MOST_ROWS = 200, 500
"""Longer side of a picture, at most (pixels), and rows of the table of pairs."""

LEVEL_TITLES = {"unified": "Unified", "time": "By denoiser steps", "head": "By head", "layer": "By layer"}


def write_compare_page(
    found: Comparison, stores: tuple[Path, Path], out: Path, options: StudyOptions, emit: Listener
) -> None:
    """Write ``index.html``."""
    emit(StageStarted("report", 1))
    out.mkdir()
    levels = levels_of(found)
    units = next(iter(levels.values()))[0].units
    values = {
        "title": f"{found.names[0]} and {found.names[1]}",
        "pages": {},
        "here": "index.html",
        "names": found.names,
        "total": len(found.pairing.samples),
        "alone": found.pairing.alone,
        "refusals": found.refusals,
        "absent": found.absent,
        "units": units,
        "confidence": options.confidence,
        "protocol": options.protocol,
        "headline": _headline(found, units),
        "strip_charts": _strips(found, units),
        "range_charts": _ranges(found),
        "series_keys": [(way.upper(), colour) for way, colour in COLOURS.items()],
        "levels": _levels(found, levels),
        "provenance": _facts(found),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    values |= _pairs(found, stores, options.details, units) | _table(found)
    page = environment().get_template("compare.html.j2").render(**values)
    (out / "index.html").write_text(page, encoding="utf-8")
    emit(StageAdvanced("report", 1, 1))


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
                "colour": COLOURS[row["direction"]],
            }
        )
    return items


def _strips(found: Comparison, units: Units) -> list[StripChart]:
    table = found.tables["scores"].filter(level="unified")
    rows = [(way.upper(), colour, table.filter(direction=way)) for way, colour in COLOURS.items()]
    charts = [
        strip_chart("IMACS, B − A", "of each pair", rows, "imacs_difference", 0.0),
        strip_chart(
            f"{units.name.capitalize()} inside the mask, B − A", units.unit, rows, "inside_difference", 0.0
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _ranges(found: Comparison) -> list[RangeChart]:
    """Mean difference of IMACS along every level."""
    summary = found.tables["summary"].filter(metric="imacs")
    charts = []
    for level in ("unified", "time", "head", "layer"):
        own = summary.filter(level=level)
        labels = list(dict.fromkeys(str(label or "unified") for label in own["label"]))
        series = []
        for way, colour in COLOURS.items():
            rows = {
                str(row["label"] or "unified"): row for row in own.filter(direction=way).iter_rows(named=True)
            }
            ends = [
                [rows.get(label, {}).get(name) for name in ("low", "difference", "high")] for label in labels
            ]
            series.append(Series(way.upper(), colour, np.array(ends, dtype=np.float64).reshape(-1, 3)))
        short = labels if level == "unified" else titles(level, labels)
        names = list(zip(short, labels, strict=True))
        charts.append(
            range_chart(LEVEL_TITLES[level], "IMACS, B − A", names, series, 0.0) if labels else None
        )
    return [chart for chart in charts if chart is not None]


def _levels(found: Comparison, levels: Mapping[str, Sequence[Drawn]]) -> list[dict[str, Any]]:
    """Tiles of the mean maps of every level."""
    count = sum(3 * len(each.labels) for some in levels.values() for each in some)
    longest = tile_size(0, count, 1, MOST)[0]
    shares = found.tables["map_summary"]
    shown = []
    for level, some in levels.items():
        end = mean_end(some)
        ways = []
        for (way, own), each in zip((key for key in found.maps if key[1] == level), some, strict=True):
            share = shares.filter(direction=way, level=own)["excluding_zero"].mean()
            words = "" if share is None else f": {100 * float(share):.0f}% of the pixels outlined"  # type: ignore[arg-type]
            ways.append(
                {
                    "title": each.title,
                    "a": _grid(
                        [map_tile(p, end, longest, each.units.sign) for p in each.means("a")], longest
                    ),
                    "b": _grid(
                        [map_tile(p, end, longest, each.units.sign) for p in each.means("b")], longest
                    ),
                    "difference": _differences(each.differences(), each.difference, longest, each.units.sign),
                    "excluding": words,
                    "signed": colours.scale(each.reach, each.units.sign, difference_words(each.units)),
                }
            )
        scale = density_scale(end, some[0].units.bar)
        narrow = level == "unified"
        shown.append({"title": LEVEL_TITLES[level], "ways": ways, "scale": scale, "narrow": narrow})
    return shown


def _grid(tiles: Sequence[Tile], longest: int, columns: int | None = None) -> TileGrid:
    return TileGrid("", tuple(tiles), None, columns or -(-len(tiles) // -(-len(tiles) // 8)), longest)


def _differences(panels: Sequence[Panel], values: NDArray[np.float64], longest: int, sign: str) -> TileGrid:
    tiles = [_signed_tile(panel, own, longest, sign) for panel, own in zip(panels, values, strict=True)]
    return _grid(tiles, longest)


def _signed_tile(panel: Panel, values: NDArray[np.float64], longest: int, sign: str) -> Tile:
    """A difference, in words of its own values."""
    known = values[np.isfinite(values)]
    words = f"{known.min():+.3g}{sign} to {known.max():+.3g}{sign}" if known.size else "no numbers"
    tile = image_tile(panel, colours.END, longest, sign)
    return replace(tile, words=f"{panel.whole or panel.title}: {words}")


def _pairs(found: Comparison, stores: tuple[Path, Path], details: int, units: Units) -> dict[str, Any]:
    """Tiles of the pairs that differ most, on common scales."""
    some = list(drawn_pairs(found, stores, details))
    if not some:
        return {"pairs": [], "pair_scale": None, "pair_signed": []}
    end = limit(
        panel.values for one in some for a, b, _ in one.maps for panel in (a, b) if panel.values is not None
    )
    ways = [a.title.split()[0] for a, _, _ in some[0].maps]
    far = {way: colours.limit(one.maps[n][2] for one in some) for n, way in enumerate(ways)}
    longest = tile_size(0, sum(len(one.images) + 3 * len(one.maps) for one in some), 1, MOST)[0]
    return {
        "pairs": [
            {
                "sample": one.sample,
                "distance": one.distance,
                "grid": _pair_grid(one, end, far, longest, units),
            }
            for one in some
        ],
        "pair_scale": density_scale(end, units.bar),
        "pair_signed": [
            colours.scale(end, units.sign, f"{way}: {difference_words(units)}") for way, end in far.items()
        ],
    }


def _pair_grid(one: DrawnPair, end: float, far: Mapping[str, float], longest: int, units: Units) -> TileGrid:
    tiles = [image_tile(panel, end, longest, units.sign) for panel in one.images]
    for a, b, difference in one.maps:
        tiles += [image_tile(panel, end, longest, units.sign) for panel in (a, b)]
        way = a.title.split()[0]
        panel = Panel(f"{way} B − A", None, colours.to_density(difference, far[way]))
        tiles.append(_signed_tile(panel, difference, longest, units.sign))
    return _grid(tiles, longest, len(tiles) if len(tiles) <= 10 else (len(tiles) + 1) // 2)


def _table(found: Comparison) -> dict[str, Any]:
    """Rows of the table of all pairs: texts by direction."""
    scores = found.tables["scores"].filter(level="unified")
    pairs = found.tables["maps"].filter(level="unified")
    both = pairs.join(scores, on=["sample", "direction"], how="left", maintain_order="left")
    columns = ("imacs_a", "imacs_b", "imacs_difference", "distance", "correlation")
    rows: dict[str, dict[str, Any]] = {}
    ways = [way for way in COLOURS if (way, "unified") in found.maps]
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
        "ways": [{"name": way.upper(), "colour": COLOURS[way]} for way in ways],
        "rows": list(rows.values()),
        "hidden": len(found.pairing.samples) > len(rows),
    }


def _facts(found: Comparison) -> list[tuple[str, str, str]]:
    """What the runs say about themselves, side by side."""
    one, other = dict(provenance(found.a)), dict(provenance(found.b))
    return [(key, one.get(key, "–"), other.get(key, "–")) for key in {**one, **other}]
