"""Differences as colours: the scale of densities, centred at 0; red is more in B, blue is less."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from i2am.analysis.drawing.colours import palette
from i2am.analysis.report.scale_bar import ScaleBar, scale_bar

DENSITY_END = 2.0
"""End of the density scale on which differences are painted."""

LIMITS = tuple(factor * 10.0**power for power in range(-4, 4) for factor in (1, 2, 5))
"""Ends of the scale to choose from: it runs from -limit to limit."""


def difference_limit(maps: Iterable[ArrayLike], quantile: float = 0.99) -> float:
    """Smallest of LIMITS that holds a share of the finite values of several maps, or the last of LIMITS."""
    values = np.abs(np.concatenate([np.ravel(np.asarray(part, dtype=np.float64)) for part in maps]))
    values = values[np.isfinite(values)]
    reach = float(np.quantile(values, quantile)) if values.size else 0.0
    return next((end for end in LIMITS if end >= reach), LIMITS[-1])


def to_density(differences: ArrayLike, end: float) -> NDArray[np.float64]:
    """Densities that stand on their scale where differences do on that from -end to end."""
    return np.asarray(DENSITY_END ** np.clip(np.asarray(differences, dtype=np.float64) / end, -1, 1))


def difference_ticks(end: float, sign: str) -> list[tuple[float, str]]:
    """Marks of the scale: (place from 0 to 1, words)."""
    marks = (-end, -end / 2, 0.0, end / 2, end)
    return [(0.5 + mark / (2 * end), f"{mark:+.3g}{sign}" if mark else "0") for mark in marks]


def difference_bar(end: float, sign: str, words: str) -> ScaleBar:
    """Colour bar of differences for a page."""
    return scale_bar(palette(), difference_ticks(end, sign), words)
