"""The figures of a study: each sample at a glance and level by level, mean maps, distributions, profiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import xarray as xr

from i2am.analysis.drawing.charts import profiles
from i2am.analysis.drawing.colours import limit
from i2am.analysis.drawing.level_panels import sample_block
from i2am.analysis.drawing.matplotlib_style import save
from i2am.analysis.drawing.panels import NO_IMAGES, SampleImages, block
from i2am.analysis.drawing.sample_panels import sample_maps, sample_panels
from i2am.analysis.drawing.sheet import sheet
from i2am.analysis.drawing.units import drawable, kind_words, units_of
from i2am.analysis.events import Listener, counter
from i2am.analysis.grids.direction import DIRECTIONS
from i2am.analysis.maps.mean_over_samples import MeanMaps
from i2am.analysis.report.front_charts import one_score_each, score_strips
from i2am.analysis.report.page_list import LEVEL_PAGES

if TYPE_CHECKING:
    from i2am.analysis.maps.stored import Collected
    from i2am.storage.reading.run_collection import AnyRun

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
    tables: Mapping[str, pl.DataFrame],
    means: MeanMaps,
    out: Path,
    count: int,
    emit: Listener,
) -> None:
    """Draw the figures of a study into a new directory; `count` samples get figures of their own."""
    out.mkdir()
    chosen = collected.samples[:count]
    levels = [level for level in LEVEL_PAGES if any(own == level for _, own in collected.maps)]
    step = counter(emit, "figures", len(chosen) * (1 + len(levels)) + 1)
    _overviews(run, collected, chosen, out, step)
    for level in levels:
        _level(run, collected, chosen, level, out, step)
    for level in ("unified", *levels):
        own = [means[way, level] for way in DIRECTIONS if (way, level) in means]
        if own:
            blocks = [sample_block(drawable(maps), NO_IMAGES, None) for maps in own]
            title = f"Mean over samples{BY[level]}{_kinds(own)}"
            save(sheet(blocks, title, units_of(own[0].attrs).bar, PRIOR), out / f"mean-{level}.png")
    units = units_of(next(iter(collected.maps.values())).attrs)
    charts = (*score_strips(one_score_each(tables), units), profiles(tables, units, list(run.layers)))
    for name, chart in zip(("density", "imacs", "profiles"), charts, strict=True):
        if chart is not None:
            chart.save(out / f"{name}.png")
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


def _kinds(maps: Sequence[xr.DataArray]) -> str:
    """Words for a title that says which directions are no attention."""
    words = [
        f"{own.attrs['direction'].upper()}{kind_words(own.attrs['kind'])}"
        for own in maps
        if own.attrs["kind"] != "attention"
    ]
    return f": {', '.join(dict.fromkeys(words))}" if words else ""
