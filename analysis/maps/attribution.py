"""Attribution maps from a stored run: the five levels of I²AM, both directions; METHODS.md has the details.

Source: I²AM (ULAM, TLAM, HLAM, LLAM, SRAM). Levels: unified, one map a sample; time, one for each group of
neighbouring steps; head and layer, one for each; specific, G2R of chosen generated patches or R2G of chosen
reference tokens. Protocols: "corrected", densities (1 = uniform attention); "official", the paper's code.
Methods, of the corrected protocol: "i2am"; "joint", probabilities over all keys, of layers captured with
``lse``; "daam", each patch's probability of the chosen reference tokens; "norm", densities times the norms of
the values through the output projection; "contribution", R2G alone: the norm of what the reference adds to a
patch over that of what it is added to. Attributes of the result: direction, level, protocol, method, resize,
units, kind ("attention", "similarity", "mixed" or "contribution"), layers, left_out, steps, run_id,
all_tokens_placed, at, and why: the reason of a method that was not asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from i2am.analysis.grids import regions, tiled_layers
from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.resize import Grid, Resize
from i2am.analysis.grids.selection import spatial_tokens
from i2am.analysis.maps import official
from i2am.analysis.maps.layer_maps import MapSpec, density_maps
from i2am.analysis.maps.question import Level, Protocol, Question, resolve_question
from i2am.analysis.maps.token_sources import Method, TokenSource, token_source
from i2am.analysis.marginals.store import StorePlace, open_marginals
from i2am.analysis.reduction.softmax import KERNEL_VERSION
from i2am.analysis.several_runs import check_patches_agree, combine_runs
from i2am.storage.format.layer_spec import LayerSpec
from i2am.storage.format.marginals_only import need_attention
from i2am.storage.index_selection import Indices
from i2am.storage.reading.one_reference import one_reference
from i2am.storage.reading.open import Place, open_any
from i2am.storage.reading.run import Run
from i2am.storage.reading.run_collection import Runs

# A picklable callable from layer and sample to maps (k, y, x).
LayerMaps = Callable[["LayerSpec", str], NDArray[np.float64]]
WHY_CONTRIBUTION = (
    "with one pooled reference token its attention weight is 1 whatever the logits are: the i2am map is a "
    "similarity that the model never used, and this is what the reference adds to each patch"
)
CHUNK_BYTES = 2**20  # bytes of maps that one task makes, where all marginals are stored


def attribution_maps(
    run: Place | Sequence[Place],
    direction: Direction,
    level: Level | None = None,
    layers: Sequence[str] | str | None = None,
    steps: Indices | None = None,
    heads: Indices | None = None,
    samples: Sequence[str] | str | None = None,
    size: Grid | None = None,
    time_groups: int = 5,
    at: regions.Region | str | None = None,
    protocol: Protocol = "corrected",
    *,
    method: Method | None = None,
    resize: Resize = "linear",
    at_pixels: regions.Pixels | None = None,
    reference: str | None = None,
    store: StorePlace = None,
    storage_options: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Attribution maps of a run, lazily; the module explains levels, protocols and methods.

    Parameters
    ----------
    run, direction, level
        An open run, its path or URL, or several; "r2g": maps on the generated image, "g2r": on the reference;
        None is "unified", or "specific" where a region is given.
    layers, steps, heads, samples, size, time_groups
        What to average over or to keep, None for all that can answer; (rows, columns), None for the largest
        grid or the official size; groups, at most one a step.
    at, at_pixels
        Region of the specific level: a mask image by name, or a `Region` in patches of the largest grid (of
        the generated image for "g2r", of the reference for "r2g"), or "tokens 3,5" of those without a place,
        such as words; or pixels of that image, one or a list of (x, y) from its upper left corner.
    protocol, method, resize
        "corrected" or "official"; "attention" (or "i2am"), "joint", "daam", "norm" or "contribution", None:
        "contribution" where R2G is a similarity and it was captured, else "attention"; "linear" or "bicubic".
    reference, store, storage_options
        "reference", "reference-1", ... of several references, or "text", None: the first; place of the
        derived store of marginals (a folder for several runs); options, for URLs.

    Returns
    -------
    xarray.DataArray
        (sample, [time | head | layer], y, x), float32, on dask; `attrs["units"]` says what the numbers are.

    Raises
    ------
    UnknownName, InputError, EmptyRun, NoAnswer
        For what does not exist, does not fit the level, or has no answer (G2R of a pooled token).
    """
    opened = one_reference(open_any(run, storage_options), reference)
    at = regions.with_pixels(opened, direction, at, at_pixels)
    asked = (direction, level, (layers, steps, heads), time_groups, at, protocol, method, resize)
    ask = partial(_maps_of_run, asked=asked, storage_options=storage_options)
    if isinstance(opened, Runs):
        maps = check_patches_agree(opened, combine_runs(opened, samples, size, store, ask), at)
    else:
        maps = ask(opened, samples=samples, size=size, store=store)
    return maps if at is None else maps.assign_attrs(at=regions.region_text(at, at_pixels))


def _maps_of_run(
    run: Run,
    samples: Sequence[str] | str | None,
    size: Grid | None,
    store: StorePlace,
    asked: tuple[Any, ...],
    storage_options: Mapping[str, Any] | None,
) -> xr.DataArray:
    question = resolve_question(run, samples, size, *asked)
    make = _layer_maker(run, question, store, storage_options)
    maps = _label_axes(_lazy_maps(make, run, question), run, question)
    chosen = question.method == "contribution" and "contribution" not in asked
    return maps.assign_attrs(why=WHY_CONTRIBUTION) if chosen else maps


def _layer_maker(
    run: Run, question: Question, store: StorePlace, storage_options: Mapping[str, Any] | None
) -> LayerMaps:
    """Choose what makes a layer's maps."""
    is_official, map_spec = question.protocol == "official", question.map_spec
    if is_official and map_spec.direction == "r2g":
        need_attention(run.attrs, str(run.path), "official R2G maps")
        return partial(official.clamped_r2g, run, map_spec)
    source = token_source(
        open_marginals(run, store, storage_options), question.selection, map_spec.direction, question.at,
        method=question.method, nearest=is_official,
    )  # fmt: skip
    return partial(official.summed_g2r if is_official else density_maps, source, map_spec)


def _lazy_maps(make: LayerMaps, run: Run, question: Question) -> da.Array:
    """Maps of all samples as a dask array; the graph is written by hand, as `dask.delayed` took too long."""
    layers, level, samples = question.selection.layers, question.level, question.selection.samples
    map_spec = question.map_spec
    name = f"maps-{tokenize(_identity(run, question))}"
    shape = map_spec.size if question.labels is None else (len(question.labels), *map_spec.size)
    quick = [all(_is_quick(make, layer, sample) for layer in layers) for sample in samples]
    samples_in_task = max(1, CHUNK_BYTES // (4 * math.prod(shape))) if all(quick) else 1
    groups = [samples[start : start + samples_in_task] for start in range(0, len(samples), samples_in_task)]
    tasks: dict[Any, Any] = {}
    for number, group in enumerate(groups):
        key = (name, number, *([0] * len(shape)))
        if quick[number]:
            tasks[key] = (partial(_maps_of_samples, make, layers, group, map_spec), level)
            continue
        parts = [(f"layer-{name}", number, index) for index in range(len(layers))]
        for part, layer in zip(parts, layers, strict=True):
            tasks[part] = (make, layer, group[0])
        tasks[key] = (partial(_merge_layers, layers, map_spec), parts, level)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[])
    chunks = (tuple(len(group) for group in groups), *((length,) for length in shape))
    return da.Array(graph, name, chunks, dtype=np.float32)


def _identity(run: Run, question: Question) -> tuple[str, ...]:
    """Everything that the maps depend on, as text, which is quick to hash."""
    at = question.at
    region = at if isinstance(at, str) or at is None else f"{np.shape(at)}{np.asarray(at).tobytes().hex()}"
    kind = (question.direction, question.level, question.protocol, question.method, str(region))
    return (run.run_id, str(KERNEL_VERSION), *kind, repr(question.selection), repr(question.map_spec))


def _is_quick(make: LayerMaps, layer: LayerSpec, sample: str) -> bool:
    source = make.args[0] if isinstance(make, partial) else None
    return isinstance(source, TokenSource) and source.is_quick(layer, sample)


def _maps_of_samples(
    make: LayerMaps, layers: tuple[LayerSpec, ...], samples: tuple[str, ...], map_spec: MapSpec, level: Level
) -> NDArray[np.float32]:
    return np.concatenate(
        [_merge_layers(layers, map_spec, [make(layer, name) for layer in layers], level) for name in samples]
    )


def _merge_layers(
    layers: tuple[LayerSpec, ...], map_spec: MapSpec, parts: list[NDArray[np.float64]], level: Level
) -> NDArray[np.float32]:
    """Maps (1, [level axis], y, x) of one sample: the mean over layers, or one of each layer."""
    parts = tiled_layers.merge_tiles(parts, layers, map_spec.direction, map_spec.size, map_spec.resize)
    if level == "layer":
        return np.concatenate(parts).astype(np.float32)[None]
    mean = sum(parts[1:], start=parts[0]) / len(parts)
    return np.asarray(mean[None] if level in ("time", "head") else mean, dtype=np.float32)


def _attributes(run: Run, question: Question) -> dict[str, Any]:
    layers = question.selection.layers
    return {
        "direction": question.direction,
        "level": question.level,
        "protocol": question.protocol,
        "method": question.method,
        "resize": question.map_spec.resize,
        "units": question.units,
        **question.selection.attributes(),
        **({"kind": "contribution"} if question.method == "contribution" else {}),
        "run_id": run.run_id,
        # A whole number: netCDF has no truth values.
        "all_tokens_placed": int(all(spatial_tokens(layer) == layer.ref for layer in layers)),
    }


def _label_axes(values: da.Array, run: Run, question: Question) -> xr.DataArray:
    level, at, labels = question.level, question.at, question.labels
    times: tuple[float, ...] = ()
    if level == "time":
        groups = question.map_spec.groups
        times = tuple(float(np.mean([run.timesteps[step] for step in group])) for group in groups)
    coords = _coordinates(question.selection.samples, level, tuple(labels or ()), times)
    dims = ("sample", *(() if labels is None else (level,)), "y", "x")
    kind = question.direction if question.method == "i2am" else f"{question.method}_{question.direction}"
    name = f"{kind}_{level}" + (f"_{at}" if isinstance(at, str) else "")
    maps = xr.DataArray(values, dims=dims, coords=coords, attrs=_attributes(run, question), name=name)
    maps.encoding["chunks"] = (1, *values.shape[1:])  # in a Zarr store, a sample a chunk
    return maps


@lru_cache(maxsize=64)
def _coordinates(
    samples: tuple[str, ...], level: Level, labels: tuple[Any, ...], times: tuple[float, ...]
) -> xr.Coordinates:
    """Coordinates of the axes; cached, because making their indexes takes longer than the maps."""
    coords: dict[Hashable, Any] = {"sample": np.asarray(samples, dtype=object)}
    if labels:
        coords[level] = np.asarray(labels, dtype=None if level == "head" else object)
    if times:
        coords["timestep"] = ("time", list(times))
    return xr.Coordinates(coords)
