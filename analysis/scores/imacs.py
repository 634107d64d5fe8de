"""IMACS, the inpainting mask attention consistency score, and the plain densities inside and outside a mask.

Source: I²AM, section on IMACS. For a map M, resized to the mask m and brought to [0, 1] by its own range:

    IMACS = sum(M * m) / sum(m) - penalty * sum(M * (1 - m)) / sum(1 - m)

It runs from -penalty to 1. Official protocol: `i2am.analysis.scores.official_imacs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, overload

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from i2am.analysis.grids.direction import Direction, check_direction
from i2am.analysis.grids.regions import boolean_mask, check_inside_and_outside, same_aspect
from i2am.analysis.grids.resize import Grid, Resize, resized
from i2am.analysis.scores.official_imacs import official_score
from i2am.analysis.several_runs import own_shape
from i2am.storage.errors import InputError, ShapeMismatch, UnknownName

FLAT = 1e-5  # a map whose range is below this share of its largest magnitude counts as constant
Float64 = NDArray[np.float64]


@overload
def imacs(
    maps: xr.DataArray,
    masks: ArrayLike,
    direction: str | None = None,
    penalty: float = 3.0,
    protocol: str = "corrected",
) -> xr.DataArray: ...
@overload
def imacs(
    maps: ArrayLike,
    masks: ArrayLike,
    direction: str | None = None,
    penalty: float = 3.0,
    protocol: str = "corrected",
) -> Float64 | float: ...
def imacs(
    maps: xr.DataArray | ArrayLike,
    masks: ArrayLike,
    direction: str | None = None,
    penalty: float = 3.0,
    protocol: str = "corrected",
) -> xr.DataArray | Float64 | float:
    """Score maps against masks.

    Parameters
    ----------
    maps
        [..., y, x], any size, any unit; the axes of a DataArray are known by their names, in any order.
    masks
        [..., y, x] of any size with the maps' aspect ratio (official: of any size), 1 inside. One mask for
        all maps, or one for each sample (the axis "sample", else the first), or one for each map; a list of
        one for each sample may hold different sizes. Masks with a coordinate "sample" are matched by it. R2G
        is scored against the inpainting mask, G2R against the object's mask in the reference.
    direction
        "r2g" or "g2r"; read from the attributes of a DataArray, to be given for a plain array.
    penalty
        Weight of what lies outside; 3 in the paper.
    protocol
        "corrected" or "official": how a map is brought to [0, 1], whatever protocol made it. Official scores
        are the paper's where the maps are official and the masks 512 x 384.

    Returns
    -------
    xarray.DataArray or ndarray
        Scores [...], float64, from -penalty to 1; of the kind that `maps` is. A constant map scores 0
        (official R2G: 1 - penalty). NaN where the map holds NaN.

    Raises
    ------
    ShapeMismatch, NoAnswer
        If a mask cannot belong to its map; if it is empty or full, so that one of the means does not exist.
    InputError, UnknownName
        For a direction that is missing or contradicts the maps', a negative penalty, an unknown direction or
        protocol, or a sample that the masks lack.
    """
    if protocol not in ("corrected", "official"):
        raise UnknownName("protocol", protocol, ("corrected", "official"))
    check_penalty(penalty)
    score = partial(
        score_map, direction=_direction(maps, direction), penalty=penalty, protocol=protocol,
        resize=resize_of(maps.attrs) if isinstance(maps, xr.DataArray) else "linear",
    )  # fmt: skip
    if not isinstance(maps, xr.DataArray):
        scores = _score_all(np.asarray(maps, dtype=np.float64), _of_samples(masks, maps), None, score)
        return scores if scores.ndim else float(scores)
    if "sample" in maps.dims and _sizes_differ(maps, masks):
        found = _score_each_sample(maps, masks, direction, penalty, protocol)
    else:
        ordered = _in_order(maps)
        values = np.asarray(ordered, dtype=np.float64)
        scores = _score_all(values, _of_samples(masks, maps), own_shape(maps), score)
        found = _labelled(scores, ordered, penalty, protocol)
    return found.transpose(*(dim for dim in maps.dims if dim in found.dims))


def check_penalty(penalty: float) -> None:
    """Refuse a weight of what lies outside that is negative, or not a finite number."""
    if not (np.isfinite(penalty) and penalty >= 0):
        raise InputError("penalty", expected="a number of 0 or more; the paper's is 3", got=repr(penalty))


def resize_of(attrs: Mapping[Any, Any]) -> Resize:
    """How maps are brought to a mask's size: as their layers were to one grid."""
    return "bicubic" if attrs.get("resize") == "bicubic" else "linear"


def score_map(
    values: Float64,
    mask: NDArray[np.bool_],
    direction: Direction,
    penalty: float,
    protocol: str,
    resize: Resize = "linear",
) -> float:
    """Score a map [y, x] against a mask that fits it."""
    if protocol == "official":
        return official_score(values, mask, direction, penalty)
    within, without = split_means(normalise(resized(values, (mask.shape[0], mask.shape[1]), resize)), mask)
    return within - penalty * without


def _score_all(values: Float64, masks: Any, grid: Grid | None, score: partial[float]) -> Float64:
    any_aspect = score.keywords["protocol"] == "official"
    inside = matching_masks(values.shape, masks, any_aspect=any_aspect, grid=grid)
    scores = np.empty(values.shape[:-2])
    for index in np.ndindex(scores.shape):
        scores[index] = score(values[index], inside[index])
    return scores


def _sizes_differ(maps: xr.DataArray, masks: Any) -> bool:
    """Whether the grids or the masks of the samples differ in size."""
    several = isinstance(masks, (list, tuple)) and all(np.ndim(mask) == 2 for mask in masks)
    return "own_rows" in maps.coords or (several and len({np.shape(mask) for mask in masks}) > 1)


def _score_each_sample(
    maps: xr.DataArray, masks: Any, direction: str | None, penalty: float, protocol: str
) -> xr.DataArray:
    count = maps.sizes["sample"]
    labelled = isinstance(masks, xr.DataArray) and "sample" in masks.indexes
    if not labelled and np.ndim(masks[0]) == 1:  # one mask for all
        masks = [masks] * count
    if not labelled and len(masks) != count:
        expected = f"one, or one for each of {count} samples"
        raise ShapeMismatch("masks", expected=expected, got=f"{len(masks)} masks")
    parts = [
        imacs(maps.isel(sample=n), masks if labelled else masks[n], direction, penalty, protocol)
        for n in range(count)
    ]
    return xr.concat(parts, "sample", coords="different", compat="equals", combine_attrs="override")


def _in_order(array: xr.DataArray) -> xr.DataArray:
    """Axes in the order (sample, ..., y, x); others keep their places."""
    return array.transpose("sample", ..., "y", "x", missing_dims="ignore")


def _of_samples(masks: ArrayLike, maps: xr.DataArray | ArrayLike) -> ArrayLike:
    """Masks in the order of the maps' samples, where both name their samples."""
    if not isinstance(masks, xr.DataArray):
        return masks
    if isinstance(maps, xr.DataArray) and "sample" in masks.indexes and "sample" in maps.coords:
        known = list(masks.indexes["sample"])
        for sample in np.atleast_1d(maps["sample"].values).tolist():
            if sample not in known:
                raise UnknownName("sample of the masks", sample, known)
        masks = masks.sel(sample=maps["sample"])
    return np.asarray(_in_order(masks))


def _labelled(scores: Float64, maps: xr.DataArray, penalty: float, protocol: str) -> xr.DataArray:
    """Scores with the maps' axes and attributes; the attribute `maps_protocol` is the maps' own."""
    made = maps.attrs.get("protocol", "unknown")
    attrs = {**maps.attrs, "units": "IMACS", "penalty": penalty, "protocol": protocol, "maps_protocol": made}
    coords = {name: coord for name, coord in maps.coords.items() if not {"y", "x"} & set(coord.dims)}
    return xr.DataArray(scores, dims=maps.dims[:-2], coords=coords, attrs=attrs, name="imacs")


def _direction(maps: xr.DataArray | ArrayLike, direction: str | None) -> Direction:
    own = maps.attrs.get("direction") if isinstance(maps, xr.DataArray) else None
    if own is not None and direction not in (None, own):
        expected = f"{own!r}, which the maps' attributes say"
        raise InputError("direction", expected=expected, got=repr(direction), remedy="leave it out")
    if own is None and direction is None:
        got = "maps without a direction in their attributes"
        raise InputError(
            "direction is not known", expected="'r2g' or 'g2r'", got=got, remedy="pass direction=..."
        )
    return check_direction(str(own or direction))


def normalise(values: Float64) -> Float64:
    """Bring a map [y, x] to [0, 1] by its minimum and maximum; a constant map becomes 0."""
    low, high = values.min(), values.max()
    if high - low <= FLAT * max(abs(low), abs(high)):
        return np.zeros_like(values)
    return np.asarray((values - low) / (high - low))


def split_means(values: Float64, mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean of a map [y, x] inside and outside a mask of its size, which must have both (`NoAnswer`)."""
    check_inside_and_outside(mask)
    return float(values[mask].mean()), float(values[~mask].mean())


def matching_masks(
    shape: tuple[int, ...], masks: ArrayLike, *, any_aspect: bool = False, grid: Grid | None = None
) -> NDArray[np.bool_]:
    """One boolean mask [..., y, x] for each map of `shape` [..., y, x]; `ShapeMismatch` if none fits.

    `masks` is one for all, one for each entry of the first axis, or one for each map. `grid` has the image's
    aspect ratio where the maps' own size does not; `any_aspect` allows any, as official maps need.
    """
    inside = boolean_mask(masks)
    lead = shape[:-2]
    if len(shape) < 2 or inside.ndim < 2:
        got = f"maps {shape}, masks {inside.shape}"
        raise ShapeMismatch("maps and masks", expected="[..., y, x]", got=got)
    if inside.ndim == 3 and len(lead) > 1:
        inside = inside.reshape(inside.shape[0], *([1] * (len(lead) - 1)), *inside.shape[1:])
    size: Grid = (inside.shape[-2], inside.shape[-1])
    fits = inside.ndim == 2 or (
        inside.ndim == len(shape) and all(n in (1, m) for n, m in zip(inside.shape[:-2], lead, strict=True))
    )
    rows, columns = shape[-2:] if grid is None else grid
    aspect_fits = min(*size, rows, columns) > 0 if any_aspect else same_aspect((rows, columns), size)
    if not fits or not aspect_fits:
        raise ShapeMismatch(
            "masks",
            expected=f"[y, x] or one for each of {lead or 1}, with the aspect ratio of {rows} x {columns}",
            got=f"shape {inside.shape}",
            remedy="give masks of the image that the maps lie on",
        )
    return np.broadcast_to(inside, (*lead, *size))
