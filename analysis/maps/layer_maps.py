"""Maps of one layer under the corrected protocol, and the plan that every protocol's layer maps follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids import tiled_layers
from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.resize import Grid, bicubic

if TYPE_CHECKING:
    from i2am.analysis.maps.token_sources import Tokens
    from i2am.storage.format.layer_spec import LayerSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """What to make of each layer."""

    direction: Direction  # "r2g" or "g2r"
    # step indices of each time group; one group holds them all unless the level is time
    groups: tuple[tuple[int, ...], ...]
    size: Grid  # (rows, columns) of the maps
    heads: tuple[int, ...] | None  # indices of heads; None for all heads of the layer
    by_head: bool  # keep the heads apart; there is one group then


def density_maps(tokens: Tokens, plan: Plan, spec: LayerSpec, sample: str) -> NDArray[np.float64]:
    """Mean densities of one sample and layer."""
    if plan.by_head:
        values = tokens(spec, sample)
        some = values if plan.heads is None else values[:, list(plan.heads)]
        kept = some[_index(plan.groups[0])].mean(axis=0, dtype=np.float64)
    else:
        over_heads = tokens.over_heads(spec, sample, plan.heads)
        kept = np.stack([over_heads[_index(group)].mean(axis=0) for group in plan.groups])
    grid = spec.gen_grid if plan.direction == "r2g" else spec.ref_grid
    return bicubic(kept.reshape(-1, *grid), tiled_layers.target(spec, plan.direction, plan.size))


def _index(steps: tuple[int, ...]) -> slice | list[int]:
    """Index of some steps: a slice, which copies nothing, where they are neighbours."""
    if steps == tuple(range(steps[0], steps[-1] + 1)):
        return slice(steps[0], steps[-1] + 1)
    return list(steps)
