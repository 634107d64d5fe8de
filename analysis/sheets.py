"""Blocks of panels as one figure, with one colour scale in units for all of them.

Pictures are set pixel by pixel, never resampled by the figure: equal values have equal colours in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.canvas import DPI, FAINT, INK, colour_bar, new_figure, pixels
from analysis.colour import RGB, limit
from analysis.panels import Block

WIDTH, LEAST, MOST = 1800, 150, 256
"""Pixels: what panels side by side share, and the longer side of one, at least and at most."""

MARGIN, GAP, CAPTION, HEADING, TITLE, NOTE, BAR = 20, 10, 22, 32, 56, 34, 150
"""Pixels: around all; between panels; words above a panel, a block and all; the note; the colour bar."""

NARROWEST = 760
"""Pixels that a figure is wide at least, so that its title has room."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A panel's picture in a figure: its left upper corner (pixels from the figure's), and its title."""

    x: int
    y: int
    picture: RGB
    title: str
    room: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything stands, in pixels: pictures, headings (x, y, words), size, and where panels end."""

    placed: tuple[Placed, ...]
    headings: tuple[tuple[int, int, str], ...]
    width: int
    height: int
    right: int
    bottom: int


def scale_end(blocks: Sequence[Block]) -> float:
    """End of the one scale of all maps of some blocks."""
    return limit(panel.values for block in blocks for panel in block.panels if panel.values is not None)


def layout(blocks: Sequence[Block], end: float, note: bool = False) -> Layout:
    """Place the panels of some blocks, one block below the other.

    Parameters
    ----------
    blocks
        From top to bottom.
    end
        End of the colour scale.
    note
        Whether to leave room for words below.
    """
    columns = max(block.columns for block in blocks)
    longest = int(np.clip(WIDTH // columns, LEAST, MOST))
    placed, headings = [], []
    top, widest = TITLE, 0
    for block in blocks:
        if block.title:
            headings.append((MARGIN, top + HEADING // 2, block.title))
            top += HEADING
        pictures = [panel.picture(end, longest) for panel in block.panels]
        high = max(picture.shape[0] for picture in pictures)
        wide = max(picture.shape[1] for picture in pictures)
        for number, (panel, picture) in enumerate(zip(block.panels, pictures, strict=True)):
            row, column = divmod(number, block.columns)
            x = MARGIN + column * (wide + GAP)
            y = top + row * (high + CAPTION + GAP) + CAPTION
            placed.append(Placed(x, y, picture, panel.title, wide))
        top += block.rows * (high + CAPTION + GAP) + GAP
        widest = max(widest, block.columns * (wide + GAP))
    width = max(NARROWEST, MARGIN + widest + BAR)
    height = top + (NOTE if note else 0)
    return Layout(tuple(placed), tuple(headings), width, height, MARGIN + widest, top - 2 * GAP)


def sheet(blocks: Sequence[Block], title: str, bar: str, note: str = "", end: float | None = None) -> RGB:
    """Draw blocks of panels.

    Parameters
    ----------
    blocks
        From top to bottom; each with a panel at least.
    title, note
        Words above and below; drawn as they are, without mathematics.
    bar
        Words of the colour bar: what is shown, in which unit.
    end
        End of the colour scale; None for one that holds the maps shown.

    Returns
    -------
    ndarray
        uint8 [y, x, 3].
    """
    end = scale_end(blocks) if end is None else end
    plan = layout(blocks, end, bool(note))
    drawn = _words(plan, title, bar, note, end)
    for panel in plan.placed:
        rows, columns = panel.picture.shape[:2]
        drawn[panel.y : panel.y + rows, panel.x : panel.x + columns] = panel.picture
    return drawn


def _words(plan: Layout, title: str, bar: str, note: str, end: float) -> RGB:
    """Everything but the pictures: titles and the colour bar, on white."""
    width, height = plan.width, plan.height
    figure = new_figure(width / DPI, height / DPI)

    def write(
        x: float, y: float, words: str, size: float, room: float, colour: str, bold: bool = False
    ) -> None:
        shown = cut(words, int(room / (size * DPI / 72 * 0.56)))
        figure.text(
            x / width,
            1 - y / height,
            shown,
            fontsize=size,
            color=colour,
            weight="bold" if bold else "normal",
            va="center",
            parse_math=False,
        )

    write(MARGIN, TITLE * 0.42, title, 10, (width - 2 * MARGIN) * 0.9, INK, bold=True)
    for x, y, words in plan.headings:
        write(x, y, words, 8, width - BAR - x, INK)
    for panel in plan.placed:
        write(panel.x, panel.y - CAPTION * 0.45, panel.title, 6.5, panel.room, FAINT)
    if note:
        write(MARGIN, height - NOTE * 0.6, note, 7, width - 2 * MARGIN, FAINT)
    first = min(panel.y for panel in plan.placed)
    length = min(plan.bottom - first, 520)
    place = ((plan.right + 14) / width, 1 - (first + length) / height, 14 / width, length / height)
    colour_bar(figure, figure.add_axes(place), end, bar, length)
    return pixels(figure)


def cut(words: str, letters: int) -> str:
    """Words cut in the middle to a number of letters."""
    if len(words) <= letters:
        return words
    half = max(1, (letters - 1) // 2)
    return words[:half] + "…" + words[-half:]
