"""Images of an experiment by key: those of runs, and those of a folder of real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from i2am.storage.errors import NoAnswer, NotFound
from i2am.storage.format.file_names import sample_file
from i2am.storage.reading.run import Run
from i2am.storage.tools.feature_store import image_key

RGB: TypeAlias = NDArray[np.uint8]

Real: TypeAlias = str | Path | Mapping[str, RGB] | None
"""A folder of pictures, or images [y, x, 3] by sample id; None: what the runs themselves hold."""

TRUTHS = ("target", "source")
"""Images of a run that a generated one is compared with where no others are given: the first there is."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that is read again when it is needed."""

    key: str  # the digest of its pixels
    load: Callable[[], RGB]


def of_run(run: Run, name: str, sample: str) -> Picture:
    """An image of a run's sample, grey ones in three equal channels."""

    def load() -> RGB:
        return _rgb(run.image(name, sample))

    return Picture(image_key(load()), load)


def given(real: Real) -> dict[str, Picture]:
    """Real images by name: those of a folder by their file names without suffix, or those by sample id."""
    if real is None:
        return {}
    if isinstance(real, Mapping):
        return {name: Picture(image_key(image), lambda image=image: image) for name, image in real.items()}  # type: ignore[misc]
    folder = Path(real)
    if not folder.is_dir():
        raise NotFound(f"no folder {folder} of real images", remedy="correct --real")
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            found[path.relative_to(folder).with_suffix("").as_posix()] = _of_file(path)
    if not found:
        raise NoAnswer(
            f"no real images in {folder}",
            expected=f"pictures: {', '.join(SUFFIXES)}",
            remedy="correct --real",
        )
    return found


def truth_of(run: Run, sample: str, named: Mapping[str, Picture]) -> tuple[str, Picture] | None:
    """What a sample should look like, and where that comes from: "real", or the name of the run's image."""
    for name in (sample, sample_file(sample)):
        if name in named:
            return "real", named[name]
    if named.keys() & {*run.samples, *map(sample_file, run.samples)}:
        return None  # the folder has truths, but not this sample's
    images = run.record(sample)["images"]
    return next(((name, of_run(run, name, sample)) for name in TRUTHS if name in images), None)


def _of_file(path: Path) -> Picture:
    from i2am.pipeline.recording.images import to_uint8

    def load() -> RGB:
        return _rgb(to_uint8("real", path))

    return Picture(image_key(load()), load)


def _rgb(pixels: NDArray[np.uint8]) -> RGB:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
