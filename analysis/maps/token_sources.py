"""Where the token values of a map come from: a stored marginal, or a region measured. Picklable callables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids import regions, tiled_layers
from i2am.analysis.grids.direction import Direction, other_side, side_of
from i2am.analysis.grids.selection import Selection
from i2am.analysis.marginals.memory_cache import shared_cache
from i2am.analysis.marginals.quantities import REGION_IMAGE, Regions, compute_marginals, quantity_name
from i2am.analysis.marginals.store import MarginalStore
from i2am.storage.errors import UnknownName
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.marginals_only import need_attention
from i2am.storage.reading.run import Run

Method = Literal["i2am", "joint", "daam", "norm", "contribution"]
METHODS: tuple[Method, ...] = ("i2am", "joint", "daam", "norm", "contribution")

# Kind of marginal that answers a question.
KINDS: Mapping[tuple[Method, Direction], str] = {
    ("i2am", "r2g"): "r2g",
    ("i2am", "g2r"): "g2r",
    ("joint", "r2g"): "share",
    ("joint", "g2r"): "g2r_joint",
    ("daam", "r2g"): "daam",
    ("norm", "r2g"): "r2g_norm",
    ("norm", "g2r"): "g2r",  # times the norms
    ("contribution", "r2g"): "contribution",
}


Heads = tuple[int, ...] | None  # indices; None for all heads of a layer


class TokenSource(ABC):
    """A callable from layer and sample to a marginal (step, head, token)."""

    @abstractmethod
    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]: ...

    def mean_over_heads(self, layer: LayerSpec, sample: str, heads: Heads) -> NDArray[np.float64]:
        """Mean over some heads, or all, (step, token)."""
        values = self(layer, sample)
        some = values if heads is None else values[:, list(heads)]
        return np.asarray(some.mean(axis=1, dtype=np.float64))

    def is_quick(self, layer: LayerSpec, sample: str) -> bool:
        """Whether a call probably reads no attention."""
        return False


@dataclass(frozen=True)
class StoredMarginal(TokenSource):
    """A quantity of the derived store, computed where it is missing."""

    store: MarginalStore
    name: str

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        return self.store.get(layer, sample, self.name)

    def mean_over_heads(self, layer: LayerSpec, sample: str, heads: Heads) -> NDArray[np.float64]:
        """Mean over heads, cached: three levels need the same one."""
        key = (*self.store.key(layer, sample, self.name), "over heads", heads)
        compute = super().mean_over_heads
        return shared_cache.get(key, lambda: compute(layer, sample, heads))

    def is_quick(self, layer: LayerSpec, sample: str) -> bool:
        return self.store.probably_stored(layer, sample, self.name)


@dataclass(frozen=True)
class UniformDensity(TokenSource):
    """Density 1 everywhere: DAAM's map over all tokens, because every row of a softmax sums to 1."""

    steps: int

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        return np.ones((self.steps, layer.heads, layer.gen), dtype=np.float32)

    def is_quick(self, layer: LayerSpec, sample: str) -> bool:
        return True


@dataclass(frozen=True)
class TimesNorms(TokenSource):
    """A quantity on the reference times the norms of values, which do not depend on the generated patch."""

    run: Run
    source: TokenSource

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        key = ("value_norm", self.run.run_id, self.run.fingerprint(sample), layer)
        steps = [0] if layer.static_key else range(len(self.run.timesteps))
        heads = range(layer.heads)
        norms = shared_cache.get(
            key,
            lambda: self.run.read_kind(layer, "value_norm", sample, steps, heads)[..., layer.ref_prefix :],
        )
        return self.source(layer, sample) * norms

    def is_quick(self, layer: LayerSpec, sample: str) -> bool:
        return self.source.is_quick(layer, sample)


@dataclass(frozen=True)
class Contributions(TokenSource):
    """What the reference adds to each generated patch, over what it is added to; of all heads together."""

    run: Run

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        steps, tokens = range(len(self.run.timesteps)), range(layer.gen)
        return self.run.read_kind(layer, "contribution", sample, steps, tokens)[:, None]

    def is_quick(self, layer: LayerSpec, sample: str) -> bool:
        return True


@dataclass(frozen=True)
class RegionMarginal(TokenSource):
    """A quantity of a region (generated patches for "g2r", else reference tokens), NaN if that is empty."""

    run: Run
    direction: Direction
    kind: str  # of the marginal
    region: str | NDArray[np.float64]  # the name of a mask image of the run, or a mask [y, x]
    nearest: bool = False  # bring the mask to a layer's grid by the nearest pixel (official), not by area

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        if isinstance(self.region, str):
            mask = regions.image_mask(self.run.image(self.region, sample)).astype(np.float64)
        else:
            mask = self.region
        side = other_side(side_of(self.direction))
        weights = tiled_layers.layer_weights(layer, side, mask, nearest_pixel=self.nearest)
        asked = Regions(**{side: {"at": weights}})
        return compute_marginals(self.run, layer, sample, asked)[quantity_name(self.kind, "at")]


@dataclass(frozen=True)
class ChosenTokens(TokenSource):
    """A quantity of some reference tokens without a place, by their numbers: R2G of words."""

    run: Run
    kind: str
    tokens: tuple[int, ...]

    def __call__(self, layer: LayerSpec, sample: str) -> NDArray[np.float32]:
        weights = np.zeros(layer.ref, dtype=np.float32)
        weights[list(self.tokens)] = 1
        found = compute_marginals(self.run, layer, sample, Regions(ref={"at": weights}))
        return found[quantity_name(self.kind, "at")]


def token_source(
    store: MarginalStore,
    selection: Selection,
    direction: Direction,
    at: regions.Region | str | None,
    *,
    method: Method = "i2am",
    nearest: bool = False,
) -> TokenSource:
    """Choose the source for a question; `at` is a region on the largest grid, a mask image, or None for all.

    Stored marginals of masks weight tokens by area, so they do not serve where `nearest` is asked for.
    Raises `UnknownName` for an image that the run lacks, and `NoAnswer` if the region is empty, or if the run
    holds no attention to measure it in.
    """
    run, kind = store.run, KINDS[method, direction]
    if method == "contribution":
        return Contributions(run)
    if (method, direction) == ("norm", "g2r"):
        return TimesNorms(run, token_source(store, selection, direction, at))
    if at is None:
        return UniformDensity(len(run.timesteps)) if method == "daam" else StoredMarginal(store, kind)
    if (tokens := regions.read_tokens(at)) is not None:
        need_attention(run.attrs, str(run.path), "maps of tokens")
        return ChosenTokens(run, kind, tokens)
    if isinstance(at, str):
        if at not in run.images:
            raise UnknownName("image", at, run.images)
        if at == REGION_IMAGE[direction] and not nearest:
            return StoredMarginal(store, quantity_name(kind, at))
        need_attention(run.attrs, str(run.path), f"maps of the region {at!r}")
        return RegionMarginal(run, direction, kind, at, nearest)
    need_attention(run.attrs, str(run.path), "maps of a region")
    grid = tiled_layers.largest_grid(selection.layers, other_side(side_of(direction)))
    return RegionMarginal(run, direction, kind, regions.region_mask(at, grid), nearest)
