"""What a study compares its maps with: DAAM's maps, and the shares of a joint softmax.

DAAM, for the paper's comparison: over all reference tokens, where it is 1 everywhere and says nothing, and
over the object's tokens, where the run knows them. The shares, of layers whose log-sum-exp was stored. Kept
in the maps store, a group METHOD/DIRECTION each, and in one table with the columns of `i2am.analysis.scores.tables`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import xarray as xr

from i2am.analysis.events import Listener, StageAdvanced, StageStarted
from i2am.analysis.grids.direction import Direction
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.maps.question import Level
from i2am.analysis.maps.token_sources import Method
from i2am.analysis.marginals.quantities import REGION_IMAGE
from i2am.analysis.scores.tables import frame, sample_mask, score_rows
from i2am.analysis.study.collect import BLOCK, settled, write_maps
from i2am.storage.errors import NoAnswer

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun

QUESTIONS: tuple[tuple[Method, Direction, Level], ...] = (
    ("daam", "r2g", "unified"),
    ("daam", "r2g", "specific"),
    ("joint", "r2g", "unified"),
    ("joint", "g2r", "unified"),
)


@dataclass(frozen=True)
class Baselines:
    """Rows of every baseline map, and what has no answer."""

    table: pl.DataFrame
    absent: tuple[str, ...]


def collect_baselines(
    run: AnyRun, names: Sequence[str], options: StudyOptions, path: Path, emit: Listener
) -> Baselines:
    """Compute the baselines of a study into its maps store, and score them.

    Parameters
    ----------
    run, names
        Samples to map; none of them damaged.
    options
        Selections, size and penalty. The official protocol has no baselines: then there are none.
    path
        The maps store.
    tell
        Told after each kind of map.
    """
    tables: list[pl.DataFrame] = []
    absent: list[str] = []
    asked = _questions(run, options)
    emit(StageStarted("baselines", len(asked)))
    for number, (method, direction, level) in enumerate(asked, start=1):
        ask = partial(
            attribution_maps,
            run,
            direction,
            level,
            layers=options.layers,
            steps=options.steps,
            heads=options.heads,
            size=options.size,
            at=REGION_IMAGE[direction] if level == "specific" else None,
            method=method,
            store=options.store,
            storage_options=options.storage_options,
        )
        try:
            question, along = settled(ask, run, names)
        except NoAnswer as error:
            absent.append(f"{method}, {direction.upper()}, {level} level: {error}")
            continue
        # The two directions may have different grids.
        group = f"{method}/{direction}"
        write_maps({level: question}, names, path, group, along)
        opened = xr.open_zarr(path, group=group, consolidated=False, chunks=None)[level]
        for start in range(0, len(names), BLOCK):
            rows: list[dict[str, Any]] = []
            for sample in names[start : start + BLOCK]:
                mask = sample_mask(run, direction, sample)
                rows.extend(score_rows(opened.sel(sample=sample), mask, options.penalty))
            tables.append(frame(rows))
        emit(StageAdvanced("baselines", number, len(asked)))
    return Baselines(pl.concat(tables) if tables else frame([]), tuple(absent))


def _questions(run: AnyRun, options: StudyOptions) -> list[tuple[Method, Direction, Level]]:
    """Those of QUESTIONS that this run can be asked."""
    if options.protocol == "official":
        return []
    joint = any(layer.lse for layer in run.layers.values())
    return [
        (method, direction, level)
        for method, direction, level in QUESTIONS
        if (method == "daam" or joint) and (level == "unified" or REGION_IMAGE[direction] in run.images)
    ]
