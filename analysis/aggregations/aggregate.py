"""Aggregations of a whole run, lazily: one Dask task for each slab of steps, sample and layer.

The result has the axes (sample, layer, ...) and then those of the aggregation; a token axis becomes (y, x) on
one grid, by the bicubic resize that maps have. Layers with fewer heads than others are filled up with NaN.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from i2am.analysis.grids.resize import Grid, bicubic
from i2am.analysis.grids.selection import Selection, is_similarity, select, spatial_tokens
from i2am.analysis.marginals.store import MarginalStore, StorePlace, open_marginals
from i2am.analysis.reduction.aggregation import TOKENS, Aggregation, State
from i2am.analysis.reduction.reduce import finalize_states, reduce_slab, slabs
from i2am.analysis.reduction.softmax import KERNEL_VERSION
from i2am.analysis.several_runs import combine_runs
from i2am.storage.errors import AggregationError
from i2am.storage.format.marginals_only import need_attention
from i2am.storage.index_selection import Indices
from i2am.storage.reading.run_collection import Runs

if TYPE_CHECKING:
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.reading.run_collection import AnyRun


def aggregate(
    run: AnyRun,
    aggregation: Aggregation | str,
    layers: Sequence[str] | str | None = None,
    steps: Indices | None = None,
    heads: Indices | None = None,
    samples: Sequence[str] | str | None = None,
    size: Grid | None = None,
    *,
    store: StorePlace = None,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Aggregate the attention of a run, lazily.

    Parameters
    ----------
    run
        An open run, or several as one.
    aggregation
        A declaration; or the name of one that comes with the project or with an installed package, or
        "module:name".
    layers, steps, heads, samples
        What to aggregate; None for all that can answer.
    size
        (rows, columns) of a result that is a map; None for the largest grid of the layers.
    store, storage_options
        Place of the derived store of marginals (a folder for those of several runs); options, if it is a URL.

    Returns
    -------
    xarray.DataArray
        (sample, layer, axes of the aggregation), on dask; float64, maps float32. Attributes: aggregation,
        units, title, over, kind, layers, left_out, steps, run_id.

    Raises
    ------
    UnknownName, InputError, EmptyRun, NoAnswer
        For an aggregation, names and indices that do not exist, or layers without an answer.
    AggregationError, DamagedSample
        When computed: if the aggregation does not do what it declares, or the data is damaged.
    """
    if isinstance(aggregation, str):
        from i2am.analysis.aggregations.registry import find

        aggregation = find(aggregation)
    if aggregation.over != "marginals":
        need_attention(run.attrs, str(run.path), f"aggregation {aggregation.name!r}")
    if isinstance(run, Runs):
        again = partial(
            aggregate, aggregation=aggregation, layers=layers, steps=steps, heads=heads,
            storage_options=storage_options,
        )  # fmt: skip
        return combine_runs(run, samples, size, store, again)
    place = aggregation.place or "ref" in aggregation.axes
    chosen = select(run, "r2g", layers, steps, heads, samples, on_reference=place)
    frame = _Frame.of(aggregation, chosen, size)
    cache = open_marginals(run, store, storage_options)
    lazy = [
        da.stack([_lazy_layer(cache, aggregation, chosen, frame, spec, sample) for spec in chosen.layers])
        for sample in chosen.samples
    ]
    return _wrap(da.stack(lazy), run, aggregation, chosen, frame)


@dataclass(frozen=True)
class _Frame:
    """The common form of all layers' results: the length of every axis, and the size of the maps."""

    axes: tuple[str, ...]
    lengths: tuple[int, ...]
    size: Grid | None

    @classmethod
    def of(cls, aggregation: Aggregation, chosen: Selection, size: Grid | None) -> _Frame:
        count = max(len(chosen.heads or range(spec.heads)) for spec in chosen.layers)
        known = {"step": len(chosen.steps), "head": count, "other_head": count}
        known |= {axis: len(labels) for axis, labels in aggregation.labels.items()}
        token = next((axis for axis in aggregation.axes if axis in TOKENS), None)
        if token is not None and size is None:
            grids = [spec.gen_grid if token == "gen" else spec.ref_grid for spec in chosen.layers]
            size = max(grids, key=lambda grid: grid[0] * grid[1])
        lengths = tuple(known.get(axis, -1) for axis in aggregation.axes)
        return cls(aggregation.axes, lengths, size if token is not None else None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths, with (y, x) in the place of a token axis."""
        if self.size is None:
            return self.lengths
        return tuple(
            n
            for axis, length in zip(self.axes, self.lengths, strict=True)
            for n in (self.size if axis in TOKENS else (length,))
        )

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes of `shape`."""
        return tuple(name for axis in self.axes for name in (("y", "x") if axis in TOKENS else (axis,)))

    def fit(self, values: NDArray[Any], aggregation: Aggregation, layer: LayerSpec) -> NDArray[Any]:
        """Bring one layer's result to the common form."""
        own = {"gen": layer.gen, "ref": spatial_tokens(layer)}
        for axis, length, got in zip(self.axes, self.lengths, values.shape, strict=True):
            fits = got <= length if axis in ("head", "other_head") else got == own.get(axis, length)
            if not fits:
                raise AggregationError(
                    f"aggregation {aggregation.name!r}, layer {layer.name!r}: axis {axis!r} of its result",
                    expected=f"length {own.get(axis, length)}",
                    got=f"length {got}",
                    remedy="return all of it, or give labels for an axis of your own",
                )
        values = np.asarray(values, dtype=np.float64)
        if self.size is not None:
            at = next(number for number, axis in enumerate(self.axes) if axis in TOKENS)
            grid = layer.gen_grid if self.axes[at] == "gen" else layer.ref_grid
            last = np.moveaxis(values, at, -1)
            maps = bicubic(last.reshape(-1, *grid), self.size).reshape(*last.shape[:-1], *self.size)
            values = np.moveaxis(maps, (-2, -1), (at, at + 1))
        padded = np.full(self.shape, np.nan, dtype=np.float32 if self.size is not None else np.float64)
        padded[tuple(slice(0, length) for length in values.shape)] = values
        return padded


def _slab(
    cache: MarginalStore,
    layer: LayerSpec,
    sample: str,
    aggregation: Aggregation,
    steps: Sequence[int],
    heads: Sequence[int] | None,
) -> State:
    marginals = cache.load_or_compute(layer, sample) if aggregation.over == "marginals" else None
    return reduce_slab(cache.run, layer, sample, aggregation, steps, heads, marginals)


def _finish(aggregation: Aggregation, states: list[State], layer: LayerSpec, frame: _Frame) -> NDArray[Any]:
    return frame.fit(finalize_states(aggregation, states, layer), aggregation, layer)


def _lazy_layer(
    cache: MarginalStore,
    aggregation: Aggregation,
    chosen: Selection,
    frame: _Frame,
    layer: LayerSpec,
    sample: str,
) -> Any:
    over_marginals = aggregation.over == "marginals"
    parts = [chosen.steps] if over_marginals else slabs(layer, chosen.steps)
    key = tokenize(
        cache.run.run_id, sample, layer.name, chosen.steps, chosen.heads, frame, KERNEL_VERSION, aggregation
    )
    states = [
        dask.delayed(_slab, pure=True)(
            cache, layer, sample, aggregation, part, chosen.heads, dask_key_name=f"slab-{key}-{number}"
        )
        for number, part in enumerate(parts)
    ]
    done = dask.delayed(_finish, pure=True)(aggregation, states, layer, frame, dask_key_name=f"whole-{key}")
    dtype = np.float32 if frame.size is not None else np.float64
    return da.from_delayed(done, shape=frame.shape, dtype=dtype, name=f"aggregate-{key}")


def _wrap(
    values: Any, run: AnyRun, aggregation: Aggregation, chosen: Selection, frame: _Frame
) -> xr.DataArray:
    coords: dict[Hashable, Any] = {
        "sample": np.asarray(chosen.samples, dtype=object),
        "layer": np.asarray([spec.name for spec in chosen.layers], dtype=object),
    }
    heads = chosen.heads or range(max(spec.heads for spec in chosen.layers))
    for axis in frame.axes:
        if axis == "step":
            coords["step"] = list(chosen.steps)
            coords["timestep"] = ("step", [float(run.timesteps[step]) for step in chosen.steps])
        elif axis in ("head", "other_head"):
            coords[axis] = list(heads)
        elif axis in aggregation.labels:
            coords[axis] = np.asarray(list(aggregation.labels[axis]), dtype=object)
    alike = [is_similarity(spec) for spec in chosen.layers]
    attrs = {
        "aggregation": aggregation.name,
        "title": aggregation.words,
        "units": aggregation.units,
        "over": aggregation.over,
        "side": next((axis for axis in frame.axes if axis in TOKENS), ""),
        "kind": "similarity" if all(alike) else "mixed" if any(alike) else "attention",
        "layers": [spec.name for spec in chosen.layers],
        "left_out": list(chosen.left_out),
        "steps": list(chosen.steps),
        "run_id": run.run_id,
    }
    dims = ("sample", "layer", *frame.dims)
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs, name=aggregation.name)
