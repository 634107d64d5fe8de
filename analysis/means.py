"""Mean maps over samples: what the maps of a study share wherever the objects are.

Masks and objects lie elsewhere in every sample, so a mean over samples shows no object: it is a prior, the
positional bias of the model, and of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import dask
import numpy as np
import xarray as xr

from analysis.selection import Direction

if TYPE_CHECKING:
    from analysis.collect import Collected

MeanMaps = Mapping[tuple[Direction, str], xr.DataArray]
"""(direction, level) to maps ([level axis], y, x), in memory, with the attributes of the maps."""


def mean_maps(collected: Collected) -> MeanMaps:
    """Mean of every kind of map over the samples of a study, in float64.

    Parameters
    ----------
    collected
        Its maps; read a sample at a time.

    Returns
    -------
    mapping
        Empty where there are fewer than two samples. What is not finite in a sample is left out of the mean;
        NaN where no sample is finite.
    """
    if len(collected.samples) < 2:
        return {}
    parts = {}
    for key, maps in collected.maps.items():
        known: xr.DataArray = xr.apply_ufunc(np.isfinite, maps, dask="allowed")
        parts[key] = maps.where(known, 0).sum("sample", dtype=np.float64), known.sum("sample")
    found = {}
    for key, (total, count) in dask.compute(parts)[0].items():
        counted = np.asarray(count, dtype=np.float64)
        mean = np.divide(total, counted, out=np.full(counted.shape, np.nan), where=counted > 0)
        found[key] = total.copy(data=mean).assign_attrs(collected.maps[key].attrs)
    return found
