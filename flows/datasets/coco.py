"""COCO by the paper's rule: per image the first object whose box covers 10 to 30% of it.

The mask is the box, the reference its crop (the paper's detection protocol, on val2017).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from i2am.flows.config.samples import Coco
from i2am.flows.console.output import one_line
from i2am.flows.datasets.common import (
    SampleInput,
    SampleSet,
    check_ids,
    existing_folder,
    file_inside,
    read_text,
    resized,
)
from i2am.flows.datasets.images import read_image
from i2am.storage.errors import ConfigError, ShapeMismatch

MAX_ANNOTATIONS = 1 << 29
"""Bytes of an annotation file; that of train2017 has 448 MB."""

MAX_SIDE = 1 << 20
"""Pixels along a side, as annotated."""


class Box(NamedTuple):
    """Pixels from ``left`` and ``top`` up to, not including, ``right`` and ``bottom``."""

    left: int
    top: int
    right: int
    bottom: int


def open_coco(config: Coco, seed: int, limit: int | None, size: tuple[int, int] | None) -> SampleSet:
    """One sample for each image with an object of the right size; `left_out` counts the other images.

    Ids are COCO's image ids with twelve digits.
    """
    folder = existing_folder(config.images, "image folder")
    images, objects = read_annotations(config.annotations)
    boxes = {
        number: box
        for number, image in images.items()
        if (box := first_box(image, objects.get(number, []), config.smallest, config.largest)) is not None
    }
    left_out = len(images) - len(boxes)
    chosen = dict(list(boxes.items())[:limit])
    names = {f"{number:012d}": number for number in chosen}
    check_ids(
        list(names), f"objects of {config.annotations} that cover {config.smallest} to {config.largest}"
    )
    files = {id: file_inside(folder, str(images[number]["file_name"]), id) for id, number in names.items()}
    seeds = {id: seed + position for position, id in enumerate(names)}

    def load(id: str) -> SampleInput:
        source, image = read_image(files[id], "source"), images[names[id]]
        if source.size != (image["width"], image["height"]):
            raise ShapeMismatch(
                f"image {files[id]}", expected=f"{image['width']}×{image['height']} pixels, as annotated",
                got=f"{source.width}×{source.height}", remedy="use the images that belong to the annotations",
            )  # fmt: skip
        found = _cut(source, boxes[names[id]])
        return SampleInput(id, seeds[id], {name: resized(each, name, size) for name, each in found.items()})

    return SampleSet(seeds, load, left_out)


def first_box(
    image: Mapping[str, Any], objects: list[Mapping[str, Any]], smallest: float, largest: float
) -> Box | None:
    """The first box, in the file's order, whose share of its image's area is in the bounds, both included.

    Crowds, and boxes without a pixel inside the image, are passed over.
    """
    width, height = float(image["width"]), float(image["height"])
    for each in objects:
        left, top, across, down = (float(number) for number in each["bbox"])
        if not each.get("iscrowd") and smallest <= across * down / (width * height) <= largest:
            right, bottom = min(round(left + across), int(width)), min(round(top + down), int(height))
            box = Box(max(round(left), 0), max(round(top), 0), right, bottom)
            if box.left < box.right and box.top < box.bottom:
                return box
    return None


def read_annotations(path: Path) -> tuple[dict[int, dict[str, Any]], dict[int, list[Mapping[str, Any]]]]:
    """Images, and objects in the file's order, by image id."""
    text = read_text(path, "annotation file", MAX_ANNOTATIONS)
    try:
        content = json.loads(text)
        images = {
            int(image["id"]): {key: image[key] for key in ("file_name", "width", "height")}
            for image in content["images"]
        }
        if any(
            not (1 <= image[side] <= MAX_SIDE) for image in images.values() for side in ("width", "height")
        ):
            raise ValueError(f"an image has a width and a height from 1 to {MAX_SIDE}")
        objects: dict[int, list[Mapping[str, Any]]] = {}
        for each in content["annotations"]:
            box = [float(n) for n in each["bbox"]]
            if len(box) != 4 or not all(map(math.isfinite, box)):
                raise ValueError("a bbox has four numbers")
            found = {"bbox": box, "iscrowd": each.get("iscrowd", 0)}
            objects.setdefault(int(each["image_id"]), []).append(found)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"annotation file {path}",
            expected="COCO's images (id, file_name, width, height) and annotations (image_id, bbox)",
            got=one_line(error),
        ) from None
    return images, objects


def _cut(source: Any, box: Box) -> dict[str, Any]:
    from PIL import Image

    mask = Image.new("L", source.size, 0)
    mask.paste(255, (box.left, box.top, box.right, box.bottom))
    return {"source": source, "mask": mask, "reference": source.crop(tuple(box))}
