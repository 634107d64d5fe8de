"""Pictures from files, as a pipeline takes them; `i2am.pipeline.recording.images` has the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from i2am.pipeline.recording.images import MASKS, MAX_PIXELS, to_uint8
from i2am.storage.errors import ConfigError, InputError


@dataclass(frozen=True, slots=True)
class Embedded:
    """A picture inside another file, such as a table or a tar: where, and how to get its bytes."""

    place: str
    read: Callable[[], bytes]


Source: TypeAlias = Path | Embedded


def read_image(source: Source, name: str) -> Any:
    """A file's picture as PIL image: in grey for a mask, else in RGB."""
    from PIL import Image

    if isinstance(source, Path):
        pixels = to_uint8(name, source)
    else:
        try:
            pixels = to_uint8(name, source.read())
        except (InputError, ValueError) as error:
            raise ConfigError(f"{source.place}: {error}") from None
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return image if name in MASKS else image.convert("RGB")


def check_pixels(what: str, columns: int, rows: int) -> None:
    """Refuse a size that would not fit in memory."""
    if columns * rows > MAX_PIXELS:
        raise ConfigError(what, expected=f"at most {MAX_PIXELS} pixels", got=f"{columns}×{rows}")
