"""Grids of small pictures in a page, and the size that keeps a page's bytes bounded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from i2am.analysis.drawing.images import backdrop_url, covered, data_url, edge, map_url
from i2am.analysis.drawing.panels import Block, Panel, line_width

PAGE_BYTES = 24 * 2**20
"""Bytes of the pictures of one page, at most, whatever they show."""

MAP_BYTES, IMAGE_BYTES = 1.25, 4.2
"""Bytes of a pixel in the page, at most: of a map's picture of noise, and of an image's, base64 included."""

LEAST = 48
"""Longer side of a thumbnail, at least (pixels): fewer samples are shown before they get smaller."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """One picture of a page."""

    title: str
    full_title: str
    url: str  # of data
    words: str  # for who cannot see it
    width: int
    height: int
    over: bool  # a map that the browser lays over the grid's backdrop


@dataclass(frozen=True, slots=True)
class ThumbnailGrid:
    """Thumbnails under a heading, in `columns` where there is room, none wider than `longest` pixels."""

    title: str
    thumbnails: tuple[Thumbnail, ...]
    backdrop: str | None  # data URL of the image below the maps
    columns: int
    longest: int


def thumbnail_size(maps: int, images: int, samples: int, most: int) -> tuple[int, int]:
    """Longer side (LEAST to `most` pixels), and the samples that a page of PAGE_BYTES has room for.

    `maps` and `images` count the thumbnails of one sample.
    """
    weight = max(maps * MAP_BYTES + images * IMAGE_BYTES, 1e-9)
    shown = min(samples, int(PAGE_BYTES / (weight * LEAST**2)))
    longest = math.isqrt(int(PAGE_BYTES / (weight * max(shown, 1))))
    return min(max(longest, LEAST), most), shown


def maps_over_image(block: Block, end: float, longest: int, sign: str) -> ThumbnailGrid:
    """Thumbnails of a block whose maps all lie on one image, with one mask."""
    first = next((panel for panel in block.panels if panel.values is not None), None)
    backdrop = None
    if first is not None and first.image is not None:
        shape = first.shape(longest)
        lines = None if first.mask is None else edge(covered(first.mask, shape), line_width(longest))
        backdrop = backdrop_url(first.image, shape, lines)
    thumbnails = tuple(map_thumbnail(panel, end, longest, sign) for panel in block.panels)
    return ThumbnailGrid(block.title, thumbnails, backdrop, block.columns, longest)


def map_thumbnail(panel: Panel, end: float, longest: int, sign: str) -> Thumbnail:
    """A map alone, with the outline of its mask; the image below it is its grid's backdrop."""
    if panel.values is None:
        return image_thumbnail(panel, end, longest, sign)
    shape = panel.shape(longest)
    lines = None if panel.mask is None else edge(covered(panel.mask, shape), line_width(longest))
    url = map_url(panel.values, end, shape, lines)
    return _thumbnail(panel, url, shape, sign, over=panel.image is not None)


def image_thumbnail(panel: Panel, end: float, longest: int, sign: str) -> Thumbnail:
    """A panel as it is in a figure: an image, or a map painted over its own image."""
    picture = panel.picture(end, longest)
    return _thumbnail(panel, data_url(picture), (picture.shape[0], picture.shape[1]), sign, over=False)


def images_side_by_side(block: Block, end: float, longest: int, sign: str) -> ThumbnailGrid:
    """Thumbnails of panels as they are in a figure, each over an image of its own."""
    thumbnails = tuple(image_thumbnail(panel, end, longest, sign) for panel in block.panels)
    return ThumbnailGrid(block.title, thumbnails, None, block.columns, longest)


def _thumbnail(panel: Panel, url: str, shape: tuple[int, int], sign: str, *, over: bool) -> Thumbnail:
    words = full = panel.full_title or panel.title
    if panel.values is not None:
        known = panel.values[np.isfinite(panel.values)]
        words += f": {known.min():.3g}{sign} to {known.max():.3g}{sign}" if known.size else ": no numbers"
    return Thumbnail(panel.title, full, url, words, shape[1], shape[0], over)
