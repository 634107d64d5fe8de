"""The pictures that show one sample at a glance: its images, and its unified and specific maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from i2am.analysis.drawing.level_panels import SIDES
from i2am.analysis.drawing.panels import Panel, SampleImages
from i2am.analysis.drawing.units import drawable, kind_words
from i2am.analysis.grids.direction import Direction

if TYPE_CHECKING:
    from i2am.analysis.maps.stored import Collected

IMAGES = (
    ("source", "source, mask outlined", "mask"),
    ("reference", "reference, object outlined", "reference_mask"),
    ("generated", "generated", ""),
)
"""(image, title, mask to outline) of the plain panels."""

MAPS: tuple[tuple[Direction, str, str], ...] = (
    ("r2g", "unified", "R2G"),
    ("g2r", "unified", "G2R"),
    ("r2g", "specific", "R2G of the object's tokens"),
    ("g2r", "specific", "G2R of painted patches"),
)
"""(direction, level, title) of the map panels."""


def sample_maps(collected: Collected, sample: str) -> dict[tuple[Direction, str], xr.DataArray]:
    """Unified and specific maps (y, x) of a sample, drawable, by (direction, level)."""
    return {
        (direction, level): drawable(collected.maps[direction, level].sel(sample=sample))
        for direction, level, _ in MAPS
        if (direction, level) in collected.maps
    }


def sample_panels(collected: Collected, sample: str, images: SampleImages) -> dict[str, list[Panel]]:
    """Panels of a sample in groups: "images", "unified" and "specific", as far as there are any."""
    groups = {
        "images": [
            Panel(title, images.images[name], mask=images.masks.get(mask))
            for name, title, mask in IMAGES
            if name in images.images
        ]
    }
    maps = sample_maps(collected, sample)
    for direction, level, title in MAPS:
        if (direction, level) in maps:
            own, side = maps[direction, level], SIDES[direction]
            words = title + kind_words(own.attrs["kind"])
            panel = Panel(words, images.images.get(side.below), own.values, images.masks.get(side.mask))
            groups.setdefault(level, []).append(panel)
    return groups
