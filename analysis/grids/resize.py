"""Resizing of maps and masks by two small matrices, one for the rows and one for the columns (METHODS.md).

As in ``torch.nn.functional.interpolate``, corners not aligned, borders replicated: `linear` along an axis
that grows, `area` along one that shrinks; `bicubic`, of the paper's code, a = -0.75, can overshoot;
`nearest`, one pixel of each cell. All commute with every mean, and leave a constant as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from i2am.storage.errors import UnknownName

CUBIC = -0.75  # the parameter a of the cubic convolution kernel (Keys 1981); -0.75 as in torch
Grid = tuple[int, int]
Resize = Literal["linear", "bicubic"]
RESIZES: tuple[Resize, ...] = ("linear", "bicubic")


@lru_cache(maxsize=256)
def bicubic_matrix(source: int, target: int) -> NDArray[np.float64]:
    """Matrix (target, source) of the bicubic resize of one axis; every row sums to 1."""
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(position).astype(int)
    t = position - first
    near, far = 1 - t, 2 - t
    weights = (
        CUBIC * (((t + 1) ** 3) - 5 * (t + 1) ** 2 + 8 * (t + 1) - 4),
        (CUBIC + 2) * t**3 - (CUBIC + 3) * t**2 + 1,
        (CUBIC + 2) * near**3 - (CUBIC + 3) * near**2 + 1,
        CUBIC * (far**3 - 5 * far**2 + 8 * far - 4),
    )
    matrix = np.zeros((target, source))
    for offset, weight in enumerate(weights, start=-1):
        np.add.at(matrix, (np.arange(target), np.clip(first + offset, 0, source - 1)), weight)
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=256)
def linear_matrix(source: int, target: int) -> NDArray[np.float64]:
    """Matrix (target, source), linear or, where the axis shrinks, of area; no weight is negative."""
    if target < source:
        return area_matrix(source, target)
    position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    first = np.floor(position).astype(int)
    matrix = np.zeros((target, source))
    for cell, weight in ((first, 1 - (position - first)), (first + 1, position - first)):
        np.add.at(matrix, (np.arange(target), np.minimum(cell, source - 1)), weight)
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=256)
def area_matrix(source: int, target: int) -> NDArray[np.float64]:
    """Matrix (target, source) that averages one axis over equal cells; every row sums to 1."""
    edges = np.arange(target + 1) * (source / target)
    cells = np.arange(source)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    matrix = np.asarray(np.clip(overlap, 0, None) * (target / source))
    matrix.flags.writeable = False
    return matrix


def check_resize(by: str) -> None:
    """Refuse a resize that there is not."""
    if by not in RESIZES:
        raise UnknownName("resize", by, RESIZES)


def resized(maps: ArrayLike, size: Grid, by: Resize) -> NDArray[np.float64]:
    """Resize maps (..., y, x) to `size` (rows, columns)."""
    return _separable(maps, size, linear_matrix if by == "linear" else bicubic_matrix)


def linear(maps: ArrayLike, size: Grid) -> NDArray[np.float64]:
    """Resize maps (..., y, x) to `size` (rows, columns) within the range that they have."""
    return resized(maps, size, "linear")


def bicubic(maps: ArrayLike, size: Grid) -> NDArray[np.float64]:
    """Resize maps (..., y, x) to `size` (rows, columns), as the paper does."""
    return _separable(maps, size, bicubic_matrix)


def area(maps: ArrayLike, size: Grid) -> NDArray[np.float64]:
    """Average maps (..., y, x) over the cells of a grid of `size` (rows, columns)."""
    return _separable(maps, size, area_matrix)


def nearest(maps: ArrayLike, size: Grid) -> NDArray[np.float64]:
    """Take the nearest pixel of maps (..., y, x), as torch's ``interpolate(mode="nearest")`` does."""
    values = np.asarray(maps, dtype=np.float64)
    rows, columns = values.shape[-2:]
    return values[..., np.arange(size[0])[:, None] * rows // size[0], np.arange(size[1]) * columns // size[1]]


def _separable(
    maps: ArrayLike, size: Grid, make: Callable[[int, int], NDArray[np.float64]]
) -> NDArray[np.float64]:
    values = np.asarray(maps, dtype=np.float64)
    rows, columns = values.shape[-2:]
    if (rows, columns) == tuple(size):
        return values
    return np.asarray(make(rows, size[0]) @ values @ make(columns, size[1]).T)
