"""Ground of all charts: matplotlib without its global state, one look; and all figures' files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from i2am.analysis.drawing.colours import RGB
from i2am.analysis.drawing.text import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULE = "#d8d5cc"
R2G_COLOUR, G2R_COLOUR = "#a63d2f", "#2f5d8a"
SERIES = {"r2g": R2G_COLOUR, "g2r": G2R_COLOUR}
DPI = 160


def new_figure(width: float, height: float) -> Figure:
    """Figure of a size (inches) on white."""
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def plain(axes: Axes) -> None:
    """Take away what is not data."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=FAINT, labelsize=7.5, length=0)
    axes.grid(axis="x", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)


def pixels(figure: Figure) -> RGB:
    """Draw a figure: uint8 [y, x, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def save(figure: Figure | RGB, path: str | Path) -> None:
    """Write a figure as PNG, without a date, so that the same data gives the same file."""
    picture = pixels(figure) if isinstance(figure, Figure) else figure
    Image.fromarray(picture).save(path, format="PNG", compress_level=3)  # 6: a tenth less in twice the time
