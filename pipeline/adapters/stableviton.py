"""StableVITON (Kim et al., 2024): warping blocks whose keys are the ControlNet's features of the garment.

``warp_flow_blks.{0..8}`` attend from the person to the garment on one grid (N x N); the UNet's own ``attn2``
attend to one pooled CLIP token. The garment's features are made from the step's latents too, so their keys
change over time. Guidance, off by default, makes separate calls, the conditional one first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from i2am.pipeline.adapters.contract import Site, TokenLayout
from i2am.pipeline.adapters.ldm import WARP_ATTN2, LatentDiffusion, diffusion_model
from i2am.pipeline.adapters.unet import attentions, has_path, projection_site


class StableVITON(LatentDiffusion):
    """StableVITON's repository."""

    name = "stableviton"

    def matches(self, pipe: Any) -> bool:
        return has_path(diffusion_model(pipe), WARP_ATTN2)

    def sites(self, pipe: Any) -> Sequence[Site]:
        """The warping blocks, then the UNet's ``attn2``."""
        unet = self.denoiser(pipe)
        warps = [
            projection_site(path, attention, grid, static_key=False)
            for path, attention, grid in attentions(unet, WARP_ATTN2)
        ]
        if not warps:
            raise self._no_layer(unet, "'warp_flow_blks.*.transformer_blocks.*.attn2'")
        return [*warps, *super().sites(pipe)]

    def layout(self, pipe: Any, site: Site, tokens: int, grid: tuple[int, int]) -> TokenLayout:
        """Garment patches on the person's grid, or one pooled token."""
        return TokenLayout(grid) if site.name.startswith("warp_flow_blks") else TokenLayout((0, 0), tokens)

    def calls(self, pipe: Any) -> tuple[str, ...]:
        return ("cond", "uncond")

    def inputs(self, pipe: Any) -> Mapping[str, str]:
        """What a factory's pipeline takes, by convention."""
        return {**super().inputs(pipe), "densepose_image": "densepose", "agnostic_image": "agnostic"}
