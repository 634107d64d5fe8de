"""The report's pages of the levels: scores along a level, its mean maps, and every sample's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
import xarray as xr

from i2am.analysis.drawing.colours import limit
from i2am.analysis.drawing.level_panels import sample_block
from i2am.analysis.drawing.panels import NO_IMAGES, Block, SampleImages
from i2am.analysis.drawing.units import Units, drawable, units_of
from i2am.analysis.grids.direction import DIRECTIONS
from i2am.analysis.maps.mean_over_samples import MeanMaps
from i2am.analysis.report.level_charts import level_charts, level_heats
from i2am.analysis.report.page_list import LevelPage
from i2am.analysis.report.scale_bar import density_bar
from i2am.analysis.report.thumbnails import (
    ThumbnailGrid,
    images_side_by_side,
    maps_over_image,
    thumbnail_size,
)

if TYPE_CHECKING:
    from i2am.analysis.maps.stored import Collected
    from i2am.storage.reading.run_collection import AnyRun

MOST = 176
"""Longer side of a map in a grid, at most (pixels)."""

MOST_SPECIFIC = 288
"""Longer side of a picture of a chosen region, at most (pixels)."""


def level_page_values(
    run: AnyRun,
    collected: Collected,
    tables: Mapping[str, pl.DataFrame],
    means: MeanMaps,
    page: LevelPage,
    details: int,
    step: Callable[[], None],
) -> dict[str, Any]:
    """Values of a page's template; `details`: samples shown, at most; `step` is called after each."""
    level, order = page.level, list(run.layers)
    longest, count = _room(collected, level, details)
    shown = collected.samples[:count]
    maps = {way: collected.maps[way, level] for way in DIRECTIONS if (way, level) in collected.maps}
    units = units_of(next(iter(maps.values())).attrs)
    end = limit(drawable(own.sel(sample=sample)) for sample in shown for own in maps.values())
    samples = []
    for number, sample in enumerate(shown):
        images = SampleImages.read(run, sample)
        blocks = [sample_block(drawable(own.sel(sample=sample)), images, run) for own in maps.values()]
        grids = [_grid(level, block, end, longest, units) for block in blocks]
        samples.append({"anchor": f"s{number}", "sample": sample, "grids": grids})
        step()
    average = [drawable(means[way, level]) for way in maps if (way, level) in means]
    mean_end = limit(average)
    mean_blocks = [sample_block(own, NO_IMAGES, None, "mean over samples") for own in average]
    return {
        "level": level,
        "name": page.name,
        "lede": page.lede,
        "notes": list(_notes(list(maps.values()))),
        "ways": list(maps),
        "charts": level_charts(tables, level, units, order),
        "heats": list(level_heats(tables, level, units, order, shown)),
        "means": [maps_over_image(block, mean_end, longest, units.sign) for block in mean_blocks],
        "mean_scale": density_bar(mean_end, units.bar) if average else None,
        "samples": samples,
        "scale": density_bar(end, units.bar),
        "hidden": len(collected.samples) - len(shown),
    }


def shown_samples(collected: Collected, level: str, details: int) -> int:
    """Samples that the page of a level shows."""
    return _room(collected, level, details)[1]


def _room(collected: Collected, level: str, details: int) -> tuple[int, int]:
    """Longer side of a thumbnail (pixels), and the samples that there is room for."""
    wanted = min(details, len(collected.samples))
    found = [maps for (_, own), maps in collected.maps.items() if own == level]
    if level == "specific":
        return thumbnail_size(0, 2 * len(found), wanted, MOST_SPECIFIC)
    maps = sum(own.sizes[level] for own in found)
    longest, count = thumbnail_size(maps, 2 * len(found), wanted + 1, MOST)  # one more: the mean maps
    return longest, max(count - 1, 0)


def _grid(level: str, block: Block, end: float, longest: int, units: Units) -> ThumbnailGrid:
    """A region's map stands beside the image that it was chosen on; other maps share one image."""
    make = images_side_by_side if level == "specific" else maps_over_image
    return make(block, end, longest, units.sign)


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
