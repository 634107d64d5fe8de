"""Colour bars of the report's pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.drawing.colours import palette, scale_ticks, times

EVERY = 15
"""One colour of a bar for so many of the palette."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A colour bar: CSS colours from least to most, (percent, words) of its marks, and what it measures."""

    colours: tuple[str, ...]
    ticks: tuple[tuple[float, str], ...]
    words: str = ""


def density_scale(end: float, words: str = "") -> Scale:
    """Bar of densities from 1/end to end, times uniform, in equal ratios."""
    ticks = tuple(
        (round(50 + 50 * float(np.log(tick) / np.log(end)), 2), times(tick)) for tick in scale_ticks(end)
    )
    return Scale(tuple(css(colour) for colour in palette()[::EVERY]), ticks, words)


def value_scale(low: float, high: float, colours: NDArray[np.uint8], words: str = "") -> Scale:
    """Bar of values from low to high in equal steps."""
    marks = ((0.0, low), (50.0, (low + high) / 2), (100.0, high))
    ticks = tuple((place, f"{value:.3g}") for place, value in marks)
    return Scale(tuple(css(colour) for colour in colours[::EVERY]), ticks, words)


def css(colour: Sequence[int] | NDArray[np.uint8]) -> str:
    """Red, green and blue, 0 to 255, as CSS has them."""
    red, green, blue = colour
    return f"rgb({red} {green} {blue})"
