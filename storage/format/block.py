"""`Block`: stored values of a layer and sample, as a read returns them, and their logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from i2am.storage.format.half_float import widened

Array = np.ndarray[Any, Any]


def scaled_logits(query: Array, key: Array, scale: float) -> Array:
    """Return scale · q·k, (..., gen, ref) float32, of query (..., gen, dim) and key (..., ref, dim)."""
    with np.errstate(invalid="ignore", over="ignore"):  # a model's NaN is the model's business
        out: Array = np.matmul(widened(query, scale), np.swapaxes(widened(key), -1, -2))
    return out


@dataclass(frozen=True, slots=True)
class Block:
    """Stored values of one layer and sample: query and key, or scores.

    `query` is (step, head, gen, dim), `key` (step or 1, head, ref, dim), `scores` (step, head, gen, ref).
    """

    query: Array | None
    key: Array | None
    scores: Array | None
    scale: float

    def rows(self, gen: slice, ref: slice) -> Block:
        """Return some tokens; the arrays share memory with this block's."""
        if self.scores is not None:
            return Block(None, None, self.scores[:, :, gen, ref], self.scale)
        if self.query is None or self.key is None:
            raise TypeError("a block holds query and key, or scores")
        return Block(self.query[:, :, gen], self.key[:, :, ref], None, self.scale)

    def logits(self) -> Array:
        """Return the scaled logits, (step, head, gen, ref) float32."""
        if self.scores is not None:
            return self.scores if self.scores.dtype == np.float32 else widened(self.scores)
        if self.query is None or self.key is None:
            raise TypeError("a block holds query and key, or scores")
        return scaled_logits(self.query, self.key, self.scale)
