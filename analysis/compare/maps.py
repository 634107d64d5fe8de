"""Paired maps: both runs' maps at one size, and the differences B - A over samples, pixel by pixel.

The maps of each run are made as in a study, into stores of their own, and then read a pair at a time. The
differences lie in a file while the bootstrap takes some pixels of all samples after another, so that memory
does not grow with the number of samples, nor with that of the pixels.

================ ======================================================================================
mean_a, mean_b   ([level axis], y, x) means over the pairs, in the maps' units
difference       mean of B - A over the pairs
low, high        its bootstrap interval over samples; NaN for fewer than two pairs
excludes_zero    whether the interval does not hold 0
================ ======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import xarray as xr
from numpy.typing import NDArray

from i2am.analysis.compare.pairing import Pairing
from i2am.analysis.events import Listener, StageAdvanced, StageStarted
from i2am.analysis.grids.direction import Direction
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.maps.question import Level
from i2am.analysis.maps.stored import Collected, variable
from i2am.analysis.marginals.store import store_for
from i2am.analysis.scores.bootstrap import RESAMPLES, mean_intervals
from i2am.analysis.several_runs import common_size, own_grid
from i2am.storage.errors import NoAnswer
from i2am.storage.reading.run_collection import home_of

if TYPE_CHECKING:
    from i2am.analysis.options import StudyOptions
    from i2am.storage.reading.run_collection import AnyRun

BLOCK_BYTES = 32 * 2**20
"""Draws of the bootstrap that are held at once, and differences of the pixels that they are of."""

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
    """Compute the maps of both runs into stores of their own.

    Parameters
    ----------
    a, b, pairing
        What is compared; all its samples are sound.
    options
        Selections, size and protocol.
    folder
        Where the stores are made.
    tell
        Told after each direction of each run.

    Returns
    -------
    tuple of Collected
        The maps of A and of B, of the same questions, samples, labels and sizes.
    """
    absent: list[str] = []
    found: dict[Direction, dict[Level, tuple[xr.DataArray, xr.DataArray]]] = {}
    for direction, level in pairing.questions:
        try:
            both = _both(a, b, direction, level, pairing, options)
        except NoAnswer as error:
            absent.append(f"{direction.upper()}, {level} level: {error}")
            continue
        found.setdefault(direction, {})[level] = both
    emit(StageStarted("maps", 2 * len(found)))
    collected = []
    for which in (0, 1):
        path = folder / f"{'ab'[which]}.zarr"
        for number, (direction, levels) in enumerate(found.items(), start=1 + which * len(found)):
            named = {variable(level): both[which] for level, both in levels.items()}
            xr.Dataset(named).to_zarr(path, group=direction, mode="w", zarr_format=3, consolidated=False)
            emit(StageAdvanced("maps", number, 2 * len(found)))
        opened = {way: xr.open_zarr(path, group=way, consolidated=False, chunks=None) for way in found}
        stored = {
            (way, str(level)): opened[way][variable(level)]
            for way, levels in found.items()
            for level in levels
        }
        collected.append(Collected(path, stored, pairing.samples, tuple(absent)))
    return collected[0], collected[1]


def _both(
    a: AnyRun, b: AnyRun, direction: Direction, level: Level, pairing: Pairing, options: StudyOptions
) -> tuple[xr.DataArray, xr.DataArray]:
    """Maps of both runs, lazily, at one size."""
    official = (options.protocol, direction) == ("official", "g2r")
    size = None if official else options.size  # official G2R maps keep their layers' own grid

    def ask(run: AnyRun) -> xr.DataArray:
        return attribution_maps(
            run,
            direction,
            level,
            layers=pairing.layers[direction],
            steps=options.steps,
            heads=options.heads,
            samples=pairing.samples,
            size=size,
            time_groups=pairing.groups,
            protocol=options.protocol,
            store=store_for(run, options.store),
            storage_options=options.storage_options,
        )

    both = ask(a), ask(b)
    shapes = list(dict.fromkeys((maps.sizes["y"], maps.sizes["x"]) for maps in both))
    if len(shapes) > 1:
        size = common_size(shapes, both[0].attrs)
        both = ask(a), ask(b)
    if level in both[0].dims and both[0].sizes[level] != both[1].sizes[level]:
        raise NoAnswer(
            f"pairs at the {level} level",
            expected=f"as many maps of a sample in B as in A, {both[0].sizes[level]}",
            got=f"{both[1].sizes[level]}",
        )
    first, second = (_with_own_grid(maps, run) for maps, run in zip(both, (a, b), strict=True))
    return first, second


def _with_own_grid(maps: xr.DataArray, run: AnyRun) -> xr.DataArray:
    """Maps that know which aspect ratio their images have, as `i2am.analysis.several_runs` leaves them."""
    if "own_rows" in maps.coords:
        return maps
    names = [str(name) for name in maps["sample"].values]
    grids = [own_grid(home_of(run, name), maps.attrs) or (1, 1) for name in names]
    sizes = np.asarray(grids, dtype=np.int64)
    return maps.assign_coords(own_rows=("sample", sizes[:, 0]), own_columns=("sample", sizes[:, 1]))


@dataclass(frozen=True, slots=True)
class PairedMaps:
    """What the maps of a direction and level differ in.

    Attributes
    ----------
    maps
        The variables of this module, with the attributes of A's maps.
    pairs
        One row for each pair of maps, with the columns of SCHEMA.
    """

    maps: xr.Dataset
    pairs: pl.DataFrame

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
    """Compare the maps of two runs pair by pair, and over pairs.

    Parameters
    ----------
    a, b
        (sample, [level axis], y, x) of the same samples, read lazily.
    folder
        For a file of differences, which is gone afterwards.
    confidence
        Of the intervals.
    """
    labels = joint_labels(a, b)
    shape = a.shape[1:]
    path = folder / "differences.float64"
    held = np.memmap(path, dtype=np.float64, mode="w+", shape=(a.shape[0], int(np.prod(shape))))
    try:
        sums, pairs = _stream(a, b, labels, held)
        columns = [mean_intervals(held[:, some], confidence) for some in _blocks(*held.shape)]
    finally:
        del held
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
    a: xr.DataArray, b: xr.DataArray, labels: Sequence[str | None], held: Float64
) -> tuple[list[Float64], pl.DataFrame]:
    """Write the difference of each pair; sums of A and of B where both are finite, and the table of pairs."""
    sums = [np.zeros(a.shape[1:]), np.zeros(a.shape[1:])]
    rows: list[dict[str, Any]] = []
    for number, sample in enumerate(a["sample"].values):
        both = [np.asarray(maps[number].values, dtype=np.float64) for maps in (a, b)]
        difference = both[1] - both[0]
        held[number] = difference.reshape(-1)
        known = np.isfinite(difference)
        for total, values in zip(sums, both, strict=True):
            total += np.where(known, values, 0.0)
        planes = [values.reshape(len(labels), -1) for values in both]
        for label, one, other in zip(labels, *planes, strict=True):
            row = {"sample": str(sample), "direction": a.attrs["direction"], "level": a.attrs["level"]}
            rows.append(row | {"label": label} | _alike(one, other))
    return sums, pl.DataFrame(rows, schema=SCHEMA)


def _alike(one: Float64, other: Float64) -> dict[str, float | None]:
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
