"""Silhouettes and surface patterns of the procedural scenes, as functions of local coordinates.

A silhouette is a signed distance-like field, negative inside and in units of the shape's radius; a pattern
is a field in [0, 1] that blends an object's two colours. Both take coordinate grids in the object's own
frame, in which the silhouette fits the unit circle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
FieldFunction = Callable[[Field, Field], Field]


def _polygon(sides: int, phase: float, inner: float = 1.0) -> FieldFunction:
    """Regular polygon (``inner`` 1) or star (``inner`` below 1) with its first corner at angle ``phase``."""
    corners = sides if inner == 1.0 else 2 * sides
    angles = phase + 2 * np.pi * np.arange(corners) / corners
    radii = np.where(np.arange(corners) % 2 == 0, 1.0, inner)
    xs, ys = radii * np.cos(angles), radii * np.sin(angles)

    def field(u: Field, v: Field) -> Field:
        # Triangles fanned from the centre: inside the one that a point's angle selects, the distance to its
        # outer edge decides. Valid for star-shaped outlines, which all of these are.
        turn = np.mod(np.arctan2(v, u) - phase, 2 * np.pi) * (corners / (2 * np.pi))
        k = np.minimum(turn.astype(np.int64), corners - 1)
        nxt = (k + 1) % corners
        ex, ey = (xs[nxt] - xs[k]), (ys[nxt] - ys[k])
        return np.asarray(((u - xs[k]) * ey - (v - ys[k]) * ex) / np.hypot(ex, ey), np.float32)

    return field


def _disc(u: Field, v: Field) -> Field:
    return np.asarray(np.hypot(u, v) - 1.0, np.float32)


def _cross(u: Field, v: Field) -> Field:
    a, b = np.abs(u), np.abs(v)
    return np.asarray(np.minimum(np.maximum(a - 0.36, b - 0.93), np.maximum(b - 0.36, a - 0.93)), np.float32)


def _ellipse(u: Field, v: Field) -> Field:
    return np.asarray((np.hypot(u, v / np.float32(0.62)) - 1.0) * 0.62, np.float32)


SILHOUETTES: dict[str, FieldFunction] = {
    "disc": _disc,
    "ellipse": _ellipse,
    "square": _polygon(4, np.pi / 4),
    "triangle": _polygon(3, -np.pi / 2),
    "hexagon": _polygon(6, 0.0),
    "star": _polygon(5, -np.pi / 2, inner=0.52),
    "cross": _cross,
}
"""Outline name to signed field: negative inside, zero on the edge, in radii."""


def _wave(phase: Field) -> Field:
    """Square wave of period 1 with soft flanks, so that patterns do not alias at 64 pixels."""
    return np.asarray(np.clip(0.5 + 2.5 * np.sin(2 * np.pi * phase), 0.0, 1.0), np.float32)


def _dots(u: Field, v: Field) -> Field:
    product = np.cos(2 * np.pi * 1.1 * u) * np.cos(2 * np.pi * 1.1 * v)
    return np.asarray(np.clip(0.5 + 1.6 * product, 0.0, 1.0), np.float32)


def _checks(u: Field, v: Field) -> Field:
    product = np.sin(2 * np.pi * 0.8 * u) * np.sin(2 * np.pi * 0.8 * v)
    return np.asarray(np.clip(0.5 + 3.0 * product, 0.0, 1.0), np.float32)


PATTERNS: dict[str, FieldFunction] = {
    "stripes": lambda u, v: _wave(np.float32(1.25) * u),
    "bands": lambda u, v: _wave(np.float32(1.25) * v),
    "diagonal": lambda u, v: _wave(np.float32(0.95) * (u + v)),
    "checks": _checks,
    "dots": _dots,
    "rings": lambda u, v: _wave(np.float32(1.5) * np.hypot(u, v) + np.float32(0.25)),
}
"""Pattern name to blend field: 0 is the first colour, 1 the second."""
