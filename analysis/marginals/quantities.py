"""Marginals: the means of both softmaxes of one sample and layer, from one read of the store.

Source: I²AM, R2G and G2R; the corrected protocol. Quantities, each float32 (step, head, token):

============= ===== ==================================================================================
``r2g``       gen   R2G density, mean over the reference tokens that have a place (all, if none has)
``g2r``       ref   G2R density of the placed tokens, mean over the generated patches; the softmax runs
                    over all reference tokens, class token included, as in the model
``daam``      gen   each patch's probability of a set of reference tokens, times ref: DAAM's map; over
                    all tokens it is 1 everywhere, so it is kept for sets only
``share``     gen   joint softmax with ``lse``: each patch's probability of the reference at all, 0 to 1
``g2r_joint`` ref   joint softmax: G2R over all keys, not brought to 1 over the reference alone; its
                    mean over ref is the mean share
============= ===== ==================================================================================

Densities are 1 for uniform attention. ``@reference_mask`` restricts a quantity to the tokens of the reference
object, ``@mask`` to the patches that were painted; present where the run holds those images, NaN where that
mask is empty. The unified, time, head and layer levels are means of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids import regions, tiled_layers
from i2am.analysis.grids.direction import Direction, Side
from i2am.analysis.grids.selection import has_place, placed
from i2am.analysis.reduction.aggregation import Aggregation, State, join
from i2am.analysis.reduction.attention import Attention
from i2am.analysis.reduction.reduce import reduce_slab, slabs
from i2am.analysis.reduction.softmax import project
from i2am.analysis.reduction.weights import Weights

if TYPE_CHECKING:
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.reading.run import Run

FOCUS: Mapping[Direction, str] = {"r2g": "reference_mask", "g2r": "mask"}
"""The image of the run, per direction, whose region has a marginal of its own."""

ON_REFERENCE = ("g2r", "g2r_joint")
"""Kinds of quantity that lie on the reference; the others lie on the generated image."""

Marginals = dict[str, NDArray[np.float32]]


def quantity(kind: str, image: str | None = None) -> str:
    """Name of a marginal: its kind, and the image whose region it is restricted to."""
    return kind if not image else f"{kind}@{image}"


@dataclass(frozen=True)
class Regions:
    """Regions to average over, by name; the name "" stands for everything."""

    # name to weights (gen) of the generated patches, for quantities on the reference
    gen: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    # name to weights (placed ref) of the reference tokens, of all tokens where none has a place;
    # for quantities on the generated image
    ref: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class Projection:
    """The chunk of the marginals: `i2am.analysis.reduction.softmax.project` with the weights of some regions."""

    regions: Regions

    def names(self, layer: LayerSpec) -> tuple[str, ...]:
        """Quantities, in the order of the state's arrays."""
        sets = [name for name in self.regions.ref if name]
        found = [quantity("g2r", name) for name in self.regions.gen]
        found += [quantity("r2g", name) for name in self.regions.ref]
        found += [quantity("daam", name) for name in sets]
        if layer.lse:
            found += [quantity("g2r_joint", name) for name in self.regions.gen]
            found += [quantity("share", name) for name in ("", *sets)] if self.regions.ref else []
        return tuple(found)

    def __call__(self, attention: Attention) -> State:
        """Arrays (step, head, token), one for each of `names`."""
        layer = attention.layer
        prefix = layer.ref_prefix if placed(layer) else 0
        if attention.logits is None:
            raise TypeError("a projection needs logits")
        found = project(attention.logits, self._weights(layer, prefix))
        arrays = [found.g2r[:, :, row, prefix:] for row in range(len(self.regions.gen))]
        arrays += [found.r2g[:, :, row] for row in range(len(self.regions.ref))]
        arrays += [found.daam[:, :, row] for row in range(found.daam.shape[2])]
        if layer.lse:
            arrays += [found.g2r_joint[:, :, row, prefix:] for row in range(len(self.regions.gen))]
            shares = found.share.shape[2] if self.regions.ref else 0
            arrays += [found.share[:, :, row] for row in range(shares)]
        return tuple(arrays)

    def _weights(self, layer: LayerSpec, prefix: int) -> Weights:
        """The regions as weights over all tokens."""
        tokens = {name: np.zeros(layer.ref, dtype=np.float32) for name in self.regions.ref}
        for name, weights in self.regions.ref.items():
            tokens[name][prefix:] = weights
        empty = {"gen": layer.gen, "ref": layer.ref}
        return Weights(
            **empty,
            g2r=_stacked([*self.regions.gen.values()], layer.gen),
            r2g=_stacked([*tokens.values()], layer.ref),
            tokens=_stacked([weights for name, weights in tokens.items() if name], layer.ref),
            joint=layer.lse,
        )


def _stacked(rows: list[NDArray[np.float32]], tokens: int) -> NDArray[np.float32]:
    return np.stack(rows) if rows else np.empty((0, tokens), dtype=np.float32)


def quantities(run: Run, layer: LayerSpec) -> dict[str, int]:
    """Names of the marginals that a layer of a run has, with their number of tokens."""
    tokens = {True: placed(layer), False: layer.gen}
    names = _projection(run, layer, None).names(layer)
    return {name: tokens[name.partition("@")[0] in ON_REFERENCE] for name in names}


def declaration(run: Run, layer: LayerSpec, sample: str, regions: Regions | None = None) -> Aggregation:
    """The marginals of one sample and layer, or those of some regions, as an aggregation over the logits."""
    chunk = _projection(run, layer, sample) if regions is None else Projection(regions)
    return Aggregation("marginals", chunk, over="logits")


def _projection(run: Run, layer: LayerSpec, sample: str | None) -> Projection:
    """All regions that a layer is asked about; their weights only if a sample is given."""
    whole = np.ones(placed(layer) or layer.ref, dtype=np.float32)
    gen: dict[str, NDArray[np.float32]] = {}
    ref = {"": whole}
    if has_place(layer):
        gen[""] = np.ones(layer.gen, dtype=np.float32)
        if FOCUS["g2r"] in run.images:
            gen[FOCUS["g2r"]] = _covered(run, FOCUS["g2r"], sample, layer, "gen")
        if FOCUS["r2g"] in run.images:
            ref[FOCUS["r2g"]] = _covered(run, FOCUS["r2g"], sample, layer, "ref")
    return Projection(Regions(gen, ref))


def _covered(run: Run, image: str, sample: str | None, layer: LayerSpec, side: Side) -> NDArray[np.float32]:
    grid = layer.gen_grid if side == "gen" else layer.ref_grid
    pixels = None if sample is None else regions.sample_image(run, image, sample)
    # A sample without the image has an empty region: its marginal is NaN, the others' are not touched.
    mask = np.zeros(grid, dtype=bool) if pixels is None else regions.image_mask(pixels)
    return regions.weights(tiled_layers.part_of(mask, tiled_layers.tile_of(layer, side)), grid)


def named(run: Run, layer: LayerSpec, states: Sequence[State], regions: Regions | None = None) -> Marginals:
    """Join the states of a layer's slabs, in order, into arrays (step, head, token) by name."""
    projection = _projection(run, layer, None) if regions is None else Projection(regions)
    whole = join(Aggregation("marginals", projection, over="logits"), states, "step")
    return dict(zip(projection.names(layer), whole, strict=True))


def compute_marginals(run: Run, layer: LayerSpec, sample: str, regions: Regions | None = None) -> Marginals:
    """Marginals of one sample and layer, computed from the store here and now."""
    asked = declaration(run, layer, sample, regions)
    steps = range(len(run.timesteps))
    states = [reduce_slab(run, layer, sample, asked, slab) for slab in slabs(layer, steps)]
    return named(run, layer, states, regions)
