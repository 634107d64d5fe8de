"""Charts of faithfulness: curves of deletion and insertion, and which layers' and heads' maps are causal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from matplotlib import colormaps

from i2am.analysis.drawing.charts import Chart
from i2am.analysis.drawing.matplotlib_style import (
    FONT_SIZE,
    G2R,
    G2R_REGION,
    R2G,
    R2G_REGION,
    new_figure,
    style_axes,
)
from i2am.analysis.drawing.short_labels import shortened
from i2am.analysis.drawing.text import FAINT, INK, printable
from i2am.analysis.experiments.faithfulness import PIXELS, place_words
from i2am.analysis.experiments.token_ranks import WHOLE

COLOURS = {
    "g2r": G2R,
    "g2r-painted": G2R_REGION,
    "norm": R2G,
    "norm-painted": R2G_REGION,
    "daam": "#6b8f3c",
    "official": "#8a6bb0",
    "random": FAINT,
    "lowest": "#b8b2a6",
}


def faithfulness_charts(summary: pl.DataFrame) -> Iterator[tuple[str, Chart]]:
    """(file name without suffix, chart) of what the summary has."""
    changes = summary.filter(pl.col("measure") == "change", pl.col("region") != "outside")
    for distance in dict.fromkeys(changes["distance"].to_list()):
        own, words = changes.filter(distance=distance), change_words(distance, place_words(summary))
        ending = {PIXELS: "", "lpips": "-lpips"}.get(distance, "-features")
        curves = own.filter(~pl.col("rank").is_in(["layers", WHOLE]))
        if curves.height:
            yield f"faithfulness{ending}", _curves(curves, words)
        layers = own.filter(rank="layers")
        if layers.height:
            yield f"faithfulness-layers{ending}", _by_layer_and_head(layers, words)


def change_words(distance: str, where: str) -> str:
    """What is measured, in words; ``where`` is the place of a change of pixels."""
    if distance == PIXELS:
        return f"mean absolute change {where}, 0 to 255"
    return "LPIPS" if distance == "lpips" else f"cosine distance of features: {distance}"


def _curves(table: pl.DataFrame, unit: str) -> Chart:
    figure = new_figure(9.2, 3.4)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("deletion", "insertion"), strict=True):
        for rank in dict.fromkeys(table["rank"].to_list()):
            own = table.filter(rank=rank, kind=kind).sort("fraction")
            x, colour = own["fraction"].to_numpy() * 100, COLOURS.get(rank, INK)
            middle, low, high = (own[name].cast(pl.Float64).to_numpy() for name in ("value", "low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            axes.plot(x, middle, color=colour, lw=1.5, marker=".", markersize=4, label=rank)
        style_axes(axes, "both")
        axes.set_title(kind, fontsize=FONT_SIZE, loc="left", color=INK)
        words = "removed, first in rank" if kind == "deletion" else "left, first in rank"
        axes.set_xlabel(f"tokens {words} (%)", fontsize=FONT_SIZE, color=FAINT)
    axes.legend(frameon=False, fontsize=FONT_SIZE, labelcolor=INK)
    title = "Change of the image as reference tokens are removed"
    return Chart(title, f"{unit}, with its interval", figure)


def _by_layer_and_head(table: pl.DataFrame, words: str) -> Chart:
    names = [name for name in dict.fromkeys(table["layer"].to_list()) if name is not None]
    heads = sorted({head for head in table["head"].to_list() if head is not None})
    distance = table["distance"][0]
    digits = ".1f" if distance == PIXELS else ".2g"
    values = np.full((len(names) + 1, len(heads) + 1), np.nan)
    for row in table.iter_rows(named=True):
        at_row = names.index(row["layer"]) if row["layer"] is not None else len(names)
        at_column = heads.index(row["head"]) if row["head"] is not None else len(heads)
        values[at_row, at_column] = row["value"]
    figure = new_figure(2.6 + 0.55 * values.shape[1], 0.9 + 0.34 * values.shape[0])
    axes = figure.subplots()
    axes.imshow(values, cmap=colormaps["viridis"], aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for y, x in np.argwhere(np.isfinite(values)).tolist():
        colour = "black" if values[y, x] > middle else "white"
        axes.text(x, y, f"{values[y, x]:{digits}}", ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(heads) + 1), [*map(str, heads), "all"], fontsize=FONT_SIZE)
    labels = [*map(printable, shortened(names)), "all"]
    axes.set_yticks(range(len(names) + 1), labels, fontsize=FONT_SIZE, parse_math=False)
    axes.set_xlabel("head", fontsize=FONT_SIZE, color=FAINT)
    unit = f"{words}, without the {table['fraction'][0]:.0%} that a map ranks highest"
    return Chart("Which layers’ and heads’ maps are causal", unit, figure)
