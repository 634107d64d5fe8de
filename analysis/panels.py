"""The pictures that show one sample: its images, and its maps over the images they lie on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.collect import Collected
from analysis.figures import Panel
from analysis.region import image_mask, sample_image
from analysis.selection import Direction

if TYPE_CHECKING:
    from storage import Run

IMAGES = (
    ("source", "source, mask outlined", "mask"),
    ("reference", "reference, object outlined", "reference_mask"),
    ("generated", "generated", ""),
)
"""(image, title, mask to outline) of the plain panels."""

MAPS: tuple[tuple[Direction, str, str, str, str], ...] = (
    ("r2g", "unified", "generated", "mask", "R2G"),
    ("g2r", "unified", "reference", "reference_mask", "G2R"),
    ("r2g", "specific", "generated", "mask", "R2G of the object's tokens"),
    ("g2r", "specific", "reference", "reference_mask", "G2R of painted patches"),
)
"""(direction, level, image below, mask to outline, title) of the map panels."""


def sample_maps(collected: Collected, sample: str) -> dict[tuple[Direction, str], NDArray[np.float64]]:
    """Unified and specific maps [y, x] of a sample, as they are drawn, by (direction, level)."""
    return {
        (direction, level): drawable(collected.maps[direction, level].sel(sample=sample))
        for direction, level, *_ in MAPS
        if (direction, level) in collected.maps
    }


def drawable(maps: xr.DataArray) -> NDArray[np.float64]:
    """Values for a scale in times uniform: densities as they are, official sums relative to their mean."""
    values = np.asarray(maps, dtype=np.float64)
    return values / values.mean() if maps.attrs["protocol"] == "official" else values


def sample_panels(run: Run, collected: Collected, sample: str) -> list[Panel]:
    """Panels of a sample: source, reference, generated, then every map that there is."""
    found = {name: sample_image(run, name, sample) for name in run.images}
    images = {name: image for name, image in found.items() if image is not None}
    masks: dict[str, NDArray[np.bool_]] = {
        name: image_mask(images[name]) for name in ("mask", "reference_mask") if name in images
    }
    panels = [
        Panel(title, images[name], mask=masks.get(mask or ""))
        for name, title, mask in IMAGES
        if name in images
    ]
    maps = sample_maps(collected, sample)
    for direction, level, image, mask, title in MAPS:
        if (direction, level) in maps:
            similar = collected.maps[direction, level].attrs["kind"] == "similarity"
            name = f"{title} (similarity)" if similar else title
            panels.append(Panel(name, images.get(image), maps[direction, level], masks.get(mask)))
    return panels
