"""Scaled logits from queries and keys: the one place where they are multiplied."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def scaled_logits(query: Array, key: Array, scale: float) -> Array:
    """Return S = scale · q·k for every pair of tokens (PAPER section 1: S = q·k / sqrt(d)).

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
    left = query.astype(np.float32)
    left *= np.float32(scale)
    with np.errstate(invalid="ignore", over="ignore"):  # a model's NaN is the model's business
        out: Array = np.matmul(left, np.swapaxes(key.astype(np.float32), -1, -2))
    return out
