"""Maps and aggregations of several runs: those of each, concatenated along the samples (METHODS.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from i2am.analysis.grids import regions, tiled_layers
from i2am.analysis.grids.direction import other_side, side_of
from i2am.analysis.grids.resize import Grid
from i2am.analysis.grids.selection import select_samples
from i2am.analysis.marginals.store import StorePlace, store_in_folder
from i2am.storage.errors import InputError, NoAnswer
from i2am.storage.reading.run import Run
from i2am.storage.reading.run_collection import Runs


def combine_runs(
    runs: Runs,
    samples: Sequence[str] | str | None,
    size: Grid | None,
    store: StorePlace,
    make: Callable[..., xr.DataArray],
) -> xr.DataArray:
    """Concatenate what `make` (run, samples=, size=, store=) returns for every run with a sample asked for.

    `store` is a folder for the derived stores of all runs. Maps of different grids are made at `size`, or at
    `common_size`.
    """
    names = select_samples(runs, samples)
    numbers = {id(member): number for number, member in enumerate(runs.members)}
    by_run: dict[int, list[str]] = {}
    for name in names:
        by_run.setdefault(numbers[id(runs.home(name))], []).append(name)
    parts = [(runs.members[number], tuple(own)) for number, own in sorted(by_run.items())]

    def make_all(grid: Grid | None) -> list[xr.DataArray]:
        return [make(run, samples=own, size=grid, store=store_in_folder(store, run)) for run, own in parts]

    results = make_all(size)
    grids = [own_grid(member, maps.attrs) for (member, _), maps in zip(parts, results, strict=True)]
    shapes = list(dict.fromkeys((maps.sizes.get("y", 0), maps.sizes.get("x", 0)) for maps in results))
    if len(shapes) > 1:
        results = make_all(common_size(shapes, results[0].attrs))
    return _concatenate(runs, names, parts, results, grids)


def common_size(shapes: Sequence[Grid], attrs: dict[str, Any]) -> Grid:
    """The largest of different grids, at which all maps are made if no size is given.

    Official maps (`NoAnswer`), and grids of different aspect ratios (`InputError`), have none.
    """
    text = ", ".join(f"{rows}x{columns}" for rows, columns in shapes[:4])
    if attrs.get("protocol") == "official":
        raise NoAnswer(
            "official maps of runs with different grids",
            expected="one grid: the official code does not resize these maps",
            got=text,
            remedy="use the corrected protocol, or ask each run by itself",
        )
    largest = max(shapes, key=math.prod)
    if any(rows * largest[1] != columns * largest[0] for rows, columns in shapes):
        raise InputError(
            "the runs' grids differ in their aspect ratio",
            expected="a size (rows, columns) for the maps of all",
            got=text,
            remedy="give one: size=(64, 64), --size 64x64, or size in the configuration",
        )
    return largest


def own_grid(run: Run, attrs: dict[str, Any], *, other: bool = False) -> Grid | None:
    """The largest grid of a result's layers, on its image or the other one; None if it is no map."""
    side = side_of(attrs["direction"]) if "direction" in attrs else attrs.get("side")
    if not side:
        return None
    layers = [run.layers[name] for name in attrs["layers"]]
    return tiled_layers.largest_grid(layers, other_side(side) if other else side)


def check_patches_agree(runs: Runs, maps: xr.DataArray, at: regions.Region | str | None) -> xr.DataArray:
    """Refuse a region in patches if the runs' grids differ: it would be another place in each run."""
    grids = {own_grid(member, maps.attrs, other=True) for member in runs.members}
    if at is not None and len(grids) > 1 and not (isinstance(at, str) or regions.is_mask(at)):
        raise InputError(
            "at",
            expected="the name of a mask image, or a mask: the runs' grids differ, and so do their patches",
            got=f"patches, on {len(grids)} grids",
            remedy="name a mask, or ask each run by itself",
        )
    return maps


def _concatenate(
    runs: Runs,
    names: tuple[str, ...],
    parts: Sequence[tuple[Run, tuple[str, ...]]],
    results: Sequence[xr.DataArray],
    grids: Sequence[Grid | None],
) -> xr.DataArray:
    first = results[0]
    values = da.concatenate([maps.data for maps in results])
    found = [name for _, own in parts for name in own]
    if found != list(names):
        position = {name: number for number, name in enumerate(found)}
        values = values[np.asarray([position[name] for name in names])]
    coords = {str(name): coord for name, coord in first.coords.items() if "sample" not in coord.dims}
    if "timestep" in coords:
        timesteps = np.stack([maps["timestep"].values for maps in results])
        agree = (timesteps == timesteps[0]).all(axis=0)
        coords["timestep"] = coords["timestep"].copy(data=np.where(agree, timesteps[0], np.nan))
    combined = xr.DataArray(values, dims=first.dims, coords=coords, name=first.name)
    combined.attrs = first.attrs | {"run_id": runs.run_id}
    combined.encoding = dict(first.encoding)
    origin = {name: (member, grid) for (member, own), grid in zip(parts, grids, strict=True) for name in own}
    along: dict[str, Any] = {"sample": np.asarray(names, dtype=object)}
    along["run_id"] = ("sample", np.asarray([origin[name][0].run_id for name in names], dtype=object))
    if len(set(grids)) > 1:
        for axis, label in enumerate(("own_rows", "own_columns")):
            sizes = [grid[axis] for name in names if (grid := origin[name][1]) is not None]
            along[label] = ("sample", np.asarray(sizes, dtype=np.int64))
    return combined.assign_coords(along)


def own_shape(maps: xr.DataArray) -> Grid:
    """(rows, columns) with the aspect ratio of the image on which one sample's maps (..., y, x) lie."""
    if "own_rows" in maps.coords:
        return int(maps["own_rows"]), int(maps["own_columns"])
    return maps.sizes["y"], maps.sizes["x"]


def run_id_of(result: xr.DataArray) -> str:
    """Id of the run that one sample's result comes from."""
    return str(result["run_id"].item() if "run_id" in result.coords else result.attrs["run_id"])
