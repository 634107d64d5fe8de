"""The detection experiment: boxes from a run's maps, beside baselines and supervised detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from i2am.analysis.drawing.experiments.box_pictures import BoxPanel, box_sheet
from i2am.analysis.drawing.images import rgb
from i2am.analysis.drawing.matplotlib_style import save
from i2am.analysis.events import Listener, counter, ignore
from i2am.analysis.experiments.box_rules import opencv
from i2am.analysis.experiments.detection_scores import Found, method_words, score_boxes
from i2am.analysis.experiments.text_to_image import text_to_image_rows
from i2am.analysis.grids.direction import side_of
from i2am.analysis.grids.regions import IMAGES, sample_image
from i2am.analysis.grids.selection import select_samples
from i2am.analysis.output_digests import write_mark
from i2am.analysis.output_directory import OutputKind, output_directory
from i2am.analysis.scores.bootstrap import CONFIDENCE, check_confidence
from i2am.flows.experiments.box_files import TrueBoxes, read_detections, read_truth
from i2am.flows.experiments.run_boxes import (
    Truths,
    blind_boxes,
    boxes_of_maps,
    image_sizes,
    map_questions,
    run_truths,
)
from i2am.storage.errors import DamagedSample, NoAnswer
from i2am.storage.reading.open import Place, open_any
from i2am.storage.reading.run_collection import home_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from i2am.storage.reading.run_collection import AnyRun

KIND = OutputKind("a detection", ("tables", "pictures", "detection.json"), "detection.json")
LEAST_SCORE = 0.5  # of a supervised detector's box, to count: the paper's
OWN_MASKS = ("mask", "reference_mask")
SIDE_BY_SIDE = 6  # samples in the picture beside DAAM
Key = tuple[str, str, str, str]  # method, region, rule, direction


@dataclass(frozen=True, slots=True)
class DetectionResult:
    """What a detection made."""

    out: Path
    table: pl.DataFrame  # tables/detection.parquet: see `detection_scores.SCHEMA`
    boxes: pl.DataFrame  # tables/detection_boxes.parquet: the best box of every method and sample
    text_to_image: pl.DataFrame  # tables/text_to_image.parquet
    samples: tuple[str, ...]
    absent: tuple[str, ...]  # methods without an answer, and why
    refusals: tuple[dict[str, str], ...]  # damaged samples that were left out

    def to_json(self) -> dict[str, Any]:
        """Return everything but the boxes as JSON types."""
        return {
            "out": str(self.out),
            "tables": {
                name: f"{self.out}/tables/{name}.parquet"
                for name in ("detection", "detection_boxes", "text_to_image")
            },
            "samples": list(self.samples),
            "absent": list(self.absent),
            "refusals": list(self.refusals),
            "scores": self.table.to_dicts(),
        }


def detect_run(
    run: Place | Sequence[Place] | AnyRun,
    out: Path,
    truth: str | None = None,
    detections: Mapping[str, Path] | None = None,
    samples: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    confidence: float = CONFIDENCE,
    pictures: int = 12,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> DetectionResult:
    """Find boxes in a run's maps, score them beside baselines and detections, write tables and pictures.

    `truth` is "mask", "reference_mask" or a file of boxes; None: every mask of the run, and what was painted.
    `detections` are COCO results files by name. Everything lands in `out`, or nothing.
    """
    check_confidence(confidence)
    opencv()
    opened = open_any(run)
    names = select_samples(opened, samples)
    sizes = image_sizes(opened, names)
    truths, drawn_on = _truths(opened, names, truth, sizes)
    found = [
        Found(name, "", "", direction, boxes, least=LEAST_SCORE)
        for name, path in (detections or {}).items()
        for direction, boxes in read_detections(path, sizes, drawn_on).items()
    ]
    emit = on_event or ignore
    damaged: dict[str, str] = {}
    ways = {way for way, _ in truths}
    drawn = set(names[: max(pictures, SIDE_BY_SIDE)])
    maps, absent = _ask_maps(opened, names, layers, sizes, ways, drawn, damaged, emit)
    good = tuple(name for name in names if name not in damaged)
    if not good:
        raise DamagedSample(names[0], None, damaged[names[0]])
    truths = {key: {n: box for n, box in own.items() if n in good} for key, own in truths.items()}
    blind = [one for way in sorted({way for way, _ in truths}) for one in blind_boxes(way, sizes[way])]
    table, boxes = score_boxes([*(one for one, _ in maps), *blind, *found], truths, confidence)
    compared = text_to_image_rows(table, boxes, confidence)
    result = DetectionResult(
        out, table, boxes, compared, good, absent,
        tuple({"sample": name, "reason": reason} for name, reason in damaged.items()),
    )  # fmt: skip
    with output_directory(out, KIND, overwrite) as place:
        made = place.staging / "made"
        (made / "tables").mkdir(parents=True)
        table.write_parquet(made / "tables" / "detection.parquet")
        boxes.write_parquet(made / "tables" / "detection_boxes.parquet")
        compared.write_parquet(made / "tables" / "text_to_image.parquet")
        _draw(opened, maps, boxes, good, pictures, made / "pictures", emit)
        facts = {"run": opened.path, "samples": list(good), "absent": list(absent), "truth": truth}
        write_mark(made, KIND.outputs, KIND.mark, facts)
        place.publish(made)
    return result


def _truths(
    run: AnyRun, names: Sequence[str], truth: str | None, sizes: Mapping[str, Mapping[str, tuple[int, int]]]
) -> tuple[Truths, Mapping[str, tuple[int, int]]]:
    """(true boxes by (direction, name), sizes of the images that a file's boxes were drawn on)."""
    if truth is None or truth in OWN_MASKS:
        truths = run_truths(run, names, truth)
        if not truths:
            raise NoAnswer(
                "true boxes from this run", expected="images mask or reference_mask", got="neither",
                remedy="give boxes: --truth F.json or F.parquet",
            )  # fmt: skip
        return truths, {}
    given: TrueBoxes = read_truth(Path(truth), sizes)
    return {(way, given.name): dict(own) for way, own in given.boxes.items()}, given.drawn_on


def _ask_maps(
    run: AnyRun,
    names: Sequence[str],
    layers: Sequence[str] | None,
    sizes: Mapping[str, Mapping[str, tuple[int, int]]],
    directions: set[str],
    drawn: set[str],
    damaged: dict[str, str],
    emit: Listener,
) -> tuple[list[tuple[Found, dict[str, NDArray[np.float64]]]], tuple[str, ...]]:
    """Boxes and maps of every question that can be answered, and why others cannot."""
    asked = [one for one in map_questions(run) if one.direction in directions]
    step = counter(emit, "maps", len(asked))
    found, absent = [], []
    for one in asked:
        try:
            found.append(
                boxes_of_maps(run, one, names, sizes[one.direction], {"layers": layers}, drawn, damaged)
            )
        except NoAnswer as error:
            absent.append(f"{one.method}, {one.region}, {one.rule}, {one.direction}: {error}")
        step()
    if not found:
        raise NoAnswer("boxes from this run's maps", got=absent[0], remedy="select other layers")
    return found, tuple(absent)


def _draw(
    run: AnyRun,
    maps: Sequence[tuple[Found, Mapping[str, NDArray[np.float64]]]],
    boxes: pl.DataFrame,
    samples: Sequence[str],
    count: int,
    folder: Path,
    emit: Listener,
) -> None:
    """A picture of each of some samples with every method's box, and one of I²AM beside DAAM."""
    folder.mkdir()
    by_key = {(f.method, f.region, f.rule, f.direction): values for f, values in maps}
    step = counter(emit, "pictures", min(count, len(samples)) + 1)
    for number, sample in enumerate(samples[:count], start=1):
        panels = _panels(run, boxes.filter(pl.col("sample") == sample), by_key, sample)
        heading = {"r2g": "On the generated image", "g2r": "On the reference"}
        rows = [(heading[way], own) for way, own in panels.items()]
        save(box_sheet(f"Boxes of sample {sample}", rows), folder / f"boxes-{number:04d}.png")
        step()
    beside = []
    for sample in samples[:SIDE_BY_SIDE]:
        own = boxes.filter((pl.col("sample") == sample) & (pl.col("rule") == "corrected"))
        # Those of the object's tokens, where they have a place; all tokens where they have none.
        answered = own.filter(method="i2am", direction="r2g")["region"]
        region = "reference_mask" if "reference_mask" in answered else "all"
        kept = own.filter((pl.col("region") == region) | (pl.col("direction") == "g2r"))
        panels = _panels(run, kept, by_key, sample)
        beside.append((f"sample {sample}", [panel for own_panels in panels.values() for panel in own_panels]))
    if any(panels for _, panels in beside):
        save(box_sheet("I²AM and DAAM on the same store", beside), folder / "text_to_image.png")
    step()


def _panels(
    run: AnyRun, rows: pl.DataFrame, maps: Mapping[Key, Mapping[str, NDArray[np.float64]]], sample: str
) -> dict[str, list[BoxPanel]]:
    """Panels of one sample by direction, one for each method; a truth is shown once, the first there is."""
    panels: dict[str, list[BoxPanel]] = {}
    for row in rows.unique(["method", "region", "rule", "direction"], keep="first", maintain_order=True).rows(
        named=True
    ):
        image = _image(run, row["direction"], sample)
        if image is None or row["method"].startswith("random"):
            continue
        values = maps.get((row["method"], row["region"], row["rule"], row["direction"]), {}).get(sample)
        if values is not None and row["rule"] == "official":
            values = values / values.mean() if values.mean() > 0 else None
        words = method_words({**row, "rule": row["rule"].replace("corrected", "")})
        found = tuple(row[name] for name in ("x", "y", "width", "height"))
        true = tuple(row[f"true_{name}"] for name in ("x", "y", "width", "height"))
        title = f"{words}: IoU {row['iou']:.2f}"
        panels.setdefault(row["direction"], []).append(
            BoxPanel(title, image, values, None if found[0] is None else found, true)
        )
    return panels


def _image(run: AnyRun, direction: str, sample: str) -> NDArray[np.uint8] | None:
    for name in IMAGES[side_of(direction)]:  # type: ignore[arg-type]
        pixels = sample_image(home_of(run, sample), name, sample)
        if pixels is not None:
            return rgb(pixels)
    return None
