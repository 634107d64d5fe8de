"""Both softmaxes of a block of attention logits, from one exponential.

Source: I²AM, sections on R2G and G2R. With logits ``S[g, r]`` of one denoiser step and one head,

- R2G density of generated patch ``g`` for reference token ``r``:  ``G * exp(S[g, r]) / sum_g' exp(S[g',
  r])``,
- G2R density of reference token ``r`` for generated patch ``g``:  ``R * exp(S[g, r]) / sum_r' exp(S[g,
  r'])``.

A density of 1 means "as if the attention were uniform", whatever the resolution.

Method. With the maximum of each row as its offset, ``E[g, r] = exp(S[g, r] - top[g])`` is the exact row
softmax but for a factor per row. The column softmax follows from the same ``E``, since ``exp(S[g, r] - m) =
E[g, r] * w[g]`` with ``w[g] = exp(top[g] - m)`` and ``m`` the maximum of all rows: sums over columns are
products of ``w`` with ``E``. Only a column whose own maximum lies far below ``m`` loses digits that way;
those columns are found by their sums and are computed again, alone, with an offset of their own.

Memory: ``E`` is kept for as many steps and heads as fit in ``CACHE_BYTES``; for a single head up to
``WORK_BYTES``; beyond that it is made a second time, tile by tile, so that memory stays bounded whatever the
number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.threads import one_blas_thread

KERNEL_VERSION = 1
"""Raised whenever a returned number may change: marginals of another version are not reused."""

WORK_BYTES = 64 * 2**20
"""Largest block of exponentials that is held at once (bytes)."""

CACHE_BYTES = 2**20
"""Size of a tile of work (bytes): small enough for a core's own cache."""

LOWEST_COLUMN_SUM = 1e-26
"""Columns whose sum per row is below this share of the block's maximum get an offset of their own.

Entries lost to float32 underflow are below ``exp(-87)``; against a column maximum of at least this value
their share is below 1e-11.
"""

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits of one layer: query and key, or the scores themselves.

    Attributes
    ----------
    query
        (step, head, gen, dim), any floating dtype, or None.
    key
        (step or 1, head, ref, dim), or None.
    scores
        (step, head, gen, ref), already scaled, or None.
    scale
        Factor of the product of query and key.
    """

    query: NDArray[np.floating] | None = None
    key: NDArray[np.floating] | None = None
    scores: NDArray[np.floating] | None = None
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(step, head, gen, ref)."""
        if self.scores is not None:
            steps, heads, gen, ref = self.scores.shape
        else:
            query, key = self._factors()
            steps, heads, gen = query.shape[:3]
            ref = key.shape[2]
        return steps, heads, gen, ref

    def _factors(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        if self.query is None or self.key is None:
            raise ValueError("logits need query and key, or scores; got neither; pass one of the two")
        return self.query, self.key

    def part(self, steps: slice, heads: slice) -> Logits:
        """Float32 copy of some steps and heads, with the scale already applied to the query."""
        if self.scores is not None:
            return Logits(scores=np.asarray(self.scores[steps, heads], dtype=np.float32))
        query, key = self._factors()
        key = key[:, heads] if key.shape[0] == 1 else key[steps, heads]
        scaled = query[steps, heads].astype(np.float32) * np.float32(self.scale)
        return Logits(query=scaled, key=np.asarray(key, dtype=np.float32))

    def rows(self, rows: slice, out: Float32) -> None:
        """Write the logits of some generated patches, (step, head, row, ref), into `out`."""
        if self.scores is not None:
            out[...] = self.scores[:, :, rows]
        else:
            query, key = self._factors()
            np.matmul(query[:, :, rows], key.swapaxes(-1, -2), out=out)

    def columns(self, step: int, head: int, columns: NDArray[np.intp]) -> Float32:
        """Logits (gen, column) of some reference tokens of one step and head."""
        if self.scores is not None:
            return np.asarray(self.scores[step, head][:, columns], dtype=np.float32)
        query, key = self._factors()
        own = key[0 if key.shape[0] == 1 else step, head]
        return np.asarray(query[step, head] @ own[columns].T, dtype=np.float32)


def project(logits: Logits, gen_weights: Float32, ref_weights: Float32) -> tuple[Float32, Float32]:
    """Weighted means of both densities.

    Parameters
    ----------
    logits
        Logits of shape (step, head, gen, ref).
    gen_weights
        (n, gen), not negative: each row weights the generated patches in one G2R mean.
    ref_weights
        (m, ref), not negative: each row weights the reference tokens in one R2G mean; 0 leaves a token out.

    Returns
    -------
    g2r, r2g
        Float32 densities, (step, head, n, ref) and (step, head, m, gen), with 1 for uniform attention. Steps
        and heads with a logit that is NaN or plus infinity hold NaN in both.
    """
    steps, heads, gen, ref = logits.shape
    g2r = np.empty((steps, heads, len(gen_weights), ref), dtype=np.float32)
    r2g = np.empty((steps, heads, len(ref_weights), gen), dtype=np.float32)
    work = np.empty(0, dtype=np.float32)
    with one_blas_thread(), np.errstate(all="ignore"):
        for part_steps, part_heads in _batches(steps, heads, gen * ref * 4):
            part = logits.part(part_steps, part_heads)
            planes = part.shape[0] * part.shape[1]
            kept = planes * gen * ref * 4 <= max(WORK_BYTES, CACHE_BYTES)
            size = planes * (gen if kept else min(gen, _tile(ref))) * ref
            if work.size < size:
                work = np.empty(size, dtype=np.float32)
            block = _Block(part, work, kept)
            g2r[part_steps, part_heads] = block.toward_reference(gen_weights)
            r2g[part_steps, part_heads] = block.toward_generated(ref_weights)
    return g2r, r2g


def _tile(ref: int) -> int:
    """Rows of a tile."""
    return max(16, CACHE_BYTES // (4 * max(ref, 1)))


def _batches(steps: int, heads: int, plane: int) -> Iterator[tuple[slice, slice]]:
    """Slices of steps and heads whose logits, `plane` bytes each, are worked on together."""
    many_heads = max(1, min(heads, CACHE_BYTES // max(plane, 1)))
    many_steps = max(1, min(steps, CACHE_BYTES // max(plane * heads, 1))) if many_heads == heads else 1
    for step in range(0, steps, many_steps):
        for head in range(0, heads, many_heads):
            yield slice(step, step + many_steps), slice(head, head + many_heads)


class _Block:
    """Exponentials of a few steps and heads, kept or made again, and the sums over them."""

    def __init__(self, logits: Logits, work: Float32, kept: bool) -> None:
        self.logits = logits
        steps, heads, self.gen, self.ref = logits.shape
        self.planes = (steps, heads)
        self.work = work
        self.kept = kept
        self.top = np.empty((steps, heads, self.gen), dtype=np.float32)  # maximum of each row
        self.peak = np.full((steps, heads), -np.inf, dtype=np.float32)  # maximum of all rows
        self.column_sums = np.zeros((steps, heads, self.ref))  # of exp(S - peak)

    def _tiles(self) -> Iterator[tuple[slice, Float32]]:
        rows = _tile(self.ref)
        steps, heads = self.planes
        shape = (steps, heads, self.gen, self.ref)
        whole = self.work[: steps * heads * self.gen * self.ref].reshape(shape) if self.kept else None
        for start in range(0, self.gen, rows):
            piece = slice(start, min(start + rows, self.gen))
            count = piece.stop - piece.start
            if whole is not None:
                yield piece, whole[:, :, piece]
            else:
                yield (
                    piece,
                    self.work[: steps * heads * count * self.ref].reshape(steps, heads, count, self.ref),
                )

    def _exponentials(self, rows: slice, tile: Float32) -> None:
        self.logits.rows(rows, tile)
        top = tile.max(axis=-1)
        self.top[:, :, rows] = top
        tile -= np.where(top == -np.inf, np.float32(0), top)[
            ..., None
        ]  # a row that is masked out sums to 0, not to NaN
        np.exp(tile, out=tile)

    def toward_reference(self, weights: Float32) -> Float64:
        """G2R means (step, head, n, ref); fills the column sums on the way."""
        total = np.zeros((*self.planes, len(weights), self.ref))
        for rows, tile in self._tiles():
            self._exponentials(rows, tile)
            peak = np.maximum(self.peak, self.top[:, :, rows].max(axis=-1))
            shrink = np.where(self.peak == peak, np.float32(1), np.exp(self.peak - peak))
            self.peak = peak
            row_density = np.float32(self.ref) / np.matmul(tile, np.ones(self.ref, dtype=np.float32))
            left = np.empty((*self.planes, 1 + len(weights), tile.shape[2]), dtype=np.float32)
            left[:, :, 0] = np.exp(self.top[:, :, rows] - peak[..., None])
            np.multiply(weights[:, rows], row_density[:, :, None], out=left[:, :, 1:])
            sums = np.matmul(left, tile)
            self.column_sums = self.column_sums * shrink[..., None] + sums[:, :, 0]
            total += sums[:, :, 1:]
        total /= weights.sum(axis=1, dtype=np.float64)[:, None]
        total[~np.isfinite(self.peak)] = np.nan
        return total

    def toward_generated(self, weights: Float32) -> Float64:
        """R2G means (step, head, m, gen); after `toward_reference`."""
        low = self.column_sums < LOWEST_COLUMN_SUM * self.gen
        column_density = np.where(low, 0.0, self.gen / self.column_sums)
        right = (weights * column_density[:, :, None]).astype(np.float32).swapaxes(-1, -2)
        total = np.empty((*self.planes, self.gen, len(weights)))
        for rows, tile in self._tiles():
            if not self.kept:
                self._exponentials(rows, tile)
            row_weight = np.exp(self.top[:, :, rows] - self.peak[..., None])
            np.multiply(np.matmul(tile, right), row_weight[..., None], out=total[:, :, rows])
        used = weights.any(axis=0)
        for step, head in np.argwhere((low & used).any(axis=-1)):
            total[step, head] += self._low_columns(
                step, head, np.flatnonzero(low[step, head] & used), weights
            )
        total /= weights.sum(axis=1, dtype=np.float64)
        total[~np.isfinite(self.peak)] = np.nan
        return total.swapaxes(-1, -2)

    def _low_columns(self, step: int, head: int, columns: NDArray[np.intp], weights: Float32) -> Float64:
        """Share (gen, m) of the columns that the common offset cannot serve."""
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
