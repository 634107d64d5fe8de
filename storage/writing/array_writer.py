"""One array of one sample on its way to disk: steps come in any order, full chunks leave at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from i2am.storage.format.codecs import get_codec
from i2am.storage.format.dtypes import count_nonfinite
from i2am.storage.format.layout import ArrayLayout, identity
from i2am.storage.format.shard import FileRecord, ShardWriter, file_hash

Array = np.ndarray[Any, Any]
Rows = Callable[[slice], Array]
"""Slice of axis 2 (heads) to those rows of one step, C-contiguous and in the stored dtype."""


class ArrayWriter:
    """Cut one sample of one array into chunks and append them to its shards, in local files named `stem`.N.

    Used by one thread at a time.
    """

    def __init__(self, layout: ArrayLayout, index: int, run_id: str, sample: str, stem: Path) -> None:
        self._layout = layout
        self._index = index
        self._run_id, self._sample = run_id, sample
        self._stem = stem
        self._codec = get_codec(layout.codec)
        self._shards: dict[int, ShardWriter] = {}
        self._partial: dict[int, tuple[Array, int]] = {}
        self.path = layout.path
        self.nonfinite = 0

    def _local(self, shard: int) -> Path:
        return self._stem.with_name(f"{self._stem.name}.{shard}")

    def _emit(self, group: int, block: int, chunk: Array) -> None:
        shard, row = divmod(group, self._layout.grid[0])
        writer = self._shards.get(shard)
        if writer is None:
            key = self._layout.key(self._index, shard)
            writer = ShardWriter(
                self._local(shard),
                self._layout.slots,
                identity(self._run_id, key),
                file_hash(self._run_id, self._sample, key),
            )
            self._shards[shard] = writer
        writer.append(row * self._layout.grid[1] + block, self._codec.encode(chunk))

    def put(self, step: int, rows: Rows) -> None:
        """Take one step, each index once; its rows are asked for in blocks of heads."""
        layout = self._layout
        steps, heads = layout.chunk[1], layout.chunk[2]
        if steps == 1:
            for block in range(layout.grid[1]):
                chunk = rows(slice(block * heads, (block + 1) * heads))
                self.nonfinite += count_nonfinite(chunk)
                self._emit(step, block, chunk)
            return
        group, row = divmod(step, steps)
        buffer, filled = self._partial.pop(group, (None, 0))
        if buffer is None:
            buffer = np.empty(layout.chunk[1:], layout.dtype)
            buffer[layout.shape[1] - group * steps :] = np.nan
        buffer[row] = rows(slice(0, heads))
        self.nonfinite += count_nonfinite(buffer[row])
        filled += 1
        if filled == min(steps, layout.shape[1] - group * steps):
            self._emit(group, 0, buffer)
        else:
            self._partial[group] = buffer, filled

    def put_whole(self, values: Array) -> None:
        """Take a sample that is a single chunk."""
        self._emit(0, 0, np.ascontiguousarray(values))

    def finish(self) -> dict[str, tuple[Path, FileRecord]]:
        """Complete all shards; return path below the run to (local file, size and digest)."""
        return {
            self._layout.key(self._index, shard): (self._local(shard), writer.finish())
            for shard, writer in sorted(self._shards.items())
        }
