"""One figure for each aggregation of a study, chosen by the axes of its result.

Over steps: a line of medians over samples with their quartiles. Over heads: a heat map, layer by head. Head
by head: a matrix for each layer. Maps: the mean over samples, one for each layer. A number for each layer:
dots. What is not an axis of a panel is averaged over; samples too, unless the panel shows their spread.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from i2am.analysis.drawing.charts import draw_lines
from i2am.analysis.drawing.inline_svg import Dots
from i2am.analysis.drawing.matplotlib_style import G2R, new_figure, style_axes
from i2am.analysis.drawing.short_labels import shortened
from i2am.analysis.drawing.text import FAINT, INK
from i2am.analysis.scores.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PICTURES = 24
"""Layers that get a picture of their own, at most; all are in the tables and in the store."""

COLUMNS = 8
COLOURS = "viridis"


def draw(result: xr.DataArray) -> Figure:
    """Draw a result (sample, layer, ...); the title says so where it is of similarities."""
    if "y" in result.dims or "other_head" in result.dims:
        figure = _pictures(result)
    elif "step" in result.dims or "head" in result.dims:
        figure = _profiles(result)
    else:
        figure = _dots(result)
    kind = "" if result.attrs["kind"] == "attention" else f" ({result.attrs['kind']})"
    words = f"{result.attrs['title']}{kind}"
    figure.suptitle(words, x=0.02, ha="left", fontsize=10, weight="bold", color=INK, parse_math=False)
    return figure


def _mean(result: xr.DataArray, keep: tuple[str, ...]) -> xr.DataArray:
    """Mean over all axes but some; NaN (padding) left out."""
    return result.mean([axis for axis in result.dims if axis not in keep], skipna=True).compute()


def _profiles(result: xr.DataArray) -> Figure:
    """Line over steps, heat map of layers and heads: whichever axes there are."""
    steps, heads = "step" in result.dims, "head" in result.dims
    figure = new_figure(3.9 * (steps + heads) + 0.4, max(2.8, 1.4 + 0.17 * result.sizes["layer"]))
    axes = figure.subplots(1, steps + heads, squeeze=False)[0]
    if steps:
        _over_steps(axes[0], _mean(result, ("sample", "step")), result.attrs["units"])
    if heads:
        _by_head(figure, axes[-1], _mean(result, ("layer", "head")), result.attrs["units"])
    return figure


def _over_steps(axes: Axes, values: xr.DataArray, units: str) -> None:
    spread = np.nanquantile(values.transpose("sample", "step").values, (0.25, 0.5, 0.75), axis=0)
    labels = [str(step) for step in values["step"].values]
    draw_lines(axes, labels, [Series("median", G2R, spread.T)], None, "")
    axes.set_xlabel("denoiser step", fontsize=7.5, color=FAINT)
    axes.set_ylabel(units, fontsize=7.5, color=FAINT, parse_math=False)
    axes.set_title("over steps: median and quartiles over samples", fontsize=7.5, loc="left", color=INK)


def _by_head(figure: Figure, axes: Axes, values: xr.DataArray, units: str) -> None:
    table = values.transpose("layer", "head").values
    picture = axes.imshow(table, cmap=COLOURS, aspect="auto", interpolation="nearest")
    names = shortened([str(name) for name in values["layer"].values])
    axes.set_yticks(range(len(names)), names, fontsize=6, parse_math=False)
    heads = [str(head) for head in values["head"].values]
    every = max(1, -(-len(heads) // 12))
    axes.set_xticks(range(0, len(heads), every), heads[::every], fontsize=6)
    axes.set_xlabel("head", fontsize=7.5, color=FAINT)
    axes.set_title("layer by head: mean over samples", fontsize=7.5, loc="left", color=INK)
    _colour_bar(figure, picture, [axes], units)


def _colour_bar(figure: Figure, picture: Any, axes: Any, units: str) -> None:
    bar = figure.colorbar(picture, ax=axes, shrink=0.9, pad=0.02)
    bar.ax.tick_params(labelsize=6.5, colors=INK, length=2)
    bar.set_label(units, fontsize=7, color=FAINT, parse_math=False)
    bar.outline.set_linewidth(0.4)


def _pictures(result: xr.DataArray) -> Figure:
    """A picture for each layer, and for each label of an axis of the aggregation's own; one shared scale."""
    plane = ("y", "x") if "y" in result.dims else ("head", "other_head")
    own = tuple(str(axis) for axis in result.dims if axis not in ("sample", "layer", "step", "head", *plane))
    count = math.prod(result.sizes[axis] for axis in own)
    layers = result.isel(layer=slice(0, max(1, MOST_PICTURES // max(1, count))))
    values = _mean(layers, ("layer", *own, *plane)).transpose("layer", *own, *plane)
    names = shortened([str(name) for name in values["layer"].values], most=22)
    pictures: list[tuple[str, NDArray[Any]]] = []
    for at in np.ndindex(values.shape[:-2]):
        labels = [f"{axis} {values[axis].values[n]}" for axis, n in zip(own, at[1:], strict=True)]
        pictures.append(("\n".join([names[at[0]], *labels]), values.values[at]))
    columns = min(COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = new_figure(1.45 * columns + 1.1, (1.6 + 0.12 * len(own)) * rows + 0.5)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    scale = {"cmap": COLOURS, "vmin": np.nanmin(values.values), "vmax": np.nanmax(values.values)}
    for axes in grid:
        axes.set_axis_off()
    for axes, (words, picture) in zip(grid, pictures, strict=False):
        drawn = axes.imshow(picture, interpolation="nearest", **scale)
        axes.set_title(words, fontsize=6, loc="left", color=INK, pad=2, parse_math=False)
    _colour_bar(figure, drawn, grid, result.attrs["units"])
    shown, total = layers.sizes["layer"], result.sizes["layer"]
    cut = "" if shown == total else f"; the first {shown} of {total} layers"
    figure.supxlabel(f"mean over samples{cut}", fontsize=7, color=FAINT, x=0.02, ha="left")
    return figure


def _dots(result: xr.DataArray) -> Figure:
    """A row of dots for each layer: one for each sample."""
    values = _mean(result, ("sample", "layer")).transpose("layer", "sample").values
    names = shortened([str(name) for name in result["layer"].values])
    figure = new_figure(5.2, 1.0 + 0.24 * len(names))
    axes = figure.subplots()
    for row, own in enumerate(values):
        axes.add_line(Dots(own, np.full(own.size, row), G2R, ()))
    axes.autoscale_view()
    style_axes(axes, "both")
    axes.set_yticks(range(len(names)), names, fontsize=6.5, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(result.attrs["units"], fontsize=7.5, color=FAINT, parse_math=False)
    return figure
