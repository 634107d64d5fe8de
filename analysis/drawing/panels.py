"""Panels: pictures with a title, and blocks of them; what figures and pages are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.drawing.colours import RGB, paint
from i2am.analysis.drawing.images import YELLOW, covered, fit, mark, outline, scaled
from i2am.analysis.grids.regions import image_mask, sample_image
from i2am.storage.reading.run_collection import home_of

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun

MOST_COLUMNS = 10
"""Panels side by side, at most."""

Frame = tuple[float, float, float, float]
"""A box: its left, upper, right and lower edge, in shares of the picture."""

BLANK = 244
"""Grey of a panel whose image the run does not hold."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: an image [y, x, channel], a map of densities [y, x], or a map over an image."""

    title: str
    image: NDArray[np.uint8] | None
    values: NDArray[np.float64] | None = None
    mask: NDArray[np.bool_] | None = None  # region to outline, of any size
    asked: NDArray[np.float64] | None = None  # region that was asked about, to mark, of any size
    full_title: str = ""  # where the title is shortened
    line: tuple[int, int, int] = YELLOW  # colour of the outline
    boxes: tuple[tuple[Frame, tuple[int, int, int]], ...] = ()  # to draw, with their colours

    def shape(self, longest: int) -> tuple[int, int]:
        """(rows, columns) of the picture whose longer side is `longest` pixels."""
        for source in (self.image, self.values, self.asked):
            if source is not None:
                return fit(source.shape, longest)
        return longest, longest

    def picture(self, end: float, longest: int) -> RGB:
        """Painted panel, its longer side `longest` pixels, on the colour scale that ends at `end`."""
        shape = self.shape(longest)
        below = None if self.image is None else scaled(self.image, shape)
        if self.values is not None:
            drawn = paint(self.values, end, shape, below)
        else:
            drawn = np.full((*shape, 3), BLANK, np.uint8) if below is None else below
        if self.mask is not None:
            drawn = outline(drawn, covered(self.mask, shape), line_width(longest), self.line)
        if self.asked is not None:
            drawn = mark(drawn, covered(self.asked, shape), 1 + line_width(longest))
        for box, colour in self.boxes:
            drawn = outline(drawn, _inside(box, shape), line_width(longest), colour)
        return drawn


def _inside(box: Frame, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of a picture that lie in a box."""
    rows, columns = shape
    left, top, right, bottom = (
        round(share * side) for share, side in zip(box, (columns, rows) * 2, strict=True)
    )
    inside = np.zeros(shape, dtype=bool)
    inside[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return inside


def line_width(longest: int) -> int:
    """Width of an outline on a picture whose longer side is `longest` pixels."""
    return max(1, round(longest / 128))


@dataclass(frozen=True, slots=True)
class Block:
    """Panels that belong together, under a heading of their own, wrapped into rows of `columns`."""

    title: str
    panels: tuple[Panel, ...]
    columns: int

    @property
    def rows(self) -> int:
        """Rows of panels."""
        return math.ceil(len(self.panels) / self.columns)


def block(title: str, panels: Sequence[Panel], together: int = 1) -> Block:
    """Wrap panels into few, even rows of at most MOST_COLUMNS; `together` neighbours stay in one row."""
    groups = math.ceil(len(panels) / together)
    rows = math.ceil(groups / (MOST_COLUMNS // together))
    return Block(title, tuple(panels), together * math.ceil(groups / rows))


@dataclass(frozen=True, slots=True)
class SampleImages:
    """Images [y, x, channel] of one sample by name, and the masks [y, x] among them."""

    images: Mapping[str, NDArray[np.uint8]]
    masks: Mapping[str, NDArray[np.bool_]]

    @classmethod
    def read(cls, run: AnyRun, sample: str) -> SampleImages:
        """Read what the run holds of a sample."""
        home = home_of(run, sample)
        found = {name: sample_image(home, name, sample) for name in home.images}
        images = {name: image for name, image in found.items() if image is not None}
        masks: dict[str, NDArray[np.bool_]] = {
            name: image_mask(images[name]) for name in ("mask", "reference_mask") if name in images
        }
        return cls(images, masks)


NO_IMAGES = SampleImages({}, {})
"""Of a mean over samples, or of maps without their run."""
