"""The sizes that expressions name: those of the denoiser's arguments, of its latents, and of each image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from i2am.pipeline.adapters.generic.description import PositionIds
from i2am.pipeline.adapters.joint import grid_of

DEEPEST = 4
"""Levels of lists in an argument."""


def sizes_of(
    arguments: Mapping[str, Any], latents: torch.Tensor | None, ids: PositionIds | None
) -> dict[str, Any]:
    """Argument to its shape, or its numbers; ``latent_rows``, ``latent_columns``, and those of ``ids``.

    Raises ValueError where position ids fill no rectangle.
    """
    found = {name: _sizes(value, DEEPEST) for name, value in arguments.items()}
    if latents is not None and latents.ndim > 3:
        found |= {"latent_rows": int(latents.shape[-2]), "latent_columns": int(latents.shape[-1])}
    if ids is not None:
        found |= _images(ids, arguments.get(ids.argument))
        found = {
            "latent_rows": found["image_rows"][0], "latent_columns": found["image_columns"][0], **found
        }  # fmt: skip
    return found


def _sizes(value: Any, levels: int) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, list | tuple) and levels:
        return [_sizes(item, levels - 1) for item in value]
    if isinstance(value, Mapping) and levels:
        return {key: _sizes(item, levels - 1) for key, item in value.items()}
    return value if type(value) is int else None


def _images(ids: PositionIds, places: Any) -> dict[str, list[int]]:
    """Tokens, rows and columns of each image, in the order in which they stand."""
    missing = {"row", "column"} - set(ids.axes)
    fits = isinstance(places, torch.Tensor) and places.ndim in (2, 3) and places.shape[-1] >= len(ids.axes)
    if missing or not fits:
        raise ValueError(
            f"position ids {ids.argument!r} with axes {', '.join(ids.axes)}, row and column among them; "
            f"got {tuple(getattr(places, 'shape', ())) or type(places).__name__}"
        )
    own = places[0] if places.ndim == 3 else places
    own = own[:, [ids.axes.index("row"), ids.axes.index("column")]]
    counts = [len(own)]
    if "image" in ids.axes:
        number = (places[0] if places.ndim == 3 else places)[:, ids.axes.index("image")]
        counts = number.unique_consecutive(return_counts=True)[1].tolist()
    grids = [grid_of(part) for part in own.split(counts)]
    if None in grids:
        raise ValueError(f"position ids {ids.argument!r} of image {grids.index(None)} fill no rectangle")
    rows, columns = zip(*(grid for grid in grids if grid), strict=True)
    return {"image_tokens": counts, "image_rows": list(rows), "image_columns": list(columns)}
