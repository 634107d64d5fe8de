"""IMACS, the inpainting mask attention consistency score, and the plain densities inside and outside a mask.

Source: I²AM, section on IMACS. For a map M in [0, 1] and a mask m:

    IMACS = sum(M * m) / sum(m) - penalty * sum(M * (1 - m)) / sum(1 - m)

so it runs from -penalty (all attention outside) to 1 (all inside, none outside). Corrected protocol: the map
goes to the mask's size by the paper's bicubic resize and is brought to [0, 1] by its own minimum and
maximum; it is neither inverted, nor multiplied by the mask beforehand, nor cut at a threshold. The mask is
never resized; above one half is inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from analysis.region import binary
from analysis.resize import Grid, bicubic
from analysis.selection import check_direction
from storage.errors import InputError, NoAnswer, ShapeMismatch, UnknownName

FLAT = 1e-5
"""A map whose range is below this share of its largest magnitude counts as constant."""

Float64 = NDArray[np.float64]


def imacs(
    maps: xr.DataArray | ArrayLike,
    masks: ArrayLike,
    direction: str | None = None,
    penalty: float = 3.0,
    protocol: str = "corrected",
) -> Any:
    """Score maps against masks.

    Parameters
    ----------
    maps
        [..., y, x], any size, any unit.
    masks
        [..., y, x] of any size with the maps' aspect ratio, 1 inside. One mask for all maps, or one for each
        sample (the first axis), or one for each map. R2G is scored against the inpainting mask, G2R against
        the object's mask in the reference.
    direction
        "r2g" or "g2r"; read from the attributes of a DataArray, to be given for a plain array.
    penalty
        Weight of what lies outside; 3 in the paper.
    protocol
        "corrected".

    Returns
    -------
    xarray.DataArray or ndarray
        Scores [...], float64, from -penalty to 1; of the kind that `maps` is. A constant map scores 0. NaN
        where the map holds NaN.

    Raises
    ------
    ShapeMismatch
        If a mask's shape cannot belong to its map.
    NoAnswer
        If a mask is empty or full: then one of the two means does not exist.
    InputError
        If the direction is neither known nor given, or the penalty is negative or not a number.
    """
    if direction is None and isinstance(maps, xr.DataArray):
        direction = maps.attrs.get("direction")
    if direction is None:
        raise InputError(
            "direction is not known",
            expected="'r2g' or 'g2r'",
            got="maps without a direction in their attributes",
            remedy="pass direction=...",
        )
    check_direction(direction)
    if protocol != "corrected":
        raise UnknownName("protocol", protocol, ("corrected",))
    if not (np.isfinite(penalty) and penalty >= 0):
        raise InputError("penalty", expected="a number of 0 or more; the paper's is 3", got=repr(penalty))
    scores = _score(np.asarray(maps, dtype=np.float64), masks, penalty)
    if isinstance(maps, xr.DataArray):
        attrs = {**maps.attrs, "units": "IMACS", "penalty": penalty, "protocol": protocol}
        coords = {name: coord for name, coord in maps.coords.items() if not {"y", "x"} & set(coord.dims)}
        return xr.DataArray(scores, dims=maps.dims[:-2], coords=coords, attrs=attrs, name="imacs")
    return scores if scores.ndim else float(scores)


def _score(values: Float64, masks: ArrayLike, penalty: float) -> Float64:
    inside = matching_masks(values.shape, masks)
    scores = np.empty(values.shape[:-2])
    for index in np.ndindex(scores.shape):
        mask = inside[index]
        within, without = split_means(normalise(bicubic(values[index], (mask.shape[0], mask.shape[1]))), mask)
        scores[index] = within - penalty * without
    return scores


def normalise(values: Float64) -> Float64:
    """Bring a map [y, x] to [0, 1] by its minimum and maximum; a constant map becomes 0."""
    low, high = values.min(), values.max()
    if high - low <= FLAT * max(abs(low), abs(high)):
        return np.zeros_like(values)
    return np.asarray((values - low) / (high - low))


def split_means(values: Float64, mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean of a map [y, x] inside and outside a mask of the same size.

    Raises
    ------
    NoAnswer
        If the mask is empty or full.
    """
    count = int(mask.sum())
    if count in (0, mask.size):
        raise NoAnswer(
            f"a mask that is {'empty' if count == 0 else 'full'}",
            expected="some pixels inside and some outside",
            got=f"{count} of {mask.size} inside",
            remedy="leave this sample out, or mend its mask",
        )
    return float(values[mask].mean()), float(values[~mask].mean())


def matching_masks(shape: tuple[int, ...], masks: ArrayLike) -> NDArray[np.bool_]:
    """One boolean mask [..., y, x] for each map of `shape` [..., y, x].

    Parameters
    ----------
    shape
        The maps' shape.
    masks
        One for all, one for each entry of the first axis, or one for each map.

    Raises
    ------
    ShapeMismatch
        If neither fits, or the aspect ratio differs by more than one cell of the map.
    """
    inside = binary(masks)
    lead = shape[:-2]
    if len(shape) < 2 or inside.ndim < 2:
        raise ShapeMismatch(
            "maps and masks", expected="[..., y, x]", got=f"maps {shape}, masks {inside.shape}"
        )
    if inside.ndim == 3 and len(lead) > 1:
        inside = inside.reshape(inside.shape[0], *([1] * (len(lead) - 1)), *inside.shape[1:])
    size: Grid = (inside.shape[-2], inside.shape[-1])
    fits = inside.ndim == 2 or (
        inside.ndim == len(shape) and all(n in (1, m) for n, m in zip(inside.shape[:-2], lead, strict=True))
    )
    rows, columns = shape[-2:]
    skew = (rows * size[1]) / (columns * size[0]) if min(*size, rows, columns) else 0.0
    if not fits or not 1 - 1 / min(rows, columns) <= skew <= 1 + 1 / min(rows, columns):
        raise ShapeMismatch(
            "masks",
            expected=f"[y, x] or one for each of {lead or 1}, with the aspect ratio of {rows} x {columns}",
            got=f"shape {inside.shape}",
            remedy="give masks of the image that the maps lie on",
        )
    return np.broadcast_to(inside, (*lead, *size))
