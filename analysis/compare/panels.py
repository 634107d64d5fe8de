"""What figures and page of a comparison show: mean maps of A and B, and their difference, as panels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import NDArray

from i2am.analysis.compare.colours import difference_limit, to_density
from i2am.analysis.drawing.colours import limit
from i2am.analysis.drawing.images import DARK
from i2am.analysis.drawing.level_panels import SIDES, heading
from i2am.analysis.drawing.panels import Panel, SampleImages
from i2am.analysis.drawing.short_labels import axis_labels
from i2am.analysis.drawing.units import Units, units_of
from i2am.analysis.grids.direction import Direction
from i2am.analysis.maps.stored import variable

if TYPE_CHECKING:
    from i2am.analysis.compare.result import Comparison

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MeanPanels:
    """The mean maps of a direction and level (label, y, x): densities, or values over the mean of both."""

    title: str  # direction and kind in words
    labels: tuple[tuple[str, str], ...]  # titles along the level's axis, short and full
    a: Float64
    b: Float64
    difference: Float64  # B - A
    outlined: NDArray[np.bool_]  # where the interval of the difference excludes 0
    units: Units

    def means(self, which: str) -> list[Panel]:
        """Panels of A's or B's means."""
        return [
            Panel(short, None, values, full_title=full)
            for (short, full), values in zip(self.labels, getattr(self, which), strict=True)
        ]

    @property
    def difference_end(self) -> float:
        """End of the scale of the differences: each direction has its own, since they differ widely."""
        return difference_limit([self.difference])

    def differences(self) -> list[Panel]:
        """Panels of the differences, on the density scale that ends at DENSITY_END."""
        painted = to_density(self.difference, self.difference_end)
        return [
            Panel(short, None, values, mask if mask.any() else None, full_title=full, line=DARK)
            for (short, full), values, mask in zip(self.labels, painted, self.outlined, strict=True)
        ]


def mean_panels(maps: xr.Dataset) -> MeanPanels:
    """Bring mean maps, the variables of `i2am.analysis.compare.maps`, onto the scale of pictures."""
    level = str(maps.attrs["level"])
    units = units_of(maps.attrs)
    arrays = [maps[name].values for name in ("mean_a", "mean_b", "difference")]
    divisor = 1.0 if units.uniform is not None else mean_of(arrays[:2])
    a, b, difference = (values.reshape(-1, *values.shape[-2:]) / divisor for values in arrays)
    outlined = maps["excludes_zero"].values.reshape(a.shape)
    full = [str(label) for label in maps[level].values] if level in maps.dims else [""]
    labels = tuple(zip(titles(level, full), full, strict=True))
    return MeanPanels(heading(maps.attrs), labels, a, b, difference, outlined, units)


def mean_of(arrays: Sequence[Float64]) -> float:
    """Mean of what is finite, or 1 where that is no scale."""
    known = np.concatenate([values[np.isfinite(values)] for values in arrays])
    mean = float(known.mean()) if known.size else 0.0
    return mean if mean > 0 else 1.0


def titles(level: str, labels: Sequence[str]) -> list[str]:
    """Titles along a level's axis; time groups of runs of different steps have those of both."""
    if level != "time":
        short = axis_labels(level, labels, most=22)
        return [f"head {label}" for label in short] if level == "head" else short
    parts = [axis_labels("time", label.split(" | ")) for label in labels]
    return [f"steps {' | '.join(part)}" for part in parts]


def mean_end(some: Sequence[MeanPanels]) -> float:
    """End of the scale that the means of maps shown together share."""
    return limit(values for each in some for values in (each.a, each.b))


def levels_of(found: Comparison) -> dict[str, list[MeanPanels]]:
    """Level to its panels, a direction after the other."""
    levels: dict[str, list[MeanPanels]] = {}
    for (_, level), maps in found.maps.items():
        levels.setdefault(level, []).append(mean_panels(maps))
    return levels


@dataclass(frozen=True, slots=True)
class PairPanels:
    """One sample in both runs: panels of images, and of each direction the panels of A and B, and B - A."""

    sample: str
    distance: float | None
    images: tuple[Panel, ...]
    maps: tuple[tuple[Panel, Panel, Float64], ...]


def farthest(table: pl.DataFrame, count: int) -> list[tuple[str, float | None]]:
    """Samples whose unified maps differ most, and their mean distance over directions."""
    rows = (
        table.filter(level="unified")
        .group_by("sample", maintain_order=True)
        .agg(pl.col("distance").mean())
        .sort("distance", descending=True, nulls_last=True, maintain_order=True)
    )
    return list(rows.head(count).iter_rows())


def pair_panels(found: Comparison, stores: tuple[Path, Path], count: int) -> Iterator[PairPanels]:
    """Yield the pairs that differ most, `count` at most; `stores` hold the maps of A and of B."""
    ways = [way for way, level in found.maps if level == "unified"]
    opened = {
        (which, way): xr.open_zarr(store, group=way, consolidated=False, chunks=None)[variable("unified")]
        for which, store in enumerate(stores)
        for way in ways
    }
    for sample, distance in farthest(found.tables["maps"], count):
        images = [SampleImages.read(run, sample) for run in (found.a, found.b)]
        own = {key: np.asarray(maps.sel(sample=sample), np.float64) for key, maps in opened.items()}
        yield PairPanels(sample, distance, _images(images), _maps(found, ways, images, own))


def _images(images: Sequence[SampleImages]) -> tuple[Panel, ...]:
    found = [
        Panel(f"{name} {which}", each.images[name], mask=each.masks.get(mask))
        for name, mask in (("generated", "mask"), ("reference", "reference_mask"))
        for which, each in zip("AB", images, strict=True)
        if name in each.images
    ]
    return tuple(found)


def _maps(
    found: Comparison,
    ways: Sequence[Direction],
    images: Sequence[SampleImages],
    own: Mapping[tuple[int, Direction], Float64],
) -> tuple[tuple[Panel, Panel, Float64], ...]:
    pairs = []
    for way in ways:
        both = own[0, way], own[1, way]
        uniform = units_of(found.maps[way, "unified"].attrs).uniform
        divisor = 1.0 if uniform is not None else mean_of(both)
        side = SIDES[way]
        panels = [
            Panel(
                f"{way.upper()} {which}",
                each.images.get(side.below),
                values / divisor,
                each.masks.get(side.mask),
            )
            for which, each, values in zip("AB", images, both, strict=True)
        ]
        pairs.append((panels[0], panels[1], (both[1] - both[0]) / divisor))
    return tuple(pairs)
