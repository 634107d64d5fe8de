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
class _Place:
    """Where one chunk goes: slot in its shard, and pairs (index in the result, index in the chunk)."""

    slot: int
    rows: list[tuple[int, int]]
    columns: list[tuple[int, int]]


class ArrayReader:
    """Read from the shards of one sample of one array.

    Parameters
    ----------
    location : Location
        Where the run lives.
    layout : ArrayLayout
        The array's layout.
    run_id : str
        Id of the run.
    index : int
        Index of the sample.
    files : dict
        The sample's files as committed.
    """

    def __init__(
        self, location: Location, layout: ArrayLayout, run_id: str, index: int, files: dict[str, FileRecord]
    ) -> None:
        self._location = location
        self._layout = layout
        self._run_id = run_id
        self._index = index
        self._files = files

    def read(self, steps: Sequence[int], heads: Sequence[int]) -> Array:
        """Read some indices of axes 1 and 2.

        Parameters
        ----------
        steps, heads : sequence of int
            Indices within range, in the order wanted.

        Returns
        -------
        ndarray
            (step, head, ...) in the stored dtype.

        Raises
        ------
        ShardError
            If a file is missing or damaged; the message names it.
        InputError
            If the result does not fit into memory.
        OSError
            As the system reports it.
        """
        wanted = self._places(steps, heads)
        for shard in wanted:
            self._check_size(shard)
        out = self._room((len(steps), len(heads), *self._layout.shape[3:]))
        for shard, places in wanted.items():
            key = self._layout.key(self._index, shard)
            try:
                self._read_shard(out, key, places)
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

    def _room(self, shape: tuple[int, ...]) -> Array:
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

    def _places(self, steps: Sequence[int], heads: Sequence[int]) -> dict[int, list[_Place]]:
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
        places: dict[int, list[_Place]] = {}
        for group, rows in groups.items():
            shard, first = divmod(group, layout.grid[0])
            for block, columns in blocks.items():
                places.setdefault(shard, []).append(_Place(first * layout.grid[1] + block, rows, columns))
        return places

    def _read_shard(self, out: Array, key: str, places: list[_Place]) -> None:
        layout, size = self._layout, self._files[key].bytes
        start = size - layout.tail_bytes
        if start < 0:
            raise ShardError(f"it has {size} bytes, too few for its index")
        tail = self._location.read_ranges(key, [(start, size)], size)[0]
        index = parse_tail(tail, layout, identity(self._run_id, key), size)
        if any(index[place.slot][0] == ABSENT for place in places):
            raise ShardError("a chunk is absent")
        places = sorted(places, key=lambda place: int(index[place.slot][0]))
        if isinstance(self._location, LocalLocation) and layout.codec == "none":
            places = self._read_directly(self._location, out, key, places, index)
        for place, chunk in self._chunks(key, places, index):
            _fill(out, place, chunk)

    def _read_directly(
        self, location: LocalLocation, out: Array, key: str, places: list[_Place], index: Array
    ) -> list[_Place]:
        """Read plain chunks straight to where they belong; return those that have to be taken apart."""
        rest = []
        for place in places:
            target = _target(out, place, self._layout.chunk)
            offset, nbytes = map(int, index[place.slot])
            if target is None or nbytes != target.nbytes + 4:
                rest.append(place)
                continue
            stored = np.empty(4, np.uint8)
            location.read_into(key, offset, [target, stored], self._files[key].bytes)
            compare_checksum(target, stored.tobytes())
        return rest

    def _chunks(self, key: str, places: list[_Place], index: Array) -> Iterator[tuple[_Place, Array]]:
        """Yield decoded chunks of one shard, in the order in which they lie there."""
        layout, codec = self._layout, get_codec(self._layout.codec)
        while places:
            batch: list[_Place] = []
            ranges: list[tuple[int, int]] = []
            while places and (not ranges or ranges[-1][1] - ranges[0][0] < BATCH_BYTES):
                offset, nbytes = map(int, index[places[0].slot])
                ranges.append((offset, offset + nbytes))
                batch.append(places.pop(0))
            found = self._location.read_ranges(key, ranges, self._files[key].bytes)
            for place, stored in zip(batch, found, strict=True):
                data = codec.decode(check_chunk(stored), layout.chunk_bytes)
                yield place, np.frombuffer(data, layout.dtype).reshape(layout.chunk[1:])


def physical_memory() -> int:
    """Return the bytes of memory that this machine has.

    Returns
    -------
    int
        A very large number where the system does not say.
    """
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 1 << 62


def _target(out: Array, place: _Place, chunk: tuple[int, ...]) -> Array | None:
    """Return the part of the result that a whole chunk fills as it is, if there is one."""
    whole = [at for _, at in place.rows] == list(range(chunk[1]))
    whole &= [at for _, at in place.columns] == list(range(chunk[2]))
    rows, columns = _run([at for at, _ in place.rows]), _run([at for at, _ in place.columns])
    if not whole or not isinstance(rows, slice) or not isinstance(columns, slice):
        return None
    view = out[rows, columns]
    return view if view.flags.c_contiguous else None


def _fill(out: Array, place: _Place, chunk: Array) -> None:
    sources, targets = [c for _, c in place.columns], [c for c, _ in place.columns]
    for row, offset in place.rows:
        out[row, _run(targets)] = chunk[offset, _run(sources)]


def _run(indices: list[int]) -> slice | list[int]:
    """Return a slice where the indices are consecutive: a view is faster than a selection."""
    if indices == list(range(indices[0], indices[0] + len(indices))):
        return slice(indices[0], indices[0] + len(indices))
    return indices
