"""Procedural reference-inpainting scenes, deterministic by seed, with the truth about every object.

A scene is a cluttered place with a hole to paint (``source`` and ``mask``), a picture of a textured object
somewhere else, at another size, among other things (``reference``), and the picture that the two describe
(``target``). Objects carry a two-colour pattern; distractors are smaller and plain, so a model can only tell
the object by looking at the reference's texture, never by its place, size or colour alone.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from i2am.pipeline.embedded.shapes import PATTERNS, SILHOUETTES, Field

SIZE = 64
"""Edge of every image, in pixels."""

Box: TypeAlias = tuple[int, int, int, int]
Image: TypeAlias = NDArray[np.uint8]
Mask: TypeAlias = NDArray[np.bool_]

_AXIS = (np.arange(SIZE, dtype=np.float32) + 0.5).astype(np.float32)
_X, _Y = (np.ascontiguousarray(grid) for grid in np.meshgrid(_AXIS, _AXIS))


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A textured object, wherever it stands: names of its shape and pattern, two RGB colours, radians."""

    silhouette: str
    pattern: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    angle: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One inpainting task and its truth. Images are uint8 [y, x, 3]; masks are bool [y, x]."""

    source: Image  # the place, without the object
    mask: Mask  # True where the object must be painted: its silhouette, or its box, with a margin
    reference: Image  # the object somewhere else
    target: Image  # the place with the object in it
    target_object: Mask  # the object's true pixels in `target`
    reference_object: Mask  # and in `reference`
    object: SceneObject
    seed: int

    @property
    def images(self) -> dict[str, Image | Mask]:
        """The images that a capture keeps."""
        return {
            "source": self.source,
            "mask": self.mask,
            "reference": self.reference,
            "reference_mask": self.reference_object,
        }

    @property
    def target_box(self) -> Box:
        return bounding_box(self.target_object)

    @property
    def reference_box(self) -> Box:
        return bounding_box(self.reference_object)


def bounding_box(mask: Mask) -> Box:
    """(top, left, bottom, right) of the True pixels of ``mask``, end exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("bounding_box: expected a mask with at least one True pixel, got an empty one")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def make_scene(seed: int) -> Scene:
    """The scene of ``seed``, the same bytes on every machine; its object covers 4 to 22% of the reference."""
    rng = np.random.default_rng(seed)
    obj = _object(rng)
    reference, reference_object, _ = _picture(rng, obj, radius=rng.uniform(10.5, 17.0))
    target, target_object, (source, mask) = _picture(rng, obj, radius=rng.uniform(10.0, 17.0))
    return Scene(
        source=_bytes(source),
        mask=mask,
        reference=_bytes(reference),
        target=_bytes(target),
        target_object=target_object,
        reference_object=reference_object,
        object=obj,
        seed=seed,
    )


def _picture(
    rng: np.random.Generator, obj: SceneObject, radius: float
) -> tuple[Field, Mask, tuple[Field, Mask]]:
    """A fresh place with the object in it: the picture, the object's pixels, and (the place, a hole)."""
    x, y = rng.uniform(radius + 1, SIZE - radius - 1, size=2)
    place = _background(rng)
    for _ in range(int(rng.integers(4, 8))):
        _add_distractor(rng, place, (x, y), radius)
    window, u, v = _frame(x, y, radius, obj.angle)
    distance = np.full((SIZE, SIZE), np.float32(SIZE))
    distance[window] = SILHOUETTES[obj.silhouette](u, v) * np.float32(radius)
    blend = PATTERNS[obj.pattern](u, v)[..., None]
    first, second = (np.asarray(colour, np.float32) for colour in obj.colours)
    picture = place.copy()
    _paint(picture[window], first + (second - first) * blend, distance[window])
    return picture, distance < 0, (place, _hole(rng, distance))


def _hole(rng: np.random.Generator, distance: Field) -> Mask:
    """The region to paint: the silhouette with a margin of 1 to 3 pixels, or one time in four its box."""
    margin = rng.uniform(1.0, 3.0)
    hole = distance < margin
    if rng.random() < 0.25:
        top, left, bottom, right = bounding_box(distance < 1.0)
        hole = np.zeros_like(hole)
        hole[top:bottom, left:right] = True
    return hole


def _object(rng: np.random.Generator) -> SceneObject:
    hue = rng.random()
    first = colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 1.0), rng.uniform(0.55, 1.0))
    second = colorsys.hsv_to_rgb(
        (hue + rng.uniform(-0.12, 0.12)) % 1.0, rng.uniform(0.15, 0.9), rng.choice([0.25, 0.95])
    )
    return SceneObject(
        silhouette=str(rng.choice(list(SILHOUETTES))),
        pattern=str(rng.choice(list(PATTERNS))),
        colours=(first, second),
        angle=float(rng.uniform(-0.5, 0.5)),
    )


def _background(rng: np.random.Generator) -> Field:
    """A muted gradient with slow waves: low in saturation, so that colour alone does not mark the object."""
    angle, hue = rng.uniform(0, 2 * np.pi), rng.random()
    ramp = (np.cos(angle) * _X + np.sin(angle) * _Y) / SIZE
    ramp = ramp + 0.12 * np.sin(_X * rng.uniform(0.05, 0.3) + rng.uniform(0, 6)) * np.sin(
        _Y * rng.uniform(0.05, 0.3) + rng.uniform(0, 6)
    )
    ends = [
        np.asarray(colorsys.hsv_to_rgb((hue + shift) % 1.0, rng.uniform(0.05, 0.3), value), np.float32)
        for shift, value in ((0.0, rng.uniform(0.3, 0.8)), (rng.uniform(0, 0.3), rng.uniform(0.3, 0.8)))
    ]
    weight = np.clip(ramp + 0.5 - ramp.mean(), 0.0, 1.0).astype(np.float32)[..., None]
    return np.asarray(ends[0] + (ends[1] - ends[0]) * weight, np.float32)


def _add_distractor(
    rng: np.random.Generator, picture: Field, avoid: tuple[float, float], distance: float
) -> None:
    """Paint one small plain shape, clear of the object; skipped where ten tries find no room."""
    radius = rng.uniform(2.5, 6.0)
    colour = np.asarray(
        colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.3, 1.0), rng.uniform(0.3, 1.0)), np.float32
    )
    silhouette = SILHOUETTES[str(rng.choice(list(SILHOUETTES)))]
    angle = rng.uniform(0, 2 * np.pi)
    for _ in range(10):
        x, y = rng.uniform(0, SIZE, size=2)
        if np.hypot(x - avoid[0], y - avoid[1]) > distance + radius + 1.5:
            window, u, v = _frame(x, y, radius, angle)
            _paint(picture[window], colour, silhouette(u, v) * np.float32(radius))
            return


def _frame(x: float, y: float, radius: float, angle: float) -> tuple[tuple[slice, slice], Field, Field]:
    """The window around a shape at (x, y), and its pixel centres in the shape's frame (radius 1, turned)."""
    reach = radius + 5.0
    window = (
        slice(max(0, int(y - reach)), min(SIZE, int(y + reach) + 1)),
        slice(max(0, int(x - reach)), min(SIZE, int(x + reach) + 1)),
    )
    dx, dy = ((grid[window] - np.float32(at)) / np.float32(radius) for grid, at in ((_X, x), (_Y, y)))
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return window, cos * dx + sin * dy, cos * dy - sin * dx


def _paint(picture: Field, colour: Field, distance: Field) -> None:
    """Blend ``colour`` into ``picture`` where ``distance`` (pixels) is negative; the edge is a pixel soft."""
    alpha = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    picture += (colour - picture) * alpha


def _bytes(picture: Field) -> Image:
    return np.asarray(np.clip(np.rint(picture * 255.0), 0, 255), np.uint8)
