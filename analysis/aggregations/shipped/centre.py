"""Attention centres, and their total variation: whether neighbours look at neighbouring places.

Source: StableVITON's loss of this family. A query's centre is the mean coordinate of the reference tokens,
weighted by its softmax over those that have a place. The total variation is the mean distance between the
centres of horizontally and vertically neighbouring patches, both in units of the reference's height and width
(0 to 1); small where attention is orderly. If the run has the inpainting mask, over pairs of patches that are
at least half inside it. (step, head); NaN where there is no such pair.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.reduction.aggregation import Aggregation, State, ratio
from i2am.analysis.reduction.attention import Attention
from i2am.storage.format.layer_spec import LayerSpec

Float64 = NDArray[np.float64]


def centres(attention: Attention) -> Float64:
    """Centre (step, head, gen, 2) of each query's attention: (y, x), 0 to 1 over the reference."""
    p = attention.probabilities("g2r")[..., attention.placed]
    rows, columns = attention.layer.ref_grid
    y, x = np.divmod(np.arange(rows * columns), columns)
    places = np.stack([(y + 0.5) / rows, (x + 0.5) / columns], axis=-1).astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((p @ places).astype(np.float64) / p.sum(axis=-1, dtype=np.float64)[..., None])


def chunk_map(attention: Attention) -> State:
    """(sum over steps and heads of the centres (gen, 2), their number)."""
    found = centres(attention)
    return found.sum(axis=(0, 1)), np.full((found.shape[2], 1), float(found.shape[0] * found.shape[1]))


def finalize_map(state: State, layer: LayerSpec) -> Float64:
    """Mean centre (2, gen)."""
    return ratio(state, layer).T


def chunk_variation(attention: Attention) -> State:
    """(sum of distances, number of pairs), each (step, head)."""
    rows, columns = attention.layer.gen_grid
    found = centres(attention)
    grid = found.reshape(*found.shape[:2], rows, columns, 2)
    inside = attention.inside("mask")
    within = (np.ones(rows * columns) if inside is None else inside).reshape(rows, columns) >= 0.5
    total, pairs = np.zeros(grid.shape[:2]), 0
    for axis in (2, 3):
        near = np.linalg.norm(np.diff(grid, axis=axis), axis=-1)
        both = within[1:] & within[:-1] if axis == 2 else within[:, 1:] & within[:, :-1]
        total += near[:, :, both].sum(axis=-1)
        pairs += int(both.sum())
    return total, np.full(total.shape, float(pairs))


CENTRE = Aggregation(
    "attention_centre",
    chunk_map,
    keep=("gen",),
    finalize=finalize_map,
    dims=("coordinate", "gen"),
    labels={"coordinate": ("y", "x")},
    rows=True,
    place=True,
    units="share of the reference's height or width (0 to 1)",
    title="Attention centre",
)
CENTRE_VARIATION = Aggregation(
    "centre_variation",
    chunk_variation,
    finalize=ratio,
    place=True,
    units="share of the reference's height and width",
    title="Total variation of attention centres",
)
