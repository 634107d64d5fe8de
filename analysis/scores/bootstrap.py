"""Intervals of means over samples: Efron's percentile bootstrap, one set of draws for every column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from i2am.storage.errors import InputError, ShapeMismatch

CONFIDENCE = 0.95
RESAMPLES = 2000
BLOCK_BYTES = 64 * 2**20  # bytes of draws held at once
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Means of columns with their intervals; NaN in place of an interval of fewer than two values."""

    count: NDArray[np.int64]  # values of each column that are finite
    mean: Float64
    low: Float64
    high: Float64


def mean_intervals(
    values: ArrayLike, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Intervals:
    """Intervals of the mean over samples of each column of `values` (sample, column); NaN is no value.

    The same seed gives the same interval, whatever the memory bound.
    """
    check_confidence(confidence)
    if resamples < 1:
        raise InputError("resamples", expected="at least 1", got=repr(resamples))
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise ShapeMismatch("values", expected="(sample, column)", got=f"shape {table.shape}")
    there = np.isfinite(table)
    count = there.sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean = table.sum(axis=0, where=there) / count
    low, high = np.full(count.shape, np.nan), np.full(count.shape, np.nan)
    usable = count > 1
    if usable.any():
        # Relative to the mean, so that a column of equal numbers has an interval of exactly no width.
        about, known = table[:, usable], there[:, usable]
        about -= mean[usable]
        about[~known] = 0
        draws = _draws(about, None if known.all() else known.astype(np.float64), resamples, seed)
        quantile = np.quantile if np.isfinite(draws).all() else np.nanquantile  # which is far slower
        ends = quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        low[usable], high[usable] = mean[usable] + ends
    return Intervals(count, mean, low, high)


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that is not between 0 and 1."""
    if not 0 < confidence < 1:
        raise InputError("confidence", expected="a number above 0 and below 1", got=repr(confidence))


def _draws(about: Float64, there: Float64 | None, resamples: int, seed: int) -> Float64:
    """Means (resample, column) of draws with replacement; None for `there`: no value is missing."""
    samples = len(about)
    chance = np.random.default_rng(seed)
    many = max(1, BLOCK_BYTES // (16 * samples))
    found = np.empty((resamples, about.shape[1]))
    for start in range(0, resamples, many):
        rows = min(many, resamples - start)
        times = np.stack(
            [np.bincount(chance.integers(0, samples, samples), minlength=samples) for _ in range(rows)]
        ).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[start : start + rows] = (times @ about) / (samples if there is None else times @ there)
    return found
