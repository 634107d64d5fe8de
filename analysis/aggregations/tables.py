"""Aggregations of a study: a Zarr store of every result, and a long table, written some samples at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import xarray as xr

from i2am.analysis.aggregations.aggregate import aggregate
from i2am.analysis.aggregations.registry import find
from i2am.analysis.events import Listener, StageAdvanced, StageStarted
from i2am.analysis.grids.resize import Grid, Resize
from i2am.analysis.scores.imacs import resize_of
from i2am.analysis.scores.tables import inside_and_outside, sample_mask
from i2am.analysis.several_runs import own_shape, run_id_of
from i2am.storage.errors import InputError, NoAnswer
from i2am.storage.reading.run_collection import AnyRun

STORE = "aggregations.zarr"
BATCH = 16  # samples that are held in memory at once
# Columns of every table; null where a result has no such axis, or a number does not exist.
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


@dataclass(frozen=True)
class Aggregated:
    """What the aggregations of a study gave."""

    results: dict[str, xr.DataArray]  # name to (sample, layer, ...), read lazily from the store
    absent: tuple[str, ...]  # what has no answer, and why, one line each


def collect_aggregations(
    run: AnyRun,
    samples: Sequence[str],
    aggregations: Sequence[str],
    folder: Path,
    emit: Listener,
    **asked: Any,
) -> Aggregated:
    """Compute aggregations into a store in `folder`, and write their tables into its ``tables``.

    `aggregations` are names or "module:name"; `asked` are further arguments of `aggregate`. An event follows
    each aggregation.
    """
    results: dict[str, xr.DataArray] = {}
    absent: list[str] = []
    declared = [find(name) for name in dict.fromkeys(aggregations)]
    names = [aggregation.name for aggregation in declared]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            "aggregations",
            expected="a name of its own for each",
            got=f"{twice[0]!r} twice",
            remedy="rename one of the declarations",
        )
    if declared:
        emit(StageStarted("aggregations", len(declared)))
    for number, aggregation in enumerate(declared, start=1):
        name = aggregation.name
        try:
            result = aggregate(run, aggregation, samples=samples, **asked)
        except NoAnswer as error:
            absent.append(f"{aggregation.words}: {error}")
            continue
        dataset = result.rename(None).to_dataset(name="value")
        dataset.to_zarr(folder / STORE, group=name, mode="w", zarr_format=3, consolidated=False)
        results[name] = xr.open_zarr(folder / STORE, group=name, consolidated=False)["value"]
        write_table(run, results[name], folder / "tables" / f"aggregation-{name}.parquet")
        emit(StageAdvanced("aggregations", number, len(declared)))
    return Aggregated(results, tuple(absent))


def write_table(run: AnyRun, result: xr.DataArray, path: Path) -> None:
    """Write a result (sample, layer, ...) of `aggregate` as a long table, some samples at a time."""
    path.parent.mkdir(exist_ok=True)
    samples = [str(name) for name in result["sample"].values]
    with TemporaryDirectory(dir=path.parent) as parts:
        for start in range(0, len(samples), BATCH):
            some = result.isel(sample=slice(start, start + BATCH)).load()
            rows = [_rows(run, some.sel(sample=name), name) for name in samples[start : start + BATCH]]
            pl.concat(rows).write_parquet(Path(parts) / f"{start:09d}.parquet")
        pl.scan_parquet(Path(parts) / "*.parquet").sink_parquet(path)


def _rows(run: AnyRun, result: xr.DataArray, sample: str) -> pl.DataFrame:
    """Rows of one sample: (layer, ...) to one row for each number, or for each map."""
    axes = [str(name) for name in result.dims if name not in ("y", "x")]
    shape = tuple(result.sizes[axis] for axis in axes)
    places = dict(zip(axes, np.indices(shape).reshape(len(axes), -1), strict=True))
    columns: dict[str, Any] = {axis: np.asarray(result[axis].values)[at] for axis, at in places.items()}
    count = len(columns["layer"])
    if "step" in places:
        columns["timestep"] = np.asarray(result["timestep"].values, dtype=np.float64)[places["step"]]
    if own := [axis for axis in axes if axis not in ("layer", "step", "head")]:
        columns["label"] = [", ".join(f"{axis} {columns[axis][n]}" for axis in own) for n in range(count)]
    values = result.values.reshape(-1, *result.shape[len(axes) :])
    if "y" in result.dims:
        mask = sample_mask(run, {"gen": "r2g", "ref": "g2r"}[result.attrs["side"]], sample)
        means = [_means(density, mask, own_shape(result), resize_of(result.attrs)) for density in values]
        columns["inside"], columns["outside"] = zip(*means, strict=True)
        values = values.reshape(len(values), -1).mean(axis=1)
    columns["layer"] = [str(name) for name in columns["layer"]]
    columns["value"] = np.asarray(values, dtype=np.float64)
    fixed = {name: result.attrs[name] for name in ("aggregation", "units", "kind")}
    fixed |= {"sample": sample, "run_id": run_id_of(result)}
    columns |= {name: [value] * count for name, value in fixed.items()}
    table = pl.DataFrame({name: columns.get(name, [None] * count) for name in SCHEMA}, schema=SCHEMA)
    table = table.with_columns(pl.col("value", "inside", "outside").fill_nan(None))
    # Heads that a layer does not have are padding of the array, not results.
    return table.filter(pl.col("value").is_not_null()) if "head" in result.dims else table


def _means(
    density: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None, grid: Grid, resize: Resize
) -> tuple[float | None, float | None]:
    """Means of a map inside and outside a mask, or None where there is no usable mask."""
    if mask is None or not np.isfinite(density).all():
        return None, None
    try:
        return inside_and_outside(density, mask, grid, resize=resize)[:2]
    except InputError:  # an empty, full or misshapen mask, which the tables of the levels report
        return None, None
