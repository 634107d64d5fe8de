"""Head similarity: how alike the R2G maps of two heads of a layer are.

Source: the correlation of attention maps, as in studies of redundant heads (Michel et al. 2019). Pearson's
correlation over generated patches, of the R2G marginals of each step, pooled over steps; (head, other head),
from -1 to 1. NaN for a head whose map does not vary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.reduction.aggregation import Aggregation, State
from i2am.analysis.reduction.attention import Attention
from i2am.storage.format.layer_spec import LayerSpec


def chunk(attention: Attention) -> State:
    """Products (head, other head) of the maps about their mean, summed over patches and steps."""
    maps = attention.marginals["r2g"].astype(np.float64)
    about = maps - maps.mean(axis=-1, keepdims=True)
    return np.asarray(np.einsum("shg,sng->hn", about, about))


def finalize(state: State, layer: LayerSpec) -> NDArray[np.float64]:
    """Products over the root of the product of the variances."""
    products = np.asarray(state)
    scale = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(products / np.where(scale > 0, scale, np.nan)[:, None] / scale[None, :])


HEAD_SIMILARITY = Aggregation(
    "head_similarity",
    chunk,
    over="marginals",
    keep=(),
    finalize=finalize,
    dims=("head", "other_head"),
    units="correlation (-1 to 1)",
    title="Similarity of heads",
)
