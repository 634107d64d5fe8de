"""I²AM against DAAM, a method for text-to-image models, on the same store: the paper's last comparison.

DAAM asks each patch which reference token it looks at, so its maps lie on the generated image alone; over all
tokens they are 1 everywhere. Both methods are read by the same rule and scored against the same truth.
"""

from __future__ import annotations

import polars as pl

from i2am.analysis.experiments.detection_scores import SCHEMA
from i2am.analysis.scores.bootstrap import CONFIDENCE, mean_intervals

DIFFERENCE = "i2am - daam"
_PAIR = ("region", "rule", "direction", "truth")


def text_to_image_rows(
    table: pl.DataFrame, boxes: pl.DataFrame, confidence: float = CONFIDENCE
) -> pl.DataFrame:
    """Rows of the detection table that compare the two, and their differences sample by sample.

    The rows of method "i2am - daam" are paired: scores ``miou`` and ``pointing``, in pairs of samples.
    """
    shared = table.filter(pl.col("method") == "daam").select(_PAIR).unique()
    kept = table.filter(pl.col("method").is_in(("i2am", "daam"))).join(shared, on=list(_PAIR), how="semi")
    parts = [kept]
    for pair in shared.sort(_PAIR).rows(named=True):
        own = boxes.join(pl.DataFrame([pair]), on=list(_PAIR), how="semi")
        sides = (own.filter(pl.col("method") == name) for name in ("i2am", "daam"))
        ours, theirs = (side.select("sample", "iou", pl.col("pointing").cast(pl.Float64)) for side in sides)
        both = ours.join(theirs, on="sample", suffix="_daam").sort("sample")
        if not both.height:
            continue
        ends = mean_intervals(
            both.select(
                pl.col("iou") - pl.col("iou_daam"), pl.col("pointing") - pl.col("pointing_daam")
            ).to_numpy(),
            confidence,
        )
        parts.append(
            pl.DataFrame(
                {
                    "method": DIFFERENCE, **pair, "score": ["miou", "pointing"],
                    "value": ends.mean, "low": ends.low, "high": ends.high, "count": ends.count,
                }
            ).select(list(SCHEMA)).with_columns(pl.col("low", "high").fill_nan(None))
        )  # fmt: skip
    return pl.concat(parts)
