"""Pictures, read by one set of rules wherever they come from: a file, PIL, an array or a tensor.

A photo is turned as its EXIF orientation says, a palette becomes its colours, and alpha is left out, all as
`diffusers.utils.load_image` does. 16 bits are scaled to 8, floats run from 0 to 1, a file has one frame.

Masks have one channel, above one half inside: 0 and 1, 0 and 255, 0 and 65535, booleans, or floats from 0 to
1. One whose shape stands in its colours or in its alpha, or that has one side only, is refused.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from i2am.pipeline.adapters.region import Region
from i2am.storage.errors import ConfigError, InputError, NoPermission, NotFound, ShapeMismatch
from i2am.storage.format.layer_spec import LayerSpec

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Any
"""A file or its bytes, a PIL image, an array [y, x] or [y, x, channel], or a tensor [channel, y, x]."""

FURTHER = tuple(f"reference-{number}" for number in range(1, 10))
"""Pictures of the references after the first; no pipeline takes more than ten."""

MASKS = ("mask", "reference_mask", "warped_mask", *(f"{name}_mask" for name in FURTHER))
"""Images of one channel, resized without interpolation."""

IMAGES = (*MASKS, "source", "reference", *FURTHER, "agnostic", "densepose", "warped")
"""Names of images that a sample is made from; a capture may keep others."""

PICTURES = {"mask": "source", **{name: name.removesuffix("_mask") for name in MASKS if name != "mask"}}
"""Mask to the picture that it lies on."""

SCORED = ("mask", "reference_mask")
"""Masks that maps are scored against: both sides are needed."""

MAX_PIXELS = 1 << 26
"""Of a file: 8192 by 8192, a quarter of a gigabyte once decoded."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Of files. PIL knows many more, and hands some of them to other programs."""

_SAME_SHAPE = 0.02
"""Share by which the proportions of a canvas may differ from those of its tokens."""

_COLOURED = 32
"""Levels between the channels of a pixel that is not grey; a JPEG's grey differs by a few."""

Array: TypeAlias = NDArray[Any]


def to_uint8(name: str, image: ImageLike) -> NDArray[np.uint8]:
    """uint8 [y, x, channel] of a picture, by the rules of this module; ``name`` says whether it is a mask.

    Masks and grey pictures have 1 channel, colours 3.
    """
    what = f"image {name!r}"
    if isinstance(image, (str, os.PathLike, bytes)):
        source = image if isinstance(image, bytes) else Path(image)
        with opened(source, what) as picture:
            return _of_pil(what if isinstance(source, bytes) else f"image {source}", name, picture)
    if isinstance(image, Image.Image):
        return _of_pil(what, name, image)
    return _of_array(what, name, _channels_last(what, image))


@contextmanager
def opened(source: Path | bytes, what: str = "image") -> Iterator[Image.Image]:
    """The picture of a file or its bytes, its size checked before any pixel is decoded."""
    what = what if isinstance(source, bytes) else f"image {str(source)[:300]}"
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        if isinstance(file, Path) and file.exists() and not file.is_file():  # a pipe would be waited for
            raise ConfigError(what, expected="a file", got="a folder, pipe or device")
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}×{image.height}"
                raise ConfigError(what, expected=f"at most {MAX_PIXELS} pixels", got=size)
            yield image
    except FileNotFoundError:
        web = str(source).startswith(("http:/", "https:/"))
        raise NotFound(
            f"{what} does not exist",
            remedy="load it with diffusers.utils.load_image" if web else "correct the path",
        ) from None
    except PermissionError:
        raise NoPermission(f"{what} may not be read", remedy="change its permissions") from None
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - PIL's decoders raise anything on bytes that are not what they seem
        got = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(what, expected="a picture that PIL reads whole", got=got) from None


def size_of(path: Path) -> tuple[int, int]:
    """Columns and rows of a file's picture the right way up, from its header alone."""
    with opened(path) as image:
        tagged = image.format not in ("PNG", "TIFF")  # PIL turns a TIFF itself, and would read a PNG whole
        tagged |= image.format == "PNG" and bool({"exif", "Raw profile type exif"} & set(image.info))
        turned = tagged and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def check_sizes(what: str, sizes: dict[str, tuple[int, int]]) -> None:
    """Refuse a mask of another size than its picture; sizes are columns and rows."""
    for mask, picture in PICTURES.items():
        if mask in sizes and picture in sizes and sizes[mask] != sizes[picture]:
            columns, rows = sizes[picture]
            raise ShapeMismatch(
                f"{what}: {mask}",
                expected=f"the {picture}'s size, {columns}×{rows} pixels",
                got=f"{sizes[mask][0]}×{sizes[mask][1]}",
                remedy="resize the mask",
            )


def sides_of_canvas(images: Mapping[str, Array], region: Region, spec: LayerSpec) -> dict[str, Array]:
    """Images of the whole canvas without the reference's side, which is kept of a source; others as they are.

    One that has the proportions of a layer's generated and reference tokens together is the whole canvas.
    """
    axis = 0 if region.side in ("top", "bottom") else 1
    canvas = [*spec.gen_grid]
    canvas[axis] += spec.ref_grid[axis]
    found = dict(images)
    for name in ("source", "mask", "generated"):
        image = images.get(name)
        if image is None or abs(image.shape[0] * canvas[1] / (image.shape[1] * canvas[0]) - 1) > _SAME_SHAPE:
            continue
        share = region.share if region.side in ("top", "left") else 1 - region.share
        sides = np.array_split(image, [round(image.shape[axis] * share)], axis)
        reference, found[name] = sides if region.side in ("top", "left") else reversed(sides)
        if name == "source":
            found.setdefault("reference", reference)
        if name == "mask" and (found[name] == found[name].flat[0]).all():
            del found[name]  # nothing, or all, is painted
    return found


def counts_to_one(image: ImageLike) -> bool:
    """Whether a PIL mask holds 0 and 1 where a pipeline expects 0 and 255."""
    if not isinstance(image, Image.Image) or image.mode not in ("L", "P", "I", "I;16"):
        return False
    return int(np.asarray(image).max()) == 1


def _of_pil(what: str, name: str, image: Image.Image) -> NDArray[np.uint8]:
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a JPEG with its thumbnail
        raise ConfigError(what, expected="one picture", got="several in one file", remedy="keep one of them")
    image = ImageOps.exif_transpose(image)
    if image.mode == "1":
        image = image.convert("L")
    if not image.mode.startswith(("I", "F")):  # these have more than 8 bits
        if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "RGBa"):
            image = image.convert("RGBA")
        elif image.mode != "L":
            image = image.convert("RGB")
    array = np.asarray(image)
    if array.dtype == np.int32:  # mode I: 16 bits of a PGM or TIFF
        array = array.astype(np.uint16) if array.min() >= 0 and array.max() < 1 << 16 else array
    return _of_array(what, name, array[..., None] if array.ndim == 2 else array)


def _channels_last(what: str, image: Any) -> Array:
    """[y, x, channel] of an array or tensor."""
    tensor = hasattr(image, "detach")
    if tensor:
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    try:
        array = np.asarray(image)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    shape = array.shape
    if len(shape) == 4 and shape[0] == 1:  # a batch of one
        array = array[0]
    if array.ndim == 2 and array.size:
        return array[..., None]
    first, last = (array.ndim == 3 and array.shape[axis] in (1, 3, 4) for axis in (0, 2))
    if array.size and (last and not (tensor and first)):
        return array
    if array.size and first and not last:
        return np.moveaxis(array, 0, -1)
    raise ShapeMismatch(
        what,
        expected="a file, a PIL image, [y, x], [y, x, 1, 3 or 4 channels] or [channel, y, x]",
        got=f"{type(image).__name__} {shape}",
        remedy="tensor.permute(1, 2, 0).numpy() puts channels last" if tensor else None,
    )


def _of_array(what: str, name: str, array: Array) -> NDArray[np.uint8]:
    """Array [y, x, channel] without its alpha, scaled."""
    mask = name in MASKS
    alpha = array[..., 3] if array.shape[2] == 4 else None
    pixels = _scaled(what, array[..., :3] if alpha is not None else array, mask)
    if not mask:
        return pixels
    if pixels.shape[2] == 3:
        spread = int((pixels.max(axis=2) - pixels.min(axis=2)).max())
        if spread > _COLOURED:
            raise ShapeMismatch(
                f"{what}: a mask in colours", expected="grey, white where it is inside",
                got=f"channels that differ by {spread} of 255", remedy="save its shape in black and white",
            )  # fmt: skip
        pixels = np.asarray(np.rint(pixels.mean(axis=2, keepdims=True)), np.uint8)
    inside = pixels[..., 0] > 127
    if (
        alpha is not None
        and alpha.min() < alpha.max()
        and not np.array_equal(inside, alpha > alpha.max() / 2)
    ):
        raise ShapeMismatch(
            f"{what}: a mask with a shape in its alpha channel", expected="grey, white where it is inside",
            got="transparent pixels, which may be either side",
            remedy="save image.getchannel('A'), or its inverse, as the mask",
        )  # fmt: skip
    if name in SCORED and inside.all() == inside.any():
        raise ShapeMismatch(
            f"{what}: a mask that is {'full' if inside.all() else 'empty'}",
            expected="some pixels above one half and some not",
            got=f"values from {array.min()} to {array.max()}",
            remedy="correct the mask, or leave it out",
        )
    return pixels


def _scaled(what: str, array: Array, mask: bool) -> NDArray[np.uint8]:
    low, high, kind = array.min(), array.max(), array.dtype.kind
    if kind == "b":
        return np.asarray(array * 255, np.uint8)
    if mask and kind in "iu" and 0 <= low <= high == 1:
        return np.asarray(array * 255, np.uint8)
    if array.dtype == np.uint8 or (mask and kind in "iu" and low >= 0 and high in (0, 255)):
        return array.astype(np.uint8)
    if kind == "u" and array.dtype.itemsize == 2 and not 0 < high <= 255:  # below: 8 bits kept in 16?
        return np.asarray((array.astype(np.uint32) + 128) // 257, np.uint8)
    if kind == "f" and 0 <= low <= high <= 1:  # false where there is a NaN
        return np.asarray(np.rint(array * 255), np.uint8)
    raise ShapeMismatch(
        what,
        expected="8 or 16 bits, bool, or floats in [0, 1]",
        got=f"{array.dtype} in [{low}, {high}]",
        remedy="scale it, so that its range can be told",
    )
