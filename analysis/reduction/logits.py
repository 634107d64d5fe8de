"""The logits of one layer, from factors or as they were stored, tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from i2am.storage.format.block import Block, scaled_logits
from i2am.storage.format.half_float import widened

Float32 = NDArray[np.float32]


def _cut_once(values: Float32 | None, steps: slice, heads: slice) -> Float32 | None:
    """Some steps and heads of what may be there once for all steps."""
    if values is None:
        return None
    return values[:, heads] if values.shape[0] == 1 else values[steps, heads]


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits of one layer: query and key, or the scores themselves."""

    query: NDArray[np.floating] | None = None  # (step, head, gen, dim), any floating dtype, or None
    key: NDArray[np.floating] | None = None  # (step or 1, head, ref, dim), or None
    scores: NDArray[np.floating] | None = None  # (step, head, gen, ref), already scaled, or None
    scale: float = 1.0  # factor of the product of query and key
    lse: Float32 | None = None  # (step, head, gen): log-sum-exp of each row over all keys of a joint softmax
    norms: Float32 | None = None  # (step or 1, head, ref): norms of values through the output projection
    offset: Float32 | None = None  # (step, head, gen): what `rows` subtracts from the logits, see `part`

    @classmethod
    def of(cls, block: Block, lse: Float32 | None = None, norms: Float32 | None = None) -> Logits:
        """Logits of what was read from a run."""
        return cls(block.query, block.key, block.scores, float(block.scale), lse, norms)

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
        """Float32 copy of some steps and heads, scaled, less the mean key, whose logits `offset` holds."""
        lse = None if self.lse is None else self.lse[steps, heads]
        norms = _cut_once(self.norms, steps, heads)
        if self.scores is not None:
            return Logits(scores=self.scores[steps, heads], lse=lse, norms=norms)
        query, key = self._factors()
        scaled = widened(query[steps, heads], self.scale)
        own = widened(key[:, heads] if key.shape[0] == 1 else key[steps, heads])
        middle = own.mean(axis=2, dtype=np.float64, keepdims=True).astype(np.float32)
        offset = np.matmul(scaled, middle.swapaxes(-1, -2))[..., 0]
        return Logits(query=scaled, key=own - middle, lse=lse, norms=norms, offset=offset)

    def whole(self) -> Float32:
        """All logits, (step, head, gen, ref)."""
        if self.scores is not None:
            return widened(self.scores) if self.scores.dtype != np.float32 else np.asarray(self.scores)
        return scaled_logits(*self._factors(), self.scale)

    def cut(self, steps: slice, heads: slice, gen: slice) -> Logits:
        """Views of some steps, heads and generated patches."""
        lse = None if self.lse is None else self.lse[steps, heads, gen]
        norms = _cut_once(self.norms, steps, heads)
        if self.scores is not None:
            return Logits(scores=self.scores[steps, heads, gen], lse=lse, norms=norms)
        query, key = self._factors()
        own = key[:, heads] if key.shape[0] == 1 else key[steps, heads]
        return Logits(query[steps, heads, gen], own, scale=self.scale, lse=lse, norms=norms)

    def offsets(self) -> Float32:
        """What `rows` subtracts, (step, head, gen), as a new array."""
        return np.zeros(self.shape[:3], np.float32) if self.offset is None else self.offset.copy()

    def rows(self, rows: slice, out: Float32) -> None:
        """Write the logits of some patches less their offset, (step, head, row, ref), into `out`."""
        if self.scores is not None:
            values = self.scores[:, :, rows]
            out[...] = widened(values) if values.dtype == np.float16 else values
        else:
            query, key = self._factors()
            np.matmul(query[:, :, rows], key.swapaxes(-1, -2), out=out)

    def columns(self, step: int, head: int, columns: NDArray[np.intp]) -> Float32:
        """Logits (gen, column) of some reference tokens of one step and head, offsets included."""
        if self.scores is not None:
            return widened(self.scores[step, head][:, columns])
        query, key = self._factors()
        own = key[0 if key.shape[0] == 1 else step, head]
        found = np.asarray(query[step, head] @ own[columns].T, dtype=np.float32)
        return found if self.offset is None else found + self.offset[step, head][:, None]
