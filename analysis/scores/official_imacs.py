"""IMACS as the paper's public code computes it, from the raw map to the score.

Source: I²AM's repositories. With ``mm(x) = (x - min) / (max - min + 1e-8)``:

- G2R: the map times the mask (brought bicubic to the map's grid); mm; bicubic to the mask's size; mm; values
  up to 0.4 become 0. The score's two sums are divided by 1e-8 more than their area.
- R2G: mm; bicubic to the mask's size; mm; inverted, and values of 0.6 and above before the inversion become
  0. Nothing is added to the areas.

So G2R is multiplied by the mask that it is then scored against, and R2G rewards what the reference did *not*
reach. Both are reproduced for comparison with published numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.regions import check_inside_and_outside
from i2am.analysis.grids.resize import Grid, bicubic

EPSILON = 1e-8
G2R_CUT = 0.4
R2G_CUT = 0.6

Float64 = NDArray[np.float64]


def official_score(
    values: Float64, mask: NDArray[np.bool_], direction: Direction, penalty: float = 3.0
) -> float:
    """Official IMACS of a raw map [y, x]; the mask has the size at which to score, 512 x 384 in the paper."""
    check_inside_and_outside(mask)
    inside = mask.astype(np.float64)
    if not np.isfinite(values).all():
        return float("nan")
    shown = shown_map(values, inside, direction)
    extra = EPSILON if direction == "g2r" else 0.0
    within = (shown * inside).sum() / (inside.sum() + extra)
    without = (shown * (1 - inside)).sum() / ((1 - inside).sum() + extra)
    return float(within - penalty * without)


def shown_map(values: Float64, inside: Float64, direction: Direction) -> Float64:
    """Map [y, x] of the mask's size, from 0 to 1, as the official code displays and scores it."""
    size: Grid = (inside.shape[0], inside.shape[1])
    if direction == "g2r":
        values = values * bicubic(inside, (values.shape[0], values.shape[1]))
    grown = _min_max(bicubic(_min_max(values), size))
    if direction == "g2r":
        return np.where(grown <= G2R_CUT, 0.0, grown)
    return np.where(grown >= R2G_CUT, 0.0, 1 - grown)


def _min_max(values: Float64) -> Float64:
    """Bring a map to [0, 1] by its own range; a constant map becomes 0."""
    low = values.min()
    return np.asarray((values - low) / (values.max() - low + EPSILON))
