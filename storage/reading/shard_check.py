"""A whole shard, read once: all that a reader would refuse, and the digest over its every byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from i2am.storage.format.codecs import get_codec
from i2am.storage.format.commit_record import CommitRecord
from i2am.storage.format.layout import ArrayLayout, identity
from i2am.storage.format.shard import ABSENT, ShardError, check_chunk, file_hash, parse_tail
from i2am.storage.locations.base import Location

BATCH_BYTES = 16 << 20
"""Bytes that are read at a time."""


def check_shard(location: Location, layout: ArrayLayout, record: CommitRecord, shard: int) -> None:
    """Raise `ShardError` unless one of a sample's files is what was committed."""
    key, (least, most) = layout.key(record.index, shard), layout.file_bytes(shard)
    wanted = record.files[key]
    size = location.size(key)
    if size is None:
        raise ShardError("is missing")
    if size != wanted.bytes:
        raise ShardError(f"has {size} bytes instead of {wanted.bytes}")
    if not least <= size <= most:
        raise ShardError(f"has {size} bytes, which do not fit its chunks")
    try:
        tail = location.read_ranges(key, [(size - layout.tail_bytes, size)], size)[0]
        index = parse_tail(tail, layout, identity(record.run_id, key), size)
        needed = np.arange(layout.slots) < layout.groups(shard) * layout.grid[1]
        if not np.array_equal(index[:, 0] != ABSENT, needed):
            raise ShardError("chunks are absent, or too many")
        digest, codec = file_hash(record.run_id, record.sample, key), get_codec(layout.codec)
        for stored in _chunks(location, key, index[needed], size):
            digest.update(stored)
            codec.decode(check_chunk(stored), layout.chunk_bytes)
    except FileNotFoundError:
        raise ShardError("is missing") from None
    except ShardError:
        raise
    except ValueError as error:
        raise ShardError(str(error)) from error
    digest.update(tail)
    if digest.hexdigest() != wanted.digest:
        raise ShardError("its digest disagrees with the commit record")


def _chunks(location: Location, key: str, index: np.ndarray[Any, Any], size: int) -> Iterator[bytes]:
    """Yield the chunks of a shard as they lie there, one behind the other."""
    batch: list[tuple[int, int]] = []
    for offset, nbytes in index[np.argsort(index[:, 0])].tolist():
        if batch and offset + nbytes - batch[0][0] > BATCH_BYTES:
            yield from location.read_ranges(key, batch, size)
            batch = []
        batch.append((offset, offset + nbytes))
    yield from location.read_ranges(key, batch, size)
