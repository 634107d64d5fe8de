"""SeeSR (Wu et al., 2024): attention to the representation of a degradation-aware tagger of the input.

``image_attentions`` of the UNet (16) and of the ControlNet (7) attend to 145 tokens: an average pool, then
the tagger's 12 x 12 patches of the whole low-resolution image, also where the latents are cut into tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import nn

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.adapters.unet import UNetAdapter, attentions, controlnet_of, has_path, projection_site


class SeeSR(UNetAdapter):
    """SeeSR's own pipeline."""

    name = "seesr"
    tiled = True
    cross_attention_only = False
    wanted = "'*.image_attentions.*.transformer_blocks.*.attn2'"
    paths = (
        r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.image_attentions\.\d+\.transformer_blocks\.\d+\.attn2"
    )

    def matches(self, pipe: Any) -> bool:
        return has_path(getattr(pipe, "unet", None), self.paths)

    def companions(self, pipe: Any) -> Sequence[nn.Module]:
        return controlnet_of(pipe)

    def sites(self, pipe: Any) -> Sequence[Site]:
        """Image attention of the ControlNet, then of the UNet."""
        control = [
            projection_site(f"controlnet.{path}", attention, grid)
            for module in controlnet_of(pipe)
            for path, attention, grid in attentions(module, self.paths)
        ]
        return [*control, *super().sites(pipe)]

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """The tagger's pooled token and its square of patches."""
        side = isqrt(tokens - 1)
        return TokenLayout((side, side), prefix=1)

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """The low-resolution image, resized by the pipeline's caller, and the prompt."""
        return {"image": "source", "prompt": "prompt"}
