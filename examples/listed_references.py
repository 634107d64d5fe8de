"""Pipelines that take a list of references, called with one image, as a configuration gives it."""

from __future__ import annotations

from typing import Any


def load(device: str, dtype: str, location: str, pipeline: str, argument: str) -> Any:
    """The diffusers ``pipeline`` at a folder or hub id; its ``argument`` gets ``[image]``."""
    import diffusers
    import torch

    family = getattr(diffusers, pipeline)
    pipe = family.from_pretrained(location, torch_dtype=getattr(torch, dtype), use_safetensors=True)

    class OfOneReference(family):  # type: ignore[misc]
        def __call__(self, image: Any, **given: Any) -> Any:
            listed = [[each] for each in image] if isinstance(image, list) else [image]
            return super().__call__(**{argument: listed}, **given)

    pipe.__class__ = OfOneReference
    return pipe.to(device)
