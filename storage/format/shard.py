"""Shards as bytes: Zarr v3 ``sharding_indexed`` with the index at the end, written one inner chunk at a time.

A shard is: inner chunks in the order they came (each an encoded payload and its CRC-32C); 32 bytes of
identity, which plain Zarr readers pass over; the index, one (offset, length) pair of little-endian uint64 per
slot, all ones for an absent chunk; the CRC-32C of the index. Nothing but the chunk at hand is held in memory,
so a shard may be of any size.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import xxhash

from i2am.storage.format.layout import ENTRY, IDENTITY, ArrayLayout
from i2am.storage.locations.base import Buffer, write_all

ABSENT = (1 << 64) - 1
"""Offset and length of a chunk that is not there."""


class ShardError(ValueError):
    """Bytes of a shard that are not what was written."""


def checksum(data: Buffer) -> int:
    """Return the CRC-32C of a chunk or an index."""
    return int(google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)))


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size of a whole file, and its digest (`file_hash`) in hexadecimal digits."""

    bytes: int
    digest: str


def file_hash(run_id: str, sample: str, path: str) -> xxhash.xxh3_128:
    """Begin the digest of a file: XXH3-128 over its place, then over every byte of its content.

    Not a CRC: over parts that end with their own CRCs, it would depend on their lengths alone.
    """
    return xxhash.xxh3_128(f"{run_id}\n{sample}\n{path}\n".encode())


def record_of(data: Buffer, digest: xxhash.xxh3_128) -> FileRecord:
    """Return the record of a file that is in memory; `digest` is its `file_hash`."""
    digest.update(_flat(data))
    return FileRecord(len(data), digest.hexdigest())


def _flat(data: Buffer) -> memoryview:
    return np.frombuffer(data, np.uint8).data


class ShardWriter:
    """Append inner chunks to one shard.

    The file is opened for each chunk and closed again: a run has hundreds of shards under way, and a chunk of
    a megabyte makes the cost of opening vanish.
    """

    def __init__(self, path: Path, slots: int, identity: bytes, digest: xxhash.xxh3_128) -> None:
        self.path = path
        self._identity = identity
        self._digest = digest
        self._index = np.full((slots, 2), ABSENT, "<u8")
        self._size = 0

    def _append(self, buffers: Sequence[Buffer], *, sync: bool = False) -> None:
        flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT | os.O_EXCL if self._size == 0 else 0)
        fd = os.open(self.path, flags, 0o666)
        try:
            write_all(fd, buffers)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def append(self, slot: int, payload: Buffer) -> None:
        """Append one encoded inner chunk; `slot` is its flat position in the shard's grid, C order."""
        nbytes = payload.nbytes if not isinstance(payload, bytes) else len(payload)
        stored = struct.pack("<I", checksum(payload))
        self._append([payload, stored])
        self._index[slot] = self._size, nbytes + 4
        self._digest.update(_flat(payload))
        self._digest.update(stored)
        self._size += nbytes + 4

    def finish(self) -> FileRecord:
        """Write identity and index, and fsync the file."""
        index = self._index.tobytes()
        tail = self._identity + index + struct.pack("<I", checksum(index))
        self._append([tail], sync=True)
        self._digest.update(tail)
        self._size += len(tail)
        return FileRecord(self._size, self._digest.hexdigest())


def parse_tail(tail: bytes, layout: ArrayLayout, identity: bytes, size: int) -> np.ndarray[Any, Any]:
    """Return a shard's index, (slots, 2): offset and length; `ShardError` if it is damaged or another's."""
    if len(tail) != layout.tail_bytes:
        raise ShardError(f"holds {len(tail)} bytes of index instead of {layout.tail_bytes}")
    index = tail[IDENTITY : IDENTITY + ENTRY * layout.slots]
    if struct.pack("<I", checksum(index)) != tail[-4:]:
        raise ShardError("the checksum of its index disagrees")
    if tail[:IDENTITY] != identity:
        raise ShardError("it is the shard of another sample, array or run")
    entries = np.frombuffer(index, "<u8").reshape(-1, 2)
    present = entries[entries[:, 0] != ABSENT]
    end = size - layout.tail_bytes
    if present.size and not (
        (present[:, 1] >= 4).all()
        and (present[:, 1] <= end).all()
        and (present[:, 0] <= end - present[:, 1]).all()
    ):
        raise ShardError("its index points outside the file")
    # Chunks lie one behind the other: a small file cannot stand for many times its bytes.
    order = present[np.argsort(present[:, 0], kind="stable")]
    ends = np.cumsum(order[:, 1])
    if not np.array_equal(order[:, 0], ends - order[:, 1]) or (int(ends[-1]) if present.size else 0) != end:
        raise ShardError("its chunks overlap, or leave room between them")
    return entries


def compare_checksum(payload: Buffer, stored: bytes) -> None:
    if struct.pack("<I", checksum(payload)) != stored:
        raise ShardError("the checksum of a chunk disagrees")


def check_chunk(data: bytes | memoryview) -> memoryview:
    """Return the payload of a stored inner chunk, its checksum checked and cut off."""
    view = memoryview(data)
    compare_checksum(view[:-4], bytes(view[-4:]))
    return view[:-4]
