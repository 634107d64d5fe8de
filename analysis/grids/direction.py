"""The two directions of a map, and the image that each lies on."""

from __future__ import annotations

from typing import Literal

from i2am.storage.errors import UnknownName

Direction = Literal["r2g", "g2r"]
DIRECTIONS: tuple[Direction, ...] = ("r2g", "g2r")
Side = Literal["gen", "ref"]


def side_of(direction: Direction) -> Side:
    """Where a map of this direction lies: on the generated image, or on the reference."""
    return "gen" if direction == "r2g" else "ref"


def other_side(side: Side) -> Side:
    """The other of the two images."""
    return "ref" if side == "gen" else "gen"


def check_direction(direction: str) -> Direction:
    """Return the direction; `UnknownName` if it is neither "r2g" nor "g2r"."""
    if direction not in DIRECTIONS:
        raise UnknownName("direction", direction, DIRECTIONS)
    return direction
