"""The report of a study: one HTML page that needs nothing else, neither network nor script.

Script only adds sorting and filtering. Everything that comes from data is escaped by the template engine; a
content security policy in the page forbids it to load anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from analysis.charts import Profile, StripChart, profile_chart, strip_chart
from analysis.colour import data_url, limit, palette
from analysis.events import Listener, StageAdvanced, StageStarted, ignore
from analysis.figures import scale_ticks, times
from analysis.panels import MAPS, sample_maps, sample_panels
from analysis.tables import profile
from analysis.templating import environment

if TYPE_CHECKING:
    from analysis.collect import Collected
    from analysis.study import Refusal
    from storage import Run

SERIES = (
    ("r2g", "unified", "R2G, all reference tokens", "var(--r2g)"),
    ("r2g", "specific", "R2G, the object’s tokens", "var(--r2g2)"),
    ("g2r", "unified", "G2R, all patches", "var(--g2r)"),
    ("g2r", "specific", "G2R, painted patches", "var(--g2r2)"),
)
"""(direction, level, name, colour) of the report's four kinds of map."""

_NOT_SHOWN = {"samples", "layers", "timesteps", "metadata", "digest", "images", "seeds"}


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a sample: title, data URL, words for who cannot see it, and whether it is a map."""

    title: str
    url: str
    words: str
    is_map: bool


@dataclass(frozen=True, slots=True)
class Scale:
    """A colour bar: CSS colours from least to most, and (percent, words) of its marks."""

    title: str
    colours: tuple[str, ...]
    ticks: tuple[tuple[float, str], ...]


def write_report(
    run: Run,
    collected: Collected,
    tables: dict[str, pl.DataFrame],
    out: Path,
    *,
    refusals: Sequence[Refusal] = (),
    details: int = 24,
    pages: Mapping[str, str] | None = None,
    on_event: Listener | None = None,
) -> Path:
    """Write ``index.html``.

    Parameters
    ----------
    run, collected, tables
        What a study found.
    out
        Directory; made if absent.
    refusals
        Samples that were left out, and why.
    details
        Samples shown with their pictures; the size of the page is bounded by it. All are in its table.
    pages
        Other pages of the report: file name to title.
    on_event
        Told after each of them.

    Returns
    -------
    Path
        The page.
    """
    tell = on_event or ignore
    out.mkdir(parents=True, exist_ok=True)
    scored = pl.concat([tables[level] for level in ("unified", "specific") if level in tables])
    shown = collected.samples[:details]
    tell(StageStarted("report", len(shown)))
    ends = _scale_ends(collected, shown)
    detailed = []
    for number, sample in enumerate(shown):
        detailed.append(_detail(run, collected, sample, number, ends))
        tell(StageAdvanced("report", number + 1, len(shown)))
    page = _render(run, collected, tables, scored, detailed, ends, refusals, pages or {})
    target = out / "index.html"
    target.write_text(page, encoding="utf-8")
    return target


def _render(
    run: Run,
    collected: Collected,
    tables: dict[str, pl.DataFrame],
    scored: pl.DataFrame,
    detailed: list[dict[str, Any]],
    ends: dict[str, float],
    refusals: Sequence[Refusal],
    pages: Mapping[str, str],
) -> str:
    """Fill the template."""
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=Path(str(run.path)).name,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            run=run,
            kinds=_kinds(collected),
            headline=_headline(scored),
            series=_present(scored),
            rows=_rows(scored, collected, len(detailed)),
            density=_strips(
                scored, "inside", "Density inside the mask", "mean over the mask, × uniform", 1.0
            ),
            scores=_strips(scored, "imacs", "IMACS", "1 is best: all inside the mask, nothing outside", 0.0),
            profiles=_profiles(tables),
            details=detailed,
            scales=[_scale(level, end) for level, end in ends.items()],
            refusals=refusals,
            pages=pages,
            absent=collected.absent,
            provenance=_provenance(run),
            layers=list(run.layers.values()),
            total=len(collected.samples),
            attrs=next(iter(collected.maps.values())).attrs,
        )
    )


def _kinds(collected: Collected) -> dict[str, str]:
    """Direction to "attention", "similarity" or "mixed"."""
    return {direction: maps.attrs["kind"] for (direction, _), maps in collected.maps.items()}


def _scale_ends(collected: Collected, shown: Sequence[str]) -> dict[str, float]:
    """End of the colour scale of the unified and of the specific maps."""
    ends = {}
    for level in ("unified", "specific"):
        maps = [
            values
            for sample in shown
            for (_, own), values in sample_maps(collected, sample).items()
            if own == level
        ]
        if maps:
            ends[level] = limit(maps)
    return ends


def _detail(
    run: Run, collected: Collected, sample: str, number: int, ends: dict[str, float]
) -> dict[str, Any]:
    """Pictures of one sample, in groups that share a colour scale."""
    panels = sample_panels(run, collected, sample)
    levels = iter([level for direction, level, *_ in MAPS if (direction, level) in collected.maps])
    groups: dict[str, list[Tile]] = {"images": []}
    for panel in panels:
        level = "images" if panel.values is None else next(levels)
        words = f"{panel.title} of this sample"
        if panel.values is not None and np.isfinite(panel.values).all():
            words += (
                f"; density {times(float(panel.values.min()))} to {times(float(panel.values.max()))} uniform"
            )
        tile = Tile(
            panel.title, data_url(panel.picture(ends.get(level, 2.0))), words, panel.values is not None
        )
        groups.setdefault(level, []).append(tile)
    notes = run.record(sample).get("annotations", {})
    short = {
        key: value
        for key, value in notes.items()
        if isinstance(value, (str, int, float)) and len(str(value)) < 80
    }
    return {"sample": sample, "anchor": f"s{number}", "groups": groups, "notes": short}


def _scale(level: str, end: float) -> Scale:
    colours = tuple(f"rgb({r} {g} {b})" for r, g, b in palette()[::15])
    ticks = tuple(
        (round(50 + 50 * float(np.log(tick) / np.log(end)), 2), times(tick)) for tick in scale_ticks(end)
    )
    return Scale(level, colours, ticks)


def _present(scored: pl.DataFrame) -> list[dict[str, str]]:
    """The kinds of map that this study has."""
    found = set(scored.select("direction", "level").iter_rows())
    return [
        {
            "key": f"{direction}_{level}",
            "direction": direction,
            "level": level,
            "name": name,
            "colour": colour,
        }
        for direction, level, name, colour in SERIES
        if (direction, level) in found
    ]


def _rows(scored: pl.DataFrame, collected: Collected, shown: int) -> list[dict[str, Any]]:
    """One row for each sample: its scores by kind of map."""
    found: dict[str, dict[str, Any]] = {
        sample: {
            "sample": sample,
            "anchor": f"s{number}" if number < shown else None,
            "scores": {},
            "notes": [],
        }
        for number, sample in enumerate(collected.samples)
    }
    for row in scored.iter_rows(named=True):
        entry = found[row["sample"]]
        entry["scores"][f"{row['direction']}_{row['level']}"] = row
        if row["note"] and "no image" not in row["note"] and row["note"] not in entry["notes"]:
            entry["notes"].append(row["note"])
    return list(found.values())


def _of(scored: pl.DataFrame, direction: str, level: str) -> pl.DataFrame:
    return scored.filter((pl.col("direction") == direction) & (pl.col("level") == level))


def _headline(scored: pl.DataFrame) -> list[dict[str, Any]]:
    """Median density inside the mask, for each kind of map that has one."""
    words = {
        ("g2r", "specific"): "on the reference object, from the painted patches",
        ("r2g", "specific"): "inside the inpainting mask, by the object’s tokens",
        ("g2r", "unified"): "on the reference object, from all patches",
        ("r2g", "unified"): "inside the inpainting mask, by all reference tokens",
    }
    found = []
    for (direction, level), text in words.items():
        rows = _of(scored, direction, level)
        middle, score = rows["inside"].median(), rows["imacs"].median()
        if isinstance(middle, float) and isinstance(score, float):
            colour = next(colour for d, v, _, colour in SERIES if (d, v) == (direction, level))
            found.append(
                {
                    "value": f"{middle:.2f}",
                    "words": text,
                    "imacs": f"{score:.2f}",
                    "name": direction.upper(),
                    "colour": colour,
                }
            )
    return found


def _strips(scored: pl.DataFrame, column: str, title: str, unit: str, reference: float) -> StripChart | None:
    rows = [(name, colour, _of(scored, direction, level)) for direction, level, name, colour in SERIES]
    return strip_chart(title, unit, rows, column, reference)


def _profiles(tables: dict[str, pl.DataFrame]) -> list[Profile]:
    titles = {"time": "by denoiser steps", "head": "by head", "layer": "by layer, in the model’s order"}
    charts = []
    for level, title in titles.items():
        if level in tables:
            rows = profile(tables[level])
            series = [
                (
                    direction.upper(),
                    f"var(--{direction})",
                    rows.filter(pl.col("direction") == direction).to_dicts(),
                )
                for direction in ("r2g", "g2r")
            ]
            charts.append(profile_chart(title, series))
    return [chart for chart in charts if chart is not None]


def _provenance(run: Run) -> list[tuple[str, str]]:
    """What the run says about itself, as (key, words)."""
    facts = [("store", str(run.path)), ("samples", f"{len(run.samples)} of {len(run.declared)} declared")]
    steps = [f"{step:g}" for step in run.timesteps]
    listed = ", ".join(steps if len(steps) <= 24 else [*steps[:12], "…", *steps[-6:]])
    facts.append(("denoiser calls", f"{len(steps)}; timesteps {listed}"))
    for key, value in run.attrs.items():
        if key not in _NOT_SHOWN and value not in (None, "", {}, []):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
            facts.append((key.replace("_", " "), text if len(text) <= 1500 else text[:1500] + " …"))
    facts.append(("digest", str(run.attrs.get("digest", "none recorded"))))
    return facts
