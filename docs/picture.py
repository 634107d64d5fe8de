"""Make docs/demo.png and docs/levels.png from a demo's figures: python docs/picture.py out/demo 1 3 5 7."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from i2am.analysis.drawing.sheet import CAPTION, GAP, NOTE, TITLE


def main(demo: Path, samples: list[int]) -> None:
    """Stack the overviews of some samples, titles once; and take the layers of the first of them."""
    figures = [Image.open(demo / "figures" / f"sample-{n:04d}.png") for n in samples]
    width, height = figures[0].size
    end = height - NOTE - GAP
    parts = [figures[0].crop((0, TITLE - GAP, width, end))]
    parts += [figure.crop((0, TITLE + CAPTION, width, end)) for figure in figures[1:]]
    picture = Image.new("RGB", (width, sum(part.height + GAP for part in parts)), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height + GAP
    write(picture, 1400, "docs/demo.png")
    layers = Image.open(demo / "figures" / f"layer-{samples[0]:04d}.png")
    write(layers.crop((0, TITLE - GAP, *layers.size)), 1100, "docs/levels.png")


def write(picture: Image.Image, width: int, path: str) -> None:
    """Write a picture at a width (pixels)."""
    small = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    small.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(n) for n in sys.argv[2:]])
