"""Aggregations of a whole run, lazily: one Dask task for each slab of steps, sample and layer."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from i2am.analysis.grids.resize import Grid, Resize, check_resize, resized
from i2am.analysis.grids.selection import Selection, select, spatial_tokens
from i2am.analysis.marginals.store import MarginalStore, StorePlace, open_marginals
from i2am.analysis.reduction.aggregation import TOKENS, Aggregation, State
from i2am.analysis.reduction.reduce import Reduction, finalize_states, slabs
from i2am.analysis.reduction.softmax import KERNEL_VERSION
from i2am.analysis.several_runs import combine_runs
from i2am.storage.errors import AggregationError, InputError
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.marginals_only import need_attention
from i2am.storage.index_selection import Indices
from i2am.storage.reading.one_reference import one_reference
from i2am.storage.reading.open import Place, open_any
from i2am.storage.reading.run import Run
from i2am.storage.reading.run_collection import Runs


def aggregate(
    run: Place | Sequence[Place],
    aggregation: Aggregation | str,
    layers: Sequence[str] | str | None = None,
    steps: Indices | None = None,
    heads: Indices | None = None,
    samples: Sequence[str] | str | None = None,
    size: Grid | None = None,
    *,
    resize: Resize = "linear",
    reference: str | None = None,
    store: StorePlace = None,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Aggregate the attention of a run, lazily.

    Parameters
    ----------
    run, aggregation
        An open run, its path or URL, or several as one; a declaration, or the name of an installed one, or
        "module:name".
    layers, steps, heads, samples
        What to aggregate; None for all that can answer.
    size, resize
        (rows, columns) of a result that is a map, None for the largest grid of the layers; "linear" or
        "bicubic", how layers are brought to it.
    reference
        "reference", "reference-1", ... of several references, or "text"; None: the first.
    store, storage_options
        Place of the derived store of marginals (a folder for several runs); options, for URLs.

    Returns
    -------
    xarray.DataArray
        (sample, layer, axes of the aggregation), on dask; float64, maps float32.

    Raises
    ------
    UnknownName, InputError, EmptyRun, NoAnswer
        For an aggregation, names and indices that do not exist, or layers without an answer.
    AggregationError, DamagedSample
        When computed: if the aggregation does not do what it declares, or the data is damaged.
    """
    aggregation = _declared(aggregation)
    check_resize(resize)
    opened = one_reference(open_any(run, storage_options), reference)
    if aggregation.over != "marginals":
        need_attention(opened.attrs, str(opened.path), f"aggregation {aggregation.name!r}")
    if isinstance(opened, Runs):
        of_one_run = partial(
            aggregate, aggregation=aggregation, layers=layers, steps=steps, heads=heads, resize=resize,
            storage_options=storage_options,
        )  # fmt: skip
        return combine_runs(opened, samples, size, store, of_one_run)
    on_reference = aggregation.place or "ref" in aggregation.axes
    selection = select(opened, "r2g", layers, steps, heads, samples, on_reference=on_reference)
    return _lazy_result(open_marginals(opened, store, storage_options), aggregation, selection, size, resize)


def _declared(aggregation: object) -> Aggregation:
    """A declaration, by itself or by its name; anything else is refused."""
    if isinstance(aggregation, str):
        from i2am.analysis.aggregations.registry import find

        return find(aggregation)
    if isinstance(aggregation, Aggregation):
        return aggregation
    raise InputError(
        "aggregation",
        expected="an i2am.Aggregation, or the name of one",
        got=repr(aggregation),
        remedy="wrap a function: i2am.Aggregation('name', function)",
    )


def _lazy_result(
    store: MarginalStore, aggregation: Aggregation, selection: Selection, size: Grid | None, resize: Resize
) -> xr.DataArray:
    shape = _ResultShape.of(aggregation, selection, size, resize)
    values = [
        da.stack(
            [_lazy_layer(store, aggregation, selection, shape, layer, name) for layer in selection.layers]
        )
        for name in selection.samples
    ]
    return _label_axes(da.stack(values), store.run, aggregation, selection, shape)


@dataclass(frozen=True)
class _ResultShape:
    """The shape to which the results of all layers are brought."""

    lengths: tuple[tuple[str, int], ...]  # axis and length; of a token axis, "y" and "x"
    token_axis: str | None  # "gen" or "ref", if the result is a map
    size: Grid | None  # (rows, columns) of maps
    resize: Resize

    @classmethod
    def of(
        cls, aggregation: Aggregation, selection: Selection, size: Grid | None, resize: Resize
    ) -> _ResultShape:
        """The longest axes of the selected layers, and their largest grid if no size is given."""
        heads = max(len(selection.heads or range(layer.heads)) for layer in selection.layers)
        known = {"step": len(selection.steps), "head": heads, "other_head": heads}
        known |= {axis: len(labels) for axis, labels in aggregation.labels.items()}
        token_axis = next((axis for axis in aggregation.axes if axis in TOKENS), None)
        if token_axis is None:
            size = None
        elif size is None:
            size = max((_grid(layer, token_axis) for layer in selection.layers), key=math.prod)
        lengths: list[tuple[str, int]] = []
        for axis in aggregation.axes:
            if axis == token_axis and size is not None:
                lengths += [("y", size[0]), ("x", size[1])]
            else:
                lengths.append((axis, known[axis]))
        return cls(tuple(lengths), token_axis, size, resize)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(length for _, length in self.lengths)

    @property
    def dtype(self) -> type[np.floating]:
        return np.float64 if self.size is None else np.float32

    def fit(self, values: NDArray[Any], aggregation: Aggregation, layer: LayerSpec) -> NDArray[Any]:
        """Resize a map, pad missing heads with NaN, and refuse any other length."""
        expected = {"gen": layer.gen, "ref": spatial_tokens(layer), **dict(self.lengths)}
        for axis, got in zip(aggregation.axes, values.shape, strict=True):
            fits = got <= expected[axis] if axis in ("head", "other_head") else got == expected[axis]
            if not fits:
                raise AggregationError(
                    f"aggregation {aggregation.name!r}, layer {layer.name!r}: axis {axis!r} of its result",
                    expected=f"length {expected[axis]}",
                    got=f"length {got}",
                    remedy="return all of it, or give labels for an axis of your own",
                )
        values = np.asarray(values, dtype=np.float64)
        if self.size is not None and self.token_axis is not None:
            at = aggregation.axes.index(self.token_axis)
            last = np.moveaxis(values, at, -1)
            maps = resized(last.reshape(-1, *_grid(layer, self.token_axis)), self.size, self.resize)
            values = np.moveaxis(maps.reshape(*last.shape[:-1], *self.size), (-2, -1), (at, at + 1))
        padded = np.full(self.shape, np.nan, dtype=self.dtype)
        padded[tuple(slice(0, length) for length in values.shape)] = values
        return padded


def _grid(layer: LayerSpec, token_axis: str) -> Grid:
    return layer.gen_grid if token_axis == "gen" else layer.ref_grid


def _reduce(
    store: MarginalStore, reduction: Reduction, steps: Sequence[int], heads: Sequence[int] | None
) -> State:
    over_marginals = reduction.aggregation.over == "marginals"
    marginals = store.load_or_compute(reduction.layer, reduction.sample) if over_marginals else None
    return reduction.slab(steps, heads, marginals)


def _finalize(
    aggregation: Aggregation, states: list[State], layer: LayerSpec, shape: _ResultShape
) -> NDArray[Any]:
    return shape.fit(finalize_states(aggregation, states, layer), aggregation, layer)


def _lazy_layer(
    store: MarginalStore,
    aggregation: Aggregation,
    selection: Selection,
    shape: _ResultShape,
    layer: LayerSpec,
    sample: str,
) -> da.Array:
    steps, heads = selection.steps, selection.heads
    parts = [steps] if aggregation.over == "marginals" else slabs(layer, steps)
    key = tokenize(store.run.run_id, sample, layer.name, steps, heads, shape, KERNEL_VERSION, aggregation)
    reduction = Reduction(store.run, layer, sample, aggregation)
    states = [
        dask.delayed(_reduce, pure=True)(store, reduction, part, heads, dask_key_name=f"slab-{key}-{number}")
        for number, part in enumerate(parts)
    ]
    done = dask.delayed(_finalize, pure=True)(aggregation, states, layer, shape, dask_key_name=f"whole-{key}")
    return da.from_delayed(done, shape=shape.shape, dtype=shape.dtype, name=f"aggregate-{key}")


def _label_axes(
    values: da.Array, run: Run, aggregation: Aggregation, selection: Selection, shape: _ResultShape
) -> xr.DataArray:
    layers = selection.layers
    coords: dict[Hashable, Any] = {
        "sample": np.asarray(selection.samples, dtype=object),
        "layer": np.asarray([layer.name for layer in layers], dtype=object),
    }
    for axis in aggregation.axes:
        if axis == "step":
            coords["step"] = list(selection.steps)
            coords["timestep"] = ("step", [float(run.timesteps[step]) for step in selection.steps])
        elif axis in ("head", "other_head"):
            coords[axis] = list(selection.heads or range(max(layer.heads for layer in layers)))
        elif axis in aggregation.labels:
            coords[axis] = np.asarray(list(aggregation.labels[axis]), dtype=object)
    attrs = {
        "aggregation": aggregation.name,
        "title": aggregation.words,
        "units": aggregation.units,
        "over": aggregation.over,
        "side": shape.token_axis or "",
        **({"resize": shape.resize} if shape.token_axis else {}),
        **selection.attributes(),
        "run_id": run.run_id,
    }
    dims = ("sample", "layer", *(axis for axis, _ in shape.lengths))
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs, name=aggregation.name)
