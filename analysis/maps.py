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

Official protocol: the paper's own arithmetic, `analysis.official`, over the layers of
`analysis.official_layers`. It has no R2G at the specific level, and takes a mask to a layer's grid by the
nearest pixel.

Attributes of the result: direction, level, protocol, units, kind ("attention", "similarity" or "mixed"),
layers, left_out, steps, run_id, all_tokens_placed, and at.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from analysis import official, region
from analysis.cache import StorePlace, open_cache
from analysis.layer_maps import Plan, density_maps
from analysis.official_layers import official_selection, official_size
from analysis.resize import Grid
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
from analysis.sources import tokens_for
from storage.errors import InputError, NoAnswer, UnknownName

if TYPE_CHECKING:
    from storage import LayerSpec, Run

Level = Literal["unified", "time", "head", "layer", "specific"]
LEVELS: tuple[Level, ...] = ("unified", "time", "head", "layer", "specific")
Protocol = Literal["corrected", "official"]
PROTOCOLS: tuple[Protocol, ...] = ("corrected", "official")
MAX_SIZE = 16384
"""Rows or columns of a map, at most."""

UNITS: Mapping[str, str] = {"corrected": "density (1 = uniform attention)", "official": official.UNITS}

LayerMaps = Callable[["LayerSpec", str], NDArray[np.float64]]
"""(layer, sample) to its maps (k, y, x); picklable, so that any Dask scheduler can carry it."""


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
    protocol: Protocol = "corrected",
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
        (rows, columns); None for the largest grid of the layers, or what the official code has.
    time_groups
        Number of groups at the time level, at most the number of selected steps.
    at
        The region of the specific level: the name of a mask image of the run, or a `Region` in patches of the
        largest grid of the selected layers (of the generated image for "g2r", of the reference for "r2g").
    protocol
        "corrected" or "official".
    store, storage_options
        Place of the derived store of marginals, and options for fsspec where it is a URL.

    Returns
    -------
    xarray.DataArray
        (sample, [time | head | layer], y, x), float32, on dask: densities, 1 for uniform attention; or
        official values, from 0 to the number of steps.

    Raises
    ------
    UnknownName, InputError, EmptyRun
        For names, indices, sizes and regions that do not exist or do not fit the level.
    NoAnswer
        If the geometry has no answer, such as G2R of a pooled token.
    """
    direction = check_direction(direction)
    _check(direction, level, at, protocol)
    asked = (layers, steps, heads, samples)
    chosen, target = _scope(run, direction, level, asked, _checked_size(size), protocol)
    groups = _groups(chosen, level, time_groups)
    plan = Plan(direction, tuple(groups), target, chosen.heads, level == "head")
    make = _maker(run, chosen, plan, at, protocol, (store, storage_options))
    identity = tokenize(run.run_id, at, protocol)
    lazy = [_lazy_sample(make, chosen, sample, level, plan, identity) for sample in chosen.samples]
    attrs = _attributes(run, chosen, direction, level, protocol)
    return _wrap(da.stack(lazy), run, chosen, groups, at, attrs)


def _scope(
    run: Run,
    direction: Direction,
    level: Level,
    asked: tuple[Any, ...],
    size: Grid | None,
    protocol: Protocol,
) -> tuple[Selection, Grid]:
    """Resolve what is asked about, (layers, steps, heads, samples), and the size of its maps."""
    if protocol == "official":
        chosen = official_selection(run, direction, *asked)
        return chosen, official_size(chosen, direction, size)
    chosen = select(run, direction, *asked, place=direction == "g2r" or level == "specific")
    return chosen, size or _largest_grid(chosen, direction)


def _maker(
    run: Run,
    chosen: Selection,
    plan: Plan,
    at: region.Region | str | None,
    protocol: Protocol,
    place: tuple[StorePlace, Mapping[str, Any] | None],
) -> LayerMaps:
    """Choose what makes a layer's maps; official R2G clamps each token, so marginals do not serve."""
    if protocol == "official" and plan.direction == "r2g":
        return partial(official.clamped_r2g, run, plan)
    tokens = tokens_for(open_cache(run, *place), chosen, plan.direction, at, nearest=protocol == "official")
    return partial(official.summed_g2r if protocol == "official" else density_maps, tokens, plan)


def _check(direction: Direction, level: str, at: region.Region | str | None, protocol: str) -> None:
    if level not in LEVELS:
        raise UnknownName("level", level, LEVELS)
    if protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, PROTOCOLS)
    if (at is not None) != (level == "specific"):
        raise InputError(
            "at",
            expected="a region at the specific level, and nothing at the others",
            got=f"{'a region' if at is not None else 'nothing'} at level {level!r}",
        )
    if protocol == "official" and (direction, level) == ("r2g", "specific"):
        raise NoAnswer(
            "official r2g at the specific level",
            expected="g2r: the official code has no specific map on the generated image",
            got="r2g",
            remedy="use the corrected protocol",
        )


def _checked_size(size: Grid | None) -> Grid | None:
    if size is None:
        return None
    values = np.asarray(size)
    if values.shape != (2,) or values.dtype.kind not in "iu" or values.min() < 1 or values.max() > MAX_SIZE:
        raise InputError("size", expected=f"(rows, columns), each from 1 to {MAX_SIZE}", got=repr(size))
    return int(values[0]), int(values[1])


def _largest_grid(chosen: Selection, direction: Direction) -> Grid:
    grids = [spec.gen_grid if direction == "r2g" else spec.ref_grid for spec in chosen.layers]
    return max(grids, key=lambda grid: grid[0] * grid[1])


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
    make: LayerMaps, chosen: Selection, sample: str, level: Level, plan: Plan, identity: str
) -> Any:
    """Maps of one sample as a dask array: a task for each layer, and one to bring them together."""
    identity = tokenize(identity, sample, level, plan, [spec.name for spec in chosen.layers], KERNEL_VERSION)
    parts = [
        dask.delayed(make, pure=True)(
            spec, sample, dask_key_name=f"layer-map-{tokenize(identity, spec.name)}"
        )
        for spec in chosen.layers
    ]
    axis = {
        "time": len(plan.groups),
        "layer": len(chosen.layers),
        "head": len(chosen.heads or range(chosen.layers[0].heads)),
    }
    together = dask.delayed(_together, pure=True)(parts, level, dask_key_name=f"sample-map-{identity}")
    shape = (axis[level], *plan.size) if level in axis else plan.size
    return da.from_delayed(together, shape=shape, dtype=np.float32, name=f"map-{identity}")


def _together(parts: list[NDArray[np.float64]], level: Level) -> NDArray[np.float32]:
    """Mean over layers, or the layers side by side; float32."""
    if level == "layer":
        return np.concatenate(parts).astype(np.float32)
    mean = np.mean(parts, axis=0)
    return np.asarray(mean if level in ("time", "head") else mean[0], dtype=np.float32)


def _attributes(
    run: Run, chosen: Selection, direction: Direction, level: Level, protocol: Protocol
) -> dict[str, Any]:
    """What the numbers are, and what they were made from."""
    alike = [is_similarity(spec) for spec in chosen.layers]
    return {
        "direction": direction,
        "level": level,
        "protocol": protocol,
        "units": UNITS[protocol],
        "kind": "similarity" if all(alike) else "mixed" if any(alike) else "attention",
        "layers": [spec.name for spec in chosen.layers],
        "left_out": list(chosen.left_out),
        "steps": list(chosen.steps),
        "run_id": run.run_id,
        "all_tokens_placed": all(placed(spec) == spec.ref for spec in chosen.layers),
    }


def _wrap(
    values: Any,
    run: Run,
    chosen: Selection,
    groups: list[tuple[int, ...]],
    at: region.Region | str | None,
    attrs: dict[str, Any],
) -> xr.DataArray:
    """Name the axes."""
    level = attrs["level"]
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
    if at is not None:
        attrs["at"] = (
            at if isinstance(at, str) else np.asarray(at).tolist() if np.size(at) <= 64 else "a mask"
        )
    name = f"{attrs['direction']}_{level}" + (f"_{at}" if isinstance(at, str) else "")
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs, name=name)
