"""Maps of layers captured in tiles, ``NAME@tile-TOP-LEFT``: the mean where tiles overlap (METHODS.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids.direction import Direction, Side, side_of
from i2am.analysis.grids.regions import token_weights
from i2am.analysis.grids.resize import Grid, Resize, nearest, resized
from i2am.storage.errors import NoAnswer
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.tile import Tile


def tile_of(layer: LayerSpec, side: Side) -> Tile | None:
    """The tile of the whole picture that a layer's patches cover; None if they cover all of it."""
    return layer.tile if side == "gen" else layer.ref_tile


def untiled_name(layer: LayerSpec) -> str:
    """Name of the layer that a tile belongs to; any other layer's own name."""
    if layer.tile is None:
        return layer.name
    return layer.name.replace(f"@tile-{layer.tile.top}-{layer.tile.left}", "", 1)


def layer_grid(layer: LayerSpec, side: Side) -> Grid:
    """(rows, columns) of a layer's own patches."""
    return layer.gen_grid if side == "gen" else layer.ref_grid


def full_grid(layer: LayerSpec, side: Side) -> Grid:
    """(rows, columns) of the whole picture: the canvas of a tile, or the layer's own grid."""
    tile = tile_of(layer, side)
    if tile is not None:
        return tile.canvas_rows, tile.canvas_columns
    return layer_grid(layer, side)


def largest_grid(layers: Iterable[LayerSpec], side: Side) -> Grid:
    """The whole picture's grid of the layer that has the most patches."""
    return max((full_grid(layer, side) for layer in layers), key=math.prod)


def crop_to_tile(mask: NDArray[Any], tile: Tile | None) -> NDArray[Any]:
    """The part of a mask [y, x] of the whole picture, of any size, that lies on a tile."""
    if tile is None:
        return mask
    rows, columns = mask.shape[0] / tile.canvas_rows, mask.shape[1] / tile.canvas_columns
    top, bottom = (round(edge * rows) for edge in (tile.top, tile.top + tile.rows))
    left, right = (round(edge * columns) for edge in (tile.left, tile.left + tile.columns))
    return mask[top : max(bottom, top + 1), left : max(right, left + 1)]


def layer_weights(
    layer: LayerSpec, side: Side, mask: NDArray[Any] | None, *, nearest_pixel: bool = False
) -> NDArray[np.float32]:
    """Weights (token) of a layer's patches for a mask [y, x] of the whole picture; None is an empty mask.

    A patch counts by the share of it that the mask covers, or by its nearest pixel.
    """
    grid = layer_grid(layer, side)
    part = crop_to_tile(np.zeros(grid) if mask is None else mask, tile_of(layer, side))
    return token_weights(nearest(part, grid) if nearest_pixel else part, grid)


def group_tiles(layers: Sequence[LayerSpec]) -> dict[str, list[int]]:
    """Untiled name to the indices of its tiles in `layers`; a layer without tiles is a group of one."""
    groups: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        groups.setdefault(untiled_name(layer), []).append(index)
    return groups


def map_size(layer: LayerSpec, direction: Direction, size: Grid) -> Grid:
    """Size at which a layer's own map is made: a tile's in latents, else the size that is asked for."""
    tile = tile_of(layer, side_of(direction))
    return size if tile is None else (tile.rows, tile.columns)


def check_covered(layers: Sequence[LayerSpec], direction: Direction) -> None:
    """Refuse layers (`NoAnswer`) whose selected tiles do not cover the whole picture."""
    side = side_of(direction)
    for name, indices in group_tiles(layers).items():
        tiles = [tile for i in indices if (tile := tile_of(layers[i], side)) is not None]
        if tiles and not _tile_count(tiles).all():
            raise NoAnswer(
                f"a map of layer {name!r}",
                expected="tiles that cover the whole picture",
                got=f"{len(tiles)} that leave places out",
                remedy="ask for all tiles of the layer by its name",
            )


def merge_tiles(
    maps: Sequence[NDArray[np.float64]],
    layers: Sequence[LayerSpec],
    direction: Direction,
    size: Grid,
    resize: Resize = "linear",
) -> list[NDArray[np.float64]]:
    """Maps (k, rows, columns) of whole layers from those of `layers`, one for each of `group_tiles`.

    A tile that a region does not touch has NaN throughout and takes no part; where only such tiles lie, the
    map is 0, because no attention can reach there.
    """
    side = side_of(direction)
    merged = []
    for indices in group_tiles(layers).values():
        first, tiled = maps[indices[0]], tile_of(layers[indices[0]], side) is not None
        touched = [(maps[i], tile_of(layers[i], side)) for i in indices if np.isfinite(maps[i]).all()]
        if len(indices) == 1 and not tiled:
            merged.append(first)
        elif not touched:
            merged.append(np.full((*first.shape[:-2], *size), np.nan))
        elif not tiled:  # every tile sees the whole reference
            merged.append(np.mean([values for values, _ in touched], axis=0))
        else:
            whole = _stitch([(m, tile) for m, tile in touched if tile is not None])
            merged.append(resized(whole, size, resize))
    return merged


def _tile_count(tiles: Sequence[Tile]) -> NDArray[np.float64]:
    """Number of tiles on each cell of their canvas."""
    count = np.zeros((tiles[0].canvas_rows, tiles[0].canvas_columns))
    for tile in tiles:
        count[_slices(tile)] += 1
    return count


def _stitch(parts: Sequence[tuple[NDArray[np.float64], Tile]]) -> NDArray[np.float64]:
    tiles = [tile for _, tile in parts]
    total = np.zeros((*parts[0][0].shape[:-2], tiles[0].canvas_rows, tiles[0].canvas_columns))
    for values, tile in parts:
        total[(..., *_slices(tile))] += values
    return np.asarray(total / np.maximum(_tile_count(tiles), 1))


def _slices(tile: Tile) -> tuple[slice, slice]:
    return slice(tile.top, tile.top + tile.rows), slice(tile.left, tile.left + tile.columns)
