"""Maps of a level as blocks of panels: over time, heads and layers, and of a chosen region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from i2am.analysis.drawing.panels import Block, Panel, SampleImages, block
from i2am.analysis.drawing.short_labels import axis_labels
from i2am.analysis.drawing.units import DIRECTION_WORDS, kind_words
from i2am.analysis.grids import tiled_layers
from i2am.analysis.grids.direction import other_side, side_of
from i2am.analysis.grids.regions import (
    A_MASK,
    PIXELS,
    Pixels,
    Region,
    image_mask,
    pixel_mask,
    read_mask,
    read_region,
    region_mask,
)
from i2am.analysis.grids.resize import area

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun


@dataclass(frozen=True, slots=True)
class PanelSide:
    """Images of a direction: below its maps, outlined on them, and the one that regions are chosen on."""

    below: str
    mask: str
    asked: str


SIDES: Mapping[str, PanelSide] = {
    "r2g": PanelSide("generated", "mask", "reference"),
    "g2r": PanelSide("reference", "reference_mask", "generated"),
}

GRID_LEVELS = ("time", "head", "layer")
"""Levels with an axis of their own."""


def heading(attrs: Mapping[str, Any]) -> str:
    """Direction, method and kind of maps in words, such as "R2G (similarity) on the generated image"."""
    direction = str(attrs["direction"])
    method = attrs.get("method", "i2am")
    named = "" if method in ("i2am", attrs["kind"]) else f", {method}"
    return f"{direction.upper()}{named}{kind_words(attrs['kind'])} {DIRECTION_WORDS[direction]}"


def label_titles(maps: xr.DataArray) -> list[str]:
    """Titles along the level's own axis; layers by what tells them apart."""
    level = str(maps.attrs["level"])
    labels = axis_labels(level, [str(label) for label in maps[level].values], most=22)
    if level == "time":
        return [f"step{'s' if '–' in label else ''} {label}" for label in labels]
    return [f"head {label}" for label in labels] if level == "head" else labels


def level_block(maps: xr.DataArray, sample: SampleImages, title: str | None = None) -> Block:
    """Drawable maps (level axis, y, x) of one sample, or a mean over samples, after their image."""
    side = SIDES[maps.attrs["direction"]]
    image, mask = sample.images.get(side.below), sample.masks.get(side.mask)
    panels = [] if image is None else [Panel(side.below, image, mask=mask)]
    labels = maps[maps.attrs["level"]].values
    panels += [
        Panel(words, image, values, mask, full_title=str(label))
        for words, label, values in zip(label_titles(maps), labels, maps.values, strict=True)
    ]
    return block(heading(maps.attrs) if title is None else title, panels)


def sample_block(maps: xr.DataArray, sample: SampleImages, run: AnyRun | None, title: str = "map") -> Block:
    """Drawable maps ([level axis], y, x) of one sample, direction and level; `title`: of a single map."""
    level = maps.attrs["level"]
    if level in GRID_LEVELS:
        return level_block(maps, sample)
    specific = level == "specific"
    panels = specific_panels(maps, sample, run, title) if specific else [plain_panel(maps, sample, title)]
    return block(heading(maps.attrs), panels)


def plain_panel(maps: xr.DataArray, sample: SampleImages, title: str) -> Panel:
    """A drawable map (y, x) without a level axis, over its image."""
    side = SIDES[maps.attrs["direction"]]
    return Panel(title, sample.images.get(side.below), maps.values, sample.masks.get(side.mask))


def specific_panels(maps: xr.DataArray, sample: SampleImages, run: AnyRun | None, title: str) -> list[Panel]:
    """A drawable map (y, x) of a chosen region, after the image that the region was chosen on.

    That image is left out where `run` is None: the run knows the grid that patches are counted on.
    """
    panel = plain_panel(maps, sample, title)
    if run is None:
        return [panel]
    asked = asked_region(run, maps.attrs, sample)
    image = sample.images.get(SIDES[maps.attrs["direction"]].asked)
    return [Panel(asked_words(maps.attrs, asked is not None), image, asked=asked), panel]


def asked_words(attrs: Mapping[str, Any], known: bool = True) -> str:
    """What was asked about, in words, such as "asked: patch 12,8 of generated"."""
    image = SIDES[attrs["direction"]].asked
    at = str(attrs["at"])
    places = read_region(at)
    if read_mask(at) is not None:
        return f"asked: {A_MASK} on {image}"
    if places is None:
        return f"asked: {at.replace('_', ' ')}" + ("" if known else ", not shown")
    if len(places) > 1:
        return f"asked: {len(places)} {'pixels' if at.startswith(PIXELS) else 'patches'} of {image}"
    kind = "pixel" if at.startswith(PIXELS) else "patch" if len(places[0]) == 2 else "box"
    return f"asked: {kind} {','.join(map(str, places[0]))} of {image}"


def asked_region(run: AnyRun, attrs: Mapping[str, Any], sample: SampleImages) -> NDArray[np.float64] | None:
    """Region of a specific map as a mask [y, x], or None where the maps do not carry it.

    The mask has the size of the layers' largest grid, in whose patches a region is counted, or its own.
    """
    at = str(attrs["at"])
    places, side = read_region(at), other_side(side_of(attrs["direction"]))
    if (mask := read_mask(at)) is not None:
        return mask
    if places is None:
        pixels = sample.images.get(at)
        return None if pixels is None else image_mask(pixels).astype(np.float64)
    layers = [run.layers[name] for name in attrs["layers"]]
    grid = tiled_layers.largest_grid(layers, side)
    if at.startswith(PIXELS):  # the patches that they lie in: a pixel would not be seen
        return np.asarray(area(pixel_mask(run, side, cast(Pixels, places)), grid) > 0, dtype=np.float64)
    return region_mask(cast(Region, places if len(places) > 1 else places[0]), grid)
