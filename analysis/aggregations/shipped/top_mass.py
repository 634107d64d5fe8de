"""Top-k mass: the part of each generated patch's attention that its k best reference tokens have.

Source: the usual measure of sparsity of attention. From k / R (uniform) to 1; the mean over generated
patches; (step, head). `top_mass(k)` makes the declaration for any k.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from i2am.analysis.reduction.aggregation import Aggregation, State, ratio
from i2am.analysis.reduction.attention import Attention
from i2am.storage.errors import InputError


def chunk(k: int, attention: Attention) -> State:
    """(sum over patches of the mass, number of patches), each (step, head)."""
    p = attention.probabilities("g2r")
    rows, tokens = p.shape[2:]
    if k < tokens:
        p = np.partition(p, tokens - k, axis=-1)[..., tokens - k :]
    return p.sum(axis=(-2, -1), dtype=np.float64), np.full(p.shape[:2], float(rows))


def top_mass(k: int) -> Aggregation:
    """Declare the mass of the k best tokens; layers with fewer have all of it."""
    if np.asarray(k).dtype.kind not in "iu" or k < 1:
        raise InputError("k", expected="a whole number of at least 1", got=repr(k))
    return Aggregation(
        f"top{k}_mass",
        partial(chunk, k),
        finalize=ratio,
        rows=True,
        units="share of attention (0 to 1)",
        title=f"Mass of the {k} best tokens",
    )


TOP_MASS = top_mass(8)
