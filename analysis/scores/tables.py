"""Tables of IMACS and of densities inside and outside the mask, one row for each map, as polars frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import NDArray

from i2am.analysis.grids.regions import image_mask, sample_image
from i2am.analysis.grids.resize import Grid, Resize, resized
from i2am.analysis.scores.imacs import matching_masks, resize_of, score_map, split_means
from i2am.analysis.several_runs import own_shape, run_id_of
from i2am.storage.errors import InputError
from i2am.storage.reading.run_collection import AnyRun

Float64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Columns of every table, with their types.
SCHEMA: Mapping[str, Any] = {
    "sample": pl.String,
    "direction": pl.String,
    "region": pl.String,  # what the map is restricted to: "all", or the mask image whose tokens it is made of
    "level": pl.String,
    "label": pl.String,  # time group, head or layer; null at the unified and specific levels
    "imacs": pl.Float64,  # from -penalty to 1; null where there is no usable mask
    "inside": pl.Float64,  # mean density inside the mask (official: mean value, in the maps' units)
    "outside": pl.Float64,
    "ratio": pl.Float64,  # inside over outside
    "share": pl.Float64,  # part of all density that lies inside the mask, 0 to 1
    "area": pl.Float64,  # part of the image that the mask covers, 0 to 1
    "kind": pl.String,  # attention, similarity or mixed
    "note": pl.String,  # why a number is missing
    "run_id": pl.String,
    "method": pl.String,  # i2am, joint or daam
    "protocol": pl.String,  # of the maps and of IMACS
    "penalty": pl.Float64,  # IMACS's weight of what lies outside
}
# The image of the run against which each direction's maps are scored.
AGAINST: Mapping[str, str] = {"r2g": "mask", "g2r": "reference_mask"}


def score_rows(maps: xr.DataArray, mask: Mask | None, penalty: float = 3.0) -> list[dict[str, Any]]:
    """A row for each of one sample's maps ([level axis], y, x) of one level.

    `mask` [y, x] is for all of them; None where the run has none. Where no score is possible, the column
    "note" says why.
    """
    level = maps.attrs["level"]
    labels = [str(label) for label in maps[level].values] if level in maps.dims else [None]
    values = np.asarray(maps, dtype=np.float64).reshape(len(labels), *maps.shape[-2:])
    fixed = {
        "sample": str(maps["sample"].item()),
        "direction": maps.attrs["direction"],
        "level": level,
        "region": str(maps.attrs.get("at", "all")),
        "kind": maps.attrs["kind"],
        "run_id": run_id_of(maps),
        "method": maps.attrs["method"],
        "protocol": maps.attrs["protocol"],
        "penalty": penalty,
    }
    rows, grid = [], own_shape(maps)
    for label, density in zip(labels, values, strict=True):
        row: dict[str, Any] = dict.fromkeys(SCHEMA) | fixed | {"label": label}
        rows.append(row | _scores(density, mask, maps.attrs, grid, penalty))
    return rows


def _scores(
    density: Float64, mask: Mask | None, attrs: dict[str, Any], grid: Grid, penalty: float
) -> dict[str, Any]:
    if mask is None:
        return {"note": f"no image {AGAINST[attrs['direction']]!r} of this sample"}
    if not np.isfinite(density).all():
        return {"note": "the map is not finite: an empty region, or logits that overflowed"}
    any_aspect, resize = attrs["protocol"] == "official", resize_of(attrs)
    try:
        inside, outside, fitting, grown = inside_and_outside(
            density, mask, grid, any_aspect=any_aspect, resize=resize
        )
        score = score_map(density, fitting, attrs["direction"], penalty, attrs["protocol"], resize)
    except InputError as error:  # an empty, full or misshapen mask
        return {"note": str(error)}
    return {
        "imacs": score,
        "inside": inside,
        "outside": outside,
        "area": float(fitting.mean()),
        "ratio": inside / outside if outside > 0 else None,
        "share": float(grown[fitting].sum() / grown.sum()) if grown.sum() > 0 else None,
    }


def inside_and_outside(
    density: Float64, mask: Mask, grid: Grid, *, any_aspect: bool = False, resize: Resize = "linear"
) -> tuple[float, float, Mask, Float64]:
    """Means of a map [y, x] inside and outside a mask, the mask, and the map in the mask's size."""
    fitting = matching_masks(density.shape, mask, any_aspect=any_aspect, grid=grid)
    grown = resized(density, (mask.shape[0], mask.shape[1]), resize)
    return *split_means(grown, fitting), fitting, grown


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as a table with the columns of SCHEMA."""
    return pl.DataFrame(rows, schema=dict(SCHEMA))


def profile(table: pl.DataFrame) -> pl.DataFrame:
    """Quartiles over samples, low, mid and high, of the density inside the mask and of IMACS."""
    numbers = [
        pl.col(column).quantile(q, "linear").alias(f"{column}_{name}")
        for column in ("inside", "imacs")
        for name, q in (("low", 0.25), ("mid", 0.5), ("high", 0.75))
    ]
    return table.group_by(["direction", "region", "level", "label"], maintain_order=True).agg(
        pl.col("imacs").count().alias("samples"), *numbers
    )


def sample_mask(run: AnyRun, direction: str, sample: str) -> Mask | None:
    """Mask [y, x] that a direction's maps of a sample are scored against, or None where it has none."""
    pixels = sample_image(run, AGAINST[direction], sample)
    return None if pixels is None else image_mask(pixels)
