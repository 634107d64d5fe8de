"""The computations of a study: maps into a Zarr store, scores into tables, some samples at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import polars as pl
import xarray as xr

from i2am.analysis.dask_tasks import run_tasks
from i2am.analysis.events import Listener, StageAdvanced, StageStarted, counter
from i2am.analysis.grids.direction import DIRECTIONS, Direction
from i2am.analysis.grids.selection import has_reference_map
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.maps.question import LEVELS, Level
from i2am.analysis.maps.stored import Collected, variable
from i2am.analysis.maps.write import BlockwiseMaps, write_maps
from i2am.analysis.marginals.quantities import REGION_IMAGE
from i2am.analysis.scores.tables import AGAINST, frame, sample_mask, score_rows
from i2am.storage.errors import NoAnswer
from i2am.storage.reading.run_collection import home_of

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun

TABLE_BLOCK = 8
"""Samples that one task scores, at most: opening the maps costs more than scoring those of a sample."""


def _questions(run: AnyRun, options: StudyOptions) -> Iterator[tuple[Direction, Level, dict[str, Any]]]:
    """Every (direction, level, arguments) of a study."""
    for direction in DIRECTIONS:
        for level in LEVELS:
            extra: dict[str, Any] = {}
            if level == "time":
                extra["time_groups"] = options.time_groups
            if level == "specific":
                if REGION_IMAGE[direction] not in run.images or not any(
                    map(has_reference_map, run.layers.values())
                ):
                    continue
                extra["at"] = REGION_IMAGE[direction]
            yield direction, level, extra


def collect_maps(
    run: AnyRun, names: Sequence[str], options: StudyOptions, path: Path, emit: Listener
) -> Collected:
    """Compute the maps of every level into a new store: a group per direction, a variable per level."""
    absent: list[str] = []
    asked: dict[Direction, dict[str, BlockwiseMaps]] = {}
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
            method="i2am",  # at every level; others stand beside it, see `baselines`
            resize=options.resize,
            store=options.store,
            storage_options=options.storage_options,
            **extra,
        )
        try:
            asked.setdefault(direction, {})[variable(level)] = BlockwiseMaps.resolve(ask, run, names)
        except NoAnswer as error:
            absent.append(f"{direction.upper()}, {level} level: {error}")
    for way, image in AGAINST.items():
        if image not in run.images:
            absent.append(f"IMACS of {way.upper()}: the run has no image {image!r}")
    step = counter(emit, "maps", len(asked))
    for direction, levels in asked.items():
        write_maps(levels, names, path, direction)
        step()
    stored = {
        (direction, str(maps.attrs["level"])): maps
        for direction in asked
        for maps in xr.open_zarr(path, group=direction, consolidated=False).data_vars.values()
    }
    return Collected(path, stored, tuple(names), tuple(absent))


def collect_tables(
    run: AnyRun, collected: Collected, penalty: float, emit: Listener
) -> dict[str, pl.DataFrame]:
    """Score all maps against the run's masks: a table for each level that has maps."""
    names = collected.samples
    emit(StageStarted("tables", len(names)))
    questions = list(collected.maps)
    many = min(TABLE_BLOCK, -(-len(names) // TABLE_BLOCK**2))
    blocks = (names[start : start + many] for start in range(0, len(names), many))
    tasks = (
        dask.delayed(_block_tables, pure=False)(_only(run, block), collected.path, questions, block, penalty)
        for block in blocks
    )
    parts = run_tasks(
        tasks, lambda count: emit(StageAdvanced("tables", min(count * many, len(names)), len(names)))
    )
    return {level: pl.concat(part[level] for part in parts) for level in LEVELS if level in parts[0]}


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
