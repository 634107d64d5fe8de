"""Scatter plots of image quality against IMACS: a dot for each sample, and for each run or group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from i2am.analysis.drawing.charts import KINDS, Chart, Cloud, scatter
from i2am.analysis.experiments.quality import KIND, MODEL, SET_SCORES
from i2am.analysis.experiments.quality_claim import KIND_WORDS, features_words, score_words

DRAWN = ("ssim", "lpips", "similarity")
"""Scores of samples that are drawn, where there are any."""

DOTS = 2000
"""Samples of a panel, at most."""

COLOURS = {(direction, level): colour for direction, level, _, colour in KINDS}


def quality_charts(tables: Mapping[str, pl.DataFrame], features: str) -> Iterator[tuple[str, Chart]]:
    """(what the dots are, chart) from the tables of the experiment."""
    names = ("samples", "attention", "sets", "correlations")
    samples, attention, sets, found = (tables[f"quality_{name}"] for name in names)
    of_samples = attention.join(samples, on=[*MODEL, "sample"], nulls_equal=True)
    means = attention.group_by([*MODEL, *KIND], maintain_order=True).agg(pl.col("imacs").mean())
    of_models = means.join(sets, on=list(MODEL), nulls_equal=True)
    asked: list[tuple[str, pl.DataFrame, Sequence[str], str]] = [
        ("samples", of_samples, DRAWN, "Quality of each sample against its IMACS")
    ]
    if sets.height > 1:
        asked.append(("runs", of_models, SET_SCORES, "Quality of each set against its mean IMACS"))
    for over, table, scores, title in asked:
        rows = [_row(table, score, found.filter(over=over)) for score in scores]
        chart = scatter(title, features_words(features), [row for row in rows if row])
        if chart is not None:
            yield over, chart


def _row(table: pl.DataFrame, score: str, found: pl.DataFrame) -> list[Cloud]:
    """A panel for each kind of map that has both numbers."""
    clouds = []
    for (direction, level), words in KIND_WORDS.items():
        own = table.filter(direction=direction, level=level).drop_nulls(["imacs", score]).head(DOTS)
        if not own.height:
            continue
        named = [_named(row, score) for row in own.iter_rows(named=True)]
        caption = f"{words}{_caption(found, direction, level, score)}"
        x, y, colour = own["imacs"].to_list(), own[score].to_list(), COLOURS[direction, level]
        clouds.append(Cloud("IMACS", score_words(score), x, y, named, colour, caption))
    return clouds


def _named(row: dict[str, object], score: str) -> str:
    parts: Sequence[object] = [row[name] for name in (*MODEL, "sample") if row.get(name) is not None]
    return f"{', '.join(map(str, parts))}: IMACS {row['imacs']:.3g}, {score} {row[score]:.3g}"


def _caption(found: pl.DataFrame, direction: str, level: str, score: str) -> str:
    rows = found.filter(direction=direction, level=level, score=score, measure="imacs", statistic="spearman")
    value = rows["value"].item() if rows.height else None
    return "" if value is None else f": ρ {value:.2f}"
