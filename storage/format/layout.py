"""Where the numbers of one array lie: shape, inner chunks, shards, file names. Pure arithmetic.

Every array has the sample on axis 0, alone in its chunk and shard. Axis 1 (step) is cut into groups, axis 2
(head, or gen where there is none) into equal blocks; the rest is never cut. A shard holds all steps of a
sample, or an equal part of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil, log2, prod
from typing import Any

import numpy as np

from i2am.storage.errors import InputError
from i2am.storage.format.codecs import shuffled
from i2am.storage.format.dtypes import stored_dtype
from i2am.storage.format.layer_spec import LayerSpec

TARGET_CHUNK = 1 << 20
"""Bytes of an inner chunk that steps are grouped towards."""

MAX_CHUNK = 8 << 20
"""Bytes of an inner chunk above which heads are separated."""

LIMIT_CHUNK = (1 << 31) - (1 << 16)
"""Bytes that no inner chunk may exceed: Blosc's own limit, less its overhead."""

MAX_SLOTS = 1 << 18
"""Inner chunks of a shard."""

DEFAULT_SHARD = 1 << 30
"""Bytes of a shard; see `shard_target`."""

MAX_FILES = 56
"""Files per sample that shards aim to stay below, images and commit record not counted."""

IDENTITY = 32
"""Bytes of the identity in front of a shard's index."""

ENTRY = 16
"""Bytes of one index entry: offset and length."""

DIMS = {
    "query": ("sample", "step", "head", "gen", "dim"),
    "key": ("sample", "step", "head", "ref", "dim"),
    "scores": ("sample", "step", "head", "gen", "ref"),
    "lse": ("sample", "step", "head", "gen"),
    "value_norm": ("sample", "step", "head", "ref"),
    "contribution": ("sample", "step", "gen"),
}
"""Names of the axes of each array of a layer."""

ONCE = "once"
"""Name of the second axis, of length 1, where a key and its value do not change over time."""

FLOAT32 = ("lse", "value_norm", "contribution")
"""Arrays that are float32 whatever the model's dtype, and that a layer may have beside its attention."""


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """Shape, axes, inner chunks and shards of one stored array."""

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    dtype: str
    codec: str

    @property
    def grid(self) -> tuple[int, int]:
        """Inner chunks of a shard along axes 1 and 2."""
        return self.shard[1] // self.chunk[1], self.shard[2] // self.chunk[2]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk before compression."""
        return prod(self.chunk) * np.dtype(self.dtype).itemsize

    @property
    def slots(self) -> int:
        """Inner chunks that a shard has room for."""
        return prod(self.grid)

    @property
    def tail_bytes(self) -> int:
        """Bytes of identity, index and checksum at the end of a shard."""
        return IDENTITY + ENTRY * self.slots + 4

    @property
    def shards(self) -> int:
        """Shards (files) per sample."""
        return ceil(self.shape[1] / self.shard[1])

    def groups(self, shard: int) -> int:
        """Return how many groups of steps a shard holds: the last shard may have room to spare."""
        return min(self.grid[0], ceil((self.shape[1] - shard * self.shard[1]) / self.chunk[1]))

    def key(self, index: int, shard: int) -> str:
        rest = ".0" * (len(self.shape) - 2)
        return f"{self.path}/c.{index}.{shard}{rest}"

    def keys(self, index: int) -> Iterator[str]:
        return (self.key(index, shard) for shard in range(self.shards))

    def file_bytes(self, shard: int) -> tuple[int, int]:
        """Return the bytes that a shard's file has at least and at most: the same without compression."""
        chunks, plain = self.groups(shard) * self.grid[1], self.chunk_bytes
        least, most = (plain, plain) if self.codec == "none" else (1, plain + plain // 128 + 512)
        return chunks * (least + 4) + self.tail_bytes, chunks * (most + 4) + self.tail_bytes

    def stored_bytes(self, ratio: float = 1.0) -> int:
        """Predict the bytes of one sample on disk; `ratio` is stored over plain bytes of a chunk."""
        chunks = sum(self.groups(shard) for shard in range(self.shards)) * self.grid[1]
        return chunks * (round(self.chunk_bytes * ratio) + 4) + self.shards * self.tail_bytes

    def to_json(self) -> dict[str, Any]:
        """Return what the root document holds of this layout; the rest follows from the layer."""
        return {"chunk": list(self.chunk), "shard": list(self.shard), "codec": self.codec}


def identity(run_id: str, key: str) -> bytes:
    """Return the 32 bytes that tie a shard's content to its place."""
    return hashlib.sha256(f"{run_id}\n{key}".encode()).digest()


def group_steps(steps: int, step_bytes: int) -> int:
    """Choose how many steps share an inner chunk: near `TARGET_CHUNK`, the last group nearly full."""
    want = min(steps, TARGET_CHUNK // step_bytes)
    if want <= 1:
        return 1

    def cost(n: int) -> float:
        unused = ceil(steps / n) * n - steps
        return 2 * unused / steps + 0.1 * abs(log2(n / want))

    return min(range(1, min(steps, 2 * want) + 1), key=cost)


def block_heads(heads: int, head_bytes: int) -> int:
    """Choose how many heads share an inner chunk: the most that divide the heads within `MAX_CHUNK`."""
    return max(n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * head_bytes <= MAX_CHUNK))


def shard_target(total: int, arrays: int) -> int:
    """Choose the bytes of a shard, so that a sample has about `MAX_FILES` files at most."""
    spare = max(8, MAX_FILES - arrays)
    return max(DEFAULT_SHARD, ceil(total / spare))


def _cut(whole: ArrayLayout, shard_bytes: int) -> ArrayLayout:
    """Choose chunks and shards for an array that is laid out as a single chunk so far."""
    shape, itemsize = whole.shape, np.dtype(whole.dtype).itemsize
    head_bytes = prod(shape[3:]) * itemsize
    if head_bytes > LIMIT_CHUNK:
        raise InputError(
            f"{whole.path}: one head of one step",
            expected=f"at most {LIMIT_CHUNK:,} bytes",
            got=f"{head_bytes:,}",
            remedy='store the layer as representation="factors"',
        )
    heads = block_heads(shape[2], head_bytes)
    steps = group_steps(shape[1], shape[2] * head_bytes) if heads == shape[2] else 1
    groups = ceil(shape[1] / steps)
    parts = min(groups, ceil(groups * steps * shape[2] * head_bytes / shard_bytes))
    shard = (1, ceil(groups / parts) * steps, *shape[2:])
    cut = replace(whole, chunk=(1, steps, heads, *shape[3:]), shard=shard)
    if cut.slots > MAX_SLOTS:
        raise InputError(
            f"{whole.path}: chunks of a shard", expected=f"at most {MAX_SLOTS:,}", got=f"{cut.slots:,}",
            remedy="capture fewer steps or heads, or lower shard_bytes",
        )  # fmt: skip
    return cut


def _whole_layouts(spec: LayerSpec, samples: int, steps: int, codec: str) -> dict[str, ArrayLayout]:
    """Lay out the arrays of a layer with one chunk for each sample."""
    lengths = {ONCE: 1, "step": steps, "head": spec.heads, "gen": spec.gen, "ref": spec.ref}
    lengths["dim"] = spec.head_dim
    factors = ["key"] if spec.query_of else ["query", "key"]
    kinds = factors if spec.representation == "factors" else ["scores"]
    kinds += [kind for kind in FLOAT32 if getattr(spec, kind)]
    layouts = {}
    for kind in kinds:
        once = kind in ("key", "value_norm") and spec.static_key
        dims = (DIMS[kind][0], ONCE, *DIMS[kind][2:]) if once else DIMS[kind]
        one = (1, *(lengths[dim] for dim in dims[1:]))
        wide = spec.dtype == "bfloat16" and kind in ("query", "key")
        layouts[kind] = ArrayLayout(
            path=f"attention/{spec.name}/{kind}",
            dims=dims,
            shape=(samples, *one[1:]),
            chunk=one,
            shard=one,
            dtype="float32" if kind in FLOAT32 else stored_dtype(spec.dtype),
            codec=shuffled(codec) if wide else codec,
        )
    return layouts


def layer_layouts(
    spec: LayerSpec, samples: int, steps: int, codec: str, shard_bytes: int
) -> dict[str, ArrayLayout]:
    """Lay out a layer's arrays (query, key, scores, lse, ...), shards of `shard_bytes` before compression."""
    layouts = _whole_layouts(spec, samples, steps, codec)
    return {kind: _cut(whole, shard_bytes) for kind, whole in layouts.items()}


def restore_layouts(
    spec: LayerSpec, samples: int, steps: int, stored: Mapping[str, Mapping[str, Any]]
) -> dict[str, ArrayLayout]:
    """Lay out a layer's arrays as the root document states; ValueError if that does not fit the layer."""
    layouts = _whole_layouts(spec, samples, steps, "none")
    if set(stored) != set(layouts):
        raise ValueError(f"layer {spec.name!r}: arrays {sorted(stored)} instead of {sorted(layouts)}")
    return {kind: restore_layout(whole, stored[kind]) for kind, whole in layouts.items()}


def restore_layout(base: ArrayLayout, stored: Mapping[str, Any]) -> ArrayLayout:
    """Apply stored chunk, shard and codec to an array; ValueError if they do not fit it."""
    chunk, shard = tuple(stored["chunk"]), tuple(stored["shard"])
    whole = (1, *base.shape[1:])
    fits = (
        len(chunk) == len(shard) == len(whole)
        and all(type(n) is int and n > 0 for n in (*chunk, *shard))
        and all(s % c == 0 for c, s in zip(chunk, shard, strict=True))
        and chunk[3:] == shard[3:] == whole[3:]
        and chunk[0] == shard[0] == 1
        and shard[2] == whole[2]
        and shard[1] < whole[1] + chunk[1]
    )
    if not fits:
        raise ValueError(
            f"{base.path}: chunk {chunk[:9]} and shard {shard[:9]} do not fit shape {base.shape}"
        )
    found = replace(base, chunk=chunk, shard=shard, codec=stored["codec"])
    most = LIMIT_CHUNK if chunk[1] == chunk[2] == 1 else MAX_CHUNK
    if found.chunk_bytes > most or found.slots > MAX_SLOTS:
        raise ValueError(f"{base.path}: {found.slots:,} chunks of {found.chunk_bytes:,} bytes in a shard")
    return found


def image_layout(name: str, shape: tuple[int, int, int], samples: int, codec: str) -> ArrayLayout:
    """Lay out an image array: one image per chunk and shard."""
    one = (1, *shape)
    # Images differ in size: axes of their own let xarray open all of them as one dataset.
    dims = ("sample", f"{name}_y", f"{name}_x", f"{name}_channel")
    return ArrayLayout(f"images/{name}", dims, (samples, *shape), one, one, "uint8", codec)
