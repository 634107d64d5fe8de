"""Pictures of found boxes beside the true ones: a sample's methods, and two methods over several samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.drawing.colours import RGB
from i2am.analysis.drawing.images import YELLOW
from i2am.analysis.drawing.panels import Block, Frame, Panel
from i2am.analysis.drawing.sheet import sheet

FOUND = (214, 39, 40)
NOTE = "Yellow: the true box. Red: the box that the method found."


@dataclass(frozen=True, slots=True)
class BoxPanel:
    """What one method found in one image; boxes are (x, y, width, height) in pixels of the image."""

    title: str
    image: NDArray[np.uint8]
    values: NDArray[np.float64] | None = None  # densities [y, x]
    found: tuple[float, float, float, float] | None = None
    true: tuple[float, float, float, float] | None = None

    def panel(self) -> Panel:
        """The picture: the map over its image, and both boxes."""
        drawn = ((self.true, YELLOW), (self.found, FOUND))
        boxes = tuple((_frame(box, self.image), colour) for box, colour in drawn if box is not None)
        return Panel(self.title, self.image, self.values, boxes=boxes)


def box_sheet(title: str, rows: Sequence[tuple[str, Sequence[BoxPanel]]], note: str = NOTE) -> RGB:
    """Rows of (heading, panels) on one picture, with one colour scale."""
    blocks = [Block(words, tuple(one.panel() for one in panels), len(panels)) for words, panels in rows]
    return sheet(blocks, title, "density, times uniform", note)


def _frame(box: tuple[float, float, float, float], image: NDArray[np.uint8]) -> Frame:
    x, y, width, height = box
    rows, columns = image.shape[:2]
    return x / columns, y / rows, (x + width) / columns, (y + height) / rows
