"""Supervised detectors on a run's images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from i2am.analysis.drawing.images import rgb
from i2am.analysis.grids.regions import sample_image
from i2am.analysis.grids.selection import select_samples
from i2am.analysis.output_directory import refuse_inside_run
from i2am.flows.console.progress import Progress, emit
from i2am.storage.errors import AlreadyExists, NotFound, UnknownName
from i2am.storage.reading.run_collection import home_of

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun


def detect_images(
    run: AnyRun,
    kind: str,
    out: Path,
    weights: Path | None = None,
    image: str = "generated",
    samples: Sequence[str] | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write a COCO results file of a run's images, whole or not at all; return how many samples and boxes."""
    from i2am.pipeline.detectors.runners import KINDS, detect_pictures, load_detector
    from i2am.pipeline.detectors.scene_detector import FOLDER

    if kind not in KINDS:
        raise UnknownName("detector", kind, KINDS)
    if image not in run.images:
        raise UnknownName("image", image, list(run.images))
    if weights is None and kind != "scenes":
        raise NotFound(
            f"no weights of {kind}", expected="--weights", remedy="name a local copy: nothing is downloaded"
        )
    _check_output(out, overwrite)
    detector = load_detector(kind, FOLDER if weights is None else weights)
    names = select_samples(run, samples)
    entries: list[dict[str, Any]] = []
    for done, own in enumerate(detect_pictures(detector, _pictures(run, image, names), image), start=1):
        entries += own
        emit(Progress("detector", done, len(names), kind))
    made = out.with_name(f".{out.name}.part")
    made.write_text(json.dumps(entries))
    os.replace(made, out)
    return {"samples": len(names), "boxes": len(entries)}


def _check_output(out: Path, overwrite: bool) -> None:
    refuse_inside_run(out)
    if out.exists() and not overwrite:
        raise AlreadyExists(f"{out} exists", remedy="name another --out, or replace it with --overwrite")
    if not out.absolute().parent.is_dir():
        raise NotFound(f"folder {out.absolute().parent} does not exist", remedy="make it first")


def _pictures(run: AnyRun, image: str, names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for name in names:
        pixels = sample_image(home_of(run, name), image, name)
        if pixels is not None:
            yield name, rgb(pixels)
