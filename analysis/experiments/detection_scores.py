"""Scores of boxes against the truth, by method, with bootstrap intervals over samples.

Scores: ``miou`` counts a sample without a box as 0; ``miou_found`` leaves it out, as the paper's code does;
``found`` is the share of samples with a box; ``pointing`` the share whose point (a map's peak, else the
middle of the best box) lies in the true box; ``ap50`` is COCO's average precision at an IoU of 0.5, over all
boxes of a method, whatever their class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from i2am.analysis.experiments.boxes import Box, iou
from i2am.analysis.scores.bootstrap import CONFIDENCE, RESAMPLES, check_confidence, mean_intervals

KEYS = ("method", "region", "rule", "direction", "truth")
RECALLS = np.linspace(0, 1, 101)  # where COCO reads the precision
MATCH = 0.5  # IoU of a box that counts as found
MOST_BOXES = 100  # of a sample, the best: COCO's limit
Float64 = NDArray[np.float64]

SCHEMA: Mapping[str, Any] = {
    **dict.fromkeys(KEYS, pl.String),
    "score": pl.String,
    "value": pl.Float64,  # null where there is none
    "low": pl.Float64,  # of its interval; null for fewer than two samples
    "high": pl.Float64,
    "count": pl.Int64,  # samples it is taken over
}
BOXES_SCHEMA: Mapping[str, Any] = {
    "sample": pl.String,
    **dict.fromkeys(KEYS, pl.String),
    **dict.fromkeys(
        ("x", "y", "width", "height", "score"), pl.Float64
    ),  # the best box; null where there is none
    "iou": pl.Float64,  # 0 where there is none
    "pointing": pl.Boolean,
    **dict.fromkeys(("true_x", "true_y", "true_width", "true_height"), pl.Float64),
}


@dataclass(frozen=True, slots=True)
class Found:
    """The boxes of one method: per sample [n, 5] (x, y, width, height, score), the best first."""

    method: str
    region: str  # the tokens a map is made of: "all", or the image whose object they show; "" without a map
    rule: str  # "" without a map
    direction: str
    boxes: Mapping[str, Float64]
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # peaks (x, y) of maps
    least: float = 0.0  # score of the best box, at least, to count as found; precision takes all


_REGIONS = {"all": "all tokens", "reference_mask": "object's tokens", "mask": "painted patches"}


def method_words(row: Mapping[str, Any]) -> str:
    """The method of a row, with its tokens and its rule."""
    return ", ".join(filter(None, (row["method"], _REGIONS.get(row["region"], row["region"]), row["rule"])))


def score_boxes(
    found: Sequence[Found],
    truths: Mapping[tuple[str, str], Mapping[str, Box]],
    confidence: float = CONFIDENCE,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(table of SCHEMA, best boxes of BOXES_SCHEMA) of methods against truths by (direction, name)."""
    check_confidence(confidence)
    rows: list[dict[str, Any]] = []
    best: list[dict[str, Any]] = []
    for one in found:
        for (direction, truth), true_boxes in truths.items():
            if direction == one.direction and true_boxes:
                keys = dict(zip(KEYS, (one.method, one.region, one.rule, direction, truth), strict=True))
                own = [_best(one, sample, box) for sample, box in sorted(true_boxes.items())]
                best += [row | keys for row in own]
                scores = {**_means(own, confidence), "ap50": _ap50_interval(one, true_boxes, confidence)}
                rows += [
                    keys | {"score": name} | dict(zip(("value", "low", "high", "count"), values, strict=True))
                    for name, values in scores.items()
                ]
    table = pl.DataFrame(rows, schema=dict(SCHEMA)).with_columns(
        pl.col("value", "low", "high").fill_nan(None)
    )
    return table, pl.DataFrame(best, schema=dict(BOXES_SCHEMA))


def _best(one: Found, sample: str, truth: Box) -> dict[str, Any]:
    """A sample's best box beside the true one."""
    row: dict[str, Any] = {"sample": sample, "iou": 0.0, "pointing": False}
    row |= {f"true_{name}": value for name, value in truth._asdict().items()}
    boxes = one.boxes.get(sample)
    point = one.points.get(sample)
    if boxes is not None and len(boxes) and boxes[0, 4] >= one.least:
        x, y, width, height, score = (float(number) for number in boxes[0])
        row |= {"x": x, "y": y, "width": width, "height": height, "score": score}
        row["iou"] = float(iou(boxes[0, :4], truth)[0])
        point = point or (x + width / 2, y + height / 2)
    return row | {"pointing": point is not None and truth.holds(*point)}


def _means(rows: Sequence[dict[str, Any]], confidence: float) -> dict[str, tuple[Any, ...]]:
    """Means over samples of everything that has one number a sample: (value, low, high, count)."""
    there = np.array(["x" in row for row in rows])
    ious = np.array([row["iou"] for row in rows])
    pointing = np.array([row["pointing"] for row in rows])
    columns = {
        "miou": ious,
        "miou_found": np.where(there, ious, np.nan),
        "found": there,
        "pointing": pointing,
    }
    ends = mean_intervals(
        np.column_stack([column.astype(np.float64) for column in columns.values()]), confidence
    )
    numbers = zip(ends.mean.tolist(), ends.low.tolist(), ends.high.tolist(), ends.count.tolist(), strict=True)
    return dict(zip(columns, numbers, strict=True))


def _ap50_interval(
    one: Found, truths: Mapping[str, Box], confidence: float, seed: int = 0
) -> tuple[Any, ...]:
    """AP50 with its interval over samples: (value, low, high, count)."""
    samples = sorted(truths)
    owner, score, match = _matches(one, truths, samples)
    every = np.ones((1, len(samples)))
    value = float(average_precision(owner, score, match, every)[0])
    if len(samples) < 2:
        return value, None, None, len(samples)
    chance = np.random.default_rng(seed)
    draws = chance.multinomial(len(samples), np.full(len(samples), 1 / len(samples)), RESAMPLES)
    drawn = average_precision(owner, score, match, draws.astype(np.float64))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return value, float(low), float(high), len(samples)


def _matches(
    one: Found, truths: Mapping[str, Box], samples: Sequence[str]
) -> tuple[NDArray[np.int64], Float64, NDArray[np.bool_]]:
    """Of every box: the index of its sample, its score, and whether it is the first to match the truth."""
    parts: list[tuple[NDArray[np.int64], Float64, NDArray[np.bool_]]] = []
    for index, sample in enumerate(samples):
        boxes = one.boxes.get(sample, np.empty((0, 5)))[:MOST_BOXES]
        match = iou(boxes[:, :4], truths[sample]) >= MATCH
        match[match.argmax() + 1 if match.any() else 0 :] = False  # the truth is found once
        parts.append((np.full(len(boxes), index), boxes[:, 4], match))
    owner, score, match = (np.concatenate(part) for part in zip(*parts, strict=True))
    return owner, score, match


def average_precision(
    owner: NDArray[np.int64], score: Float64, match: NDArray[np.bool_], weights: Float64
) -> Float64:
    """COCO's interpolated average precision, one for each row of `weights` (row, sample).

    `owner`, `score` and `match` are of every box; a sample of weight 2 counts as two, with one truth each.
    """
    found = np.zeros(len(weights))
    if not owner.size:
        return found
    order = np.argsort(-score, kind="stable")
    for row, weight in enumerate(weights):
        own = weight[owner[order]]
        hits = np.cumsum(own * match[order])
        precision = hits / np.maximum(np.cumsum(own), 1e-12)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(hits / weight.sum(), RECALLS - 1e-9)
        found[row] = np.where(places < len(hits), precision[np.minimum(places, len(hits) - 1)], 0).mean()
    return found
