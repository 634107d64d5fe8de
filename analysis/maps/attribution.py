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

Official protocol: the paper's own arithmetic, `i2am.analysis.maps.official`, over the layers of
`i2am.analysis.maps.official_layers`. It has no R2G at the specific level, and takes a mask to a layer's grid by the
nearest pixel.

Methods other than I²AM's own, on the same axes (corrected protocol only):

- joint, for layers of a joint softmax captured with ``lse``: probabilities over all keys. R2G is the share
  of each generated patch's attention that goes to the reference (specific level: to the chosen tokens); G2R
  is not brought to 1 over the reference, and its mean is that share.
- daam: each generated patch's probability of the chosen reference tokens (specific level), the baseline of
  the paper's comparison; over all tokens it is 1 everywhere. `i2am.analysis.aggregations.daam` has one map for each token.

Attributes of the result: direction, level, protocol, method, units, kind ("attention", "similarity" or
"mixed"), layers, left_out, steps, run_id, all_tokens_placed, and at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from i2am.analysis.grids import regions, tiled_layers
from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.resize import Grid
from i2am.analysis.grids.selection import is_similarity, placed
from i2am.analysis.maps import official
from i2am.analysis.maps.layer_maps import Plan, density_maps
from i2am.analysis.maps.question import Level, Protocol, Question, ask
from i2am.analysis.maps.token_sources import Constant, Method, Stored, tokens_for
from i2am.analysis.marginals.store import StorePlace, open_cache
from i2am.analysis.reduction.softmax import KERNEL_VERSION
from i2am.analysis.several_runs import over_runs, own_grid
from i2am.storage.errors import InputError
from i2am.storage.format.marginals_only import need_attention
from i2am.storage.index_selection import Indices
from i2am.storage.reading.run_collection import Runs

if TYPE_CHECKING:
    from i2am.storage.format.layer_spec import LayerSpec
    from i2am.storage.reading.run import Run
    from i2am.storage.reading.run_collection import AnyRun

LayerMaps = Callable[["LayerSpec", str], NDArray[np.float64]]
"""(layer, sample) to its maps (k, y, x); picklable, so that any Dask scheduler can carry it."""

CHUNK_BYTES = 2**20
"""Maps that one task makes, where making them costs next to nothing."""


def attribution_maps(
    run: AnyRun,
    direction: Direction,
    level: Level = "unified",
    layers: Sequence[str] | str | None = None,
    steps: Indices | None = None,
    heads: Indices | None = None,
    samples: Sequence[str] | str | None = None,
    size: Grid | None = None,
    time_groups: int = 5,
    at: regions.Region | str | None = None,
    protocol: Protocol = "corrected",
    *,
    method: Method = "i2am",
    store: StorePlace = None,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Attribution maps of a run, lazily; see the module for what the words mean.

    Parameters
    ----------
    run, direction, level
        A run, or several as one; "r2g": maps on the generated image, "g2r": on the reference; one of LEVELS.
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
    method
        "i2am", "joint" or "daam".
    store, storage_options
        Place of the derived store of marginals (a folder for those of several runs); options, if it is a URL.

    Returns
    -------
    xarray.DataArray
        (sample, [time | head | layer], y, x), float32, on dask: densities, 1 for uniform attention; or
        official values, from 0 to the number of steps; or shares, 0 to 1 (`attrs["units"]`).

    Raises
    ------
    UnknownName, InputError, EmptyRun, NoAnswer
        For what does not exist, does not fit the level, or has no answer, such as G2R of a pooled token.
    """
    if isinstance(run, Runs):
        again = partial(
            attribution_maps, direction=direction, level=level, layers=layers, steps=steps, heads=heads,
            time_groups=time_groups, at=at, protocol=protocol, method=method, storage_options=storage_options,
        )  # fmt: skip
        return _one_grid(run, over_runs(run, samples, size, store, again), at)
    question = ask(
        run, direction, level, (layers, steps, heads, samples), size, time_groups, at, protocol, method
    )
    make = _maker(run, question, (store, storage_options))
    return _wrap(_lazy(make, run, question), run, question)


def _one_grid(runs: Runs, maps: xr.DataArray, at: regions.Region | str | None) -> xr.DataArray:
    """Refuse patches counted on grids that differ: they would be other places in other runs."""
    grids = {own_grid(member, maps.attrs, other=True) for member in runs.members}
    if at is not None and len(grids) > 1 and not (isinstance(at, str) or regions.is_mask(at)):
        raise InputError(
            "at",
            expected="the name of a mask image, or a mask: the runs' grids differ, and so do their patches",
            got=f"patches, on {len(grids)} grids",
            remedy="name a mask, or ask each run by itself",
        )
    return maps


def _maker(run: Run, question: Question, place: tuple[StorePlace, Mapping[str, Any] | None]) -> LayerMaps:
    """Choose what makes a layer's maps; official R2G clamps each token, so marginals do not serve."""
    old, plan = question.protocol == "official", question.plan
    if old and plan.direction == "r2g":
        need_attention(run.attrs, str(run.path), "official R2G maps")
        return partial(official.clamped_r2g, run, plan)
    cache = open_cache(run, *place)
    tokens = tokens_for(
        cache, question.chosen, plan.direction, question.at, method=question.method, nearest=old
    )
    return partial(official.summed_g2r if old else density_maps, tokens, plan)


def _lazy(make: LayerMaps, run: Run, question: Question) -> Any:
    """Maps of all samples as a dask array.

    A task for each layer of a sample, and one to bring them together; or one task for some samples where all
    marginals are there: more tasks would then cost more than their work. The graph is written out by hand:
    dask's `delayed` took longer than the maps.
    """
    layers, level, samples = question.chosen.layers, question.level, question.chosen.samples
    name = f"maps-{tokenize(_identity(run, question))}"
    shape = question.plan.size if question.labels is None else (len(question.labels), *question.plan.size)
    stored = [all(_is_stored(make, spec, sample) for spec in layers) for sample in samples]
    many = max(1, CHUNK_BYTES // (4 * math.prod(shape))) if all(stored) else 1
    groups = [samples[start : start + many] for start in range(0, len(samples), many)]
    tasks: dict[Any, Any] = {}
    for number, group in enumerate(groups):
        key = (name, number, *([0] * len(shape)))
        if stored[number]:
            tasks[key] = (partial(_samples, make, layers, group, question.plan), level)
            continue
        parts = [(f"layer-{name}", number, place) for place in range(len(layers))]
        for part, spec in zip(parts, layers, strict=True):
            tasks[part] = (make, spec, group[0])
        tasks[key] = (partial(_together, layers, question.plan), parts, level)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[])
    chunks = (tuple(len(group) for group in groups), *((length,) for length in shape))
    return da.Array(graph, name, chunks, dtype=np.float32)


def _identity(run: Run, question: Question) -> tuple[str, ...]:
    """Everything that the maps depend on, in words: quick to hash."""
    at = question.at
    region = at if isinstance(at, str) or at is None else f"{np.shape(at)}{np.asarray(at).tobytes().hex()}"
    kind = (question.direction, question.level, question.protocol, question.method)
    return (run.run_id, str(KERNEL_VERSION), *kind, str(region), repr(question.chosen), repr(question.plan))


def _is_stored(make: LayerMaps, spec: LayerSpec, sample: str) -> bool:
    tokens = make.args[0] if isinstance(make, partial) else None
    return isinstance(tokens, Constant) or (isinstance(tokens, Stored) and tokens.likely(spec, sample))


def _samples(
    make: LayerMaps, layers: tuple[LayerSpec, ...], samples: tuple[str, ...], plan: Plan, level: Level
) -> NDArray[np.float32]:
    each = [_together(layers, plan, [make(spec, sample) for spec in layers], level) for sample in samples]
    return np.concatenate(each)


def _together(
    layers: tuple[LayerSpec, ...], plan: Plan, parts: list[NDArray[np.float64]], level: Level
) -> NDArray[np.float32]:
    """Mean over layers, or the layers side by side; float32, with an axis of one sample in front."""
    parts = tiled_layers.together(parts, layers, plan.direction, plan.size)
    if level == "layer":
        return np.concatenate(parts).astype(np.float32)[None]
    mean = sum(parts[1:], start=parts[0]) / len(parts)
    return np.asarray(mean[None] if level in ("time", "head") else mean, dtype=np.float32)


def _attributes(run: Run, question: Question) -> dict[str, Any]:
    """What the numbers are, and what they were made from."""
    layers = question.chosen.layers
    alike = [is_similarity(spec) for spec in layers]
    found = {
        "direction": question.direction,
        "level": question.level,
        "protocol": question.protocol,
        "method": question.method,
        "units": question.units,
        "kind": "similarity" if all(alike) else "mixed" if any(alike) else "attention",
        "layers": [spec.name for spec in layers],
        "left_out": list(question.chosen.left_out),
        "steps": list(question.chosen.steps),
        "run_id": run.run_id,
        "all_tokens_placed": all(placed(spec) == spec.ref for spec in layers),
    }
    at = question.at
    if at is not None:
        small = np.size(at) <= 64
        found["at"] = at if isinstance(at, str) else np.asarray(at).tolist() if small else "a mask"
    return found


def _wrap(values: Any, run: Run, question: Question) -> xr.DataArray:
    """Name the axes."""
    level, at, labels = question.level, question.at, question.labels
    times: tuple[float, ...] = ()
    if level == "time":
        groups = question.plan.groups
        times = tuple(float(np.mean([run.timesteps[step] for step in group])) for group in groups)
    coords = _coordinates(question.chosen.samples, level, tuple(labels or ()), times)
    dims = ("sample", *(() if labels is None else (level,)), "y", "x")
    way = question.direction if question.method == "i2am" else f"{question.method}_{question.direction}"
    name = f"{way}_{level}" + (f"_{at}" if isinstance(at, str) else "")
    found = xr.DataArray(values, dims=dims, coords=coords, attrs=_attributes(run, question), name=name)
    found.encoding["chunks"] = (1, *values.shape[1:])  # in a Zarr store, a sample a chunk
    return found


@lru_cache(maxsize=64)
def _coordinates(
    samples: tuple[str, ...], level: Level, labels: tuple[Any, ...], times: tuple[float, ...]
) -> xr.Coordinates:
    """Coordinates of the axes; kept, since making their indexes takes longer than the maps do."""
    coords: dict[Hashable, Any] = {"sample": np.asarray(samples, dtype=object)}
    if labels:
        coords[level] = np.asarray(labels, dtype=None if level == "head" else object)
    if times:
        coords["timestep"] = ("time", list(times))
    return xr.Coordinates(coords)
