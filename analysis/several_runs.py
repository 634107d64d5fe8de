"""Maps and aggregations of several runs: each run's own, side by side along the samples, in the order asked.

Nothing is computed otherwise than for one run, and what is kept is kept beside each run. Densities do not
depend on the resolution, so runs of different grids (resolution buckets) have their maps made at one size;
the coordinates `own_rows` and `own_columns` then hold the grid that each sample has by itself, whose aspect
ratio is that of its images. The coordinate `run_id` says where a sample comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from i2am.analysis.grids import tiled_layers
from i2am.analysis.grids.direction import side_of
from i2am.analysis.grids.resize import Grid
from i2am.analysis.grids.selection import chosen_samples
from i2am.analysis.marginals.store import StorePlace, within
from i2am.storage.errors import InputError, NoAnswer

if TYPE_CHECKING:
    from i2am.storage.reading.run import Run
    from i2am.storage.reading.run_collection import Runs


def over_runs(
    runs: Runs,
    samples: Sequence[str] | str | None,
    size: Grid | None,
    store: StorePlace,
    make: Callable[..., xr.DataArray],
) -> xr.DataArray:
    """Make something of every run that holds a sample asked for, and put it together."""
    names = chosen_samples(runs, samples)
    held: dict[int, list[str]] = {}
    place = {id(member): number for number, member in enumerate(runs.members)}
    for name in names:
        held.setdefault(place[id(runs.home(name))], []).append(name)
    parts = [(runs.members[number], tuple(own)) for number, own in sorted(held.items())]

    def all_at(grid: Grid | None) -> list[xr.DataArray]:
        return [make(run, samples=own, size=grid, store=within(store, run)) for run, own in parts]

    made = all_at(size)
    grids = [own_grid(member, maps.attrs) for (member, _), maps in zip(parts, made, strict=True)]
    shapes = list(dict.fromkeys((maps.sizes.get("y", 0), maps.sizes.get("x", 0)) for maps in made))
    if len(shapes) > 1:
        made = all_at(common_size(shapes, made[0].attrs))
    return _side_by_side(runs, names, parts, made, grids)


def common_size(shapes: Sequence[Grid], attrs: dict[str, Any]) -> Grid:
    """The size at which maps of different grids are made where none is given."""
    words = ", ".join(f"{rows}x{columns}" for rows, columns in shapes[:4])
    if attrs.get("protocol") == "official":
        raise NoAnswer(
            "official maps of runs with different grids",
            expected="one grid: the official code does not resize these maps",
            got=words,
            remedy="use the corrected protocol, or ask each run by itself",
        )
    largest = max(shapes, key=lambda grid: grid[0] * grid[1])
    if any(rows * largest[1] != columns * largest[0] for rows, columns in shapes):
        raise InputError(
            "the runs' grids differ in their aspect ratio",
            expected="a size (rows, columns) for the maps of all",
            got=words,
            remedy="give one: size=(64, 64), --size 64x64, or size in the configuration",
        )
    return largest


def own_grid(run: Run, attrs: dict[str, Any], *, other: bool = False) -> Grid | None:
    """The largest grid of the layers of a result, on the side where it lies; None where it is no map."""
    side = side_of(attrs["direction"]) if "direction" in attrs else attrs.get("side")
    if not side:
        return None
    if other:
        side = "ref" if side == "gen" else "gen"
    grids = [tiled_layers.whole_grid(run.layers[name], side) for name in attrs["layers"]]
    return max(grids, key=lambda grid: grid[0] * grid[1])


def _side_by_side(
    runs: Runs,
    names: tuple[str, ...],
    parts: Sequence[tuple[Run, tuple[str, ...]]],
    made: Sequence[xr.DataArray],
    grids: Sequence[Grid | None],
) -> xr.DataArray:
    first = made[0]
    values = da.concatenate([maps.data for maps in made])
    found = [name for _, own in parts for name in own]
    if found != list(names):
        position = {name: number for number, name in enumerate(found)}
        values = values[np.asarray([position[name] for name in names])]
    coords = {str(name): coord for name, coord in first.coords.items() if "sample" not in coord.dims}
    if "timestep" in coords:
        coords["timestep"] = coords["timestep"].copy(data=_agreed([maps["timestep"].values for maps in made]))
    joined = xr.DataArray(values, dims=first.dims, coords=coords, name=first.name)
    joined.attrs = first.attrs | {"run_id": runs.run_id}
    joined.encoding = dict(first.encoding)
    known = {name: (member, grid) for (member, own), grid in zip(parts, grids, strict=True) for name in own}
    along: dict[str, Any] = {"sample": np.asarray(names, dtype=object)}
    along["run_id"] = ("sample", np.asarray([known[name][0].run_id for name in names], dtype=object))
    if len(set(grids)) > 1:
        for axis, label in enumerate(("own_rows", "own_columns")):
            sizes = [grid[axis] for name in names if (grid := known[name][1]) is not None]
            along[label] = ("sample", np.asarray(sizes, dtype=np.int64))
    return joined.assign_coords(along)


def _agreed(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Numbers where all agree, NaN elsewhere."""
    return np.where(np.all([value == values[0] for value in values], axis=0), values[0], np.nan)


def own_shape(maps: xr.DataArray) -> Grid:
    """(rows, columns) whose aspect ratio is that of the image on which one sample's maps lie."""
    if "own_rows" in maps.coords:
        return int(maps["own_rows"]), int(maps["own_columns"])
    return maps.sizes["y"], maps.sizes["x"]


def run_id_of(result: xr.DataArray) -> str:
    """Id of the run that one sample's result comes from."""
    return str(result["run_id"].item() if "run_id" in result.coords else result.attrs["run_id"])
