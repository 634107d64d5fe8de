"""Diffusers pipelines whose ``UNet2DConditionModel`` attends to reference tokens through ``attn2``.

Serves the embedded :class:`~i2am.pipeline.embedded.painter.ReferencePainter` (a grid of patch tokens) and, with
one pooled CLIP token, Paint-by-Example (Yang et al., 2023) and Stable Diffusion image variation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.adapters.defaults import Defaults
from i2am.pipeline.adapters.unet import attentions, projection_site
from i2am.storage.errors import CaptureError

ATTN2 = r".+\.transformer_blocks\.\d+\.attn2"
"""Paths of cross-attention in diffusers' UNets."""


@dataclass(frozen=True, slots=True)
class _Family:
    """What differs between pipelines of this kind: where reference tokens stand, and how it is called."""

    layout: Callable[[Any], TokenLayout]
    inputs: Mapping[str, str]


def _patch_grid(pipe: Any) -> TokenLayout:
    rows, columns = pipe.reference_encoder.grid
    return TokenLayout(grid=(int(rows), int(columns)))


def _pooled(pipe: Any) -> TokenLayout:
    return TokenLayout(grid=(0, 0), prefix=1)


_FAMILIES: dict[str, _Family] = {
    "ReferencePainter": _Family(
        _patch_grid, {"image": "source", "mask_image": "mask", "reference_image": "reference"}
    ),
    "PaintByExamplePipeline": _Family(
        _pooled, {"image": "source", "mask_image": "mask", "example_image": "reference"}
    ),
    "StableDiffusionImageVariationPipeline": _Family(_pooled, {"image": "reference"}),
}


class DiffusersUNet(Defaults):
    """Adapter of the pipelines named in this module's table, and of their subclasses."""

    name = "diffusers-unet"

    def matches(self, pipe: Any) -> bool:
        """True for a pipeline, or a subclass of one, that this adapter knows."""
        return any(parent.__name__ in _FAMILIES for parent in type(pipe).__mro__)

    def sites(self, pipe: Any) -> Sequence[Site]:
        """The ``attn2`` of every transformer block."""
        unet = self.denoiser(pipe)
        found = [
            projection_site(f"unet.{path}", attention, grid)
            for path, attention, grid in attentions(unet, ATTN2)
            if getattr(attention, "is_cross_attention", False)
        ]
        if not found:
            raise self._none_found(unet, "modules named '*.transformer_blocks.*.attn2' with cross-attention")
        return found

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """The encoder's patch grid, or one pooled token."""
        return self._family(pipe).layout(pipe)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """Argument names of the pipeline's call."""
        return self._family(pipe).inputs

    def _family(self, pipe: Any) -> _Family:
        for parent in type(pipe).__mro__:
            if parent.__name__ in _FAMILIES:
                return _FAMILIES[parent.__name__]
        raise CaptureError(
            f"adapter {self.name!r}: pipeline class",
            expected="one of " + ", ".join(_FAMILIES),
            got=type(pipe).__name__,
            remedy="write an adapter for it (CONTRIBUTING.md) and name that",
        )
