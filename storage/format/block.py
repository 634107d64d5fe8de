"""`Block`, what an eager read returns, and the one place where queries and keys are multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from i2am.storage.format.half_float import widened

Array = np.ndarray[Any, Any]


def scaled_logits(query: Array, key: Array, scale: float) -> Array:
    """Return S = scale · q·k for every pair of tokens (paper: S = q·k / sqrt(d)).

    Parameters
    ----------
    query : ndarray
        (..., gen, dim), float16 or float32.
    key : ndarray
        (..., ref, dim); leading axes broadcast against those of `query`.
    scale : float
        Usually ``dim ** -0.5``.

    Returns
    -------
    ndarray
        (..., gen, ref) float32, computed in float32 whatever the inputs are.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # a model's NaN is the model's business
        out: Array = np.matmul(widened(query, scale), np.swapaxes(widened(key), -1, -2))
    return out


@dataclass(frozen=True, slots=True)
class Block:
    """Raw values of one layer and sample, as stored: either query and key, or scores.

    Parameters
    ----------
    query : ndarray or None
        (step, head, gen, dim) float16 or float32.
    key : ndarray or None
        (step or 1, head, ref, dim).
    scores : ndarray or None
        (step, head, gen, ref).
    scale : float
        Factor on q·k.
    """

    query: Array | None
    key: Array | None
    scores: Array | None
    scale: float

    def rows(self, gen: slice, ref: slice) -> Block:
        """Return a view of some tokens.

        Parameters
        ----------
        gen, ref : slice
            Tokens of the generated image and of the reference.

        Returns
        -------
        Block
            Shares memory with this one.
        """
        if self.scores is not None:
            return Block(None, None, self.scores[:, :, gen, ref], self.scale)
        if self.query is None or self.key is None:
            raise TypeError("a block holds query and key, or scores")
        return Block(self.query[:, :, gen], self.key[:, :, ref], None, self.scale)

    def logits(self) -> Array:
        """Return the scaled logits.

        Returns
        -------
        ndarray
            (step, head, gen, ref) float32.
        """
        if self.scores is not None:
            return self.scores if self.scores.dtype == np.float32 else widened(self.scores)
        if self.query is None or self.key is None:
            raise TypeError("a block holds query and key, or scores")
        return scaled_logits(self.query, self.key, self.scale)
