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

from i2am.analysis.compare import colours
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
class Drawn:
    """The mean maps of a direction and level, on the scale of pictures.

    Attributes
    ----------
    title
        Direction and kind in words.
    labels
        Titles along the level's axis, short and in full.
    a, b, difference
        (label, y, x): densities, or values over the mean of both; and B - A in that unit.
    outlined
        (label, y, x): where the interval of the difference excludes 0.
    units
        Of the maps.
    """

    title: str
    labels: tuple[tuple[str, str], ...]
    a: Float64
    b: Float64
    difference: Float64
    outlined: NDArray[np.bool_]
    units: Units

    def means(self, which: str) -> list[Panel]:
        """Panels of A's or B's means."""
        return [
            Panel(short, None, values, whole=whole)
            for (short, whole), values in zip(self.labels, getattr(self, which), strict=True)
        ]

    @property
    def reach(self) -> float:
        """End of the scale of the differences: a direction has one of its own, since they differ widely."""
        return colours.limit([self.difference])

    def differences(self) -> list[Panel]:
        """Panels of the differences, on the density scale that ends at `i2am.analysis.compare.colours.END`."""
        end = self.reach
        return [
            Panel(
                short,
                None,
                colours.to_density(values, end),
                mask if mask.any() else None,
                whole=whole,
                line=DARK,
            )
            for (short, whole), values, mask in zip(self.labels, self.difference, self.outlined, strict=True)
        ]


def drawn(maps: xr.Dataset) -> Drawn:
    """Bring mean maps onto the scale of pictures."""
    level = str(maps.attrs["level"])
    units = units_of(maps.attrs)
    arrays = [maps[name].values for name in ("mean_a", "mean_b", "difference")]
    divisor = 1.0 if units.uniform is not None else mean_of(arrays[:2])
    a, b, difference = (values.reshape(-1, *values.shape[-2:]) / divisor for values in arrays)
    outlined = maps["excludes_zero"].values.reshape(a.shape)
    whole = [str(label) for label in maps[level].values] if level in maps.dims else [""]
    labels = tuple(zip(titles(level, whole), whole, strict=True))
    return Drawn(heading(maps.attrs), labels, a, b, difference, outlined, units)


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


def mean_end(some: Sequence[Drawn]) -> float:
    """End of the scale that the means of maps shown together share."""
    return limit(values for each in some for values in (each.a, each.b))


def levels_of(found: Comparison) -> dict[str, list[Drawn]]:
    """Level to what is drawn of it, a direction after the other."""
    levels: dict[str, list[Drawn]] = {}
    for (_, level), maps in found.maps.items():
        levels.setdefault(level, []).append(drawn(maps))
    return levels


@dataclass(frozen=True, slots=True)
class DrawnPair:
    """One sample in both runs: panels of images, then of each direction's maps A, B and B - A (drawable)."""

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


def drawn_pairs(found: Comparison, stores: tuple[Path, Path], count: int) -> Iterator[DrawnPair]:
    """Yield the pairs that differ most."""
    ways = [way for way, level in found.maps if level == "unified"]
    opened = {
        (which, way): xr.open_zarr(store, group=way, consolidated=False, chunks=None)[variable("unified")]
        for which, store in enumerate(stores)
        for way in ways
    }
    for sample, distance in farthest(found.tables["maps"], count):
        images = [SampleImages.read(run, sample) for run in (found.a, found.b)]
        own = {key: np.asarray(maps.sel(sample=sample), np.float64) for key, maps in opened.items()}
        yield DrawnPair(sample, distance, _images(images), _maps(found, ways, images, own))


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
