"""Charts of scores, described once: a study's PNG figures and its pages show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from markupsafe import Markup

from i2am.analysis.drawing.inline_svg import Dots, inline_svg
from i2am.analysis.drawing.matplotlib_style import (
    DIRECTION_COLOURS,
    FONT_SIZE,
    G2R,
    G2R_REGION,
    R2G,
    R2G_REGION,
    new_figure,
    save,
    style_axes,
)
from i2am.analysis.drawing.short_labels import axis_labels
from i2am.analysis.drawing.text import FAINT, INK, printable
from i2am.analysis.drawing.units import Units
from i2am.analysis.scores.series import QUARTILES, Series, labels_of, level_rows, series_of
from i2am.analysis.scores.tables import profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = (
    ("r2g", "unified", "R2G, all reference tokens", R2G),
    ("r2g", "specific", "R2G, the object’s tokens", R2G_REGION),
    ("g2r", "unified", "G2R, all patches", G2R),
    ("g2r", "specific", "G2R, painted patches", G2R_REGION),
)
"""(direction, level, name, colour) of the four kinds of map that have one score for each sample."""

LEVEL_TITLES = {"time": "by denoiser steps", "head": "by head", "layer": "by layer, in the model’s order"}

HALF, THIRD = (6.2, 2.6), (4.0, 2.3)
"""Inches of charts that have half a page, or a third of it."""

LABELS = 8
"""Labels below lines, about, at most; the words of the dots have all of them."""

Labels = Sequence[tuple[str, str]]
"""(short, full) names of rows."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure without its title, which a page writes as HTML and a PNG above the figure."""

    title: str
    unit: str
    figure: Figure

    def svg(self) -> Markup:
        """The figure as an element of a page."""
        return inline_svg(self.figure, f"{self.title}, {self.unit}" if self.unit else self.title)

    def save(self, path: Path) -> None:
        """Write the figure with its title as PNG."""
        width, height = self.figure.get_size_inches()
        self.figure.set_size_inches(width, height + 0.6)  # of the words
        self.figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
        self.figure.suptitle(
            self.title, x=0.02, ha="left", fontsize=10.5, weight="bold", color=INK, parse_math=False
        )
        if self.unit:
            self.figure.supxlabel(self.unit, fontsize=FONT_SIZE, color=FAINT, parse_math=False)
        save(self.figure, path)


def strips(
    title: str,
    unit: str,
    rows: Sequence[tuple[str, str, pl.DataFrame]],
    column: str,
    reference: float | None = None,
) -> Chart | None:
    """A row of dots, median and quartiles for each (name, colour, table with "sample" and `column`)."""
    known = [(name, colour, table.drop_nulls(column).sort(column)) for name, colour, table in rows]
    known = [(name, colour, table) for name, colour, table in known if table.height]
    if not known:
        return None
    figure = new_figure(HALF[0], 0.42 + 0.54 * len(known))
    axes = figure.subplots()
    for row, (_, colour, table) in enumerate(known):
        values = table[column].to_numpy()
        place = np.arange(values.size)
        spread = np.where(place % 2, 1, -1) * (place % 4 // 2 + place % 2) * 0.07
        words = [f"{sample}: {value:.3g}" for sample, value in zip(table["sample"], values, strict=True)]
        axes.add_line(Dots(values, row - 0.1 + spread, colour, words))
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        axes.plot([low, high], [row + 0.26] * 2, color=colour, lw=1.5, solid_capstyle="butt")
        axes.plot([middle] * 2, [row + 0.16, row + 0.36], color=colour, lw=1.5, solid_capstyle="butt")
        axes.annotate(
            f"median {middle:.2f}", (0, row + 0.26), (-4, 0), axes.get_yaxis_transform(), "offset points",
            ha="right", va="center", fontsize=7.5, color=FAINT,
        )  # fmt: skip
    _rows(axes, [name for name, _, _ in known], reference)
    axes.set_yticks(np.arange(len(known)) - 0.12, [printable(name) for name, _, _ in known], parse_math=False)
    return Chart(title, unit, figure)


def ranges(
    title: str,
    unit: str,
    labels: Labels,
    series: Sequence[Series],
    reference: float | None = None,
    *,
    sign: str = "",
    apart: float = 0.3,
) -> Chart | None:
    """A dot with its interval for each label and series; series of a row are `apart` rows from each other."""
    if not _finite(series):
        return None
    figure = new_figure(HALF[0], 0.42 + 0.2 * len(labels))
    axes = figure.subplots()
    for number, one in enumerate(series):
        rows = np.flatnonzero(np.isfinite(one.values[:, 1]))
        low, middle, high = one.values[rows].T
        places = rows + (number - (len(series) - 1) / 2) * apart
        axes.hlines(places, low, high, color=one.colour, lw=1.5)
        words = [_words(one, labels[row][1], one.values[row], sign) for row in rows.tolist()]
        axes.add_line(Dots(middle, places, one.colour, words))
    _rows(axes, [short for short, _ in labels], reference)
    axes.set_yticks(np.arange(len(labels) - 1) + 0.5, minor=True)
    axes.grid(axis="y", which="minor", color=axes.spines["bottom"].get_edgecolor(), linewidth=0.6)
    return Chart(title, unit, figure)


def lines(
    title: str,
    unit: str,
    labels: Sequence[str],
    series: Sequence[Series],
    reference: float | None = None,
    *,
    sign: str = "",
    size: tuple[float, float] = THIRD,
) -> Chart | None:
    """A line with its band for each series, broken where a value is missing."""
    if not _finite(series):
        return None
    figure = new_figure(*size)
    draw_lines(figure.subplots(), labels, series, reference, sign)
    return Chart(title, unit, figure)


@dataclass(frozen=True, slots=True)
class Cloud:
    """One panel of a scatter plot: a dot for each pair, with the words that a page shows on hover."""

    x_name: str
    y_name: str
    x: Sequence[float]
    y: Sequence[float]
    words: Sequence[str]
    colour: str
    caption: str  # above the panel


def scatter(title: str, unit: str, rows: Sequence[Sequence[Cloud]]) -> Chart | None:
    """Panels of dots, row by row; a row that is shorter leaves room at its end."""
    if not any(len(cloud.x) for row in rows for cloud in row):
        return None
    columns = max(map(len, rows))
    figure = new_figure(2.5 * columns + 0.3, 2.3 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for places, row in zip(grid, rows, strict=True):
        for axes in places[len(row) :]:
            axes.set_visible(False)
        for axes, cloud in zip(places, row, strict=False):
            axes.add_line(Dots(cloud.x, cloud.y, cloud.colour, cloud.words, 4))
            axes.autoscale_view()
            style_axes(axes, "both")
            axes.locator_params(axis="x", nbins=3)
            axes.locator_params(axis="y", nbins=4)
            axes.set_xlabel(printable(cloud.x_name), fontsize=7.5, color=INK, parse_math=False)
            axes.set_ylabel(printable(cloud.y_name), fontsize=7.5, color=INK, parse_math=False)
            axes.set_title(printable(cloud.caption), fontsize=7, loc="left", color=FAINT, parse_math=False)
    return Chart(title, unit, figure)


def level_series(
    tables: Mapping[str, pl.DataFrame], order: Sequence[str]
) -> list[tuple[str, list[str], list[Series]]]:
    """(level, labels, medians inside the mask) of each level that has any; `order`: the model's layers."""
    found = []
    for level in (level for level in LEVEL_TITLES if level in tables):
        rows = level_rows(tables[level], level)
        labels = labels_of(rows, order)
        series = series_of(profile(rows), labels, QUARTILES, DIRECTION_COLOURS)
        if _finite(series):
            found.append((level, axis_labels(level, labels), series))
    return found


def profiles(tables: Mapping[str, pl.DataFrame], units: Units, order: Sequence[str]) -> Chart | None:
    """Medians inside the mask along every level, side by side."""
    found = level_series(tables, order)
    if not found:
        return None
    figure = new_figure(THIRD[0] * len(found), THIRD[1])
    for axes, (level, labels, series) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found, strict=True
    ):
        draw_lines(axes, labels, series, units.uniform, units.sign)
        axes.set_title(LEVEL_TITLES[level], fontsize=FONT_SIZE, loc="left", color=INK)
        axes.legend(frameon=False, fontsize=FONT_SIZE, labelcolor=INK)
    words = f"{units.name.capitalize()} inside the mask, {units.unit}"
    return Chart(words, "median and quartiles over samples", figure)


def draw_lines(
    axes: Axes, labels: Sequence[str], series: Sequence[Series], reference: float | None, sign: str
) -> None:
    """Draw lines with bands and dots; about eight labels below them, numbers where names are long."""
    x = np.arange(len(labels))
    for one in series:
        low, middle, high = one.values.T
        axes.fill_between(x, low, high, color=one.colour, alpha=0.15, lw=0)
        axes.plot(x, middle, color=one.colour, lw=1.5, label=one.name)
        known = np.flatnonzero(np.isfinite(middle))
        words = [f"{one.name}, {labels[n]}: {middle[n]:.3g}{sign}" for n in known.tolist()]
        axes.add_line(Dots(known, middle[known], one.colour, words))
    if reference is not None:
        axes.axhline(reference, color=INK, lw=0.8, ls=(0, (4, 3)))
    style_axes(axes, "y")
    axes.locator_params(axis="y", nbins=5)
    every = range(0, len(labels), -(-len(labels) // LABELS))
    short = all(len(label) < 8 for label in labels)
    axes.set_xticks(
        list(every), [printable(labels[n]) if short else str(n + 1) for n in every], parse_math=False
    )


def _rows(axes: Axes, names: Sequence[str], reference: float | None) -> None:
    """Name the rows, from top to bottom, over one horizontal axis."""
    if reference is not None:
        axes.axvline(reference, color=INK, lw=0.8, ls=(0, (4, 3)))
    axes.autoscale_view()
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=6)
    style_axes(axes)
    axes.set_yticks(range(len(names)), [printable(name) for name in names], parse_math=False)
    axes.tick_params(axis="y", colors=INK)
    axes.spines["bottom"].set_visible(False)


def _finite(series: Sequence[Series]) -> bool:
    return any(np.isfinite(one.values[:, 1]).any() for one in series)


def _words(series: Series, label: str, values: Sequence[float], sign: str) -> str:
    low, middle, high = values
    named = series.name if label == series.name else f"{series.name}, {label}"
    interval = f" ({low:.3g} to {high:.3g})" if np.isfinite([low, high]).all() else ""
    return f"{named}: {middle:.3g}{sign}{interval}"
