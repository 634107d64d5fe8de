"""Make docs/demo.png from a demo's figures: python docs/picture.py out/demo 1 3 5 7."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

HEADING, FOOT = (82, 100), 394  # pixels: from here to here the panels' titles, and where the panels end


def main(demo: Path, samples: list[int]) -> None:
    """Stack the overviews of some samples, titles once."""
    figures = [Image.open(demo / "figures" / f"sample-{n:04d}.png").convert("RGB") for n in samples]
    width = figures[0].width
    parts = [figures[0].crop((0, HEADING[0], width, FOOT))]
    parts += [figure.crop((0, HEADING[1] + 8, width, FOOT)) for figure in figures[1:]]
    picture = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    small = picture.resize((width * 3 // 4, top * 3 // 4), Image.Resampling.LANCZOS)
    small.save("docs/demo.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(n) for n in sys.argv[2:]])
