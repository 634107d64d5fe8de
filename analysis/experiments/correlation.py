"""Rank and linear correlations, with bootstrap intervals over units that are drawn whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from i2am.analysis.scores.bootstrap import CONFIDENCE, check_confidence
from i2am.storage.errors import ShapeMismatch

STATISTICS = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}

RESAMPLES = 500

FEW = 30
"""Pairs up to which Spearman's p is a permutation test's, exact up to 7."""

FEWEST = 3
"""Pairs, and units of an interval, below which there is none."""

ROUNDING = 1e-12
"""Difference of numbers, in relation to the largest, up to which a column is constant."""

Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Correlation:
    """One coefficient; None where it does not exist, as for a constant column."""

    statistic: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None  # of no association, two-sided; None where pairs of one unit are not independent
    count: int  # pairs
    units: int  # that the interval draws


def correlations(
    x: ArrayLike,
    y: ArrayLike,
    units: Sequence[str] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Correlation]:
    """Spearman's, Kendall's (b) and Pearson's coefficient of pairs; a pair with a NaN is left out.

    Pairs of one unit, such as a scene that several models painted, are drawn together (cluster bootstrap); by
    default each pair is its own unit. Draws in which no coefficient exists are left out. Of a few pairs the
    interval is too narrow (that of any perfect order has no width): read p beside it.
    """
    check_confidence(confidence)
    pairs = np.stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
    names = np.arange(pairs.shape[1]) if units is None else np.asarray(units, dtype=str)
    if len(names) != pairs.shape[1]:
        raise ShapeMismatch("units", expected=f"one for each of {pairs.shape[1]} pairs", got=str(len(names)))
    known = np.isfinite(pairs).all(axis=0)
    pairs, owner = pairs[:, known], np.unique(names[known], return_inverse=True)[1]
    count, many = pairs.shape[1], int(owner.max(initial=-1)) + 1
    values = chances = np.full(len(STATISTICS), np.nan)
    ends = np.full((2, len(STATISTICS)), np.nan)
    if count >= FEWEST and all(map(_varies, pairs)):
        values, own = np.transpose([coefficient(name, *pairs) for name in STATISTICS])
        if many == count:
            chances = own
            if count <= FEW:
                chances[0] = _permutation_p(*pairs)
        draws = coefficients_of_draws(pairs[0], pairs[1], _times(many, resamples, seed)[:, owner])
        if many >= FEWEST and len(draws):
            ends = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    found = np.stack([values, *ends, chances], axis=1)
    rows = [[None if np.isnan(number) else float(number) for number in row] for row in found]
    return [
        Correlation(name, value, low, high, p, count, many)
        for name, (value, low, high, p) in zip(STATISTICS, rows, strict=True)
    ]


def coefficient(statistic: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """One of STATISTICS and its p; NaN of columns whose numbers are the same but for rounding."""
    if not (_varies(x) and _varies(y)):
        return np.nan, np.nan
    found = STATISTICS[statistic](x, y)
    return float(found.statistic), float(found.pvalue)


def _varies(values: NDArray[np.float64]) -> bool:
    return values.size > 1 and bool(np.ptp(values) > ROUNDING * np.abs(values).max())


@lru_cache(maxsize=8)
def _times(units: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each draw takes each unit, (draw, unit)."""
    chance = np.random.default_rng(seed)
    picks = (chance.integers(0, units, units) for _ in range(resamples))
    return np.stack([np.bincount(own, minlength=units) for own in picks])


def _permutation_p(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Share of all orders of x, or of thousands of them, whose Spearman coefficient is as far from 0."""
    ranks = stats.rankdata(y) - (len(y) + 1) / 2

    def association(order: NDArray[np.float64], axis: int = -1) -> Any:
        return (order * ranks).sum(axis=axis)

    found = stats.permutation_test(
        (stats.rankdata(x),), association, permutation_type="pairings", vectorized=True, rng=0
    )
    return float(found.pvalue)


def coefficients_of_draws(
    x: NDArray[np.float64], y: NDArray[np.float64], times: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Coefficients (draw, statistic) of pairs that each draw holds `times` (draw, pair) over.

    The same as scipy's of the repeated pairs, hundreds of times as fast. Draws where all x or all y are equal
    have none and are left out.
    """
    above = [np.sign(values[None, :] - values[:, None]).astype(np.float32) for values in (x, y)]
    weights = times.astype(np.float32)

    def over_pairs(table: Floats) -> NDArray[np.float64]:
        return np.asarray(np.einsum("dp,dp->d", weights @ table, weights), dtype=np.float64)

    untied = [over_pairs(np.abs(sign)) for sign in above]
    there = (untied[0] > 0) & (untied[1] > 0)
    kendall = over_pairs(above[0] * above[1])[there] / np.sqrt(untied[0] * untied[1])[there]
    weights, exact = weights[there], times[there].astype(np.float64)
    ranks = [weights @ (sign / 2) for sign in above]  # but for a constant, which no coefficient sees
    spearman = _pearson(ranks[0].astype(np.float64), ranks[1].astype(np.float64), exact)
    pearson = _pearson(np.broadcast_to(x, exact.shape), np.broadcast_to(y, exact.shape), exact)
    return np.stack([spearman, kendall, pearson], axis=1)


def _pearson(
    x: NDArray[np.float64], y: NDArray[np.float64], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of pairs (draw, pair) with weights."""
    total = times.sum(axis=1, keepdims=True)
    a, b = (values - (values * times).sum(axis=1, keepdims=True) / total for values in (x, y))
    product, first, second = ((p * q * times).sum(axis=1) for p, q in ((a, b), (a, a), (b, b)))
    return np.asarray(product / np.sqrt(first * second))
