"""A study's maps, read straight from their store: a picture needs one sample, a task costs more than that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import xarray as xr

if TYPE_CHECKING:
    from i2am.analysis.collect import Collected


def direct(collected: Collected) -> Collected:
    """Give the same maps, read when they are used, without Dask.

    Parameters
    ----------
    collected
        Maps that lie in their store.
    """
    directions = dict.fromkeys(direction for direction, _ in collected.maps)
    opened = {
        (direction, str(maps.attrs["level"])): maps
        for direction in directions
        for maps in xr.open_zarr(
            collected.path, group=direction, consolidated=False, chunks=None
        ).data_vars.values()
    }
    return replace(collected, maps={key: opened[key] for key in collected.maps})
