"""Paired maps: both runs' maps at one size, and the differences B - A over samples, pixel by pixel.

Maps are read a pair at a time; the differences lie in a file, the bootstrap takes some pixels at a time.

================ ======================================================================================
mean_a, mean_b   ([level axis], y, x) means over the pairs, in the maps' units
difference       mean of B - A over the pairs
low, high        its bootstrap interval over samples; NaN for fewer than two pairs
excludes_zero    whether the interval does not hold 0
================ ======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import NDArray

from i2am.analysis.compare.pairing import Pairing
from i2am.analysis.events import Listener, counter
from i2am.analysis.grids.direction import Direction
from i2am.analysis.grids.resize import Grid
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.maps.question import Level
from i2am.analysis.maps.stored import Collected, variable
from i2am.analysis.maps.write import BlockwiseMaps, write_maps
from i2am.analysis.marginals.store import store_for
from i2am.analysis.scores.bootstrap import RESAMPLES, mean_intervals
from i2am.analysis.several_runs import common_size, own_grid
from i2am.storage.errors import NoAnswer
from i2am.storage.reading.run_collection import home_of

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun

BLOCK_BYTES = 32 * 2**20
"""Draws of the bootstrap that are differences at once, and differences of the pixels that they are of."""

SCHEMA: dict[str, Any] = {
    "sample": pl.String,
    "direction": pl.String,
    "level": pl.String,
    "label": pl.String,
    "distance": pl.Float64,
    "correlation": pl.Float64,
}
"""Columns of the table of pairs: mean absolute difference of the two maps, and Pearson's correlation of their
pixels; null where a map is not finite, or, for the correlation, constant."""

Float64 = NDArray[np.float64]


def collect_pairs(
    a: AnyRun, b: AnyRun, pairing: Pairing, options: StudyOptions, folder: Path, emit: Listener
) -> tuple[Collected, Collected]:
    """Compute the maps of A and B, at the same sizes, into ``a.zarr`` and ``b.zarr``."""
    absent: list[str] = []
    asked: dict[Direction, dict[Level, tuple[BlockwiseMaps, BlockwiseMaps]]] = {}
    for direction, level in pairing.questions:
        try:
            asked.setdefault(direction, {})[level] = _both(a, b, direction, level, pairing, options)
        except NoAnswer as error:
            absent.append(f"{direction.upper()}, {level} level: {error}")
    step = counter(emit, "maps", 2 * len(asked))
    collected = []
    for which in (0, 1):
        path = folder / f"{'ab'[which]}.zarr"
        stored: dict[tuple[Direction, str], xr.DataArray] = {}
        for direction, levels in asked.items():
            named = {variable(level): both[which] for level, both in levels.items()}
            write_maps(named, pairing.samples, path, direction)
            opened = xr.open_zarr(path, group=direction, consolidated=False, chunks=None)
            stored |= {(direction, str(level)): opened[variable(level)] for level in levels}
            step()
        collected.append(Collected(path, stored, pairing.samples, tuple(absent)))
    return collected[0], collected[1]


def _both(
    a: AnyRun, b: AnyRun, direction: Direction, level: Level, pairing: Pairing, options: StudyOptions
) -> tuple[BlockwiseMaps, BlockwiseMaps]:
    """Maps of both runs at one size."""
    official = (options.protocol, direction) == ("official", "g2r")

    def ask(run: AnyRun, size: Grid | None) -> BlockwiseMaps:
        maps = partial(
            attribution_maps,
            run,
            direction,
            level,
            layers=pairing.layers[direction],
            steps=options.steps,
            heads=options.heads,
            size=size,
            time_groups=pairing.groups,
            protocol=options.protocol,
            method="i2am",
            resize=options.resize,
            store=store_for(run, options.store),
            storage_options=options.storage_options,
        )
        return BlockwiseMaps.resolve(maps, run, pairing.samples)

    size = None if official else options.size  # official G2R maps keep their layers' own grid
    both = ask(a, size), ask(b, size)
    shapes = list(dict.fromkeys((own.example.sizes["y"], own.example.sizes["x"]) for own in both))
    if len(shapes) > 1:
        size = common_size(shapes, both[0].example.attrs)
        both = ask(a, size), ask(b, size)
    counts = [own.example.sizes.get(level) for own in both]
    if counts[0] != counts[1]:
        raise NoAnswer(
            f"pairs at the {level} level",
            expected=f"as many maps of a sample in B as in A, {counts[0]}",
            got=f"{counts[1]}",
        )
    first, second = (_with_own_grid(maps, run, pairing) for maps, run in zip(both, (a, b), strict=True))
    return first, second


def _with_own_grid(maps: BlockwiseMaps, run: AnyRun, pairing: Pairing) -> BlockwiseMaps:
    """Maps that know which aspect ratio their images have, as `i2am.analysis.several_runs` leaves them."""
    if "own_rows" in maps.along:
        return maps
    attrs = maps.example.attrs
    grids = [own_grid(home_of(run, name), attrs) or (1, 1) for name in pairing.samples]
    rows, columns = np.asarray(grids, dtype=np.int64).T
    along = {**maps.along, "own_rows": ("sample", rows), "own_columns": ("sample", columns)}
    return replace(maps, along=along)


@dataclass(frozen=True, slots=True)
class PairedMaps:
    """What the maps of a direction and level differ in."""

    maps: xr.Dataset  # the variables of this module, with the attributes of A's maps
    pairs: pl.DataFrame  # one row for each pair of maps, with the columns of SCHEMA

    def excluding(self) -> dict[tuple[str, str, str | None], float | None]:
        """(direction, level, label) to the share of pixels whose interval excludes 0; None without one."""
        level = self.maps.attrs["level"]
        labels = [str(label) for label in self.maps[level].values] if level in self.maps.dims else [None]
        planes = [self.maps[name].values.reshape(len(labels), -1) for name in ("excludes_zero", "low")]
        return {
            (self.maps.attrs["direction"], level, label): float(outside.mean())
            if np.isfinite(low).any()
            else None
            for label, outside, low in zip(labels, *planes, strict=True)
        }


def paired_maps(a: xr.DataArray, b: xr.DataArray, folder: Path, confidence: float) -> PairedMaps:
    """Compare maps (sample, [level axis], y, x) pair by pair, and over pairs, through a file in `folder`."""
    labels = joint_labels(a, b)
    shape = a.shape[1:]
    path = folder / "differences.float64"
    differences = np.memmap(path, dtype=np.float64, mode="w+", shape=(a.shape[0], int(np.prod(shape))))
    try:
        sums, pairs = _stream(a, b, labels, differences)
        columns = [mean_intervals(differences[:, some], confidence) for some in _blocks(*differences.shape)]
    finally:
        del differences
        path.unlink()
    count, low, high, mean = (
        np.concatenate([getattr(part, name) for part in columns]).reshape(shape)
        for name in ("count", "low", "high", "mean")
    )
    means = [np.divide(total, count, out=np.full(shape, np.nan), where=count > 0) for total in sums]
    arrays = {"mean_a": means[0], "mean_b": means[1], "difference": mean, "low": low, "high": high}
    arrays["excludes_zero"] = (low > 0) | (high < 0)  # comparisons with NaN are false
    dims = a.dims[1:]
    coords: dict[str, Any] = {str(dims[0]): np.asarray(labels, dtype=object)} if len(dims) == 3 else {}
    attrs = {key: value for key, value in a.attrs.items() if key not in ("run_id", "steps", "left_out")}
    maps = xr.Dataset({name: (dims, values) for name, values in arrays.items()}, coords=coords)
    return PairedMaps(maps.assign_attrs(attrs | {"pairs": a.shape[0], "confidence": confidence}), pairs)


def joint_labels(a: xr.DataArray, b: xr.DataArray) -> list[str | None]:
    """Labels along the level's axis: of both where they differ, as those of time do where steps do."""
    level = a.attrs["level"]
    if level not in a.dims:
        return [None]
    return [
        str(one) if str(one) == str(other) else f"{one} | {other}"
        for one, other in zip(a[level].values, b[level].values, strict=True)
    ]


def _stream(
    a: xr.DataArray, b: xr.DataArray, labels: Sequence[str | None], differences: Float64
) -> tuple[list[Float64], pl.DataFrame]:
    """Write the difference of each pair; sums of A and of B where both are finite, and the table of pairs."""
    sums = [np.zeros(a.shape[1:]), np.zeros(a.shape[1:])]
    rows: list[dict[str, Any]] = []
    for number, sample in enumerate(a["sample"].values):
        both = [np.asarray(maps[number].values, dtype=np.float64) for maps in (a, b)]
        difference = both[1] - both[0]
        differences[number] = difference.reshape(-1)
        known = np.isfinite(difference)
        for total, values in zip(sums, both, strict=True):
            total += np.where(known, values, 0.0)
        planes = [values.reshape(len(labels), -1) for values in both]
        for label, one, other in zip(labels, *planes, strict=True):
            row = {"sample": str(sample), "direction": a.attrs["direction"], "level": a.attrs["level"]}
            rows.append(row | {"label": label} | _distance(one, other))
    return sums, pl.DataFrame(rows, schema=SCHEMA)


def _distance(one: Float64, other: Float64) -> dict[str, float | None]:
    """Distance and correlation of two maps."""
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return {"distance": None, "correlation": None}
    about = [values - values.mean() for values in (one, other)]
    lengths = [float(np.sqrt((values**2).sum())) for values in about]
    # A constant map has no correlation; its mean may be off by a rounding.
    flat = any(n <= 1e-7 * np.abs(v).max() * v.size for n, v in zip(lengths, (one, other), strict=True))
    correlation = None
    if not flat:
        correlation = float(np.clip((about[0] * about[1]).sum() / (lengths[0] * lengths[1]), -1, 1))
    return {"distance": float(np.abs(other - one).mean()), "correlation": correlation}


def _blocks(samples: int, columns: int) -> Iterator[slice]:
    many = max(1, BLOCK_BYTES // (8 * max(RESAMPLES, samples)))
    return (slice(start, start + many) for start in range(0, columns, many))
