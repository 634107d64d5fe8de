"""Figures of a study for slides and papers, in matplotlib without its global state.

Every map is drawn in units, times uniform, on one diverging scale centred at 1 that all maps of a figure
share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from analysis.colour import outline, paint, palette, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, RULE = "#1b1b1a", "#6e6c66", "#d8d5cc"
R2G_COLOUR, G2R_COLOUR = "#a63d2f", "#2f5d8a"
SERIES = {"r2g": R2G_COLOUR, "g2r": G2R_COLOUR}


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a figure: an image, or a map over one.

    Attributes
    ----------
    title
        Words above it.
    image
        uint8 [y, x, channel], or None for a map alone.
    values
        Densities [y, x] to lay over it, or None.
    mask
        Region [y, x] to outline, of the image's size, or None.
    """

    title: str
    image: NDArray[np.uint8] | None
    values: NDArray[np.float64] | None = None
    mask: NDArray[np.bool_] | None = None

    def picture(self, end: float) -> NDArray[np.uint8]:
        """Painted panel, uint8 [y, x, 3], for a scale that ends at `end`."""
        if self.values is not None:
            drawn = paint(self.values, end, self.image)
        else:
            drawn = rgb(self.image if self.image is not None else np.full((8, 8, 3), 255, np.uint8))
        if self.mask is not None and self.mask.shape == drawn.shape[:2]:
            drawn = outline(drawn, self.mask)
        return drawn


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def scale_ticks(end: float) -> list[float]:
    """Values to mark on a scale from 1/end to end: its ends, and the powers of two well inside."""
    powers = [2.0**power for power in range(-5, 6) if 2 ** abs(power) <= end / 1.8]
    return [1 / end, *powers, end]


def times(value: float) -> str:
    """A density with its unit, such as 0.5× or 2×."""
    return f"{value:.3g}×"


def overview(panels: Sequence[Panel], end: float, title: str, note: str = "") -> Figure:
    """Panels side by side with one colour bar.

    Parameters
    ----------
    panels
        From left to right.
    end
        End of the shared scale (times uniform).
    title, note
        Words above and below; drawn as they are, without mathematics.
    """
    count = len(panels)
    figure = _figure(1.75 * count + 0.9, 2.65)
    grid = figure.add_gridspec(
        1,
        count + 1,
        width_ratios=[1] * count + [0.05],
        left=0.012,
        right=0.945,
        top=0.76,
        bottom=0.1,
        wspace=0.06,
    )
    for column, panel in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(panel.picture(end), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(panel.title, fontsize=7.5, color=INK, loc="left", pad=4)
    _colour_bar(figure, figure.add_subplot(grid[0, count]), end)
    figure.text(0.012, 0.93, title, fontsize=10, color=INK, weight="bold", parse_math=False, va="center")
    figure.text(0.012, 0.035, note, fontsize=7, color=FAINT, parse_math=False, va="center")
    return figure


def _colour_bar(figure: Figure, axes: Axes, end: float) -> None:
    mappable = ScalarMappable(norm=LogNorm(1 / end, end), cmap=ListedColormap(palette() / 255.0))
    bar = figure.colorbar(mappable, cax=axes, extend="both")
    bar.set_ticks(scale_ticks(end))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: times(value)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=7, colors=INK, length=2, width=0.6)
    bar.set_label("attention, × uniform", fontsize=7, color=FAINT)
    bar.outline.set_linewidth(0.4)


def _plain(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=FAINT, labelsize=7.5, length=0)
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)


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
    figure = _figure(6.4, 0.9 + 0.55 * len(rows))
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
    _plain(axes)
    axes.tick_params(axis="y", colors=INK)
    figure.text(
        0.02, 1 - 0.2 / (0.9 + 0.55 * len(rows)), title, fontsize=10, weight="bold", color=INK, va="center"
    )
    return figure


def profiles(table: pl.DataFrame, levels: Sequence[str]) -> Figure:
    """Median density inside the mask over time, heads and layers, with quartiles over samples.

    Parameters
    ----------
    table
        As made by `analysis.tables.profile`.
    levels
        Level axes to draw, from left to right.
    """
    figure = _figure(3.1 * len(levels) + 0.3, 2.9)
    grid = figure.add_gridspec(1, len(levels), left=0.07, right=0.985, top=0.8, bottom=0.2, wspace=0.22)
    for column, level in enumerate(levels):
        axes = figure.add_subplot(grid[0, column])
        for direction, colour in SERIES.items():
            rows = table.filter((pl.col("level") == level) & (pl.col("direction") == direction)).to_dicts()
            if not rows or all(row["inside_mid"] is None for row in rows):
                continue
            _band(axes, rows, colour, direction.upper())
        axes.axhline(1, color=INK, lw=0.8, ls=(0, (3, 2)))
        axes.set_title(f"by {level}", fontsize=8.5, loc="left", color=INK)
        _plain(axes)
        axes.grid(axis="x", visible=False)
        axes.grid(axis="y", color=RULE, linewidth=0.5)
        names = {
            "time": "denoiser steps, first to last",
            "head": "head",
            "layer": "layer, in the model's order",
        }
        axes.set_xlabel(names.get(level, level), fontsize=7.5, color=FAINT)
        axes.legend(frameon=False, fontsize=7, loc="best", labelcolor=INK)
    figure.text(
        0.012,
        0.94,
        "Density inside the mask (× uniform): median and quartiles over samples",
        fontsize=10,
        weight="bold",
        color=INK,
        va="center",
    )
    return figure


def _band(axes: Axes, rows: list[dict[str, Any]], colour: str, name: str) -> None:
    x = np.arange(len(rows))
    low, middle, high = (
        np.array(
            [np.nan if row[f"inside_{key}"] is None else row[f"inside_{key}"] for row in rows], dtype=float
        )
        for key in ("low", "mid", "high")
    )
    axes.fill_between(x, low, high, color=colour, alpha=0.16, lw=0)
    axes.plot(x, middle, "-o", color=colour, ms=3.5, lw=1.4, label=name)
    shown = x if len(x) <= 8 else x[:: -(-len(x) // 8)]
    short = [
        str(rows[index]["label"]) if len(str(rows[index]["label"])) <= 7 else str(index + 1)
        for index in shown
    ]
    axes.set_xticks(shown, short, parse_math=False)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, without a date, so that the same data gives the same file."""
    figure.savefig(path, format="png", metadata={"Software": None})


def map_grid(maps: xr.DataArray, images: Sequence[NDArray[np.uint8] | None], end: float) -> Figure:
    """Maps of one question: a row for each sample, a column for each entry of the level axis, one scale.

    Parameters
    ----------
    maps
        (sample, [level axis], y, x), in memory.
    images
        For each sample, the image that its maps lie on, or None.
    end
        End of the shared scale (times uniform).
    """
    axis = next((str(name) for name in maps.dims if name not in ("sample", "y", "x")), None)
    labels = [f"{axis} {label}" for label in maps[axis].values] if axis else [""]
    rows, columns = maps.sizes["sample"], len(labels)
    width, height = 1.5 * columns + 1.2, 1.5 * rows + 0.75
    figure = _figure(width, height)
    grid = figure.add_gridspec(
        rows,
        columns + 1,
        width_ratios=[1] * columns + [0.06],
        left=0.1 / width,
        right=1 - 0.62 / width,
        top=1 - 0.62 / height,
        bottom=0.08 / height,
        wspace=0.05,
        hspace=0.22,
    )
    values = np.asarray(maps, dtype=np.float64).reshape(rows, columns, *maps.shape[-2:])
    for row, sample in enumerate(maps["sample"].values):
        for column, label in enumerate(labels):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(paint(values[row, column], end, images[row]), interpolation="nearest")
            axes.set_axis_off()
            words = " · ".join(
                part for part in (str(sample) if column == 0 else "", label if row == 0 else "") if part
            )
            axes.set_title(_short(words, 26), fontsize=6.5, color=INK, loc="left", pad=2, parse_math=False)
    _colour_bar(figure, figure.add_subplot(grid[:, columns]), end)
    similar = "" if maps.attrs["kind"] == "attention" else f" ({maps.attrs['kind']})"
    relative = ", official, relative to the mean of all maps" if maps.attrs["protocol"] == "official" else ""
    title = f"{maps.attrs['direction'].upper()}, {maps.attrs['level']}{similar}{relative}"
    figure.text(0.1 / width, 1 - 0.2 / height, title, fontsize=9.5, weight="bold", color=INK, va="center")
    return figure


def _short(words: str, length: int) -> str:
    """Words cut in the middle to a length."""
    if len(words) <= length:
        return words
    half = (length - 1) // 2
    return words[:half] + "…" + words[-half:]
