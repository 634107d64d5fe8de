"""The figures of a study: each sample at a glance and level by level, mean maps, distributions, profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import xarray as xr

from i2am.analysis.drawing.charts import profiles, strips
from i2am.analysis.drawing.colours import limit
from i2am.analysis.drawing.level_panels import GRID_LEVELS, heading, level_block, plain_panel, specific_panels
from i2am.analysis.drawing.matplotlib_style import G2R_COLOUR, R2G_COLOUR, save
from i2am.analysis.drawing.panels import NO_IMAGES, Block, SampleImages, block
from i2am.analysis.drawing.sample_panels import sample_maps, sample_panels
from i2am.analysis.drawing.sheet import sheet
from i2am.analysis.drawing.units import drawable, kind_words, units_of
from i2am.analysis.events import Listener, StageAdvanced, StageStarted
from i2am.analysis.grids.direction import DIRECTIONS
from i2am.analysis.maps.mean_over_samples import MeanMaps, mean_maps
from i2am.analysis.maps.stored import read_eagerly
from i2am.analysis.report.page_list import LEVEL_PAGES
from i2am.analysis.scores.tables import profile

if TYPE_CHECKING:
    from i2am.analysis.maps.stored import Collected
    from i2am.storage.reading.run_collection import AnyRun

SERIES = (
    ("r2g", "unified", "R2G, all reference tokens", R2G_COLOUR),
    ("r2g", "specific", "R2G, the object's tokens", "#d38a6b"),
    ("g2r", "unified", "G2R, all patches", G2R_COLOUR),
    ("g2r", "specific", "G2R, painted patches", "#6f9fc8"),
)
"""(direction, level, name, colour) of the distributions."""

BY = {
    "unified": "",
    "time": ", by denoiser steps",
    "head": ", by head",
    "layer": ", by layer",
    "specific": ", of a chosen region",
}
"""Levels in titles."""

PRIOR = "Mean over samples: objects lie elsewhere in each, so this is what all maps share, a positional bias."


def write_figures(
    run: AnyRun,
    collected: Collected,
    tables: dict[str, pl.DataFrame],
    out: Path,
    count: int,
    emit: Listener,
    means: MeanMaps | None = None,
) -> None:
    """Draw the figures of a study.

    Parameters
    ----------
    run, collected, tables
        What to draw.
    out
        Directory to make: ``sample-NNNN.png`` and ``LEVEL-NNNN.png`` of the first samples,
        ``mean-LEVEL.png``, ``density.png``, ``imacs.png``, ``profiles.png``.
    count
        Samples that get figures of their own.
    tell
        Told after each sample and level.
    means
        Mean maps over samples; computed if not given.
    """
    out.mkdir()
    collected = read_eagerly(collected)
    averages = mean_maps(collected) if means is None else means
    chosen = collected.samples[:count]
    levels = [level for level in LEVEL_PAGES if any(own == level for _, own in collected.maps)]
    total = len(chosen) * (1 + len(levels)) + 1
    emit(StageStarted("figures", total))
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        emit(StageAdvanced("figures", done, total))

    _overviews(run, collected, chosen, out, step)
    for level in levels:
        _level(run, collected, chosen, level, out, step)
    for level in ("unified", *levels):
        own = [averages[way, level] for way in DIRECTIONS if (way, level) in averages]
        if own:
            blocks = [sample_block(drawable(maps), NO_IMAGES, None) for maps in own]
            title = f"Mean over samples{BY[level]}{_kinds(own)}"
            save(sheet(blocks, title, units_of(own[0].attrs).bar, PRIOR), out / f"mean-{level}.png")
    _distributions(tables, collected, list(run.layers), out)
    step()


def _overviews(
    run: AnyRun, collected: Collected, chosen: Sequence[str], out: Path, step: Callable[[], None]
) -> None:
    """Every sample's images, unified and specific maps, on one scale."""
    end = limit(maps for sample in chosen for maps in sample_maps(collected, sample).values())
    note = "Yellow: what to paint, or the object in the reference. Pale is uniform, red more, blue less."
    for number, sample in enumerate(chosen):
        groups = sample_panels(collected, sample, SampleImages.read(run, sample))
        panels = [panel for group in groups.values() for panel in group]
        maps = list(sample_maps(collected, sample).values())
        title = f"Sample {sample}{_kinds(maps)}"
        bar = units_of(maps[0].attrs).bar
        save(sheet([block("", panels)], title, bar, note, end), out / f"sample-{number:04d}.png")
        step()


def _level(
    run: AnyRun, collected: Collected, chosen: Sequence[str], level: str, out: Path, step: Callable[[], None]
) -> None:
    """Every sample's maps of a level, both directions, on one scale."""
    maps = [collected.maps[way, level] for way in DIRECTIONS if (way, level) in collected.maps]
    end = limit(drawable(own.sel(sample=sample)) for sample in chosen for own in maps)
    bar = units_of(maps[0].attrs).bar
    for number, sample in enumerate(chosen):
        images = SampleImages.read(run, sample)
        blocks = [sample_block(drawable(own.sel(sample=sample)), images, run) for own in maps]
        title = f"Sample {sample}{BY[level]}{_kinds(maps)}"
        save(sheet(blocks, title, bar, end=end), out / f"{level}-{number:04d}.png")
        step()


def sample_block(maps: xr.DataArray, images: SampleImages, run: AnyRun | None) -> Block:
    """Drawable maps ([level axis], y, x) of one sample, direction and level, with a heading."""
    if maps.attrs["level"] in GRID_LEVELS:
        return level_block(maps, images)
    if maps.attrs["level"] == "specific":
        return block(heading(maps.attrs), specific_panels(maps, images, run, "map"))
    return block(heading(maps.attrs), [plain_panel(maps, images, "map")])


def _kinds(maps: Sequence[xr.DataArray]) -> str:
    """Words for a title that says which directions are no attention."""
    words = [
        f"{own.attrs['direction'].upper()}{kind_words(own.attrs['kind'])}"
        for own in maps
        if own.attrs["kind"] != "attention"
    ]
    return f": {', '.join(dict.fromkeys(words))}" if words else ""


def _distributions(
    tables: dict[str, pl.DataFrame], collected: Collected, order: Sequence[str], out: Path
) -> None:
    """Density and IMACS over samples, and over every level."""
    units = units_of(next(iter(collected.maps.values())).attrs)
    scored = pl.concat([tables[level] for level in ("unified", "specific") if level in tables])
    rows = []
    for direction, level, name, colour in SERIES:
        values = scored.filter((pl.col("direction") == direction) & (pl.col("level") == level))
        if values["imacs"].count():
            rows.append((name, values, colour))
    if rows:
        inside = [(name, values["inside"].to_numpy(), colour) for name, values, colour in rows]
        scores = [(name, values["imacs"].to_numpy(), colour) for name, values, colour in rows]
        words = f"mean {units.name} inside the mask, {units.unit}"
        title = "Attention inside the mask"
        save(strips(inside, words, units.uniform, title), out / "density.png")
        save(strips(scores, "IMACS, from -penalty to 1", None, "IMACS"), out / "imacs.png")
    levels = [level for level in GRID_LEVELS if level in tables and tables[level]["imacs"].count()]
    if levels:
        spread = profile(pl.concat([tables[level] for level in levels]))
        save(profiles(spread, levels, units, order), out / "profiles.png")
