"""Faithfulness: whether an image changes as its maps say once reference tokens are removed.

Sources: deletion and insertion, RISE (Petsiuk et al., 2018). A rank's first tokens are removed (deletion), or
all but these (insertion); a change is the mean absolute difference of pixels, 0 to 255, inside the mask or
outside; or, of the whole image, the cosine distance of its features, or LPIPS. A good rank has a large area
under deletion, and a small one under insertion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from i2am.analysis.experiments.token_ranks import WHOLE, Grid, Order
from i2am.analysis.grids.resize import nearest
from i2am.analysis.scores.bootstrap import CONFIDENCE, RESAMPLES, mean_intervals
from i2am.storage.errors import InputError

Kind = Literal["deletion", "insertion"]
FRACTIONS = (0.05, 0.1, 0.2, 0.4)
TABLE_FRACTION = 0.1
"""The share of tokens that is removed for the table by layer and head, or the given one next to it."""

PIXELS = "pixels"
"""The distance of two images that is always measured; others are called by their features, or LPIPS."""

_CHANGES = {"inside": "inside", "outside": "outside", "feature_distance": "image", "lpips": "image"}
"""Columns of changes, and the region that each is of."""

_OF = ("rank", "layer", "head", "kind")
_WHERE = ("distance", "region")

SAMPLES: Mapping[str, Any] = {
    "sample": pl.String,
    "rank": pl.String,
    "layer": pl.String,  # null: all layers
    "head": pl.Int64,  # null: all heads
    "draw": pl.Int64,  # of the rank "random"
    "kind": pl.String,  # deletion or insertion
    "fraction": pl.Float64,  # of the tokens: removed first, or kept
    "inside": pl.Float64,  # mean absolute change of the pixels inside the mask, 0 to 255
    "outside": pl.Float64,  # and outside; null without a mask
    "features": pl.String,  # their name; null: not measured
    "feature_distance": pl.Float64,  # cosine distance of the images' features; null where one is 0
    "lpips": pl.Float64,  # null: not measured
}
"""Columns of the table of every removal, with their types."""

SUMMARY: Mapping[str, Any] = {
    # change; area (mean change over all fractions); times random; correlation (of patches, see patch_effects)
    "measure": pl.String,
    "rank": pl.String,
    "layer": pl.String,
    "head": pl.Int64,
    "kind": pl.String,
    "fraction": pl.Float64,  # null for an area
    "distance": pl.String,  # pixels, the name of the features, or lpips
    "region": pl.String,  # inside or outside; image, the whole, where the distance is not of pixels
    "value": pl.Float64,  # mean over samples, or a ratio of means
    "low": pl.Float64,
    "high": pl.Float64,
    "count": pl.Int64,  # samples
}
"""Columns of the summary, with their types."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A set of tokens to remove from one sample, and what it is for."""

    order: Order
    kind: Kind
    fraction: float
    removed: NDArray[np.bool_]  # [row, column] of the reference's tokens


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Fractions in order, with 0 and 1, where the curves begin and end."""
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise InputError("fractions", expected="numbers above 0, at most 1", got=repr(list(fractions)))
    return tuple(sorted({0.0, *map(float, fractions), 1.0}))


def removals(orders: Sequence[Order], fractions: Sequence[float], grid: Grid) -> Iterator[Removal]:
    """All removals of one sample; the table by layer and head has one fraction, deletion alone.

    A reference without an order is removed as a whole.
    """
    inner = [fraction for fraction in fractions if 0 < fraction < 1] or [1.0]
    one = min(inner, key=lambda fraction: abs(fraction - TABLE_FRACTION))
    for order in orders:
        if order.rank in ("layers", WHOLE):
            share = 1.0 if order.rank == WHOLE else one
            yield Removal(order, "deletion", share, _removed(order, "deletion", share, grid))
            continue
        for fraction in fractions:
            yield Removal(order, "deletion", fraction, _removed(order, "deletion", fraction, grid))
            yield Removal(order, "insertion", fraction, _removed(order, "insertion", fraction, grid))


def _removed(order: Order, kind: Kind, fraction: float, grid: Grid) -> NDArray[np.bool_]:
    count = round(fraction * len(order.tokens))
    first = np.zeros(grid[0] * grid[1], dtype=bool)
    first[order.tokens[:count]] = True
    return (first if kind == "deletion" else ~first).reshape(grid)


def pixel_change(image: NDArray[np.uint8], original: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Absolute difference of two images [y, x, channel], mean over channels: [y, x], 0 to 255."""
    return np.asarray(np.abs(image.astype(np.float64) - original).mean(axis=-1))


def inside_and_outside(
    change: NDArray[np.float64], mask: NDArray[np.bool_] | None
) -> tuple[float, float | None]:
    """Mean change inside a mask [y, x] and outside; without a mask, of the whole image and none."""
    if mask is None:
        return float(change.mean()), None
    if mask.shape != change.shape:
        mask = nearest(mask.astype(np.float64), change.shape) > 0.5
    if mask.all() or not mask.any():
        return float(change.mean()), None
    return float(change[mask].mean()), float(change[~mask].mean())


def place_words(summary: pl.DataFrame) -> str:
    """Where the change of region "inside" is measured, in words: without masks it is the whole image."""
    return "inside the mask" if (summary["region"] == "outside").any() else "of the image"


def summarise(
    samples: pl.DataFrame, confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> pl.DataFrame:
    """Curves, areas and ratios to the random rank, with bootstrap intervals over samples."""
    column = pl.col("column")
    distance = pl.when(column == "feature_distance").then("features").when(column == "lpips").then(column)
    long = (
        samples.unpivot(
            list(_CHANGES), index=["sample", *_OF, "fraction", "features"], variable_name="column"
        )
        .with_columns(distance=distance.otherwise(pl.lit(PIXELS)), region=column.replace_strict(_CHANGES))
        .group_by("sample", *_OF, "fraction", *_WHERE, maintain_order=True)
        .agg(pl.col("value").mean())  # over the draws of "random"
        .drop_nulls("value")
    )
    if long.is_empty():
        return pl.DataFrame(schema=SUMMARY)
    areas = _areas(long)
    parts = [
        _means(long, "change", confidence, resamples),
        _means(areas, "area", confidence, resamples),
        _times_random(long, confidence, resamples),
    ]
    return pl.concat(parts).select(pl.col(name).cast(kind) for name, kind in SUMMARY.items())


def _areas(long: pl.DataFrame) -> pl.DataFrame:
    """Area under each sample's curve from fraction 0 to 1, by trapezoids; ranks of one fraction have none."""
    rows = []
    keys = ["sample", *_OF, *_WHERE]
    for key, curve in long.sort("fraction").group_by(keys, maintain_order=True):
        x, y = curve["fraction"].to_numpy(), curve["value"].to_numpy()
        if x[0] == 0 and x[-1] == 1:
            rows.append(dict(zip(keys, key, strict=True)) | {"value": float(np.trapezoid(y, x))})
    return pl.DataFrame(rows, schema=long.schema)


def _means(long: pl.DataFrame, measure: str, confidence: float, resamples: int) -> pl.DataFrame:
    keys = [*_OF, "fraction", *_WHERE]
    rows = []
    for key, group in long.group_by(keys, maintain_order=True):
        found = mean_intervals(group["value"].to_numpy()[:, None], confidence, resamples)
        numbers = (found.mean[0], found.low[0], found.high[0], found.count[0])
        rows.append(dict(zip(keys, key, strict=True)) | _result(measure, *map(float, numbers)))
    return pl.DataFrame(rows, schema=SUMMARY)


def _times_random(long: pl.DataFrame, confidence: float, resamples: int) -> pl.DataFrame:
    """Mean change by the first tokens of each rank, over that by as many random ones; paired by sample."""
    deleted = long.filter(pl.col("kind") == "deletion", pl.col("fraction").is_between(0, 1, closed="none"))
    at = ["sample", "fraction", *_WHERE]
    base = deleted.filter(rank="random").select(*at, random="value")
    keys = [*_OF, "fraction", *_WHERE]
    paired = deleted.filter(pl.col("rank") != "random").join(base, on=at)
    rows = []
    for key, group in paired.group_by(keys, maintain_order=True):
        result = ratio_interval(group["value"].to_numpy(), group["random"].to_numpy(), confidence, resamples)
        rows.append(dict(zip(keys, key, strict=True)) | _result("times random", *result, len(group)))
    return pl.DataFrame(rows, schema=SUMMARY)


def ratio_interval(
    values: NDArray[np.float64],
    base: NDArray[np.float64],
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:
    """Ratio of two means over the same samples, with its percentile bootstrap interval; NaN for 0/0."""
    draws = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values.mean() / base.mean()
        drawn = values[draws].mean(1) / base[draws].mean(1)
    if len(values) < 2 or not np.isfinite(drawn).all():
        return float(ratio), np.nan, np.nan
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(ratio), float(low), float(high)


def _result(measure: str, value: float, low: float, high: float, count: float) -> dict[str, Any]:
    numbers = {"value": value, "low": low, "high": high}
    known = {name: number if np.isfinite(number) else None for name, number in numbers.items()}
    return {"measure": measure, **known, "count": int(count)}
