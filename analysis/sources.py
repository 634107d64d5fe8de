"""Where a map's tokens come from: a stored marginal, or a measurement for a region of its own.

Small picklable callables, so that any Dask scheduler can carry them to its workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis import region, resize
from analysis.cache import MarginalCache
from analysis.marginals import FOCUS, measure, quantity
from analysis.selection import Direction, Selection
from storage.errors import UnknownName

if TYPE_CHECKING:
    from storage import LayerSpec, Run

Tokens = Callable[["LayerSpec", str], NDArray[np.float32]]
"""(layer, sample) to a marginal (step, head, token)."""


@dataclass(frozen=True)
class Stored:
    """A quantity of the derived store, computed where it is missing."""

    cache: MarginalCache
    name: str

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        """Marginal (step, head, token)."""
        return self.cache.get(layer, sample, self.name)


@dataclass(frozen=True)
class Measured:
    """Densities of a region: G2R of chosen generated patches, or R2G of chosen reference tokens.

    Attributes
    ----------
    run, direction
        What to read, and which way round.
    region
        The name of a mask image of the run, or a mask [y, x].
    nearest
        The mask goes to a layer's grid by the nearest pixel, as in the official protocol, not by area.
    """

    run: Run
    direction: Direction
    region: str | NDArray[np.float64]
    nearest: bool = False

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        """Marginal (step, head, token); NaN where the region is empty in this sample."""
        if isinstance(self.region, str):
            mask = region.image_mask(self.run.image(self.region, sample)).astype(np.float64)
        else:
            mask = self.region
        grid = layer.gen_grid if self.direction == "g2r" else layer.ref_grid
        weights = region.weights(resize.nearest(mask, grid) if self.nearest else mask, grid)
        if self.direction == "g2r":
            return measure(self.run, layer, sample, {"g2r": weights}, {})["g2r"]
        return measure(self.run, layer, sample, {}, {"r2g": weights})["r2g"]


def tokens_for(
    cache: MarginalCache,
    chosen: Selection,
    direction: Direction,
    at: region.Region | str | None,
    *,
    nearest: bool = False,
) -> Tokens:
    """Choose the source for a question.

    Parameters
    ----------
    cache, chosen, direction
        What is asked about.
    at
        None for all tokens; the name of a mask image; or a region in patches of the largest grid of the
        layers.
    nearest
        Take masks to each grid by the nearest pixel; the stored marginals of masks go by area, so they do not
        serve then.

    Raises
    ------
    UnknownName
        For an image that the run lacks, or a patch outside the grid.
    NoAnswer
        If the region is empty.
    """
    run = cache.run
    if at is None:
        return Stored(cache, quantity(direction))
    if isinstance(at, str):
        if at not in run.images:
            raise UnknownName("image", at, run.images)
        if at == FOCUS[direction] and not nearest:
            return Stored(cache, quantity(direction, at))
        return Measured(run, direction, at, nearest)
    grids = [spec.gen_grid if direction == "g2r" else spec.ref_grid for spec in chosen.layers]
    drawn = region.draw(at, max(grids, key=lambda grid: grid[0] * grid[1]))
    return Measured(run, direction, drawn, nearest)
