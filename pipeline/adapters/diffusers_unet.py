"""Diffusers pipelines whose ``UNet2DConditionModel`` attends to reference tokens through ``attn2``.

Serves the embedded ``ReferencePainter`` (a grid of patch tokens) and, with one pooled CLIP token,
Paint-by-Example (Yang et al., 2023) and Stable Diffusion image variation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.adapters.unet import UNetAdapter
from i2am.storage.errors import CaptureError

_INPUTS: dict[str, dict[str, str]] = {
    "ReferencePainter": {"image": "source", "mask_image": "mask", "reference_image": "reference"},
    "PaintByExamplePipeline": {"image": "source", "mask_image": "mask", "example_image": "reference"},
    "StableDiffusionImageVariationPipeline": {"image": "reference"},
}
"""Pipeline class to the arguments of its call."""


class DiffusersUNet(UNetAdapter):
    """The pipelines named in this module's table, and their subclasses."""

    name = "diffusers-unet"

    def matches(self, pipe: Any) -> bool:
        return any(parent.__name__ in _INPUTS for parent in type(pipe).__mro__)

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """The encoder's patch grid, or one pooled token."""
        if self._class(pipe) != "ReferencePainter":
            return TokenLayout(grid=(0, 0), prefix=1)
        rows, columns = pipe.reference_encoder.grid
        return TokenLayout(grid=(int(rows), int(columns)))

    def empty_reference(
        self, pipe: Any, tokens: torch.Tensor, uncond: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Zeros, or the vector that Paint-by-Example learned for it."""
        if self._class(pipe) == "PaintByExamplePipeline":
            learned: torch.Tensor = pipe.image_encoder.uncond_vector
            return learned.detach().expand_as(tokens)
        return torch.zeros_like(tokens)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        return _INPUTS[self._class(pipe)]

    def _class(self, pipe: Any) -> str:
        for parent in type(pipe).__mro__:
            if parent.__name__ in _INPUTS:
                return parent.__name__
        raise CaptureError(
            f"adapter {self.name!r}: pipeline class",
            expected="one of " + ", ".join(_INPUTS),
            got=type(pipe).__name__,
            remedy="write an adapter for it (CONTRIBUTING.md) and name that",
        )
