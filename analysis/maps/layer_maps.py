"""Maps of one layer under the corrected protocol, and the description of maps that both protocols follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids import tiled_layers
from i2am.analysis.grids.direction import Direction, side_of
from i2am.analysis.grids.resize import Grid, Resize, resized
from i2am.analysis.maps.token_sources import TokenSource
from i2am.storage.format.layer_spec import LayerSpec


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What to average within each layer, and the size of its maps."""

    direction: Direction
    groups: tuple[tuple[int, ...], ...]  # step indices of each time group; one group unless the level is time
    size: Grid  # (rows, columns)
    heads: tuple[int, ...] | None  # None: all heads of the layer
    by_head: bool  # one map for each head; there is one group then
    resize: Resize = "linear"  # of the corrected protocol: how the layers are brought to one grid


def density_maps(
    source: TokenSource, map_spec: MapSpec, layer: LayerSpec, sample: str
) -> NDArray[np.float64]:
    """Mean densities (k, y, x) of one sample and layer, for k time groups, or heads, or 1.

    Source: I²AM, with the means of the corrected protocol: over steps and heads, then the resize. A tile
    has a size of its own, see `i2am.analysis.grids.tiled_layers`.
    """
    if map_spec.by_head:
        values = source(layer, sample)
        heads = values if map_spec.heads is None else values[:, list(map_spec.heads)]
        means = heads[_step_index(map_spec.groups[0])].mean(axis=0, dtype=np.float64)
    else:
        over_heads = source.mean_over_heads(layer, sample, map_spec.heads)
        means = np.stack([over_heads[_step_index(group)].mean(axis=0) for group in map_spec.groups])
    grid = tiled_layers.layer_grid(layer, side_of(map_spec.direction))
    size = tiled_layers.map_size(layer, map_spec.direction, map_spec.size)
    return resized(means.reshape(-1, *grid), size, map_spec.resize)


def _step_index(steps: tuple[int, ...]) -> slice | list[int]:
    """Index of some steps: a slice, which copies nothing, where they are neighbours."""
    if steps == tuple(range(steps[0], steps[-1] + 1)):
        return slice(steps[0], steps[-1] + 1)
    return list(steps)
