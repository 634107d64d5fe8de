"""Where a map's tokens come from: a stored marginal, or a measurement for a region of its own.

Small picklable callables, so that any Dask scheduler can carry them to its workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids import regions, resize, tiled_layers
from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.selection import Selection
from i2am.analysis.marginals.memory_cache import recent
from i2am.analysis.marginals.quantities import FOCUS, Regions, compute_marginals, quantity
from i2am.analysis.marginals.store import MarginalCache
from i2am.storage.errors import UnknownName
from i2am.storage.format.marginals_only import need_attention

if TYPE_CHECKING:
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.reading.run import Run

Method = Literal["i2am", "joint", "daam"]
METHODS: tuple[Method, ...] = ("i2am", "joint", "daam")

KINDS: Mapping[tuple[Method, Direction], str] = {
    ("i2am", "r2g"): "r2g",
    ("i2am", "g2r"): "g2r",
    ("joint", "r2g"): "share",
    ("joint", "g2r"): "g2r_joint",
    ("daam", "r2g"): "daam",
}
"""Which marginal answers a question."""


class Tokens(ABC):
    """(layer, sample) to a marginal (step, head, token)."""

    @abstractmethod
    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        """Marginal (step, head, token)."""

    def over_heads(self, layer: LayerSpec, sample: str, heads: tuple[int, ...] | None) -> NDArray[np.float64]:
        """Mean over some heads, or all, (step, token)."""
        values = self(layer, sample)
        some = values if heads is None else values[:, list(heads)]
        return np.asarray(some.mean(axis=1, dtype=np.float64))


@dataclass(frozen=True)
class Stored(Tokens):
    """A quantity of the derived store, computed where it is missing."""

    cache: MarginalCache
    name: str

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        """Marginal (step, head, token)."""
        return self.cache.get(layer, sample, self.name)

    def over_heads(self, layer: LayerSpec, sample: str, heads: tuple[int, ...] | None) -> NDArray[np.float64]:
        """Mean over some heads, or all, (step, token); three levels in turn ask for the same."""
        key = (*self.cache.key(layer, sample, self.name), "over heads", heads)
        return recent.get(key, lambda: super(Stored, self).over_heads(layer, sample, heads))

    def likely(self, layer: LayerSpec, sample: str) -> bool:
        """Whether it is there already, as far as that can be told without reading."""
        return self.cache.likely(layer, sample, self.name)


@dataclass(frozen=True)
class Constant(Tokens):
    """Density 1 everywhere: DAAM's map over all tokens, because every row of a softmax sums to 1."""

    steps: int

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        """Marginal (step, head, gen)."""
        return np.ones((self.steps, layer.heads, layer.gen), dtype=np.float32)


@dataclass(frozen=True)
class Measured(Tokens):
    """A quantity of a region: of chosen generated patches for "g2r", of chosen reference tokens for "r2g"."""

    run: Run  # run, direction, kind: what to read, which way round, and which kind of marginal
    direction: Direction
    kind: str
    region: str | NDArray[np.float64]  # the name of a mask image of the run, or a mask [y, x]
    # the mask goes to a layer's grid by the nearest pixel, as in the official protocol, not by area
    nearest: bool = False

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        """Marginal (step, head, token); NaN where the region is empty in this sample."""
        if isinstance(self.region, str):
            mask = regions.image_mask(self.run.image(self.region, sample)).astype(np.float64)
        else:
            mask = self.region
        grid = layer.gen_grid if self.direction == "g2r" else layer.ref_grid
        mask = tiled_layers.part_of(
            mask, tiled_layers.tile_of(layer, "gen" if self.direction == "g2r" else "ref")
        )
        weights = regions.weights(resize.nearest(mask, grid) if self.nearest else mask, grid)
        asked = Regions(gen={"at": weights}) if self.direction == "g2r" else Regions(ref={"at": weights})
        return compute_marginals(self.run, layer, sample, asked)[quantity(self.kind, "at")]


def tokens_for(
    cache: MarginalCache,
    chosen: Selection,
    direction: Direction,
    at: regions.Region | str | None,
    *,
    method: Method = "i2am",
    nearest: bool = False,
) -> Tokens:
    """Choose the source for a question."""
    run, kind = cache.run, KINDS[method, direction]
    if at is None:
        return Constant(len(run.timesteps)) if method == "daam" else Stored(cache, kind)
    if isinstance(at, str):
        if at not in run.images:
            raise UnknownName("image", at, run.images)
        if at == FOCUS[direction] and not nearest:
            return Stored(cache, quantity(kind, at))
        need_attention(run.attrs, str(run.path), f"maps of the region {at!r}")
        return Measured(run, direction, kind, at, nearest)
    grids = [tiled_layers.whole_grid(spec, "gen" if direction == "g2r" else "ref") for spec in chosen.layers]
    need_attention(run.attrs, str(run.path), "maps of a region")
    drawn = regions.draw(at, max(grids, key=lambda grid: grid[0] * grid[1]))
    return Measured(run, direction, kind, drawn, nearest)
