"""Boxes: columns, geometry, and the baselines that look at no image; (x, y) is the upper left corner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from i2am.analysis.grids.resize import Grid

BOX_SCHEMA: Mapping[str, Any] = {
    "sample": pl.String,
    "x": pl.Float64,
    "y": pl.Float64,
    "width": pl.Float64,
    "height": pl.Float64,
    "score": pl.Float64,
}
ASPECTS = (0.5, 2.0)  # width over height of random boxes, as in the paper's code
Float64 = NDArray[np.float64]


class Box(NamedTuple):
    """A box in pixels; its right and lower edge, x + width and y + height, are excluded."""

    x: float
    y: float
    width: float
    height: float

    def scaled(self, source: Grid, target: Grid) -> Box:
        """The box on an image of (rows, columns) `source`, brought to one of `target`."""
        down, across = target[0] / source[0], target[1] / source[1]
        return Box(self.x * across, self.y * down, self.width * across, self.height * down)

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies in the box."""
        return self.x <= x < self.x + self.width and self.y <= y < self.y + self.height


def iou(boxes: ArrayLike, truth: Box) -> Float64:
    """Intersection over union of boxes [n, 4] with one box."""
    x, y, width, height = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    across = np.minimum(x + width, truth.x + truth.width) - np.maximum(x, truth.x)
    down = np.minimum(y + height, truth.y + truth.height) - np.maximum(y, truth.y)
    shared = np.clip(across, 0, None) * np.clip(down, 0, None)
    return np.asarray(shared / (width * height + truth.width * truth.height - shared))


def mask_box(mask: NDArray[np.bool_]) -> Box | None:
    """The box of the True pixels of a mask [y, x]; None if there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    left, top = float(columns[0]), float(rows[0])
    return Box(left, top, columns[-1] + 1.0 - left, rows[-1] + 1.0 - top)


def whole_image(size: Grid) -> Box:
    """The paper's baseline "Overall"."""
    return Box(0.0, 0.0, float(size[1]), float(size[0]))


def random_box(chance: np.random.Generator, size: Grid, shares: tuple[float, float]) -> Box:
    """The paper's baseline "Random": its share of the image's area, aspect ratio and place are uniform."""
    rows, columns = size
    area = chance.uniform(*shares) * rows * columns
    aspect = chance.uniform(*ASPECTS)
    height = max(1, int(math.sqrt(area / aspect)))
    width = min(max(1, int(aspect * height)), columns)
    height = min(height, rows)
    x, y = (
        chance.integers(0, columns - width, endpoint=True),
        chance.integers(0, rows - height, endpoint=True),
    )
    return Box(float(x), float(y), float(width), float(height))
