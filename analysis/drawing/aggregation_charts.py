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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from i2am.analysis.drawing.short_labels import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, RULE, LINE = "#1b1b1a", "#6e6c66", "#d8d5cc", "#2f5d8a"
MOST_TILES = 24
"""Layers that get a picture of their own, at most; all are in the tables and in the store."""

COLUMNS = 8
COLOURS = "viridis"


def draw(result: xr.DataArray) -> Figure:
    """Draw an aggregation.

    Parameters
    ----------
    result
        (sample, layer, ...), as `aggregate` returns it; read a part at a time.

    Returns
    -------
    Figure
        In the aggregation's own units; its title says so where a layer's attention is a similarity.
    """
    if "y" in result.dims or "other_head" in result.dims:
        figure = _tiles(result)
    elif "step" in result.dims or "head" in result.dims:
        figure = _profiles(result)
    else:
        figure = _dots(result)
    kind = "" if result.attrs["kind"] == "attention" else f" ({result.attrs['kind']})"
    words = f"{result.attrs['title']}{kind}"
    figure.suptitle(words, x=0.02, ha="left", fontsize=10, weight="bold", color=INK, parse_math=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _mean(result: xr.DataArray, keep: tuple[str, ...]) -> xr.DataArray:
    """Mean over all axes but some; NaN (padding) left out."""
    return result.mean([axis for axis in result.dims if axis not in keep], skipna=True).compute()


def _profiles(result: xr.DataArray) -> Figure:
    """Line over steps, heat map of layers and heads: whichever axes there are."""
    steps, heads = "step" in result.dims, "head" in result.dims
    layers = result.sizes["layer"]
    figure = _figure(3.9 * (steps + heads) + 0.4, max(2.8, 1.4 + 0.17 * layers))
    axes = np.atleast_1d(np.asarray(figure.subplots(1, steps + heads), dtype=object))
    if steps:
        _over_steps(axes[0], _mean(result, ("sample", "step")), result.attrs["units"])
    if heads:
        _heat(figure, axes[-1], _mean(result, ("layer", "head")), result.attrs["units"])
    return figure


def _over_steps(axes: Axes, values: xr.DataArray, units: str) -> None:
    """Median and quartiles over samples; one sample is a line alone."""
    x = np.asarray(values["step"].values)
    low, middle, high = np.nanquantile(values.transpose("sample", "step").values, (0.25, 0.5, 0.75), axis=0)
    axes.fill_between(x, low, high, color=LINE, alpha=0.18, lw=0)
    axes.plot(x, middle, "-o", color=LINE, ms=3, lw=1.3)
    _plain(axes)
    axes.set_xlabel("denoiser step", fontsize=7.5, color=FAINT)
    axes.set_ylabel(units, fontsize=7.5, color=FAINT, parse_math=False)
    axes.set_title("over steps: median and quartiles over samples", fontsize=7.5, loc="left", color=INK)


def _heat(figure: Figure, axes: Axes, values: xr.DataArray, units: str) -> None:
    table = values.transpose("layer", "head").values
    picture = axes.imshow(table, cmap=COLOURS, aspect="auto", interpolation="nearest")
    names = shortened([str(name) for name in values["layer"].values])
    axes.set_yticks(range(len(names)), names, fontsize=6, parse_math=False)
    heads = [str(head) for head in values["head"].values]
    every = max(1, -(-len(heads) // 12))
    axes.set_xticks(range(0, len(heads), every), heads[::every], fontsize=6)
    axes.set_xlabel("head", fontsize=7.5, color=FAINT)
    axes.set_title("layer by head: mean over samples", fontsize=7.5, loc="left", color=INK)
    _bar(figure, picture, [axes], units)


def _bar(figure: Figure, picture: Any, axes: Any, units: str) -> None:
    bar = figure.colorbar(picture, ax=axes, shrink=0.9, pad=0.02)
    bar.ax.tick_params(labelsize=6.5, colors=INK, length=2)
    bar.set_label(units, fontsize=7, color=FAINT, parse_math=False)
    bar.outline.set_linewidth(0.4)


def _tiles(result: xr.DataArray) -> Figure:
    """A picture for each layer, and for each label of an axis of one's own; one shared scale."""
    plane = ("y", "x") if "y" in result.dims else ("head", "other_head")
    extra = tuple(
        str(axis) for axis in result.dims if axis not in ("sample", "layer", "step", "head", *plane)
    )
    layers = result.isel(layer=slice(0, max(1, MOST_TILES // max(1, _count(result, extra)))))
    values = _mean(layers, ("layer", *extra, *plane)).transpose("layer", *extra, *plane)
    names = shortened([str(name) for name in values["layer"].values], most=22)
    tiles: list[tuple[str, NDArray[Any]]] = []
    for at in np.ndindex(values.shape[:-2]):
        labels = [f"{axis} {values[axis].values[n]}" for axis, n in zip(extra, at[1:], strict=True)]
        tiles.append(("\n".join([names[at[0]], *labels]), values.values[at]))
    columns = min(COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    figure = _figure(1.45 * columns + 1.1, (1.6 + 0.12 * len(extra)) * rows + 0.5)
    grid = np.asarray(figure.subplots(rows, columns, squeeze=False), dtype=object)
    low, high = np.nanmin(values.values), np.nanmax(values.values)
    picture = None
    for number, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if number < len(tiles):
            words, tile = tiles[number]
            picture = axes.imshow(tile, cmap=COLOURS, vmin=low, vmax=high, interpolation="nearest")
            axes.set_title(words, fontsize=6, loc="left", color=INK, pad=2, parse_math=False)
    if picture is not None:
        _bar(figure, picture, list(grid.flat), result.attrs["units"])
    shown, whole = layers.sizes["layer"], result.sizes["layer"]
    cut = "" if shown == whole else f"; the first {shown} of {whole} layers"
    figure.supxlabel(f"mean over samples{cut}", fontsize=7, color=FAINT, x=0.02, ha="left")
    return figure


def _count(result: xr.DataArray, axes: tuple[str, ...]) -> int:
    return math.prod(result.sizes[axis] for axis in axes)


def _dots(result: xr.DataArray) -> Figure:
    """A row of dots for each layer: one for each sample."""
    values = _mean(result, ("sample", "layer")).transpose("layer", "sample").values
    names = shortened([str(name) for name in result["layer"].values])
    figure = _figure(5.2, 1.0 + 0.24 * len(names))
    axes = figure.subplots()
    for row, own in enumerate(values):
        axes.plot(own, np.full(own.size, row), "o", ms=4, mfc=LINE, mec="white", mew=0.5, alpha=0.75)
    axes.set_yticks(range(len(names)), names, fontsize=6.5, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(result.attrs["units"], fontsize=7.5, color=FAINT, parse_math=False)
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=FAINT, labelsize=7, length=2)
    axes.grid(color=RULE, linewidth=0.4)
    axes.set_axisbelow(True)
