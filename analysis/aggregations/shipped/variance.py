"""Variance over time: where the R2G map changes while the image is made.

Source: I²AM's time level; the maps of StableVITON's failures varied most. The population variance over steps
of the R2G density, mean over heads; a map on the generated image, in squared units of density, 0 where
attention does not change. Streamed by Chan's formula for the union of two sets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.reduction.aggregation import Aggregation, State
from i2am.analysis.reduction.attention import Attention
from i2am.storage.format.layer_spec import LayerSpec


def chunk(attention: Attention) -> State:
    """(number of steps, mean, sum of squares about it), each (head, gen)."""
    maps = attention.marginals["r2g"].astype(np.float64)
    mean = maps.mean(axis=0)
    return np.full(mean.shape, float(len(maps))), mean, ((maps - mean) ** 2).sum(axis=0)


def combine(left: State, right: State) -> State:
    """Chan, Golub & LeVeque 1979."""
    (n, mean, squares), (m, other, more) = left, right
    whole, gap = n + m, other - mean
    return whole, mean + gap * m / whole, squares + more + gap**2 * n * m / whole


def finalize(state: State, layer: LayerSpec) -> NDArray[np.float64]:
    """Variance over steps (gen), mean over heads."""
    count, _, squares = state
    return np.asarray((squares / count).mean(axis=0))


TIME_VARIANCE = Aggregation(
    "time_variance",
    chunk,
    over="marginals",
    keep=("head",),
    combine=combine,
    finalize=finalize,
    dims=("gen",),
    units="variance of density over steps",
    title="Variance over time",
)
