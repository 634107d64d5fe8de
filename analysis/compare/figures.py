"""The figures of a comparison: mean maps and differences of every level, paired IMACS, the farthest pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from i2am.analysis.compare.colours import DENSITY_END, difference_limit, difference_ticks, to_density
from i2am.analysis.compare.panels import MeanPanels, PairPanels, levels_of, mean_end, pair_panels
from i2am.analysis.drawing.charts import Chart
from i2am.analysis.drawing.colours import RGB, limit
from i2am.analysis.drawing.matplotlib_style import (
    DIRECTION_COLOURS,
    FONT_SIZE,
    new_figure,
    save,
    style_axes,
)
from i2am.analysis.drawing.panels import Panel, block
from i2am.analysis.drawing.sheet import sheet
from i2am.analysis.drawing.text import FAINT, INK
from i2am.analysis.drawing.units import Units, units_of
from i2am.analysis.events import Listener, counter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from i2am.analysis.compare.result import Comparison

OF_LEVEL = {"unified": "", "time": ", by denoiser steps", "head": ", by head", "layer": ", by layer"}
"""Levels in titles."""

LINES = 200
"""Pairs that the paired chart draws a line for, at most."""


def write_compare_figures(
    found: Comparison, stores: tuple[Path, Path], out: Path, details: int, emit: Listener
) -> None:
    """Draw into a new directory; the `details` pairs of `stores` that differ most get their own."""
    out.mkdir()
    levels = levels_of(found)
    step = counter(emit, "figures", len(levels) + 1 + min(details, len(found.pairing.samples)))
    for level, some in levels.items():
        save(_level_figure(found, level, some), out / f"{level}.png")
        step()
    if found.tables["scores"]["imacs_difference"].count():
        _paired_imacs(found).save(out / "imacs.png")
    step()
    for number, one in enumerate(pair_panels(found, stores, details)):
        save(_pair_figure(found, one), out / f"pair-{number:04d}.png")
        step()


def difference_words(units: Units) -> str:
    """Words of a scale of differences."""
    return f"B − A, {units.unit if units.uniform is not None else '× the mean of these maps'}"


def _interval_words(found: Comparison) -> str:
    """What the outlined region is."""
    if len(found.pairing.samples) < 2:
        return "One pair: no intervals."
    confidence = next(iter(found.maps.values())).attrs["confidence"]
    return f"Outlined: the {100 * confidence:g}% interval over {len(found.pairing.samples)} pairs excludes 0."


def _level_figure(found: Comparison, level: str, some: Sequence[MeanPanels]) -> RGB:
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


def _difference(found: Comparison, each: MeanPanels) -> RGB:
    ticks = difference_ticks(each.difference_end, each.units.sign)
    panels, words = [block("", each.differences())], difference_words(each.units)
    return sheet(panels, f"B − A, {each.title}", words, _interval_words(found), DENSITY_END, ticks)


def _pair_figure(found: Comparison, one: PairPanels) -> RGB:
    """A sample's images and maps in both runs, and what the maps differ in."""
    units = units_of(next(iter(found.maps.values())).attrs)
    maps = [panel for a, b, _ in one.maps for panel in (a, b)]
    end = limit(panel.values for panel in maps if panel.values is not None)
    blocks = [block("", panels) for panels in (one.images, maps) if panels]
    title = f"Pair {one.sample}. {found.names_in_words}"
    below = []
    for a, _, difference in one.maps:
        far = difference_limit([difference])
        panels = block("", [Panel("", None, to_density(difference, far))])
        words, ticks = f"B − A, {a.title.split()[0]}", difference_ticks(far, units.sign)
        drawn = sheet([panels], words, difference_words(units), end=DENSITY_END, ticks=ticks)
        below.append(trimmed(drawn))
    return stacked(sheet(blocks, title, units.bar, end=end), beside(*below))


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


def _paired_imacs(found: Comparison) -> Chart:
    """Every pair's IMACS in A and in B, and the mean difference with its interval."""
    table = found.tables["scores"].filter(level="unified").drop_nulls("imacs_difference")
    summary = found.tables["summary"].filter(level="unified", metric="imacs")
    ways = [way for way in DIRECTION_COLOURS if table.filter(direction=way).height]
    figure = new_figure(3.3 * len(ways) + 0.4, 3.4)
    for axes, way in zip(figure.subplots(1, len(ways), squeeze=False)[0], ways, strict=True):
        mean = summary.filter(direction=way).row(0, named=True)
        _slopes(axes, table.filter(direction=way), mean, way)
    return Chart("IMACS, pair by pair", found.names_in_words, figure)


def _slopes(axes: Axes, rows: pl.DataFrame, mean: dict[str, Any], way: str) -> None:
    """A line from A to B for each pair, and for the means."""
    colour = DIRECTION_COLOURS[way]
    both = rows.head(LINES).select("imacs_a", "imacs_b").to_numpy().T
    axes.plot([0, 1], both, "-", color=colour, lw=0.8, alpha=max(0.12, min(0.5, 8 / both.shape[1])))
    axes.plot([0, 1], both, "o", ms=3, mfc=colour, mec="white", mew=0.4, alpha=0.8)
    axes.plot([0, 1], [mean["mean_a"], mean["mean_b"]], "-o", color=INK, lw=1.8, ms=4.5)
    shown = "" if rows.height <= LINES else f"the first {LINES} of "
    interval = "" if mean["low"] is None else f" [{mean['low']:+.2g}, {mean['high']:+.2g}]"
    words = (
        f"{way.upper()}, {shown}{rows.height} pairs; black: mean, B − A {mean['difference']:+.3g}{interval}"
    )
    axes.set_title(words, fontsize=7, loc="left", color=FAINT)
    style_axes(axes, "y")
    axes.set_xlim(-0.25, 1.25)
    axes.set_xticks([0, 1], ["A", "B"], fontsize=FONT_SIZE, color=INK)
