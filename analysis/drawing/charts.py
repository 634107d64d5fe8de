"""Charts of a study for slides and papers: distributions over samples, and medians over a level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from i2am.analysis.drawing.matplotlib_style import RULE, SERIES, new_figure, plain
from i2am.analysis.drawing.short_labels import axis_labels
from i2am.analysis.drawing.text import FAINT, INK
from i2am.analysis.drawing.units import Units
from i2am.analysis.scores.series import QUARTILES, Series, labels_of, level_rows, series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def strips(
    rows: Sequence[tuple[str, ArrayLike, str]], label: str, reference: float | None, title: str
) -> Figure:
    """One row of dots for each series, with its median and quartiles.

    Parameters
    ----------
    rows
        (name, values, colour) from top to bottom; values that are not finite are left out.
    label
        Words below the axis, with the unit.
    reference
        Value to mark by a line, or None.
    title
        Words above.
    """
    figure = new_figure(6.4, 0.9 + 0.55 * len(rows))
    axes = figure.add_axes((0.3, 0.62 / (0.9 + 0.55 * len(rows)), 0.66, 1 - 1.05 / (0.9 + 0.55 * len(rows))))
    for row, (_, raw, colour) in enumerate(rows):
        values = np.sort(np.asarray(raw, dtype=np.float64))
        values = values[np.isfinite(values)]
        if not values.size:
            continue
        spread = np.where(np.arange(values.size) % 2, 1, -1) * (np.arange(values.size) % 3) * 0.07
        axes.plot(
            values, row + spread, "o", ms=4, mfc=colour, mec="white", mew=0.5, alpha=0.75, clip_on=False
        )
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        axes.plot([low, high], [row + 0.3] * 2, color=colour, lw=1.6, solid_capstyle="butt")
        axes.plot([middle], [row + 0.3], "|", color=colour, ms=8, mew=2)
    if reference is not None:
        axes.axvline(reference, color=INK, lw=0.8, ls=(0, (3, 2)))
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label, fontsize=7.5, color=FAINT)
    plain(axes)
    axes.tick_params(axis="y", colors=INK)
    figure.text(
        0.02, 1 - 0.2 / (0.9 + 0.55 * len(rows)), title, fontsize=10, weight="bold", color=INK, va="center"
    )
    return figure


def profiles(table: pl.DataFrame, levels: Sequence[str], units: Units, order: Sequence[str] = ()) -> Figure:
    """Median value inside the mask over time, heads and layers, with quartiles over samples.

    Parameters
    ----------
    table
        As made by `i2am.analysis.scores.tables.profile`.
    levels
        Level axes to draw, from left to right.
    units
        Of the maps.
    order
        The model's layers.
    """
    names = {"time": "denoiser steps, first to last", "head": "head", "layer": "layer, in the model's order"}
    figure = new_figure(3.1 * len(levels) + 0.3, 2.9)
    grid = figure.add_gridspec(1, len(levels), left=0.07, right=0.985, top=0.8, bottom=0.2, wspace=0.22)
    for column, level in enumerate(levels):
        axes = figure.add_subplot(grid[0, column])
        rows = level_rows(table, level)
        labels = labels_of(rows, order)
        for series in series_of(rows, labels, QUARTILES, SERIES):
            _band(axes, series)
        _labels(axes, axis_labels(level, labels))
        if units.uniform is not None:
            axes.axhline(units.uniform, color=INK, lw=0.8, ls=(0, (3, 2)))
        axes.set_title(f"by {level}", fontsize=8.5, loc="left", color=INK)
        plain(axes)
        axes.grid(axis="x", visible=False)
        axes.grid(axis="y", color=RULE, linewidth=0.5)
        axes.set_xlabel(names.get(level, level), fontsize=7.5, color=FAINT)
        axes.legend(frameon=False, fontsize=7, loc="best", labelcolor=INK)
    words = f"{units.name.capitalize()} inside the mask ({units.unit}): median and quartiles over samples"
    figure.text(0.012, 0.94, words, fontsize=10, weight="bold", color=INK, va="center", parse_math=False)
    return figure


def _band(axes: Axes, series: Series) -> None:
    x = np.arange(len(series.values))
    low, middle, high = series.values.T
    axes.fill_between(x, low, high, color=series.colour, alpha=0.16, lw=0)
    axes.plot(x, middle, "-o", color=series.colour, ms=3.5, lw=1.4, label=series.name)


def _labels(axes: Axes, labels: Sequence[str]) -> None:
    """About eight labels; numbers where names are long."""
    shown = range(0, len(labels), -(-len(labels) // 8))
    short = all(len(label) <= 7 for label in labels)
    axes.set_xticks(list(shown), [labels[n] if short else str(n + 1) for n in shown], parse_math=False)
