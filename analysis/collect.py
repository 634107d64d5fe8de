"""The computations of a study: maps into a Zarr store, scores into tables.

Each runs on whatever Dask scheduler is active, a bounded number of samples at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import NDArray

from analysis.events import Listener, StageAdvanced, StageStarted
from analysis.maps import attribution_maps
from analysis.marginals import FOCUS
from analysis.question import LEVELS, Level
from analysis.region import image_mask, sample_image
from analysis.selection import DIRECTIONS, Direction, has_place, select
from analysis.tables import AGAINST, frame, score_rows
from analysis.tasks import run_tasks
from storage.errors import NoAnswer
from storage.runs import home_of

if TYPE_CHECKING:
    from analysis.study import StudyOptions
    from storage import AnyRun


@dataclass(frozen=True)
class Collected:
    """The maps of a study.

    Attributes
    ----------
    path
        The maps store.
    maps
        (direction, level) to maps (sample, [level axis], y, x), read lazily from the store.
    samples
        Ids, in order.
    absent
        What could not be computed, and why, one line each.
    """

    path: Path
    maps: dict[tuple[Direction, str], xr.DataArray]
    samples: tuple[str, ...]
    absent: tuple[str, ...]


def _questions(run: AnyRun, options: StudyOptions) -> Iterator[tuple[Direction, Level, dict[str, Any]]]:
    """Every (direction, level, arguments) of a study."""
    chosen = select(run, "r2g", options.layers, options.steps, options.heads, options.samples)
    for direction in DIRECTIONS:
        for level in LEVELS:
            extra: dict[str, Any] = {}
            if level == "time":
                extra["time_groups"] = min(options.time_groups, len(chosen.steps))
            if level == "specific":
                if FOCUS[direction] not in run.images or not any(
                    has_place(layer) for layer in run.layers.values()
                ):
                    continue
                extra["at"] = FOCUS[direction]
            yield direction, level, extra


def collect_maps(
    run: AnyRun, names: Sequence[str], options: StudyOptions, path: Path, tell: Listener
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
    found: dict[Direction, dict[str, xr.DataArray]] = {}
    for direction, level, extra in _questions(run, options):
        try:
            maps = attribution_maps(
                run,
                direction,
                level,
                layers=options.layers,
                steps=options.steps,
                heads=options.heads,
                samples=names,
                # Official G2R maps keep their layers' own grid.
                size=None if (options.protocol, direction) == ("official", "g2r") else options.size,
                protocol=options.protocol,
                store=options.store,
                storage_options=options.storage_options,
                **extra,
            )
        except NoAnswer as error:
            absent.append(f"{direction.upper()}, {level} level: {error}")
            continue
        found.setdefault(direction, {})[level] = maps
    for way, image in AGAINST.items():
        if image not in run.images:
            absent.append(f"IMACS of {way.upper()}: the run has no image {image!r}")
    tell(StageStarted("maps", len(found)))
    for number, (direction, levels) in enumerate(found.items(), start=1):
        named = {variable(level): maps for level, maps in levels.items()}
        xr.Dataset(named).to_zarr(path, group=direction, mode="w", zarr_format=3, consolidated=False)
        tell(StageAdvanced("maps", number, len(found)))
    stored = {
        (direction, str(maps.attrs["level"])): maps
        for direction in found
        for maps in xr.open_zarr(path, group=direction, consolidated=False).data_vars.values()
    }
    return Collected(path, stored, tuple(names), tuple(absent))


def sample_mask(run: AnyRun, direction: str, sample: str) -> NDArray[np.bool_] | None:
    """Mask [y, x] that a direction's maps of a sample are scored against, or None where it has none."""
    pixels = sample_image(run, AGAINST[direction], sample)
    return None if pixels is None else image_mask(pixels)


def variable(level: str) -> str:
    """Name of a level's maps in the maps store: a variable may not be called as its own axis."""
    return f"by_{level}" if level in ("time", "head", "layer") else level


def _sample_rows(
    run: AnyRun, path: Path, questions: Sequence[tuple[str, str]], sample: str, penalty: float
) -> list[list[dict[str, Any]]]:
    """Rows of one sample for each (direction, level); opens the maps itself, so that a task carries none."""
    opened = {name: xr.open_zarr(path, group=name, consolidated=False, chunks=None) for name, _ in questions}
    masks = {direction: sample_mask(run, direction, sample) for direction in opened}
    return [
        score_rows(opened[direction][variable(level)].sel(sample=sample), masks[direction], penalty)
        for direction, level in questions
    ]


def collect_tables(
    run: AnyRun, collected: Collected, options: StudyOptions, tell: Listener
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
        Told after each sample.

    Returns
    -------
    dict
        A table for each level that has maps.
    """
    tell(StageStarted("tables", len(collected.samples)))
    questions = list(collected.maps)
    rows: dict[str, list[dict[str, Any]]] = {level: [] for level in LEVELS}
    tasks = (
        dask.delayed(_sample_rows, pure=False)(
            home_of(run, name), collected.path, questions, name, options.penalty
        )
        for name in collected.samples
    )
    told = len(collected.samples)
    for per_level in run_tasks(tasks, lambda done: tell(StageAdvanced("tables", done, told))):
        for (_, level), scored in zip(questions, per_level, strict=True):
            rows[level].extend(scored)
    return {level: frame(scored) for level, scored in rows.items() if scored}
