"""Running an aggregation over one layer and sample, in pieces of bounded size.

A layer's steps go into slabs, each a unit of work for a Dask worker; a slab is read in parts of at most
READ_BYTES; a part is expanded to logits in pieces of at most PIECE_BYTES. Pieces are joined in one fixed
order, so that the result is the same to the bit whoever computes which slab.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.reduction.aggregation import Aggregation, State, join
from i2am.analysis.reduction.attention import Attention
from i2am.analysis.reduction.blas_threads import one_blas_thread
from i2am.analysis.reduction.logits import Float32, Logits
from i2am.storage.errors import AggregationError, I2AMError

if TYPE_CHECKING:
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.reading.run import Run

READ_BYTES = 64 * 2**20
"""Raw bytes that one read of the store brings into memory, unless a single head of a single step has more."""

SLAB_BYTES = 256 * 2**20
"""Raw bytes of the steps that one Dask task works through, unless a single step has more."""

PIECE_BYTES = 32 * 2**20
"""Logits that a chunk sees at once (float32 bytes), unless a single plane, or row, has more."""


def slabs(layer: LayerSpec, steps: Sequence[int]) -> list[tuple[int, ...]]:
    """Neighbouring steps that make one unit of work."""
    many = max(1, SLAB_BYTES // (_head_bytes(layer) * layer.heads))
    return [tuple(steps[start : start + many]) for start in range(0, len(steps), many)]


def reduce_slab(
    run: Run,
    layer: LayerSpec,
    sample: str,
    aggregation: Aggregation,
    steps: Sequence[int],
    heads: Sequence[int] | None = None,
    marginals: Mapping[str, Float32] | None = None,
) -> State:
    """Reduce some steps to a state."""
    own = tuple(heads if heads is not None else range(layer.heads))
    if aggregation.over == "marginals":
        many = max(1, READ_BYTES // (4 * len(own) * (layer.gen + layer.ref)))
        states = [
            _chunk(aggregation, _of_marginals(run, layer, sample, part, own, marginals or {}))
            for part in _groups(steps, many)
        ]
        return _joined(aggregation, states, "step")
    by_step = []
    for part in _groups(steps, _steps_a_read(layer, len(own))):
        by_head = [
            _reduce_part(run, layer, sample, aggregation, part, some)
            for some in _groups(own, _heads_a_read(layer))
        ]
        by_step.append(_joined(aggregation, by_head, "head"))
    return _joined(aggregation, by_step, "step")


def finish(aggregation: Aggregation, states: Sequence[State], layer: LayerSpec) -> NDArray[Any]:
    """Join the states of slabs, in order, and finalize them."""
    state = _joined(aggregation, states, "step")
    with _blamed(aggregation, "finalize", layer):
        result = np.asarray(aggregation.finalize(state, layer))
    if result.ndim != len(aggregation.axes):
        raise AggregationError(
            f"aggregation {aggregation.name!r}, layer {layer.name!r}: its result",
            expected=f"the axes ({', '.join(aggregation.axes)})",
            got=f"an array of shape {result.shape}",
            remedy="let finalize return one axis for each of dims",
        )
    return result


def reduce_layer(
    run: Run,
    layer: LayerSpec,
    sample: str,
    aggregation: Aggregation,
    steps: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    marginals: Mapping[str, Float32] | None = None,
) -> NDArray[Any]:
    """Reduce one layer of one sample, here and now; see `reduce_slab` and `finish`."""
    chosen = range(len(run.timesteps)) if steps is None else steps
    states = [
        reduce_slab(run, layer, sample, aggregation, slab, heads, marginals) for slab in slabs(layer, chosen)
    ]
    return finish(aggregation, states, layer)


def _head_bytes(layer: LayerSpec) -> int:
    """Raw bytes of one head of one step."""
    scores = layer.representation == "scores"
    numbers = layer.gen * layer.ref if scores else (layer.gen + layer.ref) * layer.head_dim
    return max(1, numbers * (2 if layer.dtype == "float16" else 4))


def _heads_a_read(layer: LayerSpec) -> int:
    return max(1, READ_BYTES // _head_bytes(layer))


def _steps_a_read(layer: LayerSpec, heads: int) -> int:
    return max(1, READ_BYTES // (_head_bytes(layer) * heads))


def _groups(indices: Sequence[int], many: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(indices), many):
        yield tuple(indices[start : start + many])


def _of_marginals(
    run: Run,
    layer: LayerSpec,
    sample: str,
    steps: tuple[int, ...],
    heads: tuple[int, ...],
    marginals: Mapping[str, Float32],
) -> Attention:
    part = {name: values[np.ix_(steps, heads)] for name, values in marginals.items()}
    return Attention(run, layer, sample, steps, heads, slice(0, layer.gen), marginals=part)


def _reduce_part(
    run: Run,
    layer: LayerSpec,
    sample: str,
    aggregation: Aggregation,
    steps: tuple[int, ...],
    heads: tuple[int, ...],
) -> State:
    """Read some steps and heads, and reduce them piece by piece."""
    lse = run.read_kind(layer, "lse", sample, steps, heads) if layer.lse else None
    whole = Logits.of(run.read(layer, sample, steps=steps, heads=heads), lse)

    def piece(at: slice, some: slice, rows: slice) -> State:
        cut = whole.cut(at, some, rows)
        return _chunk(aggregation, Attention(run, layer, sample, steps[at], heads[some], rows, cut))

    if aggregation.over == "logits":
        return piece(slice(0, len(steps)), slice(0, len(heads)), slice(0, layer.gen))
    plane = 4 * layer.gen * layer.ref
    many_rows = max(1, PIECE_BYTES // (4 * layer.ref)) if aggregation.rows else layer.gen
    many_heads = max(1, PIECE_BYTES // plane)
    many_steps = max(1, PIECE_BYTES // (plane * len(heads)))
    by_step = []
    for at in _slices(len(steps), many_steps):
        by_head = []
        for some in _slices(len(heads), many_heads):
            by_row = [piece(at, some, rows) for rows in _slices(layer.gen, many_rows)]
            by_head.append(_joined(aggregation, by_row, "gen"))
        by_step.append(_joined(aggregation, by_head, "head"))
    return _joined(aggregation, by_step, "step")


def _slices(total: int, many: int) -> Iterator[slice]:
    for start in range(0, total, many):
        yield slice(start, min(start + many, total))


def _chunk(aggregation: Aggregation, attention: Attention) -> State:
    """Call the chunk, and check that its arrays have the kept axes in front."""
    with _blamed(aggregation, "chunk", attention.layer), one_blas_thread():
        state = aggregation.chunk(attention)
    sizes = {
        "step": len(attention.steps),
        "head": len(attention.heads),
        "gen": attention.gen.stop - attention.gen.start,
    }
    expected = tuple(sizes[axis] for axis in aggregation.keep)
    for array in state if isinstance(state, tuple) else (state,):
        if np.shape(array)[: len(expected)] != expected:
            raise AggregationError(
                f"aggregation {aggregation.name!r}, layer {attention.layer.name!r}: what chunk returned",
                expected=f"arrays that begin with the axes ({', '.join(aggregation.keep)}), here {expected}",
                got=f"shape {np.shape(array)}",
                remedy="reduce the other axes in chunk, or declare keep",
            )
    return state


def _joined(aggregation: Aggregation, states: Sequence[State], axis: str) -> State:
    with _blamed(aggregation, "combine", None):
        return join(aggregation, states, axis)


@contextmanager
def _blamed(aggregation: Aggregation, function: str, layer: LayerSpec | None) -> Iterator[None]:
    """Turn whatever a user's function raises into one error that names it."""
    try:
        yield
    except I2AMError:
        raise
    except Exception as error:
        where = f" at layer {layer.name!r}" if layer is not None else ""
        raise AggregationError(
            f"aggregation {aggregation.name!r}: {function} failed{where}",
            expected="no exception",
            got=f"{type(error).__name__}: {error}",
            remedy="mend the function; the cause of this error has its traceback",
        ) from error
