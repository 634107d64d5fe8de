"""What all layouts share: samples as the capture sees them, and images read with errors that help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import ConfigError, NoPermission, NotFound, ShapeMismatch

MASKS = ("mask", "reference_mask", "warped_mask")
"""Images of one channel, resized without interpolation."""


@dataclass(frozen=True, slots=True)
class SampleInput:
    """What one generation starts from.

    Attributes
    ----------
    id
        Name of the sample in the run.
    seed
        Of its noise.
    images
        Name (``source``, ``reference``, ``mask``, and ``reference_mask`` where it is known) to a PIL image.
    texts
        Name (``prompt``, ``negative_prompt``) to text.
    """

    id: str
    seed: int
    images: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Samples by id: ids and seeds are known at once, images are read by ``load``.

    Attributes
    ----------
    seeds
        Id to seed, in order.
    load
        Reads one sample.
    left_out
        Entries of the data set that its rule leaves out.
    """

    seeds: Mapping[str, int]
    load: Callable[[str], SampleInput]
    left_out: int = 0

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(self.seeds)


def folder_of(path: Path, what: str) -> Path:
    """The resolved folder at ``path``.

    Raises
    ------
    NotFound
        If there is none.
    """
    if not path.is_dir():
        raise NotFound(
            f"{what} {path} does not exist", remedy="paths are read from the configuration's folder"
        )
    return path.resolve()


def read_text(path: Path, what: str) -> str:
    """The text of a file.

    Raises
    ------
    NotFound, NoPermission, ConfigError
        If it is not there, may not be read, or is no text.
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise NotFound(
            f"{what} {path} does not exist", remedy="paths are read from the configuration's folder"
        ) from None
    except PermissionError:
        raise NoPermission(f"{what} {path} may not be read", remedy="change its permissions") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{what} {path}", expected="text in UTF-8", got=first_line(error)) from None


def inside(folder: Path, name: str, sample: str) -> Path:
    """The file ``name`` below ``folder``, which is resolved.

    Raises
    ------
    ConfigError, NotFound
        If it lies outside, or is not there.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ConfigError(
            f"sample {sample!r}: path {name!r}",
            expected=f"a path inside {folder}",
            got="one outside",
            remedy="move the image into it",
        )
    if not path.is_file():
        raise NotFound(f"sample {sample!r}: image {path} does not exist", remedy="correct the data set")
    return path


def once(ids: list[str], what: str) -> None:
    """Check that each id stands once, and that there is one.

    Raises
    ------
    ConfigError
        If not.
    """
    if not ids:
        raise ConfigError(what, expected="at least one row", got="none")
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ConfigError(what, expected="each id once", got=f"{twice!r} more than once")


def check_sizes(sample: str, images: Mapping[str, Path]) -> None:
    """Compare the sizes of source and mask from their headers alone.

    Raises
    ------
    ShapeMismatch
        If they differ.
    """
    if not {"source", "mask"} <= set(images):
        return
    source, mask = (_open(images[name]).size for name in ("source", "mask"))
    if source != mask:
        raise ShapeMismatch(
            f"sample {sample!r}: mask {images['mask'].name}",
            expected=f"the source's size, {source[0]}×{source[1]} pixels",
            got=f"{mask[0]}×{mask[1]}",
            remedy="resize the mask",
        )


def read_image(path: Path, name: str) -> Any:
    """A picture as PIL reads it, in grey for a mask, else in RGB.

    Raises
    ------
    NotFound, ConfigError, NoPermission
        If it is gone or damaged, or may not be read.
    """
    from PIL import Image

    _open(path)
    try:
        with Image.open(path) as image:
            return image.convert("L" if name in MASKS else "RGB")
    except OSError as error:
        raise ConfigError(f"image {path}", expected="a whole picture", got=first_line(error)) from None


def resized(image: Any, name: str, size: tuple[int, int] | None) -> Any:
    """``image`` with ``size`` rows and columns: bicubic, a mask to its nearest pixel."""
    from PIL import Image

    if size is None or image.size == size[::-1]:
        return image
    return image.resize(size[::-1], Image.Resampling.NEAREST if name in MASKS else Image.Resampling.BICUBIC)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _open(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image
    except FileNotFoundError:
        raise NotFound(f"image {path} does not exist", remedy="correct the data set") from None
    except PermissionError:
        raise NoPermission(f"image {path} may not be read", remedy="change its permissions") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"image {path}", expected="a picture that PIL reads", got=first_line(error)
        ) from None
