"""Colour bars of the pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.drawing.colours import palette
from i2am.analysis.drawing.text import density_ticks

EVERY = 15
"""One colour of a bar for so many of the palette."""


@dataclass(frozen=True, slots=True)
class ScaleBar:
    """CSS colours from least to most, (percent, words) of the marks, and what the bar measures."""

    colours: tuple[str, ...]
    ticks: tuple[tuple[float, str], ...]
    words: str = ""


def scale_bar(colours: NDArray[np.uint8], ticks: Sequence[tuple[float, str]], words: str = "") -> ScaleBar:
    """Bar of all of some colours; `ticks` are (place from 0 to 1, words)."""
    marks = tuple((round(100 * place, 2), text) for place, text in ticks)
    return ScaleBar(tuple(css(colour) for colour in colours[::EVERY]), marks, words)


def density_bar(end: float, words: str = "") -> ScaleBar:
    """Bar of densities from 1/end to end, times uniform, in equal ratios."""
    return scale_bar(palette(), density_ticks(end), words)


def css(colour: Sequence[int] | NDArray[np.uint8]) -> str:
    """Red, green and blue, 0 to 255, as CSS has them."""
    red, green, blue = colour
    return f"rgb({red} {green} {blue})"
