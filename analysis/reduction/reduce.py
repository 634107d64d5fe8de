"""Running an aggregation over one layer and sample, in pieces of bounded size, joined in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.reduction.aggregation import Aggregation, State
from i2am.analysis.reduction.attention import Attention
from i2am.analysis.reduction.blas_threads import one_blas_thread
from i2am.analysis.reduction.logits import Float32, Logits
from i2am.storage.errors import AggregationError, I2AMError
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.reading.run import Run

# Raw bytes of one read of the store, at most, unless a single head of a single step has more.
READ_BYTES = 64 * 2**20
SLAB_BYTES = 256 * 2**20  # raw bytes of the steps of one Dask task, at most, unless a single step has more
# Logits (float32 bytes) that a chunk sees at once, at most, unless one plane, or row, has more.
PIECE_BYTES = 32 * 2**20


def slabs(layer: LayerSpec, steps: Sequence[int]) -> list[tuple[int, ...]]:
    """Neighbouring steps that make one unit of work."""
    return _groups(steps, SLAB_BYTES // (_head_bytes(layer) * layer.heads))


@dataclass(frozen=True)
class Reduction:
    """One aggregation over one layer and sample."""

    run: Run
    layer: LayerSpec
    sample: str
    aggregation: Aggregation

    def slab(
        self,
        steps: Sequence[int],
        heads: Sequence[int] | None = None,
        marginals: Mapping[str, Float32] | None = None,
    ) -> State:
        """Reduce some steps, and some heads or all; `marginals` (step, head, token) have all of them."""
        layer, own = self.layer, tuple(heads if heads is not None else range(self.layer.heads))
        states = []
        if self.aggregation.over == "marginals":
            for part in _groups(steps, READ_BYTES // (4 * len(own) * (layer.gen + layer.ref))):
                chosen = {name: values[np.ix_(part, own)] for name, values in (marginals or {}).items()}
                states.append(self._chunk(part, own, slice(0, layer.gen), marginals=chosen))
            return join_states(self.aggregation, states, "step")
        plane = _head_bytes(layer)
        for part in _groups(steps, READ_BYTES // (plane * len(own))):
            by_head = [self._read(part, some) for some in _groups(own, READ_BYTES // plane)]
            states.append(join_states(self.aggregation, by_head, "head"))
        return join_states(self.aggregation, states, "step")

    def _read(self, steps: tuple[int, ...], heads: tuple[int, ...]) -> State:
        """Read some steps and heads, and reduce them piece by piece."""
        run, layer, sample, aggregation = self.run, self.layer, self.sample, self.aggregation
        lse = run.read_kind(layer, "lse", sample, steps, heads) if layer.lse else None
        norms = None
        if layer.value_norm and aggregation.over == "logits":
            once = (0,) if layer.static_key else steps
            norms = run.read_kind(layer, "value_norm", sample, once, heads)
        whole = Logits.of(run.read(layer, sample, steps=steps, heads=heads), lse, norms)
        if aggregation.over == "logits":
            every = slice(0, layer.gen)
            return self._chunk(steps, heads, every, whole.cut(slice(None), slice(None), every))
        plane = 4 * layer.gen * layer.ref
        rows_in_piece = PIECE_BYTES // (4 * layer.ref) if aggregation.rows else layer.gen
        by_step = []
        for at in _slices(len(steps), PIECE_BYTES // (plane * len(heads))):
            by_head = []
            for some in _slices(len(heads), PIECE_BYTES // plane):
                by_row = [
                    self._chunk(steps[at], heads[some], rows, whole.cut(at, some, rows))
                    for rows in _slices(layer.gen, rows_in_piece)
                ]
                by_head.append(join_states(aggregation, by_row, "gen"))
            by_step.append(join_states(aggregation, by_head, "head"))
        return join_states(aggregation, by_step, "step")

    def _chunk(
        self, steps: tuple[int, ...], heads: tuple[int, ...], gen: slice, logits: Logits | None = None,
        marginals: Mapping[str, Float32] | None = None,
    ) -> State:  # fmt: skip
        """Call the chunk, and check that its arrays have the kept axes in front."""
        attention = Attention(self.run, self.layer, self.sample, steps, heads, gen, logits, marginals or {})
        with _user_errors(self.aggregation, "chunk", self.layer), one_blas_thread():
            state = self.aggregation.chunk(attention)
        sizes = {"step": len(steps), "head": len(heads), "gen": gen.stop - gen.start}
        keep = self.aggregation.keep
        expected = tuple(sizes[axis] for axis in keep)
        for array in state if isinstance(state, tuple) else (state,):
            if np.shape(array)[: len(expected)] != expected:
                raise AggregationError(
                    f"aggregation {self.aggregation.name!r}, layer {self.layer.name!r}: what chunk returned",
                    expected=f"arrays that begin with the axes ({', '.join(keep)}), here {expected}",
                    got=f"shape {np.shape(array)}",
                    remedy="reduce the other axes in chunk, or declare keep",
                )
        return state


def finalize_states(aggregation: Aggregation, states: Sequence[State], layer: LayerSpec) -> NDArray[Any]:
    """Join the states of slabs, in order, and finalize them to an array with the axes `aggregation.axes`."""
    state = join_states(aggregation, states, "step")
    with _user_errors(aggregation, "finalize", layer):
        result = np.asarray(aggregation.finalize(state, layer))
    if result.ndim != len(aggregation.axes):
        raise AggregationError(
            f"aggregation {aggregation.name!r}, layer {layer.name!r}: its result",
            expected=f"the axes ({', '.join(aggregation.axes)})",
            got=f"an array of shape {result.shape}",
            remedy="let finalize return one axis for each of dims",
        )
    return result


def head_numbers(layer: LayerSpec) -> int:
    """Numbers that the store holds of one head of one step."""
    scores = layer.representation == "scores"
    return layer.gen * layer.ref if scores else (layer.gen + layer.ref) * layer.head_dim


def _head_bytes(layer: LayerSpec) -> int:
    return max(1, head_numbers(layer) * (2 if layer.dtype == "float16" else 4))


def _slices(total: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _groups(indices: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(indices[part]) for part in _slices(len(indices), size)]


def join_states(aggregation: Aggregation, states: Sequence[State], axis: str) -> State:
    """Join neighbouring pieces along "step", "head" or "gen": concatenate if it is kept, else combine."""
    with _user_errors(aggregation, "combine", None):
        if len(states) == 1:
            return states[0]
        if axis not in aggregation.keep:
            return reduce(aggregation.combine, states)
        at = aggregation.keep.index(axis)
        if isinstance(states[0], tuple):
            return tuple(np.concatenate(arrays, axis=at) for arrays in zip(*states, strict=True))
        return np.concatenate([np.asarray(state) for state in states], axis=at)


@contextmanager
def _user_errors(aggregation: Aggregation, function: str, layer: LayerSpec | None) -> Iterator[None]:
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
            remedy="correct the function; the cause of this error has its traceback",
        ) from error
