"""Two ways from a map [y, x] to a box: the paper's, and ours.

``official``, of the paper's code (I2AM_PBE_Object_Detection: ``hook.py``, ``cal_bbox_region_rect.py``): the
map to [0, 1]; R2G inverted; what is not above 0.4 becomes 0; drawn with 369 rows; the pixels above the 65th
percentile; a 5 by 5 opening, closing and dilation; of the contours' bounding rectangles the one that holds
most of these pixels. The paper compares its pixels with those of a 512-pixel image: here the box is rescaled.
Its way through a PNG in the colours "jet" and back is left out: it rounds the map to 8 bits.

``corrected``: the map of the layers with the finest generated grid, at 64 pixels, smoothed; the pixels above
a quantile; the box of the connected part that holds most of the map. Layers, smoothing and quantile are data
(``detection_rule.json``, which says how they were chosen). A map without contrast, such as DAAM's of a single
token, names the whole image, as in the paper.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.experiments.boxes import Box, whole_image
from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.resize import Grid, nearest, resized
from i2am.analysis.scores.imacs import normalise
from i2am.analysis.scores.official_imacs import EPSILON, G2R_CUT
from i2am.storage.errors import MissingDependency

if TYPE_CHECKING:
    from types import ModuleType

Rule = Literal["corrected", "official"]
RULES: tuple[Rule, ...] = ("corrected", "official")
DRAWN_ROWS, PERCENTILE, KERNEL = 369, 65, 5  # of the paper's code
LONGEST = 64  # pixels of the longer side, at which the corrected rule works
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the corrected rule was chosen to be, for one direction."""

    blur: float  # standard deviation, as a share of the longer side
    quantile: float


def setting(direction: Direction) -> Setting:
    """The shipped setting."""
    chosen = _chosen()
    return Setting(chosen["blur"], chosen["quantile"][direction])


def reads_finest() -> bool:
    """Whether the corrected rule reads the layers of the finest generated grid alone."""
    return bool(_chosen()["layers"] == "finest")


@lru_cache(maxsize=1)
def _chosen() -> dict[str, Any]:
    chosen: dict[str, Any] = json.loads(Path(__file__).with_name("detection_rule.json").read_text())
    return chosen


def opencv() -> ModuleType:
    """OpenCV, which an analysis installs only where boxes are wanted."""
    try:
        import cv2
    except ImportError as error:
        remedy = "pip install 'i2am[detect]'"
        raise MissingDependency("boxes of maps need OpenCV", got=str(error), remedy=remedy) from error
    return cv2


def official_box(values: Float64, direction: Direction) -> tuple[Box, Grid] | None:
    """(box, grid that its pixels are counted on) of a map; None where the paper's chain finds no contour."""
    cv2 = opencv()
    drawn = drawn_map(values, direction)
    mask = np.where(drawn > np.percentile(drawn, PERCENTILE), 255, 0).astype(np.uint8)
    kernel = np.ones((KERNEL, KERNEL), np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel)
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel)
    mask = cv2.dilate(mask, kernel)
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    boxes = [cv2.boundingRect(contour) for contour in contours]
    if not boxes:
        return None
    x, y, width, height = max(
        boxes, key=lambda b: int((mask[b[1] : b[1] + b[3], b[0] : b[0] + b[2]] > 0).sum())
    )
    return Box(x, y, width, height), (mask.shape[0], mask.shape[1])


def shown_map(values: Float64, direction: Direction) -> Float64:
    """The map from 0 to 1 as the paper's code draws it, before it is enlarged."""
    shown = (values - values.min()) / (values.max() - values.min() + EPSILON)
    shown = 1 - shown if direction == "r2g" else shown
    return np.where(shown <= G2R_CUT, 0.0, shown)


def drawn_map(values: Float64, direction: Direction) -> Float64:
    """The map with 369 rows, each pixel that of its cell; one with as many or more is taken as it is."""
    shown = shown_map(values, direction)
    rows, columns = shown.shape
    return shown if rows >= DRAWN_ROWS else nearest(shown, (DRAWN_ROWS, round(columns * DRAWN_ROWS / rows)))


def corrected_box(values: Float64, how: Setting) -> tuple[Box, Grid]:
    """(box, grid that its pixels are counted on) of a map."""
    cv2 = opencv()
    smooth = smoothed(values, how.blur)
    grid: Grid = (smooth.shape[0], smooth.shape[1])
    least = np.quantile(smooth, how.quantile)
    above = smooth >= least if least > smooth.min() else smooth > least  # a plateau belongs to what it tops
    if not normalise(values).any() or not above.any():
        return whole_image(grid), grid
    _, parts, found, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    held = np.bincount(parts.ravel(), smooth.ravel())[1:]
    x, y, width, height = (float(number) for number in found[1 + held.argmax(), :4])
    return Box(x, y, width, height), grid


def smoothed(values: Float64, blur: float) -> Float64:
    """The map at LONGEST pixels, smoothed by a Gaussian; its borders are continued."""
    cv2 = opencv()
    rows, columns = values.shape
    ratio = LONGEST / max(rows, columns)
    grown = resized(values, (max(1, round(rows * ratio)), max(1, round(columns * ratio))), "linear")
    if not blur:
        return grown
    return np.asarray(cv2.GaussianBlur(grown, (0, 0), blur * LONGEST, borderType=cv2.BORDER_REPLICATE))


def contrast(values: Float64, box: Box) -> float:
    """Confidence in a box, 0 to 1: the map's mean inside over the sum of its means inside and outside.

    0.5 says that the map is no higher inside than outside. `box` is in cells of the map.
    """
    rows, columns = values.shape
    left, top = round(box.x), round(box.y)
    right, bottom = max(left + 1, round(box.x + box.width)), max(top + 1, round(box.y + box.height))
    inside = np.zeros((rows, columns), dtype=bool)
    inside[min(top, rows - 1) : bottom, min(left, columns - 1) : right] = True
    if inside.all():
        return 0.5
    level = values - min(0.0, float(values.min()))
    within, without = float(level[inside].mean()), float(level[~inside].mean())
    return within / (within + without) if within + without > 0 else 0.5


def peak(values: Float64, rule: Rule, direction: Direction) -> tuple[int, int]:
    """(row, column) of the highest cell of the map that a rule reads."""
    read: Any = shown_map(values, direction) if rule == "official" else values
    row, column = np.unravel_index(int(np.argmax(read)), values.shape)
    return int(row), int(column)
