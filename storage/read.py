"""Reading one sample's arrays, every chunk checked; and `Block`, what an eager read returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.codecs import get_codec
from storage.layout import ArrayLayout, identity
from storage.location import Location
from storage.logits import scaled_logits
from storage.shard import ABSENT, FileRecord, ShardError, check_chunk, parse_tail

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Block:
    """Raw values of one layer and sample, as stored: either query and key, or scores.

    Parameters
    ----------
    query : ndarray or None
        (step, head, gen, dim) float16 or float32.
    key : ndarray or None
        (step or 1, head, ref, dim).
    scores : ndarray or None
        (step, head, gen, ref).
    scale : float
        Factor on q·k.
    """

    query: Array | None
    key: Array | None
    scores: Array | None
    scale: float

    def logits(self) -> Array:
        """Return the scaled logits.

        Returns
        -------
        ndarray
            (step, head, gen, ref) float32.
        """
        if self.query is not None and self.key is not None:
            return scaled_logits(self.query, self.key, self.scale)
        if self.scores is None:
            raise TypeError("a block holds query and key, or scores")
        return self.scores.astype(np.float32, copy=False)


def read_array(
    location: Location,
    layout: ArrayLayout,
    run_id: str,
    index: int,
    files: dict[str, FileRecord],
    steps: Sequence[int],
    heads: Sequence[int],
) -> Array:
    """Read some steps and heads of one sample.

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
    steps, heads : sequence of int
        Indices along axes 1 and 2, in the order wanted.

    Returns
    -------
    ndarray
        (step, head, ...) in the stored dtype.

    Raises
    ------
    ShardError
        If a file is missing or damaged; the message names it.
    OSError
        As the system reports it.
    """
    out = np.empty((len(steps), len(heads), *layout.shape[3:]), layout.dtype)
    wanted: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for row, step in enumerate(steps):
        group, offset = divmod(step, layout.chunk[1])
        shard, slot = divmod(group, layout.grid[0])
        wanted.setdefault(shard, {}).setdefault(slot, []).append((row, offset))
    blocks: dict[int, list[tuple[int, int]]] = {}
    for column, head in enumerate(heads):
        block, offset = divmod(head, layout.chunk[2])
        blocks.setdefault(block, []).append((column, offset))
    for shard, slots in wanted.items():
        key = layout.key(index, shard)
        try:
            size = files[key].bytes
            entries = _index(location, layout, identity(run_id, key), key, size)
            places = [
                (rows, columns, entries[slot * layout.grid[1] + block])
                for slot, rows in slots.items()
                for block, columns in blocks.items()
            ]
            _fill(out, location, layout, key, size, places)
        except FileNotFoundError as error:
            raise ShardError(f"{key}: the file is missing") from error
        except ValueError as error:
            raise ShardError(f"{key}: {error}") from error
    return out


def _index(location: Location, layout: ArrayLayout, wanted: bytes, key: str, size: int) -> Array:
    start = size - layout.tail_bytes
    if start < 0:
        raise ShardError(f"it has {size} bytes, too few for its index")
    return parse_tail(location.read_ranges(key, [(start, size)], size)[0], layout, wanted, size)


def _fill(
    out: Array,
    location: Location,
    layout: ArrayLayout,
    key: str,
    size: int,
    places: list[tuple[list[tuple[int, int]], list[tuple[int, int]], Array]],
) -> None:
    codec = get_codec(layout.codec)
    if any(entry[0] == ABSENT for _, _, entry in places):
        raise ShardError("a chunk is absent")
    for rows, columns, entry in places:
        start = int(entry[0])
        payload = check_chunk(location.read_ranges(key, [(start, start + int(entry[1]))], size)[0])
        chunk = np.frombuffer(codec.decode(payload, layout.chunk_bytes), layout.dtype).reshape(
            layout.chunk[1:]
        )
        sources, targets = [c for _, c in columns], [c for c, _ in columns]
        for row, offset in rows:
            out[row, _run(targets)] = chunk[offset, _run(sources)]


def _run(indices: list[int]) -> slice | list[int]:
    """Return a slice where the indices are consecutive: a view is faster than a selection."""
    if indices == list(range(indices[0], indices[0] + len(indices))):
        return slice(indices[0], indices[0] + len(indices))
    return indices
