"""One array of one sample back into memory: only the chunks that are asked for, every one of them checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from i2am.storage.errors import InputError
from i2am.storage.format.codecs import get_codec
from i2am.storage.format.layout import ArrayLayout, identity
from i2am.storage.format.shard import (
    ABSENT,
    FileRecord,
    ShardError,
    check_chunk,
    compare_checksum,
    parse_tail,
)
from i2am.storage.locations.base import Location
from i2am.storage.locations.local import LocalLocation

Array = np.ndarray[Any, Any]

BATCH_BYTES = 16 << 20
"""Stored bytes fetched at a time: neighbours share a request on remote storage, and memory stays bounded."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What is wanted of one chunk: its slot, and pairs (index in the result, index in the chunk)."""

    slot: int
    rows: list[tuple[int, int]]
    columns: list[tuple[int, int]]


class ArrayReader:
    """Read from the shards of one sample of one array."""

    def __init__(
        self, location: Location, layout: ArrayLayout, run_id: str, index: int, files: dict[str, FileRecord]
    ) -> None:
        self._location = location
        self._layout = layout
        self._run_id = run_id
        self._index = index
        self._files = files

    def read(self, steps: Sequence[int], heads: Sequence[int]) -> Array:
        """Read some steps and heads, in that order; `ShardError` names a file that is missing or damaged."""
        wanted = self._locate(steps, heads)
        for shard in wanted:
            self._check_size(shard)
        out = self._allocate((len(steps), len(heads), *self._layout.shape[3:]))
        for shard, parts in wanted.items():
            key = self._layout.key(self._index, shard)
            try:
                self._read_shard(out, key, parts)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise ShardError(f"{key}: the file is missing") from error
            except ValueError as error:
                raise ShardError(f"{key}: {error}") from error
        return out

    def _check_size(self, shard: int) -> None:
        """Compare the size that the commit record claims with what the layout needs."""
        key = self._layout.key(self._index, shard)
        least, most = self._layout.file_bytes(shard)
        if not least <= (found := self._files[key].bytes) <= most:
            raise ShardError(f"{key}: it has {found} bytes, which do not fit its chunks")

    def _allocate(self, shape: tuple[int, ...]) -> Array:
        nbytes = prod(shape) * np.dtype(self._layout.dtype).itemsize
        try:
            if nbytes > physical_memory():
                raise MemoryError
            return np.empty(shape, self._layout.dtype)
        except MemoryError:
            raise InputError(
                f"{self._layout.path}: what is read at once",
                expected="less than this machine's memory",
                got=f"{nbytes:,} bytes",
                remedy="read fewer steps or heads at a time",
            ) from None

    def _locate(self, steps: Sequence[int], heads: Sequence[int]) -> dict[int, list[_Part]]:
        """Sort the wanted indices by shard and chunk."""
        layout = self._layout
        groups: dict[int, list[tuple[int, int]]] = {}
        for row, step in enumerate(steps):
            group, offset = divmod(step, layout.chunk[1])
            groups.setdefault(group, []).append((row, offset))
        blocks: dict[int, list[tuple[int, int]]] = {}
        for column, head in enumerate(heads):
            block, offset = divmod(head, layout.chunk[2])
            blocks.setdefault(block, []).append((column, offset))
        parts: dict[int, list[_Part]] = {}
        for group, rows in groups.items():
            shard, first = divmod(group, layout.grid[0])
            for block, columns in blocks.items():
                parts.setdefault(shard, []).append(_Part(first * layout.grid[1] + block, rows, columns))
        return parts

    def _read_shard(self, out: Array, key: str, parts: list[_Part]) -> None:
        layout, size = self._layout, self._files[key].bytes
        start = size - layout.tail_bytes
        if start < 0:
            raise ShardError(f"it has {size} bytes, too few for its index")
        tail = self._location.read_ranges(key, [(start, size)], size)[0]
        index = parse_tail(tail, layout, identity(self._run_id, key), size)
        if any(index[part.slot][0] == ABSENT for part in parts):
            raise ShardError("a chunk is absent")
        parts = sorted(parts, key=lambda part: int(index[part.slot][0]))
        if isinstance(self._location, LocalLocation) and layout.codec == "none":
            parts = self._read_directly(self._location, out, key, parts, index)
        for part, chunk in self._chunks(key, parts, index):
            _fill(out, part, chunk)

    def _read_directly(
        self, location: LocalLocation, out: Array, key: str, parts: list[_Part], index: Array
    ) -> list[_Part]:
        """Read plain chunks straight to where they belong; return those that have to be taken apart."""
        rest = []
        for part in parts:
            target = _filled_directly(out, part, self._layout.chunk)
            offset, nbytes = map(int, index[part.slot])
            if target is None or nbytes != target.nbytes + 4:
                rest.append(part)
                continue
            stored = np.empty(4, np.uint8)
            location.read_into(key, offset, [target, stored], self._files[key].bytes)
            compare_checksum(target, stored.tobytes())
        return rest

    def _chunks(self, key: str, parts: list[_Part], index: Array) -> Iterator[tuple[_Part, Array]]:
        """Yield decoded chunks of one shard, in the order in which they lie there."""
        layout, codec = self._layout, get_codec(self._layout.codec)
        while parts:
            batch: list[_Part] = []
            ranges: list[tuple[int, int]] = []
            while parts and (not ranges or ranges[-1][1] - ranges[0][0] < BATCH_BYTES):
                offset, nbytes = map(int, index[parts[0].slot])
                ranges.append((offset, offset + nbytes))
                batch.append(parts.pop(0))
            found = self._location.read_ranges(key, ranges, self._files[key].bytes)
            for part, stored in zip(batch, found, strict=True):
                data = codec.decode(check_chunk(stored), layout.chunk_bytes)
                yield part, np.frombuffer(data, layout.dtype).reshape(layout.chunk[1:])


def physical_memory() -> int:
    """Return the bytes of memory that this machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 1 << 62


def _filled_directly(out: Array, part: _Part, chunk: tuple[int, ...]) -> Array | None:
    """Return the part of the result that a whole chunk fills as it is, if there is one."""
    whole = [at for _, at in part.rows] == list(range(chunk[1]))
    whole &= [at for _, at in part.columns] == list(range(chunk[2]))
    rows, columns = _as_slice([at for at, _ in part.rows]), _as_slice([at for at, _ in part.columns])
    if not whole or not isinstance(rows, slice) or not isinstance(columns, slice):
        return None
    view = out[rows, columns]
    return view if view.flags.c_contiguous else None


def _fill(out: Array, part: _Part, chunk: Array) -> None:
    sources, targets = [c for _, c in part.columns], [c for c, _ in part.columns]
    for row, offset in part.rows:
        out[row, _as_slice(targets)] = chunk[offset, _as_slice(sources)]


def _as_slice(indices: list[int]) -> slice | list[int]:
    """Return a slice where the indices are consecutive: a view is faster than a selection."""
    if indices == list(range(indices[0], indices[0] + len(indices))):
        return slice(indices[0], indices[0] + len(indices))
    return indices
