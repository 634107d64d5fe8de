"""The report's pages of the levels: what a level means, scores along it, its mean maps, and every sample's.

A page reads a sample at a time, and shows as many as keep its pictures below `i2am.analysis.report.thumbnails.PAGE_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl
import xarray as xr

from i2am.analysis.drawing.colours import limit
from i2am.analysis.drawing.level_panels import heading, level_block, plain_panel, specific_panels
from i2am.analysis.drawing.panels import NO_IMAGES, SampleImages, block
from i2am.analysis.drawing.units import Units, drawable, units_of
from i2am.analysis.grids.direction import DIRECTIONS
from i2am.analysis.maps.mean_over_samples import MeanMaps
from i2am.analysis.report.level_charts import Chart, level_charts, level_heats
from i2am.analysis.report.page_list import LevelPage
from i2am.analysis.report.svg.heat_table import HeatTable
from i2am.analysis.report.svg.scale_bar import Scale, density_scale
from i2am.analysis.report.thumbnails import TileGrid, image_tiles, tile_grid, tile_size

if TYPE_CHECKING:
    from i2am.analysis.maps.stored import Collected
    from i2am.storage.reading.run_collection import AnyRun

MOST = 176
"""Longer side of a map in a grid, at most (pixels)."""

MOST_SPECIFIC = 288
"""Longer side of a picture of a chosen region, at most (pixels)."""


@dataclass(frozen=True, slots=True)
class SampleGrids:
    """One sample of a page: its anchor, id, and a grid for each direction."""

    anchor: str
    sample: str
    grids: tuple[TileGrid, ...]


@dataclass(frozen=True, slots=True)
class PageContent:
    """Everything that a level's page shows; `hidden` counts the samples that it does not."""

    level: str
    name: str
    lede: str
    notes: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    charts: tuple[tuple[str, Chart], ...]
    heats: tuple[HeatTable, ...]
    means: tuple[TileGrid, ...]
    mean_scale: Scale | None
    samples: tuple[SampleGrids, ...]
    scale: Scale
    hidden: int


def page_content(
    run: AnyRun,
    collected: Collected,
    tables: Mapping[str, pl.DataFrame],
    means: MeanMaps,
    page: LevelPage,
    details: int,
    step: Callable[[], None],
) -> PageContent:
    """Gather what the page of a level shows.

    Parameters
    ----------
    run, collected, tables, means
        What a study found.
    page
        The level.
    details
        Samples shown, at most.
    step
        Called after each sample.
    """
    level = page.level
    longest, count = _room(collected, level, details)
    shown = collected.samples[:count]
    maps = {way: collected.maps[way, level] for way in DIRECTIONS if (way, level) in collected.maps}
    units = units_of(next(iter(maps.values())).attrs)
    end = limit(drawable(own.sel(sample=sample)) for sample in shown for own in maps.values())
    samples = []
    for number, sample in enumerate(shown):
        images = SampleImages.read(run, sample)
        grids = tuple(
            _grid(run, own.sel(sample=sample), images, end, longest, units) for own in maps.values()
        )
        samples.append(SampleGrids(f"s{number}", sample, grids))
        step()
    average = [drawable(means[way, level]) for way in maps if (way, level) in means]
    mean_end = limit(average)
    return PageContent(
        level=level,
        name=page.name,
        lede=page.lede,
        notes=tuple(_notes(list(maps.values()))),
        keys=tuple((way.upper(), f"var(--{way})") for way in maps),
        charts=tuple(level_charts(tables, level, units, list(run.layers))),
        heats=tuple(level_heats(tables, level, units, list(run.layers), shown)),
        means=tuple(_mean_grid(own, mean_end, longest, units) for own in average),
        mean_scale=density_scale(mean_end, units.bar) if average else None,
        samples=tuple(samples),
        scale=density_scale(end, units.bar),
        hidden=len(collected.samples) - len(shown),
    )


def shown_samples(collected: Collected, level: str, details: int) -> int:
    """Samples that the page of a level shows."""
    return _room(collected, level, details)[1]


def _room(collected: Collected, level: str, details: int) -> tuple[int, int]:
    """Longer side of a tile (pixels), and the samples that there is room for."""
    wanted = min(details, len(collected.samples))
    found = [maps for (_, own), maps in collected.maps.items() if own == level]
    if level == "specific":
        return tile_size(0, 2 * len(found), wanted, MOST_SPECIFIC)
    tiles = sum(maps.sizes[level] for maps in found)
    longest, count = tile_size(tiles, 2 * len(found), wanted + 1, MOST)  # one more: the mean maps
    return longest, max(count - 1, 0)


def _grid(
    run: AnyRun, maps: xr.DataArray, images: SampleImages, end: float, longest: int, units: Units
) -> TileGrid:
    """One sample's maps of one direction."""
    own = drawable(maps)
    if own.attrs["level"] == "specific":
        panels = specific_panels(own, images, run, "map")
        return image_tiles(block(heading(own.attrs), panels), end, longest, units.sign)
    return tile_grid(level_block(own, images), end, longest, units.sign)


def _mean_grid(maps: xr.DataArray, end: float, longest: int, units: Units) -> TileGrid:
    if maps.attrs["level"] == "specific":
        panel = plain_panel(maps, NO_IMAGES, "mean over samples")
        return tile_grid(block(heading(maps.attrs), [panel]), end, longest, units.sign)
    return tile_grid(level_block(maps, NO_IMAGES), end, longest, units.sign)


def _notes(maps: Sequence[xr.DataArray]) -> Iterator[str]:
    """What a reader must know before reading: what is no attention, and what is no density."""
    for own in maps:
        if own.attrs["kind"] != "attention":
            yield (
                f"{own.attrs['direction'].upper()} is a {own.attrs['kind']}"
                f"{' of attention and similarity' if own.attrs['kind'] == 'mixed' else ''}: layers with one "
                "pooled token give it the weight 1 whatever the logits are. Such a map shows how alike query "
                "and key are, not what the model did with them."
            )
    if maps[0].attrs["protocol"] == "official":
        yield (
            "Official protocol: values are sums over steps, not densities; pictures show them relative to "
            "the mean of the maps of a sample and direction."
        )
