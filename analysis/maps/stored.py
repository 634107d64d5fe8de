"""The maps of a study in their Zarr store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import xarray as xr

from i2am.analysis.grids.direction import Direction


@dataclass(frozen=True)
class Collected:
    """The maps of a study."""

    path: Path  # the maps store
    maps: dict[
        tuple[Direction, str], xr.DataArray
    ]  # by direction and level: (sample, [level axis], y, x), lazy
    samples: tuple[str, ...]
    absent: tuple[str, ...]  # what could not be computed, and why, one line each


def variable(level: str) -> str:
    """Name of a level's maps in the maps store: a variable may not have the name of its own axis."""
    return f"by_{level}" if level in ("time", "head", "layer") else level


def read_eagerly(collected: Collected) -> Collected:
    """The same maps, read when they are used, without Dask."""
    directions = dict.fromkeys(direction for direction, _ in collected.maps)
    opened = {
        (direction, str(maps.attrs["level"])): maps
        for direction in directions
        for maps in xr.open_zarr(
            collected.path, group=direction, consolidated=False, chunks=None
        ).data_vars.values()
    }
    return replace(collected, maps={key: opened[key] for key in collected.maps})
