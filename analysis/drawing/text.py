"""Words and the colour bar of a figure, drawn straight onto its pixels: faster than a plotting library."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from i2am.analysis.drawing.colours import palette, position, scale_ticks, times

INK, FAINT = "#1b1b1a", "#6e6c66"
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

TITLE_SIZE, HEADING_SIZE, NOTE_SIZE, CAPTION_SIZE = 22, 18, 15, 14
"""Heights of letters (pixels)."""

BAR_WIDTH, TIP = 14, 12
"""Pixels: of the colour bar, and of the tips that stand for what lies beyond its ends."""


def printable(words: str) -> str:
    """Replace controls, marks that turn the direction of what follows, and halves of surrogate pairs."""
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", words)


@lru_cache(maxsize=16)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, at a size (pixels)."""
    import matplotlib as mpl

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    # The basic layout is in every Pillow: the same picture with and without libraqm.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def write(
    picture: Image.Image,
    place: tuple[float, float],
    words: str,
    size: int,
    colour: str = INK,
    *,
    room: float = math.inf,
    bold: bool = False,
) -> None:
    """Write a line with its left end and middle height at (x, y), cut in its middle to `room` pixels."""
    letters = font(size, bold)
    line = fitting(words, letters, room)
    ImageDraw.Draw(picture).text(place, line, font=letters, fill=colour, anchor="lm")


def fitting(words: str, letters: ImageFont.FreeTypeFont, room: float) -> str:
    """Words in one line, cut in the middle so that it needs no more than `room` pixels."""
    line = " ".join(words.split())
    if letters.getlength(line) <= room:
        return line
    low, high = 0, len(line) // 2  # letters kept on either side
    while low < high:
        middle = (low + high + 1) // 2
        if letters.getlength(f"{line[:middle]}…{line[-middle:]}") <= room:
            low = middle
        else:
            high = middle - 1
    return f"{line[:low]}…{line[-low:]}" if low else "…"


def density_ticks(end: float) -> list[tuple[float, str]]:
    """Marks of the scale from 1/end to end: (place from 0 to 1, words)."""
    return [(float(position(tick, end)), times(tick)) for tick in scale_ticks(end)]


def colour_bar(
    picture: Image.Image,
    place: tuple[int, int],
    length: int,
    ticks: Sequence[tuple[float, str]],
    words: str,
) -> None:
    """Draw a scale, upwards from below, with ticks (place from 0 to 1, words) and what it measures.

    `place` is its left upper corner; the tips at its ends stand for what lies beyond them.
    """
    x, y = place
    draw = ImageDraw.Draw(picture)
    colours = palette()
    inner = length - 2 * TIP
    ramp = colours[np.linspace(len(colours) - 1, 0, inner).round().astype(int)]
    picture.paste(Image.fromarray(np.repeat(ramp[:, None], BAR_WIDTH, axis=1)), (x, y + TIP))
    top, bottom = y + TIP, y + length - TIP
    for base, tip, colour in ((top, y, colours[-1]), (bottom, y + length, colours[0])):
        corners = [(x, base), (x + BAR_WIDTH - 1, base), (x + BAR_WIDTH / 2, tip)]
        draw.polygon(corners, fill=tuple(colour.tolist()))
    for share, tick in ticks:
        at = bottom - share * inner
        draw.line([(x + BAR_WIDTH, at), (x + BAR_WIDTH + 4, at)], fill=INK)
        write(picture, (x + BAR_WIDTH + 8, at), tick, NOTE_SIZE)
    letters = font(NOTE_SIZE)
    along = fitting(words, letters, length)
    label = Image.new("RGB", (round(letters.getlength(along)) + 2, NOTE_SIZE + 6), "white")
    ImageDraw.Draw(label).text((0, label.height / 2), along, font=letters, fill=FAINT, anchor="lm")
    turned = label.rotate(90, expand=True)
    picture.paste(turned, (x + BAR_WIDTH + 74, y + (length - turned.height) // 2))
