"""What a study compares its maps with: DAAM's, shares of a joint softmax, norms of values, contributions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import xarray as xr

from i2am.analysis.events import Listener, StageAdvanced, StageStarted
from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.selection import has_reference_map
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.maps.question import Level
from i2am.analysis.maps.token_sources import Method
from i2am.analysis.maps.write import BLOCK, BlockwiseMaps, write_maps
from i2am.analysis.marginals.quantities import REGION_IMAGE
from i2am.analysis.scores.tables import frame, sample_mask, score_rows
from i2am.storage.errors import NoAnswer

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun

QUESTIONS: tuple[tuple[Method, Direction, Level], ...] = (
    ("daam", "r2g", "unified"),
    ("daam", "r2g", "specific"),
    ("joint", "r2g", "unified"),
    ("joint", "g2r", "unified"),
    ("norm", "r2g", "unified"),
    ("norm", "g2r", "unified"),
    ("norm", "g2r", "specific"),
    ("contribution", "r2g", "unified"),
)


def collect_baselines(
    run: AnyRun, names: Sequence[str], options: StudyOptions, path: Path, emit: Listener
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Compute the baselines into a study's maps store; return their scores, and what has no answer."""
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
            resize=options.resize,
            at=REGION_IMAGE[direction] if level == "specific" else None,
            method=method,
            store=options.store,
            storage_options=options.storage_options,
        )
        try:
            maps = BlockwiseMaps.resolve(ask, run, names)
        except NoAnswer as error:
            absent.append(f"{method}, {direction.upper()}, {level} level: {error}")
            continue
        # The two directions may have different grids.
        group = f"{method}/{direction}"
        write_maps({level: maps}, names, path, group)
        opened = xr.open_zarr(path, group=group, consolidated=False, chunks=None)[level]
        for start in range(0, len(names), BLOCK):
            rows: list[dict[str, Any]] = []
            for sample in names[start : start + BLOCK]:
                mask = sample_mask(run, direction, sample)
                rows.extend(score_rows(opened.sel(sample=sample), mask, options.penalty))
            tables.append(frame(rows))
        emit(StageAdvanced("baselines", number, len(asked)))
    return pl.concat(tables) if tables else frame([]), tuple(absent)


def _questions(run: AnyRun, options: StudyOptions) -> list[tuple[Method, Direction, Level]]:
    """Those of QUESTIONS that this run can be asked; the official protocol has no baselines."""
    if options.protocol == "official":
        return []
    layers = run.layers.values()
    able = {
        "daam": True,
        "joint": any(layer.lse for layer in layers),
        "norm": any(layer.value_norm and has_reference_map(layer) for layer in layers),
        "contribution": any(layer.contribution for layer in layers),
    }
    return [
        (method, direction, level)
        for method, direction, level in QUESTIONS
        if able[method] and (level == "unified" or REGION_IMAGE[direction] in run.images)
    ]
