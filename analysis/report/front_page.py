"""What the report's front page shows: headline, scores over all samples, their table, and some in detail."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from i2am.analysis.drawing.charts import KINDS
from i2am.analysis.drawing.colours import limit
from i2am.analysis.drawing.matplotlib_style import CSS_VARIABLES
from i2am.analysis.drawing.panels import SampleImages
from i2am.analysis.drawing.sample_panels import MAPS, sample_maps, sample_panels
from i2am.analysis.drawing.units import Units, units_of
from i2am.analysis.report.front_charts import front_charts, one_score_each
from i2am.analysis.report.scale_bar import density_bar
from i2am.analysis.report.thumbnails import image_thumbnail, thumbnail_size
from i2am.storage.reading.run_collection import distinct_layers, members_of
from i2am.storage.reading.witness import WitnessSummary, summarise_witness

if TYPE_CHECKING:
    from i2am.analysis.events import SampleRefused
    from i2am.analysis.maps.stored import Collected
    from i2am.storage.reading.run_collection import AnyRun

MOST = 320
"""Longer side of a picture, at most (pixels)."""

HEADLINES = {
    ("g2r", "specific"): "on the reference object, from the painted patches",
    ("r2g", "specific"): "inside the inpainting mask, by the object’s tokens",
    ("g2r", "unified"): "on the reference object, from all patches",
    ("r2g", "unified"): "inside the inpainting mask, by all reference tokens",
}
"""(direction, level) to what its median is of."""

_NOT_SHOWN = {"samples", "layers", "timesteps", "metadata", "digest", "images", "seeds"}


def front_samples(collected: Collected, details: int) -> int:
    """Samples that the front page shows in detail."""
    return _room(collected, details)[1]


def _room(collected: Collected, details: int) -> tuple[int, int]:
    """Longer side of a picture (pixels), and the samples that there is room for."""
    pictures = 3 + sum((way, level) in collected.maps for way, level, _ in MAPS)
    return thumbnail_size(0, pictures, min(details, len(collected.samples)), MOST)


def front_page_values(
    run: AnyRun,
    collected: Collected,
    tables: Mapping[str, pl.DataFrame],
    refusals: Sequence[SampleRefused],
    details: int,
    levels: Mapping[str, tuple[str, int]],
    step: Callable[[], None],
) -> dict[str, Any]:
    """Values of the page's template; `levels` are pages: file to (name, samples that it shows).

    `details` counts the samples shown with their pictures, at most; `step` is called after each.
    """
    attrs = next(iter(collected.maps.values())).attrs
    units = units_of(attrs)
    scored = one_score_each(tables)
    longest, count = _room(collected, details)
    shown = collected.samples[:count]
    ends = _scale_ends(collected, shown)
    drawn = {layer: None for maps in collected.maps.values() for layer in maps.attrs["layers"]}
    witness = summarise_witness(run, collected.samples, drawn)
    detailed = []
    for number, sample in enumerate(shown):
        more = {file: name for file, (name, shows) in levels.items() if number < shows}
        detailed.append(_detail(run, collected, sample, number, ends, longest, units) | {"pages": more})
        step()
    return {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "run": run,
        "kinds": {"r2g": "attention"}
        | {way: maps.attrs["kind"] for (way, _), maps in collected.maps.items()},
        "headline": _headline(scored),
        "penalty": scored["penalty"][0] if scored.height else 3.0,
        "series": _present(scored),
        "rows": _rows(scored, collected, len(detailed)),
        "charts": front_charts(tables, scored, units, list(run.layers)),
        "details": detailed,
        "scales": {level: density_bar(end, units.bar) for level, end in ends.items()},
        "refusals": refusals,
        "absent": collected.absent,
        "provenance": [*provenance(run), ("witness", witness.words)],
        "unwitnessed": _unwitnessed(witness, len(collected.samples)),
        "layers": distinct_layers(run),
        "total": len(collected.samples),
        "attrs": attrs,
        "number": lambda value: f"{value:.3g}" if units.uniform is None else f"{value:.2f}{units.sign}",
    }


def _unwitnessed(witness: WitnessSummary, samples: int) -> list[str]:
    """The layers that were not compared with the kernel at every step, and in how many samples if not all."""
    return [
        layer if count == samples else f"{layer} ({count} of {samples} samples)"
        for layer, count in witness.unwitnessed.items()
    ]


def _scale_ends(collected: Collected, shown: Sequence[str]) -> dict[str, float]:
    """End of the colour scale of the unified and of the specific maps."""
    return {
        level: limit(
            maps
            for sample in shown
            for (_, own), maps in sample_maps(collected, sample).items()
            if own == level
        )
        for level in ("unified", "specific")
        if any(own == level for _, own in collected.maps)
    }


def _detail(
    run: AnyRun,
    collected: Collected,
    sample: str,
    number: int,
    ends: Mapping[str, float],
    longest: int,
    units: Units,
) -> dict[str, Any]:
    """Pictures of one sample, in groups that share a colour scale."""
    groups = {
        level: [image_thumbnail(panel, ends.get(level, 2.0), longest, units.sign) for panel in panels]
        for level, panels in sample_panels(collected, sample, SampleImages.read(run, sample)).items()
    }
    notes = run.record(sample).get("annotations", {})
    short = {
        key: value
        for key, value in notes.items()
        if isinstance(value, (str, int, float)) and len(str(value)) < 80
    }
    return {"sample": sample, "anchor": f"s{number}", "groups": groups, "notes": short}


def _present(scored: pl.DataFrame) -> list[dict[str, str]]:
    """The kinds of map that this study has."""
    found = set(scored.select("direction", "level").iter_rows())
    return [
        {
            "key": f"{way}_{level}",
            "direction": way,
            "level": level,
            "name": name,
            "colour": CSS_VARIABLES[colour],
        }
        for way, level, name, colour in KINDS
        if (way, level) in found
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


def _headline(scored: pl.DataFrame) -> list[dict[str, Any]]:
    """Median value inside the mask, for each kind of map that has one."""
    colours = {(way, level): CSS_VARIABLES[colour] for way, level, _, colour in KINDS}
    found = []
    for (way, level), words in HEADLINES.items():
        rows = scored.filter(direction=way, level=level)
        middle, score = rows["inside"].median(), rows["imacs"].median()
        if isinstance(middle, float) and isinstance(score, float):
            item = {"value": f"{middle:.2f}", "imacs": f"{score:.2f}", "words": words}
            found.append(item | {"name": way.upper(), "colour": colours[way, level]})
    return found


def provenance(run: AnyRun) -> list[tuple[str, str]]:
    """What the run says about itself, as (key, words)."""
    members = members_of(run)
    stores = "\n".join(
        f"{own.path}: {len(own.samples)} samples, digest {own.attrs['digest']}" for own in members
    )
    facts = [("store", run.path if len(members) == 1 else stores)]
    facts.append(("samples", f"{len(run.samples)} of {len(run.declared)} declared"))
    steps = [f"{step:g}" for step in run.timesteps]
    listed = ", ".join(steps if len(steps) <= 24 else [*steps[:12], "…", *steps[-6:]])
    facts.append(("denoiser calls", f"{len(steps)}; timesteps {listed}"))
    for key, value in run.attrs.items():
        if key not in _NOT_SHOWN and value not in (None, "", {}, []):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
            facts.append((key.replace("_", " "), text if len(text) <= 1500 else text[:1500] + " …"))
    if len(members) == 1:
        facts.append(("digest", str(run.attrs.get("digest", "none recorded"))))
    return facts
