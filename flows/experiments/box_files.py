"""True boxes and detections from files, as boxes in pixels of a run's images; what cannot fit is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from i2am.analysis.experiments.boxes import Box
from i2am.analysis.grids.direction import DIRECTIONS
from i2am.analysis.grids.resize import Grid
from i2am.flows.console.output import one_line
from i2am.flows.datasets.coco import first_box, read_annotations
from i2am.flows.datasets.common import read_text
from i2am.storage.errors import ConfigError, InputError, NoAnswer, NotFound

TOLERANCE = 1.0  # pixels that a box may reach beyond its image: detectors round
SMALLEST, LARGEST = 0.1, 0.3  # share of the image that the paper's object covers
REFERENCE = "reference"  # the image of detections that answer G2R; all others answer R2G
MOST_BYTES = 1 << 30  # of a results file
_COLUMNS = ("x", "y", "width", "height")


@dataclass(frozen=True, slots=True)
class TrueBoxes:
    """True boxes from a file, by direction and sample, and the sizes of the images they were drawn on."""

    name: str
    boxes: Mapping[str, Mapping[str, Box]]
    drawn_on: Mapping[str, Grid] = field(default_factory=dict)  # by sample; empty: the run's own images


def read_truth(path: Path, sizes: Mapping[str, Mapping[str, Grid]]) -> TrueBoxes:
    """The boxes of a COCO annotation file (.json, of the generated images) or a table (.parquet).

    `sizes` are those of the run's images, (rows, columns) by direction and sample.
    """
    if path.suffix in (".json", ".parquet"):
        _check_file(path, "true boxes", "--truth")
    if path.suffix == ".json":
        return _coco_truth(path, sizes["r2g"])
    if path.suffix == ".parquet":
        return _parquet_truth(path, sizes)
    raise InputError(
        f"--truth {path}",
        expected="mask, reference_mask, a COCO annotation file .json or a table .parquet",
        remedy="name one of them, or leave --truth out: the run's own masks",
    )


def _coco_truth(path: Path, sizes: Mapping[str, Grid]) -> TrueBoxes:
    images, objects = read_annotations(path)
    numbers = {
        name: number for number, image in images.items() for name in _names(number, image["file_name"])
    }
    boxes, drawn_on = {}, {}
    for sample, size in sizes.items():
        image = images.get(numbers.get(sample, -1))
        own = [] if image is None else objects.get(numbers[sample], [])
        found = None if image is None else first_box(image, own, SMALLEST, LARGEST)
        if image is None or (found is None and len(own) != 1):
            raise NoAnswer(
                f"the true box of sample {sample!r} from {path}",
                expected=f"an annotation of {SMALLEST:.0%} to {LARGEST:.0%} of the image, or its only one",
                got="no image of that id or name" if image is None else f"{len(own)} of other sizes",
                remedy="leave this sample out with --sample, or give the annotations of the captured images",
            )
        grid = (int(image["height"]), int(image["width"]))
        raw = (
            Box(*own[0]["bbox"])
            if found is None
            else Box(found.left, found.top, found.right - found.left, found.bottom - found.top)
        )
        boxes[sample] = _inside(raw, grid, f"sample {sample!r} in {path}").scaled(grid, size)
        drawn_on[sample] = grid
    return TrueBoxes(path.name, {"r2g": boxes}, drawn_on)


def _check_file(path: Path, what: str, option: str) -> None:
    if not path.is_file():
        raise NotFound(f"{what}: file {path} does not exist", remedy=f"correct {option}")


def _names(number: int, file_name: Any) -> tuple[str, ...]:
    """What a sample of a COCO image may be called."""
    return f"{number:012d}", str(number), Path(str(file_name)).stem


def _parquet_truth(path: Path, sizes: Mapping[str, Mapping[str, Grid]]) -> TrueBoxes:
    """Columns sample, x, y, width, height, and direction where it is not "r2g"."""
    try:
        table = pl.read_parquet(path)
        if "direction" not in table.columns:
            table = table.with_columns(pl.lit("r2g").alias("direction"))
        table = table.select(pl.col("sample", "direction").cast(pl.String), pl.col(_COLUMNS).cast(pl.Float64))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ConfigError(
            f"table {path}",
            expected="Parquet with the columns sample, x, y, width, height",
            got=one_line(error),
        ) from None
    boxes: dict[str, dict[str, Box]] = {}
    for sample, direction, *numbers in table.iter_rows():
        if direction not in DIRECTIONS:
            raise ConfigError(f"column direction of {path}", expected="r2g or g2r", got=repr(direction))
        if sample not in sizes[direction]:
            continue
        if sample in boxes.setdefault(direction, {}):
            raise ConfigError(
                f"table {path}", expected="one box for each sample", got=f"several of {sample!r}"
            )
        numbers = [math.nan if number is None else number for number in numbers]
        boxes[direction][sample] = _inside(
            Box(*numbers), sizes[direction][sample], f"sample {sample!r} in {path}"
        )
    for direction in dict.fromkeys(table["direction"]) if boxes else ["r2g"]:
        for sample in sizes[direction]:
            if sample not in boxes.get(direction, {}):
                raise NoAnswer(
                    f"the true box of sample {sample!r} from {path}",
                    expected=f"a row of direction {direction}",
                    remedy="leave this sample out with --sample, or add its row",
                )
    return TrueBoxes(path.name, boxes)


def read_detections(
    path: Path, sizes: Mapping[str, Mapping[str, Grid]], drawn_on: Mapping[str, Grid]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Boxes of a COCO results file by direction and sample: [n, 5], the best first.

    An entry's own "image" and "image_size" ([rows, columns]), which `i2am detector` writes, say what it was
    found in; otherwise it is of the true boxes' images (`drawn_on`), or of the run's.
    """
    entries = _read_results(path)
    names = {alias: sample for sample in sizes["r2g"] for alias in _aliases(sample)}
    found: dict[str, dict[str, list[list[float]]]] = {}
    for entry in entries:
        sample = names.get(str(entry["image_id"]))
        direction = "g2r" if entry.get("image") == REFERENCE else "r2g"
        if sample is None or sample not in sizes[direction]:
            continue
        size = sizes[direction][sample]
        seen = entry["image_size"] or (drawn_on.get(sample, size) if direction == "r2g" else size)
        box = _inside(Box(*entry["bbox"]), seen, f"image {entry['image_id']!r} in {path}").scaled(seen, size)
        found.setdefault(direction, {}).setdefault(sample, []).append([*box, entry["score"]])
    if entries and not found:
        raise InputError(
            f"detections {path} are of another image set",
            expected=f"image ids such as {next(iter(names))!r}",
            got=repr(entries[0]["image_id"]),
            remedy="run the detector on the images of this run: i2am detector",
        )
    return {
        direction: {name: _best_first(boxes) for name, boxes in own.items()}
        for direction, own in found.items()
    }


def _aliases(sample: str) -> tuple[str, ...]:
    """Image ids that mean a sample: its own, and, of one that ends in digits alone, the number."""
    return (sample, str(int(sample))) if sample.isdecimal() and sample.isascii() else (sample,)


def _best_first(boxes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    values = np.asarray(boxes, dtype=np.float64)
    return values[np.argsort(-values[:, 4], kind="stable")]


def _read_results(path: Path) -> list[dict[str, Any]]:
    _check_file(path, "detections", "--detections")
    text = read_text(path, "detections", MOST_BYTES)
    try:
        return [
            {
                "image_id": entry["image_id"],
                "image": entry.get("image"),
                "image_size": _grid(entry.get("image_size")),
                "bbox": [float(number) for number in _four(entry["bbox"])],
                "score": _finite(entry["score"]),
            }
            for entry in _list(json.loads(text))
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"detections {path}",
            expected="COCO results: a list of image_id, bbox [x, y, width, height], score",
            got=one_line(error),
        ) from None


def _list(content: Any) -> list[Any]:
    if not isinstance(content, list):
        raise TypeError(f"the file holds a {type(content).__name__}, not a list")
    return content


def _four(box: Any) -> Any:
    if len(box) != 4:
        raise ValueError("a bbox has four numbers")
    return box


def _finite(score: Any) -> float:
    if not math.isfinite(float(score)):
        raise ValueError("a score is a finite number")
    return float(score)


def _grid(size: Any) -> Grid | None:
    if size is None:
        return None
    rows, columns = (int(side) for side in size)
    if min(rows, columns) < 1:
        raise ValueError("image_size is [rows, columns]")
    return rows, columns


def _inside(box: Box, size: Grid, what: str) -> Box:
    """The box, cut to its image; refused where it reaches beyond, or is empty."""
    rows, columns = size
    right, bottom = box.x + box.width, box.y + box.height
    fits = min(box.x, box.y) >= -TOLERANCE and right <= columns + TOLERANCE and bottom <= rows + TOLERANCE
    left, top = max(box.x, 0.0), max(box.y, 0.0)
    cut = Box(left, top, min(right, columns) - left, min(bottom, rows) - top)
    if not (fits and cut.width > 0 and cut.height > 0):  # false where there is a NaN
        raise InputError(
            f"the box of {what}",
            expected=f"x, y, width, height inside {columns}×{rows} pixels",
            got=", ".join(f"{number:g}" for number in box),
            remedy="give boxes in pixels of that image",
        )
    return cut
