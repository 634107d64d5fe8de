"""Images for figures and pages: brought to a size, outlined, marked, and as data URLs."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from i2am.analysis.drawing.colours import RGB, UNKNOWN, backdrop, palette, palette_indices

YELLOW, DARK = (255, 214, 10), (29, 28, 26)

MAP_COLOURS = 63
"""Colours of a map in a page: odd, so that uniform is one of them; few, so that files are small."""


def rgb(image: NDArray[np.uint8]) -> RGB:
    """Any image [y, x, channel] as three channels."""
    if image.ndim == 2:
        image = image[..., None]
    return np.asarray(image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1))


def fit(size: tuple[int, ...], longest: int) -> tuple[int, int]:
    """(rows, columns) of the same aspect ratio whose longer side is `longest` pixels."""
    ratio = longest / max(size[:2])
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def scaled(image: NDArray[np.uint8], shape: tuple[int, int]) -> RGB:
    """Image [y, x, channel] as RGB of a size: pixels stay pixels where it grows, Lanczos where it shrinks."""
    grows = shape[0] >= image.shape[0]
    method = Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(rgb(image)).resize(shape[::-1], method))


def covered(mask: NDArray[np.bool_] | NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask [y, x] at a picture's size: pixels covered by half or more, or, if there are none, at all."""
    picture = Image.fromarray(mask.astype(np.float32))
    share = np.asarray(picture.resize(shape[::-1], Image.Resampling.BOX))
    return np.asarray(share >= 0.5 if (share >= 0.5).any() else share > 0)


def outline(
    image: RGB, mask: NDArray[np.bool_], width: int = 1, colour: tuple[int, int, int] = YELLOW
) -> RGB:
    """Draw the border of a mask [y, x] inside it, on an image [y, x, 3] of the same size."""
    drawn = image.copy()
    drawn[edge(mask, width)] = colour
    return drawn


def edge(mask: NDArray[np.bool_], width: int = 1) -> NDArray[np.bool_]:
    """Pixels of a mask [y, x] within `width` of its border or of the picture's."""
    return np.asarray(mask & _grown(~mask, width, beyond=True))


def mark(image: RGB, region: NDArray[np.bool_], width: int = 3) -> RGB:
    """Draw a ring around a region [y, x]: even one pixel is seen, and what is inside stays as it is.

    A dark line sets the ring off; where the region touches the picture's border the ring runs inside.
    """
    drawn = image.copy()
    ring = _grown(region, width)
    drawn[_grown(ring, 1) & ~ring] = DARK
    drawn[ring & ~region] = YELLOW
    frame = np.ones_like(region)
    frame[width:-width, width:-width] = False
    drawn[region & frame] = YELLOW
    return drawn


def _grown(mask: NDArray[np.bool_], by: int, beyond: bool = False) -> NDArray[np.bool_]:
    """Mask grown by a square; `beyond` says whether what lies outside the picture is in it."""
    padded = np.pad(mask, by, constant_values=beyond)
    rows = np.any([padded[n : n + mask.shape[0]] for n in range(2 * by + 1)], axis=0)
    return np.asarray(np.any([rows[:, n : n + mask.shape[1]] for n in range(2 * by + 1)], axis=0))


def data_url(image: RGB) -> str:
    """An image [y, x, 3] as a PNG data URL."""
    return _url(Image.fromarray(image))


def backdrop_url(image: NDArray[np.uint8], shape: tuple[int, int], lines: NDArray[np.bool_] | None) -> str:
    """What an image multiplies the maps above it by, as a grey PNG; `lines` are left for the maps to draw.

    A page multiplies `map_url` with this, as `i2am.analysis.drawing.colours.paint` does.
    """
    grey = np.round(backdrop(scaled(image, shape)) * 255).astype(np.uint8)
    if lines is not None:
        grey[lines] = 255
    return _url(Image.fromarray(grey))


def map_url(
    values: NDArray[np.float64], end: float, shape: tuple[int, int], lines: NDArray[np.bool_] | None = None
) -> str:
    """A map [y, x] alone as a PNG data URL of MAP_COLOURS colours, with lines of `shape` in yellow."""
    indices = palette_indices(values, end, shape, MAP_COLOURS)
    if lines is not None:
        indices[lines] = MAP_COLOURS + 1
    picture = Image.fromarray(indices, "P")
    picture.putpalette(np.concatenate([palette(MAP_COLOURS), [UNKNOWN, YELLOW]]).astype(np.uint8).tobytes())
    return _url(picture)


def _url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
