"""Grids of small pictures in a page, and the size that keeps a page's bytes bounded.

A map is a picture of few colours of its own; the image below it is in the page once for all maps of a
sample, and the browser multiplies the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from i2am.analysis.drawing.images import covered, data_url, edge, ground_url, map_url
from i2am.analysis.drawing.panels import Block, Panel, line_width

PAGE_BYTES = 24 * 2**20
"""Bytes of the pictures of one page, at most, whatever they show."""

MAP_BYTES, IMAGE_BYTES = 1.25, 4.2
"""Bytes of a pixel in the page, at most: of a map's picture of noise, and of an image's, base64 included."""

LEAST = 48
"""Longer side of a tile, at least (pixels): fewer samples are shown before tiles get smaller."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture: title, title in full, data URL, words for who cannot see it, pixels, and what it is.

    `plain` is an image; `over` a map that the browser lays over the grid's ground.
    """

    title: str
    whole: str
    url: str
    words: str
    width: int
    height: int
    plain: bool
    over: bool


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles under a heading, in so many columns where there is room, none wider than `longest` pixels.

    `ground` is the data URL of the image below its maps, or None.
    """

    title: str
    tiles: tuple[Tile, ...]
    ground: str | None
    columns: int
    longest: int


def tile_size(maps: int, images: int, samples: int, most: int) -> tuple[int, int]:
    """Size of tiles, and how many samples there is room for, so that a page stays below PAGE_BYTES.

    Parameters
    ----------
    maps, images
        Tiles of one sample that are `map_tile` and `image_tile`.
    samples
        Samples that are wanted.
    most
        Longer side of a tile, at most (pixels).

    Returns
    -------
    int, int
        Longer side (pixels, LEAST to `most`) and samples.
    """
    weight = max(maps * MAP_BYTES + images * IMAGE_BYTES, 1e-9)
    shown = min(samples, int(PAGE_BYTES / (weight * LEAST**2)))
    longest = math.isqrt(int(PAGE_BYTES / (weight * max(shown, 1))))
    return min(max(longest, LEAST), most), shown


def tile_grid(block: Block, end: float, longest: int, sign: str) -> TileGrid:
    """Tiles of a block whose maps all lie on one image.

    Parameters
    ----------
    block
        Panels; the image and the mask of the first map are those of all.
    end
        End of the colour scale.
    longest
        Longer side of a tile (pixels).
    sign
        Behind a value in words.
    """
    first = next((panel for panel in block.panels if panel.values is not None), None)
    ground = None
    if first is not None and first.image is not None:
        shape = first.shape(longest)
        lines = None if first.mask is None else edge(covered(first.mask, shape), line_width(longest))
        ground = ground_url(first.image, shape, lines)
    tiles = [
        image_tile(panel, end, longest, sign) if panel.values is None else map_tile(panel, end, longest, sign)
        for panel in block.panels
    ]
    return TileGrid(block.title, tuple(tiles), ground, block.columns, longest)


def map_tile(panel: Panel, end: float, longest: int, sign: str) -> Tile:
    """A map alone, with the outline of its mask; the image below it is its grid's ground."""
    if panel.values is None:
        return image_tile(panel, end, longest, sign)
    shape = panel.shape(longest)
    lines = None if panel.mask is None else edge(covered(panel.mask, shape), line_width(longest))
    url = map_url(panel.values, end, shape, lines)
    return _tile(panel, url, shape, sign, over=panel.image is not None)


def image_tile(panel: Panel, end: float, longest: int, sign: str) -> Tile:
    """A panel as it is in a figure: an image, or a map painted over its own image."""
    picture = panel.picture(end, longest)
    return _tile(panel, data_url(picture), (picture.shape[0], picture.shape[1]), sign, over=False)


def image_tiles(block: Block, end: float, longest: int, sign: str) -> TileGrid:
    """Tiles of panels as they are in a figure, each over an image of its own."""
    tiles = tuple(image_tile(panel, end, longest, sign) for panel in block.panels)
    return TileGrid(block.title, tiles, None, block.columns, longest)


def _tile(panel: Panel, url: str, shape: tuple[int, int], sign: str, *, over: bool) -> Tile:
    whole = panel.whole or panel.title
    words = whole
    if panel.values is not None:
        known = panel.values[np.isfinite(panel.values)]
        words += f": {known.min():.3g}{sign} to {known.max():.3g}{sign}" if known.size else ": no numbers"
    return Tile(panel.title, whole, url, words, shape[1], shape[0], panel.values is None, over)
