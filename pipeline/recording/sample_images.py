"""The images that come with a sample: of known names, one for each id, masks as large as their pictures."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from i2am.pipeline.recording.images import IMAGES, MASKS, check_sizes, counts_to_one, to_uint8
from i2am.pipeline.recording.recording import SampleHandle
from i2am.storage.errors import InputError, UnknownName
from i2am.storage.format.file_names import check_segment


def by_name(others: Mapping[str, Any] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """All images of a call; a keyword that no image has is likely misspelt."""
    known = (*filter(str.isidentifier, IMAGES), "generated")  # others are given with images={...}
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            remedy = None if near else f"keep an image of your own with images={{{name!r}: ...}}"
            raise UnknownName("image", name, known, remedy=remedy)
    return {**named, **{check_segment("image", name): image for name, image in (others or {}).items()}}


def give_images(handles: Sequence[SampleHandle], images: Mapping[str, Any]) -> None:
    """Read each sample's images; refuse counts and sizes that do not fit."""
    for name, batch in images.items():
        each = [batch] if isinstance(batch, (str, os.PathLike, Image.Image)) else list(batch)
        if len(each) != len(handles):
            raise InputError(
                f"images {name!r}", expected=f"{len(handles)}, one for each id", got=str(len(each))
            )
        for handle, image in zip(handles, each, strict=True):
            handle.images[name] = to_uint8(name, image)
            if name in MASKS and counts_to_one(image):
                warnings.warn(
                    f"sample {handle.id!r}: {name} holds 0 and 1, kept as 0 and 255; a pipeline that gets "
                    "this PIL image paints nothing: give it image.point(lambda value: 255 * value)",
                    stacklevel=4,
                )
    for handle in handles:
        sizes = {name: (image.shape[1], image.shape[0]) for name, image in handle.images.items()}
        check_sizes(f"sample {handle.id!r}", sizes)


def warn_of_no_result(handles: Sequence[SampleHandle]) -> None:
    """Say which samples were committed without what was generated."""
    if ids := [handle.id for handle in handles if handle.stored and handle.generated is None]:
        warnings.warn(
            f"sample {ids[0]!r} has no generated image: set s.generated = pipe(...).images[0] "
            f"inside its context, or add it: i2am amend RUN --sample {ids[0]!r} --image generated=FILE",
            stacklevel=4,
        )
