"""Maps into a Zarr store, a block of samples at a time: no graph is as long as the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr

from i2am.storage.reading.run_collection import home_of

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun

BLOCK = 64
"""Samples whose maps are computed by one graph."""


@dataclass(frozen=True)
class BlockwiseMaps:
    """Maps that can be asked for some samples at a time."""

    ask: Callable[..., xr.DataArray]  # samples=ids to lazy maps, (sample, [level axis], y, x)
    along: Mapping[str, Any]  # coordinates of all samples, and those that depend on all of them
    example: xr.DataArray  # maps of some samples, lazily

    @classmethod
    def resolve(cls, ask: Callable[..., xr.DataArray], run: AnyRun, names: Sequence[str]) -> BlockwiseMaps:
        """Fix what depends on all samples, such as the size at which runs of different grids meet.

        `ask` is `attribution_maps` with all arguments but ``samples``; its errors come from here.
        """
        first: dict[int, int] = {}  # one sample of each run says all that is to know
        place = [first.setdefault(id(home_of(run, name)), at) for at, name in enumerate(names)]
        maps = ask(samples=[names[at] for at in first.values()])
        number = {at: number for number, at in enumerate(first.values())}
        along: dict[str, Any] = {"sample": np.asarray(names, dtype=object)}
        for key, coord in maps.coords.items():
            if coord.dims == ("sample",) and key != "sample":
                along[str(key)] = ("sample", coord.values[[number[at] for at in place]])
            elif key == "timestep":  # of all runs, not of those in the first block
                along[str(key)] = (coord.dims, coord.values)
        if "own_rows" in maps.coords:
            ask = partial(ask, size=(maps.sizes["y"], maps.sizes["x"]))
        return cls(ask, along, maps)

    @classmethod
    def of(cls, maps: xr.DataArray) -> BlockwiseMaps:
        """Maps that were asked for all samples at once."""
        along = {str(key): coord for key, coord in maps.coords.items() if "sample" in coord.dims}
        return cls(lambda samples: maps.sel(sample=list(samples)), along, maps)


def write_maps(
    asked: Mapping[str, BlockwiseMaps],
    names: Sequence[str],
    path: Path,
    group: str | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Compute variables, of the same samples, into a group of a store, which may hold others already."""
    for start in range(0, len(names), BLOCK):
        block = names[start : start + BLOCK]
        maps = xr.Dataset({name: own.ask(samples=block) for name, own in asked.items()})
        if start == 0:
            along = {key: value for own in asked.values() for key, value in own.along.items()}
            _empty(maps, len(names), along).assign_attrs(attrs or {}).to_zarr(
                path, group=group, mode="a", zarr_format=3, consolidated=False, compute=False
            )
        region = {"sample": slice(start, start + len(block))}
        maps.drop_vars(list(maps.coords)).to_zarr(path, group=group, region=region, consolidated=False)


def _empty(part: xr.Dataset, count: int, along: Mapping[str, Any]) -> xr.Dataset:
    """A dataset for all samples with the attributes and the other axes of one for some, to be filled."""
    found = {}
    for name, maps in part.data_vars.items():
        shape = (count, *maps.shape[1:])
        coords = {key: value for key, value in maps.coords.items() if "sample" not in value.dims}
        empty = da.zeros(shape, dtype=maps.dtype, chunks=(BLOCK, *shape[1:]))
        found[name] = xr.DataArray(empty, dims=maps.dims, coords=coords, attrs=maps.attrs, name=name)
        found[name].encoding.update(maps.encoding)
    return xr.Dataset(found).assign_coords(along)
