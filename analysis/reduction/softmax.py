"""Both softmaxes of a block of attention logits, from one exponential.

Source: I²AM, sections on R2G and G2R. With logits ``S[g, r]`` of one step and head, densities (1 = uniform):

- R2G density of patch ``g`` for reference token ``r``:  ``G * exp(S[g, r]) / sum_g' exp(S[g', r])``,
- G2R density of reference token ``r`` for patch ``g``:  ``R * exp(S[g, r]) / sum_r' exp(S[g, r'])``.

``E[g, r] = exp(S[g, r] - offset[g])`` is the row softmax up to a factor a row. With the largest offset ``m``
and ``w[g] = exp(offset[g] - m)``, ``exp(S[g, r] - m) = E[g, r] * w[g]``, so sums over columns are products of
``w`` and ``E``; shares of a joint softmax are ``exp(S - lse) = E * exp(offset - lse)``. The offset of a row
is the logit of the mean key, and its maximum is added where what remains leaves ``NARROW``. A column whose
own maximum lies far below ``m`` loses digits: it is found by its sum and computed again with its own offset.
``E`` is cached up to ``CACHE_BYTES``, or one head up to ``WORK_BYTES``; larger heads are computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.reduction.blas_threads import one_blas_thread
from i2am.analysis.reduction.logits import Float32, Logits
from i2am.analysis.reduction.weights import Means, Weights

# Increase it whenever a returned number may change: marginals of another version are not reused.
KERNEL_VERSION = 2
WORK_BYTES = 64 * 2**20  # largest block of exponentials that is held at once (bytes)
CACHE_BYTES = 2**20  # size of a tile of work (bytes), which fits into the cache of a core
# Logits within this of their offset need no maximum: exponentials and their sums stay normal numbers.
NARROW = np.float32(30)
LOWEST_COLUMN_SUM = 1e-18
"""Columns whose sum per row is below this part of the block's maximum get an offset of their own.

Float32 loses less than ``exp(NARROW - 87)`` of a column for each row, which is then below a part of 2e-7.
"""

Float64 = NDArray[np.float64]


def weighted_means(logits: Logits, weights: Weights) -> Means:
    """Weighted means of both densities, and of the shares; NaN where a step and head has a NaN or +inf."""
    steps, heads, gen, ref = logits.shape
    found = weights.empty(steps, heads)
    work = np.empty(0, dtype=np.float32)
    with one_blas_thread(), np.errstate(all="ignore"):
        for part_steps, part_heads in _batches(steps, heads, gen * ref * 4):
            part = logits.part(part_steps, part_heads)
            planes = part.shape[0] * part.shape[1]
            cached = planes * gen * ref * 4 <= max(WORK_BYTES, CACHE_BYTES)
            size = planes * (gen if cached else min(gen, _tile(ref))) * ref
            if work.size < size:
                work = np.empty(size, dtype=np.float32)
            block = _Block(part, work, cached)
            block.along_rows(weights, found.part(part_steps, part_heads))
            if len(weights.r2g):
                columns = block.along_columns(weights.r2g, part.norms if weights.normed else None)
                found.r2g[part_steps, part_heads] = columns[:, :, : len(weights.r2g)]
                found.r2g_norm[part_steps, part_heads] = columns[:, :, len(weights.r2g) :]
    return found


def _tile(ref: int) -> int:
    """Rows of a tile of exponentials."""
    return max(16, CACHE_BYTES // (4 * max(ref, 1)))


def _batches(steps: int, heads: int, plane: int) -> Iterator[tuple[slice, slice]]:
    """Slices of steps and heads whose logits, `plane` bytes each, are worked on together."""
    many_heads = max(1, min(heads, CACHE_BYTES // max(plane, 1)))
    many_steps = max(1, min(steps, CACHE_BYTES // max(plane * heads, 1))) if many_heads == heads else 1
    for step in range(0, steps, many_steps):
        for head in range(0, heads, many_heads):
            yield slice(step, step + many_steps), slice(head, head + many_heads)


class _Block:
    """Exponentials of some steps and heads, cached or computed twice, and the sums over them."""

    def __init__(self, logits: Logits, work: Float32, cached: bool) -> None:
        self.logits = logits
        steps, heads, self.gen, self.ref = logits.shape
        self.planes = (steps, heads)
        self.work = work
        self.cached = cached
        self.row_offset = logits.offsets()  # (step, head, gen)
        self.largest_offset = np.full((steps, heads), -np.inf, dtype=np.float32)
        self.column_sums = np.zeros((steps, heads, self.ref))  # of exp(S - largest_offset)
        self.not_finite = np.zeros((steps, heads), dtype=bool)  # has a logit that is NaN or infinite

    def _tiles(self) -> Iterator[tuple[slice, Float32]]:
        rows = _tile(self.ref)
        steps, heads = self.planes
        for start in range(0, self.gen, rows):
            piece = slice(start, min(start + rows, self.gen))
            if self.cached:
                whole = self.work[: steps * heads * self.gen * self.ref]
                yield piece, whole.reshape(steps, heads, self.gen, self.ref)[:, :, piece]
            else:
                shape = (steps, heads, piece.stop - piece.start, self.ref)
                yield piece, self.work[: int(np.prod(shape))].reshape(shape)

    def _exponentials(self, rows: slice, tile: Float32, *, again: bool = False) -> None:
        """Fill a tile with exp(S - row_offset), and set the offset of its rows."""
        self.logits.rows(rows, tile)
        low, high = tile.min(), tile.max()
        if not (-NARROW <= low < high <= NARROW or low == high == 0):
            offset = tile.max(axis=-1)
            safe = np.where(
                offset == -np.inf, np.float32(0), offset
            )  # a row that is masked out sums to 0, not NaN
            tile -= safe[..., None]
            if not again:
                self.row_offset[:, :, rows] += offset
        np.exp(tile, out=tile)

    def along_rows(self, weights: Weights, out: Means) -> None:
        """Fill in the G2R means and the shares; sums the columns on the way."""
        total = np.zeros((*self.planes, weights.row_weightings, self.ref))
        for rows, tile in self._tiles():
            self._exponentials(rows, tile)
            offset = self.row_offset[:, :, rows]
            largest = np.maximum(self.largest_offset, offset.max(axis=-1))
            shrink = np.where(
                self.largest_offset == largest, np.float32(1), np.exp(self.largest_offset - largest)
            )
            self.largest_offset = largest
            sums = np.matmul(tile, weights.token_sets)
            joint = None if self.logits.lse is None else np.exp(offset - self.logits.lse[:, :, rows])
            weights.set_rows(rows, sums, joint, out)
            row_weights = np.empty(
                (*self.planes, 1 + weights.row_weightings, tile.shape[2]), dtype=np.float32
            )
            np.exp(offset - largest[..., None], out=row_weights[:, :, 0])
            weights.set_row_weights(rows, sums[..., 0], joint, row_weights[:, :, 1:])
            products = np.matmul(row_weights, tile)
            self.column_sums = self.column_sums * shrink[..., None] + products[:, :, 0]
            total += products[:, :, 1:]
        self.not_finite = ~np.isfinite(self.largest_offset)
        weights.set_g2r(total, out)
        out.set_nan(self.not_finite)

    def along_columns(self, weights: Float32, norms: Float32 | None = None) -> Float64:
        """R2G means (step, head, m, gen), then the m with norms if there are any; after `along_rows`."""
        low = self.column_sums < LOWEST_COLUMN_SUM * self.gen
        column_density = np.where(low, 0.0, self.gen / self.column_sums)
        whole, used = weights.sum(axis=1, dtype=np.float64), weights.any(axis=0)
        weights = np.broadcast_to(weights, (*self.planes, *weights.shape))
        if norms is not None:
            weights, whole = np.concatenate([weights, weights * norms[:, :, None]], axis=2), np.tile(whole, 2)
        right = (weights * column_density[:, :, None]).astype(np.float32).swapaxes(-1, -2)
        total = np.empty((*self.planes, self.gen, len(whole)))
        for rows, tile in self._tiles():
            if not self.cached:
                self._exponentials(rows, tile, again=True)
            row_weight = np.exp(self.row_offset[:, :, rows] - self.largest_offset[..., None])
            np.multiply(np.matmul(tile, right), row_weight[..., None], out=total[:, :, rows])
        for step, head in np.argwhere((low & used).any(axis=-1) & ~self.not_finite):
            total[step, head] += self._low_columns(
                step, head, np.flatnonzero(low[step, head] & used), weights[step, head]
            )
        total /= whole
        total[self.not_finite] = np.nan
        return total.swapaxes(-1, -2)

    def _low_columns(self, step: int, head: int, columns: NDArray[np.intp], weights: Float32) -> Float64:
        """Part (gen, m) of the sums that comes from columns far below the common offset."""
        total = np.zeros((self.gen, len(weights)))
        many = max(1, WORK_BYTES // (8 * self.gen))
        for start in range(0, len(columns), many):
            chosen = columns[start : start + many]
            values = self.logits.columns(step, head, chosen)
            values -= values.max(axis=0)
            np.exp(values, out=values)
            density = values * (self.gen / values.sum(axis=0, dtype=np.float64))
            total += density @ weights[:, chosen].T
        return total
