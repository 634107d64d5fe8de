"""Densities as colours: a diverging scale centred at 1, logarithmic, shared by maps shown together.

Pale is uniform attention; red is more, blue is less; equal steps of colour are equal ratios. A map is laid
over its image by multiplication, so that the image stays readable where attention is uniform.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

COLOUR_MAP = "RdBu_r"
"""matplotlib's name of the colour map: diverging, even in lightness, safe for colour-blind readers."""

LIMITS = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
"""Ends of the scale to choose from: the scale runs from 1/limit to limit, times uniform."""

RGB = NDArray[np.uint8]


@lru_cache(maxsize=4)
def palette(count: int = 256) -> RGB:
    """The scale as (count, 3) colours, from least to most."""
    from matplotlib import colormaps

    colours = colormaps[COLOUR_MAP](np.linspace(0.03, 0.97, count))
    return np.asarray(np.round(np.asarray(colours)[:, :3] * 255), dtype=np.uint8)


def limit(maps: Iterable[ArrayLike], quantile: float = 0.99) -> float:
    """Choose the end of a scale shared by several maps.

    Parameters
    ----------
    maps
        Densities, 1 for uniform; not finite values are ignored.
    quantile
        Share of the values that the scale must hold.

    Returns
    -------
    float
        The smallest of LIMITS that does.
    """
    parts = [np.asarray(values, dtype=np.float64).ravel() for values in maps]
    values = np.concatenate(parts) if parts else np.ones(1)
    values = values[np.isfinite(values)]
    if not values.size:
        return LIMITS[0]
    # Values near zero, and below it where a resize overshoots, must not stretch the scale without end.
    spread = 2 ** np.quantile(np.abs(np.log2(np.clip(values, 1 / 8, None))), quantile)
    return next((end for end in LIMITS if end >= spread), LIMITS[-1])


def position(values: ArrayLike, end: float) -> NDArray[np.float64]:
    """Place of densities on the scale, 0 to 1 (0.5 is uniform); values off the scale are at its ends."""
    low = 1.0 / end
    clipped = np.clip(np.asarray(values, dtype=np.float64), low, end)
    return np.asarray(0.5 + np.log2(clipped) / (2 * np.log2(end)))


def paint(values: ArrayLike, end: float, image: NDArray[np.uint8] | None = None, size: int = 256) -> RGB:
    """Paint a map [y, x], over its image if there is one.

    Parameters
    ----------
    values
        Densities [y, x]. NaN is painted grey.
    end
        End of the scale, from `limit`.
    image
        [y, x, channel], 0 to 255; shown in grey under the colours.
    size
        Length of the longer side where there is no image (pixels).

    Returns
    -------
    ndarray
        uint8 [y, x, 3], of the image's size.
    """
    density = np.asarray(values, dtype=np.float64)
    if image is None:
        factor = max(1, size // max(density.shape))
        shape = (density.shape[0] * factor, density.shape[1] * factor)
    else:
        shape = (image.shape[0], image.shape[1])
    known = np.isfinite(density)
    place = _smooth(position(np.where(known, density, 1.0), end), shape)
    scale = palette()
    colours = scale[np.round(place * (len(scale) - 1)).astype(int)].astype(np.float64)
    if not known.all():
        colours[_smooth(known.astype(float), shape) < 0.5] = 128
    if image is not None:
        luminance = image[..., :3].astype(np.float64) @ (
            np.array([0.299, 0.587, 0.114])
            if image.shape[-1] >= 3
            else np.ones(image.shape[-1]) / image.shape[-1]
        )
        colours *= (0.5 + 0.5 * luminance / 255)[..., None]
    return np.asarray(np.clip(np.round(colours), 0, 255), dtype=np.uint8)


def _smooth(values: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Bring places on the scale to a picture's size, bilinearly: a cubic would draw rings around peaks."""
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize(shape[::-1], Image.Resampling.BILINEAR), dtype=np.float64)


def outline(image: RGB, mask: NDArray[np.bool_], colour: tuple[int, int, int] = (255, 214, 10)) -> RGB:
    """Draw the border of a mask [y, x] on an image [y, x, 3] of the same size, one pixel wide."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    inner[[0, -1]] = False
    inner[:, [0, -1]] = False
    drawn = image.copy()
    drawn[mask & ~inner] = colour
    return drawn


def rgb(image: NDArray[np.uint8]) -> RGB:
    """Any image [y, x, channel] as three channels."""
    if image.ndim == 2:
        image = image[..., None]
    return np.asarray(image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1))


def data_url(image: RGB, longest: int = 320) -> str:
    """An image [y, x, 3] as a PNG data URL, brought down to `longest` pixels if it is larger."""
    picture = Image.fromarray(image)
    ratio = longest / max(picture.size)
    if ratio < 1:
        size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
