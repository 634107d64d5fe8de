"""What a run itself says of boxes: true ones from its masks and images, and found ones from its maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from i2am.analysis.experiments.box_rules import opencv
from i2am.analysis.experiments.boxes import BOX_SCHEMA, Box, mask_box, random_box, whole_image
from i2am.analysis.experiments.detection import find_boxes, layers_of_rule
from i2am.analysis.experiments.detection_scores import Found
from i2am.analysis.grids.direction import Direction, side_of
from i2am.analysis.grids.regions import IMAGES, image_mask, sample_image
from i2am.analysis.grids.resize import Grid
from i2am.analysis.maps.attribution import attribution_maps
from i2am.analysis.marginals.quantities import REGION_IMAGE
from i2am.storage.errors import DamagedSample, NoAnswer
from i2am.storage.reading.run_collection import home_of

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun

CHANGED = 32  # of 255: a painted pixel differs so much from the source in a channel
RANDOM = {"random 10-30%": (0.1, 0.3), "random 30-50%": (0.3, 0.5)}  # the paper's, and that of its README
Truths = dict[tuple[str, str], dict[str, Box]]


@dataclass(frozen=True, slots=True)
class MapQuestion:
    """One way to boxes through maps of the run."""

    method: str
    region: str  # "all", or the mask whose tokens or patches the map is made of
    rule: str
    direction: Direction
    ask: Mapping[str, Any] = field(default_factory=dict)  # of `attribution_maps`


def map_questions(run: AnyRun) -> Iterator[MapQuestion]:
    """The paper's method by both rules in both directions, and DAAM."""
    for way in ("r2g", "g2r"):
        direction: Direction = way
        region = REGION_IMAGE[direction]
        at = {"at": region}
        if region in run.images:
            yield MapQuestion("i2am", region, "corrected", direction, at)
        yield MapQuestion("i2am", "all", "corrected", direction)
        yield MapQuestion("i2am", "all", "official", direction, {"protocol": "official"})
        if direction == "r2g":
            if region in run.images:
                yield MapQuestion("daam", region, "corrected", direction, at | {"method": "daam"})
            yield MapQuestion("daam", "all", "corrected", direction, {"method": "daam"})


def image_sizes(run: AnyRun, samples: Sequence[str]) -> dict[str, dict[str, Grid]]:
    """(rows, columns) of the image of each direction's maps, by direction and sample."""
    found: dict[str, dict[str, Grid]] = {"r2g": {}, "g2r": {}}
    for sample in samples:
        images = home_of(run, sample).record(sample)["images"]
        for direction, sizes in found.items():
            named = [name for name in IMAGES[side_of(direction)] if name in images]  # type: ignore[arg-type]
            if named:
                rows, columns = images[named[0]]["shape"][:2]
                sizes[sample] = (rows, columns)
    return found


def run_truths(run: AnyRun, samples: Sequence[str], wanted: str | None) -> Truths:
    """True boxes by (direction, name): of the masks, or of the wanted one, and of what was painted."""
    truths: Truths = {}
    for direction, name in (("r2g", "mask"), ("r2g", "generated"), ("g2r", "reference_mask")):
        if wanted not in (None, name) and (wanted, name) != ("mask", "generated"):
            continue
        boxes = {}
        for sample in samples:
            box = painted_box(run, sample) if name == "generated" else _mask_box(run, name, sample)
            if box is not None:
                boxes[sample] = box
        if boxes:
            truths[direction, name] = boxes
    if wanted is not None and not any(name == wanted for _, name in truths):
        raise NoAnswer(
            f"true boxes from {wanted!r}", expected="an image of that name in the run, not empty", got="none",
            remedy="give boxes: --truth F.json or F.parquet",
        )  # fmt: skip
    return truths


def _mask_box(run: AnyRun, name: str, sample: str) -> Box | None:
    pixels = sample_image(home_of(run, sample), name, sample)
    return None if pixels is None else mask_box(image_mask(pixels))


def painted_box(run: AnyRun, sample: str) -> Box | None:
    """The box of the largest connected part of the mask where the generated image differs from the source."""
    home = home_of(run, sample)
    found = [sample_image(home, name, sample) for name in ("source", "generated", "mask")]
    if any(image is None for image in found):
        return None
    source, generated, mask = (np.asarray(image).astype(np.int16) for image in found)
    if not source.shape[:2] == generated.shape[:2] == mask.shape[:2]:
        return None
    changed = (np.abs(source - generated).max(axis=-1) > CHANGED) & image_mask(mask.astype(np.uint8))
    _, parts, sizes, _ = opencv().connectedComponentsWithStats(changed.astype(np.uint8), connectivity=8)
    return mask_box(parts == 1 + sizes[1:, 4].argmax()) if len(sizes) > 1 else None


def boxes_of_maps(
    run: AnyRun,
    question: MapQuestion,
    samples: Sequence[str],
    sizes: Mapping[str, Grid],
    selected: Mapping[str, Any],
    drawn: set[str],
    damaged: dict[str, str],
) -> tuple[Found, dict[str, NDArray[np.float64]]]:
    """(boxes, maps of the `drawn` samples) of a question; damaged samples are noted and left out.

    A map that is not finite, of an empty region, gives no box.
    """
    if selected.get("layers") is None:
        selected = {**selected, "layers": layers_of_rule(question.rule, run.layers)}
    maps = attribution_maps(run, question.direction, samples=list(samples), **selected, **question.ask)
    rows: list[pl.DataFrame] = [pl.DataFrame(schema=dict(BOX_SCHEMA))]
    points: dict[str, tuple[float, float]] = {}
    values: dict[str, NDArray[np.float64]] = {}
    for number, sample in enumerate(maps["sample"].values):
        if sample in damaged or sample not in sizes:
            continue
        try:
            one = maps.isel(sample=[number]).compute()
        except DamagedSample as error:
            damaged[str(sample)] = str(error)
            continue
        if str(sample) in drawn:
            values[str(sample)] = np.asarray(one[0], dtype=np.float64)
        if np.isfinite(one.values).all():
            found, own = find_boxes(one, question.rule, size=sizes[sample])  # type: ignore[arg-type]
            rows.append(found)
            points |= own
    table = pl.concat(rows)
    boxes = {row[0]: np.array([row[1:]]) for row in table.iter_rows()}
    return Found(question.method, question.region, question.rule, question.direction, boxes, points), values


def blind_boxes(direction: str, sizes: Mapping[str, Grid], seed: int = 0) -> list[Found]:
    """The baselines that look at no image: all of it, and random boxes."""
    every = {sample: _scored(whole_image(size)) for sample, size in sizes.items()}
    found = [Found("overall", "", "", direction, every)]
    for number, (name, shares) in enumerate(RANDOM.items()):
        chance = np.random.default_rng((seed, number))
        boxes = {sample: _scored(random_box(chance, sizes[sample], shares)) for sample in sorted(sizes)}
        found.append(Found(name, "", "", direction, boxes))
    return found


def _scored(box: Box) -> NDArray[np.float64]:
    return np.array([[*box, 0.5]])
