"""The paper's claim on IMACS and image quality, judged by correlations: a sentence for each kind of map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from i2am.analysis.experiments.quality import EXPECTED, SET_SCORES

KIND_WORDS: Mapping[tuple[str, str], str] = {
    ("r2g", "unified"): "R2G of all reference tokens",
    ("r2g", "specific"): "R2G of the object’s tokens",
    ("g2r", "unified"): "G2R of all patches",
    ("g2r", "specific"): "G2R of painted patches",
}

VERDICTS = ("confirmed", "contradicted", "undecided", "not measured")


def score_words(score: str) -> str:
    """What a score is called."""
    if score == "similarity":
        return "feature similarity"
    name, _, part = score.partition("_")
    return name.upper() + (" inside the mask" if part else "")


def features_words(features: str) -> str:
    """Which features the scores are made of."""
    return f"FID, KID and feature similarity are those of {features} features"


def claims(table: pl.DataFrame, features: str) -> list[str]:
    """A sentence for each kind of map in a table of `i2am.analysis.experiments.quality.correlate`."""
    known = table.filter(pl.col("expected").is_not_null(), measure="imacs", statistic="spearman")
    found = []
    for kind, words in KIND_WORDS.items():
        rows = {
            row["score"]: row
            for row in known.filter(direction=kind[0], level=kind[1]).iter_rows(named=True)
            if row["over"] == ("runs" if row["score"] in SET_SCORES else "samples")
        }
        if rows:
            found.append(_sentence(words, rows, features))
    return found


def verdict(row: Mapping[str, Any]) -> str:
    """Confirmed or contradicted where the interval lies on one side of 0, and p, if there is one, agrees."""
    if row["value"] is None:
        return "not measured"
    by_chance = row["p"] is not None and row["p"] >= 1 - row["confidence"]
    if by_chance or row["low"] is None or row["low"] <= 0 <= row["high"]:
        return "undecided"
    return "confirmed" if (row["low"] > 0) == (row["expected"] > 0) else "contradicted"


def _sentence(words: str, rows: Mapping[str, Mapping[str, Any]], features: str) -> str:
    parts = []
    verdicts = {score: verdict(rows[score]) if score in rows else "not measured" for score in EXPECTED}
    for each in VERDICTS:
        own = [_shown(score, rows.get(score)) for score, its in verdicts.items() if its == each]
        if own:
            parts.append(f"{each} for {', '.join(own)}")
    kinds = set(verdicts.values())
    whole = (
        "confirmed" if kinds == {"confirmed"}
        else "contradicted in part" if "contradicted" in kinds
        else "measured only in part" if "not measured" in kinds
        else "not confirmed as a whole"
    )  # fmt: skip
    return (
        f"{words}: the paper’s claim, that higher IMACS goes with lower FID, KID and LPIPS and higher SSIM, "
        f"is {whole}: {'; '.join(parts)} "
        f"({features_words(features)})."
    )


def _shown(score: str, row: Mapping[str, Any] | None) -> str:
    named = score_words(score)
    if row is None or row["value"] is None:
        return named
    interval = "" if row["low"] is None else f", {row['low']:.2f} to {row['high']:.2f}"
    chance = "" if row["p"] is None else f", p {row['p']:.2g}"
    return f"{named} (Spearman {row['value']:.2f}{interval}{chance}, {row['count']} {row['over']})"
