"""Boxes from maps, the paper's detection experiment.

Source: I²AM, object detection; the rules are in `box_rules.py`, the scores in `detection_scores.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import ArrayLike

from i2am.analysis.experiments.box_rules import (
    RULES,
    Rule,
    Setting,
    contrast,
    corrected_box,
    official_box,
    peak,
    reads_finest,
    setting,
    shown_map,
)
from i2am.analysis.experiments.boxes import BOX_SCHEMA, Box
from i2am.analysis.grids.direction import Direction, check_direction
from i2am.analysis.grids.resize import Grid
from i2am.storage.errors import InputError, ShapeMismatch, UnknownName

if TYPE_CHECKING:
    from i2am.storage.format.layer_spec import LayerSpec


def detect(
    maps: xr.DataArray | ArrayLike,
    rule: Rule = "corrected",
    direction: str | None = None,
    size: Grid | None = None,
) -> pl.DataFrame:
    """Draw a box around what each map names.

    Parameters
    ----------
    maps
        (sample, y, x), as `attribution_maps` returns them at the unified and specific levels; or a plain
        array [sample, y, x], whose samples are then "0", "1", ... The corrected rule was chosen on maps of
        the layers with the finest generated grid: ask for those with ``layers=`` where layers differ.
    rule
        "corrected", chosen on scenes that no evaluation uses, or "official", the paper's chain, which inverts
        R2G: give it maps of the official protocol.
    direction
        "r2g" or "g2r"; read from the attributes of a DataArray, to be given for a plain array.
    size
        (rows, columns) of the image that the boxes are for; None: they are counted in cells of the maps.

    Returns
    -------
    polars.DataFrame
        Columns sample, x, y (upper left corner), width, height (pixels, or cells) and score (0 to 1: how far
        the map is higher inside; 0.5 says not at all). A sample without a box has no row: official only.

    Raises
    ------
    UnknownName, InputError, ShapeMismatch, MissingDependency
        For an unknown rule or direction, maps with an axis of a level or with values that are not finite, and
        without OpenCV.
    """
    return find_boxes(maps, rule, direction, size)[0]


def find_boxes(
    maps: xr.DataArray | ArrayLike,
    rule: Rule = "corrected",
    direction: str | None = None,
    size: Grid | None = None,
    how: Setting | None = None,
) -> tuple[pl.DataFrame, dict[str, tuple[float, float]]]:
    """(boxes as `detect`, peaks (x, y) of all samples in the same pixels); `how` replaces the setting."""
    if rule not in RULES:
        raise UnknownName("rule", rule, RULES)
    named, way = _labelled(maps, direction)
    rows: list[dict[str, Any]] = []
    peaks: dict[str, tuple[float, float]] = {}
    for number, sample in enumerate(str(name) for name in named["sample"].values):
        one = named.isel(sample=number)
        values = np.asarray(one, dtype=np.float64)
        if not np.isfinite(values).all():
            raise InputError(
                f"the map of sample {sample!r}",
                expected="finite numbers",
                got="NaN or infinity",
                remedy="leave this sample out: its region is empty, or its logits overflowed",
            )
        target = size or (values.shape[0], values.shape[1])
        row, column = peak(values, rule, way)
        cell = Box(column + 0.5, row + 0.5, 0, 0).scaled((values.shape[0], values.shape[1]), target)
        peaks[sample] = (cell.x, cell.y)
        found = (
            official_box(values, way) if rule == "official" else corrected_box(values, how or setting(way))
        )
        if found is not None:
            box, grid = found
            read = shown_map(values, way) if rule == "official" else values
            score = contrast(read, box.scaled(grid, (values.shape[0], values.shape[1])))
            rows.append({"sample": sample, **box.scaled(grid, target)._asdict(), "score": score})
    return pl.DataFrame(rows, schema=dict(BOX_SCHEMA)), peaks


def layers_of_rule(rule: str, layers: Mapping[str, LayerSpec]) -> list[str] | None:
    """Layers whose maps a rule reads, None for all: the corrected one reads the finest generated grids."""
    if rule != "corrected" or not reads_finest():
        return None
    return finest_layers(layers)


def finest_layers(layers: Mapping[str, LayerSpec]) -> list[str]:
    """Layers with the finest generated grid."""
    most = max(spec.gen for spec in layers.values())
    return [name for name, spec in layers.items() if spec.gen == most]


def _labelled(maps: xr.DataArray | ArrayLike, direction: str | None) -> tuple[xr.DataArray, Direction]:
    """Maps (sample, y, x) with names of samples, and their direction."""
    if not isinstance(maps, xr.DataArray):
        values = np.asarray(maps)
        if values.ndim != 3:
            raise ShapeMismatch("maps", expected="[sample, y, x]", got=f"shape {values.shape}")
        maps = xr.DataArray(values, dims=("sample", "y", "x"), coords={"sample": np.arange(len(values))})
    if set(maps.dims) != {"sample", "y", "x"}:
        raise ShapeMismatch(
            "maps",
            expected="the axes sample, y and x",
            got=", ".join(map(str, maps.dims)),
            remedy="ask for the unified or specific level, or choose one map of the level",
        )
    own = maps.attrs.get("direction")
    if own is None and direction is None:
        raise InputError(
            "direction is not known",
            expected="'r2g' or 'g2r'",
            got="maps without a direction in their attributes",
            remedy="pass direction=...",
        )
    if own is not None and direction not in (None, own):
        raise InputError(
            "direction", expected=f"{own!r}, which the maps say", got=repr(direction), remedy="leave it out"
        )
    return maps.transpose("sample", "y", "x"), check_direction(str(own or direction))
