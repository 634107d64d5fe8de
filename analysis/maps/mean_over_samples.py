"""Mean maps over samples: the positional bias of the model and of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import xarray as xr

from i2am.analysis.grids.direction import Direction
from i2am.analysis.maps.stored import Collected

# (direction, level) to maps ([level axis], y, x), in memory, with the attributes of the maps.
MeanMaps = Mapping[tuple[Direction, str], xr.DataArray]
BLOCK_BYTES = 32 * 2**20  # bytes of maps that are read at once, at most, unless one sample has more
BLOCK_SAMPLES = 64  # samples that are read at once, at most


def mean_maps(collected: Collected) -> MeanMaps:
    """Mean of every kind of map over samples, of finite values, in float64; empty for fewer than two."""
    if len(collected.samples) < 2:
        return {}
    return {key: _mean(maps) for key, maps in collected.maps.items()}


def _mean(maps: xr.DataArray) -> xr.DataArray:
    shape = maps.shape[1:]
    total, count = np.zeros(shape, np.float64), np.zeros(shape, np.float64)
    many = max(1, min(BLOCK_SAMPLES, BLOCK_BYTES // (math.prod(shape) * maps.dtype.itemsize)))
    for start in range(0, maps.sizes["sample"], many):
        values = np.asarray(maps[start : start + many])
        known = np.isfinite(values)
        total += np.where(known, values, 0).sum(axis=0, dtype=np.float64)
        count += known.sum(axis=0)
    mean = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return maps[0].drop_vars("sample", errors="ignore").copy(data=mean)
