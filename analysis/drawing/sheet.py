"""Blocks of panels as one figure, with one colour scale; pictures are set pixel by pixel, never resampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from i2am.analysis.drawing.colours import RGB, limit
from i2am.analysis.drawing.panels import Block
from i2am.analysis.drawing.text import (
    CAPTION_SIZE,
    FAINT,
    HEADING_SIZE,
    NOTE_SIZE,
    TITLE_SIZE,
    colour_bar,
    density_ticks,
    write,
)

WIDTH, LEAST, MOST = 1800, 150, 256
"""Pixels: what panels side by side share, and the longer side of one, at least and at most."""

MARGIN, GAP, CAPTION, HEADING, TITLE, NOTE, BAR = 20, 10, 22, 32, 56, 34, 150
"""Pixels: around all; between panels; words above a panel, a block and all; the note; the colour bar."""

LONGEST_BAR = 520
"""Pixels of the colour bar, at most."""

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
    """Place the panels of some blocks, one block below the other; a note leaves room for words below."""
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


def sheet(
    blocks: Sequence[Block],
    title: str,
    bar: str,
    note: str = "",
    end: float | None = None,
    ticks: Sequence[tuple[float, str]] | None = None,
) -> RGB:
    """Draw blocks of panels, one below the other, beside one colour bar of words `bar`.

    `title` and `note` stand above and below; `end` is that of the colour scale, None for one that holds the
    maps shown; `ticks` are (place from 0 to 1, words) along it, None for those of densities.
    """
    end = scale_end(blocks) if end is None else end
    plan = layout(blocks, end, bool(note))
    drawn = Image.new("RGB", (plan.width, plan.height), "white")
    room = plan.width - 2 * MARGIN
    write(drawn, (MARGIN, TITLE * 0.42), title, TITLE_SIZE, room=room, bold=True)
    for x, y, words in plan.headings:
        write(drawn, (x, y), words, HEADING_SIZE, room=plan.width - MARGIN - x)
    for panel in plan.placed:
        write(drawn, (panel.x, panel.y - CAPTION * 0.45), panel.title, CAPTION_SIZE, FAINT, room=panel.room)
        drawn.paste(Image.fromarray(panel.picture), (panel.x, panel.y))
    if note:
        write(drawn, (MARGIN, plan.height - NOTE * 0.6), note, NOTE_SIZE, FAINT, room=room)
    first = min(panel.y for panel in plan.placed)
    marks = density_ticks(end) if ticks is None else ticks
    colour_bar(drawn, (plan.right + 14, first), min(plan.bottom - first, LONGEST_BAR), marks, bar)
    return np.asarray(drawn)
