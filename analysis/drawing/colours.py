"""Densities as colours: a diverging, logarithmic scale, pale at 1, laid over the image by multiplication."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

COLOUR_MAP = "RdBu_r"
"""matplotlib's name of the colour map: diverging, even in lightness, safe for colour-blind readers."""

LIMITS = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
"""Ends of the scale to choose from: the scale runs from 1/limit to limit, times uniform."""

UNKNOWN = (128, 128, 128)
"""Colour of what is not a number."""

RGB = NDArray[np.uint8]


@lru_cache(maxsize=4)
def palette(count: int = 256) -> RGB:
    """The scale as (count, 3) colours, from least to most."""
    from matplotlib import colormaps

    colours = colormaps[COLOUR_MAP](np.linspace(0.03, 0.97, count))
    return np.asarray(np.round(np.asarray(colours)[:, :3] * 255), dtype=np.uint8)


def limit(maps: Iterable[ArrayLike], quantile: float = 0.99) -> float:
    """Smallest of LIMITS that holds a share of the finite values of several maps, or the last of LIMITS."""
    edges = np.log2(LIMITS) + 1e-9
    held = np.zeros(len(LIMITS) + 1, dtype=np.int64)
    for part in maps:
        values = np.asarray(part, dtype=np.float64).ravel()
        # Values near zero, and below it where a resize overshoots, must not stretch the scale without end.
        spread = np.abs(np.log2(np.clip(values[np.isfinite(values)], 1 / 8, None)))
        held += np.bincount(np.searchsorted(edges, spread), minlength=len(held))
    enough = np.cumsum(held)[:-1] >= quantile * held.sum()
    return LIMITS[int(np.argmax(enough))] if enough.any() else LIMITS[-1]


def scale_ticks(end: float) -> list[float]:
    """Values to mark on a scale from 1/end to end: its ends, and the powers of two well inside."""
    powers = [2.0**power for power in range(-5, 6) if 2 ** abs(power) <= end / 1.8]
    return [1 / end, *powers, end]


def times(value: float) -> str:
    """A density with its unit, such as 0.5× or 2×."""
    return f"{value:.3g}×"


def position(values: ArrayLike, end: float) -> NDArray[np.float64]:
    """Place of densities on the scale, 0 to 1 (0.5 is uniform); values off the scale are at its ends."""
    low = 1.0 / end
    clipped = np.clip(np.asarray(values, dtype=np.float64), low, end)
    return np.asarray(0.5 + np.log2(clipped) / (2 * np.log2(end)))


def palette_indices(
    values: ArrayLike, end: float, shape: tuple[int, int], count: int = 256
) -> NDArray[np.uint8]:
    """A map [y, x] as uint8 indices into a palette, brought to `shape`; `count` where it is not a number.

    Places on the scale are resized bilinearly, because a cubic would draw rings around peaks.
    """
    density = np.asarray(values, dtype=np.float64)
    known = np.isfinite(density)
    place = _smooth(position(np.where(known, density, 1.0), end), shape)
    found = np.round(place * (count - 1))
    if not known.all():
        found[_smooth(known.astype(float), shape) < 0.5] = count
    return found.astype(np.uint8)


def backdrop(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What an image [y, x, channel] multiplies the colours of a map above it by, 0.5 to 1."""
    colours = image.shape[-1]
    weights = np.array([0.299, 0.587, 0.114]) if colours >= 3 else np.ones(colours) / colours
    return np.asarray(0.5 + 0.5 * (image[..., : len(weights)].astype(np.float64) @ weights) / 255)


def paint(
    values: ArrayLike, end: float, shape: tuple[int, int], image: NDArray[np.uint8] | None = None
) -> RGB:
    """Paint a map [y, x] as RGB of `shape`, over an image of that size in grey; NaN is grey."""
    scale = np.concatenate([palette(PAINTED), [UNKNOWN]]).astype(np.float64)
    colours = scale[palette_indices(values, end, shape, PAINTED)]
    if image is not None:
        colours = colours * backdrop(image)[..., None]
    return np.asarray(np.clip(np.round(colours), 0, 255), dtype=np.uint8)


PAINTED = 255
"""Colours of a painted map: all that fit a byte beside the one for what is not a number."""


def _smooth(values: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize(shape[::-1], Image.Resampling.BILINEAR), dtype=np.float64)
