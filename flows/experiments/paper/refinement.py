"""What the page says of debugging and refinement: custom and refined models, several seeds of each."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from i2am.analysis.experiments.quality_claim import KIND_WORDS, score_words
from i2am.analysis.experiments.refinement import CUSTOM, DIFFERENCE, KEYS, MODELS, REFINED
from i2am.flows.experiments.paper.cells import interval, number, one_row
from i2am.flows.experiments.paper.page import Section, TableView
from i2am.flows.experiments.paper.published import REFINEMENT

BETTER = {"fid": -1, "kid": -1, "ssim": 1, "ssim_inside": 1, "similarity": 1}
"""Sign of a change for the better."""


def refinement_section(read: Mapping[str, pl.DataFrame]) -> Section:
    """The section, from the tables that come with the project."""
    table, correlations = read["refinement"], read["checkpoint_correlations"]
    trained = read["refinement_curves"].group_by("model").agg(pl.col("seed").n_unique(), pl.col("step").max())
    seeds, steps = int(trained["seed"].min() or 0), int(trained["step"].max() or 0)  # type: ignore[arg-type]
    return Section(
        name="refinement",
        title="Debugging and refinement",
        claim="the variance of attention scores goes with inconsistent colours; a loss that steadies "
        "attention improves FID, KID, LPIPS and SSIM.",
        verdict=f"{seeds} seeds of each model: {_verdict(table)}.",
        ours=[_scores(table), _checkpoints(correlations)],
        papers=TableView(
            "The paper: virtual try-on",
            ("method", "FID", "KID", "LPIPS", "SSIM"),
            [(name, *(number(value, 4) for value in values)) for name, values in REFINEMENT.items()],
        ),
        notes=[
            f"Both are the embedded model at half its width, {steps} training steps; the refined one’s loss "
            "has the variance of attention scores inside the mask added. The trainings come with the project "
            "as these tables; python -m i2am.pipeline.embedded.refine makes them anew.",
            "FID and KID are those of the embedded features. LPIPS needs weights that do not come with the "
            "project.",
        ],
    )


def _verdict(table: pl.DataFrame) -> str:
    """Which scores the loss improved: where the interval of the paired difference lies on one side of 0."""
    parts: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for score, sign in BETTER.items():
        row = one_row(table, model=DIFFERENCE, score=score, direction=None)
        if row is None or row["low"] is None:
            continue
        apart = row["low"] > 0 or row["high"] < 0
        kind = "undecided" if not apart else "better" if (row["value"] > 0) == (sign > 0) else "worse"
        parts[kind].append(score_words(score))
    words = [f"{', '.join(names)} {kind}" for kind, names in parts.items() if names]
    return "with the loss " + "; ".join(words) if words else "no score was measured"


def _scores(table: pl.DataFrame) -> TableView:
    """Every score of both models, and the paired difference."""
    rows = []
    known = table.filter(pl.col("score").is_in([*BETTER, "imacs"]))
    for score, direction, level in known.select(KEYS).unique(maintain_order=True).iter_rows():
        name = score_words(score) if direction is None else f"IMACS, {KIND_WORDS[direction, level]}"
        keys = {"score": score, "direction": direction, "level": level}
        rows.append((name, *(interval(one_row(known, model=model, **keys)) for model in MODELS)))
    columns = ("score", CUSTOM, REFINED, "difference")
    title = "Custom and refined models: means over seeds, and the difference paired by seed"
    return TableView(title, columns, rows, "tables/refinement.parquet")


def _checkpoints(found: pl.DataFrame) -> TableView:
    """Spearman's coefficient of IMACS with FID and KID, over the trainings' checkpoints."""
    known = found.filter(over="runs", measure="imacs", statistic="spearman").drop_nulls("value")
    rows = []
    for (direction, level), words in KIND_WORDS.items():
        own = {
            score: one_row(known, direction=direction, level=level, score=score) for score in ("fid", "kid")
        }
        if any(own.values()):
            rows.append((words, *(interval(row, 2) for row in own.values())))
    models = int(known["count"].max() or 0)  # type: ignore[arg-type]
    return TableView(
        f"Spearman correlation of IMACS with FID and KID over {models} checkpoints of these trainings",
        ("map", "FID", "KID"), rows, "tables/checkpoint_correlations.parquet",
    )  # fmt: skip
