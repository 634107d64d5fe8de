"""Supervised detectors on a run's images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
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
from i2am.storage.locations.whole_file import whole_file
from i2am.storage.reading.run_collection import home_of
from i2am.storage.tools.feature_store import image_key

if TYPE_CHECKING:
    from i2am.storage.reading.run_collection import AnyRun

Entry = dict[str, Any]
"""A box in COCO's results."""


def detect_images(
    run: AnyRun,
    kind: str,
    out: Path,
    weights: Path | None = None,
    image: str = "generated",
    samples: Sequence[str] | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write a COCO results file of a run's images, whole or not at all; return how many samples and boxes.

    What was found in each image is kept beside ``out`` until all is done: an interrupted detection goes on.
    """
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
    weights = FOLDER if weights is None else weights
    detector = load_detector(kind, weights)
    names = select_samples(run, samples)
    kept = out.with_name(f".{out.name}.kept")
    known = _read_kept(kept)
    entries: list[Entry] = []
    of_all = f"{kind} {_digest(weights)} {image}"
    for done, (name, pixels) in enumerate(_pictures(run, image, names), start=1):
        key = f"{of_all} {image_key(pixels)} {name}"
        if key not in known:
            (known[key],) = detect_pictures(detector, [(name, pixels)], image)
            with kept.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps([key, known[key]]))  # the line before may have broken off
        entries += known[key]
        emit(Progress("detector", done, len(names), kind))
    with whole_file(out) as made:
        made.write_text(json.dumps(entries))
    kept.unlink(missing_ok=True)
    return {"samples": len(names), "boxes": len(entries)}


def _read_kept(path: Path) -> dict[str, list[Entry]]:
    """What was found by the key of what it was found in; lines that broke off are passed over."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError):
            key, own = json.loads(line)
            found[key] = own
    return found


def _digest(weights: Path) -> str:
    """Of the bytes of a file, or of all files of a folder."""
    found = hashlib.sha256()
    for path in sorted(weights.rglob("*")) if weights.is_dir() else [weights]:
        if path.is_file():
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


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
