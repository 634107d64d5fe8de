"""What all layouts share: samples as the capture sees them, and files found with errors that help."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from i2am.flows.config.bounded_file import read_bounded
from i2am.flows.console.output import one_line
from i2am.flows.datasets.images import Source, read_image
from i2am.pipeline.recording.images import MASKS, PICTURES, check_sizes, size_of
from i2am.storage.errors import ConfigError, NotFound
from i2am.storage.format.file_names import sample_file

MAX_BYTES = 1 << 26
"""Bytes of a list of samples (64 MiB: some 300,000 lines)."""

MAX_SAMPLES = 1_000_000

MASKS_READ = 256
"""Samples whose masks are looked into when samples are listed; others are when they are loaded."""

_NAME = re.compile(r"[^\0\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class SampleInput:
    """What one generation starts from: PIL images and texts by name, such as ``source`` and ``prompt``."""

    id: str
    seed: int
    images: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Samples by id: ids and seeds are known at once, images are read by `load`.

    `left_out` counts entries of the data set that its rule leaves out.
    """

    seeds: Mapping[str, int]
    load: Callable[[str], SampleInput]
    left_out: int = 0

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(self.seeds)


def existing_folder(path: Path, what: str) -> Path:
    """The resolved path of a folder; NotFound if there is none."""
    if not path.is_dir():
        raise NotFound(
            f"{what} {path} does not exist", remedy="paths are read from the configuration's folder"
        )
    return path.resolve()


def read_text(path: Path, what: str, most: int = MAX_BYTES) -> str:
    """The text of a file of at most `most` bytes."""
    raw = read_bounded(path, what, most, "paths are read from the configuration's folder")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path}", expected="text in UTF-8", got=one_line(error)) from None


def path_inside(folder: Path, name: str, what: str) -> Path:
    """The path `name` below a resolved folder; ConfigError if symbolic links or ``..`` lead out of it."""
    path = Path(os.path.realpath(folder / name)) if _NAME.fullmatch(name) else folder.parent
    if not path.is_relative_to(folder):
        raise ConfigError(
            f"{what} {name[:200]!r}",
            expected=f"a path inside {folder}",
            got="one outside",
            remedy="move it into the folder",
        )
    return path


def file_inside(folder: Path, name: str, sample: str) -> Path:
    """The existing file `name` of a sample, below a resolved folder."""
    path = path_inside(folder, name, f"sample {sample!r}: path")
    if not os.path.isfile(path):
        words = f"sample {sample!r}: image {str(path)[:300]} does not exist"
        raise NotFound(words, remedy="correct the data set")
    return path


def check_ids(ids: list[str], what: str) -> None:
    """Check that there are ids, not too many, that a run can hold, each once."""
    if not ids:
        raise ConfigError(what, expected="at least one row", got="none")
    if len(ids) > MAX_SAMPLES:
        raise ConfigError(what, expected=f"at most {MAX_SAMPLES} samples", got=str(len(ids)))
    seen = set()
    for name in ids:
        sample_file(name)
        if name in seen:
            raise ConfigError(what, expected="each id once", got=f"{name!r} more than once")
        seen.add(name)


def check_images(sample: str, images: Mapping[str, Source], *, masks: bool) -> None:
    """Compare the sizes of masks and pictures in files, by headers; with `masks`, look into the masks."""
    files = {name: path for name, path in images.items() if isinstance(path, Path)}
    compared = {each for pair in PICTURES.items() if set(pair) <= set(files) for each in pair}
    check_sizes(f"sample {sample!r}", {name: size_of(files[name]) for name in sorted(compared)})
    for name in set(MASKS) & set(files) if masks else ():
        read_image(files[name], name)


def resized(image: Any, name: str, size: tuple[int, int] | None) -> Any:
    """`image` with `size` rows and columns: bicubic, a mask to its nearest pixel."""
    from PIL import Image

    if size is None or image.size == size[::-1]:
        return image
    return image.resize(size[::-1], Image.Resampling.NEAREST if name in MASKS else Image.Resampling.BICUBIC)


@dataclass(frozen=True, slots=True)
class Entry:
    """Pictures and texts of one sample."""

    files: Mapping[str, Source]
    texts: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None


def from_files(entries: Mapping[str, Entry], first_seed: int, size: tuple[int, int] | None) -> SampleSet:
    """Samples by id, in order; those without a seed get `first_seed` plus their position."""
    for number, (id, entry) in enumerate(entries.items()):
        check_images(id, entry.files, masks=number < MASKS_READ)
    seeds = {
        id: first_seed + number if entry.seed is None else entry.seed
        for number, (id, entry) in enumerate(entries.items())
    }

    def load(id: str) -> SampleInput:
        entry = entries[id]
        read = {name: read_image(file, name) for name, file in entry.files.items()}
        check_sizes(f"sample {id!r}", {name: image.size for name, image in read.items()})
        images = {name: resized(image, name, size) for name, image in read.items()}
        return SampleInput(id, seeds[id], images, dict(entry.texts))

    return SampleSet(seeds, load)
