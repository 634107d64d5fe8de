"""Images as the store keeps them: uint8 [y, x, channel]."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from i2am.storage.errors import ShapeMismatch

ImageLike: TypeAlias = Image.Image | NDArray[Any]


def to_uint8(name: str, image: ImageLike) -> NDArray[np.uint8]:
    """uint8 [y, x, channel] of a PIL image, or an array of uint8, bool (True becomes 255) or float in [0, 1].

    Masks and grey images have 1 channel, colour images 3; ``name`` is for errors.
    """
    if isinstance(image, Image.Image):
        return to_uint8(name, np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB")))
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ShapeMismatch(
            f"image {name!r}",
            expected="[y, x] or [y, x, 1, 3 or 4 channels]",
            got=str(tuple(np.shape(image))),
        )
    if array.dtype == np.uint8:
        return array.copy()
    if array.dtype == np.bool_:
        return np.asarray(array * 255, np.uint8)
    real = np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()
    if real and 0 <= array.min() <= array.max() <= 1:
        return np.asarray(np.rint(array * 255), np.uint8)
    raise ShapeMismatch(
        f"image {name!r}",
        expected="uint8, bool, or floats in [0, 1]",
        got=f"{array.dtype} in [{array.min()}, {array.max()}]",
        remedy="convert it, for instance with PIL.Image",
    )
