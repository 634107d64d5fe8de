"""PASD (Yang et al., 2024): pixel-aware attention from the image being generated to the low-resolution one.

``up_blocks.*.pixel_attentions.*`` of the UNet, or ``attn2_plus`` of the light model, attend to the
ControlNet's features on the same grid (N x N), which change from step to step. Large latents are cut into
tiles, and each tile sees its own part of the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.adapters.unet import UNetAdapter, controlnet_of, has_path


class PASD(UNetAdapter):
    """PASD's own pipeline, full or light."""

    name = "pasd"
    tiled = True
    static_key = False
    cross_attention_only = False
    wanted = "'up_blocks.*.pixel_attentions.*.attn2' or '*.attn2_plus'"
    paths = (
        r"up_blocks\.\d+\.(pixel_attentions\.\d+\.transformer_blocks\.\d+\.attn2"
        r"|attentions\.\d+\.transformer_blocks\.\d+\.attn2_plus)"
    )

    def matches(self, pipe: Any) -> bool:
        return has_path(getattr(pipe, "unet", None), self.paths)

    def companions(self, pipe: Any) -> Sequence[nn.Module]:
        return controlnet_of(pipe)

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """The generated image's own grid."""
        return TokenLayout(grid)

    def shared_reference(self, pipe: Any) -> bool:
        return False

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """The low-resolution image, resized by the pipeline's caller, and the prompt."""
        return {"image": "source", "prompt": "prompt"}
