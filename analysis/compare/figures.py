"""The figures of a comparison: mean maps and differences of every level, paired IMACS, the farthest pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from i2am.analysis.compare import colours
from i2am.analysis.compare.panels import Drawn, DrawnPair, drawn_pairs, levels_of, mean_end
from i2am.analysis.drawing.colours import RGB, limit
from i2am.analysis.drawing.matplotlib_style import RULE, SERIES, new_figure, plain, save
from i2am.analysis.drawing.panels import Panel, block
from i2am.analysis.drawing.sheet import sheet
from i2am.analysis.drawing.text import FAINT, INK
from i2am.analysis.drawing.units import Units, units_of
from i2am.analysis.events import Listener, StageAdvanced, StageStarted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from i2am.analysis.compare.result import Comparison

OF_LEVEL = {"unified": "", "time": ", by denoiser steps", "head": ", by head", "layer": ", by layer"}
"""Levels in titles."""

LINES = 200
"""Pairs that the paired plot draws a line for, at most."""


def write_compare_figures(
    found: Comparison, stores: tuple[Path, Path], out: Path, details: int, emit: Listener
) -> None:
    """Draw the figures of a comparison."""
    out.mkdir()
    levels = levels_of(found)
    total = len(levels) + 1 + min(details, len(found.pairing.samples))
    emit(StageStarted("figures", total))
    done = 0
    for level, some in levels.items():
        save(_level_figure(found, level, some), out / f"{level}.png")
        emit(StageAdvanced("figures", done := done + 1, total))
    if found.tables["scores"]["imacs_difference"].count():
        save(_paired_imacs(found), out / "imacs.png")
    emit(StageAdvanced("figures", done := done + 1, total))
    for number, one in enumerate(drawn_pairs(found, stores, details)):
        save(_pair_figure(found, one), out / f"pair-{number:04d}.png")
        emit(StageAdvanced("figures", done := done + 1, total))


def difference_words(units: Units) -> str:
    """Words of a scale of differences."""
    return f"B − A, {units.unit if units.uniform is not None else '× the mean of these maps'}"


def interval_words(found: Comparison) -> str:
    """What the outlined region is."""
    if len(found.pairing.samples) < 2:
        return "One pair: no intervals."
    confidence = next(iter(found.maps.values())).attrs["confidence"]
    return f"Outlined: the {100 * confidence:g}% interval over {len(found.pairing.samples)} pairs excludes 0."


def _level_figure(found: Comparison, level: str, some: Sequence[Drawn]) -> RGB:
    """Means of A and B on one scale; the differences, each direction on its own, below or beside them."""
    end, pairs = mean_end(some), f"{len(found.pairing.samples)} pairs"
    if level == "unified":
        rows = []
        for each in some:
            both = block("", [replace(each.means(which)[0], title=which.upper()) for which in "ab"])
            title = f"{each.title}, mean over {pairs}"
            means = sheet([both], title, each.units.bar, found.names_in_words, end)
            rows.append(beside(trimmed(means), trimmed(_difference(found, each))))
        return stacked(*rows)
    above = [block(f"{which.upper()}: {each.title}", each.means(which)) for each in some for which in "ab"]
    title = f"Means over {pairs}{OF_LEVEL[level]}. {found.names_in_words}"
    first = sheet(above, title, some[0].units.bar, end=end)
    return stacked(first, *(_difference(found, each) for each in some))


def _difference(found: Comparison, each: Drawn) -> RGB:
    ticks = colours.ticks(each.reach, each.units.sign)
    title = f"B − A, {each.title}"
    panels = block("", each.differences())
    return sheet([panels], title, difference_words(each.units), interval_words(found), colours.END, ticks)


def _pair_figure(found: Comparison, one: DrawnPair) -> RGB:
    """A sample's images and maps in both runs, and what the maps differ in."""
    units = units_of(next(iter(found.maps.values())).attrs)
    maps = [panel for a, b, _ in one.maps for panel in (a, b)]
    end = limit(panel.values for panel in maps if panel.values is not None)
    blocks = [block("", one.images)] if one.images else []
    parts = [
        sheet([*blocks, block("", maps)], f"Pair {one.sample}. {found.names_in_words}", units.bar, end=end)
    ]
    below = []
    for a, _, difference in one.maps:
        far = colours.limit([difference])
        panel = Panel("", None, colours.to_density(difference, far))
        title, ticks = f"B − A, {a.title.split()[0]}", colours.ticks(far, units.sign)
        below.append(
            trimmed(sheet([block("", [panel])], title, difference_words(units), end=colours.END, ticks=ticks))
        )
    return stacked(*parts, beside(*below))


def beside(*pictures: RGB) -> RGB:
    """Pictures one beside the other, on white."""
    return stacked(*(picture.transpose(1, 0, 2) for picture in pictures)).transpose(1, 0, 2)


def trimmed(picture: RGB, margin: int = 20) -> RGB:
    """A picture without the white at its right, but for a margin (pixels)."""
    drawn = np.flatnonzero((picture != 255).any(axis=(0, 2)))
    return picture[:, : drawn[-1] + 1 + margin] if drawn.size else picture


def stacked(*pictures: RGB) -> RGB:
    """Pictures one below the other, on white."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)
        for picture in pictures
    ]
    return np.concatenate(padded)


def _paired_imacs(found: Comparison) -> Figure:
    """Every pair's IMACS in A and in B, and the mean difference with its interval."""
    table = found.tables["scores"].filter(level="unified")
    summary = found.tables["summary"].filter(level="unified", metric="imacs")
    ways = [way for way in SERIES if table.filter(direction=way)["imacs_difference"].count()]
    figure = new_figure(3.3 * len(ways) + 0.4, 3.4)
    grid = figure.add_gridspec(
        1,
        2 * len(ways),
        width_ratios=[2.2, 1] * len(ways),
        left=0.09,
        right=0.98,
        top=0.78,
        bottom=0.14,
        wspace=0.45,
    )
    for column, way in enumerate(ways):
        rows = table.filter(direction=way).drop_nulls("imacs_difference")
        mean = summary.filter(direction=way).row(0, named=True)
        _slopes(figure.add_subplot(grid[0, 2 * column]), rows, mean, SERIES[way], way.upper())
        _mean_difference(figure.add_subplot(grid[0, 2 * column + 1]), mean, SERIES[way])
    words = f"IMACS, pair by pair. {found.names_in_words}"
    figure.text(0.02, 0.93, words, fontsize=10, weight="bold", color=INK, va="center", parse_math=False)
    return figure


def _slopes(axes: Axes, rows: pl.DataFrame, mean: dict[str, Any], colour: str, name: str) -> None:
    some = rows.head(LINES)
    both = np.stack([some["imacs_a"].to_numpy(), some["imacs_b"].to_numpy()])
    axes.plot([0, 1], both, "-", color=colour, lw=0.8, alpha=max(0.12, min(0.5, 8 / both.shape[1])))
    axes.plot([0] * both.shape[1], both[0], "o", ms=3, mfc=colour, mec="white", mew=0.4, alpha=0.8)
    axes.plot([1] * both.shape[1], both[1], "o", ms=3, mfc=colour, mec="white", mew=0.4, alpha=0.8)
    axes.plot([0, 1], [mean["mean_a"], mean["mean_b"]], "-o", color=INK, lw=1.8, ms=4.5)
    axes.set_xlim(-0.25, 1.25)
    shown = "," if rows.height <= LINES else f", the first {LINES} of"
    axes.set_title(f"{name}{shown} {rows.height} pairs; black: mean", fontsize=7.5, loc="left", color=FAINT)
    _upright(axes, [0, 1], ["A", "B"])


def _mean_difference(axes: Axes, mean: dict[str, Any], colour: str) -> None:
    axes.axhline(0, color=INK, lw=0.8, ls=(0, (3, 2)))
    if mean["low"] is not None and mean["high"] is not None:
        axes.plot([0, 0], [mean["low"], mean["high"]], color=colour, lw=2.2, solid_capstyle="butt")
    axes.plot([0], [mean["difference"]], "o", color=colour, ms=6)
    axes.set_xlim(-1, 1)
    axes.set_title("mean B − A", fontsize=7.5, loc="left", color=FAINT)
    _upright(axes, [0], [""])


def _upright(axes: Axes, places: list[int], words: list[str]) -> None:
    plain(axes)
    axes.grid(axis="x", visible=False)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_xticks(places, words)
    axes.tick_params(axis="x", colors=INK)
