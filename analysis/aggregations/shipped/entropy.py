"""Entropy of attention: how widely each generated patch looks over the reference.

Source: Shannon; for attention heads, Clark et al. 2019. For one query, ``H = -sum p ln p`` over the reference
tokens, from 0 (one token has it all) to ``ln R`` (uniform). Here as a share of ``ln R``, so that layers of
different resolution can be compared; the mean over generated patches; (step, head).
"""

from __future__ import annotations

import numpy as np

from i2am.analysis.reduction.aggregation import Aggregation, State, ratio
from i2am.analysis.reduction.attention import Attention


def chunk(attention: Attention) -> State:
    """(sum over patches of H / ln R, number of patches), each (step, head)."""
    p = attention.probabilities("g2r")
    rows, tokens = p.shape[2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p), 0)
    entropy = -terms.sum(axis=(-2, -1), dtype=np.float64)
    whole = np.log(tokens) if tokens > 1 else 1.0  # a single token: the entropy is 0
    return entropy / whole, np.full(p.shape[:2], float(rows))


ENTROPY = Aggregation(
    "entropy",
    chunk,
    finalize=ratio,
    rows=True,
    units="share of ln R (0 to 1)",
    title="Attention entropy",
)
