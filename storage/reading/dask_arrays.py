"""Lazy arrays over a run: Dask asks for a block, and only that is read and multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import dask.array as da
import numpy as np

from i2am.storage.errors import InputError
from i2am.storage.format.block import Block
from i2am.storage.format.header import Timestep
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.index_selection import Indices

Array = np.ndarray[Any, Any]

BLOCK_BYTES = 128 << 20
"""Bytes that one computed block may have; a single row of reference tokens is never cut."""

MAX_BLOCKS = 1 << 22
"""Blocks of a lazy array: Dask takes some 170 bytes for each as soon as one is computed."""


class ReadableRun(Protocol):
    """What a lazy array needs of a `Run`."""

    @property
    def path(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def samples(self) -> tuple[str, ...]: ...
    @property
    def timesteps(self) -> tuple[Timestep, ...]: ...
    def read(self, layer: LayerSpec, sample: str, steps: Indices, heads: Indices, /) -> Block: ...
    def read_kind(
        self, spec: LayerSpec, kind: str, sample: str, steps: Sequence[int], heads: Sequence[int]
    ) -> Array: ...
    def step_group(self, layer: LayerSpec) -> int: ...


class _LazyArray:
    """A lazily read array, as Dask wants it: shape, dtype, and slicing by slices and integers; picklable."""

    dtype = np.dtype(np.float32)

    def __init__(self, run: ReadableRun, spec: LayerSpec, tokens: tuple[int, ...]) -> None:
        self.run = run
        self.spec = spec
        self.shape = (len(run.samples), len(run.timesteps), spec.heads, *tokens)
        self.ndim = len(self.shape)

    def __getitem__(self, index: tuple[slice | int, ...]) -> Array:
        """Read a block; `index` holds a slice or an integer for each axis."""
        slices = [i if isinstance(i, slice) else slice(i, i + 1 or None) for i in index]
        samples, steps, heads = (range(n)[i] for n, i in zip(self.shape, slices[:3], strict=False))
        lengths = tuple(len(range(n)[i]) for n, i in zip(self.shape, slices, strict=True))
        if 0 in lengths:
            whole = np.empty(lengths, self.dtype)
        else:
            whole = np.stack([self.read(self.run.samples[at], steps, heads, slices[3:]) for at in samples])
        return whole[tuple(slice(None) if isinstance(i, slice) else 0 for i in index)]

    def read(self, sample: str, steps: range, heads: range, tokens: list[slice]) -> Array:
        raise NotImplementedError


class _Scores(_LazyArray):
    """The scores of one layer."""

    def read(self, sample: str, steps: range, heads: range, tokens: list[slice]) -> Array:
        """Read and multiply what is asked for."""
        return self.run.read(self.spec, sample, steps, heads).rows(*tokens).logits()


class _Stored(_LazyArray):
    """One stored array of a layer, (sample, step, head, token) or (sample, step, token)."""

    def __init__(self, run: ReadableRun, spec: LayerSpec, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__(run, spec, ())
        self.kind, self.shape, self.ndim = kind, (len(run.samples), *shape), 1 + len(shape)

    def read(self, sample: str, steps: range, heads: range, tokens: list[slice]) -> Array:
        """Read what is asked for."""
        found = self.run.read_kind(self.spec, self.kind, sample, steps, heads)
        return found[(slice(None), slice(None), *tokens)]


def block_shape(spec: LayerSpec, steps: int, step_group: int) -> tuple[int, int, int, int, int]:
    """Choose the Dask chunk of a layer's scores: neither they nor their factors exceed `BLOCK_BYTES`.

    Whole stored groups of steps where they fit, else fewer heads, else fewer rows.
    """
    row = spec.ref * 4
    factors = 0 if spec.representation == "scores" else (spec.gen + spec.ref) * spec.head_dim * 4
    head = max(spec.gen * row, factors)
    step = spec.heads * head
    if step <= BLOCK_BYTES:
        fit = max(1, min(steps, BLOCK_BYTES // step))
        return 1, max(fit // step_group * step_group, min(fit, step_group)), spec.heads, spec.gen, spec.ref
    if head <= BLOCK_BYTES:
        return 1, 1, BLOCK_BYTES // head, spec.gen, spec.ref
    return 1, 1, 1, max(1, BLOCK_BYTES // row), spec.ref


def _lazy(array: _LazyArray, chunks: tuple[int, ...], kind: str) -> da.Array:
    from dask.tokenize import tokenize

    token = tokenize(array.run.run_id, array.run.path, array.run.samples, array.spec.name, kind, chunks)
    sizes = tuple(max(1, min(n, c)) for n, c in zip(array.shape, chunks, strict=True))
    blocks = prod(-(-n // size) for n, size in zip(array.shape, sizes, strict=True))
    if blocks > MAX_BLOCKS:
        raise InputError(
            f"layer {array.spec.name!r} as one lazy array", expected=f"at most {MAX_BLOCKS:,} blocks",
            got=f"{blocks:,}", remedy="read some steps and heads of a sample at a time with Run.read",
        )  # fmt: skip
    return da.from_array(
        array,
        chunks=sizes,
        name=f"i2am-{kind}-{token}",
        fancy=False,
        meta=np.empty((0,) * array.ndim, np.float32),
    )


def lazy_scores(run: ReadableRun, spec: LayerSpec) -> da.Array:
    """Make the lazy array of `Run.scores`."""
    return _lazy(
        _Scores(run, spec, (spec.gen, spec.ref)),
        block_shape(spec, len(run.timesteps), run.step_group(spec)),
        "scores",
    )


def lazy_stored(run: ReadableRun, spec: LayerSpec, kind: str, shape: tuple[int, ...]) -> da.Array:
    """Make the lazy array of `Run.lse` and its like; `shape` is that of one sample."""
    return _lazy(_Stored(run, spec, kind, shape), (1, *shape), kind)
