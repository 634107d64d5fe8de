"""Marginals: the means of both softmaxes of one sample and layer, from one read of the store.

Source: I²AM, R2G and G2R; the corrected protocol. Quantities, each float32 (step, head, token):

============= ===== ==================================================================================
``r2g``       gen   R2G density, mean over the reference tokens that have a place (all, if none has)
``g2r``       ref   G2R density of the tokens that have a place, mean over the generated patches; the
                    softmax runs over all reference tokens, class token included, as in the model
``daam``      gen   DAAM's map of a set of tokens: each patch's probability of the set, times ref; only
                    for sets, since it is 1 everywhere over all tokens
``share``     gen   joint softmax with ``lse``: each patch's probability of all reference tokens, 0 to 1
``g2r_joint`` ref   joint softmax: G2R density over all keys; its mean over ref is the mean share
``r2g_norm``  gen   with value norms: as ``r2g``, each token's density times the norm of its value
============= ===== ==================================================================================

Densities are 1 for uniform attention. ``@reference_mask`` restricts a quantity to the tokens of the reference
object (of "reference-1": ``reference-1_mask``), ``@mask`` to the painted patches. These exist where the run
holds those images, and are NaN where the mask of a sample is empty. The unified, time, head and layer levels
are means of these quantities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids import regions, tiled_layers
from i2am.analysis.grids.direction import Direction, Side
from i2am.analysis.grids.selection import has_reference_map, spatial_tokens
from i2am.analysis.reduction.aggregation import Aggregation, State
from i2am.analysis.reduction.attention import Attention
from i2am.analysis.reduction.reduce import Reduction, join_states, slabs
from i2am.analysis.reduction.softmax import weighted_means
from i2am.analysis.reduction.weights import Weights
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run

Float32 = NDArray[np.float32]
Marginals = dict[str, Float32]

# The mask image of the run, per direction, whose region has a marginal of its own.
REGION_IMAGE: Mapping[Direction, str] = {"r2g": "reference_mask", "g2r": "mask"}
# Kinds of quantity that lie on the reference; the others lie on the generated image.
ON_REFERENCE = ("g2r", "g2r_joint")


def quantity_name(kind: str, image: str = "") -> str:
    """Name of a marginal: its kind, and the image whose region it is restricted to."""
    return f"{kind}@{image}" if image else kind


@dataclass(frozen=True)
class Regions:
    """Weights of the regions to average over, by name; the name "" stands for everything."""

    gen: Mapping[str, Float32] = field(default_factory=dict)  # of all generated patches
    ref: Mapping[str, Float32] = field(
        default_factory=dict
    )  # of the tokens with a place, or of all if none has


@dataclass(frozen=True)
class MarginalChunk:
    """The chunk function of the marginals as an aggregation over logits."""

    regions: Regions

    def names(self, layer: LayerSpec) -> tuple[str, ...]:
        """Quantities, in the order of the state's arrays."""
        gen, ref = list(self.regions.gen), list(self.regions.ref)
        token_sets = [name for name in ref if name]
        asked = [("g2r", gen), ("r2g", ref), ("daam", token_sets)]
        if layer.lse:
            asked += [("g2r_joint", gen), ("share", ["", *token_sets] if ref else [])]
        if layer.value_norm:
            asked.append(("r2g_norm", ref))
        return tuple(quantity_name(kind, name) for kind, names in asked for name in names)

    def __call__(self, attention: Attention) -> State:
        """Arrays (step, head, token), one for each of `names`."""
        layer = attention.layer
        prefix = layer.ref_prefix if spatial_tokens(layer) else 0
        if attention.logits is None:
            raise TypeError("marginals need logits")
        means = weighted_means(attention.logits, self._weights(layer, prefix))
        stacks = [means.g2r[..., prefix:], means.r2g, means.daam]
        if layer.lse:
            stacks += [means.g2r_joint[..., prefix:], means.share[:, :, : None if self.regions.ref else 0]]
        if layer.value_norm:
            stacks.append(means.r2g_norm)
        return tuple(stack[:, :, row] for stack in stacks for row in range(stack.shape[2]))

    def _weights(self, layer: LayerSpec, prefix: int) -> Weights:
        """The regions as weights over all tokens."""
        tokens = {name: np.zeros(layer.ref, dtype=np.float32) for name in self.regions.ref}
        for name, weights in self.regions.ref.items():
            tokens[name][prefix:] = weights
        return Weights(
            gen=layer.gen,
            ref=layer.ref,
            g2r=_stack([*self.regions.gen.values()], layer.gen),
            r2g=_stack([*tokens.values()], layer.ref),
            tokens=_stack([weights for name, weights in tokens.items() if name], layer.ref),
            joint=layer.lse,
            normed=layer.value_norm,
        )


def _stack(rows: list[Float32], tokens: int) -> Float32:
    return np.stack(rows) if rows else np.empty((0, tokens), dtype=np.float32)


def quantities(run: Run, layer: LayerSpec) -> dict[str, int]:
    """Names of the marginals that a layer of a run has, with their number of tokens."""
    names = _stored_chunk(run, layer, None).names(layer)
    on_reference = {name: name.partition("@")[0] in ON_REFERENCE for name in names}
    return {name: spatial_tokens(layer) if there else layer.gen for name, there in on_reference.items()}


def marginal_aggregation(
    run: Run, layer: LayerSpec, sample: str, asked: Regions | None = None
) -> Aggregation:
    """The marginals of one sample and layer, or those of the regions that are asked for."""
    chunk = _stored_chunk(run, layer, sample) if asked is None else MarginalChunk(asked)
    return Aggregation("marginals", chunk, over="logits")


def _stored_chunk(run: Run, layer: LayerSpec, sample: str | None) -> MarginalChunk:
    """The regions that the derived store keeps of a layer; with usable weights only if a sample is given."""
    gen: dict[str, Float32] = {}
    ref = {"": np.ones(spatial_tokens(layer) or layer.ref, dtype=np.float32)}
    if has_reference_map(layer):
        gen[""] = np.ones(layer.gen, dtype=np.float32)
        painted, object_image = REGION_IMAGE["g2r"], f"{layer.reference}_mask"
        if painted in run.images:
            gen[painted] = _image_weights(run, painted, sample, layer, "gen")
        if object_image in run.images:
            ref[REGION_IMAGE["r2g"]] = _image_weights(run, object_image, sample, layer, "ref")
    return MarginalChunk(Regions(gen, ref))


def _image_weights(run: Run, image: str, sample: str | None, layer: LayerSpec, side: Side) -> Float32:
    pixels = None if sample is None else regions.sample_image(run, image, sample)
    # A sample without the image has an empty region: that marginal alone is NaN.
    return tiled_layers.layer_weights(layer, side, None if pixels is None else regions.image_mask(pixels))


def join_slabs(
    run: Run, layer: LayerSpec, states: Sequence[State], asked: Regions | None = None
) -> Marginals:
    """Join the states of a layer's slabs, in order, into arrays (step, head, token) by name."""
    chunk = _stored_chunk(run, layer, None) if asked is None else MarginalChunk(asked)
    whole = join_states(Aggregation("marginals", chunk, over="logits"), states, "step")
    return dict(zip(chunk.names(layer), whole, strict=True))


def compute_marginals(run: Run, layer: LayerSpec, sample: str, asked: Regions | None = None) -> Marginals:
    """Compute all marginals of one sample and layer, or those of some regions, in this thread."""
    aggregation = marginal_aggregation(run, layer, sample, asked)
    steps = range(len(run.timesteps))
    reduction = Reduction(run, layer, sample, aggregation)
    states = [reduction.slab(slab) for slab in slabs(layer, steps)]
    return join_slabs(run, layer, states, asked)
