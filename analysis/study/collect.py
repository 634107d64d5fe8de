"""The computations of a study: maps into a Zarr store, scores into tables.

Each runs on whatever Dask scheduler is active, a bounded number of samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import polars as pl
import xarray as xr

from i2am.analysis.dask_tasks import run_tasks
from i2am.analysis.events import Listener, StageAdvanced, StageStarted
from i2am.analysis.grids.direction import DIRECTIONS, Direction
from i2am.analysis.grids.selection import has_reference_map, select
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.maps.question import LEVELS, Level
from i2am.analysis.maps.stored import Collected, variable
from i2am.analysis.marginals.quantities import REGION_IMAGE
from i2am.analysis.scores.tables import AGAINST, frame, sample_mask, score_rows
from i2am.storage.errors import NoAnswer
from i2am.storage.reading.run_collection import home_of

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun

BLOCK = 64
"""Samples whose maps are computed by one graph."""

TABLE_BLOCK = 8
"""Samples that one task scores, at most: opening the maps costs more than scoring those of a sample."""


def _questions(run: AnyRun, options: StudyOptions) -> Iterator[tuple[Direction, Level, dict[str, Any]]]:
    """Every (direction, level, arguments) of a study."""
    chosen = select(run, "r2g", options.layers, options.steps, options.heads, options.samples)
    for direction in DIRECTIONS:
        for level in LEVELS:
            extra: dict[str, Any] = {}
            if level == "time":
                extra["time_groups"] = min(options.time_groups, len(chosen.steps))
            if level == "specific":
                if REGION_IMAGE[direction] not in run.images or not any(
                    has_reference_map(layer) for layer in run.layers.values()
                ):
                    continue
                extra["at"] = REGION_IMAGE[direction]
            yield direction, level, extra


def collect_maps(
    run: AnyRun, names: Sequence[str], options: StudyOptions, path: Path, emit: Listener
) -> Collected:
    """Compute the maps of every level into a Zarr store: a group per direction, a variable per level.

    Parameters
    ----------
    run, names
        Samples to map; none of them damaged.
    options
        Selections and size.
    path
        The store to make.
    tell
        Told after each group.

    Returns
    -------
    Collected
        The maps, and what has no answer.
    """
    absent: list[str] = []
    asked: dict[Direction, dict[str, Callable[..., xr.DataArray]]] = {}
    along: dict[Direction, dict[str, Any]] = {}
    for direction, level, extra in _questions(run, options):
        ask = partial(
            attribution_maps,
            run,
            direction,
            level,
            layers=options.layers,
            steps=options.steps,
            heads=options.heads,
            # Official G2R maps keep their layers' own grid.
            size=None if (options.protocol, direction) == ("official", "g2r") else options.size,
            protocol=options.protocol,
            store=options.store,
            storage_options=options.storage_options,
            **extra,
        )
        try:
            question, more = settled(ask, run, names)
        except NoAnswer as error:
            absent.append(f"{direction.upper()}, {level} level: {error}")
            continue
        asked.setdefault(direction, {})[variable(level)] = question
        along.setdefault(direction, {}).update(more)
    for way, image in AGAINST.items():
        if image not in run.images:
            absent.append(f"IMACS of {way.upper()}: the run has no image {image!r}")
    emit(StageStarted("maps", len(asked)))
    for number, (direction, levels) in enumerate(asked.items(), start=1):
        write_maps(levels, names, path, direction, along[direction])
        emit(StageAdvanced("maps", number, len(asked)))
    stored = {
        (direction, str(maps.attrs["level"])): maps
        for direction in asked
        for maps in xr.open_zarr(path, group=direction, consolidated=False).data_vars.values()
    }
    return Collected(path, stored, tuple(names), tuple(absent))


def settled(
    ask: Callable[..., xr.DataArray], run: AnyRun, names: Sequence[str]
) -> tuple[Callable[..., xr.DataArray], dict[str, Any]]:
    """Settle what depends on all samples, so that maps can then be made for some of them at a time.

    Parameters
    ----------
    ask
        `attribution_maps` with all arguments but ``samples``.
    run, names
        One run or several as one, and the samples.

    Returns
    -------
    ask, along
        With the size at which runs of different grids meet; and the coordinates along the samples.

    Raises
    ------
    NoAnswer, InputError
        As `attribution_maps`.
    """
    first: dict[int, int] = {}  # one sample of each run says all that is to know
    stands = [first.setdefault(id(home_of(run, name)), at) for at, name in enumerate(names)]
    some = list(first.values())
    maps = ask(samples=[names[at] for at in some])
    place = {at: number for number, at in enumerate(some)}
    along: dict[str, Any] = {"sample": np.asarray(names, dtype=object)}
    for key, coord in maps.coords.items():
        if coord.dims == ("sample",) and key != "sample":
            along[str(key)] = ("sample", coord.values[[place[at] for at in stands]])
        elif key == "timestep":  # of all runs, not of those in the first block
            along[str(key)] = (coord.dims, coord.values)
    if "own_rows" in maps.coords:
        ask = partial(ask, size=(maps.sizes["y"], maps.sizes["x"]))
    return ask, along


def write_maps(
    asked: Mapping[str, Callable[..., xr.DataArray]],
    names: Sequence[str],
    path: Path,
    group: str,
    along: Mapping[str, Any],
) -> None:
    """Compute maps into a group of a store, a block of samples at a time: no graph is as long as the run.

    Parameters
    ----------
    asked
        Variable to `attribution_maps` with all arguments but ``samples``. The group may hold others already.
    names
        The samples.
    path, group
        Where.
    along
        Coordinates along the samples, of `settled`.
    """
    for start in range(0, len(names), BLOCK):
        block = names[start : start + BLOCK]
        maps = xr.Dataset({name: ask(samples=block) for name, ask in asked.items()})
        if start == 0:
            _whole(maps, len(names), along).to_zarr(
                path, group=group, mode="a", zarr_format=3, consolidated=False, compute=False
            )
        own = maps.drop_vars(list(maps.coords))
        own.to_zarr(
            path, group=group, region={"sample": slice(start, start + len(block))}, consolidated=False
        )


def _whole(part: xr.Dataset, count: int, along: Mapping[str, Any]) -> xr.Dataset:
    """A dataset for all samples with the attributes and the other axes of one for some, to be filled."""
    found = {}
    for name, maps in part.data_vars.items():
        shape = (count, *maps.shape[1:])
        coords = {key: value for key, value in maps.coords.items() if "sample" not in value.dims}
        empty = da.zeros(shape, dtype=maps.dtype, chunks=(BLOCK, *shape[1:]))
        found[name] = xr.DataArray(empty, dims=maps.dims, coords=coords, attrs=maps.attrs, name=name)
        found[name].encoding.update(maps.encoding)
    return xr.Dataset(found).assign_coords(along)


def _block_tables(
    run: AnyRun, path: Path, questions: Sequence[tuple[str, str]], names: Sequence[str], penalty: float
) -> dict[str, pl.DataFrame]:
    """Rows of some samples for each level; opens the maps itself, so that a task carries none."""
    opened = {
        name: xr.open_zarr(path, group=name, consolidated=False, chunks=None)
        for name in {direction for direction, _ in questions}
    }
    rows: dict[str, list[dict[str, Any]]] = {level: [] for _, level in questions}
    for sample in names:
        masks = {direction: sample_mask(run, direction, sample) for direction in opened}
        for direction, level in questions:
            maps = opened[direction][variable(level)].sel(sample=sample)
            rows[level].extend(score_rows(maps, masks[direction], penalty))
    return {level: frame(found) for level, found in rows.items()}


def _only(run: AnyRun, names: Sequence[str]) -> AnyRun:
    """The run that holds some samples, where one does: a task need not carry the others."""
    homes = {id(home): home for home in (home_of(run, name) for name in names)}
    return next(iter(homes.values())) if len(homes) == 1 else run


def collect_tables(
    run: AnyRun, collected: Collected, options: StudyOptions, emit: Listener
) -> dict[str, pl.DataFrame]:
    """Score all maps.

    Parameters
    ----------
    run
        For the masks.
    collected
        The maps.
    options
        Its penalty.
    tell
        Told how many samples are done.

    Returns
    -------
    dict
        A table for each level that has maps.
    """
    names = collected.samples
    emit(StageStarted("tables", len(names)))
    questions = list(collected.maps)
    many = min(TABLE_BLOCK, -(-len(names) // TABLE_BLOCK**2))
    tasks = (
        dask.delayed(_block_tables, pure=False)(
            _only(run, names[start : start + many]),
            collected.path,
            questions,
            names[start : start + many],
            options.penalty,
        )
        for start in range(0, len(names), many)
    )

    def done(count: int) -> None:
        """Tell how many samples that makes."""
        emit(StageAdvanced("tables", min(count * many, len(names)), len(names)))

    parts = run_tasks(tasks, done)
    return {level: pl.concat(part[level] for part in parts) for level in LEVELS if level in parts[0]}
