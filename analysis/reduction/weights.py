"""What one pass over a block of attention averages, and the arrays that it fills."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def _none(tokens: int = 0) -> Float32:
    return np.empty((0, tokens), dtype=np.float32)


class Means(NamedTuple):
    """Weighted means of attention: densities, 1 for uniform attention, except `share`.

    n, m and k are the numbers of weightings that `Weights` has of each kind.
    """

    g2r: Float32  # (step, head, n, ref)
    r2g: Float32  # (step, head, m, gen)
    daam: Float32  # (step, head, k, gen): mean probability of a token of the set, times ref: DAAM's map
    g2r_joint: Float32  # (step, head, n, ref): as g2r, over all keys of a joint softmax
    share: Float32  # (step, head, 1 + k, gen): joint probability of all reference tokens, and of each set
    r2g_norm: Float32  # (step, head, m, gen): as r2g, of densities times the norms of values

    def part(self, steps: slice, heads: slice) -> Means:
        """Views of some steps and heads."""
        return Means(*(array[steps, heads] for array in self))

    def set_nan(self, planes: NDArray[np.bool_]) -> None:
        """Set the steps and heads (step, head) that are marked to NaN."""
        for array in self:
            array[planes] = np.nan


@dataclass(frozen=True)
class Weights:
    """What to average over; every weight is 0 or more."""

    gen: int  # number of generated patches
    ref: int  # number of reference tokens
    g2r: Float32 = field(default_factory=_none)  # (n, gen): weights of the generated patches in a G2R mean
    r2g: Float32 = field(default_factory=_none)  # (m, ref): weights of the reference tokens in an R2G mean
    tokens: Float32 = field(default_factory=_none)  # (k, ref): sets of reference tokens, for daam and share
    joint: bool = False  # make the means of a joint softmax; the logits then carry the lse of their rows
    normed: bool = False  # make the means with norms of values; the logits then carry these

    @property
    def row_weightings(self) -> int:
        """Number of weighted sums over rows."""
        return len(self.g2r) * (2 if self.joint else 1)

    @cached_property
    def token_sets(self) -> Float32:
        """(ref, 1 + k): ones, and each set of tokens, to be summed along a row."""
        sets = self.tokens if len(self.tokens) else _none(self.ref)
        return np.concatenate([np.ones((1, self.ref), dtype=np.float32), sets]).T

    def empty(self, steps: int, heads: int) -> Means:
        """Arrays for the means of so many steps and heads."""
        joint = self.joint
        shapes = (
            (len(self.g2r), self.ref),
            (len(self.r2g), self.gen),
            (len(self.tokens), self.gen),
            (len(self.g2r) if joint else 0, self.ref),
            (1 + len(self.tokens) if joint else 0, self.gen),
            (len(self.r2g) if self.normed else 0, self.gen),
        )
        return Means(*(np.empty((steps, heads, *shape), dtype=np.float32) for shape in shapes))

    def set_rows(self, rows: slice, sums: Float32, joint: Float32 | None, out: Means) -> None:
        """Fill in what each row's sums (step, head, row, 1 + k) give by themselves.

        `joint` (step, head, row) turns a sum of exponentials into a probability of the joint softmax.
        """
        if len(self.tokens):
            density = self.ref / self.tokens.sum(axis=1, dtype=np.float64)[:, None]  # an empty set gives NaN
            out.daam[..., rows] = sums[..., 1:].swapaxes(-1, -2) / sums[..., 0][:, :, None] * density
        if self.joint and joint is not None:
            out.share[..., rows] = sums.swapaxes(-1, -2) * joint[:, :, None]
            out.share[:, :, 1:][:, :, ~self.tokens.any(axis=1), rows] = np.nan

    def set_row_weights(self, rows: slice, sums: Float32, joint: Float32 | None, out: Float32) -> None:
        """Fill in the weight of each row in the sums over rows, (step, head, row_weightings, row)."""
        count = len(self.g2r)
        if not count:
            return
        np.multiply(self.g2r[:, rows], (np.float32(self.ref) / sums)[:, :, None], out=out[:, :, :count])
        if self.joint and joint is not None:
            weighted = np.float32(self.ref) * joint
            np.multiply(self.g2r[:, rows], weighted[:, :, None], out=out[:, :, count:])

    def set_g2r(self, total: Float64, out: Means) -> None:
        """Turn the sums over rows (step, head, row_weightings, ref) into means."""
        count = len(self.g2r)
        if count:
            whole = self.g2r.sum(axis=1, dtype=np.float64)[:, None]
            out.g2r[...] = total[:, :, :count] / whole
            if self.joint:
                out.g2r_joint[...] = total[:, :, count:] / whole
