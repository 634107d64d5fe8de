"""Aggregations of a study: a Zarr store of every result, and a long table of each.

The tables have one row for each number: sample, layer, and the result's own axes; of a map one row for each
sample and layer, with its mean and its means inside and outside the mask that it lies under. They are
written a few samples at a time, so that memory does not grow with the study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import xarray as xr

from i2am.analysis.aggregations.aggregate import aggregate
from i2am.analysis.aggregations.registry import find
from i2am.analysis.events import Listener, StageAdvanced, StageStarted
from i2am.analysis.grids.regions import image_mask, sample_image
from i2am.analysis.grids.resize import bicubic
from i2am.analysis.scores.imacs import matching_masks, split_means
from i2am.analysis.several_runs import own_shape, run_id_of
from i2am.storage.errors import InputError, NoAnswer

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun

STORE = "aggregations.zarr"
BATCH = 16
"""Samples that are brought into a table at once."""

SCHEMA: dict[str, Any] = {
    "sample": pl.String,
    "aggregation": pl.String,
    "layer": pl.String,
    "step": pl.Int64,
    "timestep": pl.Float64,
    "head": pl.Int64,
    "label": pl.String,
    "value": pl.Float64,
    "inside": pl.Float64,
    "outside": pl.Float64,
    "units": pl.String,
    "kind": pl.String,
    "run_id": pl.String,
}
"""Columns of every table; null where a result has no such axis, or a number does not exist."""


@dataclass(frozen=True)
class Aggregated:
    """What the aggregations of a study gave."""

    results: dict[str, xr.DataArray]  # name to (sample, layer, ...), read lazily from the store
    absent: tuple[str, ...]  # what has no answer, and why, one line each


def collect_aggregations(
    run: AnyRun, names: Sequence[str], options: StudyOptions, staging: Path, emit: Listener
) -> Aggregated:
    """Compute the aggregations of a study into a store, and write their tables."""
    results: dict[str, xr.DataArray] = {}
    absent: list[str] = []
    wanted = [find(name) for name in dict.fromkeys(options.aggregations)]
    _check_names([entry.name for entry in wanted])
    if wanted:
        emit(StageStarted("aggregations", len(wanted)))
    for number, entry in enumerate(wanted, start=1):
        try:
            found = aggregate(
                run,
                entry,
                layers=options.layers,
                steps=options.steps,
                heads=options.heads,
                samples=names,
                size=options.size if "gen" in entry.axes or "ref" in entry.axes else None,
                store=options.store,
                storage_options=options.storage_options,
            )
        except NoAnswer as error:
            absent.append(f"{entry.words}: {error}")
            continue
        named = found.rename(None).to_dataset(name="value")
        named.to_zarr(staging / STORE, group=entry.name, mode="w", zarr_format=3, consolidated=False)
        stored = xr.open_zarr(staging / STORE, group=entry.name, consolidated=False)["value"]
        results[entry.name] = stored
        write_table(run, stored, staging / "tables" / f"aggregation-{entry.name}.parquet")
        emit(StageAdvanced("aggregations", number, len(wanted)))
    return Aggregated(results, tuple(absent))


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if list(names).count(name) > 1:
            raise InputError(
                "aggregations",
                expected="a name of its own for each",
                got=f"{name!r} twice",
                remedy="rename one of the declarations",
            )


def write_table(run: AnyRun, result: xr.DataArray, path: Path) -> None:
    """Write a result as a long table, a few samples at a time."""
    path.parent.mkdir(exist_ok=True)
    parts = path.with_suffix(".parts")
    parts.mkdir()
    samples = [str(name) for name in result["sample"].values]
    for start in range(0, len(samples), BATCH):
        some = result.isel(sample=slice(start, start + BATCH)).load()
        rows = [_rows(run, some.sel(sample=name), name) for name in samples[start : start + BATCH]]
        pl.concat(rows).write_parquet(parts / f"{start:09d}.parquet")
    pl.scan_parquet(parts / "*.parquet").sink_parquet(path)
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()


def _rows(run: AnyRun, result: xr.DataArray, sample: str) -> pl.DataFrame:
    """Rows of one sample: (layer, ...) to one row for each number, or for each map."""
    axes = [str(name) for name in result.dims if name not in ("y", "x")]
    shape = tuple(result.sizes[axis] for axis in axes)
    index = np.unravel_index(np.arange(int(np.prod(shape))), shape)
    places = dict(zip(axes, index, strict=True))
    columns: dict[str, Any] = {axis: np.asarray(result[axis].values)[at] for axis, at in places.items()}
    if "step" in places:
        columns["timestep"] = np.asarray(result["timestep"].values, dtype=np.float64)[places["step"]]
    own = [axis for axis in axes if axis not in ("layer", "step", "head")]
    label = [", ".join(f"{axis} {columns[axis][n]}" for axis in own) for n in range(len(index[0]))]
    values = result.values.reshape(-1, *(result.shape[len(axes) :]))
    inside = outside = None
    if "y" in result.dims:
        halves = [_halves(run, result, sample, one) for one in values]
        inside, outside = [half[0] for half in halves], [half[1] for half in halves]
        values = values.reshape(len(values), -1).mean(axis=1)
    count = len(index[0])
    data = {
        "sample": [sample] * count,
        "aggregation": [result.attrs["aggregation"]] * count,
        "layer": [str(name) for name in columns["layer"]],
        "step": columns.get("step"),
        "timestep": columns.get("timestep"),
        "head": columns.get("head"),
        "label": label if own else None,
        "value": np.asarray(values, dtype=np.float64),
        "inside": inside,
        "outside": outside,
        "units": [result.attrs["units"]] * count,
        "kind": [result.attrs["kind"]] * count,
        "run_id": [run_id_of(result)] * count,
    }
    full = {name: [None] * count if column is None else column for name, column in data.items()}
    table = pl.DataFrame(full, schema=SCHEMA)
    numbers = ["value", "inside", "outside"]
    kept = table.with_columns(pl.col(numbers).fill_nan(None))
    # Heads that a layer does not have are padding of the array, not results.
    return kept.filter(pl.col("value").is_not_null()) if "head" in result.dims else kept


def _halves(
    run: AnyRun, result: xr.DataArray, sample: str, density: np.ndarray[Any, Any]
) -> tuple[float | None, float | None]:
    """Means of a map inside and outside the mask of the image that it lies on."""
    image = {"gen": "mask", "ref": "reference_mask"}[result.attrs["side"]]
    pixels = sample_image(run, image, sample)
    if pixels is None or not np.isfinite(density).all():
        return None, None
    mask = image_mask(pixels)
    try:
        fitting = matching_masks(density.shape, mask, grid=own_shape(result))
        return split_means(bicubic(density, (mask.shape[0], mask.shape[1])), fitting)
    except InputError:  # an empty, full or misshapen mask: the sample's tables by level say so
        return None, None
