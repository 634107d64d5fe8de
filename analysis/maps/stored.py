"""The maps of a study in their Zarr store, and how a picture reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import xarray as xr

from i2am.analysis.grids.direction import Direction


@dataclass(frozen=True)
class Collected:
    """The maps of a study."""

    path: Path  # the maps store
    # (direction, level) to maps (sample, [level axis], y, x), read lazily from the store
    maps: dict[tuple[Direction, str], xr.DataArray]
    samples: tuple[str, ...]  # ids, in order
    absent: tuple[str, ...]  # what could not be computed, and why, one line each


def variable(level: str) -> str:
    """Name of a level's maps in the maps store: a variable may not be called as its own axis."""
    return f"by_{level}" if level in ("time", "head", "layer") else level


def direct(collected: Collected) -> Collected:
    """Give the same maps, read when they are used, without Dask."""
    directions = dict.fromkeys(direction for direction, _ in collected.maps)
    opened = {
        (direction, str(maps.attrs["level"])): maps
        for direction in directions
        for maps in xr.open_zarr(
            collected.path, group=direction, consolidated=False, chunks=None
        ).data_vars.values()
    }
    return replace(collected, maps={key: opened[key] for key in collected.maps})
