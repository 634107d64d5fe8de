"""Pictures from files that somebody else made: of few formats, one frame, and a size that fits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from i2am.flows.console.output import one_line
from i2am.storage.errors import ConfigError, InputError, NoPermission, NotFound

MASKS = ("mask", "reference_mask", "warped_mask")
"""Images of one channel, resized without interpolation."""

MAX_PIXELS = 1 << 26
"""Of a picture: 8192 by 8192, a quarter of a gigabyte once decoded."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""What is decoded. PIL knows many more, and hands some of them to other programs."""


def read_image(path: Path, name: str) -> Any:
    """A picture that PIL reads whole and that has one frame: in grey for a mask, else in RGB."""
    with _opened(path) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a JPEG with its thumbnail
            raise ConfigError(
                f"image {path}", expected="one picture", got="several in one file", remedy="keep one of them"
            )
        return image.convert("L" if name in MASKS else "RGB")


def size_of(path: Path) -> tuple[int, int]:
    """Columns and rows of a picture, from its header alone."""
    with _opened(path) as image:
        return int(image.width), int(image.height)


def check_pixels(what: str, columns: int, rows: int) -> None:
    """Refuse a size that would not fit in memory."""
    if columns * rows > MAX_PIXELS:
        raise ConfigError(what, expected=f"at most {MAX_PIXELS} pixels", got=f"{columns}×{rows}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The picture, its size checked before any pixel is decoded."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            check_pixels(f"image {path}", *image.size)
            yield image
    except FileNotFoundError:
        raise NotFound(f"image {path} does not exist", remedy="correct the data set") from None
    except PermissionError:
        raise NoPermission(f"image {path} may not be read", remedy="change its permissions") from None
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - PIL's decoders raise anything on bytes that are not what they seem
        raise ConfigError(
            f"image {path}", expected="a picture that PIL reads whole", got=one_line(error)
        ) from None
