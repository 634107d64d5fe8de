"""Debugging and refinement: scores of custom and refined models, seed by seed.

Source: I²AM, model debugging and refinement: the variance of attention scores went with inconsistent colours,
and a loss that steadies attention improved FID, KID, LPIPS and SSIM.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from i2am.analysis.scores.bootstrap import CONFIDENCE, mean_intervals

CUSTOM, REFINED, DIFFERENCE = "custom", "refined", "refined - custom"

MODELS = (CUSTOM, REFINED, DIFFERENCE)

KEYS = ("score", "direction", "level")


def compare_models(models: pl.DataFrame, confidence: float = CONFIDENCE) -> pl.DataFrame:
    """Means over seeds with bootstrap intervals, of each model and of the paired difference.

    `models` holds a `value` for each ``model`` ("custom" or "refined"), ``seed`` and KEYS. Returns ``model``,
    KEYS, ``value``, ``low``, ``high`` and ``count`` (seeds); an interval over fewer than two seeds is null.
    """
    wide = models.pivot("model", index=["seed", *KEYS], values="value").drop_nulls([CUSTOM, REFINED])
    rows = []
    for keys, own in wide.group_by(KEYS, maintain_order=True):
        custom, refined = own[CUSTOM].to_numpy(), own[REFINED].to_numpy()
        ends = mean_intervals(np.column_stack([custom, refined, refined - custom]), confidence)
        for number, model in enumerate(MODELS):
            rows.append(
                {
                    "model": model,
                    **dict(zip(KEYS, keys, strict=True)),
                    "value": float(ends.mean[number]),
                    "low": float(ends.low[number]),
                    "high": float(ends.high[number]),
                    "count": own.height,
                }
            )
    texts = dict.fromkeys(("model", *KEYS), pl.String)
    numbers = dict.fromkeys(("value", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema={**texts, **numbers, "count": pl.Int64}).with_columns(
        pl.col("low", "high").fill_nan(None)
    )
