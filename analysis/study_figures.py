"""The figures of a study: overviews of the first samples, distributions, profiles over levels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from analysis.colour import limit
from analysis.events import Listener, StageAdvanced, StageStarted
from analysis.figures import G2R_COLOUR, R2G_COLOUR, overview, profiles, save, strips
from analysis.panels import sample_maps, sample_panels
from analysis.tables import profile

if TYPE_CHECKING:
    from analysis.collect import Collected
    from storage import Run

SERIES = (
    ("r2g", "unified", "R2G, all reference tokens", R2G_COLOUR),
    ("r2g", "specific", "R2G, the object's tokens", "#d38a6b"),
    ("g2r", "unified", "G2R, all patches", G2R_COLOUR),
    ("g2r", "specific", "G2R, painted patches", "#6f9fc8"),
)
"""(direction, level, name, colour) of the distributions."""


def write_figures(
    run: Run, collected: Collected, tables: dict[str, pl.DataFrame], out: Path, count: int, tell: Listener
) -> None:
    """Draw the figures of a study.

    Parameters
    ----------
    run, collected, tables
        What to draw.
    out
        Directory to make.
    count
        Samples that get an overview of their own.
    tell
        Told after each.
    """
    out.mkdir()
    chosen = collected.samples[:count]
    tell(StageStarted("figures", len(chosen) + 1))
    end = limit(maps for sample in chosen for maps in sample_maps(collected, sample).values())
    for number, sample in enumerate(chosen):
        panels = sample_panels(run, collected, sample)
        note = "Yellow: what to paint, or the object in the reference. Pale is uniform, red more, blue less."
        save(overview(panels, end, f"Sample {sample}", note), out / f"sample-{number:04d}.png")
        tell(StageAdvanced("figures", number + 1, len(chosen) + 1))
    scored = pl.concat([tables[level] for level in ("unified", "specific") if level in tables])
    rows = []
    for direction, level, name, colour in SERIES:
        values = scored.filter((pl.col("direction") == direction) & (pl.col("level") == level))
        if values["imacs"].count():
            rows.append((name, values, colour))
    if rows:
        densities = [(name, values["inside"].to_numpy(), colour) for name, values, colour in rows]
        scores = [(name, values["imacs"].to_numpy(), colour) for name, values, colour in rows]
        save(
            strips(densities, "mean density inside the mask, × uniform", 1.0, "Attention inside the mask"),
            out / "density.png",
        )
        save(strips(scores, "IMACS, from -penalty to 1", None, "IMACS"), out / "imacs.png")
    levels = [
        level for level in ("time", "head", "layer") if level in tables and tables[level]["imacs"].count()
    ]
    if levels:
        save(profiles(profile(pl.concat([tables[level] for level in levels])), levels), out / "profiles.png")
    tell(StageAdvanced("figures", len(chosen) + 1, len(chosen) + 1))
