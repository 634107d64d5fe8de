"""Layers that were captured in tiles, put together into maps of the whole picture.

Large latents are denoised in overlapping tiles, each stored as a layer ``NAME@tile-TOP-LEFT``. A map of NAME
is the mean of its tiles' maps wherever they overlap, on a canvas in units of the denoiser's latents; then it
is resized like any other. Each tile's attention is its own: 1 means uniform within the tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids.direction import Side, side_of
from i2am.analysis.grids.resize import Grid, bicubic
from i2am.storage.errors import NoAnswer

if TYPE_CHECKING:
    from i2am.analysis.grids.direction import Direction
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.format.tile import Tile


def tile_of(layer: LayerSpec, side: Side) -> Tile | None:
    """Where a layer's patches lie on the whole picture; None: they are the whole."""
    return layer.tile if side == "gen" else layer.ref_tile


def whole_name(layer: LayerSpec) -> str:
    """Name of the layer that a tile belongs to; any other layer's own name."""
    mark = f"@tile-{layer.tile.top}-{layer.tile.left}" if layer.tile is not None else ""
    return layer.name.replace(mark, "", 1) if mark else layer.name


def whole_grid(layer: LayerSpec, side: Side) -> Grid:
    """(rows, columns) of the whole picture: the canvas of a tile, or the layer's own grid."""
    tile = tile_of(layer, side)
    if tile is not None:
        return tile.canvas_rows, tile.canvas_columns
    return layer.gen_grid if side == "gen" else layer.ref_grid


def part_of(mask: NDArray[Any], tile: Tile | None) -> NDArray[Any]:
    """The part of a mask [y, x] of the whole picture, of any size, that lies on a tile."""
    if tile is None:
        return mask
    rows, columns = mask.shape[0] / tile.canvas_rows, mask.shape[1] / tile.canvas_columns
    top, bottom = (round(edge * rows) for edge in (tile.top, tile.top + tile.rows))
    left, right = (round(edge * columns) for edge in (tile.left, tile.left + tile.columns))
    return mask[top : max(bottom, top + 1), left : max(right, left + 1)]


def in_wholes(layers: Sequence[LayerSpec]) -> dict[str, list[int]]:
    """Positions of the layers of each whole, in order of their first."""
    found: dict[str, list[int]] = {}
    for position, layer in enumerate(layers):
        found.setdefault(whole_name(layer), []).append(position)
    return found


def target(layer: LayerSpec, direction: Direction, size: Grid) -> Grid:
    """Size at which a layer's own map is made: a tile's in latents, or the size that is asked for."""
    tile = tile_of(layer, side_of(direction))
    return size if tile is None else (tile.rows, tile.columns)


def check_covered(layers: Sequence[LayerSpec], direction: Direction) -> None:
    """Check that the tiles of each whole leave no place out."""
    side = side_of(direction)
    for name, positions in in_wholes(layers).items():
        tiles = [tile for p in positions if (tile := tile_of(layers[p], side)) is not None]
        if tiles and not _cover(tiles).all():
            raise NoAnswer(
                f"a map of layer {name!r}",
                expected="tiles that cover the whole picture",
                got=f"{len(tiles)} that leave places out",
                remedy="ask for all tiles of the layer by its name",
            )


def together(
    parts: Sequence[NDArray[np.float64]], layers: Sequence[LayerSpec], direction: Direction, size: Grid
) -> list[NDArray[np.float64]]:
    """Maps of whole layers."""
    side = side_of(direction)
    found = []
    for positions in in_wholes(layers).values():
        maps = [parts[p] for p in positions]
        tiles = [tile_of(layers[p], side) for p in positions]
        touched = [(m, t) for m, t in zip(maps, tiles, strict=True) if np.isfinite(m).all()]
        if len(maps) == 1 and tiles[0] is None:
            found.append(maps[0])
        elif not touched:
            found.append(np.full((*maps[0].shape[:-2], *size), np.nan))
        elif tiles[0] is None:  # all tiles see one reference
            found.append(np.mean([m for m, _ in touched], axis=0))
        else:
            found.append(bicubic(_on_canvas([(m, t) for m, t in touched if t is not None]), size))
    return found


def _cover(tiles: Sequence[Tile]) -> NDArray[np.float64]:
    """How many tiles lie on each place of their canvas."""
    count = np.zeros((tiles[0].canvas_rows, tiles[0].canvas_columns))
    for tile in tiles:
        count[_place(tile)] += 1
    return count


def _on_canvas(parts: Sequence[tuple[NDArray[np.float64], Tile]]) -> NDArray[np.float64]:
    tiles = [tile for _, tile in parts]
    total = np.zeros((*parts[0][0].shape[:-2], tiles[0].canvas_rows, tiles[0].canvas_columns))
    for values, tile in parts:
        total[(..., *_place(tile))] += values
    return np.asarray(total / np.maximum(_cover(tiles), 1))


def _place(tile: Tile) -> tuple[slice, slice]:
    return slice(tile.top, tile.top + tile.rows), slice(tile.left, tile.left + tile.columns)
