"""Attribution maps from a stored run: the five levels of I²AM, both directions.

Source: I²AM (ULAM, TLAM, HLAM, LLAM, SRAM). Corrected protocol: densities (1 = uniform attention), heads
averaged within their layer, every layer's map brought to one grid by the paper's bicubic resize, then plain
means over layers. The resize is linear, so the mean of the time maps over equal groups is the unified map,
likewise heads and layers.

- unified: one map a sample. time: one a group of neighbouring steps, which may be uneven. head, layer: one
  each.
- specific: G2R of chosen generated patches, or R2G of chosen reference tokens.
- Layers of a single pooled token have no G2R. Their R2G is a similarity; they are left out where others have
  more to say.

Attributes of the result: direction, level, protocol, units, kind ("attention", "similarity" or "mixed"),
layers, left_out, steps, run_id, all_tokens_placed, and at.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from analysis import region
from analysis.cache import StorePlace, open_cache
from analysis.resize import Grid, bicubic
from analysis.selection import (
    Direction,
    Indices,
    Selection,
    check_direction,
    is_similarity,
    placed,
    select,
    split_steps,
)
from analysis.softmax import KERNEL_VERSION
from analysis.sources import Tokens, tokens_for
from storage.errors import InputError, NoAnswer, UnknownName

if TYPE_CHECKING:
    from storage import LayerSpec, Run

Level = Literal["unified", "time", "head", "layer", "specific"]
LEVELS: tuple[Level, ...] = ("unified", "time", "head", "layer", "specific")
MAX_SIZE = 16384
"""Rows or columns of a map, at most."""

UNITS = "density (1 = uniform attention)"


def attribution_maps(
    run: Run,
    direction: Direction,
    level: Level = "unified",
    layers: Sequence[str] | str | None = None,
    steps: Indices | None = None,
    heads: Indices | None = None,
    samples: Sequence[str] | str | None = None,
    size: Grid | None = None,
    time_groups: int = 5,
    at: region.Region | str | None = None,
    protocol: str = "corrected",
    *,
    store: StorePlace = None,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Attribution maps of a run, lazily; see the module for what the words mean.

    Parameters
    ----------
    run, direction, level
        An open run; "r2g" for maps on the generated image, "g2r" for maps on the reference; one of LEVELS.
    layers, steps, heads, samples
        What to average over or to keep; None for all that can answer.
    size
        (rows, columns) of the maps; None for the largest grid of the selected layers.
    time_groups
        Number of groups at the time level, at most the number of selected steps.
    at
        The region of the specific level: the name of a mask image of the run, or a `Region` in patches of the
        largest grid of the selected layers (of the generated image for "g2r", of the reference for "r2g").
    protocol, store, storage_options
        "corrected"; place of the derived store of marginals, and options for fsspec where it is a URL.

    Returns
    -------
    xarray.DataArray
        (sample, [time | head | layer], y, x), float32 densities, 1 for uniform attention, on dask.

    Raises
    ------
    UnknownName, InputError, EmptyRun
        For names, indices, sizes and regions that do not exist or do not fit the level.
    NoAnswer
        If the geometry has no answer, such as G2R of a pooled token.
    """
    direction = check_direction(direction)
    _check_level(level, at, protocol)
    place = direction == "g2r" or level == "specific"
    chosen = select(run, direction, layers, steps, heads, samples, place=place)
    target = _size(chosen, direction, size)
    groups = _groups(chosen, level, time_groups)
    cache = open_cache(run, store, storage_options)
    tokens = tokens_for(cache, chosen, direction, at)
    plan = (direction, level, groups, target)
    lazy = [
        _lazy_sample(tokens, chosen, sample, plan, tokenize(run.run_id, sample, at))
        for sample in chosen.samples
    ]
    return _wrap(da.stack(lazy), run, chosen, direction, level, groups, at)


def _check_level(level: str, at: region.Region | str | None, protocol: str) -> None:
    if level not in LEVELS:
        raise UnknownName("level", level, LEVELS)
    if protocol != "corrected":
        raise UnknownName("protocol", protocol, ("corrected",))
    if (at is not None) != (level == "specific"):
        raise InputError(
            "at",
            expected="a region at the specific level, and nothing at the others",
            got=f"{'a region' if at is not None else 'nothing'} at level {level!r}",
        )


def _size(chosen: Selection, direction: Direction, size: Grid | None) -> Grid:
    if size is None:
        grids = [spec.gen_grid if direction == "r2g" else spec.ref_grid for spec in chosen.layers]
        return max(grids, key=lambda grid: grid[0] * grid[1])
    values = np.asarray(size)
    if values.shape != (2,) or values.dtype.kind not in "iu" or values.min() < 1 or values.max() > MAX_SIZE:
        raise InputError("size", expected=f"(rows, columns), each from 1 to {MAX_SIZE}", got=repr(size))
    return int(values[0]), int(values[1])


def _groups(chosen: Selection, level: Level, count: int) -> list[tuple[int, ...]]:
    if level == "head":
        counts = {spec.name: spec.heads for spec in chosen.layers}
        if chosen.heads is None and len(set(counts.values())) > 1:
            raise NoAnswer(
                "the head level over layers of different head counts",
                expected="the same number of heads in every layer",
                got=", ".join(f"{name}: {heads}" for name, heads in counts.items()),
                remedy="select layers or heads",
            )
    return split_steps(chosen.steps, count) if level == "time" else [chosen.steps]


def _lazy_sample(
    tokens: Tokens,
    chosen: Selection,
    sample: str,
    plan: tuple[Direction, Level, list[tuple[int, ...]], Grid],
    identity: str,
) -> Any:
    """Maps of one sample as a dask array: a task for each layer, and one to bring them together."""
    direction, level, groups, target = plan
    identity = tokenize(identity, plan, [spec.name for spec in chosen.layers], chosen.heads, KERNEL_VERSION)
    parts = [
        dask.delayed(_layer_maps, pure=True)(
            tokens,
            spec,
            sample,
            (direction, level, groups, target, chosen.heads),
            dask_key_name=f"layer-map-{tokenize(identity, spec.name)}",
        )
        for spec in chosen.layers
    ]
    axis = {
        "time": len(groups),
        "layer": len(chosen.layers),
        "head": len(chosen.heads or range(chosen.layers[0].heads)),
    }
    together = dask.delayed(_together, pure=True)(parts, level, dask_key_name=f"sample-map-{identity}")
    shape = (axis[level], *target) if level in axis else target
    return da.from_delayed(together, shape=shape, dtype=np.float32, name=f"map-{identity}")


def _layer_maps(
    tokens: Tokens,
    spec: LayerSpec,
    sample: str,
    plan: tuple[Direction, Level, list[tuple[int, ...]], Grid, tuple[int, ...] | None],
) -> NDArray[np.float64]:
    """Maps (k, y, x) of one sample and layer at the target size: k time groups, or heads, or 1."""
    direction, level, groups, target, heads = plan
    values = tokens(spec, sample)
    if heads is not None:
        values = values[:, list(heads)]
    if level == "head":
        kept = values[list(groups[0])].mean(axis=0, dtype=np.float64)
    else:
        kept = np.stack([values[list(group)].mean(axis=(0, 1), dtype=np.float64) for group in groups])
    grid = spec.gen_grid if direction == "r2g" else spec.ref_grid
    return bicubic(kept.reshape(-1, *grid), target)


def _together(parts: list[NDArray[np.float64]], level: Level) -> NDArray[np.float32]:
    """Mean over layers, or the layers side by side; float32."""
    if level == "layer":
        return np.concatenate(parts).astype(np.float32)
    mean = np.mean(parts, axis=0)
    return np.asarray(mean if level in ("time", "head") else mean[0], dtype=np.float32)


def _wrap(
    values: Any,
    run: Run,
    chosen: Selection,
    direction: Direction,
    level: Level,
    groups: list[tuple[int, ...]],
    at: region.Region | str | None,
) -> xr.DataArray:
    """Name the axes and say what the numbers are."""
    coords: dict[Hashable, Any] = {"sample": np.asarray(chosen.samples, dtype=object)}
    dims = ["sample", "y", "x"]
    if level in ("time", "head", "layer"):
        dims.insert(1, level)
    if level == "time":
        coords["time"] = np.asarray([f"{group[0]}-{group[-1]}" for group in groups], dtype=object)
        coords["timestep"] = (
            "time",
            [float(np.mean([run.timesteps[step] for step in group])) for group in groups],
        )
    elif level == "head":
        coords["head"] = list(chosen.heads or range(chosen.layers[0].heads))
    elif level == "layer":
        coords["layer"] = np.asarray([spec.name for spec in chosen.layers], dtype=object)
    alike = [is_similarity(spec) for spec in chosen.layers]
    attrs = {
        "direction": direction,
        "level": level,
        "protocol": "corrected",
        "units": UNITS,
        "kind": "similarity" if all(alike) else "mixed" if any(alike) else "attention",
        "layers": [spec.name for spec in chosen.layers],
        "left_out": list(chosen.left_out),
        "steps": list(chosen.steps),
        "run_id": run.run_id,
        "all_tokens_placed": all(placed(spec) == spec.ref for spec in chosen.layers),
    }
    if at is not None:
        attrs["at"] = (
            at if isinstance(at, str) else np.asarray(at).tolist() if np.size(at) <= 64 else "a mask"
        )
    name = f"{direction}_{level}" + (f"_{at}" if isinstance(at, str) else "")
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs, name=name)
